package bigiq_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
)

func TestRunEndsOneUsersSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		r := x.must(t, byUser("alice"))
		for _, s := range x.Sessions() {
			if s.Username == "alice" {
				t.Errorf("alice is still signed in at %s", s.Device)
			}
		}
		if n := len(x.Sessions()); n != len(bigiqtest.Places(bigiqtest.Lab())) {
			t.Errorf("%d sessions are left, want bob's at every place", n)
		}
		want := []string{"cluster BlueCluster", "access group TestGroup1", "access group TestGroup2", "device " + bigiqtest.Lone}
		if !slices.Equal(r.result.Covered, want) {
			t.Errorf("covered %q, want %q", r.result.Covered, want)
		}
		if ts := x.Tasks(); len(ts) != 1 || r.result.Operation != ts[0].ID {
			t.Errorf("operation %q, tasks %+v", r.result.Operation, ts)
		}
	})
}

// BIG-IQ never says how many sessions a task ended: not 0 and not 1, but unknown.
func TestCountIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		r := x.must(t, byUser("alice"))
		if r.result.Counted || r.result.Count != 0 || r.result.Verification != adapters.Unverifiable {
			t.Errorf("result %+v, want no count and unverifiable", r.result)
		}
		p, err := x.Preview(t.Context(), byUser("bob"))
		if err != nil || p.Listed || p.Sessions != nil {
			t.Errorf("preview %+v, %v: BIG-IQ cannot list", p, err)
		}
	})
}

// A 200 for the POST says only that a task was made.
func TestAcceptedTaskIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{Stuck: true}})
		x.populate()
		var resume json.RawMessage
		for i := range 20 {
			res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice"), Resume: resume})
			if err != nil || res.Pending == nil || res.Operation == "" {
				t.Fatalf("call %d: %+v, %v, want pending with an operation", i, res, err)
			}
			resume = res.Pending.Resume
			time.Sleep(res.Pending.After)
		}
		if n := len(x.posts()); n != 1 {
			t.Errorf("%d tasks, want 1", n)
		}
	})
}

func TestPollingSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{TaskTime: 20 * time.Second})
		r := x.must(t, byUser("alice"))
		if r.waited[0] != 250*time.Millisecond {
			t.Errorf("first waits %v, want 250ms", r.waited[0])
		}
		if !r.polls[0] || !r.polls[len(r.polls)-1] {
			t.Errorf("calls that only poll: %v", r.polls)
		}
		if !slices.IsSorted(r.waited) || r.waited[len(r.waited)-1] != 5*time.Second {
			t.Errorf("waits %v, want longer and longer up to 5s", r.waited)
		}
	})
}

// Every way a task can end, and every spelling.
func TestVerdicts(t *testing.T) {
	const missing = "item not found at /cm/system/machineid-resolver/901695c8-f405-489f-9996-54f7b21da642"
	for _, tt := range []struct {
		name   string
		ending bigiqtest.Ending
		kind   adapters.Kind // 0: success
		why    adapters.Reason
	}{
		{"FinishedComplete", bigiqtest.Ending{Status: "FINISHED", Result: "COMPLETE"}, 0, ""},
		{"FinishedFailed", bigiqtest.Ending{Status: "FINISHED", Result: "FAILED"}, adapters.Failed, adapters.ReasonUpstreamFailed},
		{"FinishedPending", bigiqtest.Ending{Status: "FINISHED", Result: "PENDING"}, adapters.Failed, adapters.ReasonUpstreamFailed},
		{"FinishedWithoutResult", bigiqtest.Ending{Status: "FINISHED"}, adapters.Failed, adapters.ReasonUpstreamFailed},
		{"FinishedUnknownResult", bigiqtest.Ending{Status: "FINISHED", Result: "complete"}, adapters.Failed, adapters.ReasonUpstreamFailed},
		{"FailedComplete", bigiqtest.Ending{Status: "FAILED", Result: "COMPLETE"}, adapters.Failed, adapters.ReasonUpstreamFailed},
		{"FailedInternalError", bigiqtest.Ending{Status: "FAILED", ErrorMessage: "Internal Error occurred"}, adapters.Failed, adapters.ReasonUpstreamFailed},
		{"FailedDeviceNotFound", bigiqtest.Ending{Status: "FAILED", Result: "PENDING", ErrorMessage: missing}, adapters.Rejected, adapters.ReasonUnknownScope},
		{"Cancelled", bigiqtest.Ending{Status: "CANCELLED"}, adapters.Failed, adapters.ReasonOutcomeUnknown},
		{"CanceledWithOneL", bigiqtest.Ending{Status: "CANCELED"}, adapters.Failed, adapters.ReasonOutcomeUnknown},
		{"CancelledThoughComplete", bigiqtest.Ending{Status: "CANCELLED", Result: "COMPLETE"}, adapters.Failed, adapters.ReasonOutcomeUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{Ending: &tt.ending}})
				x.populate()
				r := &run{}
				err := x.drive(t, r, byUser("alice"))
				if tt.kind == 0 {
					if err != nil || r.result.Verification != adapters.Unverifiable {
						t.Fatalf("%+v, %v, want success", r.result, err)
					}
					return
				}
				wantError(t, err, tt.kind, tt.why)
				if tt.kind == adapters.Rejected {
					return // final
				}
				// The next attempt is a new task.
				x.Change(func(q *bigiqtest.Quirks) { q.Ending = nil })
				if err := x.drive(t, r, byUser("alice")); err != nil {
					t.Fatalf("second attempt: %v", err)
				}
				if n := len(x.posts()); n != 2 {
					t.Errorf("%d tasks, want a second one", n)
				}
				if slices.ContainsFunc(x.Sessions(), func(s adapters.Session) bool { return s.Username == "alice" }) {
					t.Error("alice is still signed in")
				}
			})
		})
	}
}

