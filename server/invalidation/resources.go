package invalidation

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"golang.org/x/sync/errgroup"
)

// Get returns an invalidation; with wait > 0 it first waits so long for the final state.
func (e *Engine) Get(ctx context.Context, caller Caller, id string, wait time.Duration) (Invalidation, error) {
	changes, unsubscribe := e.hub.subscribe(id)
	defer unsubscribe()
	inv, err := e.read(ctx, caller, id)
	if err != nil {
		return Invalidation{}, err
	}
	return e.wait(ctx, inv, wait, changes, e.store.Get), nil
}

// read returns an invalidation that the caller may know of; what it may not is not found.
func (e *Engine) read(ctx context.Context, caller Caller, id string) (Invalidation, error) {
	inv, err := e.store.Get(ctx, id)
	if err == nil && !e.readable(ctx, caller, inv) {
		err = ErrNotFound
	}
	if err != nil {
		return Invalidation{}, readError(err, id)
	}
	return inv, nil
}

// readError translates the journal's error for a call that changes nothing, or changed nothing.
func readError(err error, id string) error {
	switch {
	case errors.Is(err, ErrNotFound):
		return &CallError{Code: NotFound, Reason: ReasonNotFound, Message: fmt.Sprintf("there is no invalidation %q", id)}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "the journal is not available", RetryDelay: overloadDelay, Err: err}
}

// List returns a page of invalidations, newest first, and whether there are more.
func (e *Engine) List(ctx context.Context, caller Caller, q Query) ([]Invalidation, bool, error) {
	q, err := e.readScope(ctx, caller, q)
	if err != nil {
		return nil, false, err
	}
	invs, more, err := e.store.List(ctx, q)
	if err != nil {
		return nil, false, readError(err, "")
	}
	return invs, more, nil
}

// Watch yields the invalidation as it is and after every change, repeated every 20 s as a heartbeat; it ends after the
// final state, or with an error. Intermediate revisions may be skipped.
func (e *Engine) Watch(ctx context.Context, caller Caller, id string) iter.Seq2[Invalidation, error] {
	return func(yield func(Invalidation, error) bool) {
		changes, unsubscribe := e.hub.subscribe(id)
		defer unsubscribe()
		beat := time.NewTicker(heartbeat)
		defer beat.Stop()
		var seen int64
		repeat := false
		for {
			inv, err := e.read(ctx, caller, id)
			if err != nil {
				yield(Invalidation{}, err)
				return
			}
			if inv.Revision > seen || repeat {
				seen = inv.Revision
				if !yield(inv, nil) || inv.State.Final() {
					return
				}
			}
			repeat = false
			select {
			case <-changes:
			case <-beat.C:
				repeat = true
			case <-ctx.Done():
				yield(Invalidation{}, ctx.Err())
				return
			}
		}
	}
}

// Cancel ends what is not final of an invalidation. Attempts under way are broken off; if something may have been sent,
// their runs say so.
func (e *Engine) Cancel(ctx context.Context, caller Caller, id string) (Invalidation, error) {
	inv, err := e.read(ctx, caller, id)
	if err != nil {
		return Invalidation{}, err
	}
	if _, err := e.judge(ctx, about(RightCancel, caller, inv)); err != nil {
		return Invalidation{}, err
	}
	return e.cancel(ctx, caller, inv)
}

// cancel does what the caller may. read is the invalidation as it was found.
func (e *Engine) cancel(ctx context.Context, caller Caller, read Invalidation) (Invalidation, error) {
	now, id := e.now(), read.ID
	unfinished := targetsOf(slices.DeleteFunc(slices.Clone(read.Runs), func(r Run) bool { return r.State.Final() }))
	jctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	inv, err := e.store.Cancel(jctx, id, now, []Event{{Time: now, Type: "invalidation.cancelled", Caller: caller, InvalidationID: id,
		Data: mustJSON(map[string][]string{"unfinished": unfinished})}})
	if errors.Is(err, ErrFinal) {
		if inv.State == Cancelled {
			return inv, nil // again: the answer is the same
		}
		return inv, &CallError{Code: FailedPrecondition, Reason: ReasonAlreadyFinal, Message: "the invalidation has ended already"}
	}
	if err != nil {
		return Invalidation{}, readError(err, id)
	}
	e.lose(id)
	// Nothing else cancels runs, and nobody can cancel an invalidation twice.
	e.endedAtOnce(ctx, inv, func(r Run) bool { return r.State == RunCancelled })
	return inv, nil
}

