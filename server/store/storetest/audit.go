package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
)

// Verify verifies an audit trail in which nothing must be wrong, and closes it.
func Verify(t testing.TB, j audit.Journal, v audit.Verification) audit.Report {
	t.Helper()
	report, found := verify(t, j, v)
	for _, f := range found {
		t.Errorf("the audit trail: %v", f)
	}
	return report
}

func verify(t testing.TB, j audit.Journal, v audit.Verification) (report audit.Report, found []audit.Finding) {
	t.Helper()
	v.Found = func(f audit.Finding) { found = append(found, f) }
	report, err := audit.Verify(t.Context(), j, v)
	if err != nil {
		t.Errorf("verify the audit trail: %v", err)
	}
	if report.Findings != len(found) {
		t.Errorf("the report counts %d findings of %d", report.Findings, len(found))
	}
	closeTrail(t, j)
	return report, found
}

func closeTrail(t testing.TB, j audit.Journal) {
	t.Helper()
	if c, ok := j.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// entries are all events of the trail, and the checkpoints.
func entries(t testing.TB, h Harness, s invalidation.Store) ([]audit.Entry, []audit.Checkpoint) {
	t.Helper()
	j := h.Trail(t, s)
	defer closeTrail(t, j)
	events, err := j.Events(t.Context(), "", 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	cps, err := j.Checkpoints(t.Context(), "", 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	return events, cps
}

func key(t testing.TB, names ...string) audit.Keys {
	t.Helper()
	var secrets []secret.String
	for _, name := range names {
		secrets = append(secrets, secret.New(strings.Repeat(name, audit.MinKeyLength)))
	}
	keys, err := audit.NewKeys(secrets[0], secrets[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// auditChains does everything that writes events, and much that fails after having tried.
func auditChains(t *testing.T, h Harness) {
	keys := key(t, "k")
	s := h.Keyed(t, nil, keys)
	at := now(t, s)
	wrote := 0
	for range 3 {
		a := asked(at, "apm", "kibana", "storage")
		a.RequestID, a.Digest = newID(), []byte("d")
		inv, _ := accept(t, s, a)
		if _, replayed, _, err := s.Accept(t.Context(), a); err != nil || !replayed {
			t.Errorf("Accept again: replayed %t, %v", replayed, err)
		}
		c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
		bad := c.Run
		bad.State = invalidation.RunPending
		_, err := s.Record(t.Context(), c.Lease, bad, []invalidation.Event{event(at, "run.waiting", inv.ID)})
		wantError(t, "Record", err, invalidation.ErrIllegalTransition)
		record(t, s, c.Lease, ended(c.Run, invalidation.RunSucceeded, at), event(at, "run.succeeded", inv.ID), event(at, "x", inv.ID))
		_, err = s.Record(t.Context(), c.Lease, ended(c.Run, invalidation.RunFailed, at), []invalidation.Event{event(at, "run.failed", inv.ID)})
		wantError(t, "Record", err, invalidation.ErrLeaseLost)
		for _, want := range []error{nil, invalidation.ErrFinal} {
			if _, err := s.Cancel(t.Context(), inv.ID, at, []invalidation.Event{event(at, "invalidation.cancelled", inv.ID)}); !errors.Is(err, want) {
				t.Errorf("Cancel: %v, want %v", err, want)
			}
		}
		if err := s.Pause(t.Context(), invalidation.Pause{Target: "apm", Time: at}, []invalidation.Event{event(at, "target.paused", "")}); err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(t.Context(), "apm", []invalidation.Event{event(at, "target.resumed", "")}); err != nil {
			t.Fatal(err)
		}
		if err := s.Audit(t.Context(), []invalidation.Event{event(odd(at), "call.denied", ""), {Time: at, Type: "bare"}}); err != nil {
			t.Fatal(err)
		}
		// The second cannot be kept, and takes the first with it.
		if err := s.Audit(t.Context(), []invalidation.Event{event(at, "x", ""), {Time: at}}); err == nil {
			t.Error("an event without a type was kept")
		}
		wrote += 1 + 2 + 1 + 1 + 1 + 2
	}
	events, _ := entries(t, h, s)
	if len(events) != wrote+1 || events[0].Type != audit.TypeStarted || events[0].Chain != events[wrote].Chain {
		t.Errorf("%d events from %s on, want %d in one chain, after its start", len(events), events[0].Type, wrote)
	}
	report := Verify(t, h.Trail(t, s), audit.Verification{Keys: keys})
	if report.Events != wrote+1 || report.Chains != 1 || len(report.Heads) != 1 || report.Heads[0].Seq != int64(wrote+1) {
		t.Errorf("verified %+v, want %d events in a chain", report, wrote+1)
	}
	Verify(t, h.Trail(t, s), audit.Verification{Keys: key(t, "new", "k"), Heads: report.Heads})
	if _, found := verify(t, h.Trail(t, s), audit.Verification{Keys: key(t, "other")}); !slices.ContainsFunc(found, func(f audit.Finding) bool { return f.Kind == audit.UnknownKey }) {
		t.Errorf("without the key: %v", found)
	}
	// A process that was killed has left a chain that is whole.
	s = h.Keyed(t, h.Reopen(t, s), keys)
	if err := s.Audit(t.Context(), []invalidation.Event{event(at, "x", "")}); err != nil {
		t.Fatal(err)
	}
	if r := Verify(t, h.Trail(t, s), audit.Verification{Keys: keys, Heads: report.Heads}); r.Chains != 2 {
		t.Errorf("%d chains after a crash, want 2", r.Chains)
	}
}

// auditChainsAtOnce has many write at a time, of whom some are refused.
func auditChainsAtOnce(t *testing.T, h Harness) {
	s := h.Open(t)
	stores := []invalidation.Store{s, h.process(t, s), h.process(t, s)}
	at := now(t, s)
	inv, _ := accept(t, s, asked(at, "apm"))
	const callers, calls = 12, 15
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			s := stores[n%len(stores)]
			for m := range calls {
				if m%3 == 1 {
					_, err := s.Record(t.Context(), invalidation.Lease{InvalidationID: inv.ID, Owner: "nobody", Token: 9},
						ended(inv.Runs[0], invalidation.RunFailed, at), []invalidation.Event{event(at, "run.failed", inv.ID)})
					if !errors.Is(err, invalidation.ErrLeaseLost) {
						t.Errorf("Record: %v", err)
					}
				} else if err := s.Audit(t.Context(), []invalidation.Event{event(at, "a", ""), event(at, "b", "")}); err != nil {
					t.Errorf("Audit: %v", err)
				}
			}
		})
	}
	all.Wait()
	report := Verify(t, h.Trail(t, s), audit.Verification{})
	if n := len(h.Events(t, s)); n != 1+callers*calls*2/3*2 {
		t.Errorf("%d events, want %d", n, 1+callers*calls*2/3*2)
	}
	if report.Chains > callers+1 {
		t.Errorf("%d chains for %d callers", report.Chains, callers)
	}
}

// history is a trail of three processes, each of which links to those before it.
func history(t testing.TB, h Harness, keys ...audit.Keys) (invalidation.Store, time.Time) {
	t.Helper()
	var s invalidation.Store
	var at time.Time
	for _, k := range keys {
		s = h.Keyed(t, s, k)
		at = now(t, s)
		inv, _ := accept(t, s, asked(at, "apm"))
		c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
		record(t, s, c.Lease, ended(c.Run, invalidation.RunSucceeded, at), event(at, "run.succeeded", inv.ID))
		e := event(at, "target.checked", "")
		e.Target = "apm"
		if err := s.Audit(t.Context(), []invalidation.Event{e, event(at.Add(time.Second), "call.denied", "")}); err != nil {
			t.Fatal(err)
		}
		if h.Link != nil {
			h.Link(t, s)
		}
		if err := s.Audit(t.Context(), []invalidation.Event{event(at.Add(2*time.Second), "caller.refused", "")}); err != nil {
			t.Fatal(err)
		}
	}
	return s, at
}

func auditLinks(t *testing.T, h Harness) {
	keys := key(t, "k")
	s, _ := history(t, h, keys, keys, keys)
	events, _ := entries(t, h, s)
	last := map[string]int64{}
	for _, e := range events {
		last[e.Chain] = e.Seq
	}
	if len(last) != 3 {
		t.Fatalf("%d chains, want 3", len(last))
	}
	linked := map[string]int64{}
	for _, e := range events {
		if e.Type != audit.TypeLinked {
			continue
		}
		var data struct{ Heads []audit.Head }
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		for _, head := range data.Heads {
			if head.Chain == e.Chain {
				t.Errorf("chain %s links to itself", e.Chain)
			}
			linked[head.Chain] = max(linked[head.Chain], head.Seq)
		}
	}
	for chain, seq := range last {
		if chain != events[len(events)-1].Chain && linked[chain] != seq {
			t.Errorf("chain %s ends with %d; it is linked to up to %d", chain, seq, linked[chain])
		}
	}
	Verify(t, h.Trail(t, s), audit.Verification{Keys: keys})
}

func pruneAuditLeavesACheckpoint(t *testing.T, h Harness) {
	keys := key(t, "k")
	s, at := history(t, h, keys, keys, keys)
	before, _ := entries(t, h, s)
	heads := Verify(t, h.Trail(t, s), audit.Verification{Keys: keys}).Heads
	prune := func(before time.Time, limit, want int) {
		t.Helper()
		if n, err := s.PruneAudit(t.Context(), before, limit); n != want || err != nil {
			t.Errorf("PruneAudit removed %d (%v), want %d", n, err, want)
		}
	}
	prune(before[0].Time.Add(-time.Hour), 1000, 0)
	prune(at.Add(time.Hour), 4, 4)
	left, cps := entries(t, h, s)
	if len(cps) != 1 || cps[0].Seq != 4 || cps[0].Chain != before[0].Chain || cps[0].Key != keys.Current() {
		t.Errorf("checkpoints %+v, want one of the first chain's first four events", cps)
	}
	equal(t, "events that are left", left, before[4:])
	report := Verify(t, h.Trail(t, s), audit.Verification{Keys: keys, Heads: heads})
	equal(t, "heads", report.Heads, heads)
	// All go, and the last chain goes on nevertheless.
	prune(at.Add(time.Hour), 1000, len(before)-4)
	if left, cps := entries(t, h, s); len(left) != 0 || len(cps) != 3 {
		t.Errorf("%d events and %d checkpoints are left", len(left), len(cps))
	}
	if err := s.Audit(t.Context(), []invalidation.Event{event(at, "x", "")}); err != nil {
		t.Fatal(err)
	}
	report = Verify(t, h.Trail(t, s), audit.Verification{Keys: keys, Heads: heads})
	if report.Events != 1 || report.Checkpoints != 3 || len(report.Heads) != 3 {
		t.Errorf("verified %+v", report)
	}
	if left, cps := entries(t, h, h.Reopen(t, s)); len(left) != 1 || len(cps) != 3 {
		t.Errorf("%d events and %d checkpoints after a crash, want 1 and 3", len(left), len(cps))
	}
}

// pruneAuditRemovesAPart keeps what is not old enough, and what follows it.
func pruneAuditRemovesAPart(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	for _, age := range []time.Duration{50, 40, 10, 30, 1} {
		if err := s.Audit(t.Context(), []invalidation.Event{event(at.Add(-age*time.Hour), fmt.Sprint(age), "")}); err != nil {
			t.Fatal(err)
		}
	}
	// The chain's first event is of now. One that is younger than those after it keeps them all.
	if n, err := s.PruneAudit(t.Context(), at.Add(-20*time.Hour), 100); n != 0 || err != nil {
		t.Errorf("PruneAudit removed %d, %v", n, err)
	}
	events, _ := entries(t, h, s)
	for i := range events {
		events[i].Time = at.Add(-100 * time.Hour)
		if i >= 3 {
			events[i].Time = at.Add(-time.Duration(map[int]int64{3: 10, 4: 30, 5: 1}[i]) * time.Hour)
		}
	}
	chain(events)
	h.Tamper(t, s, events, nil)
	if n, err := s.PruneAudit(t.Context(), at.Add(-20*time.Hour), 100); n != 3 || err != nil {
		t.Errorf("PruneAudit removed %d, %v; want the three before the first that is younger", n, err)
	}
	Verify(t, h.Trail(t, s), audit.Verification{})
	left, _ := entries(t, h, s)
	equal(t, "events that are left", left, events[3:])
}

// chain hashes events without a key, by the words of package audit's documentation and not by its code.
func chain(events []audit.Entry) {
	last := map[string][]byte{}
	for i := range events {
		e := &events[i]
		if e.PrevHash = last[e.Chain]; e.PrevHash == nil {
			e.PrevHash = make([]byte, 32)
			if e.Seq > 1 && i > 0 {
				e.PrevHash = events[i-1].Hash
			}
		}
		e.Hash = plainHash(*e)
		last[e.Chain] = e.Hash
	}
}

func plainHash(e audit.Entry) []byte {
	var b bytes.Buffer
	number := func(n int64) { b.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	text := func(s string) { number(int64(len(s))); b.WriteString(s) }
	b.WriteString("endsession audit event 1\n")
	text(e.Chain)
	number(e.Seq)
	b.Write(e.PrevHash)
	number(e.Time.UnixMicro())
	for _, s := range []string{e.Type, e.Caller.Kind, e.Caller.Name, e.InvalidationID, e.Target, string(e.Data)} {
		text(s)
	}
	sum := sha256.Sum256(b.Bytes())
	return sum[:]
}
