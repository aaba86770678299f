package invalidation_test

import (
	"slices"
	"testing"

	"github.com/endsession/endsession/server/invalidation"
)

func TestHubWakesWhoeverMayHaveMissedAChange(t *testing.T) {
	for _, tc := range []struct {
		changed []string
		woken   []string
	}{
		{[]string{"a"}, []string{"a", "a too"}},
		{[]string{"b", "b"}, []string{"b"}}, // several changes may be one
		{[]string{"c"}, nil},                // nobody waits for it any more
		{[]string{""}, nil},                 // a pause
		{[]string{invalidation.AnyChange}, []string{"a", "a too", "b"}},
	} {
		h := invalidation.NewHub()
		waiters := map[string]<-chan struct{}{}
		for name, id := range map[string]string{"a": "a", "a too": "a", "b": "b"} {
			waiters[name], _ = h.Subscribe(id)
		}
		gone, unsubscribe := h.Subscribe("c")
		unsubscribe()
		for _, id := range tc.changed {
			h.Changed(id)
		}
		var woken []string
		for name, ch := range waiters {
			select {
			case <-ch:
				woken = append(woken, name)
			default:
			}
			if len(ch) > 0 {
				t.Errorf("%q: %s was woken twice", tc.changed, name)
			}
		}
		slices.Sort(woken)
		if !slices.Equal(woken, tc.woken) {
			t.Errorf("%q woke %q, want %q", tc.changed, woken, tc.woken)
		}
		if len(gone) > 0 {
			t.Errorf("%q woke one that no longer waits", tc.changed)
		}
	}
}
