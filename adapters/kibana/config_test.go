package kibana_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	"github.com/endsession/endsession/adapters/secret"
)

func decode(t *testing.T, text string, v any) error {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	return d.Decode(v)
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string // parts of the error; none: valid
	}{
		{"api key", "{url: https://kibana.example/base/, api_key: 'id:key'}", nil},
		{"encoded api key", "{url: https://kibana.example, api_key: aWQ6a2V5}", nil},
		{"basic", "{url: https://kibana.example, username: elastic, password: changeme}", nil},
		{"bearer", "{url: https://kibana.example, bearer_token: AAEAAWVsYXN0aWM, provider_types: [saml, oidc]}", nil},
		{"a base path named s", "{url: https://kibana.example/s, api_key: 'id:key'}", nil},
		{"nothing", "{}", []string{"url: required", "api_key: required"}},
		{"plain http", "{url: http://kibana.example, api_key: 'id:key'}", []string{"url: want https"}},
		{"a space", "{url: https://kibana.example/s/marketing, api_key: 'id:key'}", []string{"url: names a space"}},
		{"a space below a base path", "{url: https://kibana.example/kibana/s/marketing/, api_key: 'id:key'}", []string{"url: names a space"}},
		{"a space in disguise", "{url: https://kibana.example/%73/marketing, api_key: 'id:key'}", []string{"url: names a space"}},
		{"two credentials", "{url: https://kibana.example, api_key: 'id:key', username: u, password: p}",
			[]string{"api_key, username and password: set only one"}},
		{"half a password", "{url: https://kibana.example, username: u}", []string{"password: required"}},
		{"half a name", "{url: https://kibana.example, password: p}", []string{"username: required"}},
		{"a colon", "{url: https://kibana.example, username: 'a:b', password: p}", []string{"username: holds a colon"}},
		{"an id alone", "{url: https://kibana.example, api_key: keyid}", []string{"api_key: neither"}},
		{"base64 of something else", "{url: https://kibana.example, api_key: aGVsbG8=}", []string{"api_key: neither"}},
		{"half a key", "{url: https://kibana.example, api_key: 'id:'}", []string{"api_key: neither"}},
		{"a line end in the key", `{url: https://kibana.example, api_key: "id:key\n"}`, []string{"api_key: neither"}},
		{"a header in the token", `{url: https://kibana.example, bearer_token: "x\r\nkbn-version: 1"}`, []string{"bearer_token: holds"}},
		{"unknown type", "{url: https://kibana.example, api_key: 'id:key', provider_types: [basic, SAML, http, basic]}",
			[]string{`provider_types: "SAML"`, `provider_types: "http"`, `"basic" comes twice`}},
		{"no type", "{url: https://kibana.example, api_key: 'id:key', provider_types: []}", []string{"provider_types: empty"}},
		{"pin", "{url: https://kibana.example, api_key: 'id:key', pin_sha256: beef}", []string{"pin_sha256"}},
		{"unknown key", "{url: https://kibana.example, apikey: 'id:key'}", []string{"apikey"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := kibana.Type().NewConfig()
			err := decode(t, c.yaml, config)
			if err == nil {
				err = config.Validate()
			}
			if len(c.want) == 0 && err != nil {
				t.Errorf("%s: %v", c.yaml, err)
			}
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: error %v, want %q in it", c.yaml, err, want)
				}
			}
		})
	}
}

func TestConfigTellsWhereAndWho(t *testing.T) {
	c := &kibana.Config{URL: "HTTPS://Kibana.Example:5601/base/", Username: "svc-endsession", Password: secret.New("hunter2")}
	if got, want := c.Endpoint(), "https://kibana.example:5601/base"; got != want {
		t.Errorf("Endpoint = %q, want %q", got, want)
	}
	if got := c.Account(); got != "svc-endsession" {
		t.Errorf("Account = %q", got)
	}
	out, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if printed := fmt.Sprintf("%s %+v %#v", out, c, c); strings.Contains(printed, "hunter2") {
		t.Errorf("the password shows: %s", printed)
	}
}

// TestCredentials signs in with each kind of credentials; both forms of an API key are the same on the wire.
func TestCredentials(t *testing.T) {
	accounts := []kibanatest.Account{{APIKey: "id:key", Username: "elastic", Password: "pass:wörd", BearerToken: "AAEAAWVsYXN0aWM", Superuser: true}}
	for _, c := range []struct {
		name   string
		config kibana.Config
	}{
		{"api key", kibana.Config{APIKey: secret.New("id:key")}},
		{"encoded api key", kibana.Config{APIKey: secret.New("aWQ6a2V5")}},
		{"basic", kibana.Config{Username: "elastic", Password: secret.New("pass:wörd")}},
		{"bearer", kibana.Config{BearerToken: secret.New("AAEAAWVsYXN0aWM")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := setup(t, kibanatest.Options{Accounts: accounts}, func(x *kibana.Config) {
				c.config.URL = x.URL
				*x = c.config
			})
			if _, err := f.Invalidate(t.Context(), adapters.Request{Selector: everybody}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestProviderMapping(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []adapters.Provider
		err        string
	}{
		{"names and types", "[{type: saml, name: saml1}, {type: basic}]", []adapters.Provider{of("saml", "saml1"), of("basic")}, ""},
		{"nothing", "[]", nil, "no provider"},
		{"no type", "[{name: saml1}]", nil, "not a type"},
		{"upper case", "[{type: SAML}]", nil, "not a type"},
		{"http owns no sessions", "[{type: http}]", nil, "not a type"},
		// An empty name would map one provider to all of its type.
		{"empty name", "[{type: saml, name: ''}]", nil, "name: empty"},
		{"blank name", "[{type: saml, name: ' '}]", nil, "name: empty"},
		{"null name", "[{type: saml, name: }]", nil, "name: empty"},
		{"tilde name", "[{type: saml, name: ~}]", nil, "name: empty"},
		{"unknown key", "[{type: saml, realm: x}]", nil, "realm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mapping := kibana.Type().NewProviders()
			var got []adapters.Provider
			err := decode(t, c.yaml, mapping)
			if err == nil {
				got, err = mapping.Providers()
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("%s: error %v, want %q", c.yaml, err, c.err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: %v, want %v", c.yaml, got, c.want)
			}
		})
	}
}

func TestType(t *testing.T) {
	typ := kibana.Type()
	for _, by := range []adapters.Criteria{adapters.ByGroup, adapters.BySessions, adapters.ByUser | adapters.ByGroup} {
		if typ.Supports(by) {
			t.Errorf("declares %s", by)
		}
	}
	if typ.NewGroups != nil || !typ.ListsProviders {
		t.Error("Kibana has no groups, and lists providers")
	}
	// "ldap" and "local" must not mean Kibana's basic, which owns the users of both.
	b, err := json.Marshal(typ.DefaultProviders)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"anonymous":[{"type":"anonymous"}],"basic":[{"type":"basic"}],"kerberos":[{"type":"kerberos"}],"oidc":[{"type":"oidc"}],` +
		`"pki":[{"type":"pki"}],"saml":[{"type":"saml"}],"token":[{"type":"token"}]}`
	if string(b) != want {
		t.Errorf("DefaultProviders = %s, want %s", b, want)
	}
}
