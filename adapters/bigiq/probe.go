package bigiq

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Probe checks, in this order, that BIG-IQ answers, takes the credentials, has the Access service in a version that is
// known, lets the account make tasks, and knows the configured scope and what groups and providers are mapped to.
func (a *Adapter) Probe(ctx context.Context) (adapters.Health, error) {
	p := probe{Adapter: a, health: new(adapters.Health)}
	for _, step := range []func(context.Context) bool{p.reachable, p.credentials, p.api, p.version, p.privilege, p.scope} {
		more := step(ctx)
		if err := ctx.Err(); err != nil {
			return *p.health, err
		}
		if !more {
			break
		}
	}
	return *p.health, nil
}

type probe struct {
	*Adapter
	health *adapters.Health
}

func (p probe) add(name string, status adapters.CheckStatus, message, remedy string) {
	p.health.Checks = append(p.health.Checks, adapters.Check{Name: name, Status: status, Message: message, Remedy: remedy})
}

// product is what messages call a BIG-IQ.
const product = "BIG-IQ"

// reachable asks for what BIG-IQ tells anybody. Any HTTP answer will do.
func (p probe) reachable(ctx context.Context) bool {
	info, reply, err := p.client.info(ctx)
	checks, reached := p.http.CheckConnection(product, reply, err)
	p.health.Checks = append(p.health.Checks, checks...)
	p.health.Version = presentable(info.Version)
	return reached
}

// presentable is a version that may be shown, and nothing else.
func presentable(version string) string {
	if !deviceWord.MatchString(version) {
		return ""
	}
	return version
}

const remedyCredentials = "check username, password and login_provider; the account may be locked after failed logins"

func (p probe) credentials(ctx context.Context) bool {
	if p.client.conf.Basic {
		return true // told by the next call
	}
	err := p.client.check(ctx)
	switch adapters.KindOf(err) {
	case 0:
		p.add(adapters.CheckCredentials, adapters.CheckOK, "BIG-IQ issues a token", "")
		return true
	case adapters.Credentials:
		p.add(adapters.CheckCredentials, adapters.CheckFailed, message(err), remedyCredentials)
	case adapters.Denied:
		p.add("privilege", adapters.CheckFailed, "BIG-IQ does not let the account log in", remedyRole)
	default:
		p.add("api", adapters.CheckFailed, "login: "+message(err), remedyService)
	}
	return false
}

func (p probe) api(ctx context.Context) bool {
	reply, err := p.client.do(ctx, get(pathTasks, queryProbe))
	if err == nil && !reply.IsJSON() {
		err = adapters.Errorf(adapters.BadReply, "BIG-IQ answers with something other than JSON")
	}
	if k := adapters.KindOf(err); p.client.conf.Basic && (k == 0 || k == adapters.Denied) {
		p.add(adapters.CheckCredentials, adapters.CheckOK, "BIG-IQ accepts the password", "")
	}
	switch adapters.KindOf(err) {
	case 0:
		p.add("api", adapters.CheckOK, "the Access service takes kill-sessions tasks", "")
		return true
	case adapters.Credentials:
		if p.client.conf.Basic {
			p.add(adapters.CheckCredentials, adapters.CheckFailed, message(err), "remove basic: BIG-IQ refuses HTTP Basic authentication unless it was switched on")
			break
		}
		// The token is a moment old: this is not about the password.
		p.add("privilege", adapters.CheckFailed, "BIG-IQ does not accept its own token for kill-sessions tasks", remedyRole)
	case adapters.Denied:
		p.add("privilege", adapters.CheckFailed, "the account may not read kill-sessions tasks", remedyRole)
	case adapters.Rejected:
		p.add("api", adapters.CheckFailed, "BIG-IQ has no kill-sessions tasks here", "check that url is the BIG-IQ's, and that its Access service is licensed and runs")
	default:
		p.add("api", adapters.CheckFailed, message(err), remedyService)
	}
	return false
}

// Ending sessions is documented for 5.2 and, the same, for 7.0; up to 8.x it is assumed unchanged.
const (
	firstVersion = "5.2"
	lastMajor    = 8
)

var versionText = regexp.MustCompile(`^([0-9]{1,4})\.([0-9]{1,4})(?:[.-].*)?$`)

