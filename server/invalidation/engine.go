package invalidation

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"
)

// Defaults of [Options].
const (
	DefaultLeaseLength    = 30 * time.Second
	DefaultPollsPerSecond = 4
	DefaultMaxCalls       = 4096
	DefaultRetention      = 90 * 24 * time.Hour
	// DefaultRetryFor and DefaultRetryForBroad are how long failed runs are retried when neither caller nor target says.
	DefaultRetryFor      = 24 * time.Hour
	DefaultRetryForBroad = 15 * time.Minute
)

const (
	// journalTimeout bounds one transaction.
	journalTimeout = 10 * time.Second
	// overloadDelay is what a refused caller is told to wait.
	overloadDelay = time.Second
	// previewTimeout bounds the preview at one target.
	previewTimeout = 30 * time.Second
	// directoryRetry is how often a run whose directory does not answer is tried to be resolved.
	directoryRetry = 10 * time.Second
	// pruneInterval is how often finished invalidations are looked over; pruneBatch how many go in one transaction.
	pruneInterval = time.Hour
	pruneBatch    = 500
	// heartbeat is how often Watch repeats itself when nothing changes.
	heartbeat = 20 * time.Second
)

// Causes of the end of an attempt's context.
var errShutdown = errors.New("the gateway is stopping")

// Options make an [Engine].
type Options struct {
	Store    Store
	Resolver Resolver
	// Targets in the order of the configuration; their names are unique.
	Targets []Target
	Logger  *slog.Logger
	// Owner names this process in leases; empty makes a random one.
	Owner string
	// LeaseLength, PollsPerSecond (of one target), MaxCalls (at once), Retention: zero means the default.
	LeaseLength    time.Duration
	PollsPerSecond float64
	MaxCalls       int
	Retention      time.Duration
	// Random makes the jitter; nil means math/rand.
	Random func() float64
}

// Engine accepts calls and drives what it accepted.
type Engine struct {
	store    Store
	resolver Resolver
	log      *slog.Logger

	owner          string
	leaseLength    time.Duration
	pollsPerSecond float64
	retention      time.Duration
	random         func() float64

	targets []Target // in the order of the configuration
	workers map[string]*worker
	hub     *hub
	calls   *semaphore.Weighted
	skew    atomic.Int64 // the store's clock minus ours

	live sync.Map // leaseKey → *ownership

	loops     sync.WaitGroup // claiming, heartbeat, pruning
	attempts  sync.WaitGroup
	stopLoops context.CancelFunc
	closing   atomic.Bool
	stopped   chan struct{} // closed when attempts are no longer waited for
	stopOnce  sync.Once
}

type leaseKey struct {
	id    string
	run   int
	token int64
}

// ownership is a lease this process works under.
type ownership struct {
	lease  Lease
	cancel context.CancelCauseFunc
	until  *time.Timer // cancels when the lease can no longer be relied on
}

// New returns an engine that is already at work on what the journal holds.
func New(ctx context.Context, o Options) (*Engine, error) {
	e := &Engine{
		store: o.Store, resolver: o.Resolver, log: o.Logger, owner: o.Owner, targets: slices.Clone(o.Targets),
		leaseLength: o.LeaseLength, pollsPerSecond: o.PollsPerSecond, retention: o.Retention, random: o.Random,
		workers: map[string]*worker{}, hub: newHub(), stopped: make(chan struct{}),
	}
	if e.owner == "" {
		e.owner = uuid.NewString()
	}
	if e.leaseLength == 0 {
		e.leaseLength = DefaultLeaseLength
	}
	if e.pollsPerSecond == 0 {
		e.pollsPerSecond = DefaultPollsPerSecond
	}
	if e.retention == 0 {
		e.retention = DefaultRetention
	}
	if e.random == nil {
		e.random = rand.Float64
	}
	if o.MaxCalls == 0 {
		o.MaxCalls = DefaultMaxCalls
	}
	e.calls = semaphore.NewWeighted(int64(o.MaxCalls))
	for _, t := range e.targets {
		if e.workers[t.Name] != nil {
			return nil, fmt.Errorf("two targets are named %q", t.Name)
		}
		if t.Concurrency < 1 {
			return nil, fmt.Errorf("target %q: concurrency %d", t.Name, t.Concurrency)
		}
		e.workers[t.Name] = newWorker(e, t, false)
	}
	e.store.OnChange(e.changed)
	if err := e.syncClock(ctx); err != nil {
		return nil, fmt.Errorf("read the journal's clock: %w", err)
	}
	if err := e.loadPauses(ctx); err != nil {
		return nil, fmt.Errorf("read the paused targets: %w", err)
	}
	unfinished, err := e.store.Unfinished(ctx)
	if err != nil {
		return nil, fmt.Errorf("count unfinished runs: %w", err)
	}
	for name, n := range unfinished {
		if e.workers[name] == nil {
			e.log.Warn("runs of a target that is no longer configured will be ended", "target", name, "runs", n)
			e.workers[name] = newWorker(e, Target{Name: name, Concurrency: 1}, true)
		}
	}
	loopCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.stopLoops = stop
	for _, w := range e.workers {
		e.loops.Go(func() { w.loop(loopCtx) })
	}
	e.loops.Go(func() { e.beat(loopCtx) })
	e.loops.Go(func() { e.pruneLoop(loopCtx) })
	return e, nil
}

