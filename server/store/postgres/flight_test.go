package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/google/uuid"
)

// flight is a shared transaction to be: what joins it is done when it departs.
type flight struct {
	t      *testing.T
	s      *postgres.Store
	depart func()
	all    sync.WaitGroup
	n      int
}

func ground(t *testing.T, s *postgres.Store) *flight {
	return &flight{t: t, s: s, depart: s.Ground()}
}

// join returns when do waits for the departure.
func (f *flight) join(do func()) {
	f.t.Helper()
	f.n++
	f.all.Go(do)
	eventually(f.t, "it is queued", func() bool { return f.s.Queued() == f.n })
}

func (f *flight) fly() {
	f.depart()
	f.all.Wait()
}

// begun is an invalidation all of whose runs are leased, for answers.
func begun(t *testing.T, s invalidation.Store, targets ...string) (invalidation.Invalidation, []invalidation.Lease) {
	t.Helper()
	a := asked(targets...)
	for i := range targets {
		a.Start = append(a.Start[:i], i)
	}
	return accept(t, s, a)
}

// transactions counts those that have written what the query selects.
func transactions(t *testing.T, s *postgres.Store, query string, ids []string) (n int) {
	t.Helper()
	if err := connect(t, dsnOf(s)).QueryRow(t.Context(), query, ids).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

const (
	acceptedIn = `SELECT count(DISTINCT xmin::text) FROM audit WHERE type = 'invalidation.accepted' AND invalidation_id = ANY ($1)`
	answeredIn = `SELECT count(DISTINCT xmin::text) FROM audit WHERE type = 'run.ended' AND invalidation_id = ANY ($1)`
)

// Of changes that share a transaction, one cannot be made. It gets the error that it would get alone, and all others are
// made.
func TestFlight_OneCannotBeMade(t *testing.T) {
	requested := func(id, digest string) invalidation.Acceptance {
		a := asked("apm")
		a.RequestID, a.Digest = id, []byte(digest)
		return a
	}
	acceptance := func(a invalidation.Acceptance) func(s *postgres.Store) error {
		return func(s *postgres.Store) error {
			_, _, _, err := s.Accept(context.Background(), a)
			return err
		}
	}
	answerOf := func(l invalidation.Lease, r invalidation.Run) func(s *postgres.Store) error {
		return func(s *postgres.Store) error {
			_, err := s.Record(context.Background(), l, r, ended(l))
			return err
		}
	}
	for _, c := range []struct {
		name string
		// bad makes what is in the journal before, and returns the change.
		bad     func(t *testing.T, s *postgres.Store) func(*postgres.Store) error
		want    error
		wantNot error
		// apart is true if the server cannot say whom it refuses: then each change is made alone.
		apart bool
	}{
		{name: "a request id that stands for another request", want: invalidation.ErrRequestReused, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			accept(t, s, requested("r", "first"))
			return acceptance(requested("r", "second"))
		}},
		{name: "a request id of the same request", bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			first, _ := accept(t, s, requested("r", "first"))
			return func(s *postgres.Store) error {
				inv, replayed, leases, err := s.Accept(context.Background(), requested("r", "first"))
				if err == nil && (!replayed || inv.ID != first.ID || len(leases) > 0) {
					err = fmt.Errorf("replayed %t: %s with %d leases, want %s", replayed, inv.ID, len(leases), first.ID)
				}
				return err
			}
		}},
		{name: "a lost lease", want: invalidation.ErrLeaseLost, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			inv, leases := accept(t, s, asked("apm"))
			if _, err := s.Cancel(t.Context(), inv.ID, time.Now(), nil); err != nil {
				t.Fatal(err)
			}
			return answerOf(leases[0], succeeded(inv.Runs[0]))
		}},
		{name: "a lease that has ended", want: invalidation.ErrLeaseLost, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			a := asked("apm")
			a.LeaseLength = time.Microsecond
			inv, leases := accept(t, s, a)
			return answerOf(leases[0], succeeded(inv.Runs[0]))
		}},
		{name: "another's lease", want: invalidation.ErrLeaseLost, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			inv, leases := accept(t, s, asked("apm"))
			leases[0].Owner = "you"
			return answerOf(leases[0], succeeded(inv.Runs[0]))
		}},
		{name: "an illegal transition", want: invalidation.ErrIllegalTransition, wantNot: invalidation.ErrUnavailable, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			inv, leases := accept(t, s, asked("apm"))
			r := inv.Runs[0]
			r.State = invalidation.RunPending
			return answerOf(leases[0], r)
		}},
		{name: "an answer that the schema refuses", want: errAny, wantNot: invalidation.ErrUnavailable, apart: true, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			inv, leases := accept(t, s, asked("apm"))
			r := succeeded(inv.Runs[0])
			r.Attempts = -1
			return answerOf(leases[0], r)
		}},
		{name: "an acceptance that the schema refuses", want: errAny, wantNot: invalidation.ErrUnavailable, apart: true, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			return acceptance(asked("apm", "apm"))
		}},
		{name: "an id that is taken", want: errAny, wantNot: invalidation.ErrUnavailable, apart: true, bad: func(t *testing.T, s *postgres.Store) func(*postgres.Store) error {
			inv, _ := accept(t, s, asked("apm"))
			a := asked("apm")
			a.Invalidation.ID = inv.ID
			return acceptance(a)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, pgtest.Schema(t))
			bad := c.bad(t, s)
			var accepted, answered []string
			var answers []func(*postgres.Store) error
			for range 4 {
				inv, leases := begun(t, s, "apm", "kibana")
				for i, l := range leases {
					answers = append(answers, answerOf(l, succeeded(inv.Runs[i])))
				}
				answered = append(answered, inv.ID)
			}
			before := len(events(t, s))

			f := ground(t, s)
			good := func(do func(*postgres.Store) error) {
				f.join(func() {
					if err := do(s); err != nil {
						t.Errorf("beside it: %v", err)
					}
				})
			}
			for _, a := range answers[:4] {
				good(a)
			}
			f.join(func() {
				err := bad(s)
				if c.want == nil && err != nil || errors.Is(c.want, errAny) && err == nil || c.want != nil && !errors.Is(c.want, errAny) && !errors.Is(err, c.want) ||
					c.wantNot != nil && errors.Is(err, c.wantNot) || errors.Is(err, invalidation.ErrCommitUnknown) {
					t.Errorf("%v, want %v and not %v", err, c.want, c.wantNot)
				}
			})
			for range 4 {
				a := asked("apm", "kibana")
				accepted = append(accepted, a.Invalidation.ID)
				good(acceptance(a))
			}
			for _, a := range answers[4:] {
				good(a)
			}
			f.fly()

			for _, id := range answered {
				if inv, err := s.Get(t.Context(), id); err != nil || inv.State != invalidation.Succeeded || inv.Revision != 3 {
					t.Errorf("answered: %s, revision %d, error %v", inv.State, inv.Revision, err)
				}
			}
			for _, id := range accepted {
				if inv, err := s.Get(t.Context(), id); err != nil || inv.State != invalidation.Running || len(inv.Runs) != 2 {
					t.Errorf("accepted: %s with %d runs, error %v", inv.State, len(inv.Runs), err)
				}
			}
			if n := len(events(t, s)) - before; n != len(answers)+len(accepted) {
				t.Errorf("%d events of it, want %d", n, len(answers)+len(accepted))
			}
			if n := transactions(t, s, acceptedIn, accepted); (n == 1) == c.apart {
				t.Errorf("accepted in %d transactions", n)
			}
			if n := transactions(t, s, answeredIn, answered); (n == 1) == c.apart {
				t.Errorf("answered in %d transactions", n)
			}
		})
	}
}

