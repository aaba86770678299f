package element_test

import (
	"testing"
	"testing/synctest"
	"time"

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

// again makes the next call of a run.
func again(t *testing.T, a adapters.Adapter, sel adapters.Selector, before adapters.Result) (adapters.Result, error) {
	t.Helper()
	return a.Invalidate(t.Context(), adapters.Request{Selector: sel, Resume: before.Pending.Resume})
}

// TestTheListsByNameLeaveOneOut: the list of all sessions has it.
func TestTheListsByNameLeaveOneOut(t *testing.T) {
	c := start(elementtest.Options{})
	alice := c.in("Cluster", "alice")
	c.SetLie(emulator.ListLessByName)
	a := c.open(t)
	res, err := call(t, a, user("alice"))
	wantKind(t, err, adapters.StillAlive)
	if !c.alive(alice) || c.deletes() != 0 {
		t.Errorf("result %+v, sent %v", res, c.methods())
	}
	c.SetLie(emulator.Honest)
	res, err = again(t, a, user("alice"), res)
	if err != nil || res.Count != 1 || c.alive(alice) || res.Verification != adapters.ConfirmedByList {
		t.Errorf("then %+v, %v", res, err)
	}
}

// TestAllListsLeaveOneOutAtFirst: it began before the run, so that it is no newcomer when it is listed.
func TestAllListsLeaveOneOutAtFirst(t *testing.T) {
	for name, test := range map[string]struct{ begun, other time.Duration }{
		"LongBeforeTheRun":      {time.Hour, 2 * time.Hour},
		"BeforeOneThatIsListed": {2 * time.Minute, time.Minute},
	} {
		for way, selector := range ways {
			t.Run(name+"/"+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := start(elementtest.Options{})
					in := func(method string, ago time.Duration) adapters.Session {
						x := c.in(method, "alice", "read", "9")
						c.SignOut(x.ID)
						x.CreateTime = time.Now().Add(-ago)
						return c.SignIn(x)
					}
					first, second := in("Cluster", test.begun), in("Cluster", test.other)
					c.SetLie(emulator.ListLessAtFirst)
					// The delete by name ends it, too; the one by id does not.
					c.Before("DeleteAuthSessionsByUsername", func() { c.SignOut(first.ID) })
					c.After("DeleteAuthSessionsByUsername", func() { first = c.SignIn(first) })
					c.Before("DeleteAuthSessionsByClusterAdmin", func() { c.SignOut(first.ID) })
					c.After("DeleteAuthSessionsByClusterAdmin", func() { first = c.SignIn(first) })
					a, sel := c.open(t), selector(first)
					res, err := call(t, a, sel)
					wantKind(t, err, adapters.StillAlive)
					if c.alive(second) || res.Count != 1 {
						t.Errorf("result %+v", res)
					}
					if way == "BySession" {
						res, err = again(t, a, sel, res)
						if err != nil || res.Count != 1 || c.alive(first) {
							t.Errorf("then %+v, %v", res, err)
						}
					}
				})
			})
		}
	}
	t.Run("ButAClockBehindOursIsForgiven", func(t *testing.T) {
		c := start(elementtest.Options{})
		c.SignIn(adapters.Session{Username: "alice", CreateTime: time.Now().Add(-time.Hour)})
		c.SignIn(adapters.Session{Username: "bob", CreateTime: time.Now().Add(24 * time.Hour)}) // somebody's clock was wrong
		c.After("DeleteAuthSessionsByUsername", func() {
			c.SignIn(adapters.Session{Username: "alice", CreateTime: time.Now().Add(-4 * time.Minute)})
		})
		if res := complete(t, c.open(t), user("alice")); !warned(res.Warnings, adapters.WarnSignedInAgain) {
			t.Errorf("result %+v", res)
		}
	})
}

// TestWhatIsListedAfterItsDeleteIsNotCounted: perhaps it ends later, so that the count is a minimum.
func TestWhatIsListedAfterItsDeleteIsNotCounted(t *testing.T) {
	for way, selector := range ways {
		t.Run(way, func(t *testing.T) {
			c := start(elementtest.Options{})
			alice := c.in("Cluster", "alice", "read", "9")
			c.SetLie(emulator.ListLater)
			a, sel := c.open(t), selector(alice)
			res, err := call(t, a, sel)
			wantKind(t, err, adapters.StillAlive)
			if !res.CountIsMinimum || res.Count != 0 || len(res.Sessions) != 0 {
				t.Errorf("result %+v", res)
			}
			if res, err = again(t, a, sel, res); err != nil || res.Verification != adapters.ConfirmedByList || warned(res.Warnings, adapters.WarnNoSessionMatched) {
				t.Errorf("then %+v, %v", res, err)
			}
		})
	}
	t.Run("OnlyInTheListOfAll", func(t *testing.T) {
		c := start(elementtest.Options{})
		c.in("Cluster", "alice")
		c.SetLie(emulator.Keep)
		c.After("DeleteAuthSessionsByUsername", func() { c.SetLie(emulator.ListLessByName) })
		res, err := call(t, c.open(t), user("alice"))
		wantKind(t, err, adapters.StillAlive)
		if !res.CountIsMinimum || res.Count != 0 || len(res.Sessions) != 0 {
			t.Errorf("result %+v", res)
		}
	})
}
