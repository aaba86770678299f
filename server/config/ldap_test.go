package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/server/config"
)

func TestLDAP(t *testing.T) {
	c, err := parse(read(t, "ldap.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := c.Effective(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "ldap.golden", out.String())
	l := c.Directory.LDAP
	for _, x := range []struct{ what, got, want any }{
		{"password", l.Password.Reveal(), "secret-value"},
		{"ca_file", l.CAFile, "etc/ldap.pem"},
		{"default timeout", time.Duration(l.Timeout), 5 * time.Second},
		{"cache", time.Duration(l.Cache), time.Duration(0)},
		{"members", l.Group.Members, config.LDAPMemberOf},
		{"default nested", *l.Group.Nested, 5},
		{"default filter", l.User.Filter, "(objectClass=person)"},
		{"default id", l.User.ID, "uid"},
	} {
		if x.got != x.want {
			t.Errorf("%s: got %v, want %v", x.what, x.got, x.want)
		}
	}
}

func TestLDAPProblems(t *testing.T) {
	c, err := parse(read(t, "wrong-ldap.yaml"))
	if err == nil {
		t.Fatal("no error")
	}
	if c.Directory != nil {
		t.Error("a directory with problems is kept")
	}
	for _, hidden := range []string{"hunter2", "secret-value"} {
		if strings.Contains(err.Error(), hidden) {
			t.Errorf("the error shows %q", hidden)
		}
	}
	golden(t, "wrong-ldap.golden", err.Error()+"\n")
}

func TestOneLDAPProblem(t *testing.T) {
	const user = "user: {base: 'dc=x'}"
	for _, x := range []struct{ name, text, want string }{
		{"Empty", "{}", "2: directory.ldap.urls: required\netc/endsession.yaml:2: directory.ldap.user: required"},
		{"NoURL", "{urls: [], " + user + "}", "2: directory.ldap.urls: want at least one"},
		{"NoBase", "{urls: ['ldaps://x'], user: {}}", "2: directory.ldap.user.base: required"},
		{"NoGroupBase", "{urls: ['ldaps://x'], " + user + ", group: {}}", "2: directory.ldap.group.base: required"},
		{"PlainText", "{urls: ['ldap://ldap.example'], " + user + "}", "2: directory.ldap.urls[0]: whoever is on the way"},
		{"PlainTextOfALoopbackLikeName", "{urls: ['ldap://localhost.example'], " + user + "}", "2: directory.ldap.urls[0]: whoever is on the way"},
		{"PlainTextOnLoopback", "{urls: ['ldap://127.0.0.1:3389', 'ldap://localhost', 'ldap://[::1]'], " + user + "}", ""},
		{"StartTLS", "{urls: ['ldap://ldap.example'], start_tls: true, ca_file: x.pem, " + user + "}", ""},
		{"StartTLSWithinTLS", "{urls: ['ldaps://ldap.example'], start_tls: true, " + user + "}", "2: directory.ldap.urls[0]: start_tls is for ldap://"},
		{"CAFileForNothing", "{urls: ['ldap://localhost'], ca_file: x.pem, " + user + "}", "2: directory.ldap.ca_file: no connection is secured"},
		{"AccountWithoutPassword", "{urls: ['ldaps://x'], bind_dn: 'cn=a', " + user + "}", "2: directory.ldap.bind_dn: wants a password"},
		{"EmptyPassword", "{urls: ['ldaps://x'], bind_dn: 'cn=a', password: '${env:EMPTY}', " + user + "}", "2: directory.ldap.bind_dn: wants a password"},
		{"PasswordWithoutAccount", "{urls: ['ldaps://x'], password: '${env:SECRET}', " + user + "}", "2: directory.ldap.password: wants bind_dn"},
		{"NestedMemberUid", "{urls: ['ldaps://x'], " + user + ", group: {base: 'dc=x', members: memberUid, nested: 1}}", "2: directory.ldap.group.nested: groups with memberUid"},
		{"MemberUid", "{urls: ['ldaps://x'], " + user + ", group: {base: 'dc=x', members: memberUid}}", ""},
		{"NoSpacesInBase", "{urls: ['ldaps://x'], user: {base: ' '}}", "2: directory.ldap.user.base: want a DN"},
		{"TwoFilters", "{urls: ['ldaps://x'], user: {base: 'dc=x', filter: '(a=b)(c=d)'}}", "2: directory.ldap.user.filter: want a filter"},
	} {
		t.Run(x.name, func(t *testing.T) {
			c, err := parse(sound + "directory: {ldap: " + x.text + "}\n")
			switch {
			case x.want == "" && (err != nil || c.Directory.LDAP == nil):
				t.Fatalf("got %v", err)
			case x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)):
				t.Fatalf("got %v, want %q", err, x.want)
			}
		})
	}
}
