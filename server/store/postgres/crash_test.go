package postgres_test

import (
	"sync"
	"testing"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// crashes is a server of its own, for one test at a time: it is frozen and copied.
var crashes sync.Mutex

// crash looks at what would be left if the server, and the client with it, died: before each piece that the client sends,
// before each piece that the server answers, and after the last.
func crash(t testing.TB, before func(invalidation.Store), change func(invalidation.Store) error, after func(s invalidation.Store, returned bool)) {
	t.Helper()
	crashes.Lock()
	defer crashes.Unlock()
	c := pgtest.New(t, pgtest.Fast())
	schema := c.Schema(t)
	p := pgtest.NewProxy(t, c.Addr())
	s := openWith(t, postgres.Options{DSN: c.DSNAt(p.Addr(), schema), MaxConns: 1})
	before(s)

	var mu sync.Mutex
	var left []*pgtest.Cluster
	var flushed string
	conn := connect(t, c.DSN(schema))
	take := func() {
		mu.Lock()
		defer mu.Unlock()
		// If no more of the log has reached the disk than the last time, a crash leaves the same as then.
		last := flushed
		if err := conn.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn()::text`).Scan(&flushed); err != nil {
			t.Error(err)
		}
		if last == flushed {
			return
		}
		x, err := c.Copy()
		if err != nil {
			t.Error(err)
			return
		}
		left = append(left, x)
		t.Cleanup(x.Remove)
	}
	watch := func([]byte) pgtest.Verdict {
		take()
		return pgtest.Pass
	}
	p.Hook(watch, watch)
	if err := change(s); err != nil {
		t.Fatal(err)
	}
	p.Hook(nil, nil)
	mu.Lock()
	under := len(left)
	flushed = ""
	mu.Unlock()
	take()
	for n, x := range left {
		if err := x.Restart(); err != nil {
			t.Fatal(err)
		}
		found := openWith(t, postgres.Options{DSN: x.DSN(schema), MaxConns: 1})
		after(found, n >= under)
		if err := found.Close(); err != nil {
			t.Error(err)
		}
		x.Remove()
	}
	t.Logf("%d crashes", len(left))
}
