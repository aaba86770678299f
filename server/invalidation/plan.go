package invalidation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/endsession/endsession/adapters"
)

// plan resolves a call at every target it concerns. Nothing is sent and nothing journalled.
func (e *Engine) plan(ctx context.Context, call Call, now time.Time) ([]Run, error) {
	if err := e.check(call); err != nil {
		return nil, err
	}
	var runs []Run
	for _, t := range e.chosen(call) {
		run := Run{Target: t.Name, Kind: t.Kind, Fingerprint: e.workers[t.Name].fingerprint, State: RunPending,
			ExpireTime: now.Add(retryFor(call, t)), NextAttemptTime: now}
		runs = append(runs, e.resolve(ctx, t, call.Selector, run, now))
	}
	return runs, nil
}

// check refuses calls that contradict themselves or name what does not exist.
func (e *Engine) check(call Call) error {
	invalid := func(reason adapters.Reason, field, format string, args ...any) error {
		return &CallError{Code: InvalidArgument, Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)}
	}
	if err := call.Selector.Validate(); err != nil {
		return invalid(ReasonInvalidArgument, "selector", "%v", err)
	}
	if call.Selector.Broad() && !call.ConfirmBroad {
		return invalid(ReasonConfirmBroad, "confirm_broad", "the selector names neither a user nor sessions: confirm_broad must be true")
	}
	if len(call.Selector.Sessions) > 0 && len(call.Targets) > 0 {
		return invalid(ReasonInvalidArgument, "targets", "must be empty: the sessions name their targets")
	}
	for i, name := range call.Targets {
		if !e.configured(name) {
			return invalid(ReasonUnknownTarget, fmt.Sprintf("targets[%d]", i), "there is no target %q", name)
		}
		if slices.Index(call.Targets, name) != i {
			return invalid(ReasonInvalidArgument, fmt.Sprintf("targets[%d]", i), "%q is named twice", name)
		}
	}
	for i, s := range call.Selector.Sessions {
		if !e.configured(s.Target) {
			return invalid(ReasonUnknownTarget, fmt.Sprintf("selector.sessions[%d].target", i), "there is no target %q", s.Target)
		}
	}
	if u := call.Selector.User; u != nil {
		for name := range u.TargetUsernames {
			if !e.configured(name) {
				return invalid(ReasonUnknownTarget, "selector.user.target_usernames", "there is no target %q", name)
			}
		}
	}
	return nil
}

func (e *Engine) configured(name string) bool {
	w := e.workers[name]
	return w != nil && !w.removed
}

// chosen returns the targets a call concerns, in the order of the configuration.
func (e *Engine) chosen(call Call) []Target {
	names := call.Targets
	if len(call.Selector.Sessions) > 0 {
		names = call.Selector.SessionTargets()
	}
	if len(names) == 0 {
		return e.targets
	}
	var ts []Target
	for _, t := range e.targets {
		if slices.Contains(names, t.Name) {
			ts = append(ts, t)
		}
	}
	return ts
}

// retryFor is how long a run is retried: what the caller asks for, capped by the target.
func retryFor(call Call, t Target) time.Duration {
	most := t.RetryFor
	if most == 0 {
		most = DefaultRetryFor
	}
	want := call.RetryFor
	if want == 0 {
		want = most
		if call.Selector.Broad() {
			want = DefaultRetryForBroad
		}
	}
	return min(want, most)
}

// resolve turns the canonical selector into the target's names, once. A run that cannot be resolved, or need not be
// sent, is final at once.
func (e *Engine) resolve(ctx context.Context, t Target, sel Selector, run Run, now time.Time) Run {
	res, err := e.resolver.Resolve(ctx, t.Name, sel)
	if err != nil {
		var re *ResolveError
		if !errors.As(err, &re) {
			e.log.ErrorContext(ctx, "resolve selector", "target", t.Name, "error", err)
			re = &ResolveError{Reason: adapters.ReasonInternal, Message: "the selector could not be resolved"}
		}
		run.Error = &RunError{Reason: re.Reason, Message: re.Message}
		switch {
		case re.Retryable:
			run.Error.RetryDelay = directoryRetry
			return schedule(run, now, directoryRetry)
		case re.Unsupported:
			run.State = RunUnsupported
			return finish(run, now)
		}
		return fail(run, now)
	}
	run.Error = nil
	for _, w := range res.Warnings {
		run = warn(run, w)
	}
	if res.Nothing {
		if !warned(run, adapters.WarnNothingCanMatch) { // the resolver knows better why
			run = warn(run, adapters.Warning{Code: adapters.WarnNothingCanMatch, Message: "no session at this target can match; nothing was sent"})
		}
		run.State = RunSucceeded
		run.Counted = true
		return finish(run, now)
	}
	if err := supports(t, res.Selector); err != nil {
		run.Error = err
		run.State = RunUnsupported
		return finish(run, now)
	}
	run.Selector = &res.Selector
	return run
}

// supports says whether the target can end exactly the sessions of a resolved selector.
func supports(t Target, sel adapters.Selector) *RunError {
	if err := sel.Validate(); err != nil {
		return &RunError{Reason: adapters.ReasonInternal, Message: err.Error()}
	}
	if !t.Type.Supports(sel.By) {
		return &RunError{Reason: adapters.ReasonSelectorUnsupported, Message: fmt.Sprintf("%s cannot end sessions by %s", t.Kind, sel.By)}
	}
	if err := t.Adapter.Supports(sel); err != nil {
		run := &RunError{Reason: adapters.ReasonSelectorUnsupported, Message: err.Error()}
		var ae *adapters.Error
		if errors.As(err, &ae) {
			run.Reason, run.Message = ae.Reason(), ae.Message
		}
		return run
	}
	return nil
}

// unresolved reports whether a run waits for its directory.
func unresolved(r Run) bool { return !r.State.Final() && r.Selector == nil }

// resolveLate resolves a run whose directory did not answer at acceptance. Nothing was sent yet, so what the policy says
// now counts: of the names that are known only now, and of the call as a whole.
func (e *Engine) resolveLate(ctx context.Context, t Target, c ClaimedRun, now time.Time) Run {
	run := c.Run
	run.NextAttemptTime = now
	run = e.resolve(ctx, t, c.Selector, run, now)
	if run.Selector == nil {
		return run
	}
	inv, err := e.store.Get(ctx, c.Lease.InvalidationID)
	if err != nil {
		e.log.ErrorContext(ctx, "read the invalidation of a run that was resolved", "invalidation", c.Lease.InvalidationID, "error", err)
		run = c.Run
		return schedule(run, now, directoryRetry)
	}
	inv.Runs[c.Lease.Run] = run
	terms, err := e.judge(ctx, Question{Right: RightInvalidate, Caller: inv.Caller, Call: &inv.Call, Targets: targetsOf(inv.Runs),
		Names: names(inv.Runs)})
	var ce *CallError
	switch {
	case ctx.Err() != nil: // the policy had no time to answer
		run = c.Run
		return schedule(run, now, directoryRetry)
	case errors.As(err, &ce):
		run.Error = &RunError{Reason: ce.Reason, Message: "the policy does not allow what the names turned out to be; nothing was sent"}
	case e.spares(c.Selector, terms):
		run.Error = &RunError{Reason: adapters.ReasonProtected, Message: "the user is protected; nothing was sent"}
	default:
		return e.brake(run, terms)
	}
	run.Selector = nil
	return fail(run, now)
}
