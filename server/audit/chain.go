package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/google/uuid"
)

// Types of the events that chains write about themselves.
const (
	// TypeStarted is the first event of every chain.
	TypeStarted = "chain.started"
	// TypeLinked holds the heads of other chains.
	TypeLinked = "chain.linked"
)

// Gateway is the caller of what nobody has called for.
var Gateway = invalidation.Caller{Kind: "gateway", Name: "endsession"}

// Hash is an event's. The zero value stands for the event before the first.
type Hash [sha256.Size]byte

// String writes the hash in hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes the hash in hexadecimal digits.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("a hash of %d digits: want %d", len(text), 2*len(h))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// Entry is an event in its place in the audit trail, as the journal has it.
type Entry struct {
	// Chain is the chain's name; Seq counts from 1 within it, without gaps.
	Chain string
	Seq   int64
	invalidation.Event
	// PrevHash and Hash are nil for an event that was written before there were chains.
	PrevHash, Hash []byte
}

// Head is an event of a chain that is known by its hash; usually the last.
type Head struct {
	Chain string `json:"chain"`
	Seq   int64  `json:"seq"`
	Hash  Hash   `json:"hash"`
	// Pruned is how many of the chain's events had been removed because of their age when it was linked to.
	Pruned int64 `json:"pruned,omitempty"`
}

const eventDomain = "endsession audit event 1\n"

// appendEvent appends the encoding that is hashed; package documentation says what it is.
func appendEvent(b []byte, chain string, seq int64, prev Hash, e *invalidation.Event) []byte {
	b = append(b, eventDomain...)
	b = appendText(b, chain)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	b = append(b, prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.UnixMicro()))
	b = appendText(b, e.Type)
	b = appendText(b, e.Caller.Kind)
	b = appendText(b, e.Caller.Name)
	b = appendText(b, e.InvalidationID)
	b = appendText(b, e.Target)
	return appendText(b, e.Data)
}

func appendText[T string | []byte | json.RawMessage](b []byte, s T) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

func (h *hasher) event(chain string, seq int64, prev Hash, e *invalidation.Event) Hash {
	h.buf = appendEvent(h.buf[:0], chain, seq, prev, e)
	return h.sum()
}

// Chain is the end of a chain, to which a store appends. It belongs to one goroutine at a time.
//
// A store appends to the chain what it is about to write, and takes it back with [Chain.Rewind] if that is not committed. If
// it does not know whether it is, the chain must not be used any more: it would go on from an event that may not be there.
type Chain struct {
	id   string
	key  string // its ID
	hash *hasher
	mark Mark
}

// Mark is a place in a chain to go back to.
type Mark struct {
	seq  int64
	hash Hash
}

// Start begins a chain. Its name sorts by the time of its beginning.
func (k Keys) Start() (*Chain, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	return &Chain{id: id.String(), key: k.current, hash: k.hasher(k.current)}, nil
}

// ID is the chain's name.
func (c *Chain) ID() string { return c.id }

// Empty reports whether nothing was appended yet. Then [Chain.Opening] comes first.
func (c *Chain) Empty() bool { return c.mark.seq == 0 }

// Mark is where the chain ends now.
func (c *Chain) Mark() Mark { return c.mark }

// Rewind takes back what was appended since.
func (c *Chain) Rewind(to Mark) { c.mark = to }

// Append gives an event its place. Its time counts in microseconds.
func (c *Chain) Append(e *invalidation.Event) (seq int64, prev, hash Hash) {
	prev = c.mark.hash
	c.mark.seq++
	c.mark.hash = c.hash.event(c.id, c.mark.seq, prev, e)
	return c.mark.seq, prev, c.mark.hash
}

// Opening is the event that every chain begins with.
func (c *Chain) Opening(at time.Time) invalidation.Event {
	host, _ := os.Hostname()
	version := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	return own(at, TypeStarted, started{Key: c.key, Host: host, PID: os.Getpid(), Version: version})
}

// started is the data of a [TypeStarted] event.
type started struct {
	Key     string `json:"key"`
	Host    string `json:"host"`
	PID     int    `json:"pid"`
	Version string `json:"version,omitempty"`
}

// maxHeads bounds the heads in one event.
const maxHeads = 1000

// Link returns the events that link to other chains; heads of this chain are left out.
func (c *Chain) Link(at time.Time, heads []Head) []invalidation.Event {
	var events []invalidation.Event
	var part []Head
	for i, h := range heads {
		if h.Chain != c.id {
			part = append(part, h)
		}
		if len(part) == maxHeads || len(part) > 0 && i == len(heads)-1 {
			events = append(events, own(at, TypeLinked, linked{Key: c.key, Heads: part}))
			part = nil
		}
	}
	return events
}

// linked is the data of a [TypeLinked] event. The key is the chain's; stores look for the last link under a key.
type linked struct {
	Key   string `json:"key"`
	Heads []Head `json:"heads"`
}

func own(at time.Time, typ string, data any) invalidation.Event {
	b, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", data, err)) // plain data of ours
	}
	return invalidation.Event{Time: at, Type: typ, Caller: Gateway, Data: b}
}

// LinkMargin is how much longer ago than the last link an event may be told to have happened and still have been written
// after it: clocks differ, and a journal that was away for a while is written to late.
const LinkMargin = 15 * time.Minute

// Tip is the head of a chain, with what decides whether to link to it.
type Tip struct {
	Head
	// Time and Type are the last event's.
	Time time.Time
	Type string
}

// ToLink chooses what a link should hold: what others have written since the last link under the same key, whoever wrote
// that, and everything if there was none. It is nothing if there is no more to it than links.
func ToLink(tips []Tip, last time.Time) []Head {
	var heads []Head
	news := false
	for _, t := range tips {
		if !last.IsZero() && t.Time.Before(last.Add(-LinkMargin)) {
			continue
		}
		heads = append(heads, t.Head)
		news = news || t.Type != TypeLinked
	}
	if !news {
		return nil
	}
	return heads
}
