package invalidation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	// followPause and pickUpPause are how long a process that shares its journal waits at least before it looks again
	// whether others have changed what it is working on, and whether they have left something to do.
	followPause = 100 * time.Millisecond
	pickUpPause = time.Second
	// heartbeat is how often Watch repeats itself when nothing changes.
	heartbeat = 20 * time.Second
)

// Causes of the end of an attempt's context.
var errShutdown = errors.New("the gateway is stopping")

// Options make an [Engine].
type Options struct {
	Store    Store
	Resolver Resolver
	// Policy says what callers may do; nil means everything.
	Policy Policy
	// Targets in the order of the configuration; their names are unique.
	Targets []Target
	Logger  *slog.Logger
	// Observer is told what the engine does; nil means nobody.
	Observer Observer
	// Owner names this process in leases; empty makes a random one.
	Owner string
	// LeaseLength, PollsPerSecond (of one target), MaxCalls (at once), Retention: zero means the default.
	LeaseLength    time.Duration
	PollsPerSecond float64
	MaxCalls       int
	Retention      time.Duration
	// MaxUnfinished is how many runs may be unfinished before no more are accepted; zero means the default.
	MaxUnfinished int
	// ProbeInterval is how often every target is probed, give or take a tenth. Zero means the default, less never.
	ProbeInterval time.Duration
	// AuditRetention is how long audit events are kept; zero means for ever.
	AuditRetention time.Duration
	// Random makes the jitter; nil means math/rand.
	Random func() float64
}

// Engine accepts calls and drives what it accepted.
type Engine struct {
	store    Store
	resolver Resolver
	policy   Policy
	log      *slog.Logger
	observer Observer

	owner          string
	leaseLength    time.Duration
	pollsPerSecond float64
	retention      time.Duration
	probeInterval  time.Duration
	auditRetention time.Duration
	random         func() float64

	targets []Target // in the order of the configuration
	workers map[string]*worker
	hub     *hub
	news    *news
	notes   *notes
	calls   *semaphore.Weighted
	backlog backlog
	probes  chan struct{} // one place for each probe that nobody asked for
	skew    atomic.Int64  // the store's clock minus ours

	live live

	pausing sync.Mutex // held from reading or writing pauses in the journal until the workers know

	loops     sync.WaitGroup // claiming, heartbeat, pruning
	hands     *hands         // attempts
	stopLoops context.CancelFunc
	closing   atomic.Bool
	stopped   chan struct{} // closed when attempts are no longer waited for
	stopOnce  sync.Once
}

// New returns an engine that is already at work on what the journal holds.
func New(ctx context.Context, o Options) (*Engine, error) {
	e := &Engine{
		store: o.Store, resolver: o.Resolver, policy: o.Policy, log: o.Logger, observer: o.Observer, owner: o.Owner, targets: slices.Clone(o.Targets),
		leaseLength: o.LeaseLength, pollsPerSecond: o.PollsPerSecond, retention: o.Retention, auditRetention: o.AuditRetention,
		probeInterval: o.ProbeInterval, probes: make(chan struct{}, probesAtOnce), random: o.Random,
		workers: map[string]*worker{}, hub: newHub(), news: newNews(), notes: newNotes(), hands: newHands(), stopped: make(chan struct{}),
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
	if e.probeInterval == 0 {
		e.probeInterval = DefaultProbeInterval
	}
	if e.policy == nil {
		e.policy = anything{}
	}
	if e.observer == nil {
		e.observer = nobody{}
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
	e.store.OnChange(e.hub.changed)
	e.store.OnNews(e.news.tell)
	if err := e.syncClock(ctx); err != nil {
		return nil, fmt.Errorf("read the journal's clock: %w", err)
	}
	if err := e.loadPauses(ctx); err != nil {
		return nil, fmt.Errorf("read the paused targets: %w", err)
	}
	e.backlog.limit = int64(o.MaxUnfinished)
	if e.backlog.limit == 0 {
		e.backlog.limit = DefaultMaxUnfinished
	}
	unfinished, err := e.refreshBacklog(ctx)
	if err != nil {
		return nil, fmt.Errorf("count unfinished runs: %w", err)
	}
	for name, u := range unfinished {
		if e.workers[name] == nil {
			e.log.WarnContext(ctx, "runs of a target that is no longer configured will be ended", "target", name, "runs", u.Runs)
			e.workers[name] = newWorker(e, Target{Name: name, Concurrency: 1}, true)
		}
	}
	shared := false
	for _, w := range e.workers {
		if err := w.slots.grow(ctx); err != nil {
			return nil, fmt.Errorf("take slots of target %q: %w", w.target.Name, err)
		}
		shared = shared || w.slots.shared()
	}
	loopCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.stopLoops = stop
	for _, w := range e.workers {
		e.loops.Go(func() { w.loop(loopCtx) })
		if e.probeInterval > 0 && !w.removed {
			e.loops.Go(func() { w.watchHealth(loopCtx) })
		}
	}
	e.loops.Go(func() { e.beat(loopCtx) })
	if shared {
		e.loops.Go(func() { e.follow(loopCtx) })
		e.loops.Go(func() { e.pickUp(loopCtx) })
	}
	e.loops.Go(func() { e.pruneLoop(loopCtx) })
	e.loops.Go(func() { e.followBacklog(loopCtx) })
	e.loops.Go(func() { e.noteLoop(loopCtx) })
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

// loadPauses brings the workers' pauses to what the journal says.
func (e *Engine) loadPauses(ctx context.Context) error {
	e.pausing.Lock()
	defer e.pausing.Unlock()
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

func (e *Engine) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		for {
			n, err := e.store.Prune(ctx, e.now().Add(-e.retention), pruneBatch)
			if err != nil && ctx.Err() == nil {
				e.log.ErrorContext(ctx, "prune finished invalidations", "error", err)
			}
			if n > 0 {
				e.log.InfoContext(ctx, "pruned finished invalidations", "removed", n)
			}
			if err != nil || n < pruneBatch {
				break
			}
		}
		e.pruneAudit(ctx)
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
	for _, w := range e.workers {
		w.endProbe(ctx)
	}
	// Leases are no longer renewed: attempts have two thirds of a lease, as always.
	done := make(chan struct{})
	go func() { e.hands.wait(); close(done) }()
	defer e.dropSlots()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	e.stopOnce.Do(func() { close(e.stopped) })
	for _, o := range e.live.all() {
		o.cancel(errShutdown)
	}
	<-done
	return nil
}

// dropSlots gives the targets' slots back, so that other processes need not wait for the end of their leases.
func (e *Engine) dropSlots() {
	ctx, cancel := context.WithTimeout(context.Background(), journalTimeout)
	defer cancel()
	for _, w := range e.workers {
		if err := w.slots.drop(ctx); err != nil {
			w.log.WarnContext(ctx, "give slots back", "error", err)
		}
	}
}

// mustJSON marshals plain data of ours.
func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", v, err))
	}
	return b
}
