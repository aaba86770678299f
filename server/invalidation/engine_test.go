package invalidation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// bubble runs f in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// sleep lets virtual time pass, and everything that happens in it.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestInvalidateAnswersWithTheFinalState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.scripts["kibana"].answer(ended(2))
		f.start(nil)
		defer f.stop(time.Minute)
		inv := f.invalidate(user("alice"), time.Minute)
		if inv.State != invalidation.Succeeded {
			t.Fatalf("state = %s, want SUCCEEDED", inv.State)
		}
		if n, known, minimum := inv.InvalidatedCount(); n != 3 || !known || minimum {
			t.Errorf("count = %d, known %v, minimum %v; want exactly 3", n, known, minimum)
		}
		for _, r := range inv.Runs {
			if r.Attempts != 1 || r.Verification != adapters.ConfirmedByList || r.CompleteTime.IsZero() || r.Open {
				t.Errorf("run = %+v, want one attempt, confirmed and complete", r)
			}
		}
		if got := f.get(inv.ID, 0); got.Revision != inv.Revision || got.State != inv.State {
			t.Errorf("read again: revision %d, state %s; want %d, %s", got.Revision, got.State, inv.Revision, inv.State)
		}
	})
}

func TestInvalidateWaitsNoLongerThanAsked(t *testing.T) {
	for _, tc := range []struct {
		name     string
		wait     time.Duration
		deadline time.Duration
		want     time.Duration
	}{
		{"WaitTimeout", 3 * time.Second, time.Hour, 3 * time.Second},
		{"NotAtAll", 0, time.Hour, 0},
		{"ShortlyBeforeTheCallsDeadline", time.Minute, 5 * time.Second, 4500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFixture(t, "apm")
				f.scripts["apm"].answer(hang)
				f.start(nil)
				defer f.stop(time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), tc.deadline)
				defer cancel()
				begin := time.Now()
				inv, _, err := f.engine.Invalidate(ctx, invalidation.Request{Caller: caller, Call: user("alice"), Wait: tc.wait})
				if err != nil || inv.State != invalidation.Running {
					t.Fatalf("Invalidate = %s, %v; want RUNNING, nil", inv.State, err)
				}
				if got := time.Since(begin); got != tc.want {
					t.Errorf("waited %v, want %v", got, tc.want)
				}
			})
		})
	}
}

func TestAcceptanceOutlivesTheCaller(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		release := make(chan struct{})
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			<-release
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		var inv invalidation.Invalidation
		var wg sync.WaitGroup
		wg.Go(func() {
			inv, _, _ = f.engine.Invalidate(ctx, invalidation.Request{Caller: caller, Call: user("alice"), Wait: time.Minute})
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		close(release)
		if got := f.get(inv.ID, time.Minute); got.State != invalidation.Succeeded {
			t.Errorf("state after the caller left = %s, want SUCCEEDED", got.State)
		}
	})
}

func TestAFailedAttemptIsRetriedUntilItSucceeds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var at []time.Duration
		begin := time.Now()
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			at = append(at, time.Since(begin).Round(time.Millisecond))
			switch len(at) {
			case 1:
				return adapters.Result{}, adapters.Errorf(adapters.Unreachable, "no")
			case 2:
				return adapters.Result{}, &adapters.Error{Kind: adapters.Busy, Message: "no", RetryAfter: time.Minute}
			}
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Minute)
		inv := f.invalidate(user("alice"), 5*time.Minute)
		if inv.State != invalidation.Succeeded || inv.Runs[0].Attempts != 3 || inv.Runs[0].CountIsMinimum {
			t.Errorf("state %s after %d attempts, minimum %v; want SUCCEEDED after 3, exact", inv.State, inv.Runs[0].Attempts, inv.Runs[0].CountIsMinimum)
		}
		// Half of 1 s, and what the target asked for.
		want := []time.Duration{0, 500 * time.Millisecond, 60500 * time.Millisecond}
		if !slices.Equal(at, want) {
			t.Errorf("attempts at %v, want %v", at, want)
		}
	})
}

func TestNothingIsSentAfterTheExpireTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var last time.Time
		f.scripts["apm"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			last = time.Now()
			return adapters.Result{}, adapters.Errorf(adapters.Unreachable, "no")
		})
		f.start(nil)
		defer f.stop(time.Minute)
		call := user("alice")
		call.RetryFor = 10 * time.Minute
		begin := time.Now()
		inv := f.invalidate(call, 0)
		sleep(9 * time.Minute)
		if got := f.get(inv.ID, 0); got.State != invalidation.Running {
			t.Fatalf("state before the expire time = %s, want RUNNING", got.State)
		}
		sleep(2 * time.Minute)
		inv = f.get(inv.ID, 0)
		if r := inv.Runs[0]; r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonExpired {
			t.Errorf("run = %s, %+v; want FAILED, EXPIRED", r.State, r.Error)
		}
		if !last.Before(begin.Add(call.RetryFor)) {
			t.Errorf("sent %v after acceptance, expire time was %v", last.Sub(begin), call.RetryFor)
		}
	})
}

func TestTheExpireTimeHoldsAcrossARestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.scripts["apm"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, adapters.Errorf(adapters.Unreachable, "no")
		})
		f.start(nil)
		call := user("alice")
		call.RetryFor = time.Minute
		inv := f.invalidate(call, 0)
		sleep(time.Second)
		f.stop(time.Second)
		sleep(time.Hour)
		f.scripts["apm"].calls.Store(0)
		f.start(nil)
		defer f.stop(time.Second)
		inv = f.get(inv.ID, time.Minute)
		if r := inv.Runs[0]; r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonExpired {
			t.Errorf("run = %s, %+v; want FAILED, EXPIRED", r.State, r.Error)
		}
		if n := f.scripts["apm"].calls.Load(); n != 0 {
			t.Errorf("the adapter was called %d times after the expire time", n)
		}
	})
}

func TestAnAttemptCannotOutliveTheExpireTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var fenced error
		f.scripts["apm"].answer(func(ctx context.Context, _ adapters.Request) (adapters.Result, error) {
			time.Sleep(3 * time.Second)
			fenced = adapters.Fence(ctx)
			return adapters.Result{}, fenced
		})
		f.start(nil)
		defer f.stop(time.Second)
		call := user("alice")
		call.RetryFor = 2 * time.Second
		inv := f.invalidate(call, time.Minute)
		if fenced == nil {
			t.Error("the fence let a request through after the expire time")
		}
		if r := inv.Runs[0]; r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonExpired {
			t.Errorf("run = %s, %+v; want FAILED, EXPIRED", r.State, r.Error)
		}
	})
}

// A crash in the middle of a fan-out: one run was confirmed, one was under way, one was waiting.
func TestACrashInTheMiddleIsResumed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana", "storage")
		f.scripts["kibana"].answer(hang)
		resume := json.RawMessage(`{"task":"t1"}`)
		f.scripts["storage"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			if err := adapters.Fence(ctx); err != nil {
				return adapters.Result{}, err
			}
			return adapters.Result{Counted: true, Count: 5, Pending: &adapters.Pending{After: time.Minute, Resume: resume}}, nil
		})
		f.start(nil)
		inv := f.invalidate(user("alice"), time.Second)
		f.crash()

		var asked adapters.Request
		f.scripts["kibana"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			asked = req
			return ended(0)(ctx, req)
		})
		var resumed adapters.Request
		f.scripts["storage"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			resumed = req
			return ended(2)(ctx, req)
		})
		f.scripts["apm"].calls.Store(0)
		f.start(nil)
		defer f.stop(time.Minute)
		inv = f.get(inv.ID, 5*time.Minute)
		if inv.State != invalidation.Succeeded {
			t.Fatalf("state = %s, want SUCCEEDED", inv.State)
		}
		if n := f.scripts["apm"].calls.Load(); n != 0 {
			t.Errorf("the confirmed run was repeated %d times", n)
		}
		if r := inv.Run("kibana"); !r.CountIsMinimum || r.Attempts != 2 || !asked.MayHaveSent {
			t.Errorf("the run whose answer was lost: minimum %v, attempts %d, told so %v; want true, 2, true", r.CountIsMinimum, r.Attempts, asked.MayHaveSent)
		}
		if r := inv.Run("storage"); r.CountIsMinimum || r.Count != 7 || r.Attempts != 1 || string(resumed.Resume) != string(resume) || resumed.MayHaveSent {
			t.Errorf("the run that waited: minimum %v, count %d, attempts %d, resumed with %+v; want false, 7, 1 and its resume", r.CountIsMinimum, r.Count, r.Attempts, resumed)
		}
		if _, known, minimum := inv.InvalidatedCount(); !known || !minimum {
			t.Errorf("the sum: known %v, minimum %v; want both", known, minimum)
		}
	})
}

func TestAWaitingRunHoldsNoSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.Targets[0].Concurrency = 1
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			if req.Selector.Users[0].Name == "slow" && req.Resume == nil {
				return adapters.Result{Pending: &adapters.Pending{After: time.Hour, Resume: json.RawMessage(`1`)}}, adapters.Fence(ctx)
			}
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Minute)
		slow := f.invalidate(user("slow"), time.Second)
		if quick := f.invalidate(user("quick"), time.Second); quick.State != invalidation.Succeeded {
			t.Errorf("a run behind a waiting one: %s, want SUCCEEDED", quick.State)
		}
		sleep(time.Hour)
		if slow = f.get(slow.ID, time.Second); slow.State != invalidation.Succeeded || slow.Runs[0].Attempts != 1 {
			t.Errorf("the waiting run: %s after %d attempts; want SUCCEEDED after 1", slow.State, slow.Runs[0].Attempts)
		}
	})
}

func TestConcurrencyIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.Targets[0].Concurrency = 3
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			time.Sleep(time.Second)
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Minute)
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				if inv := f.invalidate(user(fmt.Sprint("u", i)), 5*time.Minute); inv.State != invalidation.Succeeded {
					t.Errorf("state = %s, want SUCCEEDED", inv.State)
				}
			})
		}
		wg.Wait()
		if got := f.scripts["apm"].most; got != 3 {
			t.Errorf("at most %d at once, want 3", got)
		}
		if took := time.Since(begin); took > 12*time.Second {
			t.Errorf("30 runs of 1 s, 3 at once, took %v: slots stood empty", took)
		}
	})
}

