package invalidation

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// DefaultMaxUnfinished is how many runs may be unfinished before no more are accepted.
	DefaultMaxUnfinished = 1_000_000
	// backlogInterval is how often the journal is asked how many runs are unfinished.
	backlogInterval = 10 * time.Second
)

// backlog bounds what is accepted and not done: a caller who asks faster than the targets work, for hours, is told to
// wait instead of filling the disk. It counts the journal now and then, and its own acceptances in between, so replicas
// that accept at once may go beyond the bound by what they accept in one interval.
type backlog struct {
	limit int64
	// counted is what the journal held when it was asked last, added what was accepted here since.
	counted, added atomic.Int64
	// byTarget is what the journal held when it was asked last.
	byTarget atomic.Pointer[map[string]Unfinished]
}

// admit counts n more runs in, unless there are too many.
func (b *backlog) admit(n int) bool {
	if b.counted.Load()+b.added.Add(int64(n)) <= b.limit {
		return true
	}
	b.added.Add(-int64(n))
	return false
}

// refresh asks the journal.
func (e *Engine) refreshBacklog(ctx context.Context) (map[string]Unfinished, error) {
	before := e.backlog.added.Load()
	unfinished, err := e.store.Unfinished(ctx)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, u := range unfinished {
		total += u.Runs
	}
	e.backlog.byTarget.Store(&unfinished)
	e.backlog.counted.Store(int64(total))
	e.backlog.added.Add(-before)
	return unfinished, nil
}

// followBacklog keeps the count fresh until ctx ends.
func (e *Engine) followBacklog(ctx context.Context) {
	tick := time.NewTicker(backlogInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := e.refreshBacklog(ctx); err != nil && ctx.Err() == nil {
			e.log.ErrorContext(ctx, "count unfinished runs", "error", err)
		}
	}
}
