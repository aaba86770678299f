package invalidation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"golang.org/x/time/rate"
)

// Bounds of a worker.
const (
	// attemptTimeout bounds one call of an adapter.
	attemptTimeout = 5 * time.Minute
	// breakerFailures in a row open a target's breaker for breakerDelay: its runs wait in the journal meanwhile.
	breakerFailures = 5
	breakerDelay    = 15 * time.Second
	// bulkShare: one claim in so many looks at the bulk runs first.
	bulkShare = 8
	// heldBack is how often a target to which nothing may be sent is looked at for runs that have expired.
	heldBack = 10 * time.Second
	// journalRetry is how long a worker waits before it asks an unavailable journal again.
	journalRetry = time.Second
)

// Errors of the fence. They are never an outcome of a run: the engine sees them and gives the run back.
var (
	errPaused  = errors.New("the target is paused")
	errExpired = errors.New("the run has expired")
	errLost    = errors.New("the lease is lost")
)

// worker drives the runs of one target: it claims what is due while there are free slots, and puts what an attempt came
// to into the journal. A run that waits (for its next try, for the target's own work, between passes) is in the journal
// only and holds no slot.
type worker struct {
	e      *Engine
	target Target
	// removed is true for a target that is no longer configured: its runs are only ended.
	removed     bool
	fingerprint string // the target's
	log         *slog.Logger

	slots   *slots
	breaker circuitbreaker.CircuitBreaker[any]
	polls   *rate.Limiter
	policy  retryPolicy

	wake    chan struct{} // cap 1
	rethink chan struct{} // cap 1; for watchHealth
	claims  int           // rounds of claiming, for bulkShare; only the loop touches it

	mu          sync.Mutex
	pause       *Pause
	parkedUntil time.Time
	health      adapters.Health
	checkTime   time.Time
	checkup     *checkup  // the probe under way
	probed      time.Time // when the last one began
	spread      float64   // its jitter: how late the next one is

	working atomic.Int64 // runs being worked on
	// backlog is true when the journal may hold due runs that no slot was free for.
	backlog atomic.Bool
}

func newWorker(e *Engine, t Target, removed bool) *worker {
	w := &worker{
		e: e, target: t, removed: removed, fingerprint: t.Fingerprint(),
		log:   e.log.With("target", t.Name),
		polls: rate.NewLimiter(rate.Limit(e.pollsPerSecond), 1),
		wake:  make(chan struct{}, 1), rethink: make(chan struct{}, 1),
	}
	w.slots = newSlots(e.store, e.owner, t.Name, t.Concurrency, e.leaseLength, func(held, limit int) {
		w.polls.SetLimit(rate.Limit(e.pollsPerSecond) * rate.Limit(max(held, 1)) / rate.Limit(limit))
		if t.Share != nil {
			t.Share(held, limit)
		}
	})
	w.breaker = circuitbreaker.NewBuilder[any]().
		WithFailureThreshold(breakerFailures).WithSuccessThreshold(1).
		WithDelay(breakerDelay).
		OnStateChanged(func(ev circuitbreaker.StateChangedEvent) {
			w.log.Warn("breaker changed", "from", ev.OldState.String(), "to", ev.NewState.String())
		}).Build()
	w.policy = retryPolicy{random: e.random, poll: func() time.Duration {
		wait := w.polls.Reserve().Delay()
		e.observer.PollWait(t.Name, wait)
		return wait
	}}
	return w
}

// signal makes the loop look at the journal soon.
func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// tryStart takes a slot for a run that is being accepted, so that it can begin at once. The caller gives the slot back
// with w.free, or hands it to w.work.
func (w *worker) tryStart() bool {
	if w.removed || w.e.closing.Load() || w.blocked() || w.backlog.Load() || !w.breaker.IsClosed() {
		return false
	}
	return w.slots.tryAcquire()
}

// start works on a run for which a slot was taken, under a lease that was asked for at that time.
func (w *worker) start(c ClaimedRun, asked time.Time) {
	w.working.Add(1)
	w.e.hands.do(func() {
		defer w.free()
		defer w.working.Add(-1)
		w.work(c, asked)
	})
}

func (w *worker) free() {
	w.slots.release(1)
	if w.backlog.Load() {
		w.signal()
	}
}

// blocked reports whether nothing may be sent now: paused, or parked.
func (w *worker) blocked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pause != nil || w.e.now().Before(w.parkedUntil)
}

func (w *worker) paused() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pause != nil
}

// parking reports whether the target's credentials were refused and nothing has succeeded since.
func (w *worker) parking() (parked bool, until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.parkedUntil.IsZero(), w.parkedUntil
}

func (w *worker) park(until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parkedUntil = until
}