func TestNormalOvertakesBulkWhichDoesNotStarve(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.Targets[0].Concurrency = 1
		var mu sync.Mutex
		var order []string
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			time.Sleep(time.Second)
			mu.Lock()
			order = append(order, req.Selector.Users[0].Name)
			mu.Unlock()
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Minute)
		for i := range 40 {
			call := user(fmt.Sprintf("bulk%02d", i))
			call.Priority = invalidation.PriorityBulk
			f.invalidate(call, 0)
		}
		for i := range 40 {
			f.invalidate(user(fmt.Sprintf("normal%02d", i)), 0)
		}
		sleep(5 * time.Second)
		// Normal calls keep coming; one that comes now overtakes what is left of the bulk.
		begin := time.Now()
		f.invalidate(user("late"), 5*time.Minute)
		if took := time.Since(begin); took > 50*time.Second {
			t.Errorf("a normal run behind 40 bulk ones took %v", took)
		}
		sleep(5 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(order) != 81 {
			t.Fatalf("%d runs done, want 81", len(order))
		}
		late := slices.Index(order, "late")
		bulk := 0
		for _, name := range order[:late] {
			if name[:4] == "bulk" {
				bulk++
			}
		}
		if bulk == 0 || bulk > 15 {
			t.Errorf("%d bulk runs before the last normal one, want a few: it shall neither starve nor be in the way", bulk)
		}
	})
}

func TestAPausedTargetGetsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		if _, err := f.engine.PauseTarget(t.Context(), caller, "apm", "maintenance"); err != nil {
			t.Fatal(err)
		}
		waits := f.invalidate(user("alice"), time.Minute)
		call := user("bob")
		call.RetryFor = 10 * time.Minute
		expires := f.invalidate(call, 0)
		// A restart does not end a pause.
		f.stop(time.Second)
		f.start(nil)
		defer f.stop(time.Second)
		sleep(time.Hour)
		if n := f.scripts["apm"].calls.Load(); n != 0 {
			t.Fatalf("the adapter was called %d times while the target was paused", n)
		}
		if r := f.get(expires.ID, 0).Runs[0]; r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonExpired {
			t.Errorf("a run that expired meanwhile: %s, %+v; want FAILED, EXPIRED", r.State, r.Error)
		}
		if s, _ := f.engine.Targets(t.Context(), caller); s[0].State != invalidation.TargetPaused || s[0].Pause.Reason != "maintenance" {
			t.Errorf("status = %+v, want PAUSED with its reason", s[0])
		}
		if _, err := f.engine.ResumeTarget(t.Context(), caller, "apm"); err != nil {
			t.Fatal(err)
		}
		if inv := f.get(waits.ID, time.Minute); inv.State != invalidation.Succeeded || inv.Runs[0].Attempts != 1 {
			t.Errorf("after the pause: %s after %d attempts, want SUCCEEDED after 1", inv.State, inv.Runs[0].Attempts)
		}
	})
}

func TestAPauseStopsAnAttemptBeforeItsNextRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		passed := 0
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			for passed < 10 {
				if err := adapters.Fence(ctx); err != nil {
					return adapters.Result{Counted: true, Count: passed}, err
				}
				passed++
				time.Sleep(time.Second)
			}
			return adapters.Result{Counted: true, Verification: adapters.ConfirmedByList}, nil
		})
		f.start(nil)
		defer f.stop(time.Second)
		inv := f.invalidate(user("alice"), 2500*time.Millisecond)
		if _, err := f.engine.PauseTarget(t.Context(), caller, "apm", ""); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		if passed != 3 {
			t.Errorf("%d requests were sent, want the 3 from before the pause", passed)
		}
		if r := f.get(inv.ID, 0).Runs[0]; r.State != invalidation.RunRetrying || r.Count != 3 {
			t.Errorf("run = %s, count %d; want RETRYING, 3", r.State, r.Count)
		}
	})
}

func TestRefusedCredentialsParkTheTarget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var bad atomic.Bool
		bad.Store(true)
		var mu sync.Mutex
		var at []time.Duration
		begin := time.Now()
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			mu.Lock()
			at = append(at, time.Since(begin).Round(time.Second))
			mu.Unlock()
			if bad.Load() {
				return adapters.Result{}, adapters.Errorf(adapters.Credentials, "no")
			}
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Second)
		var invs []invalidation.Invalidation
		for i := range 5 {
			invs = append(invs, f.invalidate(user(fmt.Sprint("u", i)), time.Second))
		}
		if s, _ := f.engine.Targets(t.Context(), caller); s[0].State != invalidation.TargetParked {
			t.Errorf("target is %s, want PARKED", s[0].State)
		}
		sleep(40 * time.Minute)
		mu.Lock()
		if len(at) != 3 {
			t.Errorf("in 40 min the account was used at %v, want once and then one try in 15 min", at)
		}
		mu.Unlock()
		bad.Store(false)
		sleep(15 * time.Minute)
		for _, inv := range invs {
			if inv = f.get(inv.ID, time.Minute); inv.State != invalidation.Succeeded {
				t.Errorf("after the credentials were mended: %s, want SUCCEEDED", inv.State)
			}
		}
	})
}

