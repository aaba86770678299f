package invalidation

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Errors of a [Store]. Every other error means that the journal could not be read or written and that nothing changed.
var (
	// ErrNotFound: no such invalidation.
	ErrNotFound = errors.New("not found")
	// ErrRequestReused: the caller used the request id before for a call with other contents.
	ErrRequestReused = errors.New("request id was used for another request")
	// ErrLeaseLost: the run is no longer the lease's to work on: it was cancelled, taken over or has ended. What the late
	// owner reports is refused.
	ErrLeaseLost = errors.New("lease lost")
	// ErrIllegalTransition: a bug; the state table forbids the change.
	ErrIllegalTransition = errors.New("illegal state transition")
	// ErrFinal: the invalidation is final and cannot be cancelled any more.
	ErrFinal = errors.New("already final")
	// ErrUnavailable: the journal cannot be written now. Wrapped by every error that means it.
	ErrUnavailable = errors.New("journal unavailable")
	// ErrCommitUnknown: the commit was sent and its answer is lost. Look the invalidation up by its ID.
	ErrCommitUnknown = errors.New("commit outcome unknown")
)

// Store is the journal. Every method that changes something is one durable transaction, with the audit events it is
// given: when it returns nil the change survives a crash, when it returns an error other than [ErrCommitUnknown] nothing
// has changed. Methods are safe for concurrent use. Times are kept in microseconds and returned in UTC; strings are kept
// byte by byte.
//
// Ownership and expiry compare against one clock, and the store owns it (Now): the process's for SQLite, the database's
// for PostgreSQL.
type Store interface {
	// Now is the store's clock.
	Now(ctx context.Context) (time.Time, error)

	// Ready reports whether changes can be journalled now. It writes, or asks who would.
	Ready(ctx context.Context) error

	// Accept journals a new invalidation with its runs. If the caller used the request id before with the same digest, it
	// changes nothing and returns the earlier invalidation with replayed true; with another digest, ErrRequestReused.
	// Runs named in a.Start are leased to a.Owner in the same transaction and begin their first attempt: RUNNING, open,
	// one attempt counted. All others must be PENDING or final.
	Accept(ctx context.Context, a Acceptance) (inv Invalidation, replayed bool, leases []Lease, err error)

	// Replay returns the invalidation that a caller's request id stands for: ErrNotFound if for none, ErrRequestReused if
	// the digest is another. Accept does the same and more; this is for calls that could not be accepted any more.
	Replay(ctx context.Context, caller Caller, requestID string, digest []byte) (Invalidation, error)

	// Get returns an invalidation, or ErrNotFound.
	Get(ctx context.Context, id string) (Invalidation, error)

	// List returns invalidations, newest first (by ID), at most q.Limit, and whether there are more.
	List(ctx context.Context, q Query) (invs []Invalidation, more bool, err error)

	// Claim leases up to c.Limit runs that are due: not final, not leased (or the lease has ended), and whose next attempt
	// time has come. Normal runs come first, then bulk, each in the order of their next attempt time; see Claim.BulkFirst.
	// A run that is PENDING, RETRYING, or open (its answer was lost) begins a new attempt: RUNNING, open, one more attempt
	// counted. A run that is RUNNING and not open continues its attempt: it becomes open. A run without a resolved selector
	// is leased as it is, PENDING and not open: it is to be resolved first. Nor does a run begin anything whose expire
	// time has come: it is leased as it is, to be ended.
	// ClaimedRun.Lost says whether it was open before.
	Claim(ctx context.Context, c Claim) ([]ClaimedRun, error)

	// NextDue returns when the earliest run at the target can be claimed: one that is leased, when its lease ends, for its
	// owner may have died. ok is false when there is none.
	NextDue(ctx context.Context, target string) (at time.Time, ok bool, err error)

	// Record writes what became of a leased run: r replaces the journalled run, except for what identifies it (target,
	// kind, fingerprint, expire time). The lease ends with it, and the run is no longer open. It returns the invalidation's
	// new state and revision; an invalidation is complete when the last of its runs was.
	// ErrLeaseLost if the lease is no longer valid, ErrIllegalTransition if the state table forbids the change.
	Record(ctx context.Context, l Lease, r Run, events []Event) (Head, error)

	// Renew prolongs leases by length; it returns those that are lost.
	Renew(ctx context.Context, leases []Lease, length time.Duration) (lost []Lease, err error)

	// Release gives a leased run back unworked: nothing was sent since it was claimed, or accepted. The attempt that the
	// claim counted is taken back: the run is again what it was before, PENDING or open included, but due at once.
	// ErrLeaseLost if the lease is no longer valid.
	Release(ctx context.Context, l Lease) error

	// Cancel ends the runs of an invalidation that are not final as [CancelRun] says, whoever works on them: the owner's
	// result will be refused.
	// ErrNotFound, or ErrFinal with the invalidation as it is.
	Cancel(ctx context.Context, id string, at time.Time, events []Event) (Invalidation, error)

	// Hasten makes the runs at a target due at once that wait for their next attempt because the last one ended with that
	// reason; it returns how many. It is no change of their invalidations: the attempts that follow are.
	Hasten(ctx context.Context, target string, reason adapters.Reason) (hastened int, err error)

	// Unfinished returns what is not final, by target; a target without unfinished runs is not in it.
	Unfinished(ctx context.Context) (map[string]Unfinished, error)

	// Pauses returns the targets that are paused.
	Pauses(ctx context.Context) ([]Pause, error)
	// Pause notes that nothing may be sent to a target; pausing again replaces the note.
	Pause(ctx context.Context, p Pause, events []Event) error
	// Resume takes the note away; it is no error if there is none.
	Resume(ctx context.Context, target string, events []Event) error

	// Audit appends events that change nothing else: previews, denials.
	Audit(ctx context.Context, events []Event) error

	// Prune removes up to limit invalidations that completed before the given time, with their runs. Audit events stay until PruneAudit.
	Prune(ctx context.Context, before time.Time, limit int) (removed int, err error)

	// PruneAudit removes up to limit audit events that happened before the given time, from the beginnings of their chains,
	// and leaves checkpoints that stand for them. A chain that is not what was written is left as it is, and is an error;
	// others are still pruned.
	PruneAudit(ctx context.Context, before time.Time, limit int) (removed int, err error)

	// AcquireSlots takes up to want of a target's slots that nobody holds, or whose lease has ended, for length. A slot is
	// the right to one of the things that may be under way at a target at once, among all processes that share the journal.
	// It does not wait: fewer, or none, means that others have them. If there was none, the others are told
	// (News.SlotsWanted). limit is the target's concurrency.
	AcquireSlots(ctx context.Context, target, owner string, want, limit int, length time.Duration) ([]Slot, error)
	// RenewSlots prolongs slots by length; it returns them as they are now, and those that are lost.
	RenewSlots(ctx context.Context, slots []Slot, length time.Duration) (held, lost []Slot, err error)
	// ReleaseSlots gives slots back. It is no error if they are lost already.
	ReleaseSlots(ctx context.Context, slots []Slot) error

	// OnChange registers f to be called after every committed change of an invalidation or a pause, in this process or, if
	// the journal is shared, another. f must not block. Call it before anything else.
	OnChange(f func(Change))

	// OnNews registers f to be called when another process has changed something, after OnChange's functions, or wants
	// something of this one. It is never called if the journal is not shared. f must not block. Call it before anything else.
	OnNews(f func(News))

	// Close waits for transactions under way and closes the journal. Methods called afterwards return ErrUnavailable.
	Close() error
}

