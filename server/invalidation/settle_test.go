package invalidation_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/google/go-cmp/cmp"
)

var settleTime = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// firstAttempt is a run whose first attempt is under way.
func firstAttempt() invalidation.Run {
	return invalidation.Run{
		Target: "apm", Kind: "fake", State: invalidation.RunRunning, Open: true, Attempts: 1,
		Selector:   &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}}},
		StartTime:  settleTime.Add(-time.Second),
		ExpireTime: settleTime.Add(24 * time.Hour),
	}
}

func warnings(r invalidation.Run) []adapters.Reason {
	var codes []adapters.Reason
	for _, w := range r.Warnings {
		codes = append(codes, w.Code)
	}
	return codes
}

func TestSettle(t *testing.T) {
	type outcome struct {
		State    invalidation.RunState
		Reason   adapters.Reason
		Wait     time.Duration // until the next attempt
		Counted  bool
		Count    int
		Minimum  bool
		Warnings []adapters.Reason
	}
	counted := func(n int) adapters.Result {
		return adapters.Result{Counted: true, Count: n, Verification: adapters.ConfirmedByList}
	}
	fault := func(k adapters.Kind) error { return adapters.Errorf(k, "what happened") }
	for _, tc := range []struct {
		name   string
		before func(*invalidation.Run)
		result adapters.Result
		err    error
		sent   bool
		want   outcome
	}{
		{name: "ConfirmedWithCount", result: counted(3), sent: true,
			want: outcome{State: invalidation.RunSucceeded, Counted: true, Count: 3}},
		{name: "NothingFoundIsSaid", result: counted(0), sent: true,
			want: outcome{State: invalidation.RunSucceeded, Counted: true, Warnings: []adapters.Reason{adapters.WarnNoSessionMatched}}},
		{name: "UnknownCountStaysUnknown", result: adapters.Result{Verification: adapters.Unverifiable}, sent: true,
			want: outcome{State: invalidation.RunSucceeded}},
		{name: "CountsOfCallsAddUp", before: func(r *invalidation.Run) { r.Counted, r.Count = true, 2 }, result: counted(3), sent: true,
			want: outcome{State: invalidation.RunSucceeded, Counted: true, Count: 5}},
		{name: "OneCallsZeroIsNotTheRuns", before: func(r *invalidation.Run) { r.Counted, r.Count = true, 2 },
			result: adapters.Result{Counted: true, Verification: adapters.ConfirmedByRepeat,
				Warnings: []adapters.Warning{{Code: adapters.WarnNoSessionMatched}}}, sent: true,
			want: outcome{State: invalidation.RunSucceeded, Counted: true, Count: 2}},
		{name: "AMinimumStaysAMinimum", before: func(r *invalidation.Run) { r.CountIsMinimum = true }, result: counted(0), sent: true,
			want: outcome{State: invalidation.RunSucceeded, Counted: true, Minimum: true}},
		{name: "NothingCanMatch", result: adapters.Result{Warnings: []adapters.Warning{{Code: adapters.WarnNothingCanMatch}}},
			want: outcome{State: invalidation.RunSucceeded, Counted: true, Warnings: []adapters.Reason{adapters.WarnNothingCanMatch}}},
		{name: "PendingWaits", result: adapters.Result{Pending: &adapters.Pending{After: 2 * time.Second, Resume: json.RawMessage(`1`)}}, sent: true,
			want: outcome{State: invalidation.RunRunning, Wait: 2 * time.Second}},
		{name: "PollsShareABudget", result: adapters.Result{Pending: &adapters.Pending{After: 2 * time.Second, Poll: true, Resume: json.RawMessage(`1`)}},
			want: outcome{State: invalidation.RunRunning, Wait: 7 * time.Second}},
		{name: "Unsupported", err: fault(adapters.Unsupported),
			want: outcome{State: invalidation.RunUnsupported, Reason: adapters.ReasonSelectorUnsupported}},
		{name: "UnsupportedAfterSendingIsAFailure", err: fault(adapters.Unsupported), sent: true,
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonSelectorUnsupported}},
		{name: "UnsupportedAtALaterAttemptIsAFailure", before: func(r *invalidation.Run) { r.Attempts = 2 }, err: fault(adapters.Unsupported),
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonSelectorUnsupported}},
		{name: "Rejected", err: fault(adapters.Rejected), sent: true,
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonUpstreamRejected}},
		{name: "Denied", err: fault(adapters.Denied),
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonUpstreamDenied}},
		{name: "CredentialsPark", err: fault(adapters.Credentials),
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamUnauthenticated, Wait: 15 * time.Minute}},
		{name: "BusyHonoursRetryAfter", err: &adapters.Error{Kind: adapters.Busy, Message: "later", RetryAfter: 30 * time.Second},
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamBusy, Wait: 30 * time.Second}},
		{name: "UnreachableBacksOff", err: fault(adapters.Unreachable),
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamUnreachable, Wait: 500 * time.Millisecond}},
		{name: "BackoffGrows", before: func(r *invalidation.Run) { r.Retry.Failures = 3 }, err: fault(adapters.Unreachable),
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamUnreachable, Wait: 4 * time.Second}},
		{name: "BackoffIsBounded", before: func(r *invalidation.Run) { r.Retry.Failures = 1000 }, err: fault(adapters.Unreachable),
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamUnreachable, Wait: 150 * time.Second}},
		{name: "UncertainMakesTheCountAMinimum", result: adapters.Result{Counted: true, Count: 1}, err: fault(adapters.Uncertain), sent: true,
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonOutcomeUnknown, Wait: 500 * time.Millisecond, Counted: true, Count: 1, Minimum: true}},
		{name: "BadReplyToAQuestionChangesNothing", err: fault(adapters.BadReply),
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamBadReply, Wait: 500 * time.Millisecond}},
		{name: "BadReplyToAKillIsUncertain", err: fault(adapters.BadReply), sent: true,
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamBadReply, Wait: 500 * time.Millisecond, Minimum: true}},
		{name: "FailedWorkIsBegunOnceMore", err: fault(adapters.Failed), sent: true,
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamFailed, Wait: 500 * time.Millisecond}},
		{name: "FailedTwiceIsFinal", before: func(r *invalidation.Run) { r.Retry.Failed = 1 }, err: fault(adapters.Failed), sent: true,
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonUpstreamFailed}},
		{name: "StillAliveIsRetried", err: fault(adapters.StillAlive), sent: true,
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonStillAlive, Wait: 500 * time.Millisecond}},
		{name: "StillAliveFiveTimesIsRetriedNoMore", before: func(r *invalidation.Run) {
			r.Retry.StillAlive, r.Retry.StillAliveSince = 5, settleTime.Add(-time.Minute)
		}, err: fault(adapters.StillAlive), sent: true,
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonStillAlive}},
		{name: "StillAliveForTenMinutesIsRetriedNoMore", before: func(r *invalidation.Run) {
			r.Retry.StillAlive, r.Retry.StillAliveSince = 2, settleTime.Add(-10*time.Minute)
		}, err: fault(adapters.StillAlive), sent: true,
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonStillAlive}},
		{name: "FailureWithAMinimumSaysSo", before: func(r *invalidation.Run) { r.CountIsMinimum = true }, err: fault(adapters.Denied),
			want: outcome{State: invalidation.RunFailed, Reason: adapters.ReasonUpstreamDenied, Minimum: true, Warnings: []adapters.Reason{adapters.ReasonOutcomeUnknown}}},
		{name: "AnythingElseIsABugAndUncertain", err: errors.New("surprise"), sent: true,
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonInternal, Wait: 500 * time.Millisecond, Minimum: true}},
		{name: "NothingIsScheduledAfterExpiry", before: func(r *invalidation.Run) { r.ExpireTime = settleTime.Add(time.Minute) }, err: fault(adapters.Credentials),
			want: outcome{State: invalidation.RunRetrying, Reason: adapters.ReasonUpstreamUnauthenticated, Wait: time.Minute}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run := firstAttempt()
			if tc.before != nil {
				tc.before(&run)
			}
			r := invalidation.Settle(run, tc.result, tc.err, tc.sent, settleTime, 0.5, 7*time.Second)
			got := outcome{State: r.State, Counted: r.Counted, Count: r.Count, Minimum: r.CountIsMinimum, Warnings: warnings(r)}
			if r.Error != nil {
				got.Reason = r.Error.Reason
			}
			if !r.NextAttemptTime.IsZero() {
				got.Wait = r.NextAttemptTime.Sub(settleTime)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("settled (-want +got):\n%s", d)
			}
			if r.Open {
				t.Error("a settled run is still open")
			}
			if r.State.Final() != !r.CompleteTime.IsZero() || r.State.Final() != r.NextAttemptTime.IsZero() {
				t.Errorf("state %s with complete time %v and next attempt %v", r.State, r.CompleteTime, r.NextAttemptTime)
			}
			if !run.State.CanBecome(r.State) {
				t.Errorf("illegal transition %s → %s", run.State, r.State)
			}
			if (r.State == invalidation.RunSucceeded) != (r.Error == nil) && r.State != invalidation.RunRunning {
				t.Errorf("state %s with error %v", r.State, r.Error)
			}
		})
	}
}

