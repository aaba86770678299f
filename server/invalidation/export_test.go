package invalidation

import (
	"time"

	"github.com/endsession/endsession/adapters"
)

// Settle runs the retry policy without jitter (random gives the fraction of the ceiling) for the tests of its table.
func Settle(run Run, res adapters.Result, err error, sent bool, at time.Time, random float64, poll time.Duration) Run {
	p := retryPolicy{random: func() float64 { return random }, poll: func() time.Duration { return poll }}
	return p.settle(run, attempt{result: res, err: err, sent: sent, at: at})
}
