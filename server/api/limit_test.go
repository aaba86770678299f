package api_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/api"
	"github.com/endsession/endsession/server/invalidation"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := api.NewLimiter(2, 3)
		key, token := invalidation.Caller{Kind: "api_key", Name: "a"}, invalidation.Caller{Kind: "oidc", Name: "a"}
		for range 3 {
			if wait := l.Take(key); wait != 0 {
				t.Fatalf("has to wait %v within the burst", wait)
			}
		}
		for range 3 { // those who are refused use nothing up
			if wait := l.Take(key); wait != 500*time.Millisecond {
				t.Errorf("has to wait %v, want 500ms", wait)
			}
		}
		if wait := l.Take(token); wait != 0 {
			t.Errorf("another caller of the same name has to wait %v", wait)
		}
		time.Sleep(500 * time.Millisecond)
		if first, second := l.Take(key), l.Take(key); first != 0 || second != 500*time.Millisecond {
			t.Errorf("half a second later: %v, %v", first, second)
		}
	})
}

// TestLimiterForgets: no number of callers makes it grow, none of them is free of limits, and those who are quiet are
// forgotten.
func TestLimiterForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := api.NewLimiter(1, 1)
		who := func(i int) invalidation.Caller {
			return invalidation.Caller{Kind: "oidc", Name: fmt.Sprint(i)}
		}
		for i := range 10_000 {
			if wait := l.Take(who(i)); wait != 0 {
				t.Fatalf("caller %d has to wait %v", i, wait)
			}
		}
		// There is no room, and nobody to forget: the rest share one caller's rate.
		if first, second := l.Take(who(10_000)), l.Take(who(10_001)); first != 0 || second != time.Second {
			t.Errorf("who does not fit in has to wait %v, the next %v", first, second)
		}
		time.Sleep(2 * time.Second)
		for i := 20_000; i < 30_000; i++ {
			if wait := l.Take(who(i)); wait != 0 {
				t.Fatalf("later, caller %d has to wait %v", i, wait)
			}
		}
	})
}
