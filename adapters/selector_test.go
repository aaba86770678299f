package adapters_test

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/endsession/endsession/adapters"
)

// Short forms of what the tests are about.
type (
	criteria = adapters.Criteria
	provider = adapters.Provider
	user     = adapters.User
	group    = adapters.Group
	key      = adapters.SessionKey
	selector = adapters.Selector
	session  = adapters.Session
)

var (
	saml1, saml2, basic1 = provider{Type: "saml", Name: "saml1"}, provider{Type: "saml", Name: "saml2"}, provider{Type: "basic", Name: "basic1"}
	saml                 = provider{Type: "saml"}
	staff, ops           = group{Kind: "access_group", Name: "staff"}, group{Kind: "access_group", Name: "ops"}
)

func users(names ...string) (us []user) {
	for _, n := range names {
		us = append(us, user{Name: n})
	}
	return us
}

func TestMatch(t *testing.T) {
	x := session{ID: "2a5d7604", Device: "d1", Username: "alice", Provider: saml1, Groups: []group{staff}}
	without := func(change func(*session)) session { y := x; change(&y); return y }
	byUser, byProvider, byGroup := adapters.ByUser, adapters.ByProvider, adapters.ByGroup
	for name, test := range map[string]struct {
		sel  selector
		x    session
		want bool
	}{
		"All":                            {selector{By: adapters.All}, x, true},
		"AllWithoutUser":                 {selector{By: adapters.All}, session{ID: "1"}, true},
		"User":                           {selector{By: byUser, Users: users("alice")}, x, true},
		"OneOfSeveralUsers":              {selector{By: byUser, Users: users("bob", "alice")}, x, true},
		"OtherUser":                      {selector{By: byUser, Users: users("bob")}, x, false},
		"OtherCase":                      {selector{By: byUser, Users: users("Alice")}, x, false},
		"Prefix":                         {selector{By: byUser, Users: users("ali")}, x, false},
		"LongerName":                     {selector{By: byUser, Users: users("alice2")}, x, false},
		"Wildcard":                       {selector{By: byUser, Users: users("*")}, x, false},
		"SpaceAround":                    {selector{By: byUser, Users: users(" alice ")}, x, false},
		"ComposedAndDecomposed":          {selector{By: byUser, Users: users("\u00e4")}, session{Username: "a\u0308"}, false},
		"InvalidUTF8IsCompared":          {selector{By: byUser, Users: users("a\xff")}, session{Username: "a\xfe"}, false},
		"NoUserIsNobody":                 {selector{By: byUser, Users: users("alice")}, session{ID: "1"}, false},
		"BoundToItsProvider":             {selector{By: byUser, Users: []user{{Name: "alice", At: []provider{saml1}}}}, x, true},
		"BoundToItsType":                 {selector{By: byUser, Users: []user{{Name: "alice", At: []provider{basic1, saml}}}}, x, true},
		"BoundElsewhere":                 {selector{By: byUser, Users: []user{{Name: "alice", At: []provider{saml2}}}}, x, false},
		"TheBindingIsOfThatName":         {selector{By: byUser, Users: []user{{Name: "alice", At: []provider{saml2}}, {Name: "bob"}}}, x, false},
		"Provider":                       {selector{By: byProvider, Providers: []provider{saml1}}, x, true},
		"ProviderOfAnotherName":          {selector{By: byProvider, Providers: []provider{saml2}}, x, false},
		"ProviderInAnotherCase":          {selector{By: byProvider, Providers: []provider{{Type: "SAML", Name: "saml1"}}}, x, false},
		"EveryProviderOfTheType":         {selector{By: byProvider, Providers: []provider{saml}}, x, true},
		"ProviderOfAnotherType":          {selector{By: byProvider, Providers: []provider{{Type: "oidc", Name: "saml1"}}}, x, false},
		"NamedProviderOfNamelessSession": {selector{By: byProvider, Providers: []provider{saml1}}, session{Provider: saml}, false},
		"SessionThatTellsNoProvider":     {selector{By: byProvider, Providers: []provider{saml}}, session{Username: "alice"}, false},
		"MustBeListedMatchesTheSame":     {selector{By: byProvider, Providers: []provider{{Type: "saml", Name: "saml1", MustBeListed: true}}}, x, true},
		"Group":                          {selector{By: byGroup, Groups: []group{ops, staff}}, x, true},
		"OtherGroup":                     {selector{By: byGroup, Groups: []group{ops}}, x, false},
		"GroupOfAnotherKind":             {selector{By: byGroup, Groups: []group{{Kind: "cluster", Name: "staff"}}}, x, false},
		"UserAndProvider":                {selector{By: byUser | byProvider, Users: users("alice"), Providers: []provider{saml1}}, x, true},
		"UserButNotProvider":             {selector{By: byUser | byProvider, Users: users("alice"), Providers: []provider{basic1}}, x, false},
		"ProviderButNotUser":             {selector{By: byUser | byProvider, Users: users("bob"), Providers: []provider{saml1}}, x, false},
		"BindingAgainstProvider": {
			selector{By: byUser | byProvider, Users: []user{{Name: "alice", At: []provider{saml2}}}, Providers: []provider{saml1, saml2}}, x, false,
		},
		"UserButNotGroup":       {selector{By: byUser | byGroup, Users: users("alice"), Groups: []group{ops}}, x, false},
		"AllThree":              {selector{By: byUser | byProvider | byGroup, Users: users("alice"), Providers: []provider{saml}, Groups: []group{staff}}, x, true},
		"AllThreeButOne":        {selector{By: byUser | byProvider | byGroup, Users: users("alice"), Providers: []provider{basic1}, Groups: []group{staff}}, x, false},
		"Session":               {selector{By: adapters.BySessions, Sessions: []key{{Device: "d1", ID: "2a5d7604"}}}, x, true},
		"SessionElsewhere":      {selector{By: adapters.BySessions, Sessions: []key{{Device: "d2", ID: "2a5d7604"}}}, x, false},
		"SessionWithoutDevice":  {selector{By: adapters.BySessions, Sessions: []key{{ID: "2a5d7604"}}}, x, false},
		"SessionInAnotherCase":  {selector{By: adapters.BySessions, Sessions: []key{{Device: "d1", ID: "2A5D7604"}}}, x, false},
		"OtherIDOnTheDevice":    {selector{By: adapters.BySessions, Sessions: []key{{Device: "d1", ID: "2a5d7605"}}}, x, false},
		"SessionIDOfNoneIsNone": {selector{By: byUser, Users: users("alice")}, without(func(y *session) { y.Username = "" }), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.sel.Validate(); err != nil {
				t.Fatalf("invalid: %v", err)
			}
			if got := test.sel.Match(test.x); got != test.want {
				t.Errorf("%+v matches %+v: %t, want %t", test.sel, test.x, got, test.want)
			}
		})
	}
}

