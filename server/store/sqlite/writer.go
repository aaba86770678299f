package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	lib "modernc.org/sqlite/lib"
)

// maxBatch bounds how many changes share a transaction, so that the first of them does not wait for ever.
const maxBatch = 128

// writer is the one goroutine that changes the database. While it commits, changes queue up; all that are there when it
// comes back share its next transaction, and one fsync.
type writer struct {
	place     place
	log       *slog.Logger
	clock     func() time.Time
	queue     chan *change
	closing   chan struct{}
	stopped   chan struct{}
	committed func([]invalidation.Change)

	// The rest is the goroutine's own.
	conn *conn // nil after a failure, until it can be opened again
	tx   tx    // reused
	down bool  // the last transaction failed, and the log says so
	done []*change
}

// change is one caller's transaction.
type change struct {
	do func(*tx) error
	// answers is the lease whose run's answer the change is; nil for every other change.
	answers *invalidation.Lease
	// stage is where it stands: the caller may withdraw it as long as the writer has not begun it, and then it is certain
	// that nothing has changed.
	stage   atomic.Int32
	changed []invalidation.Change
	err     error
	settled chan struct{}
}

const (
	queued int32 = iota
	begun
	withdrawn
)

// change runs do in a durable transaction, once. If ctx ends while it waits for its turn, it is withdrawn. Once it has begun
// its end is near and is waited for, but not for ever: then the answer is [invalidation.ErrCommitUnknown], do may still be
// running, and what it writes to must not be used.
func (s *Store) change(ctx context.Context, do func(*tx) error) error {
	return s.submit(ctx, &change{do: do, settled: make(chan struct{})})
}

// submit is change for one that is made already.
func (s *Store) submit(ctx context.Context, c *change) error {
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	why := errNoAnswer
	select {
	case s.writer.queue <- c:
	case <-s.writer.closing:
		return unavailable(errClosed)
	case <-ctx.Done():
		return unavailable(ctx.Err())
	case <-timer.C:
		return unavailable(why)
	}
	select {
	case <-c.settled:
		return c.err
	case <-s.writer.stopped:
		why = errClosed
	case <-ctx.Done():
		why = ctx.Err()
	case <-timer.C:
	}
	if c.stage.CompareAndSwap(queued, withdrawn) {
		return unavailable(why)
	}
	timer.Reset(s.timeout)
	select {
	case <-c.settled:
		return c.err
	case <-timer.C:
		return fmt.Errorf("%w: %w", invalidation.ErrCommitUnknown, why)
	}
}

func (w *writer) run() {
	defer close(w.stopped)
	for {
		select {
		case c := <-w.queue:
			// Let the callers that the last commit woke ask for their next change, so that it joins this one.
			runtime.Gosched()
			w.commit(w.gather(c)...)
		case <-w.closing:
			for {
				select {
				case c := <-w.queue:
					w.commit(c)
				default:
					return
				}
			}
		}
	}
}

// gatherTime is how long an answer waits for the others of its invalidation.
const gatherTime = 500 * time.Microsecond

// gather returns a change and those that should share its transaction although they are not there yet: the answers of an
// invalidation mostly come together, and its caller is told nothing before the last of them. Whatever else is asked for
// ends the waiting.
func (w *writer) gather(first *change) []*change {
	all := []*change{first}
	if !w.incomplete(all) {
		return all
	}
	enough := time.NewTimer(gatherTime)
	defer enough.Stop()
	for w.incomplete(all) {
		select {
		case c := <-w.queue:
			all = append(all, c)
		case <-enough.C:
			return all
		case <-w.closing:
			return all
		}
	}
	return all
}

// incomplete reports whether nobody waits for any of the changes: all are answers of one invalidation, and not all of its.
func (w *writer) incomplete(changes []*change) bool {
	last := changes[len(changes)-1]
	if last.answers == nil || last.answers.InvalidationID != changes[0].answers.InvalidationID {
		return false
	}
	h := w.tx.heads[last.answers.InvalidationID]
	return h != nil && len(changes) < h.unfinished
}

// errUndo says that a change failed after it had written something: what the transaction holds has to be undone.
var errUndo = errors.New("the change has to be undone")

