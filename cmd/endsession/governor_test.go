package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// jobFor is a job for n people in virtual time.
func jobFor(t *testing.T, fake *fakeGateway, n, parallel int) *bulkJob {
	t.Helper()
	file, err := parseUsers("people", usersText, []byte(lines(numbered(n))))
	if err != nil {
		t.Fatal(err)
	}
	j := newBulkJob("job", &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{}}, file.people)
	j.client, j.calls, j.parallel, j.wait, j.settled = fake.inMemory(t), newGovernor(parallel+1), parallel, -1, func(*entry) {}
	return j
}

func retryIn(d time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
}

// TestGovernorLeavesTheGatewayAlone: no call begins before the time that the gateway named.
func TestGovernorLeavesTheGatewayAlone(t *testing.T) {
	for name, refusal := range map[string]error{
		"Limited":     refusedWith(codes.ResourceExhausted, "RATE_LIMITED", "too often", retryIn(7*time.Second)),
		"Overloaded":  refusedWith(codes.ResourceExhausted, "OVERLOADED", "too much", retryIn(7*time.Second)),
		"NotAccepted": refusedWith(codes.Unavailable, "NOT_ACCEPTED", "the journal is not available", retryIn(7*time.Second)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFakeGateway()
				var mu sync.Mutex
				var refused time.Time
				fake.before = func(_ context.Context, _ string, nth int) error {
					mu.Lock()
					defer mu.Unlock()
					if nth == 10 {
						refused = time.Now()
						return refusal
					}
					if took := time.Since(refused); !refused.IsZero() && took > 0 && took < 7*time.Second {
						t.Errorf("call %d after %v", nth, took)
					}
					return nil
				}
				j := jobFor(t, fake, 30, 4)
				if err := j.run(t.Context(), t.Context()); err != nil || j.count().succeeded != 30 || len(fake.all) != 30 {
					t.Errorf("%v, %+v", err, j.count())
				}
				if refused.IsZero() || time.Since(refused) < 7*time.Second {
					t.Error("it did not wait")
				}
			})
		})
	}
}

// TestGovernorHoldsBack: at a gateway that limits its callers few calls are made for nothing.
func TestGovernorHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		fake := newFakeGateway()
		var mu sync.Mutex
		next, refused := time.Now(), 0
		fake.before = func(context.Context, string, int) error {
			mu.Lock()
			defer mu.Unlock()
			if wait := time.Until(next); wait > 0 {
				refused++
				return refusedWith(codes.ResourceExhausted, "RATE_LIMITED", "too often", retryIn(wait))
			}
			next = time.Now().Add(100 * time.Millisecond)
			return nil
		}
		began := time.Now()
		j := jobFor(t, fake, n, 64)
		if err := j.run(t.Context(), t.Context()); err != nil || j.count().succeeded != n {
			t.Errorf("%v, %+v", err, j.count())
		}
		if took := time.Since(began); took > 2*n*100*time.Millisecond {
			t.Errorf("it took %v, where the gateway lets one pass in 100 ms", took)
		}
		if refused > 2*n {
			t.Errorf("%d calls for nothing", refused)
		}
	})
}

// TestGovernorWaitsOutAnOutage of nine minutes, and ends after one of more than ten.
func TestGovernorWaitsOutAnOutage(t *testing.T) {
	for _, test := range []struct {
		outage time.Duration
		code   codes.Code
		want   error
	}{
		{9 * time.Minute, codes.Unavailable, nil}, {9 * time.Minute, codes.DeadlineExceeded, nil}, {time.Hour, codes.Unavailable, errOutage},
	} {
		t.Run(fmt.Sprint(test.outage, test.code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFakeGateway()
				began := time.Now()
				var silent atomic.Int64
				fake.before = func(_ context.Context, _ string, nth int) error {
					if nth > 5 && time.Since(began) < test.outage {
						silent.Add(1)
						return status.Error(test.code, "connection refused")
					}
					return nil
				}
				j := jobFor(t, fake, 20, 4)
				err := j.run(t.Context(), t.Context())
				if !errors.Is(err, test.want) {
					t.Fatalf("%v, want %v", err, test.want)
				}
				// It keeps asking, but not all the time, and not with all its calls.
				if n := silent.Load(); n < 20 || n > 200 {
					t.Errorf("%d calls in vain", n)
				}
				tally := j.count()
				if test.want == nil && (tally.succeeded != 20 || len(fake.all) != 20) {
					t.Errorf("%+v", tally)
				}
				if test.want != nil && (tally.lost == 0 || tally.accepted() != 5 || tally.accepted()+tally.lost+tally.total-tally.sent != tally.total) {
					t.Errorf("%+v", tally)
				}
			})
		})
	}
}

// TestGovernorAsksAgainAfterALostAnswer: what was accepted is not begun anew.
func TestGovernorAsksAgainAfterALostAnswer(t *testing.T) {
	for name, lost := range map[string]error{
		"Connection": status.Error(codes.Unavailable, "connection reset"),
		"Acceptance": refusedWith(codes.Unavailable, "ACCEPTANCE_UNKNOWN", "it may have been accepted"),
		"Deadline":   status.Error(codes.DeadlineExceeded, "late"),
		"Defect":     refusedWith(codes.Internal, "INTERNAL", "internal error"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFakeGateway()
				var mu sync.Mutex
				answered := map[string]bool{}
				fake.after = func(user string, _ int) error {
					mu.Lock()
					defer mu.Unlock()
					if !answered[user] {
						answered[user] = true
						return lost
					}
					return nil
				}
				j := jobFor(t, fake, 30, 4)
				if err := j.run(t.Context(), t.Context()); err != nil || j.count().succeeded != 30 || len(fake.all) != 30 {
					t.Errorf("%v, %+v, %d invalidations", err, j.count(), len(fake.all))
				}
			})
		})
	}
}