// What is invalid matches nobody, whatever it was meant to be.
func TestInvalidSelectorsMatchNobody(t *testing.T) {
	for name, sel := range map[string]selector{
		"Zero":                     {},
		"UserWithoutUsers":         {By: adapters.ByUser},
		"ProviderWithoutProviders": {By: adapters.ByProvider},
		"GroupWithoutGroups":       {By: adapters.ByGroup},
		"SessionsWithoutSessions":  {By: adapters.BySessions},
		"OneOfTwoIsEmpty":          {By: adapters.ByUser | adapters.ByProvider, Users: users("alice")},
		"UsersWithoutTheCriterion": {By: adapters.ByProvider, Providers: []provider{saml1}, Users: users("alice")},
		"AllWithUsers":             {By: adapters.All, Users: users("alice")},
		"AllAndUser":               {By: adapters.All | adapters.ByUser, Users: users("alice")},
		"SessionsAndUser":          {By: adapters.BySessions | adapters.ByUser, Users: users("alice"), Sessions: []key{{ID: "1"}}},
		"UnknownCriterion":         {By: 1 << 5},
		"UnknownCriterionAndUser":  {By: 1<<7 | adapters.ByUser, Users: users("alice")},
		"EmptyUser":                {By: adapters.ByUser, Users: users("alice", "")},
		"BlankUser":                {By: adapters.ByUser, Users: users("alice", " \t\u00a0")},
		"EmptyType":                {By: adapters.ByProvider, Providers: []provider{saml1, {Name: "saml1"}}},
		"BlankProviderName":        {By: adapters.ByProvider, Providers: []provider{saml1, {Type: "saml", Name: " "}}},
		"UnnamedMustBeListed":      {By: adapters.ByProvider, Providers: []provider{{Type: "saml", MustBeListed: true}}},
		"EmptyTypeOfABinding":      {By: adapters.ByUser, Users: []user{{Name: "alice", At: []provider{saml1, {}}}}},
		"UnnamedBindingMustBe":     {By: adapters.ByUser, Users: []user{{Name: "alice", At: []provider{{Type: "saml", MustBeListed: true}}}}},
		"EmptyKind":                {By: adapters.ByGroup, Groups: []group{staff, {Name: "staff"}}},
		"EmptyGroup":               {By: adapters.ByGroup, Groups: []group{staff, {Kind: "access_group"}}},
		"EmptyID":                  {By: adapters.BySessions, Sessions: []key{{ID: "1"}, {Device: "d1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := sel.Validate(); err == nil {
				t.Errorf("%+v is valid", sel)
			}
			for _, x := range []session{
				{}, {ID: "1", Username: "alice", Provider: saml1, Groups: []group{staff}}, {Device: "d1", Provider: provider{Name: "saml1"}},
			} {
				if sel.Match(x) {
					t.Errorf("%+v matches %+v", sel, x)
				}
			}
		})
	}
}

