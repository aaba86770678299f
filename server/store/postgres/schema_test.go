package postgres_test

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// rawJournal returns a journal with an invalidation whose run at target "x" is in each of the states, for raw SQL.
func rawJournal(t *testing.T) *pgx.Conn {
	t.Helper()
	dsn := pgtest.Schema(t)
	if err := open(t, dsn).Close(); err != nil {
		t.Fatal(err)
	}
	c := connect(t, dsn)
	for _, state := range invalidation.RunStates {
		inv, unfinished, complete := "RUNNING", 1, "NULL"
		if state.Final() {
			inv, unfinished, complete = "FAILED", 0, "now()"
		}
		attempts, start := 1, "now()"
		if state == invalidation.RunPending {
			attempts, start = 0, "NULL"
		}
		must(t, c, fmt.Sprintf(`INSERT INTO invalidations (id, state, revision, unfinished, succeeded, failed, unsupported, cancelled, allow_unsupported, priority,
  create_time, complete_time, caller_kind, caller_name, selector, call)
VALUES ('%s', '%s', 1, %d, 0, 0, 0, 0, false, 0, now(), %s, 'k', 'n', '{}', '{}')`, state, inv, unfinished, complete))
		must(t, c, fmt.Sprintf(`INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time, complete_time,
  lease_token, counted, count, count_is_minimum, sessions_truncated)
VALUES ('%s', 0, 'x', 'k', 'f', 0, '%[1]s', false, %d, now(), %s, %s, 0, false, 0, false, false)`, state, attempts, start, complete))
	}
	return c
}

