package bigiq

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
)

// How sessions at a BIG-IQ are named in a selector.
const (
	typeAccessGroup = "access_group" // a provider's type
	kindAccessGroup = "access_group" // the kinds of groups
	kindCluster     = "cluster"
	kindDevice      = "device"
)

// demand is what one task is to do, still in the selector's names.
type demand struct {
	// user is empty for the sessions of all users.
	user string
	// everywhere means the target's whole scope; otherwise scope is where.
	everywhere bool
	scope      Scope
	// sessions, if any, are the ones to end, and nothing else counts.
	sessions []adapters.SessionKey
}

// demands translates a selector into tasks which together end exactly what it matches, one for each user name. None
// means that nothing can match. The error is [adapters.Unsupported].
func demands(sel adapters.Selector) ([]demand, error) {
	if err := sel.Validate(); err != nil {
		return nil, adapters.Wrap(adapters.Unsupported, err, "the selector is not valid")
	}
	switch {
	case sel.By == adapters.All:
		return []demand{{everywhere: true}}, nil
	case sel.By == adapters.BySessions:
		return listed(sel.Sessions)
	case !sel.By.Has(adapters.ByUser):
		everywhere, scope, err := narrow(sel.By.Has(adapters.ByProvider), sel.Providers, sel.Groups)
		if err != nil || !everywhere && scope.empty() {
			return nil, err
		}
		return []demand{{everywhere: everywhere, scope: scope}}, nil
	}
	var ds []demand
	for _, u := range sel.UserScopes() {
		if err := checkUser(u.Name); err != nil {
			return nil, err
		}
		everywhere, scope, err := narrow(!u.Anywhere, u.At, sel.Groups)
		if err != nil {
			return nil, err
		}
		if everywhere || !scope.empty() {
			ds = append(ds, demand{user: u.Name, everywhere: everywhere, scope: scope})
		}
	}
	return ds, nil
}

// checkUser refuses names whose effect is not documented and could be wide.
func checkUser(name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return adapters.Errorf(adapters.Unsupported, "an empty user name would match sessions that have no user yet")
	case strings.Contains(name, "*"):
		return adapters.Errorf(adapters.Unsupported, "BIG-IQ does not document what * in a user name means")
	case !utf8.ValidString(name):
		return adapters.Errorf(adapters.Unsupported, "a user name that is not UTF-8 cannot be sent as it is")
	}
	return nil
}

func listed(keys []adapters.SessionKey) ([]demand, error) {
	d := demand{}
	for _, k := range keys {
		k.Device = deviceName(k.Device)
		switch {
		case k.Device == "":
			return nil, adapters.Errorf(adapters.Unsupported, "session ids are unique on one device only: name the device")
		case checkDevice(k.Device) != nil:
			return nil, adapters.Errorf(adapters.Unsupported, "a session's device is a machine id or a device reference")
		case checkName(k.ID) != nil:
			return nil, adapters.Errorf(adapters.Unsupported, "%q cannot be a session id", k.ID)
		}
		if !slices.Contains(d.sessions, k) {
			d.sessions = append(d.sessions, k)
		}
	}
	return []demand{d}, nil
}

// narrow says where the sessions of these providers and groups are, as a union of scopes. A session's device is in one
// access group only. Without providers (narrowed is false) and without groups that is everywhere.
func narrow(narrowed bool, providers []adapters.Provider, groups []adapters.Group) (everywhere bool, scope Scope, err error) {
	for _, g := range groups {
		check, names := checkName, &scope.AccessGroups
		switch g.Kind {
		case kindAccessGroup:
		case kindCluster:
			names = &scope.Clusters
		case kindDevice:
			check, names = checkDevice, &scope.Devices
		default:
			return false, Scope{}, unsupported(adapters.ReasonUnknownGroup, "BIG-IQ has no groups of the kind %q", g.Kind)
		}
		if check(g.Name) != nil {
			return false, Scope{}, unsupported(adapters.ReasonUnknownGroup, "%q cannot be the name of a group at BIG-IQ", g.Name)
		}
		name := g.Name
		if g.Kind == kindDevice {
			name = deviceName(name)
		}
		if !slices.Contains(*names, name) {
			*names = append(*names, name)
		}
	}
	if !narrowed {
		return len(groups) == 0, scope, nil
	}
	var at []string
	for _, p := range providers {
		switch {
		case p.Type != typeAccessGroup || p.MustBeListed:
			return false, Scope{}, unsupported(adapters.ReasonUnknownProvider, "BIG-IQ knows a provider only as the access groups it is mapped to")
		case checkName(p.Name) != nil:
			return false, Scope{}, unsupported(adapters.ReasonUnknownProvider, "%q cannot be the name of an access group", p.Name)
		case !slices.Contains(at, p.Name):
			at = append(at, p.Name)
		}
	}
	if len(groups) == 0 {
		return false, Scope{AccessGroups: at}, nil
	}
	// The sessions of access groups "at" that are also in scope. The lists of a request add up, so that a cluster or a
	// device cannot be narrowed to an access group; unless all of "at" is in scope anyway.
	both := slices.DeleteFunc(slices.Clone(at), func(name string) bool { return !slices.Contains(scope.AccessGroups, name) })
	if len(both) < len(at) && len(scope.Clusters)+len(scope.Devices) > 0 {
		return false, Scope{}, unsupported("", "BIG-IQ cannot narrow a cluster or a device to an access group")
	}
	return false, Scope{AccessGroups: both}, nil
}

