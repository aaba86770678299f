package invalidation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

// note notes n events of a type.
func (f *fixture) note(typ, source string, n int) {
	for range n {
		f.engine.Note(f.t.Context(), source, invalidation.Event{Type: typ, Caller: invalidation.Caller{Kind: "api_key", Name: source}})
	}
}

// written are how many events there are of each type, and those that are told to have been suppressed.
func (f *fixture) written() (events, suppressed map[string]int) {
	f.t.Helper()
	events, suppressed = map[string]int{}, map[string]int{}
	for _, e := range f.trail() {
		events[e.Type]++
		if e.Type != invalidation.EventSuppressed {
			continue
		}
		var data struct {
			Count int
			Since time.Time
			Types map[string]int
		}
		if err := json.Unmarshal(e.Data, &data); err != nil {
			f.t.Fatal(err)
		}
		sum := 0
		for typ, n := range data.Types {
			suppressed[typ] += n
			sum += n
		}
		if data.Count != sum || data.Since.IsZero() || data.Since.After(e.Time) || e.Caller != audit.Gateway {
			f.t.Errorf("%v: %s of %v", e.Time, e.Data, e.Caller)
		}
	}
	return events, suppressed
}

func (f *fixture) wantWritten(what string, events, suppressed map[string]int) {
	f.t.Helper()
	e, s := f.written()
	delete(e, invalidation.EventSuppressed)
	if !maps.Equal(e, events) || !maps.Equal(s, suppressed) {
		f.t.Errorf("%s: journalled %v, told to have suppressed %v; want %v and %v", what, e, s, events, suppressed)
	}
}

const (
	refused = invalidation.EventRefused
	denied  = invalidation.EventDenied
)

type counts = map[string]int

func TestASourceNotesAFewThenOneAMinute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t)
		f.start(nil)
		wantEvents := func(what string, want counts) {
			t.Helper()
			events, _ := f.written()
			delete(events, invalidation.EventSuppressed)
			if !maps.Equal(events, want) {
				t.Errorf("%s: journalled %v, want %v", what, events, want)
			}
		}
		f.note(refused, "192.0.2.1", 15)
		wantEvents("at once", counts{refused: 10})
		// Neither others nor other events have to wait for it.
		f.note(refused, "192.0.2.2", 1)
		f.note(denied, "192.0.2.1", 11)
		wantEvents("with others", counts{refused: 11, denied: 10})
		sleep(time.Minute)
		f.note(refused, "192.0.2.1", 2)
		wantEvents("a minute later", counts{refused: 12, denied: 10})
		sleep(time.Hour)
		f.wantWritten("an hour later", counts{refused: 12, denied: 10}, counts{refused: 6, denied: 1})
		f.note(refused, "192.0.2.1", 12)
		f.stop(time.Minute)
		f.wantWritten("when it has stopped", counts{refused: 22, denied: 10}, counts{refused: 8, denied: 1})
	})
}

// A flood of those whom nobody knows does not keep what a known caller was denied out of the trail.
func TestAllSourcesTogetherAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t)
		f.start(nil)
		flood := func(n int) {
			for i := range n {
				f.note(refused, fmt.Sprintf("2001:db8::%x", i), 1)
			}
		}
		flood(400)
		f.note(denied, "api_key helpdesk", 1)
		sleep(time.Minute)
		f.wantWritten("at once", counts{refused: 300, denied: 1}, counts{refused: 100})
		flood(400)
		f.stop(time.Minute)
		f.wantWritten("a minute later", counts{refused: 312, denied: 1}, counts{refused: 488})
	})
}

func TestSuppressedNotesAreToldOnceAMinute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t)
		f.start(nil)
		began := time.Now()
		const calls = 10 * 60
		for range calls { // for ten minutes
			f.note(refused, "192.0.2.1", 1)
			time.Sleep(time.Second)
		}
		f.stop(time.Minute)
		events, suppressed := f.written()
		if n := events[invalidation.EventSuppressed]; n < 9 || n > 12 {
			t.Errorf("told %d times in ten minutes, want once a minute", n)
		}
		if events[refused]+suppressed[refused] != calls {
			t.Errorf("%d written, %d told to be suppressed: want %d together", events[refused], suppressed[refused], calls)
		}
		// The first says since when: the eleventh, ten seconds after the first.
		for _, e := range f.trail() {
			if e.Type != invalidation.EventSuppressed {
				continue
			}
			var data struct{ Since time.Time }
			if err := json.Unmarshal(e.Data, &data); err != nil || !data.Since.Equal(began.Add(10*time.Second)) {
				t.Errorf("since %v, %v; want %v", data.Since, err, began.Add(10*time.Second))
			}
			break
		}
	})
}