// commit puts the first changes and all that is queued into one transaction. It bets that no change fails after it has
// written something; when one does, all are done again, each in a savepoint of its own.
func (w *writer) commit(first ...*change) {
	w.done = w.done[:0]
	chain, mark := w.tx.place()
	err := w.begin()
	if err != nil {
		// Whoever waits, waits for the same.
		for c := w.following(&first); c != nil; c = w.following(&first) {
			w.take(c)
		}
	}
	apply := w.apply
	undo := func() {
		apply = w.applyAlone
		err = w.again(chain, mark)
	}
	for c := w.following(&first); err == nil && c != nil; {
		if w.take(c) {
			if err = apply(c); errors.Is(err, errUndo) {
				undo()
			}
		}
		c = nil
		if err == nil && (len(w.done) < maxBatch || len(first) > 0) {
			c = w.following(&first)
		}
	}
	if err == nil {
		if err = w.tx.flush(); err != nil && !errors.Is(err, invalidation.ErrUnavailable) {
			undo()
		}
	}
	if err == nil {
		if _, err = w.conn.exec("COMMIT"); err != nil {
			err = w.settle(fmt.Errorf("commit: %w", err))
		}
	}
	if err != nil {
		w.fail(err)
		w.tx.drop()
		w.tx.rewind(chain, mark)
		if errors.Is(err, invalidation.ErrCommitUnknown) {
			w.tx.chain = nil // it may have gone on or not
		}
	} else if w.down {
		w.down = false
		w.log.Info("the journal can be written again")
	}
	var changed []invalidation.Change
	for _, c := range w.done {
		if err != nil {
			c.err = err
		} else if c.err == nil {
			changed = append(changed, c.changed...)
		}
		close(c.settled)
	}
	clear(w.done)
	if len(changed) > 0 {
		w.committed(changed)
	}
}

// take begins a change, unless its caller has withdrawn it.
func (w *writer) take(c *change) bool {
	if !c.stage.CompareAndSwap(queued, begun) {
		return false
	}
	w.done = append(w.done, c)
	return true
}

// following takes the next of the first changes, or of the queue; nil if there is none.
func (w *writer) following(first *[]*change) *change {
	if len(*first) > 0 {
		c := (*first)[0]
		*first = (*first)[1:]
		return c
	}
	select {
	case c := <-w.queue:
		return c
	default:
		return nil
	}
}

func (w *writer) begin() (err error) {
	if w.conn == nil {
		if w.conn, err = w.place.reconnect("rw"); err != nil {
			return err
		}
		w.tx.conn = w.conn
	}
	_, err = w.conn.exec("BEGIN IMMEDIATE")
	return err
}

// apply runs one change. It returns an error only when the whole transaction is spoiled; what is wrong with the change
// alone is in its err.
func (w *writer) apply(c *change) error {
	w.tx.now = invalidation.Moment(w.clock())
	w.tx.changed = nil
	w.tx.wrote = false
	c.err = c.do(&w.tx)
	c.changed = w.tx.changed
	switch {
	case errors.Is(c.err, invalidation.ErrUnavailable):
		return c.err // SQLite may have rolled back everything
	case c.err != nil && w.tx.wrote:
		return errUndo
	}
	return nil
}

// again undoes the transaction and begins it anew with the changes that were taken, of which one at least fails.
func (w *writer) again(chain *audit.Chain, mark audit.Mark) error {
	w.tx.drop()
	w.tx.rewind(chain, mark)
	if err := w.conn.script("ROLLBACK"); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	for _, c := range w.done {
		if err := w.applyAlone(c); err != nil {
			return err
		}
	}
	return nil
}

// applyAlone is apply for a change that may fail: it is undone alone.
func (w *writer) applyAlone(c *change) error {
	if _, err := w.conn.exec("SAVEPOINT change"); err != nil {
		return err
	}
	chain, mark := w.tx.place()
	err := w.apply(c)
	if err == nil && c.err == nil {
		c.err = w.tx.flush()
		err = c.err
	}
	switch {
	case errors.Is(err, invalidation.ErrUnavailable):
		return err
	case c.err != nil:
		w.tx.drop()
		w.tx.rewind(chain, mark)
		if _, err := w.conn.exec("ROLLBACK TO change"); err != nil {
			return err
		}
	}
	_, err = w.conn.exec("RELEASE change")
	return err
}

// fail ends a spoiled transaction. The connection is opened anew: what it remembers (that the file could only be read, a
// page that could not be) may be what is wrong.
func (w *writer) fail(err error) {
	if w.conn != nil {
		_ = w.conn.script("ROLLBACK") // there may be none any more
		_ = w.conn.close()
		w.conn = nil
	}
	if !w.down {
		w.down = true
		w.log.Error("the journal cannot be written", "error", err)
	}
}

// settle makes sure of what a failed commit has left. If the disk failed while the transaction was being synced, its pages
// may be in the write-ahead log, complete: nobody sees them now, but after a crash they would count. The next transaction
// overwrites them, so one is written at once, by the connection that knows where they begin (one that is opened anew would
// read them). If that does not work either, the outcome is unknown.
func (w *writer) settle(err error) error {
	if code(err) != lib.SQLITE_IOERR {
		return err // full, or locked: the log has no commit record
	}
	_ = w.conn.script("ROLLBACK") // there may be none any more
	if w.conn.script(writeNothing) != nil {
		return fmt.Errorf("%w: %w", invalidation.ErrCommitUnknown, err)
	}
	return err
}
