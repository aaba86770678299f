package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var helpdesk = invalidation.Caller{Kind: "api_key", Name: "helpdesk"}

// asked is an acceptance of one user's sessions at some targets, the first of which begins at once.
func asked(targets ...string) invalidation.Acceptance {
	now := time.Now()
	inv := invalidation.Invalidation{ID: uuid.Must(uuid.NewV7()).String(), Caller: helpdesk, CreateTime: now,
		Call: invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice"}}}}
	for _, target := range targets {
		inv.Runs = append(inv.Runs, invalidation.Run{Target: target, Kind: "kibana", Fingerprint: "f", State: invalidation.RunPending,
			ExpireTime: now.Add(24 * time.Hour), Selector: &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}}}})
	}
	return invalidation.Acceptance{Invalidation: inv, Owner: "me", LeaseLength: time.Minute, Start: []int{0},
		Events: []invalidation.Event{{Time: now, Type: "invalidation.accepted", Caller: helpdesk, InvalidationID: inv.ID}}}
}

func accept(t testing.TB, s invalidation.Store, a invalidation.Acceptance) (invalidation.Invalidation, []invalidation.Lease) {
	t.Helper()
	inv, _, leases, err := s.Accept(t.Context(), a)
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	return inv, leases
}

func succeeded(r invalidation.Run) invalidation.Run {
	r.State, r.Open, r.CompleteTime = invalidation.RunSucceeded, false, time.Now()
	return r
}

func ended(l invalidation.Lease) []invalidation.Event {
	return []invalidation.Event{{Time: time.Now(), Type: "run.ended", Caller: helpdesk, InvalidationID: l.InvalidationID}}
}

// on trips once, when a piece holds text that is not part of a notification (there it follows a line break).
func on(text string, v pgtest.Verdict, then func()) func([]byte) pgtest.Verdict {
	var tripped atomic.Bool
	return func(piece []byte) pgtest.Verdict {
		if bytes.Contains(piece, []byte(text)) && !bytes.Contains(piece, []byte("\n"+text)) && tripped.CompareAndSwap(false, true) {
			if then != nil {
				then()
			}
			return v
		}
		return pgtest.Pass
	}
}

