package policy_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/server/policy"
)

func TestProtects(t *testing.T) {
	p := mustNew(t, policy.Options{
		Protected: []string{"break-glass", "Straße", "ﬁona", `CORP\vault`, "ops@corp.example", "uid=dn-admin,ou=people,dc=corp", "Jos\u00e9", "Big  Boss", "smith, john", "@odd"},
		Targets: []policy.Target{
			{Name: "apm", Account: "svc-endsession", Protected: []string{"apm-only"}},
			{Name: "logs", Account: `CORP\Logs-Svc`},
		},
	})
	for _, x := range []struct {
		target, name string
		want         bool
	}{
		{"", "break-glass", true}, {"apm", "break-glass", true}, {"unknown", "break-glass", true},
		{"", "breakglass", false}, {"", "break-glass2", false}, {"", "xbreak-glass", false}, {"", "break", false}, {"", "", false},
		// Case.
		{"", "BREAK-Glass", true}, {"", "BREAK-GLASS", true},
		// Compatibility forms: fullwidth letters, a fullwidth hyphen, mathematical letters, the Kelvin sign, long s.
		{"", "ｂｒｅａｋ－ｇｌａｓｓ", true}, {"", "𝐛𝐫𝐞𝐚𝐤-𝕘𝕝𝕒𝕤𝕤", true}, {"", "𝐁𝐑𝐄𝐀𝐊-𝕘𝕝𝕒𝕤𝕤", true}, {"", "brea\u212a-glass", true}, {"", "break-gla\u017f\u017f", true},
		{"", "fiona", true}, {"", "FIONA", true}, {"", "\ufb01ona", true},
		// Marks, composed and not; a sharp s, small and capital; an i without its dot, a capital one with it.
		{"", "bre\u00e1k-glass", true}, {"", "brea\u0301k-glass", true}, {"", "jose", true}, {"", "jose\u0301", true}, {"", "JOS\u00c9", true},
		{"", "strasse", true}, {"", "STRASSE", true}, {"", "STRA\u1e9eE", true}, {"", "stra\u00dfe", true},
		{"", "f\u0131ona", true}, {"", "F\u0130ONA", true}, {"apm", "apm-only\u0327", true},
		// What is not seen: spaces around, a no-break space, zero width characters, a soft hyphen, NUL, other bytes.
		{"", "break-glass ", true}, {"", "\t break-glass\n", true}, {"", "break-glass\u00a0", true}, {"", "\u3000break-glass", true},
		{"", "break\u200b-glass", true}, {"", "break-\u00adglass", true}, {"", "\ufeffbreak-glass", true}, {"", "break-glass\x00", true},
		{"", "break-glass\xff", true}, {"", "break\ufe0f-glass", true}, {"", "break\u2060-glass", true}, {"", "\u202ebreak-glass", true}, {"", "break\u3164-glass", true},
		{"", "big boss", true}, {"", "big\u00a0 \tboss", true}, {"", "bigboss", false},
		// Domains.
		{"", "break-glass@corp.example", true}, {"", "break-glass@a@b", true}, {"", `CORP\break-glass`, true}, {"", `a\b\Break-Glass`, true},
		{"", `CORP\break-glass@corp.example`, true}, {"", "break-glass\uff20corp.example", true}, {"", "CORP\uff3cbreak-glass", true},
		{"", "break-glass @corp.example", true}, {"", "@corp.example", false}, {"", "@ODD", true}, {"", "@odd@corp.example", true}, {"", `CORP\`, false}, {"", "someone@break-glass", false},
		{"", `break-glass\someone`, false}, {"", "vault", true}, {"", "vault@other.example", true}, {"", "ops", true}, {"", `X\ops`, true},
		{"", "ops@corp.example", true}, {"", "dev@corp.example", false},
		// Distinguished names: the values of the first part, whatever its escapes.
		{"apm", "uid=break-glass,ou=people,dc=corp", true}, {"apm", "CN=Break-Glass", true}, {"apm", "uid = break-glass , ou=x", true},
		{"apm", `uid=break\-glass,ou=x`, true}, {"apm", `uid=break\2dglass,ou=x`, true}, {"apm", `uid=break\2Dglass\ ,ou=x`, true},
		{"apm", `uid="break-glass",ou=x`, true}, {"apm", "uid=#040b627265616b2d676c617373,ou=x", true},
		{"apm", "cn=someone+uid=break-glass,ou=x", true}, {"apm", `cn=some\+one+uid=break-glass,ou=x`, true}, {"apm", "uid=break-glass;ou=x", true},
		{"apm", `cn=jos\c3\a9,ou=x`, true}, {"apm", `cn=smith\, john,ou=x`, true}, {"apm", `cn="Smith, John",ou=x`, true},
		{"apm", "uid=break-glass@corp,ou=x", true}, {"apm", `cn=CORP\\break-glass,ou=x`, true}, {"apm", "2.5.4.3=break-glass", true},
		{"apm", "uid=someone,ou=break-glass", false}, {"apm", "ou=x,uid=break-glass", false}, {"", "dn-admin", true}, {"", "uid=DN-Admin,dc=other", true},
		{"apm", "uid=,ou=x", false}, {"apm", "uid=break-glas", false},
		// Letters of other scripts that look the same are others; so are letters that fold to nothing similar.
		{"", "br\u0435ak-glass", false}, {"", "br\u00f8ak-glass", false},
		// Accounts are protected where they are used, and as ids.
		{"apm", "svc-endsession", true}, {"", "SVC-endsession", true}, {"logs", "svc-endsession", false}, {"logs", "logs-svc@corp", true},
		// A target's own people are protected there.
		{"apm", "APM-only", true}, {"logs", "apm-only", false}, {"", "apm-only", false},
	} {
		if got := p.Protects(x.target, x.name); got != x.want {
			t.Errorf("Protects(%q, %q) = %v", x.target, x.name, got)
		}
	}
}

func TestProtectsAny(t *testing.T) {
	targets := []policy.Target{{Name: "apm", Account: "svc", Protected: []string{"root"}}, {Name: "logs", Account: "svc"}}
	p := mustNew(t, policy.Options{Targets: targets})
	for target, want := range map[string]bool{"apm": true, "logs": false, "unknown": false} {
		if got := p.ProtectsAny(target); got != want {
			t.Errorf("%s: got %v", target, got)
		}
	}
	// The gateway's own account is guarded against being named, and no person.
	if !p.Protects("apm", "SVC@corp") || p.ProtectsPerson("apm", "SVC@corp") || !p.ProtectsPerson("apm", "ROOT@corp") || p.ProtectsPerson("logs", "root") {
		t.Error("the account, or somebody else's protected user, is taken for a protected person, or one is not")
	}
	p = mustNew(t, policy.Options{Targets: targets, Protected: []string{"root"}})
	if !p.ProtectsAny("logs") || !p.ProtectsPerson("logs", "Root") {
		t.Error("people who are protected everywhere are not protected at a target")
	}
}

// FuzzProtected: whatever disguise a protected name wears on its way, it is recognised, and nothing panics.
func FuzzProtected(f *testing.F) {
	for _, seed := range []string{"break-glass", "jos\u00e9", "ﬁ", "ß", "\u0130\u0131", "a@b", `a\b`, `cn=a\,b+c="d"`, "#0401", "\u0345x", "\u1e9e", "\u13a0\uab70"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, err := policy.New(policy.Options{Protected: []string{name}, Targets: []policy.Target{{Name: "apm"}}})
		if err != nil {
			return // nothing is left of the name
		}
		disguises := []string{
			name, " " + name + "\u3000", name + "\u200b", name + "@corp.example", strings.ToUpper(name), strings.ToLower(name),
			strings.ToTitle(name),
		}
		if !strings.Contains(name, `\`) { // else the domain would end at the last of them
			disguises = append(disguises, `CORP\`+name)
		}
		if utf8.ValidString(name) && !strings.ContainsRune(name, 0) {
			disguises = append(disguises, "uid="+escape(name)+",ou=people", "cn=x+uid="+escape(name))
		}
		for _, d := range disguises {
			if !p.Protects("apm", d) || !p.Protects("", d) {
				t.Errorf("%q is protected, and %q is not", name, d)
			}
		}
	})
}

// escape writes a text as a value of a distinguished name, in the longest way there is.
func escape(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte('\\')
		b.WriteByte(digits[s[i]>>4])
		b.WriteByte(digits[s[i]&15])
	}
	return b.String()
}
