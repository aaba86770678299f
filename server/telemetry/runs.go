package telemetry

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/endsession/endsession/server/invalidation"
)

var _ invalidation.Observer = (*Telemetry)(nil)

// noReason stands for the reason of what ended well.
const noReason = "NONE"

var priorities = map[invalidation.Priority]string{
	invalidation.PriorityNormal: "PRIORITY_NORMAL", invalidation.PriorityBulk: "PRIORITY_BULK",
}

// Accepted implements [invalidation.Observer].
func (t *Telemetry) Accepted(ctx context.Context, inv invalidation.Invalidation) {
	t.accepted.add(ctx, priorities[inv.Call.Priority])
	if t.traced {
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("endsession.invalidation", inv.ID))
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() && !inv.State.Final() {
		t.calls.remember(inv.ID, sc)
	}
}

// Begun implements [invalidation.Observer]. The work belongs to the trace of the call, if this process has accepted it;
// otherwise it is a trace of its own, which can be found by the invalidation's ID.
func (t *Telemetry) Begun(ctx context.Context, c invalidation.ClaimedRun) (context.Context, func()) {
	if sc, ok := t.calls.of(c.Lease.InvalidationID); ok {
		ctx = trace.ContextWithSpanContext(ctx, sc)
	}
	ctx = context.WithValue(ctx, workKey{}, &work{invalidation: c.Lease.InvalidationID, run: c.Lease.Run, target: c.Run.Target})
	if !t.traced {
		return ctx, func() {}
	}
	ctx, span := t.tracer.Start(ctx, "run", trace.WithAttributes(
		attribute.String("endsession.invalidation", c.Lease.InvalidationID),
		attribute.Int("endsession.run", c.Lease.Run),
		attribute.String("endsession.target", c.Run.Target),
		attribute.String("endsession.kind", c.Run.Kind),
		attribute.Int("endsession.attempt", c.Run.Attempts),
	))
	return ctx, func() { span.End() }
}

// Attempted implements [invalidation.Observer].
func (t *Telemetry) Attempted(ctx context.Context, run invalidation.Run, took time.Duration, result invalidation.AttemptResult) {
	t.attemptDuration.record(ctx, took.Seconds(), run.Target, run.Kind, string(result))
	if !t.traced {
		return
	}
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(attribute.String("endsession.result", string(result)))
	if result != invalidation.AttemptSucceeded && result != invalidation.AttemptPending {
		span.SetStatus(codes.Error, string(result))
	}
}

// Ended implements [invalidation.Observer].
func (t *Telemetry) Ended(ctx context.Context, run invalidation.Run, accepted time.Time) {
	reason := noReason
	if run.Error != nil && run.Error.Reason != "" {
		reason = string(run.Error.Reason)
	}
	t.runsEnded.add(ctx, run.Target, run.Kind, string(run.State), reason)
	t.runDuration.record(ctx, max(run.CompleteTime.Sub(accepted), 0).Seconds(), run.Target, run.Kind)
}

// Completed implements [invalidation.Observer].
func (t *Telemetry) Completed(ctx context.Context, id string, state invalidation.State) {
	t.completed.add(ctx, string(state))
	t.calls.forget(id)
}

// LeaseLost implements [invalidation.Observer].
func (t *Telemetry) LeaseLost(ctx context.Context, run invalidation.Run) {
	t.leasesLost.add(ctx, run.Target)
}

// PollWait implements [invalidation.Observer].
func (t *Telemetry) PollWait(target string, wait time.Duration) {
	t.pollWait.record(context.Background(), wait.Seconds(), target)
}

// maxRemembered bounds how many calls are remembered. Those that another process completes are forgotten by it only.
const maxRemembered = 8192

// remembered are the spans of the calls that this process has accepted and that are not completed. The zero value is
// ready for use.
type remembered struct {
	mu    sync.Mutex
	spans map[string]trace.SpanContext
	// ring has the IDs in the order in which they came; next is the place of the oldest once it is full.
	ring []string
	next int
}

func (r *remembered) remember(id string, sc trace.SpanContext) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spans == nil {
		r.spans = map[string]trace.SpanContext{}
	}
	r.spans[id] = sc
	if len(r.ring) < maxRemembered {
		r.ring = append(r.ring, id)
		return
	}
	delete(r.spans, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % maxRemembered
}

func (r *remembered) of(id string) (trace.SpanContext, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sc, ok := r.spans[id]
	return sc, ok
}

func (r *remembered) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.spans, id)
}
