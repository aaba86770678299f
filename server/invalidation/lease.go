package invalidation

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

type leaseKey struct {
	id    string
	run   int
	token int64
}

func keyOf(l Lease) leaseKey { return leaseKey{l.InvalidationID, l.Run, l.Token} }

// live holds the leases that this process works under.
type live struct {
	mu    sync.Mutex
	owned map[leaseKey]*ownership
}

func (v *live) add(o *ownership) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.owned == nil {
		v.owned = map[leaseKey]*ownership{}
	}
	v.owned[keyOf(o.lease)] = o
}

func (v *live) remove(o *ownership) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.owned, keyOf(o.lease))
}

func (v *live) all() []*ownership {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Values(v.owned))
}

// ownership is a lease this process works under.
type ownership struct {
	lease  Lease
	cancel context.CancelCauseFunc
	until  *time.Timer // cancels when the lease can no longer be relied on
	lapse  atomic.Pointer[time.Time]
}

// reliable is how long a lease can be relied on, by the local monotonic clock from the moment it was asked for: until a
// third of it before another process may take over.
func reliable(length time.Duration) time.Duration { return length * 2 / 3 }

// lapsed is what the timer will say; in a process that was frozen, work may go on before its timers do.
func (o *ownership) lapsed() bool { return time.Now().After(*o.lapse.Load()) }

// own registers a lease that was asked for at that time; the context ends when the lease is lost, can no longer be relied
// on, or the engine stops.
// disown must be called when the work is done.
func (e *Engine) own(l Lease, asked time.Time) (context.Context, *ownership) {
	ctx, cancel := context.WithCancelCause(context.Background())
	o := &ownership{lease: l, cancel: cancel}
	lapse := asked.Add(reliable(e.leaseLength))
	o.lapse.Store(&lapse)
	o.until = time.AfterFunc(time.Until(lapse), func() { cancel(errLost) })
	e.live.add(o)
	select {
	case <-e.stopped:
		cancel(errShutdown)
	default:
	}
	return ctx, o
}

func (e *Engine) disown(o *ownership) {
	e.live.remove(o)
	o.until.Stop()
	o.cancel(nil)
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
		if err := e.renew(ctx, func(string) bool { return true }); err != nil && ctx.Err() == nil {
			e.log.ErrorContext(ctx, "renew leases", "error", err)
		}
		if err := errors.Join(e.syncClock(ctx), e.loadPauses(ctx)); err != nil && ctx.Err() == nil {
			e.log.ErrorContext(ctx, "read the journal", "error", err)
		}
		for _, w := range e.workers {
			if err := w.slots.renew(ctx); err != nil && ctx.Err() == nil {
				w.log.ErrorContext(ctx, "renew slots", "error", err)
			}
			if w.backlog.Load() {
				w.signal() // what could not be relied on may be ours again
			}
		}
	}
}

// renew prolongs the leases at the invalidations that which picks, and ends the attempts whose leases are lost.
func (e *Engine) renew(ctx context.Context, which func(id string) bool) error {
	var leases []Lease
	owned := map[leaseKey]*ownership{}
	for _, o := range e.live.all() {
		if which(o.lease.InvalidationID) {
			leases = append(leases, o.lease)
			owned[keyOf(o.lease)] = o
		}
	}
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
		owned[keyOf(l)].cancel(errLost)
		delete(owned, keyOf(l))
	}
	lapse := asked.Add(reliable(e.leaseLength))
	for _, o := range owned {
		// Stop reports false when the timer has fired, that is, the work was given up already.
		if o.until.Stop() {
			o.lapse.Store(&lapse)
			o.until.Reset(time.Until(lapse))
		}
	}
	return nil
}

// lose ends the attempts at an invalidation that was cancelled.
func (e *Engine) lose(id string) {
	for _, o := range e.live.all() {
		if o.lease.InvalidationID == id {
			o.cancel(errLost)
		}
	}
}
