package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/jedib0t/go-pretty/v6/text"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const someName = "invalidations/0190b7a2-0000-7000-8000-000000000000"

// asItStands is an invalidation for zoë as it stands with some runs.
func asItStands(runs ...*endsessionv1.Run) *endsessionv1.Invalidation {
	inv := &endsessionv1.Invalidation{
		Name: someName, Revision: 7, State: endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED, Runs: runs,
		Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "佐藤 zoë"}},
	}
	for _, r := range runs {
		if !runFinal(r) {
			inv.State = endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
		}
		if r.InvalidatedCount != nil {
			inv.InvalidatedCount = proto.Int32(inv.GetInvalidatedCount() + r.GetInvalidatedCount())
		} else if r.GetAttempts() > 0 {
			inv.CountIsMinimum = true
		}
		inv.CountIsMinimum = inv.GetCountIsMinimum() || r.GetCountIsMinimum()
	}
	return inv
}

func pendingRun(target string) *endsessionv1.Run {
	return &endsessionv1.Run{Target: target, State: endsessionv1.RunState_RUN_STATE_PENDING}
}

func runningRun(target string) *endsessionv1.Run {
	return &endsessionv1.Run{Target: target, State: endsessionv1.RunState_RUN_STATE_RUNNING, Attempts: 1}
}

func endedRun(target string, n int32) *endsessionv1.Run {
	return &endsessionv1.Run{Target: target, State: endsessionv1.RunState_RUN_STATE_SUCCEEDED, Attempts: 1, InvalidatedCount: &n,
		Verification: endsessionv1.Verification_VERIFICATION_CONFIRMED_BY_LIST}
}

func retryingRun(target, reason, message string) *endsessionv1.Run {
	return &endsessionv1.Run{Target: target, State: endsessionv1.RunState_RUN_STATE_RETRYING, Attempts: 12, InvalidatedCount: proto.Int32(17),
		CountIsMinimum: true, NextAttemptTime: timestamppb.New(time.Unix(1800000000, 0)),
		Error:    &endsessionv1.Error{Reason: reason, Message: message},
		Warnings: []*endsessionv1.Warning{{Code: "SIGNED_IN_AGAIN", Message: "matching sessions began while the run was under way; they live"}}}
}

// manyRuns is as many runs as that, in all states.
func manyRuns(n int) (runs []*endsessionv1.Run) {
	for i := range n {
		name := fmt.Sprintf("target-%02d", i)
		switch i % 5 {
		case 0:
			runs = append(runs, endedRun(name, int32(i)))
		case 1:
			runs = append(runs, pendingRun(name))
		case 2:
			runs = append(runs, retryingRun(name, "UPSTREAM_UNREACHABLE", "no connection, or no answer in time"))
		case 3:
			runs = append(runs, runningRun(name))
		case 4:
			runs = append(runs, &endsessionv1.Run{Target: name, State: endsessionv1.RunState_RUN_STATE_UNSUPPORTED,
				Error: &endsessionv1.Error{Reason: "SELECTOR_UNSUPPORTED", Message: "the target cannot end exactly these sessions"}})
		}
	}
	return runs
}

