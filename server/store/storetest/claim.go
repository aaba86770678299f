package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

func claimBegins(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	claimAgain := func(t *testing.T, target string) invalidation.ClaimedRun {
		t.Helper()
		c := claimOne(t, s, invalidation.Claim{Target: target, LeaseLength: time.Hour})
		equal(t, "the journalled run", get(t, s, c.Lease.InvalidationID).Runs[c.Lease.Run], c.Run)
		return c
	}

	a := asked(at, "other", "first")
	a.Invalidation.Call.Priority = invalidation.PriorityBulk
	inv, _ := accept(t, s, a)
	before := get(t, s, inv.ID)
	c := claimAgain(t, "first")
	r := before.Runs[1]
	r.State, r.Open, r.Attempts, r.StartTime = invalidation.RunRunning, true, 1, c.Run.StartTime
	equal(t, "PENDING", c.Run, r)
	if c.Run.StartTime.Before(at) || c.Lost || c.Priority != invalidation.PriorityBulk || c.Caller != helpdesk || !c.CreateTime.Equal(inv.CreateTime) {
		t.Errorf("PENDING: %s", show(c))
	}
	equal(t, "selector", c.Selector, inv.Call.Selector)
	equal(t, "lease", c.Lease, invalidation.Lease{InvalidationID: inv.ID, Run: 1, Owner: owner, Token: c.Lease.Token, Until: c.Lease.Until})
	if c.Lease.Until.Before(at.Add(time.Hour)) || c.Lease.Token < 1 {
		t.Errorf("lease %+v", c.Lease)
	}
	if got := get(t, s, inv.ID); got.Revision <= before.Revision {
		t.Errorf("the claim left revision %d", got.Revision)
	}

	record(t, s, c.Lease, retrying(c.Run, at))
	c2 := claimAgain(t, "first")
	r.Attempts = 2
	equal(t, "RETRYING", c2.Run, r)
	if c2.Lost || c2.Lease.Token <= c.Lease.Token {
		t.Errorf("RETRYING: lost %t, token %d after %d", c2.Lost, c2.Lease.Token, c.Lease.Token)
	}

	working := waiting(c2.Run, at)
	working.Resume = []byte(`{"task":"7"}`)
	record(t, s, c2.Lease, working)
	c3 := claimAgain(t, "first")
	r.Resume = working.Resume
	equal(t, "RUNNING", c3.Run, r)
	if c3.Lost {
		t.Error("a continued attempt counts as lost")
	}

	unresolved := asked(at, "unresolved")
	unresolved.Invalidation.Runs[0].Selector = nil
	unresolved.Invalidation.Runs[0].NextAttemptTime = at
	accept(t, s, unresolved)
	c = claimAgain(t, "unresolved")
	equal(t, "unresolved", c.Run, unresolved.Invalidation.Runs[0])
	later := c.Run
	later.NextAttemptTime = at.Add(time.Millisecond)
	record(t, s, c.Lease, later)
	h.Pass(t, 2*time.Millisecond)
	c = claimAgain(t, "unresolved")
	record(t, s, c.Lease, ended(c.Run, invalidation.RunUnsupported, at))

	expired := asked(at, "expired")
	expired.Invalidation.Runs[0].ExpireTime = at
	accept(t, s, expired)
	c = claimAgain(t, "expired")
	equal(t, "expired", c.Run, expired.Invalidation.Runs[0])
	record(t, s, c.Lease, ended(c.Run, invalidation.RunFailed, at))
}

