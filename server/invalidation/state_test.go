package invalidation_test

import (
	"testing"

	"github.com/endsession/endsession/server/invalidation"
)

// TestStateOf goes through every list of up to four run states and compares the function with the words of the design.
func TestStateOf(t *testing.T) {
	n := 0
	var walk func(runs []invalidation.RunState)
	walk = func(runs []invalidation.RunState) {
		for _, allow := range []bool{false, true} {
			n++
			if got, want := invalidation.StateOf(runs, allow), stateInWords(runs, allow); got != want {
				t.Errorf("StateOf(%v, allowUnsupported=%v) = %s, want %s", runs, allow, got, want)
			}
		}
		if len(runs) == 4 {
			return
		}
		for _, s := range invalidation.RunStates {
			walk(append(runs[:len(runs):len(runs)], s))
		}
	}
	walk(nil)
	if want := 2 * (1 + 7 + 49 + 343 + 2401); n != want {
		t.Fatalf("looked at %d cases, want %d", n, want)
	}
}

// stateInWords restates the sentence of the design, clause by clause.
func stateInWords(runs []invalidation.RunState, allow bool) invalidation.State {
	count := func(states ...invalidation.RunState) (n int) {
		for _, r := range runs {
			for _, s := range states {
				if r == s {
					n++
				}
			}
		}
		return n
	}
	if count(invalidation.RunPending, invalidation.RunRunning, invalidation.RunRetrying) > 0 {
		return invalidation.Running
	}
	left := len(runs)
	unsupported := count(invalidation.RunUnsupported)
	if allow {
		left -= unsupported
		unsupported = 0
	}
	switch succeeded := count(invalidation.RunSucceeded); {
	case left == 0:
		return invalidation.Failed
	case succeeded == left:
		return invalidation.Succeeded
	case succeeded > 0:
		return invalidation.PartiallySucceeded
	case count(invalidation.RunFailed) > 0 || unsupported > 0:
		return invalidation.Failed
	}
	return invalidation.Cancelled
}

func TestRunTransitions(t *testing.T) {
	for _, from := range invalidation.RunStates {
		for _, to := range invalidation.RunStates {
			if from.Final() && from.CanBecome(to) {
				t.Errorf("%s is final but can become %s", from, to)
			}
			if to == invalidation.RunPending && from != invalidation.RunPending && from.CanBecome(to) {
				t.Errorf("%s can become PENDING again, which would say that nothing was sent", from)
			}
			if !from.Final() && (to == invalidation.RunFailed || to == invalidation.RunCancelled) && !from.CanBecome(to) {
				t.Errorf("%s cannot become %s: a run could get stuck", from, to)
			}
		}
	}
	if invalidation.RunRetrying.CanBecome(invalidation.RunSucceeded) {
		t.Error("RETRYING can become SUCCEEDED without an attempt")
	}
}
