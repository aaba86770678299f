package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

// seat is one session of the lab. Its label is what the tests call it; who it belongs to and where it is was decided
// by hand when it was written down here, and nothing of the gateway is asked about it.
type seat struct {
	target, label string
	session       adapters.Session
}

// The secrets of the lab's accounts. None of them may be in an output.
const (
	labBIGIQPassword   = "bigiq-s3cret"
	labKibanaKey       = "lab:kibana-s3cret"
	labElementPassword = "element-s3cret"
)

// decomposed is ë as two characters; it looks the same.
const decomposed = "e\u0308"

// dn is a person's name in the lab's LDAP.
func dn(uid string) string { return "uid=" + uid + ",ou=people,dc=example,dc=com" }

// seats are who is signed in, with near misses of every kind: another case, a prefix, quotes, white space, another
// provider, another group, another system's name for the same person, letters that look the same.
func seats() []seat {
	var list []seat
	at := func(target, label string, s adapters.Session) { list = append(list, seat{target, label, s}) }

	for _, target := range []string{"apm", "apm-all"} {
		on := func(label, device, username string) {
			at(target, label, adapters.Session{Username: username, Device: device})
		}
		on("alice-blue", bigiqtest.Blue1, "alice")
		on("alice-red", bigiqtest.Red2, "alice")
		on("alice-branch", bigiqtest.Branch, "alice")
		on("alice-guest", bigiqtest.Guest, "alice")
		on("alice-lone", bigiqtest.Lone, "alice") // out of apm's scope
		on("bob-blue", bigiqtest.Blue1, "bob")
		on("bob-branch", bigiqtest.Branch, "bob")
		on("bob-lone", bigiqtest.Lone, "bob")
		on("carol-red", bigiqtest.Red2, "carol")
		on("carol-guest", bigiqtest.Guest, "carol")
		on("zoë-red", bigiqtest.Red2, "zoë")
		on("brien-blue", bigiqtest.Blue1, `o"brien,+x`)
		on("a17-guest", bigiqtest.Guest, "a17")
		on("c42-blue", bigiqtest.Blue1, "c42")

		on("Alice-blue", bigiqtest.Blue1, "Alice")
		on("alice2-red", bigiqtest.Red2, "alice2")
		on("ali-branch", bigiqtest.Branch, "ali")
		on("quoted-guest", bigiqtest.Guest, `"alice"`)
		on("spaced-blue", bigiqtest.Blue1, "alice ")
		on("mail-red", bigiqtest.Red2, "alice@corp.example")
		on("zoe-red", bigiqtest.Red2, "zoe")
		on("zoe2-red", bigiqtest.Red2, "zo"+decomposed)
		on("brien2-blue", bigiqtest.Blue1, "o'brien")
		at(target, "twin-red", adapters.Session{ID: "2a5d7604", Username: "dave", Device: bigiqtest.Red2})
		at(target, "twin-guest", adapters.Session{ID: "2a5d7604", Username: "dave", Device: bigiqtest.Guest})
	}

	in := func(label, typ, name, username string) {
		at("kibana-prod", label, adapters.Session{Username: username, Provider: adapters.Provider{Type: typ, Name: name}})
	}
	in("alice-saml1", "saml", "saml1", "alice@corp.example")
	in("alice-saml2", "saml", "saml2", "alice@corp.example")
	in("alice-removed", "saml", "removed", "alice@corp.example") // of a provider that is no longer configured
	in("alice-basic", "basic", "basic", "alice@corp.example")
	in("alice-oidc", "oidc", "oidc1", "alice@corp.example")
	in("alice-token", "token", "token1", "alice@corp.example")
	in("alice-pki", "pki", "pki1", "alice@corp.example")
	in("alice-kerberos", "kerberos", "kerberos1", "alice@corp.example")
	in("bob-saml1", "saml", "saml1", "bob@corp.example")
	in("bob-basic", "basic", "basic", "bob@corp.example")
	in("carol-saml2", "saml", "saml2", "carol@corp.example")
	in("zoë-saml1", "saml", "saml1", "zoë@corp.example")
	in("zoë-basic", "basic", "basic", "zoë@corp.example")
	in("brien-basic", "basic", "basic", "o'brien@corp.example")

	in("Alice-saml1", "saml", "saml1", "Alice@corp.example")
	in("aliceorg-saml1", "saml", "saml1", "alice@corp.example.org")
	in("short-saml1", "saml", "saml1", "alice")
	in("quoted-basic", "basic", "basic", `"alice@corp.example"`)
	in("spaced-saml2", "saml", "saml2", "alice@corp.example ")
	in("zoe-saml1", "saml", "saml1", "zo"+decomposed+"@corp.example")
	in("anonymous", "anonymous", "anonymous1", "anonymous_user")
	in("login-saml1", "saml", "saml1", "") // a login in progress

	as := func(label, method, username, access string, adminID int) {
		at("storage", label, adapters.Session{Username: username, Provider: adapters.Provider{Type: method}, Groups: []adapters.Group{
			{Kind: "access_group", Name: access}, {Kind: "cluster_admin_id", Name: fmt.Sprint(adminID)},
		}})
	}
	as("admin-local", "Cluster", "admin", "administrator", 1)
	as("alice-local", "Cluster", "alice", "administrator", 9)
	as("alice-ldap", "Ldap", dn("alice"), "administrator", 11)
	as("alice-idp", "Idp", "alice@corp.example", "read", 12)
	as("bob-local", "Cluster", "bob", "read", 10)
	as("bob-ldap", "Ldap", dn("bob"), "administrator", 11)
	as("bob-idp", "Idp", "bob@corp.example", "administrator", 9)
	as("carol-idp", "Idp", "carol@corp.example", "read", 12)
	as("zoë-ldap", "Ldap", dn("zoë"), "reporting", 11)
	as("brien-ldap", "Ldap", dn(`o\"brien\,\+x`), "read", 11)

	as("Alice-local", "Cluster", "Alice", "administrator", 90)
	as("mail-local", "Cluster", "alice@corp.example", "read", 19) // the name that counts only at Idp
	as("dn-local", "Cluster", dn("alice"), "read", 99)            // the name that counts only at Ldap
	as("short-ldap", "Ldap", "alice", "read", 11)                 // the name that counts only at Cluster
	as("bobshort-ldap", "Ldap", "bob", "read", 11)
	as("short-idp", "Idp", "alice", "administrators", 12)
	as("Uid-ldap", "Ldap", "UID=alice,ou=people,dc=example,dc=com", "read", 11)
	as("zoe-ldap", "Ldap", dn("zoe"), "read", 11)
	as("brien2-ldap", "Ldap", dn(`o"brien,+x`), "read", 11)
	return list
}

