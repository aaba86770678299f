package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
	"github.com/google/uuid"
	sqlite3 "modernc.org/sqlite/lib"
)

// onDisk opens a store whose disk can be made ill.
func onDisk(t *testing.T) (*sqlite.Store, *disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	d := newDisk(t, path)
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: path, Timeout: 10 * time.Second}.WithVFS(faultVFS))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.ask(nil)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s, d
}

// poison has changes fail of which this is true.
func poison(t *testing.T, s *sqlite.Store, of string) {
	t.Helper()
	if err := s.Change(t.Context(), func(exec func(string) error) error {
		return exec("CREATE TRIGGER poison BEFORE " + of + " BEGIN SELECT RAISE(FAIL, 'poison'); END")
	}); err != nil {
		t.Fatal(err)
	}
}

func asked(targets ...string) invalidation.Acceptance {
	at := time.Now()
	inv := invalidation.Invalidation{ID: uuid.Must(uuid.NewV7()).String(), Caller: invalidation.Caller{Kind: "api_key", Name: "helpdesk"}, CreateTime: at,
		Call: invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice"}}}}
	for _, target := range targets {
		inv.Runs = append(inv.Runs, invalidation.Run{Target: target, Kind: "kibana", Fingerprint: "f", State: invalidation.RunPending,
			ExpireTime: at.Add(time.Hour), Selector: &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}}}})
	}
	return invalidation.Acceptance{Invalidation: inv, Owner: "me", LeaseLength: time.Hour,
		Events: []invalidation.Event{{Time: at, Type: "invalidation.accepted", InvalidationID: inv.ID}}}
}

func accept(ctx context.Context, s invalidation.Store, a invalidation.Acceptance) error {
	_, _, _, err := s.Accept(ctx, a)
	return err
}

func exists(t *testing.T, s invalidation.Store, a invalidation.Acceptance) bool {
	t.Helper()
	_, err := s.Get(context.Background(), a.Invalidation.ID)
	if err != nil && !errors.Is(err, invalidation.ErrNotFound) {
		t.Fatalf("Get: %v", err)
	}
	return err == nil
}

// isLog reports whether a file is a write-ahead log.
func isLog(file string) bool { return strings.HasSuffix(file, "-wal") }

// A disk that refuses to be written makes the journal unavailable, says so, and changes nothing; when it works again, so
// does the journal.
func TestOutage(t *testing.T) {
	for _, c := range []struct {
		name string
		code int32
		// unknown: the log may have been written all the same, and cannot be overwritten.
		unknown bool
	}{
		{"Full", sqlite3.SQLITE_FULL, false},
		{"ReadOnly", sqlite3.SQLITE_READONLY, false},
		{"WriteError", sqlite3.SQLITE_IOERR | 3<<8, true},
		{"NoMemory", sqlite3.SQLITE_IOERR | 12<<8, false},
		{"Corrupt", sqlite3.SQLITE_CORRUPT, false},
		{"NotADatabase", sqlite3.SQLITE_NOTADB, false},
		{"Locked", sqlite3.SQLITE_BUSY, false},
		{"Denied", sqlite3.SQLITE_PERM, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := onDisk(t)
				before, during, after := asked("apm"), asked("apm"), asked("apm")
				if err := accept(t.Context(), s, before); err != nil {
					t.Fatal(err)
				}
				d.ask(func(op, file string) int32 {
					if op == "write" && isLog(file) {
						return c.code
					}
					return sqlite3.SQLITE_OK
				})
				for range 3 {
					err := accept(t.Context(), s, during)
					if !errors.Is(err, invalidation.ErrUnavailable) {
						t.Fatalf("Accept: %v, want ErrUnavailable", err)
					}
					if unknown := errors.Is(err, invalidation.ErrCommitUnknown); unknown != c.unknown {
						t.Errorf("Accept: %v; outcome unknown: %t", err, unknown)
					}
				}
				if err := s.Ready(t.Context()); !errors.Is(err, invalidation.ErrUnavailable) {
					t.Errorf("Ready: %v, want ErrUnavailable", err)
				}
				if !exists(t, s, before) || exists(t, s, during) {
					t.Error("reading during the outage: not what was there before")
				}
				d.ask(nil)
				if err := s.Ready(t.Context()); err != nil {
					t.Errorf("Ready after the outage: %v", err)
				}
				if err := accept(t.Context(), s, after); err != nil {
					t.Fatalf("after the outage: %v", err)
				}
				for _, left := range []invalidation.Store{s, reopen(t, s), openAt(t, restore(t, d.image(t, true)))} {
					if !exists(t, left, before) || exists(t, left, during) || !exists(t, left, after) {
						t.Error("after the outage: not exactly what was accepted")
					}
				}
				if n := len(events(t, s)); n != 2 {
					t.Errorf("%d audit events, want 2", n)
				}
			})
		})
	}
}

