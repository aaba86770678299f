package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/config/strictyaml"
)

// LDAP is a directory in LDAP servers.
type LDAP struct {
	// URLs are the servers, the preferred one first: ldaps://host, or ldap://host with start_tls or on loopback, perhaps
	// with a port. At least one.
	URLs []string `yaml:"urls"`
	// StartTLS secures connections to ldap:// URLs.
	StartTLS bool `yaml:"start_tls,omitempty"`
	// CAFile is a PEM file with the authorities that vouch for the servers. Absent: the system's.
	CAFile string `yaml:"ca_file,omitempty"`
	// BindDN is the account that asks, as the server wants it for a simple bind: a DN, or a name as Active Directory takes
	// it. Absent, like the password: nobody (anonymous).
	BindDN string `yaml:"bind_dn,omitempty"`
	// Password is the account's.
	Password secret.String `yaml:"password,omitempty"`
	// Timeout bounds each request to a server, 1s to 1m. Default: 5s.
	Timeout Duration `yaml:"timeout"`
	// Cache is how old an answer may be that is used again, at most 10m; 0s asks every time. Default: 30s.
	Cache Age `yaml:"cache"`
	// PageSize is how many entries a server is asked for at a time, 1 to 10000: not more than it gives. Default: 500.
	PageSize int `yaml:"page_size"`
	// User says which entries are people.
	User LDAPUser `yaml:"user"`
	// Group says which entries are groups. Absent: no group can be mapped to the directory.
	Group *LDAPGroup `yaml:"group,omitempty"`
}

// LDAPUser says which entries are people, and what is read of them.
type LDAPUser struct {
	// Base is the DN below which people are.
	Base string `yaml:"base"`
	// Filter is what an entry must match to be a person. Default: (objectClass=person).
	Filter string `yaml:"filter"`
	// ID is the attribute that holds the id callers give. Default: uid.
	ID string `yaml:"id"`
	// IgnoreCase takes an entry whose id differs from the given one in the case of its letters; user.id is then the
	// directory's. Default: false: it must be the same, byte for byte.
	IgnoreCase bool `yaml:"ignore_case,omitempty"`
	// Email is the attribute that holds the e-mail address. Default: mail.
	Email string `yaml:"email"`
	// Attributes maps names, as expressions use them in user.attributes, to the LDAP attributes that hold the values.
	Attributes map[string]string `yaml:"attributes,omitempty"`
}

// LDAPGroup says which entries are groups, and how they name their members.
type LDAPGroup struct {
	// Base is the DN below which groups are.
	Base string `yaml:"base"`
	// Filter is what an entry must match to be a group. Default:
	// (|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup)(objectClass=group)).
	Filter string `yaml:"filter"`
	// Name is the attribute that holds the names by which the targets' groups refer to the directory's. Absent: they do so
	// by DN.
	Name string `yaml:"name,omitempty"`
	// Members says how membership is stored: member, uniqueMember, memberUid or memberOf. Default: member.
	Members LDAPMembers `yaml:"members"`
	// Nested is how many levels of groups within groups are looked into, 0 to 20; a group that goes deeper is an error, and
	// 0 leaves groups within groups alone. Default: 5, and 0 for memberUid.
	Nested *int `yaml:"nested"`
}

// LDAPMembers says how a directory stores membership.
type LDAPMembers string

// The forms of membership.
const (
	LDAPMember       LDAPMembers = "member"
	LDAPUniqueMember LDAPMembers = "uniqueMember"
	LDAPMemberUID    LDAPMembers = "memberUid"
	LDAPMemberOf     LDAPMembers = "memberOf"
)

// UnmarshalText reads one of the forms.
func (m *LDAPMembers) UnmarshalText(text []byte) error {
	switch x := LDAPMembers(text); x {
	case LDAPMember, LDAPUniqueMember, LDAPMemberUID, LDAPMemberOf:
		*m = x
		return nil
	}
	return errors.New("want member, uniqueMember, memberUid or memberOf")
}

// Age is a time span that may be zero, written like a [Duration], or as "0s".
type Age time.Duration

// UnmarshalText reads a time span.
func (a *Age) UnmarshalText(text []byte) error {
	if string(text) == "0s" {
		*a = 0
		return nil
	}
	return (*Duration)(a).UnmarshalText(text)
}

// String writes the time span as it is read.
func (a Age) String() string {
	if a == 0 {
		return "0s"
	}
	return Duration(a).String()
}

// MarshalYAML writes the time span as it is read.
func (a Age) MarshalYAML() (any, error) { return a.String(), nil }

// Defaults and bounds of a directory.
const (
	DefaultLDAPTimeout  = Duration(5 * time.Second)
	DefaultLDAPCache    = Age(30 * time.Second)
	DefaultLDAPPageSize = 500
	DefaultLDAPNested   = 5

	minLDAPTimeout  = Duration(time.Second)
	maxLDAPTimeout  = Duration(time.Minute)
	maxLDAPCache    = Age(10 * time.Minute)
	maxLDAPPageSize = 10_000
	maxLDAPNested   = 20
)

// SetDefaults implements [strictyaml.Defaulter].
func (l *LDAP) SetDefaults() {
	l.Timeout, l.Cache, l.PageSize = DefaultLDAPTimeout, DefaultLDAPCache, DefaultLDAPPageSize
	l.User.SetDefaults()
}

// SetDefaults implements [strictyaml.Defaulter].
func (u *LDAPUser) SetDefaults() { u.Filter, u.ID, u.Email = "(objectClass=person)", "uid", "mail" }

