package invalidation

import (
	"encoding/json"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Invalidation is one accepted call: a durable resource that is driven to a final state whatever happens.
type Invalidation struct {
	// ID is a UUIDv7; the API's name is "invalidations/" and the ID.
	ID       string
	State    State
	Revision int64
	Call     Call
	Caller   Caller
	// RetryOf is the ID of the invalidation this one retries; empty if none.
	RetryOf      string
	CreateTime   time.Time
	CompleteTime time.Time // zero while running
	// Runs are in the order of the targets' configuration.
	Runs []Run
}

// Call is what a caller asked for. All of it but OnBehalfOf is the contents that a repeated request id is compared by.
type Call struct {
	Selector Selector `json:"selector"`
	// Targets are the names asked for; empty means every configured target.
	Targets          []string          `json:"targets,omitempty"`
	ConfirmBroad     bool              `json:"confirm_broad,omitempty"`
	AllowUnsupported bool              `json:"allow_unsupported,omitempty"`
	Reason           string            `json:"reason,omitempty"`
	OnBehalfOf       string            `json:"on_behalf_of,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Priority         Priority          `json:"priority,omitempty"`
	// RetryFor bounds how long failed runs are retried; zero means the target's own bound.
	RetryFor time.Duration `json:"retry_for,omitempty"`
}

// Caller is who asked.
type Caller struct {
	// Kind is "anonymous", "api_key", "oidc" or "mtls".
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Facts are what else is known of it; nil if nothing is. They do not tell one caller from another.
	Facts *Facts `json:"-"`
}

// Is reports whether two are the same caller.
func (c Caller) Is(other Caller) bool { return c.Kind == other.Kind && c.Name == other.Name }

// Priority orders the runs of one target.
type Priority int

// A target takes normal runs first, without starving bulk.
const (
	PriorityNormal Priority = iota
	PriorityBulk
)

// Run is one invalidation at one target; the unit of retry.
type Run struct {
	Target string
	Kind   string
	// Fingerprint is the target's identity when the run was accepted; see [Target.Fingerprint].
	Fingerprint string
	State       RunState
	// Selector is the resolved selector: made once, used by every attempt. It is nil for a run that ended without ever
	// being resolved, and for one that waits for its directory.
	Selector *adapters.Selector
	// Terms are what the policy lets the run do.
	Terms Terms

	// Counted says whether any count is known; Count is the sum of the known ones.
	Counted        bool
	Count          int
	CountIsMinimum bool
	Verification   adapters.Verification
	// Sessions are those the target named, at most [MaxRunSessions].
	Sessions          []adapters.Session
	SessionsTruncated bool
	Covered           []string
	Warnings          []adapters.Warning
	// Error is why the run failed, or why its last attempt did.
	Error *RunError
	// Operation is the target's own name of the work under way.
	Operation string

	Attempts        int
	NextAttemptTime time.Time // zero when nothing is scheduled: under way, or final
	ExpireTime      time.Time
	StartTime       time.Time // of the first attempt; zero before
	CompleteTime    time.Time // zero while not final

	// Resume is what the adapter wants to see at its next call.
	Resume json.RawMessage
	// Open is true from the moment an attempt may send something until its answer is journalled. A run found open after
	// a crash, or under a lease that ended, has a lost answer.
	Open bool
	// Retry counts what the retry policy needs to know.
	Retry RetryState
}

// MaxRunSessions bounds how many sessions a run keeps by name.
const MaxRunSessions = 100

// RunError is a run's public error.
type RunError struct {
	Reason  adapters.Reason `json:"reason"`
	Message string          `json:"message"`
	// RetryDelay is how long the engine waits before the next attempt; zero when there is none.
	RetryDelay time.Duration `json:"retry_delay,omitempty"`
}

// RetryState is what the retry policy remembers of a run between attempts.
type RetryState struct {
	// Failures counts failed attempts in a row; it sets the backoff.
	Failures int `json:"failures,omitempty"`
	// StillAlive counts attempts that ended with sessions still alive, since StillAliveSince.
	StillAlive      int       `json:"still_alive,omitempty"`
	StillAliveSince time.Time `json:"still_alive_since,omitzero"`
	// Failed counts attempts whose work the target reported as failed.
	Failed int `json:"failed,omitempty"`
}

// InvalidatedCount is the sum of the known counts; known is false when no run has one. minimum is true when some run's
// count is unknown or short.
func (i Invalidation) InvalidatedCount() (count int, known, minimum bool) {
	for _, r := range i.Runs {
		if r.Counted {
			count += r.Count
			known = true
		}
		if r.CountIsMinimum || !r.Counted && r.mayCount() {
			minimum = true
		}
	}
	return count, known, minimum
}

// mayCount reports whether sessions may have ended in the run, or still may: everything but a run that never sent
// anything and never will.
func (r Run) mayCount() bool {
	return !r.State.Final() || r.State == RunSucceeded || r.State != RunUnsupported && r.Attempts > 0
}

// Run returns the run at a target.
func (i *Invalidation) Run(target string) *Run {
	for n := range i.Runs {
		if i.Runs[n].Target == target {
			return &i.Runs[n]
		}
	}
	return nil
}