func TestADeadTargetIsLeftAloneByItsBreaker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		var dead atomic.Bool
		dead.Store(true)
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			if dead.Load() {
				return adapters.Result{}, adapters.Errorf(adapters.Unreachable, "no")
			}
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Second)
		var invs []invalidation.Invalidation
		for i := range 50 {
			invs = append(invs, f.invalidate(user(fmt.Sprint("u", i)), 0))
		}
		sleep(time.Minute)
		// 5 failures open it; then one run each 15 s goes ahead, and the few that were claimed together before.
		if n := f.scripts["apm"].calls.Load(); n > 5+4+5 {
			t.Errorf("a dead target was asked %d times in a minute", n)
		}
		if n := f.scripts["kibana"].calls.Load(); n != 50 {
			t.Errorf("the other target was asked %d times, want 50: a dead one never slows the others", n)
		}
		dead.Store(false)
		sleep(10 * time.Minute)
		for _, inv := range invs {
			if inv = f.get(inv.ID, 0); inv.State != invalidation.Succeeded {
				t.Errorf("after the target came back: %s, want SUCCEEDED", inv.State)
			}
		}
	})
}

func TestCancelBreaksOffWhatIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		broken := false
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			defer func() { broken = true }()
			return hang(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Second)
		inv := f.invalidate(user("alice"), time.Second)
		inv, err := f.engine.Cancel(t.Context(), caller, inv.ID)
		if err != nil {
			t.Fatal(err)
		}
		if inv.State != invalidation.PartiallySucceeded {
			t.Errorf("state = %s, want PARTIALLY_SUCCEEDED: the other target had confirmed", inv.State)
		}
		r := inv.Run("apm")
		if r.State != invalidation.RunCancelled || !r.CountIsMinimum || !slices.Contains(warnings(*r), adapters.ReasonOutcomeUnknown) {
			t.Errorf("run = %s, minimum %v, warnings %v; want CANCELLED, a minimum, OUTCOME_UNKNOWN", r.State, r.CountIsMinimum, warnings(*r))
		}
		synctest.Wait()
		if !broken {
			t.Error("the attempt goes on")
		}
		sleep(time.Hour)
		if later := f.get(inv.ID, 0); later.Revision != inv.Revision {
			t.Errorf("a final invalidation changed: revision %d, was %d", later.Revision, inv.Revision)
		}
		_, err = f.engine.Cancel(t.Context(), caller, inv.ID)
		wantCallError(t, err, invalidation.FailedPrecondition, invalidation.ReasonAlreadyFinal)
	})
}

func TestCancelByLabel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		defer f.stop(time.Second)
		labelled := func(id, job string) invalidation.Invalidation {
			call := user(id)
			call.Labels = map[string]string{"job": job}
			return f.invalidate(call, time.Second)
		}
		done := labelled("alice", "a")
		if _, err := f.engine.PauseTarget(t.Context(), caller, "apm", ""); err != nil {
			t.Fatal(err)
		}
		stop, other := labelled("bob", "a"), labelled("carol", "b")
		sum, err := f.engine.CancelByLabel(t.Context(), caller, "job", "a")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sum.Cancelled, []string{stop.ID}) || sum.AlreadyFinal != 1 {
			t.Errorf("summary = %+v, want only %s cancelled, 1 final before", sum, stop.ID)
		}
		for id, want := range map[string]invalidation.State{done.ID: invalidation.Succeeded, stop.ID: invalidation.Cancelled, other.ID: invalidation.Running} {
			if got := f.get(id, 0).State; got != want {
				t.Errorf("%s: %s, want %s", id, got, want)
			}
		}
	})
}

func TestATargetThatChangedOrIsGoneGetsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.start(nil)
		for _, name := range []string{"apm", "kibana"} {
			if _, err := f.engine.PauseTarget(t.Context(), caller, name, ""); err != nil {
				t.Fatal(err)
			}
		}
		inv := f.invalidate(user("alice"), time.Second)
		f.stop(time.Second)
		f.scripts["apm"].calls.Store(0)
		f.scripts["kibana"].calls.Store(0)
		f.options.Targets = f.options.Targets[:1]
		f.options.Targets[0].Endpoint = "https://elsewhere"
		f.start(nil)
		defer f.stop(time.Second)
		if _, err := f.engine.ResumeTarget(t.Context(), caller, "apm"); err != nil {
			t.Fatal(err)
		}
		inv = f.get(inv.ID, time.Minute)
		if r := inv.Run("apm"); r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonTargetChanged {
			t.Errorf("the re-pointed target's run: %s, %+v; want FAILED, TARGET_CHANGED", r.State, r.Error)
		}
		if r := inv.Run("kibana"); r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonTargetRemoved {
			t.Errorf("the removed target's run: %s, %+v; want FAILED, TARGET_REMOVED", r.State, r.Error)
		}
		if n := f.scripts["apm"].calls.Load() + f.scripts["kibana"].calls.Load(); n != 0 {
			t.Errorf("adapters were called %d times", n)
		}
	})
}

