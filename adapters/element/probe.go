package element

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Probe implements [adapters.Adapter]. It asks anew what the cluster offers, who the account is, and lists the sessions,
// which only an administrator may, and the administrators; nothing changes.
func (a *Adapter) Probe(ctx context.Context) (adapters.Health, error) {
	p := &probe{Adapter: a}
	p.run(ctx)
	return p.health, ctx.Err()
}

type probe struct {
	*Adapter
	health adapters.Health
}

func (p *probe) add(name string, status adapters.CheckStatus, message, remedy string) {
	p.health.Checks = append(p.health.Checks, adapters.Check{Name: name, Status: status, Message: message, Remedy: remedy})
}

const (
	remedyAddress = "set url to the cluster's management virtual IP (MVIP), port 443, of Element 12.0 or later"
	remedyServing = "look at the cluster's state; during an upgrade, wait"
	remedyAccess  = "give the account the access type administrator"
)

// run stops when ctx ends or an answer makes the next question pointless.
func (p *probe) run(ctx context.Context) {
	api, ok := p.api(ctx)
	if !ok {
		return
	}
	p.version(ctx, api)
	sessions, ok := p.privilege(ctx)
	if !ok || ctx.Err() != nil {
		return
	}
	if hidden(adapters.Selector{By: adapters.All}, sessions) {
		p.add("scope", adapters.CheckWarning, identityOpaque.Message, "have the identity provider send a NameID or a uid")
	} else {
		p.add("scope", adapters.CheckOK, fmt.Sprintf("%d sessions are listed", len(sessions)), "")
	}
	p.mapping(ctx, sessions)
}

// api looks at the connection, the credentials and what the cluster offers.
func (p *probe) api(ctx context.Context) (*api, bool) {
	var checks []adapters.Check
	reached := true
	api, err := p.rpc.negotiate(ctx, func(reply httpclient.Reply, err error) {
		checks, reached = p.rpc.http.CheckConnection("the cluster", reply, err)
	})
	if ctx.Err() != nil {
		return nil, false
	}
	p.health.Checks = append(p.health.Checks, checks...)
	if !reached {
		return nil, false
	}
	switch adapters.KindOf(err) {
	case 0:
	case adapters.Credentials:
		p.add(adapters.CheckCredentials, adapters.CheckFailed, public(err), "check username and password")
		return nil, false
	case adapters.Unreachable, adapters.Busy:
		p.add("api", adapters.CheckFailed, public(err), remedyServing)
		return nil, false
	default:
		// Whether it was the address or the version, the message says it.
		p.add("api", adapters.CheckFailed, public(err), remedyAddress)
		return nil, false
	}
	p.add(adapters.CheckCredentials, adapters.CheckOK, "the account is accepted", "")
	if api.methods == nil {
		p.add("api", adapters.CheckUnknown, fmt.Sprintf("version %s; the cluster does not list its methods", api.version),
			"preview a selector: it tells whether the session methods are there")
	} else {
		p.add("api", adapters.CheckOK, fmt.Sprintf("version %s with the session methods", api.version), "")
	}
	p.rpc.mu.Lock()
	p.rpc.api = api
	p.rpc.mu.Unlock()
	return api, true
}

// lastMajor is the last version of Element that is known here.
const lastMajor = 12

// version judges the software's version. That it is not too old the API's version has told.
func (p *probe) version(ctx context.Context, api *api) {
	if result, err := p.rpc.call(ctx, getVersionInfo, none{}, reads); err == nil {
		p.health.Version = decodeVersionInfo(result)
	}
	major, _, _ := strings.Cut(p.health.Version, ".")
	n, err := strconv.Atoi(major)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		p.add("version", adapters.CheckUnknown, "the cluster does not tell the version of Element", "look it up at the cluster: it should be 12.0 or later")
	case max(n, api.version.major) > lastMajor:
		p.add("version", adapters.CheckWarning, fmt.Sprintf("Element %s, API %s: newer than %d, the last that is known here", p.health.Version, api.version, lastMajor),
			"end the sessions of a test account, and look at the cluster whether they are gone")
	default:
		p.add("version", adapters.CheckOK, "Element "+p.health.Version, "")
	}
}

