package config_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// tls is an inline part, as adapters have one.
type tls struct {
	// CAFile is a file of authorities.
	CAFile string `yaml:"ca_file,omitempty"`
}

// disk is a kind with everything a kind can have.
type disk struct {
	// URL is where it is.
	URL string `yaml:"url"`
	// Username is who asks.
	Username string `yaml:"username"`
	// Password is theirs.
	Password secret.String `yaml:"password"`
	TLS      tls           `yaml:",inline"`
	// Scope is the reach.
	Scope scope `yaml:"scope,omitempty"`
	// Level is a number.
	Level *int `yaml:"level,omitempty"`
}

// scope is a reach.
type scope struct {
	// Clusters are names.
	Clusters []string `yaml:"clusters,omitempty"`
}

func (c *disk) Validate() error {
	var errs []error
	if !strings.HasPrefix(c.URL, "https://") {
		errs = append(errs, fmt.Errorf("url: %q is not https", c.URL))
	}
	if c.Username == "" {
		errs = append(errs, errors.New("username: required"))
	}
	if c.Password.IsZero() {
		errs = append(errs, errors.New("password: required"))
	}
	if len(c.Scope.Clusters) == 0 {
		errs = append(errs, errors.New("scope: required: name clusters"))
	}
	for _, name := range c.Scope.Clusters {
		if name == "" || name == "secret-value" {
			errs = append(errs, fmt.Errorf("scope.clusters: no cluster may be called %q", name))
		}
	}
	return errors.Join(errs...)
}
func (c *disk) Endpoint() string { return c.URL }
func (c *disk) Account() string  { return c.Username }
func (c *disk) Open(adapters.Deps) (adapters.Adapter, error) {
	return nil, errors.New("not a real one")
}

// bare is a kind without providers and groups.
type bare struct {
	// Password is a password.
	Password secret.String `yaml:"password,omitempty"`
	// Level is a number.
	Level int `yaml:"level,omitempty"`
}

func (c *bare) Validate() error  { return nil }
func (c *bare) Endpoint() string { return "" }
func (c *bare) Account() string  { return "" }
func (c *bare) Open(adapters.Deps) (adapters.Adapter, error) {
	return nil, errors.New("not a real one")
}

type providers []provider

// provider is one of them.
type provider struct {
	// Type is its name.
	Type string `yaml:"type,omitempty"`
}

// UnmarshalYAML tries one form after the other, as adapters do.
func (p *provider) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&p.Type) == nil {
		return nil
	}
	type plain provider
	return unmarshal((*plain)(p))
}

func (p *providers) Providers() ([]adapters.Provider, error) {
	if len(*p) == 0 {
		return nil, errors.New("want at least one")
	}
	var ps []adapters.Provider
	for _, x := range *p {
		ps = append(ps, adapters.Provider{Type: x.Type})
	}
	return ps, nil
}

// groups are some of them.
type groups struct {
	scope `yaml:",inline"`
}

func (g *groups) Groups() ([]adapters.Group, error) {
	if len(g.Clusters) == 0 {
		return nil, errors.New("clusters: want at least one")
	}
	var gs []adapters.Group
	for _, name := range g.Clusters {
		gs = append(gs, adapters.Group{Kind: "cluster", Name: name})
	}
	return gs, nil
}

var registry = map[string]adapters.Type{
	"disk": {
		Kind:         "disk",
		NewConfig:    func() adapters.Config { return new(disk) },
		NewProviders: func() adapters.ProviderMapping { return new(providers) },
		NewGroups:    func() adapters.GroupMapping { return new(groups) },
	},
	"bare": {Kind: "bare", NewConfig: func() adapters.Config { return new(bare) }},
}

var variables = map[string]string{
	"APM_URL": "https://apm.example", "APM_CONCURRENCY": "16", "SECRET": "secret-value", "URL": "http://secret-value",
	"EMPTY": "", "YES": "true", "SHORT": "e",
}