func TestARequestIDIsOneInvalidation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		defer f.stop(time.Second)
		req := invalidation.Request{Caller: caller, Call: user("alice"), RequestID: "0190b7a2-1111-7000-8000-000000000000", Wait: time.Second}
		first, replayed, err := f.engine.Invalidate(t.Context(), req)
		if err != nil || replayed {
			t.Fatalf("first: replayed %v, %v", replayed, err)
		}
		req.Call.OnBehalfOf = "somebody else" // not part of the contents
		again, replayed, err := f.engine.Invalidate(t.Context(), req)
		if err != nil || !replayed || again.ID != first.ID {
			t.Errorf("again: %s, replayed %v, %v; want %s, true", again.ID, replayed, err, first.ID)
		}
		for name, change := range map[string]func(*invalidation.Call){
			"selector": func(c *invalidation.Call) { c.Selector.User = &invalidation.User{ID: "bob"} },
			"targets":  func(c *invalidation.Call) { c.Targets = []string{"apm"} },
			"reason":   func(c *invalidation.Call) { c.Reason = "other" },
			"labels":   func(c *invalidation.Call) { c.Labels = map[string]string{"a": "b"} },
			"priority": func(c *invalidation.Call) { c.Priority = invalidation.PriorityBulk },
			"retryFor": func(c *invalidation.Call) { c.RetryFor = time.Minute },
			"allow":    func(c *invalidation.Call) { c.AllowUnsupported = true },
			"confirm":  func(c *invalidation.Call) { c.ConfirmBroad = true },
		} {
			other := req
			change(&other.Call)
			_, _, err := f.engine.Invalidate(t.Context(), other)
			t.Log(name)
			wantCallError(t, err, invalidation.AlreadyExists, invalidation.ReasonRequestReused)
		}
		req.Caller.Name = "another"
		if other, replayed, err := f.engine.Invalidate(t.Context(), req); err != nil || replayed || other.ID == first.ID {
			t.Errorf("another caller's same id: %s, replayed %v, %v; want a new invalidation", other.ID, replayed, err)
		}
		if n := f.scripts["apm"].calls.Load(); n != 2 {
			t.Errorf("the adapter was called %d times, want 2", n)
		}
		if inv := f.invalidate(user("slots"), time.Second); inv.State != invalidation.Succeeded {
			t.Errorf("after replays and refusals a run is %s: slots were not given back", inv.State)
		}
	})
}

func TestRetryIsANewInvalidationForWhatFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.scripts["kibana"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, adapters.Errorf(adapters.Denied, "no")
		})
		f.start(nil)
		defer f.stop(time.Second)
		old := f.invalidate(user("alice"), time.Minute)
		if old.State != invalidation.PartiallySucceeded {
			t.Fatalf("state = %s, want PARTIALLY_SUCCEEDED", old.State)
		}
		f.scripts["kibana"].answer(ended(1))
		inv, _, err := f.engine.Retry(t.Context(), invalidation.RetryRequest{Caller: caller, ID: old.ID, Wait: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if inv.ID == old.ID || inv.RetryOf != old.ID || inv.State != invalidation.Succeeded || len(inv.Runs) != 1 || inv.Runs[0].Target != "kibana" {
			t.Errorf("retry = %+v, want a new one for kibana alone", inv)
		}
		if again := f.get(old.ID, 0); again.Revision != old.Revision {
			t.Error("the old invalidation changed")
		}
		_, _, err = f.engine.Retry(t.Context(), invalidation.RetryRequest{Caller: caller, ID: inv.ID})
		wantCallError(t, err, invalidation.FailedPrecondition, invalidation.ReasonNothingToRetry)

		f.scripts["kibana"].answer(hang)
		running := f.invalidate(user("bob"), time.Second)
		_, _, err = f.engine.Retry(t.Context(), invalidation.RetryRequest{Caller: caller, ID: running.ID})
		wantCallError(t, err, invalidation.FailedPrecondition, invalidation.ReasonNotFinal)

		f.scripts["kibana"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, adapters.Errorf(adapters.Denied, "no")
		})
		broad := f.invalidate(invalidation.Call{Selector: invalidation.Selector{All: true}, ConfirmBroad: true}, time.Minute)
		_, _, err = f.engine.Retry(t.Context(), invalidation.RetryRequest{Caller: caller, ID: broad.ID})
		wantCallError(t, err, invalidation.InvalidArgument, invalidation.ReasonConfirmBroad)
	})
}

func TestCallsThatContradictThemselvesAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.start(nil)
		defer f.stop(time.Second)
		alice := invalidation.Selector{User: &invalidation.User{ID: "alice"}}
		for name, tc := range map[string]struct {
			call   invalidation.Call
			reason adapters.Reason
			field  string
		}{
			"empty selector":     {invalidation.Call{}, invalidation.ReasonInvalidArgument, "selector"},
			"all and a user":     {invalidation.Call{Selector: invalidation.Selector{All: true, User: alice.User}, ConfirmBroad: true}, invalidation.ReasonInvalidArgument, "selector"},
			"broad, unconfirmed": {invalidation.Call{Selector: invalidation.Selector{Group: "vpn"}}, invalidation.ReasonConfirmBroad, "confirm_broad"},
			"unknown target":     {invalidation.Call{Selector: alice, Targets: []string{"apm", "amp"}}, invalidation.ReasonUnknownTarget, "targets[1]"},
			"target twice":       {invalidation.Call{Selector: alice, Targets: []string{"apm", "apm"}}, invalidation.ReasonInvalidArgument, "targets[1]"},
			"session elsewhere":  {invalidation.Call{Selector: invalidation.Selector{Sessions: []invalidation.SessionRef{{Target: "amp", ID: "1"}}}}, invalidation.ReasonUnknownTarget, "selector.sessions[0].target"},
			"sessions, targets":  {invalidation.Call{Selector: invalidation.Selector{Sessions: []invalidation.SessionRef{{Target: "apm", ID: "1"}}}, Targets: []string{"apm"}}, invalidation.ReasonInvalidArgument, "targets"},
			"names elsewhere": {invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice", TargetUsernames: map[string][]string{"amp": {"a"}}}}},
				invalidation.ReasonUnknownTarget, "selector.user.target_usernames"},
		} {
			_, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: caller, Call: tc.call})
			t.Log(name)
			if ce := wantCallError(t, err, invalidation.InvalidArgument, tc.reason); ce.Field != tc.field {
				t.Errorf("%s: field %q, want %q", name, ce.Field, tc.field)
			}
			_, err = f.engine.Preview(t.Context(), caller, tc.call)
			wantCallError(t, err, invalidation.InvalidArgument, tc.reason)
		}
		if invs, _, err := f.engine.List(t.Context(), caller, invalidation.Query{Limit: 10}); err != nil || len(invs) != 0 {
			t.Errorf("journalled %d invalidations, %v; want none", len(invs), err)
		}
	})
}

func TestWhatNeedsNoAttemptIsFinalAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		defer f.stop(time.Second)
		for name, tc := range map[string]struct {
			call   invalidation.Call
			state  invalidation.State
			run    invalidation.RunState
			reason adapters.Reason
		}{
			"cannot be expressed":          {invalidation.Call{Selector: invalidation.Selector{Group: "vpn"}, ConfirmBroad: true}, invalidation.Failed, invalidation.RunUnsupported, adapters.ReasonSelectorUnsupported},
			"cannot be expressed, allowed": {invalidation.Call{Selector: invalidation.Selector{Group: "vpn"}, ConfirmBroad: true, AllowUnsupported: true}, invalidation.Failed, invalidation.RunUnsupported, adapters.ReasonSelectorUnsupported},
			"nothing can match":            {user("nobody"), invalidation.Succeeded, invalidation.RunSucceeded, ""},
			"has no name":                  {user("nameless"), invalidation.Failed, invalidation.RunFailed, adapters.ReasonNoIdentity},
		} {
			inv := f.invalidate(tc.call, 0)
			r := inv.Runs[0]
			var reason adapters.Reason
			if r.Error != nil {
				reason = r.Error.Reason
			}
			if inv.State != tc.state || r.State != tc.run || reason != tc.reason || r.Attempts != 0 || inv.CompleteTime.IsZero() {
				t.Errorf("%s: %s, run %s, %s, %d attempts; want %s, %s, %s, none", name, inv.State, r.State, reason, r.Attempts, tc.state, tc.run, tc.reason)
			}
			if tc.run == invalidation.RunSucceeded && (!r.Counted || r.Count != 0 || !slices.Contains(warnings(r), adapters.WarnNothingCanMatch)) {
				t.Errorf("%s: count %d known %v, warnings %v; want exactly 0 and NOTHING_CAN_MATCH", name, r.Count, r.Counted, warnings(r))
			}
		}
		if n := f.scripts["apm"].calls.Load(); n != 0 {
			t.Errorf("the adapter was called %d times", n)
		}
	})
}

func TestARunWhoseDirectoryIsAwayIsResolvedLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		resolver := &names{}
		resolver.away.Store(true)
		f.options.Resolver = resolver
		f.start(nil)
		inv := f.invalidate(user("alice"), time.Minute)
		if r := inv.Runs[0]; r.State != invalidation.RunPending || r.Attempts != 0 || r.Error == nil || r.Error.Reason != adapters.ReasonDirectoryUnavailable {
			t.Fatalf("run = %+v, want PENDING, DIRECTORY_UNAVAILABLE, no attempt", r)
		}
		f.crash()
		f.start(nil)
		defer f.stop(time.Second)
		resolver.away.Store(false)
		inv = f.get(inv.ID, time.Minute)
		if r := inv.Runs[0]; inv.State != invalidation.Succeeded || r.Attempts != 1 || r.CountIsMinimum {
			t.Errorf("after the directory came back: %s, %d attempts, minimum %v; want SUCCEEDED, 1, exact", inv.State, r.Attempts, r.CountIsMinimum)
		}
	})
}

func TestAnAdaptersPanicIsAnUncertainOutcome(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		panicked := false
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			if !panicked {
				panicked = true
				_ = adapters.Fence(ctx)
				panic("bug")
			}
			return ended(0)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Second)
		inv := f.invalidate(user("alice"), time.Minute)
		if r := inv.Runs[0]; inv.State != invalidation.Succeeded || !r.CountIsMinimum || r.Attempts != 2 {
			t.Errorf("%s, minimum %v, %d attempts; want SUCCEEDED, a minimum, 2", inv.State, r.CountIsMinimum, r.Attempts)
		}
	})
}

func TestTooManyCallsAtOnceAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.MaxCalls = 2
		f.scripts["apm"].answer(hang)
		f.start(nil)
		defer f.stop(time.Second)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { f.invalidate(user("alice"), 10*time.Second) })
		}
		synctest.Wait()
		_, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: caller, Call: user("bob")})
		if ce := wantCallError(t, err, invalidation.Exhausted, invalidation.ReasonOverloaded); ce.RetryDelay <= 0 {
			t.Error("an overloaded gateway does not say when to come back")
		}
		wg.Wait()
		f.invalidate(user("bob"), 0)
	})
}