func claimOrder(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	// The name says priority and next attempt time, in seconds ago; every one is at the same target.
	put := func(bulk bool, ago int) string {
		a := asked(at, "apm")
		a.Invalidation.Runs[0].NextAttemptTime = at.Add(time.Duration(-ago) * time.Second)
		name := fmt.Sprintf("normal %d", ago)
		if bulk {
			a.Invalidation.Call.Priority = invalidation.PriorityBulk
			name = fmt.Sprintf("bulk %d", ago)
		}
		a.Invalidation.Runs[0].Kind = name
		accept(t, s, a)
		return name
	}
	elsewhere, _ := accept(t, s, asked(at, "other"))
	take := func(limit int, bulkFirst bool) (names []string) {
		for _, c := range claim(t, s, invalidation.Claim{Target: "apm", Limit: limit, LeaseLength: time.Hour, BulkFirst: bulkFirst}) {
			names = append(names, c.Run.Kind)
		}
		return names
	}
	for _, ago := range []int{3, 1, 4, 2, 5} {
		put(true, ago)
		put(false, ago)
	}
	equal(t, "two", take(2, false), []string{"normal 5", "normal 4"})
	equal(t, "two, bulk first", take(2, true), []string{"bulk 5", "bulk 4"})
	equal(t, "five", take(5, false), []string{"normal 3", "normal 2", "normal 1", "bulk 3", "bulk 2"})
	equal(t, "the rest", take(5, true), []string{"bulk 1"})
	equal(t, "no more", take(5, false), []string(nil))
	put(true, 9)
	put(false, 0)
	equal(t, "bulk first, then normal", take(5, true), []string{"bulk 9", "normal 0"})
	equal(t, "the other target's", get(t, s, elsewhere.ID), elsewhere)
}

func claimWaits(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	nextDue := func() (time.Time, bool) {
		t.Helper()
		next, ok, err := s.NextDue(t.Context(), "apm")
		if err != nil {
			t.Fatalf("NextDue: %v", err)
		}
		return next, ok
	}
	if next, ok := nextDue(); ok {
		t.Errorf("NextDue of an empty journal = %v", next)
	}
	soon := at.Add(h.Lease)
	for _, next := range []time.Time{at.Add(time.Hour), soon, at.Add(2 * time.Hour)} {
		a := asked(at, "apm", "other")
		a.Invalidation.Runs[0].NextAttemptTime = next
		a.Invalidation.Call.Priority = invalidation.Priority(next.Hour() % 2) // it makes no difference
		accept(t, s, a)
	}
	if claimed := claim(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour}); len(claimed) != 0 {
		t.Errorf("%d runs were claimed before they were due", len(claimed))
	}
	if next, ok := nextDue(); !ok || !next.Equal(soon) {
		t.Errorf("NextDue = %v, %t; want %v", next, ok, soon)
	}
	h.Pass(t, h.Lease+time.Millisecond)
	if next, ok := nextDue(); !ok || next.After(now(t, s).Add(time.Millisecond)) {
		t.Errorf("NextDue = %v, %t; want now", next, ok)
	}
	c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: h.Lease})
	if next, ok := nextDue(); !ok || !next.Equal(c.Lease.Until) {
		t.Errorf("NextDue of a leased run = %v, %t; want %v", next, ok, c.Lease.Until)
	}
	h.Pass(t, h.Lease+time.Millisecond)
	if next, ok := nextDue(); !ok || next.After(now(t, s).Add(time.Millisecond)) {
		t.Errorf("NextDue after the lease = %v, %t; want now", next, ok)
	}
	c = claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	record(t, s, c.Lease, ended(c.Run, invalidation.RunFailed, at))
	if next, ok := nextDue(); !ok || !next.Equal(at.Add(time.Hour)) {
		t.Errorf("NextDue after the end = %v, %t; want %v", next, ok, at.Add(time.Hour))
	}
}

func claimExpiredOnly(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	fresh, _ := accept(t, s, asked(at, "apm"))
	a := asked(at, "apm")
	a.Invalidation.Runs[0].ExpireTime = at.Add(-time.Second)
	old, _ := accept(t, s, a)
	a = asked(at, "apm")
	a.Invalidation.Runs[0].ExpireTime = at.Add(h.Lease)
	a.Invalidation.Call.Priority = invalidation.PriorityBulk
	soon, _ := accept(t, s, a)
	only := invalidation.Claim{Target: "apm", LeaseLength: time.Hour, ExpiredOnly: true}
	if c := claimOne(t, s, only); c.Lease.InvalidationID != old.ID || !c.Expired {
		t.Errorf("claimed %s (expired %t), want the expired %s", c.Lease.InvalidationID, c.Expired, old.ID)
	}
	h.Pass(t, h.Lease)
	if c := claimOne(t, s, only); c.Lease.InvalidationID != soon.ID {
		t.Errorf("claimed %s, want %s, which has expired", c.Lease.InvalidationID, soon.ID)
	}
	equal(t, "the one that has not", get(t, s, fresh.ID), fresh)
	if c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour}); c.Lease.InvalidationID != fresh.ID || c.Expired {
		t.Errorf("claimed %s (expired %t), want %s, which has not", c.Lease.InvalidationID, c.Expired, fresh.ID)
	}
}

