package postgres_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// system is a target that several engines work at.
type system struct {
	mu       sync.Mutex
	underWay int
	most     int
	calls    map[string]int // by replica
	// hold, if set, decides how long a call takes.
	hold func(ctx context.Context, replica string) error
}

func (s *system) call(ctx context.Context, replica string) error {
	s.mu.Lock()
	s.underWay++
	s.most = max(s.most, s.underWay)
	s.calls[replica]++
	hold := s.hold
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.underWay--
	}()
	if hold == nil {
		return nil
	}
	return hold(ctx, replica)
}

func (s *system) count() (underWay, most, calls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.calls {
		calls += n
	}
	return s.underWay, s.most, calls
}

// view is a replica's adapter for the system.
type view struct {
	*system
	replica string
}

func (v view) Supports(adapters.Selector) error { return nil }

func (v view) Preview(ctx context.Context, _ adapters.Selector) (adapters.Preview, error) {
	return adapters.Preview{Summary: []string{"would end sessions"}}, v.call(ctx, v.replica)
}

func (v view) Invalidate(ctx context.Context, _ adapters.Request) (adapters.Result, error) {
	if err := adapters.Fence(ctx); err != nil {
		return adapters.Result{}, err
	}
	if err := v.call(ctx, v.replica); err != nil {
		return adapters.Result{}, adapters.Errorf(adapters.Uncertain, "the request was sent and its answer is lost")
	}
	return adapters.Result{Counted: true, Count: 1, Verification: adapters.ConfirmedByList}, nil
}

func (v view) Probe(context.Context) (adapters.Health, error) { return adapters.Health{}, nil }

type sameNames struct{}

func (sameNames) Resolve(_ context.Context, _ string, sel invalidation.Selector) (invalidation.Resolution, error) {
	return invalidation.Resolution{Selector: adapters.Selector{By: sel.Criteria(), Users: []adapters.User{{Name: sel.User.ID}}}}, nil
}

// replica is an engine on a journal that others share.
type replica struct {
	*invalidation.Engine
	t    testing.TB
	held atomic.Int64 // slots
	gets *getCounter
}

// getCounter counts how often the journal is asked for an invalidation.
type getCounter struct {
	invalidation.Store
	gets atomic.Int64
}

func (c *getCounter) Get(ctx context.Context, id string) (invalidation.Invalidation, error) {
	inv, err := c.Store.Get(ctx, id)
	c.gets.Add(1)
	return inv, err
}

func newSystem() *system { return &system{calls: map[string]int{}} }