// One request comes three times at once, once with other contents.
func TestFlight_OneRequestTwice(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Schema(t))
	f := ground(t, s)
	var mu sync.Mutex
	replays, reused := 0, 0
	ids := map[string]bool{}
	for _, digest := range []string{"a", "a", "b", "a"} {
		a := asked("apm")
		a.RequestID, a.Digest = "r", []byte(digest)
		f.join(func() {
			inv, replayed, leases, err := s.Accept(context.Background(), a)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, invalidation.ErrRequestReused):
				reused++
			case err != nil:
				t.Errorf("Accept: %v", err)
			case replayed:
				replays++
				ids[inv.ID] = true
			default:
				ids[inv.ID] = true
				if len(leases) != 1 {
					t.Errorf("%d leases", len(leases))
				}
			}
		})
	}
	other := asked("apm")
	f.join(func() { accept(t, s, other) })
	f.fly()
	// What came first stands.
	if len(ids) != 1 || replays != 2 || reused != 1 {
		t.Errorf("%d invalidations, %d replays, %d refused", len(ids), replays, reused)
	}
	if n := len(events(t, s)); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// One acceptance comes twice, with all it has: the server cannot tell them apart.
func TestFlight_OneAcceptanceTwice(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Schema(t))
	f := ground(t, s)
	a := asked("apm")
	a.RequestID, a.Digest = "r", []byte("a")
	var accepted, replays atomic.Int32
	for range 2 {
		f.join(func() {
			switch _, replayed, _, err := s.Accept(context.Background(), a); {
			case err != nil:
				t.Errorf("Accept: %v", err)
			case replayed:
				replays.Add(1)
			default:
				accepted.Add(1)
			}
		})
	}
	f.fly()
	if accepted.Load() != 1 || replays.Load() != 1 {
		t.Errorf("%d accepted, %d replays", accepted.Load(), replays.Load())
	}
	if n := len(events(t, s)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// Answers of one invalidation share a transaction: each raises the revision by one, in the order of their events, and only
// the last ends it.
func TestFlight_AnswersOfOneInvalidation(t *testing.T) {
	for name, states := range map[string][]invalidation.RunState{
		"the last":  {invalidation.RunSucceeded, invalidation.RunFailed, invalidation.RunSucceeded},
		"not all":   {invalidation.RunSucceeded, invalidation.RunRetrying, invalidation.RunFailed},
		"not final": {invalidation.RunRetrying, invalidation.RunRunning, invalidation.RunRetrying},
		"succeeded": {invalidation.RunSucceeded, invalidation.RunSucceeded, invalidation.RunSucceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, pgtest.Schema(t))
			var told []invalidation.Change
			inv, leases := begun(t, s, "a", "b", "c")
			_, _ = begun(t, s, "a") // another's revision is another
			var mu sync.Mutex
			s.OnChange(func(c invalidation.Change) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, c)
			})
			f := ground(t, s)
			heads := make([]invalidation.Head, len(leases))
			for _, i := range rand.Perm(len(leases)) {
				l := leases[i]
				r := inv.Runs[i]
				r.State = states[i]
				if r.State.Final() {
					r.CompleteTime = time.Now().Add(time.Duration(rand.IntN(1000)) * time.Millisecond)
				}
				f.join(func() {
					var err error
					if heads[i], err = s.Record(context.Background(), l, r, []invalidation.Event{{Time: time.Now(), Type: "run.ended", InvalidationID: l.InvalidationID, Target: r.Target}}); err != nil {
						t.Errorf("Record: %v", err)
					}
				})
			}
			f.fly()
			got, err := s.Get(t.Context(), inv.ID)
			if err != nil {
				t.Fatal(err)
			}
			if want := invalidation.StateOf(states, false); got.State != want || got.Revision != 4 {
				t.Errorf("%s, revision %d, want %s, 4", got.State, got.Revision, want)
			}
			list := events(t, s)
			for i, h := range heads {
				want := invalidation.Head{State: invalidation.Running, Revision: int64(2 + i)}
				if i == len(heads)-1 {
					want.State, want.CompleteTime = got.State, got.CompleteTime
				}
				if h != want {
					t.Errorf("head %d: %+v, want %+v", i, h, want)
				}
				if e := list[len(list)-len(heads)+i]; e.Target != got.Runs[i].Target {
					t.Errorf("event %d is of %s, want %s", i, e.Target, got.Runs[i].Target)
				}
				if c := told[i]; c.ID != inv.ID || c.Revision != h.Revision {
					t.Errorf("told %+v, want revision %d", c, h.Revision)
				}
			}
			if n := transactions(t, s, answeredIn, []string{inv.ID}); n != 1 {
				t.Errorf("%d transactions", n)
			}
		})
	}
}

