package adapters

import (
	"errors"
	"fmt"
	"time"
)

// Kind is what an adapter's error means to the engine. It is decided once, where the error arises.
type Kind int

const (
	// Unsupported: the target cannot end exactly the sessions asked for. Nothing was sent that changes anything. Final.
	Unsupported Kind = iota + 1
	// Rejected: the target refuses this request, and would again. Final.
	Rejected
	// Credentials: the target does not accept the account. The target is parked.
	Credentials
	// Denied: the account lacks a privilege. Final.
	Denied
	// Busy: the target asks to come back later; the request had no effect. Retried, honouring RetryAfter.
	Busy
	// Unreachable: the request did not reach the target, or it changes nothing and got no usable answer. Retried.
	Unreachable
	// Uncertain: a request that changes something was sent and its answer is lost. Retried; the count becomes a minimum.
	Uncertain
	// BadReply: the target answered something that cannot be understood. Retried; treated as Uncertain for counting.
	BadReply
	// Failed: the target took the work and reports that it failed, wholly or in part. Retried once, then final.
	Failed
	// StillAlive: sessions seen before the kill are there afterwards. Retried five times within ten minutes, then final.
	StillAlive
)

var kindNames = map[Kind]string{
	Unsupported: "unsupported", Rejected: "rejected", Credentials: "credentials", Denied: "denied", Busy: "busy",
	Unreachable: "unreachable", Uncertain: "uncertain", BadReply: "bad reply", Failed: "failed", StillAlive: "still alive",
}

// String is the kind in words.
func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Reason is the public reason of the kind.
func (k Kind) Reason() Reason {
	switch k {
	case Unsupported:
		return ReasonSelectorUnsupported
	case Rejected:
		return ReasonUpstreamRejected
	case Credentials:
		return ReasonUpstreamUnauthenticated
	case Denied:
		return ReasonUpstreamDenied
	case Busy:
		return ReasonUpstreamBusy
	case Unreachable:
		return ReasonUpstreamUnreachable
	case Uncertain:
		return ReasonOutcomeUnknown
	case BadReply:
		return ReasonUpstreamBadReply
	case Failed:
		return ReasonUpstreamFailed
	case StillAlive:
		return ReasonStillAlive
	}
	return ReasonInternal
}

// Error is the only error type an adapter returns, except for the context's own. Message is public: short, without
// secrets, and without any part of an upstream's body (products echo requests back).
type Error struct {
	Kind Kind
	// Why overrides the kind's own reason; empty means Kind.Reason().
	Why     Reason
	Message string
	// RetryAfter is what the target asked for; zero if it did not.
	RetryAfter time.Duration
	// Err is the cause, for logs. It is redacted like Message.
	Err error
}

// Error returns the message and the cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Reason is the public reason of the error.
func (e *Error) Reason() Reason {
	if e.Why != "" {
		return e.Why
	}
	return e.Kind.Reason()
}

// Errorf makes an error of a kind with a formatted public message.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an error of a kind with a public message and a cause that only logs show.
func Wrap(kind Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), Err: cause}
}

// KindOf returns the kind of the first [Error] in err's chain, or 0.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}
