package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

// claimRuns leases due runs, first those of priority $2, then, if the limit leaves room, the others. Runs that another
// claim is leasing this moment are skipped. What was due is judged again on the locked row.
const claimRuns = `WITH first AS MATERIALIZED (` + selectDue + `
  WHERE r.target = $1 AND r.priority = $2 AND r.due_time <= statement_timestamp() %[1]s
  ORDER BY r.due_time, r.expire_time, r.invalidation_id LIMIT $3
  FOR NO KEY UPDATE SKIP LOCKED
), second AS MATERIALIZED (` + selectDue + `
  WHERE r.target = $1 AND r.priority = 1 - $2 AND r.due_time <= statement_timestamp() %[1]s
  ORDER BY r.due_time, r.expire_time, r.invalidation_id LIMIT $3 - (SELECT count(*) FROM first)
  FOR NO KEY UPDATE SKIP LOCKED
), due AS (
  SELECT *, row_number() OVER () AS n FROM (SELECT * FROM first UNION ALL SELECT * FROM second) AS d
), locked AS MATERIALIZED (
  -- Several invalidations are locked in the order of their IDs.
  SELECT i.id FROM invalidations AS i WHERE i.id IN (SELECT invalidation_id FROM due WHERE NOT kept) ORDER BY i.id FOR NO KEY UPDATE
), raised AS (
  UPDATE invalidations AS i SET revision = i.revision + 1 FROM locked WHERE i.id = locked.id
), r AS (
  UPDATE runs AS r SET
    state = CASE WHEN d.kept THEN r.state ELSE 'RUNNING' END,
    open = CASE WHEN d.kept THEN r.open ELSE true END,
    attempts = r.attempts + CASE WHEN d.kept OR r.state = 'RUNNING' AND NOT r.open THEN 0 ELSE 1 END,
    next_attempt_time = CASE WHEN d.kept THEN r.next_attempt_time END,
    start_time = CASE WHEN d.kept THEN r.start_time ELSE coalesce(r.start_time, statement_timestamp()) END,
    lease_owner = $4, lease_token = r.lease_token + 1, lease_until = clock_timestamp() + $5::interval,
    lease_from = CASE WHEN d.kept THEN 'KEPT' WHEN r.open THEN 'LOST' ELSE r.state END
  FROM due AS d WHERE r.invalidation_id = d.invalidation_id AND r.idx = d.idx
  RETURNING d.n, d.kept, d.open AS was_open, r.*
)
SELECT r.invalidation_id, r.lease_token, r.lease_until, r.was_open, r.kept, r.priority, i.create_time, i.caller_kind, i.caller_name, i.selector, ` + runColumns + `
FROM r JOIN invalidations AS i ON i.id = r.invalidation_id ORDER BY r.n`

// kept: a run that is not resolved, or has expired, is leased as it is.
const selectDue = `
  SELECT r.invalidation_id, r.idx, r.open, r.selector IS NULL OR r.expire_time <= statement_timestamp() AS kept FROM runs AS r`

var (
	claimDue     = fmt.Sprintf(claimRuns, "")
	claimExpired = fmt.Sprintf(claimRuns, "AND r.expire_time <= statement_timestamp()")
)

const (
	renewLeases = `WITH l AS MATERIALIZED (
  SELECT r.invalidation_id, r.idx FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[]) AS l (id, idx, owner, token)
  JOIN runs AS r ON r.invalidation_id = l.id AND r.idx = l.idx AND r.lease_owner = l.owner AND r.lease_token = l.token
  WHERE r.lease_until > clock_timestamp()
  ORDER BY r.invalidation_id, r.idx FOR NO KEY UPDATE OF r
)
UPDATE runs AS r SET lease_until = clock_timestamp() + $5::interval FROM l
WHERE r.invalidation_id = l.invalidation_id AND r.idx = l.idx AND r.lease_until > clock_timestamp()
RETURNING r.invalidation_id, r.idx`

	releaseRun = `WITH r AS (
  UPDATE runs SET
    state = CASE WHEN lease_from IN ('PENDING', 'RETRYING') THEN lease_from ELSE state END,
    open = CASE lease_from WHEN 'KEPT' THEN open WHEN 'LOST' THEN true ELSE false END,
    attempts = attempts - CASE WHEN lease_from IN ('KEPT', 'RUNNING') THEN 0 ELSE 1 END,
    start_time = CASE WHEN lease_from = 'PENDING' THEN NULL ELSE start_time END,
    next_attempt_time = clock_timestamp(), lease_owner = NULL, lease_until = NULL, lease_from = NULL
  WHERE ` + leased + `
  RETURNING invalidation_id
)
UPDATE invalidations AS i SET revision = i.revision + 1 FROM r WHERE i.id = r.invalidation_id`

	// leased is the guard of what only the owner of a run may do.
	leased = `invalidation_id = $1 AND idx = $2 AND lease_owner = $3 AND lease_token = $4 AND lease_until > clock_timestamp()`

	// A leased run is due when its lease ends.
	selectNextDue = `SELECT min(due) FROM (
  (SELECT greatest(r.due_time, clock_timestamp()) AS due FROM runs AS r
   WHERE r.target = $1 AND r.priority = 0 AND r.due_time IS NOT NULL ORDER BY r.due_time LIMIT 1)
  UNION ALL
  (SELECT greatest(r.due_time, clock_timestamp()) FROM runs AS r
   WHERE r.target = $1 AND r.priority = 1 AND r.due_time IS NOT NULL ORDER BY r.due_time LIMIT 1)
) AS d`
)

