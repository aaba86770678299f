package invalidation

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Observer is told what the engine does, in the engine's own words; package telemetry makes metrics and traces of it. It
// is an interface of ours rather than OpenTelemetry's: what metrics and spans are called, and that nobody's name gets
// into them, is then decided in one place, and not along the way of a run. Methods must not block.
type Observer interface {
	// Accepted is told of an invalidation that was journalled, as it was then, before anything is done for it. ctx is the
	// call's.
	Accepted(ctx context.Context, inv Invalidation)
	// Begun is told of a run that this process has taken up. What is done for it is done in the context returned; done is
	// called when what it came to is journalled, or known not to be this process's to journal.
	Begun(ctx context.Context, c ClaimedRun) (_ context.Context, done func())
	// Attempted is told what one call of an adapter came to, and how long it took. A poll of the target's own work is a
	// call of its own. ctx is of Begun.
	Attempted(ctx context.Context, run Run, took time.Duration, result AttemptResult)
	// Ended is told of a run that has reached its final state. accepted is when its invalidation was.
	Ended(ctx context.Context, run Run, accepted time.Time)
	// Completed is told of an invalidation whose last run has ended.
	Completed(ctx context.Context, id string, state State)
	// LeaseLost is told of a run that is no longer this process's to work on: it was cancelled or taken over meanwhile, or
	// its lease could not be renewed in time.
	LeaseLost(ctx context.Context, run Run)
	// PollWait is told how long a target's next poll must wait, because all polls of a target share a budget.
	PollWait(target string, wait time.Duration)
}

// AttemptResult is what one call of an adapter came to: one of the results below, or the kind of its error.
type AttemptResult string

// The results of calls that returned no error of the adapter's.
const (
	// AttemptSucceeded: the target confirmed.
	AttemptSucceeded AttemptResult = "succeeded"
	// AttemptPending: the target works on and is to be asked again.
	AttemptPending AttemptResult = "pending"
	// AttemptInterrupted: the gateway itself broke the call off: its lease or its time was over, the target was paused, or
	// the process is stopping.
	AttemptInterrupted AttemptResult = "interrupted"
	// AttemptBroken: the adapter returned an error that it must not return: a defect.
	AttemptBroken AttemptResult = "broken"
)

// resultOf is the result of an attempt that settle judges.
func resultOf(a attempt) AttemptResult {
	var e *adapters.Error
	switch {
	case a.err == nil && a.result.Pending != nil:
		return AttemptPending
	case a.err == nil:
		return AttemptSucceeded
	case errors.As(a.err, &e):
		return AttemptResult(strings.ReplaceAll(e.Kind.String(), " ", "_"))
	}
	return AttemptBroken
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Accepted(context.Context, Invalidation) {}
func (nobody) Begun(ctx context.Context, _ ClaimedRun) (context.Context, func()) {
	return ctx, func() {}
}
func (nobody) Attempted(context.Context, Run, time.Duration, AttemptResult) {}
func (nobody) Ended(context.Context, Run, time.Time)                        {}
func (nobody) Completed(context.Context, string, State)                     {}
func (nobody) LeaseLost(context.Context, Run)                               {}
func (nobody) PollWait(string, time.Duration)                               {}

// accepted tells the observer of a new invalidation, and of what of it is final already.
func (e *Engine) accepted(ctx context.Context, inv Invalidation) {
	e.observer.Accepted(ctx, inv)
	e.endedAtOnce(ctx, inv, func(r Run) bool { return r.State.Final() })
}

// endedAtOnce tells the observer of the runs that ended in one transaction, and of the invalidation if it did.
func (e *Engine) endedAtOnce(ctx context.Context, inv Invalidation, which func(Run) bool) {
	for _, r := range inv.Runs {
		if which(r) {
			e.observer.Ended(ctx, r, inv.CreateTime)
		}
	}
	if inv.State.Final() {
		e.observer.Completed(ctx, inv.ID, inv.State)
	}
}

// Readings are what can be measured at any moment.
type Readings struct {
	// ClockSkew is how far the journal's clock is ahead of this process's; 0 if no difference can be measured.
	ClockSkew time.Duration
	// Targets are those that are configured, and those of which unfinished runs were found at the start.
	Targets []TargetReadings
}

// TargetReadings are what can be measured of one target.
type TargetReadings struct {
	Target, Kind string
	// Unfinished is how many runs were not final when the journal was asked last, at most a quarter of a minute ago; Age
	// how old the oldest of them is, since its acceptance.
	Unfinished int
	Age        time.Duration
	// Working is how many runs this process works on now, Slots how many it may, Concurrency how many may be worked on in
	// all processes together.
	Working, Slots, Concurrency int
	// Breaker is the state of the circuit breaker: "closed" (all is well), "open" or "half_open".
	Breaker string
	// Parked: the target refused the account's credentials, and is left alone. Paused: by a caller.
	Parked, Paused bool
	// Probed says whether the target was probed yet, Healthy what the last probe found.
	Probed, Healthy bool
}

// Readings measures. It asks neither the journal nor a target.
func (e *Engine) Readings() Readings {
	r := Readings{ClockSkew: time.Duration(e.skew.Load())}
	unfinished := *e.backlog.byTarget.Load()
	for _, w := range e.workers {
		t := w.readings()
		if u, ok := unfinished[t.Target]; ok {
			t.Unfinished, t.Age = u.Runs, max(e.now().Sub(u.Oldest), 0)
		}
		r.Targets = append(r.Targets, t)
	}
	return r
}

func (w *worker) readings() TargetReadings {
	t := TargetReadings{
		Target: w.target.Name, Kind: w.target.Kind, Working: int(w.working.Load()), Slots: int(w.slots.count.Load()),
		Concurrency: w.target.Concurrency, Breaker: strings.ReplaceAll(w.breaker.State().String(), "-", "_"),
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Paused, t.Parked = w.pause != nil, !w.parkedUntil.IsZero()
	t.Probed, t.Healthy = !w.checkTime.IsZero(), w.health.Healthy()
	return t
}