// TestPicture holds what a live table looks like, at 80 and at 120 columns. The bar on the right is where the terminal
// ends.
func TestPicture(t *testing.T) {
	repeat := endedRun("kibana-prod", 2)
	repeat.Verification = endsessionv1.Verification_VERIFICATION_CONFIRMED_BY_REPEAT
	for name, test := range map[string]struct {
		inv    *endsessionv1.Invalidation
		footer string
	}{
		"start":  {inv: asItStands(pendingRun("apm"), runningRun("kibana-prod"), pendingRun("storage"))},
		"ended":  {inv: asItStands(runningRun("apm"), repeat, endedRun("storage", 3))},
		"nobody": {inv: asItStands(endedRun("apm", 0), endedRun("storage", 0))},
		"trouble": {inv: asItStands(retryingRun("apm", "UPSTREAM_UNREACHABLE", "no connection, or no answer in time, which may have many causes that are told at great length"),
			repeat, endedRun("storage", 0), runningRun("storage-2"))},
		"lost": {inv: asItStands(runningRun("apm"), repeat), footer: "nothing heard of the gateway for 12s, trying again: connection error: desc = \"transport: Error while dialing\" (Unavailable)"},
		"names": {inv: asItStands(retryingRun(strings.Repeat("a-very-long-name-", 3)+"of-a-target", "STILL_ALIVE", "セッションがまだ生きています、もう一度やってみますが、それでもだめなら失敗です"),
			endedRun("b", 0), retryingRun("c", "UPSTREAM_FAILED", "\x1b[2J\x1b[31m\u202eforged\nstorage  SUCCEEDED\t3"))},
		"fourteen": {inv: asItStands(manyRuns(14)...)},
		"forty":    {inv: asItStands(manyRuns(40)...), footer: "nothing heard of the gateway for 1m0s, trying again"},
	} {
		t.Run(name, func(t *testing.T) {
			inv := (&follower{harmless: true}).prepared(test.inv)
			for _, size := range [][2]int{{80, 24}, {120, 30}, {40, 10}, {20, 4}, {1, 1}} {
				p := picture{screen: &screen{}, width: size[0], height: size[1], elapsed: 12*time.Second + 345*time.Millisecond, footer: test.footer}
				lines := p.lines(inv)
				if len(lines) == 0 || len(lines) >= max(size[1], 2) {
					t.Errorf("%v: %d lines", size, len(lines))
				}
				var shown strings.Builder
				for _, l := range lines {
					if w := cellWidth(l); w > size[0] {
						t.Errorf("%v: %d cells: %q", size, w, l)
					}
					if i := strings.IndexFunc(l, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
						t.Errorf("%v: at %d of %q is what a terminal obeys", size, i, l)
					}
					shown.WriteString(text.Pad(l, size[0], ' ') + "|\n")
				}
				if size[0] >= 80 {
					golden(t, filepath.Join("cli", fmt.Sprintf("live-%s-%d.txt", name, size[0])), clock.ReplaceAllString(shown.String(), "HH:MM:SS"))
				}
			}
		})
	}
}

var clock = regexp.MustCompile(`\b[0-9]{2}:[0-9]{2}:[0-9]{2}\b`)

// TestReport holds the last word about an invalidation on terminals and elsewhere.
func TestReport(t *testing.T) {
	repeat := endedRun("kibana-prod", 2)
	repeat.Verification = endsessionv1.Verification_VERIFICATION_CONFIRMED_BY_REPEAT
	inv := asItStands(retryingRun(strings.Repeat("a-very-long-name-", 3)+"of-a-target", "STILL_ALIVE", "sessions that were ended are still listed"), repeat, endedRun("storage", 0))
	for name, s := range map[string]*screen{
		"pipe": {}, "80": {size: func() (int, int) { return 80, 24 }}, "120-colors": {size: func() (int, int) { return 120, 24 }, color: true},
	} {
		var b bytes.Buffer
		s.Writer = &b
		if err := printInvalidation(s, inv); err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("cli", "report-"+name+".txt"), clock.ReplaceAllString(b.String(), "HH:MM:SS"))
	}
}

// TestColorsAreOnlyPaint: a picture with colours is the picture without, and some colour.
func TestColorsAreOnlyPaint(t *testing.T) {
	inv := asItStands(manyRuns(40)...)
	bare := picture{screen: &screen{}, width: 80, height: 24}.lines(inv)
	painted := picture{screen: &screen{color: true}, width: 80, height: 24}.lines(inv)
	paint := regexp.MustCompile("\x1b\\[[0-9;]*m")
	n := 0
	for i, l := range painted {
		n += len(paint.FindAllString(l, -1))
		if got := paint.ReplaceAllString(l, ""); got != bare[i] {
			t.Errorf("%q, without colours %q", got, bare[i])
		}
		if strings.Count(l, "\x1b[0m")*2 != len(paint.FindAllString(l, -1)) {
			t.Errorf("a colour runs on: %q", l)
		}
	}
	if n == 0 {
		t.Error("there is no colour")
	}
}

// terminal is a screen that does what it is told, as far as a live view tells.
type terminal struct {
	width, height int
	rows          []string
	row           int
}

var order = regexp.MustCompile("^(?:\x1b\\[(\\d*)([A-Za-z])|[^\x1b])")

