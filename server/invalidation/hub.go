package invalidation

import "sync"

// hub wakes those who wait for an invalidation to change. It carries no data: a waiter reads the journal when it is
// woken, so that what it sees is always what was committed, and a slow waiter costs one slot of a channel. Whoever waits
// for what this process has accepted itself mostly need not read: see [tally].
type hub struct {
	mu      sync.Mutex
	waiters map[string]map[chan struct{}]struct{}
	tallies map[string]*tally
}

func newHub() *hub {
	return &hub{waiters: map[string]map[chan struct{}]struct{}{}, tallies: map[string]*tally{}}
}

// subscribe returns a channel that receives after every change of the invalidation from now on (several changes may
// be one), and a function that ends the subscription.
func (h *hub) subscribe(id string) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiters[id] == nil {
		h.waiters[id] = map[chan struct{}]struct{}{}
	}
	h.waiters[id][ch] = struct{}{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiters[id], ch)
		if len(h.waiters[id]) == 0 {
			delete(h.waiters, id)
		}
	}
}

// changed wakes the waiters of an invalidation, or all of them for [AnyChange]. It never blocks.
func (h *hub) changed(c Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.ID == AnyChange {
		for _, waiters := range h.waiters {
			wake(waiters)
		}
		for _, t := range h.tallies {
			t.changed(0)
		}
		return
	}
	wake(h.waiters[c.ID])
	if t := h.tallies[c.ID]; t != nil {
		t.changed(c.Revision)
	}
}

func wake(waiters map[chan struct{}]struct{}) {
	for ch := range waiters {
		poke(ch)
	}
}
