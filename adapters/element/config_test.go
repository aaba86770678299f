package element_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/secret"
	"go.yaml.in/yaml/v3"
)

// decode reads YAML as the configuration is read: strictly.
func decode(text string, v any) error {
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	return dec.Decode(v)
}

func TestConfigURL(t *testing.T) {
	for _, test := range []struct{ url, endpoint, problem string }{
		{url: "https://mvip.example", endpoint: "https://mvip.example"},
		{url: "https://MVIP.example:443/", endpoint: "https://mvip.example"},
		{url: "https://[2001:db8::1]:443", endpoint: "https://[2001:db8::1]"},
		{url: "https://mvip.example:8443", endpoint: "https://mvip.example:8443"},
		{url: "http://127.0.0.1:8080", endpoint: "http://127.0.0.1:8080"},
		{url: "", problem: "url: required"},
		{url: "http://mvip.example", problem: "want https"},
		{url: "https://mvip.example:442", problem: "MVIP"},
		{url: "https://mvip.example/json-rpc/12.5", problem: "negotiated"},
		{url: "https://mvip.example/x", problem: "holds a path"},
		{url: "https://u:p@mvip.example", problem: "credential settings"},
	} {
		t.Run(test.url, func(t *testing.T) {
			c := element.Config{URL: test.url, Username: "admin", Password: secret.New("x")}
			err := c.Validate()
			switch {
			case test.problem == "" && err != nil:
				t.Errorf("validate: %v", err)
			case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)):
				t.Errorf("validate: %v, want it to say %q", err, test.problem)
			}
			if got := c.Endpoint(); got != test.endpoint {
				t.Errorf("endpoint %q, want %q", got, test.endpoint)
			}
		})
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	var c element.Config
	c.Username, c.PinSHA256 = "ad:min", "12"
	err := c.Validate()
	for _, want := range []string{"url:", "username:", "password:", "pin_sha256:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("validate: %v, want it to name %s", err, want)
		}
	}
	if _, err := c.Open(adapters.Deps{Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("an invalid configuration opens")
	}
	if c.Account() != "ad:min" {
		t.Errorf("account %q", c.Account())
	}
}

func TestConfigYAML(t *testing.T) {
	c := element.Type().NewConfig().(*element.Config)
	err := decode("{url: https://mvip.example, username: admin, password: s3cret, pin_sha256: "+strings.Repeat("ab", 32)+"}", c)
	if err != nil || c.Validate() != nil || c.Password.Reveal() != "s3cret" || c.PinSHA256 == "" {
		t.Errorf("decode: %v, %+v", err, c)
	}
	if strings.Contains(fmt.Sprintf("%+v %#v", c, c), "s3cret") {
		t.Error("the password prints")
	}
	if err := decode("{url: https://mvip.example, user: admin}", element.Type().NewConfig()); err == nil {
		t.Error("an unknown key is taken")
	}
}

func TestProviderMapping(t *testing.T) {
	for _, test := range []struct{ yaml, want string }{
		{"[{type: Cluster}]", "[Cluster]"},
		{"[{type: idp}, LDAP]", "[Idp Ldap]"},
		{"[Idp, IdP, {type: Idp}]", "[Idp]"},
		{"[]", "error"},
		{"[Local]", "error"},
		{"[oidc]", "error"},
		{"[{type: ''}]", "error"},
		{"[{type: Idp, name: okta}]", "error"},
		{"Cluster", "error"},
	} {
		m := element.Type().NewProviders()
		err := decode(test.yaml, m)
		var ps []adapters.Provider
		if err == nil {
			ps, err = m.Providers()
		}
		got := fmt.Sprint(ps)
		if err != nil {
			got = "error"
		}
		if got != test.want {
			t.Errorf("%s: got %s (%v), want %s", test.yaml, got, err, test.want)
		}
	}
}

func TestGroupMapping(t *testing.T) {
	for _, test := range []struct{ yaml, want string }{
		{"{access_groups: [administrator, read]}", "[access_group/administrator access_group/read]"},
		{"{cluster_admin_ids: [9]}", "[cluster_admin_id/9]"},
		{"{access_groups: [read], cluster_admin_ids: [9, 10]}", "[access_group/read cluster_admin_id/9 cluster_admin_id/10]"},
		{"{}", "error"},
		{"{access_groups: ['']}", "error"},
		{"{cluster_admin_ids: [0]}", "error"},
		{"{cluster_admin_ids: [-1]}", "error"},
		{"{clusters: [x]}", "error"},
	} {
		m := element.Type().NewGroups()
		err := decode(test.yaml, m)
		var gs []adapters.Group
		if err == nil {
			gs, err = m.Groups()
		}
		got := fmt.Sprint(gs)
		if err != nil {
			got = "error"
		}
		if got != test.want {
			t.Errorf("%s: got %s (%v), want %s", test.yaml, got, err, test.want)
		}
	}
}

func TestType(t *testing.T) {
	typ := element.Type()
	if typ.Kind != "element" || typ.ListsProviders {
		t.Errorf("kind %q, lists providers %t", typ.Kind, typ.ListsProviders)
	}
	if len(typ.Criteria) != 9 {
		t.Errorf("%d combinations of criteria, want all 9", len(typ.Criteria))
	}
	for api, want := range map[string]string{"local": "Cluster", "ldap": "Ldap", "saml": "Idp"} {
		if got := typ.DefaultProviders[api]; !slices.Equal(got, []adapters.Provider{{Type: want}}) {
			t.Errorf("%s means %v, want %s", api, got, want)
		}
	}
	if _, ok := typ.DefaultProviders["oidc"]; ok {
		t.Error("oidc has a default, but Element's identity providers speak SAML")
	}
}

// TestOpenOverTLS goes over a real socket, with the authority that made the emulator's certificate, and without.
func TestOpenOverTLS(t *testing.T) {
	s := elementtest.New(elementtest.Options{})
	base, ca, stop, err := emulator.ServeTLS(s.Handler())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, bytes.Clone(ca), 0o600); err != nil {
		t.Fatal(err)
	}
	deps := adapters.Deps{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, test := range []struct {
		ca   string
		want adapters.CheckStatus
	}{{file, adapters.CheckOK}, {"", adapters.CheckFailed}} {
		c := config()
		c.URL, c.CAFile = base, test.ca
		a, err := c.Open(deps)
		if err != nil {
			t.Fatal(err)
		}
		h, err := a.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := status(h, "tls"); got != test.want {
			t.Errorf("with authority %q: tls is %v, want %v: %+v", test.ca, got, test.want, h)
		}
	}
	c := config()
	c.URL, c.CAFile = base, filepath.Join(t.TempDir(), "none.pem")
	if _, err := c.Open(deps); err == nil {
		t.Error("opens without its CA file")
	}
}

func status(h adapters.Health, check string) adapters.CheckStatus {
	for _, c := range h.Checks {
		if c.Name == check {
			return c.Status
		}
	}
	return 0
}
