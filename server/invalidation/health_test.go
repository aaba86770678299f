package invalidation_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// probing is a fixture whose targets are probed every five minutes.
func probing(t *testing.T, targets ...string) *fixture {
	f := newFixture(t, targets...)
	f.options.ProbeInterval = 0
	return f
}

// found makes a probe's answer of one check.
func found(name string, status adapters.CheckStatus) func(context.Context) (adapters.Health, error) {
	return func(context.Context) (adapters.Health, error) {
		return adapters.Health{Checks: []adapters.Check{{Name: name, Status: status, Message: "as scripted"}}}, nil
	}
}

func (s *script) probed(f func(context.Context) (adapters.Health, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probe = f
}

func (f *fixture) status(target string) invalidation.TargetStatus {
	f.t.Helper()
	all, err := f.engine.Targets(f.t.Context(), caller)
	if err != nil {
		f.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s invalidation.TargetStatus) bool { return s.Name == target })
	return all[i]
}

// pass lets time go by, and then everything that is due happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestTargetsAreProbedAtTheStartAndEveryFewMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := probing(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		if s := f.status("apm"); !s.CheckTime.IsZero() {
			t.Errorf("checked at %v, before anything was asked", s.CheckTime)
		}
		pass(5 * time.Second)
		if s := f.status("apm"); s.CheckTime.IsZero() || !s.Health.Healthy() || f.scripts["apm"].probes.Load() != 1 {
			t.Errorf("after the start: %+v after %d probes, want it healthy after one", s, f.scripts["apm"].probes.Load())
		}
		pass(time.Hour)
		if n := f.scripts["apm"].probes.Load(); n != 13 {
			t.Errorf("%d probes in an hour and at its start, want 13", n)
		}
		if age := time.Since(f.status("apm").CheckTime); age > invalidation.DefaultProbeInterval {
			t.Errorf("the last check is %v old", age)
		}
	})
}

func TestProbesCanBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		pass(time.Hour)
		if n := f.scripts["apm"].probes.Load(); n != 0 {
			t.Errorf("%d probes", n)
		}
	})
}

func TestOnlyAFewTargetsAreProbedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := strings.Fields("a b c d e f g h i j")
		f := probing(t, names...)
		var mu sync.Mutex
		now, most := 0, 0
		for _, s := range f.scripts {
			s.probed(func(ctx context.Context) (adapters.Health, error) {
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				time.Sleep(10 * time.Second)
				mu.Lock()
				now--
				mu.Unlock()
				return adapters.Health{}, nil
			})
		}
		f.start(nil)
		defer f.stop(time.Minute)
		pass(time.Minute)
		if most != 4 {
			t.Errorf("%d targets were probed at once, want 4", most)
		}
		for name, s := range f.scripts {
			if s.probes.Load() != 1 {
				t.Errorf("%s: %d probes, want 1", name, s.probes.Load())
			}
		}
	})
}

func TestAPausedTargetIsProbedOnlyByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := probing(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		if _, err := f.engine.PauseTarget(t.Context(), caller, "apm", "maintenance"); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		if n := f.scripts["apm"].probes.Load(); n != 0 {
			t.Errorf("%d probes of a paused target", n)
		}
		if h, err := f.engine.CheckTarget(t.Context(), caller, "apm"); err != nil || !h.Healthy() {
			t.Errorf("by hand: %+v, %v", h, err)
		}
		pass(time.Hour)
		if n := f.scripts["apm"].probes.Load(); n != 1 {
			t.Errorf("%d probes, want the one by hand", n)
		}
		if _, err := f.engine.ResumeTarget(t.Context(), caller, "apm"); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		if n := f.scripts["apm"].probes.Load(); n != 2 {
			t.Errorf("%d probes, want another one soon after the pause", n)
		}
	})
}

