package sqlite

import (
	"context"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// AcquireSlots gives what is wanted, up to the limit, for good: there is no other process to share a target with.
func (s *Store) AcquireSlots(_ context.Context, target, owner string, want, limit int, _ time.Duration) ([]invalidation.Slot, error) {
	var slots []invalidation.Slot
	for n := range min(want, limit) {
		slots = append(slots, invalidation.Slot{Target: target, Number: n, Owner: owner, Token: 1})
	}
	return slots, nil
}

// RenewSlots has nothing to do: no slot is ever lost.
func (s *Store) RenewSlots(_ context.Context, slots []invalidation.Slot, _ time.Duration) (held, lost []invalidation.Slot, err error) {
	return slots, nil, nil
}

// ReleaseSlots has nothing to do.
func (s *Store) ReleaseSlots(context.Context, []invalidation.Slot) error { return nil }