// cancelAtOnce is how many invalidations a cancellation by label works on at a time: they share the journal's commits.
const cancelAtOnce = 32

// CancelByLabel cancels every unfinished invalidation that carries the label, of those that the caller may read and
// cancel; if there are some that it may read only, they are counted. If it ends early, with the caller's
// deadline, what it has cancelled stays so; it can be repeated.
func (e *Engine) CancelByLabel(ctx context.Context, caller Caller, key, value string) (CancelSummary, error) {
	var sum CancelSummary
	q, err := e.readScope(ctx, caller, Query{Labels: map[string]string{key: value}, Limit: 500})
	if err != nil {
		return sum, err
	}
	var refusal error
	for {
		invs, more, err := e.store.List(ctx, q)
		if err != nil {
			return sum, readError(err, "")
		}
		cancelled, denied := make([]bool, len(invs)), make([]error, len(invs))
		group, gctx := errgroup.WithContext(ctx)
		group.SetLimit(cancelAtOnce)
		for i, inv := range invs {
			q.Before = inv.ID
			if inv.State.Final() {
				continue
			}
			group.Go(func() error {
				if gctx.Err() != nil {
					return gctx.Err()
				}
				var ce *CallError
				if _, err := e.judge(gctx, about(RightCancel, caller, inv)); errors.As(err, &ce) && ce.Code == Denied {
					denied[i] = err
					return nil
				} else if err != nil {
					return err // no answer is no refusal
				}
				_, err := e.cancel(gctx, caller, inv)
				if errors.As(err, &ce) && (ce.Code == FailedPrecondition || ce.Code == NotFound) {
					return nil // it has ended meanwhile
				}
				cancelled[i] = err == nil
				return err
			})
		}
		err = group.Wait()
		for i, inv := range invs {
			switch {
			case cancelled[i]:
				sum.Cancelled = append(sum.Cancelled, inv.ID)
			case denied[i] != nil:
				sum.NotAllowed++
				refusal = denied[i]
			case err == nil:
				sum.AlreadyFinal++
			}
		}
		if err == nil && (!more || len(invs) == 0) && len(sum.Cancelled) == 0 && sum.AlreadyFinal == 0 {
			err = refusal // there is nothing else to tell
		}
		if err != nil || !more || len(invs) == 0 {
			return sum, err
		}
	}
}

// Retry makes a new invalidation for the targets at which the old one failed. It is resolved, checked and
// confirmed like any other.
func (e *Engine) Retry(ctx context.Context, req RetryRequest) (inv Invalidation, replayed bool, err error) {
	old, err := e.read(ctx, req.Caller, req.ID)
	if err != nil {
		return Invalidation{}, false, err
	}
	if _, err := e.judge(ctx, about(RightRetry, req.Caller, old)); err != nil {
		return Invalidation{}, false, err
	}
	if !old.State.Final() {
		return Invalidation{}, false, &CallError{Code: FailedPrecondition, Reason: ReasonNotFinal, Message: "the invalidation is still running"}
	}
	call := old.Call
	call.ConfirmBroad = req.ConfirmBroad
	if req.Reason != "" {
		call.Reason = req.Reason
	}
	if req.RetryFor != 0 {
		call.RetryFor = req.RetryFor
	}
	var targets []string
	for _, r := range old.Runs {
		if r.State != RunFailed {
			continue
		}
		if !e.configured(r.Target) {
			return Invalidation{}, false, &CallError{Code: FailedPrecondition, Reason: ReasonUnknownTarget,
				Message: fmt.Sprintf("target %q is no longer configured", r.Target)}
		}
		targets = append(targets, r.Target)
	}
	if len(targets) == 0 {
		return Invalidation{}, false, &CallError{Code: FailedPrecondition, Reason: ReasonNothingToRetry, Message: "it failed at no target"}
	}
	if len(call.Selector.Sessions) > 0 {
		call.Selector.Sessions = slices.DeleteFunc(slices.Clone(call.Selector.Sessions), func(s SessionRef) bool {
			return !slices.Contains(targets, s.Target)
		})
	} else {
		call.Targets = targets
	}
	return e.accept(ctx, Request{Caller: req.Caller, Call: call, RequestID: req.RequestID, Wait: req.Wait}, old.ID)
}

