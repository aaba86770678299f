package invalidation

import (
	"context"
	"iter"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Engine accepts calls and drives what it accepted.
type Engine struct{}

// Invalidate accepts a call and waits for its final state, as long as the request says and the context allows. The
// error is non-nil only if the call was not accepted.
func (e *Engine) Invalidate(ctx context.Context, req Request) (inv Invalidation, replayed bool, err error) {
	panic("soon")
}

// Preview says what a call would do at every target; nothing is journalled but the audit event.
func (e *Engine) Preview(ctx context.Context, caller Caller, call Call) ([]TargetPreview, error) {
	panic("soon")
}

// Get returns an invalidation; with wait > 0 it first waits so long for the final state.
func (e *Engine) Get(ctx context.Context, caller Caller, id string, wait time.Duration) (Invalidation, error) {
	panic("soon")
}

// List returns a page of invalidations, newest first, and whether there are more.
func (e *Engine) List(ctx context.Context, caller Caller, q Query) ([]Invalidation, bool, error) {
	panic("soon")
}

// Watch yields the invalidation as it is and after every change, repeated every 20 s as a heartbeat; it ends after the
// final state, or with an error. Intermediate revisions may be skipped.
func (e *Engine) Watch(ctx context.Context, caller Caller, id string) iter.Seq2[Invalidation, error] {
	panic("soon")
}

// Cancel ends what is not final of an invalidation.
func (e *Engine) Cancel(ctx context.Context, caller Caller, id string) (Invalidation, error) {
	panic("soon")
}

// CancelByLabel cancels every unfinished invalidation that carries the label.
func (e *Engine) CancelByLabel(ctx context.Context, caller Caller, key, value string) (CancelSummary, error) {
	panic("soon")
}

// Retry makes a new invalidation for the targets that did not succeed.
func (e *Engine) Retry(ctx context.Context, req RetryRequest) (inv Invalidation, replayed bool, err error) {
	panic("soon")
}

// Targets returns the configured targets and what is known of them.
func (e *Engine) Targets(ctx context.Context, caller Caller) ([]TargetStatus, error) { panic("soon") }

// CheckTarget probes a target; it ends nothing.
func (e *Engine) CheckTarget(ctx context.Context, caller Caller, target string) (adapters.Health, error) {
	panic("soon")
}

// PauseTarget makes a target's runs wait; attempts under way are finished, nothing new is sent.
func (e *Engine) PauseTarget(ctx context.Context, caller Caller, target, reason string) (TargetStatus, error) {
	panic("soon")
}

// ResumeTarget ends a pause, and un-parks the target.
func (e *Engine) ResumeTarget(ctx context.Context, caller Caller, target string) (TargetStatus, error) {
	panic("soon")
}

// Close stops claiming, lets attempts under way finish until ctx ends, then cancels them and gives leases back.
func (e *Engine) Close(ctx context.Context) error { panic("soon") }
