package storetest

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

func recordKeepsTheAnswer(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "apm", "kibana")
	a.Invalidation.Runs[0].Selector = nil
	inv, _ := accept(t, s, a)
	c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	r := c.Run
	r.Selector = resolved() // late
	r.NextAttemptTime = at
	record(t, s, c.Lease, r)
	c = claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})

	r = c.Run
	r.State, r.NextAttemptTime = invalidation.RunRetrying, odd(at.Add(-time.Minute))
	r.Counted, r.Count, r.CountIsMinimum = true, 3, true
	r.Sessions = []adapters.Session{
		{ID: "2a5d7604", Device: "d", Username: "alice", Provider: adapters.Provider{Type: "saml", Name: "okta"},
			Groups: []adapters.Group{{Kind: "cluster", Name: "Blue"}}, CreateTime: odd(at), LastAccessTime: odd(at), ExpireTime: odd(at)},
		{ID: "2"},
	}
	r.SessionsTruncated = true
	r.Covered = []string{"saml", "basic"}
	r.Warnings = []adapters.Warning{{Code: adapters.WarnSignedInAgain, Message: "again"}, {Code: adapters.ReasonOutcomeUnknown}}
	r.Error = &invalidation.RunError{Reason: adapters.ReasonStillAlive, Message: "alive", RetryDelay: 1500 * time.Millisecond}
	r.Operation = "task 7"
	r.Resume = []byte(`{"z": 1, "a": [1.50, "é"]}`)
	r.Retry = invalidation.RetryState{Failures: 2, StillAlive: 1, StillAliveSince: odd(at), Failed: 1}
	want := r
	want.Open = false
	want.NextAttemptTime = kept(r.NextAttemptTime)
	want.Retry.StillAliveSince = kept(odd(at))
	want.Sessions = slices.Clone(r.Sessions)
	want.Sessions[0].CreateTime, want.Sessions[0].LastAccessTime, want.Sessions[0].ExpireTime = kept(odd(at)), kept(odd(at)), kept(odd(at))
	// What identifies the run stays, whatever the answer says.
	r.Target, r.Kind, r.Fingerprint, r.ExpireTime = "storage", "element", "f", at
	before := get(t, s, inv.ID)
	head := record(t, s, c.Lease, r)
	after := get(t, s, inv.ID)
	equal(t, "retrying", after.Runs[0], want)
	equal(t, "the other run", after.Runs[1], before.Runs[1])
	equal(t, "head", head, invalidation.Head{State: invalidation.Running, Revision: after.Revision})
	if after.Revision <= before.Revision {
		t.Errorf("revision %d after %d", after.Revision, before.Revision)
	}
	// The last answer replaces all of it.
	c = claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	last := invalidation.Run{State: invalidation.RunSucceeded, CompleteTime: odd(at), StartTime: c.Run.StartTime, Attempts: c.Run.Attempts,
		Selector: resolved(), Terms: invalidation.Terms{MaxSessions: 3}, Verification: adapters.ConfirmedByList}
	record(t, s, c.Lease, last)
	want = last
	want.Target, want.Kind, want.Fingerprint, want.ExpireTime = c.Run.Target, c.Run.Kind, c.Run.Fingerprint, c.Run.ExpireTime
	want.CompleteTime = kept(odd(at))
	equal(t, "succeeded", get(t, s, inv.ID).Runs[0], want)
	for _, v := range []adapters.Verification{adapters.VerificationUnspecified, adapters.ConfirmedByRepeat, adapters.Unverifiable} {
		inv, _ := accept(t, s, asked(at, "v"))
		c := claimOne(t, s, invalidation.Claim{Target: "v", LeaseLength: time.Hour})
		r := ended(c.Run, invalidation.RunSucceeded, at)
		r.Verification = v
		record(t, s, c.Lease, r)
		equal(t, v.String(), get(t, s, inv.ID).Runs[0], r)
	}
}

