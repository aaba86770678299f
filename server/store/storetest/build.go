package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/google/uuid"
)

var helpdesk = invalidation.Caller{Kind: "api_key", Name: "helpdesk"}

const owner = "this process"

// now is the store's clock, in whole milliseconds so that sums stay readable.
func now(t testing.TB, s invalidation.Store) time.Time {
	t.Helper()
	at, err := s.Now(t.Context())
	if err != nil {
		t.Fatalf("Now: %v", err)
	}
	return at.Truncate(time.Millisecond)
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// resolved is a resolved selector.
func resolved() *adapters.Selector {
	return &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}}}
}

// pending is a run as it is accepted.
func pending(at time.Time, target string) invalidation.Run {
	return invalidation.Run{Target: target, Kind: "kibana", Fingerprint: "f-" + target, State: invalidation.RunPending,
		ExpireTime: at.Add(24 * time.Hour), Selector: resolved()}
}

// asked is an acceptance of one user's sessions at some targets.
func asked(at time.Time, targets ...string) invalidation.Acceptance {
	inv := invalidation.Invalidation{ID: newID(), Caller: helpdesk, CreateTime: at,
		Call: invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice"}}}}
	for _, target := range targets {
		inv.Runs = append(inv.Runs, pending(at, target))
	}
	return invalidation.Acceptance{Invalidation: inv, Owner: owner,
		Events: []invalidation.Event{event(at, "invalidation.accepted", inv.ID)}}
}

func event(at time.Time, typ, id string) invalidation.Event {
	return invalidation.Event{Time: at, Type: typ, Caller: helpdesk, InvalidationID: id, Data: json.RawMessage(`{"n":1}`)}
}

func accept(t testing.TB, s invalidation.Store, a invalidation.Acceptance) (invalidation.Invalidation, []invalidation.Lease) {
	t.Helper()
	inv, replayed, leases, err := s.Accept(t.Context(), a)
	if err != nil || replayed {
		t.Fatalf("Accept: replayed %t, error %v", replayed, err)
	}
	return inv, leases
}

func get(t testing.TB, s invalidation.Store, id string) invalidation.Invalidation {
	t.Helper()
	inv, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatalf("Get(%s): %v", id, err)
	}
	return inv
}

func claim(t testing.TB, s invalidation.Store, c invalidation.Claim) []invalidation.ClaimedRun {
	t.Helper()
	if c.Owner == "" {
		c.Owner = owner
	}
	if c.Limit == 0 {
		c.Limit = 100
	}
	claimed, err := s.Claim(t.Context(), c)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return claimed
}

func claimOne(t testing.TB, s invalidation.Store, c invalidation.Claim) invalidation.ClaimedRun {
	t.Helper()
	claimed := claim(t, s, c)
	if len(claimed) != 1 {
		t.Fatalf("Claim(%+v) = %d runs, want 1", c, len(claimed))
	}
	return claimed[0]
}

func record(t testing.TB, s invalidation.Store, l invalidation.Lease, r invalidation.Run, events ...invalidation.Event) invalidation.Head {
	t.Helper()
	head, err := s.Record(t.Context(), l, r, events)
	if err != nil {
		t.Fatalf("Record(%s): %v", r.State, err)
	}
	return head
}

// ended is what a run becomes with a final state.
func ended(r invalidation.Run, state invalidation.RunState, at time.Time) invalidation.Run {
	r.State = state
	r.Open = false
	r.NextAttemptTime = time.Time{}
	r.CompleteTime = at
	return r
}

// retrying is what a run becomes when an attempt has failed.
func retrying(r invalidation.Run, next time.Time) invalidation.Run {
	r.State = invalidation.RunRetrying
	r.Open = false
	r.NextAttemptTime = next
	return r
}

// waiting is what a run becomes when the target works on.
func waiting(r invalidation.Run, next time.Time) invalidation.Run {
	r.State = invalidation.RunRunning
	r.Open = false
	r.NextAttemptTime = next
	return r
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, show(got), show(want))
	}
}

func show(v any) string {
	if data, err := json.Marshal(v); err == nil {
		return string(data)
	}
	return fmt.Sprintf("%+v", v)
}

// consistent checks what must hold of every invalidation at every moment.
func consistent(t testing.TB, inv invalidation.Invalidation) {
	t.Helper()
	var states []invalidation.RunState
	for _, r := range inv.Runs {
		states = append(states, r.State)
		if inv.State.Final() && inv.CompleteTime.Before(r.CompleteTime) {
			t.Errorf("invalidation completed at %v, its run at %s at %v", inv.CompleteTime, r.Target, r.CompleteTime)
		}
		if r.State.Final() == r.CompleteTime.IsZero() {
			t.Errorf("run at %s is %s and has complete time %v", r.Target, r.State, r.CompleteTime)
		}
		if r.Open && r.State != invalidation.RunRunning {
			t.Errorf("run at %s is %s and open", r.Target, r.State)
		}
	}
	if want := invalidation.StateOf(states, inv.Call.AllowUnsupported); inv.State != want {
		t.Errorf("runs %v: state %s, want %s", states, inv.State, want)
	}
	if inv.State.Final() == inv.CompleteTime.IsZero() {
		t.Errorf("invalidation is %s and has complete time %v", inv.State, inv.CompleteTime)
	}
}

func ids(invs []invalidation.Invalidation) []string {
	var ids []string
	for _, inv := range invs {
		ids = append(ids, inv.ID)
	}
	return ids
}

func eventTypes(events []invalidation.Event) []string {
	var types []string
	for _, e := range events {
		types = append(types, e.Type)
	}
	return types
}

// eventsOf are the types of the events of one invalidation, in order.
func eventsOf(t testing.TB, h Harness, s invalidation.Store, id string) []string {
	t.Helper()
	return eventTypes(slices.DeleteFunc(h.Events(t, s), func(e invalidation.Event) bool { return e.InvalidationID != id }))
}