// lab is the emulated systems and who is signed in to them.
type lab struct {
	targets []string
	systems map[string]emulated
	seats   []seat
	// keys are the current sessions of the seats, by target and label.
	keys map[[2]string]adapters.SessionKey
	// dial takes the gateway to its directory, if that is a server.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func newLab() *lab {
	bigiq := func() emulated {
		return bigiqtest.New(bigiqtest.Options{Username: "svc-endsession", Password: labBIGIQPassword})
	}
	l := &lab{
		targets: []string{"apm", "apm-all", "kibana-prod", "storage"},
		systems: map[string]emulated{
			"apm": bigiq(), "apm-all": bigiq(),
			"kibana-prod": kibanatest.New(kibanatest.Options{
				Accounts: []kibanatest.Account{{APIKey: labKibanaKey, Superuser: true}},
				Providers: []kibanatest.Provider{
					{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}, {Type: "saml", Name: "saml2"},
					{Type: "oidc", Name: "oidc1"}, {Type: "token", Name: "token1"}, {Type: "pki", Name: "pki1"},
					{Type: "kerberos", Name: "kerberos1"}, {Type: "anonymous", Name: "anonymous1"},
				},
			}),
			"storage": elementtest.New(elementtest.Options{Username: "admin", Password: labElementPassword}),
		},
		seats: seats(), keys: map[[2]string]adapters.SessionKey{},
	}
	l.signIn()
	return l
}

// signIn signs in whoever is not.
func (l *lab) signIn() {
	for _, s := range l.seats {
		if l.taken(s) {
			continue
		}
		x := s.session
		x.CreateTime = time.Now().Add(-time.Hour)
		l.keys[[2]string{s.target, s.label}] = l.systems[s.target].SignIn(x).Key()
	}
}