func TestSettleKeepsHowFarItGot(t *testing.T) {
	run := firstAttempt()
	run.Resume = json.RawMessage(`{"done":["saml"]}`)
	later := invalidation.Settle(run, adapters.Result{}, adapters.Errorf(adapters.Unreachable, "x"), false, settleTime, 0, 0)
	if string(later.Resume) != string(run.Resume) {
		t.Errorf("an error without Pending: resume = %s, want %s", later.Resume, run.Resume)
	}
	later = invalidation.Settle(run, adapters.Result{Pending: &adapters.Pending{Resume: json.RawMessage(`{"done":["saml","oidc"]}`)}},
		adapters.Errorf(adapters.Unreachable, "x"), true, settleTime, 0, 0)
	if want := `{"done":["saml","oidc"]}`; string(later.Resume) != want {
		t.Errorf("an error beside Pending: resume = %s, want %s", later.Resume, want)
	}
}

// A target that takes the work every time, and every time reports that it failed, is asked twice: that it took the work
// does not start the count anew.
func TestSettleCountsFailuresAcrossCalls(t *testing.T) {
	for kind, most := range map[adapters.Kind]int{adapters.Failed: 2, adapters.StillAlive: 6} {
		run, attempts := firstAttempt(), 0
		for !run.State.Final() && attempts < 20 {
			taken := adapters.Result{Pending: &adapters.Pending{After: time.Second, Poll: true, Resume: json.RawMessage(`1`)}}
			run = invalidation.Settle(run, taken, nil, true, settleTime, 0, 0)
			run = invalidation.Settle(run, adapters.Result{}, adapters.Errorf(kind, "x"), false, settleTime, 0, 0)
			attempts++
		}
		if run.State != invalidation.RunFailed || attempts != most {
			t.Errorf("%s: %s after %d attempts, want FAILED after %d", kind, run.State, attempts, most)
		}
	}
}