// SetDefaults implements [strictyaml.Defaulter].
func (g *LDAPGroup) SetDefaults() {
	g.Filter = "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup)(objectClass=group))"
	g.Members = LDAPMember
}

// ldap checks the section; it is what directory.ldap holds.
func (p *parser) ldap(key, n *yaml.Node, l *LDAP) {
	const path = "directory.ldap"
	if n.Kind != yaml.MappingNode {
		return
	}
	if urls := p.required(n, path, "urls"); urls != nil && !p.Reported(path+".urls") && len(l.URLs) == 0 {
		p.Problemf(urls.Line, path+".urls", "want at least one")
	}
	user := p.required(n, path, "user")
	if user != nil && user.Kind == yaml.MappingNode {
		p.required(user, path+".user", "base")
	}
	if _, group := strictyaml.Lookup(n, "group"); group != nil && group.Kind == yaml.MappingNode {
		p.required(group, path+".group", "base")
	}
	if l.Group != nil && l.Group.Nested == nil {
		levels := DefaultLDAPNested
		if l.Group.Members == LDAPMemberUID {
			levels = 0
		}
		l.Group.Nested = &levels
	}
	if user != nil && !p.Broken(n) {
		p.report(l.validate(), l, key, n, path)
	}
}

// validate returns what is wrong, each beginning with the key it concerns.
func (l *LDAP) validate() error {
	var errs []error
	note := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	secured := false
	for i, text := range l.URLs {
		key := fmt.Sprintf("urls[%d]", i)
		tls, err := l.checkURL(text)
		secured = secured || tls
		switch {
		case err != nil:
			note(key, err)
		case slices.Index(l.URLs, text) < i:
			note(key, errors.New("given twice"))
		}
	}
	if l.CAFile != "" && !secured && len(l.URLs) > 0 {
		note("ca_file", errors.New("no connection is secured by TLS: use ldaps:// or start_tls"))
	}
	switch account := strings.TrimSpace(l.BindDN) != ""; {
	case account && l.Password.IsZero():
		note("bind_dn", errors.New("wants a password"))
	case !account && !l.Password.IsZero():
		note("password", errors.New("wants bind_dn, whose it is"))
	}
	note("timeout", within(l.Timeout, minLDAPTimeout, maxLDAPTimeout))
	if l.Cache > maxLDAPCache {
		note("cache", fmt.Errorf("want at most %v", maxLDAPCache))
	}
	if l.PageSize < 1 || l.PageSize > maxLDAPPageSize {
		note("page_size", fmt.Errorf("want 1 to %d", maxLDAPPageSize))
	}
	note("user.base", checkDN(l.User.Base))
	note("user.filter", checkFilter(l.User.Filter))
	note("user.id", checkAttribute(l.User.ID))
	note("user.email", checkAttribute(l.User.Email))
	for _, name := range slices.Sorted(maps.Keys(l.User.Attributes)) {
		if strings.TrimSpace(name) == "" {
			note("user.attributes", errors.New("an attribute without a name"))
		}
		note(strictyaml.Join("user.attributes", name), checkAttribute(l.User.Attributes[name]))
	}
	if g := l.Group; g != nil {
		note("group.base", checkDN(g.Base))
		note("group.filter", checkFilter(g.Filter))
		if g.Name != "" {
			note("group.name", checkAttribute(g.Name))
		}
		switch levels := *g.Nested; {
		case levels < 0 || levels > maxLDAPNested:
			note("group.nested", fmt.Errorf("want 0 to %d", maxLDAPNested))
		case levels > 0 && g.Members == LDAPMemberUID:
			note("group.nested", errors.New("groups with memberUid do not nest; want 0"))
		}
	}
	return errors.Join(errs...)
}

// checkURL checks a server's URL, and tells whether TLS secures the connection.
func (l *LDAP) checkURL(text string) (secured bool, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.Hostname() == "" {
		return false, errors.New("want ldaps://host or ldap://host")
	}
	if u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return false, errors.New("want a host, perhaps with a port, and nothing else")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false, errors.New("want a port from 1 to 65535")
		}
	}
	ip := net.ParseIP(u.Hostname())
	switch {
	case u.Scheme == "ldaps" && l.StartTLS:
		return true, errors.New("start_tls is for ldap:// URLs; ldaps:// has TLS from the start")
	case u.Scheme == "ldap" && !l.StartTLS && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()):
		return false, errors.New("whoever is on the way could say who is signed out: use ldaps:// or start_tls")
	}
	return u.Scheme == "ldaps" || l.StartTLS, nil
}

// within checks a time span's bounds.
func within(d, least, most Duration) error {
	if d < least || d > most {
		return fmt.Errorf("want %v to %v", least, most)
	}
	return nil
}

func checkDN(text string) error {
	if dn, err := ldap.ParseDN(text); err != nil || len(dn.RDNs) == 0 {
		return errors.New("want a DN, such as ou=people,dc=example,dc=com")
	}
	return nil
}

func checkFilter(text string) error {
	if _, err := ldap.CompileFilter(text); err != nil {
		return errors.New("want a filter, such as (objectClass=person)")
	}
	return nil
}

var attributeName = regexp.MustCompile(`^(?:[A-Za-z][A-Za-z0-9-]*|\d+(?:\.\d+)+)$`)

func checkAttribute(name string) error {
	if !attributeName.MatchString(name) {
		return errors.New("want the name of an LDAP attribute")
	}
	return nil
}
