package element_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/adaptertest"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
)

// TestSignInBetweenListAndDelete: by name the cluster ends the newcomer too, who is of the same user, and it is counted.
func TestSignInBetweenListAndDelete(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Cluster", "alice")
	c.Before("DeleteAuthSessionsByUsername", func() { c.in("Cluster", "alice") })
	res := complete(t, c.open(t), userAt("alice", "Cluster"))
	if res.Count != 2 || len(c.Sessions()) != 0 || warned(res.Warnings, adapters.WarnSignedInAgain) || res.Verification != adapters.ConfirmedByList {
		t.Errorf("result %+v, left %v", res, c.Sessions())
	}
}

// TestSignInAfterTheDelete: the newcomer is left alone and reported, whichever way the kill goes.
func TestSignInAfterTheDelete(t *testing.T) {
	for way, selector := range ways {
		t.Run(way, func(t *testing.T) {
			c := start(elementtest.Options{})
			alice := c.in("Cluster", "alice", "read", "9")
			var again adapters.Session
			for _, m := range []string{"DeleteAuthSessionsByUsername", "DeleteAuthSessionsByClusterAdmin", "DeleteAuthSession"} {
				c.After(m, func() { again = c.in("Cluster", "alice", "read", "9") })
			}
			res := complete(t, c.open(t), selector(alice))
			if res.Count != 1 || c.alive(alice) || !c.alive(again) || !warned(res.Warnings, adapters.WarnSignedInAgain) ||
				res.Verification != adapters.ConfirmedByList {
				t.Errorf("result %+v, left %v", res, c.Sessions())
			}
		})
	}
}

// TestSessionsThatEndByThemselves between the list and their delete are gone, and not counted as ended by us.
func TestSessionsThatEndByThemselves(t *testing.T) {
	c := start(elementtest.Options{})
	var xs []adapters.Session
	for i := range 5 {
		xs = append(xs, c.in("Cluster", fmt.Sprint("user", i), "read"))
	}
	kept := c.in("Cluster", "kept")
	n := 0
	c.Before("DeleteAuthSession", func() {
		if n++; n == 2 {
			for _, x := range xs {
				c.SignOut(x.ID)
			}
		}
	})
	res := complete(t, c.open(t), accessGroup("read"))
	if res.Count != 1 || res.CountIsMinimum || res.Verification != adapters.ConfirmedByList || !c.alive(kept) {
		t.Errorf("result %+v", res)
	}
	if got := c.Calls("DeleteAuthSession"); got != 2 {
		t.Errorf("%d deletes, want 2: the list shows that the others are gone", got)
	}
}

// TestSessionsExpire at their final timeout, also in the emulator.
func TestSessionsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(elementtest.Options{})
		x := c.SignIn(adapters.Session{Username: "alice", ExpireTime: time.Now().Add(time.Hour)})
		c.Before("DeleteAuthSessionsByUsername", func() { time.Sleep(2 * time.Hour) })
		c.faults.Add(emulator.Rule{Match: on("DeleteAuthSessionsByUsername"), Fault: emulator.Delay(0)})
		a := c.open(t)
		_, err := call(t, a, user("alice")) // runs into the client's timeout
		wantKind(t, err, adapters.Uncertain)
		time.Sleep(3 * time.Hour)
		if c.alive(x) {
			t.Error("the session did not expire")
		}
	})
}

// TestARefusedSessionDoesNotKeepTheOthers from being ended; the run then fails with the cluster's name for it.
func TestARefusedSessionDoesNotKeepTheOthers(t *testing.T) {
	c := start(elementtest.Options{})
	var xs []adapters.Session
	for i := range 4 {
		xs = append(xs, c.in("Cluster", fmt.Sprint("user", i), "read"))
	}
	c.Refuse(xs[1].ID, "xSessionIsSacred")
	res, err := call(t, c.open(t), accessGroup("read"))
	wantKind(t, err, adapters.Rejected)
	if res.Count != 3 || len(c.Sessions()) != 1 || !c.alive(xs[1]) || !strings.Contains(fmt.Sprint(err), "xSessionIsSacred") {
		t.Errorf("result %+v, %v, left %v", res, err, c.Sessions())
	}
	t.Run("ButManyRefusalsEndTheCall", func(t *testing.T) {
		c := start(elementtest.Options{})
		for i := range 10 {
			c.Refuse(c.in("Cluster", fmt.Sprint("user", i)).ID, "xSessionIsSacred")
		}
		_, err := call(t, c.open(t), everybody)
		wantKind(t, err, adapters.Rejected)
		if got := c.Calls("DeleteAuthSession"); got > 3 {
			t.Errorf("%d deletes, want 3", got)
		}
	})
}

