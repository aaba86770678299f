package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/identity/ldap/slapdtest"
)

// ldapPeople are the people of testdata/people.yaml. The attribute mail is for ASCII only.
const ldapPeople = `
dn: uid=alice,` + slapdtest.People + `
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A
displayName: alice@corp.example
employeeNumber: a17

dn: uid=bob,` + slapdtest.People + `
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: B
displayName: bob@corp.example

dn: uid=zoë,` + slapdtest.People + `
objectClass: inetOrgPerson
uid: zoë
cn: Zoë
sn: Z
displayName: zoë@corp.example

dn: uid=o\"brien\,\+x,` + slapdtest.People + `
objectClass: inetOrgPerson
uid: o"brien,+x
cn: O'Brien
sn: O
displayName: o'brien@corp.example

dn: cn=staff,` + slapdtest.Groups + `
objectClass: groupOfNames
cn: staff
member: uid=alice,` + slapdtest.People + `
member: cn=abroad,` + slapdtest.Groups + `

dn: cn=abroad,` + slapdtest.Groups + `
objectClass: groupOfNames
cn: abroad
member: uid=zoë,` + slapdtest.People + `
member: cn=staff,` + slapdtest.Groups + `
`

// withLDAP puts an LDAP directory in the place of the lab's file.
func withLDAP(text string) string {
	text = strings.ReplaceAll(text, "cn=staff,ou=groups,dc=corp", "cn=staff,"+slapdtest.Groups)
	return strings.Replace(text, "directory: { file: { path: people.yaml } }", `directory:
  ldap:
    urls: ['ldap://localhost:1389']
    bind_dn: `+slapdtest.BindDN+`
    password: `+slapdtest.Password+`
    user: { base: '`+slapdtest.People+`', email: displayName, attributes: { uid: employeeNumber } }
    group: { base: '`+slapdtest.Groups+`' }`, 1)
}

func newDirectory(t testing.TB) *slapdtest.Server {
	t.Helper()
	s := slapdtest.New(t, slapdtest.Options{})
	s.Load(t, ldapPeople)
	return s
}

// TestEverySelectorWithLDAP is the matrix with people and groups in an LDAP server.
func TestEverySelectorWithLDAP(t *testing.T) {
	s := newDirectory(t)
	runMatrix(t, func() *lab {
		l := newLab()
		l.dial = s.DialQuiet
		return l
	}, withLDAP)
}

// link stands between the gateway and its directory.
type link struct {
	server *slapdtest.Server

	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

func (o *link) dial(ctx context.Context, network, address string) (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down {
		return nil, errors.New("no route to the directory")
	}
	c, err := o.server.DialQuiet(ctx, network, address)
	o.conns = append(o.conns, c)
	return c, err
}

func (o *link) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = true
	for _, c := range o.conns {
		_ = c.Close()
	}
}

func (o *link) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = false
}

// get reads an invalidation.
func (g *memoryGateway) get(t *testing.T, name string) *endsessionv1.Invalidation {
	t.Helper()
	resp, err := endsessionv1.NewSessionServiceClient(g.grpc).GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetInvalidation()
}

// An outage of the directory holds up the runs that need it and no others; when it is over they are resolved, once.
func TestOutageOfTheDirectory(t *testing.T) {
	s := newDirectory(t)
	path := memoryDir(t, withLDAP)
	synctest.Test(t, func(t *testing.T) {
		o := &link{server: s}
		l := newLab()
		l.dial = o.dial
		g := startInMemory(t, l, path)
		o.begin()
		const body = `{"waitTimeout": "5s", "targets": ["apm", "storage"], "selector": {"user": {"id": "alice",
			"targetUsernames": {"apm": {"usernames": ["alice"]}}}}}`
		inv := g.call(t, "gRPC", body).GetInvalidation()
		name := inv.GetName()
		runs := inv.GetRuns()
		if got := word(runs[0].GetState(), "RUN_STATE_"); got != "SUCCEEDED" {
			t.Errorf("%s, which needs no directory: %s, %v", runs[0].GetTarget(), got, runs[0].GetError())
		}
		if got := word(runs[1].GetState(), "RUN_STATE_"); got != "PENDING" || runs[1].GetError().GetReason() != "DIRECTORY_UNAVAILABLE" {
			t.Errorf("%s: %s, %v; want PENDING, DIRECTORY_UNAVAILABLE", runs[1].GetTarget(), got, runs[1].GetError())
		}
		if n := g.mutations("storage"); n > 0 {
			t.Errorf("%d requests that end sessions before anybody knows whose", n)
		}
		time.Sleep(time.Hour)
		if inv = g.get(t, name); stateWord(inv.GetState()) != "RUNNING" {
			t.Errorf("after an hour: %v", inv)
		}
		o.end()
		time.Sleep(2 * time.Minute)
		inv = g.get(t, name)
		if stateWord(inv.GetState()) != "SUCCEEDED" || inv.GetRuns()[1].GetError() != nil || inv.GetRuns()[1].GetInvalidatedCount() != 3 {
			t.Errorf("when the directory is back: %v", inv)
		}
		if got, want := g.lab.gone("storage"), g.lab.labels(t, "storage", "alice-local alice-ldap alice-idp"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("signed out %v, want %v", got, want)
		}
		// Resolved once: what the directory says later changes nothing.
		again := len(o.conns)
		time.Sleep(time.Hour)
		if n := len(o.conns); n != again {
			t.Errorf("%d more connections to the directory for a run that is final", n-again)
		}

		// A directory that never comes back: the run ends when its time is up.
		o.begin()
		name = g.call(t, "gRPC", `{"waitTimeout": "1s", "targets": ["storage"], "retryFor": "600s", "selector": {"user": {"id": "bob"}}}`).GetInvalidation().GetName()
		time.Sleep(11 * time.Minute)
		inv = g.get(t, name)
		if r := inv.GetRuns()[0]; stateWord(inv.GetState()) != "FAILED" || r.GetError().GetReason() != "EXPIRED" || r.GetAttempts() != 0 {
			t.Errorf("a directory that does not come back: %v", inv)
		}
		if strings.Contains(g.log.String(), slapdtest.Password) {
			t.Error("the log shows the password")
		}
		o.end()
	})
}