// CANCEL_REQUESTED, CREATED and what later releases add mean that the task goes on.
func TestUnknownStatusIsPending(t *testing.T) {
	for _, status := range []string{"CREATED", "CANCEL_REQUESTED", "QUEUED_2031"} {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{TaskTime: 3 * time.Second, Quirks: bigiqtest.Quirks{Status: status, NoStep: true}})
			x.populate()
			if r := x.must(t, byUser("alice")); r.calls < 4 {
				t.Errorf("status %s: complete after %d calls", status, r.calls)
			}
		})
	}
}

func TestTaskCancelledAtBIGIQ(t *testing.T) {
	for _, oneL := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{TaskTime: time.Minute, Quirks: bigiqtest.Quirks{OneL: oneL}})
			x.populate()
			r := &run{}
			res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
			if err != nil {
				t.Fatal(err)
			}
			x.CancelTasks()
			r.resume = res.Pending.Resume
			wantError(t, x.drive(t, r, byUser("alice")), adapters.Failed, adapters.ReasonOutcomeUnknown)
		})
	}
}

// A task that BIG-IQ no longer knows may have done its work, or not.
func TestForgottenTaskIsUncertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
		if err != nil {
			t.Fatal(err)
		}
		x.ForgetTasks()
		r := &run{resume: res.Pending.Resume}
		wantError(t, x.drive(t, r, byUser("alice")), adapters.Uncertain, adapters.ReasonOutcomeUnknown)
		if err := x.drive(t, r, byUser("alice")); err != nil {
			t.Fatalf("next attempt: %v", err)
		}
		if n := len(x.posts()); n != 2 {
			t.Errorf("%d tasks, want a second one", n)
		}
	})
}

// "Public URI path not registered" says that the Access service is away, not that the task is.
func TestAccessServiceAwayWhilePolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
		if err != nil {
			t.Fatal(err)
		}
		r := &run{resume: res.Pending.Resume}
		x.Change(func(q *bigiqtest.Quirks) { q.NoAccessService = true })
		wantError(t, x.drive(t, r, byUser("alice")), adapters.Unreachable, "")
		x.Change(func(q *bigiqtest.Quirks) { q.NoAccessService = false })
		if err := x.drive(t, r, byUser("alice")); err != nil {
			t.Fatal(err)
		}
		if n := len(x.posts()); n != 1 {
			t.Errorf("%d tasks, want the first one resumed", n)
		}
	})
}

func TestAccessServiceMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{NoAccessService: true}})
		wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Rejected, "")
	})
}

func TestRoleMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{NoRole: true}})
		wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Denied, "")
	})
}

