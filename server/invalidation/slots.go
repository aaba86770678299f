package invalidation

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// growPause is how long a worker whose slots are all in use waits before it asks for more again.
const growPause = time.Second

// slots are a target's slots that this process holds: how many runs it may work on at once. With a journal of its own a
// process holds all of them for good; processes that share one give back what they do not use, and take what they need.
type slots struct {
	store  Store
	owner  string
	target string
	limit  int
	length time.Duration
	// share is told how many of the slots are held after every change; may be nil.
	share func(held, limit int)

	// free counts the slots that are held and not in use. It is made for limit slots, of which those not held are taken.
	free *semaphore.Weighted

	mu    sync.Mutex // held during calls of the store: one at a time is enough
	held  []Slot
	asked time.Time
	spare int // slots that were free at the last heartbeat
}

func newSlots(store Store, owner, target string, limit int, length time.Duration, share func(held, limit int)) *slots {
	s := &slots{store: store, owner: owner, target: target, limit: limit, length: length, share: share,
		free: semaphore.NewWeighted(int64(limit))}
	s.free.TryAcquire(int64(limit)) // none is held yet
	return s
}

func (s *slots) tryAcquire() bool { return s.free.TryAcquire(1) }

func (s *slots) acquire(ctx context.Context) error { return s.free.Acquire(ctx, 1) }

func (s *slots) release(n int) { s.free.Release(int64(n)) }

// grow asks for the slots that are not held yet. It is limited in how often it asks.
func (s *slots) grow(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == s.limit || now.Sub(s.asked) < growPause {
		return nil
	}
	s.asked = now
	more, err := s.store.AcquireSlots(ctx, s.target, s.owner, s.limit-len(s.held), s.limit, s.length)
	if err != nil || len(more) == 0 {
		return err
	}
	s.held = append(s.held, more...)
	s.changed()
	s.free.Release(int64(len(more)))
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

// renew prolongs the slots and gives back half of those that were free at the last heartbeat and are so now, but never
// the last one: other processes may want them. It is called at every heartbeat.
func (s *slots) renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 || s.held[0].Until.IsZero() {
		return nil
	}
	held, lost, err := s.store.RenewSlots(ctx, s.held, s.length)
	if err != nil {
		return err
	}
	s.held = held
	if len(lost) > 0 {
		// The runs that were worked on in them have lost their leases too; their places come back as they end.
		go func() { _ = s.free.Acquire(context.Background(), int64(len(lost))) }()
		s.changed()
	}
	return s.shrink(ctx)
}

// shrink gives idle slots back.
func (s *slots) shrink(ctx context.Context) error {
	idle := 0
	for s.free.TryAcquire(1) {
		idle++
	}
	s.free.Release(int64(idle))
	surplus := min(s.spare, idle)
	s.spare = idle
	n := min((surplus+1)/2, len(s.held)-1)
	if n <= 0 || !s.free.TryAcquire(int64(n)) {
		return nil
	}
	back := s.held[len(s.held)-n:]
	if err := s.store.ReleaseSlots(ctx, back); err != nil {
		s.free.Release(int64(n))
		return err
	}
	s.held = s.held[:len(s.held)-n]
	s.spare -= n
	s.changed()
	return nil
}

// drop gives everything back: the process ends.
func (s *slots) drop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held
	s.held = nil
	return s.store.ReleaseSlots(ctx, held)
}

func (s *slots) changed() {
	if s.share != nil {
		s.share(len(s.held), s.limit)
	}
}
