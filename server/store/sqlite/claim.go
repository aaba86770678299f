package sqlite

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// The plus before the limit keeps SQLite from planning the query anew for every value of it, which took ten times as long
// as the query itself.
const (
	hastenRuns = `UPDATE runs SET next_attempt_time = ?2
WHERE target = ?1 AND due_time IS NOT NULL AND state = 'RETRYING' AND lease_until IS NULL AND next_attempt_time > ?2
  AND json_extract(error, '$.reason') = ?3`

	selectDue = `SELECT r.invalidation_id, r.idx, r.lease_token, r.priority, i.create_time, i.caller_kind, i.caller_name, i.selector, ` + runColumns + `
FROM runs AS r INDEXED BY runs_due CROSS JOIN invalidations AS i ON i.id = r.invalidation_id
WHERE r.target = ?1 AND r.priority = ?2 AND r.due_time <= ?3
ORDER BY r.due_time, r.invalidation_id, r.idx LIMIT +?4`

	selectDueExpired = `SELECT r.invalidation_id, r.idx, r.lease_token, r.priority, i.create_time, i.caller_kind, i.caller_name, i.selector, ` + runColumns + `
FROM runs AS r INDEXED BY runs_due CROSS JOIN invalidations AS i ON i.id = r.invalidation_id
WHERE r.target = ?1 AND r.priority = ?2 AND r.due_time <= ?3 AND r.expire_time <= ?3
ORDER BY r.due_time, r.invalidation_id, r.idx LIMIT +?4`

	leaseRun = `UPDATE OR FAIL runs SET state = ?3, open = ?4, attempts = ?5, next_attempt_time = ?6, start_time = ?7,
  lease_owner = ?8, lease_token = ?9, lease_until = ?10, lease_from = ?11
WHERE invalidation_id = ?1 AND idx = ?2`

	keptLease = `UPDATE OR FAIL runs SET lease_owner = ?3, lease_token = ?4, lease_until = ?5, lease_from = 'KEPT'
WHERE invalidation_id = ?1 AND idx = ?2`

	raiseRevision = `UPDATE OR FAIL invalidations SET revision = revision + 1 WHERE id = ?1`

	renewLease = `UPDATE OR FAIL runs SET lease_until = ?5
WHERE invalidation_id = ?1 AND idx = ?2 AND lease_owner = ?3 AND lease_token = ?4 AND lease_until > ?6`

	selectLease = `SELECT r.state, r.attempts, r.lease_from FROM runs AS r
WHERE r.invalidation_id = ?1 AND r.idx = ?2 AND r.lease_owner = ?3 AND r.lease_token = ?4 AND r.lease_until > ?5`

	releaseRun = `UPDATE OR FAIL runs SET state = ?3, open = ?4, attempts = ?5, start_time = CASE WHEN ?5 > 0 THEN start_time END,
  next_attempt_time = ?6, lease_owner = NULL, lease_until = NULL, lease_from = NULL
WHERE invalidation_id = ?1 AND idx = ?2`

	releaseKept = `UPDATE OR FAIL runs SET next_attempt_time = ?3, lease_owner = NULL, lease_until = NULL, lease_from = NULL
WHERE invalidation_id = ?1 AND idx = ?2`

	// A leased run is due when its lease ends.
	selectNextDue = `SELECT r.due_time FROM runs AS r INDEXED BY runs_due
WHERE r.target = ?1 AND r.priority = ?2 AND r.due_time IS NOT NULL ORDER BY r.due_time LIMIT 1`
)

// What a claim makes of a run; the words of the column lease_from.
const (
	fromLost = "LOST"
	fromKept = "KEPT"
)

var priorities = []invalidation.Priority{invalidation.PriorityNormal, invalidation.PriorityBulk}