// taken reports whether the seat's session is there.
func (l *lab) taken(s seat) bool {
	key, ok := l.keys[[2]string{s.target, s.label}]
	return ok && slices.ContainsFunc(l.systems[s.target].Sessions(), func(x adapters.Session) bool { return x.Key() == key })
}

// gone returns the labels of those who are signed out of a target, in order.
func (l *lab) gone(target string) []string {
	var gone []string
	for _, s := range l.seats {
		if s.target == target && !l.taken(s) {
			gone = append(gone, s.label)
		}
	}
	slices.Sort(gone)
	return gone
}

// labels reads a list of labels; "*" stands for all of the target's and "-label" takes one away again. It fails the test
// for a label that is not there: a slip of the pen must not weaken an expectation.
func (l *lab) labels(t testing.TB, target, list string) []string {
	t.Helper()
	var all, labels []string
	for _, s := range l.seats {
		if s.target == target {
			all = append(all, s.label)
		}
	}
	for _, word := range strings.Fields(list) {
		name, minus := strings.CutPrefix(word, "-")
		switch {
		case word == "*":
			labels = append(labels, all...)
		case !slices.Contains(all, name):
			t.Fatalf("%s has no session %q", target, name)
		case minus:
			labels = slices.DeleteFunc(labels, func(x string) bool { return x == name })
		default:
			labels = append(labels, name)
		}
	}
	slices.Sort(labels)
	return labels
}

// labConfig is the configuration of testdata with other addresses.
type labConfig struct {
	dir string
	// listen are the addresses of gRPC, HTTP and admin; urls those of the targets.
	listen [3]string
	urls   map[string]string
	change func(string) string
}

var labURLs = map[string]string{
	"apm": "https://bigiq.example", "apm-all": "https://bigiq-2.example", "kibana-prod": "https://kibana.example",
	"storage": "https://mvip.example",
}

// write puts the configuration and all that it names into the directory, and returns its path.
func (c labConfig) write(t testing.TB) string {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	text := read("gateway.yaml")
	replace := func(old, with string) {
		if strings.Count(text, old) != 1 {
			t.Fatalf("testdata/gateway.yaml has %d times %q", strings.Count(text, old), old)
		}
		text = strings.Replace(text, old, with, 1)
	}
	for i, port := range []string{"127.0.0.1:9090", "127.0.0.1:8080", "127.0.0.1:9091"} {
		replace(port, c.listen[i])
	}
	for target, url := range c.urls {
		replace(labURLs[target], url)
	}
	if c.change != nil {
		text = c.change(text)
	}
	path := filepath.Join(c.dir, "endsession.yaml")
	for name, content := range map[string]string{
		path: text, filepath.Join(c.dir, "people.yaml"): read("people.yaml"),
		filepath.Join(c.dir, "bigiq.password"): labBIGIQPassword + "\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// labEnv is what the configuration reads from the environment.
var labEnv = map[string]string{"KIBANA_API_KEY": labKibanaKey, "ELEMENT_PASSWORD": labElementPassword}

// authorities are where the configuration expects the targets' certificates.
var authorities = map[string]string{"apm": "bigiq.pem", "apm-all": "bigiq-2.pem", "kibana-prod": "kibana.pem", "storage": "mvip.pem"}

// serve puts the systems behind real TLS listeners until the test ends. Each handler may be wrapped.
func (l *lab) serve(t testing.TB, dir string, wrap func(target string, h http.Handler) http.Handler) (urls map[string]string) {
	t.Helper()
	urls = map[string]string{}
	for _, target := range l.targets {
		h := l.systems[target].Handler()
		if wrap != nil {
			h = wrap(target, h)
		}
		url, ca, stop, err := emulator.ServeTLS(h)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		urls[target] = url
		if err := os.WriteFile(filepath.Join(dir, authorities[target]), ca, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return urls
}

// mutates reports whether a request to a target could end sessions.
func mutates(target, method, path string, body []byte) bool {
	switch {
	case method != http.MethodPost:
		return false
	case strings.HasPrefix(target, "apm"):
		return strings.HasSuffix(path, "/kill-sessions")
	case target == "kibana-prod":
		return strings.HasSuffix(path, "/_invalidate")
	}
	return strings.Contains(string(body), `"Delete`)
}
