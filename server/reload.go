package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/api"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/policy"
)

// live is what a server goes by and a reload replaces: who may call and what for, what names mean, and how the targets
// are signed in to. The rest of a configuration needs a restart.
type live struct {
	options Options // of Open
	callers *callers
	limiter *api.Limiter
	engine  *invalidation.Engine

	policy   livePolicy
	resolver liveResolver
	targets  map[string]*liveTarget

	mu        sync.Mutex
	config    *config.Config // what the server goes by
	directory io.Closer      // what the resolver asks; nil if it needs no closing
}

// livePolicy is a policy that can be replaced while it is asked.
type livePolicy struct{ atomic.Pointer[policy.Policy] }

func (p *livePolicy) Judge(ctx context.Context, q invalidation.Question) (invalidation.Terms, error) {
	return p.Load().Judge(ctx, q)
}
func (p *livePolicy) Protects(target, name string) bool { return p.Load().Protects(target, name) }
func (p *livePolicy) ProtectsPerson(target, name string) bool {
	return p.Load().ProtectsPerson(target, name)
}
func (p *livePolicy) ProtectsAny(target string) bool { return p.Load().ProtectsAny(target) }

// liveResolver is a resolver that can be replaced while it is asked.
type liveResolver struct {
	atomic.Pointer[identity.Resolver]
}

func (r *liveResolver) Resolve(ctx context.Context, target string, sel invalidation.Selector) (invalidation.Resolution, error) {
	return r.Load().Resolve(ctx, target, sel)
}

// liveTarget is an adapter that can be replaced between its calls: all it remembers of a run is in the journal.
type liveTarget struct {
	limiter *rate.Limiter // nil if the target's rate has no limit
	adapter atomic.Pointer[adapters.Adapter]
}

func (t *liveTarget) Supports(sel adapters.Selector) error { return (*t.adapter.Load()).Supports(sel) }
func (t *liveTarget) Preview(ctx context.Context, sel adapters.Selector) (adapters.Preview, error) {
	return (*t.adapter.Load()).Preview(ctx, sel)
}
func (t *liveTarget) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	return (*t.adapter.Load()).Invalidate(ctx, req)
}
func (t *liveTarget) Probe(ctx context.Context) (adapters.Health, error) {
	return (*t.adapter.Load()).Probe(ctx)
}

// reload takes over what can be taken over. After an error everything is as it was.
func (l *live) reload(ctx context.Context, next *config.Config) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, waiting := adopt(l.config, next)
	o := l.options
	o.Config = now

	var errs []error
	directory, err := openDirectory(o)
	errs = append(errs, err)
	closer, _ := directory.(io.Closer)
	abandon := func(err error) error {
		if closer != nil {
			err = errors.Join(err, closer.Close())
		}
		return err
	}
	var resolver *identity.Resolver
	if err == nil {
		resolver, err = newResolver(now, directory)
		errs = append(errs, err)
	}
	rules, err := newPolicy(now)
	errs = append(errs, err)
	opened := map[string]adapters.Adapter{}
	for _, t := range now.Targets {
		adapter, err := openTarget(o, t, l.targets[t.Name].limiter)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.Where, err))
			continue
		}
		opened[t.Name] = adapter
	}
	if err := errors.Join(errs...); err != nil {
		return abandon(err)
	}
	// The last thing that can fail; it changes nothing then.
	if err := l.callers.reload(next); err != nil {
		return abandon(err)
	}

	l.policy.Store(rules)
	l.resolver.Store(resolver)
	for name, adapter := range opened {
		l.targets[name].adapter.Store(&adapter)
	}
	setLimits(l.limiter, now.Limits)
	l.config = now
	old := l.directory
	l.directory = closer
	for name := range opened {
		l.engine.TargetChanged(ctx, name)
	}
	for _, w := range append(slices.Clone(next.Warnings), rules.Warnings()...) {
		o.Logger.WarnContext(ctx, "configuration: "+w)
	}
	for _, what := range waiting {
		o.Logger.WarnContext(ctx, "configuration: "+what+": the change needs a restart")
	}
	if old != nil {
		// Who is asking it this moment tries again later, as in any outage.
		if err := old.Close(); err != nil {
			o.Logger.WarnContext(ctx, "close the old directory", slog.Any("error", err))
		}
	}
	return nil
}

// close closes the directory of the moment.
func (l *live) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.directory == nil {
		return nil
	}
	return l.directory.Close()
}

// adopt returns what a server that goes by one configuration goes by when it is given the next, and what of that needs a
// restart first. A target that was added, removed or pointed elsewhere needs one, and until then is, with all that belongs
// to it, as it was: names for one system are not sent to another.
func adopt(now, next *config.Config) (adopted *config.Config, waiting []string) {
	c := *next
	for _, x := range []struct {
		what     string
		now, new any
	}{
		{"listen", addresses(now), addresses(next)}, {"store", now.Store, next.Store}, {"audit", trail(now), trail(next)},
		{"retention", now.Retention, next.Retention}, {"check_interval", now.CheckInterval, next.CheckInterval},
		{"log", now.Log, next.Log},
	} {
		if !reflect.DeepEqual(x.now, x.new) {
			waiting = append(waiting, x.what)
		}
	}
	c.Listen, c.Store, c.Audit, c.Retention, c.CheckInterval, c.Log = now.Listen, now.Store, now.Audit, now.Retention, now.CheckInterval, now.Log
	c.Targets = nil
	for _, old := range now.Targets {
		i := slices.IndexFunc(next.Targets, func(t config.Target) bool { return t.Name == old.Name })
		switch {
		case i < 0:
			waiting = append(waiting, "target "+old.Name+" is gone")
			c.Targets = append(c.Targets, old)
			continue
		case next.Targets[i].Kind != old.Kind || next.Targets[i].Config.Endpoint() != old.Config.Endpoint():
			waiting = append(waiting, "target "+old.Name+" is another system")
			c.Targets = append(c.Targets, old)
			continue
		}
		t := next.Targets[i]
		if t.Concurrency != old.Concurrency || t.Rate != old.Rate || t.RetryFor != old.RetryFor {
			waiting = append(waiting, "concurrency, rate or retry_for of target "+t.Name)
			t.Concurrency, t.Rate, t.RetryFor = old.Concurrency, old.Rate, old.RetryFor
		}
		c.Targets = append(c.Targets, t)
	}
	for _, t := range next.Targets {
		if !slices.ContainsFunc(now.Targets, func(old config.Target) bool { return old.Name == t.Name }) {
			waiting = append(waiting, "target "+t.Name+" is new")
		}
	}
	return &c, waiting
}

// addresses is the part of the listeners' configuration that a reload does not take over.
func addresses(c *config.Config) config.Listen {
	l := c.Listen
	l.TLS = nil
	return l
}

// trail is the audit section without its place in the file.
func trail(c *config.Config) config.Audit {
	a := c.Audit
	a.Where = ""
	return a
}

// setLimits bounds how often each caller may call; nil means that nothing does.
func setLimits(l *api.Limiter, c *config.Limits) {
	if c == nil {
		l.Set(0, 0)
		return
	}
	l.Set(c.CallsPerCaller.PerSecond(), c.Burst)
}
