package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// onTheWay is how long a request that left in time may need until it is seen, on a machine that is busy.
const onTheWay = 2 * time.Second

// realRound is what the campaigns of real processes have in common, however many processes there are and wherever they
// keep the journal: the emulated systems over TLS, whose requests meet faults, people who are signed in, callers who
// insist, and what was seen. In real time nothing replays exactly; the seed decides on what is asked and on what goes
// wrong with the n-th request to a target.
type realRound struct {
	t      *testing.T
	seed   uint64
	l      *lab
	report *tally
	limits map[string]int
	// longest bounds how long a fault keeps a request waiting; retryFor is how long calls ask for to be retried.
	longest  time.Duration
	retryFor [2]time.Duration

	// reach returns a client of the i-th process (modulo their number), nil while it is down.
	reach func(i int) endsessionv1.SessionServiceClient
	// from says which process has sent a request, and takes away what told so.
	from func(target string, r *http.Request, body []byte) (sender int, clean []byte)
	// counts reports whether a request that is under way counts towards its target's limit. The lock is held.
	counts func(*underWay) bool
	// journalTime is the earliest that a process may have taken a moment for, by the journal's clock.
	journalTime func(at time.Time) time.Time
	// check, if set, looks at a request that could end somebody's sessions before it takes effect; enters at every request
	// when it counts. The lock is held for the latter.
	check, enters func(*underWay)

	calm atomic.Bool // no more faults
	over atomic.Bool // no more calls

	mu       sync.Mutex
	people   []seeded
	nth      map[string]int // requests so far, by target
	under    map[*underWay]bool
	crowds   map[string][][]*underWay // more requests at once than the limit, by target
	sent     []*underWay              // those that could end sessions
	answers  map[string]string
	views    map[string]string // the final states that somebody was shown, by run
	revision map[string]int64
	wrong    []string
}

// seeded is a session that was there before the first call.
type seeded struct {
	target, name string
	key          adapters.SessionKey
}

// underWay is a request to a target.
type underWay struct {
	target string
	// person is whom it is about; -1 if that is nobody, or more than one.
	person int
	sender int
	at     time.Time
	// late says that its sender was frozen when it was about to be sent; excess that it was under way when its sender had
	// been frozen for a lease.
	late, excess bool
	// abandoned says that its sender had given up, or died, when it was over.
	abandoned bool
}

// senderKey is where a request's context has its sender.
type senderKey struct{}

func newRealRound(t *testing.T, seed uint64, people int) *realRound {
	k := &realRound{t: t, seed: seed, report: &tally{counts: map[string]int{}}, limits: map[string]int{},
		longest: 400 * time.Millisecond, retryFor: [2]time.Duration{2 * time.Second, 15 * time.Second},
		nth: map[string]int{}, under: map[*underWay]bool{}, crowds: map[string][][]*underWay{}, answers: map[string]string{},
		views: map[string]string{}, revision: map[string]int64{},
		from:   func(_ string, _ *http.Request, body []byte) (int, []byte) { return 0, body },
		counts: func(*underWay) bool { return true }, journalTime: func(at time.Time) time.Time { return at },
	}
	k.l = newEmptyLab(&schedule{taskTime: 100 * time.Millisecond})
	k.signIn(people)
	return k
}

func killPerson(n int) string { return fmt.Sprintf("u%03d", n) }

// signIn signs everybody in, every third of them twice where that can be, and beside each of them two whose names are
// nearly the same.
func (k *realRound) signIn(people int) {
	for n := range people {
		for i, name := range []string{killPerson(n), strings.ToUpper(killPerson(n)), killPerson(n) + "x"} {
			copies := 0
			add := func(target string, x adapters.Session) {
				x.CreateTime = time.Now().Add(-time.Hour)
				x.ID = sessionID(target, 100*n+10*i+copies)
				copies++
				k.people = append(k.people, seeded{target, name, k.l.systems[target].SignIn(x).Key()})
			}
			devices := []string{"98901455-6384-47cd-bc41-00a39dfe338f", "3f320100-2177-42e0-8a46-2e33cd3366d0"}
			read := []adapters.Group{{Kind: "access_group", Name: "read"}}
			add("apm", adapters.Session{Username: name, Device: devices[n%2]})
			add("apm-all", adapters.Session{Username: name, Device: devices[n%2]})
			add("kibana-prod", adapters.Session{Username: name + "@corp.example", Provider: adapters.Provider{Type: "saml", Name: "saml1"}})
			add("storage", adapters.Session{Username: name, Provider: adapters.Provider{Type: "Cluster"}, Groups: read})
			if n%3 == 0 {
				add("kibana-prod", adapters.Session{Username: name + "@corp.example", Provider: adapters.Provider{Type: "basic", Name: "basic"}})
				add("storage", adapters.Session{Username: dn(name), Provider: adapters.Provider{Type: "Ldap"}, Groups: read})
			}
		}
	}
}

