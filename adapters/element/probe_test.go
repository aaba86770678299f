package element_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
)

func TestProbe(t *testing.T) {
	const ok, warning, failed, unknown = adapters.CheckOK, adapters.CheckWarning, adapters.CheckFailed, adapters.CheckUnknown
	for _, test := range []struct {
		name   string
		o      elementtest.Options
		spoil  func(c *cluster)
		mapped adapters.Mapped
		want   map[string]adapters.CheckStatus
		remedy string
	}{
		{name: "Healthy", want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok}},
		{name: "NoMethodList", o: elementtest.Options{NoMethodList: true}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": unknown, "privilege": ok, "scope": ok}, remedy: "preview"},
		{name: "WrongPassword", o: elementtest.Options{Password: "x"}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": failed}, remedy: "password"},
		{name: "Node", o: elementtest.Options{Node: true}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "api": failed}, remedy: "MVIP"},
		{name: "TooOld", o: elementtest.Options{Versions: []string{"1.0", "11.8"}}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "api": failed}, remedy: "12.0"},
		{name: "NotAnAdministrator", o: elementtest.Options{Access: []string{"read"}}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": failed}, remedy: "administrator"},
		{name: "SeemsAnAdministrator", o: elementtest.Options{Access: []string{"read"}, PrimaryAdmin: true}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": failed}, remedy: "administrator"},
		{name: "ClusterAdmins", o: elementtest.Options{Access: []string{"administrator", "clusterAdmins"}}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok}},
		{name: "OpaqueIdentityProvider", o: elementtest.Options{OpaqueIdp: true}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": warning}, remedy: "NameID"},
		{name: "Unreachable", spoil: func(c *cluster) { c.faults.Add(emulator.Rule{Fault: emulator.Refuse()}) },
			want: map[string]adapters.CheckStatus{"reachable": failed}, remedy: "port"},
		{name: "NotServing", spoil: func(c *cluster) { c.NotServing(1) },
			want: map[string]adapters.CheckStatus{"reachable": ok, "api": failed}, remedy: "upgrade"},
		{name: "Broken", spoil: func(c *cluster) { c.faults.Add(emulator.Rule{Fault: emulator.Status(http.StatusInternalServerError)}) },
			want: map[string]adapters.CheckStatus{"reachable": ok, "api": failed}, remedy: "state"},
		{name: "NotAllowedIn", spoil: func(c *cluster) { c.faults.Add(emulator.Rule{Fault: emulator.Status(http.StatusForbidden)}) },
			want: map[string]adapters.CheckStatus{"reachable": ok, "api": failed}, remedy: "MVIP"},
		{name: "BreaksHalfway", spoil: func(c *cluster) { c.Fail("GetCurrentClusterAdmin", 1, "xDBConnectionLoss") }, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": failed}, remedy: "state"},
		{name: "MoreThanNeeded", o: elementtest.Options{Access: []string{"clusterAdmins", "read", "volumes"}}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": warning, "scope": ok}, remedy: "take these"},
		{name: "JustEnough", o: elementtest.Options{Access: []string{"clusterAdmins", "read"}}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok}},
		{name: "NoVersion", spoil: func(c *cluster) { c.Fail("GetClusterVersionInfo", 1, "xPermissionDenied") }, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": unknown, "api": ok, "privilege": ok, "scope": ok}, remedy: "12.0"},
		{name: "NewerThanKnown", o: elementtest.Options{Versions: []string{"1.0", "12.0", "13.0"}}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": warning, "api": ok, "privilege": ok, "scope": ok}, remedy: "test account"},
		{name: "Mapped", mapped: mapped("Idp", "read", "12"), spoil: func(c *cluster) { c.in("Idp", "bob", "read", "12") }, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": ok}},
		{name: "MappedToSomebodyWhoIsAway", mapped: mapped("Idp", "drives", "12"), spoil: func(c *cluster) { c.SignOut(c.in("Idp", "bob", "drives", "12").ID) },
			want: map[string]adapters.CheckStatus{
				"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": ok}},
		{name: "MappedInTheDocumentsSpelling", o: elementtest.Options{DocumentSpelling: true}, mapped: mapped("Idp"), spoil: func(c *cluster) { c.in("Idp", "bob", "12") },
			want: map[string]adapters.CheckStatus{
				"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": ok}},
		{name: "MappedToNoMethod", mapped: mapped("Ldap"), want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": warning}, remedy: "providers"},
		{name: "MappedToNoAccess", mapped: mapped("Cluster", "administrators"), want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": warning}, remedy: "groups"},
		{name: "MappedToNoAdministrator", mapped: mapped("Cluster", "8"), want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": warning}, remedy: "groups"},
		{name: "AdministratorsNotListed", mapped: mapped("Cluster"), spoil: func(c *cluster) { c.Fail("ListClusterAdmins", 1, "xPermissionDenied") }, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": unknown}, remedy: "compare"},
		{name: "AdministratorsUnreadable", mapped: mapped("Cluster"), spoil: func(c *cluster) {
			c.spoil = func(method string, answer []byte) []byte {
				if method == "ListClusterAdmins" {
					answer = bytes.ReplaceAll(answer, []byte("clusterAdminID"), []byte("clusterAdminId"))
				}
				return answer
			}
		}, want: map[string]adapters.CheckStatus{
			"reachable": ok, "credentials": ok, "version": ok, "api": ok, "privilege": ok, "scope": ok, "mapping": unknown}, remedy: "compare"},
		{name: "AnotherServer", spoil: func(c *cluster) { c.faults.Add(emulator.Rule{Fault: emulator.StatusHTML(http.StatusNotFound)}) },
			want: map[string]adapters.CheckStatus{"reachable": ok, "api": failed}, remedy: "MVIP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(test.o)
			x := c.in("Idp", "alice")
			if test.spoil != nil {
				test.spoil(c)
			}
			c.mapped = test.mapped
			h, err := c.open(t).Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(h.Checks) != len(test.want) {
				t.Errorf("checks %+v, want %v", h.Checks, test.want)
			}
			remedies := ""
			for _, check := range h.Checks {
				if check.Status != test.want[check.Name] {
					t.Errorf("%s is %v (%s), want %v", check.Name, check.Status, check.Message, test.want[check.Name])
				}
				if (check.Remedy == "") != (check.Status == ok) {
					t.Errorf("%s has no remedy, or needs none: %+v", check.Name, check)
				}
				remedies += check.Remedy
			}
			if !strings.Contains(remedies, test.remedy) || test.remedy == "" && remedies != "" {
				t.Errorf("remedies %q, want %q", remedies, test.remedy)
			}
			if c.deletes() != 0 || !c.alive(x) {
				t.Errorf("sent %v", c.methods())
			}
		})
	}
}

// mapped is a mapping to an authentication method, and to groups: names of access types and numbers of administrators.
func mapped(method string, groups ...string) adapters.Mapped {
	m := adapters.Mapped{Providers: []adapters.Provider{{Type: method}}}
	for _, g := range groups {
		kind := element.GroupAccess
		if strings.Trim(g, "0123456789") == "" {
			kind = element.GroupClusterAdmin
		}
		m.Groups = append(m.Groups, adapters.Group{Kind: kind, Name: g})
	}
	return m
}

func TestProbeTellsTheVersion(t *testing.T) {
	c := start(elementtest.Options{})
	a := c.open(t)
	if h, err := a.Probe(t.Context()); err != nil || h.Version != "12.5.0.897" {
		t.Errorf("version %q, %v", h.Version, err)
	}
	// A version that is none is not passed on.
	c.spoil = func(method string, answer []byte) []byte {
		if method == "GetClusterVersionInfo" {
			answer = bytes.Replace(answer, []byte("12.5.0.897"), []byte("<b>of alice</b>"), 1)
		}
		return answer
	}
	if h, err := a.Probe(t.Context()); err != nil || h.Version != "" || !h.Healthy() {
		t.Errorf("version %q, %v", h.Version, err)
	}
}

// TestProbeSeesAnUpgrade: it negotiates anew.
func TestProbeSeesAnUpgrade(t *testing.T) {
	c := start(elementtest.Options{})
	a := c.open(t)
	complete(t, a, user("nobody"))
	c.SetVersions("1.0", "12.0", "12.5", "12.8")
	if _, err := a.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	complete(t, a, user("nobody"))
	rs := c.rec.Requests()
	if got := rs[len(rs)-1].Path; got != "/json-rpc/12.8" {
		t.Errorf("last request went to %s", got)
	}
}
