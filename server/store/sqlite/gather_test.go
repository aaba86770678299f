package sqlite_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	sqlite3 "modernc.org/sqlite/lib"
)

// The answers of one invalidation share a commit, although they come one after the other; one that comes alone waits for
// no more than a moment, and for nobody else's change.
func TestAnswersShareACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := onDisk(t)
		syncs := 0 // the writer's
		d.ask(func(op, _ string) int32 {
			if op == "sync" {
				syncs++
			}
			return sqlite3.SQLITE_OK
		})
		begun := func() []func() {
			a := asked("apm", "kibana", "storage")
			a.Start = []int{0, 1, 2}
			inv, _, leases, err := s.Accept(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			var answers []func()
			for _, l := range leases {
				answers = append(answers, func() {
					run := inv.Runs[l.Run]
					run.State, run.CompleteTime = invalidation.RunSucceeded, time.Now()
					if _, err := s.Record(t.Context(), l, run, nil); err != nil {
						t.Errorf("Record: %v", err)
					}
				})
			}
			return answers
		}
		// during returns how long something took, and how many commits.
		during := func(do func()) (time.Duration, int) {
			synctest.Wait()
			at, before := time.Now(), syncs
			do()
			return time.Since(at), syncs - before
		}

		answers := begun()
		done := make(chan struct{})
		took, commits := during(func() {
			for _, answer := range answers {
				go func() { answer(); done <- struct{}{} }()
				synctest.Wait() // it is with the writer before the next one comes
			}
			for range answers {
				<-done
			}
		})
		if commits != 1 || took != 0 {
			t.Errorf("three answers took %d commits and %v, want one and no time", commits, took)
		}

		answers = begun()
		if took, commits := during(answers[0]); commits != 1 || took == 0 || took > time.Millisecond {
			t.Errorf("an answer alone took %d commits and %v, want one after a moment", commits, took)
		}
		took, commits = during(func() {
			go func() { answers[1](); done <- struct{}{} }()
			synctest.Wait()
			if err := accept(t.Context(), s, asked("apm")); err != nil {
				t.Error(err)
			}
			<-done
		})
		if commits != 1 || took != 0 {
			t.Errorf("an answer and an acceptance took %d commits and %v, want one and no time", commits, took)
		}
		x, y := begun(), begun()
		took, commits = during(func() {
			go func() { x[0](); done <- struct{}{} }()
			synctest.Wait()
			y[0]()
			<-done
		})
		if commits != 1 || took != 0 {
			t.Errorf("answers of two invalidations took %d commits and %v, want one and no time", commits, took)
		}
		if took, commits := during(answers[2]); commits != 1 || took != 0 {
			t.Errorf("the last answer took %d commits and %v, want one and no time", commits, took)
		}
	})
}