// Answers of one invalidation wait for each other, and for nobody else; anybody else's change ends the waiting.
func TestFlight_AnswersWaitForEachOther(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	patient := open(t, dsn)
	patient.Gather(time.Hour)
	record := func(s *postgres.Store, inv invalidation.Invalidation, l invalidation.Lease) {
		if _, err := s.Record(context.Background(), l, succeeded(inv.Runs[l.Run]), ended(l)); err != nil {
			t.Errorf("Record: %v", err)
		}
	}
	var all sync.WaitGroup
	held := func(inv invalidation.Invalidation, l invalidation.Lease) {
		t.Helper()
		before := patient.Queued()
		all.Go(func() { record(patient, inv, l) })
		eventually(t, "it is queued", func() bool { return patient.Queued() == before+1 })
	}
	together := func(want int, ids ...string) {
		t.Helper()
		all.Wait()
		if n := transactions(t, patient, `SELECT count(DISTINCT xmin::text) FROM audit WHERE invalidation_id = ANY ($1)`, ids); n != want {
			t.Errorf("%d transactions, want %d", n, want)
		}
	}
	x, xs := begun(t, patient, "a", "b", "c")
	held(x, xs[0])
	held(x, xs[2])
	record(patient, x, xs[1])
	together(2, x.ID) // with that of the acceptance

	x, xs = begun(t, patient, "a", "b", "c")
	held(x, xs[0])
	y, ys := begun(t, patient, "a", "b")
	together(2, x.ID, y.ID)
	held(x, xs[1])
	record(patient, y, ys[1])
	together(3, x.ID, y.ID)
	record(patient, x, xs[2])
	record(patient, y, ys[0])

	alone, l := begun(t, patient, "a")
	record(patient, alone, l[0])

	// A moment is short.
	s := open(t, dsn)
	x, xs = begun(t, s, "a", "b")
	record(s, x, xs[0])
	// What has been waiting is told when the journal is closed.
	z, zs := begun(t, patient, "a", "b")
	closing := make(chan error, 1)
	go func() {
		_, err := patient.Record(context.Background(), zs[0], succeeded(z.Runs[0]), ended(zs[0]))
		closing <- err
	}()
	eventually(t, "it is queued", func() bool { return patient.Queued() == 1 })
	if err := patient.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-closing; !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
		t.Errorf("Record when the journal is closed: %v", err)
	}
	events(t, s)
}