func TestCriteria(t *testing.T) {
	both := adapters.ByUser | adapters.ByProvider
	switch {
	case !both.Has(adapters.ByUser), both.Has(adapters.ByGroup), both.Has(adapters.ByUser | adapters.ByGroup), both.Has(0):
		t.Error("Has is wrong")
	case both.Broad(), adapters.BySessions.Broad(), !adapters.ByProvider.Broad(), !adapters.All.Broad(), !(adapters.ByProvider | adapters.ByGroup).Broad():
		t.Error("Broad is wrong")
	case both.String() != "user+provider":
		t.Errorf("String: %s", both)
	}
	for text, want := range map[string]criteria{
		`["user"]`: adapters.ByUser, `["provider","user"]`: both, `["user","user"]`: adapters.ByUser, `["sessions"]`: adapters.BySessions,
		`["all"]`: adapters.All, `["user","provider","group"]`: both | adapters.ByGroup, `[]`: 0, `null`: 0,
	} {
		got := adapters.All // must be overwritten
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want && text != "null" {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{`["users"]`, `["user","groups"]`, `["USER"]`, `[""]`, `[null]`, `"user"`, `1`, `{}`, `["user"`} {
		var got criteria
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s: %v, want an error", text, got)
		}
	}
	for c := criteria(1); c < 32; c++ {
		b, err := json.Marshal(c)
		var back criteria
		if err != nil || json.Unmarshal(b, &back) != nil || back != c {
			t.Errorf("%d becomes %s and then %d", c, b, back)
		}
	}
}

func TestIntersect(t *testing.T) {
	must := func(p provider) provider { p.MustBeListed = true; return p }
	for name, test := range map[string]struct{ a, b, want []provider }{
		"Same":                      {[]provider{saml1}, []provider{saml1}, []provider{saml1}},
		"Apart":                     {[]provider{saml1}, []provider{saml2}, nil},
		"TypeAndName":               {[]provider{saml}, []provider{saml1, basic1}, []provider{saml1}},
		"NameAndType":               {[]provider{saml1, basic1}, []provider{saml}, []provider{saml1}},
		"OtherType":                 {[]provider{saml}, []provider{basic1}, nil},
		"Empty":                     {nil, []provider{saml}, nil},
		"TwiceTheSame":              {[]provider{saml1, saml1}, []provider{saml1}, []provider{saml1}},
		"TheWiderCoversTheNarrower": {[]provider{saml1, saml}, []provider{saml, saml1}, []provider{saml}},
		"MustBeListedStays":         {[]provider{must(saml1)}, []provider{saml}, []provider{must(saml1)}},
		"MustBeListedOfEither":      {[]provider{saml1}, []provider{must(saml1)}, []provider{must(saml1)}},
		"MustBeListedIsOfItsName":   {[]provider{must(saml1), saml}, []provider{saml2}, []provider{saml2}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := adapters.Intersect(test.a, test.b); !slices.Equal(got, test.want) {
				t.Errorf("Intersect(%v, %v) = %+v, want %+v", test.a, test.b, got, test.want)
			}
		})
	}
}

