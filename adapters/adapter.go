package adapters

import (
	"context"
	"encoding/json"
	"time"
)

// Adapter speaks to one target. Its methods may be called from many goroutines at once. Every error is an [*Error] or
// the context's own.
type Adapter interface {
	// Supports says, without I/O, whether the target can end exactly the sessions sel matches: nil, or an [*Error] of
	// kind [Unsupported]. The engine has already checked that the adapter's [Type] declares sel.By.
	Supports(sel Selector) error

	// Preview says what Invalidate would do; it changes nothing.
	Preview(ctx context.Context, sel Selector) (Preview, error)

	// Invalidate ends the sessions. If there is more to do, Result.Pending says when to call again; that call carries
	// Pending.Resume, journalled meanwhile, and starts nothing new. The Result counts also when err != nil: progress
	// made before an error is never lost, and a retry carries the Pending.Resume returned beside the error; if there is none,
	// the Resume that this call was given.
	// Counts are what this call added. Before every request that changes something it calls [Fence] (the shared HTTP
	// client does, for calls marked as mutating).
	Invalidate(ctx context.Context, req Request) (Result, error)

	// Probe reports reachability, credentials, privilege and scope; it ends nothing. What is wrong with the target is
	// in Health; the error is only for the context's end.
	Probe(ctx context.Context) (Health, error)
}

// Request is one call of Invalidate.
type Request struct {
	Selector Selector
	// Resume is what an earlier call of the same run returned in Pending.Resume; nil at the first call. It may come
	// from another process or, after an upgrade, from an older version of the adapter.
	Resume json.RawMessage
	// MayHaveSent is true when an earlier call of this run may have changed something that no Result reports: the Result
	// was lost with its process, or said itself that its count is a minimum, or came with [Uncertain] or [BadReply].
	MayHaveSent bool
}

// Result is what one call of Invalidate has done.
type Result struct {
	// Counted says whether the target told how many sessions ended. Count is what this call added, and means nothing
	// when Counted is false.
	Counted bool
	Count   int
	// CountIsMinimum is true when more may have ended than Count says.
	CountIsMinimum bool
	// Sessions are the ended sessions, as far as the target names them. The engine caps what it keeps.
	Sessions []Session
	// Covered is what was asked, in the target's words: provider types, scopes, authentication methods. The last
	// call's replaces the earlier ones'.
	Covered  []string
	Warnings []Warning
	// Verification must be set by the call that completes the run, that is, which returns no Pending and no error. It
	// stays unspecified only when nothing was sent because nothing can match ([WarnNothingCanMatch]).
	Verification Verification
	// Operation is the target's own name of the work it has begun, for operators: a BIG-IQ task id.
	Operation string
	// Pending is non-nil when the run is not complete. Beside an error only its Resume counts.
	Pending *Pending
}

// Pending says that the run is not complete.
type Pending struct {
	// After is how long to wait at least before the next call.
	After time.Duration
	// Poll is true when the next call only asks how far the target's own work has got. Such calls share the target's
	// poll budget: the more tasks are running, the longer After is stretched.
	Poll bool
	// Resume is handed to the next call. It holds no secret: it is journalled.
	Resume json.RawMessage
}

// Warning is something the caller should know about a run that did not fail.
type Warning struct {
	Code    Reason `json:"code"`
	Message string `json:"message"`
}

// Verification says how the end of the sessions was confirmed.
type Verification int

const (
	// VerificationUnspecified is the zero value: not complete, or nothing was sent.
	VerificationUnspecified Verification = iota
	// ConfirmedByList: the target lists none of the sessions any more.
	ConfirmedByList
	// ConfirmedByRepeat: the same kill again found nothing.
	ConfirmedByRepeat
	// Unverifiable: the target has no way to tell, beyond its own word.
	Unverifiable
)

// Preview is what Invalidate would do.
type Preview struct {
	// Summary says in words, a line each, what would be asked.
	Summary []string
	// Requests are the requests that change something, as they would be sent, without credentials. Where their content
	// depends on what the target lists (a session id), they show the ids listed now.
	Requests []PlannedRequest
	// Listed is true when the target can list its sessions; then Sessions are those that would end now.
	Listed   bool
	Sessions []Session
	Covered  []string
	Warnings []Warning
}

// PlannedRequest is one upstream request as it would be sent.
type PlannedRequest struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Body   string `json:"body,omitempty"`
}

// Health is what a harmless probe found.
type Health struct {
	// Version is the target's own version; empty if it does not tell.
	Version string
	Checks  []Check
}

// Check is one finding of a probe. The checks that could not be made because an earlier one failed are left out.
type Check struct {
	// Name is one of "reachable", "tls", "clock", "version", "api", "security", "privilege", "scope", "mapping",
	// [CheckCredentials], or the adapter's own.
	Name    string
	Status  CheckStatus
	Message string
	// Remedy says what the operator can do; empty only when the status is [CheckOK].
	Remedy string
}

// CheckCredentials is the name of the check that the engine acts on: it failed if, and only if, the target refused the
// account's credentials, and is OK if it accepted them. A target that refused them is left alone for a while.
const CheckCredentials = "credentials"

// CheckStatus is the verdict of one check.
type CheckStatus int

// The verdicts. CheckUnknown: the target does not tell.
const (
	CheckOK CheckStatus = iota + 1
	CheckWarning
	CheckFailed
	CheckUnknown
)

// Healthy reports whether no check failed.
func (h Health) Healthy() bool {
	for _, c := range h.Checks {
		if c.Status == CheckFailed {
			return false
		}
	}
	return len(h.Checks) > 0
}

// Status is the worst verdict of the checks of that name; zero if there is none.
func (h Health) Status(name string) CheckStatus {
	var worst CheckStatus
	for _, c := range h.Checks {
		// Unknown tells less than any other verdict.
		if c.Name == name && (worst == 0 || worst == CheckUnknown || c.Status > worst && c.Status != CheckUnknown) {
			worst = c.Status
		}
	}
	return worst
}

type fenceKey struct{}

// WithFence returns a context in which [Fence] calls f. The engine uses it to make sure, before every request that
// changes something, that the run is still this process's to work on and not expired.
func WithFence(ctx context.Context, f func(context.Context) error) context.Context {
	return context.WithValue(ctx, fenceKey{}, f)
}

// Fence is called before every upstream request that changes something. Its error ends the call, is returned as it is,
// and means that nothing was sent.
func Fence(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f, ok := ctx.Value(fenceKey{}).(func(context.Context) error); ok {
		return f(ctx)
	}
	return nil
}

// String is the word of the API, without its prefix.
func (v Verification) String() string {
	switch v {
	case ConfirmedByList:
		return "CONFIRMED_BY_LIST"
	case ConfirmedByRepeat:
		return "CONFIRMED_BY_REPEAT"
	case Unverifiable:
		return "UNVERIFIABLE"
	}
	return "UNSPECIFIED"
}