func must(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// try executes a statement and takes it back; it returns the SQLSTATE.
func try(t *testing.T, c *pgx.Conn, sql string) string {
	t.Helper()
	tx, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	tag, err := tx.Exec(t.Context(), sql)
	var e *pgconn.PgError
	switch {
	case errors.As(err, &e):
		return e.Code
	case err != nil:
		t.Fatal(err)
	case tag.RowsAffected() == 0 && !strings.HasPrefix(sql, "TRUNCATE"):
		t.Errorf("%s: changes nothing", sql)
	}
	return ""
}

// No way leads around the table of the runs' states, not even SQL.
func TestSchema_RunTransitions(t *testing.T) {
	t.Parallel()
	c := rawJournal(t)
	for _, from := range invalidation.RunStates {
		for _, to := range invalidation.RunStates {
			complete, attempts, start := "NULL", 1, "now()"
			if to.Final() {
				complete = "now()"
			}
			if to == invalidation.RunPending {
				attempts, start = 0, "NULL"
			}
			code := try(t, c, fmt.Sprintf(`UPDATE runs SET state = '%s', complete_time = %s, attempts = %d, start_time = %s WHERE invalidation_id = '%s'`,
				to, complete, attempts, start, from))
			if allowed := from.CanBecome(to); allowed != (code == "") || code != "" && code != "ES001" {
				t.Errorf("%s to %s: %q, want allowed %t", from, to, code, allowed)
			}
		}
	}
}

func TestSchema_Refuses(t *testing.T) {
	t.Parallel()
	c := rawJournal(t)
	must(t, c, `INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 1, now(), 't', 'k', 'n', sha256(''), sha256(''))`)
	must(t, c, `UPDATE runs SET open = true, lease_owner = 'o', lease_token = 4, lease_until = now(), lease_from = 'RETRYING' WHERE invalidation_id = 'RUNNING'`)
	must(t, c, `INSERT INTO target_slots VALUES ('x', 0, 'o', 4, now())`)
	must(t, c, `INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash)
SELECT 'x', n, now(), 't', 'k', 'n', sha256(''), sha256('') FROM generate_series(1, 6) AS n`)
	const checkpoint = `INSERT INTO audit_checkpoints (chain, seq, hash, chain_key, time, key, mac) VALUES `
	must(t, c, checkpoint+`('x', 5, sha256(''), '', now(), '', sha256(''))`)
	run := func(set, id string) string { return "UPDATE runs SET " + set + " WHERE invalidation_id = '" + id + "'" }
	inv := func(set, id string) string {
		return "UPDATE invalidations SET revision = revision + 1, " + set + " WHERE id = '" + id + "'"
	}
	const unleased = ", open = false, lease_owner = NULL, lease_until = NULL, lease_from = NULL"
	for _, x := range []struct {
		name, bad, code string
		good            string // what is nearest to it and allowed
	}{
		{"a final run changes", run("count_is_minimum = true", "SUCCEEDED"), "ES001", run("count_is_minimum = true", "RUNNING")},
		{"a final run is leased", run("lease_owner = 'o', lease_until = now(), lease_from = 'KEPT'", "FAILED"), "ES001", run("lease_owner = 'o', lease_until = now(), lease_from = 'KEPT'", "RETRYING")},
		{"final without an end", run("state = 'FAILED'"+unleased, "RUNNING"), "23514", run("complete_time = now(), state = 'FAILED'"+unleased, "RUNNING")},
		{"an end without being final", run("complete_time = now()", "PENDING"), "23514", run("next_attempt_time = now()", "PENDING")},
		{"final and leased", run("state = 'FAILED', complete_time = now(), open = false", "RUNNING"), "23514", run("open = false", "RUNNING")},
		{"final and due", run("state = 'FAILED', complete_time = now(), next_attempt_time = now()", "PENDING"), "23514", run("state = 'FAILED', complete_time = now()", "PENDING")},
		{"pending and open", run("open = true", "PENDING"), "23514", run("open = false", "PENDING")},
		{"pending after an attempt", run("attempts = 1", "PENDING"), "23514", run("attempts = 0", "PENDING")},
		{"retrying before an attempt", run("attempts = 0", "RETRYING"), "23514", run("attempts = 5", "RETRYING")},
		{"back to pending without a claim to take back", run("state = 'PENDING', attempts = 0, start_time = NULL"+unleased, "RUNNING"), "ES001", run("state = 'RETRYING'"+unleased, "RUNNING")},
		{"an unknown run state", run("state = 'DONE'", "PENDING"), "23514", run("state = 'CANCELLED', complete_time = now()", "PENDING")},
		{"half a lease", run("lease_until = NULL", "RUNNING"), "23514", run("lease_until = now()", "RUNNING")},
		{"a smaller token", run("lease_token = 3", "RUNNING"), "ES001", run("lease_token = 5", "RUNNING")},
		{"an unknown claim", run("lease_from = 'DONE'", "RUNNING"), "23514", run("lease_from = 'LOST'", "RUNNING")},
		{"a negative count", run("counted = true, count = -1", "RUNNING"), "23514", run("counted = true, count = 0", "RUNNING")},
		{"a count that is not known", run("count = 1", "RUNNING"), "23514", run("counted = true, count = 1", "RUNNING")},
		{"an unknown verification", run("verification = 'BELIEVED'", "RUNNING"), "23514", run("verification = 'UNVERIFIABLE'", "RUNNING")},
		{"another target", run("target = 'y'", "PENDING"), "ES001", run("operation = '\"y\"'", "PENDING")},
		{"another fingerprint", run("fingerprint = 'y'", "PENDING"), "ES001", ""},
		{"another expiry", run("expire_time = now()", "PENDING"), "ES001", ""},
		{"what is not JSON", run("resume = '{'", "PENDING"), "22P02", run("resume = '{}'", "PENDING")},
		{"an unfinished run goes", "DELETE FROM runs WHERE invalidation_id = 'RUNNING'", "ES001", "DELETE FROM runs WHERE invalidation_id = 'CANCELLED'"},
		{"a final invalidation changes", inv("state = 'SUCCEEDED'", "SUCCEEDED"), "ES001", ""},
		{"an unfinished invalidation goes", "DELETE FROM invalidations WHERE id = 'RUNNING'", "ES001", "DELETE FROM invalidations WHERE id = 'SUCCEEDED'"},
		{"final with unfinished runs", inv("state = 'FAILED', complete_time = now()", "RUNNING"), "23514", inv("state = 'FAILED', complete_time = now(), unfinished = 0", "RUNNING")},
		{"final without an end", inv("state = 'FAILED', unfinished = 0", "RUNNING"), "23514", ""},
		{"running with nothing unfinished", inv("unfinished = 0", "RUNNING"), "23514", inv("unfinished = 2", "RUNNING")},
		{"the revision stays", "UPDATE invalidations SET unfinished = 2 WHERE id = 'RUNNING'", "ES001", ""},
		{"another selector", inv("selector = '{}'", "RUNNING"), "ES001", ""},
		{"another caller", inv("caller_name = 'x'", "RUNNING"), "ES001", ""},
		{"a label of nothing", "INSERT INTO labels VALUES ('k', 'v', 'nothing')", "23503", "INSERT INTO labels VALUES ('k', 'v', 'PENDING')"},
		{"an event changes", "UPDATE audit SET type = 'u'", "ES001", ""},
		{"an event goes", "DELETE FROM audit", "ES001", ""},
		{"all events go", "TRUNCATE audit", "ES001", ""},
		{"an event twice", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 1, now(), 't', 'k', 'n', sha256(''), sha256(''))", "23505",
			"INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash, hash) VALUES ('c', 2, now(), 't', 'k', 'n', sha256(''), sha256(''))"},
		{"an event without a hash", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, prev_hash) VALUES ('c', 9, now(), 't', 'k', 'n', sha256(''))", "23514", ""},
		{"an event without the hash before", "INSERT INTO audit (chain, seq, time, type, caller_kind, caller_name, hash) VALUES ('c', 9, now(), 't', 'k', 'n', sha256(''))", "23514", ""},
		{"a checkpoint of no event", checkpoint + "('d', 1, sha256(''), '', now(), '', sha256(''))", "ES001", checkpoint + "('c', 1, sha256(''), '', now(), '', sha256(''))"},
		{"a checkpoint with another hash", checkpoint + "('c', 1, sha256('x'), '', now(), '', sha256(''))", "ES001", checkpoint + "('c', 1, sha256(''), '', now(), '', sha256(''))"},
		{"a checkpoint goes back", "UPDATE audit_checkpoints SET seq = 4", "ES001", "UPDATE audit_checkpoints SET seq = 6"},
		{"a checkpoint is written again", "UPDATE audit_checkpoints SET mac = sha256('x')", "ES001", "UPDATE audit_checkpoints SET seq = 6"},
		{"a checkpoint goes on to nothing", "UPDATE audit_checkpoints SET seq = 7", "ES001", "UPDATE audit_checkpoints SET seq = 6"},
		{"a checkpoint goes", "DELETE FROM audit_checkpoints", "ES001", ""},
		{"all checkpoints go", "TRUNCATE audit_checkpoints", "ES001", ""},
		{"an event goes that the checkpoint does not reach", "DELETE FROM audit WHERE chain = 'x' AND seq = 6", "ES001", "DELETE FROM audit WHERE chain = 'x' AND seq <= 5"},
		{"half a slot", "UPDATE target_slots SET owner = NULL", "23514", "UPDATE target_slots SET owner = NULL, until = NULL"},
		{"a slot's smaller token", "UPDATE target_slots SET token = 3", "ES001", "UPDATE target_slots SET token = 5"},
	} {
		if code := try(t, c, x.bad); code != x.code {
			t.Errorf("%s: %q, want %s", x.name, code, x.code)
		}
		if x.good == "" {
			continue
		}
		if code := try(t, c, x.good); code != "" {
			t.Errorf("%s: what is allowed was refused: %s", x.name, code)
		}
	}
}

