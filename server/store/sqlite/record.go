package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

const (
	selectLeased = `SELECT r.state, i.unfinished, i.revision, i.allow_unsupported
FROM runs AS r CROSS JOIN invalidations AS i ON i.id = r.invalidation_id
WHERE r.invalidation_id = ?1 AND r.idx = ?2 AND r.lease_owner = ?3 AND r.lease_token = ?4 AND r.lease_until > ?5`

	// The lease ends with every outcome.
	setOutcome = `UPDATE OR FAIL runs SET lease_owner = NULL, lease_until = NULL, lease_from = NULL,
  state = ?, complete_time = ?, counted = ?, count = ?, count_is_minimum = ?, verification = ?, covered = ?, warnings = ?, sessions = ?,
  open = ?`

	setWhole = setOutcome + `, attempts = ?, start_time = ?, next_attempt_time = ?, sessions_truncated = ?, operation = ?, error = ?, retry = ?, resume = ?`

	updateRun = setWhole + `, selector = ?, terms = ? WHERE invalidation_id = ? AND idx = ?`

	// A run that began when it was accepted has its selector and terms already.
	updateOutcome = setWhole + ` WHERE invalidation_id = ? AND idx = ? AND lease_owner = ? AND lease_token = ?`

	// The end of its first attempt mostly leaves the rest as it is.
	updateEnd = setOutcome + ` WHERE invalidation_id = ? AND idx = ? AND lease_owner = ? AND lease_token = ?`

	countDown = `UPDATE OR FAIL invalidations SET revision = revision + 1, unfinished = ?2 WHERE id = ?1`

	finishInvalidation = `UPDATE OR FAIL invalidations SET revision = revision + 1, unfinished = 0, state = ?2, complete_time = ?3 WHERE id = ?1`

	selectRunStates = `SELECT r.state, r.complete_time FROM runs AS r WHERE r.invalidation_id = ?1 ORDER BY r.idx`
)

// Record writes what became of a leased run.
func (s *Store) Record(ctx context.Context, l invalidation.Lease, run invalidation.Run, events []invalidation.Event) (invalidation.Head, error) {
	run.Open = false
	run = run.Kept(s.clock())
	values, err := outcome(run)
	if err != nil {
		return invalidation.Head{}, fmt.Errorf("record run: %w", err)
	}
	var head invalidation.Head
	err = s.submit(ctx, &change{answers: &l, settled: make(chan struct{}), do: func(t *tx) (err error) {
		if known := t.known(l); known != nil {
			head, err = t.recordKnown(known, l, run, values)
		} else {
			head, err = t.record(l, run, values)
		}
		if err != nil {
			return err
		}
		return t.audit(events)
	}})
	if err != nil {
		return invalidation.Head{}, fmt.Errorf("record run: %w", err)
	}
	return head, nil
}

// recordKnown writes the answer of a run that began when it was accepted.
func (t *tx) recordKnown(h *head, l invalidation.Lease, run invalidation.Run, values []driver.Value) (invalidation.Head, error) {
	if old := h.runs[l.Run].state; !old.CanBecome(run.State) {
		return invalidation.Head{}, fmt.Errorf("%w: %s to %s", invalidation.ErrIllegalTransition, old, run.State)
	}
	statement := updateOutcome
	if began := h.runs[l.Run]; began.plain && plain(run) && run.StartTime.Equal(began.startTime) {
		statement, values = updateEnd, values[:endColumns:endColumns]
	}
	n, err := t.put(statement, append(values, l.InvalidationID, int64(l.Run), l.Owner, l.Token)...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d runs changed", n)
	}
	if err != nil {
		return invalidation.Head{}, err
	}
	t.ended(h, l.Run, run)
	return invalidation.Head{State: h.state, Revision: h.revision, CompleteTime: h.completeTime}, nil
}

// record writes the answer of a run that was claimed.
func (t *tx) record(l invalidation.Lease, run invalidation.Run, values []driver.Value) (head invalidation.Head, err error) {
	var old invalidation.RunState
	var unfinished, revision int64
	var allowUnsupported bool
	found, err := t.one(func(r *row) error {
		old, unfinished, revision, allowUnsupported = invalidation.RunState(r.text()), r.num(), r.num(), r.flag()
		return nil
	}, selectLeased, l.InvalidationID, int64(l.Run), l.Owner, l.Token, t.now.UnixMicro())
	switch {
	case err != nil:
		return head, err
	case !found:
		return head, invalidation.ErrLeaseLost
	case !old.CanBecome(run.State):
		return head, fmt.Errorf("%w: %s to %s", invalidation.ErrIllegalTransition, old, run.State)
	}
	t.forget(l.InvalidationID)
	if err := writeRun(t, l.InvalidationID, l.Run, run, values); err != nil {
		return head, err
	}
	head = invalidation.Head{State: invalidation.Running, Revision: revision + 1}
	switch {
	case !run.State.Final():
		err = raise(t, l.InvalidationID)
	case unfinished > 1:
		_, err = t.exec(countDown, l.InvalidationID, unfinished-1)
		t.touch(l.InvalidationID, head.Revision)
	default:
		head.State, head.CompleteTime, err = finish(t, l.InvalidationID, head.Revision, allowUnsupported)
	}
	return head, err
}

func writeRun(t *tx, id string, idx int, run invalidation.Run, values []driver.Value) error {
	selector, terms, err := resolved(run)
	if err != nil {
		return err
	}
	n, err := t.exec(updateRun, append(values, selector, terms, id, int64(idx))...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d runs changed", n)
	}
	return err
}

// finish ends an invalidation whose runs are all final; the revision is its new one.
func finish(t *tx, id string, revision int64, allowUnsupported bool) (state invalidation.State, at time.Time, err error) {
	var states []invalidation.RunState
	if err := t.each(context.Background(), func(r *row) error {
		states = append(states, invalidation.RunState(r.text()))
		if ended := r.time(); ended.After(at) {
			at = ended
		}
		return nil
	}, selectRunStates, id); err != nil {
		return "", time.Time{}, err
	}
	state = invalidation.StateOf(states, allowUnsupported)
	if _, err := t.exec(finishInvalidation, id, string(state), at.UnixMicro()); err != nil {
		return "", time.Time{}, err
	}
	t.touch(id, revision)
	return state, at, nil
}
