package element

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Adapter ends sessions of one cluster.
type Adapter struct {
	rpc    *client
	log    *slog.Logger
	mapped adapters.Mapped

	mu sync.Mutex
	// proven is when the account was last seen to be an administrator.
	proven time.Time
}

var _ adapters.Adapter = (*Adapter)(nil)

// New makes an adapter of a valid configuration.
func New(c Config, deps adapters.Deps) (*Adapter, error) {
	rpc, err := newClient(c, deps)
	if err != nil {
		return nil, err
	}
	return &Adapter{rpc: rpc, log: deps.Logger, mapped: deps.Mapped}, nil
}

const (
	// privilegeFor is how long a proof of the account's privilege holds.
	privilegeFor = time.Minute
	// maxDeletes bounds the single deletes of one call; between calls the progress is journalled.
	maxDeletes = 200
	// maxLeft bounds the session ids in a resume value.
	maxLeft = 1000
	// maxRefusals bounds how many sessions a call may find refused under a name that tells nothing.
	maxRefusals = 3
	// maxSkew is how far the cluster's clock may be behind ours: a session that began longer before the run, and that the
	// first list does not have, was left out of it.
	maxSkew = 5 * time.Minute
)

// Supports implements [adapters.Adapter].
func (a *Adapter) Supports(sel adapters.Selector) error {
	_, err := translate(sel)
	return err
}

// privileged makes sure that the account is an administrator. Anybody else would see, and end, only its own sessions,
// which looks like success. One document says that GetCurrentClusterAdmin tells of the cluster's first administrator
// rather than of the caller, so ListActiveAuthSessions, which only administrators may call, has to succeed too.
func (a *Adapter) privileged(ctx context.Context) error {
	a.mu.Lock()
	fresh := !a.proven.IsZero() && time.Since(a.proven) < privilegeFor
	a.mu.Unlock()
	if fresh {
		return nil
	}
	result, err := a.rpc.call(ctx, getCurrentAdmin, none{}, reads)
	if err != nil {
		return err
	}
	access, err := decodeAccess(result)
	if err != nil {
		return err
	}
	if !administers(access) {
		return adapters.Errorf(adapters.Denied, "the account is not an administrator of the cluster: it would only see its own sessions")
	}
	if _, err := a.rpc.list(ctx, listActive, none{}); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proven = time.Now()
	return nil
}

// administers reports whether the privileges allow ending other users' sessions: "ClusterAdmins/Administrator" in the
// documents, administrator on every wire seen.
func administers(access []string) bool {
	return slices.ContainsFunc(access, func(s string) bool {
		return strings.EqualFold(s, "administrator") || strings.EqualFold(s, "clusterAdmins")
	})
}

// look lists what a step would end. A list that holds anything but the step's own sessions shows that the cluster does
// not read the parameters as we do; the delete that takes the same parameters must not be sent.
func (a *Adapter) look(ctx context.Context, s step) ([]adapters.Session, error) {
	sessions, err := a.rpc.list(ctx, s.list, s.params)
	if err != nil {
		return nil, err
	}
	for _, x := range sessions {
		if !s.sel.Match(x) {
			return nil, badReply("%s lists a session that was not asked for", s.list)
		}
	}
	return sessions, nil
}