// TestPollIsCheap: a job that takes long is not asked about all the time.
func TestPollIsCheap(t *testing.T) {
	for _, n := range []int{fewOpen / 2, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFakeGateway()
				fake.becomes = func(string) endsessionv1.InvalidationState {
					return endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
				}
				j := jobFor(t, fake, n, 16)
				began := time.Now()
				var late time.Duration
				go func() {
					time.Sleep(2 * time.Hour)
					fake.finish(endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED)
				}()
				if err := j.run(t.Context(), t.Context()); err != nil || j.count().succeeded != n {
					t.Errorf("%v, %+v", err, j.count())
				}
				if late = time.Since(began) - 2*time.Hour; late > 2*maxPoll {
					t.Errorf("the end was seen %v later", late)
				}
				calls := 2 // pages, to see who is still running
				if n <= fewOpen {
					calls = n
				}
				if most := int(2*time.Hour/maxPoll+20) * calls; fake.reads > most {
					t.Errorf("%d calls in two hours, want at most %d", fake.reads, most)
				}
			})
		})
	}
}

// TestProgressLines are written where there is no terminal.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFakeGateway()
		fake.before = func(ctx context.Context, user string, nth int) error {
			if user == "user-00007" {
				return refusedWith(codes.PermissionDenied, "PROTECTED", "a protected user")
			}
			time.Sleep(time.Second)
			return nil
		}
		j := jobFor(t, fake, 100, 2)
		var b lockedBuffer
		done := showProgress(&screen{Writer: &b}, j)
		if err := j.run(t.Context(), t.Context()); err != nil {
			t.Fatal(err)
		}
		done()
		got := b.String()
		if n := strings.Count(got, "\n"); n < 4 || n > 6 {
			t.Errorf("%d lines in %v:\n%s", n, 50*time.Second, got)
		}
		for _, want := range []string{"of 100 done: ", " succeeded, 1 refused", "/s, about ", "s left\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in:\n%s", want, got)
			}
		}
		if strings.Contains(got, "\x1b") {
			t.Errorf("a terminal is spoken to: %q", got)
		}
	})
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1500 * time.Millisecond: "1s", 59 * time.Second: "59s", 60 * time.Second: "1m", 90 * time.Second: "1m30s", time.Hour: "1h", 90*time.Minute + 3*time.Second: "1h30m",
		200 * time.Hour: "8d8h",
	} {
		if got := roughly(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

// TestBulkDoesNotTakeARefusalForTheFirstAnswer: whether a call was accepted whose answer was lost is not known from the
// refusal of the next try.
func TestBulkDoesNotTakeARefusalForTheFirstAnswer(t *testing.T) {
	denied := refusedWith(codes.PermissionDenied, "POLICY_DENIED", "the policy does not allow it")
	reset := status.Error(codes.Unavailable, "connection reset")
	for name, test := range map[string]struct {
		first, second error
		lost, refused int
	}{
		"NotTheCallers":     {reset, denied, 1, 0},
		"WrongForAll":       {reset, refusedWith(codes.Unauthenticated, "UNAUTHENTICATED", "the key is not valid any more"), 1, 0},
		"Deadline":          {status.Error(codes.DeadlineExceeded, "late"), denied, 1, 0},
		"Defect":            {refusedWith(codes.Internal, "INTERNAL", "internal error"), denied, 1, 0},
		"AcceptanceUnknown": {refusedWith(codes.Unavailable, "ACCEPTANCE_UNKNOWN", "it may have been accepted"), denied, 1, 0},
		"NotAccepted":       {refusedWith(codes.Unavailable, "NOT_ACCEPTED", "the journal is not available"), denied, 0, 1},
		"Limited":           {refusedWith(codes.ResourceExhausted, "RATE_LIMITED", "too often"), denied, 0, 1},
		"AnotherCallHasIt":  {reset, refusedWith(codes.AlreadyExists, "REQUEST_ID_REUSED", "used for another"), 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFakeGateway()
				fake.before = func(_ context.Context, _ string, nth int) error {
					if nth > 1 {
						return test.second
					}
					return nil
				}
				fake.after = func(string, int) error { return test.first }
				j := jobFor(t, fake, 1, 4)
				ended := j.run(t.Context(), t.Context())
				if got := j.count(); got.lost != test.lost || got.refused != test.refused || got.sent != 1 {
					t.Errorf("%+v", got)
				}
				if reason, _ := refusalOf(j.entries[0].err); reason == "" {
					t.Errorf("it is not said why: %v", j.entries[0].err)
				}
				if wrong := wrongForAll(test.second); wrong != (ended != nil) {
					t.Errorf("ended with %v", ended)
				}
			})
		})
	}
}

// TestBulkEndsThoughTheJournalIsAnother: a gateway that was set up anew knows nothing of what it accepted. The job begins
// it there and sees that through.
func TestBulkEndsThoughTheJournalIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFakeGateway()
		fake.becomes = func(string) endsessionv1.InvalidationState {
			if fake.reads == 0 {
				return endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
			}
			return endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED
		}
		fake.onRead = func(nth int) {
			if nth == 1 {
				clear(fake.byID)
				fake.all = nil
			}
		}
		j := jobFor(t, fake, 3, 4)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := j.run(ctx, ctx); err != nil {
			t.Error(err)
		}
		if got := j.count(); got.succeeded != 3 || got.running != 0 || len(fake.all) != 3 {
			t.Errorf("%+v of %d invalidations", got, len(fake.all))
		}
	})
}
