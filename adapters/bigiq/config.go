package bigiq

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
	"github.com/endsession/endsession/adapters/secret"
)

// Kind is the key of a BIG-IQ in a target's configuration, and its kind in the API.
const Kind = "bigiq"

// Type describes BIG-IQ targets.
func Type() adapters.Type {
	return adapters.Type{
		Kind: Kind,
		Criteria: []adapters.Criteria{
			adapters.ByUser,
			adapters.ByProvider,
			adapters.ByGroup,
			adapters.ByUser | adapters.ByProvider,
			adapters.ByUser | adapters.ByGroup,
			adapters.ByProvider | adapters.ByGroup,
			adapters.ByUser | adapters.ByProvider | adapters.ByGroup,
			adapters.BySessions,
			adapters.All,
		},
		NewConfig:    func() adapters.Config { return new(Config) },
		NewProviders: func() adapters.ProviderMapping { return new(ProviderMapping) },
		NewGroups:    func() adapters.GroupMapping { return new(GroupMapping) },
	}
}

// Config is what a target writes under "bigiq".
type Config struct {
	// URL is the management address of the BIG-IQ, without "/mgmt".
	URL string `yaml:"url"`
	// Username is an account with the role Access Manager.
	Username string `yaml:"username"`
	// Password is the account's.
	Password secret.String `yaml:"password"`
	// TLSConfig says whom to trust; a BIG-IQ usually has a certificate of its own making.
	httpclient.TLSConfig `yaml:",inline"`
	// LoginProvider names the authentication provider that knows the account, as BIG-IQ lists it, or is the link of its
	// login; empty for BIG-IQ's local accounts.
	LoginProvider string `yaml:"login_provider,omitempty"`
	// Basic sends the password with every request instead of logging in for a token. BIG-IQ refuses that unless an
	// administrator has switched it on.
	Basic bool `yaml:"basic,omitempty"`
	// Scope is where a user's sessions, or all sessions, are ended.
	Scope ScopeConfig `yaml:"scope,omitempty"`
	// Discover is the same as discover within Scope.
	Discover bool `yaml:"discover,omitempty"`
}

// ScopeConfig is the reach of a target: the sessions that are in any of these. BIG-IQ knows no "everywhere".
type ScopeConfig struct {
	Scope `yaml:",inline"`
	// Discover takes every BIG-IP whose Access service BIG-IQ has discovered, at the time of the kill.
	Discover bool `yaml:"discover,omitempty"`
}

// Scope is a union: a session is in it when its device is in one of the clusters, in one of the access groups, or listed.
type Scope struct {
	// Clusters are BIG-IP clusters as BIG-IQ names them.
	Clusters []string `yaml:"clusters,omitempty"`
	// AccessGroups are access configuration groups. Their devices' access configuration must have been imported.
	AccessGroups []string `yaml:"access_groups,omitempty"`
	// Devices are BIG-IPs by machine id, by reference (the link that ends in it), by address or by host name. Do not list
	// a unit of a cluster: while it is the passive one, nothing ends and BIG-IQ reports success.
	Devices []string `yaml:"devices,omitempty"`
}

func (s Scope) empty() bool { return len(s.Clusters)+len(s.AccessGroups)+len(s.Devices) == 0 }

// validate reports every problem. The prefix leads to the keys.
func (s Scope) validate(prefix string) []error {
	var errs []error
	for _, l := range []struct {
		key   string
		names []string
		check func(string) error
	}{
		{"clusters", s.Clusters, checkName}, {"access_groups", s.AccessGroups, checkName}, {"devices", s.Devices, checkDevice},
	} {
		seen := map[string]bool{}
		for _, name := range l.names {
			switch err := l.check(name); {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s%s: %w", prefix, l.key, err))
			case seen[name]:
				errs = append(errs, fmt.Errorf("%s%s: %q comes twice", prefix, l.key, name))
			}
			seen[name] = true
		}
	}
	return errs
}

// checkName checks the name of a cluster or an access group, or a session id.
func checkName(name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return errors.New("empty name")
	case strings.Contains(name, "*"):
		return fmt.Errorf("%q: wildcards are not supported", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("%q is not UTF-8", name)
	}
	return nil
}