// now is the store's clock, as far as this process knows it.
func (e *Engine) now() time.Time { return time.Now().Add(time.Duration(e.skew.Load())) }

// syncClock measures how far the store's clock is from ours.
func (e *Engine) syncClock(ctx context.Context) error {
	before := time.Now()
	t, err := e.store.Now(ctx)
	if err != nil {
		return err
	}
	after := time.Now()
	skew := t.Sub(before.Add(after.Sub(before) / 2))
	if skew.Abs() <= after.Sub(before) {
		skew = 0 // not measurable
	}
	e.skew.Store(int64(skew))
	return nil
}

// changed is told of every committed change.
func (e *Engine) changed(id string) { e.hub.changed(id) }

// loadPauses brings the workers' pauses to what the journal says.
func (e *Engine) loadPauses(ctx context.Context) error {
	pauses, err := e.store.Pauses(ctx)
	if err != nil {
		return err
	}
	for name, w := range e.workers {
		i := slices.IndexFunc(pauses, func(p Pause) bool { return p.Target == name })
		w.mu.Lock()
		was := w.pause != nil
		w.pause = nil
		if i >= 0 {
			w.pause = &pauses[i]
		}
		w.mu.Unlock()
		if was && i < 0 {
			w.signal()
		}
	}
	return nil
}

// own registers a lease; the context ends when the lease is lost, can no longer be relied on, or the engine stops.
func (e *Engine) own(l Lease) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	o := &ownership{lease: l, cancel: cancel}
	// The local monotonic clock ends the work a third of a lease before another process may take over.
	o.until = time.AfterFunc(e.leaseLength*2/3, func() { cancel(errLost) })
	key := leaseKey{l.InvalidationID, l.Run, l.Token}
	e.live.Store(key, o)
	select {
	case <-e.stopped:
		cancel(errShutdown)
	default:
	}
	return ctx, func() {
		e.live.Delete(key)
		o.until.Stop()
		cancel(nil)
	}
}

// beat renews the leases in use, and keeps the clock and the pauses fresh.
func (e *Engine) beat(ctx context.Context) {
	tick := time.NewTicker(e.leaseLength / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := e.renew(ctx); err != nil && ctx.Err() == nil {
			e.log.Error("renew leases", "error", err)
		}
		if err := errors.Join(e.syncClock(ctx), e.loadPauses(ctx)); err != nil && ctx.Err() == nil {
			e.log.Error("read the journal", "error", err)
		}
	}
}

func (e *Engine) renew(ctx context.Context) error {
	var leases []Lease
	owned := map[leaseKey]*ownership{}
	e.live.Range(func(k, v any) bool {
		o := v.(*ownership)
		leases = append(leases, o.lease)
		owned[k.(leaseKey)] = o
		return true
	})
	if len(leases) == 0 {
		return nil
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.leaseLength/3)
	defer cancel()
	lost, err := e.store.Renew(ctx, leases, e.leaseLength)
	if err != nil {
		return err
	}
	for _, l := range lost {
		key := leaseKey{l.InvalidationID, l.Run, l.Token}
		owned[key].cancel(errLost)
		delete(owned, key)
	}
	for _, o := range owned {
		// Stop reports false when the timer has fired, that is, the work was given up already.
		if o.until.Stop() {
			o.until.Reset(time.Until(asked.Add(e.leaseLength * 2 / 3)))
		}
	}
	return nil
}

// lose ends the attempts at an invalidation that was cancelled.
func (e *Engine) lose(id string) {
	e.live.Range(func(k, v any) bool {
		if k.(leaseKey).id == id {
			v.(*ownership).cancel(errLost)
		}
		return true
	})
}

