package adaptertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
)

const (
	// maxCalls bounds the calls of one run, faults included.
	maxCalls = 300
	// maxAfter bounds what a run may ask to wait for before its next call.
	maxAfter = 10 * time.Minute
)

// Outcome is what the calls of one run have done together, as the engine would journal it.
type Outcome struct {
	// Counted is true when a call counted; Count is the sum.
	Counted        bool
	Count          int
	CountIsMinimum bool
	Sessions       []adapters.Session
	Covered        []string
	Warnings       []adapters.Warning
	Verification   adapters.Verification
	Operation      string
	// Calls is the number of calls of Invalidate.
	Calls int
	// Complete is true when the last call returned neither an error nor Pending.
	Complete bool
}

// Warned reports whether there is a warning with that code.
func (o Outcome) Warned(code adapters.Reason) bool {
	return slices.ContainsFunc(o.Warnings, func(w adapters.Warning) bool { return w.Code == code })
}

// Drive calls Invalidate until the run is complete or a call fails, waiting between the calls as told. Every step is
// checked against the contract of [adapters.Adapter]; what breaks it fails t. Call it in a synctest bubble.
func Drive(ctx context.Context, t testing.TB, a adapters.Adapter, sel adapters.Selector) (Outcome, error) {
	t.Helper()
	r := &run{t: t, a: a, sel: sel}
	err := r.drive(ctx)
	return r.out, err
}

// run is one run as the engine sees it: what is journalled, and nothing else, survives from call to call.
type run struct {
	t   testing.TB
	a   adapters.Adapter
	sel adapters.Selector
	// look sees everything an adapter gave away.
	look func(what string, v any)

	resume json.RawMessage
	lost   bool // a call's Result
	wait   time.Duration
	out    Outcome
}

// drive calls until the run is complete or a call fails.
func (r *run) drive(ctx context.Context) error {
	for r.out.Calls < maxCalls {
		if err := r.call(ctx); err != nil || r.out.Complete {
			return err
		}
		time.Sleep(r.wait)
	}
	r.t.Fatalf("%s: not complete after %d calls", describe(r.sel), r.out.Calls)
	return nil
}

// call makes one call and journals what it returns.
func (r *run) call(ctx context.Context) error {
	r.t.Helper()
	var sent atomic.Bool
	fenced := adapters.WithFence(ctx, func(inner context.Context) error {
		if err := inner.Err(); err != nil {
			return err
		}
		if err := adapters.Fence(ctx); err != nil {
			return err
		}
		sent.Store(true)
		return nil
	})
	res, err := r.a.Invalidate(fenced, adapters.Request{
		Selector: r.sel, Resume: slices.Clone(r.resume), MayHaveSent: r.lost || r.out.CountIsMinimum,
	})
	r.out.Calls++
	r.check(ctx, res, err)

	r.out.Complete = err == nil && res.Pending == nil
	if res.Counted {
		r.out.Counted = true
		r.out.Count += res.Count
	}
	r.out.CountIsMinimum = r.out.CountIsMinimum || res.CountIsMinimum
	r.out.Sessions = append(r.out.Sessions, res.Sessions...)
	r.out.Warnings = append(r.out.Warnings, res.Warnings...)
	r.out.Covered, r.out.Operation = res.Covered, res.Operation
	if r.out.Complete {
		r.out.Verification = res.Verification
	}
	r.wait = time.Second
	if res.Pending != nil {
		r.resume = slices.Clone(res.Pending.Resume)
		if err == nil {
			r.wait = res.Pending.After
		}
	}
	var e *adapters.Error
	if errors.As(err, &e) {
		r.wait = max(r.wait, e.RetryAfter)
	}
	if kind := adapters.KindOf(err); sent.Load() && (kind == adapters.Uncertain || kind == adapters.BadReply) {
		// The engine does the same: something may have ended that nobody counted.
		r.out.CountIsMinimum = true
	}
	return err
}

// crashed is what becomes of the run when its process dies in a call: the journal stays as it was before.
func (r *run) crashed() { r.out.CountIsMinimum, r.lost = true, true }

// check holds one call against the contract.
func (r *run) check(ctx context.Context, res adapters.Result, err error) {
	r.t.Helper()
	bad := func(format string, args ...any) {
		r.t.Helper()
		r.t.Errorf("%s: call %d: %s", describe(r.sel), r.out.Calls, fmt.Sprintf(format, args...))
	}
	switch {
	case res.Count < 0:
		bad("count %d", res.Count)
	case !res.Counted && res.Count != 0:
		bad("count %d, but not counted", res.Count)
	case res.Counted && !res.CountIsMinimum && len(res.Sessions) > res.Count:
		bad("names %d ended sessions, but counts %d", len(res.Sessions), res.Count)
	}
	other := slices.ContainsFunc(res.Warnings, func(w adapters.Warning) bool { return w.Code == adapters.WarnOtherSessionEnded })
	for _, x := range res.Sessions {
		if !r.sel.Match(x) && !other {
			bad("reports the end of %+v, which the selector does not match", x)
		}
	}
	for _, w := range res.Warnings {
		if w.Code == "" || w.Message == "" {
			bad("warning %+v lacks a code or a message", w)
		}
	}
	if p := res.Pending; p != nil {
		if p.After < 0 || p.After > maxAfter {
			bad("wants to be called again after %v", p.After)
		}
		if !json.Valid(p.Resume) {
			bad("resume %q is no JSON", p.Resume)
		}
	}
	if err == nil && res.Pending == nil {
		nothing := slices.ContainsFunc(res.Warnings, func(w adapters.Warning) bool { return w.Code == adapters.WarnNothingCanMatch })
		if known := res.Verification >= adapters.ConfirmedByList && res.Verification <= adapters.Unverifiable; !known && !nothing {
			bad("complete with verification %d", res.Verification)
		}
	}
	if err != nil {
		checkError(ctx, err, bad)
	}
	if r.look != nil {
		r.look("result", res)
		r.look("error", err)
	}
}

// errFence and errLimit are what the suite's own fence and limit refuse with.
var (
	errFence = errors.New("the lease is lost")
	errLimit = errors.New("no more requests")
)

// checkError holds an error against the contract: an [adapters.Error] of a known kind, the context's own or the fence's.
func checkError(ctx context.Context, err error, bad func(string, ...any)) {
	var e *adapters.Error
	switch {
	case errors.Is(err, errFence), errors.Is(err, errLimit), errors.Is(err, errDead), errors.Is(err, errVetting):
	case errors.As(err, &e):
		if e.Kind < adapters.Unsupported || e.Kind > adapters.StillAlive {
			bad("error of unknown kind %d: %v", e.Kind, err)
		}
		if e.Message == "" {
			bad("error without a message: %v", err)
		}
		if e.RetryAfter < 0 {
			bad("error asks to come back after %v", e.RetryAfter)
		}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		if ctx.Err() == nil {
			bad("error %v, but the context goes on", err)
		}
	default:
		bad("error %v (%T) is neither an adapters.Error nor the context's", err, err)
	}
}
