package adaptertest

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
)

// awkward are values that quoting, encoding, filters, paths, terminals and people take for others.
var awkward = []string{
	"*", "a*", "al?ce", "%", "_", `"`, `'`, "`", `\`, "/", "//", "../alice", "./alice", "alice/", "alice;x", "alice#x", "alice?x=y",
	"alice\x00", "\x00alice", "al\x00ice", "alice\n", "alice\r\nbob", "alice\tbob", "alice\x7f", "alice\x1b[2J", "alice\u0085",
	`" or ""="`, `alice' or 'a' eq 'a`, "alice+or+bob", `alice","username":"bob`, `alice"}],"x":[{"y":"`, `\u0061lice`, `\"alice`, "%61lice", "%00", "&#97;lice",
	"alice%2Fbob", "$filter=alice", "${alice}", "{{alice}}", "$(alice)", "null", "true", "[]", "{}", "-1", "1e3", "NaN",
	"alice\u200f", "\u202eecila", "\u2066alice\u2069", "al\u200bice", "\ufeffalice", "alice\u00a0", "\u00a0", "alice\u2028", "alice\ufffd", "\ufffd",
	"a\u0308lice", "\u00e4lice", "\u00c4lice", "\u0130lice", "\u0131lice", "\u017f", "\u212a", "\u0430lice", "\uff41lice", "\u1e9e", "\U0001f600", "\U000e0061lice",
	strings.Repeat("a", 1000), strings.Repeat("\u0308", 1000), strings.Repeat("\U0001f600", 250), strings.Repeat("'", 1000),
	"alice\xff", "\xff", "\xc0\xaf", "\xed\xa0\x80", "alice\xc3", "\xf8\x88\x80\x80\x80",
}

// lookalikes are what a value may be taken for.
func lookalikes(v string) []string {
	out := []string{
		strings.ToValidUTF8(v, "\ufffd"), strings.ToValidUTF8(v, ""), strings.TrimSpace(v), strings.ToLower(v), strings.ToUpper(v),
		strings.ReplaceAll(v, "*", ""), strings.Trim(v, `"'`+"`"), v + v, "x" + v, v + "x",
	}
	for _, cut := range []string{"\x00", "\n", "\r", "\t", "/", "?", "#", ";", "'", `"`, "&", "\ufffd"} {
		before, after, _ := strings.Cut(v, cut)
		out = append(out, before, after, strings.ReplaceAll(v, cut, ""))
	}
	if s, err := url.PathUnescape(v); err == nil {
		out = append(out, s)
	}
	if s, err := strconv.Unquote(`"` + v + `"`); err == nil {
		out = append(out, s)
	}
	for _, r := range []string{"\u0308", "\u200f", "\u200b", "\ufeff", "\u00a0", "\u202e"} {
		out = append(out, strings.ReplaceAll(v, r, ""))
	}
	out = slices.DeleteFunc(out, func(s string) bool { return s == v || !utf8.ValidString(s) || len(s) > 2000 })
	slices.Sort(out)
	return slices.Compact(out)
}

// carriesExactly asks for people, providers, groups and sessions under awkward values. What is carried out ends exactly
// what it says; what cannot be is refused, and nothing is sent.
func carriesExactly(t *testing.T, h Harness, c adapters.Criteria) {
	for _, v := range awkward {
		people := h.few()
		if utf8.ValidString(v) {
			people = append(people, at(h.Places[0], v), at(h.Places[len(h.Places)-1], v))
		}
		for _, name := range lookalikes(v) {
			people = append(people, at(h.Places[0], name))
		}
		for what, sel := range h.awkwardly(c, v) {
			w := newWorld(t, h, people)
			w.about = fmt.Sprintf("%s %.60q: %s", what, v, describe(sel))
			err := w.a.Supports(sel)
			if err == nil {
				r := w.run(sel)
				switch err = r.drive(w.ctx); adapters.KindOf(err) {
				case 0:
					w.judgeCount(r.out, w.judge(true, sel))
				case adapters.Unsupported, adapters.Rejected:
					w.untouched()
				default:
					w.errorf("Invalidate: %v of kind %s, want unsupported or rejected", err, adapters.KindOf(err))
				}
			} else {
				w.refused(sel, err)
			}
			if !utf8.ValidString(v) {
				w.untouched() // no text, which JSON would make another of
			}
			w.close()
		}
	}
}

// awkwardly puts a value in each place of a selector in turn.
func (h Harness) awkwardly(c adapters.Criteria, v string) map[string]adapters.Selector {
	out := map[string]adapters.Selector{}
	add := func(what string, sel adapters.Selector) {
		h.fill(&sel)
		if sel.Validate() == nil {
			out[what] = sel
		}
	}
	if c.Has(adapters.ByUser) {
		add("user", adapters.Selector{By: c, Users: []adapters.User{{Name: v}}})
	}
	if c.Has(adapters.ByProvider) {
		add("provider", adapters.Selector{By: c, Providers: []adapters.Provider{{Type: h.Providers[0].Type, Name: v}}})
		add("type of provider", adapters.Selector{By: c, Providers: []adapters.Provider{{Type: v, Name: h.Providers[0].Name}}})
	}
	if c.Has(adapters.ByGroup) {
		for _, g := range h.Groups {
			add("group of kind "+g.Kind, adapters.Selector{By: c, Groups: []adapters.Group{{Kind: g.Kind, Name: v}}})
		}
		add("kind of group", adapters.Selector{By: c, Groups: []adapters.Group{{Kind: v, Name: h.Groups[0].Name}}})
	}
	if c == adapters.BySessions {
		add("session", adapters.Selector{By: c, Sessions: []adapters.SessionKey{{Device: h.Places[0].Device, ID: v}}})
		add("device", adapters.Selector{By: c, Sessions: []adapters.SessionKey{{Device: v, ID: "1"}}})
	}
	return out
}

