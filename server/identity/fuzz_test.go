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
