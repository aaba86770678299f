package invalidation

import (
	"time"

	"github.com/endsession/endsession/adapters"
)

// Request is one InvalidateSessions call.
type Request struct {
	Caller Caller
	Call   Call
	// RequestID makes the call idempotent for its caller; empty means it is not.
	RequestID string
	// Wait is how long to wait for the final state: DefaultWait if the caller did not say, 0 to answer once accepted.
	Wait time.Duration
}

// Bounds of how long a call waits for a final state.
const (
	DefaultWait = 30 * time.Second
	MaxWait     = 5 * time.Minute
)

// RetryRequest is one RetryInvalidation call.
type RetryRequest struct {
	Caller       Caller
	ID           string
	ConfirmBroad bool
	RequestID    string
	Reason       string // empty keeps the retried call's
	RetryFor     time.Duration
	Wait         time.Duration
}

// TargetPreview is what a call would do at one target.
type TargetPreview struct {
	Target string
	Kind   string
	// Err says why nothing would be done; then the rest is empty.
	Err *RunError
	// Unsupported is true when Err means UNSUPPORTED rather than FAILED.
	Unsupported bool
	adapters.Preview
	SessionsTruncated bool
}

// CancelSummary is the answer to a cancellation by label.
type CancelSummary struct {
	// Cancelled are the IDs of the invalidations that this call cancelled.
	Cancelled []string
	// AlreadyFinal is how many that carry the label had ended before.
	AlreadyFinal int
	// NotAllowed is how many the caller may read and may not cancel.
	NotAllowed int
}

// TargetState says whether a target's runs are worked on.
type TargetState string

// The states of a target.
const (
	TargetActive TargetState = "ACTIVE"
	// TargetPaused: somebody paused it; runs wait and nothing is sent.
	TargetPaused TargetState = "PAUSED"
	// TargetParked: it does not accept the account's credentials; one attempt per quarter of an hour.
	TargetParked TargetState = "PARKED"
)

// TargetStatus is what is known of a target now.
type TargetStatus struct {
	Name      string
	Kind      string
	State     TargetState
	Pause     *Pause
	Supported []adapters.Criteria
	// Health is what the last probe found; CheckTime is zero if there was none yet.
	Health    adapters.Health
	CheckTime time.Time
}

// CallErrorCode classifies a call that was not carried out. The API translates it to a gRPC code.
type CallErrorCode int

const (
	// InvalidArgument: the call contradicts itself or names what does not exist.
	InvalidArgument CallErrorCode = iota + 1
	// NotFound: no such invalidation or target, or it is not the caller's to see.
	NotFound
	// AlreadyExists: the request id was used for another call.
	AlreadyExists
	// FailedPrecondition: the resource's state forbids the call.
	FailedPrecondition
	// Unavailable: the journal cannot be written; nothing was accepted and nothing sent.
	Unavailable
	// AcceptanceUnknown: the journal's answer was lost; the invalidation may exist under the name in the error.
	AcceptanceUnknown
	// Exhausted: too much is under way; come back after RetryDelay.
	Exhausted
	// Denied: the caller lacks a right.
	Denied
)

// CallError is why a call was not carried out. Message is public.
type CallError struct {
	Code CallErrorCode
	// Reason goes into ErrorInfo; empty for the code's own.
	Reason  adapters.Reason
	Message string
	// Field is the request field that is wrong, in the API's path form ("selector.user.id"); for InvalidArgument.
	Field string
	// ID is the invalidation's, for AcceptanceUnknown.
	ID         string
	RetryDelay time.Duration
	Err        error // for the log
}

// Reasons of calls that were not accepted.
const (
	ReasonNotAccepted       adapters.Reason = "NOT_ACCEPTED"
	ReasonAcceptanceUnknown adapters.Reason = "ACCEPTANCE_UNKNOWN"
	ReasonRequestReused     adapters.Reason = "REQUEST_ID_REUSED"
	ReasonOverloaded        adapters.Reason = "OVERLOADED"
	ReasonNotFound          adapters.Reason = "NOT_FOUND"
	ReasonAlreadyFinal      adapters.Reason = "ALREADY_FINAL"
	ReasonNotFinal          adapters.Reason = "NOT_FINAL"
	ReasonNothingToRetry    adapters.Reason = "NOTHING_TO_RETRY"
	ReasonInvalidArgument   adapters.Reason = "INVALID_ARGUMENT"
	ReasonUnknownTarget     adapters.Reason = "UNKNOWN_TARGET"
	ReasonConfirmBroad      adapters.Reason = "CONFIRM_BROAD_REQUIRED"
)

// Error returns the public message and the cause.
func (e *CallError) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *CallError) Unwrap() error { return e.Err }
