package invalidation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Bounds of the retry policy.
const (
	firstBackoff = time.Second
	maxBackoff   = 5 * time.Minute
	// parkLength is how long a target whose credentials are refused is left alone, so that nothing locks the account.
	parkLength = 15 * time.Minute
	// Sessions that survive a kill are retried this often and this long.
	maxStillAlive       = 5
	maxStillAliveLength = 10 * time.Minute
	// maxFailed is how often work that the target reports as failed is begun again.
	maxFailed = 1
)

// attempt is what one call of an adapter's Invalidate came to.
type attempt struct {
	result adapters.Result
	err    error
	// sent is true when a request that may change something was let through the fence.
	sent bool
	at   time.Time
}

// retryPolicy decides what becomes of a run after an attempt.
type retryPolicy struct {
	// random returns a number in [0,1); it makes the jitter.
	random func() float64
	// poll returns how long to wait for a share of the target's poll budget.
	poll func() time.Duration
}

// settle is the one place where an adapter's answer becomes a run's state. It has no side effects but the policy's.
func (p retryPolicy) settle(run Run, a attempt) Run {
	begun := run.Attempts > 1 || len(run.Resume) > 0 || run.CountIsMinimum || run.Counted
	run = merge(run, a.result)
	run.Open = false
	run.NextAttemptTime = time.Time{}
	if a.result.Pending != nil {
		run.Resume = a.result.Pending.Resume
	}
	if a.err == nil && a.result.Pending == nil {
		return succeed(run, a)
	}
	if a.err == nil {
		run.State = RunRunning
		run.Error = nil
		// A task that was begun says nothing about how it will end: what failed, or survived, before is not forgotten.
		after := a.result.Pending.After
		if a.result.Pending.Poll {
			after = max(after, p.poll())
		} else {
			run.Retry.Failures = 0
		}
		return schedule(run, a.at, after)
	}

	var e *adapters.Error
	if !errors.As(a.err, &e) {
		// Neither the fence nor the context speaks here: their errors never reach settle. This is a bug of the adapter.
		e = adapters.Wrap(adapters.Uncertain, a.err, "the adapter failed")
		e.Why = adapters.ReasonInternal
	}
	if (e.Kind == adapters.Uncertain || e.Kind == adapters.BadReply) && a.sent {
		run.CountIsMinimum = true
	}
	run.Error = &RunError{Reason: e.Reason(), Message: e.Message}
	switch e.Kind {
	case adapters.Unsupported:
		if begun || a.sent {
			// Something was sent before: "unsupported" would claim that nothing was.
			return fail(run, a.at)
		}
		run.State = RunUnsupported
		return finish(run, a.at)
	case adapters.Rejected, adapters.Denied:
		return fail(run, a.at)
	case adapters.Credentials:
		return p.retry(run, a.at, parkLength)
	case adapters.Failed:
		run.Retry.Failed++
		if run.Retry.Failed > maxFailed {
			return fail(run, a.at)
		}
	case adapters.StillAlive:
		if run.Retry.StillAlive == 0 {
			run.Retry.StillAliveSince = a.at
		}
		run.Retry.StillAlive++
		if run.Retry.StillAlive > maxStillAlive || a.at.Sub(run.Retry.StillAliveSince) >= maxStillAliveLength {
			return fail(run, a.at)
		}
	}
	run.Retry.Failures++
	return p.retry(run, a.at, max(e.RetryAfter, p.backoff(run.Retry.Failures)))
}

// backoff is exponential with full jitter, never below a tenth of its ceiling: a retry is never a storm.
func (p retryPolicy) backoff(failures int) time.Duration {
	ceiling := maxBackoff
	if n := failures - 1; n < 9 { // 1 s << 9 is beyond maxBackoff
		ceiling = min(firstBackoff<<n, maxBackoff)
	}
	return max(time.Duration(p.random()*float64(ceiling)), ceiling/10)
}

func (p retryPolicy) retry(run Run, now time.Time, after time.Duration) Run {
	run.State = RunRetrying
	run.Error.RetryDelay = after
	return schedule(run, now, after)
}

// schedule sets when the run is due: never after its expire time, when it is due to be ended.
func schedule(run Run, now time.Time, after time.Duration) Run {
	run.NextAttemptTime = now.Add(after)
	if run.NextAttemptTime.After(run.ExpireTime) {
		run.NextAttemptTime = run.ExpireTime
	}
	return run
}