// Preview says what a call would do at every target; nothing is journalled but the audit event.
func (e *Engine) Preview(ctx context.Context, caller Caller, call Call) ([]TargetPreview, error) {
	if !e.calls.TryAcquire(1) {
		return nil, &CallError{Code: Exhausted, Reason: ReasonOverloaded, Message: "too many calls at once", RetryDelay: overloadDelay}
	}
	defer e.calls.Release(1)
	now := e.now()
	runs, err := e.plan(ctx, call, now)
	if err != nil {
		return nil, err
	}
	if err := e.permit(ctx, RightPreview, caller, call, runs); err != nil {
		return nil, err
	}
	if err := e.audit(ctx, Event{Time: now, Type: "invalidation.previewed", Caller: caller, Data: mustJSON(struct {
		Call Call      `json:"call"`
		Runs []planned `json:"runs"`
	}{call, plans(runs)})}); err != nil {
		return nil, err
	}
	previews := make([]TargetPreview, len(runs))
	var wg sync.WaitGroup
	for i, r := range runs {
		wg.Go(func() { previews[i] = e.preview(ctx, r) })
	}
	wg.Wait()
	return previews, ctx.Err()
}

// preview asks one target's adapter.
func (e *Engine) preview(ctx context.Context, r Run) TargetPreview {
	p := TargetPreview{Target: r.Target, Kind: r.Kind, Err: r.Error, Unsupported: r.State == RunUnsupported}
	p.Warnings = r.Warnings
	if r.Selector == nil {
		return p
	}
	w := e.workers[r.Target]
	ctx, cancel := context.WithTimeout(ctx, previewTimeout)
	defer cancel()
	if err := w.slots.acquire(ctx); err != nil {
		p.Err = &RunError{Reason: adapters.ReasonUpstreamBusy, Message: "the target is busy with other runs"}
		return p
	}
	defer w.free()
	got, err := w.target.Adapter.Preview(adapters.WithVetting(ctx, e.vetting(r)), *r.Selector)
	if err != nil {
		p.Err, p.Unsupported = previewError(err)
		return p
	}
	got.Warnings = append(slices.Clone(r.Warnings), got.Warnings...)
	p.Preview = got
	if len(p.Sessions) > MaxRunSessions {
		p.Sessions, p.SessionsTruncated = p.Sessions[:MaxRunSessions], true
	}
	return p
}

func previewError(err error) (_ *RunError, unsupported bool) {
	var ae *adapters.Error
	if errors.As(err, &ae) {
		return &RunError{Reason: ae.Reason(), Message: ae.Message}, ae.Kind == adapters.Unsupported
	}
	return &RunError{Reason: adapters.ReasonUpstreamUnreachable, Message: "the target did not answer in time"}, false
}

// audit journals events that change nothing else.
func (e *Engine) audit(ctx context.Context, events ...Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	if err := e.store.Audit(ctx, events); err != nil {
		return readError(err, "")
	}
	return nil
}

