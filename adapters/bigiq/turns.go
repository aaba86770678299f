package bigiq

import (
	"context"
	"sync/atomic"
)

// turns lets one caller at a time do work of which the others share the outcome. It is a channel, because waiting must
// end with the caller's context.
type turns struct {
	turn chan struct{}
	// failures counts failed work, and failure is the last error: whoever waited while it failed must not try the same
	// again. Fifty runs with one wrong password would lock the account, and with a dead target wait for each other in turn.
	failures atomic.Int64
	failure  error
}

func newTurns() *turns { return &turns{turn: make(chan struct{}, 1)} }

// take waits for the caller's turn. If then done says that there is nothing to do, or work has failed meanwhile for
// somebody else, work is not called.
func (t *turns) take(ctx context.Context, done func() bool, work func() error) error {
	failures := t.failures.Load()
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	switch {
	case done():
		return nil
	case t.failures.Load() != failures:
		return t.failure
	}
	err := work()
	if err != nil && ctx.Err() == nil { // otherwise it is the end of this caller's context, and nobody else's business
		t.failure = err
		t.failures.Add(1)
	}
	return err
}