// TestAStepThatGoesWrongDoesNotKeepTheOthers from being taken, and is tried again alone.
func TestAStepThatGoesWrongDoesNotKeepTheOthers(t *testing.T) {
	for name, test := range map[string]struct {
		trouble func(c *cluster)
		kind    adapters.Kind
	}{
		"StillAlive": {func(c *cluster) {
			c.SetLie(emulator.Keep)
			c.After("DeleteAuthSessionsByUsername", func() { c.SetLie(emulator.Honest) })
		}, adapters.StillAlive},
		"BadReply": {func(c *cluster) {
			once := false
			c.Before("ListAuthSessionsByUsername", func() {
				if !once {
					c.SetLie(emulator.ListConfused)
				}
				once = true
			})
			c.After("ListAuthSessionsByUsername", func() { c.SetLie(emulator.Honest) })
		}, adapters.BadReply},
		"Refused": {func(c *cluster) { c.Fail("ListAuthSessionsByUsername", 1, "xUnknownUsername") }, adapters.Rejected},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(elementtest.Options{})
			a := c.open(t)
			complete(t, a, user("nobody"))
			first, second := c.in("Cluster", "alice"), c.in("Ldap", "alice")
			test.trouble(c)
			res, err := call(t, a, user("alice"))
			wantKind(t, err, test.kind)
			if !c.alive(first) || c.alive(second) {
				t.Errorf("Cluster alive %t, Ldap alive %t: %v", c.alive(first), c.alive(second), c.methods())
			}
			again := c.in("Ldap", "alice")
			res, err = a.Invalidate(t.Context(), adapters.Request{Selector: user("alice"), Resume: res.Pending.Resume})
			if err != nil || res.Count != 1 || c.alive(first) {
				t.Errorf("resumed: %+v, %v", res, err)
			}
			if !c.alive(again) {
				t.Error("the resumed run pursues who began after a complete step")
			}
		})
	}
}

// TestALostAnswerIsUncertain and the count stays a minimum; the repeated run finds nothing and does not say that nobody
// matched.
func TestALostAnswerIsUncertain(t *testing.T) {
	for way, selector := range ways {
		t.Run(way, func(t *testing.T) {
			c := start(elementtest.Options{})
			alice := c.in("Cluster", "alice", "read", "9")
			for _, m := range []string{"DeleteAuthSessionsByUsername", "DeleteAuthSessionsByClusterAdmin", "DeleteAuthSession"} {
				c.faults.Add(emulator.Rule{Match: on(m), Times: 1, Fault: emulator.Reset().After()})
			}
			a := c.open(t)
			sel := selector(alice)
			res, err := call(t, a, sel)
			wantKind(t, err, adapters.Uncertain)
			if res.Counted || !res.CountIsMinimum || c.alive(alice) {
				t.Errorf("result %+v", res)
			}
			res, err = a.Invalidate(t.Context(), adapters.Request{Selector: sel, Resume: res.Pending.Resume})
			if err != nil || res.Count != 0 || warned(res.Warnings, adapters.WarnNoSessionMatched) || res.Verification != adapters.ConfirmedByList {
				t.Errorf("resumed: %+v, %v", res, err)
			}
		})
	}
}