// Preview implements [adapters.Adapter].
func (a *Adapter) Preview(ctx context.Context, sel adapters.Selector) (adapters.Preview, error) {
	p, err := translate(sel)
	if err != nil {
		return adapters.Preview{}, err
	}
	preview := adapters.Preview{Listed: true, Covered: p.covered}
	if p.nothing {
		preview.Summary = []string{"nothing is sent"}
		preview.Warnings = []adapters.Warning{nothingCanMatch}
		return preview, nil
	}
	if err := a.privileged(ctx); err != nil {
		return adapters.Preview{}, err
	}
	all, err := a.rpc.list(ctx, listActive, none{})
	if err != nil {
		return adapters.Preview{}, err
	}
	for _, s := range p.steps {
		sessions, err := a.look(ctx, s)
		if err != nil {
			return adapters.Preview{}, err
		}
		if len(sessions) == 0 {
			preview.Summary = append(preview.Summary, s.title+": no session now, nothing is sent")
			continue
		}
		// Sessions that an earlier step ends are no longer there when this one looks.
		sessions = slices.DeleteFunc(sessions, func(x adapters.Session) bool { return contains(preview.Sessions, x.ID) })
		if len(sessions) == 0 {
			preview.Summary = append(preview.Summary, s.title+": no other session now, nothing more is sent")
			continue
		}
		preview.Summary = append(preview.Summary, fmt.Sprintf("%s: %s, then %s (%d now)", s.title, s.list, s.delete, len(sessions)))
		preview.Sessions = append(preview.Sessions, sessions...)
		if err := a.plan(ctx, &preview, s.delete, s.params); err != nil {
			return adapters.Preview{}, err
		}
	}
	if len(p.steps) == 0 {
		preview.Sessions = matching(sel, all)
		preview.Summary = []string{fmt.Sprintf("%s, then %s for each match (%d now)", listActive, deleteSession, len(preview.Sessions))}
		for _, x := range preview.Sessions {
			if err := a.plan(ctx, &preview, deleteSession, bySession{x.ID}); err != nil {
				return adapters.Preview{}, err
			}
		}
	}
	if err := adapters.Vet(ctx, preview.Sessions, anonymous(preview.Sessions)); err != nil {
		return adapters.Preview{}, err
	}
	if len(preview.Sessions) == 0 {
		preview.Warnings = append(preview.Warnings, noSessionMatched)
	}
	if p.idp && opaque(sel, all) {
		preview.Warnings = append(preview.Warnings, identityOpaque)
	}
	return preview, nil
}

// plan adds a request as it would be sent. Only its id, a serial number, will be another.
func (a *Adapter) plan(ctx context.Context, p *adapters.Preview, method string, params any) error {
	api, err := a.rpc.negotiated(ctx)
	if err != nil {
		return err
	}
	body, err := httpclient.Marshal(request{Method: method, Params: params, ID: int64(len(p.Requests) + 1)})
	if err != nil {
		return adapters.Wrap(adapters.Rejected, err, "the request cannot be written as JSON")
	}
	url := a.rpc.http.URL(httpclient.Call{Path: path(api.version)})
	p.Requests = append(p.Requests, adapters.PlannedRequest{Method: http.MethodPost, URL: url, Body: string(body)})
	return nil
}

// The warnings whose text is always the same.
var (
	nothingCanMatch  = adapters.Warning{Code: adapters.WarnNothingCanMatch, Message: "no session can be of these users at these authentication methods"}
	noSessionMatched = adapters.Warning{Code: adapters.WarnNoSessionMatched, Message: "the cluster has no such session; LDAP users go by their full DN, spelt as the cluster lists it"}
	identityOpaque   = adapters.Warning{Code: adapters.WarnIdentityOpaque, Message: "the identity provider's users are listed under random UUIDs; a person's sessions cannot be told among them"}
	signedInAgain    = adapters.Warning{Code: adapters.WarnSignedInAgain, Message: "sessions began while these were ended; they are left alone"}
	otherEnded       = adapters.Warning{Code: adapters.WarnOtherSessionEnded, Message: "the cluster says it ended a session that was not asked for"}
)

// state is how far a run got: the resume value.
type state struct {
	V int `json:"v"`
	// Ended: something was ended, or may have been.
	Ended bool `json:"ended,omitempty"`
	// Opaque: somebody could not be looked for, because the identity provider names people at random.
	Opaque bool `json:"opaque,omitempty"`
	// Since is the time, by the cluster's clock, before which no newcomer has begun: what is listed later and began earlier
	// was left out of the first list.
	Since time.Time `json:"since,omitzero"`
	// Done are the steps that are complete.
	Done []int `json:"done,omitempty"`

	// Begun: the sessions to end were chosen. Left are those that are not known to be gone, Rest the number of those
	// beyond them, and Alive those that were deleted and are still listed.
	Begun bool     `json:"begun,omitempty"`
	Left  []string `json:"left,omitempty"`
	Rest  int      `json:"rest,omitempty"`
	Alive []string `json:"alive,omitempty"`
	// Refused is the cluster's name for why it does not delete one of Alive.
	Refused string `json:"refused,omitempty"`
}