// privilege says what the account may do, and returns the sessions it may list.
func (p *probe) privilege(ctx context.Context) ([]adapters.Session, bool) {
	var access []string
	var sessions []adapters.Session
	result, err := p.rpc.call(ctx, getCurrentAdmin, none{}, reads)
	if err == nil {
		access, err = decodeAccess(result)
	}
	if err == nil && !administers(access) {
		err = adapters.Errorf(adapters.Denied, "the account is not an administrator: it would only see and end its own sessions")
	}
	if err == nil {
		sessions, err = p.rpc.list(ctx, listActive, none{})
	}
	switch k := adapters.KindOf(err); {
	case ctx.Err() != nil:
		return nil, false
	case k == adapters.Denied:
		p.add("privilege", adapters.CheckFailed, public(err), remedyAccess)
		return nil, false
	case err != nil:
		p.add("privilege", adapters.CheckFailed, public(err), remedyServing)
		return nil, false
	}
	if more := beyond(access); len(more) > 0 {
		p.add("privilege", adapters.CheckWarning, "the account may end sessions, and more than is needed: "+strings.Join(more, ", "),
			"take these access types from the account, if nothing else uses it")
	} else {
		p.add("privilege", adapters.CheckOK, "the account is an administrator", "")
	}
	return sessions, true
}

// beyond returns the access types that ending sessions does not need. For an administrator there are none: that access
// includes all others, so that taking them away would change nothing.
func beyond(access []string) (more []string) {
	for _, s := range access {
		switch {
		case strings.EqualFold(s, "administrator"):
			return nil
		case strings.EqualFold(s, "clusterAdmins"), strings.EqualFold(s, "read"), strings.EqualFold(s, "reporting"), !presentable(s):
		default:
			more = append(more, s)
		}
	}
	return more
}

// presentable reports whether a word of the cluster's may be shown.
func presentable(s string) bool { return softwareWord.MatchString(s) }

// mapping looks up what groups and providers are mapped to. It is never worse than a warning: selectors that do not use
// the mapping work.
func (p *probe) mapping(ctx context.Context, sessions []adapters.Session) {
	if len(p.mapped.Groups)+len(p.mapped.Providers) == 0 {
		return
	}
	var admins []admin
	result, err := p.rpc.call(ctx, listAdmins, none{}, reads)
	if err == nil {
		admins, err = decodeAdmins(result)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		p.add("mapping", adapters.CheckUnknown, "the cluster does not list its administrators: "+public(err),
			"compare groups and providers with the cluster's own list of administrators")
		return
	}
	var unknown []string
	for _, g := range p.mapped.Groups {
		known := slices.ContainsFunc(admins, func(a admin) bool {
			return g.Kind == GroupAccess && slices.Contains(a.access, g.Name) ||
				g.Kind == GroupClusterAdmin && strconv.FormatInt(a.id, 10) == g.Name
		}) || slices.ContainsFunc(sessions, func(x adapters.Session) bool { return slices.Contains(x.Groups, g) })
		switch {
		case known:
		case g.Kind == GroupAccess:
			unknown = append(unknown, fmt.Sprintf("nobody has the access %q", g.Name))
		default:
			unknown = append(unknown, fmt.Sprintf("there is no cluster administrator %s", g.Name))
		}
	}
	for _, m := range p.mapped.Providers {
		if !slices.ContainsFunc(admins, func(a admin) bool { return a.method == m.Type }) {
			unknown = append(unknown, "no administrator signs in through "+m.Type)
		}
	}
	for _, u := range unknown {
		p.add("mapping", adapters.CheckWarning, u+": what is mapped to it matches no session", "correct groups and providers in the configuration")
	}
	if len(unknown) == 0 {
		p.add("mapping", adapters.CheckOK, fmt.Sprintf("the cluster knows all that groups and providers are mapped to: %d names",
			len(p.mapped.Groups)+len(p.mapped.Providers)), "")
	}
}

// public is an error's message without its cause.
func public(err error) string {
	var e *adapters.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "the check was cut short"
}
