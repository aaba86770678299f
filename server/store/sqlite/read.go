package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/endsession/endsession/server/invalidation"
)

const (
	// The index holds nothing else, and IDs are in the order of their acceptance.
	selectUnfinished = `SELECT u.target, u.runs, i.create_time
FROM (
  SELECT target, count(*) AS runs, min(invalidation_id) AS oldest FROM runs INDEXED BY runs_due WHERE due_time IS NOT NULL GROUP BY target
) AS u CROSS JOIN invalidations AS i ON i.id = u.oldest`
)

// Get returns an invalidation.
func (s *Store) Get(ctx context.Context, id string) (invalidation.Invalidation, error) {
	var inv invalidation.Invalidation
	err := s.read(ctx, func(_ context.Context, c *conn) error {
		// It is quick: to interrupt it would cost more than to let it end.
		var err error
		inv, err = load(context.Background(), c, id)
		return err
	})
	if err != nil {
		return invalidation.Invalidation{}, fmt.Errorf("get invalidation: %w", err)
	}
	return inv, nil
}

// List returns a page of invalidations.
func (s *Store) List(ctx context.Context, q invalidation.Query) ([]invalidation.Invalidation, bool, error) {
	if q.Limit <= 0 {
		return nil, false, nil
	}
	query, args := list(q)
	var page []invalidation.Invalidation
	err := s.read(ctx, func(ctx context.Context, c *conn) error {
		if err := c.each(ctx, func(r *row) error { page = append(page, scanInvalidation(r)); return nil }, query, args...); err != nil {
			return err
		}
		for i := range page[:min(len(page), q.Limit)] {
			runs, err := loadRuns(ctx, c, page[i].ID)
			if err != nil {
				return err
			}
			page[i].Runs = runs
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("list invalidations: %w", err)
	}
	if len(page) > q.Limit {
		return page[:q.Limit], true, nil
	}
	return page, false, nil
}

// newest is greater than every ID.
const newest = "\U0010ffff"

// list writes the query of a page, and of one row more. Each filter has an index that yields its matches in the order of
// the page; the query walks along that of the filter that leaves the fewest, and looks at the others row by row.
func list(q invalidation.Query) (string, []driver.Value) {
	var args []driver.Value
	arg := func(v driver.Value) string {
		args = append(args, v)
		return fmt.Sprintf("?%d", len(args))
	}
	before := q.Before
	if before == "" {
		before = newest
	}
	var where []string
	from, id := "", "i.id"
	along := func(index string) {
		if from == "" {
			from = "invalidations AS i INDEXED BY " + index
		}
	}
	if q.UserID != "" {
		along("invalidations_user")
		where = append(where, "i.user_id = "+arg(q.UserID))
	}
	for _, key := range slices.Sorted(maps.Keys(q.Labels)) {
		if from == "" {
			from, id = "labels AS l CROSS JOIN invalidations AS i ON i.id = l.invalidation_id", "l.invalidation_id"
			where = append(where, "l.key = "+arg(key)+" AND l.value = "+arg(q.Labels[key]))
			continue
		}
		where = append(where, "EXISTS (SELECT 1 FROM labels AS x WHERE x.key = "+arg(key)+" AND x.value = "+arg(q.Labels[key])+" AND x.invalidation_id = i.id)")
	}
	if q.OnlyOf != nil {
		along("invalidations_caller")
		where = append(where, "i.caller_name = "+arg(q.OnlyOf.Name)+" AND i.caller_kind = "+arg(q.OnlyOf.Kind))
	}
	if q.Caller != "" {
		along("invalidations_caller")
		where = append(where, "i.caller_name = "+arg(q.Caller))
	}
	if q.State != "" {
		if q.State != invalidation.Succeeded {
			along("invalidations_state")
		}
		where = append(where, "i.state = "+arg(string(q.State)))
	}
	if q.Unfinished {
		along("invalidations_state")
		where = append(where, "i.state = "+arg(string(invalidation.Running)))
	}
	if q.Target != "" {
		if from == "" {
			from, id = "runs AS t CROSS JOIN invalidations AS i ON i.id = t.invalidation_id", "t.invalidation_id"
			where = append(where, "t.target = "+arg(q.Target))
		} else {
			where = append(where, "EXISTS (SELECT 1 FROM runs AS x WHERE x.target = "+arg(q.Target)+" AND x.invalidation_id = i.id)")
		}
	}
	if q.State == invalidation.Succeeded {
		along("invalidations_state")
	}
	// A range of time is the only filter whose index is in another order; what it leaves is sorted.
	if !q.From.IsZero() {
		along("invalidations_created")
		where = append(where, "i.create_time >= "+arg(q.From.UnixMicro()))
	}
	if !q.To.IsZero() {
		along("invalidations_created")
		where = append(where, "i.create_time < "+arg(q.To.UnixMicro()))
	}
	if from == "" {
		from = "invalidations AS i"
	}
	where = append(where, id+" < "+arg(before))
	return "SELECT " + invalidationColumns + "\nFROM " + from + "\nWHERE " + strings.Join(where, "\n  AND ") +
		"\nORDER BY " + id + " DESC LIMIT " + arg(int64(q.Limit)+1), args
}

// Unfinished counts the runs that are not final.
func (s *Store) Unfinished(ctx context.Context) (map[string]invalidation.Unfinished, error) {
	var counts map[string]invalidation.Unfinished
	err := s.read(ctx, func(ctx context.Context, c *conn) error {
		found := map[string]invalidation.Unfinished{}
		counts = found
		return c.each(ctx, func(r *row) error {
			found[r.text()] = invalidation.Unfinished{Runs: int(r.num()), Oldest: r.time()}
			return nil
		}, selectUnfinished)
	})
	if err != nil {
		return nil, fmt.Errorf("count unfinished runs: %w", err)
	}
	return counts, nil
}
