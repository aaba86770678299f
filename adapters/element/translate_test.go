package element_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
)

func TestSupportsRefusesWhatElementCannotSay(t *testing.T) {
	a := start(elementtest.Options{}).open(t)
	at := func(p adapters.Provider) adapters.Selector {
		return adapters.Selector{By: adapters.ByProvider, Providers: []adapters.Provider{p}}
	}
	for name, test := range map[string]struct {
		sel adapters.Selector
		why adapters.Reason
	}{
		"NamedProvider":        {at(adapters.Provider{Type: "Idp", Name: "okta"}), adapters.ReasonUnknownProvider},
		"ProviderToBeListed":   {at(adapters.Provider{Type: "Idp", Name: "okta", MustBeListed: true}), adapters.ReasonUnknownProvider},
		"UnknownProvider":      {at(adapters.Provider{Type: "oidc"}), adapters.ReasonUnknownProvider},
		"ProviderInOtherCase":  {at(adapters.Provider{Type: "LDAP"}), adapters.ReasonUnknownProvider},
		"UserBoundElsewhere":   {adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "a", At: []adapters.Provider{{Type: "x"}}}}}, adapters.ReasonUnknownProvider},
		"UnknownGroupKind":     {adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{{Kind: "cluster", Name: "x"}}}, adapters.ReasonUnknownGroup},
		"AdminIDNotANumber":    {admins("nine"), adapters.ReasonUnknownGroup},
		"AdminIDNotDecimal":    {admins("007"), adapters.ReasonUnknownGroup},
		"AdminIDZero":          {admins("0"), adapters.ReasonUnknownGroup},
		"SessionOnADevice":     {adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{{Device: "d", ID: "x"}}}, adapters.ReasonSelectorUnsupported},
		"SessionIDNotText":     {adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{{ID: "x\xff"}}}, adapters.ReasonSelectorUnsupported},
		"UserNameNotText":      {user("alice\xff"), adapters.ReasonSelectorUnsupported},
		"UserNameOfNothing":    {user("alice\ufffd"), adapters.ReasonSelectorUnsupported},
		"GroupNameNotText":     {accessGroup("read\xff"), adapters.ReasonSelectorUnsupported},
		"EmptyUserName":        {user(""), adapters.ReasonSelectorUnsupported},
		"NoCriterion":          {adapters.Selector{}, adapters.ReasonSelectorUnsupported},
		"UserCriterionWithout": {adapters.Selector{By: adapters.ByUser}, adapters.ReasonSelectorUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "GroupNameNotText" {
				test.why = adapters.ReasonUnknownGroup
			}
			for what, err := range map[string]error{
				"supports":   a.Supports(test.sel),
				"invalidate": second(a.Invalidate(t.Context(), adapters.Request{Selector: test.sel})),
				"preview":    second(a.Preview(t.Context(), test.sel)),
			} {
				wantKind(t, err, adapters.Unsupported)
				if asError(t, err).Reason() != test.why {
					t.Errorf("%s: %v, want %s", what, err, test.why)
				}
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func TestNothingCanMatchSendsNothing(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Cluster", "alice")
	sel := userAt("alice", "Cluster")
	sel.Users[0].At = []adapters.Provider{{Type: "Ldap"}}
	a := c.open(t)
	res := complete(t, a, sel)
	if !res.Counted || res.Count != 0 || !warned(res.Warnings, adapters.WarnNothingCanMatch) || res.Verification != adapters.VerificationUnspecified {
		t.Errorf("result %+v", res)
	}
	p, err := a.Preview(t.Context(), sel)
	if err != nil || len(p.Requests) != 0 || !warned(p.Warnings, adapters.WarnNothingCanMatch) {
		t.Errorf("preview %+v, %v", p, err)
	}
	if n := len(c.rec.Requests()); n != 0 {
		t.Errorf("%d requests, want none", n)
	}
}

// fuzzWords are what fuzzed selectors and sessions are made of: near misses of each other.
var fuzzWords = []string{"alice", "Alice", "bob", "uid=alice,dc=corp", "Cluster", "Ldap", "Idp", "LDAP", "okta", "9", "09", "administrator", "read", "cluster_admin_id", "access_group", "\u00e4", ""}

// stream turns fuzzed bytes into choices.
type stream struct{ b []byte }

func (s *stream) next(n int) int {
	if len(s.b) == 0 {
		return 0
	}
	v := int(s.b[0])
	s.b = s.b[1:]
	return v % n
}

func (s *stream) word() string { return fuzzWords[s.next(len(fuzzWords))] }

func (s *stream) provider() adapters.Provider {
	p := adapters.Provider{Type: []string{"Cluster", "Ldap", "Idp", "LDAP"}[s.next(4)]}
	if s.next(8) == 7 {
		p.Name = s.word()
	}
	return p
}

func (s *stream) group() adapters.Group {
	return adapters.Group{Kind: []string{"access_group", "cluster_admin_id", "x"}[s.next(3)], Name: s.word()}
}

func (s *stream) selector() adapters.Selector {
	sel := adapters.Selector{By: adapters.Criteria(s.next(8))}
	if sel.By == 0 {
		return adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{{ID: s.word()}}}
	}
	for range 1 + s.next(12) {
		if sel.By.Has(adapters.ByUser) {
			u := adapters.User{Name: s.word()}
			for range s.next(3) {
				u.At = append(u.At, s.provider())
			}
			sel.Users = append(sel.Users, u)
		}
		if sel.By.Has(adapters.ByProvider) {
			sel.Providers = append(sel.Providers, s.provider())
		}
		if sel.By.Has(adapters.ByGroup) {
			sel.Groups = append(sel.Groups, s.group())
		}
	}
	return sel
}

// FuzzTranslate: no step matches a session that the selector does not match, and together they miss none whose
// authentication method Element has.
func FuzzTranslate(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{3, 2, 0, 1, 1, 2, 0, 1, 4})
	f.Add([]byte{4, 1, 1, 9})
	f.Add([]byte{7, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &stream{data}
		sel := s.selector()
		steps, err := element.Steps(sel)
		if err != nil {
			if adapters.KindOf(err) != adapters.Unsupported {
				t.Fatalf("%+v: %v", sel, err)
			}
			return
		}
		for _, name := range fuzzWords {
			for _, method := range []string{"Cluster", "Ldap", "Idp", "saml"} {
				for _, groups := range [][]adapters.Group{nil, {s.group()}, {s.group(), s.group()}} {
					x := adapters.Session{ID: s.word(), Username: name, Provider: adapters.Provider{Type: method}, Groups: groups}
					hit := slices.ContainsFunc(steps, func(st adapters.Selector) bool { return st.Match(x) })
					if want := sel.Match(x); hit && !want || want && !hit && method != "saml" {
						t.Fatalf("%+v: steps %+v match %+v: %t, the selector: %t", sel, steps, x, hit, want)
					}
				}
			}
		}
	})
}

func TestManyNamesAreListedOnce(t *testing.T) {
	c := start(elementtest.Options{})
	var names []string
	for i := range element.MaxSteps {
		names = append(names, fmt.Sprintf("user%d", i))
		c.in("Cluster", names[i])
	}
	kept := c.in("Cluster", strings.ToUpper(names[0]))
	res := complete(t, c.open(t), user(names...))
	if res.Count != len(names) || !c.alive(kept) || len(c.Sessions()) != 1 {
		t.Errorf("ended %d, left %v", res.Count, c.Sessions())
	}
	if c.Calls("ListAuthSessionsByUsername") != 0 || c.Calls("ListActiveAuthSessions") > 3 {
		t.Errorf("asked %v", c.methods())
	}
}
