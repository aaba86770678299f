package storetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
)

// tampered is an audit trail under an attacker's hands. He can write whatever he wants, and has no key.
type tampered struct {
	events []audit.Entry
	cps    []audit.Checkpoint
	// chains are in the order of their beginnings: the first was pruned in part, the first and the second are linked to.
	chains []string
}

// of returns the indexes of a chain's events.
func (x *tampered) of(chain int) (at []int) {
	for i, e := range x.events {
		if e.Chain == x.chains[chain] {
			at = append(at, i)
		}
	}
	return at
}

// drop removes events.
func (x *tampered) drop(which ...int) {
	var left []audit.Entry
	for i, e := range x.events {
		if !slices.Contains(which, i) {
			left = append(left, e)
		}
	}
	x.events = left
}

// rehash hashes a chain anew as well as it can be done without the key.
func (x *tampered) rehash(chain int) {
	prev := make([]byte, 32)
	for _, i := range x.of(chain) {
		e := &x.events[i]
		if e.Seq > 1 && i == x.of(chain)[0] {
			prev = e.PrevHash
		}
		e.PrevHash, e.Hash = prev, nil
		e.Hash = plainHash(*e)
		prev = e.Hash
	}
}

// data changes a field of an event's data.
func (x *tampered) data(i int, name string, value any) {
	m := map[string]any{}
	if err := json.Unmarshal(x.events[i].Data, &m); err != nil {
		panic(err)
	}
	m[name] = value
	x.events[i].Data, _ = json.Marshal(m)
}

func (x *tampered) find(chain int, typ string) int {
	for _, i := range x.of(chain) {
		if x.events[i].Type == typ {
			return i
		}
	}
	panic("no " + typ)
}

// edits change one column of an event: that event, and nothing else, is found.
var edits = []struct {
	name string
	do   func(e *audit.Entry)
}{
	{"time", func(e *audit.Entry) { e.Time = e.Time.Add(time.Microsecond) }},
	{"type", func(e *audit.Entry) { e.Type += "x" }},
	{"caller's kind", func(e *audit.Entry) { e.Caller.Kind = "oidc" }},
	{"caller's name", func(e *audit.Entry) { e.Caller.Name = "somebody" }},
	{"a letter moves from kind to name", func(e *audit.Entry) {
		e.Caller.Name = e.Caller.Kind[len(e.Caller.Kind)-1:] + e.Caller.Name
		e.Caller.Kind = e.Caller.Kind[:len(e.Caller.Kind)-1]
	}},
	{"invalidation", func(e *audit.Entry) { e.InvalidationID = newID() }},
	{"no invalidation", func(e *audit.Entry) { e.InvalidationID = "" }},
	{"target", func(e *audit.Entry) { e.Target = "storage" }},
	{"data", func(e *audit.Entry) { e.Data = []byte(`{"n":2}`) }},
	{"white space in data", func(e *audit.Entry) { e.Data = []byte(`{"n": 1}`) }},
	{"no data", func(e *audit.Entry) { e.Data = nil }},
	{"hash before", func(e *audit.Entry) { e.PrevHash = flip(e.PrevHash) }},
}

