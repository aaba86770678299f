package api

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

const reasonRateLimited adapters.Reason = "RATE_LIMITED"

// Bounds of what a [Limiter] remembers.
const (
	// maxCallers is how many callers are told apart.
	maxCallers = 10_000
	// forgetEvery is how often, at most, those who could be forgotten are looked for.
	forgetEvery = time.Second
)

// Limiter bounds how often each caller may call. It is safe for concurrent use; every way in shares one.
type Limiter struct {
	mu        sync.Mutex
	perSecond rate.Limit // 0: no limit
	burst     int
	callers   map[callerID]*rate.Limiter
	others    *rate.Limiter // shared by callers for whom there is no room
	swept     time.Time
}

// callerID is what tells one caller from another; see [invalidation.Caller.Is].
type callerID struct{ kind, name string }

// NewLimiter returns a limiter that is set as [Limiter.Set] says.
func NewLimiter(perSecond float64, burst int) *Limiter {
	l := &Limiter{}
	l.Set(perSecond, burst)
	return l
}

// Set grants each caller perSecond calls a second, and burst calls, at least one, at once. Zero calls a second mean that
// there is no limit. If the limit is another than before, all begin anew.
func (l *Limiter) Set(perSecond float64, burst int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.callers != nil && l.perSecond == rate.Limit(perSecond) && l.burst == max(burst, 1) {
		return
	}
	l.perSecond, l.burst, l.callers = rate.Limit(perSecond), max(burst, 1), map[callerID]*rate.Limiter{}
	l.others = rate.NewLimiter(l.perSecond, l.burst)
}

// Take counts a call and returns 0, or, if the caller has to wait, counts nothing and returns how long.
func (l *Limiter) Take(c invalidation.Caller) (wait time.Duration) {
	now := time.Now()
	limiter := l.of(c, now)
	if limiter == nil {
		return 0
	}
	call := limiter.ReserveN(now, 1)
	if wait = call.DelayFrom(now); wait > 0 {
		call.CancelAt(now)
	}
	return wait
}

// of returns a caller's limiter, or nil if there is no limit.
func (l *Limiter) of(c invalidation.Caller, now time.Time) *rate.Limiter {
	id := callerID{c.Kind, c.Name}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perSecond == 0 {
		return nil
	}
	if known := l.callers[id]; known != nil {
		return known
	}
	if len(l.callers) >= maxCallers && now.Sub(l.swept) >= forgetEvery {
		l.swept = now
		for id, x := range l.callers {
			if x.TokensAt(now) >= float64(l.burst) { // as good as one who never called
				delete(l.callers, id)
			}
		}
	}
	if len(l.callers) >= maxCallers {
		return l.others
	}
	l.callers[id] = rate.NewLimiter(l.perSecond, l.burst)
	return l.callers[id]
}

// limit refuses a call of somebody who calls too often. What is for everybody has no caller, and no limit.
func (c chain) limit(caller invalidation.Caller, method string) error {
	if c.door.Limiter == nil || c.open(method) {
		return nil
	}
	wait := c.door.Limiter.Take(caller)
	if wait <= 0 {
		return nil
	}
	return withDetails(codes.ResourceExhausted, "the caller asks too often", errorInfo(reasonRateLimited, nil), retryInfo(wait)).Err()
}