func TestUserScopes(t *testing.T) {
	type scope = adapters.UserScope
	both := adapters.ByUser | adapters.ByProvider
	for name, test := range map[string]struct {
		sel  selector
		want []scope
	}{
		"Anywhere":     {selector{By: adapters.ByUser, Users: users("a", "b")}, []scope{{Name: "a", Anywhere: true}, {Name: "b", Anywhere: true}}},
		"AtTheBinding": {selector{By: adapters.ByUser, Users: []user{{Name: "a", At: []provider{saml1, saml1}}}}, []scope{{Name: "a", At: []provider{saml1}}}},
		"AtTheProvider": {
			selector{By: both, Users: users("a"), Providers: []provider{saml1, saml}}, []scope{{Name: "a", At: []provider{saml}}},
		},
		"AtBoth": {
			selector{By: both, Users: []user{{Name: "a", At: []provider{saml}}}, Providers: []provider{saml1, basic1}}, []scope{{Name: "a", At: []provider{saml1}}},
		},
		"Nowhere": {selector{By: both, Users: []user{{Name: "a", At: []provider{saml2}}}, Providers: []provider{saml1}}, nil},
		"OnlyTheOther": {
			selector{By: both, Users: []user{{Name: "a", At: []provider{saml2}}, {Name: "b"}}, Providers: []provider{saml1}},
			[]scope{{Name: "b", At: []provider{saml1}}},
		},
		"OneNameAtTwoPlaces": {
			selector{By: adapters.ByUser, Users: []user{{Name: "a", At: []provider{saml1}}, {Name: "b"}, {Name: "a", At: []provider{basic1, saml1}}}},
			[]scope{{Name: "a", At: []provider{saml1, basic1}}, {Name: "b", Anywhere: true}},
		},
		"BoundAndAnywhere": {
			selector{By: adapters.ByUser, Users: []user{{Name: "a", At: []provider{saml1}}, {Name: "a"}, {Name: "a", At: []provider{saml2}}}},
			[]scope{{Name: "a", Anywhere: true}},
		},
		"NoUsers": {selector{By: adapters.ByProvider, Providers: []provider{saml1}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.sel.UserScopes(); !reflect.DeepEqual(got, test.want) {
				t.Errorf("UserScopes of %+v = %+v, want %+v", test.sel, got, test.want)
			}
		})
	}
}

// source makes small values of a fuzzer's bytes; few different ones, so that they meet.
type source []byte

func (s *source) next(n int) int {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return int(b) % n
}

func (s *source) providers() (ps []provider) {
	for range s.next(4) {
		p := provider{Type: []string{"saml", "basic", "SAML"}[s.next(3)], Name: []string{"", "a", "b", "A"}[s.next(4)]}
		p.MustBeListed = p.Name != "" && s.next(2) == 1
		ps = append(ps, p)
	}
	return ps
}

func (s *source) groups() (gs []group) {
	for range s.next(3) {
		gs = append(gs, group{Kind: []string{"k", "l"}[s.next(2)], Name: []string{"a", "b"}[s.next(2)]})
	}
	return gs
}

