package sqlite

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// slotTable holds the targets' slots. No other process shares them, so they are kept in memory and last until they are
// given back.
type slotTable struct {
	mu sync.Mutex
	by map[string][]invalidation.Slot // by target and number; nobody's while the owner is empty
}

// AcquireSlots takes slots that nobody holds.
func (s *Store) AcquireSlots(ctx context.Context, target, owner string, want, limit int, _ time.Duration) ([]invalidation.Slot, error) {
	if err := s.usable(ctx); err != nil {
		return nil, fmt.Errorf("acquire slots: %w", err)
	}
	t := &s.slots
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := len(t.by[target]); n < limit; n++ {
		t.by[target] = append(t.by[target], invalidation.Slot{Target: target, Number: n})
	}
	var slots []invalidation.Slot
	for n := range limit {
		if slot := &t.by[target][n]; slot.Owner == "" && len(slots) < want {
			slot.Owner = owner
			slot.Token++
			slots = append(slots, *slot)
		}
	}
	return slots, nil
}

// RenewSlots tells which slots are held; they need no renewal.
func (s *Store) RenewSlots(ctx context.Context, slots []invalidation.Slot, _ time.Duration) (held, lost []invalidation.Slot, err error) {
	if err := s.usable(ctx); err != nil {
		return nil, nil, fmt.Errorf("renew slots: %w", err)
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	for _, slot := range slots {
		if s.slots.holds(slot) {
			held = append(held, slot)
		} else {
			lost = append(lost, slot)
		}
	}
	return held, lost, nil
}

// ReleaseSlots gives slots back.
func (s *Store) ReleaseSlots(ctx context.Context, slots []invalidation.Slot) error {
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("release slots: %w", err)
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	for _, slot := range slots {
		if s.slots.holds(slot) {
			s.slots.by[slot.Target][slot.Number].Owner = ""
		}
	}
	return nil
}

// holds reports whether the slot's owner still has it.
func (t *slotTable) holds(s invalidation.Slot) bool {
	all := t.by[s.Target]
	return s.Owner != "" && s.Number >= 0 && s.Number < len(all) && all[s.Number].Owner == s.Owner && all[s.Number].Token == s.Token
}
