package adaptertest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/adaptertest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/httpclient"
)

const token = "s3cr3t-token"

// target is a made-up product: it lists sessions and ends them by id.
type target struct {
	mu       sync.Mutex
	ids      emulator.IDs
	sessions []adapters.Session
	lie      emulator.Lie
	hidden   []string
}

// SetLie implements [adaptertest.Emulator].
func (e *target) SetLie(l emulator.Lie) (can bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lie = l
	return slices.Contains([]emulator.Lie{emulator.Honest, emulator.Keep, emulator.KeepAndHide, emulator.EndMore, emulator.ListNone}, l)
}

func (e *target) SignIn(x adapters.Session) adapters.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.ID == "" {
		x.ID = e.ids.UUID()
	}
	x.CreateTime = time.Now()
	e.sessions = append(e.sessions, x)
	return x
}

func (e *target) Sessions() []adapters.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.sessions)
}

func (e *target) Transport() http.RoundTripper { return emulator.Transport(e.Handler()) }

func (e *target) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sessions", func(w http.ResponseWriter, _ *http.Request) {
		e.mu.Lock()
		hidden := e.hidden
		if e.lie == emulator.ListNone {
			for _, x := range e.sessions {
				hidden = append(hidden, x.ID)
			}
		}
		e.mu.Unlock()
		shown := slices.DeleteFunc(e.Sessions(), func(x adapters.Session) bool { return slices.Contains(hidden, x.ID) })
		emulator.WriteJSON(w, http.StatusOK, map[string]any{"sessions": shown, "providers": providers})
	})
	mux.HandleFunc("DELETE /sessions/{id}", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		switch e.lie {
		case emulator.KeepAndHide:
			e.hidden = append(e.hidden, r.PathValue("id"))
			fallthrough
		case emulator.Keep:
			emulator.WriteJSON(w, http.StatusOK, map[string]any{"ended": 1})
			return
		case emulator.EndMore:
			i := slices.IndexFunc(e.sessions, func(x adapters.Session) bool { return x.ID != r.PathValue("id") })
			if i >= 0 {
				e.sessions = slices.Delete(e.sessions, i, i+1)
			}
			e.sessions = slices.DeleteFunc(e.sessions, func(x adapters.Session) bool { return x.ID == r.PathValue("id") })
			emulator.WriteJSON(w, http.StatusOK, map[string]any{"ended": 2})
			return
		}
		before := len(e.sessions)
		e.sessions = slices.DeleteFunc(e.sessions, func(x adapters.Session) bool { return x.ID == r.PathValue("id") })
		emulator.WriteJSON(w, http.StatusOK, map[string]any{"ended": before - len(e.sessions)})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			emulator.WriteJSON(w, http.StatusUnauthorized, map[string]any{"error": "no"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

var providers = []adapters.Provider{{Type: "saml", Name: "okta"}, {Type: "saml", Name: "adfs"}, {Type: "basic", Name: "basic1"}}

// flaw is what a broken variant of the adapter does wrong.
type flaw string

// adapter ends sessions one by one: list, delete, and list again in a second call.
type adapter struct {
	c    *httpclient.Client
	deps adapters.Deps
	flaw flaw

	mu   sync.Mutex
	last adapters.Selector // only for a flaw
}

var fakeType = adapters.Type{
	Kind: "fake",
	Criteria: []adapters.Criteria{
		adapters.ByUser, adapters.ByProvider, adapters.ByGroup, adapters.ByUser | adapters.ByProvider,
		adapters.ByUser | adapters.ByGroup, adapters.BySessions, adapters.All,
	},
	ListsProviders: true,
	ListsSessions:  true,
}

func (a *adapter) Supports(sel adapters.Selector) error {
	if a.flaw == "asks in Supports" {
		_, _ = a.list(context.Background(), sel)
	}
	if !fakeType.Supports(sel.By) && a.flaw != "supports undeclared criteria" {
		return adapters.Errorf(adapters.Unsupported, "cannot select by %s", sel.By)
	}
	for _, p := range sel.Providers {
		if p.Type != "saml" && p.Type != "basic" {
			return adapters.Errorf(adapters.Unsupported, "no such provider type")
		}
	}
	return nil
}

func (a *adapter) match(sel adapters.Selector, x adapters.Session) bool {
	fold := func(s adapters.Selector) bool {
		x := x
		for _, u := range s.Users {
			if strings.EqualFold(u.Name, x.Username) {
				x.Username = u.Name
			}
		}
		return s.Match(x)
	}
	switch a.flaw {
	case "folds case":
		return fold(sel)
	case "matches prefixes":
		for _, u := range sel.Users {
			if u.Name != "" && strings.HasPrefix(x.Username, u.Name) {
				x.Username = u.Name
			}
		}
	case "trims names":
		x.Username = strings.TrimSpace(x.Username)
	case "forgets where a user is bound":
		sel.Users = slices.Clone(sel.Users)
		for i := range sel.Users {
			sel.Users[i].At = nil
		}
	case "ignores the provider's name":
		sel.Providers = slices.Clone(sel.Providers)
		for i := range sel.Providers {
			sel.Providers[i].Name = ""
		}
	case "takes or for and":
		if sel.By == adapters.ByUser|adapters.ByGroup {
			return adapters.Selector{By: adapters.ByGroup, Groups: sel.Groups}.Match(x) ||
				adapters.Selector{By: adapters.ByUser, Users: sel.Users}.Match(x)
		}
	case "skips a place":
		if x.Provider.Name == "adfs" {
			return false
		}
	}
	return sel.Match(x)
}

func (a *adapter) list(ctx context.Context, sel adapters.Selector) ([]adapters.Session, error) {
	if a.flaw == "outlives its context" {
		ctx = context.WithoutCancel(ctx)
	}
	reply, err := a.c.Do(ctx, httpclient.Call{Method: http.MethodGet, Path: "/sessions", Mutating: a.flaw == "fences the wrong request"})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Sessions  []adapters.Session
		Providers []adapters.Provider
	}
	err = reply.Decode(&answer)
	switch {
	case a.flaw == "takes null for an empty list":
		err = json.Unmarshal(reply.Body, &answer)
	case err != nil && a.flaw == "shows the upstream's body":
		err = adapters.Errorf(adapters.BadReply, "odd answer: %s", reply.Body)
	case err == nil && answer.Providers == nil:
		err = adapters.Errorf(adapters.BadReply, "the answer holds no list")
	}
	if err != nil {
		return nil, err
	}
	for _, p := range sel.Providers {
		if p.MustBeListed && a.flaw != "tries unlisted providers" &&
			!slices.Contains(answer.Providers, adapters.Provider{Type: p.Type, Name: p.Name}) {
			return nil, &adapters.Error{Kind: adapters.Unsupported, Why: adapters.ReasonUnknownProvider, Message: "no such provider"}
		}
	}
	var matched []adapters.Session
	for _, x := range answer.Sessions {
		if a.match(sel, x) {
			matched = append(matched, x)
		}
	}
	return matched, nil
}

// state is the Resume: the ids once seen.
type state struct {
	Verify bool     `json:"verify"`
	Seen   []string `json:"seen"`
	Ended  bool     `json:"ended"`
	Extra  string   `json:"extra,omitempty"`
}

func (s state) pending(after time.Duration) *adapters.Pending {
	b, _ := json.Marshal(s)
	return &adapters.Pending{After: after, Resume: b}
}

func (a *adapter) Invalidate(ctx context.Context, req adapters.Request) (res adapters.Result, err error) {
	sel := req.Selector
	if err := a.Supports(sel); err != nil {
		if a.flaw == "sends what it does not support" {
			_, err = a.delete(ctx, "none")
		}
		return res, err
	}
	if sel.By.Has(adapters.ByUser) && len(sel.UserScopes()) == 0 && a.flaw != "does not see that nothing can match" {
		return adapters.Result{Counted: true, Warnings: []adapters.Warning{{Code: adapters.WarnNothingCanMatch, Message: "no"}}}, nil
	}
	if a.flaw == "mixes up runs" {
		a.mu.Lock()
		a.last = sel
		a.mu.Unlock()
		time.Sleep(time.Millisecond)
		a.mu.Lock()
		sel = a.last
		a.mu.Unlock()
	}
	a.deps.Logger.Info("invalidate", "by", sel.By)
	if a.flaw == "logs a secret" {
		a.deps.Logger.Debug("header", "authorization", "Bearer "+token)
	}
	var st state
	if req.Resume != nil {
		if err := json.Unmarshal(req.Resume, &st); err != nil {
			return res, adapters.Wrap(adapters.Rejected, err, "resume")
		}
	}
	res.Counted = true
	if a.flaw == "journals a secret" {
		st.Extra = token
	}
	if !st.Verify {
		matched, err := a.list(ctx, sel)
		if err != nil {
			return adapters.Result{}, err
		}
		if a.flaw != "does not vet" && a.flaw != "vets too late" {
			if err := a.vet(ctx, matched); err != nil {
				return adapters.Result{}, err
			}
		}
		for _, x := range matched {
			if !slices.Contains(st.Seen, x.ID) {
				st.Seen = append(st.Seen, x.ID)
			}
		}
		switch a.flaw {
		case "believes its memory":
			// What the journal says is planned counts as done when the process is a new one.
			if req.MayHaveSent && len(st.Seen) > 0 {
				res.Verification = adapters.ConfirmedByList
				return res, nil
			}
		case "repeats for ever":
			return adapters.Result{Pending: st.pending(time.Second)}, nil
		}
		for _, x := range matched {
			n, err := a.delete(ctx, x.ID)
			if a.flaw == "counts what it tried" {
				n = 1
			}
			if a.flaw == "counts twice" {
				n *= 2
			}
			res.Count += n
			if n > 1 && a.flaw != "counts twice" {
				res.Warnings = append(res.Warnings, adapters.Warning{Code: adapters.WarnOtherSessionEnded, Message: "another ended"})
				res.CountIsMinimum, res.Pending = true, st.pending(0)
				if a.flaw != "goes on when another ended" {
					return res, adapters.Errorf(adapters.Rejected, "another ended")
				}
			}
			if n > 0 {
				st.Ended = true
				res.Sessions = append(res.Sessions, x)
			}
			if err != nil {
				if a.flaw == "goes on after the end" && ctx.Err() != nil {
					_, _ = a.list(context.WithoutCancel(ctx), sel)
				}
				if a.flaw == "takes an error for success" {
					res.Verification = adapters.Unverifiable
					return res, nil
				}
				if a.flaw == "loses the count beside an error" {
					return adapters.Result{}, err
				}
				if a.flaw == "calls a lost answer unreachable" && adapters.KindOf(err) == adapters.Uncertain {
					err = adapters.Errorf(adapters.Unreachable, "no answer")
				}
				res.Pending = st.pending(0)
				return res, err
			}
		}
		if a.flaw == "vets too late" {
			if err := a.vet(ctx, matched); err != nil {
				return res, err
			}
		}
		if len(st.Seen) > 0 && a.flaw != "does not look again" {
			st.Verify = true
			res.Pending = st.pending(time.Second)
			if a.flaw == "makes its resume wrong" {
				res.Pending.Resume = json.RawMessage(`{"seen":`)
			}
			return res, nil
		}
	} else {
		matched, err := a.list(ctx, sel)
		if err != nil {
			return adapters.Result{}, err
		}
		if a.flaw == "pursues newcomers" && len(matched) > 0 {
			st.Verify = false
			return adapters.Result{Pending: st.pending(time.Second)}, nil
		}
		again := false
		for _, x := range matched {
			if slices.Contains(st.Seen, x.ID) {
				st.Verify = false
				return adapters.Result{Pending: st.pending(0)}, adapters.Errorf(adapters.StillAlive, "still there")
			}
			again = true
		}
		if again && a.flaw != "keeps newcomers to itself" {
			res.Warnings = append(res.Warnings, adapters.Warning{Code: adapters.WarnSignedInAgain, Message: "signed in again"})
		}
	}
	if len(st.Seen) == 0 && (!req.MayHaveSent || a.flaw == "warns too easily") && a.flaw != "does not warn" {
		res.Warnings = append(res.Warnings, adapters.Warning{Code: adapters.WarnNoSessionMatched, Message: "none"})
	}
	res.Verification = adapters.ConfirmedByList
	if a.flaw == "calls what it cannot know unverifiable" && len(st.Seen) == 0 {
		res.Verification = adapters.Unverifiable
	}
	if a.flaw == "forgets the verification" {
		res.Verification = 0
	}
	return res, nil
}

// vet has the sessions vetted that are about to be ended.
func (a *adapter) vet(ctx context.Context, matched []adapters.Session) error {
	if a.flaw == "vets only the first" {
		matched = matched[:min(1, len(matched))]
	}
	return adapters.Vet(ctx, matched, false)
}

func (a *adapter) delete(ctx context.Context, id string) (n int, err error) {
	call := httpclient.Call{
		Method: http.MethodDelete, Path: "/sessions/" + url.PathEscape(id),
		Mutating: a.flaw != "does not fence" && a.flaw != "fences the wrong request" && a.flaw != "fences too late",
	}
	if a.flaw == "fences too late" {
		defer func() {
			if fenceErr := adapters.Fence(ctx); fenceErr != nil {
				n, err = 0, fenceErr
			}
		}()
	}
	if a.flaw == "outlives its context" {
		f := ctx
		ctx = adapters.WithFence(context.Background(), func(context.Context) error { return adapters.Fence(f) })
	}
	if a.flaw == "bypasses the limit" {
		if err := adapters.Fence(ctx); err != nil {
			return 0, err
		}
		req, _ := http.NewRequestWithContext(ctx, http.MethodDelete, "https://fake.example"+call.Path, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := a.deps.Transport.RoundTrip(req)
		if err != nil {
			return 0, adapters.Errorf(adapters.Uncertain, "lost")
		}
		_ = resp.Body.Close()
		return 1, nil
	}
	reply, err := a.c.Do(ctx, call)
	if err != nil {
		if a.flaw == "swallows 500" && reply.Status == http.StatusInternalServerError {
			return 1, nil
		}
		if a.flaw == "puts a secret into an error" {
			return 0, fmt.Errorf("bearer %s: %w", token, err)
		}
		return 0, err
	}
	var answer struct{ Ended *int }
	if err := reply.Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Ended == nil {
		return 0, adapters.Errorf(adapters.BadReply, "the answer holds no count")
	}
	return *answer.Ended, nil
}

func (a *adapter) Preview(ctx context.Context, sel adapters.Selector) (adapters.Preview, error) {
	if err := a.Supports(sel); err != nil {
		return adapters.Preview{}, err
	}
	p := adapters.Preview{Summary: []string{"list, and end each"}, Listed: true}
	if sel.By.Has(adapters.ByUser) && len(sel.UserScopes()) == 0 {
		return p, nil
	}
	var err error
	if p.Sessions, err = a.list(ctx, sel); err != nil {
		return adapters.Preview{}, err
	}
	if a.flaw != "does not vet its preview" {
		if err := adapters.Vet(ctx, p.Sessions, false); err != nil {
			return adapters.Preview{}, err
		}
	}
	for _, x := range p.Sessions {
		path := "/sessions/" + url.PathEscape(x.ID)
		if a.flaw == "previews something else" {
			path += "?x=y"
		}
		p.Requests = append(p.Requests, adapters.PlannedRequest{Method: http.MethodDelete, URL: "https://fake.example" + path})
		if a.flaw == "acts in the preview" {
			_, _ = a.delete(ctx, x.ID)
		}
	}
	return p, nil
}

func (a *adapter) Probe(ctx context.Context) (adapters.Health, error) {
	if a.flaw == "acts in the probe" {
		_, _ = a.delete(ctx, "none")
	}
	_, err := a.list(ctx, adapters.Selector{By: adapters.All})
	switch {
	case err != nil && ctx.Err() != nil:
		return adapters.Health{}, ctx.Err()
	case a.flaw == "is always healthy", err == nil:
		return adapters.Health{Checks: []adapters.Check{{Name: adapters.CheckCredentials, Status: adapters.CheckOK, Message: "accepted"}}}, nil
	}
	check := adapters.Check{Name: "reachable", Status: adapters.CheckFailed, Message: err.Error(), Remedy: "look at it"}
	if adapters.KindOf(err) == adapters.Credentials || a.flaw == "blames the password" {
		check.Name = adapters.CheckCredentials
	}
	if a.flaw == "gives no advice" {
		check.Remedy = ""
	}
	return adapters.Health{Checks: []adapters.Check{check}}, nil
}

func harness(f flaw) adaptertest.Harness {
	typ := fakeType
	return adaptertest.Harness{
		Type: typ,
		Places: []adapters.Session{
			{Provider: providers[0], Groups: []adapters.Group{{Kind: "group", Name: "staff"}}},
			{Provider: providers[1], Groups: []adapters.Group{{Kind: "group", Name: "staff"}, {Kind: "group", Name: "ops"}}},
			{Provider: providers[2]},
		},
		Providers: []adapters.Provider{providers[0], providers[1], providers[2], {Type: "saml"}},
		Groups:    []adapters.Group{{Kind: "group", Name: "staff"}, {Kind: "group", Name: "ops"}},
		Secrets:   []string{token},
		Undetected: map[emulator.Lie]adapters.Verification{
			emulator.KeepAndHide: adapters.ConfirmedByList, emulator.ListNone: adapters.ConfirmedByList,
		},
		Start: func(testing.TB) adaptertest.Emulator { return &target{} },
		Open: func(t testing.TB, _ adaptertest.Emulator, deps adapters.Deps) adapters.Adapter {
			base, err := httpclient.ParseURL("https://fake.example")
			if err != nil {
				t.Fatal(err)
			}
			if f == "has no limit" {
				deps.Limit = nil
			}
			c, err := httpclient.New(httpclient.Options{
				BaseURL: base, Deps: deps, Header: http.Header{"Authorization": {"Bearer " + token}},
			})
			if err != nil {
				t.Fatal(err)
			}
			return &adapter{c: c, deps: deps, flaw: f}
		},
		Mutates: func(r *http.Request, _ []byte) bool { return r.Method == http.MethodDelete },
	}
}