// tamperings are what an attacker may try, and how it is called. The middle of a chain is its third event.
var tamperings = []struct {
	name string
	do   func(x *tampered)
	want audit.Kind // what is found, beside what follows from it
	// keptOnly is true for what only kept heads tell: it concerns the end of the last chain, to which nothing links.
	keptOnly bool
	// plain says that it is found without keys, too.
	plain bool
}{
	{"hash", edit(func(e *audit.Entry) { e.Hash = flip(e.Hash) }), audit.Changed, false, true},
	{"no hash", edit(func(e *audit.Entry) { e.Hash = nil }), audit.Unhashed, false, true},
	{"no hashes at all", func(x *tampered) {
		for _, i := range x.of(2) {
			x.events[i].Hash, x.events[i].PrevHash = nil, nil
		}
	}, audit.Unhashed, false, true},
	{"sequence number", func(x *tampered) { i := x.of(2); x.events[i[len(i)-1]].Seq += 5 }, audit.Missing, false, true},
	{"chain's name", func(x *tampered) {
		for _, i := range x.of(1) {
			x.events[i].Chain += "x"
		}
	}, audit.Changed, false, true},

	{"one in the middle is removed", func(x *tampered) { x.drop(x.of(1)[2]) }, audit.Missing, false, true},
	{"the first is removed", func(x *tampered) { x.drop(x.of(2)[0]) }, audit.Missing, false, true},
	{"the rest moves up", func(x *tampered) {
		x.drop(x.of(1)[2])
		for _, i := range x.of(1)[2:] {
			x.events[i].Seq--
		}
	}, audit.Changed, false, true},
	{"the end is removed", func(x *tampered) { i := x.of(1); x.drop(i[len(i)-1]) }, audit.Missing, false, true},
	{"the end after the checkpoint is removed", func(x *tampered) { x.drop(x.of(0)...) }, audit.Missing, false, true},
	{"a chain is removed", func(x *tampered) { x.drop(x.of(1)...) }, audit.Missing, false, true},
	{"a chain is removed with its checkpoint", func(x *tampered) { x.drop(x.of(0)...); x.cps = nil }, audit.Missing, false, true},
	{"the last end is removed", func(x *tampered) { i := x.of(2); x.drop(i[len(i)-1]) }, audit.Missing, true, true},
	{"the last chain is removed", func(x *tampered) { x.drop(x.of(2)...) }, audit.Missing, true, true},
	{"everything is removed", func(x *tampered) { x.events, x.cps = nil, nil }, audit.Missing, true, true},

	{"two change places", func(x *tampered) {
		i, j := x.of(1)[2], x.of(1)[3]
		x.events[i].Seq, x.events[j].Seq = x.events[j].Seq, x.events[i].Seq
	}, audit.Changed, false, true},
	{"two change contents", func(x *tampered) {
		i, j := x.of(1)[2], x.of(1)[3]
		x.events[i].Event, x.events[j].Event = x.events[j].Event, x.events[i].Event
	}, audit.Changed, false, true},
	{"one is inserted", func(x *tampered) {
		at := x.of(1)
		e := x.events[at[2]]
		for _, i := range at[3:] {
			x.events[i].Seq++
		}
		e.Seq++
		e.PrevHash = e.Hash
		e.Caller.Name = "somebody"
		e.Hash = plainHash(e)
		x.events = slices.Insert(x.events, at[3], e)
	}, audit.Changed, false, true},
	{"one is repeated", func(x *tampered) {
		at := x.of(2)
		e := x.events[at[len(at)-1]]
		e.Seq++
		x.events = append(x.events, e)
	}, audit.Changed, false, true},
	{"one is appended", func(x *tampered) {
		at := x.of(2)
		e := x.events[at[len(at)-1]]
		e.Seq++
		e.PrevHash = e.Hash
		e.Hash = plainHash(e)
		x.events = append(x.events, e)
	}, audit.Changed, false, false},
	{"a chain is invented", func(x *tampered) {
		at := x.of(2)
		x.chains = append(x.chains, newID())
		for _, i := range at[:3] {
			e := x.events[i]
			e.Chain = x.chains[3]
			x.events = append(x.events, e)
		}
		x.data(x.of(3)[0], "key", "")
		x.rehash(3)
	}, audit.Unproven, false, false},
	{"one comes from another chain", func(x *tampered) {
		i, j := x.of(1)[2], x.of(2)[2]
		e := x.events[j]
		e.Chain = x.chains[1]
		x.events[i] = e
	}, audit.Changed, false, true},
	{"one comes from another chain, and the next follows it", func(x *tampered) {
		i, j := x.of(1)[2], x.of(2)[2]
		e := x.events[j]
		e.Chain, e.PrevHash = x.chains[1], x.events[i].PrevHash
		x.events[i] = e
		x.events[x.of(1)[3]].PrevHash = e.Hash
	}, audit.Changed, false, true},

	{"a link says another hash", func(x *tampered) {
		i := x.find(2, audit.TypeLinked)
		x.events[i].Data = bytes.Replace(x.events[i].Data, []byte(`"hash":"`), []byte(`"hash":"00`), 1)
	}, audit.Changed, false, true},
	{"the end and the links to it are removed", func(x *tampered) {
		i := x.of(1)
		x.drop(i[len(i)-1], x.find(2, audit.TypeLinked))
	}, audit.Missing, false, true},
	{"the end is removed, and what links to it says another", func(x *tampered) {
		at := x.of(1)
		last := x.events[at[len(at)-2]]
		i := x.find(2, audit.TypeLinked)
		x.data(i, "heads", []audit.Head{{Chain: last.Chain, Seq: last.Seq, Hash: audit.Hash(last.Hash)}})
		x.rehash(2)
		x.drop(at[len(at)-1])
	}, audit.Changed, false, false},
	{"hashed again", func(x *tampered) {
		x.events[x.of(2)[2]].Caller.Name = "somebody"
		x.rehash(2)
	}, audit.Changed, false, false},
	{"hashed again, as if without a key", func(x *tampered) {
		x.events[x.of(2)[2]].Caller.Name = "somebody"
		x.data(x.of(2)[0], "key", "")
		x.rehash(2)
	}, audit.Unproven, false, false},
	{"hashed again, and linked to", func(x *tampered) {
		x.events[x.of(1)[2]].Caller.Name = "somebody"
		x.data(x.of(1)[0], "key", "")
		x.rehash(1)
	}, audit.Changed, false, true},
	{"as if with an unknown key", func(x *tampered) {
		x.data(x.of(2)[0], "key", "0123456789abcdef")
		x.rehash(2)
	}, audit.UnknownKey, false, true},
	{"no key is named", func(x *tampered) { x.events[x.of(2)[0]].Data = nil }, audit.Changed, false, true},

	{"checkpoint's hash", func(x *tampered) { x.cps[0].Hash[0] ^= 1 }, audit.BadCheckpoint, false, true},
	{"checkpoint's time", func(x *tampered) { x.cps[0].Time = x.cps[0].Time.Add(time.Second) }, audit.BadCheckpoint, false, true},
	{"checkpoint's code", func(x *tampered) { x.cps[0].MAC[0] ^= 1 }, audit.BadCheckpoint, false, true},
	{"checkpoint's chain", func(x *tampered) { x.cps[0].Chain = x.chains[1] }, audit.BadCheckpoint, false, true},
	{"the checkpoint is removed", func(x *tampered) { x.cps = nil }, audit.Missing, false, true},
	{"the checkpoint goes on", func(x *tampered) {
		i := x.of(0)[0]
		x.cps[0].Seq, x.cps[0].Hash = x.events[i].Seq, audit.Hash(x.events[i].Hash)
		x.drop(i)
	}, audit.BadCheckpoint, false, true},
	{"the checkpoint goes on, without a key", func(x *tampered) {
		i := x.of(0)[0]
		x.cps[0].Seq, x.cps[0].Hash = x.events[i].Seq, audit.Hash(x.events[i].Hash)
		x.cps[0].Key = ""
		plain := audit.Keys{}
		x.cps[0].MAC = plain.Code(x.cps[0])
		x.drop(i)
	}, audit.Unproven, false, false},
	{"a chain is pruned by a forged checkpoint", func(x *tampered) {
		at := x.of(1)
		e := x.events[at[len(at)-1]]
		cp := audit.Checkpoint{Head: audit.Head{Chain: e.Chain, Seq: e.Seq, Hash: audit.Hash(e.Hash)}, ChainKey: x.cps[0].ChainKey, Time: x.cps[0].Time}
		plain := audit.Keys{}
		cp.MAC = plain.Code(cp)
		x.cps = append(x.cps, cp)
		x.drop(at...)
	}, audit.Unproven, false, false},
	{"what was pruned comes back", func(x *tampered) {
		e := x.events[x.of(0)[0]]
		e.Seq = 1
		x.events = slices.Insert(x.events, 0, e)
	}, audit.BadCheckpoint, false, true},
}

