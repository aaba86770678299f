package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/server/config/strictyaml"
)

// Auth says how callers prove who they are: by at least one of the three.
type Auth struct {
	// APIKeys are the callers that have keys; see "endsession key new".
	APIKeys []APIKey `yaml:"api_keys,omitempty"`
	// OIDC are the OpenID providers whose tokens are accepted.
	OIDC []OIDC `yaml:"oidc,omitempty"`
	// MTLS accepts client certificates of the authorities in listen.tls.client_ca_file.
	MTLS MTLS `yaml:"mtls,omitempty"`
}

// LetsIn reports whether there is any way to prove who one is.
func (a *Auth) LetsIn() bool {
	return a != nil && (len(a.APIKeys) > 0 || len(a.OIDC) > 0 || a.MTLS.Enabled)
}

// APIKey is a caller and the hashes of its keys: usually one, two while a key is replaced.
type APIKey struct {
	// Name is the caller's, as policies and the audit know it.
	Name string `yaml:"name"`
	// SHA256 are the hashes of keys that do not expire.
	SHA256 []KeyHash `yaml:"sha256,omitempty,flow"`
	// Keys are keys that expire.
	Keys []ExpiringKey `yaml:"keys,omitempty,flow"`
}

// ExpiringKey is a key with an end.
type ExpiringKey struct {
	// SHA256 is the key's hash.
	SHA256 KeyHash `yaml:"sha256"`
	// NotAfter is when the key ends: a time, "2027-01-31T12:00:00Z", or a date, "2027-01-31", whose last moment in UTC it is.
	NotAfter Moment `yaml:"not_after"`
}

// OIDC is an OpenID provider whose tokens are accepted.
type OIDC struct {
	// Issuer is the provider's URL, exactly as it is in its tokens. Keys are found from there by discovery.
	Issuer string `yaml:"issuer"`
	// Alias goes before the names of its callers, "alias/name": lower-case letters, digits and hyphens. Required if there
	// are several providers, for a name at one is somebody else at another.
	Alias string `yaml:"alias,omitempty"`
	// Audience is whom tokens must be for, or a list of which one is enough.
	Audience Texts `yaml:"audience,flow"`
	// Algorithms are those that tokens may be signed with. Default: [RS256, ES256, PS256, EdDSA].
	Algorithms []string `yaml:"algorithms,omitempty,flow"`
	// NameClaim is the claim that names the caller. Default: sub.
	NameClaim string `yaml:"name_claim"`
	// GroupsClaim is the claim that lists the caller's groups, or a path to it with dots. Default: groups.
	GroupsClaim string `yaml:"groups_claim"`
	// RequiredClaims are claims that a token must have, each with the value or one of the values.
	RequiredClaims map[string]Texts `yaml:"required_claims,omitempty"`
	// MaxAge is how long ago a token may have been issued. Default: no limit but its expiry.
	MaxAge Duration `yaml:"max_age,omitempty"`
	// CAFile is a PEM file of the authorities trusted for the provider's own certificate, instead of the system's.
	CAFile string `yaml:"ca_file,omitempty"`

	// Where is the entry's place in the file, for messages.
	Where string `yaml:"-"`
}

// SetDefaults implements [strictyaml.Defaulter].
func (o *OIDC) SetDefaults() { o.NameClaim, o.GroupsClaim = "sub", "groups" }

// MTLS says whether client certificates are accepted, and which of their names is the caller's. It is written as a
// truth value, or as a mapping with the key name.
type MTLS struct {
	Enabled bool
	// Name is subject (the whole distinguished name), cn, dns, email or spiffe. Default: subject.
	Name string
}

// mtlsMapping is the long form of [MTLS].
type mtlsMapping struct {
	// Name is which of a certificate's names is the caller's: subject (the whole distinguished name), cn, dns, email or
	// spiffe. With just true it is subject.
	Name string `yaml:"name"`
}

// Forms implements [Former].
func (MTLS) Forms() []any { return []any{false, mtlsMapping{}} }

var certificateNames = []string{"subject", "cn", "dns", "email", "spiffe"}

// UnmarshalStrict accepts both forms.
func (m *MTLS) UnmarshalStrict(d *strictyaml.Document, n *yaml.Node, path string) {
	*m = MTLS{Enabled: true, Name: certificateNames[0]}
	if n.Kind != yaml.MappingNode {
		d.Decode(n, path, &m.Enabled)
		return
	}
	long := mtlsMapping{Name: m.Name}
	d.DecodeMapping(n, path, &long, nil, nil)
	_, v := strictyaml.Lookup(n, "name")
	switch {
	case v == nil:
		d.Problemf(n.Line, path+".name", "required; or write just true")
	case !slices.Contains(certificateNames, long.Name) && !d.Reported(path+".name"):
		d.Invalid(v, v.Line, path+".name", errors.New("want one of "+strings.Join(certificateNames, ", ")))
	}
	m.Name = long.Name
}

// MarshalYAML writes the long form.
func (m MTLS) MarshalYAML() (any, error) { return map[string]string{"name": m.Name}, nil }

