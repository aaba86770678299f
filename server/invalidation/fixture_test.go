package invalidation_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

// A script is an adapter whose answers a test writes. It counts the calls that are under way.
type script struct {
	calls    atomic.Int64
	mu       sync.Mutex
	script   func(ctx context.Context, req adapters.Request) (adapters.Result, error)
	probe    func(ctx context.Context) (adapters.Health, error)
	preview  func(ctx context.Context) error // nil: all is well
	underWay int
	most     int
	probes   atomic.Int64
}

var _ adapters.Adapter = (*script)(nil)

// answer sets what calls are answered with from now on.
func (s *script) answer(f func(ctx context.Context, req adapters.Request) (adapters.Result, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = f
}

func (s *script) Supports(adapters.Selector) error { return nil }

func (s *script) Preview(ctx context.Context, _ adapters.Selector) (adapters.Preview, error) {
	if s.preview != nil {
		if err := s.preview(ctx); err != nil {
			return adapters.Preview{}, err
		}
	}
	return adapters.Preview{Summary: []string{"would end sessions"}}, nil
}

func (s *script) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	s.calls.Add(1)
	s.mu.Lock()
	s.underWay++
	s.most = max(s.most, s.underWay)
	invalidate := s.script
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.underWay--
		s.mu.Unlock()
	}()
	return invalidate(ctx, req)
}

func (s *script) Probe(ctx context.Context) (adapters.Health, error) {
	s.probes.Add(1)
	s.mu.Lock()
	s.underWay++
	s.most = max(s.most, s.underWay)
	probe := s.probe
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.underWay--
		s.mu.Unlock()
	}()
	if probe != nil {
		return probe(ctx)
	}
	return adapters.Health{Checks: []adapters.Check{{Name: "reachable", Status: adapters.CheckOK}}}, nil
}

// ended answers that n sessions ended, after passing the fence like every request that changes something.
func ended(n int) func(context.Context, adapters.Request) (adapters.Result, error) {
	return func(ctx context.Context, _ adapters.Request) (adapters.Result, error) {
		if err := adapters.Fence(ctx); err != nil {
			return adapters.Result{}, err
		}
		return adapters.Result{Counted: true, Count: n, Verification: adapters.ConfirmedByList}, nil
	}
}

// hang passes the fence and answers when the context ends: a request whose answer never comes.
func hang(ctx context.Context, _ adapters.Request) (adapters.Result, error) {
	if err := adapters.Fence(ctx); err != nil {
		return adapters.Result{}, err
	}
	<-ctx.Done()
	return adapters.Result{}, adapters.Errorf(adapters.Uncertain, "the request was sent and its answer is lost")
}

// fixture is an engine over a real journal, with scripted targets.
type fixture struct {
	t       testing.TB
	path    string
	store   *sqlite.Store
	engine  *invalidation.Engine
	scripts map[string]*script
	options invalidation.Options
	// clock is the journal's; nil is the process's.
	clock func() time.Time
}

// names resolves every user to his id, everywhere.
type names struct{ away atomic.Bool }

func (n *names) Resolve(_ context.Context, target string, sel invalidation.Selector) (invalidation.Resolution, error) {
	if n.away.Load() {
		return invalidation.Resolution{}, &invalidation.ResolveError{Reason: adapters.ReasonDirectoryUnavailable, Message: "the directory does not answer", Retryable: true}
	}
	res := adapters.Selector{By: sel.Criteria()}
	switch {
	case sel.User != nil && sel.User.ID == "nobody":
		return invalidation.Resolution{Nothing: true}, nil
	case sel.User != nil && sel.User.ID == "nameless":
		return invalidation.Resolution{}, &invalidation.ResolveError{Reason: adapters.ReasonNoIdentity, Message: "no name"}
	case sel.User != nil:
		res.Users = []adapters.User{{Name: sel.User.ID}}
	}
	if sel.Group != "" {
		res.Groups = []adapters.Group{{Kind: "group", Name: sel.Group}}
	}
	for _, s := range sel.Sessions {
		if s.Target == target {
			res.Sessions = append(res.Sessions, adapters.SessionKey{ID: s.ID})
		}
	}
	return invalidation.Resolution{Selector: res}, nil
}