// Change is what OnChange tells.
type Change struct {
	// ID is the invalidation's, empty for a pause. If changes of other processes may have been missed, it is [AnyChange].
	ID string
	// Revision is what the change made of the invalidation's; zero if that is not known.
	Revision int64
}

// AnyChange is told in place of an ID when any invalidation may have changed: whoever waits for one shall look.
const AnyChange = "*"

// News is what another process tells: one of the two.
type News struct {
	// Changed is what OnChange is told: an invalidation's ID, empty for a pause, or [AnyChange].
	Changed string
	// SlotsWanted is a target's name: somebody wants one of its slots and found none free.
	SlotsWanted string
}

// Acceptance is what Accept journals.
type Acceptance struct {
	Invalidation Invalidation
	// RequestID and Digest are empty when the caller gave no request id. The id is scoped to the caller.
	RequestID string
	Digest    []byte
	Events    []Event
	// Owner is the process that accepts; LeaseLength how long its leases last.
	Owner       string
	LeaseLength time.Duration
	// Start lists the indexes in Invalidation.Runs of those that begin at once.
	Start []int
}

// Lease is the right to work on a run for a while.
type Lease struct {
	// InvalidationID and Run (the index in Invalidation.Runs) name the run.
	InvalidationID string
	Run            int
	Owner          string
	// Token grows with every lease of the run: an older one is refused even if its owner is the same.
	Token int64
	// Until is when the lease ends, by the store's clock.
	Until time.Time
}

