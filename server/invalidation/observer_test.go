package invalidation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// witness writes down what an observer is told.
type witness struct {
	mu   sync.Mutex
	told []string
}

type witnessKey struct{}

func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

// take returns what was told since it was called last.
func (w *witness) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	told := w.told
	w.told = nil
	return told
}

func (w *witness) Accepted(_ context.Context, inv invalidation.Invalidation) {
	w.note("accepted %s", inv.State)
}

func (w *witness) Begun(ctx context.Context, c invalidation.ClaimedRun) (context.Context, func()) {
	w.note("begun %s %d", c.Run.Target, c.Run.Attempts)
	return context.WithValue(ctx, witnessKey{}, true), func() { w.note("done %s", c.Run.Target) }
}

func (w *witness) Attempted(ctx context.Context, run invalidation.Run, took time.Duration, result invalidation.AttemptResult) {
	w.note("attempted %s %s %v %v", run.Target, result, took, ctx.Value(witnessKey{}))
}

func (w *witness) Ended(_ context.Context, run invalidation.Run, accepted time.Time) {
	w.note("ended %s %s after %v", run.Target, run.State, run.CompleteTime.Sub(accepted))
}

func (w *witness) Completed(_ context.Context, _ string, state invalidation.State) {
	w.note("completed %s", state)
}

func (w *witness) LeaseLost(_ context.Context, run invalidation.Run) { w.note("lost %s", run.Target) }

func (w *witness) PollWait(target string, wait time.Duration) { w.note("poll %s %v", target, wait) }

func (w *witness) want(t *testing.T, want ...string) {
	t.Helper()
	if got := w.take(); !slices.Equal(got, want) {
		t.Errorf("the observer was told\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// observed runs a story in a bubble, with an engine of one target whose observer writes everything down.
func observed(t *testing.T, story func(t *testing.T, f *fixture, w *witness)) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFixture(t, "apm"), &witness{}
		f.options.Observer = w
		f.start(nil)
		story(t, f, w)
		f.stop(time.Second)
	})
}

func TestObserver(t *testing.T) {
	t.Run("RetriedUntilItSucceeds", func(t *testing.T) {
		observed(t, func(t *testing.T, f *fixture, w *witness) {
			calls := 0
			f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
				time.Sleep(time.Second) // of virtual time: the target thinks
				switch calls++; calls {
				case 1:
					return adapters.Result{}, adapters.Errorf(adapters.BadReply, "what?")
				case 2:
					return adapters.Result{Pending: &adapters.Pending{After: 2 * time.Second, Poll: true, Resume: json.RawMessage(`1`)}}, nil
				case 3:
					return adapters.Result{}, errors.New("not one of the contract's")
				}
				return ended(1)(ctx, req)
			})
			f.invalidate(user("alice"), time.Minute)
			synctest.Wait()
			w.want(t, "accepted RUNNING",
				"begun apm 1", "attempted apm bad_reply 1s true", "done apm",
				"begun apm 2", "poll apm 0s", "attempted apm pending 1s true", "done apm",
				"begun apm 2", "attempted apm broken 1s true", "done apm",
				"begun apm 3", "attempted apm succeeded 1s true", "ended apm SUCCEEDED after 7.5s", "completed SUCCEEDED", "done apm")
		})
	})
	t.Run("EndedByItsAcceptance", func(t *testing.T) {
		observed(t, func(t *testing.T, f *fixture, w *witness) {
			f.invalidate(user("nameless"), time.Minute)
			w.want(t, "accepted FAILED", "ended apm FAILED after 0s", "completed FAILED")
		})
	})
	t.Run("Replayed", func(t *testing.T) {
		observed(t, func(t *testing.T, f *fixture, w *witness) {
			req := invalidation.Request{Caller: caller, Call: user("alice"), RequestID: "7", Wait: time.Minute}
			for range 2 {
				if _, _, err := f.engine.Invalidate(t.Context(), req); err != nil {
					t.Fatal(err)
				}
			}
			if told := w.take(); told[0] != "accepted RUNNING" || slices.Contains(told[1:], "accepted RUNNING") {
				t.Errorf("told %q", told)
			}
		})
	})
	t.Run("Cancelled", func(t *testing.T) {
		observed(t, func(t *testing.T, f *fixture, w *witness) {
			f.scripts["apm"].answer(hang)
			inv := f.invalidate(user("alice"), 0)
			time.Sleep(3 * time.Second)
			for range 2 { // again is no news
				if _, err := f.engine.Cancel(t.Context(), caller, inv.ID); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			told := w.take()
			slices.Sort(told) // the attempt ends while the caller is answered
			if want := []string{"accepted RUNNING", "attempted apm interrupted 3s true", "begun apm 1", "completed CANCELLED", "done apm",
				"ended apm CANCELLED after 3s", "lost apm"}; !slices.Equal(told, want) {
				t.Errorf("told %q\nwant %q", told, want)
			}
		})
	})
	t.Run("PausedBeforeAnythingIsSent", func(t *testing.T) {
		observed(t, func(t *testing.T, f *fixture, w *witness) {
			f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
				if _, err := f.engine.PauseTarget(context.Background(), caller, "apm", ""); err != nil {
					t.Error(err)
				}
				return ended(1)(ctx, req)
			})
			f.invalidate(user("alice"), time.Second)
			w.want(t, "accepted RUNNING", "begun apm 1", "attempted apm interrupted 0s true", "done apm")
		})
	})
}

func TestReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "apm", "storage")
		f.start(nil)
		defer f.stop(time.Second)
		look := func() (apm, storage invalidation.TargetReadings) {
			for _, r := range f.engine.Readings().Targets {
				if r.Target == "apm" {
					apm = r
				} else {
					storage = r
				}
			}
			return apm, storage
		}
		idle := invalidation.TargetReadings{Target: "apm", Kind: "script", Slots: 4, Concurrency: 4, Breaker: "closed"}
		if apm, _ := look(); apm != idle {
			t.Errorf("at first: %+v", apm)
		}

		// One is at work; one is refused, and its target is parked.
		f.scripts["apm"].answer(hang)
		f.scripts["storage"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, adapters.Errorf(adapters.Credentials, "who?")
		})
		if _, err := f.engine.CheckTarget(t.Context(), caller, "apm"); err != nil {
			t.Fatal(err)
		}
		f.invalidate(user("alice"), 0)
		time.Sleep(15 * time.Second)
		apm, storage := look()
		want := idle
		want.Unfinished, want.Age, want.Working, want.Probed, want.Healthy = 1, 15*time.Second, 1, true, true
		if apm != want {
			t.Errorf("at work: %+v, want %+v", apm, want)
		}
		if !storage.Parked || storage.Paused || storage.Working != 0 || storage.Unfinished != 1 || storage.Probed {
			t.Errorf("parked: %+v", storage)
		}

		// The same target is silent until its breaker opens, and then paused.
		f.scripts["apm"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, adapters.Errorf(adapters.Unreachable, "silence")
		})
		for range 5 {
			f.invalidate(user("bob"), 0)
		}
		synctest.Wait()
		if apm, _ := look(); apm.Breaker != "open" {
			t.Errorf("silent: %+v", apm)
		}
		if _, err := f.engine.PauseTarget(t.Context(), caller, "apm", ""); err != nil {
			t.Fatal(err)
		}
		if apm, _ := look(); !apm.Paused {
			t.Errorf("paused: %+v", apm)
		}
	})
}