var scriptType = adapters.Type{Kind: "script", Criteria: []adapters.Criteria{adapters.ByUser, adapters.BySessions, adapters.All}}

// newFixture opens a journal in a temporary directory and an engine with a target for each name, all answering like
// ended(1). Call it inside the bubble.
func newFixture(t testing.TB, targets ...string) *fixture {
	t.Helper()
	f := &fixture{t: t, path: filepath.Join(t.TempDir(), "journal.db"), scripts: map[string]*script{}}
	f.options = invalidation.Options{Resolver: &names{}, Logger: quiet(), Random: func() float64 { return 0.5 }, ProbeInterval: -1}
	for _, name := range targets {
		f.scripts[name] = &script{script: ended(1)}
		f.options.Targets = append(f.options.Targets, invalidation.Target{
			Name: name, Kind: "script", Adapter: f.scripts[name], Type: scriptType, Endpoint: "https://" + name, Concurrency: 4,
		})
	}
	return f
}

func quiet() *slog.Logger {
	if os.Getenv("ENDSESSION_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// start opens the journal and the engine; wrap, if not nil, goes between them.
func (f *fixture) start(wrap func(invalidation.Store) invalidation.Store) {
	f.t.Helper()
	store, err := sqlite.Open(f.t.Context(), sqlite.Options{Path: f.path, Logger: quiet(), Clock: f.clock})
	if err != nil {
		f.t.Fatal(err)
	}
	f.store = store
	f.options.Store = store
	if wrap != nil {
		f.options.Store = wrap(store)
	}
	if f.engine, err = invalidation.New(f.t.Context(), f.options); err != nil {
		f.t.Fatal(err)
	}
}

// stop shuts down, giving attempts as long as grace.
func (f *fixture) stop(grace time.Duration) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := f.engine.Close(ctx); err != nil {
		f.t.Error(err)
	}
	if err := f.store.Close(); err != nil {
		f.t.Error(err)
	}
}

// crash leaves a copy of the journal as a SIGKILL would have left it, and goes on with that: what the old process does
// from now on is not seen any more. The old one is stopped, so that the bubble can end.
func (f *fixture) crash() {
	f.t.Helper()
	dir := f.t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(f.path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "journal.db"+suffix), data, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	f.stop(time.Nanosecond)
	f.path = filepath.Join(dir, "journal.db")
}

func user(id string) invalidation.Call {
	return invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: id}}}
}

var caller = invalidation.Caller{Kind: "anonymous", Name: "anonymous"}

// invalidate makes a call that must be accepted.
func (f *fixture) invalidate(call invalidation.Call, wait time.Duration) invalidation.Invalidation {
	f.t.Helper()
	inv, _, err := f.engine.Invalidate(f.t.Context(), invalidation.Request{Caller: caller, Call: call, Wait: wait})
	if err != nil {
		f.t.Fatalf("Invalidate(%+v): %v", call, err)
	}
	return inv
}

func (f *fixture) get(id string, wait time.Duration) invalidation.Invalidation {
	f.t.Helper()
	inv, err := f.engine.Get(f.t.Context(), caller, id, wait)
	if err != nil {
		f.t.Fatalf("Get(%s): %v", id, err)
	}
	return inv
}

// wantCallError fails unless err is a CallError of the code and reason.
func wantCallError(t testing.TB, err error, code invalidation.CallErrorCode, reason adapters.Reason) invalidation.CallError {
	t.Helper()
	var ce *invalidation.CallError
	if !errors.As(err, &ce) || ce.Code != code || ce.Reason != reason {
		t.Fatalf("error = %v, want code %d, reason %s", err, code, reason)
	}
	return *ce
}