func unsupported(why adapters.Reason, format string, args ...any) error {
	e := adapters.Errorf(adapters.Unsupported, format, args...)
	e.Why = why
	return e
}

// reach is where a target's sessions are looked for when the selector does not narrow it.
type reach struct {
	scope    Scope
	discover bool
}

// need is what must be known of the BIG-IQ before the tasks can be written.
type need struct {
	accessGroups bool
	// addresses are those of the only devices that matter; nil means all devices.
	addresses []string
}

// maxFilter is how many addresses are looked up with a filter; for more, all devices are listed.
const maxFilter = 32

func needs(ds []demand, r reach) need {
	scopes := []Scope{}
	all := false
	for _, d := range ds {
		switch {
		case d.everywhere || d.sessions != nil:
			scopes = append(scopes, r.scope)
			all = all || r.discover
		default:
			scopes = append(scopes, d.scope)
		}
	}
	n := need{}
	for _, s := range scopes {
		n.accessGroups = n.accessGroups || len(s.AccessGroups) > 0
		all = all || len(s.AccessGroups)+len(s.Clusters) > 0
		for _, name := range s.Devices {
			all = all || !isAddress(name)
			if !slices.Contains(n.addresses, name) {
				n.addresses = append(n.addresses, name)
			}
		}
	}
	if all || len(n.addresses) > maxFilter {
		n.addresses = nil
	}
	return n
}

// device is one BIG-IP that BIG-IQ manages.
type device struct {
	MachineID, Hostname, Address string
	// Link is the device reference.
	Link string
	// State is that of the trust between BIG-IQ and the device, not its role in a cluster.
	State string
	// Cluster and AccessGroup are empty if there is none.
	Cluster, AccessGroup string
	// Access: the Access service was discovered. Imported: its configuration was imported, too.
	Access, Imported bool
}

// named reports whether the configuration's or a caller's name means d.
func (d device) named(name string) bool {
	name = deviceName(name)
	return name == d.MachineID || name == d.Address || strings.EqualFold(name, d.Hostname)
}

// inventory is what BIG-IQ manages, as far as it was asked for.
type inventory struct {
	devices      []device
	accessGroups []string
}

// place is a scope of which every name was found in the inventory.
type place struct {
	clusters, accessGroups []string
	devices                []device
	warnings               []adapters.Warning
}

// find looks up every name of a scope. Unknown ones are [adapters.Rejected]: BIG-IQ would end nothing and call it success.
func (inv inventory) find(s Scope) (place, error) {
	var p place
	var unknown []string
	for _, name := range s.Clusters {
		members := inv.where(func(d device) bool { return d.Cluster == name })
		switch {
		case len(members) == 0:
			unknown = append(unknown, fmt.Sprintf("cluster %q", name))
		case !slices.ContainsFunc(members, func(d device) bool { return d.Access }):
			p.warn(adapters.WarnScopeIncomplete, "BIG-IQ has not discovered the Access service on any unit of cluster %q", name)
		}
		p.clusters = add(p.clusters, name)
	}
	for _, name := range s.AccessGroups {
		members := inv.where(func(d device) bool { return d.AccessGroup == name })
		switch {
		case !slices.Contains(inv.accessGroups, name):
			unknown = append(unknown, fmt.Sprintf("access group %q", name))
		case !slices.ContainsFunc(members, func(d device) bool { return d.Access && d.Imported }):
			p.warn(adapters.WarnScopeIncomplete, "BIG-IQ has imported the access configuration of no device of access group %q", name)
		case slices.ContainsFunc(members, func(d device) bool { return !d.Access || !d.Imported }):
			p.warn(adapters.WarnScopeIncomplete, "BIG-IQ has not imported the access configuration of every device of access group %q", name)
		}
		p.accessGroups = add(p.accessGroups, name)
	}
	for _, name := range s.Devices {
		found := inv.where(func(d device) bool { return d.named(name) })
		if len(found) != 1 {
			what := fmt.Sprintf("device %q", name)
			if len(found) > 1 {
				what += fmt.Sprintf(" (%d have that name)", len(found))
			}
			unknown = append(unknown, what)
			continue
		}
		p.addDevice(found[0])
	}
	if len(unknown) > 0 {
		e := adapters.Errorf(adapters.Rejected, "BIG-IQ does not know %s", strings.Join(unknown, ", "))
		e.Why = adapters.ReasonUnknownScope
		return place{}, e
	}
	return p, nil
}

