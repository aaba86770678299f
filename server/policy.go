package server

import (
	"context"
	"io"
	"log/slog"

	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/policy"
)

// newPolicy compiles the rules and the names of protected people.
func newPolicy(c *config.Config) (*policy.Policy, error) {
	o := policy.Options{Open: !authenticates(c)}
	for _, r := range c.Policy {
		o.Rules = append(o.Rules, policy.Rule{
			Name: r.Name, Deny: r.Deny != "", When: r.When(), Rights: r.Rights, MayName: r.MayName,
			Terms: invalidation.Terms{Protected: r.Protected, MaxSessions: r.MaxSessions, Unlimited: r.Unlimited},
			Where: r.Where, Hidden: r.Hidden,
		})
	}
	if c.Protected != nil {
		o.Protected = c.Protected.Users
	}
	for _, t := range c.Targets {
		target := policy.Target{Name: t.Name, Kind: t.Kind, Account: t.Config.Account()}
		if t.Protected != nil {
			target.Protected = t.Protected.Users
		}
		o.Targets = append(o.Targets, target)
	}
	return policy.New(o)
}

// TryPolicy judges cases by the policy of a configuration, as a gateway would. Where a case does not say which names
// would be sent they are resolved as the configuration has it; a directory is asked for that.
func TryPolicy(ctx context.Context, c *config.Config, cases []policy.Case) ([]policy.Verdict, error) {
	p, err := newPolicy(c)
	if err != nil {
		return nil, err
	}
	directory, err := openDirectory(Options{Config: c, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if closer, ok := directory.(io.Closer); ok {
		defer func() { _ = closer.Close() }()
	}
	resolver, err := newResolver(c, directory)
	if err != nil {
		return nil, err
	}
	return p.Try(ctx, resolver, cases)
}
