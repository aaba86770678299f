package invalidation_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// claiming counts how often runs are asked for.
type claiming struct {
	invalidation.Store
	n atomic.Int64
}

func (s *claiming) Claim(ctx context.Context, c invalidation.Claim) ([]invalidation.ClaimedRun, error) {
	if c.Target == "apm" {
		s.n.Add(1)
	}
	return s.Store.Claim(ctx, c)
}

// While one run goes ahead to see whether a dead target is back, the others, which are all due, wait for what becomes of
// it: nobody asks the journal for them over and over.
func TestWhoWaitsForATrialDoesNotSpin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var calls atomic.Int64 // since the breaker opened
		begun := time.Now()
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			if time.Since(begun) < 14*time.Second {
				return adapters.Result{}, adapters.Errorf(adapters.Unreachable, "no")
			}
			if calls.Add(1) == 1 {
				time.Sleep(time.Minute) // the trial
			}
			return ended(1)(ctx, req)
		})
		store := &claiming{}
		f.start(func(s invalidation.Store) invalidation.Store {
			store.Store = s
			return store
		})
		defer f.stop(time.Second)
		var invs []invalidation.Invalidation
		for i := range 10 {
			invs = append(invs, f.invalidate(user(fmt.Sprint("u", i)), 0))
		}
		time.Sleep(16 * time.Second) // the breaker's delay
		if n := calls.Load(); n != 1 {
			t.Fatalf("%d calls go ahead, want 1", n)
		}
		before := store.n.Load()
		time.Sleep(50 * time.Second)
		if n := store.n.Load() - before; n > 10 {
			t.Errorf("%d claims within 50 s in which nothing could be begun", n)
		}
		trial := time.Now()
		for _, inv := range invs {
			if inv = f.get(inv.ID, time.Minute); inv.State != invalidation.Succeeded {
				t.Errorf("after the target came back: %s, want SUCCEEDED", inv.State)
			}
		}
		if d := time.Since(trial); d > 12*time.Second {
			t.Errorf("those that waited for the trial were done %v later", d)
		}
	})
}

// The slots that were taken for runs whose acceptance turned out to be nobody's are given back.
func TestACommitWhoseAnswerIsLostKeepsNoSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.Targets[0].Concurrency = 1
		var journal *faulty
		f.start(func(s invalidation.Store) invalidation.Store {
			journal = &faulty{Store: s}
			return journal
		})
		defer f.stop(time.Minute)
		for range 3 {
			journal.set(invalidation.ErrCommitUnknown, nil)
			if inv := f.invalidate(user("alice"), 5*time.Minute); inv.State != invalidation.Succeeded {
				t.Fatalf("state = %s, want SUCCEEDED", inv.State)
			}
		}
	})
}
