package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

func onChangeAfterCommit(t *testing.T, h Harness) {
	s := h.Open(t)
	other := h.process(t, s)
	at := now(t, s)
	type news struct {
		id  string
		inv invalidation.Invalidation
		err error
	}
	told := make(chan news, 1000)
	s.OnChange(func(c invalidation.Change) {
		// What is told of is there to be read, and reading does not wait for the one who tells.
		n := news{id: c.ID}
		if c.ID != "" {
			n.inv, n.err = s.Get(context.Background(), c.ID)
		}
		if n.inv.Revision < c.Revision {
			n.err = fmt.Errorf("revision %d was told, and %d is there", c.Revision, n.inv.Revision)
		}
		told <- n
	})
	// until waits for news of id that satisfies f; the news may come several times, or of several changes at once.
	until := func(what, id string, f func(invalidation.Invalidation) bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case n := <-told:
				if n.err != nil {
					t.Errorf("%s: Get(%s): %v", what, n.id, n.err)
				}
				if n.id == id && f(n.inv) {
					return
				}
			case <-deadline:
				t.Fatalf("%s: no news", what)
			}
		}
	}
	inv, _ := accept(t, other, asked(at, "apm"))
	until("accept", inv.ID, func(i invalidation.Invalidation) bool { return i.Revision == inv.Revision })
	c := claimOne(t, other, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	until("claim", inv.ID, func(i invalidation.Invalidation) bool { return i.Runs[0].Attempts == 1 })
	if err := other.Release(t.Context(), c.Lease); err != nil {
		t.Fatal(err)
	}
	until("release", inv.ID, func(i invalidation.Invalidation) bool { return i.Runs[0].Attempts == 0 })
	c = claimOne(t, other, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	head := record(t, other, c.Lease, waiting(c.Run, at))
	until("record", inv.ID, func(i invalidation.Invalidation) bool { return i.Revision >= head.Revision })
	if _, err := other.Cancel(t.Context(), inv.ID, at, nil); err != nil {
		t.Fatal(err)
	}
	until("cancel", inv.ID, func(i invalidation.Invalidation) bool { return i.State == invalidation.Cancelled })
	if err := other.Pause(t.Context(), invalidation.Pause{Target: "apm", Caller: helpdesk, Time: at}, nil); err != nil {
		t.Fatal(err)
	}
	until("pause", "", func(invalidation.Invalidation) bool { return true })
	if err := other.Resume(t.Context(), "apm", nil); err != nil {
		t.Fatal(err)
	}
	until("resume", "", func(invalidation.Invalidation) bool { return true })
}

// every calls each method of a store that has one invalidation with a leased run; it returns their errors by name.
func every(ctx context.Context, s invalidation.Store, id string, l invalidation.Lease, r invalidation.Run, at time.Time) map[string]error {
	errs := map[string]error{}
	_, errs["Now"] = s.Now(ctx)
	_, _, _, errs["Accept"] = s.Accept(ctx, asked(at, "apm"))
	_, errs["Get"] = s.Get(ctx, id)
	_, _, errs["List"] = s.List(ctx, invalidation.Query{Limit: 1})
	_, errs["Claim"] = s.Claim(ctx, invalidation.Claim{Target: "apm", Owner: owner, Limit: 1, LeaseLength: time.Hour})
	_, _, errs["NextDue"] = s.NextDue(ctx, "apm")
	_, errs["Record"] = s.Record(ctx, l, r, nil)
	_, errs["Renew"] = s.Renew(ctx, []invalidation.Lease{l}, time.Hour)
	errs["Release"] = s.Release(ctx, l)
	_, errs["Cancel"] = s.Cancel(ctx, id, at, nil)
	_, errs["Unfinished"] = s.Unfinished(ctx)
	_, errs["Pauses"] = s.Pauses(ctx)
	errs["Pause"] = s.Pause(ctx, invalidation.Pause{Target: "apm", Time: at}, nil)
	_, errs["Hasten"] = s.Hasten(ctx, "apm", adapters.ReasonExpired)
	errs["Resume"] = s.Resume(ctx, "apm", nil)
	errs["Audit"] = s.Audit(ctx, []invalidation.Event{event(at, "x", "")})
	_, errs["Prune"] = s.Prune(ctx, at, 1)
	_, errs["PruneAudit"] = s.PruneAudit(ctx, at, 1)
	_, errs["AcquireSlots"] = s.AcquireSlots(ctx, "apm", owner, 1, 1, time.Hour)
	slot := invalidation.Slot{Target: "apm", Owner: owner, Token: 1}
	_, _, errs["RenewSlots"] = s.RenewSlots(ctx, []invalidation.Slot{slot}, time.Hour)
	errs["ReleaseSlots"] = s.ReleaseSlots(ctx, []invalidation.Slot{slot})
	return errs
}

func contextEnded(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "apm", "kibana")
	a.Start, a.LeaseLength = []int{0}, time.Hour
	inv, leases := accept(t, s, a)
	events := h.Events(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range every(ctx, s, inv.ID, leases[0], ended(inv.Runs[0], invalidation.RunSucceeded, at), at) {
		if !errors.Is(err, context.Canceled) || !errors.Is(err, invalidation.ErrUnavailable) {
			t.Errorf("%s with a cancelled context: %v", name, err)
		}
	}
	equal(t, "the invalidation", get(t, s, inv.ID), inv)
	equal(t, "events", h.Events(t, s), events)
	if p, err := s.Pauses(t.Context()); err != nil || len(p) != 0 {
		t.Errorf("pauses %v, %v", p, err)
	}
}

func closeEnds(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "apm", "kibana")
	a.Start, a.LeaseLength = []int{0}, time.Hour
	inv, leases := accept(t, s, a)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range every(t.Context(), s, inv.ID, leases[0], ended(inv.Runs[0], invalidation.RunSucceeded, at), at) {
		if !errors.Is(err, invalidation.ErrUnavailable) {
			t.Errorf("%s of a closed store: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

// crash runs change on a journal in which before has accepted an invalidation, and checks that every crash leaves what was
// there before, or all of what is there afterwards, with its events; and that once the call has returned it is the latter.
func crash(t *testing.T, h Harness, prepare func(invalidation.Store), id func() string, change func(invalidation.Store) error) {
	t.Helper()
	type content struct {
		Inv    invalidation.Invalidation
		Found  bool
		Events []string
	}
	read := func(s invalidation.Store) content {
		var c content
		var err error
		if c.Inv, err = s.Get(t.Context(), id()); err == nil {
			c.Found = true
			consistent(t, c.Inv)
		} else {
			wantError(t, "Get after a crash", err, invalidation.ErrNotFound)
		}
		c.Events = eventTypes(h.Events(t, s))
		return c
	}
	var before, after content
	left := map[string]int{}
	h.Crash(t, func(s invalidation.Store) {
		prepare(s)
		before = read(s)
	}, func(s invalidation.Store) error {
		if err := change(s); err != nil {
			return err
		}
		after = read(s)
		return nil
	}, func(s invalidation.Store, returned bool) {
		switch got := read(s); {
		case reflect.DeepEqual(got, after) && returned:
			left["all of it"]++
		case reflect.DeepEqual(got, after):
			left["all of it, unsaid"]++
		case reflect.DeepEqual(got, before) && !returned:
			left["nothing"]++
		default:
			t.Errorf("a crash (after the call had returned: %t) left\n     %s\nfrom %s\nto   %s", returned, show(got), show(before), show(after))
		}
	})
	if left["nothing"] == 0 || left["all of it"] == 0 {
		t.Errorf("crashes left %v; the law needs points before and after the commit", left)
	}
}

func crashAccept(t *testing.T, h Harness) {
	id := newID()
	crash(t, h, func(invalidation.Store) {}, func() string { return id }, func(s invalidation.Store) error {
		a := asked(now(t, s), "apm", "kibana", "storage")
		a.Invalidation.ID = id
		a.Invalidation.Call.Labels = map[string]string{"job": "x"}
		a.RequestID, a.Digest = "r", []byte("d")
		a.Start, a.LeaseLength = []int{0, 2}, time.Hour
		_, _, _, err := s.Accept(t.Context(), a)
		return err
	})
}

func crashClaim(t *testing.T, h Harness) {
	var id string
	crash(t, h, func(s invalidation.Store) {
		inv, _ := accept(t, s, asked(now(t, s), "apm", "kibana"))
		id = inv.ID
	}, func() string { return id }, func(s invalidation.Store) error {
		_, err := s.Claim(t.Context(), invalidation.Claim{Target: "apm", Owner: owner, Limit: 5, LeaseLength: time.Hour})
		return err
	})
}

func crashRecord(t *testing.T, h Harness) {
	var id string
	var c invalidation.ClaimedRun
	crash(t, h, func(s invalidation.Store) {
		inv, _ := accept(t, s, asked(now(t, s), "apm"))
		id = inv.ID
		c = claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
	}, func() string { return id }, func(s invalidation.Store) error {
		at := now(t, s)
		r := ended(c.Run, invalidation.RunSucceeded, at)
		r.Counted, r.Count, r.Covered = true, 3, []string{"saml"}
		_, err := s.Record(t.Context(), c.Lease, r, []invalidation.Event{event(at, "run.succeeded", id), event(at, "invalidation.ended", id)})
		return err
	})
}

func crashCancel(t *testing.T, h Harness) {
	var id string
	crash(t, h, func(s invalidation.Store) {
		a := asked(now(t, s), "apm", "kibana", "storage")
		a.Start, a.LeaseLength = []int{1}, time.Hour
		inv, _ := accept(t, s, a)
		id = inv.ID
	}, func() string { return id }, func(s invalidation.Store) error {
		at := now(t, s)
		_, err := s.Cancel(t.Context(), id, at, []invalidation.Event{event(at, "invalidation.cancelled", id)})
		return err
	})
}

// loadEndsConsistent lets many callers and workers at a journal at once; in the end everything is final, once, and told.
func loadEndsConsistent(t *testing.T, h Harness) {
	s := h.Open(t)
	stores := []invalidation.Store{s, h.process(t, s)}
	at := now(t, s)
	const callers, calls = 8, 10
	targets := []string{"a", "b", "c"}
	var callersDone, workersDone sync.WaitGroup
	accepted := make(chan string, callers*calls)
	for n := range callers {
		callersDone.Go(func() {
			for m := range calls {
				a := asked(at, targets...)
				a.RequestID, a.Digest = fmt.Sprintf("%d-%d", n/2, m), []byte("d") // two callers ask the same
				inv, replayed, _, err := stores[n%2].Accept(t.Context(), a)
				if err != nil {
					t.Errorf("Accept: %v", err)
					return
				}
				if !replayed {
					accepted <- inv.ID
				}
				if (n/2+m)%5 == 0 {
					_, err := stores[m%2].Cancel(t.Context(), inv.ID, at, []invalidation.Event{event(at, "invalidation.cancelled", inv.ID)})
					if err != nil && !errors.Is(err, invalidation.ErrFinal) {
						t.Errorf("Cancel: %v", err)
					}
				}
			}
		})
	}
	stop := make(chan struct{})
	for n := range 6 {
		workersDone.Go(func() {
			for last := false; ; {
				claimed, err := stores[n%2].Claim(t.Context(), invalidation.Claim{Target: targets[n%3], Owner: fmt.Sprint(n), Limit: 3, LeaseLength: time.Hour})
				if err != nil {
					t.Errorf("Claim: %v", err)
					return
				}
				for i, c := range claimed {
					r := ended(c.Run, invalidation.RunSucceeded, at)
					if i == 1 && c.Run.Attempts < 3 {
						r = retrying(c.Run, at)
					}
					if i == 2 {
						if err := stores[n%2].Release(t.Context(), c.Lease); err != nil && !errors.Is(err, invalidation.ErrLeaseLost) {
							t.Errorf("Release: %v", err)
						}
						continue
					}
					_, err := stores[n%2].Record(t.Context(), c.Lease, r, []invalidation.Event{event(at, "run."+string(r.State), c.Lease.InvalidationID)})
					if err != nil && !errors.Is(err, invalidation.ErrLeaseLost) {
						t.Errorf("Record: %v", err)
					}
				}
				if last && len(claimed) == 0 {
					return
				}
				select {
				case <-stop:
					last = true
				default:
				}
			}
		})
	}
	callersDone.Wait()
	close(stop)
	workersDone.Wait()
	close(accepted)
	events := h.Events(t, s)
	n := 0
	for id := range accepted {
		n++
		inv := get(t, s, id)
		consistent(t, inv)
		if !inv.State.Final() {
			t.Errorf("%s is %s: %s", id, inv.State, show(inv))
		}
		succeeded := 0
		for _, r := range inv.Runs {
			if r.State == invalidation.RunSucceeded {
				succeeded++
			}
		}
		types := eventTypes(slices.DeleteFunc(slices.Clone(events), func(e invalidation.Event) bool { return e.InvalidationID != id }))
		told := map[string]int{}
		for _, typ := range types {
			told[typ]++
		}
		if told["invalidation.accepted"] != 1 || told["run.SUCCEEDED"] != succeeded {
			t.Errorf("%s: %d runs succeeded, events %v", id, succeeded, types)
		}
	}
	if n != callers*calls/2 {
		t.Errorf("%d invalidations were accepted, want %d", n, callers*calls/2)
	}
	if left, err := s.Unfinished(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("unfinished: %v, %v", left, err)
	}
}
