package adaptertest

import (
	"fmt"
	"strings"

	"github.com/endsession/endsession/adapters"
)

// The two people whom selectors are about most of the time.
const (
	alice = "alice"
	bob   = "bob@corp.example"
)

// names are user names that a careless comparison, quoting or encoding takes for one another.
var names = []string{
	"Alice", "ALICE", "alic", "alice2", "alice.", "xalice", "alice bob", " alice", "alice ", "a*", "*", "alice*",
	`"alice"`, "'alice'", `alice' or 'a'='a`, `CORP\alice`, `corp\alice`, "alice@corp.example", "alice@corp.example.org",
	"bob", "uid=alice,ou=people,dc=corp,dc=example", "cn=O\\, Alice,dc=corp", "alice/bob", "../alice", "alice%20bob", "alice+bob",
	"alice&x=y", "<alice>", "\u00e4lice", "a\u0308lice", "\u202ealice", "\u0430lice", "\u30a2\u30ea\u30b9", "null", "true", "0",
	"{alice}", "${alice}", strings.Repeat("alice", 200), strings.Repeat("alice", 199) + "alicf",
}

// population is everybody: the two people and a session without a user at every place, each near miss at one place,
// and a second session of the same person at the same place.
func (h Harness) population() []adapters.Session {
	xs := h.few()
	for _, place := range h.Places {
		xs = append(xs, at(place, bob), at(place, ""))
	}
	for i, name := range names {
		xs = append(xs, at(h.Places[i%len(h.Places)], name))
	}
	return xs
}

// few is a population small enough to break a run at each of its requests.
func (h Harness) few() []adapters.Session {
	first := h.Places[0]
	xs := []adapters.Session{at(first, alice), at(first, "Alice"), at(first, bob), at(first, "")}
	for _, place := range h.Places[:min(6, len(h.Places))] {
		xs = append(xs, at(place, alice))
	}
	return xs
}

func at(place adapters.Session, name string) adapters.Session {
	place.Username = name
	place.ID = ""
	return place
}

// combinations are all sets of criteria there can be.
var combinations = []adapters.Criteria{
	adapters.ByUser, adapters.ByProvider, adapters.ByGroup,
	adapters.ByUser | adapters.ByProvider, adapters.ByUser | adapters.ByGroup, adapters.ByProvider | adapters.ByGroup,
	adapters.ByUser | adapters.ByProvider | adapters.ByGroup, adapters.BySessions, adapters.All,
}

// selectors makes selectors of one combination, of the harness's values and the sessions signed in.
func (h Harness) selectors(c adapters.Criteria, seeded []adapters.Session) []adapters.Selector {
	switch c {
	case adapters.All:
		return []adapters.Selector{{By: c}}
	case adapters.BySessions:
		return sessionSelectors(seeded)
	}
	users, providers, groups := [][]adapters.User{nil}, [][]adapters.Provider{nil}, [][]adapters.Group{nil}
	if c.Has(adapters.ByUser) {
		users = h.users(c)
	}
	if c.Has(adapters.ByProvider) {
		providers = lists(h.Providers)
	}
	if c.Has(adapters.ByGroup) {
		groups = lists(h.Groups)
	}
	if len(users) > 1 && len(providers) > 1 && len(groups) > 1 {
		users = users[:2] // by user and provider, and by user and group, have had the others
	}
	var sels []adapters.Selector
	for _, u := range users {
		for _, p := range providers {
			for _, g := range groups {
				sels = append(sels, adapters.Selector{By: c, Users: u, Providers: p, Groups: g})
			}
		}
	}
	return sels
}

func (h Harness) users(c adapters.Criteria) [][]adapters.User {
	out := [][]adapters.User{{{Name: alice}}, {{Name: "nobody"}, {Name: bob}, {Name: alice}}}
	for i, p := range h.Providers {
		out = append(out, []adapters.User{{Name: alice, At: []adapters.Provider{p}}})
		if c != adapters.ByUser && i == 1 {
			return out // the criteria are crossed with these: a few will do
		}
	}
	if c != adapters.ByUser {
		return out
	}
	for _, name := range names {
		out = append(out, []adapters.User{{Name: name}})
	}
	out = append(out, []adapters.User{{Name: "nobody"}})
	if len(h.Providers) > 1 {
		a, b := h.Providers[:1], h.Providers[1:2]
		out = append(out,
			[]adapters.User{{Name: alice, At: a}, {Name: bob}},
			[]adapters.User{{Name: alice, At: a}, {Name: bob, At: b}},
			[]adapters.User{{Name: alice, At: a}, {Name: alice, At: b}},
			[]adapters.User{{Name: alice, At: h.Providers}, {Name: "Alice", At: b}},
			[]adapters.User{{Name: alice, At: a}, {Name: alice}},
		)
	}
	return out
}

