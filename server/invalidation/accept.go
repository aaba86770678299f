package invalidation

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/google/uuid"
)

// digest is what a repeated request id is compared by: the contents of the call.
func digest(c Call, retryOf string) ([]byte, error) {
	c.OnBehalfOf = ""
	c.Targets = slices.Sorted(slices.Values(c.Targets))
	b, err := json.Marshal(struct {
		Call    Call   `json:"call"`
		RetryOf string `json:"retry_of,omitempty"`
	}{c, retryOf})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// Invalidate accepts a call and waits for its final state, as long as the request says and the context allows. The
// error is non-nil only if the call was not accepted.
func (e *Engine) Invalidate(ctx context.Context, req Request) (inv Invalidation, replayed bool, err error) {
	return e.accept(ctx, req, "")
}

func (e *Engine) accept(ctx context.Context, req Request, retryOf string) (inv Invalidation, replayed bool, err error) {
	if !e.calls.TryAcquire(1) {
		return Invalidation{}, false, &CallError{Code: Exhausted, Reason: ReasonOverloaded, Message: "too many calls at once", RetryDelay: overloadDelay}
	}
	defer e.calls.Release(1)
	now := e.now()
	runs, err := e.plan(ctx, req.Call, now)
	if err != nil {
		if inv, ok := e.replay(ctx, req, retryOf); ok {
			return inv, true, nil
		}
		return Invalidation{}, false, err
	}
	if err := e.permit(ctx, RightInvalidate, req.Caller, req.Call, runs); err != nil {
		return Invalidation{}, false, err
	}
	open := 0
	for _, r := range runs {
		if !r.State.Final() {
			open++
		}
	}
	if open > 0 && !e.backlog.admit(open) {
		if inv, ok := e.replay(ctx, req, retryOf); ok {
			return inv, true, nil
		}
		return Invalidation{}, false, &CallError{Code: Exhausted, Reason: ReasonOverloaded,
			Message: "too many runs are unfinished", RetryDelay: backlogInterval}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Invalidation{}, false, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "not accepted", Err: err}
	}
	inv = Invalidation{ID: id.String(), Revision: 1, Call: req.Call, Caller: req.Caller, RetryOf: retryOf, CreateTime: now, Runs: runs}
	if !slices.ContainsFunc(runs, unresolved) {
		inv.Caller.Facts = nil // nobody will ask for them again
	}
	inv.State = StateOf(runStates(runs), req.Call.AllowUnsupported)
	if inv.State.Final() {
		inv.CompleteTime = now
	}
	a := Acceptance{Invalidation: inv, Owner: e.owner, LeaseLength: e.leaseLength, Events: []Event{acceptEvent(inv)}}
	if req.RequestID != "" {
		a.RequestID = req.RequestID
		if a.Digest, err = digest(req.Call, retryOf); err != nil {
			return Invalidation{}, false, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "not accepted", Err: err}
		}
	}
	for i, r := range runs {
		if r.State == RunPending && r.Selector != nil && e.workers[r.Target].tryStart() {
			a.Start = append(a.Start, i)
		}
	}
	known, forget := e.hub.follow(inv.ID)
	defer forget()
	asked := time.Now()
	accepted, replayed, leases, err := e.journal(ctx, a)
	for _, i := range a.Start {
		if !slices.ContainsFunc(leases, func(l Lease) bool { return l.Run == i }) {
			e.workers[runs[i].Target].free() // not accepted, accepted before, or not known to be ours
		}
	}
	switch {
	case err != nil:
		return Invalidation{}, false, err
	case replayed:
		changes, unsubscribe := e.hub.subscribe(accepted.ID)
		defer unsubscribe()
		return e.wait(ctx, accepted, req.Wait, changes, e.store.Get), true, nil
	default:
		known.accepted(accepted)
		e.accepted(ctx, accepted)
		for _, l := range leases {
			e.workers[accepted.Runs[l.Run].Target].start(ClaimedRun{Lease: l, Run: accepted.Runs[l.Run], CreateTime: accepted.CreateTime,
				Priority: req.Call.Priority, Selector: req.Call.Selector, Caller: req.Caller}, asked)
		}
		for i, r := range accepted.Runs {
			if !r.State.Final() && !slices.Contains(a.Start, i) {
				e.workers[r.Target].signal()
			}
		}
	}
	return e.wait(ctx, accepted, req.Wait, known.wake, func(ctx context.Context, id string) (Invalidation, error) {
		return known.look(func() (Invalidation, error) { return e.store.Get(ctx, id) })
	}), false, nil
}

