package invalidation

import "slices"

// RunState is a state of a run. The text is what the journal holds.
type RunState string

// The states of a run. See docs/decisions/0003-states.md for the table.
const (
	// RunPending: nothing has been sent yet.
	RunPending RunState = "PENDING"
	// RunRunning: an attempt is under way; perhaps the target works on and is asked again later.
	RunRunning RunState = "RUNNING"
	// RunRetrying: the last attempt failed and another will follow.
	RunRetrying RunState = "RETRYING"
	// RunSucceeded: the target confirmed.
	RunSucceeded RunState = "SUCCEEDED"
	// RunUnsupported: the target cannot express the selector; nothing was sent.
	RunUnsupported RunState = "UNSUPPORTED"
	// RunFailed: a permanent error, sessions still alive, or expired.
	RunFailed RunState = "FAILED"
	// RunCancelled: by a caller.
	RunCancelled RunState = "CANCELLED"
)

// RunStates are all states of a run.
var RunStates = []RunState{RunPending, RunRunning, RunRetrying, RunSucceeded, RunUnsupported, RunFailed, RunCancelled}

// runTransitions is the whole table: what is not here is illegal. Final states have no way out. Recording progress
// keeps a run in RUNNING.
var runTransitions = map[RunState][]RunState{
	// A pending run may end without an attempt: unsupported, provably nothing to do, expired, target gone, cancelled.
	RunPending:  {RunPending, RunRunning, RunSucceeded, RunUnsupported, RunFailed, RunCancelled},
	RunRunning:  {RunRunning, RunRetrying, RunSucceeded, RunUnsupported, RunFailed, RunCancelled},
	RunRetrying: {RunRetrying, RunRunning, RunFailed, RunCancelled},
}

// CanBecome reports whether a run may go from s to next.
func (s RunState) CanBecome(next RunState) bool { return slices.Contains(runTransitions[s], next) }

// Final reports whether s never changes again.
func (s RunState) Final() bool {
	switch s {
	case RunSucceeded, RunUnsupported, RunFailed, RunCancelled:
		return true
	}
	return false
}

// State is a state of an invalidation: a function of its runs' states.
type State string

// The states of an invalidation.
const (
	Running            State = "RUNNING"
	Succeeded          State = "SUCCEEDED"
	PartiallySucceeded State = "PARTIALLY_SUCCEEDED"
	Failed             State = "FAILED"
	Cancelled          State = "CANCELLED"
)

// Final reports whether s never changes again.
func (s State) Final() bool { return s != Running }

// StateOf is the state of an invalidation whose runs are in the given states. It is total: every list of run states has
// exactly one answer.
func StateOf(runs []RunState, allowUnsupported bool) State {
	var counted, succeeded, failed int
	for _, r := range runs {
		switch {
		case !r.Final():
			return Running
		case r == RunUnsupported && allowUnsupported:
			continue
		case r == RunSucceeded:
			succeeded++
		case r == RunFailed || r == RunUnsupported:
			failed++
		}
		counted++
	}
	switch {
	case counted == 0:
		return Failed
	case succeeded == counted:
		return Succeeded
	case succeeded > 0:
		return PartiallySucceeded
	case failed > 0:
		return Failed
	default:
		return Cancelled
	}
}
