package sqlite_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// rawJournal returns a journal with an invalidation whose run at target "x" is in each of the states, for raw SQL.
func rawJournal(t *testing.T) *sql.DB {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openAt(t, path)
	if err := accept(t.Context(), s, asked("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path+"?_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	for _, state := range invalidation.RunStates {
		inv, unfinished, complete := "RUNNING", 1, any(nil)
		if state.Final() {
			inv, unfinished, complete = "FAILED", 0, 5
		}
		attempts, start := 1, any(3)
		if state == invalidation.RunPending {
			attempts, start = 0, nil
		}
		must(t, db, `INSERT INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time, caller_kind, caller_name, selector, call)
VALUES (?, ?, 1, ?, 0, 0, 1, ?, 'k', 'n', '{}', '{}')`, string(state), inv, unfinished, complete)
		must(t, db, `INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time, complete_time, lease_token,
  counted, count, count_is_minimum, sessions_truncated) VALUES (?, 0, 'x', 'k', 'f', 0, ?, 0, ?, 9, ?, ?, 0, 0, 0, 0, 0)`, string(state), string(state), attempts, start, complete)
	}
	return db
}

func must(t testing.TB, db *sql.DB, q string, args ...any) {
	t.Helper()
	if _, err := db.Exec(q, args...); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

// try executes a statement and takes it back.
func try(t *testing.T, db *sql.DB, q string, args ...any) error {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	res, err := tx.Exec(q, args...)
	if err == nil {
		if n, _ := res.RowsAffected(); n == 0 {
			t.Errorf("%s: changes nothing", q)
		}
	}
	if rerr := tx.Rollback(); rerr != nil {
		t.Errorf("%s: take back: %v", q, rerr)
	}
	return err
}

// No way leads around the table of the runs' states, not even SQL.
func TestSchema_RunTransitions(t *testing.T) {
	db := rawJournal(t)
	for _, from := range invalidation.RunStates {
		for _, to := range invalidation.RunStates {
			complete := any(nil)
			if to.Final() {
				complete = 7
			}
			attempts, start := 1, any(3)
			if to == invalidation.RunPending {
				attempts, start = 0, nil
			}
			err := try(t, db, `UPDATE runs SET state = ?, complete_time = ?, attempts = ?, start_time = ? WHERE invalidation_id = ?`,
				string(to), complete, attempts, start, string(from))
			if allowed := from.CanBecome(to); allowed != (err == nil) {
				t.Errorf("%s to %s: %v, want allowed %t", from, to, err, allowed)
			}
			var e *driver.Error
			if err != nil && (!errors.As(err, &e) || e.Code() != sqlite3.SQLITE_CONSTRAINT_TRIGGER) {
				t.Errorf("%s to %s was refused for another reason: %v", from, to, err)
			}
		}
	}
}

func TestSchema_Refuses(t *testing.T) {
	db := rawJournal(t)
	must(t, db, `INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 1, 1, 't', 'k', 'n', zeroblob(32), zeroblob(32))`)
	must(t, db, `UPDATE runs SET open = 1, lease_owner = 'o', lease_token = 4, lease_until = 8, lease_from = 'RETRYING' WHERE invalidation_id = 'RUNNING'`)
	must(t, db, `INSERT INTO labels VALUES ('k', 'v', 'RUNNING')`)
	must(t, db, `INSERT INTO invalidations SELECT 'alone', state, 1, unfinished, 0, 0, 1, NULL, 'k', 'n', NULL, NULL, NULL, NULL, '{}', '{}', NULL FROM invalidations WHERE id = 'PENDING'`)
	for seq := 1; seq <= 6; seq++ {
		must(t, db, fmt.Sprintf(`INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('x', %d, 1, 't', 'k', 'n', zeroblob(32), zeroblob(32))`, seq))
	}
	const checkpoint = `INSERT INTO audit_checkpoints (chain, seq, hash, chain_key, time, key, mac) VALUES `
	must(t, db, checkpoint+`('x', 5, zeroblob(32), '', 1, '', zeroblob(32))`)
	run := func(set, id string) string { return "UPDATE runs SET " + set + " WHERE invalidation_id = '" + id + "'" }
	inv := func(set, id string) string {
		return "UPDATE invalidations SET revision = revision + 1, " + set + " WHERE id = '" + id + "'"
	}
	const newInv = `INSERT INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time, caller_kind, caller_name, selector, call, request_id, request_digest) VALUES `
	const newRun = `INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, lease_token, counted, count, count_is_minimum, sessions_truncated) VALUES `
	for _, c := range []struct {
		name      string
		bad, good string // good is what is nearest to it and allowed
	}{
		{"a final run changes", run("count_is_minimum = 1", "SUCCEEDED"), run("count_is_minimum = 1", "RUNNING")},
		{"a final run is leased", run("lease_owner = 'o', lease_until = 1, lease_from = 'KEPT'", "FAILED"), run("lease_owner = 'o', lease_until = 1, lease_from = 'KEPT'", "RETRYING")},
		{"final without an end", run("state = 'FAILED', open = 0, lease_owner = NULL, lease_until = NULL, lease_from = NULL", "RUNNING"),
			run("state = 'FAILED', complete_time = 9, open = 0, lease_owner = NULL, lease_until = NULL, lease_from = NULL", "RUNNING")},
		{"an end without being final", run("complete_time = 9", "PENDING"), run("next_attempt_time = 9", "PENDING")},
		{"final and leased", run("state = 'FAILED', complete_time = 9, open = 0", "RUNNING"), run("open = 0", "RUNNING")},
		{"final and open", run("state = 'FAILED', complete_time = 9, lease_owner = NULL, lease_until = NULL, lease_from = NULL", "RUNNING"),
			run("lease_owner = NULL, lease_until = NULL, lease_from = NULL", "RUNNING")},
		{"final and due", run("state = 'FAILED', complete_time = 9, next_attempt_time = 9", "PENDING"), run("state = 'FAILED', complete_time = 9", "PENDING")},
		{"pending and open", run("open = 1", "PENDING"), run("open = 0", "PENDING")},
		{"pending after an attempt", run("attempts = 1", "PENDING"), run("attempts = 0", "PENDING")},
		{"retrying before an attempt", run("attempts = 0", "RETRYING"), run("attempts = 5", "RETRYING")},
		{"back to pending without a claim to take back", run("state = 'PENDING', attempts = 0, start_time = NULL, open = 0, lease_owner = NULL, lease_until = NULL, lease_from = NULL", "RUNNING"),
			run("state = 'RETRYING', open = 0, lease_owner = NULL, lease_until = NULL, lease_from = NULL", "RUNNING")},
		{"an unknown run state", run("state = 'DONE'", "PENDING"), run("state = 'CANCELLED', complete_time = 1", "PENDING")},
		{"half a lease", run("lease_until = NULL", "RUNNING"), run("lease_until = 9", "RUNNING")},
		{"a lease without an owner", run("lease_owner = NULL", "RUNNING"), run("lease_owner = 'p'", "RUNNING")},
		{"a lease without a claim", run("lease_from = NULL", "RUNNING"), run("lease_from = 'KEPT'", "RUNNING")},
		{"an owner without a lease", run("lease_owner = 'o'", "RETRYING"), run("lease_owner = 'o', lease_until = 1, lease_from = 'KEPT'", "RETRYING")},
		{"a claim without a lease", run("lease_from = 'KEPT'", "RETRYING"), run("lease_owner = 'o', lease_until = 1, lease_from = 'KEPT'", "RETRYING")},
		{"the end of no lease", run("lease_until = 1", "RETRYING"), run("lease_owner = 'o', lease_until = 1, lease_from = 'KEPT'", "RETRYING")},
		{"a smaller token", run("lease_token = 3", "RUNNING"), run("lease_token = 5", "RUNNING")},
		{"an unknown claim", run("lease_from = 'DONE'", "RUNNING"), run("lease_from = 'LOST'", "RUNNING")},
		{"a negative count", run("counted = 1, count = -1", "RUNNING"), run("counted = 1, count = 0", "RUNNING")},
		{"a count that is not known", run("count = 1", "RUNNING"), run("counted = 1, count = 1", "RUNNING")},
		{"an unknown verification", run("verification = 'BELIEVED'", "RUNNING"), run("verification = 'UNVERIFIABLE'", "RUNNING")},
		{"open twice", run("open = 2", "RUNNING"), run("open = 0", "RUNNING")},
		{"counted twice", run("counted = 2", "RETRYING"), run("counted = 1", "RETRYING")},
		{"counted less than not", run("counted = -1", "RETRYING"), run("counted = 0", "RETRYING")},
		{"a minimum twice", run("count_is_minimum = 2", "RETRYING"), run("count_is_minimum = 1", "RETRYING")},
		{"truncated twice", run("sessions_truncated = 2", "RETRYING"), run("sessions_truncated = 1", "RETRYING")},
		{"an unknown priority", newRun + "('PENDING', 1, 'y', 'k', 'f', 2, 'PENDING', 0, 0, 9, 0, 0, 0, 0, 0)", newRun + "('PENDING', 1, 'y', 'k', 'f', 1, 'PENDING', 0, 0, 9, 0, 0, 0, 0, 0)"},
		{"running before an attempt", run("attempts = 0", "RUNNING"), run("attempts = 2", "RUNNING")},
		{"running without a beginning", run("start_time = NULL", "RUNNING"), run("start_time = 4", "RUNNING")},
		{"pending after a beginning", run("start_time = 4", "PENDING"), run("start_time = NULL", "PENDING")},
		{"retrying without a beginning", run("start_time = NULL", "RETRYING"), run("start_time = 4", "RETRYING")},
		{"retrying and open", run("open = 1", "RETRYING"), run("open = 0", "RETRYING")},
		{"another target", run("target = 'y'", "PENDING"), run("operation = 'y'", "PENDING")},
		{"other facts of the caller", inv("facts = '{}'", "RUNNING"), inv("unfinished = 2", "RUNNING")},
		{"another fingerprint", run("fingerprint = 'y'", "PENDING"), run("operation = 'y'", "PENDING")},
		{"another expiry", run("expire_time = 99", "PENDING"), run("next_attempt_time = 99", "PENDING")},
		{"a text for a number", run("attempts = 'many'", "RUNNING"), run("attempts = 3", "RUNNING")},
		{"two runs at a target", `INSERT INTO runs SELECT invalidation_id, 1, target, kind, fingerprint, priority, state, open, attempts, next_attempt_time, expire_time, start_time, complete_time, lease_owner, lease_token, lease_until, lease_from, counted, count, count_is_minimum, verification, sessions_truncated, operation, error, retry, resume, covered, warnings, sessions, selector, terms FROM runs WHERE invalidation_id = 'PENDING'`,
			`INSERT INTO runs SELECT invalidation_id, 1, 'y', kind, fingerprint, priority, state, open, attempts, next_attempt_time, expire_time, start_time, complete_time, lease_owner, lease_token, lease_until, lease_from, counted, count, count_is_minimum, verification, sessions_truncated, operation, error, retry, resume, covered, warnings, sessions, selector, terms FROM runs WHERE invalidation_id = 'PENDING'`},
		{"a run of nothing", `INSERT INTO runs SELECT 'nothing', 1, 'y', kind, fingerprint, priority, state, open, attempts, next_attempt_time, expire_time, start_time, complete_time, lease_owner, lease_token, lease_until, lease_from, counted, count, count_is_minimum, verification, sessions_truncated, operation, error, retry, resume, covered, warnings, sessions, selector, terms FROM runs WHERE invalidation_id = 'PENDING'`, ""},
		{"an unfinished run goes", "DELETE FROM runs WHERE invalidation_id = 'RUNNING'", "DELETE FROM runs WHERE invalidation_id = 'CANCELLED'"},

		{"a final invalidation changes", inv("state = 'SUCCEEDED'", "SUCCEEDED"), ""},
		{"an unfinished invalidation goes", "DELETE FROM invalidations WHERE id = 'alone'", "DELETE FROM invalidations WHERE id = 'SUCCEEDED'"},
		{"final with unfinished runs", inv("state = 'FAILED', complete_time = 9", "RUNNING"), inv("state = 'FAILED', complete_time = 9, unfinished = 0", "RUNNING")},
		{"final without an end", inv("state = 'FAILED', unfinished = 0", "RUNNING"), inv("state = 'FAILED', complete_time = 9, unfinished = 0", "RUNNING")},
		{"running with an end", inv("complete_time = 9", "RUNNING"), inv("unfinished = 2", "RUNNING")},
		{"running with nothing unfinished", inv("unfinished = 0", "RUNNING"), inv("unfinished = 2", "RUNNING")},
		{"an unknown state", inv("state = 'DONE', complete_time = 9, unfinished = 0", "RUNNING"), inv("state = 'CANCELLED', complete_time = 9, unfinished = 0", "RUNNING")},
		{"the revision stays", "UPDATE invalidations SET unfinished = 2 WHERE id = 'RUNNING'", inv("unfinished = 2", "RUNNING")},
		{"another selector", inv("selector = '{}'", "RUNNING"), inv("unfinished = 2", "RUNNING")},
		{"another caller", inv("caller_name = 'x'", "RUNNING"), inv("unfinished = 2", "RUNNING")},
		{"the first revision is 2", newInv + "('a', 'RUNNING', 2, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', NULL, NULL)", newInv + "('a', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', NULL, NULL)"},
		{"a request without a digest", newInv + "('a', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', 'r', NULL)", newInv + "('a', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', 'r', x'00')"},
		{"a request twice", newInv + "('a', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', 'r', x'00'), ('b', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', 'r', x'00')",
			newInv + "('a', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'k', 'n', '{}', '{}', 'r', x'00'), ('b', 'RUNNING', 1, 1, 0, 0, 1, NULL, 'l', 'n', '{}', '{}', 'r', x'00')"},
		{"a label of nothing", "INSERT INTO labels VALUES ('k', 'v', 'nothing')", "INSERT INTO labels VALUES ('k', 'v', 'PENDING')"},

		{"an event changes", "UPDATE audit SET type = 'u'", ""},
		{"an event gets a hash", "UPDATE audit SET hash = x'00'", ""},
		{"an event goes", "DELETE FROM audit", ""},
		{"an event twice", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 1, 1, 't', 'k', 'n', zeroblob(32), zeroblob(32))",
			"INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 2, 1, 't', 'k', 'n', zeroblob(32), zeroblob(32))"},
		{"an event at 0", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 0, 1, 't', 'k', 'n', zeroblob(32), zeroblob(32))",
			"INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 2, 1, 't', 'k', 'n', zeroblob(32), zeroblob(32))"},
		{"an event without a hash", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash) VALUES ('c', 9, 1, 't', 'k', 'n', zeroblob(32))", ""},
		{"an event without the hash before", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, hash) VALUES ('c', 9, 1, 't', 'k', 'n', zeroblob(32))", ""},
		{"a checkpoint of no event", checkpoint + "('d', 1, zeroblob(32), '', 1, '', zeroblob(32))", checkpoint + "('c', 1, zeroblob(32), '', 1, '', zeroblob(32))"},
		{"a checkpoint with another hash", checkpoint + "('c', 1, randomblob(32), '', 1, '', zeroblob(32))", checkpoint + "('c', 1, zeroblob(32), '', 1, '', zeroblob(32))"},
		{"a checkpoint goes back", "UPDATE audit_checkpoints SET seq = 4", "UPDATE audit_checkpoints SET seq = 6"},
		{"a checkpoint is written again", "UPDATE audit_checkpoints SET mac = randomblob(32)", "UPDATE audit_checkpoints SET seq = 6"},
		{"a checkpoint goes on to nothing", "UPDATE audit_checkpoints SET seq = 7", "UPDATE audit_checkpoints SET seq = 6"},
		{"a checkpoint goes", "DELETE FROM audit_checkpoints", ""},
		{"an event goes that the checkpoint does not reach", "DELETE FROM audit WHERE chain = 'x' AND seq = 6", "DELETE FROM audit WHERE chain = 'x' AND seq <= 5"},
	} {
		var e *driver.Error
		if err := try(t, db, c.bad); !errors.As(err, &e) || e.Code()&0xff != sqlite3.SQLITE_CONSTRAINT {
			t.Errorf("%s: %v, want a constraint", c.name, err)
		}
		if c.good != "" {
			if err := try(t, db, c.good); err != nil {
				t.Errorf("%s: what is allowed was refused: %v", c.name, err)
			}
		}
	}
}

// What the schema refuses is a bug above, and reported as one.
func TestSchema_RefusalIsAnIllegalTransition(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "journal.db"))
	if err := accept(t.Context(), s, asked("apm")); err != nil {
		t.Fatal(err)
	}
	err := s.Change(t.Context(), func(exec func(string) error) error { return exec("UPDATE runs SET state = 'RETRYING'") })
	if !errors.Is(err, invalidation.ErrIllegalTransition) || errors.Is(err, invalidation.ErrUnavailable) {
		t.Errorf("error %v, want ErrIllegalTransition", err)
	}
}

