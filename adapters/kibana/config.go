package kibana

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
	"github.com/endsession/endsession/adapters/secret"
)

// Kind is the key of a Kibana target in the configuration.
const Kind = "kibana"

// providerTypes are the types of authentication provider that own sessions. The pseudo-provider "http" owns none: a
// request with its own Authorization header leaves no session behind.
var providerTypes = [...]string{"basic", "token", "saml", "oidc", "kerberos", "pki", "anonymous"}

// Type describes Kibana targets.
func Type() adapters.Type {
	defaults := map[string][]adapters.Provider{}
	for _, t := range providerTypes {
		defaults[t] = []adapters.Provider{{Type: t}}
	}
	return adapters.Type{
		Kind: Kind,
		Criteria: []adapters.Criteria{
			adapters.ByUser, adapters.ByProvider, adapters.ByUser | adapters.ByProvider, adapters.All,
		},
		DefaultProviders: defaults,
		ListsProviders:   true,
		NewConfig:        func() adapters.Config { return new(Config) },
		NewProviders:     func() adapters.ProviderMapping { return new(Providers) },
	}
}

// Config is a Kibana target's configuration.
type Config struct {
	// URL is Kibana's base URL, with server.basePath if there is one and without a space. One instance of a deployment
	// is enough: all share their sessions.
	URL string `yaml:"url"`
	// APIKey is an Elasticsearch API key of a superuser, as "id:key" or in its encoded form.
	APIKey secret.String `yaml:"api_key,omitempty"`
	// Username is a superuser, with Password instead of an API key. They work only where Kibana has a provider that accepts
	// them.
	Username string `yaml:"username,omitempty"`
	// Password is the superuser's.
	Password secret.String `yaml:"password,omitempty"`
	// BearerToken is an Elasticsearch access token or service account token.
	BearerToken secret.String `yaml:"bearer_token,omitempty"`
	// ProviderTypes narrows where a user is looked for when the selector names no provider. Default: every type that
	// owns sessions, which is basic, token, saml, oidc, kerberos, pki and anonymous.
	ProviderTypes []string `yaml:"provider_types,omitempty"`

	httpclient.TLSConfig `yaml:",inline"`
}

var _ adapters.Config = (*Config)(nil)

// Validate implements [adapters.Config].
func (c *Config) Validate() error {
	errs := []error{c.validateURL()}
	_, err := c.authorization()
	errs = append(errs, err)
	for i, t := range c.ProviderTypes {
		switch {
		case !slices.Contains(providerTypes[:], t):
			errs = append(errs, fmt.Errorf("provider_types: %q is not one of %s", t, strings.Join(providerTypes[:], ", ")))
		case slices.Contains(c.ProviderTypes[:i], t):
			errs = append(errs, fmt.Errorf("provider_types: %q comes twice", t))
		}
	}
	if c.ProviderTypes != nil && len(c.ProviderTypes) == 0 {
		errs = append(errs, errors.New("provider_types: empty; leave it out for every type"))
	}
	return errors.Join(append(errs, c.TLSConfig.Validate())...)
}

func (c *Config) validateURL() error {
	u, err := httpclient.ParseURL(c.URL)
	if err != nil {
		return err
	}
	// Sessions are not scoped to spaces. A space in the URL would promise what Kibana does not keep.
	segments := strings.Split(strings.Trim(u.Path, "/"), "/")
	if i := slices.Index(segments, "s"); i >= 0 && i < len(segments)-1 {
		return errors.New("url: names a space (/s/…); sessions belong to all of Kibana, so leave it out")
	}
	return nil
}

