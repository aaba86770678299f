package sqlite

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one step from a version of the schema to the next. What was released is never edited.
type migration struct {
	version int
	name    string
	text    string
}

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

// migrate brings the schema to the last of the migrations, each in a transaction. It refuses a database that is newer, or
// not a journal.
func migrate(c *conn, ms []migration) error {
	version, err := schemaVersion(c)
	if err != nil {
		return err
	}
	if version > len(ms) {
		return fmt.Errorf("the journal's schema is version %d, this program knows up to %d: a newer program has written it", version, len(ms))
	}
	for _, m := range ms[version:] {
		if err := step(c, m); err != nil {
			_ = c.script("ROLLBACK")
			return fmt.Errorf("migrate the journal to version %d (%s): %w", m.version, m.name, err)
		}
	}
	return nil
}

func step(c *conn, m migration) error {
	if err := c.script("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if m.version == 1 {
		if err := c.script(`CREATE TABLE migrations (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, time INTEGER NOT NULL) STRICT`); err != nil {
			return err
		}
	}
	if err := c.script(m.text); err != nil {
		return err
	}
	if _, err := c.exec(`INSERT INTO migrations (version, name, time) VALUES (?, ?, ?)`, int64(m.version), m.name, time.Now().UnixMicro()); err != nil {
		return err
	}
	return c.script("COMMIT")
}

// schemaVersion is 0 for an empty database.
func schemaVersion(c *conn) (int, error) {
	var tables, ours int64
	if _, err := c.one(func(r *row) error { tables, ours = r.num(), r.num(); return nil },
		`SELECT count(*), count(*) FILTER (WHERE name = 'migrations') FROM sqlite_schema WHERE type = 'table'`); err != nil {
		return 0, err
	}
	switch {
	case tables == 0:
		return 0, nil
	case ours == 0:
		return 0, fmt.Errorf("the database is not a journal: it has %d tables of something else", tables)
	}
	var version int64
	_, err := c.one(func(r *row) error { version = r.num(); return nil }, `SELECT max(version) FROM migrations`)
	return int(version), err
}

// current refuses a journal of another version of the schema.
func current(c *conn) error {
	ms, err := readMigrations(migrationFiles)
	if err != nil {
		return err
	}
	version, err := schemaVersion(c)
	switch {
	case err != nil:
		return err
	case version != len(ms):
		return fmt.Errorf("the journal's schema is version %d, this program reads %d: read it with the program that serves it", version, len(ms))
	}
	return nil
}