// version judges the version, as far as BIG-IQ tells it to anybody, or else to the account.
func (p probe) version(ctx context.Context) bool {
	if p.health.Version == "" {
		if reply, err := p.client.do(ctx, get(pathSelf, querySelf)); err == nil {
			p.health.Version = presentable(decodeSelf(reply))
		}
	}
	v := p.health.Version
	m := versionText.FindStringSubmatch(v)
	if m == nil {
		p.add("version", adapters.CheckUnknown, "BIG-IQ does not tell its version", "look it up at BIG-IQ: it should be "+firstVersion+" or later")
		return true
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	switch {
	case major < 5 || major == 5 && minor < 2:
		p.add("version", adapters.CheckWarning, v+" is older than "+firstVersion+", the first for which kill-sessions tasks are documented", "update BIG-IQ")
	case major > lastMajor:
		p.add("version", adapters.CheckWarning, fmt.Sprintf("%s is newer than %d, the last that is known here", v, lastMajor),
			"end the sessions of a test account, and look at BIG-IQ whether they are gone")
	default:
		p.add("version", adapters.CheckOK, v, "")
	}
	return true
}

const remedyService = "look at the state of BIG-IQ's services, and at what stands between"

const remedyRole = "give the account the role Access Manager"

// builtIn is the account that every BIG-IQ comes with, and that may do everything.
const builtIn = "admin"

// privilege posts a task without an action. BIG-IQ refuses it before it makes a task, so that this changes nothing, and
// is not marked as mutating; a body with an action might become a kill some day, this one never.
func (p probe) privilege(ctx context.Context) bool {
	call := httpclient.Call{Method: http.MethodPost, Path: pathTasks, JSON: struct{}{}, Accept: []int{http.StatusBadRequest}}
	reply, err := p.client.do(ctx, call)
	const remedyUnknown = "end the sessions of a test account: whether the account may, nothing else tells"
	switch {
	case err == nil && reply.Status == http.StatusBadRequest && says(reply, messageNoAction):
		if c := p.client.conf; c.Username == builtIn && (c.LoginProvider == "" || c.LoginProvider == localProvider) {
			p.add("privilege", adapters.CheckWarning, "the account may make tasks, and more than is needed: it is BIG-IQ's own administrator",
				"make an account of its own for the gateway, with the role Access Manager")
			break
		}
		p.add("privilege", adapters.CheckOK, "the account may make tasks", "")
	case adapters.KindOf(err) == adapters.Denied, adapters.KindOf(err) == adapters.Credentials:
		p.add("privilege", adapters.CheckFailed, "the account may not make tasks", remedyRole)
		return false
	case err == nil:
		p.add("privilege", adapters.CheckUnknown, "BIG-IQ did not refuse an empty task in the documented way", remedyUnknown)
	default:
		p.add("privilege", adapters.CheckUnknown, message(err), remedyUnknown)
	}
	return true
}

// scope looks up every configured name, and every name that groups and providers are mapped to.
func (p probe) scope(ctx context.Context) bool {
	demands := []demand{{everywhere: true}}
	if !p.mapped.empty() {
		demands = append(demands, demand{scope: p.mapped})
	}
	inv, _, err := p.inventory.get(ctx, p.client, needs(demands, p.reach), 0)
	switch adapters.KindOf(err) {
	case 0:
	case adapters.Denied:
		p.add("scope", adapters.CheckFailed, "the account may not list devices and access groups", remedyRole)
		return false
	default:
		p.add("scope", adapters.CheckFailed, message(err), remedyService)
		return false
	}
	p.configured(inv)
	p.mappings(inv)
	return true
}

func (p probe) configured(inv inventory) {
	at, err := inv.reached(p.reach)
	if err != nil {
		p.add("scope", adapters.CheckFailed, message(err), "correct scope, or establish trust and discover Access for the devices")
		return
	}
	found := len(p.health.Checks)
	p.incomplete("scope", at.warnings)
	for _, d := range inv.devices {
		if at.holds(d) && d.State != "" && d.State != "ACTIVE" {
			p.add("scope", adapters.CheckWarning, fmt.Sprintf("BIG-IQ does not manage device %s at present", d.MachineID), "check the device's trust and state in BIG-IQ")
		}
	}
	if len(p.health.Checks) == found {
		p.add("scope", adapters.CheckOK, strings.Join(at.covered(), ", "), "")
	}
}

// mappings is never worse than a warning: all selectors that do not use the mapping work.
func (p probe) mappings(inv inventory) {
	names := p.mapped.each()
	if len(names) == 0 {
		return
	}
	found := len(p.health.Checks)
	for _, one := range names {
		at, err := inv.find(one)
		if err != nil {
			p.add("mapping", adapters.CheckWarning, message(err)+": runs for what is mapped to it fail", "correct groups and providers in the configuration")
			continue
		}
		p.incomplete("mapping", at.warnings)
	}
	if len(p.health.Checks) == found {
		p.add("mapping", adapters.CheckOK, fmt.Sprintf("BIG-IQ knows all that groups and providers are mapped to: %d names", len(names)), "")
	}
}

// incomplete adds what a place warns of.
func (p probe) incomplete(name string, warnings []adapters.Warning) {
	for _, w := range warnings {
		remedy := "discover and import the Access service of these devices in BIG-IQ"
		if w.Code == adapters.WarnPassiveDevice {
			remedy = "list the cluster instead of the device"
		}
		p.add(name, adapters.CheckWarning, w.Message, remedy)
	}
}

// mappedScope is everything that groups and providers are mapped to.
func mappedScope(m adapters.Mapped) (s Scope) {
	for _, p := range m.Providers {
		s.AccessGroups = add(s.AccessGroups, p.Name)
	}
	for _, g := range m.Groups {
		switch g.Kind {
		case kindAccessGroup:
			s.AccessGroups = add(s.AccessGroups, g.Name)
		case kindCluster:
			s.Clusters = add(s.Clusters, g.Name)
		case kindDevice:
			s.Devices = add(s.Devices, g.Name)
		}
	}
	return s
}

// each returns a scope for every name in s.
func (s Scope) each() (list []Scope) {
	for _, name := range s.Clusters {
		list = append(list, Scope{Clusters: []string{name}})
	}
	for _, name := range s.AccessGroups {
		list = append(list, Scope{AccessGroups: []string{name}})
	}
	for _, name := range s.Devices {
		list = append(list, Scope{Devices: []string{name}})
	}
	return list
}

// message is the public part of an error.
func message(err error) string { return verdictOf(err).Message }
