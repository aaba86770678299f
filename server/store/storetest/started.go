package storetest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// recordOfStarted walks at random through what can become of runs that begin when they are accepted: answers, and whatever
// comes before them: leases that are prolonged, given back, taken over, over, or of somebody else. What Record returns is
// what is read afterwards; what is refused has changed nothing.
func recordOfStarted(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	passes := 2 // time that passes costs time, for some stores
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 2))
		a := asked(at, fmt.Sprint("a", seed), fmt.Sprint("b", seed), fmt.Sprint("c", seed))
		a.LeaseLength = h.Lease
		for i := range a.Invalidation.Runs {
			if i == 0 || r.IntN(4) > 0 {
				a.Start = append(a.Start, i)
			}
		}
		inv, leases := accept(t, s, a)
		held := map[int]invalidation.Lease{} // by run
		var gone []invalidation.Lease
		for _, l := range leases {
			held[l.Run] = l
		}
		for steps := 0; !inv.State.Final(); steps++ {
			if steps > 200 {
				t.Fatalf("seed %d: no end", seed)
			}
			i := r.IntN(len(inv.Runs))
			l, has := held[i]
			before := inv
			switch n := r.IntN(10); {
			case has && n < 4: // an answer
				run := inv.Runs[i]
				switch r.IntN(5) {
				case 0:
					run = retrying(run, now(t, s))
				case 1:
					run = ended(run, invalidation.RunFailed, odd(now(t, s)))
				default:
					run = ended(run, invalidation.RunSucceeded, odd(now(t, s)))
				}
				head := record(t, s, l, run)
				delete(held, i)
				gone = append(gone, l)
				inv = get(t, s, inv.ID)
				equal(t, fmt.Sprintf("seed %d: what Record returned", seed), head, invalidation.Head{State: inv.State, Revision: inv.Revision, CompleteTime: inv.CompleteTime})
				if inv.Runs[i].State != run.State || inv.Revision <= before.Revision {
					t.Fatalf("seed %d: %s after %s was recorded, revision %d after %d", seed, inv.Runs[i].State, run.State, inv.Revision, before.Revision)
				}
				consistent(t, inv)
			case !has && n < 5 && !inv.Runs[i].State.Final(): // claimed, or claimed again
				c := claimOne(t, s, invalidation.Claim{Target: inv.Runs[i].Target, LeaseLength: h.Lease})
				held[i] = c.Lease
				inv = get(t, s, inv.ID)
			case has && n == 5: // given back
				if err := s.Release(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				delete(held, i)
				gone = append(gone, l)
				inv = get(t, s, inv.ID)
			case has && n == 6: // prolonged; so it holds when the one it had first is over
				lost, err := s.Renew(t.Context(), []invalidation.Lease{l}, 3*h.Lease)
				if err != nil || len(lost) > 0 {
					t.Fatalf("seed %d: lost %v, error %v", seed, lost, err)
				}
			case n == 7 && len(gone) > 0: // the late answer of one that is not held any more
				l := gone[r.IntN(len(gone))]
				if held[l.Run] == l {
					continue
				}
				_, err := s.Record(t.Context(), l, ended(inv.Runs[l.Run], invalidation.RunSucceeded, now(t, s)), nil)
				wantError(t, fmt.Sprintf("seed %d: a lease that is gone", seed), err, invalidation.ErrLeaseLost)
				equal(t, "afterwards", get(t, s, inv.ID), inv)
			case has && n == 8: // somebody else's, or of another time
				other := l
				if r.IntN(2) == 0 {
					other.Owner = "somebody else"
				} else {
					other.Token++
				}
				_, err := s.Record(t.Context(), other, ended(inv.Runs[i], invalidation.RunSucceeded, now(t, s)), nil)
				wantError(t, fmt.Sprintf("seed %d: another lease", seed), err, invalidation.ErrLeaseLost)
				equal(t, "afterwards", get(t, s, inv.ID), inv)
			case has && n == 9 && passes > 0: // over
				passes--
				h.Pass(t, 4*h.Lease)
				for i, l := range held {
					_, err := s.Record(t.Context(), l, ended(inv.Runs[i], invalidation.RunSucceeded, now(t, s)), nil)
					wantError(t, fmt.Sprintf("seed %d: a lease that is over", seed), err, invalidation.ErrLeaseLost)
					gone = append(gone, l)
				}
				clear(held)
				equal(t, "afterwards", get(t, s, inv.ID), inv)
			}
		}
		equal(t, "a final invalidation", get(t, s, inv.ID), inv)
	}
}