func (s *source) selector() selector {
	sel := selector{By: criteria(s.next(64))}
	for range s.next(4) {
		sel.Users = append(sel.Users, user{Name: []string{"alice", "bob", "Alice", "alice", "bob", ""}[s.next(6)], At: s.providers()})
	}
	sel.Providers, sel.Groups = s.providers(), s.groups()
	for range s.next(3) {
		sel.Sessions = append(sel.Sessions, key{Device: []string{"", "d"}[s.next(2)], ID: []string{"1", "2", ""}[s.next(3)]})
	}
	if s.next(4) == 0 {
		return sel // mostly invalid
	}
	sel.By = 0
	for c, n := range map[criteria]int{adapters.ByUser: len(sel.Users), adapters.ByProvider: len(sel.Providers), adapters.ByGroup: len(sel.Groups)} {
		if n > 0 {
			sel.By |= c
		}
	}
	switch {
	case sel.By == 0 && len(sel.Sessions) > 0:
		sel.By = adapters.BySessions
	case sel.By == 0:
		sel.By = adapters.All
	default:
		sel.Sessions = nil
	}
	return sel
}

// everybody is every session that the values of a source can speak of.
func everybody() (xs []session) {
	for _, name := range []string{"alice", "bob", "Alice", ""} {
		for _, typ := range []string{"saml", "basic", "SAML", ""} {
			for _, p := range []string{"", "a", "b", "A"} {
				for _, gs := range [][]group{nil, {{Kind: "k", Name: "a"}}, {{Kind: "l", Name: "b"}, {Kind: "k", Name: "b"}}} {
					n := len(xs)
					xs = append(xs, session{
						ID: []string{"1", "2", "3"}[n%3], Device: []string{"", "d"}[n%2], Username: name, Provider: provider{Type: typ, Name: p}, Groups: gs,
					})
				}
			}
		}
	}
	return xs
}

// seed gives a fuzz test something to begin with, and the ordinary test run a sweep.
func seed(f *testing.F) {
	rnd := rand.NewChaCha8([32]byte{1})
	for range 400 {
		b := make([]byte, 40)
		_, _ = rnd.Read(b)
		f.Add(b)
	}
}

func FuzzSelector(f *testing.F) {
	seed(f)
	f.Add([]byte("\x10"))
	f.Add([]byte("\x20"))
	people := everybody()
	f.Fuzz(func(t *testing.T, data []byte) {
		src := source(data)
		sel := src.selector()
		valid := sel.Validate() == nil
		text, err := json.Marshal(sel)
		if err != nil {
			t.Fatal(err)
		}
		var back selector
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		scopes := sel.UserScopes()
		for _, x := range people {
			got := sel.Match(x)
			if got && !valid {
				t.Fatalf("invalid, but matches: %s, %+v", text, x)
			}
			if !valid {
				continue
			}
			if back.Match(x) != got {
				t.Fatalf("read back from the journal it means something else: %s, %+v", text, x)
			}
			if want := means(sel, x); got != want {
				t.Fatalf("%s matches %+v: %t, want %t", text, x, got, want)
			}
			// Every criterion alone matches whatever all of them together match.
			for _, c := range []criteria{adapters.ByUser, adapters.ByProvider, adapters.ByGroup} {
				if part := only(sel, c); got && sel.By.Has(c) && !part.Match(x) {
					t.Fatalf("%s matches %+v, but its %s alone does not", text, x, c)
				}
			}
			if sel.By == adapters.ByUser || sel.By == adapters.ByUser|adapters.ByProvider {
				in := slices.ContainsFunc(scopes, func(s adapters.UserScope) bool {
					return s.Name == x.Username && (s.Anywhere || selector{By: adapters.ByProvider, Providers: s.At}.Match(x))
				})
				if in != got {
					t.Fatalf("%s matches %+v: %t, but its user scopes %+v say %t", text, x, got, scopes, in)
				}
			}
		}
		for _, s := range scopes {
			if valid && s.Anywhere != (len(s.At) == 0) {
				t.Fatalf("%s has a scope that is both or neither: %+v", text, s)
			}
		}
	})
}

func only(sel selector, c criteria) selector {
	out := selector{By: c}
	switch c {
	case adapters.ByUser:
		out.Users = sel.Users
	case adapters.ByProvider:
		out.Providers = sel.Providers
	case adapters.ByGroup:
		out.Groups = sel.Groups
	}
	return out
}

