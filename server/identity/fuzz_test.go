package identity_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/invalidation"
)

// FuzzUsername: whatever is written as an expression is refused or yields names; nothing panics, nothing is empty, and
// no error shows a person's attributes.
func FuzzUsername(f *testing.F) {
	for _, s := range []string{
		`user.id`, `user.email.split("@")[0]`, `[user.id, lower(user.attributes.uid)]`, `ldapDN(user.id)`, `user.email.extract("(.*)@")`,
		`has(user.email) ? user.email : ""`, `user.attributes.map(k, user.attributes[k])`, `int(user.attributes.uid) == 1 ? "a" : "b"`,
		`endsession.User{id: "x"}.id`, `"%s".format([user])`, `string(user.id.size())`, `[user == user ? "a" : "b"]`, `user.attributes.exists(k, k == "x") ? "" : k`,
	} {
		f.Add(s)
	}
	const private = "Zq8private"
	person := &invalidation.User{ID: "id", Email: "e@x", Attributes: map[string]string{"uid": private}}
	f.Fuzz(func(t *testing.T, expression string) {
		if strings.Contains(expression, private) {
			return
		}
		r, err := identity.New(identity.Options{Targets: []identity.Target{{Name: "a", Usernames: []identity.Username{{Name: expression}}}}})
		if err != nil {
			return
		}
		for _, u := range []*invalidation.User{person, {ID: "only"}} {
			res, err := r.Resolve(t.Context(), "a", invalidation.Selector{User: u})
			if err != nil {
				var e *invalidation.ResolveError
				if !errors.As(err, &e) || e.Reason != adapters.ReasonNoIdentity || strings.Contains(err.Error(), private) {
					t.Fatalf("%q: %v", expression, err)
				}
				continue
			}
			if err := res.Selector.Validate(); err != nil || !res.Selector.By.Has(adapters.ByUser) {
				t.Fatalf("%q: %+v, %v", expression, res.Selector, err)
			}
		}
	})
}

