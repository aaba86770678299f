package element

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
	"github.com/endsession/endsession/adapters/secret"
)

// Type describes Element clusters to the registry.
func Type() adapters.Type {
	return adapters.Type{
		Kind: "element",
		Criteria: []adapters.Criteria{
			adapters.ByUser, adapters.ByProvider, adapters.ByGroup,
			adapters.ByUser | adapters.ByProvider, adapters.ByUser | adapters.ByGroup,
			adapters.ByProvider | adapters.ByGroup, adapters.ByUser | adapters.ByProvider | adapters.ByGroup,
			adapters.BySessions, adapters.All,
		},
		// Element's third-party identity providers speak SAML 2.0, so there is no default for oidc.
		DefaultProviders: map[string][]adapters.Provider{
			"local": {{Type: MethodCluster}},
			"ldap":  {{Type: MethodLdap}},
			"saml":  {{Type: MethodIdp}},
		},
		ListsSessions: true,
		NewConfig:     func() adapters.Config { return new(Config) },
		NewProviders:  func() adapters.ProviderMapping { return new(ProviderMapping) },
		NewGroups:     func() adapters.GroupMapping { return new(GroupMapping) },
	}
}

// Config is the element section of a target.
type Config struct {
	// URL is the cluster's management virtual address (MVIP): https://mvip.example. The API's path and version are
	// negotiated, not configured.
	URL string `yaml:"url"`
	// Username is that of a cluster administrator with administrator access, sent by HTTP Basic with every request.
	Username string `yaml:"username"`
	// Password is the administrator's.
	Password secret.String `yaml:"password"`

	httpclient.TLSConfig `yaml:",inline"`
}

// Validate reports every problem.
func (c *Config) Validate() error {
	var errs []error
	if _, err := c.base(); err != nil {
		errs = append(errs, err)
	}
	switch {
	case strings.TrimSpace(c.Username) == "":
		errs = append(errs, errors.New("username: required"))
	case strings.Contains(c.Username, ":"):
		// HTTP Basic ends the name at the first colon: the rest would become part of the password.
		errs = append(errs, errors.New("username: holds a colon, which HTTP Basic cannot carry"))
	}
	if c.Password.IsZero() {
		errs = append(errs, errors.New("password: required"))
	}
	if err := c.TLSConfig.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// nodePort is where a single node's API listens; a cluster's is 443.
const nodePort = "442"

// base returns the URL in canonical form, without the default port.
func (c *Config) base() (*url.URL, error) {
	u, err := httpclient.ParseURL(c.URL)
	switch {
	case err != nil:
		return nil, err
	case u.Port() == nodePort:
		return nil, errors.New("url: port 442 is the API of a single node, which knows no sessions; give the cluster's management virtual IP (MVIP), port 443")
	case u.Path != "":
		return nil, fmt.Errorf("url: holds a path; give only https://%s (the path /json-rpc/<version> is negotiated)", u.Host)
	}
	if u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80" {
		u.Host = u.Hostname()
		if ip := net.ParseIP(u.Host); ip != nil && ip.To4() == nil {
			u.Host = "[" + u.Host + "]"
		}
	}
	u.Path, u.RawPath = "", ""
	return u, nil
}

// Endpoint is the URL without default port.
func (c *Config) Endpoint() string {
	u, err := c.base()
	if err != nil {
		return ""
	}
	return u.String()
}

// Account is the configured user name.
func (c *Config) Account() string { return c.Username }

// Open makes the adapter.
func (c *Config) Open(deps adapters.Deps) (adapters.Adapter, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return New(*c, deps)
}

// ProviderMapping is what a target writes under providers.<type>: a list of authentication methods, as
// {type: Cluster} or plain Cluster.
type ProviderMapping []Method

// Method is one of Element's authentication methods: Cluster, Ldap or Idp, in any case.
type Method struct {
	// Type is the method's name: Cluster, Ldap or Idp, in any case.
	Type string `yaml:"type"`
}

// UnmarshalYAML accepts a plain word for the mapping with the one key type.
func (m *Method) UnmarshalYAML(unmarshal func(any) error) error {
	if err := unmarshal(&m.Type); err == nil {
		return nil
	}
	m.Type = ""
	type plain Method
	return unmarshal((*plain)(m))
}

// Providers returns the methods in their canonical spelling, each once.
func (m *ProviderMapping) Providers() ([]adapters.Provider, error) {
	if len(*m) == 0 {
		return nil, errors.New("want at least one of Cluster, Ldap, Idp")
	}
	var ps []adapters.Provider
	for _, x := range *m {
		method, ok := writtenMethod(x.Type)
		if !ok {
			return nil, fmt.Errorf("unknown authentication method %q: want Cluster, Ldap or Idp", x.Type)
		}
		ps = append(ps, adapters.Provider{Type: method})
	}
	return adapters.Intersect(ps, ps), nil
}

// GroupMapping is what a target writes under groups.<name>. A session belongs to the group if any of the entries says
// so.
type GroupMapping struct {
	// AccessGroups are privileges that a session carries: administrator, read, drives, ….
	AccessGroups []string `yaml:"access_groups,omitempty"`
	// ClusterAdminIDs are ids of cluster administrators. The id of an LDAP group or of an identity provider's attribute
	// stands for everybody who has it.
	ClusterAdminIDs []int64 `yaml:"cluster_admin_ids,omitempty"`
}

// The kinds of group that Element knows.
const (
	// GroupAccess names a privilege in a session's accessGroupList.
	GroupAccess = "access_group"
	// GroupClusterAdmin names, in decimal, one of a session's clusterAdminIDs.
	GroupClusterAdmin = "cluster_admin_id"
)

// Groups returns the groups, access groups first.
func (m *GroupMapping) Groups() ([]adapters.Group, error) {
	if len(m.AccessGroups)+len(m.ClusterAdminIDs) == 0 {
		return nil, errors.New("want access_groups or cluster_admin_ids")
	}
	var gs []adapters.Group
	for _, name := range m.AccessGroups {
		if strings.TrimSpace(name) == "" {
			return nil, errors.New("access_groups: holds an empty name")
		}
		gs = append(gs, adapters.Group{Kind: GroupAccess, Name: name})
	}
	for _, id := range m.ClusterAdminIDs {
		if id <= 0 {
			return nil, fmt.Errorf("cluster_admin_ids: %d is not a positive number", id)
		}
		gs = append(gs, adapters.Group{Kind: GroupClusterAdmin, Name: strconv.FormatInt(id, 10)})
	}
	return gs, nil
}