// Twice the same answer at once is once an answer.
func TestFlight_OneLeaseTwice(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Schema(t))
	inv, leases := accept(t, s, asked("apm", "kibana"))
	f := ground(t, s)
	var mu sync.Mutex
	lost := 0
	for range 2 {
		f.join(func() {
			head, err := s.Record(context.Background(), leases[0], succeeded(inv.Runs[0]), ended(leases[0]))
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, invalidation.ErrLeaseLost) {
				lost++
			} else if err != nil || head.Revision != 2 {
				t.Errorf("Record: revision %d, error %v", head.Revision, err)
			}
		})
	}
	f.fly()
	if got, err := s.Get(t.Context(), inv.ID); lost != 1 || err != nil || got.Revision != 2 || got.Runs[0].State != invalidation.RunSucceeded {
		t.Errorf("%d refused; revision %d, error %v", lost, got.Revision, err)
	}
	if n := len(events(t, s)); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// Who gives up before the departure knows that nothing has changed, and holds up nobody.
func TestFlight_Withdrawal(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Schema(t))
	inv, leases := accept(t, s, asked("apm"))
	f := ground(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan struct{}, 2)
	given := asked("apm")
	f.join(func() {
		if _, _, _, err := s.Accept(ctx, given); !errors.Is(err, invalidation.ErrUnavailable) || !errors.Is(err, context.Canceled) || errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Errorf("Accept: %v", err)
		}
		gaveUp <- struct{}{}
	})
	f.join(func() {
		if _, err := s.Record(ctx, leases[0], succeeded(inv.Runs[0]), ended(leases[0])); !errors.Is(err, invalidation.ErrUnavailable) || !errors.Is(err, context.Canceled) || errors.Is(err, invalidation.ErrCommitUnknown) {
			t.Errorf("Record: %v", err)
		}
		gaveUp <- struct{}{}
	})
	kept := asked("apm")
	f.join(func() { accept(t, s, kept) })
	cancel()
	<-gaveUp
	<-gaveUp
	f.fly()
	if _, err := s.Get(t.Context(), given.Invalidation.ID); !errors.Is(err, invalidation.ErrNotFound) {
		t.Errorf("what was withdrawn: %v", err)
	}
	if got, err := s.Get(t.Context(), inv.ID); err != nil || got.Revision != 1 {
		t.Errorf("revision %d, error %v: the answer was withdrawn", got.Revision, err)
	}
	if _, err := s.Get(t.Context(), kept.Invalidation.ID); err != nil {
		t.Errorf("what was not: %v", err)
	}
	events(t, s)
}

