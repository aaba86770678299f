package invalidation

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Types of the events that [Engine.Note] is for.
const (
	// EventDenied: a caller who is known was not allowed what it asked for.
	EventDenied = "call.denied"
	// EventRefused: somebody did not prove who he is.
	EventRefused = "caller.refused"
	// EventSuppressed counts notes that were not written, for there were too many.
	EventSuppressed = "events.suppressed"
)

// Bounds of what notes may cost: those whom nobody knows must not be able to fill the disk. A source may write a few at
// once, then one a minute; all together, for each type, a few hundred at once, then one every five seconds, which is some
// 5 MB a day. Each type has its own bound: a flood of strangers does not hide what a known caller was denied.
const (
	notesOfSource  = 10
	notesOfAll     = 300
	noteOfSource   = time.Minute
	noteOfAll      = 5 * time.Second
	maxNoteSources = 10_000
	// suppressedInterval is how often it is told how many were not written.
	suppressedInterval = time.Minute
	// noteTimeout bounds how long a refusal waits for the journal.
	noteTimeout = 2 * time.Second
)

// notes decides which notes are written, and counts the others.
type notes struct {
	mu sync.Mutex
	// all are the limits by type.
	all map[string]*rate.Limiter
	// sources are the limits by type and source. When there are too many, those are forgotten that have been quiet for so
	// long that they may write as many as a new one; if there is none, a new source has only the limit of all.
	sources map[noteSource]*rate.Limiter
	swept   time.Time

	suppressed map[string]int // by type
	since      time.Time
	wake       chan struct{} // cap 1: something was suppressed
}

type noteSource struct{ typ, source string }

func newNotes() *notes {
	return &notes{
		all: map[string]*rate.Limiter{}, sources: map[noteSource]*rate.Limiter{},
		suppressed: map[string]int{}, wake: make(chan struct{}, 1),
	}
}

// admit reports whether a note is to be written.
func (n *notes) admit(key noteSource, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.all[key.typ]
	if all == nil {
		all = rate.NewLimiter(rate.Every(noteOfAll), notesOfAll)
		n.all[key.typ] = all
	}
	own := n.sources[key]
	if own == nil && (len(n.sources) < maxNoteSources || n.sweep(now)) {
		own = rate.NewLimiter(rate.Every(noteOfSource), notesOfSource)
		n.sources[key] = own
	}
	if (own == nil || own.TokensAt(now) >= 1) && all.AllowN(now, 1) {
		if own != nil {
			own.AllowN(now, 1)
		}
		return true
	}
	n.count(key.typ, 1, now)
	return false
}

// count adds to what was suppressed.
func (n *notes) count(typ string, k int, since time.Time) {
	if len(n.suppressed) == 0 || since.Before(n.since) {
		n.since = since
	}
	n.suppressed[typ] += k
	poke(n.wake)
}

// restore counts what could not be written. If only the journal's answer was lost it is told twice, which is better than
// never.
func (n *notes) restore(counts map[string]int, since time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for typ, k := range counts {
		n.count(typ, k, since)
	}
}

// sweep forgets the quiet ones, at most once a minute. It reports whether there is room.
func (n *notes) sweep(now time.Time) bool {
	if now.Sub(n.swept) < noteOfSource {
		return false
	}
	n.swept = now
	for key, l := range n.sources {
		if l.TokensAt(now) >= notesOfSource {
			delete(n.sources, key)
		}
	}
	return len(n.sources) < maxNoteSources
}

// take returns what was suppressed since it was called last.
func (n *notes) take() (suppressed map[string]int, since time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	suppressed, since = n.suppressed, n.since
	n.suppressed = map[string]int{}
	return suppressed, since
}

// Note journals an event that changes nothing and that nobody waits for: a denied call, a refused caller. source is who
// caused it, as far as that is known: a caller's name, a remote address. If a source causes too many, or all together do,
// they are counted instead, and the count is journalled as one event. What cannot be journalled is logged, and counted too.
func (e *Engine) Note(ctx context.Context, source string, event Event) {
	if event.Time.IsZero() {
		event.Time = e.now()
	}
	now := time.Now()
	if !e.notes.admit(noteSource{event.Type, source}, now) {
		return
	}
	if !e.writeNote(ctx, event) {
		e.notes.restore(map[string]int{event.Type: 1}, now)
	}
}

// writeNote reports whether the event is in the journal.
func (e *Engine) writeNote(ctx context.Context, event Event) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := e.store.Audit(ctx, []Event{event}); err != nil {
		e.log.ErrorContext(ctx, "journal an audit event", "type", event.Type, "error", err)
		return false
	}
	return true
}

// noteLoop tells from time to time how many notes were not written, and a last time in the end.
func (e *Engine) noteLoop(ctx context.Context) {
	e.rounds(ctx, e.notes.wake, suppressedInterval, e.tellSuppressed)
	e.tellSuppressed()
}

func (e *Engine) tellSuppressed() {
	counts, since := e.notes.take()
	if len(counts) == 0 {
		return
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	written := e.writeNote(context.Background(), Event{Time: e.now(), Type: EventSuppressed, Caller: Caller{Kind: "gateway", Name: "endsession"},
		Data: mustJSON(struct {
			Count int            `json:"count"`
			Since time.Time      `json:"since"`
			Types map[string]int `json:"types"`
		}{sum, since.Add(time.Duration(e.skew.Load())).UTC(), counts})})
	if !written {
		e.notes.restore(counts, since)
	}
}

// pruneAudit removes events that are older than the audit trail is kept.
func (e *Engine) pruneAudit(ctx context.Context) {
	for e.auditRetention > 0 {
		n, err := e.store.PruneAudit(ctx, e.now().Add(-e.auditRetention), pruneBatch)
		if err != nil && ctx.Err() == nil {
			e.log.Error("prune the audit trail", "error", err)
		}
		if n > 0 {
			e.log.Info("pruned the audit trail", "removed", n)
		}
		if err != nil || n < pruneBatch {
			return
		}
	}
}