func newReplica(t testing.TB, name string, dsn secret.String, s *system, concurrency int, lease time.Duration) *replica {
	t.Helper()
	store, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn, Owner: name, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{t: t, gets: &getCounter{Store: store}}
	r.Engine, err = invalidation.New(t.Context(), invalidation.Options{
		Store: r.gets, Resolver: sameNames{}, Logger: slog.New(slog.DiscardHandler), Owner: name, LeaseLength: lease, ProbeInterval: -1,
		Targets: []invalidation.Target{{
			Name: "apm", Kind: "script", Endpoint: "https://apm", Concurrency: concurrency, Adapter: view{s, name},
			Type:  adapters.Type{Kind: "script", Criteria: []adapters.Criteria{adapters.ByUser}},
			Share: func(held, _ int) { r.held.Store(int64(held)) },
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// down cuts a replica off from the server until the hook is taken away.
func down(p *pgtest.Proxy) {
	cut := func([]byte) pgtest.Verdict { return pgtest.Cut }
	p.Hook(cut, cut)
	p.Break()
}

var nobody = invalidation.Caller{Kind: "anonymous", Name: "anonymous"}

func of(user string) invalidation.Call {
	return invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: user}}}
}

// invalidate makes a call that must be accepted.
func (r *replica) invalidate(user string, wait time.Duration) invalidation.Invalidation {
	r.t.Helper()
	inv, _, err := r.Invalidate(r.t.Context(), invalidation.Request{Caller: nobody, Call: of(user), Wait: wait})
	if err != nil {
		r.t.Fatalf("Invalidate: %v", err)
	}
	return inv
}

func (r *replica) get(id string, wait time.Duration) invalidation.Invalidation {
	r.t.Helper()
	inv, err := r.Get(r.t.Context(), nobody, id, wait)
	if err != nil {
		r.t.Fatalf("Get: %v", err)
	}
	return inv
}

func TestASlotGoesToWhoeverWantsOne(t *testing.T) {
	t.Parallel()
	dsn, s := pgtest.Schema(t), newSystem()
	one := newReplica(t, "one", dsn, s, 4, time.Minute)
	if n := one.held.Load(); n != 4 {
		t.Fatalf("a process that is alone holds %d slots of 4", n)
	}
	two := newReplica(t, "two", dsn, s, 4, time.Minute)
	preview := func(r *replica) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		previews, err := r.Preview(ctx, nobody, of("alice"))
		if err != nil || previews[0].Err != nil {
			t.Fatalf("Preview: %+v, %v", previews, err)
		}
	}
	// It finds none free; who has them gives half of what it does not use, once for each time it is asked.
	preview(two)
	if mine, theirs := two.held.Load(), one.held.Load(); mine == 0 || theirs == 0 || mine+theirs > 4 {
		t.Errorf("the second process holds %d slots, the first one %d", mine, theirs)
	}
	release := make(chan struct{})
	s.mu.Lock()
	s.hold = func(ctx context.Context, _ string) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Unlock()
	var ids []string
	for range 8 {
		ids = append(ids, one.invalidate("alice", 0).ID, two.invalidate("bob", 0).ID)
	}
	eventually(t, "all slots are in use", func() bool { n, _, _ := s.count(); return n == 4 })
	close(release)
	for _, id := range ids {
		if inv := two.get(id, 30*time.Second); inv.State != invalidation.Succeeded {
			t.Errorf("state %s, want SUCCEEDED", inv.State)
		}
	}
	if _, most, _ := s.count(); most != 4 {
		t.Errorf("%d calls at once, want 4", most)
	}
}

// TestTheOnlySlotMoves: of a target that does one thing at a time, no process may keep others from it when it is idle.
func TestTheOnlySlotMoves(t *testing.T) {
	t.Parallel()
	dsn, s := pgtest.Schema(t), newSystem()
	replicas := []*replica{
		newReplica(t, "one", dsn, s, 1, time.Minute), newReplica(t, "two", dsn, s, 1, time.Minute), newReplica(t, "three", dsn, s, 1, time.Minute),
	}
	for i := range 6 {
		r := replicas[i%3]
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		previews, err := r.Preview(ctx, nobody, of("alice"))
		cancel()
		if err != nil || previews[0].Err != nil {
			t.Fatalf("Preview %d: %+v, %v", i, previews, err)
		}
		if inv := replicas[(i+1)%3].invalidate("alice", 15*time.Second); inv.State != invalidation.Succeeded {
			t.Fatalf("invalidation %d: %s", i, inv.State)
		}
	}
	if _, most, _ := s.count(); most != 1 {
		t.Errorf("%d calls at once, want 1", most)
	}
}

func TestARunIsPickedUpByWhoeverHasASlot(t *testing.T) {
	t.Parallel()
	dsn, s := pgtest.Schema(t), newSystem()
	release := make(chan struct{})
	s.hold = func(ctx context.Context, _ string) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	one := newReplica(t, "one", dsn, s, 1, time.Minute)
	first := one.invalidate("alice", 0)
	two := newReplica(t, "two", dsn, s, 1, time.Minute) // the only slot is in use, and stays so
	second := two.invalidate("bob", 0)
	if second.Runs[0].State != invalidation.RunPending {
		t.Errorf("a run without a slot is %s, want PENDING", second.Runs[0].State)
	}
	// A waiter costs nothing while nothing happens, and is woken by what another replica does.
	before := two.gets.gets.Load()
	woken := make(chan invalidation.Invalidation, 1)
	go func() { woken <- two.get(first.ID, 30*time.Second) }()
	eventually(t, "the waiter has looked once", func() bool { return two.gets.gets.Load() > before })
	time.AfterFunc(1500*time.Millisecond, func() { close(release) })
	inv := <-woken
	late := time.Since(inv.CompleteTime)
	if inv.State != invalidation.Succeeded || late > time.Second {
		t.Errorf("the waiter was woken %v after the end, %s", late, inv.State)
	}
	if n := two.gets.gets.Load() - before; n > 4 {
		t.Errorf("the waiter read the journal %d times", n)
	}
	if inv := two.get(second.ID, 20*time.Second); inv.State != invalidation.Succeeded {
		t.Errorf("state %s, want SUCCEEDED", inv.State)
	}
	if _, most, _ := s.count(); most != 1 {
		t.Errorf("%d calls at once, want 1", most)
	}
}

func TestAPauseElsewhereIsFollowed(t *testing.T) {
	t.Parallel()
	dsn, s := pgtest.Schema(t), newSystem()
	one, two := newReplica(t, "one", dsn, s, 4, time.Minute), newReplica(t, "two", dsn, s, 4, time.Minute)
	state := func(r *replica) invalidation.TargetState {
		all, err := r.Targets(t.Context(), nobody)
		if err != nil {
			t.Fatal(err)
		}
		return all[0].State
	}
	if _, err := two.PauseTarget(t.Context(), nobody, "apm", "maintenance"); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	eventually(t, "the pause is known", func() bool { return state(one) == invalidation.TargetPaused })
	inv := one.invalidate("alice", 0)
	if _, err := two.ResumeTarget(t.Context(), nobody, "apm"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end is known", func() bool { return state(one) == invalidation.TargetActive })
	if took := time.Since(asked); took > 5*time.Second {
		t.Errorf("a pause and its end took %v to be known", took) // a heartbeat is 20 s here
	}
	if inv = one.get(inv.ID, 10*time.Second); inv.State != invalidation.Succeeded || inv.Runs[0].Attempts != 1 {
		t.Errorf("after the pause: %s after %d attempts", inv.State, inv.Runs[0].Attempts)
	}
}

func TestACancellationElsewhereBreaksOffAnAttempt(t *testing.T) {
	t.Parallel()
	for name, missed := range map[string]bool{"WhichIsHeardOf": false, "WhichWasMissed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := pgtest.Shared(t)
			schema := c.Schema(t)
			proxy := pgtest.NewProxy(t, c.Addr())
			s := newSystem()
			begun, ended := make(chan struct{}, 2), make(chan time.Time, 2)
			s.hold = func(ctx context.Context, _ string) error {
				begun <- struct{}{}
				<-ctx.Done()
				ended <- time.Now()
				return ctx.Err()
			}
			one := newReplica(t, "one", c.DSNAt(proxy.Addr(), schema), s, 4, time.Minute)
			two := newReplica(t, "two", c.DSN(schema), s, 4, time.Minute)
			inv := one.invalidate("alice", 0)
			other := one.invalidate("bob", 0) // must not be broken off
			<-begun
			<-begun
			if missed {
				down(proxy)
			}
			if _, err := two.Cancel(t.Context(), nobody, inv.ID); err != nil {
				t.Fatal(err)
			}
			asked := time.Now()
			if missed {
				// Nobody tells it again; it asks because it may have missed something.
				eventually(t, "the news is told to nobody", func() bool { return two.get(inv.ID, 0).State == invalidation.Cancelled })
				proxy.Hook(nil, nil)
			}
			select {
			case at := <-ended:
				if took := at.Sub(asked); took > 5*time.Second {
					t.Errorf("broken off after %v", took) // a heartbeat is 20 s here
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the attempt goes on")
			}
			select {
			case <-ended:
				t.Error("the other attempt was broken off too")
			case <-time.After(300 * time.Millisecond):
			}
			if got := two.get(other.ID, 0); got.State != invalidation.Running {
				t.Errorf("the other invalidation is %s", got.State)
			}
		})
	}
}

// TestWhatMayHaveBeenMissedIsLookedAt: a waiter's replica does not hear for a while.
func TestWhatMayHaveBeenMissedIsLookedAt(t *testing.T) {
	t.Parallel()
	c := pgtest.Shared(t)
	schema := c.Schema(t)
	proxy := pgtest.NewProxy(t, c.Addr())
	s := newSystem()
	release := make(chan struct{})
	s.hold = func(ctx context.Context, _ string) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	one := newReplica(t, "one", c.DSN(schema), s, 4, time.Minute)
	two := newReplica(t, "two", c.DSNAt(proxy.Addr(), schema), s, 4, time.Minute)
	inv := one.invalidate("alice", 0)
	woken := make(chan invalidation.Invalidation, 1)
	go func() { woken <- two.get(inv.ID, 40*time.Second) }()
	eventually(t, "the waiter waits", func() bool { return two.gets.gets.Load() > 0 })
	down(proxy)
	close(release)
	if got := one.get(inv.ID, 10*time.Second); got.State != invalidation.Succeeded {
		t.Fatalf("state %s", got.State)
	}
	proxy.Hook(nil, nil)
	asked := time.Now()
	if got := <-woken; got.State != invalidation.Succeeded || time.Since(asked) > 10*time.Second {
		t.Errorf("the waiter has %s after %v", got.State, time.Since(asked))
	}
}

// TestSlotsThatLapsedAreNotUsed: a process that was away for longer than its leases must not start what it accepts in slots
// that others have by now, nor wait for its heartbeat to find out.
func TestSlotsThatLapsedAreNotUsed(t *testing.T) {
	t.Parallel()
	const lease = 6 * time.Second
	c := pgtest.Shared(t)
	schema := c.Schema(t)
	proxy := pgtest.NewProxy(t, c.Addr())
	s := newSystem()
	release := make(chan struct{})
	s.hold = func(ctx context.Context, _ string) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	one := newReplica(t, "one", c.DSNAt(proxy.Addr(), schema), s, 1, lease)
	down(proxy)
	two := newReplica(t, "two", c.DSN(schema), s, 1, lease)
	second := two.invalidate("bob", 0)
	eventually(t, "the other process takes the slot", func() bool { n, _, _ := s.count(); return n == 1 })
	if n := two.held.Load(); n != 1 {
		t.Fatalf("the other process holds %d slots", n)
	}
	proxy.Hook(nil, nil)
	var first invalidation.Invalidation
	eventually(t, "the journal is back", func() bool {
		inv, _, err := one.Invalidate(t.Context(), invalidation.Request{Caller: nobody, Call: of("alice")})
		first = inv
		return err == nil
	})
	if first.Runs[0].State != invalidation.RunPending {
		t.Errorf("a run began in a slot that had lapsed: %s", first.Runs[0].State)
	}
	eventually(t, "a heartbeat finds out", func() bool { return one.held.Load() == 0 })
	close(release)
	for _, id := range []string{first.ID, second.ID} {
		if inv := two.get(id, 30*time.Second); inv.State != invalidation.Succeeded {
			t.Errorf("state %s, want SUCCEEDED", inv.State)
		}
	}
	if _, most, _ := s.count(); most != 1 {
		t.Errorf("%d calls at once, want 1", most)
	}
}

// TestADeadReplicasRunsAreTakenOverWhenTheirLeasesEnd: not before, and not at some time afterwards.
func TestADeadReplicasRunsAreTakenOverWhenTheirLeasesEnd(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	c := pgtest.Shared(t)
	schema := c.Schema(t)
	proxy := pgtest.NewProxy(t, c.Addr())
	s := newSystem()
	var begun, again atomic.Int64 // UnixNano
	s.hold = func(ctx context.Context, replica string) error {
		if replica == "two" {
			again.Store(time.Now().UnixNano())
			return nil
		}
		begun.Store(time.Now().UnixNano())
		<-ctx.Done()
		return ctx.Err()
	}
	one := newReplica(t, "one", c.DSNAt(proxy.Addr(), schema), s, 4, lease)
	two := newReplica(t, "two", c.DSN(schema), s, 4, lease)
	inv := one.invalidate("alice", 0)
	eventually(t, "the attempt has begun", func() bool { return begun.Load() != 0 })
	down(proxy) // as good as dead
	inv = two.get(inv.ID, 30*time.Second)
	if inv.State != invalidation.Succeeded || !inv.Runs[0].CountIsMinimum || inv.Runs[0].Attempts != 2 {
		t.Errorf("state %s, minimum %t, %d attempts; want SUCCEEDED, a minimum, 2", inv.State, inv.Runs[0].CountIsMinimum, inv.Runs[0].Attempts)
	}
	took := time.Duration(again.Load() - begun.Load())
	if took < lease-100*time.Millisecond || took > lease+lease/3+1500*time.Millisecond {
		t.Errorf("taken over after %v with leases of %v", took, lease)
	}
	// The first one gave up before that: never two at once.
	if _, most, _ := s.count(); most != 1 {
		t.Errorf("%d calls at once, want 1", most)
	}
}

// TestWhatADeadReplicaHasAcceptedIsBegun: a run that waits for a slot belongs to nobody.
func TestWhatADeadReplicaHasAcceptedIsBegun(t *testing.T) {
	t.Parallel()
	c := pgtest.Shared(t)
	schema := c.Schema(t)
	proxy := pgtest.NewProxy(t, c.Addr())
	s := newSystem()
	one := newReplica(t, "one", c.DSN(schema), s, 1, time.Minute)
	one.invalidate("zoe", 15*time.Second) // it has looked for work, and found no more
	release := make(chan struct{})
	s.mu.Lock()
	s.hold = func(ctx context.Context, _ string) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Unlock()
	first := one.invalidate("alice", 0)
	two := newReplica(t, "two", c.DSNAt(proxy.Addr(), schema), s, 1, time.Minute)
	started := time.Now()
	eventually(t, "the first one has looked who is there", func() bool { return time.Since(started) > 5*time.Second })
	second := two.invalidate("bob", 0)
	down(proxy) // perhaps before it has told anybody
	close(release)
	for _, id := range []string{first.ID, second.ID} {
		if inv := one.get(id, 15*time.Second); inv.State != invalidation.Succeeded {
			t.Errorf("state %s, want SUCCEEDED", inv.State)
		}
	}
}

// TestAProcessThatWasAwayGoesOn: nobody has taken its slots meanwhile.
func TestAProcessThatWasAwayGoesOn(t *testing.T) {
	t.Parallel()
	const lease = 3 * time.Second
	c := pgtest.Shared(t)
	schema := c.Schema(t)
	proxy := pgtest.NewProxy(t, c.Addr())
	one := newReplica(t, "one", c.DSNAt(proxy.Addr(), schema), newSystem(), 2, lease)
	down(proxy)
	away := time.Now()
	eventually(t, "its leases end", func() bool { return time.Since(away) > lease })
	proxy.Hook(nil, nil)
	var inv invalidation.Invalidation
	eventually(t, "the journal is back", func() (ok bool) {
		var err error
		inv, _, err = one.Invalidate(t.Context(), invalidation.Request{Caller: nobody, Call: of("alice")})
		return err == nil
	})
	if inv = one.get(inv.ID, 15*time.Second); inv.State != invalidation.Succeeded {
		t.Errorf("state %s, want SUCCEEDED", inv.State)
	}
}