// Claim asks for runs to work on.
type Claim struct {
	Target string
	Owner  string
	// Limit is how many runs at most.
	Limit       int
	LeaseLength time.Duration
	// ExpiredOnly claims only runs whose expire time has come: nothing may be sent to the target now.
	ExpiredOnly bool
	// BulkFirst puts the bulk runs before the normal ones; the engine sets it from time to time, so that bulk never
	// starves.
	BulkFirst bool
}

// Slot is one of a target's slots, held for a while. A target's rate is shared the same way: whoever holds k of n slots
// may use k/n of it.
type Slot struct {
	Target string
	// Number is 0 up to the limit.
	Number int
	Owner  string
	// Token grows with every owner of the slot: an older one is refused.
	Token int64
	// Until is when the lease ends, by the store's clock; zero if it does not, because no other process shares the journal.
	Until time.Time
}

// Unfinished is what a target has still to do.
type Unfinished struct {
	// Runs is how many runs are not final.
	Runs int
	// Oldest is when the invalidation of the first of them was accepted.
	Oldest time.Time
}

// ClaimedRun is a run with the lease to work on it.
type ClaimedRun struct {
	Lease Lease
	Run   Run
	// CreateTime is the invalidation's.
	CreateTime time.Time
	Priority   Priority
	Selector   Selector // the canonical one
	Caller     Caller
	// Lost is true when the run was open: an earlier attempt ended without a journalled answer.
	Lost bool
	// Expired is true when the run's expire time had come by the store's clock: it was leased as it is, to be ended, whatever
	// time the claimant thinks it is.
	Expired bool
}

// Head is the part of an invalidation that changes.
type Head struct {
	State        State
	Revision     int64
	CompleteTime time.Time
}

// Query selects invalidations to list. Zero fields do not filter.
type Query struct {
	State  State
	Target string
	// Caller is a caller's name; OnlyOf, if set, is who may see: only that caller's own are listed.
	Caller   string
	OnlyOf   *Caller
	UserID   string
	Labels   map[string]string
	From, To time.Time // create time: From inclusive, To exclusive
	// Before is the ID of the last invalidation of the page before.
	Before string
	// Unfinished restricts to those that are not final.
	Unfinished bool
	Limit      int
}

// Pause says that nothing is sent to a target.
type Pause struct {
	Target string
	Caller Caller
	Reason string
	Time   time.Time
}

// Event is one entry of the audit trail.
type Event struct {
	Time time.Time
	// Type is a dotted word: "invalidation.accepted", "run.succeeded", "target.paused".
	Type   string
	Caller Caller
	// InvalidationID and Target are empty where they do not apply.
	InvalidationID string
	Target         string
	// Data is a JSON object with what belongs to the type. It holds no secret.
	Data json.RawMessage
}
