package kibana_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

// TestAnIndexASecondBehind: whenever within the last second somebody signed in, and whichever pass could have missed it,
// what is called confirmed is gone.
func TestAnIndexASecondBehind(t *testing.T) {
	for _, lag := range []bool{false, true} {
		for before := time.Duration(0); before <= kibanatest.RefreshInterval; before += 50 * time.Millisecond {
			synctest.Test(t, func(t *testing.T) {
				f := setup(t, kibanatest.Options{DeletionsLag: lag})
				f.people("bob")
				time.Sleep(time.Minute)
				f.SignIn(adapters.Session{Username: "alice", Provider: of("saml", "saml1")})
				time.Sleep(before)
				seeded := f.Sessions()
				o := f.done(t, user("alice"))
				wantSurvivors(t, seeded, f, user("alice"))
				if o.Verification != adapters.ConfirmedByRepeat || o.Count != 1 || o.CountIsMinimum {
					t.Errorf("%v before the run: %+v", before, o)
				}
			})
		}
	}
}

// TestASlowerIndexIsBelieved: where an operator has slowed the index down, the repeat finds as little as the first pass.
// That it found nothing is all that is said.
func TestASlowerIndexIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{Refresh: 30 * time.Second})
		f.SignIn(adapters.Session{Username: "alice", Provider: of("saml", "saml1")})
		time.Sleep(5 * time.Second)
		o := f.done(t, user("alice"))
		if o.Verification != adapters.ConfirmedByRepeat || !o.warned(adapters.WarnNoSessionMatched) || len(f.Sessions()) != 1 {
			t.Errorf("%+v, left %v", o, f.Sessions())
		}
	})
}

// TestTotalsThatNeverEnd: Kibana claims in every pass that it ended sessions. Whether somebody keeps signing in or nothing
// ends cannot be told, and is not claimed.
func TestTotalsThatNeverEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{})
		f.people("alice")
		time.Sleep(time.Minute)
		f.SetLie(emulator.Keep)
		o := f.done(t, user("alice"))
		if o.Verification != adapters.Unverifiable || !o.warned(adapters.WarnSignedInAgain) || len(f.Sessions()) == 0 {
			t.Errorf("%+v, left %v", o, f.Sessions())
		}
	})
}
