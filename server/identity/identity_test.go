package identity_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/invalidation"
)

const (
	byUser     = adapters.ByUser
	byProvider = adapters.ByProvider
	byGroup    = adapters.ByGroup
)

// The kinds of the examples, as far as identity sees them.
var (
	apm = adapters.Type{Kind: "bigiq", Criteria: []adapters.Criteria{
		byUser, byProvider, byGroup, byUser | byProvider, byUser | byGroup, byProvider | byGroup, byUser | byProvider | byGroup,
		adapters.BySessions, adapters.All,
	}}
	kibana = adapters.Type{
		Kind:           "kibana",
		Criteria:       []adapters.Criteria{byUser, byProvider, byUser | byProvider, adapters.All},
		ListsProviders: true,
		DefaultProviders: map[string][]adapters.Provider{
			"saml": {{Type: "saml"}}, "oidc": {{Type: "oidc"}}, "basic": {{Type: "basic"}},
		},
	}
	element = adapters.Type{
		Kind:     "element",
		Criteria: apm.Criteria,
		DefaultProviders: map[string][]adapters.Provider{
			"local": {{Type: "Cluster"}}, "ldap": {{Type: "Ldap"}}, "saml": {{Type: "Idp"}},
		},
	}
)

const people = `
users:
  - { id: alice, email: alice@corp.example, attributes: { uid: a17 } }
  - { id: bob, email: bob@corp.example }
  - { id: carol }
groups:
  staff: [alice, bob]
  mixed: [alice, dave]
  nobody: []
`

func options(t testing.TB) identity.Options {
	t.Helper()
	directory, err := identity.ParseFile("people.yaml", []byte(people))
	if err != nil {
		t.Fatal(err)
	}
	return identity.Options{
		Directory: directory,
		Targets: []identity.Target{
			{
				Name: "apm", Type: apm,
				Groups:    map[string]identity.Group{"vpn": {Groups: []adapters.Group{{Kind: "access_group", Name: "G1"}}}},
				Providers: map[string][]adapters.Provider{"saml/okta": {{Type: "access_group", Name: "G2"}}},
			},
			{
				Name: "kibana", Type: kibana,
				Usernames: []identity.Username{{Name: "user.email"}},
				Providers: map[string][]adapters.Provider{
					"saml/okta": {{Type: "saml", Name: "saml1"}},
					"ldap":      {{Type: "basic"}},
				},
				Groups: map[string]identity.Group{
					"staff": {Directory: "staff", MaxMembers: 2}, "few": {Directory: "staff", MaxMembers: 1},
					"mixed": {Directory: "mixed"}, "nobody": {Directory: "nobody"},
				},
			},
			{
				Name: "storage", Type: element,
				Usernames: []identity.Username{
					{Provider: "local", Name: "user.id"},
					{Provider: "ldap", Name: `"uid=" + ldapDN(user.id) + ",ou=people,dc=corp"`},
				},
				Groups: map[string]identity.Group{"admins": {Groups: []adapters.Group{{Kind: "access_group", Name: "administrator"}}}},
			},
		},
	}
}

