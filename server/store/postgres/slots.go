package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

const (
	// A slot is a row. They are made when they are first wanted, and are never removed: with a lower limit the upper ones
	// are not given out any more.
	makeSlots = `INSERT INTO target_slots (target, slot, token) SELECT $1, n, 0 FROM generate_series(0, $2::int - 1) AS n
WHERE NOT EXISTS (SELECT 1 FROM target_slots AS s WHERE s.target = $1 AND s.slot = n)
ON CONFLICT (target, slot) DO NOTHING`

	acquireSlots = `WITH free AS MATERIALIZED (
  SELECT slot FROM target_slots WHERE target = $1 AND slot < $2 AND (owner IS NULL OR until <= clock_timestamp())
  ORDER BY slot LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE target_slots AS s SET owner = $4, token = s.token + 1, until = clock_timestamp() + $5::interval
FROM free WHERE s.target = $1 AND s.slot = free.slot
RETURNING s.slot, s.token, s.until`

	renewSlots = `WITH held AS MATERIALIZED (
  SELECT s.target, s.slot FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[]) AS h (target, slot, owner, token)
  JOIN target_slots AS s ON s.target = h.target AND s.slot = h.slot AND s.owner = h.owner AND s.token = h.token
  WHERE s.until > clock_timestamp()
  ORDER BY s.target, s.slot FOR NO KEY UPDATE OF s
)
UPDATE target_slots AS s SET until = clock_timestamp() + $5::interval FROM held
WHERE s.target = held.target AND s.slot = held.slot AND s.until > clock_timestamp()
RETURNING s.target, s.slot, s.token, s.until`

	releaseSlots = `WITH held AS MATERIALIZED (
  SELECT s.target, s.slot FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[]) AS h (target, slot, owner, token)
  JOIN target_slots AS s ON s.target = h.target AND s.slot = h.slot AND s.owner = h.owner AND s.token = h.token
  ORDER BY s.target, s.slot FOR NO KEY UPDATE OF s
)
UPDATE target_slots AS s SET owner = NULL, until = NULL FROM held WHERE s.target = held.target AND s.slot = held.slot`
)

// AcquireSlots takes up to want of a target's slots that nobody holds, or whose lease has ended, for length. It does not
// wait: fewer, or none, means that the others are taken; if none was free, their holders are told. limit is the target's concurrency; of replicas that know
// different limits, each keeps to its own slots, so that no more than the highest are held.
//
// A caller whose answer is lost ([invalidation.ErrCommitUnknown]) may hold slots that it does not know of; they come back
// when their lease ends.
func (s *Store) AcquireSlots(ctx context.Context, target, owner string, want, limit int, length time.Duration) ([]invalidation.Slot, error) {
	if want <= 0 || limit <= 0 {
		return nil, nil
	}
	if !storable(target) || !storable(owner) {
		return nil, fmt.Errorf("acquire slots: %w", errText)
	}
	for {
		var slots []invalidation.Slot
		var made bool
		if err := s.change(ctx, func(ctx context.Context, t *tx) error {
			rows, err := t.Query(ctx, acquireSlots, target, limit, want, owner, length)
			if err != nil {
				return err
			}
			slots, err = pgx.AppendRows([]invalidation.Slot(nil), rows, func(r pgx.CollectableRow) (invalidation.Slot, error) {
				l := invalidation.Slot{Target: target, Owner: owner}
				err := r.Scan(&l.Number, &l.Token, &l.Until)
				l.Until = l.Until.UTC()
				return l, err
			})
			if err != nil || len(slots) > 0 {
				return err
			}
			// Perhaps they do not exist yet.
			tag, err := t.Exec(ctx, makeSlots, target, limit)
			made = tag.RowsAffected() > 0
			return err
		}); err != nil {
			return nil, fmt.Errorf("acquire slots: %w", err)
		}
		if len(slots) > 0 {
			return slots, nil
		}
		if !made {
			s.news.others([]string{slotsWanted + target})
			return nil, nil
		}
	}
}

// RenewSlots prolongs slots by length; it returns them as they are now, and those that are lost.
func (s *Store) RenewSlots(ctx context.Context, slots []invalidation.Slot, length time.Duration) (held, lost []invalidation.Slot, err error) {
	if len(slots) == 0 {
		return nil, nil, nil
	}
	type key struct {
		target string
		slot   int
		token  int64
	}
	var until map[key]time.Time
	if err := s.change(ctx, func(ctx context.Context, t *tx) error {
		until = map[key]time.Time{}
		rows, err := t.Query(ctx, renewSlots, append(slotArgs(slots), length)...)
		if err != nil {
			return err
		}
		var k key
		var at time.Time
		_, err = pgx.ForEachRow(rows, []any{&k.target, &k.slot, &k.token, &at}, func() error { until[k] = at.UTC(); return nil })
		return err
	}); err != nil {
		return nil, nil, fmt.Errorf("renew slots: %w", err)
	}
	for _, l := range slots {
		at, ok := until[key{l.Target, l.Number, l.Token}]
		if !ok {
			lost = append(lost, l)
			continue
		}
		l.Until = at
		held = append(held, l)
	}
	return held, lost, nil
}

// ReleaseSlots gives slots back. It is no error if they are lost already.
func (s *Store) ReleaseSlots(ctx context.Context, slots []invalidation.Slot) error {
	if len(slots) == 0 {
		return nil
	}
	if err := s.change(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.Exec(ctx, releaseSlots, slotArgs(slots)...)
		return err
	}); err != nil {
		return fmt.Errorf("release slots: %w", err)
	}
	return nil
}

func slotArgs(slots []invalidation.Slot) []any {
	targets, numbers, owners, tokens := make([]string, 0), make([]int32, 0), make([]string, 0), make([]int64, 0)
	for _, l := range slots {
		if storable(l.Target) && storable(l.Owner) { // there is no other
			targets, numbers, owners, tokens = append(targets, l.Target), append(numbers, int32(l.Number)), append(owners, l.Owner), append(tokens, l.Token)
		}
	}
	return []any{targets, numbers, owners, tokens}
}
