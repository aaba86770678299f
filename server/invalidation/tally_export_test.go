package invalidation

// Tally is a tally with its hub, for the tests of what it believes.
type Tally struct {
	h *hub
	t *tally
}

// NewTally follows an invalidation that was accepted.
func NewTally(inv Invalidation) Tally {
	h := newHub()
	t, _ := h.follow(inv.ID)
	t.accepted(inv)
	return Tally{h, t}
}

// Recording, Recorded and Changed are what the worker and the store tell.
func (t Tally) Recording() { t.h.recording(t.t.id) }

// Recorded says what became of what Recording announced.
func (t Tally) Recorded(i int, r Run, head Head, err error) {
	t.h.recorded(t.t.id, answer{i, r, head}, err)
}

// Changed is what the store tells.
func (t Tally) Changed(c Change) { t.h.changed(c) }

// Woken is what the waiter waits for.
func (t Tally) Woken() <-chan struct{} { return t.t.wake }

// Look is what the waiter does when it is woken.
func (t Tally) Look(read func() (Invalidation, error)) (Invalidation, error) { return t.t.look(read) }