// Write implements io.Writer.
func (x *terminal) Write(p []byte) (int, error) {
	for rest := string(p); rest != ""; {
		m := order.FindStringSubmatch(rest)
		if m == nil {
			return 0, fmt.Errorf("cannot do %q", rest)
		}
		rest = rest[len(m[0]):]
		for len(x.rows) <= x.row {
			x.rows = append(x.rows, "")
		}
		switch m[2] {
		case "":
			switch m[0] {
			case "\n":
				x.row++
			case "\r":
			default:
				x.rows[x.row] += m[0]
			}
		case "A":
			var n int
			if _, err := fmt.Sscan(m[1], &n); err != nil || n > x.row {
				return 0, fmt.Errorf("%d up from row %d", n, x.row)
			}
			x.row -= n
		case "K":
			x.rows[x.row] = ""
		case "J":
			x.rows = x.rows[:x.row]
		default:
			return 0, fmt.Errorf("cannot do %q", m[0])
		}
	}
	return len(p), nil
}

// narrow makes the terminal narrower, and breaks what is on it.
func (x *terminal) narrow(width int) {
	var rows []string
	for _, r := range x.rows[:x.row] {
		for cellWidth(r) > width {
			rows = append(rows, r[:width])
			r = r[width:]
		}
		rows = append(rows, r)
	}
	x.width, x.rows, x.row = width, rows, len(rows)
}

// TestLiveViewIsOneTable draws again and again, and leaves nothing behind but the last table.
func TestLiveViewIsOneTable(t *testing.T) {
	x := &terminal{width: 100, height: 30, rows: []string{"before"}, row: 1}
	s := &screen{Writer: x, size: func() (int, int) { return x.width, x.height }}
	v := &liveView{screen: s, began: time.Now()}
	want := func(what string, inv *endsessionv1.Invalidation, footer string) {
		t.Helper()
		lines := append([]string{"before"}, picture{screen: s, width: x.width, height: x.height, footer: footer}.lines(inv)...)
		if got := strings.Join(x.rows, "\n"); got != strings.Join(lines, "\n") {
			t.Errorf("%s: shown is\n%s\nwant\n%s", what, got, strings.Join(lines, "\n"))
		}
	}
	first, second := asItStands(runningRun("apm"), retryingRun("storage", "UPSTREAM_BUSY", "later")), asItStands(manyRuns(40)...)
	v.show(first)
	want("the first", first, "")
	v.tick()
	want("a second later", first, "")
	v.show(second)
	want("more", second, "")
	v.lost("no route")
	want("lost", second, "nothing heard of the gateway for 0s, trying again: no route")
	v.show(first)
	want("less, and heard again", first, "")
	x.narrow(60)
	v.tick()
	want("narrower", first, "")
	last := asItStands(endedRun("apm", 1), endedRun("storage", 2))
	if err := v.end(last); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := printInvalidation(&screen{Writer: &b, size: s.size}, last); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(x.rows, "\n") + "\n"; got != "before\n"+b.String() {
		t.Errorf("at the end it shows\n%s\nwant\n%s", got, b.String())
	}
}