// Twenty a second for an hour, from everywhere: what is documented is journalled, and the rest is counted.
func TestNotesDoNotFillTheDisk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t)
		f.start(nil)
		const calls = 20 * 3600
		for i := range calls {
			f.note(refused, fmt.Sprintf("2001:db8::%x", i%50_000), 1)
			time.Sleep(time.Second / 20)
		}
		f.stop(time.Minute)
		events, suppressed := f.written()
		if n := events[refused]; n < 300+3600/5-2 || n > 300+3600/5+1 {
			t.Errorf("%d refusals journalled, want 300 and one every five seconds", n)
		}
		if n := events[invalidation.EventSuppressed]; n < 59 || n > 62 {
			t.Errorf("told %d times, want once a minute", n)
		}
		if events[refused]+suppressed[refused] != calls {
			t.Errorf("%d written, %d told to be suppressed: want %d together", events[refused], suppressed[refused], calls)
		}
	})
}

func TestSourcesOfNotesAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t)
		f.start(nil)
		f.note(denied, "mallory", 10)
		source := 0
		flood := func(n int) {
			for range n {
				f.note(denied, fmt.Sprint(source), 1)
				source++
			}
		}
		flood(3 * invalidation.MaxNoteSources)
		if n := f.engine.NoteSources(); n > invalidation.MaxNoteSources {
			t.Errorf("%d sources are remembered, want at most %d", n, invalidation.MaxNoteSources)
		}
		// Who has used up its share has not been forgotten among so many.
		sleep(30 * time.Second)
		before, _ := f.written()
		f.note(denied, "mallory", 5)
		if events, _ := f.written(); events[denied] != before[denied] {
			t.Errorf("%d more by one who was to wait", events[denied]-before[denied])
		}
		f.note(denied, "somebody new", 1)
		if events, _ := f.written(); events[denied] != before[denied]+1 {
			t.Error("somebody new has to wait")
		}
		// When they have been quiet there is room again.
		sleep(11 * time.Minute)
		flood(2 * invalidation.MaxNoteSources)
		sleep(2 * time.Minute)
		flood(1)
		if n := f.engine.NoteSources(); n > 1000 {
			t.Errorf("%d sources are remembered that could be forgotten", n)
		}
		f.stop(time.Minute)
	})
}

// forgetful is a journal that does not take events for a while.
type forgetful struct {
	invalidation.Store
	away atomic.Bool
}

func (s *forgetful) Audit(ctx context.Context, events []invalidation.Event) error {
	if s.away.Load() {
		return errors.New("the disk is full")
	}
	return s.Store.Audit(ctx, events)
}

func TestNotesThatTheJournalDoesNotTakeAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFixture(t)
		var s *forgetful
		f.start(func(inner invalidation.Store) invalidation.Store {
			s = &forgetful{Store: inner}
			return s
		})
		s.away.Store(true)
		f.note(refused, "192.0.2.1", 12)
		sleep(3 * time.Minute)
		f.note(denied, "api_key helpdesk", 1)
		s.away.Store(false)
		sleep(2 * time.Minute)
		f.wantWritten("when it is back", counts{}, counts{refused: 12, denied: 1})
		f.stop(time.Minute)
	})
}

func TestAuditRetention(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name      string
		retention time.Duration
		left      counts
	}{
		{"Kept", 400 * day, counts{"new": 3}},
		{"ForEver", 0, counts{"old": 1200, "new": 3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFixture(t)
				f.options.AuditRetention = tc.retention
				var ahead atomic.Int64
				f.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
				f.start(nil)
				write := func(typ string, n int) {
					events := make([]invalidation.Event, n)
					for i := range events {
						events[i] = invalidation.Event{Time: f.clock(), Type: typ}
					}
					if err := f.store.Audit(t.Context(), events); err != nil {
						t.Fatal(err)
					}
				}
				write("old", 1200) // more than are removed at once
				ahead.Add(int64(399 * day))
				write("new", 3)
				sleep(2 * time.Hour)
				f.wantWritten("before its time", counts{"old": 1200, "new": 3}, counts{})
				ahead.Add(int64(2 * day))
				sleep(2 * time.Hour)
				f.wantWritten("two days later", tc.left, counts{})
				trail, err := sqlite.OpenTrail(f.path)
				if err != nil {
					t.Fatal(err)
				}
				defer trail.Close()
				report, err := audit.Verify(t.Context(), trail, audit.Verification{Found: func(x audit.Finding) { t.Error(x) }})
				pruned := tc.left["old"] == 0
				if err != nil || report.Checkpoints > 0 != pruned || len(report.Heads) != 1 || report.Heads[0].Seq != 1204 {
					t.Errorf("verified %+v, %v", report, err)
				}
				f.stop(time.Minute)
			})
		})
	}
}