// TestAProbeParksATargetThatRefusesItsCredentials, and is itself the only one that tries them again: once in a quarter of
// an hour.
func TestAProbeParksATargetThatRefusesItsCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := probing(t, "apm")
		f.scripts["apm"].probed(found(adapters.CheckCredentials, adapters.CheckFailed))
		f.start(nil)
		defer f.stop(time.Minute)
		pass(5 * time.Second)
		if s := f.status("apm"); s.State != invalidation.TargetParked {
			t.Fatalf("%s, want PARKED", s.State)
		}
		inv := f.invalidate(user("alice"), 0)
		pass(2 * time.Hour)
		if n := f.scripts["apm"].probes.Load(); n != 9 {
			t.Errorf("%d probes in two hours and at their start, want one in a quarter of an hour: 9", n)
		}
		if n := f.scripts["apm"].calls.Load(); n != 0 {
			t.Errorf("%d attempts at a parked target", n)
		}
		f.scripts["apm"].probed(found(adapters.CheckCredentials, adapters.CheckOK))
		pass(16 * time.Minute)
		if s := f.status("apm"); s.State != invalidation.TargetActive {
			t.Errorf("%s, want ACTIVE", s.State)
		}
		if inv = f.get(inv.ID, 0); inv.State != invalidation.Succeeded {
			t.Errorf("%s, want SUCCEEDED: %+v", inv.State, inv.Runs)
		}
	})
}

// TestAProbeGoesBeforeTheRunsOfAParkedTarget: one login, not one for each run.
func TestAProbeGoesBeforeTheRunsOfAParkedTarget(t *testing.T) {
	for _, test := range []struct {
		name         string
		probe        func(context.Context) (adapters.Health, error)
		calls        int64
		parked, runs bool
	}{
		{"StillRefused", found(adapters.CheckCredentials, adapters.CheckFailed), 1, true, false},
		{"Accepted", found(adapters.CheckCredentials, adapters.CheckOK), 7, false, true},
		// It cannot tell: one run goes ahead, and then the others.
		{"Silent", found("reachable", adapters.CheckFailed), 7, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := probing(t, "apm")
				f.options.Targets[0].Concurrency = 1
				f.start(nil)
				defer f.stop(time.Minute)
				pass(5 * time.Second)
				s := f.scripts["apm"]
				s.answer(func(context.Context, adapters.Request) (adapters.Result, error) {
					return adapters.Result{}, adapters.Errorf(adapters.Credentials, "refused")
				})
				for range 6 {
					f.invalidate(user("alice"), 0)
				}
				pass(time.Second)
				if n := s.calls.Load(); n != 1 || f.status("apm").State != invalidation.TargetParked {
					t.Fatalf("%d attempts, %s; want it PARKED after one", n, f.status("apm").State)
				}
				s.probed(test.probe)
				if !test.parked {
					s.answer(ended(1))
				}
				pass(15*time.Minute - 2*time.Second)
				if n := s.probes.Load(); n != 1 {
					t.Errorf("%d probes while the account was to rest", n-1)
				}
				pass(2 * time.Second)
				if n := s.probes.Load(); n != 2 {
					t.Errorf("%d probes after a quarter of an hour, want one", n-1)
				}
				// Who is let in need not wait any longer; nobody else goes beside the probe.
				if n := s.calls.Load(); test.name == "Accepted" && n != test.calls || test.name != "Accepted" && n != 1 {
					t.Errorf("%d attempts right after the probe", n-1)
				}
				pass(2 * time.Minute)
				if n := s.calls.Load(); n != test.calls {
					t.Errorf("%d attempts in all, want %d", n, test.calls)
				}
				if parked := f.status("apm").State == invalidation.TargetParked; parked != test.parked {
					t.Errorf("parked %t, want %t", parked, test.parked)
				}
			})
		})
	}
}

// TestACheckByHandReleasesAParkedTarget at once, if it is let in.
func TestACheckByHandReleasesAParkedTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		s := f.scripts["apm"]
		check := func(name string, status adapters.CheckStatus, want invalidation.TargetState) {
			t.Helper()
			s.probed(found(name, status))
			if _, err := f.engine.CheckTarget(t.Context(), caller, "apm"); err != nil {
				t.Fatal(err)
			}
			if got := f.status("apm").State; got != want {
				t.Errorf("%s %d: %s, want %s", name, status, got, want)
			}
		}
		check("reachable", adapters.CheckFailed, invalidation.TargetActive)
		check(adapters.CheckCredentials, adapters.CheckFailed, invalidation.TargetParked)
		inv := f.invalidate(user("alice"), 0)
		pass(time.Minute)
		check("reachable", adapters.CheckFailed, invalidation.TargetParked)
		pass(time.Second)
		if n := s.calls.Load(); n != 0 {
			t.Errorf("%d attempts at a parked target", n)
		}
		check(adapters.CheckCredentials, adapters.CheckOK, invalidation.TargetActive)
		pass(time.Second)
		if inv = f.get(inv.ID, 0); inv.State != invalidation.Succeeded {
			t.Errorf("%s, want SUCCEEDED: %+v", inv.State, inv.Runs)
		}
	})
}

func TestAProbeTakesASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.options.Targets[0].Concurrency = 1
		f.start(nil)
		defer f.stop(time.Nanosecond)
		s := f.scripts["apm"]
		s.probed(func(ctx context.Context) (adapters.Health, error) {
			time.Sleep(10 * time.Second)
			return found("reachable", adapters.CheckOK)(ctx)
		})
		s.answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			time.Sleep(10 * time.Second)
			return adapters.Result{Counted: true, Verification: adapters.ConfirmedByList}, nil
		})
		check := func() {
			if _, err := f.engine.CheckTarget(t.Context(), caller, "apm"); err != nil {
				t.Error(err)
			}
		}
		before := f.invalidate(user("alice"), 0)
		pass(time.Second)
		go check()
		pass(time.Second)
		after := f.invalidate(user("bob"), 0)
		if n := s.probes.Load(); n != 0 {
			t.Errorf("a probe began beside a run, in a target that takes one thing at a time")
		}
		pass(time.Minute)
		if a, b := f.get(before.ID, 0).State, f.get(after.ID, 0).State; a != invalidation.Succeeded || b != invalidation.Succeeded {
			t.Errorf("%s and %s, want both SUCCEEDED", a, b)
		}
		if s.most != 1 || s.probes.Load() != 1 {
			t.Errorf("%d things at once and %d probes, want one of each", s.most, s.probes.Load())
		}
		s.answer(hang)
		f.invalidate(user("carol"), 0)
		pass(time.Second)
		_, err := f.engine.CheckTarget(t.Context(), caller, "apm")
		wantCallError(t, err, invalidation.Unavailable, adapters.ReasonUpstreamBusy)
	})
}

func TestConcurrentChecksShareOneProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		s := f.scripts["apm"]
		s.probed(func(ctx context.Context) (adapters.Health, error) {
			select {
			case <-time.After(10 * time.Second):
				return found("reachable", adapters.CheckOK)(ctx)
			case <-ctx.Done():
				return adapters.Health{}, ctx.Err()
			}
		})
		impatient, cancel := context.WithCancel(t.Context())
		go func() {
			if _, err := f.engine.CheckTarget(impatient, caller, "apm"); !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
		}()
		pass(time.Second)
		cancel()
		synctest.Wait()
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if h, err := f.engine.CheckTarget(t.Context(), caller, "apm"); err != nil || !h.Healthy() {
					t.Errorf("%+v, %v", h, err)
				}
			})
		}
		all.Wait()
		if n := s.probes.Load(); n != 1 {
			t.Errorf("%d probes, want one for all", n)
		}
		if h, err := f.engine.CheckTarget(t.Context(), caller, "apm"); err != nil || !h.Healthy() || s.probes.Load() != 2 {
			t.Errorf("%+v, %v, %d probes; want a new one for who comes later", h, err, s.probes.Load())
		}
	})
}

func TestAProbeIsBoundedAndItsFailureIsAFinding(t *testing.T) {
	for _, test := range []struct {
		name, check string
		probe       func(context.Context) (adapters.Health, error)
	}{
		{"Hangs", "timeout", func(ctx context.Context) (adapters.Health, error) {
			<-ctx.Done()
			return adapters.Health{Version: "1", Checks: []adapters.Check{{Name: "reachable", Status: adapters.CheckOK}}}, ctx.Err()
		}},
		{"Panics", "internal", func(context.Context) (adapters.Health, error) { panic("a bug") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := probing(t, "apm")
				f.scripts["apm"].probed(test.probe)
				f.start(nil)
				defer f.stop(time.Minute)
				pass(40 * time.Second)
				s := f.status("apm")
				last := len(s.Health.Checks) - 1
				if last < 0 || s.Health.Healthy() || s.Health.Checks[last].Name != test.check || s.Health.Checks[last].Remedy == "" || s.State != invalidation.TargetActive {
					t.Errorf("%+v, want it active and failing for %q", s, test.check)
				}
			})
		})
	}
}

func TestCloseBreaksOffAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := probing(t, "apm")
		f.scripts["apm"].probed(func(ctx context.Context) (adapters.Health, error) {
			<-ctx.Done()
			return adapters.Health{}, ctx.Err()
		})
		f.start(nil)
		pass(5 * time.Second)
		start := time.Now()
		f.stop(time.Minute)
		if took := time.Since(start); took != 0 || f.scripts["apm"].probes.Load() != 1 {
			t.Errorf("closing took %v with %d probes under way", took, f.scripts["apm"].probes.Load())
		}
		_, err := f.engine.CheckTarget(t.Context(), caller, "apm")
		var ce *invalidation.CallError
		if !errors.As(err, &ce) || ce.Code != invalidation.Unavailable {
			t.Errorf("a check of a closed engine: %v", err)
		}
	})
}

func TestHealthIsLoggedWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := probing(t, "apm")
		var mu sync.Mutex
		var log bytes.Buffer
		f.options.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))
		f.start(nil)
		defer f.stop(time.Minute)
		said := func() (lines []string) {
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(log.String()) {
				if _, text, ok := strings.Cut(line, `msg="target is `); ok {
					text, _, _ = strings.Cut(text, `"`)
					lines = append(lines, text)
				}
			}
			log.Reset()
			return lines
		}
		for _, step := range []struct {
			name   string
			status adapters.CheckStatus
			want   []string
		}{
			{"reachable", adapters.CheckOK, []string{"healthy"}},
			{"reachable", adapters.CheckFailed, []string{"not healthy"}},
			{"api", adapters.CheckFailed, []string{"not healthy"}},
			{"tls", adapters.CheckWarning, []string{"healthy, with findings"}},
			{"tls", adapters.CheckOK, []string{"healthy"}},
		} {
			f.scripts["apm"].probed(found(step.name, step.status))
			pass(time.Hour)
			if got := said(); !slices.Equal(got, step.want) {
				t.Errorf("%s %d: said %q in an hour, want %q once", step.name, step.status, got, step.want)
			}
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Runs that were refused wait as long as the target is parked, and no longer.
func TestRunsOfAParkedTargetGoOnWithIt(t *testing.T) {
	for name, release := range map[string]func(f *fixture) error{
		"Resumed": func(f *fixture) error { _, err := f.engine.ResumeTarget(f.t.Context(), caller, "apm"); return err },
		"Checked": func(f *fixture) error { _, err := f.engine.CheckTarget(f.t.Context(), caller, "apm"); return err },
		"Changed": func(f *fixture) error { f.engine.TargetChanged(f.t.Context(), "apm"); return nil },
		"ByTime":  func(*fixture) error { time.Sleep(16 * time.Minute); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, "apm")
				f.scripts["apm"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
					time.Sleep(time.Second) // all three are refused before one is known to be
					return adapters.Result{}, adapters.Errorf(adapters.Credentials, "no")
				})
				f.start(nil)
				defer f.stop(time.Minute)
				var ids []string
				for _, u := range []string{"alice", "bob", "carol"} {
					ids = append(ids, f.invalidate(user(u), 0).ID)
				}
				pass(5 * time.Second)
				f.scripts["apm"].answer(ended(1))
				pass(time.Minute)
				for _, id := range ids {
					if inv := f.get(id, 0); inv.Runs[0].State != invalidation.RunRetrying {
						t.Fatalf("parked: %s", inv.Runs[0].State)
					}
				}
				if err := release(f); err != nil {
					t.Fatal(err)
				}
				pass(10 * time.Second)
				for _, id := range ids {
					if inv := f.get(id, 0); inv.Runs[0].State != invalidation.RunSucceeded {
						t.Errorf("released: %s", inv.Runs[0].State)
					}
				}
			})
		})
	}
}