// BIG-IQ finishes a task on names it does not know, and ends nothing. So names are looked up first.
func TestUnknownNamesAreRefusedBeforeAnythingIsSent(t *testing.T) {
	for _, tt := range []struct {
		name  string
		scope bigiq.Scope
		want  string
	}{
		{"Cluster", bigiq.Scope{Clusters: []string{"BlueCluster", "PinkCluster"}}, `cluster "PinkCluster"`},
		{"ClusterInAnotherCase", bigiq.Scope{Clusters: []string{"bluecluster"}}, `cluster "bluecluster"`},
		{"AccessGroup", bigiq.Scope{AccessGroups: []string{"TestGroup9"}}, `access group "TestGroup9"`},
		{"GroupOfAnotherSort", bigiq.Scope{AccessGroups: []string{"BlueCluster"}}, `access group "BlueCluster"`},
		{"Device", bigiq.Scope{Devices: []string{"00000000-6384-47cd-bc41-00a39dfe338f"}}, `device "00000000`},
		{"Address", bigiq.Scope{Devices: []string{"10.0.0.99"}}, `device "10.0.0.99"`},
		{"Several", bigiq.Scope{Clusters: []string{"A"}, AccessGroups: []string{"B"}, Devices: []string{"c"}}, `cluster "A", access group "B", device "c"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = tt.scope })
				x.populate()
				err := x.drive(t, &run{}, byUser("alice", "bob"))
				wantError(t, err, adapters.Rejected, adapters.ReasonUnknownScope)
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q does not name %s", err, tt.want)
				}
				if n := len(x.posts()); n != 0 {
					t.Errorf("%d tasks were sent", n)
				}
			})
		})
	}
}

// A group is mapped in the configuration too, outside of the scope.
func TestUnknownMappedGroupIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		sel := adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{group("access_group", "TestGroup2"), group("cluster", "Typo")}}
		wantError(t, x.drive(t, &run{}, sel), adapters.Rejected, adapters.ReasonUnknownScope)
		if n := len(x.posts()); n != 0 {
			t.Errorf("%d tasks were sent", n)
		}
	})
}

// The reference of a passive unit: success, and nothing ended.
func TestPassiveUnitIsWarnedOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = bigiq.Scope{Devices: []string{bigiqtest.Blue2}} })
		x.populate()
		before := len(x.Sessions())
		r := x.must(t, byUser("alice"))
		if !warned(r.warnings, adapters.WarnPassiveDevice) {
			t.Errorf("warnings %+v, want %s", r.warnings, adapters.WarnPassiveDevice)
		}
		if len(x.Sessions()) != before {
			t.Error("the passive unit ended something: the emulator is wrong")
		}
		// The cluster by name reaches the active unit, without a warning.
		x.conf.Scope.Scope = bigiq.Scope{Clusters: []string{"BlueCluster"}}
		x.reopen(t)
		r = x.must(t, byUser("alice"))
		if len(r.warnings) > 0 || len(x.Sessions()) != before-1 {
			t.Errorf("by cluster: warnings %+v, %d sessions left of %d", r.warnings, len(x.Sessions()), before)
		}
	})
}

func TestScopeOutOfReachIsWarnedOf(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*bigiqtest.Device)
		scope  bigiq.Scope
	}{
		{"GroupNotImported", func(d *bigiqtest.Device) { d.NotImported = true }, bigiq.Scope{AccessGroups: []string{"TestGroup2"}}},
		{"DeviceWithoutAccess", func(d *bigiqtest.Device) { d.NoAccess = true }, bigiq.Scope{Devices: []string{bigiqtest.Guest}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = tt.scope })
				if r := x.must(t, byUser("alice")); len(r.warnings) > 0 {
					t.Errorf("warnings %+v, want none yet", r.warnings)
				}
				x.Update(bigiqtest.Guest, tt.change)
				time.Sleep(time.Minute)
				if r := x.must(t, byUser("alice")); !warned(r.warnings, adapters.WarnScopeIncomplete) {
					t.Errorf("warnings %+v, want %s", r.warnings, adapters.WarnScopeIncomplete)
				}
			})
		})
	}
}

func TestDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope = bigiq.ScopeConfig{}; c.Discover = true })
		x.populate()
		r := x.must(t, adapters.Selector{By: adapters.All})
		if left := x.Sessions(); len(left) > 0 {
			t.Errorf("still signed in: %v", survivors(left))
		}
		// Clusters by name, single devices by reference, and nothing without the Access service.
		want := []string{"cluster BlueCluster", "cluster RedCluster", "device " + bigiqtest.Branch, "device " + bigiqtest.Guest, "device " + bigiqtest.Lone}
		if !slices.Equal(r.result.Covered, want) || len(r.warnings) > 0 {
			t.Errorf("covered %q, warnings %v, want %q and none", r.result.Covered, r.warnings, want)
		}
	})
}

func TestDiscoveryOfNothingIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Devices: []bigiqtest.Device{{MachineID: "m1", NoAccess: true}}},
			func(c *bigiq.Config) { c.Scope = bigiq.ScopeConfig{Discover: true} })
		wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Rejected, adapters.ReasonUnknownScope)
	})
}

// Devices may be given in any of the forms people have at hand; the reference sent is always BIG-IQ's own.
func TestDevicesByAnyName(t *testing.T) {
	const link = "https://localhost/mgmt/cm/system/machineid-resolver/" + bigiqtest.Branch
	for _, name := range []string{bigiqtest.Branch, link, "10.255.6.1", "branch.labf.com", "BRANCH.labf.com"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = bigiq.Scope{Devices: []string{name}} })
				x.populate()
				x.must(t, byUser("alice"))
				want := `{"action":"KILL_BY_USER","userName":"alice","deviceReferences":[{"link":"` + link + `"}]}`
				if got := x.posts(); len(got) != 1 || got[0] != want {
					t.Errorf("sent %q, want %s", got, want)
				}
			})
		})
	}
}

// Addresses are looked up with a filter whose $ is literal; %24filter would list everything.
func TestDevicesByAddressAreFiltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = bigiq.Scope{Devices: []string{"10.255.6.1", "10.255.6.2"}} })
		x.must(t, byUser("alice"))
		for _, r := range x.sent.Requests() {
			if strings.HasSuffix(r.Path, "machineid-resolver") && r.Query != "$filter=('address'+eq+'10.255.6.1'+or+'address'+eq+'10.255.6.2')" {
				t.Errorf("query %q", r.Query)
			}
		}
		if n := x.count("GET", "/mgmt/shared/resolver/"); n != 0 {
			t.Errorf("access groups were listed %d times and nobody needs them", n)
		}
	})
}

// The filter would hide the units of a cluster, or a device given by another name.
func TestOnlyAddressesAreFiltered(t *testing.T) {
	for _, scope := range []bigiq.Scope{
		{Clusters: []string{"BlueCluster"}, Devices: []string{"10.255.6.1"}},
		{AccessGroups: []string{"TestGroup2"}, Devices: []string{"10.255.6.1"}},
		{Devices: []string{"10.255.6.1", "guest.labf.com"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = scope })
			x.populate()
			before := len(x.Sessions())
			if r := x.must(t, byUser("alice")); len(r.warnings) > 0 || len(x.Sessions()) != before-2 {
				t.Errorf("scope %+v: warnings %v, %d of %d sessions left, want 2 fewer", scope, r.warnings, len(x.Sessions()), before)
			}
		})
	}
}

// Two devices with one address: which one is meant cannot be known.
func TestAmbiguousDeviceIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		devices := []bigiqtest.Device{{MachineID: "m1", Address: "10.0.0.1", Hostname: "a"}, {MachineID: "m2", Address: "10.0.0.1", Hostname: "a"}}
		for _, name := range []string{"10.0.0.1", "a"} {
			x := newTarget(t, bigiqtest.Options{Devices: devices}, func(c *bigiq.Config) { c.Scope.Scope = bigiq.Scope{Devices: []string{name}} })
			wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Rejected, adapters.ReasonUnknownScope)
		}
	})
}

// What was looked up by address alone does not show that another device has the same host name.
func TestFilteredInventoryDecidesNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		devices := []bigiqtest.Device{{MachineID: "m1", Address: "10.0.0.1", Hostname: "twin"}, {MachineID: "m2", Address: "10.0.0.2", Hostname: "twin"}}
		x := newTarget(t, bigiqtest.Options{Devices: devices}, func(c *bigiq.Config) { c.Scope.Scope = bigiq.Scope{Devices: []string{"10.0.0.1"}} })
		x.must(t, byUser("alice"))
		sel := adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{group("device", "twin")}}
		wantError(t, x.drive(t, &run{}, sel), adapters.Rejected, adapters.ReasonUnknownScope)
	})
}

func TestListedSessions(t *testing.T) {
	sel := func(keys ...adapters.SessionKey) adapters.Selector {
		return adapters.Selector{By: adapters.BySessions, Sessions: keys}
	}
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) {
			c.Scope.Scope = bigiq.Scope{Clusters: []string{"BlueCluster"}, AccessGroups: []string{"TestGroup1"}}
		})
		a := x.SignIn(adapters.Session{Device: bigiqtest.Branch, ID: "2a5d7604", Username: "alice"})
		b := x.SignIn(adapters.Session{Device: bigiqtest.Branch, ID: "zz-not-hex", Username: "alice"})
		blue := x.SignIn(adapters.Session{Device: bigiqtest.Blue1, ID: "2a5d7604", Username: "alice"})
		out := x.SignIn(adapters.Session{Device: bigiqtest.Guest, ID: "2a5d7604", Username: "alice"})

		err := x.drive(t, &run{}, sel(a.Key(), out.Key()))
		wantError(t, err, adapters.Rejected, adapters.ReasonDeviceOutOfScope)
		err = x.drive(t, &run{}, sel(adapters.SessionKey{Device: "unknown", ID: "2a5d7604"}))
		wantError(t, err, adapters.Rejected, adapters.ReasonDeviceOutOfScope)
		if n := len(x.posts()); n != 0 {
			t.Fatalf("%d tasks were sent", n)
		}

		link := adapters.SessionKey{Device: "https://localhost/mgmt/cm/system/machineid-resolver/" + b.Device, ID: b.ID}
		if r := x.must(t, sel(a.Key(), link)); len(r.warnings) > 0 {
			t.Errorf("warnings %+v", r.warnings)
		}
		if got, want := survivors(x.Sessions()), survivors([]adapters.Session{blue, out}); !slices.Equal(got, want) {
			t.Errorf("left %v, want %v", got, want)
		}
		// The id may be right and the unit the passive one.
		if r := x.must(t, sel(blue.Key())); !warned(r.warnings, adapters.WarnPassiveDevice) {
			t.Errorf("warnings %+v, want %s", r.warnings, adapters.WarnPassiveDevice)
		}
	})
}

func TestPartialFailureIsNamedAndRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		x.Update(bigiqtest.Branch, func(d *bigiqtest.Device) { d.Unreachable = true })
		r := &run{}
		err := x.drive(t, r, byUser("alice"))
		wantError(t, err, adapters.Failed, "")
		if !strings.Contains(err.Error(), "branch.labf.com") || !strings.Contains(err.Error(), "1 device") {
			t.Errorf("error %q does not name the device", err)
		}
		x.Update(bigiqtest.Branch, func(d *bigiqtest.Device) { d.Unreachable = false })
		if err := x.drive(t, r, byUser("alice")); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(x.Sessions(), func(s adapters.Session) bool { return s.Username == "alice" }) {
			t.Error("alice is still signed in")
		}
	})
}

func TestAllDevicesUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Scope.Scope = bigiq.Scope{Devices: []string{bigiqtest.Branch}} })
		x.Update(bigiqtest.Branch, func(d *bigiqtest.Device) { d.Unreachable = true })
		wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Failed, "")
	})
}

func TestListedSessionsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{GoneIDsFail: true}})
		a := x.SignIn(adapters.Session{Device: bigiqtest.Branch, Username: "alice"})
		err := x.drive(t, &run{}, adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{a.Key(), {Device: bigiqtest.Branch, ID: "gone"}}})
		wantError(t, err, adapters.Failed, "")
		if !strings.Contains(err.Error(), "sessions not ended: 1") {
			t.Errorf("error %q does not count what failed", err)
		}
	})
}

// The error of a refused task holds the id of a task that does not exist.
func TestIDInARefusalIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		const id = "2e4b7a58-0016-44bd-ad4b-fd5a72202ce8"
		x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Fault: emulator.Answer(http.StatusBadRequest,
			http.Header{"Content-Type": {"application/json"}},
			`{"code":400,"message":"action is missing.","originalRequestBody":"{\"id\":\"`+id+`\",\"status\":\"CREATED\",\"selfLink\":\"https://localhost`+tasksPath+"/"+id+`\"}"}`)})
		r := &run{}
		err := x.drive(t, r, byUser("alice"))
		wantError(t, err, adapters.Rejected, "")
		if x.count("GET", tasksPath+"/") != 0 || strings.Contains(fmt.Sprintf("%v %s %+v", err, r.resume, r.result), id) {
			t.Errorf("the id was used: %v, %s, %+v", err, r.resume, r.result)
		}
	})
}

// A task's link leads to BIG-IQ's own localhost; polls go to the configured address, and below the tasks.
func TestLinksAreRebased(t *testing.T) {
	for _, tt := range []struct {
		name, reply string
		want        string // the path polled; empty: the answer is refused
	}{
		{"IDAndLink", `{"id":"t-1","selfLink":"https://localhost` + tasksPath + `/t-1","status":"STARTED"}`, tasksPath + "/t-1"},
		{"LinkAlone", `{"selfLink":"https://localhost` + tasksPath + `/t-2","status":"STARTED"}`, tasksPath + "/t-2"},
		{"LinkToAnotherHost", `{"selfLink":"https://evil.example` + tasksPath + `/t-3","status":"STARTED"}`, tasksPath + "/t-3"},
		{"LinkToAnotherPath", `{"selfLink":"https://localhost/mgmt/shared/authz/users/admin","status":"STARTED"}`, ""},
		{"LinkUpwards", `{"selfLink":"https://localhost` + tasksPath + `/../../x","status":"STARTED"}`, ""},
		{"IDUpwards", `{"id":"../../shared/authz","status":"STARTED"}`, ""},
		{"IDWithQuery", `{"id":"x?y=z","status":"STARTED"}`, ""},
		{"NoID", `{"status":"STARTED"}`, ""},
		{"AnotherUsersTask", `{"id":"t-4","action":"KILL_BY_USER","userName":"bob","status":"STARTED"}`, ""},
		{"AnotherAction", `{"id":"t-5","action":"KILL_ALL_SESSIONS","status":"STARTED"}`, ""},
		{"SeveralTasks", `{"items":[{"id":"t-6","userName":"alice"},{"id":"t-7","userName":"alice"}]}`, ""},
		{"AnotherUsersTaskInACollection", `{"items":[{"id":"t-10","userName":"bob"}]}`, ""},
		{"MoreClusters", `{"id":"t-11","clusterNames":["BlueCluster","RedCluster","GreenCluster"]}`, ""},
		{"MoreAccessGroups", `{"id":"t-12","accessGroupNames":["TestGroup1","TestGroup"]}`, ""},
		{"SessionsOfAnother", `{"id":"t-13","sessions":[{"deviceReference":{"link":"https://localhost/x"},"sessionIds":["1"]}]}`, ""},
		// BIG-IQ shows the devices that it has found, beside those it was given.
		{"MoreDevices", `{"id":"t-14","deviceReferences":[{"link":"https://localhost/mgmt/cm/system/machineid-resolver/x"}]}`, tasksPath + "/t-14"},
		{"PlacesOfAnotherType", `{"id":"t-15","clusterNames":"BlueCluster","sessions":{},"accessGroupNames":null}`, tasksPath + "/t-15"},
		{"OneOfSeveral", `{"items":[{"id":"t-8","userName":"bob"},{"id":"t-9","userName":"alice","username":"admin"}]}`, tasksPath + "/t-9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{})
				x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Fault: emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, tt.reply)})
				x.faults.Add(emulator.Rule{Match: func(r *http.Request) bool { return r.Method == "GET" && strings.HasPrefix(r.URL.Path, tasksPath+"/") },
					Fault: emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, `{"status":"FINISHED","result":"COMPLETE"}`)})
				err := x.drive(t, &run{}, byUser("alice"))
				var polled []string
				for _, r := range x.sent.Requests() {
					if !strings.HasPrefix(r.URL, "https://bigiq.example/") {
						t.Errorf("request to %s", r.URL)
					}
					if r.Method == "GET" && strings.HasPrefix(r.Path, tasksPath) {
						polled = append(polled, r.Path)
						if r.Query != "$select=status,result,resultDetails,errorMessage" {
							t.Errorf("query %q", r.Query)
						}
					}
				}
				if tt.want == "" {
					kind := adapters.BadReply
					if strings.HasPrefix(tt.name, "Another") || strings.HasPrefix(tt.name, "More") || strings.HasPrefix(tt.name, "SessionsOf") {
						kind = adapters.Rejected // for good: asked again it could end even more
					}
					wantError(t, err, kind, "")
					if len(polled) > 0 {
						t.Errorf("polled %v", polled)
					}
				} else if err != nil || !slices.Equal(polled, []string{tt.want}) {
					t.Errorf("polled %v, error %v, want %s", polled, err, tt.want)
				}
			})
		})
	}
}

// The reference has it that a POST answers with a collection; one sample of a task is one, too.
func TestTasksInCollections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{Collections: true}})
		x.populate()
		x.must(t, byUser("alice"))
		if n := len(x.Sessions()); n != len(bigiqtest.Places(bigiqtest.Lab())) {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// Only POST makes tasks and only GET asks for them: a PATCH would run the task again.
func TestNothingButPOSTAndGET(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.must(t, byUser("alice", "bob"))
		if _, err := x.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, r := range x.sent.Requests() {
			if r.Method != "GET" && r.Method != "POST" {
				t.Errorf("%s %s", r.Method, r.Path)
			}
		}
	})
}

func TestEmptyIntersectionSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		before := len(x.Sessions())
		for _, sel := range []adapters.Selector{
			{By: adapters.ByProvider | adapters.ByGroup, Providers: []adapters.Provider{accessGroup("TestGroup1")}, Groups: []adapters.Group{group("access_group", "TestGroup2")}},
			{By: adapters.ByUser | adapters.ByProvider, Users: []adapters.User{{Name: "alice", At: []adapters.Provider{accessGroup("TestGroup1")}}}, Providers: []adapters.Provider{accessGroup("TestGroup2")}},
		} {
			r := x.must(t, sel)
			if !r.result.Counted || r.result.Count != 0 || !warned(r.warnings, adapters.WarnNothingCanMatch) || r.result.Verification != 0 {
				t.Errorf("%+v, want count 0 and %s", r.result, adapters.WarnNothingCanMatch)
			}
			p, err := x.Preview(t.Context(), sel)
			if err != nil || len(p.Requests) != 0 || !warned(p.Warnings, adapters.WarnNothingCanMatch) {
				t.Errorf("preview %+v, %v", p, err)
			}
		}
		if n := len(x.sent.Requests()); n != 0 || len(x.Sessions()) != before {
			t.Errorf("%d requests were sent", n)
		}
	})
}

// One task for each user name; one that fails does not keep the others waiting, and is the only one done again.
func TestSeveralUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{TaskTime: 2 * time.Second})
		x.populate()
		var names []string
		for i := range 9 {
			names = append(names, fmt.Sprintf("user%d", i))
			x.SignIn(adapters.Session{Device: bigiqtest.Branch, Username: names[i]})
		}
		// The fourth task is lost at BIG-IQ.
		x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Skip: 3, Times: 1, Fault: emulator.Answer(200,
			http.Header{"Content-Type": {"application/json"}}, `{"id":"never-heard-of"}`)})
		r := &run{}
		err := x.drive(t, r, byUser(names...))
		wantError(t, err, adapters.Uncertain, "")
		if !strings.Contains(err.Error(), "1 of 9") {
			t.Errorf("error %q does not say how many", err)
		}
		if got := len(x.posts()); got != 9 {
			t.Errorf("%d tasks, want all 9 in spite of the failure", got)
		}
		if err := x.drive(t, r, byUser(names...)); err != nil {
			t.Fatal(err)
		}
		if r.polls[0] {
			t.Error("the call that starts the second task counts as a poll")
		}
		posts := x.posts()
		if len(posts) != 10 || !strings.Contains(posts[9], `"user3"`) {
			t.Errorf("then %q, want user3's task only", posts[9:])
		}
		for _, s := range x.Sessions() {
			if strings.HasPrefix(s.Username, "user") {
				t.Errorf("%s is still signed in", s.Username)
			}
		}
	})
}

func TestSeveralUsersOneRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Times: 1, Fault: emulator.Status(http.StatusBadRequest)})
		r := &run{}
		wantError(t, x.drive(t, r, byUser("bob", "alice")), adapters.Rejected, "")
		if slices.ContainsFunc(x.Sessions(), func(s adapters.Session) bool { return s.Username == "alice" }) {
			t.Error("alice is still signed in, because bob's task was refused")
		}
	})
}

// One user's refusal does not end the run while another's outcome is unknown.
func TestSeveralUsersTheMostUrgentVerdictCounts(t *testing.T) {
	for _, lostFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{})
			lost := emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, `{"id":"never-heard-of"}`)
			faults := []emulator.Fault{lost, emulator.Status(http.StatusBadRequest)}
			if !lostFirst {
				slices.Reverse(faults)
			}
			for i, f := range faults {
				x.faults.Add(emulator.Rule{Match: emulator.On("POST", tasksPath), Skip: i, Times: 1, Fault: f})
			}
			r := &run{}
			err := x.drive(t, r, byUser("alice", "bob"))
			wantError(t, err, adapters.Uncertain, "")
			if !strings.Contains(err.Error(), "2 of 2") {
				t.Errorf("error %q does not say how many", err)
			}
			if err := x.drive(t, r, byUser("alice", "bob")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFewTasksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{TaskTime: 10 * time.Second})
		var names []string
		for i := range 12 {
			names = append(names, fmt.Sprintf("user%d", i))
		}
		var resume json.RawMessage
		for {
			res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser(names...), Resume: resume})
			if err != nil {
				t.Fatal(err)
			}
			running := 0
			for _, task := range x.Tasks() {
				if task.Status == "STARTED" {
					running++
				}
			}
			if running > 4 {
				t.Fatalf("%d tasks at once", running)
			}
			if res.Pending == nil {
				break
			}
			resume = res.Pending.Resume
			time.Sleep(res.Pending.After)
		}
		if n := len(x.posts()); n != 12 {
			t.Errorf("%d tasks, want 12", n)
		}
	})
}

// Once a task's id is journalled, no crash leads to a second task.
func TestCrashAfterJournallingStartsNoSecondTask(t *testing.T) {
	for crash := 1; crash < 8; crash++ {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{TaskTime: time.Second})
			x.populate()
			sel := byUser("alice", "bob")
			var resume json.RawMessage
			for call := 1; ; call++ {
				if call == crash {
					x.reopen(t) // the journal is all that is left
				}
				res, err := x.Invalidate(t.Context(), adapters.Request{Selector: sel, Resume: resume})
				if err != nil {
					t.Fatal(err)
				}
				if res.Pending == nil {
					break
				}
				resume = res.Pending.Resume
				time.Sleep(res.Pending.After)
			}
			if n := len(x.posts()); n != 2 || len(x.Sessions()) != 0 {
				t.Errorf("crash before call %d: %d tasks, %d sessions left, want 2 and 0", crash, n, len(x.Sessions()))
			}
		})
	}
}

// Resume state that belongs to something else must not decide what is sent.
func TestForeignResumeStateIsNotTrusted(t *testing.T) {
	for _, resume := range []string{
		`{`, `null`, `[]`, `"x"`, `{"v":99,"tasks":[{"user":"alice","done":true}]}`, `{"v":1}`,
		`{"v":1,"tasks":[{"user":"bob","done":true}]}`, `{"v":1,"tasks":[{"user":"alice","done":true},{"user":"bob","done":true}]}`,
		`{"v":1,"tasks":[{"user":"alice","id":"../../../shared/authz/users"}]}`, `{"v":1,"tasks":[{"user":"alice","id":"x?y"}]}`,
	} {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{})
			x.populate()
			r := &run{resume: json.RawMessage(resume)}
			if err := x.drive(t, r, byUser("alice")); err != nil {
				t.Errorf("resume %s: %v", resume, err)
			}
			for _, s := range x.Sessions() {
				if s.Username == "alice" {
					t.Fatalf("resume %s: alice is still signed in", resume)
				}
			}
			if n := len(x.Sessions()); n != len(bigiqtest.Places(bigiqtest.Lab())) {
				t.Errorf("resume %s: %d sessions left", resume, n)
			}
		})
	}
}

// Many runs share a token and a look at the devices.
func TestManyRunsShareOneLoginAndOneInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() { x.must(t, byUser(fmt.Sprintf("user%d", i))) })
		}
		wg.Wait()
		if ok, failed, _ := x.Logins(); ok != 1 || failed != 0 {
			t.Errorf("%d logins and %d failures, want 1 and 0", ok, failed)
		}
		if n := x.count("GET", "/mgmt/cm/system/machineid-resolver"); n != 1 {
			t.Errorf("devices were listed %d times, want once", n)
		}
		if n := len(x.posts()); n != 50 {
			t.Errorf("%d tasks, want 50", n)
		}
	})
}

// What was not there a moment ago may be there now: the cached inventory refuses nobody.
func TestCachedInventoryRefusesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.must(t, byUser("alice"))
		x.Update(bigiqtest.Guest, func(d *bigiqtest.Device) { d.Cluster = "GreenCluster" })
		sel := adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{group("cluster", "GreenCluster")}}
		x.must(t, sel)
		// And it is not used for long.
		x.Update(bigiqtest.Guest, func(d *bigiqtest.Device) { d.Cluster = "" })
		time.Sleep(11 * time.Second)
		wantError(t, x.drive(t, &run{}, sel), adapters.Rejected, adapters.ReasonUnknownScope)
	})
}

func TestFenceIsAskedBeforeEachTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		lost := errors.New("lease lost")
		ctx := adapters.WithFence(t.Context(), func(context.Context) error { return lost })
		if _, err := x.Invalidate(ctx, adapters.Request{Selector: byUser("alice")}); !errors.Is(err, lost) {
			t.Errorf("error %v, want the fence's", err)
		}
		if n := len(x.posts()); n != 0 {
			t.Errorf("%d tasks were sent", n)
		}
		// A probe changes nothing and needs no lease.
		if h, err := x.Probe(ctx); err != nil || !h.Healthy() {
			t.Errorf("probe %+v, %v", h, err)
		}
	})
}

func TestLogsAndErrorsShowNoSecretsAndNoBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{Ending: &bigiqtest.Ending{Status: "FAILED", ErrorMessage: emulator.Canary}}})
		var log bytes.Buffer
		a, err := x.conf.Open(adapters.Deps{Transport: x.sent, Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		if err != nil {
			t.Fatal(err)
		}
		x.Adapter = a
		err = x.drive(t, &run{resume: json.RawMessage(`"` + emulator.Canary + `"`)}, byUser("alice"))
		text := fmt.Sprintf("%v %+v %s %+v", err, err, log.String(), x.conf)
		_, password := x.Credentials()
		for _, secret := range []string{password, emulator.Canary, "eyJhbGci"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q shows in %s", secret, text)
			}
		}
	})
}

// Over a real connection: the emulator's authority is trusted by ca_file, and by nothing else.
func TestOverTLS(t *testing.T) {
	s := bigiqtest.New(bigiqtest.Options{TaskTime: time.Millisecond})
	s.SignIn(adapters.Session{Device: bigiqtest.Branch, Username: "alice"})
	base, ca, stop, err := emulator.ServeTLS(s.Handler())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	conf := config(s)
	conf.URL = base
	untrusting, err := conf.Open(adapters.Deps{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	h, err := untrusting.Probe(t.Context())
	if err != nil || len(h.Checks) != 2 || h.Status("tls") != adapters.CheckFailed {
		t.Errorf("without ca_file: %+v, %v", h, err)
	}
	conf.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(conf.CAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := conf.Open(adapters.Deps{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := a.Probe(t.Context()); err != nil || !h.Healthy() || h.Status("tls") != adapters.CheckOK {
		t.Errorf("with ca_file: %+v, %v", h, err)
	}
	var resume json.RawMessage
	for {
		res, err := a.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice"), Resume: resume})
		if err != nil {
			t.Fatal(err)
		}
		if res.Pending == nil {
			break
		}
		resume = res.Pending.Resume
	}
	if n := len(s.Sessions()); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}