// deviceWord is what machine ids, addresses and host names consist of: nothing that means something in a $filter.
var deviceWord = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,253}$`)

// checkDevice checks what names a device.
func checkDevice(name string) error {
	if !deviceWord.MatchString(deviceName(name)) {
		return fmt.Errorf("%q is not a machine id, a reference, an address or a host name", name)
	}
	return nil
}

// deviceName takes the machine id out of a device reference; everything else is returned as it is.
func deviceName(name string) string {
	u, err := url.Parse(name)
	if err != nil || u.Scheme == "" || u.RawQuery != "" || u.Fragment != "" {
		return name
	}
	if id, ok := strings.CutPrefix(u.EscapedPath(), pathDevices+"/"); ok && deviceWord.MatchString(id) {
		return id
	}
	return name
}

// isAddress reports whether a device is named by address, which the resolver can filter by.
func isAddress(name string) bool {
	a, err := netip.ParseAddr(name)
	return err == nil && a.Zone() == ""
}

// reach is the configured scope and whether it is to be discovered.
func (c *Config) reach() reach {
	return reach{scope: c.Scope.Scope, discover: c.Discover || c.Scope.Discover}
}

// Validate returns every problem, joined.
func (c *Config) Validate() error {
	var errs []error
	if _, err := httpclient.ParseURL(c.URL); err != nil {
		errs = append(errs, err)
	}
	if strings.TrimSpace(c.Username) == "" {
		errs = append(errs, errors.New("username: required"))
	}
	if c.Basic && strings.Contains(c.Username, ":") {
		errs = append(errs, errors.New("username: HTTP Basic authentication allows no colon"))
	}
	if c.Password.IsZero() {
		errs = append(errs, errors.New("password: required"))
	}
	if err := c.TLSConfig.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Basic && c.LoginProvider != "" {
		errs = append(errs, errors.New("basic: cannot be combined with login_provider"))
	}
	if c.LoginProvider != "" && strings.TrimSpace(c.LoginProvider) == "" {
		errs = append(errs, errors.New("login_provider: empty name"))
	}
	errs = append(errs, c.Scope.validate("scope.")...)
	switch r := c.reach(); {
	case r.scope.empty() && !r.discover:
		errs = append(errs, errors.New("scope: required: name clusters, access_groups or devices, or say discover: true"))
	case !r.scope.empty() && r.discover:
		errs = append(errs, errors.New("scope: name clusters, access_groups and devices, or say discover: true, not both"))
	}
	return errors.Join(errs...)
}

// Endpoint is the base URL in its canonical form.
func (c *Config) Endpoint() string {
	u, err := httpclient.ParseURL(c.URL)
	if err != nil {
		return c.URL
	}
	return u.String()
}

// Account is the user name at BIG-IQ.
func (c *Config) Account() string { return c.Username }

// Open makes the adapter.
func (c *Config) Open(deps adapters.Deps) (adapters.Adapter, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return open(*c, deps)
}

// ProviderMapping says which access groups a provider of the API stands for.
type ProviderMapping struct {
	// AccessGroups are the names of access configuration groups in BIG-IQ.
	AccessGroups []string `yaml:"access_groups"`
}

// Providers returns the access groups as providers.
func (m *ProviderMapping) Providers() ([]adapters.Provider, error) {
	s := Scope{AccessGroups: m.AccessGroups}
	if s.empty() {
		return nil, errors.New("access_groups: want at least one")
	}
	if err := errors.Join(s.validate("")...); err != nil {
		return nil, err
	}
	var ps []adapters.Provider
	for _, name := range m.AccessGroups {
		ps = append(ps, adapters.Provider{Type: typeAccessGroup, Name: name})
	}
	return ps, nil
}

// GroupMapping says which sessions a group of the API stands for: those in any of these.
type GroupMapping struct {
	Scope `yaml:",inline"`
}

// Groups returns access groups, clusters and devices as groups. A device reference becomes its machine id.
func (m *GroupMapping) Groups() ([]adapters.Group, error) {
	if m.empty() {
		return nil, errors.New("access_groups, clusters or devices: required")
	}
	if err := errors.Join(m.validate("")...); err != nil {
		return nil, err
	}
	var gs []adapters.Group
	for _, name := range m.AccessGroups {
		gs = append(gs, adapters.Group{Kind: kindAccessGroup, Name: name})
	}
	for _, name := range m.Clusters {
		gs = append(gs, adapters.Group{Kind: kindCluster, Name: name})
	}
	for _, name := range m.Devices {
		gs = append(gs, adapters.Group{Kind: kindDevice, Name: deviceName(name)})
	}
	return gs, nil
}
