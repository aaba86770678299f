package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Journal is an audit trail as it was at one moment.
type Journal interface {
	// Checkpoints returns up to limit checkpoints of the chains after the given one, in order of their names.
	Checkpoints(ctx context.Context, after string, limit int) ([]Checkpoint, error)
	// Events returns up to limit events that come after the one at chain and seq, in order of both.
	Events(ctx context.Context, chain string, seq int64, limit int) ([]Entry, error)
	// Hash returns the hash of an event, nil if it has none.
	Hash(ctx context.Context, chain string, seq int64) (hash []byte, found bool, err error)
}

// page is how many rows are read at once.
const page = 500

// Verification says how to [Verify].
type Verification struct {
	Keys Keys
	// Heads were kept when the trail was verified before. They must still be there.
	Heads []Head
	// Found is called for everything that is wrong.
	Found func(Finding)
}

// Report is what [Verify] has looked at.
type Report struct {
	Events, Chains, Checkpoints int
	// Findings counts what is wrong. If it is 0, every event is proven as far as package documentation says.
	Findings int
	// Heads are the ends of all chains, in order of their names.
	Heads []Head
}

// Verify checks an audit trail from beginning to end. The error means that it could not be read. What it keeps in memory
// grows with the number of chains, not of events.
func Verify(ctx context.Context, j Journal, o Verification) (Report, error) {
	v := verifier{journal: j, Verification: o, chains: map[string]*chain{}}
	if err := v.checkpoints(ctx); err != nil {
		return Report{}, fmt.Errorf("read checkpoints: %w", err)
	}
	if err := v.events(ctx); err != nil {
		return Report{}, fmt.Errorf("read events: %w", err)
	}
	for _, h := range o.Heads {
		if err := v.claim(ctx, h, "its head was kept", true); err != nil {
			return Report{}, fmt.Errorf("look up a head: %w", err)
		}
	}
	v.conclude()
	return v.report, nil
}

type verifier struct {
	Verification
	journal Journal
	chains  map[string]*chain
	report  Report
}

// chain is what is known of a chain, from its events and from others that link to it.
type chain struct {
	checkpoint *Checkpoint
	key        string
	last       int64
	hash       Hash
	// vouched is the last event that something keyed, or kept, says is there. missing is the last that is not, claimedBy who
	// says it was.
	vouched, missing int64
	// pruned is how far, as something keyed says, the chain's checkpoint reached already.
	pruned int64
	// unhashed is true if the last event has no hash.
	unhashed  bool
	claimedBy string
}

func (v *verifier) chain(id string) *chain {
	c := v.chains[id]
	if c == nil {
		c = &chain{}
		v.chains[id] = c
	}
	return c
}

func (v *verifier) found(f Finding) {
	v.report.Findings++
	if v.Found != nil {
		v.Found(f)
	}
}

func (v *verifier) checkpoints(ctx context.Context) error {
	for after := ""; ; {
		part, err := v.journal.Checkpoints(ctx, after, page)
		if err != nil {
			return err
		}
		for _, cp := range part {
			v.report.Checkpoints++
			if err := v.Keys.check(cp); err != nil {
				v.found(Finding{BadCheckpoint, cp.Chain, cp.Seq, cp.Seq, err.Error()})
			}
			*v.chain(cp.Chain) = chain{checkpoint: &cp, key: cp.ChainKey, last: cp.Seq, hash: cp.Hash}
			after = cp.Chain
		}
		if len(part) < page {
			return nil
		}
	}
}

func (v *verifier) events(ctx context.Context) error {
	var w *walk
	var c *chain
	for id, seq := "", int64(0); ; {
		part, err := v.journal.Events(ctx, id, seq, page)
		if err != nil {
			return err
		}
		for _, e := range part {
			if w == nil || w.chain != e.Chain {
				c = v.chain(e.Chain)
				w = &walk{keys: v.Keys, chain: e.Chain}
				if c.checkpoint != nil {
					w.resume(*c.checkpoint)
				}
				v.report.Chains++
			}
			v.report.Events++
			proven := w.step(e, v.found)
			c.key, c.last, c.hash, c.unhashed = w.key, w.seq, w.last, w.lost
			if proven && e.Type == TypeLinked {
				if err := v.links(ctx, e, w.key != ""); err != nil {
					return err
				}
			}
			id, seq = e.Chain, e.Seq
		}
		if len(part) < page {
			return nil
		}
	}
}