func recordRefusesIllegal(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	// A leased run of every state that can be leased: unresolved and expired runs are leased as they are.
	lease := map[invalidation.RunState]func() invalidation.ClaimedRun{
		invalidation.RunPending: func() invalidation.ClaimedRun {
			a := asked(at, "apm")
			a.Invalidation.Runs[0].Selector = nil
			accept(t, s, a)
			return claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
		},
		invalidation.RunRunning: func() invalidation.ClaimedRun {
			accept(t, s, asked(at, "apm"))
			return claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
		},
		invalidation.RunRetrying: func() invalidation.ClaimedRun {
			a := asked(at, "apm")
			a.Invalidation.Runs[0].ExpireTime = now(t, s).Add(h.Lease)
			accept(t, s, a)
			c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
			record(t, s, c.Lease, retrying(c.Run, at))
			h.Pass(t, h.Lease)
			return claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
		},
	}
	for _, from := range []invalidation.RunState{invalidation.RunPending, invalidation.RunRunning, invalidation.RunRetrying} {
		for _, to := range append(slices.Clone(invalidation.RunStates), "", "DONE") {
			c := lease[from]()
			id := c.Lease.InvalidationID
			if c.Run.State != from {
				t.Fatalf("leased as %s, want %s", c.Run.State, from)
			}
			r := c.Run
			r.State = to
			if to.Final() {
				r = ended(r, to, at)
			}
			if to == invalidation.RunRunning || to == invalidation.RunRetrying {
				r.Attempts, r.StartTime, r.NextAttemptTime = max(1, r.Attempts), at, at.Add(time.Hour)
			}
			before, events := get(t, s, id), eventsOf(t, h, s, id)
			_, err := s.Record(t.Context(), c.Lease, r, []invalidation.Event{event(at, "run.recorded", id)})
			if from.CanBecome(to) {
				if err != nil {
					t.Errorf("%s to %q: %v", from, to, err)
				}
				if got := get(t, s, id).Runs[0].State; got != to {
					t.Errorf("%s to %q left %s", from, to, got)
				}
				if !to.Final() {
					if _, err := s.Cancel(t.Context(), id, at, nil); err != nil { // out of the way
						t.Fatal(err)
					}
				}
				continue
			}
			wantError(t, string(from)+" to "+string(to), err, invalidation.ErrIllegalTransition)
			equal(t, string(from)+" to "+string(to), get(t, s, id), before)
			equal(t, "events", eventsOf(t, h, s, id), events)
			// The lease is as good as before.
			record(t, s, c.Lease, ended(c.Run, invalidation.RunFailed, at))
		}
	}
}

func recordComputesTheState(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	random := rand.New(rand.NewPCG(1, 2)) // the same walk every time
	targets := []string{"a", "b", "c", "d"}
	seen := map[invalidation.State]bool{}
	for range 24 {
		a := asked(at, targets[:1+random.IntN(len(targets))]...)
		a.Invalidation.Call.AllowUnsupported = random.IntN(2) == 0
		inv, _ := accept(t, s, a)
		for !inv.State.Final() {
			n := random.IntN(len(inv.Runs))
			if inv.Runs[n].State.Final() {
				continue
			}
			c := claimOne(t, s, invalidation.Claim{Target: inv.Runs[n].Target, LeaseLength: time.Hour})
			before := get(t, s, inv.ID)
			var r invalidation.Run
			switch to := invalidation.RunStates[random.IntN(len(invalidation.RunStates))]; {
			case to.Final():
				r = ended(c.Run, to, at.Add(time.Duration(random.IntN(1000))*time.Millisecond))
			case to == invalidation.RunRetrying:
				r = retrying(c.Run, at)
			default:
				r = waiting(c.Run, at)
			}
			head := record(t, s, c.Lease, r)
			inv = get(t, s, inv.ID)
			consistent(t, inv)
			equal(t, "head", head, invalidation.Head{State: inv.State, Revision: inv.Revision, CompleteTime: inv.CompleteTime})
			if inv.Revision <= before.Revision {
				t.Errorf("revision %d after %d", inv.Revision, before.Revision)
			}
		}
		seen[inv.State] = true
		_, err := s.Cancel(t.Context(), inv.ID, at, nil)
		wantError(t, "cancel what is final", err, invalidation.ErrFinal)
	}
	for _, state := range []invalidation.State{invalidation.Succeeded, invalidation.PartiallySucceeded, invalidation.Failed, invalidation.Cancelled} {
		if !seen[state] {
			t.Errorf("no invalidation ended as %s", state)
		}
	}
}

