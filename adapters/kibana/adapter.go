package kibana

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

const (
	// requestTimeout is above the 30 s after which Kibana itself gives Elasticsearch up, so that the usual end of a slow
	// deletion is Kibana's answer and not our silence.
	requestTimeout = 60 * time.Second
	// firstPause is more than the second it may take until Elasticsearch finds a new session. It doubles with each pass.
	firstPause = 1500 * time.Millisecond
	// maxPasses bounds a run against people, or single sign-on, that keep signing in.
	maxPasses = 5
)

// Adapter ends sessions at one Kibana.
type Adapter struct {
	client   *httpclient.Client
	anywhere []string
	mapped   []adapters.Provider
	logger   *slog.Logger
}

var _ adapters.Adapter = (*Adapter)(nil)

func open(c *Config, deps adapters.Deps) (*Adapter, error) {
	base, err := httpclient.ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	authorization, err := c.authorization()
	if err != nil {
		return nil, err
	}
	client, err := httpclient.New(httpclient.Options{
		BaseURL: base, TLS: c.TLSConfig, Timeout: requestTimeout, MaxBody: 1 << 20, Header: header(authorization), Deps: deps,
	})
	if err != nil {
		return nil, err
	}
	a := &Adapter{client: client, anywhere: slices.Clone(c.ProviderTypes), mapped: deps.Mapped.Providers, logger: deps.Logger}
	if len(a.anywhere) == 0 {
		a.anywhere = providerTypes[:]
	}
	return a, nil
}

// Supports implements [adapters.Adapter].
func (a *Adapter) Supports(sel adapters.Selector) error {
	if _, err := plan(sel, a.anywhere); err != nil {
		return err
	}
	return nil
}

// Preview implements [adapters.Adapter]. Kibana cannot list sessions, so it shows what would be asked.
func (a *Adapter) Preview(ctx context.Context, sel adapters.Selector) (adapters.Preview, error) {
	queries, refused := plan(sel, a.anywhere)
	if refused != nil {
		return adapters.Preview{}, refused
	}
	if len(queries) == 0 {
		return adapters.Preview{
			Summary: []string{"ask nothing: no session can match"}, Warnings: []adapters.Warning{nothingCanMatch},
		}, nil
	}
	if err := a.vouch(ctx, unlisted(queries)); err != nil {
		return adapters.Preview{}, err
	}
	p := adapters.Preview{Covered: covered(queries)}
	for _, q := range queries {
		call := invalidate(q)
		body, err := httpclient.Marshal(call.JSON)
		if err != nil {
			return adapters.Preview{}, adapters.Wrap(adapters.Rejected, err, "the request cannot be written as JSON")
		}
		p.Summary = append(p.Summary, q.String())
		p.Requests = append(p.Requests, adapters.PlannedRequest{Method: call.Method, URL: a.client.URL(call), Body: string(body)})
	}
	p.Summary = append(p.Summary, fmt.Sprintf("then ask again, %d to %d times in all, until Kibana finds no such session", 2, maxPasses))
	return p, nil
}

// String says in words what the query ends.
func (q query) String() string {
	switch p := q.provider; {
	case q.all:
		return "end every session, also anonymous ones and logins in progress"
	case q.byUser && p.Name != "":
		return fmt.Sprintf("end the sessions of user %q at the %s provider %q", q.user, p.Type, p.Name)
	case q.byUser:
		return fmt.Sprintf("end the sessions of user %q at every %s provider", q.user, p.Type)
	case p.Name != "":
		return fmt.Sprintf("end every session, also logins in progress, of the %s provider %q", p.Type, p.Name)
	default:
		return fmt.Sprintf("end every session, also logins in progress, of every %s provider", p.Type)
	}
}

var nothingCanMatch = adapters.Warning{
	Code: adapters.WarnNothingCanMatch, Message: "no session can be of this user and this provider; Kibana was not asked",
}

// progress is how far a run has got. It is what Pending.Resume holds.
type progress struct {
	Version int `json:"v"`
	// Plan is the digest of the queries; with others, because the configuration has changed, the run begins anew.
	Plan string `json:"plan"`
	// Pass counts from 1; Done is how many queries of it are answered, and Found how many sessions they ended.
	Pass  int `json:"pass"`
	Done  int `json:"done"`
	Found int `json:"found"`
	// Total is what all passes ended, this one included.
	Total int `json:"total"`
	// Unsure says that more may have ended than was counted.
	Unsure bool `json:"unsure,omitempty"`
	// Vouched says that Kibana lists the names that had to be looked up.
	Vouched bool `json:"vouched,omitempty"`
}

const progressVersion = 1

// resume reads where a run got to, or begins it. What cannot be understood begins anew: asking again is safe, and skipping
// is not.
func resume(req adapters.Request, queries []query) (progress, error) {
	plan, err := digest(queries)
	if err != nil {
		return progress{}, adapters.Wrap(adapters.Rejected, err, "the request cannot be written as JSON")
	}
	var p progress
	if len(req.Resume) > 0 && json.Unmarshal(req.Resume, &p) == nil && p.Version == progressVersion && p.Plan == plan &&
		p.Pass >= 1 && p.Pass <= maxPasses && p.Done >= 0 && p.Done < len(queries) && p.Found >= 0 && p.Total >= p.Found {
		p.Unsure = p.Unsure || req.MayHaveSent
		return p, nil
	}
	return progress{Version: progressVersion, Plan: plan, Pass: 1, Unsure: req.MayHaveSent || len(req.Resume) > 0}, nil
}

