package sqlite_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
		Pass:   func(_ testing.TB, d time.Duration) { time.Sleep(d) },
		Lease:  30 * time.Second,
		Around: synctest.Test,
	})
}

func openAt(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: path})
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

func events(t testing.TB, s invalidation.Store) []invalidation.Event {
	t.Helper()
	var all []invalidation.Event
	var chain string
	var seq int64
	for {
		page, err := s.(*sqlite.Store).Events(context.Background(), chain, seq, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			if e.Chain == chain && e.Seq != seq+1 || e.Chain != chain && e.Seq != 1 {
				t.Errorf("event %d of chain %s comes after %d of %s", e.Seq, e.Chain, seq, chain)
			}
			all = append(all, e.Event)
			chain, seq = e.Chain, e.Seq
		}
		if len(page) < 100 {
			return all
		}
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
