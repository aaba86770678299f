package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"
)

// prefill journals n finished invalidations of three runs each, as large as those that are measured, before the gateway
// begins. They are written by SQL, without indexes, transactions or waiting for the disk, and then made what the gateway
// would have left; the disk has everything before prefill returns.
func (g *gateway) prefill(ctx context.Context, n int) (err error) {
	// The gateway makes the journal.
	if err := g.begin(ctx); err != nil {
		return err
	}
	if err := g.end(); err != nil {
		return err
	}
	if err := g.write(ctx, n); err != nil {
		return err
	}
	g.before = int64(n)
	f, err := os.OpenFile(g.journal(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (g *gateway) write(ctx context.Context, n int) (err error) {
	db, err := sql.Open("sqlite", "file:"+g.journal()+"?_pragma=journal_mode(OFF)&_pragma=synchronous(OFF)&_pragma=foreign_keys(0)&_pragma=cache_size(-262144)&_pragma=temp_store(MEMORY)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	// Indexes are written faster when all rows are there; those of primary keys, which have no text, stay.
	var indexes, before, after []string
	rows, err := db.QueryContext(ctx, `SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ('invalidations', 'runs')`)
	if err != nil {
		return err
	}
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return err
		}
		before, indexes = append(before, "DROP INDEX "+name), append(indexes, text)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	after = append(indexes, "PRAGMA journal_mode = WAL")
	for _, text := range append(append(before, invalidationRows(n)...), after...) {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("%.60s: %w", text, err)
		}
	}
	return nil
}

// invalidationRows are statements that write n invalidations of the last month, which is less than the retention.
func invalidationRows(n int) []string {
	const every = 2592 // milliseconds: a million in thirty days
	millis := fmt.Sprintf(`(%d + n * %d)`, time.Now().Add(-31*24*time.Hour).UnixMilli(), every)
	// Version 7 UUIDs begin with the time in milliseconds.
	id := `printf('%08x-%04x-7%03x-8%03x-%012x', ` + millis + ` >> 16, ` + millis + ` & 65535, n * 7919 % 4096, n * 104729 % 4096, n * 15485863)`
	numbers := fmt.Sprintf(`WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < %d) `, n)
	return []string{
		`INSERT INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time, caller_kind, caller_name, user_id, selector, call) ` +
			numbers + `SELECT ` + id + `, 'SUCCEEDED', 1, 0, 0, 0, 1000 * ` + millis + `, 1000 * ` + millis + ` + 21000, 'api_key', 'bench', printf('user-%08d', n % 50000),
			printf('{"user":{"id":"user-%08d"}}', n % 50000), '{}' FROM n`,
		`INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time, complete_time, lease_token, counted, count, count_is_minimum, verification, sessions_truncated, selector) ` +
			numbers + `SELECT ` + id + `, t, 't' || t, 'constant', '0123456789abcdef0123456789abcdef', 0, 'SUCCEEDED', 0, 1, 1000 * ` + millis + ` + 86400000000, 1000 * ` + millis + `, 1000 * ` + millis + ` + 21000,
			1, 1, 2, 0, 'UNVERIFIABLE', 0, printf('{"by":["user"],"users":[{"name":"user-%08d"}]}', n % 50000) FROM n, (SELECT 0 AS t UNION ALL SELECT 1 UNION ALL SELECT 2)`,
	}
}