// gone returns how many sessions have ended, by target and user name.
func (k *realRound) gone() map[string]map[string]int {
	gone, alive := map[string]map[string]int{}, map[string]bool{}
	for _, target := range k.l.targets {
		gone[target] = map[string]int{}
		for _, x := range k.l.systems[target].Sessions() {
			alive[seenKey(target, x.Key())] = true
		}
	}
	for _, x := range k.people {
		if !alive[seenKey(x.target, x.key)] {
			gone[x.target][x.name]++
			k.count("sessions ended")
		}
	}
	return gone
}

func (k *realRound) count(what string) { k.report.add(map[string]int{what: 1}) }

func (k *realRound) broken(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wrong = append(k.wrong, fmt.Sprintf(format, args...))
}

// --- the callers ---

// call ends one person's sessions. Who calls insists until there is an answer; some call once more, watch it, cancel it, or
// call again for what has failed.
func (k *realRound) call(n int) {
	d := dice(k.seed, "call", n)
	req := &endsessionv1.InvalidateSessionsRequest{
		Selector:    &endsessionv1.Selector{User: &endsessionv1.User{Id: killPerson(n), Email: proto.String(killPerson(n) + "@corp.example")}},
		Reason:      proto.String(killPerson(n)),
		RequestId:   proto.String(fmt.Sprintf("00000000-0000-4000-9000-%012x", n)),
		WaitTimeout: durationpb.New(span(d, 0, 300*time.Millisecond)),
		RetryFor:    durationpb.New(span(d, k.retryFor[0], k.retryFor[1])),
		Labels:      map[string]string{"batch": fmt.Sprint(n % 10)},
	}
	if d.IntN(4) == 0 {
		req.Targets = slices.Clone(k.l.targets)
		d.Shuffle(len(req.Targets), func(i, j int) { req.Targets[i], req.Targets[j] = req.Targets[j], req.Targets[i] })
		req.Targets = req.Targets[:1+d.IntN(len(req.Targets)-1)]
	}
	if d.IntN(4) == 0 {
		req.Priority = endsessionv1.Priority_PRIORITY_BULK
	}
	first, twice, cancels, watches, retries := d.IntN(12), d.IntN(6) == 0, d.IntN(12) == 0, d.IntN(6) == 0, d.IntN(4) == 0
	var others sync.WaitGroup
	if twice {
		others.Go(func() { k.invalidate(first+1, req) })
	}
	name := k.invalidate(first, req)
	others.Wait()
	if name == "" {
		return
	}
	if watches {
		others.Go(func() { k.watch(first+2, name) })
	}
	if cancels {
		k.cancel(first+1, name)
	}
	if retries {
		k.retry(first, name, n)
	}
	others.Wait()
}

func (k *realRound) invalidate(first int, req *endsessionv1.InvalidateSessionsRequest) (name string) {
	k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		k.count("calls")
		resp, err := client.InvalidateSessions(ctx, req)
		if err == nil {
			name = k.accepted(req.GetReason(), resp)
		}
		return err
	})
	return name
}

// accepted notes the answer to a call.
func (k *realRound) accepted(reason string, resp *endsessionv1.InvalidateSessionsResponse) string {
	name := resp.GetInvalidation().GetName()
	if resp.GetReplayed() {
		k.count("calls replayed")
	}
	k.shown(resp.GetInvalidation())
	k.mu.Lock()
	before := k.answers[reason]
	k.answers[reason] = name
	k.mu.Unlock()
	if before != "" && before != name {
		k.broken("%s was accepted as %s and as %s", reason, before, name)
	}
	return name
}