func recordWritesEvents(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	inv, _ := accept(t, s, asked(at, "apm", "kibana"))
	id := inv.ID
	c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	first, second := event(odd(at), "run.progressed", id), event(at, "run.succeeded", id)
	first.Target, first.Data = "apm", []byte(`{"count":2,"message":"é \u00e9"}`)
	record(t, s, c.Lease, waiting(c.Run, at), first)
	c = claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	record(t, s, c.Lease, ended(c.Run, invalidation.RunSucceeded, at), second, second)
	first.Time = kept(first.Time)
	events := h.Events(t, s)
	equal(t, "events", events[1:], []invalidation.Event{first, second, second})
	_, err := s.Record(t.Context(), c.Lease, ended(c.Run, invalidation.RunFailed, at), []invalidation.Event{event(at, "run.failed", id)})
	wantError(t, "late", err, invalidation.ErrLeaseLost)
	if _, err := s.Cancel(t.Context(), id, at, []invalidation.Event{event(at, "invalidation.cancelled", id)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Cancel(t.Context(), id, at, []invalidation.Event{event(at, "invalidation.cancelled again", id)}); err == nil {
		t.Error("cancelled twice")
	}
	equal(t, "types", eventsOf(t, h, s, id), []string{"invalidation.accepted", "run.progressed", "run.succeeded", "run.succeeded", "invalidation.cancelled"})
}

func cancelEndsEveryRun(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "pending", "open", "waiting", "retrying", "done", "counted")
	a.Start, a.LeaseLength = []int{1, 2, 3, 4, 5}, time.Hour
	inv, leases := accept(t, s, a)
	record(t, s, leases[1], waiting(inv.Runs[2], at.Add(time.Hour)))
	record(t, s, leases[2], retrying(inv.Runs[3], at.Add(time.Hour)))
	record(t, s, leases[3], ended(inv.Runs[4], invalidation.RunSucceeded, at))
	counted := retrying(inv.Runs[5], at)
	counted.Counted, counted.Count = true, 2
	record(t, s, leases[4], counted)
	claimOne(t, s, invalidation.Claim{Target: "counted", LeaseLength: time.Hour})
	before := get(t, s, inv.ID)

	end := odd(at.Add(time.Minute))
	got, err := s.Cancel(t.Context(), inv.ID, end, []invalidation.Event{event(at, "invalidation.cancelled", inv.ID)})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "read", get(t, s, inv.ID), got)
	consistent(t, got)
	if got.State != invalidation.PartiallySucceeded || !got.CompleteTime.Equal(kept(end)) || got.Revision <= before.Revision {
		t.Errorf("state %s, complete time %v, revision %d after %d", got.State, got.CompleteTime, got.Revision, before.Revision)
	}
	for i, r := range before.Runs {
		if !r.State.Final() {
			r = invalidation.CancelRun(r, kept(end))
		}
		equal(t, r.Target, got.Runs[i], r)
	}
	// The rule itself, lest both be wrong: an open run may have done more than is known.
	if r := got.Run("open"); !r.CountIsMinimum || len(r.Warnings) != 1 || r.Warnings[0].Code != adapters.ReasonOutcomeUnknown || r.Open {
		t.Errorf("open: %s", show(r))
	}
	if r := got.Run("counted"); !r.CountIsMinimum || r.Count != 2 {
		t.Errorf("counted: %s", show(r))
	}
	if r := got.Run("pending"); r.CountIsMinimum || len(r.Warnings) != 0 {
		t.Errorf("pending: %s", show(r))
	}
	for _, r := range got.Runs {
		if claimed := claim(t, s, invalidation.Claim{Target: r.Target, LeaseLength: time.Hour}); len(claimed) != 0 {
			t.Errorf("a cancelled run at %s was claimed", r.Target)
		}
	}
}

func cancelRefusesTheLateAnswer(t *testing.T, h Harness) {
	s := h.Open(t)
	other := h.process(t, s)
	at := now(t, s)
	inv, _ := accept(t, s, asked(at, "apm"))
	c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	cancelled, err := other.Cancel(t.Context(), inv.ID, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Record(t.Context(), c.Lease, ended(c.Run, invalidation.RunSucceeded, at), []invalidation.Event{event(at, "run.succeeded", inv.ID)})
	wantError(t, "record", err, invalidation.ErrLeaseLost)
	wantError(t, "release", s.Release(t.Context(), c.Lease), invalidation.ErrLeaseLost)
	lost, err := s.Renew(t.Context(), []invalidation.Lease{c.Lease}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "lost", lost, []invalidation.Lease{c.Lease})
	equal(t, "afterwards", get(t, s, inv.ID), cancelled)
	equal(t, "events", eventsOf(t, h, s, inv.ID), []string{"invalidation.accepted"})
}

func cancelOfFinal(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	_, err := s.Cancel(t.Context(), newID(), at, []invalidation.Event{event(at, "invalidation.cancelled", "")})
	wantError(t, "cancel what is not there", err, invalidation.ErrNotFound)
	accept(t, s, asked(at, "apm"))
	c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	record(t, s, c.Lease, ended(c.Run, invalidation.RunSucceeded, at))
	want := get(t, s, c.Lease.InvalidationID)
	got, err := s.Cancel(t.Context(), want.ID, at, []invalidation.Event{event(at, "invalidation.cancelled", want.ID)})
	wantError(t, "cancel what is final", err, invalidation.ErrFinal)
	equal(t, "returned", got, want)
	equal(t, "read", get(t, s, want.ID), want)
	equal(t, "events", eventTypes(h.Events(t, s)), []string{"invalidation.accepted"})
}