// Every query finds its rows by an index, whatever the journal holds; none that is asked often builds anything on the side.
func TestQueryPlans(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "journal.db"))
	// Queries that look at all rows of a table that stays small, or of an index that holds only what is unfinished.
	// (u is what the counting of such an index comes to: one row a target; c are the chains that were found one after the
	// other, p their checkpoints.)
	whole := map[string][]string{
		"select pauses":     {"SCAN target_pauses"},
		"select unfinished": {"SCAN runs USING INDEX runs_due", "SCAN u"},
		"end leases":        {"SCAN runs USING INDEX runs_due"},
		"select tips":       {"SCAN c", "SCAN p"},
		"select old chains": {"SCAN c"},
		"select last link":  {"SCAN audit USING INDEX audit_links"},
	}
	check := func(name, statement string, mayBuild bool) {
		plan, ops, err := sqlite.Explain(s.Path(), statement)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, statement)
			return
		}
		for _, line := range plan {
			if strings.HasPrefix(line, "SCAN") && line != "SCAN CONSTANT ROW" && !slices.Contains(whole[name], line) {
				t.Errorf("%s: %s\n%s", name, line, statement)
			}
			if strings.Contains(line, "TEMP B-TREE") && !mayBuild {
				t.Errorf("%s: %s\n%s", name, line, statement)
			}
		}
		if slices.Contains(ops, "OpenEphemeral") && !mayBuild {
			t.Errorf("%s: builds a temporary table\n%s", name, statement)
		}
	}
	rare := []string{"delete completed", "end leases", "select tips", "select old chains", "delete prefix", "hasten runs"}
	for name, statement := range sqlite.Statements {
		check(name, statement, slices.Contains(rare, name))
	}
	caller := &invalidation.Caller{Kind: "k", Name: "n"}
	at := time.Now()
	set := []func(*invalidation.Query){
		func(q *invalidation.Query) { q.State = invalidation.Failed },
		func(q *invalidation.Query) { q.State = invalidation.Succeeded },
		func(q *invalidation.Query) { q.Target = "t" },
		func(q *invalidation.Query) { q.Caller = "c" },
		func(q *invalidation.Query) { q.OnlyOf = caller },
		func(q *invalidation.Query) { q.UserID = "u" },
		func(q *invalidation.Query) { q.Labels = map[string]string{"a": "b", "c": "d"} },
		func(q *invalidation.Query) { q.Unfinished = true },
		func(q *invalidation.Query) { q.From = at },
		func(q *invalidation.Query) { q.To = at },
		func(q *invalidation.Query) { q.Before = "b" },
	}
	for filters := range 1 << len(set) {
		q := invalidation.Query{Limit: 10}
		var used []int
		for n, f := range set {
			if filters&(1<<n) != 0 {
				f(&q)
				used = append(used, n)
			}
		}
		onlyTime := q.State == "" && q.Target == "" && q.Caller == "" && q.OnlyOf == nil && q.UserID == "" && q.Labels == nil && !q.Unfinished
		check(fmt.Sprintf("list %v", used), sqlite.List(q), onlyTime && (!q.From.IsZero() || !q.To.IsZero()))
	}
}