// TestALostProcessLeavesNoFalseWarning: nobody knows what the first call did.
func TestALostProcessLeavesNoFalseWarning(t *testing.T) {
	c := start(elementtest.Options{})
	a := c.open(t)
	for _, req := range []adapters.Request{
		{Selector: user("alice"), MayHaveSent: true},
		{Selector: user("alice"), Resume: json.RawMessage(`{"v":99}`)},
		{Selector: user("alice"), Resume: json.RawMessage(`"of another version"`)},
	} {
		res, err := a.Invalidate(t.Context(), req)
		if err != nil || warned(res.Warnings, adapters.WarnNoSessionMatched) {
			t.Errorf("%+v: result %+v, %v", req, res, err)
		}
	}
	if res := complete(t, a, user("alice")); !warned(res.Warnings, adapters.WarnNoSessionMatched) {
		t.Errorf("result %+v", res)
	}
}

// TestResumeNeverWidens: ids in a resume value are ended only if the selector matches their sessions.
func TestResumeNeverWidens(t *testing.T) {
	c := start(elementtest.Options{})
	bob := c.in("Cluster", "bob", "drives")
	alice := c.in("Cluster", "alice", "read")
	resume, err := json.Marshal(map[string]any{"v": 1, "begun": true, "left": []string{bob.ID, alice.ID}})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.open(t).Invalidate(t.Context(), adapters.Request{Selector: accessGroup("read"), Resume: resume})
	if err != nil || res.Count != 1 || !c.alive(bob) || c.alive(alice) {
		t.Errorf("result %+v, %v", res, err)
	}
}

// TestLargeRuns goes on from call to call, each bounded, each in a new process; who signs in meanwhile is left alone.
func TestLargeRuns(t *testing.T) {
	for _, n := range []int{element.MaxDeletes, element.MaxDeletes + 1, element.MaxLeft + element.MaxDeletes + 10} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := start(elementtest.Options{})
				var seeded []adapters.Session
				for i := range n {
					seeded = append(seeded, c.in("Cluster", fmt.Sprint("user", i), "read"))
				}
				kept := c.in("Cluster", "kept", "drives")
				time.Sleep(time.Minute)
				var resume json.RawMessage
				count, calls, newcomers := 0, 0, 0
				for {
					calls++
					before := c.Calls("DeleteAuthSession")
					res, err := c.open(t).Invalidate(t.Context(), adapters.Request{Selector: accessGroup("read"), Resume: resume})
					if err != nil {
						t.Fatal(err)
					}
					if sent := c.Calls("DeleteAuthSession") - before; sent > element.MaxDeletes {
						t.Errorf("call %d sent %d deletes", calls, sent)
					}
					count += res.Count
					if res.Pending == nil {
						if res.Verification != adapters.ConfirmedByList || warned(res.Warnings, adapters.WarnSignedInAgain) != (newcomers > 0) {
							t.Errorf("result %+v", res)
						}
						break
					}
					resume = res.Pending.Resume
					var held struct{ Left []string }
					if err := json.Unmarshal(resume, &held); err != nil || len(held.Left) > element.MaxLeft {
						t.Errorf("resume value holds %d ids, %v", len(held.Left), err)
					}
					c.in("Cluster", "newcomer", "read")
					newcomers++
				}
				if want := (n + element.MaxDeletes - 1) / element.MaxDeletes; calls != want || count != n {
					t.Errorf("%d calls ended %d, want %d and %d", calls, count, want, n)
				}
				for _, x := range seeded {
					if c.alive(x) {
						t.Errorf("%s is alive", x.Username)
					}
				}
				if !c.alive(kept) || len(c.Sessions()) != newcomers+1 {
					t.Errorf("%d sessions left, want %d", len(c.Sessions()), newcomers+1)
				}
			})
		})
	}
}

