package element_test

import (
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
)

// The three ways a kill is carried out.
var ways = map[string]func(x adapters.Session) adapters.Selector{
	"ByUsername":     func(x adapters.Session) adapters.Selector { return userAt(x.Username, "Cluster") },
	"ByClusterAdmin": func(adapters.Session) adapters.Selector { return admins("9") },
	"BySession":      func(adapters.Session) adapters.Selector { return accessGroup("read") },
}

// TestLies: a cluster that does not do what it says is found out, and nothing is claimed that is not true.
func TestLies(t *testing.T) {
	for _, test := range []struct {
		name string
		lie  emulator.Lie
		// kind is of the error; 0 for a complete run.
		kind adapters.Kind
		// bySession is kind for single deletes, where it differs.
		bySession adapters.Kind
		// other: the report names a session that was not asked for.
		other bool
		// deletes are as many as are sent at most, over three calls.
		deletes int
	}{
		{name: "ItKeepsTheSession", lie: emulator.Keep, kind: adapters.StillAlive, deletes: 3},
		{name: "ItEndsAnother", lie: emulator.EndAnother, kind: adapters.Rejected, other: true, deletes: 1},
		{name: "ItEndsAnotherAndDoesNotSay", lie: emulator.EndAnotherSilently, kind: adapters.StillAlive, deletes: 3},
		{name: "ItListsAnother", lie: emulator.ListAnother, kind: adapters.BadReply, bySession: -1, deletes: 0},
		{name: "ItListsOneSessionAsTwo", lie: emulator.ListConfused, kind: adapters.BadReply, deletes: 0},
		{name: "ItListsSessionsTwice", lie: emulator.ListTwice, kind: adapters.BadReply, deletes: 1},
	} {
		for way, selector := range ways {
			if test.bySession < 0 && way == "BySession" {
				continue // there is no list that could hold another
			}
			t.Run(test.name+"/"+way, func(t *testing.T) {
				c := start(elementtest.Options{})
				bob := c.in("Ldap", "bob", "drives")
				alice := c.in("Cluster", "alice", "read", "9")
				c.in("Idp", "carol", "drives")
				c.SetLie(test.lie)
				a := c.open(t)
				sel := selector(alice)
				res, err := call(t, a, sel)
				wantKind(t, err, test.kind)
				if test.kind != 0 && res.Verification != adapters.VerificationUnspecified {
					t.Errorf("verification %v beside an error", res.Verification)
				}
				if got := warned(res.Warnings, adapters.WarnOtherSessionEnded); got != test.other {
					t.Errorf("warns of another session: %t, want %t: %+v", got, test.other, res)
				}
				if test.other && (!res.CountIsMinimum || res.Count != 1 || res.Sessions[0].ID != bob.ID) {
					t.Errorf("result %+v, want it to name and count bob", res)
				}
				if test.kind == 0 && (res.Count != 1 || c.alive(alice) || !c.alive(bob) || res.Verification != adapters.ConfirmedByList) {
					t.Errorf("result %+v", res)
				}
				// The engine asks again, unless the error is final.
				for range 2 {
					if err == nil || test.kind == adapters.Rejected {
						break
					}
					res, err = a.Invalidate(t.Context(), adapters.Request{Selector: sel, Resume: res.Pending.Resume})
				}
				if got := c.deletes(); got > test.deletes {
					t.Errorf("%d deletes, want at most %d", got, test.deletes)
				}
			})
		}
	}
}

// TestItEndsOneMore: with a delete by name the report shows it; the run fails for good, with everything that died in it.
func TestItEndsOneMore(t *testing.T) {
	for _, way := range []string{"ByUsername", "ByClusterAdmin"} {
		t.Run(way, func(t *testing.T) {
			c := start(elementtest.Options{})
			c.in("Ldap", "bob")
			alice := c.in("Cluster", "alice", "9")
			c.SetLie(emulator.EndMore)
			res, err := call(t, c.open(t), ways[way](alice))
			wantKind(t, err, adapters.Rejected)
			if res.Count != 2 || len(res.Sessions) != 2 || !res.CountIsMinimum || !warned(res.Warnings, adapters.WarnOtherSessionEnded) {
				t.Errorf("result %+v", res)
			}
		})
	}
}

// TestAnotherAnswerThatStillMatches: the cluster names another of the sessions to end; nothing is ended that should not
// be, but the reply cannot be relied on.
func TestAnotherAnswerThatStillMatches(t *testing.T) {
	c := start(elementtest.Options{})
	for _, name := range []string{"alice", "bob", "carol"} {
		c.in("Cluster", name)
	}
	c.SetLie(emulator.EndAnother)
	a := c.open(t)
	res, err := call(t, a, everybody)
	wantKind(t, err, adapters.BadReply)
	if !res.CountIsMinimum || warned(res.Warnings, adapters.WarnOtherSessionEnded) {
		t.Errorf("result %+v", res)
	}
	c.SetLie(emulator.Honest)
	res, err = a.Invalidate(t.Context(), adapters.Request{Selector: everybody, Resume: res.Pending.Resume})
	if err != nil || res.Count != 2 || len(c.Sessions()) != 0 {
		t.Errorf("then %+v, %v, left %v", res, err, c.Sessions())
	}
}

// TestAnotherUserInTheListAfterTheDelete: what was ended is counted, and the verification is not claimed.
func TestAnotherUserInTheListAfterTheDelete(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Ldap", "bob")
	alice := c.in("Cluster", "alice")
	c.After("DeleteAuthSessionsByUsername", func() { c.SetLie(emulator.ListAnother) })
	res, err := call(t, c.open(t), user("alice"))
	wantKind(t, err, adapters.BadReply)
	if res.Count != 1 || c.alive(alice) || res.Verification != adapters.VerificationUnspecified {
		t.Errorf("result %+v", res)
	}
}

// TestANewcomerThatIsClaimedToBeEnded and is not: it was not in the list before, but the cluster has named it.
func TestANewcomerThatIsClaimedToBeEnded(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Cluster", "alice")
	var newcomer adapters.Session
	c.Before("DeleteAuthSessionsByUsername", func() { newcomer = c.in("Cluster", "alice") })
	c.After("DeleteAuthSessionsByUsername", func() { c.SignIn(newcomer) })
	_, err := call(t, c.open(t), userAt("alice", "Cluster"))
	wantKind(t, err, adapters.StillAlive)
}
