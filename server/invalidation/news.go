package invalidation

import (
	"context"
	"sync"
	"time"
)

// news gathers what other processes tell until somebody looks after it.
type news struct {
	told, stirred chan struct{} // cap 1

	mu sync.Mutex
	gathered
}

// gathered is what was told meanwhile.
type gathered struct {
	changed map[string]bool // IDs
	pauses  bool
	any     bool
	wanted  map[string]bool // targets
}

func newNews() *news { return &news{told: make(chan struct{}, 1), stirred: make(chan struct{}, 1)} }

// tell never blocks.
func (n *news) tell(x News) {
	n.mu.Lock()
	g := &n.gathered
	switch {
	case x.SlotsWanted != "":
		if g.wanted == nil {
			g.wanted = map[string]bool{}
		}
		g.wanted[x.SlotsWanted] = true
	case x.Changed == AnyChange:
		g.any = true
	case x.Changed == "":
		g.pauses = true
	default:
		if g.changed == nil {
			g.changed = map[string]bool{}
		}
		g.changed[x.Changed] = true
	}
	n.mu.Unlock()
	poke(n.told)
	if x.SlotsWanted == "" {
		poke(n.stirred)
	}
}

// take returns what was told since it was called last.
func (n *news) take() gathered {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.gathered
	n.gathered = gathered{}
	return g
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// follow looks after what other processes have done to what this one is working on: a run that was cancelled, or taken
// over, is broken off; a target that was paused gets nothing more; slots that are wanted are given.
func (e *Engine) follow(ctx context.Context) {
	e.rounds(ctx, e.news.told, followPause, func() {
		g := e.news.take()
		if g.pauses || g.any {
			if err := e.loadPauses(ctx); err != nil && ctx.Err() == nil {
				e.log.ErrorContext(ctx, "read the paused targets", "error", err)
			}
		}
		if err := e.renew(ctx, func(id string) bool { return g.any || g.changed[id] }); err != nil && ctx.Err() == nil {
			e.log.ErrorContext(ctx, "see whether leases are still ours", "error", err)
		}
		for target := range g.wanted {
			if w := e.workers[target]; w != nil {
				if err := w.slots.give(ctx); err != nil && ctx.Err() == nil {
					w.log.WarnContext(ctx, "give slots to another process", "error", err)
				}
			}
		}
	})
}

// pickUp looks for what other processes have left to do: a run of theirs that no slot was free for.
func (e *Engine) pickUp(ctx context.Context) {
	e.rounds(ctx, e.news.stirred, pickUpPause, func() {
		for _, w := range e.workers {
			w.signal()
		}
	})
}

// rounds calls f after every poke, with a pause in between, until ctx ends.
func (e *Engine) rounds(ctx context.Context, poked <-chan struct{}, pause time.Duration, f func()) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poked:
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		f()
		timer.Reset(pause)
	}
}
