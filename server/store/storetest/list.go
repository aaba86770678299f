package storetest

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

func listFilters(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	hr := invalidation.Caller{Kind: "api_key", Name: "hr"}
	otherHR := invalidation.Caller{Kind: "oidc", Name: "hr"}
	var all []invalidation.Invalidation
	add := func(caller invalidation.Caller, user string, age time.Duration, labels map[string]string, targets ...string) {
		a := asked(at.Add(-age), targets...)
		a.Invalidation.Caller = caller
		a.Invalidation.Call.Labels = labels
		a.Invalidation.Call.Selector = invalidation.Selector{Group: "vpn"}
		if user != "" {
			a.Invalidation.Call.Selector = invalidation.Selector{User: &invalidation.User{ID: user}}
		}
		accept(t, s, a)
		all = append(all, a.Invalidation)
	}
	add(helpdesk, "alice", 4*time.Hour, nil, "apm", "kibana")
	add(hr, "bob", 3*time.Hour, map[string]string{"ticket": "1", "job": "x"}, "kibana")
	add(otherHR, "alice", 2*time.Hour, map[string]string{"ticket": "1"}, "storage")
	add(hr, "", time.Hour, map[string]string{"ticket": "2", "job": "x"}, "apm")
	add(hr, "alice", 0, map[string]string{"ticket": "1", "job": "x"}, "apm", "storage")
	end := func(n int, state invalidation.RunState) {
		for _, r := range all[n].Runs {
			for _, c := range claim(t, s, invalidation.Claim{Target: r.Target, LeaseLength: time.Hour}) {
				if c.Lease.InvalidationID == all[n].ID {
					record(t, s, c.Lease, ended(c.Run, state, at))
				} else if err := s.Release(t.Context(), c.Lease); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	end(0, invalidation.RunSucceeded)
	end(1, invalidation.RunFailed)
	for _, c := range []struct {
		name string
		q    invalidation.Query
		want []int // in all
	}{
		{"everything", invalidation.Query{}, []int{4, 3, 2, 1, 0}},
		{"state", invalidation.Query{State: invalidation.Failed}, []int{1}},
		{"state SUCCEEDED", invalidation.Query{State: invalidation.Succeeded}, []int{0}},
		{"another state", invalidation.Query{State: invalidation.Cancelled}, nil},
		{"unfinished", invalidation.Query{Unfinished: true}, []int{4, 3, 2}},
		{"unfinished but failed", invalidation.Query{Unfinished: true, State: invalidation.Failed}, nil},
		{"target", invalidation.Query{Target: "apm"}, []int{4, 3, 0}},
		{"target at the end", invalidation.Query{Target: "storage"}, []int{4, 2}},
		{"another target", invalidation.Query{Target: "ap"}, nil},
		{"caller", invalidation.Query{Caller: "hr"}, []int{4, 3, 2, 1}},
		{"only of", invalidation.Query{OnlyOf: &hr}, []int{4, 3, 1}},
		{"only of, other kind", invalidation.Query{OnlyOf: &otherHR}, []int{2}},
		{"only of one, but another caller's", invalidation.Query{OnlyOf: &hr, Caller: "helpdesk"}, nil},
		{"only of nobody", invalidation.Query{OnlyOf: &invalidation.Caller{}}, nil},
		{"user", invalidation.Query{UserID: "alice"}, []int{4, 2, 0}},
		{"user, whole name", invalidation.Query{UserID: "alic"}, nil},
		{"label", invalidation.Query{Labels: map[string]string{"ticket": "1"}}, []int{4, 2, 1}},
		{"labels", invalidation.Query{Labels: map[string]string{"ticket": "1", "job": "x"}}, []int{4, 1}},
		{"label, wrong value", invalidation.Query{Labels: map[string]string{"ticket": "x"}}, nil},
		{"from", invalidation.Query{From: at.Add(-2 * time.Hour)}, []int{4, 3, 2}},
		{"to", invalidation.Query{To: at.Add(-2 * time.Hour)}, []int{1, 0}},
		{"range", invalidation.Query{From: at.Add(-3 * time.Hour), To: at}, []int{3, 2, 1}},
		{"everything at once", invalidation.Query{UserID: "alice", Target: "apm", Caller: "hr", OnlyOf: &hr, State: invalidation.Running,
			Unfinished: true, Labels: map[string]string{"ticket": "1"}, From: at.Add(-time.Hour), To: at.Add(time.Hour)}, []int{4}},
		{"user and label", invalidation.Query{UserID: "alice", Labels: map[string]string{"job": "x"}}, []int{4}},
		{"target and time", invalidation.Query{Target: "apm", To: at}, []int{3, 0}},
	} {
		c.q.Limit = 10
		var want []string
		for _, n := range c.want {
			want = append(want, all[n].ID)
		}
		got, more, err := s.List(t.Context(), c.q)
		if err != nil || more {
			t.Errorf("%s: more %t, error %v", c.name, more, err)
		}
		equal(t, c.name, ids(got), want)
		for _, inv := range got {
			equal(t, c.name, inv, get(t, s, inv.ID))
		}
		// One at a time it is the same.
		c.q.Limit = 1
		var paged []string
		for more := true; more && len(paged) <= len(all); {
			var page []invalidation.Invalidation
			if page, more, err = s.List(t.Context(), c.q); err != nil || len(page) > 1 || more && len(page) == 0 {
				t.Fatalf("%s: page of %d, more %t, error %v", c.name, len(page), more, err)
			}
			for _, inv := range page {
				paged = append(paged, inv.ID)
				c.q.Before = inv.ID
			}
		}
		equal(t, c.name+", paged", paged, want)
	}
}

func listPages(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	var before []string
	for range 10 {
		inv, _ := accept(t, s, asked(at, "apm"))
		before = append(before, inv.ID)
	}
	slices.SortFunc(before, func(a, b string) int { return cmp.Compare(b, a) })
	q := invalidation.Query{Limit: 3}
	var seen []string
	for more := true; more && len(seen) <= len(before); {
		page, m, err := s.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		more = m
		seen = append(seen, ids(page)...)
		q.Before = page[len(page)-1].ID
		accept(t, s, asked(at, "apm")) // newer than any page
		if _, err := s.Cancel(t.Context(), page[0].ID, at, nil); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "pages", seen, before)
	exact, more, err := s.List(t.Context(), invalidation.Query{Limit: 14})
	if err != nil || more || len(exact) != 14 {
		t.Errorf("a page of exactly all: %d, more %t, error %v", len(exact), more, err)
	}
	if page, more, err := s.List(t.Context(), invalidation.Query{Limit: 3, Before: seen[len(seen)-1]}); err != nil || more || len(page) != 0 {
		t.Errorf("after the last: %v, more %t, error %v", ids(page), more, err)
	}
}

func pruneRemoves(t *testing.T, h Harness) {
	s := h.Open(t)
	at := now(t, s)
	end := func(age time.Duration) string {
		a := asked(at.Add(-age-time.Hour), "apm", "kibana")
		a.RequestID, a.Digest = newID(), []byte("d")
		a.Invalidation.Call.Labels = map[string]string{"job": "old"}
		a.Invalidation.Runs[1] = ended(a.Invalidation.Runs[1], invalidation.RunSucceeded, at.Add(-age-time.Hour))
		accept(t, s, a)
		c := claimOne(t, s, invalidation.Claim{Target: "apm", LeaseLength: time.Hour})
		record(t, s, c.Lease, ended(c.Run, invalidation.RunSucceeded, at.Add(-age)))
		return c.Lease.InvalidationID
	}
	prune := func(before time.Time, limit int) int {
		t.Helper()
		n, err := s.Prune(t.Context(), before, limit)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	gone := func(id string) bool {
		_, err := s.Get(t.Context(), id)
		if err != nil {
			wantError(t, "Get", err, invalidation.ErrNotFound)
		}
		return err != nil
	}
	var old []string
	for n := range 3 {
		old = append(old, end(time.Duration(10-n)*24*time.Hour))
	}
	recent := end(time.Hour)
	unfinished, _ := accept(t, s, asked(at.Add(-100*24*time.Hour), "apm"))
	events := h.Events(t, s)
	if n := prune(at.Add(-9*24*time.Hour), 10); n != 1 || !gone(old[0]) || gone(old[1]) {
		t.Errorf("removed %d; want the one that ended before, not the one that ended then", n)
	}
	if n := prune(at.Add(-2*time.Hour), 1); n != 1 {
		t.Errorf("removed %d, want the limit of 1", n)
	}
	if n := prune(at.Add(-2*time.Hour), 10); n != 1 || !gone(old[1]) || !gone(old[2]) {
		t.Errorf("removed %d, want the last old one", n)
	}
	if n := prune(at.Add(time.Hour), 10); n != 1 || !gone(recent) {
		t.Errorf("removed %d, want the recent one", n)
	}
	equal(t, "the unfinished one", get(t, s, unfinished.ID), unfinished)
	equal(t, "events", h.Events(t, s), events)
	for _, q := range []invalidation.Query{{}, {Target: "apm"}, {Labels: map[string]string{"job": "old"}}} {
		q.Limit = 10
		if invs, _, err := s.List(t.Context(), q); err != nil || len(invs) > 1 {
			t.Errorf("List(%s) after pruning = %v, %v", show(q), ids(invs), err)
		}
	}
}