// A transaction that was written but could not be synced must not come back after a crash once its caller has been told
// that nothing has changed.
func TestOutage_FailedCommitDoesNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		a := asked("apm")
		exists(t, s, a) // a reader has the database open
		failed := false
		d.ask(func(op, file string) int32 {
			if op == "sync" && isLog(file) && !failed {
				failed = true
				return sqlite3.SQLITE_IOERR | 4<<8
			}
			return sqlite3.SQLITE_OK
		})
		err := accept(t.Context(), s, a)
		if !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Fatalf("Accept: %v", err)
		}
		for _, left := range []invalidation.Store{s, reopen(t, s), openAt(t, restore(t, d.image(t, true)))} {
			if exists(t, left, a) {
				t.Error("what was not accepted is there")
			}
		}
	})
}

// As long as nothing can be synced nobody can tell what a crash would leave, and nobody is told.
func TestOutage_CommitIsUnknownWhileNothingCanBeSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		d.ask(func(op, _ string) int32 {
			if op == "sync" {
				return sqlite3.SQLITE_IOERR | 4<<8
			}
			return sqlite3.SQLITE_OK
		})
		for range 3 {
			err := accept(t.Context(), s, asked("apm"))
			if !errors.Is(err, invalidation.ErrUnavailable) || !errors.Is(err, invalidation.ErrCommitUnknown) {
				t.Errorf("Accept: %v", err)
			}
		}
		d.ask(nil)
		if err := accept(t.Context(), s, asked("apm")); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// A disk that hangs holds up nobody longer than the context or the timeout allows, and every answer is true.
func TestOutage_Hanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		old := asked("apm")
		if err := accept(t.Context(), s, old); err != nil {
			t.Fatal(err)
		}
		thaw := d.freeze()
		start := time.Now()
		type answer struct {
			name  string
			after time.Duration
			err   error
		}
		answers := make(chan answer, 3)
		begun, waits, patient := asked("apm"), asked("apm"), asked("apm")
		call := func(name string, a invalidation.Acceptance, limit time.Duration) {
			ctx, cancel := context.WithCancel(context.Background())
			if limit > 0 {
				ctx, cancel = context.WithTimeout(ctx, limit)
			}
			defer cancel()
			err := accept(ctx, s, a)
			answers <- answer{name, time.Since(start), err}
		}
		go call("begun", begun, time.Second)
		synctest.Wait() // it is being committed
		go call("waits", waits, time.Second)
		go call("patient", patient, 0)
		synctest.Wait()
		if !exists(t, s, old) {
			t.Error("reading while a commit hangs")
		}
		for _, want := range []struct {
			name  string
			after time.Duration
			errs  []error
		}{
			{"waits", time.Second, []error{invalidation.ErrUnavailable, context.DeadlineExceeded}},
			{"patient", 10 * time.Second, []error{invalidation.ErrUnavailable}},
			{"begun", 11 * time.Second, []error{invalidation.ErrCommitUnknown, context.DeadlineExceeded}},
		} {
			got := <-answers
			if got.name != want.name || got.after != want.after {
				t.Errorf("%s was answered after %v, want %s after %v", got.name, got.after, want.name, want.after)
			}
			for _, err := range want.errs {
				if !errors.Is(got.err, err) {
					t.Errorf("%s: %v, want %v", got.name, got.err, err)
				}
			}
		}
		d.ask(nil)
		close(thaw)
		synctest.Wait()
		if !exists(t, s, begun) || exists(t, s, waits) || exists(t, s, patient) {
			t.Error("what was withdrawn is there, or what was begun is not")
		}
	})
}

func TestOutage_HangingReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		a := asked("apm")
		if err := accept(t.Context(), s, a); err != nil {
			t.Fatal(err)
		}
		thaw := make(chan struct{})
		d.ask(func(op, _ string) int32 {
			if op == "read" {
				<-thaw
			}
			return sqlite3.SQLITE_OK
		})
		var all sync.WaitGroup
		start := time.Now()
		for n := range 10 { // more than there are readers
			all.Go(func() {
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				want := 10 * time.Second
				if n%2 == 0 {
					want = time.Second
					ctx, cancel = context.WithTimeout(ctx, want)
				}
				defer cancel()
				_, err := s.Get(ctx, a.Invalidation.ID)
				if took := time.Since(start); !errors.Is(err, invalidation.ErrUnavailable) || took != want {
					t.Errorf("Get: %v after %v, want ErrUnavailable after %v", err, took, want)
				}
			})
		}
		all.Wait()
		d.ask(nil)
		close(thaw)
		if !exists(t, s, a) {
			t.Error("not found afterwards")
		}
	})
}

