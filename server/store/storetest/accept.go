package storetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

func nowIsUTC(t *testing.T, h Harness) {
	s := h.Open(t)
	at, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if at.Location() != time.UTC || at.Nanosecond()%1000 != 0 || at.IsZero() {
		t.Errorf("Now = %v, want microseconds in UTC", at)
	}
	h.Pass(t, 10*time.Millisecond)
	if later, err := s.Now(t.Context()); err != nil || later.Sub(at) < 10*time.Millisecond {
		t.Errorf("Now = %v, %v, 10 ms after %v", later, err, at)
	}
}

// elsewhere is a zone other than UTC, and odd makes a time that no journal keeps exactly.
var elsewhere = time.FixedZone("elsewhere", 2*3600)

func odd(t time.Time) time.Time { return t.Add(123456*time.Microsecond + 789).In(elsewhere) }

func kept(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func acceptKeepsEverything(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	retried, _ := accept(t, s, asked(at, "apm"))
	call := invalidation.Call{
		Selector: invalidation.Selector{
			User: &invalidation.User{ID: "alice", Email: "alice@corp.example", Attributes: map[string]string{"uid": "a17"},
				TargetUsernames: map[string][]string{"storage": {"uid=a17,ou=people", "alice"}}},
			Provider: &invalidation.Provider{Type: "saml", Name: "okta"},
			Group:    "vpn",
		},
		Targets: []string{"apm", "storage"}, ConfirmBroad: true, AllowUnsupported: true, Reason: "left", OnBehalfOf: "hr",
		Labels: map[string]string{"ticket": "42", "job": "leavers"}, Priority: invalidation.PriorityBulk, RetryFor: 90 * time.Minute,
	}
	waiting := pending(at, "apm")
	waiting.Selector = nil
	waiting.NextAttemptTime = odd(at)
	waiting.Error = &invalidation.RunError{Reason: adapters.ReasonDirectoryUnavailable, Message: "later", RetryDelay: 5 * time.Second}
	nothing := ended(pending(at, "kibana"), invalidation.RunSucceeded, odd(at))
	nothing.Counted = true
	nothing.Warnings = []adapters.Warning{{Code: adapters.WarnNothingCanMatch, Message: "not a member"}}
	refused := ended(pending(at, "storage"), invalidation.RunUnsupported, odd(at))
	refused.Error = &invalidation.RunError{Reason: adapters.ReasonSelectorUnsupported, Message: "no"}
	exact := pending(at, "storage-2")
	exact.ExpireTime = odd(at)
	exact.Selector = &adapters.Selector{By: adapters.ByUser | adapters.ByProvider | adapters.ByGroup,
		Users:     []adapters.User{{Name: "alice", At: []adapters.Provider{{Type: "Ldap"}}}},
		Providers: []adapters.Provider{{Type: "saml", Name: "saml1", MustBeListed: true}},
		Groups:    []adapters.Group{{Kind: "cluster_admin_id", Name: "9"}}}
	exact.Terms = invalidation.Terms{Rule: "helpdesk", Protected: true, MaxSessions: 50, Unlimited: true}
	caller := helpdesk
	caller.Facts = &invalidation.Facts{Groups: []string{"ops"}, Claims: map[string]any{"sub": "a17", "n": 1.5, "amr": []any{"mfa"}},
		Certificate: &invalidation.CertificateNames{Subject: "CN=helpdesk", URIs: []string{"spiffe://corp.example/helpdesk"}}}
	a := invalidation.Acceptance{Invalidation: invalidation.Invalidation{ID: newID(), Call: call, Caller: caller, RetryOf: retried.ID,
		CreateTime: odd(at), Runs: []invalidation.Run{waiting, nothing, refused, exact}}}

	inv, _ := accept(t, s, a)

	want := a.Invalidation
	want.State, want.Revision, want.CreateTime = invalidation.Running, 1, kept(odd(at))
	want.Runs = slices.Clone(want.Runs)
	want.Runs[0].NextAttemptTime = kept(odd(at))
	want.Runs[1].CompleteTime = kept(odd(at))
	want.Runs[2].CompleteTime = kept(odd(at))
	want.Runs[3].ExpireTime = kept(odd(at))
	equal(t, "accepted", inv, want)
	equal(t, "read", get(t, s, inv.ID), want)
	sessions := asked(at, "apm")
	sessions.Invalidation.Call.Selector = invalidation.Selector{Sessions: []invalidation.SessionRef{{Target: "apm", Device: "d", ID: "2a5d"}}}
	inv, _ = accept(t, s, sessions)
	equal(t, "sessions", get(t, s, inv.ID).Call, sessions.Invalidation.Call)
	all := asked(at, "apm")
	all.Invalidation.Call.Selector = invalidation.Selector{All: true}
	inv, _ = accept(t, s, all)
	equal(t, "all", get(t, s, inv.ID).Call, all.Invalidation.Call)
}

// Strings that are easily taken for each other, cut or rewritten on their way into a database and back.
var strangeStrings = []string{
	"alice", "Alice", "ALICE", "alice ", " alice", "alıce", "ａｌｉｃｅ", "аlice", // the last begins with a Cyrillic letter
	"é", "e\u0301", "ß", "ss", "ﬁ", "fi", "K", "\u212a", // precomposed and combining, ligature, the Kelvin sign
	"👩‍👩‍👧‍👦", "🏴‍☠️", "שלום", "مرحبا", "\u202ealice\u202c", "中文", "\u2028", "\ufeffalice", "\ufffd", `\ufffd`, `\\ufffd`,
	"'", `"`, "''; DROP TABLE runs; --", "%", "_", `\`, "a\tb\r\nc", "?1", "$1", ":a", "null", "NULL", "0", "-0", "1e3", "{}", "[]", "<&>",
	strings.Repeat("a", 1000), strings.Repeat("é", 1000), strings.Repeat("👩", 1000),
}

// Strings that a store may refuse, but not change.
var refusableStrings = []string{"a\x00b", "\x00", "a\xffb", "\xc3\x28", "\xed\xa0\x80"}

func acceptKeepsStrings(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	everywhere := func(x string) invalidation.Acceptance {
		a := asked(at, x, "other"+x)
		a.Invalidation.Caller = invalidation.Caller{Kind: "api_key", Name: x}
		a.RequestID, a.Digest = x, []byte(x)
		a.Invalidation.Call = invalidation.Call{Reason: x, OnBehalfOf: x, Labels: map[string]string{x: x}, Targets: []string{x},
			Selector: invalidation.Selector{Group: x, User: &invalidation.User{ID: x, Email: x, Attributes: map[string]string{x: x},
				TargetUsernames: map[string][]string{x: {x}}}}}
		r := &a.Invalidation.Runs[0]
		r.Kind, r.Fingerprint = x, x
		if strings.TrimSpace(x) != "" {
			r.Selector = &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: x}}}
		}
		r.Error = &invalidation.RunError{Reason: adapters.Reason(x), Message: x}
		a.Events = []invalidation.Event{{Time: at, Type: x, Caller: a.Invalidation.Caller, InvalidationID: a.Invalidation.ID, Target: x}}
		if utf8.ValidString(x) {
			a.Events[0].Data, _ = json.Marshal(map[string]string{x: x})
		}
		return a
	}
	check := func(x string, a invalidation.Acceptance) {
		want := a.Invalidation
		want.State, want.Revision = invalidation.Running, 1
		equal(t, fmt.Sprintf("%.40q", x), get(t, s, a.Invalidation.ID), want)
		i := slices.IndexFunc(h.Events(t, s), func(e invalidation.Event) bool { return e.InvalidationID == a.Invalidation.ID })
		if i < 0 {
			t.Fatalf("%.40q: no event", x)
		}
		equal(t, fmt.Sprintf("event of %.40q", x), h.Events(t, s)[i], a.Events[0])
		// It is found by its own name and by no other.
		for _, q := range []invalidation.Query{{Caller: x}, {UserID: x}, {Labels: map[string]string{x: x}}, {Target: x},
			{OnlyOf: &invalidation.Caller{Kind: "api_key", Name: x}}} {
			q.Limit = 10
			invs, more, err := s.List(t.Context(), q)
			if err != nil || more || len(invs) != 1 || invs[0].ID != a.Invalidation.ID {
				t.Errorf("%.40q: List(%s) = %v, more %t, error %v", x, show(q), ids(invs), more, err)
			}
		}
		again := a
		again.Invalidation.ID = newID()
		if inv, replayed, _, err := s.Accept(t.Context(), again); err != nil || !replayed || inv.ID != a.Invalidation.ID {
			t.Errorf("%.40q: the same request id: invalidation %s, replayed %t, error %v", x, inv.ID, replayed, err)
		}
		if claimed := claim(t, s, invalidation.Claim{Target: x, LeaseLength: time.Hour}); len(claimed) != 1 || claimed[0].Run.Target != x {
			t.Errorf("%.40q: claimed %d runs", x, len(claimed))
		}
	}
	for _, x := range strangeStrings {
		a := everywhere(x)
		accept(t, s, a)
		check(x, a)
	}
	for _, x := range refusableStrings {
		a := everywhere(x)
		if _, _, _, err := s.Accept(t.Context(), a); err == nil {
			check(x, a)
			continue
		}
		_, err := s.Get(t.Context(), a.Invalidation.ID)
		wantError(t, fmt.Sprintf("%q was refused and read", x), err, invalidation.ErrNotFound)
	}
}

func acceptBegins(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "apm", "kibana", "storage")
	a.Invalidation.Runs[2].NextAttemptTime = at.Add(time.Hour)
	a.Start = []int{0, 2}
	a.LeaseLength = time.Hour
	inv, leases := accept(t, s, a)
	equal(t, "read", get(t, s, inv.ID), inv)
	for _, i := range a.Start {
		r := inv.Runs[i]
		if r.State != invalidation.RunRunning || !r.Open || r.Attempts != 1 || r.StartTime.Before(at) || !r.NextAttemptTime.IsZero() {
			t.Errorf("run %d began as %s", i, show(r))
		}
	}
	equal(t, "the other run", inv.Runs[1], a.Invalidation.Runs[1])
	if len(leases) != 2 {
		t.Fatalf("%d leases, want 2", len(leases))
	}
	for n, l := range leases {
		if l.InvalidationID != inv.ID || l.Run != a.Start[n] || l.Owner != owner || l.Until.Before(at.Add(time.Hour)) {
			t.Errorf("lease %d: %+v", n, l)
		}
	}
	for _, target := range []string{"apm", "storage"} {
		if claimed := claim(t, s, invalidation.Claim{Target: target, LeaseLength: time.Hour}); len(claimed) != 0 {
			t.Errorf("a run that has begun at %s can be claimed", target)
		}
	}
	claimOne(t, s, invalidation.Claim{Target: "kibana", LeaseLength: time.Hour})
	record(t, s, leases[1], ended(inv.Runs[2], invalidation.RunSucceeded, at))
}

func acceptMayBeFinal(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "apm", "kibana")
	a.Invalidation.Runs[0] = ended(a.Invalidation.Runs[0], invalidation.RunSucceeded, at)
	a.Invalidation.Runs[1] = ended(a.Invalidation.Runs[1], invalidation.RunUnsupported, at)
	inv, _ := accept(t, s, a)
	if inv.State != invalidation.PartiallySucceeded || !inv.CompleteTime.Equal(at) {
		t.Errorf("state %s, complete time %v, want PARTIALLY_SUCCEEDED at %v", inv.State, inv.CompleteTime, at)
	}
	equal(t, "read", get(t, s, inv.ID), inv)
	if claimed := claim(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour}); len(claimed) != 0 {
		t.Errorf("a final run can be claimed")
	}
}

func acceptRefusesRunsUnderWay(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	for _, state := range []invalidation.RunState{invalidation.RunRunning, invalidation.RunRetrying} {
		a := asked(at, "apm")
		a.Invalidation.Runs[0].State = state
		_, _, _, err := s.Accept(t.Context(), a)
		wantError(t, "accept a run that is "+string(state), err, invalidation.ErrIllegalTransition)
	}
	a := asked(at, "apm")
	a.Invalidation.Runs[0] = ended(a.Invalidation.Runs[0], invalidation.RunFailed, at)
	a.Start = []int{0}
	_, _, _, err := s.Accept(t.Context(), a)
	wantError(t, "start a run that has failed", err, invalidation.ErrIllegalTransition)
	if events := h.Events(t, s); len(events) != 0 {
		t.Errorf("what was refused left events: %v", eventTypes(events))
	}
}

func acceptRefusesAnIDTwice(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	first, _ := accept(t, s, asked(at, "apm"))
	again := asked(at, "kibana")
	again.Invalidation.ID = first.ID
	if _, _, _, err := s.Accept(t.Context(), again); err == nil {
		t.Error("the same ID was accepted twice")
	}
	equal(t, "the first", get(t, s, first.ID), first)
	equal(t, "events", eventsOf(t, h, s, first.ID), []string{"invalidation.accepted"})
}

func acceptReplays(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	a := asked(at, "apm")
	a.RequestID, a.Digest = "7c9e6679-7425-40de-944b-e07fc1f90ae7", []byte{0, 1, 255}
	a.Start, a.LeaseLength = []int{0}, time.Hour
	first, leases := accept(t, s, a)
	record(t, s, leases[0], ended(first.Runs[0], invalidation.RunSucceeded, at))
	first = get(t, s, first.ID)

	a.Invalidation.ID = newID()
	inv, replayed, leases, err := s.Accept(t.Context(), a)
	if err != nil || !replayed || len(leases) != 0 {
		t.Fatalf("again: replayed %t, %d leases, error %v", replayed, len(leases), err)
	}
	equal(t, "replayed", inv, first)
	inv, err = s.Replay(t.Context(), a.Invalidation.Caller, a.RequestID, a.Digest)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "looked up", inv, first)
	_, err = s.Replay(t.Context(), a.Invalidation.Caller, a.RequestID, []byte{0, 1, 254})
	wantError(t, "looked up with other contents", err, invalidation.ErrRequestReused)
	_, err = s.Replay(t.Context(), invalidation.Caller{Kind: "oidc", Name: a.Invalidation.Caller.Name}, a.RequestID, a.Digest)
	wantError(t, "looked up by another caller", err, invalidation.ErrNotFound)
	other := a
	other.Digest = []byte{0, 1, 254}
	_, _, _, err = s.Accept(t.Context(), other)
	wantError(t, "other contents", err, invalidation.ErrRequestReused)
	_, err = s.Get(t.Context(), a.Invalidation.ID)
	wantError(t, "what was replayed", err, invalidation.ErrNotFound)
	equal(t, "events", eventTypes(h.Events(t, s)), []string{"invalidation.accepted"})

	// The id is the caller's own; who has none asks anew every time.
	for _, caller := range []invalidation.Caller{{Kind: "oidc", Name: helpdesk.Name}, {Kind: helpdesk.Kind, Name: "hr"}} {
		mine := a
		mine.Invalidation.ID, mine.Invalidation.Caller = newID(), caller
		accept(t, s, mine)
	}
	for range 2 {
		accept(t, s, asked(at, "apm"))
	}
}

func acceptReplaysToMany(t *testing.T, h Harness) {
	s := h.Open(t)
	stores := []invalidation.Store{s, h.process(t, s)}
	at := now(t, s)
	const callers = 32
	var mu sync.Mutex
	accepted := map[string]int{} // by ID
	fresh := 0
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			a := asked(at, "apm", "kibana")
			a.RequestID, a.Digest = "one", []byte("same")
			inv, replayed, _, err := stores[n%2].Accept(t.Context(), a)
			if err != nil {
				t.Errorf("Accept: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			accepted[inv.ID]++
			if !replayed {
				fresh++
			}
		})
	}
	wg.Wait()
	if len(accepted) != 1 || fresh != 1 {
		t.Errorf("%d callers were given %d invalidations, %d of them new; want one", callers, len(accepted), fresh)
	}
	if invs, _, err := s.List(t.Context(), invalidation.Query{Limit: 10}); err != nil || len(invs) != 1 {
		t.Errorf("List = %v, %v; want one", ids(invs), err)
	}
}

func getNotFound(t *testing.T, h Harness) {
	s := h.Open(t)
	_, err := s.Get(t.Context(), newID())
	wantError(t, "Get", err, invalidation.ErrNotFound)
}