// TestLostAnswers cuts the connection exactly where it is no longer clear whether a change was committed.
func TestLostAnswers(t *testing.T) {
	setup := func(t *testing.T) (through, direct *postgres.Store, p *pgtest.Proxy) {
		t.Parallel()
		c := pgtest.Shared(t)
		schema := c.Schema(t)
		p = pgtest.NewProxy(t, c.Addr())
		direct = open(t, c.DSN(schema))
		through = openWith(t, postgres.Options{DSN: c.DSNAt(p.Addr(), schema), MaxConns: 2, Timeout: 2 * time.Second})
		accept(t, through, asked("apm")) // so that the statements are prepared
		return through, direct, p
	}
	exists := func(t *testing.T, s *postgres.Store, id string) bool {
		t.Helper()
		_, err := s.Get(t.Context(), id)
		if err != nil && !errors.Is(err, invalidation.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}

	t.Run("AnAcceptanceIsFound", func(t *testing.T) {
		through, direct, p := setup(t)
		a := asked("apm", "kibana")
		p.Hook(on(a.Invalidation.ID, pgtest.PassAndCut, nil), nil)
		inv, replayed, leases, err := through.Accept(t.Context(), a)
		if err != nil || replayed || inv.ID != a.Invalidation.ID || len(leases) != 1 || leases[0].Until.IsZero() {
			t.Fatalf("Accept = %+v, replayed %t, leases %v, error %v", inv, replayed, leases, err)
		}
		if _, err := direct.Record(t.Context(), leases[0], succeeded(inv.Runs[0]), ended(leases[0])); err != nil {
			t.Errorf("the lease that was found does not hold: %v", err)
		}
		events(t, direct) // the chains have no gaps
	})
	t.Run("AnAcceptanceThatDidNotArriveIsRefused", func(t *testing.T) {
		through, direct, p := setup(t)
		a := asked("apm")
		p.Hook(on(a.Invalidation.ID, pgtest.Cut, nil), nil)
		_, _, _, err := through.Accept(t.Context(), a)
		if !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Errorf("Accept: %v, want ErrUnavailable", err)
		}
		if exists(t, direct, a.Invalidation.ID) {
			t.Error("it exists")
		}
		accept(t, through, asked("apm"))
	})
	t.Run("AnAcceptanceThatCannotBeLookedUpIsUnknown", func(t *testing.T) {
		through, direct, p := setup(t)
		a := asked("apm")
		p.Hook(on(a.Invalidation.ID, pgtest.PassAndCut, func() { go p.Hook(nil, func([]byte) pgtest.Verdict { return pgtest.Cut }) }), nil)
		began := time.Now()
		_, _, _, err := through.Accept(t.Context(), a)
		if !errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Errorf("Accept: %v, want ErrCommitUnknown", err)
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it took %v", took)
		}
		if !exists(t, direct, a.Invalidation.ID) {
			t.Error("it was committed and is not there")
		}
		p.Hook(nil, nil)
		eventually(t, "the store recovers", func() bool {
			return exists(t, direct, a.Invalidation.ID) && through.Audit(t.Context(), nil) == nil && usable(through)
		})
	})
	t.Run("AnAcceptanceUnderWayIsEnded", func(t *testing.T) {
		through, direct, p := setup(t)
		c := connect(t, dsnOf(direct))
		if _, err := c.Exec(t.Context(), `BEGIN; LOCK TABLE runs IN SHARE MODE`); err != nil {
			t.Fatal(err)
		}
		a := asked("apm")
		p.Hook(func(piece []byte) pgtest.Verdict {
			if bytes.Contains(piece, []byte("\x04\xd2\x16\x2e")) {
				return pgtest.Cut // the driver asks the server to cancel; that may get lost as well
			}
			return pgtest.Pass
		}, nil)
		waiting := func() (n int) {
			if err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'runs'::regclass AND NOT granted`).Scan(&n); err != nil {
				t.Error(err)
			}
			return n
		}
		answer := make(chan error)
		go func() {
			_, _, _, err := through.Accept(context.Background(), a)
			answer <- err
		}()
		eventually(t, "it waits for the lock", func() bool { return waiting() == 1 })
		p.Break()
		err := <-answer
		if !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Errorf("Accept: %v, want ErrUnavailable", err)
		}
		if n := waiting(); n != 0 {
			t.Errorf("%d transactions still wait; they would be committed", n)
		}
		if _, err := c.Exec(t.Context(), `ROLLBACK`); err != nil {
			t.Fatal(err)
		}
		accept(t, direct, asked("apm"))
		if exists(t, direct, a.Invalidation.ID) {
			t.Error("it was refused, and is there")
		}
	})
	t.Run("ARecordIsUnknown", func(t *testing.T) {
		through, direct, p := setup(t)
		inv, leases := accept(t, through, asked("apm"))
		p.Hook(on("run.ended", pgtest.PassAndCut, nil), nil)
		_, err := through.Record(t.Context(), leases[0], succeeded(inv.Runs[0]), ended(leases[0]))
		if !errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Errorf("Record: %v, want ErrCommitUnknown", err)
		}
		got, err := direct.Get(t.Context(), inv.ID)
		if err != nil || got.State != invalidation.Succeeded {
			t.Errorf("state %s, error %v: the record was committed", got.State, err)
		}
	})
	for _, tc := range []struct {
		name    string
		text    string
		verdict pgtest.Verdict
		want    error
		state   invalidation.State
	}{
		{"ACancellationIsUnknownOnceItsCommitIsSent", "test.cancelled", pgtest.PassAndCut, invalidation.ErrCommitUnknown, invalidation.Cancelled},
		{"ACancellationWhoseCommitDidNotArriveIsUnknown", "test.cancelled", pgtest.Cut, invalidation.ErrCommitUnknown, invalidation.Running},
		{"ACancellationIsRefusedBefore", "", pgtest.PassAndCut, invalidation.ErrUnavailable, invalidation.Running},
	} {
		t.Run(tc.name, func(t *testing.T) {
			through, direct, p := setup(t)
			first, _ := accept(t, through, asked("apm"))
			if _, err := through.Cancel(t.Context(), first.ID, time.Now(), nil); err != nil { // prepared
				t.Fatal(err)
			}
			inv, _ := accept(t, through, asked("apm"))
			text := tc.text
			if text == "" {
				text = inv.ID
			}
			p.Hook(on(text, tc.verdict, nil), nil)
			_, err := through.Cancel(t.Context(), inv.ID, time.Now(), []invalidation.Event{{Time: time.Now(), Type: "test.cancelled", InvalidationID: inv.ID}})
			if !errors.Is(err, tc.want) || errors.Is(tc.want, invalidation.ErrUnavailable) && errors.Is(err, invalidation.ErrCommitUnknown) {
				t.Errorf("Cancel: %v, want %v", err, tc.want)
			}
			// The server may notice the broken connection a moment later.
			eventually(t, "state "+string(tc.state), func() bool {
				got, err := direct.Get(t.Context(), inv.ID)
				return err == nil && got.State == tc.state
			})
			events(t, direct)
		})
	}
	t.Run("AReadIsRepeated", func(t *testing.T) {
		through, _, p := setup(t)
		inv, _ := accept(t, through, asked("apm"))
		p.Hook(on(inv.ID, pgtest.PassAndCut, nil), nil)
		if _, err := through.Get(t.Context(), inv.ID); err != nil {
			t.Errorf("Get: %v", err)
		}
	})
}

func usable(s invalidation.Store) bool {
	_, _, _, err := s.Accept(context.Background(), asked("apm"))
	return err == nil
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// TestServerErrors makes the server answer with codes of its own, by a trigger.
func TestServerErrors(t *testing.T) {
	for _, tc := range []struct {
		code     string
		times    int // how often it says so
		want     error
		wantNot  error
		attempts int
	}{
		{"40001", 3, nil, nil, 4},
		{"40P01", 3, nil, nil, 4},
		{"0A000", 1, nil, nil, 2},
		{"40001", 1000, invalidation.ErrUnavailable, nil, 6}, // bounded
		{"53100", 1000, invalidation.ErrUnavailable, nil, 1}, // disk full
		{"53200", 1000, invalidation.ErrUnavailable, nil, 1}, // out of memory
		{"53300", 1000, invalidation.ErrUnavailable, nil, 1}, // too many connections
		{"25006", 1000, invalidation.ErrUnavailable, nil, 1}, // read-only
		{"57014", 1000, invalidation.ErrUnavailable, nil, 1}, // statement timeout
		{"55P03", 1000, invalidation.ErrUnavailable, nil, 2}, // lock timeout: once more, alone, with more patience
		{"58030", 1000, invalidation.ErrUnavailable, nil, 1}, // I/O error
		{"XX001", 1000, invalidation.ErrUnavailable, nil, 1}, // damaged
		{"42501", 1000, invalidation.ErrUnavailable, nil, 1}, // no privilege
		{"ES001", 1000, invalidation.ErrIllegalTransition, invalidation.ErrUnavailable, 1},
		{"23514", 1000, errAny, invalidation.ErrUnavailable, 1}, // the change is wrong, the journal is well
		{"22003", 1000, errAny, invalidation.ErrUnavailable, 1},
	} {
		for _, when := range []string{"BEFORE INSERT", "AT COMMIT"} {
			t.Run(fmt.Sprintf("%s/%d/%s", tc.code, tc.times, when), func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Schema(t)
				s := open(t, dsn)
				c := connect(t, dsn)
				trigger := `CREATE TRIGGER fault BEFORE INSERT ON audit FOR EACH ROW WHEN (NEW.type NOT LIKE 'chain.%') EXECUTE FUNCTION fault()`
				if when == "AT COMMIT" {
					trigger = `CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON audit DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.type NOT LIKE 'chain.%') EXECUTE FUNCTION fault()`
				}
				if _, err := c.Exec(t.Context(), fmt.Sprintf(`CREATE SEQUENCE faults;
CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('faults') <= %d THEN RAISE EXCEPTION 'fault' USING ERRCODE = '%s'; END IF;
  RETURN NEW;
END $$; `, tc.times, tc.code)+trigger); err != nil {
					t.Fatal(err)
				}
				a := asked("apm")
				inv, _, _, err := s.Accept(t.Context(), a)
				switch {
				case tc.want == nil && err != nil, errors.Is(tc.want, errAny) && err == nil,
					tc.want != nil && !errors.Is(tc.want, errAny) && !errors.Is(err, tc.want),
					tc.wantNot != nil && errors.Is(err, tc.wantNot), errors.Is(err, invalidation.ErrCommitUnknown):
					t.Errorf("Accept: %v, want %v and not %v", err, tc.want, tc.wantNot)
				}
				var attempts int
				if err := c.QueryRow(t.Context(), `SELECT last_value FROM faults`).Scan(&attempts); err != nil || attempts != tc.attempts {
					t.Errorf("%d attempts, want %d (%v)", attempts, tc.attempts, err)
				}
				got, err := s.Get(t.Context(), a.Invalidation.ID)
				if (tc.want == nil) != (err == nil) || tc.want == nil && got.ID != inv.ID {
					t.Errorf("afterwards Get: %v", err)
				}
				if n := len(events(t, s)); (tc.want == nil) != (n == 1) {
					t.Errorf("%d events", n)
				}
			})
		}
	}
}

var errAny = errors.New("any error")

// TestFrozenServer: nobody waits for ever, and what was said not to have happened did not happen.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	c := pgtest.New(t, pgtest.Fast())
	const timeout = 3 * time.Second
	s := openWith(t, postgres.Options{DSN: c.DSN(c.Schema(t)), Timeout: timeout, MaxConns: 20})
	inv, leases := accept(t, s, asked("apm", "kibana"))
	warm(t, s, 20)
	thaw := c.Freeze()
	defer thaw()
	a := asked("apm")
	calls := map[string]func(context.Context) error{
		"Now":    func(ctx context.Context) error { _, err := s.Now(ctx); return err },
		"Accept": func(ctx context.Context) error { _, _, _, err := s.Accept(ctx, a); return err },
		"Get":    func(ctx context.Context) error { _, err := s.Get(ctx, inv.ID); return err },
		"List":   func(ctx context.Context) error { _, _, err := s.List(ctx, invalidation.Query{Limit: 1}); return err },
		"Claim": func(ctx context.Context) error {
			_, err := s.Claim(ctx, invalidation.Claim{Target: "kibana", Owner: "me", Limit: 1, LeaseLength: time.Minute})
			return err
		},
		"NextDue": func(ctx context.Context) error { _, _, err := s.NextDue(ctx, "apm"); return err },
		"Record": func(ctx context.Context) error {
			_, err := s.Record(ctx, leases[0], succeeded(inv.Runs[0]), nil)
			return err
		},
		"Renew":      func(ctx context.Context) error { _, err := s.Renew(ctx, leases, time.Minute); return err },
		"Release":    func(ctx context.Context) error { return s.Release(ctx, leases[0]) },
		"Cancel":     func(ctx context.Context) error { _, err := s.Cancel(ctx, inv.ID, time.Now(), nil); return err },
		"Unfinished": func(ctx context.Context) error { _, err := s.Unfinished(ctx); return err },
		"Pauses":     func(ctx context.Context) error { _, err := s.Pauses(ctx); return err },
		"Pause": func(ctx context.Context) error {
			return s.Pause(ctx, invalidation.Pause{Target: "x", Time: time.Now()}, nil)
		},
		"Resume": func(ctx context.Context) error { return s.Resume(ctx, "x", nil) },
		"Audit":  func(ctx context.Context) error { return s.Audit(ctx, ended(leases[0])) },
		"Prune":  func(ctx context.Context) error { _, err := s.Prune(ctx, time.Now(), 1); return err },
		"AcquireSlots": func(ctx context.Context) error {
			_, err := s.AcquireSlots(ctx, "x", "me", 1, 1, time.Minute)
			return err
		},
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			began := time.Now()
			err := call(context.Background())
			if !errors.Is(err, invalidation.ErrUnavailable) && !errors.Is(err, invalidation.ErrCommitUnknown) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took > 2*timeout+2*time.Second {
				t.Errorf("%s took %v", name, took)
			}
		})
	}
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := s.Get(ctx, inv.ID); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, invalidation.ErrUnavailable) {
			t.Errorf("Get with a deadline: %v", err)
		}
		if took := time.Since(began); took > timeout {
			t.Errorf("Get with a deadline took %v", took)
		}
	})
	wg.Wait()
	thaw()
	eventually(t, "the store works again", func() bool { return usable(s) })
}

// warm makes a store open n connections.
func warm(t *testing.T, s *postgres.Store, n int) {
	t.Helper()
	c := connect(t, dsnOf(s))
	if _, err := c.Exec(t.Context(), `BEGIN; LOCK TABLE audit`); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if err := s.Audit(t.Context(), []invalidation.Event{{Time: time.Now(), Type: "warm"}}); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all wait for the lock", func() bool {
		var waiting int
		err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'audit'::regclass AND NOT granted`).Scan(&waiting)
		return err == nil && waiting == n
	})
	if _, err := c.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