// randomSeeds is how many random worlds a property is tried in.
const randomSeeds = 60

// sendsWhatThePreviewShows previews random selectors in random worlds, and carries them out.
func sendsWhatThePreviewShows(t *testing.T, h Harness) {
	planned := 0
	for seed := range uint64(randomSeeds) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, h, h.randomPeople(rnd))
		for range 3 { // one after the other, in the same world
			sel := h.randomSelector(rnd, w.e.Sessions())
			w.about = fmt.Sprintf("seed %d: %s", seed, describe(sel))
			if err := w.a.Supports(sel); err != nil {
				if adapters.KindOf(err) != adapters.Unsupported {
					w.errorf("Supports: %v", err)
				}
				continue
			}
			before := len(w.tape.sent())
			w.seeded = w.e.Sessions()
			p, err := w.a.Preview(w.ctx, sel)
			w.look("preview", p)
			for _, r := range mutating(w.tape.sent()[before:]) {
				w.errorf("the preview sent %s %s %s", r.method, r.url, r.body)
			}
			w.judge(false)
			if err != nil {
				w.errorf("Preview: %v", err)
				continue
			}
			matched, _ := h.split(sel, w.seeded)
			if p.Listed && !slices.Equal(keys(p.Sessions), keys(matched)) {
				w.errorf("the preview lists %v, want %v", keys(p.Sessions), keys(matched))
			}
			before = len(w.tape.sent())
			r := w.run(sel)
			if err := r.drive(w.ctx); err != nil {
				w.errorf("Invalidate: %v", err)
			}
			w.judgeCount(r.out, w.judge(true, sel))
			w.executed(p, w.tape.sent()[before:])
			if !slices.Equal(p.Covered, r.out.Covered) {
				w.errorf("the preview covers %q, the run %q", p.Covered, r.out.Covered)
			}
			planned += len(p.Requests)
		}
		w.close()
	}
	if planned < randomSeeds/2 {
		t.Errorf("%d requests in %d worlds: the worlds show nothing", planned, randomSeeds)
	}
}

// randomNames are who is in random worlds: a few, so that selectors hit, some of them all but the same, or awkward.
func randomNames(rnd *rand.Rand) []string {
	out := []string{alice, bob, "Alice", "alice "}
	for range 4 {
		if v := awkward[rnd.IntN(len(awkward))]; utf8.ValidString(v) && strings.TrimSpace(v) != "" {
			out = append(out, v)
		}
		out = append(out, names[rnd.IntN(len(names))])
	}
	return out
}

func (h Harness) randomPeople(rnd *rand.Rand) (xs []adapters.Session) {
	names := append(randomNames(rnd), "")
	for range rnd.IntN(25) {
		xs = append(xs, at(h.Places[rnd.IntN(len(h.Places))], names[rnd.IntN(len(names))]))
	}
	return xs
}

// some picks up to n elements, at least one; what is picked twice stays twice.
func some[T any](rnd *rand.Rand, xs []T, n int) (out []T) {
	if len(xs) == 0 {
		return nil
	}
	for range 1 + rnd.IntN(n) {
		out = append(out, xs[rnd.IntN(len(xs))])
	}
	return out
}

func (h Harness) randomSelector(rnd *rand.Rand, xs []adapters.Session) adapters.Selector {
	sel := adapters.Selector{By: h.Type.Criteria[rnd.IntN(len(h.Type.Criteria))]}
	if sel.By == adapters.BySessions {
		sel.Sessions = []adapters.SessionKey{{Device: h.Places[0].Device, ID: "no-such-session"}}
		for _, x := range some(rnd, xs, 5) {
			sel.Sessions = append(sel.Sessions, x.Key())
		}
	}
	if sel.By.Has(adapters.ByUser) {
		names := randomNames(rnd)
		for _, x := range some(rnd, xs, 4) {
			if strings.TrimSpace(x.Username) != "" {
				names = append(names, x.Username, x.Username)
			}
		}
		for _, name := range some(rnd, names, 4) {
			u := adapters.User{Name: name}
			if rnd.IntN(3) == 0 {
				u.At = some(rnd, h.Providers, 3)
			}
			sel.Users = append(sel.Users, u)
		}
	}
	if sel.By.Has(adapters.ByProvider) {
		sel.Providers = some(rnd, h.Providers, 3)
	}
	if sel.By.Has(adapters.ByGroup) {
		sel.Groups = some(rnd, h.Groups, 3)
	}
	return sel
}