func (e *Engine) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		for {
			n, err := e.store.Prune(ctx, e.now().Add(-e.retention), pruneBatch)
			if err != nil && ctx.Err() == nil {
				e.log.Error("prune finished invalidations", "error", err)
			}
			if n > 0 {
				e.log.Info("pruned finished invalidations", "removed", n)
			}
			if err != nil || n < pruneBatch {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close stops claiming, lets attempts under way finish until ctx ends, then ends them: what was not sent is given back,
// what may have been sent is journalled as such. It returns when no attempt is left.
func (e *Engine) Close(ctx context.Context) error {
	e.closing.Store(true)
	e.stopLoops()
	e.loops.Wait()
	// Leases are no longer renewed: attempts have two thirds of a lease, as always.
	done := make(chan struct{})
	go func() { e.attempts.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	e.stopOnce.Do(func() { close(e.stopped) })
	e.live.Range(func(_, v any) bool {
		v.(*ownership).cancel(errShutdown)
		return true
	})
	<-done
	return nil
}

// digest is what a repeated request id is compared by: the contents of the call.
func digest(c Call, retryOf string) ([]byte, error) {
	c.OnBehalfOf = ""
	c.Targets = slices.Sorted(slices.Values(c.Targets))
	b, err := json.Marshal(struct {
		Call    Call   `json:"call"`
		RetryOf string `json:"retry_of,omitempty"`
	}{c, retryOf})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// plan resolves a call at every target it concerns. Nothing is sent and nothing journalled.
func (e *Engine) plan(ctx context.Context, call Call, now time.Time) ([]Run, error) {
	if err := e.check(call); err != nil {
		return nil, err
	}
	var runs []Run
	for _, t := range e.chosen(call) {
		run := Run{Target: t.Name, Kind: t.Kind, Fingerprint: t.Fingerprint(), State: RunPending,
			ExpireTime: now.Add(retryFor(call, t)), NextAttemptTime: now}
		runs = append(runs, e.resolve(ctx, t, call.Selector, run, now))
	}
	return runs, nil
}

// check refuses calls that contradict themselves or name what does not exist.
func (e *Engine) check(call Call) error {
	invalid := func(reason adapters.Reason, field, format string, args ...any) error {
		return &CallError{Code: InvalidArgument, Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)}
	}
	if err := call.Selector.Validate(); err != nil {
		return invalid(ReasonInvalidArgument, "selector", "%v", err)
	}
	if call.Selector.Broad() && !call.ConfirmBroad {
		return invalid(ReasonConfirmBroad, "confirm_broad", "the selector names neither a user nor sessions: confirm_broad must be true")
	}
	if len(call.Selector.Sessions) > 0 && len(call.Targets) > 0 {
		return invalid(ReasonInvalidArgument, "targets", "must be empty: the sessions name their targets")
	}
	for i, name := range call.Targets {
		if !e.configured(name) {
			return invalid(ReasonUnknownTarget, fmt.Sprintf("targets[%d]", i), "there is no target %q", name)
		}
		if slices.Index(call.Targets, name) != i {
			return invalid(ReasonInvalidArgument, fmt.Sprintf("targets[%d]", i), "%q is named twice", name)
		}
	}
	for i, s := range call.Selector.Sessions {
		if !e.configured(s.Target) {
			return invalid(ReasonUnknownTarget, fmt.Sprintf("selector.sessions[%d].target", i), "there is no target %q", s.Target)
		}
	}
	if u := call.Selector.User; u != nil {
		for name := range u.TargetUsernames {
			if !e.configured(name) {
				return invalid(ReasonUnknownTarget, "selector.user.target_usernames", "there is no target %q", name)
			}
		}
	}
	return nil
}

func (e *Engine) configured(name string) bool {
	w := e.workers[name]
	return w != nil && !w.removed
}

// chosen returns the targets a call concerns, in the order of the configuration.
func (e *Engine) chosen(call Call) []Target {
	names := call.Targets
	if len(call.Selector.Sessions) > 0 {
		names = call.Selector.SessionTargets()
	}
	if len(names) == 0 {
		return e.targets
	}
	var ts []Target
	for _, t := range e.targets {
		if slices.Contains(names, t.Name) {
			ts = append(ts, t)
		}
	}
	return ts
}

// retryFor is how long a run is retried: what the caller asks for, capped by the target.
func retryFor(call Call, t Target) time.Duration {
	most := t.RetryFor
	if most == 0 {
		most = DefaultRetryFor
	}
	want := call.RetryFor
	if want == 0 {
		want = most
		if call.Selector.Broad() {
			want = DefaultRetryForBroad
		}
	}
	return min(want, most)
}

// resolve turns the canonical selector into the target's names, once. A run that cannot be resolved, or need not be
// sent, is final at once.
func (e *Engine) resolve(ctx context.Context, t Target, sel Selector, run Run, now time.Time) Run {
	res, err := e.resolver.Resolve(ctx, t.Name, sel)
	if err != nil {
		var re *ResolveError
		if !errors.As(err, &re) {
			e.log.Error("resolve selector", "target", t.Name, "error", err)
			re = &ResolveError{Reason: adapters.ReasonInternal, Message: "the selector could not be resolved"}
		}
		run.Error = &RunError{Reason: re.Reason, Message: re.Message}
		switch {
		case re.Retryable:
			run.Error.RetryDelay = directoryRetry
			return schedule(run, now, directoryRetry)
		case re.Unsupported:
			run.State = RunUnsupported
			return finish(run, now)
		}
		return fail(run, now)
	}
	run.Error = nil
	for _, w := range res.Warnings {
		run = warn(run, w)
	}
	if res.Nothing {
		run = warn(run, adapters.Warning{Code: adapters.WarnNothingCanMatch, Message: "no session at this target can match; nothing was sent"})
		run.State = RunSucceeded
		run.Counted = true
		return finish(run, now)
	}
	if err := supports(t, res.Selector); err != nil {
		run.Error = err
		run.State = RunUnsupported
		return finish(run, now)
	}
	run.Selector = &res.Selector
	return run
}

// supports says whether the target can end exactly the sessions of a resolved selector.
func supports(t Target, sel adapters.Selector) *RunError {
	if err := sel.Validate(); err != nil {
		return &RunError{Reason: adapters.ReasonInternal, Message: err.Error()}
	}
	if !t.Type.Supports(sel.By) {
		return &RunError{Reason: adapters.ReasonSelectorUnsupported, Message: fmt.Sprintf("%s cannot end sessions by %s", t.Kind, sel.By)}
	}
	if err := t.Adapter.Supports(sel); err != nil {
		run := &RunError{Reason: adapters.ReasonSelectorUnsupported, Message: err.Error()}
		var ae *adapters.Error
		if errors.As(err, &ae) {
			run.Reason, run.Message = ae.Reason(), ae.Message
		}
		return run
	}
	return nil
}

// resolveLate resolves a run whose directory did not answer at acceptance.
func (e *Engine) resolveLate(ctx context.Context, t Target, c ClaimedRun, now time.Time) Run {
	run := c.Run
	run.NextAttemptTime = now
	return e.resolve(ctx, t, c.Selector, run, now)
}

// Invalidate accepts a call and waits for its final state, as long as the request says and the context allows. The
// error is non-nil only if the call was not accepted.
func (e *Engine) Invalidate(ctx context.Context, req Request) (inv Invalidation, replayed bool, err error) {
	return e.accept(ctx, req, "")
}

func (e *Engine) accept(ctx context.Context, req Request, retryOf string) (inv Invalidation, replayed bool, err error) {
	if !e.calls.TryAcquire(1) {
		return Invalidation{}, false, &CallError{Code: Exhausted, Reason: ReasonOverloaded, Message: "too many calls at once", RetryDelay: overloadDelay}
	}
	defer e.calls.Release(1)
	now := e.now()
	runs, err := e.plan(ctx, req.Call, now)
	if err != nil {
		return Invalidation{}, false, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Invalidation{}, false, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "not accepted", Err: err}
	}
	inv = Invalidation{ID: id.String(), Revision: 1, Call: req.Call, Caller: req.Caller, RetryOf: retryOf, CreateTime: now, Runs: runs}
	inv.State = StateOf(runStates(runs), req.Call.AllowUnsupported)
	if inv.State.Final() {
		inv.CompleteTime = now
	}
	a := Acceptance{Invalidation: inv, Owner: e.owner, LeaseLength: e.leaseLength, Events: []Event{acceptEvent(inv)}}
	if req.RequestID != "" {
		a.RequestID = req.RequestID
		if a.Digest, err = digest(req.Call, retryOf); err != nil {
			return Invalidation{}, false, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "not accepted", Err: err}
		}
	}
	for i, r := range runs {
		if r.State == RunPending && r.Selector != nil && e.workers[r.Target].tryStart() {
			a.Start = append(a.Start, i)
		}
	}
	changes, unsubscribe := e.hub.subscribe(inv.ID)
	defer func() { unsubscribe() }()
	accepted, replayed, leases, err := e.journal(ctx, a)
	if err != nil || replayed {
		for _, i := range a.Start {
			e.workers[runs[i].Target].free()
		}
		if err != nil {
			return Invalidation{}, false, err
		}
		unsubscribe()
		changes, unsubscribe = e.hub.subscribe(accepted.ID)
	} else {
		for _, l := range leases {
			e.workers[accepted.Runs[l.Run].Target].start(ClaimedRun{Lease: l, Run: accepted.Runs[l.Run],
				Priority: req.Call.Priority, Selector: req.Call.Selector, Caller: req.Caller})
		}
		for i, r := range accepted.Runs {
			if !r.State.Final() && !slices.Contains(a.Start, i) {
				e.workers[r.Target].signal()
			}
		}
	}
	return e.wait(ctx, accepted, req.Wait, changes), replayed, nil
}

// journal writes the acceptance. It does not die with the caller's connection: from here on the call may be accepted.
func (e *Engine) journal(ctx context.Context, a Acceptance) (Invalidation, bool, []Lease, error) {
	if ctx.Err() != nil {
		return Invalidation{}, false, nil, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "the caller left before the call was accepted", Err: ctx.Err()}
	}
	jctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	inv, replayed, leases, err := e.store.Accept(jctx, a)
	switch {
	case err == nil:
		return inv, replayed, leases, nil
	case errors.Is(err, ErrRequestReused):
		return Invalidation{}, false, nil, &CallError{Code: AlreadyExists, Reason: ReasonRequestReused, Field: "request_id",
			Message: "request_id was used for a request with other contents"}
	case errors.Is(err, ErrCommitUnknown):
		if inv, found := e.lookUp(ctx, a.Invalidation.ID); found {
			// The leases are ours by name only; they end by themselves and the runs are claimed again.
			return inv, false, nil, nil
		}
		return Invalidation{}, false, nil, &CallError{Code: AcceptanceUnknown, Reason: ReasonAcceptanceUnknown, ID: a.Invalidation.ID,
			Message: "the journal's answer was lost; look the invalidation up by its name", RetryDelay: overloadDelay, Err: err}
	}
	return Invalidation{}, false, nil, &CallError{Code: Unavailable, Reason: ReasonNotAccepted,
		Message: "the journal cannot be written; nothing was accepted and nothing was sent", RetryDelay: overloadDelay, Err: err}
}