const stateVersion = 1

// resumed reads a resume value. One that cannot be read is of another version of this program: the run starts over,
// which does no harm, not knowing what has ended.
func resumed(raw json.RawMessage) state {
	if len(raw) == 0 {
		return state{V: stateVersion}
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil || s.V != stateVersion {
		return state{V: stateVersion, Ended: true}
	}
	return s
}

// run is one call of Invalidate.
type run struct {
	*Adapter
	sel  adapters.Selector
	plan plan
	st   state
	res  adapters.Result
	// all are all sessions as listed at the beginning of the call; doubled is true if one came twice.
	all     []adapters.Session
	doubled bool
	// told are the sessions that this call's steps had to end, as far as any list or report has named them.
	told map[string]bool
}

// Invalidate implements [adapters.Adapter].
func (a *Adapter) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	p, err := translate(req.Selector)
	if err != nil {
		return adapters.Result{}, err
	}
	if p.nothing {
		return adapters.Result{Counted: true, Warnings: []adapters.Warning{nothingCanMatch}}, nil
	}
	r := &run{Adapter: a, sel: req.Selector, plan: p, st: resumed(req.Resume)}
	r.res.Covered = p.covered
	if req.MayHaveSent {
		r.st.Ended = true
	}
	if err = a.privileged(ctx); err == nil {
		err = r.begin(ctx)
	}
	if err == nil {
		if len(p.steps) > 0 {
			err = r.native(ctx)
		} else {
			err = r.each(ctx)
		}
	}
	if err != nil {
		r.pend()
		return r.res, err
	}
	r.res.Counted = true
	if r.res.Pending != nil {
		return r.res, nil
	}
	r.res.Verification = adapters.ConfirmedByList
	if r.st.Opaque {
		r.res.Verification = adapters.Unverifiable
		r.warn(identityOpaque)
	}
	if !r.st.Ended {
		r.warn(noSessionMatched)
	}
	return r.res, nil
}

// pend asks to be called again.
func (r *run) pend() {
	raw, err := json.Marshal(r.st)
	if err != nil { // strings, numbers and booleans
		panic(err)
	}
	r.res.Pending = &adapters.Pending{Resume: raw}
}

func (r *run) warn(w adapters.Warning) {
	if !slices.Contains(r.res.Warnings, w) {
		r.res.Warnings = append(r.res.Warnings, w)
	}
}

// tally counts what the cluster says it ended.
func (r *run) tally(sessions ...adapters.Session) {
	r.res.Counted = true
	r.res.Count += len(sessions)
	r.res.Sessions = append(r.res.Sessions, sessions...)
	if len(sessions) > 0 {
		r.st.Ended = true
	}
}

// inDoubt notes that a request may have ended sessions that nobody counts.
func (r *run) inDoubt() {
	r.res.CountIsMinimum = true
	r.st.Ended = true
}

// untally takes back those of this call's sessions that are listed after the cluster said that it had ended them. Perhaps
// it will yet.
func (r *run) untally(listed []adapters.Session) {
	n := len(r.res.Sessions)
	r.res.Sessions = slices.DeleteFunc(r.res.Sessions, func(x adapters.Session) bool { return contains(listed, x.ID) })
	if gone := n - len(r.res.Sessions); gone > 0 {
		r.res.Count -= gone
		r.inDoubt()
	}
}