// means says again, and longer, what a valid selector means.
func means(sel selector, x session) bool {
	at := func(ps []provider) bool {
		for _, p := range ps {
			if p.Type == x.Provider.Type && p.Name == x.Provider.Name || p.Type == x.Provider.Type && p.Name == "" {
				return true
			}
		}
		return false
	}
	one := func(n int, f func(i int) bool) bool {
		for i := range n {
			if f(i) {
				return true
			}
		}
		return false
	}
	by := map[criteria]bool{
		adapters.All: true,
		adapters.ByUser: one(len(sel.Users), func(i int) bool {
			return sel.Users[i].Name == x.Username && (sel.Users[i].At == nil || at(sel.Users[i].At))
		}),
		adapters.ByProvider: at(sel.Providers),
		adapters.ByGroup: one(len(sel.Groups)*len(x.Groups), func(i int) bool {
			return sel.Groups[i/len(x.Groups)] == x.Groups[i%len(x.Groups)]
		}),
		adapters.BySessions: one(len(sel.Sessions), func(i int) bool { return sel.Sessions[i] == x.Key() }),
	}
	for c, holds := range by {
		if sel.By&c != 0 && !holds {
			return false
		}
	}
	return sel.By != 0
}

func FuzzIntersect(f *testing.F) {
	seed(f)
	people := everybody()
	f.Fuzz(func(t *testing.T, data []byte) {
		src := source(data)
		a, b := src.providers(), src.providers()
		both := adapters.Intersect(a, b)
		covers := func(ps []provider, x session) bool { return selector{By: adapters.ByProvider, Providers: ps}.Match(x) }
		for _, x := range people {
			if x.Provider.Type == "" {
				continue
			}
			if got, want := covers(both, x), covers(a, x) && covers(b, x); got != want {
				t.Fatalf("Intersect(%+v, %+v) = %+v covers %v: %t, want %t", a, b, both, x.Provider, got, want)
			}
		}
		// A name that the caller gave is never trusted because it met one that is.
		for _, p := range both {
			if p.Name == "" || p.MustBeListed {
				continue
			}
			for _, side := range [][]provider{a, b} {
				if given := slices.ContainsFunc(side, func(q provider) bool { return q.Type == p.Type && q.Name == p.Name && q.MustBeListed }); given &&
					!slices.ContainsFunc(side, func(q provider) bool {
						return q.Type == p.Type && !q.MustBeListed && (q.Name == p.Name || q.Name == "")
					}) {
					t.Fatalf("Intersect(%+v, %+v) = %+v trusts %v", a, b, both, p)
				}
			}
		}
	})
}

func FuzzSelectorJSON(f *testing.F) {
	for _, s := range []string{
		`{"by":["user"],"users":[{"name":"alice"}]}`, `{"by":["all"]}`, `{"by":["user"]}`, `{"by":["all"],"users":[{"name":"alice"}]}`,
		`{"by":["user"],"users":[{"name":"alice","at":[{"type":"saml","must_be_listed":true}]}]}`, `{"by":[]}`, `{"BY":["all"]}`,
		`{"by":["user","provider"],"users":[{"name":"alice"}],"providers":[{"type":"saml"}]}`, `{"by":["sessions"],"sessions":[{"id":"1"}]}`,
	} {
		f.Add([]byte(s))
	}
	people := everybody()
	f.Fuzz(func(t *testing.T, data []byte) {
		var sel selector
		if json.Unmarshal(data, &sel) != nil || sel.Validate() != nil {
			return
		}
		text, err := json.Marshal(sel)
		var back selector
		if err != nil || json.Unmarshal(text, &back) != nil || !reflect.DeepEqual(back.By, sel.By) {
			t.Fatalf("%s becomes %s", data, text)
		}
		for _, x := range people {
			if sel.Match(x) != back.Match(x) {
				t.Fatalf("%s becomes %s, which means something else for %+v", data, text, x)
			}
			if sel.Match(x) && sel.By.Has(adapters.ByUser) && x.Username == "" {
				t.Fatalf("%s matches a session without a user", data)
			}
		}
	})
}