// replay answers a repeated call that would not be accepted now: a target it names may be gone since.
func (e *Engine) replay(ctx context.Context, req Request, retryOf string) (Invalidation, bool) {
	if req.RequestID == "" {
		return Invalidation{}, false
	}
	sum, err := digest(req.Call, retryOf)
	if err != nil {
		return Invalidation{}, false
	}
	inv, err := e.store.Replay(ctx, req.Caller, req.RequestID, sum)
	if err != nil || !e.readable(ctx, req.Caller, inv) {
		return Invalidation{}, false // unknown, or another call: the refusal stands
	}
	changes, unsubscribe := e.hub.subscribe(inv.ID)
	defer unsubscribe()
	return e.wait(ctx, inv, req.Wait, changes, e.store.Get), true
}

// journal writes the acceptance. It does not die with the caller's connection: from here on the call may be accepted.
func (e *Engine) journal(ctx context.Context, a Acceptance) (Invalidation, bool, []Lease, error) {
	if ctx.Err() != nil {
		return Invalidation{}, false, nil, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "the caller left before the call was accepted", Err: ctx.Err()}
	}
	jctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	inv, replayed, leases, err := e.store.Accept(jctx, a)
	switch {
	case err == nil:
		return inv, replayed, leases, nil
	case errors.Is(err, ErrRequestReused):
		return Invalidation{}, false, nil, &CallError{Code: AlreadyExists, Reason: ReasonRequestReused, Field: "request_id",
			Message: "request_id was used for a request with other contents"}
	case errors.Is(err, ErrCommitUnknown):
		if inv, found := e.lookUp(ctx, a.Invalidation.ID); found {
			// The leases are ours by name only; they end by themselves and the runs are claimed again.
			return inv, false, nil, nil
		}
		return Invalidation{}, false, nil, &CallError{Code: AcceptanceUnknown, Reason: ReasonAcceptanceUnknown, ID: a.Invalidation.ID,
			Message: "the journal's answer was lost; look the invalidation up by its name", RetryDelay: overloadDelay, Err: err}
	}
	return Invalidation{}, false, nil, &CallError{Code: Unavailable, Reason: ReasonNotAccepted,
		Message: "the journal cannot be written; nothing was accepted and nothing was sent", RetryDelay: overloadDelay, Err: err}
}

// lookUp finds out what became of a commit whose answer was lost.
func (e *Engine) lookUp(ctx context.Context, id string) (Invalidation, bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	inv, err := e.store.Get(ctx, id)
	return inv, err == nil
}

// wait returns the invalidation when it is final, or as it stands when the time is up or the context nears its end. After
// each change it looks, and when the time is up, into the journal: news of another process may be late.
func (e *Engine) wait(ctx context.Context, inv Invalidation, length time.Duration, changes <-chan struct{},
	look func(ctx context.Context, id string) (Invalidation, error)) Invalidation {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		length = min(length, left-min(max(left/10, 20*time.Millisecond), time.Second))
	}
	if inv.State.Final() || length <= 0 {
		return inv
	}
	timer := time.NewTimer(length)
	defer timer.Stop()
	for up := false; !up; {
		select {
		case <-changes:
		case <-timer.C:
			up, look = true, e.store.Get
		case <-ctx.Done():
			return inv
		}
		newer, err := look(ctx, inv.ID)
		if err != nil {
			if ctx.Err() == nil {
				e.log.ErrorContext(ctx, "read invalidation", "invalidation", inv.ID, "error", err)
			}
			continue
		}
		if inv = newer; inv.State.Final() {
			return inv
		}
	}
	return inv
}

func runStates(runs []Run) []RunState {
	states := make([]RunState, len(runs))
	for i, r := range runs {
		states[i] = r.State
	}
	return states
}

// planned is what an event says of a run that has not begun: what would be sent, and on what terms.
type planned struct {
	Target   string             `json:"target"`
	State    RunState           `json:"state"`
	Selector *adapters.Selector `json:"selector,omitempty"`
	Terms    Terms              `json:"terms,omitzero"`
	Error    *RunError          `json:"error,omitempty"`
}

func plans(runs []Run) []planned {
	all := make([]planned, len(runs))
	for i, r := range runs {
		all[i] = planned{r.Target, r.State, r.Selector, r.Terms, r.Error}
	}
	return all
}

// acceptEvent is the audit event of an acceptance; it is journalled before the first request is sent.
func acceptEvent(inv Invalidation) Event {
	data := struct {
		Call    Call      `json:"call"`
		RetryOf string    `json:"retry_of,omitempty"`
		Runs    []planned `json:"runs"`
	}{inv.Call, inv.RetryOf, plans(inv.Runs)}
	return Event{Time: inv.CreateTime, Type: "invalidation.accepted", Caller: inv.Caller, InvalidationID: inv.ID, Data: mustJSON(data)}
}