// authorization builds the value of the Authorization header. Its errors hold no secret.
func (c *Config) authorization() (string, error) {
	var ways []string
	if !c.APIKey.IsZero() {
		ways = append(ways, "api_key")
	}
	if c.Username != "" || !c.Password.IsZero() {
		ways = append(ways, "username and password")
	}
	if !c.BearerToken.IsZero() {
		ways = append(ways, "bearer_token")
	}
	switch {
	case len(ways) == 0:
		return "", errors.New("api_key: required, or username and password, or bearer_token")
	case len(ways) > 1:
		return "", fmt.Errorf("%s: set only one of them", strings.Join(ways, ", "))
	}
	switch ways[0] {
	case "api_key":
		key, err := encodeAPIKey(c.APIKey.Reveal())
		return "ApiKey " + key, err
	case "bearer_token":
		if !visible(c.BearerToken.Reveal()) {
			return "", errors.New("bearer_token: holds a space or a character that a header cannot carry")
		}
		return "Bearer " + c.BearerToken.Reveal(), nil
	}
	switch {
	case strings.TrimSpace(c.Username) == "":
		return "", errors.New("username: required with password")
	case strings.Contains(c.Username, ":"):
		return "", errors.New("username: holds a colon, which Basic authentication cannot carry")
	case c.Password.IsZero():
		return "", errors.New("password: required with username")
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password.Reveal())), nil
}

// encodeAPIKey accepts both forms in which Elasticsearch hands out a key: "id:key", and the base64 of it.
func encodeAPIKey(key string) (string, error) {
	plain := key
	if !strings.Contains(key, ":") {
		b, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			return "", errors.New("api_key: neither id:key nor its encoded form")
		}
		plain = string(b)
	}
	id, k, ok := strings.Cut(plain, ":")
	if !ok || !visible(id) || !visible(k) {
		return "", errors.New("api_key: neither id:key nor its encoded form")
	}
	return base64.StdEncoding.EncodeToString([]byte(plain)), nil
}

// visible reports whether s is one or more printable ASCII characters without a space.
func visible(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// Endpoint implements [adapters.Config].
func (c *Config) Endpoint() string {
	u, err := httpclient.ParseURL(c.URL)
	if err != nil {
		return c.URL
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// Account implements [adapters.Config]. Who owns a key or a token is not known here.
func (c *Config) Account() string { return c.Username }

// Open implements [adapters.Config].
func (c *Config) Open(deps adapters.Deps) (adapters.Adapter, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return open(c, deps)
}

// Providers are Kibana's own providers that a provider of the API stands for.
type Providers []ProviderRef

// ProviderRef is one of Kibana's providers, or all of a type.
type ProviderRef struct {
	// Type is basic, token, saml, oidc, kerberos, pki or anonymous.
	Type string `yaml:"type"`
	// Name is the key under xpack.security.authc.providers.<type> in kibana.yml. Absent: every provider of the type.
	Name *string `yaml:"name,omitempty"`
}

var _ adapters.ProviderMapping = (*Providers)(nil)

// Providers implements [adapters.ProviderMapping].
func (p *Providers) Providers() ([]adapters.Provider, error) {
	if len(*p) == 0 {
		return nil, errors.New("no provider; want a list such as [ {type: saml, name: saml1} ]")
	}
	var out []adapters.Provider
	for _, r := range *p {
		x := adapters.Provider{Type: r.Type}
		if r.Name != nil {
			x.Name = *r.Name
			if blank(x.Name) {
				// An empty name would mean every provider of the type, to Kibana too.
				return nil, errors.New("name: empty; leave the key out for every provider of the type")
			}
		}
		if err := checkProvider(x); err != nil {
			return nil, errors.New(err.Message)
		}
		out = append(out, x)
	}
	return out, nil
}

// UnmarshalYAML refuses a name that is there but null, which would otherwise read like one that is absent: the entry
// would cover every provider of the type.
func (r *ProviderRef) UnmarshalYAML(unmarshal func(any) error) error {
	var keys map[string]any
	if err := unmarshal(&keys); err != nil {
		return err
	}
	if name, ok := keys["name"]; ok && name == nil {
		return errors.New("name: empty; leave the key out for every provider of the type")
	}
	type plain ProviderRef
	return unmarshal((*plain)(r))
}