// discover is every place with the Access service: clusters as such, because one must not address their units, and
// single devices.
func (inv inventory) discover() (place, error) {
	var p place
	for _, d := range inv.devices {
		switch {
		case !d.Access:
		case d.Cluster != "":
			p.clusters = add(p.clusters, d.Cluster)
		default:
			p.addDevice(d)
		}
	}
	if len(p.clusters)+len(p.devices) == 0 {
		e := adapters.Errorf(adapters.Rejected, "BIG-IQ lists no BIG-IP with a discovered Access service")
		e.Why = adapters.ReasonUnknownScope
		return place{}, e
	}
	slices.Sort(p.clusters)
	return p, nil
}

func (inv inventory) reached(r reach) (place, error) {
	if r.discover {
		return inv.discover()
	}
	return inv.find(r.scope)
}

func (inv inventory) where(f func(device) bool) []device {
	return slices.DeleteFunc(slices.Clone(inv.devices), func(d device) bool { return !f(d) })
}

func (p *place) addDevice(d device) {
	if slices.ContainsFunc(p.devices, func(x device) bool { return x.MachineID == d.MachineID }) {
		return
	}
	p.devices = append(p.devices, d)
	if d.Cluster != "" {
		p.warn(adapters.WarnPassiveDevice, "device %s belongs to cluster %q: while it is the passive unit, BIG-IQ ends nothing and reports success",
			d.MachineID, d.Cluster)
	}
	if !d.Access {
		p.warn(adapters.WarnScopeIncomplete, "BIG-IQ has not discovered the Access service on device %s", d.MachineID)
	}
}

func (p *place) warn(code adapters.Reason, format string, args ...any) {
	p.warnings = append(p.warnings, adapters.Warning{Code: code, Message: fmt.Sprintf(format, args...)})
}

// holds reports whether a device's sessions are in the place.
func (p place) holds(d device) bool {
	return d.Cluster != "" && slices.Contains(p.clusters, d.Cluster) ||
		d.AccessGroup != "" && slices.Contains(p.accessGroups, d.AccessGroup) ||
		slices.ContainsFunc(p.devices, func(x device) bool { return x.MachineID == d.MachineID })
}

// covered is the place in BIG-IQ's words.
func (p place) covered() []string {
	var words []string
	for _, name := range p.clusters {
		words = append(words, "cluster "+name)
	}
	for _, name := range p.accessGroups {
		words = append(words, "access group "+name)
	}
	for _, d := range p.devices {
		words = append(words, "device "+d.MachineID)
	}
	return words
}

func (p place) union() union {
	u := union{AccessGroupNames: p.accessGroups, ClusterNames: p.clusters}
	for _, d := range p.devices {
		u.DeviceReferences = append(u.DeviceReferences, reference{Link: d.Link})
	}
	return u
}

// kill is one task, ready to be sent.
type kill struct {
	// body is a [killByUser], a [killAll] or a [killListed].
	body     any
	summary  string
	covered  []string
	warnings []adapters.Warning
}

// compile writes the task for one demand.
func compile(d demand, r reach, inv inventory) (kill, error) {
	if d.sessions != nil {
		return compileListed(d.sessions, r, inv)
	}
	var p place
	var err error
	if d.everywhere {
		p, err = inv.reached(r)
	} else {
		p, err = inv.find(d.scope)
	}
	if err != nil {
		return kill{}, err
	}
	k := kill{covered: p.covered(), warnings: p.warnings}
	in := strings.Join(k.covered, ", ")
	if d.user == "" {
		k.summary = "end ALL sessions in " + in
		k.body, err = newKillAll(p.union())
	} else {
		k.summary = fmt.Sprintf("end every session of user %q in %s", d.user, in)
		k.body, err = newKillByUser(d.user, p.union())
	}
	return k, err
}

func compileListed(keys []adapters.SessionKey, r reach, inv inventory) (kill, error) {
	p, err := inv.reached(r)
	if err != nil {
		return kill{}, err
	}
	var k kill
	var on place
	ids := map[string][]string{}
	for _, key := range keys {
		found := inv.where(func(d device) bool { return d.MachineID == key.Device })
		if len(found) != 1 || !p.holds(found[0]) {
			e := adapters.Errorf(adapters.Rejected, "device %q is not in this target's scope", key.Device)
			e.Why = adapters.ReasonDeviceOutOfScope
			return kill{}, e
		}
		on.addDevice(found[0])
		ids[key.Device] = append(ids[key.Device], key.ID)
	}
	var lists []sessionsOn
	var words []string
	for _, d := range on.devices {
		lists = append(lists, sessionsOn{DeviceReference: reference{Link: d.Link}, SessionIDs: ids[d.MachineID]})
		words = append(words, fmt.Sprintf("%s on device %s", strings.Join(ids[d.MachineID], ", "), d.MachineID))
	}
	k.summary = "end the sessions " + strings.Join(words, "; ")
	k.covered, k.warnings = on.covered(), on.warnings
	k.body, err = newKillListed(lists)
	return k, err
}

// add appends a name unless it is there.
func add(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}
