package postgres_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/audit"
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
		Trail:  trail,
		Keyed: func(t testing.TB, s invalidation.Store, keys audit.Keys) invalidation.Store {
			dsn := pgtest.Schema
			if s != nil {
				dsn = func(testing.TB) secret.String { return dsnOf(s) }
			}
			return openWith(t, postgres.Options{DSN: dsn(t), MaxConns: 6, Keys: keys})
		},
		Link: func(t testing.TB, s invalidation.Store) {
			if err := s.(*postgres.Store).Link(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		Tamper: tamper,
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

// events are those that chains do not write about themselves, in the order of their transactions, which is that of the
// transactions' numbers unless they overlapped. The trail is verified, too.
func events(t testing.TB, s invalidation.Store) []invalidation.Event {
	t.Helper()
	storetest.Verify(t, trail(t, s), audit.Verification{})
	c := connect(t, dsnOf(s))
	rows, err := c.Query(context.Background(), `SELECT time, type, caller_kind, caller_name, coalesce(invalidation_id, ''), coalesce(target, ''), data
FROM audit WHERE type NOT LIKE 'chain.%' ORDER BY age(xmin) DESC, chain, seq`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.AppendRows([]invalidation.Event(nil), rows, func(r pgx.CollectableRow) (e invalidation.Event, err error) {
		var data []byte
		err = r.Scan(&e.Time, &e.Type, &e.Caller.Kind, &e.Caller.Name, &e.InvalidationID, &e.Target, &data)
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

// trail is the audit trail as it is now.
func trail(t testing.TB, s invalidation.Store) audit.Journal {
	t.Helper()
	trail, err := postgres.OpenTrail(context.Background(), dsnOf(s))
	if err != nil {
		t.Fatal(err)
	}
	return trail
}

// tamper goes round the schema as its owner can.
func tamper(t testing.TB, s invalidation.Store, events []audit.Entry, checkpoints []audit.Checkpoint) {
	t.Helper()
	c := connect(t, dsnOf(s))
	defer c.Close(context.Background())
	text := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	b := &pgx.Batch{}
	for _, sql := range []string{"BEGIN", "ALTER TABLE audit DISABLE TRIGGER USER", "ALTER TABLE audit_checkpoints DISABLE TRIGGER USER",
		"ALTER TABLE audit DROP CONSTRAINT IF EXISTS audit_hashed", "DELETE FROM audit", "DELETE FROM audit_checkpoints"} {
		b.Queue(sql)
	}
	for _, e := range events {
		b.Queue("INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, invalidation_id, target, data, prev_hash, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::json, $10, $11)",
			e.Chain, e.Seq, e.Time, e.Type, e.Caller.Kind, e.Caller.Name, text(e.InvalidationID), text(e.Target), text(string(e.Data)), e.PrevHash, e.Hash)
	}
	for _, c := range checkpoints {
		b.Queue("INSERT INTO audit_checkpoints (chain, seq, hash, chain_key, time, key, mac) VALUES ($1, $2, $3, $4, $5, $6, $7)",
			c.Chain, c.Seq, c.Hash[:], c.ChainKey, c.Time, c.Key, c.MAC[:])
	}
	b.Queue("COMMIT")
	if err := c.SendBatch(context.Background(), b).Close(); err != nil {
		t.Fatal(err)
	}
}