// IsZero reports whether certificates are not accepted.
func (m MTLS) IsZero() bool { return !m.Enabled }

// KeyHash is the SHA-256 of an API key.
type KeyHash [sha256.Size]byte

// UnmarshalText reads 64 hexadecimal digits.
func (h *KeyHash) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	switch {
	case strings.HasPrefix(string(text), "esk_"):
		return errors.New("this is the key itself; write its SHA-256, and replace the key: it was in a file")
	case err != nil || len(b) != len(h):
		return errors.New("want 64 hexadecimal digits, as endsession key new prints them")
	}
	*h = KeyHash(b)
	return nil
}

// MarshalYAML writes the hash as it is read.
func (h KeyHash) MarshalYAML() (any, error) { return hex.EncodeToString(h[:]), nil }

// Moment is a point in time.
type Moment time.Time

// UnmarshalText reads a time or a date; a date means its last second in UTC.
func (m *Moment) UnmarshalText(text []byte) error {
	if t, err := time.Parse(time.DateOnly, string(text)); err == nil {
		*m = Moment(t.AddDate(0, 0, 1).Add(-time.Second))
		return nil
	}
	t, err := time.Parse(time.RFC3339, string(text))
	if err != nil {
		return errors.New(`want a time such as "2027-01-31T12:00:00Z", or a date`)
	}
	*m = Moment(t)
	return nil
}

// MarshalYAML writes the moment as a time.
func (m Moment) MarshalYAML() (any, error) { return time.Time(m).UTC().Format(time.RFC3339), nil }

// Texts is a text, or a list of texts.
type Texts []string

// Forms implements [Former].
func (Texts) Forms() []any { return []any{"", []string{}} }

