package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/api"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/policy"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/sqlite"
	"github.com/endsession/endsession/server/telemetry"
)

// Options are what [Open] needs beside the configuration.
type Options struct {
	Config *config.Config
	// Logger gets what the context of a line knows of the work it is about; see [telemetry.Log].
	Logger *slog.Logger
	// Telemetry is told of everything, and is closed with the server; nil means one that sends nothing.
	Telemetry *telemetry.Telemetry
	// Transport returns what takes the place of the network to a target; nil, or a nil answer, means the network.
	Transport func(target string) http.RoundTripper
	// IssuerTransport returns what takes the place of the network to an issuer of tokens; nil, or a nil answer, means the
	// network.
	IssuerTransport func(url string) http.RoundTripper
	// DialDirectory opens connections to the servers of a directory; nil means the network.
	DialDirectory func(ctx context.Context, network, address string) (net.Conn, error)
	// Listen opens a listener; nil means [net.ListenConfig]. With port 0 the system chooses one: see [Server.GRPCAddr].
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
}

// Open makes a server as it is configured. It listens, opens the journal and takes up the runs that are not finished,
// but serves nothing before [Server.Run]. The ports come first: nothing is begun by a process that cannot serve.
func Open(ctx context.Context, o Options) (_ *Server, err error) {
	var opened []func() error
	defer func() {
		if err == nil {
			return
		}
		for i := len(opened); i > 0; i-- {
			err = errors.Join(err, opened[i-1]())
		}
	}()
	o.Logger = slog.New(telemetry.Log(o.Logger.Handler()))
	if o.Telemetry == nil {
		if o.Telemetry, err = telemetry.New(ctx, telemetry.Options{}); err != nil {
			return nil, err
		}
	}
	opened = append(opened, func() error { return o.Telemetry.Close(ctx) })
	for _, w := range o.Config.Warnings {
		o.Logger.WarnContext(ctx, "configuration: "+w)
	}
	a, err := assemble(o)
	if err != nil {
		return nil, err
	}
	for _, w := range a.policy.Warnings() {
		o.Logger.WarnContext(ctx, "configuration: "+w)
	}
	parts := Parts{
		Logger: o.Logger, Telemetry: o.Telemetry, Profiles: o.Config.Listen.Pprof,
		Directory: closer(a.live.close), Background: a.callers.background,
		Health: accesses[o.Config.Listen.Health], Reflection: accesses[o.Config.Listen.Reflection],
	}
	if a.callers.certificates != nil {
		parts.TLS = a.callers.certificates.Config()
	}
	if a.callers.current != nil {
		parts.Authenticator = a.callers.current
	}
	l := a.live
	parts.Limiter = l.limiter
	setLimits(l.limiter, o.Config.Limits)
	opened = append(opened, l.close)
	listen := o.Listen
	if listen == nil {
		listen = new(net.ListenConfig).Listen
	}
	addresses := o.Config.Listen
	for _, x := range []struct {
		what, address string
		to            *net.Listener
	}{{"grpc", addresses.GRPC, &parts.GRPC}, {"http", addresses.HTTP, &parts.HTTP}, {"admin", addresses.Admin, &parts.Admin}} {
		listener, err := listen(ctx, "tcp", x.address)
		if err != nil {
			return nil, fmt.Errorf("listen.%s: %w", x.what, err)
		}
		opened = append(opened, listener.Close)
		*x.to = listener
	}
	if parts.Authenticator == nil {
		o.Logger.WarnContext(ctx, "callers are not authenticated: everybody who reaches the ports may end sessions")
	} else if a.keys.Current() == "" {
		o.Logger.WarnContext(ctx, "the audit trail has no key (audit.key): whoever can write to the journal can change it unseen")
	}

	// The name in leases, and in what the database shows of its connections: from either, this log is found.
	owner := uuid.NewString()
	o.Logger.InfoContext(ctx, "opening the journal", "owner", owner)
	store, err := openStore(ctx, o, owner, a.keys)
	if err != nil {
		return nil, err
	}
	opened = append(opened, store.Close)
	parts.Store = store
	options := invalidation.Options{
		Store: o.Telemetry.Journal(store), Resolver: &l.resolver, Targets: a.targets, Logger: o.Logger, Observer: o.Telemetry, Owner: owner,
		Policy: &l.policy, Retention: time.Duration(o.Config.Retention), AuditRetention: time.Duration(o.Config.Audit.Retention),
		ProbeInterval: time.Duration(o.Config.CheckInterval),
	}
	if p := o.Config.Store.Postgres; p != nil {
		options.LeaseLength = time.Duration(p.Lease)
	}
	engine, err := invalidation.New(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("take up the journal: %w", err)
	}
	opened = append(opened, func() error { return engine.Close(ctx) })
	parts.Engine = engine
	if err := o.Telemetry.Follow(engine); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	parts.Refusals = refusals{api.NewLogRefusals(o.Logger), engine}
	s, err := New(parts)
	if err != nil {
		return nil, err
	}
	l.engine = engine
	s.reload = l.reload
	return s, nil
}

// openStore opens the journal.
func openStore(ctx context.Context, o Options, owner string, keys audit.Keys) (invalidation.Store, error) {
	if p := o.Config.Store.Postgres; p != nil {
		return postgres.Open(ctx, postgres.Options{DSN: p.DSN, Logger: o.Logger, Owner: owner, Keys: keys})
	}
	return sqlite.Open(ctx, sqlite.Options{Path: o.Config.Store.SQLite.Path, Logger: o.Logger, Keys: keys})
}