// recordBesideWhatIsRefused records answers while others ask for what the journal refuses: none has to do with another.
func recordBesideWhatIsRefused(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	var wg sync.WaitGroup
	for range 40 {
		a := asked(at, "a", "b", "c")
		a.Start, a.LeaseLength = []int{0, 1, 2}, time.Hour
		inv, leases := accept(t, s, a)
		for _, l := range leases {
			wg.Go(func() {
				if _, err := s.Record(t.Context(), l, ended(inv.Runs[l.Run], invalidation.RunSucceeded, at), []invalidation.Event{event(at, "run.succeeded", inv.ID)}); err != nil {
					t.Errorf("Record: %v", err)
				}
			})
		}
		wg.Go(func() {
			wrong := asked(at, "a", "a") // half of it is written when the other half is refused
			if _, _, _, err := s.Accept(t.Context(), wrong); err == nil {
				t.Error("two runs at one target were accepted")
			}
		})
		wg.Wait()
		got := get(t, s, inv.ID)
		consistent(t, got)
		if got.State != invalidation.Succeeded || got.Revision != 4 {
			t.Fatalf("%s, revision %d", got.State, got.Revision)
		}
		equal(t, "events", len(eventsOf(t, h, s, inv.ID)), 4)
	}
}

// recordOfWhateverBegan has runs begin with each of the things that a run can have, and answers with each: what was
// recorded is there, and nothing of what was there before.
func recordOfWhateverBegan(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	things := []struct {
		name string
		set  func(*invalidation.Run)
	}{
		{"nothing", func(*invalidation.Run) {}},
		{"a count", func(r *invalidation.Run) { r.Counted, r.Count = true, 3 }},
		{"a minimum", func(r *invalidation.Run) { r.CountIsMinimum = true }},
		{"a verification", func(r *invalidation.Run) { r.Verification = adapters.ConfirmedByList }},
		{"what was covered", func(r *invalidation.Run) { r.Covered = []string{"saml"} }},
		{"a warning", func(r *invalidation.Run) {
			r.Warnings = []adapters.Warning{{Code: "NO_SESSION_MATCHED", Message: "nobody"}}
		}},
		{"sessions", func(r *invalidation.Run) { r.Sessions = []adapters.Session{{ID: "s"}} }},
		{"truncated sessions", func(r *invalidation.Run) { r.SessionsTruncated = true }},
		{"an operation", func(r *invalidation.Run) { r.Operation = "task 7" }},
		{"an error", func(r *invalidation.Run) { r.Error = &invalidation.RunError{Reason: "EXPIRED", Message: "late"} }},
		{"retries", func(r *invalidation.Run) { r.Retry.Failures = 2 }},
		{"what to resume", func(r *invalidation.Run) { r.Resume = []byte(`{"at":1}`) }},
		{"a next attempt", func(r *invalidation.Run) { r.NextAttemptTime = at.Add(time.Minute) }},
		{"another attempt", func(r *invalidation.Run) { r.Attempts = 2 }},
		{"another beginning", func(r *invalidation.Run) { r.StartTime = at.Add(-time.Minute) }},
	}
	for _, before := range things {
		for _, after := range things {
			a := asked(at, "a")
			a.Start, a.LeaseLength = []int{0}, time.Hour
			before.set(&a.Invalidation.Runs[0])
			inv, leases := accept(t, s, a)
			equal(t, "accepted with "+before.name, get(t, s, inv.ID), inv)
			run := pending(at, "a")
			run.Attempts, run.StartTime = 1, inv.Runs[0].StartTime
			after.set(&run)
			if run.NextAttemptTime.IsZero() {
				run = ended(run, invalidation.RunSucceeded, at)
			} else {
				run = retrying(run, run.NextAttemptTime)
			}
			record(t, s, leases[0], run)
			equal(t, "recorded with "+after.name+" after "+before.name, get(t, s, inv.ID).Runs[0], run)
			if t.Failed() {
				return
			}
		}
	}
}
