package invalidation

// Hub is the hub, for the tests of who is woken.
type Hub struct{ h *hub }

// NewHub returns an empty hub.
func NewHub() Hub { return Hub{newHub()} }

// Subscribe is what a waiter does.
func (h Hub) Subscribe(id string) (<-chan struct{}, func()) { return h.h.subscribe(id) }

// Changed is what the store calls.
func (h Hub) Changed(id string) { h.h.changed(Change{ID: id}) }