// edit changes the third event of the second chain.
func edit(f func(*audit.Entry)) func(*tampered) {
	return func(x *tampered) { f(&x.events[x.of(1)[2]]) }
}

func flip(b []byte) []byte {
	b = slices.Clone(b)
	b[0] ^= 1
	return b
}

// auditTampering does each of the tamperings to a trail that is well, and looks whether it is found.
func auditTampering(t *testing.T, h Harness) {
	keys := key(t, "k")
	for _, mode := range []struct {
		name string
		keys audit.Keys
	}{{"keyed", keys}, {"plain", audit.Keys{}}} {
		s, at := history(t, h, mode.keys, mode.keys, mode.keys)
		if n, err := s.PruneAudit(t.Context(), at.Add(time.Hour), 2); n != 2 || err != nil {
			t.Fatalf("PruneAudit removed %d, %v", n, err)
		}
		heads := Verify(t, h.Trail(t, s), audit.Verification{Keys: mode.keys}).Heads
		events, cps := entries(t, h, s)
		chains := func() (names []string) {
			for _, e := range events {
				if !slices.Contains(names, e.Chain) {
					names = append(names, e.Chain)
				}
			}
			return names
		}
		for _, c := range edits {
			x := &tampered{events: slices.Clone(events), chains: chains()}
			edit(c.do)(x)
			h.Tamper(t, s, x.events, cps)
			_, found := verify(t, h.Trail(t, s), audit.Verification{Keys: mode.keys})
			if len(found) != 1 || found[0].Kind != audit.Changed || found[0].Chain != x.chains[1] || found[0].First != 3 || found[0].Last != 3 {
				t.Errorf("%s, %s is changed: found %s, want event 3 of chain %s", mode.name, c.name, list(found), x.chains[1])
			}
		}
		for _, c := range tamperings {
			if mode.name == "plain" && !c.plain {
				continue
			}
			x := &tampered{events: slices.Clone(events), cps: slices.Clone(cps), chains: chains()}
			c.do(x)
			h.Tamper(t, s, x.events, x.cps)
			_, without := verify(t, h.Trail(t, s), audit.Verification{Keys: mode.keys})
			_, with := verify(t, h.Trail(t, s), audit.Verification{Keys: mode.keys, Heads: heads})
			switch {
			case c.keptOnly && len(without) > 0:
				t.Errorf("%s, %s: found without kept heads: %v", mode.name, c.name, without)
			case !c.keptOnly && !has(without, c.want):
				t.Errorf("%s, %s: found %s, want %v", mode.name, c.name, list(without), c.want)
			case !has(with, c.want):
				t.Errorf("%s, %s: with kept heads: found %s, want %v", mode.name, c.name, list(with), c.want)
			}
		}
		// It was none of the tampering with the tables.
		h.Tamper(t, s, events, cps)
		Verify(t, h.Trail(t, s), audit.Verification{Keys: mode.keys, Heads: heads})
	}
}

