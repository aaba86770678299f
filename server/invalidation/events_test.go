package invalidation_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// TestEventsSayWhatWouldBeSent: previews like acceptances, runs that are resolved later, and who cancelled what.
func TestEventsSayWhatWouldBeSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, _ := ruled(t, "apm", "storage")
		n := &names{}
		f.options.Resolver = n
		f.start(nil)
		defer f.stop(time.Minute)
		call := user("alice")
		call.Reason, call.OnBehalfOf = "left", "carol"
		if _, err := f.engine.Preview(t.Context(), help, call); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ask(help, call); err != nil {
			t.Fatal(err)
		}
		n.away.Store(true)
		late := f.invalidate2(help, user("bob"), time.Second)
		n.away.Store(false)
		sleep(10 * time.Minute)
		if inv := f.get2(help, late.ID); inv.State != invalidation.Succeeded {
			t.Fatalf("state %s", inv.State)
		}
		f.scripts["apm"].answer(hang)
		cancelled := f.invalidate2(help, user("dave"), time.Second)
		if _, err := f.engine.Cancel(t.Context(), help, cancelled.ID); err != nil {
			t.Fatal(err)
		}
		said := map[string]string{}
		for _, e := range f.trail() {
			if e.Caller.Kind == help.Kind && e.Caller.Name == help.Name {
				said[e.Type+" "+e.InvalidationID] += string(e.Data)
				said[e.Type] += string(e.Data)
			}
		}
		for typ, want := range map[string][]string{
			"invalidation.previewed": {`"reason":"left"`, `"on_behalf_of":"carol"`, `"target":"apm"`, `"target":"storage"`, `"Name":"alice"`, `"rule":"all"`},
			"invalidation.accepted":  {`"reason":"left"`, `"on_behalf_of":"carol"`, `"target":"apm"`, `"target":"storage"`, `"Name":"alice"`, `"rule":"all"`},
			"run.succeeded":          {`"count":1`, `"verification":"CONFIRMED_BY_LIST"`, `"attempts":1`},
			"invalidation.cancelled": {`{"unfinished":["apm"]}`},
		} {
			for _, w := range want {
				if !strings.Contains(strings.ToLower(said[typ]), strings.ToLower(w)) {
					t.Errorf("%s lacks %s: %s", typ, w, said[typ])
				}
			}
		}
		all := ""
		for key, data := range said {
			if strings.HasSuffix(key, late.ID) && strings.HasPrefix(key, "run.") {
				all += data
			}
		}
		if !strings.Contains(all, `"rule":"all"`) {
			t.Errorf("no terms of runs that were resolved later: %s", all)
		}
		if strings.Count(strings.ToLower(all), `"name":"bob"`) != 2 {
			t.Errorf("the names of two runs that were resolved later: %s", all)
		}
		if !slices.Contains(f.events(), "run.waiting") {
			t.Errorf("%q", f.events())
		}
	})
}

// invalidate2 is invalidate as another caller.
func (f *fixture) invalidate2(c invalidation.Caller, call invalidation.Call, wait time.Duration) invalidation.Invalidation {
	f.t.Helper()
	inv, _, err := f.engine.Invalidate(f.t.Context(), invalidation.Request{Caller: c, Call: call, Wait: wait})
	if err != nil {
		f.t.Fatal(err)
	}
	return inv
}
