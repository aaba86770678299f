package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

const (
	lockRuns = `SELECT r.idx FROM runs AS r WHERE r.invalidation_id = $1 AND r.complete_time IS NULL ORDER BY r.idx FOR NO KEY UPDATE`

	lockInvalidation = `SELECT 1 FROM invalidations WHERE id = $1 FOR NO KEY UPDATE`

	finishInvalidation = `UPDATE invalidations SET revision = $2, state = $3, complete_time = $4, runs_complete_time = $4,
  unfinished = 0, cancelled = cancelled + unfinished WHERE id = $1`

	upsertPause = `INSERT INTO target_pauses (target, caller_kind, caller_name, reason, time) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (target) DO UPDATE SET caller_kind = $2, caller_name = $3, reason = $4, time = $5`

	// Runs and labels go with it, by their foreign keys. The runs are locked before it, as everywhere.
	deleteCompleted = `WITH old AS MATERIALIZED (
  SELECT id FROM invalidations WHERE complete_time < $1 ORDER BY complete_time LIMIT $2
), r AS MATERIALIZED (
  SELECT r.idx FROM runs AS r WHERE r.invalidation_id = ANY (ARRAY(SELECT id FROM old)) ORDER BY r.invalidation_id, r.idx FOR UPDATE
), i AS MATERIALIZED (
  SELECT id FROM invalidations WHERE id = ANY (ARRAY(SELECT id FROM old)) AND (SELECT count(*) FROM r) >= 0 FOR UPDATE SKIP LOCKED
)
DELETE FROM invalidations WHERE id = ANY (ARRAY(SELECT id FROM i))`
)

var (
	cancelRun = `UPDATE runs SET lease_owner = NULL, lease_until = NULL, lease_from = NULL, ` +
		outcomeColumns.set(func(i int) string { return "$" + strconv.Itoa(i+1) }) + ` WHERE invalidation_id = $21 AND idx = $22`

	pauseTarget = `WITH pause AS (
  ` + upsertPause + `
) ` + insertEvents(6)

	resumeTarget = `WITH pause AS (
  DELETE FROM target_pauses WHERE target = $1 RETURNING target
), event AS (
  ` + insertEvents(2) + `
) SELECT count(*) FROM pause`
)

// Cancel ends what is not final of an invalidation. What it makes of a run is decided here and not in SQL, so it is two
// round trips: read with locks, then write and commit.
func (s *Store) Cancel(ctx context.Context, id string, at time.Time, events []invalidation.Event) (invalidation.Invalidation, error) {
	e := &encoder{}
	e.events(events)
	err := e.err
	if err == nil && !storable(id) {
		err = invalidation.ErrNotFound
	}
	var inv invalidation.Invalidation
	if err == nil {
		err = s.change(ctx, func(ctx context.Context, t *tx) (err error) {
			inv, err = cancel(ctx, t, id, at, events)
			t.appended = len(events)
			return err
		})
	}
	switch {
	case errors.Is(err, invalidation.ErrFinal):
		return inv, fmt.Errorf("cancel: %w", err)
	case err != nil:
		return invalidation.Invalidation{}, fmt.Errorf("cancel: %w", err)
	}
	return inv, nil
}

func cancel(ctx context.Context, t *tx, id string, at time.Time, events []invalidation.Event) (inv invalidation.Invalidation, err error) {
	t.mayCommit = false
	b := &pgx.Batch{}
	b.Queue(`BEGIN`)
	b.Queue(lockRuns, id)
	b.Queue(lockInvalidation, id)
	b.Queue(selectInvalidation, id).Query(func(rows pgx.Rows) error {
		invs, err := scanInvalidations(rows)
		if err == nil && len(invs) == 0 {
			err = invalidation.ErrNotFound
		}
		if err == nil {
			inv = invs[0]
		}
		return err
	})
	err = t.SendBatch(ctx, b).Close()
	if err == nil && inv.State.Final() {
		err = invalidation.ErrFinal
	}
	e := &encoder{}
	b = &pgx.Batch{}
	if err == nil {
		now := time.Now()
		states := make([]invalidation.RunState, len(inv.Runs))
		inv.CompleteTime = time.Time{}
		for i, r := range inv.Runs {
			if !r.State.Final() {
				r = invalidation.CancelRun(r, at).Kept(now)
				b.Queue(cancelRun, append(e.outcome(r), id, i)...)
			}
			if r.CompleteTime.After(inv.CompleteTime) {
				inv.CompleteTime = r.CompleteTime
			}
			inv.Runs[i], states[i] = r, r.State
		}
		inv.Revision++
		inv.State = invalidation.StateOf(states, inv.Call.AllowUnsupported)
		b.Queue(finishInvalidation, id, inv.Revision, string(inv.State), inv.CompleteTime)
		var log []any
		if log, err = t.audit(events); err == nil {
			err = e.err
		}
		b.Queue(appendEvents, log...)
		b.Queue(`COMMIT`)
	}
	if err == nil {
		t.mayCommit = true
		err = t.SendBatch(ctx, b).Close()
	}
	if err != nil {
		if !t.IsClosed() {
			_, _ = t.Exec(ctx, `ROLLBACK`)
		}
		return inv, err
	}
	t.touch(id, inv.Revision)
	return inv, nil
}

// Pause notes that nothing may be sent to a target.
func (s *Store) Pause(ctx context.Context, p invalidation.Pause, events []invalidation.Event) error {
	e := &encoder{}
	args := []any{e.text(p.Target), e.text(p.Caller.Kind), e.text(p.Caller.Name), e.text(p.Reason), invalidation.Moment(p.Time)}
	e.events(events)
	err := e.err
	if err == nil {
		err = s.change(ctx, func(ctx context.Context, t *tx) error {
			log, err := t.audit(events)
			if err != nil {
				return err
			}
			_, err = t.Exec(ctx, pauseTarget, append(args[:len(args):len(args)], log...)...)
			t.appended = len(events)
			t.touch("", 0)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("pause target: %w", err)
	}
	return nil
}

// Resume takes the note away.
func (s *Store) Resume(ctx context.Context, target string, events []invalidation.Event) error {
	e := &encoder{}
	e.text(target)
	e.events(events)
	err := e.err
	if err == nil {
		err = s.change(ctx, func(ctx context.Context, t *tx) error {
			log, err := t.audit(events)
			if err != nil {
				return err
			}
			var removed int
			if err := t.QueryRow(ctx, resumeTarget, append([]any{target}, log...)...).Scan(&removed); err != nil {
				return err
			}
			t.appended = len(events)
			if removed > 0 {
				t.touch("", 0)
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("resume target: %w", err)
	}
	return nil
}

// Prune removes old finished invalidations.
func (s *Store) Prune(ctx context.Context, before time.Time, limit int) (removed int, err error) {
	err = s.change(ctx, func(ctx context.Context, t *tx) error {
		tag, err := t.Exec(ctx, deleteCompleted, before, limit)
		removed = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune: %w", err)
	}
	return removed, nil
}