// Nobody waits for ever on the ground.
func TestFlight_NoDeparture(t *testing.T) {
	t.Parallel()
	s := openWith(t, postgres.Options{DSN: pgtest.Schema(t), Timeout: 300 * time.Millisecond})
	f := ground(t, s)
	a := asked("apm")
	if _, _, _, err := s.Accept(context.Background(), a); !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
		t.Errorf("Accept: %v", err)
	}
	f.depart()
	accept(t, s, asked("apm"))
	if _, err := s.Get(t.Context(), a.Invalidation.ID); !errors.Is(err, invalidation.ErrNotFound) {
		t.Errorf("what was refused: %v", err)
	}
}

// The connection breaks under a flight: every acceptance finds out what became of it, no answer does.
func TestFlight_LostAnswer(t *testing.T) {
	for _, c := range []struct {
		name    string
		verdict pgtest.Verdict
	}{{"Arrived", pgtest.PassAndCut}, {"DidNotArrive", pgtest.Cut}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cluster := pgtest.Shared(t)
			schema := cluster.Schema(t)
			p := pgtest.NewProxy(t, cluster.Addr())
			direct := open(t, cluster.DSN(schema))
			s := openWith(t, postgres.Options{DSN: cluster.DSNAt(p.Addr(), schema), MaxConns: 2, Timeout: 3 * time.Second})
			warmup, l := accept(t, s, asked("apm"))
			if _, err := s.Record(t.Context(), l[0], succeeded(warmup.Runs[0]), ended(l[0])); err != nil { // prepared
				t.Fatal(err)
			}
			inv, leases := begun(t, s, "apm", "kibana")
			f := ground(t, s)
			var asks []invalidation.Acceptance
			for range 5 {
				a := asked("apm", "kibana")
				asks = append(asks, a)
				f.join(func() {
					got, replayed, leases, err := s.Accept(context.Background(), a)
					switch {
					case c.verdict == pgtest.PassAndCut && (err != nil || replayed || got.ID != a.Invalidation.ID || len(leases) != 1):
						t.Errorf("Accept: replayed %t, %d leases, error %v: it was committed", replayed, len(leases), err)
					case c.verdict == pgtest.Cut && (!errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown)):
						t.Errorf("Accept: %v, want ErrUnavailable", err)
					}
				})
			}
			for i, l := range leases {
				f.join(func() {
					if _, err := s.Record(context.Background(), l, succeeded(inv.Runs[i]), ended(l)); !errors.Is(err, invalidation.ErrCommitUnknown) {
						t.Errorf("Record: %v, want ErrCommitUnknown", err)
					}
				})
			}
			id := []byte(asks[0].Invalidation.ID)
			var once sync.Once
			p.Hook(func(piece []byte) (v pgtest.Verdict) {
				if bytes.Contains(piece, id) {
					once.Do(func() { v = c.verdict })
				}
				return v
			}, nil)
			f.fly()
			for _, a := range asks {
				if _, err := direct.Get(t.Context(), a.Invalidation.ID); (err == nil) != (c.verdict == pgtest.PassAndCut) {
					t.Errorf("it is there: %v", err)
				}
			}
			want := invalidation.Running
			if c.verdict == pgtest.PassAndCut {
				want = invalidation.Succeeded
			}
			if got, err := direct.Get(t.Context(), inv.ID); err != nil || got.State != want {
				t.Errorf("%s, error %v, want %s", got.State, err, want)
			}
			accept(t, s, asked("apm"))
			events(t, direct) // the chains have no gaps
		})
	}
}

