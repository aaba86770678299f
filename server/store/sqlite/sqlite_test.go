package sqlite_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
	"github.com/endsession/endsession/server/store/storetest"
	sqlite3 "modernc.org/sqlite/lib"
)

// TestLaws runs in virtual time: the clock of this store is the process's.
func TestLaws(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:   func(t testing.TB) invalidation.Store { return openAt(t, filepath.Join(t.TempDir(), "journal.db")) },
		Reopen: func(t testing.TB, s invalidation.Store) invalidation.Store { return reopen(t, s.(*sqlite.Store)) },
		Crash:  crash,
		Events: events,
		Trail:  trail,
		Keyed:  keyed,
		Tamper: tamper,
		Pass:   func(_ testing.TB, d time.Duration) { time.Sleep(d) },
		Lease:  30 * time.Second,
		Around: synctest.Test,
	})
}

func openAt(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	return openWith(t, sqlite.Options{Path: path})
}

func openWith(t testing.TB, o sqlite.Options) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// events are those that chains do not write about themselves. The trail is verified, too.
func events(t testing.TB, s invalidation.Store) []invalidation.Event {
	t.Helper()
	storetest.Verify(t, trail(t, s), audit.Verification{})
	all := trail(t, s).(*sqlite.Trail)
	defer all.Close()
	page, err := all.Events(context.Background(), "", 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	var events []invalidation.Event
	for _, e := range page {
		if !strings.HasPrefix(e.Type, "chain.") {
			events = append(events, e.Event)
		}
	}
	return events
}

// trail is the audit trail as it is now.
func trail(t testing.TB, s invalidation.Store) audit.Journal {
	t.Helper()
	trail, err := sqlite.OpenTrail(s.(*sqlite.Store).Path())
	if err != nil {
		t.Fatal(err)
	}
	return trail
}

// keyed opens a store with keys, after the one that had the journal.
func keyed(t testing.TB, s invalidation.Store, keys audit.Keys) invalidation.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if s != nil {
		path = s.(*sqlite.Store).Path()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return openWith(t, sqlite.Options{Path: path, Keys: keys})
}

// tamper goes round the schema by removing its triggers and leaving out its checks.
func tamper(t testing.TB, s invalidation.Store, events []audit.Entry, checkpoints []audit.Checkpoint) {
	t.Helper()
	db, err := sql.Open("sqlite", s.(*sqlite.Store).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	must(t, db, "PRAGMA ignore_check_constraints = ON")
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := tx.Exec(query, args...); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	for _, trigger := range []string{"audit_update", "audit_delete", "audit_checkpoints_insert", "audit_checkpoints_update", "audit_checkpoints_delete"} {
		exec("DROP TRIGGER IF EXISTS " + trigger)
	}
	exec("DELETE FROM audit")
	exec("DELETE FROM audit_checkpoints")
	text := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	for _, e := range events {
		exec("INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, invalidation_id, target, data, prev_hash, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			e.Chain, e.Seq, e.Time.UnixMicro(), e.Type, e.Caller.Kind, e.Caller.Name, text(e.InvalidationID), text(e.Target), text(string(e.Data)), e.PrevHash, e.Hash)
	}
	for _, c := range checkpoints {
		exec("INSERT INTO audit_checkpoints (chain, seq, hash, chain_key, time, key, mac) VALUES (?, ?, ?, ?, ?, ?, ?)",
			c.Chain, c.Seq, c.Hash[:], c.ChainKey, c.Time.UnixMicro(), c.Key, c.MAC[:])
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// reopen opens what a killed process would leave: copies of the files, as they are now.
func reopen(t testing.TB, s *sqlite.Store) *sqlite.Store {
	t.Helper()
	d := &disk{base: s.Path()}
	return openAt(t, restore(t, d.image(t, false)))
}

// restore writes files into a directory of their own, and returns the database's path.
func restore(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "journal.db")
}

// crash ends the process, and the machine, before each of the changes that SQLite makes to its files, and after the last.
func crash(t testing.TB, before func(invalidation.Store), change func(invalidation.Store) error, after func(s invalidation.Store, returned bool)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	d := newDisk(t, path)
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: path}.WithVFS(faultVFS))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before(s)
	var mu sync.Mutex
	var images []map[string][]byte
	take := func() {
		mu.Lock()
		defer mu.Unlock()
		images = append(images, d.image(t, false), d.image(t, true))
	}
	d.ask(func(op, _ string) int32 {
		if op != "read" {
			take()
		}
		return sqlite3.SQLITE_OK
	})
	if err := change(s); err != nil {
		t.Fatal(err)
	}
	under := len(images)
	take()
	d.ask(nil)
	for n, image := range images {
		left := openAt(t, restore(t, image))
		after(left, n >= under)
		if err := left.Close(); err != nil {
			t.Error(err)
		}
	}
}