// TestBrokenConnectionsAreGivenUpTogether: the first call that meets a broken connection spares the others.
func TestBrokenConnectionsAreGivenUpTogether(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, Owner: t.Name()})
	warm(t, s, 20)
	c := connect(t, dsn)
	var ended int
	if err := c.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1`,
		"endsession "+t.Name()).Scan(&ended); err != nil || ended < 20 {
		t.Fatalf("%d connections ended, error %v", ended, err)
	}
	failed := 0
	for range 20 {
		if !usable(s) {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d of 20 calls failed, want one at most", failed)
	}
}

// What is told to whoever comes while nobody may connect is no failure to connect: it is not taken for a new one, which would
// postpone the next attempt.
func TestWaitingToConnectIsNoFailure(t *testing.T) {
	t.Parallel()
	c := pgtest.Shared(t)
	p := pgtest.NewProxy(t, c.Addr())
	s := openWith(t, postgres.Options{DSN: c.DSNAt(p.Addr(), c.Schema(t)), Timeout: 3 * time.Second})
	cut := func([]byte) pgtest.Verdict { return pgtest.Cut }
	p.Hook(cut, cut)
	p.Break()
	eventually(t, "somebody is told to wait", func() bool {
		_, err := s.Now(t.Context())
		if !errors.Is(err, invalidation.ErrUnavailable) {
			t.Fatalf("without a server: %v", err)
		}
		if !strings.Contains(err.Error(), "waiting before connecting again") {
			return false
		}
		var refusal *pgconn.ConnectError
		if errors.As(err, &refusal) {
			t.Errorf("told to wait, as if it had tried: %v", err)
		}
		return true
	})
}

// TestKilledServer kills the server under load and starts it again, some times. What was accepted is there, what was refused
// is not, and the store finds its way back by itself.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	c := pgtest.New(t, pgtest.Fast())
	dsn := c.DSN(c.Schema(t))
	stores := []*postgres.Store{
		openWith(t, postgres.Options{DSN: dsn, Timeout: 3 * time.Second}),
		openWith(t, postgres.Options{DSN: dsn, Timeout: 3 * time.Second}),
	}
	var anyChange atomic.Int32
	stores[1].OnChange(func(c invalidation.Change) {
		if c.ID == invalidation.AnyChange {
			anyChange.Add(1)
		}
	})
	var mu sync.Mutex
	outcome := map[string]error{}
	recorded := map[string]bool{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 8 {
		s := stores[n%2]
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				a := asked("apm")
				inv, _, leases, err := s.Accept(context.Background(), a)
				ended := false
				if err == nil && len(leases) > 0 {
					_, rerr := s.Record(context.Background(), leases[0], succeeded(inv.Runs[0]), nil)
					ended = rerr == nil
				}
				mu.Lock()
				outcome[a.Invalidation.ID] = err
				recorded[a.Invalidation.ID] = ended
				mu.Unlock()
			}
		})
	}
	accepted := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, err := range outcome {
			if err == nil {
				n++
			}
		}
		return n
	}
	for range 4 {
		before := accepted()
		eventually(t, "something is accepted", func() bool { return accepted() > before+50 })
		c.Kill()
		if err := c.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	before := accepted()
	eventually(t, "something is accepted again", func() bool { return accepted() > before+50 })
	close(stop)
	wg.Wait()
	eventually(t, "it listens again", func() bool { return anyChange.Load() > 0 })
	count := map[string]int{}
	for id, err := range outcome {
		got, gerr := stores[0].Get(t.Context(), id)
		if gerr != nil && !errors.Is(gerr, invalidation.ErrNotFound) {
			t.Fatal(gerr)
		}
		switch found := gerr == nil; {
		case err == nil:
			count["accepted"]++
			if !found {
				t.Errorf("%s was accepted and is lost", id)
			} else if recorded[id] && got.State != invalidation.Succeeded {
				t.Errorf("%s was recorded and is %s", id, got.State)
			}
		case errors.Is(err, invalidation.ErrCommitUnknown):
			count["unknown"]++
		case errors.Is(err, invalidation.ErrUnavailable):
			count["refused"]++
			if found {
				t.Errorf("%s was refused and is there: %v", id, err)
			}
		default:
			t.Errorf("Accept: %v", err)
		}
	}
	t.Logf("%v", count)
	if count["refused"]+count["unknown"] == 0 {
		t.Error("no call met a killed server")
	}
	events(t, stores[0]) // the chains have no gaps
}

// TestTooManyConnections: a server that is full does not harm those who are connected.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	settings := pgtest.Fast()
	settings["max_connections"] = "10"
	settings["superuser_reserved_connections"] = "0"
	settings["max_wal_senders"] = "0"
	c := pgtest.New(t, settings)
	dsn := c.DSN(c.Schema(t))
	s := openWith(t, postgres.Options{DSN: dsn, MaxConns: 4, Timeout: 2 * time.Second})
	accept(t, s, asked("apm"))
	var taken []*pgx.Conn
	for {
		conn, err := pgx.Connect(t.Context(), dsn.Reveal())
		if err != nil {
			break
		}
		taken = append(taken, conn)
	}
	accept(t, s, asked("apm")) // on the connection that is there
	other, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn, Timeout: time.Second})
	if !errors.Is(err, invalidation.ErrUnavailable) {
		t.Errorf("Open: %v, want ErrUnavailable", err)
	}
	if other != nil {
		_ = other.Close()
	}
	var wg sync.WaitGroup
	for range 64 { // wait for the connections that there are
		wg.Go(func() {
			if _, _, _, err := s.Accept(context.Background(), asked("apm")); err != nil {
				t.Errorf("Accept: %v", err)
			}
		})
		wg.Go(func() {
			if err := s.Audit(context.Background(), []invalidation.Event{{Time: time.Now(), Type: "test"}}); err != nil {
				t.Errorf("Audit: %v", err)
			}
		})
	}
	wg.Wait()
	for _, conn := range taken {
		_ = conn.Close(t.Context())
	}
	eventually(t, "all connect", func() bool {
		var failed atomic.Int32
		for range 16 {
			wg.Go(func() {
				if !usable(s) {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
		return failed.Load() == 0
	})
}

func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	inv, leases := accept(t, open(t, dsn), asked("apm"))
	s := open(t, secret.New(dsn.Reveal()+"&default_transaction_read_only=on"))
	if _, _, _, err := s.Accept(t.Context(), asked("apm")); !errors.Is(err, invalidation.ErrUnavailable) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := s.Record(t.Context(), leases[0], succeeded(inv.Runs[0]), nil); !errors.Is(err, invalidation.ErrUnavailable) {
		t.Errorf("Record: %v", err)
	}
	if _, err := s.Get(t.Context(), inv.ID); err != nil {
		t.Errorf("Get: %v", err)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, invalidation.ErrUnavailable) {
		t.Errorf("Ready: %v, want ErrUnavailable", err)
	}
}

// TestForeignLock: a lock that somebody else holds ends in a definite answer.
func TestForeignLock(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, Timeout: time.Second})
	inv, leases := accept(t, s, asked("apm"))
	c := connect(t, dsn)
	if _, err := c.Exec(t.Context(), `BEGIN; LOCK TABLE invalidations`); err != nil {
		t.Fatal(err)
	}
	_, err := s.Record(t.Context(), leases[0], succeeded(inv.Runs[0]), nil)
	if !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
		t.Errorf("Record: %v, want ErrUnavailable", err)
	}
	if _, err := c.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Record(t.Context(), leases[0], succeeded(inv.Runs[0]), nil); err != nil {
		t.Errorf("Record afterwards: %v", err)
	}
}

// TestErrorsHoldNoSecret looks for the password, in every form of a DSN that is wrong or leads nowhere, and in the log.
func TestErrorsHoldNoSecret(t *testing.T) {
	t.Parallel()
	c := pgtest.Shared(t)
	const canary = "s3cr3t-canary"
	for _, dsn := range []string{
		"postgres://endsession:" + canary + "@" + c.Addr() + "/postgres?sslmode=disable",
		"postgres://endsession:" + canary + "@127.0.0.1:1/postgres?sslmode=disable",
		"postgres://endsession:" + canary + "@[::1/postgres",
		"postgres://endsession:" + canary + "%zz@localhost/postgres",
		"user=endsession password=" + canary + " host=127.0.0.1 port=x",
		"user=endsession password='" + canary,
		canary,
	} {
		var log bytes.Buffer
		s, err := postgres.Open(t.Context(), postgres.Options{DSN: secret.New(dsn), Logger: slog.New(slog.NewTextHandler(&log, nil)), Timeout: 2 * time.Second})
		if err == nil {
			_ = s.Close()
			t.Errorf("Open succeeded with %s", dsn)
			continue
		}
		for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), log.String()} {
			if strings.Contains(text, canary) {
				t.Errorf("the password is in %q", text)
			}
		}
	}
}

// TestDatabaseMustProveWhoItIs: or the log says that it need not. No server is asked.
func TestDatabaseMustProveWhoItIs(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for dsn, warned := range map[string]bool{
		"postgres://u:p@db.example/x":                                 true,
		"postgres://u:p@db.example/x?sslmode=disable":                 true,
		"postgres://u:p@db.example/x?sslmode=require":                 true,
		"postgres://u:p@127.0.0.1,db.example/x?sslmode=prefer":        true,
		"postgres://u:p@db.example/x?sslmode=verify-ca":               false,
		"postgres://u:p@db.example/x?sslmode=verify-full":             false,
		"postgres://u:p@db.example,db2.example/x?sslmode=verify-full": false,
		"postgres://u:p@127.0.0.1/x?sslmode=disable":                  false,
		"host=/run/postgresql user=u":                                 false,
		"host=::1 user=u":                                             false,
		"host=localhost user=u":                                       false,
	} {
		var log bytes.Buffer
		if _, err := postgres.Open(ctx, postgres.Options{DSN: secret.New(dsn), Logger: slog.New(slog.NewTextHandler(&log, nil))}); err == nil {
			t.Errorf("%s: Open succeeded", dsn)
		}
		if got := strings.Contains(log.String(), "sslmode=verify-full") && strings.Contains(log.String(), "host=db.example"); got != warned {
			t.Errorf("%s: warned %t, want %t:\n%s", dsn, got, warned, &log)
		}
	}
}