// links checks what an event says of other chains.
func (v *verifier) links(ctx context.Context, e Entry, keyed bool) error {
	var l linked
	if err := json.Unmarshal(e.Data, &l); err != nil {
		v.found(Finding{Changed, e.Chain, e.Seq, e.Seq, "its links cannot be read"})
		return nil
	}
	by := fmt.Sprintf("event %d of chain %s links to it", e.Seq, e.Chain)
	for _, h := range l.Heads {
		if err := v.claim(ctx, h, by, keyed); err != nil {
			return err
		}
	}
	return nil
}

// claim checks that an event is there which somebody says was.
func (v *verifier) claim(ctx context.Context, h Head, by string, vouches bool) error {
	c := v.chain(h.Chain)
	if vouches {
		c.pruned = max(c.pruned, h.Pruned)
	}
	var there []byte
	switch cp := c.checkpoint; {
	case cp != nil && h.Seq < cp.Seq:
		return nil // removed because of its age
	case cp != nil && h.Seq == cp.Seq:
		there = cp.Hash[:]
	case h.Seq == c.last:
		there = c.hash[:]
	default:
		hash, found, err := v.journal.Hash(ctx, h.Chain, h.Seq)
		if err != nil {
			return err
		}
		if !found {
			if h.Seq > c.missing {
				c.missing, c.claimedBy = h.Seq, by
			}
			return nil
		}
		there = hash
	}
	if !h.Hash.is(there) {
		v.found(Finding{Changed, h.Chain, h.Seq, h.Seq, "it is another one than was there: " + by})
		return nil
	}
	if vouches {
		c.vouched = max(c.vouched, h.Seq)
	}
	return nil
}

// conclude reports what is known only at the end.
func (v *verifier) conclude() {
	for _, id := range slices.Sorted(maps.Keys(v.chains)) {
		c := v.chains[id]
		// What is missing in the middle was reported already.
		if c.missing > c.last {
			v.found(Finding{Missing, id, c.last + 1, c.missing, "the end of the chain was cut off: " + c.claimedBy})
		}
		if c.last == 0 {
			continue
		}
		if v.Keys.current != "" {
			switch cp := c.checkpoint; {
			case cp != nil && cp.Key == "" && c.pruned < cp.Seq:
				v.found(Finding{Unproven, id, 1, cp.Seq, "the checkpoint that says they were removed was made without a key, and nothing that is keyed vouches for it"})
			case c.key == "" && c.vouched < c.last && !c.unhashed:
				v.found(Finding{Unproven, id, c.vouched + 1, c.last, "hashed without a key, and nothing that is keyed vouches for it"})
			}
		}
		if !c.unhashed {
			v.report.Heads = append(v.report.Heads, Head{Chain: id, Seq: c.last, Hash: c.hash})
		}
	}
}

// headWord begins the lines that heads are kept in.
const headWord = "head"

// String writes the head as it is kept: "head", chain, sequence number and hash.
func (h Head) String() string { return fmt.Sprintf("%s %s %d %s", headWord, h.Chain, h.Seq, h.Hash) }

// ParseHeads reads heads as they are kept, a line each. Other lines are left out, so that a whole report can be given; a
// text without any head is an error.
func ParseHeads(text string) ([]Head, error) {
	var heads []Head
	n := 0
	for line := range strings.Lines(text) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != headWord {
			continue
		}
		var h Head
		var hash string
		if _, err := fmt.Sscanf(strings.Join(fields, " "), headWord+" %s %d %s", &h.Chain, &h.Seq, &hash); err != nil || len(fields) != 4 || h.Seq < 1 {
			return nil, fmt.Errorf("line %d: want %q, a chain, a sequence number and a hash", n, headWord)
		}
		if err := h.Hash.UnmarshalText([]byte(hash)); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		heads = append(heads, h)
	}
	if len(heads) == 0 {
		return nil, fmt.Errorf("there is no line that begins with %q", headWord)
	}
	return heads, nil
}