// The server ends the connection under a flight, and says so: that is a lost answer, too.
func TestFlight_Ended(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, Timeout: time.Minute, MaxConns: 3})
	inv, leases := begun(t, s, "apm", "kibana")
	c := connect(t, dsn)
	must(t, c, `BEGIN; LOCK TABLE audit IN SHARE MODE`)
	f := ground(t, s)
	for range 3 {
		f.join(func() {
			if _, _, _, err := s.Accept(context.Background(), asked("apm")); !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
				t.Errorf("Accept: %v, want ErrUnavailable", err)
			}
		})
	}
	for i, l := range leases {
		f.join(func() {
			if _, err := s.Record(context.Background(), l, succeeded(inv.Runs[i]), ended(l)); !errors.Is(err, invalidation.ErrCommitUnknown) {
				t.Errorf("Record: %v, want ErrCommitUnknown", err)
			}
		})
	}
	f.depart()
	eventually(t, "it waits for the lock and is ended", func() bool {
		var n int
		err := c.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE relation = 'audit'::regclass AND NOT granted`).Scan(&n)
		return err == nil && n == 1
	})
	f.all.Wait()
	must(t, c, `COMMIT`)
	if list, _, err := s.List(t.Context(), invalidation.Query{Limit: 10}); err != nil || len(list) != 1 || list[0].Revision != 1 {
		t.Errorf("%d invalidations, error %v: nothing has changed", len(list), err)
	}
	events(t, s)
}

// Somebody hangs with a lock. Who needs it waits; who shares a transaction with him, or comes later, does not.
func TestFlight_NobodyWaitsForAnothersLock(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, Timeout: time.Minute}) // a lock is waited for half of it
	c := connect(t, dsn)
	hold := func(id string) {
		if _, err := c.Exec(t.Context(), `SELECT FROM invalidations WHERE id = $1 FOR UPDATE`, id); err != nil {
			t.Fatal(err)
		}
	}
	inv, leases := begun(t, s, "apm", "kibana")
	must(t, c, `BEGIN`)
	hold(inv.ID)
	answer := make(chan error, 2)
	record := func(l invalidation.Lease) {
		_, err := s.Record(context.Background(), l, succeeded(inv.Runs[l.Run]), ended(l))
		answer <- err
	}
	f := ground(t, s)
	f.join(func() { go record(leases[0]) })
	for range 5 {
		f.join(func() { accept(t, s, asked("apm")) })
	}
	began := time.Now()
	f.fly()
	go record(leases[1]) // a flight of its own
	for range 5 {
		accept(t, s, asked("apm"))
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	select {
	case err := <-answer:
		t.Fatalf("Record has not waited: %v", err)
	default:
	}
	must(t, c, `COMMIT`)
	for range leases {
		if err := <-answer; err != nil {
			t.Errorf("Record: %v", err)
		}
	}
	if got, err := s.Get(t.Context(), inv.ID); err != nil || got.State != invalidation.Succeeded || got.Revision != 3 {
		t.Errorf("%s, revision %d, error %v", got.State, got.Revision, err)
	}
	events(t, s)
}

// More changes than there can be flights wait for locks, each by itself. The others do not wait for them.
func TestFlight_ManyWaitForLocks(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, Timeout: time.Minute}) // a lock is waited for half of it
	c := connect(t, dsn)
	const many = 6
	var invs []invalidation.Invalidation
	var leases []invalidation.Lease
	for range many {
		inv, l := accept(t, s, asked("apm"))
		invs, leases = append(invs, inv), append(leases, l[0])
	}
	must(t, c, `BEGIN; SELECT FROM invalidations FOR UPDATE`)
	answers := make(chan error, many)
	for i := range many {
		go func() {
			_, err := s.Record(context.Background(), leases[i], succeeded(invs[i].Runs[0]), nil)
			answers <- err
		}()
		eventually(t, "it waits for the lock", func() bool {
			var n int
			err := c.QueryRow(t.Context(), `SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid`).Scan(&n)
			return err == nil && n > i
		})
	}
	began := time.Now()
	accept(t, s, asked("apm"))
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	must(t, c, `COMMIT`)
	for range many {
		if err := <-answers; err != nil {
			t.Errorf("Record: %v", err)
		}
	}
}

// Close waits for what is in the air, and ends what is not.
func TestFlight_Close(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, MaxConns: 2, Timeout: 10 * time.Minute}) // a flight waits for a lock for a while
	other := open(t, dsn)
	told := listenTo(other)
	c := connect(t, dsn)
	must(t, c, `BEGIN; LOCK TABLE runs IN SHARE MODE`)
	answer := make(chan error, 1)
	a := asked("apm")
	go func() {
		_, _, _, err := s.Accept(context.Background(), a)
		answer <- err
	}()
	eventually(t, "it waits for the lock", func() bool {
		var n int
		err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'runs'::regclass AND NOT granted`).Scan(&n)
		return err == nil && n == 1
	})
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	eventually(t, "it is closing", func() bool {
		_, err := s.Now(t.Context())
		return errors.Is(err, invalidation.ErrUnavailable)
	})
	if _, _, _, err := s.Accept(t.Context(), asked("apm")); !errors.Is(err, invalidation.ErrUnavailable) || errors.Is(err, invalidation.ErrCommitUnknown) {
		t.Errorf("Accept meanwhile: %v", err)
	}
	select {
	case err := <-closed:
		t.Errorf("Close has not waited: %v", err)
	case err := <-answer:
		t.Errorf("Accept has not waited: %v", err)
	default:
	}
	must(t, c, `COMMIT`)
	if err := <-answer; err != nil {
		t.Errorf("Accept: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := other.Get(t.Context(), a.Invalidation.ID); err != nil {
		t.Errorf("what was accepted: %v", err)
	}
	eventually(t, "others are told of it", func() bool { return told.times(a.Invalidation.ID) > 0 })
}

