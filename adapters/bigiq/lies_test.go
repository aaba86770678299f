package bigiq_test

import (
	"testing"
	"testing/synctest"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
)

// TestATaskForSomethingElseIsTheLast: BIG-IQ takes a request for another, and its answer shows it. Nothing more is asked of
// it, for no user; somebody has to look.
func TestATaskForSomethingElseIsTheLast(t *testing.T) {
	for name, test := range map[string]struct {
		lie emulator.Lie
		sel adapters.Selector
	}{
		"AnotherUser":  {emulator.EndAnother, byUser("alice", "bob")},
		"MorePlaces":   {emulator.EndMore, adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{group("access_group", "TestGroup1")}}},
		"MoreForAUser": {emulator.EndMore, byUser("alice", "bob")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) {
					c.Scope = bigiq.ScopeConfig{Scope: bigiq.Scope{Clusters: []string{"BlueCluster"}}}
				})
				x.populate()
				x.SetLie(test.lie)
				res, err := x.Invalidate(t.Context(), adapters.Request{Selector: test.sel})
				wantError(t, err, adapters.Rejected, "")
				if !res.CountIsMinimum || !warned(res.Warnings, adapters.WarnOtherSessionEnded) || res.Verification != adapters.VerificationUnspecified {
					t.Errorf("result %+v, want a minimum and a warning", res)
				}
				if n := len(x.posts()); n != 1 {
					t.Errorf("%d tasks, want no more than the one", n)
				}
			})
		})
	}
}

// TestListsThatRepeatThemselves: what comes twice is one; what comes twice and differs is not believed.
func TestListsThatRepeatThemselves(t *testing.T) {
	for name, test := range map[string]struct {
		lie  emulator.Lie
		kind adapters.Kind
	}{
		"Twice":    {emulator.ListTwice, 0},
		"Confused": {emulator.ListConfused, adapters.BadReply},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{})
				x.populate()
				x.SetLie(test.lie)
				if err := x.drive(t, &run{}, byUser("alice")); adapters.KindOf(err) != test.kind {
					t.Errorf("error %v, want kind %v", err, test.kind)
				}
				if n := len(x.posts()); (n > 0) != (test.kind == 0) {
					t.Errorf("%d tasks", n)
				}
			})
		})
	}
}

// TestWhatIsNotListedIsNotSilentlyLeftOut: a name that a list leaves out is an error, and nothing is sent.
func TestWhatIsNotListedIsNotSilentlyLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.populate()
		x.SetLie(emulator.ListNone)
		wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Rejected, adapters.ReasonUnknownScope)
		if n := len(x.posts()); n != 0 {
			t.Errorf("%d tasks, want none", n)
		}
	})
}
