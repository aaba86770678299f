package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// prefill journals n finished invalidations of three runs each, as large as those that are measured, before the gateway
// begins. They are written by SQL and without waiting for the disk, which has everything before prefill returns.
func (g *gateway) prefill(ctx context.Context, n int) (err error) {
	// The gateway makes the journal.
	if err := g.begin(ctx); err != nil {
		return err
	}
	if err := g.end(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+g.journal()+"?_pragma=synchronous(OFF)&_pragma=foreign_keys(0)&_pragma=cache_size(-262144)&_pragma=temp_store(MEMORY)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	const batch = 100_000
	for from := 0; from < n; from += batch {
		if err := g.insert(ctx, db, from, min(n, from+batch)); err != nil {
			return err
		}
	}
	g.before = int64(n)
	if _, err := db.ExecContext(ctx, `PRAGMA synchronous = FULL; PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		return err
	}
	return nil
}

// insert writes the invalidations from one number up to another.
func (g *gateway) insert(ctx context.Context, db *sql.DB, from, to int) error {
	numbers := fmt.Sprintf(`WITH RECURSIVE n (n) AS (SELECT %d UNION ALL SELECT n + 1 FROM n WHERE n + 1 < %d) `, from, to)
	// The first of August 2026, a call each 30 ms: version 7 UUIDs begin with the time in milliseconds.
	const (
		millis = `(1785542400000 + n * 30)`
		id     = `printf('%08x-%04x-7%03x-8%03x-%012x', ` + millis + ` >> 16, ` + millis + ` & 65535, n * 7919 % 4096, n * 104729 % 4096, n * 15485863)`
	)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	for _, q := range []string{
		`INSERT INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time, caller_kind, caller_name, user_id, selector, call) ` +
			numbers + `SELECT ` + id + `, 'SUCCEEDED', 1, 0, 0, 0, 1000 * ` + millis + `, 1000 * ` + millis + ` + 21000, 'api_key', 'bench', printf('user-%08d', n % 50000),
			printf('{"user":{"id":"user-%08d"}}', n % 50000), '{}' FROM n`,
		`INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time, complete_time, lease_token, counted, count, count_is_minimum, verification, sessions_truncated, selector) ` +
			numbers + `SELECT ` + id + `, t, 't' || t, 'constant', '0123456789abcdef0123456789abcdef', 0, 'SUCCEEDED', 0, 1, 1000 * ` + millis + ` + 86400000000, 1000 * ` + millis + `, 1000 * ` + millis + ` + 21000,
			1, 1, 2, 0, 'UNVERIFIABLE', 0, printf('{"by":["user"],"users":[{"name":"user-%08d"}]}', n % 50000) FROM n, (SELECT 0 AS t UNION ALL SELECT 1 UNION ALL SELECT 2)`,
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return tx.Commit()
}