func claimNeverHandsARunToTwo(t *testing.T, h Harness) {
	s := h.Open(t)
	stores := []invalidation.Store{s, h.process(t, s)}
	at := now(t, s)
	const runs, claimants = 60, 8
	for range runs {
		accept(t, s, asked(at, "apm"))
	}
	var mu sync.Mutex
	claimed := map[string]int{}
	var wg sync.WaitGroup
	for n := range claimants {
		wg.Go(func() {
			for {
				mine, err := stores[n%2].Claim(t.Context(), invalidation.Claim{Target: "apm", Owner: fmt.Sprint(n), Limit: 4, LeaseLength: time.Hour})
				if err != nil {
					t.Errorf("Claim: %v", err)
				}
				mu.Lock()
				for _, c := range mine {
					claimed[c.Lease.InvalidationID]++
				}
				done := len(claimed) == runs
				mu.Unlock()
				if done || err != nil || len(mine) == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	for range claimants { // whoever met another's locks has left some
		for _, c := range claim(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour}) {
			claimed[c.Lease.InvalidationID]++
		}
	}
	for id, n := range claimed {
		if n != 1 {
			t.Errorf("run of %s was claimed %d times", id, n)
		}
	}
	if len(claimed) != runs {
		t.Errorf("%d runs were claimed, want %d", len(claimed), runs)
	}
}

func claimTakesOver(t *testing.T, h Harness) {
	s := h.Open(t)
	other := h.process(t, s)
	at := now(t, s)
	accept(t, s, asked(at, "apm"))
	late := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: h.Lease})
	if claimed := claim(t, other, invalidation.Claim{Target: "apm", LeaseLength: time.Hour}); len(claimed) != 0 {
		t.Fatal("a leased run was claimed")
	}
	h.Pass(t, h.Lease+time.Millisecond)
	ids := late.Lease.InvalidationID
	before := get(t, s, ids)
	// Whether or not somebody has taken the run already, the lease has ended.
	_, err := s.Record(t.Context(), late.Lease, ended(late.Run, invalidation.RunSucceeded, at), []invalidation.Event{event(at, "run.succeeded", ids)})
	wantError(t, "record after the lease", err, invalidation.ErrLeaseLost)
	wantError(t, "release after the lease", s.Release(t.Context(), late.Lease), invalidation.ErrLeaseLost)
	equal(t, "after late answers", get(t, s, ids), before)

	// The same owner's new lease is another one.
	c := claimOne(t, other, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	if !c.Lost || c.Run.Attempts != 2 || !c.Run.Open || c.Lease.Token <= late.Lease.Token || !c.Run.StartTime.Equal(late.Run.StartTime) {
		t.Errorf("taken over: %s", show(c))
	}
	_, err = s.Record(t.Context(), late.Lease, ended(late.Run, invalidation.RunSucceeded, at), []invalidation.Event{event(at, "run.succeeded", ids)})
	wantError(t, "record with the old token", err, invalidation.ErrLeaseLost)
	lost, err := s.Renew(t.Context(), []invalidation.Lease{late.Lease, c.Lease}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "lost", lost, []invalidation.Lease{late.Lease})
	stranger := c.Lease
	stranger.Owner = "another process"
	_, err = s.Record(t.Context(), stranger, ended(c.Run, invalidation.RunSucceeded, at), nil)
	wantError(t, "record as another owner", err, invalidation.ErrLeaseLost)
	record(t, s, c.Lease, ended(c.Run, invalidation.RunSucceeded, at), event(at, "run.recorded", ids))
	equal(t, "events", eventsOf(t, h, s, ids), []string{"invalidation.accepted", "run.recorded"})
	_, err = s.Record(t.Context(), c.Lease, ended(c.Run, invalidation.RunSucceeded, at), nil)
	wantError(t, "record twice", err, invalidation.ErrLeaseLost)
}

func claimResumes(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "open", "waits", "due", "retrying", "unresolved", "done")
	a.Invalidation.Runs[4].Selector = nil
	a.Start, a.LeaseLength = []int{0, 1, 3, 5}, h.Lease
	inv, leases := accept(t, s, a)
	record(t, s, leases[1], waiting(inv.Runs[1], at))
	record(t, s, leases[2], retrying(inv.Runs[3], at.Add(24*time.Hour)))
	record(t, s, leases[3], ended(inv.Runs[5], invalidation.RunSucceeded, at))
	claimOne(t, s, invalidation.Claim{Target: "unresolved", LeaseLength: h.Lease})
	before := get(t, s, inv.ID)
	events := h.Events(t, s)

	s = h.Reopen(t, s)
	equal(t, "after the crash", get(t, s, inv.ID), before)
	equal(t, "events after the crash", h.Events(t, s), events)
	if h.Second != nil {
		h.Pass(t, h.Lease) // the dead process's leases last
	}
	for _, want := range []struct {
		target   string
		attempts int
		lost     bool
	}{{"open", 2, true}, {"waits", 1, false}, {"due", 1, false}, {"unresolved", 0, false}} {
		c := claimOne(t, s, invalidation.Claim{Target: want.target, LeaseLength: time.Hour})
		if c.Run.Attempts != want.attempts || c.Lost != want.lost {
			t.Errorf("%s: %d attempts, lost %t; want %d, %t", want.target, c.Run.Attempts, c.Lost, want.attempts, want.lost)
		}
	}
	for _, target := range []string{"retrying", "done"} {
		if claimed := claim(t, s, invalidation.Claim{Target: target, LeaseLength: time.Hour}); len(claimed) != 0 {
			t.Errorf("%s: claimed", target)
		}
	}
	_, err := s.Record(t.Context(), leases[0], ended(inv.Runs[0], invalidation.RunSucceeded, at), nil)
	wantError(t, "record by the dead process", err, invalidation.ErrLeaseLost)
}

func renewProlongs(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	inv, _ := accept(t, s, asked(at, "apm", "kibana", "storage"))
	var leases []invalidation.Lease
	var claimed []invalidation.ClaimedRun
	for _, target := range []string{"apm", "kibana", "storage"} {
		c := claimOne(t, s, invalidation.Claim{Target: target, LeaseLength: h.Lease})
		claimed = append(claimed, c)
		leases = append(leases, c.Lease)
	}
	record(t, s, leases[2], ended(claimed[2].Run, invalidation.RunSucceeded, at))
	before := get(t, s, inv.ID)
	lost, err := s.Renew(t.Context(), leases[1:], time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "lost, of one that is recorded", lost, leases[2:])
	equal(t, "renewing is no change", get(t, s, inv.ID), before)
	h.Pass(t, h.Lease+time.Millisecond)
	lost, err = s.Renew(t.Context(), leases[:2], time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "lost, of one that has ended", lost, leases[:1])
	if got := claim(t, s, invalidation.Claim{Target: "kibana", LeaseLength: time.Hour}); len(got) != 0 {
		t.Error("a renewed lease was taken over")
	}
	record(t, s, leases[1], ended(claimed[1].Run, invalidation.RunSucceeded, at))
	if lost, err := s.Renew(t.Context(), nil, time.Hour); err != nil || len(lost) != 0 {
		t.Errorf("renew nothing: %v, %v", lost, err)
	}
}

// releaseTakesBack: the run is again what it was before the claim, and due at once.
func releaseTakesBack(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	check := func(what, target string, lost bool) {
		t.Helper()
		invs, _, err := s.List(t.Context(), invalidation.Query{Target: target, Limit: 1})
		if err != nil || len(invs) != 1 {
			t.Fatalf("List: %v, %v", ids(invs), err)
		}
		before := invs[0]
		for range 2 { // what was released once is claimed and released the same way again
			c := claimOne(t, s, invalidation.Claim{Target: target, LeaseLength: h.Lease})
			if c.Lost != lost {
				t.Errorf("%s: lost %t, want %t", what, c.Lost, lost)
			}
			if err := s.Release(t.Context(), c.Lease); err != nil {
				t.Fatalf("%s: Release: %v", what, err)
			}
			after := get(t, s, before.ID)
			if after.Revision <= before.Revision {
				t.Errorf("%s: revision %d after %d", what, after.Revision, before.Revision)
			}
			got, want := *after.Run(target), *before.Run(target)
			if got.NextAttemptTime.After(now(t, s).Add(time.Millisecond)) {
				t.Errorf("%s: due at %v", what, got.NextAttemptTime)
			}
			got.NextAttemptTime = want.NextAttemptTime
			equal(t, what, got, want)
			wantError(t, what+": release twice", s.Release(t.Context(), c.Lease), invalidation.ErrLeaseLost)
		}
	}
	accept(t, s, asked(at, "pending"))
	check("PENDING", "pending", false)

	a := asked(at, "retrying", "running", "lost")
	a.Start, a.LeaseLength = []int{0, 1, 2}, h.Lease
	inv, leases := accept(t, s, a)
	record(t, s, leases[0], retrying(inv.Runs[0], at))
	check("RETRYING", "retrying", false)
	record(t, s, leases[1], waiting(inv.Runs[1], at))
	check("RUNNING", "running", false)
	h.Pass(t, h.Lease+time.Millisecond)
	check("open", "lost", true)

	a = asked(at, "unresolved")
	a.Invalidation.Runs[0].Selector = nil
	accept(t, s, a)
	check("unresolved", "unresolved", false)

	a = asked(at, "expired")
	a.Start, a.LeaseLength = []int{0}, h.Lease
	a.Invalidation.Runs[0].ExpireTime = now(t, s).Add(h.Lease)
	accept(t, s, a)
	h.Pass(t, h.Lease+time.Millisecond)
	check("expired and open", "expired", true)

	// A run that was begun at acceptance can be given back as well.
	a = asked(at, "started")
	a.Start, a.LeaseLength = []int{0}, time.Hour
	inv, leases = accept(t, s, a)
	if err := s.Release(t.Context(), leases[0]); err != nil {
		t.Fatal(err)
	}
	if r := get(t, s, inv.ID).Runs[0]; r.State != invalidation.RunPending || r.Attempts != 0 || r.Open || !r.StartTime.IsZero() {
		t.Errorf("released after the acceptance: %s", show(r))
	}
	check("started", "started", false)
}

func unfinishedCounts(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	later := at.Add(5 * time.Second)
	counts := func() map[string]invalidation.Unfinished {
		t.Helper()
		n, err := s.Unfinished(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	equal(t, "nothing", counts(), map[string]invalidation.Unfinished{})
	first, _ := accept(t, s, asked(at, "apm", "kibana"))
	bulk := asked(later, "apm", "storage")
	bulk.Invalidation.Call.Priority = invalidation.PriorityBulk
	accept(t, s, bulk)
	both := map[string]invalidation.Unfinished{"apm": {Runs: 2, Oldest: at}, "kibana": {Runs: 1, Oldest: at}, "storage": {Runs: 1, Oldest: later}}
	equal(t, "two", counts(), both)
	c := claimOne(t, s, invalidation.Claim{Target: "storage", LeaseLength: time.Hour})
	equal(t, "claimed", counts(), both)
	record(t, s, c.Lease, ended(c.Run, invalidation.RunFailed, at))
	delete(both, "storage")
	equal(t, "recorded", counts(), both)
	if _, err := s.Cancel(t.Context(), first.ID, at, nil); err != nil {
		t.Fatal(err)
	}
	equal(t, "the oldest is cancelled", counts(), map[string]invalidation.Unfinished{"apm": {Runs: 1, Oldest: later}})
}

func pauseComesAndGoes(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	pauses := func() []invalidation.Pause {
		t.Helper()
		p, err := s.Pauses(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(p, func(a, b invalidation.Pause) int {
			if a.Target < b.Target {
				return -1
			}
			return 1
		})
		return p
	}
	pause := func(p invalidation.Pause) {
		t.Helper()
		if err := s.Pause(t.Context(), p, []invalidation.Event{event(at, "target.paused", "")}); err != nil {
			t.Fatal(err)
		}
	}
	if got := pauses(); len(got) != 0 {
		t.Errorf("a new journal has pauses: %s", show(got))
	}
	a := invalidation.Pause{Target: "apm", Caller: helpdesk, Reason: "maintenance", Time: odd(at)}
	b := invalidation.Pause{Target: "kibana", Caller: invalidation.Caller{Kind: "oidc", Name: "ops"}, Time: at}
	pause(a)
	pause(b)
	a.Time = kept(a.Time)
	equal(t, "two", pauses(), []invalidation.Pause{a, b})
	a.Reason = "still"
	pause(a)
	equal(t, "replaced", pauses(), []invalidation.Pause{a, b})
	for range 2 { // the second time there is none
		if err := s.Resume(t.Context(), "apm", []invalidation.Event{event(at, "target.resumed", "")}); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "resumed", pauses(), []invalidation.Pause{b})
	equal(t, "events", eventTypes(h.Events(t, s)), []string{"target.paused", "target.paused", "target.paused", "target.resumed", "target.resumed"})
	equal(t, "after a crash", func() []invalidation.Pause { s = h.Reopen(t, s); return pauses() }(), []invalidation.Pause{b})
}

func auditKeepsEvents(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	events := []invalidation.Event{
		{Time: odd(at), Type: "invalidation.previewed", Caller: helpdesk, InvalidationID: newID(), Target: "apm", Data: []byte(`{"b": 1, "a": [1.50]}`)},
		{Time: at, Type: "call.denied", Caller: invalidation.Caller{Kind: "anonymous"}},
		{Time: at.Add(-time.Hour), Type: "call.denied", Caller: helpdesk, Data: []byte(`{}`)},
	}
	for _, batch := range [][]invalidation.Event{events[:2], nil, events[2:]} {
		if err := s.Audit(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	events[0].Time = kept(events[0].Time)
	equal(t, "events", h.Events(t, s), events)
	s = h.Reopen(t, s)
	if err := s.Audit(t.Context(), events[1:2]); err != nil {
		t.Fatal(err)
	}
	equal(t, "events after a crash", h.Events(t, s), append(events, events[1]))
}

func hastenTakesWhatWaits(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	const refused = adapters.ReasonUpstreamUnauthenticated
	add := func(target string, reason adapters.Reason) string {
		inv, _ := accept(t, s, asked(at, target))
		c := claimOne(t, s, invalidation.Claim{Target: target, LeaseLength: time.Hour})
		r := retrying(c.Run, at.Add(15*time.Minute))
		r.Error = &invalidation.RunError{Reason: reason, Message: "no", RetryDelay: 15 * time.Minute}
		record(t, s, c.Lease, r)
		return inv.ID
	}
	first, second := add("apm", refused), add("apm", refused)
	add("apm", adapters.ReasonUpstreamBusy)
	add("kibana", refused)
	before := get(t, s, first)
	n, err := s.Hasten(t.Context(), "apm", refused)
	if err != nil || n != 2 {
		t.Fatalf("Hasten = %d, %v; want 2", n, err)
	}
	after := get(t, s, first)
	if by, err := s.Now(t.Context()); err != nil || after.Runs[0].NextAttemptTime.After(by) || after.Revision != before.Revision {
		t.Errorf("hastened: next attempt at %v, revision %d after %d", after.Runs[0].NextAttemptTime, after.Revision, before.Revision)
	}
	after.Runs[0].NextAttemptTime = before.Runs[0].NextAttemptTime
	equal(t, "hastened", after, before)
	var got []string
	for _, c := range claim(t, s, invalidation.Claim{Target: "apm", Limit: 9, LeaseLength: time.Hour}) {
		got = append(got, c.Lease.InvalidationID)
	}
	slices.Sort(got)
	want := []string{first, second}
	slices.Sort(want)
	equal(t, "claimed", got, want)
	if n, err := s.Hasten(t.Context(), "apm", refused); err != nil || n != 0 {
		t.Errorf("Hasten of leased runs = %d, %v", n, err)
	}
	if claimed := claim(t, s, invalidation.Claim{Target: "kibana", Limit: 9, LeaseLength: time.Hour}); len(claimed) != 0 {
		t.Errorf("another target's runs were hastened: %s", show(claimed))
	}
}