// The state of an invalidation is computed in SQL from counts; it is what package invalidation says of the runs.
func TestStateOfIsTheSameInSQL(t *testing.T) {
	t.Parallel()
	c := connect(t, pgtest.Shared(t).DSN("public"))
	final := []invalidation.RunState{invalidation.RunSucceeded, invalidation.RunFailed, invalidation.RunUnsupported, invalidation.RunCancelled}
	checked := 0
	var all func(states []invalidation.RunState, left int)
	all = func(states []invalidation.RunState, left int) {
		count := map[invalidation.RunState]int{}
		for _, s := range states {
			count[s]++
		}
		for _, allow := range []bool{false, true} {
			var got string
			if err := c.QueryRow(t.Context(), `SELECT `+postgres.StateOf+` FROM (SELECT $1::int AS succeeded, $2::int AS failed, $3::int AS unsupported, $4::int AS cancelled, $5::bool AS allow_unsupported) AS i`,
				count[invalidation.RunSucceeded], count[invalidation.RunFailed], count[invalidation.RunUnsupported], count[invalidation.RunCancelled], allow).Scan(&got); err != nil {
				t.Fatal(err)
			}
			if want := invalidation.StateOf(states, allow); got != string(want) {
				t.Errorf("%v, unsupported allowed %t: %s, want %s", states, allow, got, want)
			}
			checked++
		}
		if left == 0 {
			return
		}
		for _, s := range final {
			all(append(slices.Clone(states), s), left-1)
		}
	}
	all(nil, 4)
	if checked != 2*(1+4+16+64+256) {
		t.Errorf("%d lists were checked", checked)
	}
}