// Claim leases runs that are due.
func (s *Store) Claim(ctx context.Context, c invalidation.Claim) ([]invalidation.ClaimedRun, error) {
	if c.Limit <= 0 {
		return nil, nil
	}
	e := &encoder{}
	first := invalidation.PriorityNormal
	if c.BulkFirst {
		first = invalidation.PriorityBulk
	}
	args := []any{e.text(c.Target), int16(first), c.Limit, e.text(c.Owner), c.LeaseLength}
	query := claimDue
	if c.ExpiredOnly {
		query = claimExpired
	}
	var claimed []invalidation.ClaimedRun
	err := e.err
	if err == nil {
		err = s.change(ctx, func(ctx context.Context, t *tx) error {
			rows, err := t.Query(ctx, query, args...)
			if err != nil {
				return err
			}
			claimed, err = scanClaimed(rows, t, c.Owner)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("claim runs: %w", err)
	}
	return claimed, nil
}

func scanClaimed(rows pgx.Rows, t *tx, owner string) (claimed []invalidation.ClaimedRun, err error) {
	defer rows.Close()
	for rows.Next() {
		c := invalidation.ClaimedRun{Lease: invalidation.Lease{Owner: owner}}
		var r runRow
		var sel []byte
		var kept bool
		if err := rows.Scan(append([]any{&c.Lease.InvalidationID, &c.Lease.Token, &c.Lease.Until, &c.Lost, &kept, &c.Priority,
			&c.CreateTime, &c.Caller.Kind, &c.Caller.Name, &sel}, r.dest()...)...); err != nil {
			return nil, err
		}
		c.Lease.Run = int(*r.idx)
		c.Lease.Until, c.CreateTime = c.Lease.Until.UTC(), c.CreateTime.UTC()
		if c.Run, err = r.run(); err != nil {
			return nil, err
		}
		d := decoder{}
		if d.json(sel, &c.Selector); d.err != nil {
			return nil, d.err
		}
		c.Expired = kept && c.Run.Selector != nil
		if !kept {
			t.touch(c.Lease.InvalidationID, 0)
		}
		claimed = append(claimed, c)
	}
	return claimed, rows.Err()
}

// hastenRuns takes what nobody works on; what is being claimed this moment is due anyway.
const hastenRuns = `UPDATE runs SET next_attempt_time = clock_timestamp()
WHERE target = $1 AND due_time IS NOT NULL AND state = 'RETRYING' AND lease_until IS NULL AND next_attempt_time > clock_timestamp()
  AND error ->> 'reason' = $2`

// Hasten makes runs due that wait for their next attempt.
func (s *Store) Hasten(ctx context.Context, target string, reason adapters.Reason) (hastened int, err error) {
	if !storable(target) {
		return 0, nil
	}
	if err := s.change(ctx, func(ctx context.Context, t *tx) error {
		tag, err := t.Exec(ctx, hastenRuns, target, string(reason))
		hastened = int(tag.RowsAffected())
		return err
	}); err != nil {
		return 0, fmt.Errorf("hasten runs: %w", err)
	}
	return hastened, nil
}

// Renew prolongs leases.
func (s *Store) Renew(ctx context.Context, leases []invalidation.Lease, length time.Duration) ([]invalidation.Lease, error) {
	if len(leases) == 0 {
		return nil, nil
	}
	type key struct {
		id  string
		run int
	}
	var ids, owners []string
	var runs []int32
	var tokens []int64
	for _, l := range leases {
		if storable(l.InvalidationID) && storable(l.Owner) { // there is no other
			ids, runs, owners, tokens = append(ids, l.InvalidationID), append(runs, int32(l.Run)), append(owners, l.Owner), append(tokens, l.Token)
		}
	}
	var renewed map[key]bool
	if err := s.change(ctx, func(ctx context.Context, t *tx) error {
		renewed = map[key]bool{}
		rows, err := t.Query(ctx, renewLeases, ids, runs, owners, tokens, length)
		if err != nil {
			return err
		}
		var k key
		_, err = pgx.ForEachRow(rows, []any{&k.id, &k.run}, func() error { renewed[k] = true; return nil })
		return err
	}); err != nil {
		return nil, fmt.Errorf("renew leases: %w", err)
	}
	var lost []invalidation.Lease
	latest := map[key]int64{} // of two leases of one run, only the later can have been renewed
	for _, l := range leases {
		latest[key{l.InvalidationID, l.Run}] = max(latest[key{l.InvalidationID, l.Run}], l.Token)
	}
	for _, l := range leases {
		k := key{l.InvalidationID, l.Run}
		if !renewed[k] || latest[k] != l.Token {
			lost = append(lost, l)
		}
	}
	return lost, nil
}

// Release takes a claim back.
func (s *Store) Release(ctx context.Context, l invalidation.Lease) error {
	err := invalidation.ErrLeaseLost
	if storable(l.InvalidationID) && storable(l.Owner) {
		err = s.change(ctx, func(ctx context.Context, t *tx) error {
			tag, err := t.Exec(ctx, releaseRun, l.InvalidationID, l.Run, l.Owner, l.Token)
			switch {
			case err != nil:
				return err
			case tag.RowsAffected() == 0:
				return invalidation.ErrLeaseLost
			}
			t.touch(l.InvalidationID, 0)
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("release run: %w", err)
	}
	return nil
}

// NextDue returns when the earliest run at the target can be claimed.
func (s *Store) NextDue(ctx context.Context, target string) (time.Time, bool, error) {
	if !storable(target) {
		return time.Time{}, false, nil
	}
	var at *time.Time
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, selectNextDue, target).Scan(&at)
	}); err != nil {
		return time.Time{}, false, fmt.Errorf("next due run: %w", err)
	}
	return utc(at), at != nil, nil
}
