package bigiq

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Probe checks, in this order, that BIG-IQ answers, takes the credentials, has the Access service, lets the account make
// tasks, and knows the configured scope.
func (a *Adapter) Probe(ctx context.Context) (adapters.Health, error) {
	var h adapters.Health
	p := probe{Adapter: a, health: &h}
	for _, step := range []func(context.Context) bool{p.reachable, p.credentials, p.api, p.privilege, p.scope} {
		more := step(ctx)
		if err := ctx.Err(); err != nil {
			return h, err
		}
		if !more {
			break
		}
	}
	return h, nil
}

type probe struct {
	*Adapter
	health *adapters.Health
}

func (p probe) add(name string, status adapters.CheckStatus, message, remedy string) {
	p.health.Checks = append(p.health.Checks, adapters.Check{Name: name, Status: status, Message: message, Remedy: remedy})
}

// reachable asks for what BIG-IQ tells anybody. Any HTTP answer will do.
func (p probe) reachable(ctx context.Context) bool {
	info, err := p.client.info(ctx)
	switch {
	case httpclient.IsCertificate(err):
		p.add("tls", adapters.CheckFailed, "BIG-IQ's certificate is not trusted", "set ca_file or pin_sha256; a BIG-IQ usually has a self-signed certificate")
		return false
	case err != nil && (adapters.KindOf(err) == adapters.Unreachable || adapters.KindOf(err) == 0):
		p.add("reachable", adapters.CheckFailed, "BIG-IQ cannot be reached", "check url, routes and firewalls")
		return false
	}
	p.add("reachable", adapters.CheckOK, "BIG-IQ answers", "")
	if deviceWord.MatchString(info.Version) {
		p.health.Version = info.Version
	}
	return true
}

const remedyCredentials = "check username, password and login_provider; the account may be locked after failed logins"

func (p probe) credentials(ctx context.Context) bool {
	if p.client.conf.Basic {
		return true // told by the next call
	}
	if err := p.client.check(ctx); err != nil {
		p.add("credentials", adapters.CheckFailed, message(err), remedyCredentials)
		return false
	}
	p.add("credentials", adapters.CheckOK, "BIG-IQ issues a token", "")
	return true
}

func (p probe) api(ctx context.Context) bool {
	reply, err := p.client.do(ctx, get(pathTasks, queryProbe))
	if err == nil && !reply.IsJSON() {
		err = adapters.Errorf(adapters.BadReply, "BIG-IQ answers with something other than JSON")
	}
	switch adapters.KindOf(err) {
	case 0:
		if p.client.conf.Basic {
			p.add("credentials", adapters.CheckOK, "BIG-IQ accepts the password", "")
		}
		p.add("api", adapters.CheckOK, "the Access service takes kill-sessions tasks", "")
		return true
	case adapters.Credentials:
		remedy := remedyCredentials
		if p.client.conf.Basic {
			remedy = "remove basic: BIG-IQ refuses HTTP Basic authentication unless it was switched on"
		}
		p.add("credentials", adapters.CheckFailed, message(err), remedy)
	case adapters.Denied:
		p.add("privilege", adapters.CheckFailed, "the account may not read kill-sessions tasks", remedyRole)
	case adapters.Rejected:
		p.add("api", adapters.CheckFailed, "BIG-IQ has no kill-sessions tasks here", "check that url is the BIG-IQ's, and that its Access service is licensed and runs")
	default:
		p.add("api", adapters.CheckFailed, message(err), remedyService)
	}
	return false
}

const remedyService = "look at the state of BIG-IQ's services, and at what stands between"

const remedyRole = "give the account the role Access Manager"

// privilege posts a task without an action. BIG-IQ refuses it before it makes a task, so that this changes nothing, and
// is not marked as mutating; a body with an action might become a kill some day, this one never.
func (p probe) privilege(ctx context.Context) bool {
	call := httpclient.Call{Method: http.MethodPost, Path: pathTasks, JSON: struct{}{}, Accept: []int{http.StatusBadRequest}}
	reply, err := p.client.do(ctx, call)
	switch {
	case err == nil && reply.Status == http.StatusBadRequest && says(reply, messageNoAction):
		p.add("privilege", adapters.CheckOK, "the account may make tasks", "")
	case adapters.KindOf(err) == adapters.Denied, adapters.KindOf(err) == adapters.Credentials:
		p.add("privilege", adapters.CheckFailed, "the account may not make tasks", remedyRole)
		return false
	case err == nil:
		p.add("privilege", adapters.CheckUnknown, "BIG-IQ did not refuse an empty task in the documented way", "")
	default:
		p.add("privilege", adapters.CheckUnknown, message(err), "")
	}
	return true
}

// scope looks up every configured name. What groups and providers are mapped to is checked when it is used.
func (p probe) scope(ctx context.Context) bool {
	n := needs([]demand{{everywhere: true}}, p.reach)
	inv, _, err := p.inventory.get(ctx, p.client, n, 0)
	if err != nil {
		p.add("scope", adapters.CheckFailed, message(err), remedyService)
		return false
	}
	at, err := inv.reached(p.reach)
	if err != nil {
		p.add("scope", adapters.CheckFailed, message(err), "correct scope, or establish trust and discover Access for the devices")
		return false
	}
	for _, w := range at.warnings {
		remedy := "discover and import the Access service of these devices in BIG-IQ"
		if w.Code == adapters.WarnPassiveDevice {
			remedy = "list the cluster instead of the device"
		}
		p.add("scope", adapters.CheckWarning, w.Message, remedy)
	}
	for _, d := range inv.devices {
		if at.holds(d) && d.State != "" && d.State != "ACTIVE" {
			p.add("scope", adapters.CheckWarning, fmt.Sprintf("BIG-IQ does not manage device %s at present", d.MachineID), "check the device's trust and state in BIG-IQ")
		}
	}
	if !slices.ContainsFunc(p.health.Checks, func(c adapters.Check) bool { return c.Name == "scope" }) {
		p.add("scope", adapters.CheckOK, strings.Join(at.covered(), ", "), "")
	}
	return true
}

// message is the public part of an error.
func message(err error) string { return verdictOf(err).Message }