// Every query finds its rows by an index when there are many: nearly all of them ended long ago, some wait.
func TestQueryPlans(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	if err := open(t, dsn).Close(); err != nil {
		t.Fatal(err)
	}
	c := connect(t, dsn)
	must(t, c, `INSERT INTO invalidations (id, state, revision, unfinished, succeeded, failed, unsupported, cancelled, allow_unsupported, priority,
  create_time, complete_time, caller_kind, caller_name, request_id, request_digest, user_id, selector, call)
SELECT to_char(n, 'FM000000'), CASE WHEN n % 100 = 0 THEN 'RUNNING' ELSE 'SUCCEEDED' END, 1, CASE WHEN n % 100 = 0 THEN 1 ELSE 0 END, 0, 0, 0, 0, false, 0,
  now() - n * interval '1 s', CASE WHEN n % 100 <> 0 THEN now() END, 'k', 'caller ' || n % 50, 'r' || n, '\x00', 'user ' || n, '{}', '{}' FROM generate_series(1, 30000) AS n`)
	must(t, c, `INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time, complete_time, next_attempt_time,
  lease_token, counted, count, count_is_minimum, sessions_truncated)
SELECT to_char(n, 'FM000000'), 0, CASE WHEN n % 3 = 0 THEN 'apm' ELSE 'kibana' END, 'k', 'f', n % 2, CASE WHEN n % 100 = 0 THEN 'RETRYING' ELSE 'SUCCEEDED' END, false, 1,
  now() + interval '1 day', now(), CASE WHEN n % 100 <> 0 THEN now() END, CASE WHEN n % 100 = 0 THEN now() + interval '1 hour' END, 0, false, 0, false, false FROM generate_series(1, 30000) AS n`)
	must(t, c, `INSERT INTO labels SELECT 'job', 'job ' || n % 1000, to_char(n, 'FM000000') FROM generate_series(1, 30000) AS n`)
	must(t, c, `VACUUM ANALYZE invalidations, runs, labels`)
	must(t, c, `SET jit = off`)
	explain := func(name, sql, args string) (plan []string) {
		must(t, c, `PREPARE statement AS `+sql)
		defer must(t, c, `DEALLOCATE statement`)
		if args != "" {
			args = "(" + args + ")"
		}
		// By the simple protocol: EXPLAIN takes no parameters.
		rows, err := c.Query(t.Context(), `EXPLAIN (COSTS off) EXECUTE statement`+args, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		plan, err = pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return plan
	}
	check := func(name, sql, args string) {
		plan := explain(name, sql, args)
		for _, line := range plan {
			for _, table := range []string{"runs", "invalidations", "labels", "audit"} {
				if strings.Contains(line+" ", "Seq Scan on "+table+" ") {
					t.Errorf("%s: %s\n%s", name, strings.TrimSpace(line), strings.Join(plan, "\n"))
				}
			}
		}
		if strings.HasPrefix(name, "claim") || name == "next due" {
			text := strings.Join(plan, "\n")
			if !strings.Contains(text, "runs_due") || strings.Contains(text, "Sort Key: r.due_time") || strings.Contains(text, "Sort Key: r_1.due_time") {
				t.Errorf("%s does not walk along runs_due\n%s", name, text)
			}
		}
	}
	// The server plans a statement for each value at first, and for all values after some time, if it thinks that no worse.
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		must(t, c, `SET plan_cache_mode = `+mode)
		for name, x := range postgres.Statements {
			check(name, x.SQL, x.Args)
		}
	}
	at := time.Now()
	leads := map[string]string{"failed": "invalidations_state", "unfinished": "invalidations_state", "of a target": "runs_target",
		"of a caller": "invalidations_caller", "only of": "invalidations_caller", "of a user": "invalidations_user", "labelled": "labels_pkey",
		"of a day": "invalidations_created"}
	for name, q := range map[string]invalidation.Query{
		"all":         {},
		"from a page": {Before: "020000"},
		"failed":      {State: invalidation.Failed},
		"unfinished":  {Unfinished: true},
		"of a target": {Target: "apm"},
		"of a caller": {Caller: "c"},
		"only of":     {OnlyOf: &invalidation.Caller{Kind: "k", Name: "n"}},
		"of a user":   {UserID: "u"},
		"labelled":    {Labels: map[string]string{"job": "b", "c": "d"}},
		"of a day":    {From: at, To: at},
		"of all":      {State: invalidation.Failed, Target: "t", Caller: "c", UserID: "u", Labels: map[string]string{"a": "b"}, From: at, Before: "b"},
	} {
		q.Limit = 10
		sql, args := postgres.List(q)
		var texts []string
		for _, a := range args {
			switch a := a.(type) {
			case time.Time:
				texts = append(texts, "'"+a.Format(time.RFC3339)+"'")
			case int64:
				texts = append(texts, fmt.Sprint(a))
			default:
				texts = append(texts, fmt.Sprintf("'%s'", a))
			}
		}
		check("list "+name, sql, strings.Join(texts, ", "))
		if plan := strings.Join(explain(name, sql, strings.Join(texts, ", ")), "\n"); !strings.Contains(plan, leads[name]) {
			t.Errorf("list %s does not use %s\n%s", name, leads[name], plan)
		}
	}
}