// unpark has the target tried at once, and with it the runs that wait because their attempts were refused.
func (w *worker) unpark(ctx context.Context) {
	w.park(time.Time{})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	if _, err := w.e.store.Hasten(ctx, w.target.Name, adapters.ReasonUpstreamUnauthenticated); err != nil {
		w.log.ErrorContext(ctx, "hasten the runs of a target that was parked", "error", err) // they are due in time
	}
	w.signal()
}

// loop claims and works until ctx ends.
func (w *worker) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		next, err := w.claim(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			w.log.ErrorContext(ctx, "claim runs", "error", err)
			next = journalRetry
		}
		timer.Reset(next)
	}
}

// idle is how long a worker with nothing due sleeps: another process may have released something meanwhile.
const idle = time.Minute

// claim leases due runs for the free slots and starts them; it returns how long to sleep if nothing wakes it earlier.
func (w *worker) claim(ctx context.Context) (time.Duration, error) {
	w.backlog.Store(false)
	limit, expiredOnly, trying := w.allowance()
	if limit == 0 && !w.slots.complete() {
		// Others hold slots: they are asked for only when there is work for them.
		at, ok, err := w.e.store.NextDue(ctx, w.target.Name)
		if err != nil {
			return 0, err
		}
		if !ok || at.After(w.e.now()) {
			return w.nap(at, ok), nil
		}
		if err := w.slots.grow(ctx); err != nil {
			return 0, err
		}
		limit, expiredOnly, trying = w.allowance()
	}
	if limit == 0 {
		// free signals when a slot returns, because of backlog.
		w.backlog.Store(true)
		if !w.slots.complete() {
			return growPause, nil
		}
		return idle, nil
	}
	w.claims++
	asked := time.Now()
	claimed, err := w.e.store.Claim(ctx, Claim{
		Target: w.target.Name, Owner: w.e.owner, Limit: limit, LeaseLength: w.e.leaseLength,
		ExpiredOnly: expiredOnly, BulkFirst: w.claims%bulkShare == 0,
	})
	if err != nil {
		w.slots.release(limit)
		w.backlog.Store(true)
		return 0, err
	}
	w.slots.release(limit - len(claimed))
	for _, c := range claimed {
		w.start(c, asked)
	}
	if len(claimed) == limit {
		w.backlog.Store(true)
		w.signal()
		return idle, nil
	}
	at, ok, err := w.e.store.NextDue(ctx, w.target.Name)
	if err != nil {
		return 0, err
	}
	if len(claimed) == 0 && ok && !at.After(w.e.now()) {
		// Somebody was faster, or the store's clock has been put back.
		if err := w.e.syncClock(ctx); err != nil {
			return 0, err
		}
	}
	if trying && ok {
		// free signals when the one that went ahead is done, because of backlog.
		w.backlog.Store(true)
		return heldBack, nil
	}
	return w.nap(at, ok), nil
}

// allowance takes as many slots as may be claimed for now, at most a few at a time so that priorities stay fresh. trying
// says that all others wait for what becomes of the one run that went ahead.
func (w *worker) allowance() (slots int, expiredOnly, trying bool) {
	most := 4
	parked, _ := w.parking()
	switch {
	case w.removed:
	case w.blocked(), w.breaker.IsOpen() && w.breaker.RemainingDelay() > 0:
		expiredOnly = true
	case parked, !w.breaker.IsClosed():
		// One run goes ahead to see whether the target, which was refusing or silent, works again.
		if w.working.Load() > 0 {
			expiredOnly, trying = true, true
			break
		}
		most = 1
		if w.breaker.IsOpen() {
			w.breaker.HalfOpen()
		}
	}
	for slots < most && w.slots.tryAcquire() {
		slots++
	}
	return slots, expiredOnly, trying
}

// nap returns how long to sleep if something is due at that time.
func (w *worker) nap(at time.Time, ok bool) time.Duration {
	if !ok {
		return idle
	}
	next := at.Sub(w.e.now())
	// What is due but held back is looked at when that ends, and now and then meanwhile, for what has expired.
	floor := time.Millisecond
	if w.blocked() {
		floor = heldBack
		if parked, until := w.parking(); parked {
			floor = min(floor, max(until.Sub(w.e.now()), time.Millisecond))
		}
	} else if d := w.breaker.RemainingDelay(); d > 0 {
		floor = d
	}
	return min(max(next, floor), idle)
}

