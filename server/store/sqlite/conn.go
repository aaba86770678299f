package sqlite

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	sqlite "modernc.org/sqlite"
)

// place is where a database is and how it is opened.
type place struct {
	path string
	vfs  string
	// busy is how long SQLite waits for a lock that another program holds.
	busy time.Duration
}

// dsn is the URI of the database. Pragmas belong in it: executed later, they would be forgotten when a connection is
// opened again.
func (p place) dsn(mode string) string {
	path := filepath.ToSlash(p.path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive
	}
	q := url.Values{
		"mode":      {mode},
		"_dqs":      {"0"},
		"_error_rc": {"1"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", p.busy.Milliseconds()),
			"foreign_keys(1)",
			"synchronous(FULL)",
			"temp_store(MEMORY)",
			"trusted_schema(0)",
		},
	}
	if mode == "ro" {
		q.Add("_pragma", "cache_size(-8192)")
	} else {
		q.Add("_pragma", "cache_size(-65536)")
		q.Add("_pragma", "journal_mode(WAL)")
	}
	if p.vfs != "" {
		q.Set("vfs", p.vfs)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// conn is a connection with its prepared statements. It belongs to one goroutine.
type conn struct {
	c     driver.Conn
	stmts map[string]*stmt
}

type stmt struct {
	driver.Stmt
	args []driver.NamedValue
	dest []driver.Value
}

// connect opens a database that exists already: mode is "rw" or "ro". Only Open creates one, or a file that somebody has
// moved away would be replaced by an empty journal.
func (p place) connect(mode string) (*conn, error) {
	connector, err := sqlite.NewConnector(p.dsn(mode))
	if err != nil {
		return nil, failure(err)
	}
	c, err := connector.Connect(context.Background())
	if err != nil {
		return nil, failure(err)
	}
	return &conn{c: c, stmts: map[string]*stmt{}}, nil
}

// reconnect opens a journal that was open before.
func (p place) reconnect(mode string) (*conn, error) {
	c, err := p.connect(mode)
	if err != nil {
		return nil, err
	}
	// Not a journal any more: somebody has put another file there.
	found, err := c.one(func(*row) error { return nil }, `SELECT 1 FROM sqlite_schema WHERE name = 'migrations'`)
	if err == nil && !found {
		err = unavailable(fmt.Errorf("%s is not the journal any more", p.path))
	}
	if err != nil {
		_ = c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close() // repeats the error of the statement's last execution
	}
	return c.c.Close()
}

func (c *conn) prepare(query string, args []driver.Value) (*stmt, error) {
	s := c.stmts[query]
	if s == nil {
		prepared, err := c.c.Prepare(query)
		if err != nil {
			return nil, failure(err)
		}
		s = &stmt{Stmt: prepared}
		c.stmts[query] = s
	}
	s.args = s.args[:0]
	for i, v := range args {
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return s, nil
}

// exec runs a statement and returns how many rows it changed. Arguments are int64, string, []byte, bool or nil.
func (c *conn) exec(query string, args ...driver.Value) (changed int64, err error) {
	s, err := c.prepare(query, args)
	if err != nil {
		return 0, err
	}
	res, err := s.Stmt.(driver.StmtExecContext).ExecContext(context.Background(), s.args)
	if err != nil {
		return 0, failure(err)
	}
	return res.RowsAffected()
}

// script runs statements that are not worth keeping.
func (c *conn) script(text string) error {
	_, err := c.c.(driver.ExecerContext).ExecContext(context.Background(), text, nil)
	return failure(err)
}

// each calls f for every row. The end of ctx interrupts the query.
func (c *conn) each(ctx context.Context, f func(*row) error, query string, args ...driver.Value) (err error) {
	s, err := c.prepare(query, args)
	if err != nil {
		return err
	}
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, s.args)
	if err != nil {
		return failure(err)
	}
	defer func() {
		if cerr := rows.Close(); err == nil {
			err = failure(cerr)
		}
	}()
	if n := len(rows.Columns()); len(s.dest) != n {
		s.dest = make([]driver.Value, n)
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := rows.Next(s.dest); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return failure(err)
		}
		r := &row{values: s.dest}
		if err := f(r); err != nil {
			return err
		}
		if r.err != nil {
			return r.err
		}
	}
}

// one calls f for the first row and reports whether there was one.
func (c *conn) one(f func(*row) error, query string, args ...driver.Value) (found bool, err error) {
	err = c.each(context.Background(), func(r *row) error { found = true; return f(r) }, query, args...)
	return found, err
}

// row reads the columns of a result from left to right.
type row struct {
	values []driver.Value
	n      int
	err    error
}

func (r *row) next() driver.Value {
	r.n++
	return r.values[r.n-1]
}

func (r *row) text() string    { s, _ := r.next().(string); return s }
func (r *row) num() int64      { n, _ := r.next().(int64); return n }
func (r *row) flag() bool      { return r.num() != 0 }
func (r *row) blob() []byte    { b, _ := r.next().([]byte); return b }
func (r *row) rawJSON() []byte { return nonEmpty(r.text()) }
func (r *row) time() (t time.Time) {
	if us, ok := r.next().(int64); ok {
		t = time.UnixMicro(us).UTC()
	}
	return t
}

// json decodes a column into v, which stays as it is when the column is NULL.
func (r *row) json(v any) {
	s := r.text()
	if s == "" || r.err != nil {
		return
	}
	if err := json.Unmarshal([]byte(s), v); err != nil {
		r.err = fmt.Errorf("column %d of the journal's row: %w", r.n, err)
	}
}

func nonEmpty(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}