// What flights ask is planned for the values as long as the journal is small, and only then for all. The plan that is kept
// goes by the keys, although the server has not noticed yet that the journal has grown.
func TestQueryPlans_OfAYoungJournal(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	if err := open(t, dsn).Close(); err != nil {
		t.Fatal(err)
	}
	c := connect(t, dsn)
	must(t, c, `ALTER TABLE invalidations SET (autovacuum_enabled = off)`)
	must(t, c, `ALTER TABLE runs SET (autovacuum_enabled = off)`)
	must(t, c, `VACUUM ANALYZE invalidations, runs`)
	mode := func() (mode string) {
		must(t, c, strings.Replace(postgres.ReadyFlight, "$1", "'1000'", 1))
		if err := c.QueryRow(t.Context(), `SELECT current_setting('plan_cache_mode')`).Scan(&mode); err != nil {
			t.Fatal(err)
		}
		return mode
	}
	must(t, c, `BEGIN`)
	n := 0
	for ; mode() != "force_generic_plan"; n += 100 {
		if n > 20000 {
			t.Fatal("the plan is never kept")
		}
		must(t, c, fmt.Sprintf(`INSERT INTO invalidations (id, state, revision, unfinished, succeeded, failed, unsupported, cancelled, allow_unsupported, priority,
  create_time, caller_kind, caller_name, selector, call)
SELECT to_char(n, 'FM000000'), 'RUNNING', 1, 1, 0, 0, 0, 0, false, 0, now(), 'k', 'n', '{}', '{}' FROM generate_series(%d, %d) AS n`, n+1, n+100))
		must(t, c, fmt.Sprintf(`INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time,
  lease_token, counted, count, count_is_minimum, sessions_truncated)
SELECT to_char(n, 'FM000000'), 0, 'apm', 'k', 'f', 0, 'RUNNING', false, 1, now(), now(), 0, false, 0, false, false FROM generate_series(%d, %d) AS n`, n+1, n+100))
	}
	if n < 1000 {
		t.Errorf("kept with %d invalidations", n)
	}
	for name, want := range map[string]string{"record": "runs_pkey", "count": "invalidations_pkey"} {
		x := postgres.Statements[name]
		must(t, c, `PREPARE statement AS `+x.SQL)
		rows, err := c.Query(t.Context(), `EXPLAIN (COSTS off) EXECUTE statement(`+x.Args+`)`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		key := regexp.MustCompile(`Index Scan using (\w+) on \w+ \w+\n *Index Cond:`).FindAllStringSubmatch(plan, -1)
		if len(key) != 2 || key[0][1] != want || key[1][1] != want {
			t.Errorf("%s: by %v, want twice by %s, to lock and to change\n%s", name, key, want, plan)
		}
		must(t, c, `DEALLOCATE statement`)
	}
}

// From every version there has been, a journal reaches the newest.
func TestMigrations(t *testing.T) {
	t.Parallel()
	names, err := fs.Glob(postgres.MigrationFiles, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	describe := func(dsn secret.String) (columns []string) {
		rows, err := connect(t, dsn).Query(t.Context(), `SELECT concat_ws(' ', c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.relnamespace = current_schema()::regnamespace AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1`)
		if err == nil {
			columns, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		if err != nil {
			t.Fatal(err)
		}
		return columns
	}
	fresh := pgtest.Schema(t)
	open(t, fresh)
	want := describe(fresh)
	for version := range names {
		dsn := pgtest.Schema(t)
		earlier := fstest.MapFS{}
		for _, name := range names[:version] {
			text, err := fs.ReadFile(postgres.MigrationFiles, name)
			if err != nil {
				t.Fatal(err)
			}
			earlier[name] = &fstest.MapFile{Data: text}
		}
		if err := postgres.Migrate(t.Context(), dsn, earlier); err != nil {
			t.Fatalf("to version %d: %v", version, err)
		}
		s := open(t, dsn)
		if got := describe(dsn); !slices.Equal(got, want) {
			t.Errorf("from version %d:\n got %q\nwant %q", version, got, want)
		}
		accept(t, s, asked("apm"))
	}
}

// Replicas that start together on an empty schema migrate it once.
func TestReplicasStartTogether(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn, MaxConns: 2})
			if err != nil {
				t.Errorf("Open: %v", err)
				return
			}
			defer s.Close()
			if _, _, _, err := s.Accept(t.Context(), asked("apm")); err != nil {
				t.Errorf("Accept: %v", err)
			}
		})
	}
	wg.Wait()
	var n int
	if err := connect(t, dsn).QueryRow(t.Context(), `SELECT count(*) FROM invalidations`).Scan(&n); err != nil || n != 8 {
		t.Errorf("%d invalidations, error %v; want 8", n, err)
	}
}

