package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one step from a version of the schema to the next. What was released is never edited.
type migration struct {
	version int
	name    string
	text    string
}

// Classes of advisory locks; the second key is the schema.
const (
	migrationLock int32 = 0x656e6473 // "ends"
	presenceLock  int32 = 0x656e6474
	pruneLock     int32 = 0x656e6475
)

// readMigrations reads NNNN_name.sql, numbered from 1 without gaps.
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*/*.sql")
	if err != nil {
		return nil, err
	}
	var ms []migration
	for i, file := range names { // sorted
		number, name, _ := strings.Cut(strings.TrimSuffix(path.Base(file), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s: want number %d", file, i+1)
		}
		text, err := fs.ReadFile(files, file)
		if err != nil {
			return nil, err
		}
		ms = append(ms, migration{version: version, name: name, text: string(text)})
	}
	return ms, nil
}

// migrate brings the schema to the last of the migrations, each in a transaction. Of several replicas that start together
// one does it and the others wait. It refuses a journal that is newer, and a schema of something else.
func migrate(ctx context.Context, c *pgx.Conn, schema uint32, ms []migration) error {
	version, err := schemaVersion(ctx, c)
	if err != nil || version == len(ms) {
		return err // also when the role may only use the tables: nothing is locked, nothing created
	}
	if version > len(ms) {
		return newer(version, len(ms))
	}
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock($1, $2)`, migrationLock, int32(schema)); err != nil {
		return fmt.Errorf("wait for another replica's migration: %w", err)
	}
	defer func() {
		_, _ = c.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1, $2)`, migrationLock, int32(schema))
	}()
	if version, err = schemaVersion(ctx, c); err != nil {
		return err
	}
	if version > len(ms) {
		return newer(version, len(ms))
	}
	for _, m := range ms[version:] {
		if err := step(ctx, c, m); err != nil {
			return fmt.Errorf("migrate the journal to version %d (%s): %w", m.version, m.name, err)
		}
	}
	return nil
}

func newer(version, known int) error {
	return fmt.Errorf("the journal's schema is version %d, this program knows up to %d: a newer program has written it", version, known)
}

func step(ctx context.Context, c *pgx.Conn, m migration) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if m.version == 1 {
			if _, err := tx.Exec(ctx, `CREATE TABLE migrations (version integer NOT NULL PRIMARY KEY, name text NOT NULL, time timestamptz NOT NULL)`); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, m.text); err != nil { // without arguments: many statements
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO migrations (version, name, time) VALUES ($1, $2, clock_timestamp())`, m.version, m.name)
		return err
	})
}

// schemaVersion is 0 for an empty schema.
func schemaVersion(ctx context.Context, c *pgx.Conn) (version int, err error) {
	var schema string
	var tables, ours int
	if err := c.QueryRow(ctx, `SELECT current_schema(), count(*), count(*) FILTER (WHERE relname = 'migrations')
FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')`).Scan(&schema, &tables, &ours); err != nil {
		return 0, err
	}
	switch {
	case tables == 0:
		return 0, nil
	case ours == 0:
		return 0, fmt.Errorf("schema %q is not a journal: it has %d tables of something else; give the journal a schema of its own", schema, tables)
	}
	if err := c.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM migrations`).Scan(&version); err != nil {
		return 0, err
	}
	return version, nil
}

// currentSchema is the first schema of the search path that exists, where everything is.
func currentSchema(ctx context.Context, c *pgx.Conn) (oid uint32, err error) {
	var found *uint32
	if err := c.QueryRow(ctx, `SELECT current_schema()::regnamespace::oid`).Scan(&found); err != nil {
		return 0, err
	}
	if found == nil {
		return 0, errors.New("no schema of the search path exists")
	}
	return *found, nil
}

// current refuses a journal of another version of the schema.
func current(ctx context.Context, c *pgx.Conn) error {
	ms, err := readMigrations(migrationFiles)
	if err != nil {
		return err
	}
	version, err := schemaVersion(ctx, c)
	switch {
	case err != nil:
		return err
	case version != len(ms):
		return fmt.Errorf("the journal's schema is version %d, this program reads %d: read it with the program that serves it", version, len(ms))
	}
	return nil
}
