package main

import (
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

// callFlags are the flags of a call that ends sessions, or previews it. A flag that is given but empty is sent as it is,
// so that the gateway refuses it: an empty shell variable must not become a wider kill.
type callFlags struct {
	user            string
	email           string
	attributes      []string
	targetUsernames []string
	provider        string
	group           string
	sessions        []string
	all             bool
	targets         []string
	confirmBroad    bool
	reason          string
	onBehalfOf      string
	labels          []string
	retryFor        time.Duration
	allowUnsup      bool
	bulk            bool
}

func (c *callFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&c.user, "user", "u", "", "the person's id")
	f.StringVar(&c.email, "email", "", "the person's e-mail address")
	f.StringArrayVar(&c.attributes, "attribute", nil, "a further attribute of the person, `name=value` (repeatable)")
	f.StringArrayVar(&c.targetUsernames, "target-username", nil, "the person's name at one target, `target=name` (repeatable)")
	f.StringVar(&c.provider, "provider", "", "sign-in `type[/name]`: local, ldap, saml, oidc, kerberos, pki, token, basic, anonymous")
	f.StringVar(&c.group, "group", "", "group, as the targets' configuration maps it")
	f.StringArrayVar(&c.sessions, "session", nil, "one session, `target/id` or target/device/id (repeatable)")
	f.BoolVar(&c.all, "all", false, "every session of the targets")
	f.StringArrayVarP(&c.targets, "target", "t", nil, "only this target (repeatable); default: all")
	f.BoolVar(&c.confirmBroad, "confirm-broad", false, "needed when neither --user nor --session is given")
	f.StringVar(&c.reason, "reason", "", "why, for the audit trail")
	f.StringVar(&c.onBehalfOf, "on-behalf-of", "", "the human a service acts for, for the audit trail")
	f.StringArrayVar(&c.labels, "label", nil, "`key=value`, to find and cancel by (repeatable)")
	f.DurationVar(&c.retryFor, "retry-for", 0, "how long failed runs are retried (default: the target's)")
	f.BoolVar(&c.allowUnsup, "allow-unsupported", false, "targets that cannot express the selector do not count against the outcome")
	f.BoolVar(&c.bulk, "bulk", false, "let normal invalidations overtake this one")
}

// request builds the call.
func (c *callFlags) request(cmd *cobra.Command) (*endsessionv1.InvalidateSessionsRequest, error) {
	given := cmd.Flags().Changed
	sel := &endsessionv1.Selector{}
	if given("user") || given("email") || given("attribute") || given("target-username") {
		sel.User = &endsessionv1.User{Id: c.user}
		if given("email") {
			sel.User.Email = &c.email
		}
		var err error
		if sel.User.Attributes, err = pairs("--attribute", c.attributes); err != nil {
			return nil, err
		}
		for _, p := range c.targetUsernames {
			target, name, ok := strings.Cut(p, "=")
			if !ok {
				return nil, usageError("--target-username: want target=name, got %q", p)
			}
			if sel.User.TargetUsernames == nil {
				sel.User.TargetUsernames = map[string]*endsessionv1.TargetUsernames{}
			}
			if sel.User.TargetUsernames[target] == nil {
				sel.User.TargetUsernames[target] = &endsessionv1.TargetUsernames{}
			}
			names := sel.User.TargetUsernames[target]
			names.Usernames = append(names.Usernames, name)
		}
	}
	if given("provider") {
		typ, name, named := strings.Cut(c.provider, "/")
		sel.Provider = &endsessionv1.Provider{Type: typ}
		if named {
			sel.Provider.Name = &name
		}
	}
	if given("group") {
		sel.Group = &c.group
	}
	for _, s := range c.sessions {
		ref, err := sessionRef(s)
		if err != nil {
			return nil, err
		}
		sel.Sessions = append(sel.Sessions, ref)
	}
	if given("all") {
		sel.All = &c.all
	}
	req := &endsessionv1.InvalidateSessionsRequest{Selector: sel, Targets: c.targets}
	if given("confirm-broad") {
		req.ConfirmBroad = &c.confirmBroad
	}
	if given("reason") {
		req.Reason = &c.reason
	}
	if given("on-behalf-of") {
		req.OnBehalfOf = &c.onBehalfOf
	}
	var err error
	if req.Labels, err = pairs("--label", c.labels); err != nil {
		return nil, err
	}
	if given("retry-for") {
		req.RetryFor = durationpb.New(c.retryFor)
	}
	if given("allow-unsupported") {
		req.AllowUnsupported = &c.allowUnsup
	}
	if c.bulk {
		req.Priority = endsessionv1.Priority_PRIORITY_BULK
	}
	return req, nil
}

// sessionRef reads target/id or target/device/id. An id may hold slashes only if a device is given.
func sessionRef(s string) (*endsessionv1.SessionRef, error) {
	parts := strings.SplitN(s, "/", 3)
	switch len(parts) {
	case 2:
		return &endsessionv1.SessionRef{Target: parts[0], Id: parts[1]}, nil
	case 3:
		return &endsessionv1.SessionRef{Target: parts[0], Device: &parts[1], Id: parts[2]}, nil
	}
	return nil, usageError("--session: want target/id or target/device/id, got %q", s)
}

// pairs reads name=value flags. A name given twice is a mistake.
func pairs(flag string, list []string) (map[string]string, error) {
	var m map[string]string
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, usageError("%s: want name=value, got %q", flag, p)
		}
		if _, twice := m[k]; twice {
			return nil, usageError("%s: %q is given twice", flag, k)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[k] = v
	}
	return m, nil
}