// Two processes record the answers of the same invalidations in shared transactions, while they are cancelled and accepted
// again under the same request ids. Nobody waits in a circle, and all comes out even.
func TestFlight_TwoProcesses(t *testing.T) {
	t.Parallel()
	cluster := pgtest.New(t, pgtest.Fast())
	dsn := cluster.DSN(cluster.Schema(t))
	stores := []*postgres.Store{open(t, dsn), open(t, dsn)}
	targets := []string{"a", "b", "c", "d"}
	for range 40 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		recorded := map[string]int64{}
		var ids []string
		type job struct {
			s   *postgres.Store
			l   invalidation.Lease
			run invalidation.Run
		}
		var jobs []job
		for range 8 {
			inv, leases := begun(t, stores[0], targets...)
			ids = append(ids, inv.ID)
			for i, l := range leases {
				jobs = append(jobs, job{stores[rand.IntN(2)], l, succeeded(inv.Runs[i])})
			}
		}
		var requests []string
		for range 4 {
			requests = append(requests, uuid.NewString())
		}
		rand.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
		for _, j := range jobs {
			wg.Go(func() {
				head, err := j.s.Record(t.Context(), j.l, j.run, ended(j.l))
				switch {
				case errors.Is(err, invalidation.ErrLeaseLost): // cancelled
				case err != nil:
					t.Errorf("Record: %v", err)
				default:
					mu.Lock()
					defer mu.Unlock()
					recorded[fmt.Sprint(j.l.InvalidationID, head.Revision)]++
				}
			})
		}
		for _, id := range ids[:3] {
			wg.Go(func() {
				if _, err := stores[rand.IntN(2)].Cancel(t.Context(), id, time.Now(), nil); err != nil && !errors.Is(err, invalidation.ErrFinal) {
					t.Errorf("Cancel: %v", err)
				}
			})
		}
		for i, s := range stores {
			for _, r := range requests {
				if i == 1 {
					r = requests[len(requests)-1]
					requests = requests[:len(requests)-1]
				}
				a := asked("a")
				a.RequestID, a.Digest = r, []byte(r)
				wg.Go(func() {
					if _, _, _, err := s.Accept(t.Context(), a); err != nil {
						t.Errorf("Accept: %v", err)
					}
				})
			}
		}
		wg.Wait()
		for revision, n := range recorded {
			if n != 1 {
				t.Errorf("%d answers made %s", n, revision)
			}
		}
		for i, id := range ids {
			got, err := stores[1].Get(t.Context(), id)
			if err != nil || !got.State.Final() || i >= 3 && (got.State != invalidation.Succeeded || got.Revision != 5) {
				t.Fatalf("%s, revision %d, error %v", got.State, got.Revision, err)
			}
		}
	}
	if log := string(cluster.Log()); strings.Contains(log, "deadlock detected") {
		t.Errorf("the server found deadlocks:\n%s", log)
	}
	events(t, stores[0])
}
