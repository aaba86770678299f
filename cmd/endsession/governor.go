package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// callTimeout is how long one call may take. None of them waits for a target.
	callTimeout = 30 * time.Second
	// maxOutage is how long the gateway may give no answer at all before that is told.
	maxOutage = 10 * time.Minute
	// firstBackoff and maxBackoff bound the time until a gateway that does not answer is tried again.
	firstBackoff, maxBackoff = 200 * time.Millisecond, 10 * time.Second
	// caution is how many times as many answers it takes for one more call at a time once the gateway has wanted fewer.
	caution = 8
	// maxDefects is how often a call that the gateway answered with a defect of its own is tried.
	maxDefects = 3
)

// errOutage ends a job: the gateway has not answered for maxOutage.
var errOutage = errors.New("the gateway gave no answer for " + maxOutage.String())

// governor makes a job's calls: a bounded number at a time, fewer when the gateway has enough, one when it does not
// answer, and each again until it says something that repeating would not change.
type governor struct {
	most int

	mu sync.Mutex
	// allowed is how many calls may be under way, busy how many are; good counts answers since allowed last changed.
	allowed, busy, good int
	// limited: the gateway has said that it wants fewer calls; then more are tried only now and then.
	limited bool
	// notBefore is when the next call may begin.
	notBefore time.Time
	// silent is since when there was no answer, and failures how many calls found that out; zero: there are answers.
	silent   time.Time
	failures int
	// changed is closed when a call ends.
	changed chan struct{}
}

func newGovernor(most int) *governor {
	return &governor{most: most, allowed: most, changed: make(chan struct{})}
}

// errNotSent wraps why a call was not made.
type errNotSent struct {
	cause error
	// uncertain: it was made before, and it is not known what came of it.
	uncertain bool
}

func (e *errNotSent) Error() string { return "not sent: " + e.cause.Error() }

func (e *errNotSent) Unwrap() error { return e.cause }

// errUnsure is how the gateway refused a call that was made before, when it is not known what came of it: that one may
// have been accepted.
type errUnsure struct{ error }

// GRPCStatus is the refusal's.
func (e *errUnsure) GRPCStatus() *status.Status { return status.Convert(e.error) }

func (e *errUnsure) Unwrap() error { return e.error }

// do makes a call. While it waits for its turn it ends with ctx, with an *errNotSent; a call under way ends only with
// hard. A refusal that says nothing of a try before it is an *errUnsure.
func (g *governor) do(ctx, hard context.Context, call func(context.Context) error) error {
	uncertain := false
	for defects := 0; ; {
		if err := g.enter(ctx); err != nil {
			return &errNotSent{err, uncertain}
		}
		callCtx, cancel := context.WithTimeout(hard, callTimeout)
		err := call(callCtx)
		cancel()
		verdict := judge(err)
		silent := g.leave(verdict)
		switch {
		case hard.Err() != nil && err != nil:
			return &errNotSent{context.Cause(hard), true}
		case verdict.defect:
			if defects++; defects == maxDefects {
				return err
			}
		case !verdict.again && err != nil && uncertain && status.Code(err) != codes.AlreadyExists:
			return &errUnsure{err} // but that another call has its id is certain
		case !verdict.again:
			return err
		case silent > maxOutage:
			return &errNotSent{errOutage, uncertain || verdict.uncertain}
		}
		uncertain = uncertain || verdict.uncertain
	}
}

// verdict is what an answer means for the calls to come.
type verdict struct {
	// again: repeating the call is worth while.
	again bool
	// busy: the gateway wants fewer calls. silent: it does not answer. defect: it is at a loss.
	busy, silent, defect bool
	// uncertain: the call may have been carried out.
	uncertain bool
	// after is how long the gateway wants to be left alone.
	after time.Duration
}

func judge(err error) verdict {
	st, _ := status.FromError(err)
	reason, _ := refusalOf(err)
	v := verdict{after: retryDelayOf(st)}
	switch st.Code() {
	case codes.ResourceExhausted:
		// Without a reason it is gRPC's own: a message is too large, and stays so.
		v.again, v.busy = reason != "", true
	case codes.Unavailable:
		v.again, v.silent, v.uncertain = true, true, reason != "NOT_ACCEPTED"
	case codes.DeadlineExceeded, codes.Canceled:
		v.again, v.silent, v.uncertain = true, true, true
	case codes.Internal, codes.Unknown:
		v.again, v.defect, v.uncertain = true, true, true
	}
	return v
}

// enter waits until one more call may begin.
func (g *governor) enter(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		g.mu.Lock()
		wait := time.Until(g.notBefore)
		if g.busy < g.allowed && wait <= 0 {
			g.busy++
			g.mu.Unlock()
			return nil
		}
		changed, full := g.changed, g.busy >= g.allowed
		g.mu.Unlock()
		if full {
			wait = time.Hour // until a call ends
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// leave takes in how a call ended, and returns for how long there has been no answer.
func (g *governor) leave(v verdict) (silent time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.busy--
	after := v.after
	switch {
	case v.silent:
		if g.failures++; g.silent.IsZero() {
			g.silent = now
		}
		silent = now.Sub(g.silent)
		g.allowed, g.good = 1, 0
		backoff := min(maxBackoff, firstBackoff<<min(g.failures-1, 10))
		after = max(after, backoff/2+rand.N(backoff/2+1))
	case v.busy:
		g.silent, g.failures = time.Time{}, 0
		g.allowed, g.good, g.limited = max(1, g.allowed/2), 0, true
		after = max(after, firstBackoff/10)
	default:
		g.silent, g.failures = time.Time{}, 0
		enough := g.allowed
		if g.limited {
			enough *= caution
		}
		if g.good++; g.good >= enough && g.allowed < g.most {
			g.allowed, g.good = g.allowed+1, 0
		}
	}
	if t := now.Add(after); after > 0 && t.After(g.notBefore) {
		g.notBefore = t
	}
	close(g.changed)
	g.changed = make(chan struct{})
	return silent
}

// quiet says since when the gateway does not answer; zero: it does.
func (g *governor) quiet() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.silent
}

// retryDelayOf is how long a refusal says to wait.
func retryDelayOf(st *status.Status) time.Duration {
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// refusalOf is the reason and the public message of a call's error.
func refusalOf(err error) (reason, message string) {
	st, ok := status.FromError(err)
	if !ok {
		return "", err.Error()
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), st.Message()
		}
	}
	return "", st.Message()
}
