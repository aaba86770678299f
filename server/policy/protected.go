package policy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// guard knows the names of protected people, in every form in which they are compared.
type guard struct {
	// everywhere counts at every target and as an id, ids as an id only, at at one target.
	everywhere, ids forms
	at              map[string]forms
	// people are those of at who are not the gateway's own account.
	people map[string]forms
}

type forms map[string]struct{}

func newGuard(everywhere []string, targets []Target) (guard, error) {
	g := guard{everywhere: forms{}, ids: forms{}, at: map[string]forms{}, people: map[string]forms{}}
	errs := []error{g.everywhere.add(everywhere...)}
	for _, t := range targets {
		people, here := forms{}, forms{}
		errs = append(errs, people.add(t.Protected...), here.add(t.Protected...))
		if t.Account != "" {
			errs = append(errs, here.add(t.Account), g.ids.add(t.Account))
		}
		g.at[t.Name], g.people[t.Name] = here, people
	}
	return g, errors.Join(errs...)
}

func (g guard) protects(target, name string) bool {
	if target == "" {
		return g.matches(g.ids, name)
	}
	return g.matches(g.at[target], name)
}

// matches reports whether a name is one of those here, or of those that count everywhere.
func (g guard) matches(here forms, name string) bool {
	if len(g.everywhere) == 0 && len(here) == 0 {
		return false
	}
	for _, form := range formsOf(name) {
		if g.everywhere.has(form) || here.has(form) {
			return true
		}
	}
	return false
}

func (g guard) any(target string) bool { return len(g.everywhere) > 0 || len(g.people[target]) > 0 }

func (f forms) has(form string) bool { _, ok := f[form]; return ok }

func (f forms) add(names ...string) error {
	for _, name := range names {
		all := formsOf(name)
		if len(all) == 0 {
			return fmt.Errorf("protected user %q: nothing is left of the name that could be compared", name)
		}
		for _, form := range all {
			f[form] = struct{}{}
		}
	}
	return nil
}

// formsOf returns the forms of a name, folded, of which two people's names must share none for them to be two people: the
// name itself; without its domain (user@domain, DOMAIN\user); and the same of the values that begin a distinguished name
// (uid=user,ou=people). It may return more than are the person's: whoever compares protects too much rather than too
// little.
func formsOf(name string) (all []string) {
	names := []string{fold(name)}
	for _, value := range firstRDN(names[0]) {
		names = append(names, fold(value))
	}
	for _, s := range names {
		for _, form := range []string{s, before(s, strings.IndexByte(s, '@')), before(s, strings.LastIndexByte(s, '@'))} {
			for _, form := range []string{form, after(form, strings.IndexByte(form, '\\')), after(form, strings.LastIndexByte(form, '\\'))} {
				if form = strings.TrimSpace(form); form != "" && !slices.Contains(all, form) {
					all = append(all, form)
				}
			}
		}
	}
	return all
}

func before(s string, i int) string {
	if i < 0 {
		return s
	}
	return s[:i]
}

func after(s string, i int) string { return s[i+1:] }

// fold makes equal what systems, or people, take for the same name: other cases, compatibility forms (fullwidth letters,
// ligatures), accents and other marks, invisible characters, and white space around and within. It goes beyond Unicode's
// own compatibility and case folding, because targets do: Active Directory ignores accents, and what a target writes in
// upper case has lost the dot, or the lack of a dot, of an i.
//
// Letters of other scripts that merely look the same (a Cyrillic а) are not folded.
func fold(s string) string {
	if plain(s) {
		return strings.ToLower(s)
	}
	s = norm.NFKD.String(strings.ToValidUTF8(s, ""))
	s = norm.NFKD.String(cases.Fold().String(strings.ToUpper(s)))
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError, unicode.In(r, ignored...):
			return -1
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// ignored are marks on letters, and what is not seen.
var ignored = []*unicode.RangeTable{
	unicode.Mn, unicode.Me, unicode.Cc, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point,
}

// plain reports whether s is printable ASCII without spaces: that has no forms but its cases.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// firstRDN returns the values of the first relative distinguished name of s (RFC 4514), unescaped; nil if s does not
// begin like a distinguished name. It forgives what is malformed: a target might, too.
func firstRDN(s string) (values []string) {
	for s != "" {
		i := strings.IndexAny(s, `=,;+\`)
		if i < 0 || s[i] != '=' {
			return values
		}
		value, rest, more := rdnValue(s[i+1:])
		values = append(values, value)
		if !more {
			return values
		}
		s = rest
	}
	return values
}

// rdnValue unescapes the value that s begins with. more says that another value of the same name follows in rest.
func rdnValue(s string) (value, rest string, more bool) {
	s = strings.TrimLeft(s, " ")
	var b strings.Builder
	encoded := strings.HasPrefix(s, "#")
	for i, quoted := 0, false; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+2 < len(s) && isHex(s[i+1:i+3]):
			pair, _ := hex.DecodeString(s[i+1 : i+3])
			b.Write(pair)
			i += 2
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == '"':
			quoted = !quoted
		case !quoted && c == '+':
			return decoded(b.String(), encoded), s[i+1:], true
		case !quoted && (c == ',' || c == ';'):
			return decoded(b.String(), encoded), "", false
		default:
			b.WriteByte(c)
		}
	}
	return decoded(b.String(), encoded), "", false
}

func isHex(s string) bool { _, err := hex.DecodeString(s); return err == nil }

// decoded returns what a value in the form "#" and hexadecimal digits stands for: a string in BER, whose first two
// bytes are its type and its length.
func decoded(value string, encoded bool) string {
	if b, err := hex.DecodeString(strings.TrimSpace(strings.TrimPrefix(value, "#"))); encoded && err == nil && len(b) > 2 {
		return string(b[2:])
	}
	return value
}
