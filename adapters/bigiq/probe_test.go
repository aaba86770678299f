package bigiq_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/secret"
)

func TestProbe(t *testing.T) {
	refuse := func(x *target) { x.faults.Add(emulator.Rule{Fault: emulator.Refuse()}) }
	on := func(path string, f emulator.Fault) func(*target) {
		return func(x *target) { x.faults.Add(emulator.Rule{Match: emulator.On("", path), Fault: f}) }
	}
	scope := func(s bigiq.Scope) func(*bigiq.Config) { return func(c *bigiq.Config) { c.Scope.Scope = s } }
	const login, resolver = "/mgmt/shared/authn/login", "/mgmt/cm/system/machineid-resolver"
	group := func(name string) adapters.Group { return adapters.Group{Kind: "access_group", Name: name} }
	for _, tt := range []struct {
		name   string
		quirks bigiqtest.Quirks
		is     bigiqtest.Options
		conf   func(*bigiq.Config)
		change func(*target)
		mapped adapters.Mapped
		check  string
		status adapters.CheckStatus
		text   string
	}{
		{name: "AllWell", check: "privilege", status: adapters.CheckOK},
		{name: "Unreachable", change: refuse, check: "reachable", status: adapters.CheckFailed, text: "cannot be reached"},
		{name: "WrongPassword", conf: func(c *bigiq.Config) { c.Password = secret.New("wrong") }, check: "credentials", status: adapters.CheckFailed},
		{name: "UnknownLoginProvider", conf: func(c *bigiq.Config) { c.LoginProvider = "x" }, check: "credentials", status: adapters.CheckFailed, text: "login_provider"},
		{name: "BasicOff", conf: func(c *bigiq.Config) { c.Basic = true }, check: "credentials", status: adapters.CheckFailed, text: "HTTP Basic"},
		{name: "BasicOn", conf: func(c *bigiq.Config) { c.Basic = true }, quirks: bigiqtest.Quirks{Basic: true}, check: "credentials", status: adapters.CheckOK},
		{name: "NoAccessService", quirks: bigiqtest.Quirks{NoAccessService: true}, check: "api", status: adapters.CheckFailed},
		{name: "NoRole", quirks: bigiqtest.Quirks{NoRole: true}, check: "privilege", status: adapters.CheckFailed},
		// Whatever keeps a login from an answer says nothing about the password.
		{name: "NoAnswerToTheLogin", change: on(login, emulator.Reset()), check: "api", status: adapters.CheckFailed, text: "login"},
		{name: "LoginBroken", change: on(login, emulator.Status(500)), check: "api", status: adapters.CheckFailed, text: "login"},
		{name: "LoginDenied", change: on(login, emulator.Status(403)), check: "privilege", status: adapters.CheckFailed},
		{name: "TokenUseless", change: on(tasksPath, emulator.Status(401)), check: "privilege", status: adapters.CheckFailed},
		{name: "MayNotReadTasks", change: on(tasksPath, emulator.Status(403)), check: "privilege", status: adapters.CheckFailed, text: "read"},
		{name: "TasksBroken", change: on(tasksPath, emulator.Status(500)), check: "api", status: adapters.CheckFailed},
		{name: "TasksAreAPage", change: on(tasksPath, emulator.Page()), check: "api", status: adapters.CheckFailed},
		{name: "OddRefusal", change: func(x *target) {
			x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Fault: emulator.Status(400)})
		}, check: "privilege", status: adapters.CheckUnknown},
		{name: "NoRefusal", change: func(x *target) {
			x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Fault: emulator.Status(500)})
		}, check: "privilege", status: adapters.CheckUnknown},
		{name: "BuiltInAdministrator", is: bigiqtest.Options{Username: "admin"}, check: "privilege", status: adapters.CheckWarning, text: "more than is needed"},
		{name: "AdminOfAnotherProvider", is: bigiqtest.Options{Username: "admin", Provider: "ldap"}, conf: func(c *bigiq.Config) { c.LoginProvider = "ldap" },
			check: "privilege", status: adapters.CheckOK},
		{name: "Version", check: "version", status: adapters.CheckOK, text: "7.1.0"},
		{name: "VersionToldToAccounts", quirks: bigiqtest.Quirks{SilentInfo: true}, check: "version", status: adapters.CheckOK, text: "7.1.0"},
		{name: "VersionUntold", quirks: bigiqtest.Quirks{SilentInfo: true}, change: on("/mgmt/shared/resolver/device-groups/cm-shared-all-big-iqs/devices", emulator.Status(403)),
			check: "version", status: adapters.CheckUnknown},
		{name: "OldVersion", is: bigiqtest.Options{Version: "5.1.0"}, check: "version", status: adapters.CheckWarning, text: "older than 5.2"},
		{name: "FirstVersion", is: bigiqtest.Options{Version: "5.2.0.0.1"}, check: "version", status: adapters.CheckOK},
		{name: "LastVersion", is: bigiqtest.Options{Version: "8.3.0-0.0.118"}, check: "version", status: adapters.CheckOK},
		{name: "NewVersion", is: bigiqtest.Options{Version: "9.0.0"}, check: "version", status: adapters.CheckWarning, text: "newer than 8"},
		{name: "StrangeVersion", is: bigiqtest.Options{Version: "<b>7.1.0</b>"}, check: "version", status: adapters.CheckUnknown},
		{name: "MayNotListDevices", change: on(resolver, emulator.Status(403)), check: "scope", status: adapters.CheckFailed, text: "devices"},
		{name: "DevicesBroken", change: on(resolver, emulator.Status(500)), check: "scope", status: adapters.CheckFailed},
		{name: "DeviceNotManaged", change: func(x *target) {
			x.Update(bigiqtest.Lone, func(d *bigiqtest.Device) { d.State = "UNDISCOVERED" })
		}, check: "scope", status: adapters.CheckWarning, text: "does not manage device " + bigiqtest.Lone},
		{name: "MappedNamesAreKnown", conf: scope(bigiq.Scope{Devices: []string{bigiqtest.Lone}}), mapped: adapters.Mapped{
			Groups:    []adapters.Group{group("TestGroup1"), {Kind: "cluster", Name: "RedCluster"}, {Kind: "device", Name: bigiqtest.Lone}},
			Providers: []adapters.Provider{{Type: "access_group", Name: "TestGroup1"}},
		}, check: "mapping", status: adapters.CheckOK, text: "3 names"},
		{name: "MappedGroupIsUnknown", mapped: adapters.Mapped{Groups: []adapters.Group{group("TestGroup1"), group("Nobody")}},
			check: "mapping", status: adapters.CheckWarning, text: `does not know access group "Nobody"`},
		{name: "MappedProviderIsUnknown", mapped: adapters.Mapped{Providers: []adapters.Provider{{Type: "access_group", Name: "Nobody"}}},
			check: "mapping", status: adapters.CheckWarning, text: `does not know access group "Nobody"`},
		{name: "MappedDeviceIsAUnit", mapped: adapters.Mapped{Groups: []adapters.Group{{Kind: "device", Name: bigiqtest.Red1}}},
			check: "mapping", status: adapters.CheckWarning, text: "passive unit"},
		{name: "UnknownCluster", conf: func(c *bigiq.Config) { c.Scope.Clusters = []string{"Pink"} }, check: "scope", status: adapters.CheckFailed, text: `cluster "Pink"`},
		{name: "UnitOfACluster", conf: func(c *bigiq.Config) { c.Scope.Devices = []string{bigiqtest.Blue1} }, check: "scope", status: adapters.CheckWarning, text: "passive unit"},
		{name: "NotImported", change: func(x *target) {
			x.Update(bigiqtest.Branch, func(d *bigiqtest.Device) { d.NotImported = true })
			x.Update(bigiqtest.Red1, func(d *bigiqtest.Device) { d.NotImported = true })
			x.Update(bigiqtest.Red2, func(d *bigiqtest.Device) { d.NotImported = true })
		}, check: "scope", status: adapters.CheckWarning, text: "imported"},
		{name: "NoAccessOnDevice", conf: func(c *bigiq.Config) { c.Scope.Devices = []string{bigiqtest.Balance} }, check: "scope", status: adapters.CheckWarning, text: "not discovered"},
		{name: "Discovery", conf: func(c *bigiq.Config) { c.Scope = bigiq.ScopeConfig{Discover: true} }, check: "scope", status: adapters.CheckOK, text: "cluster RedCluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.is.Quirks = tt.quirks
				x := newTarget(t, tt.is, func(c *bigiq.Config) {
					if tt.conf != nil {
						tt.conf(c)
					}
				})
				x.populate()
				x.mapped = tt.mapped
				x.reopen(t)
				if tt.change != nil {
					tt.change(x)
				}
				before := len(x.Sessions())
				h, err := x.Probe(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(h.Checks, func(c adapters.Check) bool { return c.Name == tt.check })
				if i < 0 || h.Checks[i].Status != tt.status || !strings.Contains(h.Checks[i].Message, tt.text) {
					t.Errorf("checks %+v, want %s with status %d and %q", h.Checks, tt.check, tt.status, tt.text)
				}
				for _, c := range h.Checks {
					if (c.Remedy == "") != (c.Status == adapters.CheckOK) {
						t.Errorf("check %+v has no remedy, or needs none", c)
					}
				}
				if refused := h.Status(adapters.CheckCredentials) == adapters.CheckFailed; refused != (tt.check == adapters.CheckCredentials && tt.status == adapters.CheckFailed) {
					t.Errorf("it is said that the credentials were refused: %t: %+v", refused, h.Checks)
				}
				if h.Healthy() != (tt.status != adapters.CheckFailed) {
					t.Errorf("healthy %t: %+v", h.Healthy(), h.Checks)
				}
				if len(x.Sessions()) != before || len(x.Tasks()) != 0 {
					t.Errorf("a probe made %d tasks, %d sessions of %d are left", len(x.Tasks()), len(x.Sessions()), before)
				}
				for _, body := range x.posts() {
					if body != "{}" {
						t.Errorf("a probe sent %s", body)
					}
				}
			})
		})
	}
}

func TestProbeTellsTheVersionAndTriesThePassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		for range 2 {
			if h, err := x.Probe(t.Context()); err != nil || h.Version != "7.1.0" {
				t.Errorf("%+v, %v", h, err)
			}
		}
		if ok, _, _ := x.Logins(); ok != 2 {
			t.Errorf("%d logins, want one for each probe", ok)
		}
	})
}

// TestProbeLeavesTheTokenAlone that runs are using, as long as the password is not refused.
func TestProbeLeavesTheTokenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		x.must(t, byUser("alice"))
		x.faults.Add(emulator.Rule{Match: emulator.On("", "/mgmt/shared/authn/login"), Fault: emulator.Status(503)})
		if h, err := x.Probe(t.Context()); err != nil || h.Healthy() {
			t.Fatalf("%+v, %v", h, err)
		}
		x.must(t, byUser("bob"))
		if ok, _, _ := x.Logins(); ok != 1 {
			t.Errorf("%d logins, want the first one's token to be good enough", ok)
		}
	})
}

func TestProbeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := x.Probe(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}
