package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// page is what a page about a kind of target shows, and who must be gone after each of its examples.
type page struct {
	file, target string
	// system stands for the page's target, with the page's account.
	system func() emulated
	// examples are the requests without the target's name and the confirmation, and the run as in the matrix.
	examples map[string]string
}

// listedSession is the session that Element's page ends by its id.
const listedSession = "b12bfc64-f233-44df-8b9f-6fb6c011abf7"

var pages = []page{
	{file: "bigiq.md", target: "apm",
		system: func() emulated {
			return bigiqtest.New(bigiqtest.Options{Username: "svc-endsession", Password: labBIGIQPassword})
		},
		examples: map[string]string{
			`{"user":{"id":"alice"}}`: "SUCCEEDED: alice-blue alice-branch alice-guest",
			`{"user":{"id":"alice"},"provider":{"type":"saml","name":"okta"}}`:               "SUCCEEDED: alice-guest",
			`{"user":{"id":"alice"},"group":"dmz"}`:                                          "SUCCEEDED: alice-blue alice-branch",
			`{"user":{"id":"alice"},"provider":{"type":"saml","name":"okta"},"group":"vpn"}`: "SUCCEEDED: alice-guest",
			`{"provider":{"type":"saml","name":"okta"}}`:                                     "SUCCEEDED: alice-guest carol-guest a17-guest quoted-guest twin-guest",
			`{"group":"vpn"}`: "SUCCEEDED: alice-red carol-red zoë-red alice2-red mail-red zoe-red zoe2-red twin-red alice-branch bob-branch ali-branch alice-guest carol-guest a17-guest quoted-guest twin-guest",
			`{"provider":{"type":"saml","name":"okta"},"group":"vpn"}`: "SUCCEEDED: alice-guest carol-guest a17-guest quoted-guest twin-guest",
			`{"all":true}`: "SUCCEEDED: alice-blue bob-blue brien-blue c42-blue Alice-blue spaced-blue brien2-blue alice-branch bob-branch ali-branch alice-guest carol-guest a17-guest quoted-guest twin-guest",
			`{"sessions":[{"target":"apm","device":"3f320100-2177-42e0-8a46-2e33cd3366d0","id":"2a5d7604"}]}`: "SUCCEEDED: twin-guest",
			`{"user":{"id":"alice"},"provider":{"type":"ldap"}}`:                                              unsupported,
			`{"provider":{"type":"saml","name":"okta"},"group":"dmz"}`:                                        unsupported,
		}},
	{file: "kibana.md", target: "kibana-prod",
		system: func() emulated {
			return kibanatest.New(kibanatest.Options{
				Accounts: []kibanatest.Account{{APIKey: labKibanaKey, Superuser: true}},
				Providers: []kibanatest.Provider{
					{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}, {Type: "saml", Name: "saml2"}, {Type: "oidc", Name: "oidc1"},
				},
			})
		},
		examples: map[string]string{
			`{"user":{"id":"alice","email":"alice@corp.example"}}`:                             "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
			`{"user":{"id":"alice"},"provider":{"type":"ldap"}}`:                               "SUCCEEDED: alice-basic",
			`{"user":{"id":"alice"},"group":"staff"}`:                                          "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
			`{"user":{"id":"alice"},"provider":{"type":"saml","name":"okta"},"group":"staff"}`: "SUCCEEDED: alice-saml1",
			`{"provider":{"type":"saml","name":"okta"}}`:                                       "SUCCEEDED: alice-saml1 bob-saml1 zoë-saml1 Alice-saml1 aliceorg-saml1 short-saml1 zoe-saml1 login-saml1",
			`{"provider":{"type":"saml","name":"saml2"}}`:                                      "SUCCEEDED: alice-saml2 carol-saml2 spaced-saml2",
			`{"group":"staff"}`: "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos zoë-saml1 zoë-basic",
			`{"provider":{"type":"saml","name":"okta"},"group":"staff"}`: "SUCCEEDED: alice-saml1 zoë-saml1",
			`{"all":true}`: "SUCCEEDED: *",
			`{"provider":{"type":"saml","name":"saml3"}}`: noProvider,
			`{"group":"vpn"}`: noGroup,
			`{"sessions":[{"target":"kibana-prod","id":"8c2f0a"}]}`: unsupported,
		}},
	{file: "element.md", target: "storage",
		system: func() emulated {
			return elementtest.New(elementtest.Options{Username: "svc-endsession", Password: labElementPassword})
		},
		examples: map[string]string{
			`{"user":{"id":"alice","email":"alice@corp.example"}}`:                          "SUCCEEDED: alice-local alice-ldap alice-idp",
			`{"user":{"id":"alice"},"provider":{"type":"ldap"}}`:                            "SUCCEEDED: alice-ldap",
			`{"user":{"id":"alice","email":"alice@corp.example"},"group":"storage-admins"}`: "SUCCEEDED: alice-local alice-ldap",
			`{"user":{"id":"alice"},"provider":{"type":"local"},"group":"ops"}`:             "SUCCEEDED: alice-local",
			`{"provider":{"type":"ldap"}}`:                                                  "SUCCEEDED: alice-ldap bob-ldap zoë-ldap brien-ldap short-ldap bobshort-ldap Uid-ldap zoe-ldap brien2-ldap",
			`{"group":"storage-admins"}`:                                                    "SUCCEEDED: admin-local alice-local alice-ldap bob-ldap bob-idp Alice-local",
			`{"group":"ops"}`:                                                               "SUCCEEDED: alice-local bob-idp",
			`{"provider":{"type":"saml"},"group":"ops"}`:                                    "SUCCEEDED: bob-idp",
			`{"all":true}`: "SUCCEEDED: *",
			`{"sessions":[{"target":"storage","id":"` + listedSession + `"}]}`: "SUCCEEDED: carol-idp",
			`{"provider":{"type":"saml","name":"okta"}}`:                       noProvider,
			`{"group":"vpn"}`: noGroup,
		}},
}

