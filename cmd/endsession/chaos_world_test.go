package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

var chaosTargets = []string{"apm", "apm-all", "kibana-prod", "storage"}

// chaos is one schedule being carried out: the emulated systems, the gateway's process of the moment, and what was seen.
// It lives in one bubble of virtual time.
type chaos struct {
	*schedule
	t     testing.TB
	setup *chaosSetup
	dir   string
	began time.Time

	l             *lab
	bigiq         map[string]*bigiqtest.Server
	kibana        *kibanatest.Server
	element       *elementtest.Server
	directoryAway atomic.Bool
	journalAway   atomic.Bool // writes are refused
	answersLost   atomic.Bool // writes are carried out, and nobody learns of it
	clients       sync.WaitGroup
	lied          bool // Element has, at least once

	mu         sync.Mutex
	now        *gateway // nil while it is down
	journal    string   // the file that the next process opens
	died       chan time.Duration
	processes  []*gateway
	keys       map[string]string // the calls' keys, by the invalidations' ids
	attempts   map[string]int    // calls of an adapter, by run
	sent       []sentRequest
	seen       map[string]*seenSession
	tasks      map[string]*attemptCall     // who asked for BIG-IQ's tasks
	endedTasks map[string][]bigiqtest.Task // those that BIG-IQ has forgotten since
	pauses     map[string][]pauseSpan
	answers    map[string][]string // the ids that the calls were answered with
	finals     map[string]string   // the final states in the journal, by run
	views      map[string][]string // those that somebody was shown
	wrong      []string
	story      strings.Builder
	counts     map[string]int

	targetLocks map[string]*sync.Mutex

	// The journal's clock, and when things happened by the true one.
	ahead    atomic.Int64
	jumped   []clockSpan
	accepted map[string]time.Time // by invalidation: before the acceptance was written
	ended    map[string]time.Time // by run: after its end was
	begun    map[string]time.Time // by run: its first attempt
}

// clockSpan is how far the journal's clock was ahead from a moment on.
type clockSpan struct {
	from  time.Time
	ahead time.Duration
}

// chaosSetup is what all schedules share: the configuration of the lab, whose names are resolved by the real resolver.
type chaosSetup struct {
	conf     *config.Config
	resolver *identity.Resolver
}

// seenSession is one session in the emulators' history.
type seenSession struct {
	target  string
	session adapters.Session
	born    time.Time
	// died is zero while it lives; by is the attempt that ended it, nil if nobody knows, or if its owner left.
	died time.Time
	by   *attemptCall
	left bool
}

// sentRequest is one request that left a process.
type sentRequest struct {
	at       time.Time
	process  int
	target   string
	method   string
	what     string
	mutating bool
	by       *attemptCall
	fault    string
	status   int
}

// attemptCall is one call of an adapter: which run it is for, and the dice of what it meets.
type attemptCall struct {
	id     string // of the invalidation; empty for previews and probes
	target string
	key    string
	n      int
	began  time.Time
	// probe says that its requests are made so that the target refuses them.
	probe bool
	dice  *rand.Rand
}

type pauseSpan struct{ from, to time.Time }

func newChaosSetup(t *testing.T) *chaosSetup {
	t.Helper()
	path := memoryDir(t, nil)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.Parse(path, text, registry(), config.Environment{
		LookupEnv: func(name string) (string, bool) { v, ok := labEnv[name]; return v, ok },
	})
	if err != nil {
		t.Fatal(err)
	}
	directory, err := identity.LoadFile(conf.Directory.File.Path)
	if err != nil {
		t.Fatal(err)
	}
	o := identity.Options{Directory: directory}
	for _, c := range conf.Targets {
		target := identity.Target{Name: c.Name, Type: c.Type, Providers: map[string][]adapters.Provider{}, Groups: map[string]identity.Group{}}
		for _, u := range c.Usernames {
			target.Usernames = append(target.Usernames, identity.Username{Provider: u.Provider, Name: u.Name})
		}
		for name, p := range c.Providers {
			target.Providers[name] = p.Providers
		}
		for name, g := range c.Groups {
			target.Groups[name] = identity.Group{Groups: g.Groups, Directory: g.Directory, MaxMembers: g.MaxMembers}
		}
		o.Targets = append(o.Targets, target)
	}
	resolver, err := identity.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return &chaosSetup{conf, resolver}
}

