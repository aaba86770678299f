package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"io/fs"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	sqlite "modernc.org/sqlite"
)

// WithVFS has the database opened through another of SQLite's virtual file systems.
func (o Options) WithVFS(name string) Options {
	o.vfs = name
	return o
}

// Statements are all the statements that are prepared once, by name.
var Statements = map[string]string{
	"select invalidation": selectInvalidation, "select runs": selectRuns, "insert event": insertEvent, "end leases": endLeases,
	"select request": selectRequest, "insert invalidation": insertInvalidation, "insert label": insertLabel, "insert run": insertRun, "insert started run": insertStarted,
	"select due": selectDue, "select due, expired": selectDueExpired, "lease run": leaseRun, "keep and lease run": keptLease,
	"raise revision": raiseRevision, "renew lease": renewLease, "select lease": selectLease, "release run": releaseRun,
	"release kept run": releaseKept, "select next due": selectNextDue, "select leased": selectLeased, "update run": updateRun, "update outcome": updateOutcome, "update end": updateEnd, "count runs": countRuns, "end count": endCount,
	"count down": countDown, "finish invalidation": finishInvalidation, "select run states": selectRunStates,
	"upsert pause": upsertPause, "delete pause": deletePause, "select pauses": selectPauses, "delete completed": deleteCompleted,
	"select unfinished": selectUnfinished, "select events": selectEvents,
	"select hash": selectHash, "select tips": selectTips, "select last link": selectLastLink, "select old chains": selectOldChains,
	"select checkpoint": selectCheckpoint, "select checkpoints": selectCheckpoints, "upsert checkpoint": upsertCheckpoint,
	"delete prefix": deletePrefix, "hasten runs": hastenRuns,
}

// List is the statement that List makes of a query.
func List(q invalidation.Query) string { s, _ := list(q); return s }

// Explain returns the query plan of a statement, a line each, and its byte code's operations.
func Explain(path, statement string) (plan, ops []string, err error) {
	c, err := place{path: path}.connect("rw")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	args := make([]driver.Value, strings.Count(statement, "?"))
	err = c.each(context.Background(), func(r *row) error { plan = append(plan, r.values[3].(string)); return nil }, "EXPLAIN QUERY PLAN "+statement, args...)
	if err == nil {
		err = c.each(context.Background(), func(r *row) error { ops = append(ops, r.values[1].(string)); return nil }, "EXPLAIN "+statement, args...)
	}
	return plan, ops, err
}

// Migrate brings a database to the last of the migrations in files, or to the embedded ones' if files is nil.
func Migrate(path string, files fs.FS) error {
	if files == nil {
		files = migrationFiles
	}
	ms, err := readMigrations(files)
	if err != nil {
		return err
	}
	c, err := place{path: path}.connect("rw")
	if err != nil {
		return err
	}
	return errors.Join(migrate(c, ms), c.close())
}

// Schema returns the statements that made the database, in order of names.
func Schema(path string) (schema []string, err error) {
	c, err := place{path: path}.connect("ro")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	err = c.each(context.Background(), func(r *row) error { schema = append(schema, r.text()); return nil },
		"SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name")
	return schema, err
}

// MigrationFiles are the embedded migrations.
var MigrationFiles fs.FS = migrationFiles

// Change runs f in a transaction of the writer: what f is given executes SQL there.
func (s *Store) Change(ctx context.Context, f func(exec func(string) error) error) error {
	return s.change(ctx, func(t *tx) error {
		return f(func(q string) error { _, err := t.exec(q); return err })
	})
}

// Mangled is [mangled].
func Mangled(data []byte) bool { return mangled(data) }

// Encode is what a column holds of v; "" for NULL.
func Encode(v any) (string, error) {
	var e encoder
	var value driver.Value
	switch v := v.(type) {
	case []string:
		value = e.strings(v)
	case *adapters.Selector:
		value = e.resolved(v)
	case invalidation.Terms:
		value = e.terms(v)
	case invalidation.Selector:
		value = e.selector(v)
	case invalidation.Call:
		value = e.call(v)
	}
	s, _ := value.(string)
	return s, e.err
}

// Query runs a query on one of the readers.
func (s *Store) Query(ctx context.Context, query string) error {
	return s.read(ctx, func(ctx context.Context, c *conn) error {
		return c.each(ctx, func(*row) error { return nil }, query)
	})
}

// Break has the writer drop its connection, as an outage does.
func (s *Store) Break(ctx context.Context) error {
	return s.change(ctx, func(*tx) error { return unavailable(errors.New("broken by a test")) })
}

// PagesWritten is how many pages the writer's connection has written to the log.
func (s *Store) PagesWritten(ctx context.Context) (pages int, err error) {
	err = s.change(ctx, func(t *tx) (err error) {
		pages, _, err = t.conn.c.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, false)
		return err
	})
	return pages, err
}
