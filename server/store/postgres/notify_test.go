package postgres_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// ear notes what a store tells.
type ear struct {
	mu    sync.Mutex
	heard map[string]int
}

func listenTo(s *postgres.Store) *ear {
	e := &ear{heard: map[string]int{}}
	s.OnChange(func(c invalidation.Change) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.heard[c.ID]++
	})
	return e
}

func (e *ear) times(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard[id]
}

func TestChangesAreToldOnceWhereTheyWereMadeAndToOthers(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s, other := open(t, dsn), open(t, dsn)
	here, there := listenTo(s), listenTo(other)
	var ids []string
	for range 500 { // more than one notification holds
		inv, _ := accept(t, s, asked("apm"))
		ids = append(ids, inv.ID)
		if n := here.times(inv.ID); n != 1 {
			t.Fatalf("told %d times when Accept returned, want once", n)
		}
	}
	last, _ := accept(t, other, asked("apm"))
	eventually(t, "both hear all", func() bool {
		for _, id := range ids {
			if there.times(id) == 0 {
				return false
			}
		}
		return here.times(last.ID) > 0
	})
	for _, id := range ids {
		if n := here.times(id); n != 1 {
			t.Fatalf("what a process tells came back to it: %d times", n)
		}
	}
	// Nothing was missed: nobody was told to look everywhere.
	if n := here.times(invalidation.AnyChange) + there.times(invalidation.AnyChange); n != 0 {
		t.Errorf("AnyChange was told %d times", n)
	}
}

// TestSomethingMayHaveBeenMissed: a process whose listening connection was lost, and one that sees another vanish.
func TestSomethingMayHaveBeenMissed(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Schema(t)
	s := openWith(t, postgres.Options{DSN: dsn, Owner: "survivor " + t.Name()})
	other := openWith(t, postgres.Options{DSN: dsn, Owner: "victim " + t.Name()})
	here, there := listenTo(s), listenTo(other)
	c := connect(t, dsn)
	// The survivor has looked at who is there after the victim came: it hears of the victim's change.
	inv, _ := accept(t, other, asked("apm"))
	eventually(t, "the change is heard", func() bool { return here.times(inv.ID) > 0 })
	eventually(t, "the survivor looks", func() bool {
		var at *time.Time
		err := c.QueryRow(t.Context(), `SELECT max(query_start) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '%pg_locks%'`,
			"endsession survivor "+t.Name()).Scan(&at)
		return err == nil && at != nil && at.After(inv.CreateTime)
	})
	var ended int
	if err := c.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1`,
		"endsession victim "+t.Name()).Scan(&ended); err != nil || ended == 0 {
		t.Fatal(ended, err)
	}
	eventually(t, "the survivor is told to look", func() bool { return here.times(invalidation.AnyChange) > 0 && here.times("") > 0 })
	eventually(t, "the victim is told to look", func() bool { return there.times(invalidation.AnyChange) > 0 && there.times("") > 0 })
	inv, _ = accept(t, s, asked("apm"))
	eventually(t, "the victim listens again", func() bool { return there.times(inv.ID) > 0 })
}

// TestNoDeadlocks lets everything at the same rows; whoever waits, waits in the same order.
func TestNoDeadlocks(t *testing.T) {
	t.Parallel()
	c := pgtest.New(t, pgtest.Fast())
	dsn := c.DSN(c.Schema(t))
	stores := []*postgres.Store{open(t, dsn), open(t, dsn)}
	targets := []string{"a", "b", "c", "d"}
	var mu sync.Mutex
	var known []string
	some := func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(known) == 0 {
			return ""
		}
		return known[max(0, len(known)-1-rand.IntN(5))]
	}
	ctx := t.Context()
	var wg sync.WaitGroup
	check := func(what string, err error) {
		for _, fine := range []error{nil, invalidation.ErrLeaseLost, invalidation.ErrFinal, invalidation.ErrNotFound} {
			if errors.Is(err, fine) {
				return
			}
		}
		t.Errorf("%s: %v", what, err)
	}
	for n := range 12 {
		s := stores[n%2]
		wg.Go(func() {
			owner := fmt.Sprint(n)
			for range 150 {
				switch n % 4 {
				case 0:
					a := asked(targets...)
					a.Start = nil
					inv, _ := accept(t, s, a)
					mu.Lock()
					known = append(known, inv.ID)
					mu.Unlock()
				case 1:
					_, err := s.Cancel(ctx, some(), time.Now(), nil)
					check("Cancel", err)
				case 2, 3:
					// The lease ends at once: late owners, and claims of what they hold.
					claimed, err := s.Claim(ctx, invalidation.Claim{Target: targets[rand.IntN(len(targets))], Owner: owner, Limit: 8,
						LeaseLength: time.Duration(rand.IntN(20)) * time.Millisecond})
					check("Claim", err)
					var leases []invalidation.Lease
					for _, x := range claimed {
						leases = append([]invalidation.Lease{x.Lease}, leases...)
					}
					_, err = s.Renew(ctx, leases, 10*time.Millisecond)
					check("Renew", err)
					for i, x := range claimed {
						if i%3 == 0 {
							check("Release", s.Release(ctx, x.Lease))
							continue
						}
						_, err := s.Record(ctx, x.Lease, succeeded(x.Run), nil)
						check("Record", err)
					}
					_, err = s.Prune(ctx, time.Now().Add(time.Hour), 2)
					check("Prune", err)
				}
			}
		})
	}
	wg.Wait()
	if log := string(c.Log()); strings.Contains(log, "deadlock detected") {
		t.Errorf("the server found deadlocks:\n%s", log)
	}
}