func newChaos(t testing.TB, setup *chaosSetup, s *schedule, dir string) *chaos {
	c := &chaos{
		schedule: s, t: t, setup: setup, dir: dir, began: time.Now(), journal: filepath.Join(dir, "0.db"),
		died: make(chan time.Duration, 1), keys: map[string]string{}, attempts: map[string]int{}, seen: map[string]*seenSession{},
		tasks: map[string]*attemptCall{}, endedTasks: map[string][]bigiqtest.Task{}, pauses: map[string][]pauseSpan{}, answers: map[string][]string{}, finals: map[string]string{}, views: map[string][]string{},
		counts: map[string]int{}, targetLocks: map[string]*sync.Mutex{}, bigiq: map[string]*bigiqtest.Server{},
		accepted: map[string]time.Time{}, ended: map[string]time.Time{}, begun: map[string]time.Time{},
	}
	c.jumped = []clockSpan{{c.began, 0}}
	l := newEmptyLab(s)
	c.l, c.kibana, c.element = l, l.systems["kibana-prod"].(*kibanatest.Server), l.systems["storage"].(*elementtest.Server)
	for _, target := range []string{"apm", "apm-all"} {
		c.bigiq[target] = l.systems[target].(*bigiqtest.Server)
	}
	for _, target := range chaosTargets {
		c.targetLocks[target] = &sync.Mutex{}
	}
	for _, x := range s.seats {
		x.session.CreateTime = c.began.Add(-time.Hour) // long enough ago for Kibana to find it
		c.signIn(x.target, x.session)
	}
	return c
}

// newEmptyLab is the lab with systems that have the schedule's habits, and nobody signed in.
func newEmptyLab(s *schedule) *lab {
	l := newLab()
	l.seats, l.keys = nil, nil
	for _, target := range []string{"apm", "apm-all"} {
		l.systems[target] = bigiqtest.New(bigiqtest.Options{Username: "svc-endsession", Password: labBIGIQPassword, TaskTime: s.taskTime})
	}
	l.systems["storage"] = elementtest.New(elementtest.Options{Username: "admin", Password: labElementPassword})
	l.systems["kibana-prod"] = kibanatest.New(kibanatest.Options{
		Accounts: []kibanatest.Account{{APIKey: labKibanaKey, Superuser: true}}, DeletionsLag: s.deletionsLag, Legacy: s.legacy,
		Providers: []kibanatest.Provider{
			{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}, {Type: "saml", Name: "saml2"}, {Type: "oidc", Name: "oidc1"},
			{Type: "token", Name: "token1"}, {Type: "pki", Name: "pki1"}, {Type: "kerberos", Name: "kerberos1"}, {Type: "anonymous", Name: "anonymous1"},
		},
	})
	return l
}