func TestSettleLengthensTheBackoffOfWorkThatIsLostAgainAndAgain(t *testing.T) {
	run := firstAttempt()
	for range 5 {
		for _, poll := range []bool{true, true} {
			run = invalidation.Settle(run, adapters.Result{Pending: &adapters.Pending{Poll: poll, Resume: json.RawMessage(`1`)}}, nil, true, settleTime, 0.5, 0)
		}
		run = invalidation.Settle(run, adapters.Result{}, adapters.Errorf(adapters.Uncertain, "x"), true, settleTime, 0.5, 0)
	}
	if want := 8 * time.Second; run.Error.RetryDelay != want {
		t.Errorf("after five lost tasks the next begins in %v, want %v", run.Error.RetryDelay, want)
	}
	run = invalidation.Settle(run, adapters.Result{Pending: &adapters.Pending{Resume: json.RawMessage(`1`)}}, nil, true, settleTime, 0.5, 0)
	if run.Retry.Failures != 0 {
		t.Error("progress does not shorten it again")
	}
}

func TestSettleKeepsABoundedNumberOfSessions(t *testing.T) {
	var sessions []adapters.Session
	for i := range invalidation.MaxRunSessions + 1 {
		sessions = append(sessions, adapters.Session{ID: fmt.Sprint(i)})
	}
	run := firstAttempt()
	run = invalidation.Settle(run, adapters.Result{Counted: true, Count: 2, Sessions: sessions[:2], Pending: &adapters.Pending{}}, nil, true, settleTime, 0, 0)
	if len(run.Sessions) != 2 || run.SessionsTruncated {
		t.Fatalf("kept %d sessions, truncated %v; want 2, false", len(run.Sessions), run.SessionsTruncated)
	}
	run.State, run.Open = invalidation.RunRunning, true
	run = invalidation.Settle(run, adapters.Result{Counted: true, Count: len(sessions), Sessions: slices.Concat(sessions[1:2], sessions[2:])}, nil, true, settleTime, 0, 0)
	if len(run.Sessions) != invalidation.MaxRunSessions || !run.SessionsTruncated {
		t.Errorf("kept %d sessions, truncated %v; want %d, true", len(run.Sessions), run.SessionsTruncated, invalidation.MaxRunSessions)
	}
}

func TestCancelRun(t *testing.T) {
	pending := firstAttempt()
	pending.State, pending.Open, pending.Attempts = invalidation.RunPending, false, 0
	if r := invalidation.CancelRun(pending, settleTime); r.State != invalidation.RunCancelled || len(r.Warnings) != 0 || r.CountIsMinimum {
		t.Errorf("a run of which nothing was sent: %s, warnings %v, minimum %v; want CANCELLED and nothing else", r.State, warnings(r), r.CountIsMinimum)
	}
	r := invalidation.CancelRun(firstAttempt(), settleTime)
	if !slices.Contains(warnings(r), adapters.ReasonOutcomeUnknown) || !r.CountIsMinimum {
		t.Errorf("a run under way: warnings %v, minimum %v; want OUTCOME_UNKNOWN and true", warnings(r), r.CountIsMinimum)
	}
}