// Check reports what would keep a configuration that is well-formed from being used: names and rules that do not
// compile, certificates and directories that cannot be read. It opens nothing and reaches nobody. The warnings, beside
// those that the configuration holds, are about what is allowed and unwise.
func Check(c *config.Config) (warnings []string, err error) {
	a, err := assemble(Options{Config: c, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	return a.policy.Warnings(), nil
}

// CheckExpressions compiles the user names and the rules of a configuration that is otherwise wrong, so that whoever
// mends it sees all problems at once. What names do with groups and directories is left to [Check].
func CheckExpressions(c *config.Config) error {
	_, err := newPolicy(c)
	return errors.Join(checkUsernames(c), err)
}

func checkUsernames(c *config.Config) error {
	partial := config.Config{}
	for _, t := range c.Targets {
		t.Groups = nil
		partial.Targets = append(partial.Targets, t)
	}
	_, err := newResolver(&partial, nil)
	return err
}

// assembly is what a configuration comes to, before anything is opened.
type assembly struct {
	callers  *callers
	resolver *identity.Resolver
	policy   *policy.Policy
	keys     audit.Keys
	// directory is what the resolver asks; nil if it needs no closing.
	directory io.Closer
	targets   []invalidation.Target
	// live is what of all that a reload replaces.
	live *live
}

// closer is a function that closes something.
type closer func() error

func (c closer) Close() error { return c() }

// assemble reports all problems at once.
func assemble(o Options) (a assembly, err error) {
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	a.callers, err = newCallers(o)
	note(err)
	directory, err := openDirectory(o)
	if err != nil {
		note(errors.Join(err, checkUsernames(o.Config)))
	} else {
		a.resolver, err = newResolver(o.Config, directory)
		note(err)
	}
	if closer, ok := directory.(io.Closer); ok {
		a.directory = closer
	}
	a.policy, err = newPolicy(o.Config)
	note(err)
	a.keys, err = AuditKeys(o.Config)
	note(err)
	a.live = &live{options: o, callers: a.callers, limiter: api.NewLimiter(0, 0), targets: map[string]*liveTarget{}, config: o.Config}
	for _, t := range o.Config.Targets {
		var limiter *rate.Limiter
		if !t.Rate.IsZero() {
			// No bursts: "20/s" is what the target is sent at most in any second.
			limiter = rate.NewLimiter(rate.Limit(t.Rate.PerSecond()), 1)
		}
		adapter, err := openTarget(o, t, limiter)
		if err != nil {
			note(fmt.Errorf("%s: %w", t.Where, err))
			continue
		}
		lt := &liveTarget{limiter: limiter}
		lt.adapter.Store(&adapter)
		a.live.targets[t.Name] = lt
		target := invalidation.Target{
			Name: t.Name, Kind: t.Kind, Adapter: lt, Type: t.Type, Endpoint: t.Config.Endpoint(),
			Concurrency: t.Concurrency, RetryFor: time.Duration(t.RetryFor),
		}
		if limiter != nil {
			whole := limiter.Limit()
			target.Share = func(held, limit int) { limiter.SetLimit(whole * rate.Limit(max(held, 1)) / rate.Limit(limit)) }
		}
		target.Supported = func() []adapters.Criteria { return a.live.resolver.Load().Supported(t.Name) }
		a.targets = append(a.targets, target)
	}
	a.live.policy.Store(a.policy)
	a.live.resolver.Store(a.resolver)
	a.live.directory = a.directory
	return a, errors.Join(errs...)
}

func openTarget(o Options, t config.Target, limiter *rate.Limiter) (adapters.Adapter, error) {
	deps := adapters.Deps{Target: t.Name, Logger: o.Logger.With("target", t.Name), Mapped: mapped(t)}
	if o.Transport != nil {
		deps.Transport = o.Transport(t.Name)
	}
	if limiter != nil {
		deps.Limit = limiter.Wait
	}
	if o.Telemetry != nil {
		deps.Wrap = o.Telemetry.Upstream(t.Name, t.Kind)
	}
	return t.Config.Open(deps)
}

// mapped collects what providers and groups are mapped to, in the order of their names.
func mapped(t config.Target) (m adapters.Mapped) {
	for _, name := range slices.Sorted(maps.Keys(t.Providers)) {
		for _, p := range t.Providers[name].Providers {
			if !slices.Contains(m.Providers, p) {
				m.Providers = append(m.Providers, p)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Groups)) {
		for _, g := range t.Groups[name].Groups {
			if !slices.Contains(m.Groups, g) {
				m.Groups = append(m.Groups, g)
			}
		}
	}
	return m
}

// newResolver compiles the names of people, providers and groups.
func newResolver(c *config.Config, directory identity.Directory) (*identity.Resolver, error) {
	o := identity.Options{Directory: directory, FailMissing: c.Directory != nil && c.Directory.OnMissing == config.Fail}
	for _, t := range c.Targets {
		target := identity.Target{
			Name: t.Name, Type: t.Type, Providers: map[string][]adapters.Provider{}, Groups: map[string]identity.Group{},
		}
		for _, u := range t.Usernames {
			target.Usernames = append(target.Usernames, identity.Username{
				Provider: u.Provider, Name: u.Name, Where: u.Where, Hidden: u.Hidden,
			})
		}
		for name, p := range t.Providers {
			target.Providers[name] = p.Providers
		}
		for name, g := range t.Groups {
			target.Groups[name] = identity.Group{
				Groups: g.Groups, Directory: g.Directory, MaxMembers: g.MaxMembers, Where: g.Where,
			}
		}
		o.Targets = append(o.Targets, target)
	}
	return identity.New(o)
}