// TestLinesForChanges: where nobody looks, a change is told once, and nothing else.
func TestLinesForChanges(t *testing.T) {
	var out, errOut bytes.Buffer
	v := &lineView{out: &out, err: &errOut, written: map[string]string{}}
	first := asItStands(runningRun("apm"), retryingRun("storage", "UPSTREAM_BUSY", `says "later"`))
	first.Runs[0].NextAttemptTime = timestamppb.New(time.Unix(1, 0)) // when it is asked again how far it is
	v.show(first)
	v.show(first)
	second := proto.Clone(first).(*endsessionv1.Invalidation)
	second.Runs[0].NextAttemptTime = timestamppb.New(time.Unix(2, 0))
	v.show(second)
	v.lost("no route")
	v.lost("no route")
	v.show(asItStands(endedRun("apm", 0), first.GetRuns()[1]))
	want := someName + ` apm RUNNING sessions=unknown verification=- attempts=1
` + someName + ` storage RETRYING sessions=at-least-17 verification=- attempts=12 next_try=2027-01-15T08:00:00Z warnings=SIGNED_IN_AGAIN reason=UPSTREAM_BUSY message="says \"later\""
` + someName + ` apm SUCCEEDED sessions=0 verification=CONFIRMED_BY_LIST attempts=1 warnings=NO_SESSION_MATCHED
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	if want := "nothing is heard of the gateway, trying again: no route\nthe gateway is heard of again\n"; errOut.String() != want {
		t.Errorf("got %q, want %q", &errOut, want)
	}
}

// TestNothingMatched: what ended no session says so, names what to check, and stands out if that is all there is.
func TestNothingMatched(t *testing.T) {
	person := func(id string, names ...string) *endsessionv1.Selector {
		u := &endsessionv1.User{Id: id}
		if len(names) > 0 {
			u.TargetUsernames = map[string]*endsessionv1.TargetUsernames{"storage": {Usernames: names}}
		}
		return &endsessionv1.Selector{User: u}
	}
	minimum := endedRun("storage", 0)
	minimum.CountIsMinimum = true
	unknown := endedRun("storage", 0)
	unknown.InvalidatedCount = nil
	cannot := endedRun("storage", 0)
	cannot.Warnings = []*endsessionv1.Warning{{Code: "NOTHING_CAN_MATCH", Message: "the user is no member"}}
	told := endedRun("storage", 0)
	told.Warnings = []*endsessionv1.Warning{{Code: "NO_SESSION_MATCHED", Message: "as the gateway has it"}}
	notAsked := &endsessionv1.Run{Target: "apm", State: endsessionv1.RunState_RUN_STATE_UNSUPPORTED}
	failed := &endsessionv1.Run{Target: "apm", State: endsessionv1.RunState_RUN_STATE_FAILED, InvalidatedCount: proto.Int32(0), Attempts: 1}
	const one = `storage: warning: NO_SESSION_MATCHED: 0 sessions matched: check the name "zoe" the target was asked for`
	const all = "WARNING: 0 sessions matched in all: check the name \"zoe\" and see with `endsession preview` what the targets are asked for"
	for name, test := range map[string]struct {
		sel  *endsessionv1.Selector
		runs []*endsessionv1.Run
		want []string
	}{
		"All":            {person("zoe"), []*endsessionv1.Run{endedRun("storage", 0)}, []string{one, all}},
		"TheGatewaySays": {person("zoe"), []*endsessionv1.Run{told}, []string{one, all}},
		"OneOfTwo":       {person("zoe"), []*endsessionv1.Run{endedRun("storage", 0), endedRun("apm", 1)}, []string{one}},
		"AllThatCould":   {person("zoe"), []*endsessionv1.Run{notAsked, endedRun("storage", 0)}, []string{one, all}},
		"AnotherFailed":  {person("zoe"), []*endsessionv1.Run{failed, endedRun("storage", 0)}, []string{one}},
		"Minimum":        {person("zoe"), []*endsessionv1.Run{minimum}, nil},
		"Unknown":        {person("zoe"), []*endsessionv1.Run{unknown}, nil},
		"Some":           {person("zoe"), []*endsessionv1.Run{endedRun("storage", 1)}, nil},
		"NothingAsked":   {person("zoe"), []*endsessionv1.Run{notAsked}, nil},
		"CannotMatch":    {person("zoe"), []*endsessionv1.Run{cannot}, []string{"storage: warning: NOTHING_CAN_MATCH: 0 sessions matched: the user is no member", all}},
		"NamesThere": {person("x", "zoe", "zoë"), []*endsessionv1.Run{endedRun("storage", 0), endedRun("apm", 1)},
			[]string{`storage: warning: NO_SESSION_MATCHED: 0 sessions matched: check the name "zoe", "zoë" the target was asked for`}},
		"ProviderAndGroup": {&endsessionv1.Selector{Provider: &endsessionv1.Provider{Type: "saml", Name: proto.String("okta")}, Group: proto.String("vpn")},
			[]*endsessionv1.Run{endedRun("storage", 0), endedRun("apm", 1)},
			[]string{`storage: warning: NO_SESSION_MATCHED: 0 sessions matched: check the provider "saml/okta", the group "vpn" the target was asked for`}},
	} {
		t.Run(name, func(t *testing.T) {
			inv := asItStands(test.runs...)
			inv.Selector = test.sel
			var got []string
			for _, n := range notes(inv) {
				got = append(got, n.text)
			}
			if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}
