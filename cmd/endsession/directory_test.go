package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/identity/ldap/slapdtest"
)

// TestDirectoryGuide loads the entries of the guide into a server, and does with its configurations what it says of them.
// Only the servers' addresses are put in.
func TestDirectoryGuide(t *testing.T) {
	const guide = "../../docs/directory.md"
	yaml, ldif := blocks(t, guide, "yaml"), blocks(t, guide, "ldif")
	if len(yaml) != 3 || len(ldif) != 1 {
		t.Fatalf("the guide has %d configurations and %d sets of entries", len(yaml), len(ldif))
	}
	s := slapdtest.New(t, slapdtest.Options{Access: guidesAccess(t, guide)})
	s.Load(t, ldif[0])
	for _, x := range []struct {
		name          string
		configuration string
		body          string
		runs          map[string]string // nil: it is only loaded
	}{
		{"OpenLDAPUser", yaml[0], `{"selector": {"user": {"id": "alice"}}}`,
			map[string]string{"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos", "storage": "SUCCEEDED: alice-local alice-ldap"}},
		{"OpenLDAPUnknownUser", yaml[0], `{"selector": {"user": {"id": "Alice"}}}`, map[string]string{"kibana-prod": "FAILED NO_IDENTITY", "storage": "FAILED NO_IDENTITY"}},
		{"OpenLDAPGroup", yaml[0], `{"selector": {"group": "staff"}, "confirmBroad": true, "targets": ["storage"]}`,
			map[string]string{"storage": "SUCCEEDED: alice-local alice-ldap bob-local bob-ldap"}},
		{"POSIX", yaml[1], `{"selector": {"group": "ops"}, "confirmBroad": true}`, map[string]string{"kibana-prod": "SUCCEEDED: bob-saml1 bob-basic"}},
		{"ActiveDirectory", yaml[2], "", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range authorities {
				certificate(t, filepath.Join(dir, name), "")
			}
			ca, err := os.ReadFile(s.CAFile())
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "endsession.yaml")
			// The first of two servers is not there.
			text := strings.Replace(x.configuration, "ldaps://ldap1.example.com', 'ldaps://ldap2.example.com", "ldaps://127.0.0.1:1', '"+s.TLSURL(), 1)
			text = strings.Replace(text, "ldaps://ldap1.example.com", s.TLSURL(), 1)
			for name, content := range map[string]string{
				path: text + "listen: { grpc: '127.0.0.1:0', http: '127.0.0.1:0', admin: '127.0.0.1:0' }\n", "ldap-ca.pem": string(ca), "ldap.password": slapdtest.Password + "\n",
			} {
				if name != path {
					name = filepath.Join(dir, name)
				}
				if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if x.runs == nil {
				for name, value := range labEnv {
					t.Setenv(name, value)
				}
				conf, err := config.Load(path, registry())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := server.Check(conf); err != nil {
					t.Fatal(err)
				}
				return
			}
			g := &memoryGateway{inProcess: startInProcess(t, newLab(), path, nil), http: http.DefaultClient}
			status, answer := post(t, http.DefaultClient, fmt.Sprintf("http://%s/v1/sessions:invalidate", g.srv.HTTPAddr()), x.body)
			if status != 200 {
				t.Fatalf("HTTP %d: %s\n%s", status, answer, g.log)
			}
			for target, want := range x.runs {
				state, reasons, dies := g.expected(t, target, want)
				if gone := g.lab.gone(target); !slices.Equal(gone, dies) {
					t.Errorf("%s: signed out %v, want %v", target, gone, dies)
				}
				for _, word := range append(reasons, "RUN_STATE_"+state) {
					if !strings.Contains(answer, word) {
						t.Errorf("%s: no %s in %s", target, word, answer)
					}
				}
			}
		})
	}
}

// guidesAccess returns the rules of access that the guide recommends: they must be enough.
func guidesAccess(t *testing.T, guide string) string {
	t.Helper()
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```\n(access to .*?)```").FindStringSubmatch(string(text))
	if m == nil {
		t.Fatal("the guide recommends no rules of access")
	}
	// What these rules do not allow, and the guide says is needed for another style of group, is refused.
	return strings.Replace(m[1], "cn,member\n", "cn,member,memberUid\n", 1) +
		`access to attrs=userPassword by anonymous auth by * none` + "\naccess to * by * none\n"
}