// However many call at once, what is held for them is bounded: the calls that wait, and nothing of those refused.
func TestOverloadLeavesMemoryBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.MaxCalls = 16
		f.scripts["apm"].answer(hang)
		f.start(nil)
		defer f.stop(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				_, _, _ = f.engine.Invalidate(ctx, invalidation.Request{Caller: caller, Call: user("alice"), Wait: time.Minute})
			})
		}
		synctest.Wait()
		held := func() (bytes uint64, goroutines int) {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc, runtime.NumGoroutine()
		}
		refuse := func(n int) {
			for range n {
				_, _, err := f.engine.Invalidate(ctx, invalidation.Request{Caller: caller, Call: user(strings.Repeat("x", 1000)), Wait: time.Minute})
				wantCallError(t, err, invalidation.Exhausted, invalidation.ReasonOverloaded)
			}
		}
		refuse(100)
		bytes, goroutines := held()
		refuse(20_000)
		// A kilobyte a call would be twenty megabytes.
		if b, g := held(); b > bytes+2<<20 || g > goroutines {
			t.Errorf("after 20,000 refused calls: %d bytes more, %d goroutines more", b-bytes, g-goroutines)
		}
		cancel()
		wg.Wait()
	})
}

func TestNoMoreIsAcceptedThanCanWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.options.MaxUnfinished = 4
		f.start(nil)
		defer f.stop(time.Minute)
		for _, target := range []string{"apm", "kibana"} {
			if _, err := f.engine.PauseTarget(t.Context(), caller, target, ""); err != nil {
				t.Fatal(err)
			}
		}
		first := invalidation.Request{Caller: caller, Call: user("alice"), RequestID: "a"}
		waiting, _, err := f.engine.Invalidate(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		f.invalidate(user("bob"), 0)
		refused := func() {
			t.Helper()
			before := len(f.events())
			_, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: caller, Call: user("carol")})
			if ce := wantCallError(t, err, invalidation.Exhausted, invalidation.ReasonOverloaded); ce.RetryDelay <= 0 {
				t.Errorf("the caller is told to come back after %v", ce.RetryDelay)
			}
			if n := len(f.events()); n != before {
				t.Errorf("%d events were journalled", n-before)
			}
		}
		refused()
		if inv, replayed, err := f.engine.Invalidate(t.Context(), first); err != nil || !replayed || inv.ID != waiting.ID {
			t.Errorf("a repeated call: %v, replayed %t; want the invalidation there is", err, replayed)
		}
		f.invalidate(user("nobody"), 0) // nothing is left to do of it
		sleep(time.Minute)
		refused() // not counted twice, nor forgotten
		if _, err := f.engine.Cancel(t.Context(), caller, waiting.ID); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		f.invalidate(user("carol"), 0)
		refused()
		f.crash()
		f.start(nil)
		refused()
	})
}

func TestWatchSeesTheFinalState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.scripts["kibana"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			time.Sleep(50 * time.Second)
			return ended(1)(ctx, req)
		})
		f.options.LeaseLength = 5 * time.Minute // the attempt takes longer than two thirds of the default, unrenewed
		f.start(nil)
		defer f.stop(time.Minute)
		inv := f.invalidate(user("alice"), 0)
		begin := time.Now()
		var last invalidation.Invalidation
		messages := 0
		for got, err := range f.engine.Watch(t.Context(), caller, inv.ID) {
			if err != nil {
				t.Fatal(err)
			}
			if got.Revision < last.Revision {
				t.Errorf("revision %d after %d", got.Revision, last.Revision)
			}
			last = got
			messages++
		}
		if last.State != invalidation.Succeeded {
			t.Errorf("the last message says %s, want SUCCEEDED", last.State)
		}
		if took := time.Since(begin); took != 50*time.Second {
			t.Errorf("watched for %v, want 50 s", took)
		}
		if messages < 4 || messages > 6 { // at the beginning, kibana's half, two heartbeats, the end
			t.Errorf("%d messages, want a heartbeat every 20 s and the changes", messages)
		}
		for _, err := range f.engine.Watch(t.Context(), caller, "0190b7a2-0000-7000-8000-000000000000") {
			wantCallError(t, err, invalidation.NotFound, invalidation.ReasonNotFound)
		}
	})
}

func TestLeasesAreRenewedWhileAnAttemptGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			time.Sleep(4 * time.Minute)
			return ended(1)(ctx, req)
		})
		f.start(nil)
		defer f.stop(time.Minute)
		inv := f.invalidate(user("alice"), 5*time.Minute)
		if inv.State != invalidation.Succeeded || inv.Runs[0].Attempts != 1 {
			t.Errorf("%s after %d attempts, want SUCCEEDED after 1", inv.State, inv.Runs[0].Attempts)
		}
	})
}

// The shutdown of the design: what was not sent is given back uncounted, what was sent is journalled as uncertain.
func TestShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "quick", "unsent", "sent")
		f.scripts["quick"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			time.Sleep(3 * time.Second)
			return ended(1)(ctx, req)
		})
		f.scripts["unsent"].answer(func(ctx context.Context, _ adapters.Request) (adapters.Result, error) {
			<-ctx.Done()
			return adapters.Result{}, ctx.Err()
		})
		f.scripts["sent"].answer(hang)
		f.start(nil)
		inv := f.invalidate(user("alice"), time.Second)
		begin := time.Now()
		f.stop(5 * time.Second)
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("shutdown took %v, want the 5 s it was given", took)
		}
		for _, name := range []string{"quick", "unsent", "sent"} {
			f.scripts[name].answer(ended(1))
		}
		f.start(nil)
		defer f.stop(time.Second)
		inv = f.get(inv.ID, time.Minute)
		for name, want := range map[string]struct {
			attempts int
			minimum  bool
		}{"quick": {1, false}, "unsent": {1, false}, "sent": {2, true}} {
			if r := inv.Run(name); r.State != invalidation.RunSucceeded || r.Attempts != want.attempts || r.CountIsMinimum != want.minimum {
				t.Errorf("%s: %s after %d attempts, minimum %v; want SUCCEEDED, %d, %v", name, r.State, r.Attempts, r.CountIsMinimum, want.attempts, want.minimum)
			}
		}
	})
}

