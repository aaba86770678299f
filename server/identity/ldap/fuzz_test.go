package ldap_test

import (
	"strings"
	"testing"
	"unicode"

	ber "github.com/go-asn1-ber/asn1-ber"
	goldap "github.com/go-ldap/ldap/v3"

	"github.com/endsession/endsession/server/identity/ldap"
)

var odd = []string{
	"alice", "*", "a*b", "(uid=*)", "alice)(|(uid=*", `\`, `\2a`, `\5c2a`, "\x00", "a\x00b", " lead", "trail ", "o'brien", `"quoted"`, "Ä\u0308", "\u202eecila",
	"\n", "é", "e\u0301", "\ufffd", "\xff\xfe", "a=b", "&", "|", "!", "~=", ":dn:=", strings.Repeat("x", 1024), "ＡＬＩＣＥ", "ſ", "K",
}

// FuzzFilter: a value is a value within a filter, whatever it is made of: the filter has the parts it was given, each is a
// comparison with exactly these bytes, and nothing is a pattern.
func FuzzFilter(f *testing.F) {
	for _, a := range odd {
		f.Add(a, "bob")
		f.Add("bob", a)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		filter := ldap.Both("(objectClass=person)", ldap.AnyOf("uid", []string{a, b}))
		packet, err := goldap.CompileFilter(filter)
		if err != nil {
			t.Fatalf("%q, %q: %s: %v", a, b, filter, err)
		}
		if packet.Tag != goldap.FilterAnd || len(packet.Children) != 2 {
			t.Fatalf("%q, %q: %s is not two filters", a, b, filter)
		}
		equals(t, packet.Children[0], "objectClass", "person")
		either := packet.Children[1]
		if either.Tag != goldap.FilterOr || len(either.Children) != 2 {
			t.Fatalf("%q, %q: %s is not two values", a, b, filter)
		}
		equals(t, either.Children[0], "uid", a)
		equals(t, either.Children[1], "uid", b)
		one, err := goldap.CompileFilter(ldap.Equals("cn", a))
		if err != nil {
			t.Fatal(err)
		}
		equals(t, one, "cn", a)
	})
}

func equals(t *testing.T, p *ber.Packet, attribute, value string) {
	t.Helper()
	if p.Tag != goldap.FilterEqualityMatch || len(p.Children) != 2 {
		t.Fatalf("%q: %s instead of a comparison", value, goldap.FilterMap[uint64(p.Tag)])
	}
	// What would be sent.
	if a, v := p.Children[0].Data.String(), p.Children[1].Data.String(); a != attribute || v != value {
		t.Fatalf("compares %q with %q, want %q with %q", a, v, attribute, value)
	}
}

// FuzzMatch: an entry is taken for the one asked for only if it has the id byte for byte, or, if the operator says so, but
// for case; then the answer is the directory's spelling.
func FuzzMatch(f *testing.F) {
	for _, a := range odd {
		f.Add(a, a, true)
		f.Add(a, " "+a, true)
		f.Add(strings.ToUpper(a), a, true)
		f.Add(a, strings.ToTitle(a), false)
	}
	f.Fuzz(func(t *testing.T, own, id string, ignoreCase bool) {
		spelling, n := ldap.Match(ignoreCase, []string{own}, id)
		switch {
		case own == id && (n != 1 || spelling != id):
			t.Fatalf("%q is not taken for itself", id)
		case n == 0 || own == id:
			return
		case !ignoreCase:
			t.Fatalf("%q is taken for %q", own, id)
		case spelling != own:
			t.Fatalf("%q is spelt %q", own, spelling)
		}
		a, b := []rune(own), []rune(id)
		if len(a) != len(b) {
			t.Fatalf("%q is taken for %q, which has other letters", own, id)
		}
		for i := range a {
			// One letter, in one case or the other.
			folds := a[i] == b[i]
			for r := unicode.SimpleFold(a[i]); r != a[i]; r = unicode.SimpleFold(r) {
				folds = folds || r == b[i]
			}
			if !folds {
				t.Fatalf("%q is taken for %q: %q is not %q", own, id, a[i], b[i])
			}
		}
	})
}