// cancel ends what is not final; whoever is answered sees a final state.
func (k *realRound) cancel(first int, name string) {
	k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		resp, err := client.CancelInvalidation(ctx, &endsessionv1.CancelInvalidationRequest{Name: name})
		if status.Code(err) == codes.FailedPrecondition {
			return nil
		}
		if err == nil {
			k.shown(resp.GetInvalidation())
			if resp.GetInvalidation().GetCompleteTime() == nil {
				k.broken("%s was cancelled and is %s", name, resp.GetInvalidation().GetState())
			}
		}
		return err
	})
	k.count("cancels")
}

// watch looks on until the end, by as many processes as it takes.
func (k *realRound) watch(first int, name string) {
	k.count("watches")
	k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		stream, err := client.WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: name})
		if err != nil {
			return err
		}
		var last *endsessionv1.Invalidation
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				if last.GetCompleteTime() == nil {
					k.broken("%s: the watch ended before the final state", name)
				}
				return nil
			}
			if err != nil {
				return err
			}
			now := resp.GetInvalidation()
			if last.GetCompleteTime() != nil {
				k.broken("%s: the watch goes on after the final state", name)
			}
			if now.GetRevision() < last.GetRevision() {
				k.broken("%s: the watch shows revision %d after %d", name, now.GetRevision(), last.GetRevision())
			}
			last = now
			k.shown(now)
		}
	})
}

// retry waits for the end and calls again for what has failed.
func (k *realRound) retry(first int, name string, n int) {
	reason := killPerson(n) + " again"
	k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		resp, err := client.GetInvalidation(ctx, &endsessionv1.GetInvalidationRequest{Name: name, WaitTimeout: durationpb.New(2 * time.Second)})
		if err != nil {
			return err
		}
		k.shown(resp.GetInvalidation())
		switch stateWord(resp.GetInvalidation().GetState()) {
		case "RUNNING":
			return status.Error(codes.Unavailable, "not yet")
		case "SUCCEEDED", "CANCELLED":
			return nil
		}
		again, err := client.RetryInvalidation(ctx, &endsessionv1.RetryInvalidationRequest{
			Name: name, Reason: proto.String(reason), RequestId: proto.String(fmt.Sprintf("00000000-0000-4000-a000-%012x", n)),
			RetryFor: durationpb.New(k.retryFor[0]), WaitTimeout: durationpb.New(0),
		})
		if status.Code(err) == codes.FailedPrecondition {
			return nil // what did not succeed was cancelled
		}
		if err == nil {
			k.count("retries")
			k.accepted(reason, &endsessionv1.InvalidateSessionsResponse{Invalidation: again.GetInvalidation(), Replayed: again.GetReplayed()})
			if again.GetInvalidation().GetRetryOf() != name {
				k.broken("%s is a retry of %q", reason, again.GetInvalidation().GetRetryOf())
			}
		}
		return err
	})
}

// insist asks one process after the other, or the only one again, until one has answered.
func (k *realRound) insist(first int, f func(context.Context, endsessionv1.SessionServiceClient) error) {
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(10 * time.Millisecond) {
		err := status.Error(codes.Unavailable, "down")
		if client := k.reach(first); client != nil {
			ctx, cancel := context.WithTimeout(k.t.Context(), 5*time.Second)
			err = f(ctx, client)
			cancel()
		}
		first++
		switch code := status.Code(err); {
		case err == nil:
			return
		case code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled, time.Now().After(deadline):
			k.broken("a call was answered with %v", err)
			return
		}
		k.count("calls without an answer")
	}
}

// shown notes what somebody was shown: what is final stays as it is.
func (k *realRound) shown(inv *endsessionv1.Invalidation) {
	for _, r := range inv.GetRuns() {
		if r.GetCompleteTime() == nil {
			continue
		}
		state := fmt.Sprintf("%s counts %v (minimum %t)", runWord(r), r.InvalidatedCount != nil, r.GetCountIsMinimum())
		key := strings.TrimPrefix(inv.GetName(), "invalidations/") + " at " + r.GetTarget()
		k.mu.Lock()
		before := k.views[key]
		k.views[key] = state
		k.mu.Unlock()
		if before != "" && before != state {
			k.broken("%s: somebody was shown that it is %s, then %s", key, before, state)
		}
	}
}

// --- the way to the targets ---

