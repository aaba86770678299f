package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

const (
	// One statement, so that the invalidation and its runs are of one moment.
	selectInvalidation = `SELECT ` + invalidationColumns + `, ` + runColumns + `
FROM invalidations AS i LEFT JOIN runs AS r ON r.invalidation_id = i.id WHERE i.id = $1 ORDER BY r.idx`

	// The rows of the index that holds only these. IDs are in the order of their acceptance.
	selectUnfinished = `SELECT u.target, u.runs, i.create_time
FROM (SELECT target, count(*) AS runs, min(invalidation_id) AS oldest FROM runs WHERE due_time IS NOT NULL GROUP BY target) AS u
JOIN invalidations AS i ON i.id = u.oldest`

	selectPauses = `SELECT target, caller_kind, caller_name, reason, time FROM target_pauses ORDER BY target`
)

// load reads an invalidation with its runs.
func load(ctx context.Context, c *pgx.Conn, id string) (invalidation.Invalidation, error) {
	rows, err := c.Query(ctx, selectInvalidation, id)
	if err != nil {
		return invalidation.Invalidation{}, err
	}
	invs, err := scanInvalidations(rows)
	switch {
	case err != nil:
		return invalidation.Invalidation{}, err
	case len(invs) == 0:
		return invalidation.Invalidation{}, invalidation.ErrNotFound
	}
	return invs[0], nil
}

// Get returns an invalidation.
func (s *Store) Get(ctx context.Context, id string) (inv invalidation.Invalidation, err error) {
	err = invalidation.ErrNotFound
	if storable(id) {
		err = s.read(ctx, func(ctx context.Context, c *pgx.Conn) (err error) {
			inv, err = load(ctx, c, id)
			return err
		})
	}
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
	for _, a := range args {
		if text, ok := a.(string); ok && !storable(text) {
			return nil, false, nil // nothing is called that
		}
	}
	var page []invalidation.Invalidation
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		page, err = scanInvalidations(rows)
		return err
	}); err != nil {
		return nil, false, fmt.Errorf("list invalidations: %w", err)
	}
	if len(page) > q.Limit {
		return page[:q.Limit], true, nil
	}
	return page, false, nil
}

// list writes the query of a page, and of one row more. Each filter has an index that yields its matches in the order of
// the page; which of them leads is the planner's business. Only a label leads by itself, because its index is in another
// table and the planner would rather look at every invalidation, newest first.
func list(q invalidation.Query) (string, []any) {
	var args []any
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	from, id := "invalidations AS i", "i.id"
	var where []string
	for n, key := range slices.Sorted(maps.Keys(q.Labels)) {
		is := "l%[1]d.key = " + arg(key) + " AND l%[1]d.value = " + arg(q.Labels[key])
		if n == 0 {
			from, id = "labels AS l0 JOIN invalidations AS i ON i.id = l0.invalidation_id", "l0.invalidation_id"
			where = append(where, fmt.Sprintf(is, n))
			continue
		}
		where = append(where, fmt.Sprintf("EXISTS (SELECT 1 FROM labels AS l%[1]d WHERE "+is+" AND l%[1]d.invalidation_id = i.id)", n))
	}
	if q.Target != "" {
		where = append(where, "EXISTS (SELECT 1 FROM runs AS t WHERE t.target = "+arg(q.Target)+" AND t.invalidation_id = i.id)")
	}
	if q.UserID != "" {
		where = append(where, "i.user_id = "+arg(q.UserID))
	}
	if q.OnlyOf != nil {
		where = append(where, "i.caller_name = "+arg(q.OnlyOf.Name)+" AND i.caller_kind = "+arg(q.OnlyOf.Kind))
	}
	if q.Caller != "" {
		where = append(where, "i.caller_name = "+arg(q.Caller))
	}
	if q.State != "" {
		where = append(where, "i.state = "+arg(string(q.State)))
	}
	if q.Unfinished {
		where = append(where, "i.state = "+arg(string(invalidation.Running)))
	}
	if !q.From.IsZero() {
		where = append(where, "i.create_time >= "+arg(q.From))
	}
	if !q.To.IsZero() {
		where = append(where, "i.create_time < "+arg(q.To))
	}
	if q.Before != "" {
		where = append(where, id+" < "+arg(q.Before))
	}
	if len(where) == 0 {
		where = []string{"true"}
	}
	return "SELECT " + invalidationColumns + ", " + runColumns + "\nFROM (\n  SELECT i.* FROM " + from + "\n  WHERE " + strings.Join(where, "\n    AND ") +
		"\n  ORDER BY " + id + " DESC LIMIT " + arg(int64(q.Limit)+1) + "\n) AS i LEFT JOIN LATERAL (\n" +
		// OFFSET 0 keeps the planner from joining what it believes to be a large page with all runs there are.
		"  SELECT * FROM runs WHERE runs.invalidation_id = i.id ORDER BY idx OFFSET 0\n) AS r ON true\nORDER BY i.id DESC, r.idx", args
}

// Unfinished counts the runs that are not final.
func (s *Store) Unfinished(ctx context.Context) (map[string]invalidation.Unfinished, error) {
	var counts map[string]invalidation.Unfinished
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, selectUnfinished)
		if err != nil {
			return err
		}
		counts = map[string]invalidation.Unfinished{}
		var target string
		var u invalidation.Unfinished
		_, err = pgx.ForEachRow(rows, []any{&target, &u.Runs, &u.Oldest}, func() error {
			u.Oldest = u.Oldest.UTC()
			counts[target] = u
			return nil
		})
		return err
	}); err != nil {
		return nil, fmt.Errorf("count unfinished runs: %w", err)
	}
	return counts, nil
}

// Pauses returns the targets that are paused, by name.
func (s *Store) Pauses(ctx context.Context) (pauses []invalidation.Pause, err error) {
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, selectPauses)
		if err != nil {
			return err
		}
		pauses, err = pgx.AppendRows([]invalidation.Pause(nil), rows, func(r pgx.CollectableRow) (p invalidation.Pause, err error) {
			err = r.Scan(&p.Target, &p.Caller.Kind, &p.Caller.Name, &p.Reason, &p.Time)
			p.Time = p.Time.UTC()
			return p, err
		})
		return err
	}); err != nil {
		return nil, fmt.Errorf("read pauses: %w", err)
	}
	return pauses, nil
}
