package invalidation

import "slices"

// tally is what this process knows of an invalidation that it has accepted and that its caller waits for: how it was
// accepted, and every answer that this process has journalled since. So it can be told without reading the journal how
// the invalidation stands, as long as nobody else changes it. Every change raises the revision by one: somebody else's
// leaves a gap, and then the journal is read. The hub's mutex guards it.
type tally struct {
	hub  *hub
	id   string
	inv  Invalidation // as the journal has it, up to its revision
	wake chan struct{}
	// recording is how many answers are on their way into the journal. Until they have arrived nothing is read: they tell
	// what they come to.
	recording int
	// ahead are journalled answers, by revision, that one before is still missing from.
	ahead map[int64]answer
	// newest is the greatest revision that was heard of; doubt is true if something has changed, and nobody said to what
	// revision.
	newest int64
	doubt  bool
}

// answer is what became of a run, as it is journalled.
type answer struct {
	index int
	run   Run
	head  Head
}

// follow begins a tally. It must begin before the invalidation is journalled, so that it misses no change; tell it with
// accepted what was. stop ends it.
func (h *hub) follow(id string) (t *tally, stop func()) {
	t = &tally{hub: h, id: id, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tallies[id] = t
	return t, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.tallies, id)
	}
}

// accepted says how the invalidation begins.
func (t *tally) accepted(inv Invalidation) {
	t.hub.mu.Lock()
	defer t.hub.mu.Unlock()
	inv.Runs = slices.Clone(inv.Runs)
	t.inv = inv
}

// changed hears of a change to a revision; zero if that is not known.
func (t *tally) changed(revision int64) {
	if revision == 0 {
		t.doubt = true
	}
	t.newest = max(t.newest, revision)
	t.tell()
}

// tell wakes the waiter if there is something to see: the end, or what has to be read.
func (t *tally) tell() {
	if t.inv.State.Final() || t.recording == 0 && t.outdated() {
		poke(t.wake)
	}
}

// outdated reports whether the journal has more than is known here.
func (t *tally) outdated() bool { return t.doubt || t.newest > t.inv.Revision }

// recording says that an answer is about to be journalled; recorded must follow.
func (h *hub) recording(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.tallies[id]; t != nil {
		t.recording++
	}
}

// recorded says what became of it: an error leaves open what the journal has.
func (h *hub) recorded(id string, a answer, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tallies[id]
	if t == nil {
		return
	}
	t.recording--
	if err != nil {
		t.doubt = true
	} else {
		t.newest = max(t.newest, a.head.Revision)
		t.add(a)
	}
	t.tell()
}

// add takes an answer in, and those that waited for it.
func (t *tally) add(a answer) {
	if a.head.Revision != t.inv.Revision+1 {
		if t.ahead == nil {
			t.ahead = map[int64]answer{}
		}
		t.ahead[a.head.Revision] = a
		return
	}
	for next := true; next; a, next = t.ahead[t.inv.Revision+1] {
		delete(t.ahead, a.head.Revision)
		t.inv.Runs[a.index] = a.run
		t.inv.Revision, t.inv.State, t.inv.CompleteTime = a.head.Revision, a.head.State, a.head.CompleteTime
	}
}

// look returns how the invalidation stands; it reads only if something else than this process's answers has changed it.
func (t *tally) look(read func() (Invalidation, error)) (Invalidation, error) {
	t.hub.mu.Lock()
	defer t.hub.mu.Unlock()
	if t.recording > 0 || !t.outdated() {
		return t.inv, nil
	}
	t.doubt = false // what is doubted from here on, the reader may not see
	t.hub.mu.Unlock()
	inv, err := read()
	t.hub.mu.Lock()
	if err != nil {
		t.doubt = true
		return Invalidation{}, err
	}
	if inv.Revision > t.inv.Revision {
		inv.Runs = slices.Clone(inv.Runs)
		t.inv = inv
		for revision, a := range t.ahead {
			delete(t.ahead, revision)
			if revision > inv.Revision {
				t.add(a)
			}
		}
	}
	return t.inv, nil
}
