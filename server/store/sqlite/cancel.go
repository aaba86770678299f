package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

const (
	upsertPause = `INSERT INTO target_pauses (target, caller_kind, caller_name, reason, time) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (target) DO UPDATE SET caller_kind = ?2, caller_name = ?3, reason = ?4, time = ?5`
	deletePause  = `DELETE FROM target_pauses WHERE target = ?1`
	selectPauses = `SELECT target, caller_kind, caller_name, reason, time FROM target_pauses ORDER BY target`

	// Runs and labels go with it, by their foreign keys.
	deleteCompleted = `DELETE FROM invalidations WHERE id IN (
  SELECT id FROM invalidations INDEXED BY invalidations_completed WHERE complete_time < ?1 ORDER BY complete_time LIMIT ?2)`
)

// Cancel ends what is not final of an invalidation.
func (s *Store) Cancel(ctx context.Context, id string, at time.Time, events []invalidation.Event) (invalidation.Invalidation, error) {
	var inv invalidation.Invalidation
	err := s.change(ctx, func(t *tx) (err error) {
		if inv, err = t.load(id); err != nil {
			return err
		}
		t.forget(id)
		if inv.State.Final() {
			return invalidation.ErrFinal
		}
		for i, r := range inv.Runs {
			if r.State.Final() {
				continue
			}
			r = invalidation.CancelRun(r, at).Kept(t.now)
			values, err := outcome(r)
			if err != nil {
				return err
			}
			if err := writeRun(t, id, i, r, values); err != nil {
				return err
			}
			inv.Runs[i] = r
		}
		inv.Revision++
		if inv.State, inv.CompleteTime, err = finish(t, id, inv.Revision, inv.Call.AllowUnsupported); err != nil {
			return err
		}
		return t.audit(events)
	})
	switch {
	case errors.Is(err, invalidation.ErrFinal):
		return inv, fmt.Errorf("cancel: %w", err)
	case err != nil:
		return invalidation.Invalidation{}, fmt.Errorf("cancel: %w", err)
	}
	return inv, nil
}

// Pauses returns the targets that are paused, by name.
func (s *Store) Pauses(ctx context.Context) ([]invalidation.Pause, error) {
	var pauses []invalidation.Pause
	err := s.read(ctx, func(ctx context.Context, c *conn) error {
		return c.each(ctx, func(r *row) error {
			pauses = append(pauses, invalidation.Pause{Target: r.text(), Caller: invalidation.Caller{Kind: r.text(), Name: r.text()},
				Reason: r.text(), Time: r.time()})
			return nil
		}, selectPauses)
	})
	if err != nil {
		return nil, fmt.Errorf("read pauses: %w", err)
	}
	return pauses, nil
}

// Pause notes that nothing may be sent to a target.
func (s *Store) Pause(ctx context.Context, p invalidation.Pause, events []invalidation.Event) error {
	if err := s.change(ctx, func(t *tx) error {
		if _, err := t.exec(upsertPause, p.Target, p.Caller.Kind, p.Caller.Name, p.Reason, p.Time.UnixMicro()); err != nil {
			return err
		}
		t.touch("", 0)
		return t.audit(events)
	}); err != nil {
		return fmt.Errorf("pause target: %w", err)
	}
	return nil
}

// Resume takes the note away.
func (s *Store) Resume(ctx context.Context, target string, events []invalidation.Event) error {
	if err := s.change(ctx, func(t *tx) error {
		n, err := t.exec(deletePause, target)
		if err != nil {
			return err
		}
		if n > 0 {
			t.touch("", 0)
		}
		return t.audit(events)
	}); err != nil {
		return fmt.Errorf("resume target: %w", err)
	}
	return nil
}

// Prune removes old finished invalidations.
func (s *Store) Prune(ctx context.Context, before time.Time, limit int) (int, error) {
	var removed int64
	if err := s.change(ctx, func(t *tx) (err error) {
		removed, err = t.exec(deleteCompleted, before.UnixMicro(), int64(limit))
		return err
	}); err != nil {
		return 0, fmt.Errorf("prune: %w", err)
	}
	return int(removed), nil
}