// lists returns each element alone, the first two and all of them.
func lists[T any](xs []T) [][]T {
	var out [][]T
	for _, x := range xs {
		out = append(out, []T{x})
	}
	if len(xs) > 1 {
		out = append(out, xs[:2:2])
	}
	if len(xs) > 2 {
		out = append(out, xs)
	}
	return out
}

func sessionSelectors(seeded []adapters.Session) []adapters.Selector {
	var sels []adapters.Selector
	add := func(xs ...adapters.Session) {
		s := adapters.Selector{By: adapters.BySessions}
		for _, x := range xs {
			s.Sessions = append(s.Sessions, x.Key())
		}
		sels = append(sels, s)
	}
	if len(seeded) == 0 {
		return nil
	}
	last := seeded[len(seeded)-1]
	add(seeded[0])
	add(last)
	add(seeded[0], last, seeded[len(seeded)/2], seeded[len(seeded)/3])
	return sels
}

// strangers are selectors of values that the target does not have, all but spelt like those it has. They match nobody.
func (h Harness) strangers(c adapters.Criteria) []adapters.Selector {
	var sels []adapters.Selector
	if c.Has(adapters.ByProvider) && len(h.Providers) > 0 {
		ps := []adapters.Provider{{Type: "no-such-type"}, {Type: "no-such-type", Name: "x"}}
		for _, p := range h.Providers {
			ps = append(ps, adapters.Provider{Type: swapCase(p.Type), Name: p.Name}, adapters.Provider{Type: p.Type + "x", Name: p.Name})
			if p.Name != "" {
				ps = append(ps, adapters.Provider{Type: p.Type, Name: swapCase(p.Name)}, adapters.Provider{Type: p.Type, Name: p.Name + "*"},
					adapters.Provider{Type: p.Type, Name: p.Name[:len(p.Name)-1]})
			}
		}
		for _, p := range ps {
			s := adapters.Selector{By: c, Providers: []adapters.Provider{p}}
			h.fill(&s)
			sels = append(sels, s)
		}
	}
	if c.Has(adapters.ByGroup) && len(h.Groups) > 0 {
		gs := []adapters.Group{{Kind: "no-such-kind", Name: "x"}}
		for _, g := range h.Groups {
			gs = append(gs, adapters.Group{Kind: g.Kind, Name: swapCase(g.Name) + "x"}, adapters.Group{Kind: g.Kind, Name: g.Name + "*"},
				adapters.Group{Kind: swapCase(g.Kind), Name: g.Name})
		}
		for _, g := range gs {
			s := adapters.Selector{By: c, Groups: []adapters.Group{g}}
			h.fill(&s)
			sels = append(sels, s)
		}
	}
	return sels
}

// fill gives the criteria that have no values yet the first ones there are.
func (h Harness) fill(s *adapters.Selector) {
	if s.By.Has(adapters.ByUser) && s.Users == nil {
		s.Users = []adapters.User{{Name: alice}}
	}
	if s.By.Has(adapters.ByProvider) && s.Providers == nil && len(h.Providers) > 0 {
		s.Providers = h.Providers[:1]
	}
	if s.By.Has(adapters.ByGroup) && s.Groups == nil && len(h.Groups) > 0 {
		s.Groups = h.Groups[:1]
	}
}

func swapCase(s string) string {
	if up := strings.ToUpper(s); up != s {
		return up
	}
	return strings.ToLower(s)
}

// describe writes a selector short enough for a failure message.
func describe(s adapters.Selector) string {
	text := fmt.Sprintf("%s users=%+q providers=%q groups=%q sessions=%q", s.By, s.Users, s.Providers, s.Groups, s.Sessions)
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}