// Another program that locks the database (a shell, a backup) makes it unavailable for as long. In real time: SQLite itself
// sleeps.
func TestOutage_LockedByAnotherProgram(t *testing.T) {
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: filepath.Join(t.TempDir(), "journal.db"), Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	shell, err := sql.Open("sqlite", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	shell.SetMaxOpenConns(1)
	if _, err := shell.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	withdrawn, refused := asked("apm"), asked("apm")
	var all sync.WaitGroup
	for _, c := range []struct {
		ctx  context.Context
		a    invalidation.Acceptance
		want error
	}{{ctx, withdrawn, context.DeadlineExceeded}, {t.Context(), refused, invalidation.ErrUnavailable}} {
		all.Go(func() {
			err := accept(c.ctx, s, c.a)
			if !errors.Is(err, invalidation.ErrUnavailable) || !errors.Is(err, c.want) || errors.Is(err, invalidation.ErrCommitUnknown) {
				t.Errorf("Accept: %v, want %v", err, c.want)
			}
		})
	}
	all.Wait()
	if _, err := shell.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	a := asked("apm")
	if err := accept(t.Context(), s, a); err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	if exists(t, s, withdrawn) || exists(t, s, refused) || !exists(t, s, a) {
		t.Error("not exactly what was accepted is there")
	}
}

// Changes that wait for a commit share the next one; one that is refused does not spoil the others.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		first := asked("apm")
		thaw := make(chan struct{})
		syncs := 0 // the writer's
		d.ask(func(op, _ string) int32 {
			if op == "sync" {
				syncs++
				<-thaw
			}
			return sqlite3.SQLITE_OK
		})
		var all sync.WaitGroup
		all.Go(func() {
			if err := accept(t.Context(), s, first); err != nil {
				t.Errorf("the first: %v", err)
			}
		})
		synctest.Wait()
		before := syncs
		const callers = 60
		var as []invalidation.Acceptance
		for n := range callers {
			a := asked("apm", "kibana")
			as = append(as, a)
			all.Go(func() {
				var err error
				switch n % 4 {
				case 0:
					if _, err := s.Record(t.Context(), invalidation.Lease{InvalidationID: a.Invalidation.ID, Owner: "nobody"}, a.Invalidation.Runs[0],
						a.Events); !errors.Is(err, invalidation.ErrLeaseLost) {
						t.Errorf("Record without a lease: %v", err)
					}
				case 1: // refused by the schema, half done
					a.Invalidation.Runs[1].Target = "apm"
					if err := accept(t.Context(), s, a); err == nil || errors.Is(err, invalidation.ErrUnavailable) {
						t.Errorf("Accept of two runs at one target: %v", err)
					}
				default:
					err = accept(t.Context(), s, a)
				}
				if err != nil {
					t.Errorf("caller %d: %v", n, err)
				}
			})
		}
		synctest.Wait()
		close(thaw)
		all.Wait()
		if n := syncs - before; n != 1 {
			t.Errorf("%d changes took %d syncs, want 1", callers, n)
		}
		for n, a := range as {
			if want := n%4 > 1; exists(t, s, a) != want {
				t.Errorf("caller %d: found %t, want %t", n, !want, want)
			}
		}
		if n := len(events(t, s)); n != 1+callers/2 {
			t.Errorf("%d audit events, want %d", n, 1+callers/2)
		}
	})
}

// What was put off and cannot be written is the fault of whoever put it off, not of the change that finds it out.
func TestGroupCommit_BlamesTheRightChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		var runs []invalidation.Run
		var leases []invalidation.Lease
		for range 2 {
			a := asked("apm")
			a.Start = []int{0}
			inv, _, leased, err := s.Accept(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			runs, leases = append(runs, inv.Runs[0]), append(leases, leased...)
		}
		poison(t, s, "UPDATE ON invalidations WHEN NEW.id = '"+leases[1].InvalidationID+"'")
		thaw := d.freeze()
		var all sync.WaitGroup
		in := func(f func()) {
			all.Go(f)
			synctest.Wait()
		}
		in(func() {
			if err := accept(t.Context(), s, asked("apm")); err != nil {
				t.Error(err)
			}
		})
		for i, poisoned := range []bool{false, true} {
			run := runs[i]
			run.State, run.CompleteTime = invalidation.RunSucceeded, time.Now()
			in(func() {
				if _, err := s.Record(t.Context(), leases[i], run, nil); (err != nil) != poisoned || isUnavailable(err) {
					t.Errorf("Record, %d: %v", i, err)
				}
			})
		}
		in(func() {
			if _, err := s.Cancel(t.Context(), "nobody's", time.Now(), nil); !errors.Is(err, invalidation.ErrNotFound) {
				t.Errorf("Cancel: %v", err)
			}
		})
		close(thaw)
		all.Wait()
		for i, want := range []invalidation.State{invalidation.Succeeded, invalidation.Running} {
			if inv, err := s.Get(t.Context(), leases[i].InvalidationID); err != nil || inv.State != want || inv.Runs[0].State.Final() != want.Final() {
				t.Errorf("%d: %+v, %v", i, inv, err)
			}
		}
	})
}