// lab is one with the page's system alone.
func (p page) lab() *lab {
	l := &lab{targets: []string{p.target}, systems: map[string]emulated{p.target: p.system()}, keys: map[[2]string]adapters.SessionKey{}}
	for _, s := range seats() {
		if s.target != p.target {
			continue
		}
		if s.label == "carol-idp" {
			s.session.ID = listedSession
		}
		l.seats = append(l.seats, s)
	}
	l.signIn()
	return l
}

// configure writes the page's configuration to a directory. The directory of people is the lab's.
func (p page) configure(t *testing.T) (path string) {
	t.Helper()
	dir := t.TempDir()
	shown := blocks(t, filepath.Join("../../docs/targets", p.file), "yaml")
	if len(shown) == 0 || !strings.HasPrefix(shown[0], "targets:") {
		t.Fatal("the page does not begin with a configuration")
	}
	people, err := os.ReadFile("testdata/people.yaml")
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "password")
	path = filepath.Join(dir, "endsession.yaml")
	for name, text := range map[string]string{
		path: "listen: { grpc: '127.0.0.1:0', http: '127.0.0.1:0', admin: '127.0.0.1:0' }\ncheck_interval: never\n" +
			"directory: { file: { path: people.yaml } }\n" + strings.ReplaceAll(shown[0], "/run/secrets/bigiq", secret),
		filepath.Join(dir, "people.yaml"): string(people),
		secret:                            labBIGIQPassword + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// requests are the page's examples, by their selectors in the shortest form.
func (p page) requests(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, block := range blocks(t, filepath.Join("../../docs/targets", p.file), "json") {
		for line := range strings.Lines(block) {
			var request struct{ Selector selectorShown }
			if err := json.Unmarshal([]byte(line), &request); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			key, err := json.Marshal(request.Selector)
			if err != nil {
				t.Fatal(err)
			}
			if _, twice := found[string(key)]; twice {
				t.Errorf("%s comes twice", key)
			}
			found[string(key)] = line
		}
	}
	return found
}

// selectorShown brings the members of a selector into one order.
type selectorShown struct {
	User *struct {
		ID    string `json:"id"`
		Email string `json:"email,omitempty"`
	} `json:"user,omitempty"`
	Provider *struct {
		Type string `json:"type"`
		Name string `json:"name,omitempty"`
	} `json:"provider,omitempty"`
	Group    string `json:"group,omitempty"`
	Sessions []struct {
		Target string `json:"target"`
		Device string `json:"device,omitempty"`
		ID     string `json:"id"`
	} `json:"sessions,omitempty"`
	All bool `json:"all,omitempty"`
}

// criteria are those that the selector has, in the API's words and order.
func (s selectorShown) criteria() string {
	var words []string
	for _, c := range []struct {
		has  bool
		name string
	}{{s.User != nil, "USER"}, {s.Provider != nil, "PROVIDER"}, {s.Group != "", "GROUP"}, {s.Sessions != nil, "SESSIONS"}, {s.All, "ALL"}} {
		if c.has {
			words = append(words, c.name)
		}
	}
	return strings.Join(words, "+")
}

// TestTargetPagesDoWhatTheySay loads each page's configuration as serve does, opens it against the emulator, sends each
// example, and looks who is gone.
func TestTargetPagesDoWhatTheySay(t *testing.T) {
	for _, p := range pages {
		requests := p.requests(t)
		if got, want := slices.Sorted(maps.Keys(requests)), slices.Sorted(maps.Keys(p.examples)); !slices.Equal(got, want) {
			t.Errorf("%s shows\n%s\nand this test knows\n%s", p.file, strings.Join(got, "\n"), strings.Join(want, "\n"))
			continue
		}
		t.Run(p.file+"/Check", func(t *testing.T) {
			path := p.configure(t)
			synctest.Test(t, func(t *testing.T) {
				g := startInMemory(t, p.lab(), path)
				client := endsessionv1.NewSessionServiceClient(g.grpc)
				health, err := client.CheckTarget(t.Context(), &endsessionv1.CheckTargetRequest{Target: p.target})
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range health.GetChecks() {
					if c.GetStatus() != endsessionv1.CheckStatus_CHECK_STATUS_OK {
						t.Errorf("%v", c)
					}
				}
				all, err := client.ListTargets(t.Context(), &endsessionv1.ListTargetsRequest{})
				if err != nil || len(all.GetTargets()) != 1 {
					t.Fatalf("%v, %v", all, err)
				}
				// Every combination of criteria that the configuration supports has an example that ends somebody.
				shown := map[string]bool{}
				for key, run := range p.examples {
					var s selectorShown
					if err := json.Unmarshal([]byte(key), &s); err != nil {
						t.Fatal(err)
					}
					shown[s.criteria()] = shown[s.criteria()] || strings.Contains(run, ":")
				}
				for _, c := range all.GetTargets()[0].GetSupportedCriteria() {
					var words []string
					for _, x := range c.GetCriteria() {
						words = append(words, word(x, "CRITERION_"))
					}
					if !shown[strings.Join(words, "+")] {
						t.Errorf("the page shows no selector by %s", strings.Join(words, "+"))
					}
				}
			})
		})
		for i, key := range slices.Sorted(maps.Keys(p.examples)) {
			run := p.examples[key]
			t.Run(fmt.Sprintf("%s/%d", p.file, i), func(t *testing.T) {
				path := p.configure(t)
				state := endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED
				if strings.HasPrefix(run, "UNSUPPORTED") {
					state = endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED
				}
				synctest.Test(t, func(t *testing.T) {
					g := startInMemory(t, p.lab(), path)
					g.end(t, matrixCase{name: key, body: requests[key], state: stateWord(state), runs: map[string]string{p.target: run}}, "REST")
					if t.Failed() {
						t.Logf("%s\nthe gateway's log:\n%s", key, g.log)
					}
				})
			})
		}
	}
}