// pending is the progress as the engine keeps it.
func (p progress) pending(after time.Duration) *adapters.Pending {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // numbers, booleans and a digest
	}
	return &adapters.Pending{After: after, Resume: b}
}

// Invalidate implements [adapters.Adapter]. One call is one pass over the queries, or what is left of it.
func (a *Adapter) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	queries, refused := plan(req.Selector, a.anywhere)
	if refused != nil {
		return adapters.Result{}, refused
	}
	if len(queries) == 0 {
		return adapters.Result{Counted: true, Warnings: []adapters.Warning{nothingCanMatch}}, nil
	}
	p, err := resume(req, queries)
	if err != nil {
		return adapters.Result{}, err
	}
	if !p.Vouched {
		if err := a.vouch(ctx, unlisted(queries)); err != nil {
			return adapters.Result{}, err
		}
		p.Vouched = true
	}

	result := adapters.Result{Covered: covered(queries)}
	for ; p.Done < len(queries); p.Done++ {
		total, err := a.end(ctx, queries[p.Done])
		if err != nil {
			if k := adapters.KindOf(err); k == adapters.Uncertain || k == adapters.BadReply {
				p.Unsure, result.CountIsMinimum = true, true
			}
			result.Pending = p.pending(0)
			return result, err
		}
		result.Counted = true
		result.Count += total
		p.Found += total
		p.Total += total
	}
	return finish(p, result), nil
}

// end sends one query and returns how many sessions it ended.
func (a *Adapter) end(ctx context.Context, q query) (int, error) {
	reply, err := a.client.Do(ctx, invalidate(q))
	if err != nil {
		return 0, err
	}
	total, err := decodeTotal(reply)
	if err != nil {
		return 0, err
	}
	// Who it was is the audit log's to say.
	a.logger.DebugContext(ctx, "kibana ended sessions", "provider", q.provider.String(), "by_user", q.byUser, "total", total)
	return total, nil
}

// finish says what follows from a whole pass.
func finish(p progress, result adapters.Result) adapters.Result {
	switch {
	case p.Pass > 1 && p.Found == 0:
		result.Verification = adapters.ConfirmedByRepeat
	case p.Pass == maxPasses:
		result.Verification = adapters.Unverifiable
		result.Warnings = append(result.Warnings, adapters.Warning{
			Code:    adapters.WarnSignedInAgain,
			Message: fmt.Sprintf("each of %d passes found sessions: somebody goes on signing in, unless Kibana does not end what it says it ends", maxPasses),
		})
	default:
		pause := firstPause << (p.Pass - 1)
		p.Pass, p.Done, p.Found = p.Pass+1, 0, 0
		result.Pending = p.pending(pause)
		return result
	}
	if p.Total == 0 && !p.Unsure {
		result.Warnings = append(result.Warnings, adapters.Warning{
			Code:    adapters.WarnNoSessionMatched,
			Message: "Kibana found no such session; it says the same of a name it has never heard of",
		})
	}
	return result
}

// vouch sees to it that Kibana lists each of the providers under its very type and name: a wrong name would match nothing
// and look like success.
func (a *Adapter) vouch(ctx context.Context, providers []adapters.Provider) error {
	if len(providers) == 0 {
		return nil
	}
	listed, err := a.providers(ctx)
	if err != nil {
		switch adapters.KindOf(err) {
		case adapters.Rejected, adapters.Denied, adapters.BadReply:
			return &adapters.Error{
				Kind: adapters.Unsupported, Why: adapters.ReasonUnknownProvider, Err: err,
				Message: fmt.Sprintf("Kibana does not list its providers, so that %s must be mapped in the target's configuration", providers[0]),
			}
		}
		// It may well tell later.
		return err
	}
	for _, p := range providers {
		if !slices.ContainsFunc(listed, func(x adapters.Provider) bool { return x.Type == p.Type && x.Name == p.Name }) {
			return &adapters.Error{
				Kind: adapters.Unsupported, Why: adapters.ReasonUnknownProvider,
				Message: fmt.Sprintf("Kibana has no %s provider named %q", p.Type, p.Name),
			}
		}
	}
	return nil
}

// providers asks Kibana for its configured providers. The route is internal: it must be asked for as such.
func (a *Adapter) providers(ctx context.Context) ([]adapters.Provider, error) {
	reply, err := a.client.Do(ctx, httpclient.Call{
		Method: http.MethodGet, Path: loginStatePath, Header: http.Header{"X-Elastic-Internal-Origin": {"endsession"}},
	})
	if err != nil {
		return nil, err
	}
	return decodeLoginState(reply)
}

// enumerate lists words, but not endlessly.
func enumerate(words []string) string {
	const most = 20
	if n := len(words) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), n)
	}
	return strings.Join(words, ", ")
}