// TestLargeRunsWithASessionThatStays ask for all the others before they say so.
func TestLargeRunsWithASessionThatStays(t *testing.T) {
	c := start(elementtest.Options{})
	n := element.MaxDeletes + 50
	for i := range n {
		c.in("Cluster", fmt.Sprint("user", i), "read")
	}
	// The first delete is a lie.
	c.SetLie(emulator.Keep)
	c.After("DeleteAuthSession", func() { c.SetLie(emulator.Honest) })
	a := c.open(t)
	res, err := call(t, a, accessGroup("read"))
	if err != nil || res.Pending == nil {
		t.Fatalf("first call: %+v, %v", res, err)
	}
	res, err = a.Invalidate(t.Context(), adapters.Request{Selector: accessGroup("read"), Resume: res.Pending.Resume})
	wantKind(t, err, adapters.StillAlive)
	if len(c.Sessions()) != 1 {
		t.Errorf("%d sessions left, want the one that stayed", len(c.Sessions()))
	}
	newcomer := c.in("Cluster", "newcomer", "read")
	res, err = a.Invalidate(t.Context(), adapters.Request{Selector: accessGroup("read"), Resume: res.Pending.Resume})
	if err != nil || res.Count != 1 || !c.alive(newcomer) || len(c.Sessions()) != 1 {
		t.Errorf("third call: %+v, %v, left %v", res, err, c.Sessions())
	}
}

// TestASessionThatStaysTakesNobodysPlace among those that a resume value only counts.
func TestASessionThatStaysTakesNobodysPlace(t *testing.T) {
	c := start(elementtest.Options{})
	now := time.Now()
	stuck := c.SignIn(adapters.Session{Username: "stuck", CreateTime: now.Add(-2 * time.Hour)})
	for range element.MaxLeft {
		c.SignIn(adapters.Session{Username: "user", CreateTime: now})
	}
	c.SetLie(emulator.Keep)
	c.After("DeleteAuthSession", func() { c.SetLie(emulator.Honest) })
	a := c.open(t)
	var resume json.RawMessage
	for {
		res, err := a.Invalidate(t.Context(), adapters.Request{Selector: everybody, Resume: resume})
		if err != nil {
			wantKind(t, err, adapters.StillAlive)
			break
		}
		if res.Pending == nil {
			t.Fatalf("complete: %+v", res.Warnings)
		}
		resume = res.Pending.Resume
	}
	if left := c.Sessions(); len(left) != 1 || left[0].ID != stuck.ID {
		t.Errorf("%d sessions left, want the stuck one", len(left))
	}
}

// TestCrashAtAnyRequestOfALargeRun: the process dies before or after the cluster acts on a request; another goes on with
// what was journalled.
func TestCrashAtAnyRequestOfALargeRun(t *testing.T) {
	const n = element.MaxDeletes + 5
	sel := accessGroup("read")
	// Each of the two processes negotiates, proves its privilege with two requests, lists, deletes and lists again.
	const requests = 4 + element.MaxDeletes + 1 + 4 + 5 + 1
	for _, at := range []int{1, 2, 3, 4, 5, 6, 100, 203, 204, 205, 206, 207, 208, 209, 210, 211, requests - 1, requests} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/%t", at, after), func(t *testing.T) {
				c := start(elementtest.Options{})
				for i := range n {
					c.in("Cluster", fmt.Sprint("user", i), "read")
				}
				kept := c.in("Cluster", "kept", "drives")
				fault := emulator.Reset()
				if after {
					fault = fault.After()
				}
				c.faults.Add(emulator.Rule{Skip: at - 1, Times: 1, Fault: fault})
				var resume json.RawMessage
				lost, count := false, 0
				for calls := 0; ; calls++ {
					if calls > 10 {
						t.Fatal("no end")
					}
					struck := c.faults.Struck()
					res, err := c.open(t).Invalidate(t.Context(), adapters.Request{Selector: sel, Resume: resume, MayHaveSent: lost})
					if c.faults.Struck() > struck {
						lost = true // the result dies with the process
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					count += res.Count
					if res.Pending == nil {
						break
					}
					resume = res.Pending.Resume
				}
				if !lost {
					t.Errorf("request %d was not reached", at)
				}
				if !c.alive(kept) || len(c.Sessions()) != 1 || count > n {
					t.Errorf("counted %d, left %d sessions", count, len(c.Sessions()))
				}
			})
		}
	}
}

