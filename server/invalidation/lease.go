package invalidation

import (
	"context"
	"errors"
	"time"
)

type leaseKey struct {
	id    string
	run   int
	token int64
}

// ownership is a lease this process works under.
type ownership struct {
	lease  Lease
	cancel context.CancelCauseFunc
	until  *time.Timer // cancels when the lease can no longer be relied on
}

// own registers a lease; the context ends when the lease is lost, can no longer be relied on, or the engine stops.
func (e *Engine) own(l Lease) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	o := &ownership{lease: l, cancel: cancel}
	// The local monotonic clock ends the work a third of a lease before another process may take over.
	o.until = time.AfterFunc(e.leaseLength*2/3, func() { cancel(errLost) })
	key := leaseKey{l.InvalidationID, l.Run, l.Token}
	e.live.Store(key, o)
	select {
	case <-e.stopped:
		cancel(errShutdown)
	default:
	}
	return ctx, func() {
		e.live.Delete(key)
		o.until.Stop()
		cancel(nil)
	}
}

// beat renews the leases in use, and keeps the clock and the pauses fresh.
func (e *Engine) beat(ctx context.Context) {
	tick := time.NewTicker(e.leaseLength / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := e.renew(ctx); err != nil && ctx.Err() == nil {
			e.log.Error("renew leases", "error", err)
		}
		if err := errors.Join(e.syncClock(ctx), e.loadPauses(ctx)); err != nil && ctx.Err() == nil {
			e.log.Error("read the journal", "error", err)
		}
		for _, w := range e.workers {
			if err := w.slots.renew(ctx); err != nil && ctx.Err() == nil {
				w.log.Error("renew slots", "error", err)
			}
		}
	}
}

func (e *Engine) renew(ctx context.Context) error {
	var leases []Lease
	owned := map[leaseKey]*ownership{}
	e.live.Range(func(k, v any) bool {
		o := v.(*ownership)
		leases = append(leases, o.lease)
		owned[k.(leaseKey)] = o
		return true
	})
	if len(leases) == 0 {
		return nil
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.leaseLength/3)
	defer cancel()
	lost, err := e.store.Renew(ctx, leases, e.leaseLength)
	if err != nil {
		return err
	}
	for _, l := range lost {
		key := leaseKey{l.InvalidationID, l.Run, l.Token}
		owned[key].cancel(errLost)
		delete(owned, key)
	}
	for _, o := range owned {
		// Stop reports false when the timer has fired, that is, the work was given up already.
		if o.until.Stop() {
			o.until.Reset(time.Until(asked.Add(e.leaseLength * 2 / 3)))
		}
	}
	return nil
}

// lose ends the attempts at an invalidation that was cancelled.
func (e *Engine) lose(id string) {
	e.live.Range(func(k, v any) bool {
		if k.(leaseKey).id == id {
			v.(*ownership).cancel(errLost)
		}
		return true
	})
}
