package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
)

// BIG-IQ's tokens live five minutes. In an hour of a call each half minute the account signs in once, exchanges the token
// for the next one whenever it is about to end, and signs in for each probe, which is there to try the password.
func TestLoginsInAnHour(t *testing.T) {
	for _, c := range []struct {
		name, interval string
		logins         int
	}{
		{"NobodyProbes", "never", 1},
		{"AProbeEachFiveMinutes", "5m", 14},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := memoryDir(t, func(text string) string {
				return strings.Replace(text, "check_interval: never", "check_interval: "+c.interval, 1)
			})
			synctest.Test(t, func(t *testing.T) {
				g := startInMemory(t, newLab(), path)
				calls := 0
				for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(30 * time.Second) {
					g.call(t, "gRPC", `{"selector": {"user": {"id": "alice"}}, "targets": ["apm"]}`)
					calls++
				}
				logins, failed, exchanged := g.lab.systems["apm"].(*bigiqtest.Server).Logins()
				// Five minutes less half a minute in which a token is not used any more.
				const exchanges = int(time.Hour/(5*time.Minute-30*time.Second)) + 1
				if logins < 1 || logins > c.logins || failed > 0 || exchanged < 1 || exchanged > exchanges {
					t.Errorf("%d calls: %d logins, %d that failed, %d exchanges; want at most %d, none and at most %d", calls, logins, failed, exchanged, c.logins, exchanges)
				}
				t.Logf("%d calls: %d logins, %d exchanges", calls, logins, exchanged)
			})
		})
	}
}