// begin lists all sessions, which the run's end is compared with.
func (r *run) begin(ctx context.Context) (err error) {
	if r.all, r.doubled, err = r.rpc.lists(ctx, listActive, none{}); err != nil || !r.st.Since.IsZero() {
		return err
	}
	r.st.Opaque = r.plan.idp && opaque(r.sel, r.all)
	now := time.Now()
	r.st.Since = now.Add(-maxSkew)
	for _, x := range r.all {
		if x.CreateTime.After(r.st.Since) && x.CreateTime.Before(now.Add(maxSkew)) {
			r.st.Since = x.CreateTime
		}
	}
	return nil
}

// leftOut reports whether a session that is listed now had begun before the run did.
func (r *run) leftOut(x adapters.Session) bool {
	return !x.CreateTime.IsZero() && x.CreateTime.Before(r.st.Since)
}

// native carries out the steps. One that goes wrong by itself does not keep the others from being taken.
func (r *run) native(ctx context.Context) error {
	r.told = map[string]bool{}
	var failed error
	for i, s := range r.plan.steps {
		if slices.Contains(r.st.Done, i) {
			continue
		}
		err := r.step(ctx, s)
		kind := adapters.KindOf(err)
		switch {
		case err == nil:
			r.st.Done = append(r.st.Done, i)
		case isRefusal(err):
			failed = cmp.Or(failed, err)
		case kind == adapters.StillAlive || kind == adapters.BadReply:
			if failed == nil || isRefusal(failed) {
				failed = err // worth another try, which a refusal is not
			}
		default:
			return err
		}
	}
	if failed != nil {
		return failed
	}
	return r.confirm(ctx)
}

// confirm compares what the steps' own lists say with the list of all sessions. A step that this list belies is taken
// once more.
func (r *run) confirm(ctx context.Context) error {
	all, doubled := r.all, r.doubled
	if r.st.Ended || len(matching(r.sel, r.all)) > 0 {
		var err error
		if all, doubled, err = r.rpc.lists(ctx, listActive, none{}); err != nil {
			return err
		}
	}
	var alive []adapters.Session
	for _, x := range matching(r.sel, all) {
		if r.told[x.ID] || r.leftOut(x) {
			alive = append(alive, x)
		} else {
			r.warn(signedInAgain)
		}
	}
	switch {
	case len(alive) > 0:
		r.untally(alive)
		r.st.Done = slices.DeleteFunc(r.st.Done, func(i int) bool { return len(matching(r.plan.steps[i].sel, alive)) > 0 })
		return stillAlive()
	case doubled:
		return errDoubled()
	}
	return nil
}

func errDoubled() error {
	return badReply("%s lists a session twice, and may leave out another", listActive)
}

// step lists, checks, deletes, compares and lists again.
func (r *run) step(ctx context.Context, s step) error {
	before, err := r.look(ctx, s)
	if err != nil {
		return err
	}
	for _, x := range slices.Concat(before, matching(s.sel, r.all)) {
		r.told[x.ID] = true
	}
	if len(before) == 0 {
		return nil
	}
	if err := adapters.Vet(ctx, before, anonymous(before)); err != nil {
		return err
	}
	ended, err := r.deleteMany(ctx, s)
	for _, x := range ended {
		r.told[x.ID] = true
	}
	if err != nil {
		return err
	}
	after, err := r.look(ctx, s)
	if err != nil {
		return err
	}
	r.untally(after)
	for _, x := range after {
		if r.told[x.ID] {
			return stillAlive()
		}
	}
	if len(after) > 0 {
		r.warn(signedInAgain)
	}
	return nil
}

func stillAlive() error {
	return adapters.Errorf(adapters.StillAlive, "the cluster still lists sessions that it was told to delete")
}

