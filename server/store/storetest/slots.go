package storetest

import (
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

func acquire(t testing.TB, s invalidation.Store, who string, want, limit int, length time.Duration) []invalidation.Slot {
	t.Helper()
	slots, err := s.AcquireSlots(t.Context(), "apm", who, want, limit, length)
	if err != nil {
		t.Fatalf("AcquireSlots: %v", err)
	}
	for _, slot := range slots {
		if slot.Target != "apm" || slot.Owner != who || slot.Number < 0 || slot.Number >= limit {
			t.Errorf("%s acquired %+v of %d", who, slot, limit)
		}
	}
	return slots
}

func slotsAreHeldByOne(t *testing.T, h Harness) {
	s := h.Open(t)
	other := h.process(t, s)
	const limit = 5
	mine := acquire(t, s, "me", 2, limit, time.Hour)
	theirs := acquire(t, other, "they", 10, limit, time.Hour)
	if len(mine) != 2 || len(theirs) != 3 {
		t.Fatalf("%d and %d slots of %d, want 2 and 3", len(mine), len(theirs), limit)
	}
	held := map[int]string{}
	for _, slot := range append(mine, theirs...) {
		if who := held[slot.Number]; who != "" {
			t.Errorf("slot %d is %s's and %s's", slot.Number, who, slot.Owner)
		}
		held[slot.Number] = slot.Owner
	}
	for _, who := range []string{"me", "they"} {
		if more := acquire(t, s, who, 1, limit, time.Hour); len(more) != 0 {
			t.Errorf("%s acquired %+v when all were held", who, more)
		}
	}
	if slots, err := s.AcquireSlots(t.Context(), "kibana", "me", limit, limit, time.Hour); err != nil || len(slots) != limit {
		t.Errorf("another target: %d slots, error %v; want %d", len(slots), err, limit)
	}
	release := func(slots ...invalidation.Slot) {
		t.Helper()
		if err := s.ReleaseSlots(t.Context(), slots); err != nil {
			t.Fatalf("ReleaseSlots: %v", err)
		}
	}
	release(mine[0])
	moved := acquire(t, other, "they", 2, limit, time.Hour)
	if len(moved) != 1 || moved[0].Number != mine[0].Number || moved[0].Token <= mine[0].Token {
		t.Fatalf("after a release: %+v, want %+v with a greater token", moved, mine[0])
	}
	// It is theirs, whatever its old owner does.
	release(mine[0])
	stranger := theirs[0]
	stranger.Owner = "me"
	release(stranger)
	kept, lost, err := s.RenewSlots(t.Context(), append(mine, moved...), time.Hour)
	if err != nil {
		t.Fatalf("RenewSlots: %v", err)
	}
	equal(t, "lost", lost, mine[:1])
	if len(kept) != 2 || kept[0].Number != mine[1].Number || kept[1].Number != moved[0].Number {
		t.Errorf("renewed %+v", kept)
	}
	if more := acquire(t, s, "me", 5, limit, time.Hour); len(more) != 0 {
		t.Errorf("acquired %+v when all were held", more)
	}
	// Nobody is given more than a lower limit allows, nor two the same at once.
	release(theirs...)
	release(moved...)
	release(mine[1])
	if lower := acquire(t, s, "me", 5, 2, time.Hour); len(lower) != 2 {
		t.Errorf("%d slots of 2", len(lower))
	} else {
		release(lower...)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	held = map[int]string{}
	for n := range 8 {
		who := string(rune('a' + n))
		wg.Go(func() {
			slots, err := []invalidation.Store{s, other}[n%2].AcquireSlots(t.Context(), "apm", who, 1, limit, time.Hour)
			if err != nil {
				t.Errorf("AcquireSlots: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, slot := range slots {
				if held[slot.Number] != "" {
					t.Errorf("slot %d is %s's and %s's", slot.Number, held[slot.Number], who)
				}
				held[slot.Number] = who
			}
		})
	}
	wg.Wait()
}

func slotsEndWithTheirLease(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	slots := acquire(t, s, "me", 2, 2, h.Lease)
	if len(slots) != 2 {
		t.Fatalf("%d slots of 2", len(slots))
	}
	if h.Second == nil {
		// No process shares them, so they do not end, but with the process.
		for _, slot := range slots {
			if !slot.Until.IsZero() {
				t.Errorf("slot ends at %v", slot.Until)
			}
		}
		h.Pass(t, 2*h.Lease)
		if more := acquire(t, s, "they", 2, 2, h.Lease); len(more) != 0 {
			t.Errorf("acquired %+v when all were held", more)
		}
		if again := acquire(t, h.Reopen(t, s), "they", 2, 2, h.Lease); len(again) != 2 {
			t.Errorf("%d slots after a crash, want 2", len(again))
		}
		return
	}
	other := h.Second(t, s)
	for _, slot := range slots {
		if slot.Until.Before(at) {
			t.Errorf("slot ends at %v, it is %v", slot.Until, at)
		}
	}
	held, lost, err := s.RenewSlots(t.Context(), slots[:1], time.Hour)
	if err != nil || len(held) != 1 || len(lost) != 0 || !held[0].Until.After(at.Add(time.Hour-time.Minute)) {
		t.Fatalf("RenewSlots = %+v, %+v, %v", held, lost, err)
	}
	h.Pass(t, h.Lease+time.Millisecond)
	taken := acquire(t, other, "they", 2, 2, time.Hour)
	if len(taken) != 1 || taken[0].Number != slots[1].Number || taken[0].Token <= slots[1].Token {
		t.Errorf("taken over: %+v, want %+v with a greater token", taken, slots[1])
	}
	held, lost, err = s.RenewSlots(t.Context(), slots, time.Hour)
	if err != nil || len(held) != 1 || len(lost) != 1 || lost[0].Number != slots[1].Number {
		t.Errorf("RenewSlots = %+v, %+v, %v; want the second lost", held, lost, err)
	}
}
