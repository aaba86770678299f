package invalidation_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// jumpy starts an engine whose journal's clock can be put forward and back. The engine looks at that clock once a heartbeat,
// every ten seconds; until then the two disagree.
func jumpy(t *testing.T) (f *fixture, claims *claiming, jump func(time.Duration)) {
	f = newFixture(t, "apm")
	var ahead atomic.Int64
	f.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	claims = &claiming{}
	f.start(func(s invalidation.Store) invalidation.Store {
		claims.Store = s
		return claims
	})
	t.Cleanup(func() { f.stop(time.Second) })
	return f, claims, func(by time.Duration) { ahead.Add(int64(by)) }
}

func pauseAPM(t *testing.T, f *fixture) {
	t.Helper()
	if _, err := f.engine.PauseTarget(t.Context(), caller, "apm", "maintenance"); err != nil {
		t.Fatal(err)
	}
}

// The journal hands a run that has expired out as it is, without an attempt: it is not to be tried, whatever time the engine
// thinks it is.
func TestARunThatExpiredByTheJournalsClockIsNotTried(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, _, jump := jumpy(t)
		pauseAPM(t, f)
		inv := f.invalidate(user("alice"), 0)
		jump(48 * time.Hour)
		if _, err := f.engine.ResumeTarget(t.Context(), caller, "apm"); err != nil {
			t.Fatal(err)
		}
		r := f.get(inv.ID, time.Second).Runs[0]
		if n := f.scripts["apm"].calls.Load(); n > 0 || r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonExpired {
			t.Errorf("%d calls of the adapter, state %s, error %v; want none, FAILED, EXPIRED", n, r.State, r.Error)
		}
	})
}

// Nor is it claimed and given back over and over at a target to which nothing may be sent.
func TestExpiredByTheJournalsClockAtAPausedTarget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, claims, jump := jumpy(t)
		pauseAPM(t, f)
		inv := f.invalidate(user("alice"), 0)
		jump(48 * time.Hour)
		if inv = f.get(inv.ID, time.Minute); inv.State != invalidation.Failed {
			t.Errorf("state = %s, want FAILED", inv.State)
		}
		if n := claims.n.Load(); n > 20 {
			t.Errorf("%d claims within a minute", n)
		}
	})
}

// What the engine thinks is due, and the journal does not, is not asked for over and over.
func TestAClockThatIsPutBackDoesNotSpin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, claims, jump := jumpy(t)
		f.scripts["apm"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, &adapters.Error{Kind: adapters.Busy, Message: "no", RetryAfter: 33 * time.Second}
		})
		f.invalidate(user("alice"), 0)
		time.Sleep(32 * time.Second)
		jump(-20 * time.Second)
		before := claims.n.Load()
		time.Sleep(7 * time.Second)
		if n := claims.n.Load() - before; n > 5 {
			t.Errorf("%d claims within 7 s in which nothing was due", n)
		}
		f.scripts["apm"].answer(ended(1))
		time.Sleep(20 * time.Second)
		if n := f.scripts["apm"].calls.Load(); n != 2 {
			t.Errorf("%d calls of the adapter when it was due, want 2", n)
		}
	})
}
