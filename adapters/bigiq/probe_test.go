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
	for _, tt := range []struct {
		name   string
		quirks bigiqtest.Quirks
		conf   func(*bigiq.Config)
		change func(*target)
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
				x := newTarget(t, bigiqtest.Options{Quirks: tt.quirks}, func(c *bigiq.Config) {
					if tt.conf != nil {
						tt.conf(c)
					}
				})
				x.populate()
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
				if i >= 0 && tt.status != adapters.CheckOK && h.Checks[i].Remedy == "" {
					t.Errorf("check %+v has no remedy", h.Checks[i])
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
