package sqlite_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/alloctest"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

// TestAllocations is about an acceptance with three runs that begin at once, and about one of their answers.
func TestAllocations(t *testing.T) {
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: filepath.Join(t.TempDir(), "journal.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	leases := make(chan invalidation.Lease, 10_000)
	caller := invalidation.Caller{Kind: "api_key", Name: "helpdesk"}
	now := time.Now()
	run := invalidation.Run{Kind: "kibana", Fingerprint: "0123456789abcdef0123456789abcdef", State: invalidation.RunPending,
		ExpireTime: now.Add(24 * time.Hour), Selector: &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}}}}
	accept := func() {
		id := uuid.Must(uuid.NewV7()).String()
		inv := invalidation.Invalidation{ID: id, Caller: caller, CreateTime: now,
			Call: invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice"}}, Reason: "left the company"}}
		for _, target := range []string{"apm", "kibana-prod", "storage"} {
			run.Target = target
			inv.Runs = append(inv.Runs, run)
		}
		_, _, got, err := s.Accept(t.Context(), invalidation.Acceptance{Invalidation: inv, Owner: "me", LeaseLength: time.Hour, Start: []int{0, 1, 2},
			Events: []invalidation.Event{{Time: now, Type: "invalidation.accepted", Caller: caller, InvalidationID: id, Data: []byte(`{"targets":3}`)}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range got {
			leases <- l
		}
	}
	record := func() {
		l := <-leases
		r := run
		r.State, r.StartTime, r.CompleteTime, r.Attempts = invalidation.RunSucceeded, now, now, 1
		r.Counted, r.Count, r.Verification = true, 2, adapters.ConfirmedByRepeat
		if _, err := s.Record(t.Context(), l, r, []invalidation.Event{{Time: now, Type: "run.succeeded", Caller: caller,
			InvalidationID: l.InvalidationID, Target: r.Target, Data: []byte(`{"attempts":1,"count":2}`)}}); err != nil {
			t.Fatal(err)
		}
	}
	for range 150 { // enough for all that is recorded
		accept()
	}
	alloctest.Compare(t, map[string]func(){"accept": accept, "record": record})
}
