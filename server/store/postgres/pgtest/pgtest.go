package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/jackc/pgx/v5"
)

// shared is the test binary's server, started by the first test that asks for it.
var shared struct {
	sync.Mutex
	cluster *Cluster
	err     error
}

// Main runs a test binary's tests and then ends the server they share:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	if shared.cluster != nil {
		shared.cluster.Remove()
	}
	os.Exit(code)
}

// Shared is the server that the tests of a binary share: fast, and never stopped.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil && shared.err == nil {
		shared.cluster, shared.err = Start(Fast())
	}
	need(t, shared.err)
	return shared.cluster
}

// New is a server for one test, which may do with it what it likes.
func New(t testing.TB, s Settings) *Cluster {
	t.Helper()
	c, err := Start(s)
	need(t, err)
	t.Cleanup(c.Remove)
	return c
}

// need skips where there is no PostgreSQL; in CI that is a failure.
func need(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, ErrMissing) && os.Getenv("CI") != "true":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

var schemas atomic.Int64

// Schema makes an empty schema for one test in the shared server, and returns the DSN that leads there.
func Schema(t testing.TB) secret.String {
	t.Helper()
	c := Shared(t)
	return c.DSN(c.Schema(t))
}

// Schema makes an empty schema for one test, and returns its name.
func (c *Cluster) Schema(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", schemas.Add(1))
	c.Exec(t, "CREATE SCHEMA "+name)
	t.Cleanup(func() {
		// Best effort: the test may have killed the server, and all of it goes at the end.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, c.DSN("public").Reveal())
		if err != nil {
			return
		}
		defer conn.Close(ctx)
		_, _ = conn.Exec(ctx, "SET client_min_messages = warning; SET lock_timeout = '2s'; DROP SCHEMA "+name+" CASCADE")
	})
	return name
}

// Exec runs SQL as the server's owner.
func (c *Cluster) Exec(t testing.TB, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.DSN("public").Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}
