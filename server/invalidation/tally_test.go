package invalidation_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// TestTallyNeverContradictsTheJournal lets answers of this process and changes of others be journalled in any order, be
// told of late and in another order, and reads fail: what the waiter sees is always what the journal had at that
// revision, it never goes back, and when everything was told it is the end.
func TestTallyNeverContradictsTheJournal(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		inv := invalidation.Invalidation{ID: "x", State: invalidation.Running, Revision: 1, Runs: make([]invalidation.Run, 1+r.IntN(4))}
		for i := range inv.Runs {
			inv.Runs[i] = invalidation.Run{Target: fmt.Sprint(i), State: invalidation.RunRunning}
		}
		history := []invalidation.Invalidation{inv} // by revision - 1
		commit := func(change func(*invalidation.Invalidation)) invalidation.Invalidation {
			next := history[len(history)-1]
			next.Runs = slices.Clone(next.Runs)
			next.Revision++
			change(&next)
			var states []invalidation.RunState
			for _, r := range next.Runs {
				states = append(states, r.State)
			}
			if next.State = invalidation.StateOf(states, false); next.State.Final() {
				next.CompleteTime = time.Unix(next.Revision, 0)
			}
			history = append(history, next)
			return next
		}
		tally := invalidation.NewTally(inv)
		seen, reads := inv, 0
		look := func() {
			fail := r.IntN(4) == 0
			now, err := tally.Look(func() (invalidation.Invalidation, error) {
				reads++
				if fail {
					return invalidation.Invalidation{}, errors.New("the journal is away")
				}
				return history[len(history)-1], nil
			})
			if err != nil {
				tally.Changed(invalidation.Change{ID: "x"}) // whoever waits is woken again, in the end
				return
			}
			if now.Revision < seen.Revision {
				t.Fatalf("seed %d: revision %d after %d", seed, now.Revision, seen.Revision)
			}
			if want := history[now.Revision-1]; !reflect.DeepEqual(now, want) {
				t.Fatalf("seed %d: revision %d is\n%+v, want\n%+v", seed, now.Revision, now, want)
			}
			seen = now
			seen.Runs = slices.Clone(now.Runs)
		}
		// later is what is told of some time.
		var later []func()
		tell := func() {
			i := r.IntN(len(later))
			f := later[i]
			later = slices.Delete(later, i, i+1)
			f()
		}
		foreign := r.IntN(3) == 0
		open := r.Perm(len(inv.Runs))
		// theirs waits for a slot, and others end it.
		theirs := -1
		if foreign && len(open) > 1 && r.IntN(2) == 0 {
			theirs, open = open[0], open[1:]
		}
		tellLater := func(after invalidation.Invalidation) {
			told := invalidation.Change{ID: "x", Revision: after.Revision}
			switch r.IntN(3) {
			case 0:
				told.Revision = 0
			case 1:
				told = invalidation.Change{ID: invalidation.AnyChange}
			}
			later = append(later, func() { tally.Changed(told) })
		}
		for len(open) > 0 || len(later) > 0 || theirs >= 0 {
			switch n := r.IntN(6); {
			case n < 2 && len(open) > 0: // an answer of ours
				i := open[0]
				open = open[1:]
				tally.Recording()
				if history[len(history)-1].Runs[i].State.Final() { // somebody was faster
					later = append(later, func() { tally.Recorded(i, invalidation.Run{}, invalidation.Head{}, invalidation.ErrLeaseLost) })
					break
				}
				after := commit(func(inv *invalidation.Invalidation) {
					inv.Runs[i].State, inv.Runs[i].Count = invalidation.RunSucceeded, r.IntN(9)
				})
				head := invalidation.Head{State: after.State, Revision: after.Revision, CompleteTime: after.CompleteTime}
				later = append(later, func() { tally.Recorded(i, after.Runs[i], head, nil) },
					func() { tally.Changed(invalidation.Change{ID: "x", Revision: after.Revision}) })
			case n == 2 && foreign && len(open) > 0 && !history[len(history)-1].State.Final(): // somebody cancels a run, or claims one
				after := commit(func(inv *invalidation.Invalidation) {
					if i := open[r.IntN(len(open))]; r.IntN(2) == 0 {
						inv.Runs[i].State = invalidation.RunCancelled
					}
				})
				tellLater(after)
			case n == 3 && theirs >= 0:
				i := theirs
				theirs = -1
				tellLater(commit(func(inv *invalidation.Invalidation) { inv.Runs[i].State = invalidation.RunSucceeded }))
			case n < 5 && len(later) > 0:
				tell()
			case n == 5:
				look() // when the time is up, say
			}
		}
		for range 50 {
			select {
			case <-tally.Woken():
				look()
				continue
			default:
			}
			break
		}
		if last := history[len(history)-1]; seen.Revision != last.Revision && last.State.Final() {
			t.Fatalf("seed %d: all was told, and revision %d is seen of %d", seed, seen.Revision, last.Revision)
		}
		if !foreign && reads > 0 {
			t.Fatalf("seed %d: the journal was read %d times although nobody else changed anything", seed, reads)
		}
	}
}

// readCounter counts how often the journal is read.
type readCounter struct {
	invalidation.Store
	gets atomic.Int64
}

func (s *readCounter) Get(ctx context.Context, id string) (invalidation.Invalidation, error) {
	s.gets.Add(1)
	return s.Store.Get(ctx, id)
}

func TestCallersAreAnsweredWithoutReadingTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "a", "b", "c")
		f.scripts["b"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			time.Sleep(time.Second)
			res, err := ended(2)(ctx, req)
			res.Covered, res.Warnings = []string{}, []adapters.Warning{{Code: "A_WARNING", Message: "of something"}}
			res.Sessions = []adapters.Session{{ID: "1", CreateTime: time.Now().Add(-time.Nanosecond)}}
			return res, err
		})
		f.scripts["c"].answer(ended(0))
		counter := &readCounter{}
		f.start(func(s invalidation.Store) invalidation.Store { counter.Store = s; return counter })
		defer f.stop(time.Minute)
		synctest.Wait() // the workers have looked for what there is to do, and begin runs at once
		inv := f.invalidate(user("alice"), time.Minute)
		if n := counter.gets.Load(); n != 0 {
			t.Errorf("the journal was read %d times", n)
		}
		kept, err := f.store.Get(t.Context(), inv.ID)
		if err != nil {
			t.Fatal(err)
		}
		if inv.State != invalidation.Succeeded || !reflect.DeepEqual(inv, kept) {
			t.Errorf("the caller was told\n%+v, the journal has\n%+v", inv, kept)
		}
	})
}