// lookUp finds out what became of a commit whose answer was lost.
func (e *Engine) lookUp(ctx context.Context, id string) (Invalidation, bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	inv, err := e.store.Get(ctx, id)
	return inv, err == nil
}

// wait returns the invalidation when it is final, or as it stands when the time is up or the context nears its end.
func (e *Engine) wait(ctx context.Context, inv Invalidation, length time.Duration, changes <-chan struct{}) Invalidation {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		length = min(length, left-min(max(left/10, 20*time.Millisecond), time.Second))
	}
	if inv.State.Final() || length <= 0 {
		return inv
	}
	timer := time.NewTimer(length)
	defer timer.Stop()
	for {
		select {
		case <-changes:
		case <-timer.C:
			return inv
		case <-ctx.Done():
			return inv
		}
		newer, err := e.store.Get(ctx, inv.ID)
		if err != nil {
			if ctx.Err() == nil {
				e.log.Error("read invalidation", "invalidation", inv.ID, "error", err)
			}
			continue
		}
		if inv = newer; inv.State.Final() {
			return inv
		}
	}
}

func runStates(runs []Run) []RunState {
	states := make([]RunState, len(runs))
	for i, r := range runs {
		states[i] = r.State
	}
	return states
}

// acceptEvent is the audit event of an acceptance; it is journalled before the first request is sent.
func acceptEvent(inv Invalidation) Event {
	type planned struct {
		Target   string             `json:"target"`
		State    RunState           `json:"state"`
		Selector *adapters.Selector `json:"selector,omitempty"`
		Error    *RunError          `json:"error,omitempty"`
	}
	data := struct {
		Call    Call      `json:"call"`
		RetryOf string    `json:"retry_of,omitempty"`
		Runs    []planned `json:"runs"`
	}{Call: inv.Call, RetryOf: inv.RetryOf}
	for _, r := range inv.Runs {
		data.Runs = append(data.Runs, planned{r.Target, r.State, r.Selector, r.Error})
	}
	return Event{Time: inv.CreateTime, Type: "invalidation.accepted", Caller: inv.Caller, InvalidationID: inv.ID, Data: mustJSON(data)}
}

// mustJSON marshals plain data of ours.
func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", v, err))
	}
	return b
}