// deleteMany sends a step's delete and counts.
func (r *run) deleteMany(ctx context.Context, s step) ([]adapters.Session, error) {
	result, err := r.rpc.call(ctx, s.delete, s.params, endsMany)
	if err != nil && !errors.Is(err, errUnused) {
		if k := adapters.KindOf(err); k == adapters.Uncertain || k == adapters.BadReply || isRefusal(err) {
			r.inDoubt() // several sessions: a refusal may have come half-way
		}
		return nil, err
	}
	ended, _, undecodable := decodeSessions(result)
	if undecodable != nil {
		r.inDoubt()
		return nil, cmp.Or(err, undecodable)
	}
	r.tally(ended...)
	if err == nil {
		err = r.exactly(ended)
	} else if len(ended) > 0 {
		_ = r.exactly(ended) // for its warning
	}
	return ended, err
}

// exactly checks that the selector matches what was ended. If it does not the run fails for good: to repeat such a
// delete could end even more.
func (r *run) exactly(ended []adapters.Session) error {
	for _, x := range ended {
		if !r.sel.Match(x) {
			r.warn(otherEnded)
			r.res.CountIsMinimum = true
			return adapters.Errorf(adapters.Rejected, "the cluster says it ended a session that was not asked for; it is not asked again")
		}
	}
	return nil
}

// each deletes each match of the list of all sessions, at most maxDeletes of them.
func (r *run) each(ctx context.Context) error {
	matched := matching(r.sel, r.all)
	if err := adapters.Vet(ctx, matched, anonymous(matched)); err != nil {
		return err
	}
	if !r.st.Begun {
		r.st.Begun = true
		r.choose(matched, len(matched))
	}
	// What is not listed any more is gone. What is listed and was not chosen began later, and is left alone.
	live := index(matched)
	todo := slices.DeleteFunc(slices.Clone(r.st.Left), func(id string) bool { _, ok := live[id]; return !ok })
	// Until the next list has confirmed their end, even those that the cluster says it deleted are left.
	r.st.Left = todo
	batch := todo[:min(len(todo), maxDeletes)]
	refusals := 0
	for _, id := range batch {
		x, ok := live[id]
		if !ok {
			continue
		}
		err := r.deleteOne(ctx, x)
		if !isRefusal(err) {
			if err != nil {
				return err
			}
			continue
		}
		// A session that ended by itself is refused under a name that is not documented: the list tells.
		now, listErr := r.rpc.list(ctx, listActive, none{})
		if listErr != nil {
			return listErr
		}
		live = index(matching(r.sel, now))
		if _, ok := live[id]; ok {
			r.st.Refused = refusedAs(err)
			if refusals++; refusals == maxRefusals {
				return err
			}
		}
	}
	after, doubled := r.all, r.doubled
	if len(batch) > 0 {
		var err error
		if after, doubled, err = r.rpc.lists(ctx, listActive, none{}); err != nil {
			return err
		}
		r.untally(after)
	}
	for _, id := range batch {
		if contains(after, id) {
			r.st.Alive = append(r.st.Alive, id)
		}
	}
	r.st.Left = slices.Clone(todo[len(batch):])
	others := slices.DeleteFunc(matching(r.sel, after), func(x adapters.Session) bool {
		return slices.Contains(r.st.Alive, x.ID)
	})
	if len(r.st.Left) == 0 {
		r.choose(others, r.st.Rest)
	}
	if len(r.st.Left) > 0 {
		r.pend()
		return nil
	}
	for _, x := range others {
		if r.leftOut(x) && len(r.st.Alive) < maxLeft {
			r.st.Alive = append(r.st.Alive, x.ID)
		}
	}
	switch {
	case len(r.st.Alive) > 0 && r.st.Refused != "":
		return adapters.Errorf(adapters.Rejected, "the cluster refuses %s for a session that it lists: %s", deleteSession, r.st.Refused)
	case len(r.st.Alive) > 0:
		r.st.Left, r.st.Alive = r.st.Alive, nil
		return stillAlive()
	case doubled:
		return errDoubled()
	}
	if len(others) > 0 {
		r.warn(signedInAgain)
	}
	return nil
}

