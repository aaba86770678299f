package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
)

// tx is what a change works with: the writer's connection, inside a transaction that others share. What acceptances and
// answers leave behind alike, audit events and the counts of invalidations, is put off and written together: before
// anything else is read or written, and before the transaction ends.
type tx struct {
	conn *conn
	// now is the store's clock when the change began.
	now     time.Time
	keys    audit.Keys
	chain   *audit.Chain // nil until there is an event
	changed []invalidation.Change
	// wrote is true once the change has written something, if only put off: it cannot just be forgotten.
	wrote bool

	heads  heads
	counts []*head        // whose rows are behind
	events []driver.Value // of the audit trail, one after the other
}

// touch notes that an invalidation has changed ("" for a pause), and to what revision, if that is known.
func (t *tx) touch(id string, revision int64) {
	t.changed = append(t.changed, invalidation.Change{ID: id, Revision: revision})
}

// exec runs a statement and returns how many rows it changed.
func (t *tx) exec(query string, args ...driver.Value) (changed int64, err error) {
	if err := t.flush(); err != nil {
		return 0, err
	}
	return t.put(query, args...)
}

// put is exec for statements that have nothing to do with what is put off.
func (t *tx) put(query string, args ...driver.Value) (changed int64, err error) {
	t.wrote = true
	return t.conn.exec(query, args...)
}

// script runs statements that are not worth keeping.
func (t *tx) script(text string) error {
	if err := t.flush(); err != nil {
		return err
	}
	t.wrote = true
	return t.conn.script(text)
}

// read returns the connection, with everything written.
func (t *tx) read() (*conn, error) { return t.conn, t.flush() }

// one calls f for the first row and reports whether there was one.
func (t *tx) one(f func(*row) error, query string, args ...driver.Value) (found bool, err error) {
	c, err := t.read()
	if err != nil {
		return false, err
	}
	return c.one(f, query, args...)
}

// each calls f for every row.
func (t *tx) each(ctx context.Context, f func(*row) error, query string, args ...driver.Value) error {
	c, err := t.read()
	if err != nil {
		return err
	}
	return c.each(ctx, f, query, args...)
}

// load reads an invalidation.
func (t *tx) load(id string) (inv invalidation.Invalidation, err error) {
	c, err := t.read()
	if err != nil {
		return inv, err
	}
	return load(context.Background(), c, id)
}

// flush writes what was put off.
func (t *tx) flush() error {
	if err := t.writeCounts(); err != nil {
		return err
	}
	return t.writeEvents()
}

// drop forgets what was put off, and what is known of invalidations: the transaction, or a part of it, did not come to be.
func (t *tx) drop() {
	clear(t.heads)
	clear(t.counts)
	clear(t.events)
	t.counts, t.events = t.counts[:0], t.events[:0]
}

// maxHeads bounds how many invalidations are known without being read. Whatever is not is read.
const maxHeads = 1 << 16

// heads are what the writer knows of unfinished invalidations whose runs were leased when they were accepted. Nobody else
// writes: it is what the rows say, as long as every change of theirs is told of here.
type heads map[string]*head

// head is an invalidation's.
type head struct {
	id               string
	revision         int64
	unfinished       int
	allowUnsupported bool
	runs             []headRun
	behind           bool // the row is

	state        invalidation.State
	completeTime time.Time
}

// headRun is one of its runs.
type headRun struct {
	state        invalidation.RunState
	completeTime time.Time
	lease        invalidation.Lease // zero if it is not known to be leased
	plain        bool               // see acceptedRun
	startTime    time.Time
}

// know remembers an invalidation that was accepted just now.
func (t *tx) know(p *acceptance, leases []invalidation.Lease) {
	inv := &p.inv
	if len(leases) == 0 || len(t.heads) >= maxHeads {
		return
	}
	h := &head{id: inv.ID, revision: inv.Revision, unfinished: p.unfinished, allowUnsupported: inv.Call.AllowUnsupported,
		runs: make([]headRun, len(inv.Runs)), state: inv.State}
	for i := range inv.Runs {
		r := &inv.Runs[i]
		h.runs[i] = headRun{state: r.State, completeTime: r.CompleteTime, startTime: r.StartTime, plain: p.runs[i].plain}
	}
	for _, l := range leases {
		h.runs[l.Run].lease = l
	}
	t.heads[inv.ID] = h
}

// forget is for whoever changes an invalidation, or one of its runs, otherwise. What was put off must be written already.
func (t *tx) forget(id string) { delete(t.heads, id) }

// known returns what is known of the invalidation that a lease is about, or nil if that does not suffice.
func (t *tx) known(l invalidation.Lease) *head {
	h := t.heads[l.InvalidationID]
	if h == nil || l.Run >= len(h.runs) {
		return nil
	}
	if has := h.runs[l.Run].lease; has.Owner != l.Owner || has.Token != l.Token || !has.Until.After(t.now) {
		return nil
	}
	return h
}

// ended counts what became of a run, and puts the row off.
func (t *tx) ended(h *head, i int, r invalidation.Run) {
	h.runs[i] = headRun{state: r.State, completeTime: r.CompleteTime}
	h.revision++
	if r.State.Final() {
		h.unfinished--
	}
	if h.unfinished == 0 {
		states := make([]invalidation.RunState, len(h.runs))
		for i, r := range h.runs {
			states[i] = r.state
			if r.completeTime.After(h.completeTime) {
				h.completeTime = r.completeTime
			}
		}
		h.state = invalidation.StateOf(states, h.allowUnsupported)
	}
	if !h.behind {
		h.behind = true
		t.counts = append(t.counts, h)
	}
	t.wrote = true
	t.touch(h.id, h.revision)
}

const (
	countRuns = `UPDATE OR FAIL invalidations SET revision = ?, unfinished = ? WHERE id = ?`
	endCount  = `UPDATE OR FAIL invalidations SET revision = ?, unfinished = 0, state = ?, complete_time = ? WHERE id = ?`
)

func (t *tx) writeCounts() error {
	for _, h := range t.counts {
		var n int64
		var err error
		if h.unfinished > 0 {
			n, err = t.conn.exec(countRuns, h.revision, int64(h.unfinished), h.id)
		} else {
			n, err = t.conn.exec(endCount, h.revision, string(h.state), h.completeTime.UnixMicro(), h.id)
			delete(t.heads, h.id)
		}
		if err == nil && n != 1 {
			err = fmt.Errorf("%d invalidations changed", n)
		}
		if err != nil {
			return err
		}
		h.behind = false
	}
	clear(t.counts) // only now: if one cannot be written, the others are asked for again
	t.counts = t.counts[:0]
	return nil
}

const (
	eventColumns = 11
	insertEvent  = `INSERT OR FAIL INTO audit (chain, seq, time, type, caller_kind, caller_name, invalidation_id, target, data, prev_hash, hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	// eventsAtOnce is how many events one statement inserts, if there are so many.
	eventsAtOnce = 8
)

var insertEvents = insertEvent + strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", eventsAtOnce-1)

func (t *tx) writeEvents() error {
	for left := t.events; len(left) > 0; {
		query, n := insertEvent, eventColumns
		if len(left) >= eventsAtOnce*eventColumns {
			query, n = insertEvents, eventsAtOnce*eventColumns
		}
		if _, err := t.conn.exec(query, left[:n]...); err != nil {
			return fmt.Errorf("append audit events: %w", err)
		}
		left = left[n:]
	}
	clear(t.events)
	t.events = t.events[:0]
	return nil
}
