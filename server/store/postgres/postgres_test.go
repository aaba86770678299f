package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/endsession/endsession/server/store/storetest"
	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// journals are the DSNs of the stores that tests have open.
var journals sync.Map // *postgres.Store → secret.String

func TestLaws(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:   func(t testing.TB) invalidation.Store { return open(t, pgtest.Schema(t)) },
		Second: func(t testing.TB, s invalidation.Store) invalidation.Store { return open(t, dsnOf(s)) },
		Reopen: func(t testing.TB, s invalidation.Store) invalidation.Store { return open(t, dsnOf(s)) },
		Crash:  crash,
		Events: events,
		Pass:   pass,
		Lease:  2 * time.Second,
	})
}

func open(t testing.TB, dsn secret.String) *postgres.Store {
	t.Helper()
	return openWith(t, postgres.Options{DSN: dsn, MaxConns: 6})
}

func openWith(t testing.TB, o postgres.Options) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	journals.Store(s, o.DSN)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func dsnOf(s invalidation.Store) secret.String {
	dsn, _ := journals.Load(s)
	return dsn.(secret.String)
}

// connect is a way into a journal that goes round the store.
func connect(t testing.TB, dsn secret.String) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// pass waits on the server's clock: it is the one that leases end by.
func pass(t testing.TB, d time.Duration) {
	t.Helper()
	c := connect(t, pgtest.Shared(t).DSN("public"))
	if _, err := c.Exec(context.Background(), `SELECT pg_sleep($1)`, (d + time.Millisecond).Seconds()); err != nil {
		t.Fatal(err)
	}
}

// events are in the order of their transactions, which is that of the transactions' numbers unless they overlapped. It also
// checks that every chain is without gaps.
func events(t testing.TB, s invalidation.Store) []invalidation.Event {
	t.Helper()
	c := connect(t, dsnOf(s))
	rows, err := c.Query(context.Background(), `SELECT chain, seq, time, type, caller_kind, caller_name, coalesce(invalidation_id, ''), coalesce(target, ''), data
FROM audit ORDER BY age(xmin) DESC, chain, seq`)
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]int64{}
	list, err := pgx.AppendRows([]invalidation.Event(nil), rows, func(r pgx.CollectableRow) (e invalidation.Event, err error) {
		var chain string
		var seq int64
		var data []byte
		err = r.Scan(&chain, &seq, &e.Time, &e.Type, &e.Caller.Kind, &e.Caller.Name, &e.InvalidationID, &e.Target, &data)
		if seq != last[chain]+1 {
			err = fmt.Errorf("event %d of chain %s comes after %d", seq, chain, last[chain])
		}
		last[chain] = seq
		e.Time = e.Time.UTC()
		if data != nil {
			e.Data = json.RawMessage(data)
		}
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