// merge adds what a call reported to what is known. Nothing is ever taken back: a count that once was a minimum stays
// one.
func merge(run Run, res adapters.Result) Run {
	if res.Counted {
		run.Counted = true
		run.Count += res.Count
	}
	run.CountIsMinimum = run.CountIsMinimum || res.CountIsMinimum
	run.Sessions = slices.Clone(run.Sessions)
	for _, s := range res.Sessions {
		if slices.ContainsFunc(run.Sessions, func(x adapters.Session) bool { return x.Key() == s.Key() }) {
			continue
		}
		if len(run.Sessions) >= MaxRunSessions {
			run.SessionsTruncated = true
			break
		}
		run.Sessions = append(run.Sessions, s)
	}
	if res.Covered != nil {
		run.Covered = res.Covered
	}
	for _, w := range res.Warnings {
		run = warn(run, w)
	}
	if res.Operation != "" {
		run.Operation = res.Operation
	}
	return run
}

func warn(run Run, w adapters.Warning) Run {
	if !slices.Contains(run.Warnings, w) {
		run.Warnings = append(slices.Clone(run.Warnings), w)
	}
	return run
}

// warned reports whether the run has a warning of that code.
func warned(run Run, code adapters.Reason) bool {
	return slices.ContainsFunc(run.Warnings, func(w adapters.Warning) bool { return w.Code == code })
}

func succeed(run Run, a attempt) Run {
	run.State = RunSucceeded
	run.Error = nil
	run.Verification = a.result.Verification
	nothing := warned(run, adapters.WarnNothingCanMatch)
	if nothing && !run.Counted && !a.sent && !run.CountIsMinimum {
		run.Counted = true // exactly none: nothing was sent
	}
	// Only the run as a whole can say that nothing matched: one call's zero may follow another's hit.
	run.Warnings = slices.DeleteFunc(slices.Clone(run.Warnings), func(w adapters.Warning) bool {
		return w.Code == adapters.WarnNoSessionMatched
	})
	if run.Counted && run.Count == 0 && !run.CountIsMinimum && !nothing {
		run = warn(run, adapters.Warning{Code: adapters.WarnNoSessionMatched,
			Message: "no session matched: the person is signed out, or the name is wrong"})
	}
	return finish(run, a.at)
}

func fail(run Run, now time.Time) Run {
	run.State = RunFailed
	run.Error.RetryDelay = 0
	if run.CountIsMinimum {
		run = warnUnknown(run)
	}
	return finish(run, now)
}

func finish(run Run, now time.Time) Run {
	run.CompleteTime = now
	run.NextAttemptTime = time.Time{}
	run.Open = false
	return run
}

func warnUnknown(run Run) Run {
	return warn(run, adapters.Warning{Code: adapters.ReasonOutcomeUnknown,
		Message: "requests were sent whose answers were lost: more sessions may have ended than are counted"})
}

// expired ends a run whose time has come. lost says that it was open.
func expired(run Run, lost bool, now time.Time) Run {
	if lost {
		run.CountIsMinimum = true
	}
	message := fmt.Sprintf("not completed before it expired, after %d attempts", run.Attempts)
	if run.Attempts == 1 {
		message = "not completed before it expired, after 1 attempt"
	}
	if run.Error != nil {
		message += fmt.Sprintf("; last: %s: %s", run.Error.Reason, run.Error.Message)
	}
	run.Error = &RunError{Reason: adapters.ReasonExpired, Message: message}
	return fail(run, now)
}

// ended ends a run that can never be worked on: its target is gone or means something else now.
func ended(run Run, lost bool, reason adapters.Reason, message string, now time.Time) Run {
	if lost {
		run.CountIsMinimum = true
	}
	run.Error = &RunError{Reason: reason, Message: message}
	return fail(run, now)
}

// CancelRun is what cancelling makes of a run that is not final. The store applies it in the cancelling transaction,
// whoever works on the run.
func CancelRun(run Run, now time.Time) Run {
	if run.Open {
		run.CountIsMinimum = true
	}
	run.State = RunCancelled
	run.Error = &RunError{Reason: adapters.ReasonCancelled, Message: "cancelled"}
	if run.CountIsMinimum || run.Attempts > 0 {
		run = warnUnknown(run)
	}
	return finish(run, now)
}