func newResolver(t testing.TB, o identity.Options) *identity.Resolver {
	t.Helper()
	r, err := identity.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// text is what a resolution says, in one line.
func text(res invalidation.Resolution, err error) string {
	var e *invalidation.ResolveError
	if errors.As(err, &e) {
		kind := "failed"
		switch {
		case e.Unsupported:
			kind = "unsupported"
		case e.Retryable:
			kind = "retryable"
		}
		return fmt.Sprintf("%s %s: %s", kind, e.Reason, e.Message)
	}
	if err != nil {
		return "other error: " + err.Error()
	}
	if res.Nothing {
		return "nothing " + string(res.Warnings[0].Code)
	}
	b, _ := json.Marshal(res.Selector)
	s := string(b)
	for _, w := range res.Warnings {
		s += " " + string(w.Code)
	}
	return s
}

func user(id string) *invalidation.User { return &invalidation.User{ID: id} }

func via(key string) *invalidation.Provider {
	kind, name, _ := strings.Cut(key, "/")
	return &invalidation.Provider{Type: kind, Name: name}
}

func TestResolve(t *testing.T) {
	type sel = invalidation.Selector
	r := newResolver(t, options(t))
	for _, x := range []struct {
		name, target string
		sel          sel
		want         string // its beginning, unless it is JSON: then all of it
	}{
		{"UserID", "apm", sel{User: user("alice")}, `{"by":["user"],"users":[{"name":"alice"}]}`},
		{"UserFromDirectory", "kibana", sel{User: user("alice")}, `{"by":["user"],"users":[{"name":"alice@corp.example"}]}`},
		{"UserNotInDirectory", "kibana", sel{User: &invalidation.User{ID: "eve", Email: "eve@x"}}, `{"by":["user"],"users":[{"name":"eve@x"}]} NOT_IN_DIRECTORY`},
		{"ValuesAreExact", "apm", sel{User: user("  Alice*")}, `{"by":["user"],"users":[{"name":"  Alice*"}]} NOT_IN_DIRECTORY`},
		{"NoEmail", "kibana", sel{User: user("carol")}, `failed NO_IDENTITY: the user has no name at the target: usernames[0] cannot be evaluated`},
		{"GivenEmailAgrees", "kibana", sel{User: &invalidation.User{ID: "bob", Email: "bob@corp.example"}}, `{"by":["user"],"users":[{"name":"bob@corp.example"}]}`},
		{"GivenEmailFillsIn", "kibana", sel{User: &invalidation.User{ID: "carol", Email: "c@x"}}, `{"by":["user"],"users":[{"name":"c@x"}]}`},
		{"GivenEmailDiffers", "kibana", sel{User: &invalidation.User{ID: "alice", Email: "boss@corp.example"}}, `failed AMBIGUOUS_IDENTITY: the directory has another e-mail`},
		{"GivenEmailDiffersInCase", "kibana", sel{User: &invalidation.User{ID: "alice", Email: "Alice@corp.example"}}, `failed AMBIGUOUS_IDENTITY`},
		{"GivenAttributeDiffers", "apm", sel{User: &invalidation.User{ID: "alice", Attributes: map[string]string{"uid": "a18"}}}, `failed AMBIGUOUS_IDENTITY: the directory has another value for the user's attribute "uid"`},
		{"TargetUsernames", "kibana", sel{User: &invalidation.User{ID: "carol", TargetUsernames: map[string][]string{"kibana": {"x", "y", "x"}, "apm": {"z"}}}}, `{"by":["user"],"users":[{"name":"x"},{"name":"y"}]}`},
		{"TargetUsernamesOfAnother", "apm", sel{User: &invalidation.User{ID: "carol", TargetUsernames: map[string][]string{"kibana": {"x"}}}}, `{"by":["user"],"users":[{"name":"carol"}]}`},
		{"TargetUsernamesOverrideBound", "storage", sel{User: &invalidation.User{ID: "a", TargetUsernames: map[string][]string{"storage": {"x"}}}, Provider: via("saml")}, `{"by":["user","provider"],"users":[{"name":"x"}],"providers":[{"type":"Idp"}]}`},
		{"TargetUsernamesEmpty", "apm", sel{User: &invalidation.User{ID: "a", TargetUsernames: map[string][]string{"apm": {}}}}, `failed NO_IDENTITY: no name is given`},
		{"TargetUsernamesBlank", "apm", sel{User: &invalidation.User{ID: "a", TargetUsernames: map[string][]string{"apm": {"x", " "}}}}, `failed NO_IDENTITY: a name given`},

		{"Bound", "storage", sel{User: user("bob")}, `{"by":["user"],"users":[{"name":"bob","at":[{"type":"Cluster"}]},{"name":"uid=bob,ou=people,dc=corp","at":[{"type":"Ldap"}]}]}`},
		{"BoundWithinProvider", "storage", sel{User: user("bob"), Provider: via("ldap")}, `{"by":["user","provider"],"users":[{"name":"uid=bob,ou=people,dc=corp","at":[{"type":"Ldap"}]}],"providers":[{"type":"Ldap"}]}`},
		{"BoundToOthers", "storage", sel{User: user("bob"), Provider: via("saml")}, `failed NO_IDENTITY: the user has no name at the target: none of its usernames applies`},

		{"ProviderDefault", "kibana", sel{Provider: via("saml")}, `{"by":["provider"],"providers":[{"type":"saml"}]}`},
		{"ProviderMappedType", "kibana", sel{Provider: via("ldap")}, `{"by":["provider"],"providers":[{"type":"basic"}]}`},
		{"ProviderMappedName", "kibana", sel{Provider: via("saml/okta")}, `{"by":["provider"],"providers":[{"type":"saml","name":"saml1"}]}`},
		{"ProviderToBeListed", "kibana", sel{Provider: via("saml/other")}, `{"by":["provider"],"providers":[{"type":"saml","name":"other","must_be_listed":true}]}`},
		{"ProviderNameIsExact", "kibana", sel{Provider: via("saml/Okta")}, `{"by":["provider"],"providers":[{"type":"saml","name":"Okta","must_be_listed":true}]}`},
		{"NamedOfMappedType", "kibana", sel{Provider: via("ldap/corp")}, `unsupported UNKNOWN_PROVIDER`},
		{"NamedNotListed", "storage", sel{Provider: via("ldap/corp")}, `unsupported UNKNOWN_PROVIDER`},
		{"TypeUnknown", "kibana", sel{Provider: via("pki")}, `unsupported SELECTOR_UNSUPPORTED`},
		{"TypeOfMappedName", "apm", sel{Provider: via("saml")}, `unsupported SELECTOR_UNSUPPORTED`},
		{"NamedUnmapped", "apm", sel{Provider: via("saml/other")}, `unsupported UNKNOWN_PROVIDER`},
		{"UserAndProvider", "kibana", sel{User: user("bob"), Provider: via("saml/okta")}, `{"by":["user","provider"],"users":[{"name":"bob@corp.example"}],"providers":[{"type":"saml","name":"saml1"}]}`},

		{"Group", "apm", sel{Group: "vpn"}, `{"by":["group"],"groups":[{"kind":"access_group","name":"G1"}]}`},
		{"GroupIsExact", "apm", sel{Group: "VPN"}, `unsupported UNKNOWN_GROUP`},
		{"UserAndGroup", "apm", sel{User: user("alice"), Group: "vpn"}, `{"by":["user","group"],"users":[{"name":"alice"}],"groups":[{"kind":"access_group","name":"G1"}]}`},
		{"AllThree", "apm", sel{User: user("alice"), Provider: via("saml/okta"), Group: "vpn"}, `{"by":["user","provider","group"],"users":[{"name":"alice"}],"providers":[{"type":"access_group","name":"G2"}],"groups":[{"kind":"access_group","name":"G1"}]}`},
		{"DirectoryGroup", "kibana", sel{Group: "staff"}, `{"by":["user"],"users":[{"name":"alice@corp.example"},{"name":"bob@corp.example"}]}`},
		{"DirectoryGroupAtProvider", "kibana", sel{Group: "staff", Provider: via("saml/okta")}, `{"by":["user","provider"],"users":[{"name":"alice@corp.example"},{"name":"bob@corp.example"}],"providers":[{"type":"saml","name":"saml1"}]}`},
		{"Member", "kibana", sel{User: user("bob"), Group: "staff"}, `{"by":["user"],"users":[{"name":"bob@corp.example"}]}`},
		{"MemberOfLargeGroup", "kibana", sel{User: user("bob"), Group: "few"}, `{"by":["user"],"users":[{"name":"bob@corp.example"}]}`},
		{"MemberAtProvider", "kibana", sel{User: user("bob"), Group: "staff", Provider: via("saml")}, `{"by":["user","provider"],"users":[{"name":"bob@corp.example"}],"providers":[{"type":"saml"}]}`},
		{"MemberByGivenName", "kibana", sel{User: &invalidation.User{ID: "bob", TargetUsernames: map[string][]string{"kibana": {"b"}}}, Group: "staff"}, `{"by":["user"],"users":[{"name":"b"}]}`},
		{"NotAMember", "kibana", sel{User: user("carol"), Group: "staff"}, `nothing NOTHING_CAN_MATCH`},
		{"NotAMemberByGivenName", "kibana", sel{User: &invalidation.User{ID: "carol", TargetUsernames: map[string][]string{"kibana": {"b"}}}, Group: "staff"}, `nothing NOTHING_CAN_MATCH`},
		{"MembershipIsExact", "kibana", sel{User: user("Bob"), Group: "staff"}, `nothing NOTHING_CAN_MATCH`},
		{"TooManyMembers", "kibana", sel{Group: "few"}, `failed TOO_MANY_MEMBERS: the group has more than 1 members`},
		{"MemberWithoutName", "kibana", sel{Group: "mixed"}, `failed NO_IDENTITY: member "dave" of the group`},
		{"EmptyGroup", "kibana", sel{Group: "nobody"}, `nothing NOTHING_CAN_MATCH`},
		{"DirectoryGroupAtUnknownProvider", "kibana", sel{Group: "staff", Provider: via("pki")}, `unsupported SELECTOR_UNSUPPORTED`},

		{"All", "apm", sel{All: true}, `{"by":["all"]}`},
		{"Sessions", "apm", sel{Sessions: []invalidation.SessionRef{{Target: "apm", Device: "d", ID: "1"}, {Target: "storage", ID: "2"}, {Target: "apm", Device: "d", ID: "1"}, {Target: "apm", ID: "1"}}}, `{"by":["sessions"],"sessions":[{"device":"d","id":"1"},{"id":"1"}]}`},
		{"SessionsElsewhere", "kibana", sel{Sessions: []invalidation.SessionRef{{Target: "apm", ID: "1"}}}, `nothing NOTHING_CAN_MATCH`},
		{"Empty", "apm", sel{}, `failed INVALID_ARGUMENT`},
		{"AllAndUser", "apm", sel{All: true, User: user("alice")}, `failed INVALID_ARGUMENT`},
		{"NoSuchTarget", "gone", sel{All: true}, `failed TARGET_REMOVED`},
	} {
		t.Run(x.name, func(t *testing.T) {
			got := text(r.Resolve(t.Context(), x.target, x.sel))
			if got != x.want && (strings.HasPrefix(x.want, "{") || !strings.HasPrefix(got, x.want)) {
				t.Errorf("resolve %+v\n got %s\nwant %s", x.sel, got, x.want)
			}
		})
	}
}

func TestNoGroupsAtAll(t *testing.T) {
	r := newResolver(t, identity.Options{Targets: []identity.Target{{Name: "a", Type: apm}}})
	if got, want := text(r.Resolve(t.Context(), "a", invalidation.Selector{Group: "g"})), "unsupported SELECTOR_UNSUPPORTED"; !strings.HasPrefix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestDefaultsWithNames: a kind whose default is one provider has no other of that type to look for.
func TestDefaultsWithNames(t *testing.T) {
	r := newResolver(t, identity.Options{Targets: []identity.Target{{Name: "a", Type: adapters.Type{
		ListsProviders:   true,
		DefaultProviders: map[string][]adapters.Provider{"local": {{Type: "L", Name: "only"}}},
	}}}})
	if got, want := text(r.Resolve(t.Context(), "a", invalidation.Selector{Provider: via("local/other")})), "unsupported UNKNOWN_PROVIDER"; !strings.HasPrefix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFailMissing(t *testing.T) {
	o := options(t)
	o.FailMissing = true
	r := newResolver(t, o)
	for id, want := range map[string]string{
		"eve":  "failed NO_IDENTITY: the directory does not know the user",
		"dave": `{"by":["user"],"users":[{"name":"dave"}]}`, // known as a member
	} {
		if got := text(r.Resolve(t.Context(), "apm", invalidation.Selector{User: user(id)})); got != want {
			t.Errorf("%s: got %s, want %s", id, got, want)
		}
	}
}

func TestUsernames(t *testing.T) {
	alice := &invalidation.User{ID: "Alice", Email: "Alice@Corp.Example", Attributes: map[string]string{"uid": "a17", "blank": " ", "dn": "CN=Ä"}}
	for _, x := range []struct {
		expression string
		user       *invalidation.User
		want       []string // nil: NO_IDENTITY
	}{
		{`user.id`, alice, []string{"Alice"}},
		{`user.attributes.uid`, alice, []string{"a17"}},
		{`user.attributes["uid"] + "@x"`, alice, []string{"a17@x"}},
		{`[user.id, user.email]`, alice, []string{"Alice", "Alice@Corp.Example"}},
		{`[user.id, user.id]`, alice, []string{"Alice"}},
		{`[user.id, user.id.lowerAscii()].map(x, x + "!")`, alice, []string{"Alice!", "alice!"}},
		{`user.email.lowerAscii()`, alice, []string{"alice@corp.example"}},
		{`lower(user.attributes.dn)`, alice, []string{"cn=ä"}},
		{`user.email.split("@")[0]`, alice, []string{"Alice"}},
		{`user.email.split("@")[2]`, alice, nil},
		{`user.email.extract("^([^@]+)@Corp[.]Example$")`, alice, []string{"Alice"}},
		{`user.email.extract("[a-z]+")`, alice, []string{"lice"}},
		{`user.email.extract("^([^@]+)@corp[.]example$")`, alice, nil},
		{`user.email.extract("(x)?")`, alice, nil},
		{`has(user.email) ? user.email : user.id`, alice, []string{"Alice@Corp.Example"}},
		{`has(user.email) ? user.email : user.id`, user("bob"), []string{"bob"}},
		{`has(user.attributes.uid) ? user.attributes.uid : user.id`, user("bob"), []string{"bob"}},
		{`has(user.attributes) ? user.attributes.uid : user.id`, user("bob"), []string{"bob"}},
		{`"uid" in user.attributes ? "yes" : "no"`, user("bob"), []string{"no"}},
		{`user.email == "" ? "none" : "some"`, user("bob"), nil},
		{`user.email`, user("bob"), nil},
		{`"x" + user.email`, user("bob"), nil},
		{`user.attributes.uid`, user("bob"), nil},
		{`user.attributes.other`, alice, nil},
		{`user.attributes.blank`, alice, nil},
		{`[user.id, user.attributes.blank]`, alice, nil},
		{`""`, alice, nil},
		{`has(user.email) ? [user.email] : [user.id].filter(x, false)`, user("bob"), nil},
		{`"abcdefgh".split("").map(x, "abcdefgh".split("").map(y, user.id.replace("A", "` + strings.Repeat("long", 500) + `")).join("")).join("")`, alice, nil},
		{`"` + strings.Repeat("x,", 100) + `x".split(",")`, alice, nil},
		{`"` + strings.Repeat("x,", 99) + `x".split(",")`, alice, []string{"x"}},
		{`user.attributes.long`, &invalidation.User{ID: "a", Attributes: map[string]string{"long": strings.Repeat("x", 4097)}}, nil},
		{`user.attributes.long`, &invalidation.User{ID: "a", Attributes: map[string]string{"long": "\xff"}}, nil},
		{`user.attributes.uid + "\x00x"`, alice, nil},
		// It costs too much.
		{`user.id.lowerAscii()` + strings.Repeat(`.replace("a", "`+strings.Repeat("a", 60)+`")`, 4) + `.size() > 0 ? "a" : "b"`, alice, nil},
		{`"` + strings.Repeat("x", 1000) + `".split("").map(x, "` + strings.Repeat("x", 1000) + `".split("").map(y, y).size()).size() > 1 ? "a" : "b"`, alice, nil},
	} {
		t.Run(x.expression[:min(len(x.expression), 60)], func(t *testing.T) {
			r := newResolver(t, identity.Options{Targets: []identity.Target{{Name: "a", Type: apm, Usernames: []identity.Username{{Name: x.expression}}}}})
			res, err := r.Resolve(t.Context(), "a", invalidation.Selector{User: x.user})
			var got []string
			for _, u := range res.Selector.Users {
				got = append(got, u.Name)
			}
			if !slices.Equal(got, x.want) {
				t.Errorf("got %q (%v), want %q", got, err, x.want)
			}
			if x.want == nil && !strings.HasPrefix(text(res, err), "failed NO_IDENTITY: the user has no name at the target: usernames[0] ") {
				t.Errorf("got %s, want NO_IDENTITY", text(res, err))
			}
		})
	}
}

// people in a directory may have several values of an attribute; which is meant is not guessed.
type crowd struct {
	broken
	people map[string]identity.Person
}

func (c crowd) Person(_ context.Context, id string) (identity.Person, bool, error) {
	p, ok := c.people[id]
	return p, ok, nil
}

func TestSeveralValues(t *testing.T) {
	directory := crowd{people: map[string]identity.Person{
		"alice": {ID: "alice", Emails: []string{"a@x", "b@x"}, Attributes: map[string]string{"uid": "a17"}, Several: map[string][]string{"dept": {"7", "8"}}},
		"bob":   {ID: "bob", Email: "bob@x", Attributes: map[string]string{"dept": "7"}},
		"CAROL": {ID: "carol"}, // the operator ignores case
	}}
	const ambiguous = "failed AMBIGUOUS_IDENTITY: the user has no name at the target: usernames[0] needs an attribute or the e-mail address, of which"
	for _, x := range []struct {
		expression string
		user       *invalidation.User
		want       string // names, or the beginning of the failure
	}{
		{`user.id`, user("alice"), "alice"},
		{`user.id`, user("CAROL"), "carol"},
		{`user.email`, user("bob"), "bob@x"},
		{`user.email`, user("alice"), ambiguous},
		{`has(user.email) ? user.email : user.id`, user("alice"), ambiguous},
		{`user.emails`, user("alice"), "a@x b@x"},
		{`user.emails`, user("bob"), "bob@x"},
		{`user.emails`, user("CAROL"), "failed NO_IDENTITY"},
		{`has(user.emails) ? user.emails : [user.id]`, user("CAROL"), "carol"},
		{`user.attributes.uid`, user("alice"), "a17"},
		{`user.attributes.dept`, user("bob"), "7"},
		{`user.attributes.dept`, user("alice"), ambiguous},
		{`has(user.attributes.dept) ? user.attributes.dept : user.id`, user("alice"), ambiguous},
		{`"dept" in user.attributes ? "yes" : "no"`, user("alice"), ambiguous},
		{`user.attributes.map(k, user.attributes[k])`, user("alice"), ambiguous},
		{`has(user.attributes) ? user.attributes["dept"] : user.id`, user("alice"), ambiguous},
		{`user.values.dept`, user("alice"), "7 8"},
		{`user.values.dept.map(d, d + "-" + user.id)`, user("alice"), "7-alice 8-alice"},
		{`user.values.uid`, user("alice"), "a17"},
		{`user.values.dept`, user("bob"), "7"},
		{`user.values.uid`, user("bob"), "failed NO_IDENTITY"},
		// The caller says which, and the directory knows it.
		{`user.email`, &invalidation.User{ID: "alice", Email: "b@x"}, "b@x"},
		{`user.email`, &invalidation.User{ID: "alice", Email: "c@x"}, "failed AMBIGUOUS_IDENTITY: the directory has another e-mail"},
		{`user.attributes.dept`, &invalidation.User{ID: "alice", Attributes: map[string]string{"dept": "8"}}, "8"},
		{`user.values.dept`, &invalidation.User{ID: "alice", Attributes: map[string]string{"dept": "8"}}, "7 8"},
		{`user.id`, &invalidation.User{ID: "alice", Attributes: map[string]string{"dept": "9"}}, `failed AMBIGUOUS_IDENTITY: the directory has another value for the user's attribute "dept"`},
		{`user.attributes.city`, &invalidation.User{ID: "alice", Attributes: map[string]string{"city": "Bonn"}}, "Bonn"},
	} {
		r := newResolver(t, identity.Options{Directory: directory, Targets: []identity.Target{{Name: "a", Type: apm, Usernames: []identity.Username{{Name: x.expression}}}}})
		res, err := r.Resolve(t.Context(), "a", invalidation.Selector{User: x.user})
		var names []string
		for _, u := range res.Selector.Users {
			names = append(names, u.Name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = text(res, err)
		}
		if got != x.want && (err == nil || !strings.HasPrefix(got, x.want)) {
			t.Errorf("%s of %s: got %s, want %s", x.expression, x.user.ID, got, x.want)
		}
	}
}

// TestEveryEntryMustName: half of a person's names would leave sessions alive and look like success.
func TestEveryEntryMustName(t *testing.T) {
	r := newResolver(t, identity.Options{Targets: []identity.Target{{Name: "a", Type: apm, Usernames: []identity.Username{{Name: "user.id"}, {Name: "user.email"}}}}})
	got := text(r.Resolve(t.Context(), "a", invalidation.Selector{User: user("bob")}))
	if want := "failed NO_IDENTITY: the user has no name at the target: usernames[1] cannot"; !strings.HasPrefix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNewReportsEverything(t *testing.T) {
	o := options(t)
	username := func(provider, expression string) identity.Username {
		return identity.Username{Provider: provider, Name: expression, Where: "c.yaml:7: targets[0].usernames[0]"}
	}
	for _, x := range []struct {
		name string
		u    identity.Username
		want string
	}{
		{"Field", username("", "user.emial"), `c.yaml:7: targets[0].usernames[0]: undefined field 'emial' (column 5 of "user.emial")`},
		{"Variable", username("", "caller.name"), `undeclared reference to 'caller'`},
		{"Syntax", username("", "user."), `Syntax error`},
		{"User", username("", "user"), `yields endsession.User, want a text or a list of texts ("user")`},
		{"Number", username("", "1"), `yields int, want a text`},
		{"Attributes", username("", "user.attributes"), `yields map(string, string), want a text`},
		{"Dyn", username("", "dyn(user.id)"), `yields dyn, want a text`},
		{"DynList", username("", "[user.id, 1]"), `yields list(dyn), want a text`},
		{"EmptyList", username("", "[]"), `want a text`},
		{"Comparison", username("", "user.id == 1"), `no matching overload`},
		{"Regexp", username("", `user.id.matches("(") ? "a" : "b"`), `invalid matches argument`},
		{"Pattern", username("", `user.id.extract("(")`), `extract: error parsing regexp`},
		{"Groups", username("", `user.id.extract("(a)(b)")`), `at most one group`},
		{"WrittenOut", username("", `user.id.extract(user.email)`), `written out`},
		{"Nested", username("", `[1].map(a, [1].map(b, [1].map(c, "x").join()).join()).join()`), `comprehension exceeds nesting limit`},
		{"Long", username("", `"`+strings.Repeat("x", 5000)+`"`), `size exceeds limit`},
		{"Provider", username("saml", "user.id"), ``},
		{"UnknownProvider", username("pki", "user.id"), `c.yaml:7: targets[0].usernames[0]: provider "pki": the target maps no such provider`},
		{"UnmappedName", username("saml/other", "user.id"), `provider "saml/other": the target maps no such provider`},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := identity.New(identity.Options{Targets: []identity.Target{{Name: "a", Type: kibana, Usernames: []identity.Username{x.u}}}})
			if x.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want %s", err, x.want)
			}
		})
	}
	t.Run("AtOnce", func(t *testing.T) {
		o := o
		o.Targets = append(slices.Clone(o.Targets), identity.Target{
			Name: "apm", Type: kibana,
			Usernames: []identity.Username{{Name: "user.x", Where: "f:1"}, {Name: "secret", Hidden: true, Where: "f:2"}, {Provider: "pki", Name: "1", Where: "f:3"}},
			Groups:    map[string]identity.Group{"g": {Directory: "none", Where: "f:4"}, "h": {Where: "f:5"}},
		})
		_, err := identity.New(o)
		want := `f:1: undefined field 'x' (column 5 of "user.x")
f:2: the expression does not compile (more is not said because it comes from a variable or a file)
f:3: provider "pki": the target maps no such provider
f:3: yields int, want a text or a list of texts ("1")
f:4: the directory has no group "none"
f:5: the group is mapped to nothing
target apm: configured twice`
		if err == nil || err.Error() != want {
			t.Errorf("got\n%v\nwant\n%s", err, want)
		}
	})
	t.Run("NoDirectory", func(t *testing.T) {
		o := o
		o.Directory = nil
		if _, err := identity.New(o); err == nil || !strings.Contains(err.Error(), "there is no directory") {
			t.Errorf("got %v", err)
		}
	})
}

// broken is a directory with a fault.
type broken struct{ err error }

func (b broken) Person(context.Context, string) (identity.Person, bool, error) {
	return identity.Person{}, false, b.err
}
func (b broken) Members(context.Context, string, int) ([]identity.Person, error) { return nil, b.err }
func (b broken) IsMember(context.Context, string, string) (bool, error)          { return false, b.err }

func TestDirectoryErrors(t *testing.T) {
	for _, x := range []struct {
		err  error
		want string
	}{
		{errors.New("dial: refused"), "retryable DIRECTORY_UNAVAILABLE: the directory does not answer"},
		{context.DeadlineExceeded, "retryable DIRECTORY_UNAVAILABLE: the directory does not answer"},
		{fmt.Errorf("search: %w", identity.ErrUnknownGroup), "failed UNKNOWN_GROUP: the directory does not know the group"},
		{fmt.Errorf("search: %w", identity.ErrAmbiguous), "failed AMBIGUOUS_IDENTITY: more than one entry of the directory fits the user"},
		{identity.ErrAmbiguousGroup, "failed UNKNOWN_GROUP: more than one group of the directory has the group's name"},
		{identity.ErrUnknownMember, "failed NO_IDENTITY: the directory does not know who one of the group's members is"},
		{identity.ErrTooDeep, "failed TOO_MANY_MEMBERS: groups within the group are nested more deeply than the directory may be searched"},
	} {
		o := options(t)
		o.Directory = broken{x.err}
		r := newResolver(t, o)
		for _, sel := range []invalidation.Selector{{Group: "staff"}, {User: user("alice"), Group: "staff"}, {User: user("alice")}} {
			res, err := r.Resolve(t.Context(), "kibana", sel)
			if got := text(res, err); got != x.want {
				t.Errorf("%v at %s: got %s, want %s", x.err, sel.Criteria(), got, x.want)
			}
			if strings.HasPrefix(x.want, "retryable") && !errors.Is(err, x.err) {
				t.Errorf("the cause is lost: %v", err)
			}
		}
		// What needs no directory goes on without it.
		given := &invalidation.User{ID: "alice", TargetUsernames: map[string][]string{"kibana": {"a"}}}
		if got, want := text(r.Resolve(t.Context(), "kibana", invalidation.Selector{User: given})), `{"by":["user"],"users":[{"name":"a"}]}`; got != want {
			t.Errorf("given names: got %s, want %s", got, want)
		}
	}
}

func TestSupported(t *testing.T) {
	o := options(t)
	o.Targets = append(o.Targets, identity.Target{Name: "plain", Type: apm})
	r := newResolver(t, o)
	for target, want := range map[string]string{
		"apm":     "user provider user+provider group user+group provider+group user+provider+group sessions all",
		"kibana":  "user provider user+provider group user+group provider+group user+provider+group all",
		"storage": "user provider user+provider group user+group provider+group user+provider+group sessions all",
		"plain":   "user sessions all",
		"gone":    "",
	} {
		var got []string
		for _, c := range r.Supported(target) {
			got = append(got, c.String())
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: got %s, want %s", target, s, want)
		}
	}
}

// TestExactlyAsAsked resolves every combination of criteria against a model in which everybody is signed in everywhere:
// what the resolved selector matches is what was asked for, no more and no less.
func TestExactlyAsAsked(t *testing.T) {
	ids := []string{"alice", "bob", "Alice", "alice ", "carol", "x-alice", "eve"}
	apiProviders := []string{"local", "ldap", "saml", "saml/okta", "saml/Okta", "ldap/corp"}
	own := map[string]adapters.Provider{
		"local": {Type: "L", Name: "l1"}, "ldap": {Type: "D", Name: "d1"}, "ldap/corp": {Type: "D", Name: "corp"},
		"saml": {Type: "S", Name: "s0"}, "saml/okta": {Type: "S", Name: "s1"}, "saml/Okta": {Type: "S", Name: "s2"},
	}
	members := map[string][]string{"team": {"alice", "bob", "x-alice"}}
	var file strings.Builder
	file.WriteString("groups: {team: [alice, bob, x-alice]}\n")
	directory, err := identity.ParseFile("d.yaml", []byte(file.String()))
	if err != nil {
		t.Fatal(err)
	}
	r := newResolver(t, identity.Options{Directory: directory, Targets: []identity.Target{{
		Name: "t", Type: adapters.Type{DefaultProviders: map[string][]adapters.Provider{"local": {{Type: "L"}}, "saml": {{Type: "S"}}}},
		Usernames: []identity.Username{{Name: `"n:" + user.id`}, {Provider: "ldap", Name: `"cn=" + ldapDN(user.id)`}},
		Providers: map[string][]adapters.Provider{
			"ldap": {{Type: "D"}}, "ldap/corp": {own["ldap/corp"]}, "saml/okta": {own["saml/okta"]}, "saml/Okta": {own["saml/Okta"]},
		},
		Groups: map[string]identity.Group{"native": {Groups: []adapters.Group{{Kind: "k", Name: "g"}}}, "team": {Directory: "team"}},
	}}})

	type session struct {
		adapters.Session
		person, provider string
		native           bool
	}
	var sessions []session
	for _, id := range ids {
		for _, p := range apiProviders {
			for _, native := range []bool{false, true} {
				for _, dn := range []bool{false, true} {
					s := session{person: id, provider: p, native: native}
					s.Username, s.Provider = "n:"+id, own[p]
					if dn {
						// At the other providers this is somebody else, who happens to be called so.
						s.Username = "cn=" + strings.ReplaceAll(id, "alice ", `alice\ `)
						if !strings.HasPrefix(p, "ldap") {
							s.person = "namesake of " + id
						}
					}
					s.Groups = []adapters.Group{{Kind: "k", Name: "other"}}
					if native {
						s.Groups = append(s.Groups, adapters.Group{Kind: "k", Name: "g"})
					}
					sessions = append(sessions, s)
				}
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(list []string) string { return list[random.IntN(len(list))] }
	for range 3000 {
		var sel invalidation.Selector
		if random.IntN(3) > 0 {
			sel.User = user(pick(ids))
		}
		if random.IntN(2) > 0 {
			sel.Provider = via(pick(apiProviders))
		}
		if random.IntN(2) > 0 {
			sel.Group = pick([]string{"native", "team"})
		}
		if sel.Criteria() == 0 {
			continue
		}
		res, err := r.Resolve(t.Context(), "t", sel)
		if err != nil {
			t.Fatalf("%+v: %v", sel, err)
		}
		if !res.Nothing {
			if err := res.Selector.Validate(); err != nil {
				t.Fatalf("%+v: %v", sel, err)
			}
		}
		for _, s := range sessions {
			asked := (sel.User == nil || sel.User.ID == s.person) &&
				(sel.Provider == nil || sel.Provider.String() == s.provider || sel.Provider.Name == "" && strings.HasPrefix(s.provider, sel.Provider.Type+"/")) &&
				(sel.Group != "native" || s.native) &&
				(sel.Group != "team" || slices.Contains(members["team"], s.person))
			if got := !res.Nothing && res.Selector.Match(s.Session); got != asked {
				t.Fatalf("user %+v provider %v group %q\nsession of %q at %s: %+v\nmatched: %v, asked for: %v\nselector %+v",
					sel.User, sel.Provider, sel.Group, s.person, s.provider, s.Session, got, asked, res.Selector)
			}
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	r := newResolver(t, options(t))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				res, err := r.Resolve(t.Context(), "kibana", invalidation.Selector{Group: "staff", Provider: via("saml/okta")})
				if err != nil {
					t.Error(err)
					return
				}
				// What a caller does with its answer is its own business.
				res.Selector.Providers[0].Name = "changed"
				res.Selector.Users[0].Name = "changed"
			}
		})
	}
	wg.Wait()
	if got := text(r.Resolve(t.Context(), "kibana", invalidation.Selector{Provider: via("saml/okta")})); !strings.Contains(got, "saml1") {
		t.Errorf("an answer reached into the resolver: %s", got)
	}
}