// faulty is a journal that can be told to fail.
type faulty struct {
	invalidation.Store
	mu     sync.Mutex
	accept error
	record error
}

func (s *faulty) set(accept, record error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accept, s.record = accept, record
}

func (s *faulty) Accept(ctx context.Context, a invalidation.Acceptance) (invalidation.Invalidation, bool, []invalidation.Lease, error) {
	s.mu.Lock()
	err := s.accept
	s.mu.Unlock()
	switch {
	case errors.Is(err, invalidation.ErrCommitUnknown):
		// The commit happens, its answer is lost.
		if _, _, _, err := s.Store.Accept(ctx, a); err != nil {
			return invalidation.Invalidation{}, false, nil, err
		}
		return invalidation.Invalidation{}, false, nil, err
	case err != nil:
		return invalidation.Invalidation{}, false, nil, err
	}
	return s.Store.Accept(ctx, a)
}

func (s *faulty) Record(ctx context.Context, l invalidation.Lease, r invalidation.Run, ev []invalidation.Event) (invalidation.Head, error) {
	s.mu.Lock()
	err := s.record
	s.mu.Unlock()
	if err != nil {
		return invalidation.Head{}, err
	}
	return s.Store.Record(ctx, l, r, ev)
}

func TestAJournalThatCannotBeWritten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var journal *faulty
		f.start(func(s invalidation.Store) invalidation.Store {
			journal = &faulty{Store: s}
			return journal
		})
		defer f.stop(time.Minute)
		journal.set(fmt.Errorf("disk full: %w", invalidation.ErrUnavailable), nil)
		_, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: caller, Call: user("alice"), Wait: time.Second})
		if ce := wantCallError(t, err, invalidation.Unavailable, invalidation.ReasonNotAccepted); ce.RetryDelay <= 0 {
			t.Error("no retry delay")
		}
		sleep(time.Hour)
		if n := f.scripts["apm"].calls.Load(); n != 0 {
			t.Errorf("%d calls of the adapter for a call that was not accepted", n)
		}
		journal.set(nil, fmt.Errorf("disk full: %w", invalidation.ErrUnavailable))
		inv := f.invalidate(user("alice"), 10*time.Second)
		if inv.State != invalidation.Running {
			t.Errorf("state = %s although the answer could not be journalled, want RUNNING", inv.State)
		}
		journal.set(nil, nil)
		if inv = f.get(inv.ID, time.Minute); inv.State != invalidation.Succeeded || inv.Runs[0].Attempts != 1 {
			t.Errorf("after the journal came back: %s after %d attempts; want SUCCEEDED after 1", inv.State, inv.Runs[0].Attempts)
		}
	})
}

func TestACommitWhoseAnswerIsLostIsLookedUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		var journal *faulty
		f.start(func(s invalidation.Store) invalidation.Store {
			journal = &faulty{Store: s}
			return journal
		})
		defer f.stop(time.Minute)
		journal.set(invalidation.ErrCommitUnknown, nil)
		inv := f.invalidate(user("alice"), 5*time.Minute)
		if inv.State != invalidation.Succeeded {
			t.Errorf("state = %s, want SUCCEEDED", inv.State)
		}
	})
}

// A client that repeats a call gets its answer, also when a target it named has been taken out of the configuration.
func TestARepeatedCallIsAnsweredThoughItWouldBeRefusedNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t, "apm", "kibana")
		f.start(nil)
		call := user("alice")
		call.Targets = []string{"apm", "kibana"}
		req := invalidation.Request{Caller: caller, Call: call, RequestID: "0190b7a2-2222-7000-8000-000000000000", Wait: time.Minute}
		first, _, err := f.engine.Invalidate(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		f.stop(time.Second)
		f.options.Targets = f.options.Targets[:1]
		f.start(nil)
		defer f.stop(time.Second)
		again, replayed, err := f.engine.Invalidate(t.Context(), req)
		if err != nil || !replayed || again.ID != first.ID {
			t.Errorf("again: %s, replayed %v, %v; want %s, true", again.ID, replayed, err, first.ID)
		}
		req.Call.Reason = "another"
		_, _, err = f.engine.Invalidate(t.Context(), req)
		wantCallError(t, err, invalidation.InvalidArgument, invalidation.ReasonUnknownTarget)
		req.RequestID = ""
		_, _, err = f.engine.Invalidate(t.Context(), req)
		wantCallError(t, err, invalidation.InvalidArgument, invalidation.ReasonUnknownTarget)
	})
}

// TestEngineClosesTwice: whoever cleans up after a failed start and whoever shuts down may both close it.
func TestEngineClosesTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "a")
		f.start(nil)
		f.invalidate(user("alice"), time.Minute)
		if err := f.engine.Close(t.Context()); err != nil {
			t.Error(err)
		}
		f.stop(time.Minute)
	})
}