var environment = config.Environment{
	LookupEnv: func(name string) (string, bool) { v, ok := variables[name]; return v, ok },
	ReadFile: func(path string) ([]byte, error) {
		if path == "etc/apm.password" {
			return []byte("from-a-file\r\n"), nil
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	},
}

func parse(text string) (*config.Config, error) {
	return config.Parse("etc/endsession.yaml", []byte(text), registry, environment)
}

// Hashes of keys, and a section that names one.
var (
	hash1 = strings.Repeat("0", 63) + "1"
	hash2 = strings.Repeat("0", 63) + "2"
	aKey  = "auth: {api_keys: [{name: a, sha256: ['" + hash1 + "']}]}\n"
)

// TestBeyondLoopback is about the configurations that may listen there.
func TestBeyondLoopback(t *testing.T) {
	const beyond = "grpc: '0.0.0.0:1', http: ':2'"
	for name, test := range map[string]struct{ text, warning string }{
		"TLSAndAuth":  {aKey + "listen: {" + beyond + ", tls: {cert_file: a, key_file: b}}\n", ""},
		"AuthAlone":   {aKey + "listen: {" + beyond + ", insecure: true}\n", "without TLS: everybody on the way"},
		"Nothing":     {"listen: {" + beyond + ", insecure: true}\n", "callers are not authenticated: everybody who reaches"},
		"Two":         {"listen: {" + beyond + ", insecure: [grpc, http]}\n", "callers are not authenticated"},
		"AdminBeside": {aKey + "listen: {" + beyond + ", admin: ':3', insecure: [admin], tls: {cert_file: a, key_file: b}}\n", "sees health and metrics"},
	} {
		c, err := parse(test.text + "targets: [{name: a, bare: {}}]\n")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if text := strings.Join(c.Warnings, "\n"); !strings.Contains(text, test.warning) || test.warning == "" && text != "" {
			t.Errorf("%s: got warnings %q, want %q", name, text, test.warning)
		}
	}
}

// golden compares got with a file, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestParse(t *testing.T) {
	c, err := parse(read(t, "everything.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := c.Effective(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "everything.golden", out.String()+"# warnings:\n# "+strings.Join(c.Warnings, "\n# ")+"\n")

	apm := c.Targets[0]
	own := apm.Config.(*disk)
	for _, x := range []struct{ what, got, want any }{
		{"kind", apm.Kind, "disk"},
		{"type", apm.Type.Kind, "disk"},
		{"password", own.Password.Reveal(), "from-a-file"},
		{"ca_file", own.TLS.CAFile, "etc/apm.pem"},
		{"key_file", c.Listen.TLS.KeyFile, "/etc/tls.key"},
		{"sqlite path", c.Store.SQLite.Path, "etc/journal.db"},
		{"directory path", c.Directory.File.Path, "etc/people.yaml"},
		{"on_missing", c.Directory.OnMissing, config.Fail},
		{"retention", time.Duration(c.Retention), 30 * 24 * time.Hour},
		{"check_interval", time.Duration(c.CheckInterval), 10 * time.Minute},
		{"retry_for", time.Duration(apm.RetryFor), 36 * time.Hour},
		{"rate", apm.Rate.PerSecond(), 100.0 / 60},
		{"no rate", c.Targets[1].Rate.PerSecond(), 0.0},
		{"escape", apm.Usernames[1].Name, `user.email + "${x}"`},
		{"rule's expression", c.Policy[1].When(), `caller.kind == "anonymous"`},
		{"rule's place", c.Policy[1].Where, `etc/endsession.yaml:34: policy[1].deny`},
		{"hidden rule", c.Policy[2].Hidden, true},
		{"burst", c.Limits.Burst, 50},
		{"calls per caller", c.Limits.CallsPerCaller.PerSecond(), 50.0},
		{"protected", len(c.Protected.Users), 2},
		{"protected at a target", apm.Protected.Users[0], "svc-backup"},
		{"bound", apm.Usernames[1].Provider, "saml/okta"},
		{"where", apm.Usernames[1].Where, `etc/endsession.yaml:47: targets[0].usernames[1].name`},
		{"provider", fmt.Sprint(apm.Providers["saml/okta"].Providers), "[saml1 saml2]"},
		{"group", fmt.Sprint(apm.Groups["vpn"].Groups), "[cluster/Blue cluster/Green]"},
		{"directory group", apm.Groups["staff"].Directory, "all staff"},
		{"max_members", apm.Groups["staff"].MaxMembers, 20},
		{"default max_members", apm.Groups["guests"].MaxMembers, 500},
		{"default username", c.Targets[1].Usernames[0].Name, "user.id"},
		{"default concurrency", c.Targets[1].Concurrency, 8},
		{"default HTTP", c.Listen.HTTP, "127.0.0.1:8080"},
	} {
		if x.got != x.want {
			t.Errorf("%s: got %v, want %v", x.what, x.got, x.want)
		}
	}
}

// TestProblems holds every kind of mistake; the golden files are the messages people get.
func TestProblems(t *testing.T) {
	for _, name := range []string{"wrong", "wrong2", "wrong3"} {
		t.Run(name, func(t *testing.T) {
			c, err := parse(read(t, name+".yaml"))
			if err == nil {
				t.Fatal("no error")
			}
			for _, hidden := range []string{"hunter2", "secret-value"} {
				if strings.Contains(err.Error(), hidden) {
					t.Errorf("the error shows %q:\n%v", hidden, err)
				}
			}
			golden(t, name+".golden", err.Error()+"\n")
			if len(c.Targets) > 0 {
				t.Errorf("targets with problems are kept: %v", c.Targets[0].Name)
			}
		})
	}
}

const sound = "targets: [{name: a, bare: {password: '${env:SECRET}'}}]\n"

func TestOneProblem(t *testing.T) {
	for _, x := range []struct{ name, text, want string }{
		{"Empty", "", "1: the file is empty"},
		{"OnlyComment", "# nothing\n", "1: the file is empty"},
		{"List", "- a\n", "1: want a mapping of keys to values, got a list"},
		{"Syntax", "a: b\n c: [\n", "2: mapping values are not allowed in this context"},
		{"SecondDocument", sound + "---\nb: c\n", "2: a second document begins here; want one"},
		{"NoTargets", "retention: 1d\n", "1: targets: required"},
		{"EmptyTargets", "targets: []\n", "1: targets: want at least one"},
		{"NullTargets", "targets:\n", "1: targets: has no value; give one, or leave the key out"},
		{"FlowReferenceInText", "targets: [{name: a, bare: {password: x${env:SECRET}}}]\n", "in quotes)"},
		{"NoSpaceAfterTheColon", "targets: [{name: a, bare: {password:hunter2}}]\n", "1: targets[0].bare.password: unknown key (a space is missing after the colon)"},
		{"NoSpaceAfterTheColonTwice", "targets: [{name: a, bare: {password:hunter2, password:hunter2}}]\n", "1: targets[0].bare.password: given twice"},
		{"ReferenceAsKey", "targets: [{name: a, bare: {password: x}, groups: {'${env:SECRET}': {directory: d}}}]\ndirectory: {file: {path: x}}\n",
			`1: targets[0].groups["${env:SECRET}"]: references are followed in values, not in keys`},
		{"EmptyCAFile", "targets: [{name: a, disk: {url: https://x, username: u, password: x, ca_file: '${env:EMPTY}', scope: {clusters: [c]}}}]\n",
			"1: targets[0].disk.ca_file: empty"},
		{"AnchorLikePassword", "targets:\n- bare: {password: *hunter2}\n", "2: unknown anchor … referenced"},
		{"AllInterfaces", sound + "listen: {grpc: ':9090'}\n", "2: listen.grpc: reaches beyond loopback"},
		{"HostName", sound + "listen: {http: 'gateway:80'}\n", "2: listen.http: reaches beyond loopback"},
		{"AdminBeyondLoopback", sound + "listen: {admin: '10.0.0.1:80'}\n", "2: listen.admin: reaches beyond loopback"},
		{"NotInsecure", sound + "listen: {insecure: false, grpc: '10.0.0.1:80'}\n", "2: listen.grpc: reaches beyond loopback"},
		{"InsecureAsText", sound + "listen: {insecure: 'true'}\n", "2: listen.insecure: want true or false, got a text"},
		{"SameAddress", sound + "listen: {grpc: '127.0.0.1:8080'}\n", "2: listen.grpc: the address is listen.http's default"},
		{"SameAddressTwice", sound + "listen: {http: '127.0.0.1:1',\n grpc: '127.0.0.1:1'}\n", "2: listen.http: the address is listen.grpc's already"},
		{"AnyFreePort", sound + "listen: {http: '127.0.0.1:0', grpc: '127.0.0.1:0', admin: x}\n", "2: listen.admin: want"},
		{"EmptyStore", sound + "store: {}\n", "2: store: want sqlite or postgres"},
		{"PostgresWithoutDSN", sound + "store: {postgres: {}}\n", "2: store.postgres.dsn: required"},
		{"PostgresEmptyDSN", sound + "store: {postgres: {dsn: ' '}}\n", "2: store.postgres.dsn: empty"},
		{"ShortLease", sound + "store: {postgres: {dsn: x, lease: 2s}}\n", "2: store.postgres.lease: want 3s to 10m"},
		{"LongLease", sound + "store: {postgres: {dsn: x, lease: 1h}}\n", "2: store.postgres.lease: want 3s to 10m"},
		{"TwoStores", sound + "store: {postgres: {dsn: x}, sqlite: {path: y}}\n", "2: store: want sqlite or postgres, not both"},
		{"EmptyDirectory", sound + "directory: {}\n", "2: directory: want file or ldap"},
		{"ClientCA", sound + "listen: {tls: {cert_file: a, key_file: b, client_ca_file: c}}\n", "2: listen.tls.client_ca_file: has no effect without auth.mtls"},
		{"NoAuth", sound + "auth: {}\n", "2: auth: lets nobody in"},
		{"NoMTLS", sound + "auth: {mtls: false}\n", "2: auth: lets nobody in"},
		{"MTLSAsText", sound + "auth: {mtls: 'yes'}\n", "2: auth.mtls: want true or false, got a text"},
		{"MTLSWithoutName", sound + "auth: {mtls: {}}\n", "2: auth.mtls.name: required"},
		{"MTLSOtherName", sound + "auth: {mtls: {name: ip}}\n", "2: auth.mtls.name: want one of subject, cn, dns, email, spiffe"},
		{"MTLSWithoutCA", sound + "auth: {mtls: true}\n", "2: auth.mtls: needs listen.tls.client_ca_file"},
		{"ClientCAWithoutMTLS", sound + aKey + "listen: {tls: {cert_file: a, key_file: b, client_ca_file: c}}\n", "3: listen.tls.client_ca_file: has no effect without auth.mtls"},
		{"EmptyClientCA", sound + "listen: {tls: {cert_file: a, key_file: b, client_ca_file: '${env:EMPTY}'}}\n", "2: listen.tls.client_ca_file: empty"},
		{"KeyWithoutName", sound + "auth: {api_keys: [{sha256: ['" + hash1 + "']}]}\n", "2: auth.api_keys[0].name: required"},
		{"CallerWithoutKey", sound + "auth: {api_keys: [{name: a}]}\n", "2: auth.api_keys[0]: has no key"},
		{"SameCaller", sound + "auth: {api_keys: [{name: a, sha256: ['" + hash1 + "']}, {name: a, sha256: ['" + hash2 + "']}]}\n", "2: auth.api_keys[1].name: the name is taken in line 2"},
		{"SameKey", sound + "auth: {api_keys: [{name: a, sha256: ['" + hash1 + "']}, {name: b, keys: [{sha256: '" + hash1 + "', not_after: 2100-01-01}]}]}\n", "2: auth.api_keys[1].keys[0]: the key is at auth.api_keys[0].sha256[0] already"},
		{"ShortHash", sound + "auth: {api_keys: [{name: a, sha256: ['00']}]}\n", "2: auth.api_keys[0].sha256[0]: want 64 hexadecimal digits"},
		{"TheKeyItself", sound + "auth: {api_keys: [{name: a, sha256: ['esk_abcdefghij_x']}]}\n", "2: auth.api_keys[0].sha256[0]: this is the key itself"},
		{"KeyWithoutEnd", sound + "auth: {api_keys: [{name: a, keys: [{sha256: '" + hash1 + "'}]}]}\n", "2: auth.api_keys[0].keys[0].not_after: required"},
		{"KeyWithOtherEnd", sound + "auth: {api_keys: [{name: a, keys: [{sha256: '" + hash1 + "', not_after: never}]}]}\n", "2: auth.api_keys[0].keys[0].not_after: want a time"},
		{"OneHash", sound + "auth: {api_keys: [{name: a, sha256: '" + hash1 + "'}]}\n", "2: auth.api_keys[0].sha256: want a list"},
		{"IssuerWithoutAudience", sound + "auth: {oidc: [{issuer: https://a}]}\n", "2: auth.oidc[0].audience: required"},
		{"EmptyAudience", sound + "auth: {oidc: [{issuer: https://a, audience: '${env:EMPTY}'}]}\n", "2: auth.oidc[0].audience:"},
		{"EmptyAudiences", sound + "auth: {oidc: [{issuer: https://a, audience: []}]}\n", "2: auth.oidc[0].audience: empty"},
		{"PlainIssuer", sound + "auth: {oidc: [{issuer: http://idp.example, audience: x}]}\n", "2: auth.oidc[0].issuer: want https"},
		{"IssuerWithUser", sound + "auth: {oidc: [{issuer: 'https://a@idp.example', audience: x}]}\n", "2: auth.oidc[0].issuer: want a URL without user"},
		{"SameIssuer", sound + "auth: {oidc: [{issuer: https://a, audience: x, alias: a}, {issuer: https://a, audience: y, alias: b}]}\n", "2: auth.oidc[1].issuer: is in line 2 already"},
		{"NoAlias", sound + "auth: {oidc: [{issuer: https://a, audience: x, alias: a}, {issuer: https://b, audience: y}]}\n", "2: auth.oidc[1].alias: required"},
		{"SameAlias", sound + "auth: {oidc: [{issuer: https://a, audience: x, alias: a}, {issuer: https://b, audience: y, alias: a}]}\n", "2: auth.oidc[1].alias: is in line 2 already"},
		{"AliasWithSlash", sound + "auth: {oidc: [{issuer: https://a, audience: x, alias: a/b}]}\n", "2: auth.oidc[0].alias: want lower-case"},
		{"EmptyNameClaim", sound + "auth: {oidc: [{issuer: https://a, audience: x, name_claim: ' '}]}\n", "2: auth.oidc[0].name_claim: empty"},
		{"NoAlgorithms", sound + "auth: {oidc: [{issuer: https://a, audience: x, algorithms: []}]}\n", "2: auth.oidc[0].algorithms: empty"},
		{"RequiredClaimWithoutValue", sound + "auth: {oidc: [{issuer: https://a, audience: x, required_claims: {azp: []}}]}\n", "2: auth.oidc[0].required_claims.azp: empty"},
		{"HealthToOthers", sound + "listen: {health: everybody}\n", "2: listen.health: want open, authenticated or off"},
		{"InsecureElsewhere", sound + "listen: {insecure: [rest]}\n", "2: listen.insecure[0]: want grpc, http or admin"},
		{"InsecureAdminAlone", sound + "listen: {insecure: [admin], grpc: '10.0.0.1:80'}\n", "2: listen.grpc: reaches beyond loopback, and callers are not authenticated"},
		{"AuthWithoutTLS", sound + aKey + "listen: {grpc: '10.0.0.1:80'}\n", "3: listen.grpc: reaches beyond loopback without TLS"},
		{"TLSWithoutAuth", sound + "listen: {http: '10.0.0.1:80', tls: {cert_file: a, key_file: b}}\n", "2: listen.http: reaches beyond loopback, and callers are not authenticated"},
		{"AdminWithAuthAndTLS", sound + aKey + "listen: {admin: '10.0.0.1:80', tls: {cert_file: a, key_file: b}}\n", "3: listen.admin: reaches beyond loopback, and has neither TLS nor authentication"},
		{"RetentionUnit", sound + "retention: 2w\n", `2: retention: want a time span`},
		{"RetentionNumber", sound + "retention: 90\n", `2: retention: want a time span`},
		{"RetentionTooLong", sound + "retention: 36501d\n", `2: retention: longer than 100 years`},
		{"CheckIntervalShort", sound + "check_interval: 29s\n", `2: check_interval: want 30s to 1d`},
		{"CheckIntervalLong", sound + "check_interval: 25h\n", `2: check_interval: want 30s to 1d`},
		{"CheckIntervalNegative", sound + "check_interval: -1s\n", `2: check_interval: want a time span`},
		{"CheckIntervalUnit", sound + "check_interval: 5\n", `2: check_interval: want a time span`},
		{"RetentionOrder", sound + "retention: 1m1h\n", `2: retention: want a time span`},
		{"LongName", "targets: [{name: " + strings.Repeat("a", 64) + ", bare: {}}]\n", "1: targets[0].name: want lower-case"},
		{"HyphenName", "targets: [{name: a-, bare: {}}]\n", "1: targets[0].name: want lower-case"},
		{"SameName", "targets:\n- {name: a, bare: {}}\n- {name: a, bare: {}}\n", "3: targets[1].name: the name is taken by the target in line 2"},
		{"Concurrency", "targets: [{name: a, bare: {}, concurrency: 1001}]\n", "1: targets[0].concurrency: want 1 to 1000"},
		{"SecretAsConcurrency", "targets: [{name: a, bare: {}, concurrency: '${env:SECRET}'}]\n", "want a whole number (the value comes from"},
		{"RateQuotesReference", "targets: [{name: a, bare: {}, retry_for: '${env:SHORT}'}]\n", "not valid (more is not said"},
		{"NoDirectory", "targets: [{name: a, bare: {}, groups: {g: {directory: d}}}]\n", "1: targets[0].groups.g: there is no directory"},
		{"NoRules", sound + "policy: []\n", "2: policy: has no rules"},
		{"PolicyAsMapping", sound + "policy: {name: a}\n", "2: policy: want a list, got a mapping"},
		{"AliasAsPolicy", sound + "policy: &a []\n", "2: policy: anchors"},
		{"RuleWithoutName", sound + "policy: [{allow: 'true'}]\n", "2: policy[0].name: required"},
		{"RuleNames", sound + "policy:\n- {name: A b, allow: 'true'}\n", "3: policy[0].name: want lower-case"},
		{"SameRuleName", sound + "policy:\n- {name: a, allow: 'true'}\n- {name: a, allow: 'true'}\n", "4: policy[1].name: the name is taken by the rule in line 3"},
		{"NoExpression", sound + "policy: [{name: a}]\n", "2: policy[0]: want allow or deny"},
		{"TwoExpressions", sound + "policy:\n- name: a\n  allow: x\n  deny: y\n", "5: policy[0].deny: the rule has allow already (line 4)"},
		{"BlankExpression", sound + "policy: [{name: a, deny: ' '}]\n", "2: policy[0].deny: empty expression"},
		{"ExpressionAsBool", sound + "policy: [{name: a, allow: true}]\n", "2: policy[0].allow: want a text, got a truth value"},
		{"NoRights", sound + "policy: [{name: a, allow: 'true', rights: []}]\n", "2: policy[0].rights: empty"},
		{"UnknownRight", sound + "policy: [{name: a, allow: 'true', rights: [read, kill]}]\n", "2: policy[0].rights[1]: unknown right; want one of invalidate, preview,"},
		{"RightTwice", sound + "policy: [{name: a, allow: 'true', rights: [read, read]}]\n", "2: policy[0].rights[1]: named twice"},
		{"MisspeltTerm", sound + "policy: [{name: a, allow: 'true', unlimted: true}]\n", `2: policy[0].unlimted: unknown key (did you mean "unlimited"?)`},
		{"NoSessions", sound + "policy: [{name: a, allow: 'true', max_sessions: 0}]\n", "2: policy[0].max_sessions: want 1 to 1000000"},
		{"DenyWithTerms", sound + "policy: [{name: a, deny: 'true', may_name: false}]\n", "2: policy[0].may_name: a rule that denies"},
		{"EmptyProtected", sound + "protected: {}\n", "2: protected.users: required"},
		{"NobodyProtected", sound + "protected: {users: []}\n", "2: protected.users: empty"},
		{"BlankProtected", sound + "protected: {users: [a, '${env:EMPTY}']}\n", "2: protected.users[1]: empty"},
		{"BlankProtectedAtTarget", "targets: [{name: a, bare: {}, protected: {users: [' ']}}]\n", "1: targets[0].protected.users[0]: empty"},
		{"NoLimits", sound + "limits: {}\n", "2: limits.calls_per_caller: required"},
		{"BurstAlone", sound + "limits: {burst: 3}\n", "2: limits.calls_per_caller: required"},
		{"NoBurst", sound + "limits: {calls_per_caller: 5/s, burst: 0}\n", "2: limits.burst: want 1 to 1000000"},
		{"UnknownAuditKey", sound + "audit: {keys: [x]}\n", `2: audit.keys: unknown key`},
		{"EmptyAuditKey", sound + "audit: {key: '${env:EMPTY}'}\n", "2: audit.key: empty"},
		{"PreviousKeysAsText", sound + "audit: {previous_keys: hunter2}\n", "2: audit.previous_keys: want a list"},
		{"AuditRetentionShort", sound + "retention: 30d\naudit: {retention: 29d}\n", "3: audit.retention: want at least the 30d that invalidations are kept (retention)"},
		{"AuditRetentionShorterThanTheDefault", sound + "audit: {retention: 89d}\n", "2: audit.retention: want at least the 90d"},
		{"AuditRetentionUnit", sound + "audit: {retention: forever}\n", "2: audit.retention: want a time span"},
		{"Deep", "auth: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "\n" + sound, "nested too deeply"},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := parse(x.text)
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Fatalf("got %v, want %q", err, x.want)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "secret-value") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

// TestSoundTargetsSurvive: whoever looks further into a configuration with problems gets what is sound, and only that.
func TestSoundTargetsSurvive(t *testing.T) {
	c, err := parse("directory: {flie: {path: x.yaml}}\nretention: soon\ntargets:\n" +
		"- {name: a, bare: {password: '${env:SECRET}'}}\n- {name: b, bare: {pass: x}}\n- {name: c, bare: {}, groups: {g: {directory: d}}}\n")
	if err == nil {
		t.Fatal("no error")
	}
	if len(c.Targets) != 1 || c.Targets[0].Name != "a" {
		t.Errorf("got %d targets, want a alone", len(c.Targets))
	}
	if c.Directory != nil {
		t.Error("a directory with problems is kept")
	}
}

// TestAuditRetention: events are kept at least as long as the invalidations that they tell of.
func TestAuditRetention(t *testing.T) {
	for text, want := range map[string]config.Duration{
		"":                                400 * day,
		"retention: 30d\n":                400 * day,
		"retention: 500d\n":               500 * day,
		"audit: {key: '${env:SECRET}'}\n": 400 * day,
		"retention: 30d\naudit: {retention: 30d}\n": 30 * day,
	} {
		c, err := parse(sound + text)
		if err != nil || c.Audit.Retention != want {
			t.Errorf("%q: got %v, %v; want %v", text, c.Audit.Retention, err, want)
		}
	}
}

const day = config.Duration(24 * time.Hour)

func TestReferences(t *testing.T) {
	c, err := parse("listen: {insecure: '${env:YES}', grpc: '0.0.0.0:1', http: 'localhost:0', admin: 'localhost:0'}\n" +
		"targets:\n- name: a\n  bare: {password: 'a$${env:SECRET}$b$$c', level: '${env:APM_CONCURRENCY}'}\n")
	if err != nil {
		t.Fatal(err)
	}
	own := c.Targets[0].Config.(*bare)
	if got, want := own.Password.Reveal(), "a${env:SECRET}$b$$c"; got != want {
		t.Errorf("password: got %q, want %q", got, want)
	}
	if own.Level != 16 {
		t.Errorf("level: got %d, want 16", own.Level)
	}
	if w := strings.Join(c.Warnings, "\n"); !strings.Contains(w, "listen.grpc: reaches beyond loopback") ||
		!strings.Contains(w, "etc/endsession.yaml:4: targets[0].bare.password: the secret is written in the file") || len(c.Warnings) != 2 {
		t.Errorf("warnings: got %s", w)
	}
}

// TestHiddenExpressionsStayHidden: what came out of a reference is not shown in errors, and not in the effective
// configuration either.
func TestHiddenExpressionsStayHidden(t *testing.T) {
	c, err := parse("targets:\n- name: a\n  bare: {password: '${env:SECRET}'}\n" +
		"  usernames: ['user.id + \"${env:SECRET}\"', 'user.email', {provider: ldap, name: '${env:SECRET}'}]\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Targets[0].Usernames[0].Name; got != `user.id + "secret-value"` {
		t.Errorf("the expression is %q", got)
	}
	var out strings.Builder
	if err := c.Effective(&out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, "secret-value") || strings.Count(got, "redacted") != 3 || !strings.Contains(got, "user.email") {
		t.Errorf("the effective configuration is\n%s", got)
	}
}

func TestReferencesAreReadFromTheRealEnvironment(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("ENDSESSION_TEST_LEVEL", "3")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("password", "one\ntwo\n")
	write("big", strings.Repeat("x", 1<<20+1))
	write("good.yaml", "targets:\n- name: a\n  bare:\n    password: ${file:password}\n    level: ${env:ENDSESSION_TEST_LEVEL}\n")
	write("bad.yaml", "targets:\n- name: a\n  bare:\n    password: ${file:big}\n")
	c, err := config.Load(filepath.Join(dir, "good.yaml"), registry)
	if err != nil {
		t.Fatal(err)
	}
	if own := c.Targets[0].Config.(*bare); own.Password.Reveal() != "one\ntwo" || own.Level != 3 {
		t.Errorf("got %q and %d", own.Password.Reveal(), own.Level)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	if _, err := config.Load(filepath.Join(dir, "bad.yaml"), registry); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("large file: got %v", err)
	}
	if _, err := config.Load(filepath.Join(dir, "none.yaml"), registry); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "1d2h3m4s": 26*time.Hour + 3*time.Minute + 4*time.Second, "90m": 90 * time.Minute, "36500d": 36500 * 24 * time.Hour,
	} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%s: got %v, %v", text, time.Duration(d), err)
		}
		var again config.Duration
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Errorf("%s: written as %s, read back as %v, %v", text, d, again, err)
		}
	}
	for _, text := range []string{"", "0s", "-1d", "1.5h", "1", "d", "1d 2h", "1ms", "999999999999999999999d", "36500d1s"} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, d)
		}
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]float64{"20/s": 20, "120/m": 2, "3600/h": 1} {
		var r config.Rate
		if err := r.UnmarshalText([]byte(text)); err != nil || r.PerSecond() != want || r.String() != text {
			t.Errorf("%s: got %v (%s), %v", text, r.PerSecond(), r, err)
		}
	}
	for _, text := range []string{"", "20", "0/s", "-1/s", "1/d", "1.5/s", "/s", "+1/s", "01/s", "1 /s", "1000001/s"} {
		var r config.Rate
		if err := r.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, r)
		}
	}
}

// FuzzParse: nothing in a file makes the parser panic, and a file is either refused or can be written out again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(sound))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse("etc/endsession.yaml", data, registry, environment)
		if err != nil {
			return
		}
		if len(c.Targets) == 0 {
			t.Fatal("no targets and no error")
		}
		var out strings.Builder
		if err := c.Effective(&out); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "from-a-file") {
			t.Fatalf("the effective configuration shows a secret:\n%s", &out)
		}
	})
}

// References inside { } are written without quotes in every example, although YAML does not read them so.
func TestReferencesNeedNoQuotesInsideBraces(t *testing.T) {
	for _, text := range []string{
		"store: { postgres: { dsn: ${env:SECRET} } }\n",
		"store: {postgres: {dsn: ${env:SECRET}}}\n",
		"store:\n  postgres: { dsn: \"${env:SECRET}\" }\n",
		"store:\n  postgres:\n    dsn: ${env:SECRET}\n",
	} {
		c, err := parse("targets: [ { name: a, bare: { password: ${env:SECRET} } } ]\n" + text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := c.Store.Postgres.DSN.Reveal(); got != "secret-value" {
			t.Errorf("%s: dsn = %q, want the variable's value", text, got)
		}
	}
}