// FuzzResolve: whoever is asked for, by whatever letters, the resolved selector matches the sessions under the names that
// follow from these letters and from what the directory has under exactly this id, and no session under a name that only
// looks like one of them.
func FuzzResolve(f *testing.F) {
	for _, s := range []string{
		"alice", "Alice", " alice", "alice ", "*", "a*", `"alice"`, "a'b", "a/b", `a\\b`, "a,ou=x", "a\x00b", "a\nb", "\u202ealice", "zoe\u0308", "zoë", "аlice",
		"ａlice", strings.Repeat("x", 1000), "K", "ſ", "\ufeffalice", "user.id",
	} {
		f.Add(s, "", "", false)
		f.Add("alice", s, "", true)
		f.Add(s, s+"@corp.example", s, false)
	}
	directory, err := identity.ParseFile("d.yaml", []byte("users: [{id: alice, email: alice@corp.example}, {id: 'zoë', attributes: {uid: z1}}]\ngroups: {staff: [alice]}\n"))
	if err != nil {
		f.Fatal(err)
	}
	known := map[string][2]string{"alice": {"alice@corp.example", ""}, "zoë": {"", "z1"}}
	r, err := identity.New(identity.Options{Directory: directory, Targets: []identity.Target{{
		Name: "a", Type: kibana, Usernames: []identity.Username{
			{Name: `has(user.email) ? [user.id, user.email] : [user.id]`}, {Name: `"uid" in user.attributes ? "u:" + user.attributes.uid : "-" + user.id`},
		},
		Groups: map[string]identity.Group{"staff": {Directory: "staff"}},
	}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id, email, uid string, inGroup bool) {
		if id == "" || !utf8.ValidString(id) || !utf8.ValidString(email) || !utf8.ValidString(uid) || len(id)+len(email)+len(uid) > 3000 {
			return // refused before it gets here
		}
		u := &invalidation.User{ID: id, Email: email}
		if uid != "" {
			u.Attributes = map[string]string{"uid": uid}
		}
		sel := invalidation.Selector{User: u}
		if inGroup {
			sel.Group = "staff"
		}
		res, err := r.Resolve(t.Context(), "a", sel)
		var e *invalidation.ResolveError
		if err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
		has := known[id]
		if e != nil {
			if e.Reason == adapters.ReasonAmbiguousIdentity && (email == "" || email == has[0]) && (uid == "" || uid == has[1]) {
				t.Fatalf("ambiguous although nothing differs: %v", err)
			}
			return // sent nowhere
		}
		if res.Nothing {
			if id == "alice" {
				t.Fatal("alice is a member")
			}
			return
		}
		if inGroup && id != "alice" {
			t.Fatalf("%q was taken for a member", id)
		}
		if has[0] != "" && email != "" && email != has[0] || has[1] != "" && uid != "" && uid != has[1] {
			t.Fatalf("the directory says otherwise: %+v", res.Selector)
		}
		first := func(a, b string) string {
			if a != "" {
				return a
			}
			return b
		}
		email, uid = first(has[0], email), first(has[1], uid)
		want := map[string]bool{id: true, "-" + id: uid == "", "u:" + uid: uid != ""}
		if email != "" {
			want[email] = true
		}
		for _, name := range []string{id, email, uid, "-" + id, "u:" + uid} {
			for _, near := range []string{
				name, strings.ToUpper(name), strings.ToLower(name), strings.TrimSpace(name), name + " ", " " + name, name + "\x00", "*", "", `"` + name + `"`,
				strings.ReplaceAll(name, "ë", "e\u0308"), strings.ReplaceAll(name, "e\u0308", "ë"), strings.TrimRight(name, name[max(len(name)-1, 0):]),
			} {
				if got := res.Selector.Match(adapters.Session{Username: near}); got != want[near] {
					t.Fatalf("id %q email %q uid %q: the session of %q is matched: %v, want %v; %+v", id, email, uid, near, got, want[near], res.Selector)
				}
			}
		}
	})
}

// FuzzLDAPDN: no id changes the structure of the name it is put into.
func FuzzLDAPDN(f *testing.F) {
	for _, s := range []string{
		"alice", "a,ou=admins", `a\,b`, "a+b=c", `"quoted"`, "<a;b>", " lead", "trail ", "  ", " ", "#1234", "a#b", "nul\x00", "tab\tnew\nline", "Ä\u202e", `\`, `a\20`,
	} {
		f.Add(s)
	}
	r, err := identity.New(identity.Options{Targets: []identity.Target{{Name: "a", Usernames: []identity.Username{
		{Name: `"uid=" + ldapDN(user.id) + ",ou=people,dc=corp"`}, {Name: `"cn=" + ldapDN(user.id)`},
	}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if id == "" || !utf8.ValidString(id) || len(id) > 1024 {
			return
		}
		res, err := r.Resolve(t.Context(), "a", invalidation.Selector{User: &invalidation.User{ID: id}})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range [][][2]string{{{"uid", id}, {"ou", "people"}, {"dc", "corp"}}, {{"cn", id}}} {
			got, err := parseDN(res.Selector.Users[i].Name)
			if err != nil {
				t.Fatalf("%q: %q: %v", id, res.Selector.Users[i].Name, err)
			}
			if len(got) != len(want) {
				t.Fatalf("%q: %q has %d parts: %q", id, res.Selector.Users[i].Name, len(got), got)
			}
			for j := range want {
				if got[j] != want[j] {
					t.Errorf("%q: part %d: got %q, want %q", id, j, got[j], want[j])
				}
			}
		}
	})
}

// parseDN reads a distinguished name by the grammar of RFC 4514 section 3, for names whose parts have one attribute each.
func parseDN(s string) (parts [][2]string, err error) {
	const escaped = `"+,;<>`
	for {
		attribute, rest, ok := strings.Cut(s, "=")
		if !ok || attribute == "" || strings.Trim(attribute, "abcdefghijklmnopqrstuvwxyz") != "" {
			return nil, errors.New("no attribute type")
		}
		if strings.HasPrefix(rest, "#") {
			return nil, errors.New("a value in hexadecimal form")
		}
		var value []byte
		spaceAtEnd, i := false, 0
	scan:
		for ; i < len(rest); i++ {
			c := rest[i]
			switch {
			case c == ',':
				break scan
			case c == '\\' && i+1 < len(rest) && strings.IndexByte(escaped+` #=\`, rest[i+1]) >= 0:
				value = append(value, rest[i+1])
				spaceAtEnd = false
				i++
			case c == '\\':
				if i+2 >= len(rest) {
					return nil, errors.New("a lone backslash")
				}
				b, err := hex.DecodeString(rest[i+1 : i+3])
				if err != nil {
					return nil, err
				}
				value = append(value, b...)
				spaceAtEnd = false
				i += 2
			case strings.IndexByte(escaped, c) >= 0 || c == 0:
				return nil, errors.New("a special character unescaped")
			case c == ' ' && len(value) == 0:
				return nil, errors.New("a space at the beginning")
			default:
				value = append(value, c)
				spaceAtEnd = c == ' '
			}
		}
		if spaceAtEnd {
			return nil, errors.New("a space at the end")
		}
		parts = append(parts, [2]string{attribute, string(value)})
		if i == len(rest) {
			return parts, nil
		}
		s = rest[i+1:]
	}
}
