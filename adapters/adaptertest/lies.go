package adaptertest

import (
	"slices"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// How often the engine tries again what failed. A run whose tries are used up has failed.
const (
	triesStillAlive = 6
	triesFailed     = 2
	triesElse       = 8 // in truth until the run expires
)

// persevere makes calls as the engine does, until the run is complete or has failed for good.
func (w *world) persevere(r *run) error {
	w.t.Helper()
	left := map[adapters.Kind]int{
		adapters.Unsupported: 1, adapters.Rejected: 1, adapters.Denied: 1, adapters.Failed: triesFailed, adapters.StillAlive: triesStillAlive,
		adapters.Unreachable: triesElse, adapters.Uncertain: triesElse, adapters.BadReply: triesElse, adapters.Busy: triesElse,
	}
	for !r.out.Complete && r.out.Calls < maxCalls {
		if err := r.call(w.ctx); err != nil {
			kind := adapters.KindOf(err)
			if left[kind]--; left[kind] <= 0 {
				return err
			}
		}
		time.Sleep(r.wait)
	}
	if !r.out.Complete {
		w.errorf("no end after %d calls", r.out.Calls)
	}
	return nil
}

// liesAreNotBelieved has the target lie in one way, to every kind of selector. A run may fail as it likes, but not be
// complete while the target's own table of sessions belies it; unless the target gives no sign, and the run claims no more
// than the target does.
func liesAreNotBelieved(t *testing.T, h Harness, drills []drill, lie emulator.Lie) {
	claim, undetected := h.Undetected[lie]
	deceived := 0
	for _, d := range drills {
		w, r := d.start(t, h)
		w.about = string(lie) + ": " + w.about
		w.e.SetLie(lie)
		err := w.persevere(r)
		w.e.SetLie(emulator.Honest)

		matched, spared := h.split(r.sel, w.seeded)
		died, left := w.fates(matched)
		strangers, _ := w.fates(spared)
		// Whom a target says it has ended, or is about to end, must be looked at; what it does besides, nobody can see.
		wide := (lie == emulator.EndAnother || lie == emulator.EndMore) && len(strangers) > 0
		switch {
		case err != nil && r.out.Verification != adapters.VerificationUnspecified:
			w.errorf("%v, and yet %s", err, r.out.Verification)
		case err == nil && (len(left) > 0 || wide) && undetected && r.out.Verification == claim:
			deceived++
		case err == nil && len(left) > 0:
			w.errorf("complete, %s, but still signed in: %s", r.out.Verification, show(left[0]))
		case err == nil && wide:
			w.errorf("complete, %s, but the target told that it ended others: %s", r.out.Verification, show(strangers[0]))
		}
		if r.out.Warned(adapters.WarnOtherSessionEnded) {
			// To ask again could end yet another.
			if err == nil || len(strangers) > 1 {
				w.errorf("%v, and %d sessions of others ended, after the target had told that it ended one", err, len(strangers))
			}
		}
		// A list shows whether more was counted than ended. What ended without the target's saying so looks as if it had
		// ended by itself.
		if r.out.Verification == adapters.ConfirmedByList && len(left) == 0 && r.out.Count > len(died) {
			w.errorf("counts %d, but %d ended", r.out.Count, len(died))
		}
		w.close()
	}
	if undetected && deceived == 0 {
		t.Errorf("%s: the harness says that the target gives no sign of it, but no run ended %s while sessions were there", lie, claim)
	}
}

// fates tells which of these sessions have ended and which are there.
func (w *world) fates(xs []adapters.Session) (died, left []adapters.Session) {
	there := w.e.Sessions()
	for _, x := range xs {
		if slices.ContainsFunc(there, func(y adapters.Session) bool { return y.Key() == x.Key() }) {
			left = append(left, x)
		} else {
			died = append(died, x)
		}
	}
	return died, left
}