// A statement that fails has written what came before; that is undone, too.
func TestGroupCommit_UndoesHalfAStatement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		poison(t, s, "INSERT ON audit WHEN NEW.type = 'poison'")
		thaw := d.freeze()
		var all sync.WaitGroup
		var want []string
		for n := range 4 {
			a := asked("apm")
			for i := range 20 {
				e := a.Events[0]
				e.Type = fmt.Sprint(n, " ", i)
				if n == 2 && i == 12 {
					e.Type = "poison"
				}
				a.Events = append(a.Events, e)
			}
			if n != 2 {
				for _, e := range a.Events {
					want = append(want, e.Type)
				}
			}
			all.Go(func() {
				if err := accept(t.Context(), s, a); (err != nil) != (n == 2) || isUnavailable(err) {
					t.Errorf("%d: %v", n, err)
				}
			})
			synctest.Wait() // the first holds up the others, which share a commit then
		}
		close(thaw)
		all.Wait()
		var got []string
		for _, e := range events(t, s) {
			got = append(got, e.Type)
		}
		if !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
}

// A call that found the one before it under its request id is the first if that one comes to nothing.
func TestGroupCommit_ReplaysNothingThatWasUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		poison(t, s, "INSERT ON audit WHEN NEW.type = 'poison'")
		thaw := d.freeze()
		var all sync.WaitGroup
		for _, what := range []string{"", "poison", "invalidation.accepted"} {
			all.Go(func() {
				a := asked("apm")
				if what != "" {
					a.RequestID, a.Digest, a.Events[0].Type, a.Start = "id", []byte("digest"), what, []int{0}
				}
				inv, replayed, leases, err := s.Accept(t.Context(), a)
				switch {
				case (err != nil) != (what == "poison"):
					t.Errorf("%q: %v", what, err)
				case err == nil && (replayed || inv.ID != a.Invalidation.ID || len(leases) != len(a.Start)):
					t.Errorf("%q: %+v, replayed: %t, leases: %v", what, inv, replayed, leases)
				}
			})
			synctest.Wait()
		}
		close(thaw)
		all.Wait()
	})
}

// When the shared commit fails, nobody is told otherwise.
func TestGroupCommit_FailsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		thaw := d.freeze()
		var all sync.WaitGroup
		all.Go(func() {
			if err := accept(t.Context(), s, asked("apm")); err != nil {
				t.Errorf("the first: %v", err)
			}
		})
		synctest.Wait()
		var as []invalidation.Acceptance
		for range 20 {
			a := asked("apm")
			as = append(as, a)
			all.Go(func() {
				if err := accept(t.Context(), s, a); !errors.Is(err, invalidation.ErrUnavailable) {
					t.Errorf("Accept: %v", err)
				}
			})
		}
		synctest.Wait()
		d.ask(func(op, file string) int32 {
			if op == "write" && isLog(file) {
				return sqlite3.SQLITE_FULL
			}
			return sqlite3.SQLITE_OK
		})
		close(thaw)
		all.Wait()
		d.ask(nil)
		for _, a := range as {
			if exists(t, s, a) {
				t.Error("what was not accepted is there")
			}
		}
		if err := accept(t.Context(), s, asked("apm")); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if got := events(t, s); len(got) != 2 {
			t.Errorf("%d audit events, want 2", len(got))
		}
	})
}

// A reader's long query ends with its context, and the reader is free again.
func TestRead_IsInterrupted(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "journal.db"))
	for range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		err := s.Query(ctx, "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, invalidation.ErrUnavailable) {
			t.Fatalf("endless query: %v", err)
		}
	}
	if _, err := s.Get(t.Context(), "x"); !errors.Is(err, invalidation.ErrNotFound) {
		t.Errorf("Get afterwards: %v", err)
	}
}

func isUnavailable(err error) bool { return errors.Is(err, invalidation.ErrUnavailable) }