// UnmarshalStrict accepts both forms.
func (t *Texts) UnmarshalStrict(d *strictyaml.Document, n *yaml.Node, path string) {
	if n.Kind == yaml.SequenceNode {
		d.Decode(n, path, (*[]string)(t))
	} else {
		*t = make(Texts, 1)
		d.Decode(n, path, &(*t)[0])
	}
	if !d.Reported(path) && (len(*t) == 0 || slices.ContainsFunc(*t, blank)) {
		d.Invalid(n, n.Line, path, errors.New("empty"))
	}
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// Access says to whom a service answers.
type Access string

// To whom a service answers.
const (
	Open          Access = "open"
	Authenticated Access = "authenticated"
	Off           Access = "off"
)

// UnmarshalText reads one of the three words.
func (a *Access) UnmarshalText(text []byte) error {
	switch x := Access(text); x {
	case Open, Authenticated, Off:
		*a = x
		return nil
	}
	return errors.New("want open, authenticated or off")
}

// Insecure says which listeners may be reached from beyond this machine without TLS and authentication: true means all,
// or it is a list.
type Insecure []string

var listeners = []string{"grpc", "http", "admin"}

// Forms implements [Former].
func (Insecure) Forms() []any { return []any{false, []string{}} }

// UnmarshalStrict accepts both forms.
func (i *Insecure) UnmarshalStrict(d *strictyaml.Document, n *yaml.Node, path string) {
	if n.Kind != yaml.SequenceNode {
		all := false
		if d.Decode(n, path, &all); all {
			*i = slices.Clone(listeners)
		}
		return
	}
	d.Decode(n, path, (*[]string)(i))
	for j, name := range *i {
		if at := strictyaml.Index(path, j); !slices.Contains(listeners, name) && !d.Reported(at) {
			d.Invalid(n.Content[j], n.Content[j].Line, at, errors.New("want grpc, http or admin"))
		}
	}
}

// MarshalYAML writes true for all, otherwise the list.
func (i Insecure) MarshalYAML() (any, error) {
	for _, l := range listeners {
		if !slices.Contains(i, l) {
			return []string(i), nil
		}
	}
	return true, nil
}

func (p *parser) auth() {
	key, n := strictyaml.Lookup(p.Root(), "auth")
	_, listen := strictyaml.Lookup(p.Root(), "listen")
	_, tls := strictyaml.Lookup(listen, "tls")
	caKey, ca := strictyaml.Lookup(tls, "client_ca_file")
	if n == nil || p.config.Auth == nil {
		if ca != nil {
			p.Problemf(caKey.Line, "listen.tls.client_ca_file", "has no effect without auth.mtls")
		}
		return
	}
	a := p.config.Auth
	if !a.LetsIn() && n.Kind == yaml.MappingNode && !p.Reported("auth") {
		p.Problemf(key.Line, "auth", "lets nobody in; want api_keys, oidc or mtls")
	}
	mtlsKey, _ := strictyaml.Lookup(n, "mtls")
	switch {
	case a.MTLS.Enabled && ca == nil:
		p.Problemf(mtlsKey.Line, "auth.mtls", "needs listen.tls.client_ca_file")
	case !a.MTLS.Enabled && ca != nil:
		p.Problemf(caKey.Line, "listen.tls.client_ca_file", "has no effect without auth.mtls")
	}
	p.apiKeys(n, a)
	p.issuers(n, a)
}

func (p *parser) apiKeys(n *yaml.Node, a *Auth) {
	_, list := strictyaml.Lookup(n, "api_keys")
	if list == nil || list.Kind != yaml.SequenceNode {
		return
	}
	names, hashes := map[string]int{}, map[KeyHash]string{}
	for i, item := range list.Content {
		path := strictyaml.Index("auth.api_keys", i)
		if item.Kind != yaml.MappingNode || p.Broken(item) || i >= len(a.APIKeys) {
			continue
		}
		k := a.APIKeys[i]
		p.text(item, path, "name", k.Name)
		if _, v := strictyaml.Lookup(item, "name"); v != nil && !p.Reported(path+".name") {
			line, taken := names[k.Name]
			switch {
			case k.Name != strings.TrimSpace(k.Name) || len(k.Name) > maxNameLength:
				p.Invalid(v, v.Line, path+".name", fmt.Errorf("want no space around it, and at most %d bytes", maxNameLength))
			case taken:
				p.Invalid(v, v.Line, path+".name", fmt.Errorf("the name is taken in line %d; a caller may have several keys", line))
			}
			names[k.Name] = v.Line
		}
		if len(k.SHA256)+len(k.Keys) == 0 && !p.Reported(path) {
			p.Problemf(item.Line, path, "has no key; want sha256 or keys")
		}
		once := func(h KeyHash, line int, at string) {
			if other, taken := hashes[h]; taken && !p.Reported(at) {
				p.Problemf(line, at, "the key is at %s already", other)
			}
			hashes[h] = at
		}
		_, short := strictyaml.Lookup(item, "sha256")
		for j, h := range k.SHA256 {
			once(h, short.Content[j].Line, strictyaml.Index(path+".sha256", j))
		}
		_, long := strictyaml.Lookup(item, "keys")
		for j, key := range k.Keys {
			at, node := strictyaml.Index(path+".keys", j), long.Content[j]
			before := p.Count()
			p.required(node, at, "sha256")
			_, v := strictyaml.Lookup(node, "not_after")
			if p.required(node, at, "not_after"); v != nil && !p.Reported(at) && time.Now().After(time.Time(key.NotAfter)) {
				p.Warnf(v.Line, at+".not_after", "the key has expired")
			}
			if p.Count() == before {
				once(key.SHA256, node.Line, at)
			}
		}
	}
}

func (p *parser) issuers(n *yaml.Node, a *Auth) {
	_, list := strictyaml.Lookup(n, "oidc")
	if list == nil || list.Kind != yaml.SequenceNode {
		return
	}
	issuers, aliases := map[string]int{}, map[string]int{}
	for i, item := range list.Content {
		path := strictyaml.Index("auth.oidc", i)
		if item.Kind != yaml.MappingNode || p.Broken(item) || i >= len(a.OIDC) {
			continue
		}
		o := &a.OIDC[i]
		o.Where = p.Where(item.Line, path)
		p.text(item, path, "issuer", o.Issuer)
		if _, v := strictyaml.Lookup(item, "issuer"); v != nil && !p.Reported(path+".issuer") {
			if line, taken := issuers[o.Issuer]; taken {
				p.Invalid(v, v.Line, path+".issuer", fmt.Errorf("is in line %d already", line))
			} else if err := checkIssuer(o.Issuer); err != nil {
				p.Invalid(v, v.Line, path+".issuer", err)
			}
			issuers[o.Issuer] = v.Line
		}
		p.required(item, path, "audience")
		_, v := strictyaml.Lookup(item, "alias")
		switch line, taken := aliases[o.Alias]; {
		case p.Reported(path + ".alias"):
		case v == nil && len(list.Content) > 1:
			p.Problemf(item.Line, path+".alias", "required where there are several providers: a name at one is somebody else at another")
		case v == nil:
		case !targetName.MatchString(o.Alias) || len(o.Alias) > maxNameLength:
			p.Invalid(v, v.Line, path+".alias", errors.New("want lower-case letters, digits and hyphens, a letter or digit at both ends, at most 63"))
		case taken:
			p.Invalid(v, v.Line, path+".alias", fmt.Errorf("is in line %d already", line))
		default:
			aliases[o.Alias] = v.Line
		}
		for key, value := range map[string]string{"name_claim": o.NameClaim, "groups_claim": o.GroupsClaim} {
			if _, v := strictyaml.Lookup(item, key); v != nil && blank(value) && !p.Reported(path+"."+key) {
				p.Invalid(v, v.Line, path+"."+key, errors.New("empty"))
			}
		}
		if _, v := strictyaml.Lookup(item, "algorithms"); v != nil && v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
			p.Problemf(v.Line, path+".algorithms", "empty; leave the key out for the defaults")
		}
	}
}

// checkIssuer checks an issuer's URL: https, or http within this machine.
func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("want a URL without user, query and fragment")
	}
	ip := net.ParseIP(u.Hostname())
	within := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !within) {
		return errors.New("want https (http only within this machine): whoever can change what comes from there can be any caller")
	}
	return nil
}
