package audit

import (
	"bytes"
	"fmt"
)

// Kind classifies a [Finding].
type Kind string

// What can be wrong with an audit trail.
const (
	// Changed: an event, or its hash, is not what was written.
	Changed Kind = "changed"
	// Misplaced: an event does not follow the one before it: it was inserted, moved or put in the place of another.
	Misplaced Kind = "misplaced"
	// Missing: events are not there that others follow or link to, or whose head was kept.
	Missing Kind = "missing"
	// Unhashed: an event has no hash.
	Unhashed Kind = "unhashed"
	// Unproven: events are hashed without a key, though there is one, and nothing that is keyed vouches for them.
	Unproven Kind = "unproven"
	// UnknownKey: a chain's key was not given, so that its hashes cannot be checked.
	UnknownKey Kind = "unknown key"
	// BadCheckpoint: a checkpoint is not what was written, or contradicts the events.
	BadCheckpoint Kind = "bad checkpoint"
)

// Finding is something that is wrong, and where.
type Finding struct {
	Kind  Kind
	Chain string
	// First and Last are the events concerned; both are 0 for the whole chain.
	First, Last int64
	Message     string
}

// String says it in a line.
func (f Finding) String() string {
	place := "chain " + f.Chain
	switch {
	case f.First != f.Last:
		place += fmt.Sprintf(", events %d to %d", f.First, f.Last)
	case f.First > 0:
		place += fmt.Sprintf(", event %d", f.First)
	}
	return fmt.Sprintf("%s: %s: %s", place, f.Kind, f.Message)
}

// walk follows one chain, event by event.
type walk struct {
	keys  Keys
	chain string

	begun  bool // the key is known by name
	key    string
	hash   *hasher // nil if the key is not known
	pruned int64   // how far the checkpoint reaches
	seq    int64
	last   Hash
	lost   bool // last is not known
}

// resume begins after a checkpoint.
func (w *walk) resume(c Checkpoint) {
	w.pruned, w.seq, w.last = c.Seq, c.Seq, c.Hash
	w.use(c.ChainKey)
}

func (w *walk) use(key string) {
	w.begun, w.key = true, key
	if w.keys.knows(key) {
		w.hash = w.keys.hasher(key)
	}
}

// step looks at the next event there is. It reports whether the event is proven to be what was written there.
func (w *walk) step(e Entry, report func(Finding)) (proven bool) {
	found := func(kind Kind, first, last int64, format string, args ...any) {
		proven = false
		report(Finding{kind, w.chain, first, last, fmt.Sprintf(format, args...)})
	}
	proven = true
	switch {
	case e.Seq <= w.pruned:
		found(BadCheckpoint, e.Seq, e.Seq, "it is there, although it was removed according to the checkpoint")
		return false
	case e.Seq <= w.seq:
		found(Misplaced, e.Seq, e.Seq, "it comes after event %d", w.seq)
		return false
	case e.Seq > w.seq+1:
		found(Missing, w.seq+1, e.Seq-1, "event %d is there, those before it are not", e.Seq)
		w.lost = true
	}
	w.seq = e.Seq
	hash, prev, hashed := hashesOf(e)
	if !w.begun {
		w.begin(e, prev, hash, found)
	}
	if !hashed {
		found(Unhashed, e.Seq, e.Seq, "it has no hash; nothing proves it")
		w.lost = true
		return false
	}
	switch follows := w.lost || prev == w.last; {
	case w.hash != nil && w.hash.event(e.Chain, e.Seq, prev, &e.Event) != hash:
		found(Changed, e.Seq, e.Seq, "it is not what was written, or was written without the key")
	case !follows:
		found(Misplaced, e.Seq, e.Seq, "it does not follow the event before it")
	}
	w.last, w.lost = hash, false
	return proven && w.hash != nil
}

// begin finds out the chain's key.
func (w *walk) begin(e Entry, prev, hash Hash, found func(Kind, int64, int64, string, ...any)) {
	if e.Seq > 1 {
		// The event that names it is missing, which is reported: try them all, so that the rest is checked.
		for _, key := range append([]string{""}, w.keys.ids()...) {
			if w.keys.hasher(key).event(e.Chain, e.Seq, prev, &e.Event) == hash {
				w.use(key)
				return
			}
		}
		w.use(w.keys.current)
		return
	}
	key, err := keyOf(e)
	if err != nil {
		found(Changed, e.Seq, e.Seq, "%v", err)
		key = w.keys.current
	}
	w.use(key)
	if w.hash == nil {
		found(UnknownKey, 0, 0, "it was hashed with the key %s, which is not given", key)
	}
}

func hashesOf(e Entry) (hash, prev Hash, ok bool) {
	ok = len(e.Hash) == len(hash) && len(e.PrevHash) == len(prev)
	copy(hash[:], e.Hash)
	copy(prev[:], e.PrevHash)
	return hash, prev, ok
}

// ids are those of all keys.
func (k Keys) ids() []string {
	var ids []string
	for id := range k.byID {
		ids = append(ids, id)
	}
	return ids
}

func (h Hash) is(b []byte) bool { return bytes.Equal(h[:], b) }
