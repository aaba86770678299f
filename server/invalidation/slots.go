package invalidation

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// growPause is how long a worker whose slots are all in use waits before it asks for more again.
const growPause = time.Second

// slots are a target's slots that this process holds: how many runs it may work on at once. With a journal of its own a
// process holds all of them for good. Processes that share one take what is free when they need more than they hold, and
// give half of what they do not use to whoever finds none free: a process that is alone with its work has the whole of a
// target's concurrency and rate.
type slots struct {
	store  Store
	owner  string
	target string
	limit  int
	length time.Duration
	// share is told how many of the slots are held after every change.
	share func(held, limit int)

	// free counts the slots that are held and not in use. It is made for limit slots, of which those not held are taken.
	free *semaphore.Weighted
	// count is how many are held.
	count atomic.Int64
	// owed counts the places of lost slots that are still in use, or free: whatever comes back goes to them first.
	owed atomic.Int64
	// lapse is when the slots can no longer be relied on, by the local monotonic clock: a third of their lease before
	// others may take them. nil if they are held for good.
	lapse atomic.Pointer[time.Time]

	mu    sync.Mutex // held during calls of the store: one at a time is enough
	held  []Slot
	asked time.Time
}

func newSlots(store Store, owner, target string, limit int, length time.Duration, share func(held, limit int)) *slots {
	s := &slots{store: store, owner: owner, target: target, limit: limit, length: length,
		free: semaphore.NewWeighted(int64(limit))}
	s.share = func(held, limit int) {
		s.count.Store(int64(held))
		share(held, limit)
	}
	s.free.TryAcquire(int64(limit)) // none is held yet
	return s
}

func (s *slots) tryAcquire() bool {
	for !s.lapsed() && s.free.TryAcquire(1) {
		if !s.repay() {
			return true
		}
	}
	return false
}

// acquire waits for a slot, and asks for more while others hold them.
func (s *slots) acquire(ctx context.Context) error {
	for {
		wait, cancel := ctx, context.CancelFunc(func() {})
		if !s.complete() {
			if err := s.grow(ctx); err != nil {
				return err
			}
			wait, cancel = context.WithTimeout(ctx, growPause)
		}
		err := s.free.Acquire(wait, 1)
		cancel()
		switch {
		case err == nil && s.repay():
		case err == nil && !s.lapsed():
			return nil
		case err == nil:
			s.release(1)
			select {
			case <-time.After(growPause):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (s *slots) release(n int) {
	for range n {
		if !s.repay() {
			s.free.Release(1)
		}
	}
}

// repay lets a place that was taken stay taken, for a slot that is lost.
func (s *slots) repay() bool {
	for {
		n := s.owed.Load()
		if n == 0 {
			return false
		}
		if s.owed.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// lapsed reports whether the slots may be somebody else's by now: a process that was frozen must not go on with them.
func (s *slots) lapsed() bool {
	t := s.lapse.Load()
	return t != nil && time.Now().After(*t)
}

// relyFrom notes that the slots were asked for at that time.
func (s *slots) relyFrom(asked time.Time) {
	t := asked.Add(reliable(s.length))
	s.lapse.Store(&t)
}

// grow asks for the slots that are not held yet. It is limited in how often it asks.
func (s *slots) grow(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == s.limit || !s.asked.IsZero() && time.Since(s.asked) < growPause {
		return nil
	}
	s.asked = time.Now()
	more, err := s.store.AcquireSlots(ctx, s.target, s.owner, s.limit-len(s.held), s.limit, s.length)
	if err != nil || len(more) == 0 {
		return err
	}
	if len(s.held) == 0 && !more[0].Until.IsZero() {
		s.relyFrom(s.asked)
	}
	s.held = append(s.held, more...)
	s.share(len(s.held), s.limit)
	s.release(len(more))
	return nil
}

// shared reports whether other processes may want slots of the target.
func (s *slots) shared() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) == 0 || !s.held[0].Until.IsZero()
}

// complete reports whether all slots of the target are held.
func (s *slots) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) == s.limit
}

// renew prolongs the slots. It is called at every heartbeat.
func (s *slots) renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 || s.held[0].Until.IsZero() {
		return nil
	}
	asked := time.Now()
	held, lost, err := s.store.RenewSlots(ctx, s.held, s.length)
	if err != nil {
		return err
	}
	s.held = held
	if len(lost) > 0 {
		// The runs that were worked on in them have lost their leases too; their places come back as they end.
		s.owed.Add(int64(len(lost)))
		s.share(len(s.held), s.limit)
	}
	s.relyFrom(asked)
	return nil
}

// give gives back half of the slots that are not in use, at least one if there is any: another process wants one.
func (s *slots) give(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 || s.held[0].Until.IsZero() {
		return nil
	}
	idle := 0
	for s.tryAcquire() {
		idle++
	}
	n := (idle + 1) / 2
	s.release(idle - n)
	if n == 0 {
		return nil
	}
	// From here on they are not ours: if the answer is lost, they come back when their lease ends.
	back := s.held[len(s.held)-n:]
	s.held = s.held[:len(s.held)-n]
	s.share(len(s.held), s.limit)
	return s.store.ReleaseSlots(ctx, back)
}

// drop gives everything back: the process ends.
func (s *slots) drop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held
	s.held = nil
	return s.store.ReleaseSlots(ctx, held)
}