// TestBurstOfVersionMismatches is waited out.
func TestBurstOfVersionMismatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(elementtest.Options{})
		for i := range 6 {
			c.in("Cluster", fmt.Sprint("user", i))
		}
		a := c.open(t)
		var resume json.RawMessage
		count, busy := 0, 0
		c.Fail("DeleteAuthSession", 4, "xDBVersionMismatch")
		for {
			res, err := a.Invalidate(t.Context(), adapters.Request{Selector: everybody, Resume: resume})
			count += res.Count
			if res.CountIsMinimum {
				t.Error("the count is a minimum, but a refused change is none")
			}
			if err == nil {
				break
			}
			wantKind(t, err, adapters.Busy)
			busy++
			resume = res.Pending.Resume
			time.Sleep(asError(t, err).RetryAfter)
		}
		if count != 6 || busy != 4 || len(c.Sessions()) != 0 {
			t.Errorf("counted %d after %d refusals, left %v", count, busy, c.Sessions())
		}
	})
}

// TestSessionsByID ends those and no others, and unknown ids with a warning only.
func TestSessionsByID(t *testing.T) {
	c := start(elementtest.Options{})
	a, b, kept := c.in("Cluster", "alice"), c.in("Idp", "bob"), c.in("Cluster", "alice")
	adapter := c.open(t)
	upper := a
	upper.ID = strings.ToUpper(a.ID)
	if res := complete(t, adapter, sessions(upper)); res.Count != 0 || !warned(res.Warnings, adapters.WarnNoSessionMatched) || !c.alive(a) {
		t.Errorf("in capitals: %+v", res)
	}
	if c.deletes() != 0 {
		t.Errorf("sent %v for an id that is not listed", c.methods())
	}
	if res := complete(t, adapter, sessions(a, b, adapters.Session{ID: "gone"})); res.Count != 2 || c.alive(a) || c.alive(b) || !c.alive(kept) {
		t.Errorf("result %+v", res)
	}
}

// TestSessionsAreReportedWhole: what the cluster tells of a session is in the report.
func TestSessionsAreReportedWhole(t *testing.T) {
	c := start(elementtest.Options{})
	x := c.in("Ldap", "uid=alice", "read", "9", "10")
	p, err := c.open(t).Preview(t.Context(), user("uid=alice"))
	if err != nil || len(p.Sessions) != 1 {
		t.Fatalf("preview %+v, %v", p, err)
	}
	res := complete(t, c.open(t), user("uid=alice"))
	for what, got := range map[string]adapters.Session{"preview": p.Sessions[0], "result": res.Sessions[0]} {
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", x) {
			t.Errorf("%s: got %+v, want %+v", what, got, x)
		}
	}
}

// TestPreviewShowsWhatIsSent for each way, and a session that two ids stand for once.
func TestPreviewShowsWhatIsSent(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Ldap", "uid=a", "9", "10")
	c.in("Ldap", "uid=b", "10")
	p, err := c.open(t).Preview(t.Context(), admins("9", "10"))
	if err != nil || len(p.Sessions) != 2 || len(p.Requests) != 2 || !p.Listed {
		t.Errorf("preview %+v, %v", p, err)
	}
	if got := fmt.Sprint(p.Covered); got != "[Cluster Ldap Idp cluster_admin_id/9 cluster_admin_id/10]" {
		t.Errorf("covered %s", got)
	}
	p, err = c.open(t).Preview(t.Context(), user("nobody"))
	if err != nil || len(p.Requests) != 0 || !warned(p.Warnings, adapters.WarnNoSessionMatched) {
		t.Errorf("preview of nobody %+v, %v", p, err)
	}
}

// TestDriveAgreesWithTheSuite runs a large kill under the checks of the conformance suite.
func TestDriveAgreesWithTheSuite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(elementtest.Options{})
		for i := range 450 {
			c.in("Idp", fmt.Sprint("user", i))
		}
		out, err := adaptertest.Drive(t.Context(), t, c.open(t), provider("Idp"))
		if err != nil || !out.Complete || out.Count != 450 || out.Calls != 3 || out.Verification != adapters.ConfirmedByList {
			t.Errorf("outcome %+v, %v", out, err)
		}
	})
}
