package telemetry

import (
	"context"
	"errors"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// Journal wraps a store to measure how long its changes take, from the time they are asked for until they are durable.
func (t *Telemetry) Journal(s invalidation.Store) invalidation.Store {
	return &journal{Store: s, commit: t.journalDuration}
}

type journal struct {
	invalidation.Store
	commit histogram
}

// measured does a change and reports it.
func (j *journal) measured(ctx context.Context, operation string, change func() error) {
	began := time.Now()
	err := change()
	j.commit.record(ctx, time.Since(began).Seconds(), operation, outcome(err))
}

// outcome is what became of a change.
func outcome(err error) string {
	if err == nil {
		return "committed"
	}
	if errors.Is(err, invalidation.ErrCommitUnknown) {
		return "unknown"
	}
	for _, refusal := range []error{invalidation.ErrNotFound, invalidation.ErrRequestReused, invalidation.ErrLeaseLost,
		invalidation.ErrIllegalTransition, invalidation.ErrFinal} {
		if errors.Is(err, refusal) {
			return "refused"
		}
	}
	return "failed"
}

// Accept implements [invalidation.Store].
func (j *journal) Accept(ctx context.Context, a invalidation.Acceptance) (inv invalidation.Invalidation, replayed bool, leases []invalidation.Lease, err error) {
	j.measured(ctx, "accept", func() error { inv, replayed, leases, err = j.Store.Accept(ctx, a); return err })
	return inv, replayed, leases, err
}

// Claim implements [invalidation.Store].
func (j *journal) Claim(ctx context.Context, c invalidation.Claim) (claimed []invalidation.ClaimedRun, err error) {
	j.measured(ctx, "claim", func() error { claimed, err = j.Store.Claim(ctx, c); return err })
	return claimed, err
}

// Record implements [invalidation.Store].
func (j *journal) Record(ctx context.Context, l invalidation.Lease, r invalidation.Run, events []invalidation.Event) (head invalidation.Head, err error) {
	j.measured(ctx, "record", func() error { head, err = j.Store.Record(ctx, l, r, events); return err })
	return head, err
}

// Renew implements [invalidation.Store].
func (j *journal) Renew(ctx context.Context, leases []invalidation.Lease, length time.Duration) (lost []invalidation.Lease, err error) {
	j.measured(ctx, "renew", func() error { lost, err = j.Store.Renew(ctx, leases, length); return err })
	return lost, err
}

// Release implements [invalidation.Store].
func (j *journal) Release(ctx context.Context, l invalidation.Lease) (err error) {
	j.measured(ctx, "release", func() error { err = j.Store.Release(ctx, l); return err })
	return err
}

// Cancel implements [invalidation.Store].
func (j *journal) Cancel(ctx context.Context, id string, at time.Time, events []invalidation.Event) (inv invalidation.Invalidation, err error) {
	j.measured(ctx, "cancel", func() error { inv, err = j.Store.Cancel(ctx, id, at, events); return err })
	return inv, err
}

// Pause implements [invalidation.Store].
func (j *journal) Pause(ctx context.Context, p invalidation.Pause, events []invalidation.Event) (err error) {
	j.measured(ctx, "pause", func() error { err = j.Store.Pause(ctx, p, events); return err })
	return err
}

// Resume implements [invalidation.Store].
func (j *journal) Resume(ctx context.Context, target string, events []invalidation.Event) (err error) {
	j.measured(ctx, "resume", func() error { err = j.Store.Resume(ctx, target, events); return err })
	return err
}

// Audit implements [invalidation.Store].
func (j *journal) Audit(ctx context.Context, events []invalidation.Event) (err error) {
	j.measured(ctx, "audit", func() error { err = j.Store.Audit(ctx, events); return err })
	return err
}

// Prune implements [invalidation.Store].
func (j *journal) Prune(ctx context.Context, before time.Time, limit int) (removed int, err error) {
	j.measured(ctx, "prune", func() error { removed, err = j.Store.Prune(ctx, before, limit); return err })
	return removed, err
}
