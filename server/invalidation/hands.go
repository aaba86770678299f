package invalidation

import (
	"sync"
	"time"
)

// hands do what attempts do, one after the other: a goroutine whose stack has grown to what an attempt needs does the next
// one, too, if there is one soon. A new one would have to grow its own.
type hands struct {
	idle chan func()
	busy sync.WaitGroup
	done chan struct{} // closed when nobody is needed any more
	once sync.Once
}

// resting is how long a goroutine waits for more to do.
const resting = time.Second

func newHands() *hands { return &hands{idle: make(chan func()), done: make(chan struct{})} }

// do has f done by a goroutine of its own, at once.
func (h *hands) do(f func()) {
	h.busy.Add(1)
	select {
	case h.idle <- f:
	default:
		go h.work(f)
	}
}

func (h *hands) work(f func()) {
	rest := time.NewTimer(resting)
	defer rest.Stop()
	for {
		h.finish(f)
		rest.Reset(resting)
		select {
		case f = <-h.idle:
		case <-rest.C:
			return
		case <-h.done:
			return
		}
	}
}

func (h *hands) finish(f func()) {
	defer h.busy.Done()
	f()
}

// wait returns when all is done that was asked for, and sends those home who would wait for more.
func (h *hands) wait() {
	h.busy.Wait()
	h.once.Do(func() { close(h.done) })
}