// Open refuses what it does not know.
func TestOpen_Refuses(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ name, want, sql string }{
		{"ANewerJournal", "newer program", `INSERT INTO migrations VALUES (99, 'future', now())`},
		{"AnotherSchema", "not a journal", `DROP SCHEMA %[1]s CASCADE; CREATE SCHEMA %[1]s; CREATE TABLE %[1]s.people (name text)`},
		{"NoSchema", "no schema", `DROP SCHEMA %[1]s CASCADE`},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := pgtest.Shared(t)
			schema := c.Schema(t)
			dsn := c.DSN(schema)
			if err := open(t, dsn).Close(); err != nil {
				t.Fatal(err)
			}
			must(t, connect(t, dsn), strings.ReplaceAll(x.sql, "%[1]s", schema))
			s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn})
			if err == nil {
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("Open: %v, want %q", err, x.want)
			}
		})
	}
}

// A role that sets synchronous_commit off does not mean the journal.
func TestCommitsAreDurable(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := open(t, secret.New(dsn.Reveal()+"&synchronous_commit=off"))
	c := connect(t, dsn)
	must(t, c, `CREATE TABLE seen (setting text); CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;
CREATE TRIGGER see BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION see()`)
	accept(t, s, asked("apm"))
	var setting string
	if err := c.QueryRow(t.Context(), `SELECT setting FROM seen`).Scan(&setting); err != nil || setting != "on" {
		t.Errorf("synchronous_commit is %q (%v), want on", setting, err)
	}
}