// work does one leased run's next step and journals it.
func (w *worker) work(c ClaimedRun, asked time.Time) {
	ctx, own := w.e.own(c.Lease, asked)
	defer w.e.disown(own)
	ctx, finished := w.e.observer.Begun(ctx, c)
	defer finished()
	now := w.e.now()
	run := c.Run
	if c.Lost {
		run.CountIsMinimum = true
	}
	switch {
	case w.removed:
		run = ended(run, c.Lost, adapters.ReasonTargetRemoved, "the target is no longer configured", now)
	case run.Fingerprint != w.fingerprint:
		run = ended(run, c.Lost, adapters.ReasonTargetChanged, "the target's name now stands for another system", now)
	case c.Expired, !now.Before(run.ExpireTime):
		run = expired(run, c.Lost, now)
	case run.Selector == nil:
		run = w.e.resolveLate(ctx, w.target, c, now)
	default:
		var ok bool
		if run, ok = w.attempt(ctx, own, c, run); !ok {
			return
		}
	}
	w.record(ctx, c, run)
}

// about returns the logger for what happens to a run.
func (w *worker) about(l Lease) *slog.Logger {
	return w.log.With("invalidation", l.InvalidationID, "run", l.Run)
}

// attempt calls the adapter once. ok is false when there is nothing to journal: the run was given back, or is no longer
// ours.
func (w *worker) attempt(ctx context.Context, own *ownership, c ClaimedRun, run Run) (_ Run, ok bool) {
	var sent atomic.Bool
	ctx, cancel := context.WithTimeout(ctx, min(attemptTimeout, max(run.ExpireTime.Sub(w.e.now()), 0)))
	defer cancel()
	fenced := adapters.WithFence(ctx, func(context.Context) error {
		if err := w.fence(ctx, own, run); err != nil {
			return err
		}
		sent.Store(true)
		return nil
	})
	began := time.Now()
	res, err := w.invalidate(adapters.WithVetting(fenced, w.e.vetting(run)), adapters.Request{Selector: *run.Selector, Resume: run.Resume, MayHaveSent: run.CountIsMinimum || c.Lost})
	a := attempt{result: res, err: err, sent: sent.Load(), at: w.e.now()}
	took, result := time.Since(began), AttemptInterrupted
	defer func() { w.e.observer.Attempted(ctx, run, took, result) }()
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errLost):
		// Cancelled, taken over, or about to be: whoever has the run now finds it open. An attempt that was completed
		// nevertheless is recorded below; the journal decides.
		w.about(c.Lease).InfoContext(ctx, "run is no longer ours", "sent", a.sent)
		w.e.observer.LeaseLost(ctx, run)
		return run, false
	case err != nil && !a.sent && (errors.Is(err, errPaused) || errors.Is(context.Cause(ctx), errShutdown)):
		w.release(ctx, c.Lease)
		return run, false
	case errors.Is(err, errExpired):
		a.err = nil
		return expired(merge(run, res), false, a.at), true
	case errors.Is(err, errPaused):
		a.err = adapters.Errorf(adapters.Busy, "the target was paused during the attempt")
	case errors.Is(context.Cause(ctx), errShutdown) && adapters.KindOf(err) == 0 && err != nil:
		a.err = adapters.Errorf(adapters.Uncertain, "the gateway stopped during the attempt")
	case err != nil && adapters.KindOf(err) == 0 && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		kind := adapters.Unreachable
		if a.sent {
			kind = adapters.Uncertain
		}
		a.err = adapters.Errorf(kind, "the attempt took too long")
	}
	w.judge(ctx, a, c.Lease)
	result = resultOf(a)
	next := w.policy.settle(run, a)
	if next.State == RunRetrying && errors.Is(context.Cause(ctx), errShutdown) {
		next.NextAttemptTime = a.at
	}
	return next, true
}

// invalidate calls the adapter and turns a panic into an error: one adapter's bug must not end the process.
func (w *worker) invalidate(ctx context.Context, req adapters.Request) (res adapters.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.log.ErrorContext(ctx, "adapter panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			res, err = adapters.Result{}, &adapters.Error{Kind: adapters.Uncertain, Why: adapters.ReasonInternal, Message: "the adapter failed"}
		}
	}()
	return w.target.Adapter.Invalidate(ctx, req)
}

// fence is asked before every request that changes something.
func (w *worker) fence(ctx context.Context, own *ownership, run Run) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if own.lapsed() {
		own.cancel(errLost)
		return errLost
	}
	if !w.e.now().Before(run.ExpireTime) {
		return errExpired
	}
	if w.paused() {
		return errPaused
	}
	return nil
}