// Claim leases runs that are due.
func (s *Store) Claim(ctx context.Context, c invalidation.Claim) ([]invalidation.ClaimedRun, error) {
	var claimed []invalidation.ClaimedRun
	order := priorities
	if c.BulkFirst {
		order = []invalidation.Priority{invalidation.PriorityBulk, invalidation.PriorityNormal}
	}
	query := selectDue
	if c.ExpiredOnly {
		query = selectDueExpired
	}
	err := s.change(ctx, func(t *tx) error {
		claimed = nil
		for _, p := range order {
			if left := c.Limit - len(claimed); left > 0 {
				if err := t.each(context.Background(), func(r *row) error {
					claimed = append(claimed, scanClaimed(r))
					return nil
				}, query, c.Target, int64(p), t.now.UnixMicro(), int64(left)); err != nil {
					return err
				}
			}
		}
		for i := range claimed {
			if err := lease(t, &claimed[i], c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim runs: %w", err)
	}
	return claimed, nil
}

func scanClaimed(r *row) invalidation.ClaimedRun {
	c := invalidation.ClaimedRun{
		Lease:      invalidation.Lease{InvalidationID: r.text(), Run: int(r.num()), Token: r.num()},
		Priority:   invalidation.Priority(r.num()),
		CreateTime: r.time(),
		Caller:     invalidation.Caller{Kind: r.text(), Name: r.text()},
	}
	r.json(&c.Selector)
	c.Run = scanRun(r)
	c.Lost = c.Run.Open
	return c
}

// lease hands a due run to the claimant.
func lease(t *tx, c *invalidation.ClaimedRun, by invalidation.Claim) error {
	l, r := &c.Lease, &c.Run
	t.forget(l.InvalidationID)
	l.Owner = by.Owner
	l.Token++
	l.Until = invalidation.Moment(t.now.Add(by.LeaseLength))
	c.Expired = !t.now.Before(r.ExpireTime)
	if r.Selector == nil || c.Expired {
		_, err := t.exec(keptLease, l.InvalidationID, int64(l.Run), l.Owner, l.Token, l.Until.UnixMicro())
		return err
	}
	from := string(r.State)
	if r.Open {
		from = fromLost
	}
	if r.Open || r.State != invalidation.RunRunning {
		r.Attempts++
	}
	if r.StartTime.IsZero() {
		r.StartTime = t.now
	}
	r.State = invalidation.RunRunning
	r.Open = true
	r.NextAttemptTime = time.Time{}
	if _, err := t.exec(leaseRun, l.InvalidationID, int64(l.Run), string(r.State), r.Open, int64(r.Attempts), nil,
		micros(r.StartTime), l.Owner, l.Token, l.Until.UnixMicro(), from); err != nil {
		return err
	}
	return raise(t, l.InvalidationID)
}

// raise counts a change of an invalidation that leaves its state as it is.
func raise(t *tx, id string) error {
	if _, err := t.exec(raiseRevision, id); err != nil {
		return err
	}
	t.touch(id, 0)
	return nil
}

// Renew prolongs leases.
func (s *Store) Renew(ctx context.Context, leases []invalidation.Lease, length time.Duration) ([]invalidation.Lease, error) {
	if len(leases) == 0 {
		return nil, nil
	}
	var lost []invalidation.Lease
	err := s.change(ctx, func(t *tx) error {
		lost = nil
		for _, l := range leases {
			n, err := t.exec(renewLease, l.InvalidationID, int64(l.Run), l.Owner, l.Token, t.now.Add(length).UnixMicro(), t.now.UnixMicro())
			if err != nil {
				return err
			}
			t.forget(l.InvalidationID)
			if n == 0 {
				lost = append(lost, l)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("renew leases: %w", err)
	}
	return lost, nil
}

// Release takes a claim back.
func (s *Store) Release(ctx context.Context, l invalidation.Lease) error {
	err := s.change(ctx, func(t *tx) error {
		var state, from string
		var attempts int64
		found, err := t.one(func(r *row) error { state, attempts, from = r.text(), r.num(), r.text(); return nil },
			selectLease, l.InvalidationID, int64(l.Run), l.Owner, l.Token, t.now.UnixMicro())
		if err != nil {
			return err
		}
		if !found {
			return invalidation.ErrLeaseLost
		}
		t.forget(l.InvalidationID)
		open := false
		switch from {
		case fromKept:
			// It may have been found open, and is then still.
			if _, err := t.exec(releaseKept, l.InvalidationID, int64(l.Run), t.now.UnixMicro()); err != nil {
				return err
			}
			return raise(t, l.InvalidationID)
		case string(invalidation.RunRunning):
		case fromLost:
			open = true
			attempts--
		default:
			state = from
			attempts--
		}
		if _, err := t.exec(releaseRun, l.InvalidationID, int64(l.Run), state, open, attempts, t.now.UnixMicro()); err != nil {
			return err
		}
		return raise(t, l.InvalidationID)
	})
	if err != nil {
		return fmt.Errorf("release run: %w", err)
	}
	return nil
}

// NextDue returns when the earliest run at the target can be claimed.
func (s *Store) NextDue(ctx context.Context, target string) (time.Time, bool, error) {
	now := s.clock().UnixMicro()
	var due []int64
	err := s.read(ctx, func(ctx context.Context, c *conn) error {
		var found []int64
		for _, p := range priorities {
			if err := c.each(ctx, func(r *row) error { found = append(found, r.num()); return nil }, selectNextDue, target, int64(p)); err != nil {
				return err
			}
		}
		due = found
		return nil
	})
	if err != nil {
		return time.Time{}, false, fmt.Errorf("next due run: %w", err)
	}
	if len(due) == 0 {
		return time.Time{}, false, nil
	}
	return time.UnixMicro(max(slices.Min(due), now)).UTC(), true, nil
}

// Hasten makes runs due that wait for their next attempt.
func (s *Store) Hasten(ctx context.Context, target string, reason adapters.Reason) (int, error) {
	var n int64
	if err := s.change(ctx, func(t *tx) (err error) {
		n, err = t.exec(hastenRuns, target, t.now.UnixMicro(), string(reason))
		return err
	}); err != nil {
		return 0, fmt.Errorf("hasten runs: %w", err)
	}
	return int(n), nil
}