// upTo are the first migrations.
func upTo(t *testing.T, version int) fs.FS {
	t.Helper()
	names, err := fs.Glob(sqlite.MigrationFiles, "migrations/*.sql")
	if err != nil || len(names) < version {
		t.Fatal(names, err)
	}
	earlier := fstest.MapFS{}
	for _, name := range names[:version] {
		text, err := fs.ReadFile(sqlite.MigrationFiles, name)
		if err != nil {
			t.Fatal(err)
		}
		earlier[name] = &fstest.MapFile{Data: text}
	}
	return earlier
}

// From every version there has been, a journal reaches the newest, and is then the same as a new one.
func TestMigrations(t *testing.T) {
	fresh := openAt(t, filepath.Join(t.TempDir(), "journal.db"))
	want, err := sqlite.Schema(fresh.Path())
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.Glob(sqlite.MigrationFiles, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for version := range names {
		path := emptyFile(t)
		if err := sqlite.Migrate(path, upTo(t, version)); err != nil {
			t.Fatalf("to version %d: %v", version, err)
		}
		s := openAt(t, path)
		if got, err := sqlite.Schema(path); err != nil || !slices.Equal(got, want) {
			t.Errorf("from version %d: %v\n got %q\nwant %q", version, err, got, want)
		}
		if err := accept(t.Context(), s, asked("apm")); err != nil {
			t.Errorf("from version %d: %v", version, err)
		}
	}
}

// What an earlier version has written stays as it is, and satisfies what the newest demands. Only events from before there
// were chains do not: they have no hash, and stay without.
func TestMigrations_KeepRows(t *testing.T) {
	path := emptyFile(t)
	migrate := func(files fs.FS) {
		t.Helper()
		if err := sqlite.Migrate(path, files); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *sql.DB {
		db, err := sql.Open("sqlite", path+"?_pragma=foreign_keys(1)")
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	migrate(upTo(t, 2))
	db := open()
	must(t, db, `INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name) VALUES ('a', 1, 1, 'early', 'k', 'n')`)
	db.Close()
	migrate(upTo(t, 3))
	db = open()
	must(t, db, `INSERT INTO audit SELECT 'b', column1, column1, column2, 'k', 'n', 'i', 't', '{"n":1}', zeroblob(32), zeroblob(32) FROM (VALUES (4, 'chain.linked'), (5, 'run.failed'))`)
	must(t, db, `INSERT INTO audit_checkpoints VALUES ('b', 4, zeroblob(32), '', 1, '', zeroblob(32))`)
	must(t, db, `INSERT INTO target_pauses VALUES ('storage', 'k', 'n', 'moved', 5)`)
	for _, state := range invalidation.RunStates {
		inv, unfinished, complete, due := "RUNNING", 1, any(nil), any(11)
		if state.Final() {
			inv, unfinished, complete, due = map[invalidation.RunState]string{invalidation.RunSucceeded: "PARTIALLY_SUCCEEDED", invalidation.RunCancelled: "CANCELLED"}[state], 0, 5, nil
			if inv == "" {
				inv = "FAILED"
			}
		}
		attempts, start := 2, any(3)
		if state == invalidation.RunPending {
			attempts, start = 0, nil
		}
		must(t, db, `INSERT INTO invalidations VALUES (?1, ?2, 1, ?3, 1, 1, 1, ?4, 'k', 'n', 'request ' || ?1, x'0102', 'alice', 'before', '{"all":true}', '{"reason":"left"}', '{"groups":["g"]}')`,
			string(state), inv, unfinished, complete)
		must(t, db, `INSERT INTO labels VALUES ('job', '7', ?)`, string(state))
		for idx, open := range []bool{false, state == invalidation.RunRunning} {
			owner, until, from, next := any(nil), any(nil), any(nil), due
			if open {
				owner, until, from, next = "me", 12, "PENDING", nil
			}
			must(t, db, `INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, next_attempt_time, expire_time, start_time,
  complete_time, lease_owner, lease_token, lease_until, lease_from, counted, count, count_is_minimum, verification, sessions_truncated, operation, error, retry, resume,
  covered, warnings, sessions, selector, terms)
VALUES (?, ?, 'target ' || ?2, 'kibana', 'f', 1, ?, ?, ?, ?, 99, ?, ?, ?, 7, ?, ?, 1, 3, 1, 'UNVERIFIABLE', 1, 'task', '{"reason":"EXPIRED","message":"late"}',
  '{"failures":2}', '{"at":1}', '["saml"]', '[{"code":"SIGNED_IN_AGAIN","message":"m"}]', '[{"id":"s"}]', '{"by":["all"]}', '{"rule":"r"}')`,
				string(state), idx, string(state), open, attempts, next, start, complete, owner, until, from)
		}
	}
	rows := func() (rows []string) {
		t.Helper()
		for _, table := range []string{"invalidations", "labels", "runs", "target_pauses", "audit", "audit_checkpoints"} {
			found, err := db.Query("SELECT * FROM " + table + " ORDER BY 1, 2")
			if err != nil {
				t.Fatal(err)
			}
			defer found.Close()
			columns, err := found.Columns()
			if err != nil {
				t.Fatal(err)
			}
			for found.Next() {
				values, into := make([]any, len(columns)), make([]any, len(columns))
				for i := range values {
					into[i] = &values[i]
				}
				if err := found.Scan(into...); err != nil {
					t.Fatal(err)
				}
				row := table
				for i, c := range columns {
					row += fmt.Sprintf(" %s=%v", c, values[i])
				}
				rows = append(rows, row)
			}
			if err := found.Err(); err != nil {
				t.Fatal(err)
			}
		}
		return rows
	}
	want := rows()
	db.Close()
	migrate(nil)
	db = open()
	defer db.Close()
	if got := rows(); !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, c := range []struct{ pragma, column, want string }{{"foreign_key_check", `"table"`, ""}, {"integrity_check", "integrity_check", "'CHECK constraint failed in audit'"}} {
		var got sql.NullString
		if err := db.QueryRow("SELECT group_concat(quote(x), ';') FROM (SELECT " + c.column + " AS x FROM pragma_" + c.pragma + ")").Scan(&got); err != nil || got.String != c.want {
			t.Errorf("%s: %s (%v), want %q", c.pragma, got.String, err, c.want)
		}
	}
	s := openAt(t, path)
	for _, state := range invalidation.RunStates {
		inv, err := s.Get(t.Context(), string(state))
		if err != nil || len(inv.Runs) != 2 || inv.Runs[0].State != state || inv.Runs[1].Operation != "task" || inv.Runs[1].Terms.Rule != "r" {
			t.Errorf("Get: %+v, %v", inv, err)
		}
	}
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMigrate(t *testing.T) {
	step := func(n int, text string) fstest.MapFS {
		files := fstest.MapFS{}
		for i := range n {
			files[fmt.Sprintf("m/%04d_step.sql", i+1)] = &fstest.MapFile{Data: fmt.Appendf(nil, "CREATE TABLE t%d (x); CREATE TRIGGER g%d AFTER INSERT ON t%d BEGIN SELECT 1; END;", i+1, i+1, i+1)}
		}
		if text != "" {
			files[fmt.Sprintf("m/%04d_step.sql", n)] = &fstest.MapFile{Data: []byte(text)}
		}
		return files
	}
	tables := func(path string) string {
		schema, err := sqlite.Schema(path)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, s := range schema {
			if name, ok := strings.CutPrefix(s, "CREATE TABLE t"); ok {
				found = append(found, name[:1])
			}
		}
		return strings.Join(found, "")
	}
	path := emptyFile(t)
	for _, n := range []int{1, 1, 3, 3} {
		if err := sqlite.Migrate(path, step(n, "")); err != nil {
			t.Fatalf("to %d: %v", n, err)
		}
	}
	if got := tables(path); got != "123" {
		t.Errorf("tables %s, want 123", got)
	}
	// A step that fails is undone wholly; those before it stay.
	if err := sqlite.Migrate(path, step(5, "CREATE TABLE t5 (x); INSERT INTO nowhere VALUES (1)")); err == nil || !strings.Contains(err.Error(), "version 5") {
		t.Errorf("a step that fails: %v", err)
	}
	if got := tables(path); got != "1234" {
		t.Errorf("tables %s after a step that failed, want 1234", got)
	}
	if err := sqlite.Migrate(path, step(5, "")); err != nil || tables(path) != "12345" {
		t.Errorf("after it was mended: %v, tables %s", err, tables(path))
	}
	if err := sqlite.Migrate(path, step(4, "")); err == nil || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("a newer schema: %v", err)
	}
	gap := step(3, "")
	delete(gap, "m/0002_step.sql")
	if err := sqlite.Migrate(emptyFile(t), gap); err == nil {
		t.Error("a gap between migrations was accepted")
	}
}

// Open refuses what it does not know, and leaves it as it is.
func TestOpen_Refuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		write      func(path string)
	}{
		{"ANewerJournal", "newer program", func(path string) {
			s := openAt(t, path)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			must(t, db, "INSERT INTO migrations VALUES (99, 'future', 1)")
		}},
		{"AnotherDatabase", "not a journal", func(path string) {
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			must(t, db, "CREATE TABLE people (name)")
		}},
		{"AnotherFile", "", func(path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("people: [alice, bob]\n", 100)), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.db")
			c.write(path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the first refusal leaves no lock behind
				if _, err := sqlite.Open(t.Context(), sqlite.Options{Path: path}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
					t.Errorf("Open: %v, want %q and the path", err, c.want)
				}
			}
			if after, err := os.ReadFile(path); err != nil || c.name == "AnotherFile" && string(after) != string(before) {
				t.Errorf("the file has changed (%v)", err)
			}
		})
	}
	if _, err := sqlite.Open(t.Context(), sqlite.Options{Path: filepath.Join(t.TempDir(), "no", "journal.db")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open in a directory that is not there: %v", err)
	}
}
