package bigiq_test

import (
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/secret"
)

func TestConfigValidate(t *testing.T) {
	valid := func() *bigiq.Config { return config(bigiqtest.New(bigiqtest.Options{})) }
	if err := valid().Validate(); err != nil {
		t.Fatalf("a valid configuration: %v", err)
	}
	for _, tt := range []struct {
		name   string
		change func(*bigiq.Config)
		want   string
	}{
		{"NoURL", func(c *bigiq.Config) { c.URL = "" }, "url: required"},
		{"PlainHTTP", func(c *bigiq.Config) { c.URL = "http://bigiq.example" }, "url: want https"},
		{"NoUsername", func(c *bigiq.Config) { c.Username = " " }, "username: required"},
		{"NoPassword", func(c *bigiq.Config) { c.Password = secret.String{} }, "password: required"},
		{"Pin", func(c *bigiq.Config) { c.PinSHA256 = "abc" }, "pin_sha256:"},
		{"NoScope", func(c *bigiq.Config) { c.Scope = bigiq.ScopeConfig{} }, "scope: required"},
		{"ScopeAndDiscover", func(c *bigiq.Config) { c.Discover = true }, "not both"},
		{"ScopeAndDiscoverWithin", func(c *bigiq.Config) { c.Scope.Discover = true }, "not both"},
		{"EmptyCluster", func(c *bigiq.Config) { c.Scope.Clusters = []string{""} }, "scope.clusters: empty name"},
		{"WildcardGroup", func(c *bigiq.Config) { c.Scope.AccessGroups = []string{"Test*"} }, "scope.access_groups: \"Test*\": wildcards"},
		{"WildcardDevice", func(c *bigiq.Config) { c.Scope.Devices = []string{"*"} }, "scope.devices:"},
		{"QuoteInDevice", func(c *bigiq.Config) { c.Scope.Devices = []string{"x' or 'y"} }, "scope.devices:"},
		{"ForeignLink", func(c *bigiq.Config) { c.Scope.Devices = []string{"https://localhost/mgmt/tm/sys/x"} }, "scope.devices:"},
		{"Twice", func(c *bigiq.Config) { c.Scope.Clusters = []string{"A", "A"} }, "comes twice"},
		{"BasicAndProvider", func(c *bigiq.Config) { c.Basic, c.LoginProvider = true, "ldap" }, "basic: cannot"},
		{"BasicColon", func(c *bigiq.Config) { c.Basic, c.Username = true, "a:b" }, "username: HTTP Basic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := valid()
			tt.change(c)
			err := c.Validate()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate() = %v, want %q in it", err, tt.want)
			}
			if _, err := c.Open(adapters.Deps{}); err == nil {
				t.Error("Open accepts it")
			}
		})
	}
}

func TestConfigValidateReportsAllProblems(t *testing.T) {
	c := &bigiq.Config{Scope: bigiq.ScopeConfig{Scope: bigiq.Scope{Clusters: []string{""}, Devices: []string{"*"}}}}
	err := c.Validate()
	for _, key := range []string{"url:", "username:", "password:", "scope.clusters:", "scope.devices:"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("Validate() = %v, want a problem with %s", err, key)
		}
	}
}

func TestConfigDiscoverMayStandInBothPlaces(t *testing.T) {
	for _, c := range []*bigiq.Config{{Discover: true}, {Scope: bigiq.ScopeConfig{Discover: true}}} {
		c.URL, c.Username, c.Password = "https://bigiq.example", "u", secret.New("p")
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestConfigEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"https://BIGIQ.example":         "https://bigiq.example",
		"https://bigiq.example:443/":    "https://bigiq.example",
		"https://bigiq.example:8443/iq": "https://bigiq.example:8443/iq",
	} {
		c := &bigiq.Config{URL: in, Username: "svc"}
		if got := c.Endpoint(); got != want {
			t.Errorf("Endpoint of %q = %q, want %q", in, got, want)
		}
		if c.Account() != "svc" {
			t.Errorf("Account() = %q", c.Account())
		}
	}
}

func TestMappings(t *testing.T) {
	ps, err := (&bigiq.ProviderMapping{AccessGroups: []string{"A", "B"}}).Providers()
	if err != nil || len(ps) != 2 || ps[1] != accessGroup("B") {
		t.Errorf("Providers() = %v, %v", ps, err)
	}
	gs, err := (&bigiq.GroupMapping{Scope: bigiq.Scope{AccessGroups: []string{"A"}, Clusters: []string{"C"},
		Devices: []string{"https://localhost/mgmt/cm/system/machineid-resolver/" + bigiqtest.Branch}}}).Groups()
	want := []adapters.Group{group("access_group", "A"), group("cluster", "C"), group("device", bigiqtest.Branch)}
	if err != nil || len(gs) != 3 || gs[0] != want[0] || gs[1] != want[1] || gs[2] != want[2] {
		t.Errorf("Groups() = %v, %v, want %v", gs, err, want)
	}
	for _, m := range []adapters.ProviderMapping{&bigiq.ProviderMapping{}, &bigiq.ProviderMapping{AccessGroups: []string{"*"}}} {
		if ps, err := m.Providers(); err == nil {
			t.Errorf("%+v gives %v", m, ps)
		}
	}
	for _, m := range []*bigiq.GroupMapping{{}, {Scope: bigiq.Scope{Clusters: []string{" "}}}, {Scope: bigiq.Scope{Devices: []string{"a'b"}}}} {
		if gs, err := m.Groups(); err == nil {
			t.Errorf("%+v gives %v", m, gs)
		}
	}
}
