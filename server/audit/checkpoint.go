package audit

import (
	"crypto/hmac"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrBroken is wrapped by what says that a chain is not what was written.
var ErrBroken = errors.New("the audit chain is broken")

// Checkpoint stands for the events of a chain that were removed because of their age: the first up to Seq.
//
// Its code is made like an event's hash, under a key of its own: of "endsession audit checkpoint 1\n", chain (text), sequence
// number (8 bytes), hash, the chain's key's ID (text) and time (8 bytes).
type Checkpoint struct {
	// Head is the last event that was removed: the next one follows it.
	Head
	// ChainKey is the ID of the chain's key, which its first event has told.
	ChainKey string
	// Time is when the events were removed.
	Time time.Time
	// Key is the ID of the key that MAC was made with.
	Key string
	MAC Hash
}

const checkpointDomain = "endsession audit checkpoint 1\n"

// Code is what a checkpoint's MAC must be.
func (k Keys) Code(c Checkpoint) Hash {
	h := k.hasher(c.Key)
	h.buf = append(h.buf, checkpointDomain...)
	h.buf = appendText(h.buf, c.Chain)
	h.buf = binary.BigEndian.AppendUint64(h.buf, uint64(c.Seq))
	h.buf = append(h.buf, c.Hash[:]...)
	h.buf = appendText(h.buf, c.ChainKey)
	h.buf = binary.BigEndian.AppendUint64(h.buf, uint64(c.Time.UnixMicro()))
	return h.sum()
}

// check reports what is wrong with a checkpoint, if anything.
func (k Keys) check(c Checkpoint) error {
	if !k.knows(c.Key) {
		return fmt.Errorf("the checkpoint was made with the key %s, which is not given", c.Key)
	}
	if mac := k.Code(c); !hmac.Equal(mac[:], c.MAC[:]) {
		return errors.New("the checkpoint is not what was written")
	}
	return nil
}

// Prefix is the beginning of a chain that is about to be removed. What was tampered with is evidence and stays: each event
// is checked first.
type Prefix struct {
	keys Keys
	walk walk
}

// Prefix begins where a chain begins: after its checkpoint, if it has one.
func (k Keys) Prefix(chain string, from *Checkpoint) (*Prefix, error) {
	p := &Prefix{keys: k, walk: walk{keys: k, chain: chain}}
	if from != nil {
		if err := k.check(*from); err != nil {
			return nil, fmt.Errorf("%w: chain %s: %w", ErrBroken, chain, err)
		}
		p.walk.resume(*from)
	}
	return p, nil
}

// Chain is the chain's name.
func (p *Prefix) Chain() string { return p.walk.chain }

// AddOlder takes those of the next events in that are the chain's and older than that time, and returns how many. The
// error says why the first of them that is not in cannot be removed.
func (p *Prefix) AddOlder(next []Entry, before time.Time) (n int, err error) {
	for _, e := range next {
		if e.Chain != p.walk.chain || !e.Time.Before(before) {
			break
		}
		if err := p.add(e); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// add takes the next event in, or says why it cannot be removed; then it is not in.
func (p *Prefix) add(e Entry) error {
	var broken error
	next := p.walk
	next.step(e, func(f Finding) {
		if broken == nil {
			broken = fmt.Errorf("%w: %v", ErrBroken, f)
		}
	})
	if broken == nil && next.hash == nil {
		broken = fmt.Errorf("%w: chain %s was hashed with the key %s, which is not given", ErrBroken, e.Chain, next.key)
	}
	if broken == nil {
		p.walk = next
	}
	return broken
}

// Checkpoint stands for the events that were added.
func (p *Prefix) Checkpoint(at time.Time) Checkpoint {
	c := Checkpoint{
		Head: Head{Chain: p.walk.chain, Seq: p.walk.seq, Hash: p.walk.last}, ChainKey: p.walk.key,
		Time: time.UnixMicro(at.UnixMicro()).UTC(), Key: p.keys.current,
	}
	c.MAC = p.keys.Code(c)
	return c
}

// keyOf is what the first event of a chain says of its key.
func keyOf(e Entry) (string, error) {
	var s started
	if e.Type != TypeStarted {
		return "", fmt.Errorf("the chain begins with %q", e.Type)
	}
	if err := json.Unmarshal(e.Data, &s); err != nil {
		return "", errors.New("the chain's first event cannot be read")
	}
	return s.Key, nil
}