// say notes what happens, for the log of a failed schedule.
func (c *chaos) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(&c.story, "%12.6f  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// fault reports a broken promise.
func (c *chaos) broken(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.say("BROKEN: %s", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, text)
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// Write implements [io.Writer] for the gateway's log.
func (c *chaos) Write(p []byte) (int, error) {
	c.say("  %s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

var _ io.Writer = (*chaos)(nil)

// --- the journal's clock ---

func (c *chaos) clock() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *chaos) jump(by time.Duration) {
	c.count("the clock jumped forwards")
	if by < 0 {
		c.count("the clock jumped backwards")
		c.mu.Lock()
		c.counts["the clock jumped forwards"]--
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jumped = append(c.jumped, clockSpan{time.Now(), time.Duration(c.ahead.Add(int64(by)))})
}

// earliest returns the earliest that a process may have taken a moment for: it looks at the journal's clock at every
// heartbeat.
func (c *chaos) earliest(at time.Time) time.Time {
	if len(c.jumps) == 0 {
		return at
	}
	since := at.Add(-c.leaseLength / 3)
	var earliest time.Time
	for i, j := range c.jumped {
		if i+1 < len(c.jumped) && c.jumped[i+1].from.Before(since) || j.from.After(at) {
			continue
		}
		from := j.from
		if since.After(from) {
			from = since
		}
		if t := from.Add(j.ahead); earliest.IsZero() || t.Before(earliest) {
			earliest = t
		}
	}
	return earliest
}

// moment is a time in the journal, as it was noted where the clock does not jump.
func (c *chaos) moment(journalled, noted time.Time) time.Time {
	if len(c.jumps) == 0 {
		return journalled
	}
	return noted
}

// --- who is signed in ---

func seenKey(target string, k adapters.SessionKey) string {
	return target + " " + k.Device + "/" + k.ID
}

func (c *chaos) signIn(target string, x adapters.Session) {
	lock := c.targetLocks[target]
	lock.Lock()
	defer lock.Unlock()
	x = c.l.systems[target].SignIn(x)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[seenKey(target, x.Key())] = &seenSession{target: target, session: x, born: time.Now()}
}

func (c *chaos) signOut(id string) {
	lock := c.targetLocks["storage"]
	lock.Lock()
	defer lock.Unlock()
	c.element.SignOut(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := c.seen[seenKey("storage", adapters.SessionKey{ID: id})]; x.died.IsZero() {
		x.died, x.left = time.Now(), true
	}
}

// compare notes who is gone from a target since the last look, and whose doing it was. The caller holds the target's lock.
func (c *chaos) compare(target string, by *attemptCall) {
	var tasks []bigiqtest.Task
	if b := c.bigiq[target]; b != nil {
		tasks = b.Tasks()
	}
	alive := map[string]bool{}
	for _, x := range c.l.systems[target].Sessions() {
		alive[seenKey(target, x.Key())] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ended := map[string]*attemptCall{}
	for _, t := range append(tasks, c.endedTasks[target]...) {
		if c.tasks[target+t.ID] == nil && by != nil {
			c.tasks[target+t.ID] = by // BIG-IQ made it in answer to this request
		}
		for _, k := range t.Ended {
			ended[seenKey(target, k)] = c.tasks[target+t.ID]
		}
	}
	for key, x := range c.seen {
		if x.target != target || !x.died.IsZero() || alive[key] {
			continue
		}
		x.died, x.by = time.Now(), by
		if c.bigiq[target] != nil {
			x.by = ended[key]
		}
	}
}

func (c *chaos) cancelTasks(target string) {
	c.count("tasks cancelled")
	c.bigiq[target].CancelTasks()
}

// forgetTasks lets BIG-IQ forget; the history does not.
func (c *chaos) forgetTasks(target string) {
	c.count("tasks forgotten")
	lock := c.targetLocks[target]
	lock.Lock()
	defer lock.Unlock()
	tasks := c.bigiq[target].Tasks()
	c.compare(target, nil)
	c.mu.Lock()
	c.endedTasks[target] = append(c.endedTasks[target], tasks...)
	c.mu.Unlock()
	c.bigiq[target].ForgetTasks()
}

// --- the gateway's process ---

// gateway is one process of the gateway, from its start to its end or death.
type gateway struct {
	c        *chaos
	n        int
	path     string
	store    *mortalStore
	engine   *invalidation.Engine
	sent     map[string]*emulator.Recorder
	ctx      context.Context // ends with the process: its callers' connections do
	cancel   context.CancelFunc
	dead     chan struct{}
	stopping atomic.Bool
}

func (g *gateway) isDead() bool {
	select {
	case <-g.dead:
		return true
	default:
		return false
	}
}

// current returns the process that callers reach, or nil.
func (c *chaos) current() *gateway {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == nil || c.now.isDead() || c.now.stopping.Load() {
		return nil
	}
	return c.now
}

// start opens the journal and begins a process.
func (c *chaos) start() {
	n := len(c.processes)
	c.say("process %d starts on %s", n, filepath.Base(c.journal))
	g := &gateway{c: c, n: n, path: c.journal, sent: map[string]*emulator.Recorder{}, dead: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	log := slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	store, err := sqlite.Open(context.Background(), sqlite.Options{Path: g.path, Logger: log, Clock: c.clock})
	if err != nil {
		c.broken("the journal cannot be opened: %v", err)
		c.t.FailNow()
	}
	g.store = &mortalStore{Store: store, g: g}
	jitter := dice(c.seed, "jitter", n)
	var mu sync.Mutex
	options := invalidation.Options{
		Store: g.store, Resolver: chaosResolver{c}, Logger: log, Owner: fmt.Sprint("process-", n), LeaseLength: c.leaseLength, ProbeInterval: -1,
		Random: func() float64 {
			mu.Lock()
			defer mu.Unlock()
			return jitter.Float64()
		},
	}
	for _, conf := range c.setup.conf.Targets {
		faults := emulator.NewFaults(&watched{c, conf.Name, emulator.Transport(c.l.systems[conf.Name].Handler())})
		faults.Choose(chosenFault)
		g.sent[conf.Name] = emulator.NewRecorder(&wire{g, conf.Name, faults})
		deps := adapters.Deps{Target: conf.Name, Logger: log, Transport: &besideTheRecorder{g.sent[conf.Name], &wire{g, conf.Name, faults}}}
		if !conf.Rate.IsZero() {
			deps.Limit = rate.NewLimiter(rate.Limit(conf.Rate.PerSecond()), 1).Wait
		}
		adapter, err := conf.Config.Open(deps)
		if err != nil {
			c.t.Fatal(err)
		}
		options.Targets = append(options.Targets, invalidation.Target{
			Name: conf.Name, Kind: conf.Kind, Adapter: &tellingAdapter{adapter, g, conf.Name}, Type: conf.Type, Endpoint: conf.Config.Endpoint(),
			Concurrency: c.concurrency[conf.Name], RetryFor: time.Duration(conf.RetryFor),
		})
	}
	if g.engine, err = invalidation.New(context.Background(), options); err != nil {
		c.broken("the engine does not start: %v", err)
		c.t.FailNow()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes = append(c.processes, g)
	c.now = g
}

// crash kills the process between two of its steps, and starts another after a while.
func (c *chaos) crash(down time.Duration) {
	if g := c.current(); g != nil {
		c.count("crash at a random instant")
		g.die(down)
	}
}

// fuse kills it at the n-th write of a kind from now on.
func (c *chaos) fuse(op string, n int, after bool, down time.Duration) {
	if g := c.current(); g != nil {
		g.store.fuse.Store(&fuse{op: op, n: n, after: after, down: down})
	}
}

// die leaves a copy of the journal as SIGKILL would: what is written is written, all else is gone. From then on nothing
// leaves the process, and nothing it does counts.
func (g *gateway) die(down time.Duration) {
	g.store.mu.Lock()
	defer g.store.mu.Unlock()
	if g.isDead() {
		return
	}
	g.c.say("process %d is killed", g.n)
	next := filepath.Join(g.c.dir, fmt.Sprintf("%d.db", g.n+1))
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(g.path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(next+suffix, data, 0o600)
		}
		if err != nil {
			panic(err)
		}
	}
	g.c.mu.Lock()
	g.c.journal = next
	g.c.mu.Unlock()
	close(g.dead)
	g.cancel()
	g.c.died <- down
}

// bury ends what is left of a dead process, so that the bubble can end, and starts the next.
func (c *chaos) bury(down time.Duration) {
	g := c.now
	c.end(g, 0)
	time.Sleep(down)
	c.start()
}

// restart ends the process in order.
func (c *chaos) restart(grace, down time.Duration) {
	g := c.current()
	if g == nil {
		return
	}
	c.count("restart in order")
	c.say("process %d stops", g.n)
	g.stopping.Store(true)
	g.cancel()
	c.end(g, grace)
	if g.isDead() {
		return // killed while it was stopping; it is started when that is found
	}
	c.say("process %d has stopped", g.n)
	time.Sleep(down)
	c.start()
}

// end closes engine and journal of a process and looks at what it sent.
func (c *chaos) end(g *gateway, grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), max(grace, 1))
	defer cancel()
	if err := g.engine.Close(ctx); err != nil {
		c.broken("close the engine: %v", err)
	}
	if err := g.store.Close(); err != nil {
		c.broken("close the journal: %v", err)
	}
	for target, r := range g.sent {
		if most := r.MaxInFlight(); most > c.concurrency[target] {
			c.broken("%s saw %d requests of process %d at once, but its limit is %d", target, most, g.n, c.concurrency[target])
		}
	}
}

// --- the journal of a process that can die ---

// mortalStore is the real journal until its process dies.
type mortalStore struct {
	invalidation.Store
	g    *gateway
	fuse atomic.Pointer[fuse]

	mu sync.RWMutex // held for writing while the process dies
}

// fuse kills the process at its n-th write of a kind, before or after it.
type fuse struct {
	op    string
	after bool
	down  time.Duration
	mu    sync.Mutex
	n     int
}

func (f *fuse) burns(op string) bool {
	if f == nil || f.op != op {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	return f.n == 0
}

// write carries out one transaction of a process that is alive, at least until then.
func (s *mortalStore) write(op string, do func() error) error {
	f := s.fuse.Load()
	burns := f.burns(op)
	die := func() {
		s.g.c.count("crash at a write: " + op)
		s.g.die(f.down)
	}
	if burns && !f.after {
		die()
	}
	s.mu.RLock()
	if s.g.isDead() {
		s.mu.RUnlock()
		return invalidation.ErrUnavailable
	}
	if s.g.c.journalAway.Load() {
		s.mu.RUnlock()
		s.g.c.count("journal: a write refused")
		return invalidation.ErrUnavailable
	}
	err := do()
	s.mu.RUnlock()
	if err == nil && op != "" && s.g.c.answersLost.Load() {
		s.g.c.count("journal: the answer to a commit lost")
		err = invalidation.ErrCommitUnknown
	}
	if burns && f.after {
		die()
		return invalidation.ErrUnavailable
	}
	return err
}

func (s *mortalStore) Accept(ctx context.Context, a invalidation.Acceptance) (inv invalidation.Invalidation, replayed bool, leases []invalidation.Lease, err error) {
	s.g.c.mu.Lock()
	s.g.c.keys[a.Invalidation.ID] = a.Invalidation.Call.Reason
	s.g.c.accepted[a.Invalidation.ID] = time.Now()
	s.g.c.mu.Unlock()
	err = s.write("Accept", func() error {
		inv, replayed, leases, err = s.Store.Accept(ctx, a)
		if err == nil && !replayed {
			inv.Runs = slices.Clone(inv.Runs)
			for i, r := range inv.Runs {
				inv.Runs[i].Selector = tagged(r.Selector, inv.ID)
				if r.State.Final() {
					s.g.c.final(inv.ID, r)
				}
			}
		}
		return err
	})
	return inv, replayed, leases, err
}

func (s *mortalStore) Claim(ctx context.Context, c invalidation.Claim) (claimed []invalidation.ClaimedRun, err error) {
	s.g.c.count("claims")
	err = s.write("", func() error {
		claimed, err = s.Store.Claim(ctx, c)
		for i, r := range claimed {
			claimed[i].Run.Selector = tagged(r.Run.Selector, r.Lease.InvalidationID)
		}
		return err
	})
	if err == nil && len(claimed) > 0 {
		err = s.write("Claim", func() error { return nil })
	}
	return claimed, err
}

func (s *mortalStore) Record(ctx context.Context, l invalidation.Lease, r invalidation.Run, events []invalidation.Event) (head invalidation.Head, err error) {
	err = s.write("Record", func() error {
		if head, err = s.Store.Record(ctx, l, r, events); err == nil && r.State.Final() {
			s.g.c.final(l.InvalidationID, r)
		}
		return err
	})
	return head, err
}

func (s *mortalStore) Renew(ctx context.Context, leases []invalidation.Lease, length time.Duration) (lost []invalidation.Lease, err error) {
	err = s.write("Renew", func() error {
		lost, err = s.Store.Renew(ctx, leases, length)
		return err
	})
	return lost, err
}

func (s *mortalStore) Release(ctx context.Context, l invalidation.Lease) error {
	return s.write("Release", func() error { return s.Store.Release(ctx, l) })
}

func (s *mortalStore) Cancel(ctx context.Context, id string, at time.Time, events []invalidation.Event) (inv invalidation.Invalidation, err error) {
	err = s.write("Cancel", func() error {
		if inv, err = s.Store.Cancel(ctx, id, at, events); err == nil {
			for _, r := range inv.Runs {
				if r.State == invalidation.RunCancelled {
					s.g.c.final(id, r)
				}
			}
		}
		return err
	})
	return inv, err
}

func (s *mortalStore) Pause(ctx context.Context, p invalidation.Pause, events []invalidation.Event) error {
	return s.write("Pause", func() error { return s.Store.Pause(ctx, p, events) })
}

func (s *mortalStore) Resume(ctx context.Context, target string, events []invalidation.Event) error {
	return s.write("Resume", func() error { return s.Store.Resume(ctx, target, events) })
}

func (s *mortalStore) Audit(ctx context.Context, events []invalidation.Event) error {
	return s.write("Audit", func() error { return s.Store.Audit(ctx, events) })
}

func (s *mortalStore) Prune(ctx context.Context, before time.Time, limit int) (removed int, err error) {
	err = s.write("Prune", func() error {
		removed, err = s.Store.Prune(ctx, before, limit)
		return err
	})
	return removed, err
}

// final notes that a run's final state is in the journal. There is one.
func (c *chaos) final(id string, r invalidation.Run) {
	c.mu.Lock()
	key := id + " at " + r.Target
	before, again := c.finals[key]
	c.finals[key] = string(r.State)
	c.ended[key] = time.Now()
	name := c.keys[id]
	c.mu.Unlock()
	if again {
		c.broken("%s at %s became final again: %s, then %s", name, r.Target, before, r.State)
	}
}

// --- from a run to its requests ---

// tagged hides the invalidation's id behind the end of the selector's list of sessions, where nobody looks: so that every
// request can be told from those of other runs that ask for the same.
func tagged(sel *adapters.Selector, id string) *adapters.Selector {
	if sel == nil {
		return nil
	}
	n := len(sel.Sessions)
	out := *sel
	out.Sessions = append(slices.Clone(sel.Sessions), adapters.SessionKey{ID: id})[:n]
	return &out
}

func untagged(sel adapters.Selector) (adapters.Selector, string) {
	n := len(sel.Sessions)
	if cap(sel.Sessions) == n {
		return sel, ""
	}
	id := sel.Sessions[:n+1][n].ID
	sel.Sessions = slices.Clone(sel.Sessions)
	if n == 0 {
		sel.Sessions = nil
	}
	return sel, id
}

type attemptKey struct{}

// tellingAdapter is the real adapter; it tells whose requests follow.
type tellingAdapter struct {
	adapters.Adapter
	g      *gateway
	target string
}

func (a *tellingAdapter) call(ctx context.Context, id string) (context.Context, *attemptCall) {
	c := a.g.c
	c.mu.Lock()
	defer c.mu.Unlock()
	run := c.keys[id] + " at " + a.target
	c.attempts[run]++
	if c.attempts[run] == 1 {
		c.begun[id+" at "+a.target] = time.Now()
	}
	x := &attemptCall{id: id, target: a.target, key: c.keys[id], n: c.attempts[run], began: time.Now()}
	h := fnv.New64a()
	fmt.Fprint(h, run, x.n)
	x.dice = rand.New(rand.NewPCG(c.seed, h.Sum64()))
	return context.WithValue(ctx, attemptKey{}, x), x
}

func (a *tellingAdapter) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	sel, id := untagged(req.Selector)
	if id == "" {
		a.g.c.broken("%s: an attempt whose run is not in the journal: %+v", a.target, sel)
	}
	req.Selector = sel
	ctx, x := a.call(ctx, id)
	a.g.c.say("%s at %s: call %d of the adapter, resume %s, may have sent %t", x.key, a.target, x.n, req.Resume, req.MayHaveSent)
	a.g.c.beganAttempt(x)
	// Attempts that are claimed together do not begin at the very same instant: which of them was the first would not be
	// the same in a replay.
	time.Sleep(time.Duration(x.dice.IntN(int(time.Millisecond))))
	res, err := a.Adapter.Invalidate(ctx, req)
	a.g.c.say("%s at %s: call %d ends: counted %t %d, minimum %t, pending %t, error %v", x.key, a.target, x.n, res.Counted, res.Count, res.CountIsMinimum, res.Pending != nil, err)
	return res, err
}

func (a *tellingAdapter) Preview(ctx context.Context, sel adapters.Selector) (adapters.Preview, error) {
	ctx, _ = a.call(ctx, "")
	return a.Adapter.Preview(ctx, sel)
}

func (a *tellingAdapter) Probe(ctx context.Context) (adapters.Health, error) {
	ctx, x := a.call(ctx, "")
	x.probe = true
	return a.Adapter.Probe(ctx)
}

// besideTheRecorder lets probes pass the recorder: they are asked for by hand and need no slot, so that a target whose
// slots are all taken can be looked at.
type besideTheRecorder struct{ recorded, beside http.RoundTripper }

func (b *besideTheRecorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if x, ok := req.Context().Value(attemptKey{}).(*attemptCall); ok && x.probe {
		return b.beside.RoundTrip(req)
	}
	return b.recorded.RoundTrip(req)
}

// --- the way to a target ---

// wire is the network between a process and a target: slow, unreliable, and cut when the process dies.
type wire struct {
	g      *gateway
	target string
	next   http.RoundTripper
}

type faultKey struct{}

// chosenFault is the fault that wire has put into the context: it depends on nothing but the seed, the run and how far it
// got, so that it is the same in a replay, whatever else happens in between.
func chosenFault(req *http.Request) (emulator.Fault, bool) {
	f, ok := req.Context().Value(faultKey{}).(emulator.Fault)
	return f, ok
}

var errChaosDead = errors.New("the process is dead")

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	c := w.g.c
	x, ok := req.Context().Value(attemptKey{}).(*attemptCall)
	if !ok {
		c.broken("%s: a request of nobody's: %s %s", w.target, req.Method, req.URL)
		return nil, errChaosDead
	}
	body := emulator.Body(req)
	if w.g.isDead() {
		return nil, errChaosDead
	}
	fault, strikes, there, back, late := c.fate(x)
	sent := sentRequest{at: time.Now(), process: w.g.n, target: w.target, method: req.Method, by: x,
		what: c.shorten(req.URL.Path + " " + string(body)), mutating: !x.probe && mutates(w.target, req.Method, req.URL.Path, body)}
	if strikes {
		sent.fault = fault.Name
		req = req.WithContext(context.WithValue(req.Context(), faultKey{}, fault))
		c.count("fault: " + faultKind(fault.Name))
	}
	c.mu.Lock()
	n := len(c.sent)
	c.sent = append(c.sent, sent)
	c.mu.Unlock()
	c.say("%s at %s: > %s %s %s", x.key, w.target, sent.method, sent.what, sent.fault)
	begun := time.Now()
	if err := w.travel(req.Context(), there); err != nil {
		// Nobody waits for the answer any more; the request may be on its way all the same.
		if late && (!strikes || fault.Effect) {
			c.count("requests that arrived late")
			arrives := req.Clone(context.WithoutCancel(req.Context()))
			go func() {
				time.Sleep(there - time.Since(begun))
				if resp, err := (&watched{c, w.target, emulator.Transport(c.l.systems[w.target].Handler())}).RoundTrip(arrives); err == nil {
					_ = resp.Body.Close()
				}
			}()
		} else {
			closeRequest(req)
		}
		return nil, err
	}
	resp, err := w.next.RoundTrip(req)
	if err == nil {
		err = w.travel(req.Context(), back)
	}
	status := 0
	if err == nil {
		status = resp.StatusCode
	}
	c.mu.Lock()
	c.sent[n].status = status
	c.mu.Unlock()
	c.say("%s at %s: < %s %s: %d %v", x.key, w.target, sent.method, sent.what, status, err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func closeRequest(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// travel waits, unless the process dies or gives up.
func (w *wire) travel(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.g.dead:
		return errChaosDead
	}
}

// fate is what becomes of an attempt's next request.
func (c *chaos) fate(x *attemptCall) (fault emulator.Fault, strikes bool, there, back time.Duration, late bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.targets[x.target]
	roll, which, rare := x.dice.Float64(), x.dice.Int(), x.dice.IntN(25) == 0
	there, back = span(x.dice, time.Millisecond/2, w.slowest), span(x.dice, time.Millisecond/2, w.slowest)
	late = x.dice.Float64() < c.late
	now := time.Since(c.began)
	if now >= c.calm {
		return fault, false, there % (20 * time.Millisecond), back % (20 * time.Millisecond), late
	}
	for _, o := range w.outages {
		if now >= o.from && now < o.to {
			return o.fault, true, there, back, late
		}
	}
	if roll >= w.rate {
		return fault, false, there, back, late
	}
	faults := singleFaults()
	if rare {
		faults = rareFaults()
	}
	return faults[which%len(faults)], true, there, back, late
}

// shorten makes the requests of two replays comparable.
func (c *chaos) shorten(what string) string {
	if i := strings.Index(what, `,"id":`); i >= 0 && strings.HasSuffix(what, "}") {
		what = what[:i] + "}" // Element's serial number
	}
	if len(what) > 160 {
		what = what[:160] + "…"
	}
	return strconv.QuoteToGraphic(what)
}

// faultKind is a fault's name without its numbers.
func faultKind(name string) string {
	if strings.HasPrefix(name, "delay") {
		return "delay"
	}
	if i := strings.Index(name, " with Retry-After"); i >= 0 {
		return name[:i] + " with Retry-After"
	}
	return name
}

// watched is the target itself; after each request it is noted who is gone.
type watched struct {
	c      *chaos
	target string
	next   http.RoundTripper
}

func (w *watched) RoundTrip(req *http.Request) (*http.Response, error) {
	lock := w.c.targetLocks[w.target]
	lock.Lock()
	defer lock.Unlock()
	w.c.compare(w.target, nil)
	x, _ := req.Context().Value(attemptKey{}).(*attemptCall)
	// It takes no time, and is carried out whole.
	resp, err := w.next.RoundTrip(req.WithContext(context.WithoutCancel(req.Context())))
	w.c.compare(w.target, x)
	return resp, err
}

// chaosResolver is the real resolver, whose directory is away at times.
type chaosResolver struct{ c *chaos }

func (r chaosResolver) Resolve(ctx context.Context, target string, sel invalidation.Selector) (invalidation.Resolution, error) {
	if r.c.directoryAway.Load() && (sel.User != nil || sel.Group == "staff") {
		r.c.count("directory away")
		return invalidation.Resolution{}, &invalidation.ResolveError{
			Reason: adapters.ReasonDirectoryUnavailable, Message: "the directory does not answer", Retryable: true,
		}
	}
	return r.c.setup.resolver.Resolve(ctx, target, sel)
}