// Targets returns the configured targets and what is known of them.
func (e *Engine) Targets(ctx context.Context, caller Caller) ([]TargetStatus, error) {
	if _, err := e.judge(ctx, Question{Right: RightListTargets, Caller: caller}); err != nil {
		return nil, err
	}
	var all []TargetStatus
	for _, t := range e.targets {
		all = append(all, e.workers[t.Name].status())
	}
	return all, nil
}

func (w *worker) status() TargetStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := TargetStatus{Name: w.target.Name, Kind: w.target.Kind, State: TargetActive, Supported: w.target.supported(),
		Health: w.health, CheckTime: w.checkTime}
	switch {
	case w.pause != nil:
		p := *w.pause
		s.State, s.Pause = TargetPaused, &p
	case !w.parkedUntil.IsZero():
		s.State = TargetParked
	}
	return s
}

// worker returns a configured target's worker, to do something that the caller may.
func (e *Engine) worker(ctx context.Context, right Right, caller Caller, target string) (*worker, error) {
	if _, err := e.judge(ctx, Question{Right: right, Caller: caller, Targets: []string{target}}); err != nil {
		return nil, err
	}
	if !e.configured(target) {
		return nil, &CallError{Code: NotFound, Reason: ReasonUnknownTarget, Message: fmt.Sprintf("there is no target %q", target)}
	}
	return e.workers[target], nil
}

// CheckTarget probes a target, also one that is paused or parked; it ends nothing. Calls that come while a probe is under
// way share what it finds.
func (e *Engine) CheckTarget(ctx context.Context, caller Caller, target string) (adapters.Health, error) {
	w, err := e.worker(ctx, RightCheck, caller, target)
	if err != nil {
		return adapters.Health{}, err
	}
	if err := e.audit(ctx, Event{Time: e.now(), Type: "target.checked", Caller: caller, Target: target}); err != nil {
		return adapters.Health{}, err
	}
	return w.probe(ctx)
}

// PauseTarget makes a target's runs wait. Attempts under way stop before the next request that would change something.
func (e *Engine) PauseTarget(ctx context.Context, caller Caller, target, reason string) (TargetStatus, error) {
	w, err := e.worker(ctx, RightPause, caller, target)
	if err != nil {
		return TargetStatus{}, err
	}
	now := e.now()
	p := Pause{Target: target, Caller: caller, Reason: reason, Time: now}
	e.pausing.Lock()
	defer e.pausing.Unlock()
	err = e.store.Pause(ctx, p, []Event{{Time: now, Type: "target.paused", Caller: caller, Target: target,
		Data: mustJSON(map[string]string{"reason": reason})}})
	if err != nil {
		return TargetStatus{}, readError(err, "")
	}
	w.mu.Lock()
	w.pause = &p
	w.mu.Unlock()
	return w.status(), nil
}

// ResumeTarget ends a pause, and lets a parked target be tried at once.
func (e *Engine) ResumeTarget(ctx context.Context, caller Caller, target string) (TargetStatus, error) {
	w, err := e.worker(ctx, RightPause, caller, target)
	if err != nil {
		return TargetStatus{}, err
	}
	e.pausing.Lock()
	defer e.pausing.Unlock()
	err = e.store.Resume(ctx, target, []Event{{Time: e.now(), Type: "target.resumed", Caller: caller, Target: target}})
	if err != nil {
		return TargetStatus{}, readError(err, "")
	}
	w.mu.Lock()
	w.pause = nil
	w.mu.Unlock()
	w.unpark(ctx)
	w.reconsider()
	return w.status(), nil
}

// TargetChanged lets a parked target be tried at once: it is signed in to otherwise now.
func (e *Engine) TargetChanged(ctx context.Context, target string) {
	if w := e.workers[target]; w != nil {
		w.unpark(ctx)
		w.reconsider()
	}
}

// Ready reports whether the journal can be written: whether calls can be accepted.
func (e *Engine) Ready(ctx context.Context) error { return e.store.Ready(ctx) }