// has reports whether something of the kind was found.
func has(found []audit.Finding, kind audit.Kind) bool {
	return slices.ContainsFunc(found, func(f audit.Finding) bool { return f.Kind == kind })
}

func list(found []audit.Finding) string {
	var lines []string
	for _, f := range found {
		lines = append(lines, f.String())
	}
	return fmt.Sprintf("[%s]", strings.Join(lines, "; "))
}

// auditKeepsEvidence: what does not verify is not pruned, and other chains are.
func auditKeepsEvidence(t *testing.T, h Harness) {
	keys := key(t, "k")
	s, at := history(t, h, keys, keys, keys)
	events, _ := entries(t, h, s)
	first := events[0].Chain
	events[2].Caller.Name = "somebody"
	h.Tamper(t, s, events, nil)
	n, err := s.PruneAudit(t.Context(), at.Add(time.Hour), 1000)
	wantError(t, "PruneAudit", err, audit.ErrBroken)
	left, cps := entries(t, h, s)
	if n != len(events)-len(left) || len(left) == 0 || left[0].Chain != first || left[0].Seq != 3 || left[len(left)-1].Chain != first {
		t.Errorf("%d of %d events are left, from %d of chain %s on; want the first chain's from the one that was changed", len(left), len(events), left[0].Seq, left[0].Chain)
	}
	if len(cps) != 3 {
		t.Errorf("%d checkpoints, want 3", len(cps))
	}
	if _, found := verify(t, h.Trail(t, s), audit.Verification{Keys: keys}); len(found) != 1 || found[0].Kind != audit.Changed || found[0].First != 3 {
		t.Errorf("found %s, want the one that was changed", list(found))
	}
}

// auditKeysRotate: chains before there was a key, under an old one and under the new one. What was written without a key is
// vouched for by the first chain that has one.
func auditKeysRotate(t *testing.T, h Harness) {
	old, both := key(t, "o"), key(t, "n", "o")
	s, at := history(t, h, audit.Keys{}, audit.Keys{}, old, both)
	Verify(t, h.Trail(t, s), audit.Verification{Keys: both})
	_, found := verify(t, h.Trail(t, s), audit.Verification{Keys: key(t, "n")})
	if !has(found, audit.UnknownKey) {
		t.Errorf("without the old key: %s", list(found))
	}
	// Pruned under the new key, everything is still proven.
	if _, err := s.PruneAudit(t.Context(), at.Add(time.Hour), 3); err != nil {
		t.Fatal(err)
	}
	Verify(t, h.Trail(t, s), audit.Verification{Keys: both})

	// Without a key, and pruned so, until a key comes.
	s, at = history(t, h, audit.Keys{}, audit.Keys{})
	if _, err := s.PruneAudit(t.Context(), at.Add(time.Hour), 7); err != nil {
		t.Fatal(err)
	}
	Verify(t, h.Trail(t, s), audit.Verification{})
	if _, found := verify(t, h.Trail(t, s), audit.Verification{Keys: old}); !has(found, audit.Unproven) {
		t.Errorf("nothing vouches yet: %s", list(found))
	}
	s = h.Keyed(t, s, old)
	if err := s.Audit(t.Context(), []invalidation.Event{event(at, "x", "")}); err != nil {
		t.Fatal(err)
	}
	if h.Link != nil {
		h.Link(t, s)
	}
	Verify(t, h.Trail(t, s), audit.Verification{Keys: old})
}