// judge feeds the breaker and the parking from an attempt's answer.
func (w *worker) judge(ctx context.Context, a attempt, l Lease) {
	switch kind := adapters.KindOf(a.err); kind {
	case adapters.Unreachable, adapters.Uncertain, adapters.BadReply:
		w.breaker.RecordFailure()
	default:
		w.breaker.RecordSuccess() // the target answered, if only to refuse
		if kind == adapters.Credentials {
			w.refused(a.at)
			w.about(l).ErrorContext(ctx, "target refuses the account's credentials; it is left alone for a while", "for", parkLength)
			return
		}
		if parked, _ := w.parking(); parked {
			w.unpark(ctx)
		}
	}
	if a.err != nil {
		w.about(l).WarnContext(ctx, "attempt failed", "error", a.err, "kind", adapters.KindOf(a.err).String())
	}
}

// record journals the run. While the journal is unavailable it keeps trying: the answer is known and must not get lost
// as long as the lease holds.
func (w *worker) record(ctx context.Context, c ClaimedRun, run Run) {
	events := []Event{runEvent(c, run, w.e.now())}
	run.Open = false
	run = run.Kept(w.e.now())
	for {
		// The journal's answer matters more than why the attempt ended.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
		w.e.hub.recording(c.Lease.InvalidationID)
		head, err := w.e.store.Record(rctx, c.Lease, run, events)
		w.e.hub.recorded(c.Lease.InvalidationID, answer{c.Lease.Run, run, head}, err)
		cancel()
		switch {
		case err == nil:
			if run.State.Final() {
				w.e.observer.Ended(ctx, run, c.CreateTime)
			} else {
				w.signal()
			}
			if head.State.Final() {
				w.e.observer.Completed(ctx, c.Lease.InvalidationID, head.State)
			}
			if w.log.Enabled(ctx, slog.LevelInfo) {
				w.about(c.Lease).InfoContext(ctx, "run recorded", "state", run.State, "attempts", run.Attempts, "count", countText(run))
			}
			return
		case errors.Is(err, ErrLeaseLost):
			w.about(c.Lease).InfoContext(ctx, "run was ended or taken over meanwhile")
			w.e.observer.LeaseLost(ctx, run)
			return
		case errors.Is(err, ErrIllegalTransition):
			w.about(c.Lease).ErrorContext(ctx, "record run", "error", err)
			return
		}
		w.about(c.Lease).ErrorContext(ctx, "record run; will try again", "error", err)
		select {
		case <-time.After(journalRetry):
		case <-w.e.stopped:
			return // found open at the next start
		}
	}
}

// release gives a run back of which nothing was sent.
func (w *worker) release(ctx context.Context, l Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	if err := w.e.store.Release(ctx, l); err != nil && !errors.Is(err, ErrLeaseLost) {
		w.about(l).ErrorContext(ctx, "release run", "error", err)
	}
}

func countText(r Run) string {
	switch {
	case !r.Counted:
		return "unknown"
	case r.CountIsMinimum:
		return fmt.Sprintf("at least %d", r.Count)
	}
	return fmt.Sprint(r.Count)
}

// runEvents are the types of the audit events of recorded runs.
var runEvents = map[RunState]string{
	RunPending: "run.waiting", RunRunning: "run.progressed", RunRetrying: "run.retrying", RunSucceeded: "run.succeeded",
	RunUnsupported: "run.unsupported", RunFailed: "run.failed", RunCancelled: "run.cancelled",
}

// runEvent is the audit event of a recorded run.
func runEvent(c ClaimedRun, r Run, at time.Time) Event {
	return Event{Time: at, Type: runEvents[r.State], Caller: c.Caller, InvalidationID: c.Lease.InvalidationID, Target: r.Target, Data: runData(c, r)}
}

func runData(c ClaimedRun, r Run) json.RawMessage {
	data := struct {
		Attempts       int                `json:"attempts"`
		Count          *int               `json:"count,omitempty"`
		CountIsMinimum bool               `json:"count_is_minimum,omitempty"`
		Message        *string            `json:"message,omitempty"`
		Operation      string             `json:"operation,omitempty"`
		Reason         *adapters.Reason   `json:"reason,omitempty"`
		Selector       *adapters.Selector `json:"selector,omitempty"`
		Terms          *Terms             `json:"terms,omitempty"`
		Verification   string             `json:"verification,omitempty"`
		Warnings       []adapters.Warning `json:"warnings,omitempty"`
	}{Attempts: r.Attempts, CountIsMinimum: r.CountIsMinimum, Operation: r.Operation, Warnings: r.Warnings}
	if c.Run.Selector == nil && r.Selector != nil {
		// The directory has answered at last: the acceptance could not tell.
		data.Selector, data.Terms = r.Selector, &r.Terms
	}
	if r.Counted {
		data.Count = &r.Count
	}
	if r.Error != nil {
		data.Reason, data.Message = &r.Error.Reason, &r.Error.Message
	}
	if r.Verification != adapters.VerificationUnspecified {
		data.Verification = r.Verification.String()
	}
	return mustJSON(&data)
}