// choose takes up to n sessions, oldest first, as the ones to delete: so what began before the run comes before what
// began since. Beyond maxLeft only their number is kept.
func (r *run) choose(matched []adapters.Session, n int) {
	n = min(n, len(matched))
	matched = slices.Clone(matched)
	slices.SortFunc(matched, func(a, b adapters.Session) int {
		return cmp.Or(a.CreateTime.Compare(b.CreateTime), strings.Compare(a.ID, b.ID))
	})
	r.st.Left = nil
	for _, x := range matched[:min(n, maxLeft)] {
		r.st.Left = append(r.st.Left, x.ID)
	}
	r.st.Rest = n - len(r.st.Left)
}

// deleteOne deletes a session by its id and counts.
func (r *run) deleteOne(ctx context.Context, x adapters.Session) error {
	result, err := r.rpc.call(ctx, deleteSession, bySession{x.ID}, endsOne)
	if err != nil && !errors.Is(err, errUnused) {
		if k := adapters.KindOf(err); k == adapters.Uncertain || k == adapters.BadReply {
			r.inDoubt()
		}
		return err
	}
	ended, undecodable := decodeDeleted(result)
	switch {
	case undecodable != nil:
		r.inDoubt()
		return cmp.Or(err, undecodable)
	case ended.ID == x.ID && r.sel.Match(ended):
		r.tally(x)
		return err
	}
	r.tally(ended)
	r.inDoubt()
	if other := r.exactly([]adapters.Session{ended}); other != nil {
		return other
	}
	return cmp.Or(err, error(badReply("%s names another session than it was asked to delete", deleteSession)))
}

func refusedAs(err error) string {
	var f *apiError
	if errors.As(err, &f) {
		return f.name
	}
	return ""
}

func matching(sel adapters.Selector, sessions []adapters.Session) []adapters.Session {
	var out []adapters.Session
	for _, x := range sessions {
		if sel.Match(x) {
			out = append(out, x)
		}
	}
	return out
}

func index(sessions []adapters.Session) map[string]adapters.Session {
	out := make(map[string]adapters.Session, len(sessions))
	for _, x := range sessions {
		out[x.ID] = x
	}
	return out
}

func contains(sessions []adapters.Session, id string) bool {
	return slices.ContainsFunc(sessions, func(x adapters.Session) bool { return x.ID == id })
}

var uuid = regexp.MustCompile(`(?i)^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// anonymous reports whether some of the sessions are listed under the random names of an identity provider.
func anonymous(sessions []adapters.Session) bool {
	return slices.ContainsFunc(sessions, func(x adapters.Session) bool {
		return x.Provider.Type == MethodIdp && uuid.MatchString(x.Username)
	})
}

// hidden reports whether the cluster lists identity provider sessions under UUIDs that are none of the names asked for,
// and that the selector's other criteria match: any of them may be the person.
func hidden(sel adapters.Selector, all []adapters.Session) bool {
	rest := sel
	rest.Users, rest.By = nil, sel.By&^adapters.ByUser
	if rest.By == 0 {
		rest.By = adapters.All
	}
	return slices.ContainsFunc(all, func(x adapters.Session) bool {
		return x.Provider.Type == MethodIdp && uuid.MatchString(x.Username) && rest.Match(x) &&
			!slices.ContainsFunc(sel.Users, func(u adapters.User) bool { return u.Name == x.Username })
	})
}

// opaque reports whether a person that sel asks for by name at an identity provider may have sessions under random names
// there: some go by UUIDs that are none of the names asked for. Only a name that is a UUID itself, and listed, shows that
// these are names; a person listed by another may have come back since the provider stopped sending it.
func opaque(sel adapters.Selector, all []adapters.Session) bool {
	idp := adapters.Provider{Type: MethodIdp}
	return hidden(sel, all) && slices.ContainsFunc(sel.UserScopes(), func(s adapters.UserScope) bool {
		listed := slices.ContainsFunc(all, func(x adapters.Session) bool { return x.Provider == idp && x.Username == s.Name })
		return (s.Anywhere || slices.Contains(s.At, idp)) && (!listed || !uuid.MatchString(s.Name))
	})
}