// wrap lets requests meet faults, and notes them.
func (k *realRound) wrap(target string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender died while sending
		}
		sender, body := k.from(target, r, body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		r = r.WithContext(context.WithValue(r.Context(), senderKey{}, sender))
		u := &underWay{target: target, person: personIn(body), sender: sender, at: time.Now()}
		mutating := mutates(target, r.Method, r.URL.Path, body)
		k.mu.Lock()
		k.nth[target]++
		d := dice(k.seed, "fate at "+target, k.nth[target])
		if mutating {
			k.sent = append(k.sent, u)
		}
		k.mu.Unlock()
		k.count("requests to targets")
		if mutating && k.check != nil {
			k.check(u)
		}
		k.enter(u)
		defer func() { k.leave(u, r.Context().Err() != nil) }()
		if roll, which, wait := d.Float64(), d.IntN(16), span(d, 0, k.longest); roll < 0.3 && !k.calm.Load() {
			k.fault(which, wait, w, r, h)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (k *realRound) enter(u *underWay) {
	k.mu.Lock()
	if k.enters != nil {
		k.enters(u)
	}
	k.under[u] = true
	var crowd []*underWay
	for x := range k.under {
		if x.target == u.target && k.counts(x) {
			crowd = append(crowd, x)
		}
	}
	if len(crowd) > k.limits[u.target] {
		k.crowds[u.target] = append(k.crowds[u.target], crowd)
	}
	k.mu.Unlock()
}

func (k *realRound) leave(u *underWay, abandoned bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u.abandoned = abandoned
	delete(k.under, u)
}

// most returns how many requests a target has seen at once, if more than its limit; those that their senders had given up
// do not count: a target may go on with them, and nobody can know.
func (k *realRound) most(target string) (most int) {
	for _, crowd := range k.crowds[target] {
		n := 0
		for _, u := range crowd {
			if !u.abandoned {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// personName is how a person is named in a request: whole, not as a part of another's name.
var personName = regexp.MustCompile(`["=]u([0-9]{3})["@,]`)

// personIn finds the person whom a request is about; -1 if there is none, or more than one.
func personIn(body []byte) int {
	person := -1
	for _, found := range personName.FindAllSubmatch(body, -1) {
		n, _ := strconv.Atoi(string(found[1]))
		if person >= 0 && person != n {
			return -1
		}
		person = n
	}
	return person
}

// fault carries out one request badly.
func (k *realRound) fault(which int, d time.Duration, w http.ResponseWriter, r *http.Request, h http.Handler) {
	count := func(name string) { k.count("fault: " + name) }
	act := func() *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		return answer
	}
	page := func(status int) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<html><title>proxy</title></html>")
	}
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	switch which {
	case 0:
		count("delay before the effect")
		time.Sleep(d) // it takes effect even if the sender is dead by then
		h.ServeHTTP(w, r)
	case 1, 2:
		count("delay after the effect")
		answer := act()
		wait(d)
		for name, v := range answer.Header() {
			w.Header()[name] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	case 3:
		count("connection reset")
		panic(http.ErrAbortHandler)
	case 4, 5:
		count("connection reset after the effect")
		act()
		panic(http.ErrAbortHandler)
	case 6:
		count("502 as a page after the effect")
		act()
		page(http.StatusBadGateway)
	case 7:
		count("503 as a page")
		page(http.StatusServiceUnavailable)
	case 8:
		count("429")
		w.Header().Set("Retry-After", "1")
		page(http.StatusTooManyRequests)
	case 9:
		count("truncated JSON")
		answer := act()
		w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
	case 10:
		count("a page with 200 after the effect")
		act()
		page(http.StatusOK)
	case 11:
		count("500 as a page after the effect")
		act()
		page(http.StatusInternalServerError)
	case 12:
		count("500 as a page")
		page(http.StatusInternalServerError)
	case 13:
		count("no answer for long")
		wait(10 * d)
		panic(http.ErrAbortHandler)
	case 14:
		count("no answer for long after the effect")
		act()
		wait(10 * d)
		panic(http.ErrAbortHandler)
	case 15:
		if d%8 != 0 { // 401 parks the target: nothing else would be seen
			h.ServeHTTP(w, r)
			return
		}
		count("401")
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// --- the judge ---

// judge holds what the journal says against who is still signed in, and what was sent.
func (k *realRound) judge(invs []invalidation.Invalidation, lied bool) {
	gone := k.gone()
	byReason := map[string]invalidation.Invalidation{}
	runs := map[string][]invalidation.Run{} // by target and name
	for _, inv := range invs {
		n := -1
		_, _ = fmt.Sscanf(inv.Call.Reason, "u%03d", &n)
		if again, ok := byReason[inv.Call.Reason]; ok {
			k.broken("%s is two invalidations: %s and %s", inv.Call.Reason, again.ID, inv.ID)
		}
		byReason[inv.Call.Reason] = inv
		var states []string
		for _, r := range inv.Runs {
			states = append(states, string(r.State))
			runs[r.Target+" "+killPerson(n)] = append(runs[r.Target+" "+killPerson(n)], r)
			state := fmt.Sprintf("%s counts %v (minimum %t)", r.State, r.Counted, r.CountIsMinimum)
			if seen := k.views[inv.ID+" at "+r.Target]; seen != "" && seen != state {
				k.broken("%s at %s is %s, and somebody was shown that it is %s", inv.Call.Reason, r.Target, state, seen)
			}
			k.count("runs that ended " + string(r.State))
		}
		if want := overall(states); string(inv.State) != want {
			k.broken("%s is %s, but its runs %v make it %s", inv.Call.Reason, inv.State, states, want)
		}
	}
	for reason, name := range k.answers {
		if name != "invalidations/"+byReason[reason].ID {
			k.broken("%s was accepted as %s, and the journal has %q", reason, name, byReason[reason].ID)
		}
	}
	sent := map[string][]*underWay{}
	for _, u := range k.sent {
		key := u.target + " " + killPerson(u.person)
		if len(runs[key]) == 0 {
			k.broken("%s was sent a request that changes something for %d, and no run is to do so", u.target, u.person)
		}
		sent[key] = append(sent[key], u)
	}
	for _, target := range k.l.targets {
		for name := range gone[target] {
			if len(runs[target+" "+name]) == 0 {
				k.broken("%s: the sessions of %q ended, for which nobody had asked", target, name)
			}
		}
		if most := k.most(target); most > k.limits[target] {
			k.broken("%s saw %d requests at once, but its limit is %d", target, most, k.limits[target])
		}
	}
	for key, all := range runs {
		target, name, _ := strings.Cut(key, " ")
		had := 0
		for _, x := range k.people {
			if x.target == target && x.name == name {
				had++
			}
		}
		k.judgeRuns(name, all, sent[key], had, gone[target][name], lied && target == "storage")
	}
	k.count("rounds")
	k.report.add(map[string]int{"invalidations": len(invs)})
}

// judgeRuns judges the runs that were to end one person's sessions at one target: the call's, and perhaps that of a call
// for what had failed of it.
func (k *realRound) judgeRuns(name string, runs []invalidation.Run, sent []*underWay, had, gone int, lied bool) {
	sum, exact := 0, true
	var expires time.Time
	for _, r := range runs {
		sum += r.Count
		exact = exact && r.Counted && !r.CountIsMinimum
		if r.ExpireTime.After(expires) {
			expires = r.ExpireTime
		}
	}
	for _, r := range runs {
		bad := func(format string, args ...any) {
			k.broken("%s at %s (%s, attempts %d): %s", name, r.Target, r.State, r.Attempts, fmt.Sprintf(format, args...))
		}
		warned := slices.ContainsFunc(r.Warnings, func(w adapters.Warning) bool { return w.Code == adapters.ReasonOutcomeUnknown })
		switch {
		case lied:
		case len(runs) == 1:
			judgeCount(r, gone, len(sent), bad)
		case sum > gone || exact && sum != gone:
			bad("this and its retry count %d (exactly: %t), and %d sessions died", sum, exact, gone)
		}
		switch {
		case !r.State.Final() || r.Open || r.CompleteTime.IsZero():
			bad("it is not final")
		case r.State == invalidation.RunSucceeded && gone < had:
			bad("%d of %d sessions are still there", had-gone, had)
		case r.State == invalidation.RunCancelled && len(runs) == 1 && len(sent) > 0 && !warned:
			bad("%d requests that change something were sent, and it does not warn of an unknown outcome", len(sent))
		case r.State == invalidation.RunFailed && r.Error == nil:
			bad("no error")
		case r.State == invalidation.RunFailed && r.CountIsMinimum && !warned:
			bad("the count is a minimum, and it does not warn of an unknown outcome")
		case r.State == invalidation.RunUnsupported:
			bad("everybody can be asked for a user")
		}
	}
	for _, u := range sent {
		if k.journalTime(u.at).After(expires.Add(onTheWay)) && !u.late {
			k.broken("%s at %s expired at %v, and at %v something was sent", name, u.target, expires, u.at)
		}
	}
}
