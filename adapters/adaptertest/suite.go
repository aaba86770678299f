package adaptertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// Run holds an adapter, with its emulator, against everything the contract promises. Subtests are named by the promise.
// Each runs in a synctest bubble of its own: neither the adapter nor the emulator may open a socket or leave a
// goroutine behind.
func Run(t *testing.T, h Harness) {
	if len(h.Places) == 0 || h.Mutates == nil || h.Start == nil || h.Open == nil || len(h.Type.Criteria) == 0 {
		t.Fatal("adaptertest: the harness lacks places, Mutates, Start, Open or criteria")
	}
	for _, c := range combinations {
		if h.Type.Supports(c) {
			bubble(t, "EndsExactlyTheMatchedSessions/"+c.String(), func(t *testing.T) { endsExactly(t, h, c) })
		} else {
			bubble(t, "RefusesCriteriaItDoesNotDeclare/"+c.String(), func(t *testing.T) { refusesUndeclared(t, h, c) })
		}
	}
	for _, c := range h.Type.Criteria {
		bubble(t, "CarriesEveryValueExactlyOrRefusesIt/"+c.String(), func(t *testing.T) { carriesExactly(t, h, c) })
	}
	bubble(t, "SendsWhatThePreviewShows", func(t *testing.T) { sendsWhatThePreviewShows(t, h) })
	bubble(t, "EndsNobodyUnderNamesTheTargetDoesNotHave", func(t *testing.T) { endsNobodyUnderForeignNames(t, h) })
	if h.Type.ListsProviders {
		bubble(t, "RefusesProvidersThatMustBeListedAndAreNot", func(t *testing.T) { refusesUnlisted(t, h) })
	}
	if h.Type.Supports(adapters.ByUser | adapters.ByProvider) {
		bubble(t, "SaysWhenNothingCanMatchAndSendsNothing", func(t *testing.T) { nothingCanMatch(t, h) })
	}

	drills := h.drills(t)
	for _, d := range drills {
		bubble(t, "RepeatIsHarmless/"+d.name, func(t *testing.T) { repeatIsHarmless(t, h, d) })
		bubble(t, "CrashAtAnyRequestLosesNothing/"+d.name, func(t *testing.T) { crashLosesNothing(t, h, d) })
		bubble(t, "DeadlineEndsTheCall/"+d.name, func(t *testing.T) { deadlineEndsTheCall(t, h, d) })
		bubble(t, "CancellationEndsTheCall/"+d.name, func(t *testing.T) { cancellationEndsTheCall(t, h, d) })
		bubble(t, "FenceStopsEveryRequestThatEndsSessions/"+d.name, func(t *testing.T) { fenceStops(t, h, d) })
		if h.Type.ListsSessions {
			bubble(t, "VettingStopsEveryRequestThatEndsSessions/"+d.name, func(t *testing.T) { vettingStops(t, h, d) })
		}
		bubble(t, "StormOfFaultsEndsRight/"+d.name, func(t *testing.T) { storm(t, h, d) })
		bubble(t, "SessionsThatBeginMeanwhileDoNotHoldTheRunUp/"+d.name, func(t *testing.T) { newcomers(t, h, d, false) })
		bubble(t, "SomebodySignsInAgainInEveryGap/"+d.name, func(t *testing.T) { newcomers(t, h, d, true) })
	}
	every := h.drillsOf(t, combinations...)
	for _, lie := range emulator.Lies() {
		if h.Start(t).SetLie(lie) {
			bubble(t, "LiesAreNotBelieved/"+string(lie), func(t *testing.T) { liesAreNotBelieved(t, h, every, lie) })
		}
	}
	for _, f := range troubles() {
		bubble(t, "FaultInAPreviewEndsNobody/"+f.Name, func(t *testing.T) { faultInPreview(t, h, drills[0], f) })
		for _, d := range drills[:min(2, len(drills))] {
			bubble(t, "FaultYieldsItsKind/"+d.name+"/"+f.Name, func(t *testing.T) { faultYieldsItsKind(t, h, d, f) })
		}
	}
	bubble(t, "LimitStopsEveryRequest", func(t *testing.T) { limitStops(t, h, drills[0]) })
	bubble(t, "CancelledContextSendsNothing", func(t *testing.T) { cancelledSendsNothing(t, h, drills[0]) })
	bubble(t, "ProbeEndsNobody", func(t *testing.T) { probeEndsNobody(t, h) })
	for _, f := range probeTroubles() {
		bubble(t, "ProbeReportsWhatIsWrong/"+f.Name, func(t *testing.T) { probeReports(t, h, f) })
	}
	bubble(t, "RunsAtOnceEndTheUnion", func(t *testing.T) { runsAtOnce(t, h, drills) })
}

func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// world is one emulated target with people signed in, and a process that works on it.
type world struct {
	t      testing.TB
	h      Harness
	e      Emulator
	seeded []adapters.Session
	logs   *logs
	about  string

	// The process; reopen starts another.
	a      adapters.Adapter
	tape   *tape
	faults *emulator.Faults
	ctx    context.Context
	cancel context.CancelFunc
}

// newWorld signs people in, a second apart, and opens an adapter. A minute later the test begins.
func newWorld(t testing.TB, h Harness, people []adapters.Session) *world {
	t.Helper()
	w := &world{t: t, h: h, e: h.Start(t), logs: &logs{}}
	for _, x := range people {
		x.Groups = slices.Clone(x.Groups)
		w.seeded = append(w.seeded, w.e.SignIn(x))
		time.Sleep(time.Second)
	}
	time.Sleep(time.Minute)
	w.reopen()
	return w
}

// reopen starts a new process: nothing of the old one is left but the target.
func (w *world) reopen() {
	w.t.Helper()
	if w.cancel != nil {
		w.checkProcess()
		w.cancel()
	}
	w.faults = emulator.NewFaults(w.e.Transport())
	w.tape = &tape{next: w.faults, mutates: w.h.Mutates}
	w.a = w.h.Open(w.t, w.e, adapters.Deps{
		Target:    "suite",
		Transport: w.tape,
		Logger:    slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug - 4})),
		Limit:     w.tape.limit,
	})
	w.ctx, w.cancel = context.WithCancel(adapters.WithFence(w.t.Context(), w.tape.fence))
	w.tape.die = w.cancel
}

// close checks what must hold after every story.
func (w *world) close() {
	w.t.Helper()
	w.checkProcess()
	w.cancel()
	w.look("log", w.logs.String())
}

// checkProcess checks the requests of the current process.
func (w *world) checkProcess() {
	w.t.Helper()
	for i, r := range w.tape.sent() {
		if u, err := url.Parse(r.url); err != nil || u.Hostname() == elsewhere {
			w.errorf("request %d followed a redirect to %s", i+1, elsewhere)
		}
		if r.mutating && !r.fenced {
			w.errorf("request %d (%s %s) can end sessions and was sent without asking the fence", i+1, r.method, r.url)
		}
		if !r.limited {
			w.errorf("request %d (%s %s) was sent without asking the limit", i+1, r.method, r.url)
		}
		if r.late {
			w.errorf("request %d (%s %s) was sent after the context had ended", i+1, r.method, r.url)
		}
	}
}

func (w *world) errorf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("%s: %s", w.about, fmt.Sprintf(format, args...))
}

// run begins a run that looks for secrets in everything it is given.
func (w *world) run(sel adapters.Selector) *run {
	return &run{t: w.t, a: w.a, sel: sel, look: w.look}
}

// look searches what an adapter gave away for secrets and for upstream bodies.
func (w *world) look(what string, v any) {
	w.t.Helper()
	if v == nil {
		return
	}
	text := fmt.Sprintf("%v %+v %#v", v, v, v)
	if err, ok := v.(error); ok {
		for e := err; e != nil; e = errors.Unwrap(e) {
			text += fmt.Sprintf(" %v %+v", e, e)
		}
	}
	if j, err := json.Marshal(v); err == nil {
		text += " " + string(j)
	}
	if strings.Contains(text, emulator.Canary) {
		w.errorf("the %s shows an upstream's body", what)
	}
	for _, s := range w.h.Secrets {
		quoted, _ := json.Marshal(s)
		for _, form := range []string{s, url.QueryEscape(s), strings.Trim(string(quoted), `"`)} {
			if strings.Contains(text, form) {
				w.errorf("the %s shows a secret", what)
				break
			}
		}
	}
}

// judge compares who is signed in with who must be. It returns how many of the seeded sessions have ended. Without
// complete, those that should end may still be there.
func (w *world) judge(complete bool, sels ...adapters.Selector) int {
	w.t.Helper()
	alive := map[adapters.SessionKey]bool{}
	for _, x := range w.e.Sessions() {
		alive[x.Key()] = true
	}
	died := 0
	for _, x := range w.seeded {
		hit := slices.ContainsFunc(sels, func(s adapters.Selector) bool {
			ended, _ := w.h.split(s, []adapters.Session{x})
			return len(ended) > 0
		})
		switch {
		case !alive[x.Key()]:
			died++
			if !hit {
				w.errorf("ENDED A SESSION IT MUST NOT: %s", show(x))
			}
		case hit && complete:
			w.errorf("complete, but still signed in: %s", show(x))
		}
	}
	return died
}

func show(x adapters.Session) string {
	name := x.Username
	if len(name) > 60 {
		name = name[:60] + "…"
	}
	return fmt.Sprintf("user %q at provider %s, device %q, groups %v, id %q", name, x.Provider, x.Device, x.Groups, x.ID)
}

// judgeCount compares what the run reports with what happened.
func (w *world) judgeCount(o Outcome, died int) {
	w.t.Helper()
	switch {
	case o.Counted && o.Count > died:
		w.errorf("counts %d, but %d ended", o.Count, died)
	case o.Counted && !o.CountIsMinimum && o.Count < died:
		w.errorf("counts %d as if that were all, but %d ended", o.Count, died)
	}
	if died > 0 && (o.Warned(adapters.WarnNoSessionMatched) || o.Warned(adapters.WarnNothingCanMatch)) {
		w.errorf("warns that nothing matched, but %d ended: %+v", died, o.Warnings)
	}
}

// refused checks that the adapter, which has refused sel, sends nothing when it is called all the same.
func (w *world) refused(sel adapters.Selector, err error) {
	w.t.Helper()
	w.look("error", err)
	if adapters.KindOf(err) != adapters.Unsupported {
		w.errorf("Supports: %v, want kind unsupported", err)
	}
	if sent := w.tape.sent(); len(sent) > 0 {
		w.errorf("Supports sent %d requests", len(sent))
	}
	r := w.run(sel)
	if err := r.drive(w.ctx); adapters.KindOf(err) != adapters.Unsupported {
		w.errorf("Invalidate: error %v, want kind unsupported as Supports says", err)
	}
	if _, err := w.a.Preview(w.ctx, sel); adapters.KindOf(err) != adapters.Unsupported {
		w.errorf("Preview: error %v, want kind unsupported as Supports says", err)
	}
	w.untouched()
}

// untouched checks that nothing was sent that can end sessions, and that everybody is signed in.
func (w *world) untouched() {
	w.t.Helper()
	for _, r := range mutating(w.tape.sent()) {
		w.errorf("sent %s %s %s, which can end sessions", r.method, r.url, r.body)
	}
	w.judge(false)
}

// preview checks a preview by itself and returns it.
func (w *world) preview(sel adapters.Selector) adapters.Preview {
	w.t.Helper()
	p, err := w.a.Preview(w.ctx, sel)
	if err != nil {
		w.errorf("Preview: %v", err)
	}
	w.look("preview", p)
	w.untouched()
	if len(p.Summary) == 0 && err == nil {
		w.errorf("Preview without a summary")
	}
	if p.Listed {
		want, _ := w.h.split(sel, w.seeded)
		if got, want := keys(p.Sessions), keys(want); !slices.Equal(got, want) {
			w.errorf("Preview lists sessions %v, want %v", got, want)
		}
	} else if len(p.Sessions) > 0 {
		w.errorf("Preview shows sessions, but Listed is false")
	}
	return p
}

func keys(xs []adapters.Session) []string {
	var out []string
	for _, x := range xs {
		out = append(out, x.Device+"/"+x.ID)
	}
	slices.Sort(out)
	return out
}

// executed checks that the requests which could end sessions are those of the preview. A request may come more often
// than planned, when the adapter repeats it to make sure; none may be missing and none may be new.
func (w *world) executed(p adapters.Preview, sent []request) {
	w.t.Helper()
	var planned, done []string
	for _, r := range p.Requests {
		planned = append(planned, form(r.Method, r.URL, []byte(r.Body)))
	}
	for _, r := range mutating(sent) {
		done = append(done, form(r.method, r.url, r.body))
	}
	for i, x := range planned {
		if count(done, x) < count(planned, x) {
			w.errorf("planned, but not sent: %+v", p.Requests[i])
		}
	}
	for _, x := range done {
		if count(planned, x) == 0 {
			w.errorf("sent, but not planned: %v", x)
		}
	}
}

func count(xs []string, x string) (n int) {
	for _, y := range xs {
		if x == y {
			n++
		}
	}
	return n
}

// form is a request in comparable form: byte by byte, but without the correlation number of JSON-RPC.
func form(method, url string, body []byte) string {
	var call map[string]json.RawMessage
	if json.Unmarshal(body, &call) == nil && call["method"] != nil && call["params"] != nil {
		delete(call, "id")
		text := fmt.Appendf(nil, "%d members", len(call))
		for _, key := range slices.Sorted(maps.Keys(call)) {
			text = fmt.Appendf(text, " %s:%s", key, call[key])
		}
		body = text
	}
	return fmt.Sprintf("%s %s %s", method, url, body)
}

func endsExactly(t *testing.T, h Harness, c adapters.Criteria) {
	people := h.population()
	sample := newWorld(t, h, people)
	sels := h.selectors(c, sample.seeded)
	sample.close()
	hits, supported := 0, 0
	for i := range sels {
		w := newWorld(t, h, people)
		sel := sels[i]
		if c == adapters.BySessions {
			sel = h.selectors(c, w.seeded)[i] // ids may differ from one emulator to the next
		}
		w.about = describe(sel)
		if err := w.a.Supports(sel); err != nil {
			w.refused(sel, err)
			w.close()
			continue
		}
		if n := len(w.tape.sent()); n > 0 {
			w.errorf("Supports sent %d requests", n)
		}
		supported++
		ended, kept := h.split(sel, w.seeded)
		if len(ended) > 0 && (len(kept) > 0 || c == adapters.All) {
			hits++
		}
		p := w.preview(sel)
		before := len(w.tape.sent())
		r := w.run(sel)
		if err := r.drive(w.ctx); err != nil {
			w.errorf("Invalidate: %v", err)
		}
		died := w.judge(true, sel)
		w.judgeCount(r.out, died)
		w.executed(p, w.tape.sent()[before:])
		if got := keys(r.out.Sessions); len(slices.Compact(slices.Clone(got))) != len(got) {
			w.errorf("reports a session twice: %v", got)
		}
		if impossible := c.Has(adapters.ByUser) && len(sel.UserScopes()) == 0; impossible {
			w.impossible(r.out)
		} else if died == 0 && r.out.Counted && !r.out.Warned(adapters.WarnNoSessionMatched) && !r.out.Warned(adapters.WarnNothingCanMatch) {
			w.errorf("counts 0 and does not warn that no session matched")
		}
		w.close()
	}
	if hits == 0 {
		t.Errorf("of %d selectors by %s %d are supported and none ends some and leaves some: the harness shows nothing", len(sels), c, supported)
	}
}

// impossible checks the outcome of a run that cannot match.
func (w *world) impossible(o Outcome) {
	w.t.Helper()
	if !o.Complete || !o.Warned(adapters.WarnNothingCanMatch) {
		w.errorf("nothing can match; complete %t, warnings %+v, want %s", o.Complete, o.Warnings, adapters.WarnNothingCanMatch)
	}
	w.untouched()
}

func refusesUndeclared(t *testing.T, h Harness, c adapters.Criteria) {
	w := newWorld(t, h, h.few())
	defer w.close()
	sel := adapters.Selector{By: c}
	h.fill(&sel)
	switch {
	case c == adapters.BySessions:
		sel.Sessions = []adapters.SessionKey{w.seeded[0].Key()}
	case c.Has(adapters.ByProvider) && sel.Providers == nil:
		sel.Providers = []adapters.Provider{w.seeded[0].Provider}
		if sel.Providers[0].Type == "" {
			sel.Providers[0].Type = "saml"
		}
	}
	if c.Has(adapters.ByGroup) && sel.Groups == nil {
		sel.Groups = []adapters.Group{{Kind: "group", Name: "staff"}}
	}
	w.about = describe(sel)
	err := w.a.Supports(sel)
	if err == nil {
		w.errorf("Supports accepts criteria that the type does not declare")
	}
	w.refused(sel, err)
}

func endsNobodyUnderForeignNames(t *testing.T, h Harness) {
	for _, c := range h.Type.Criteria {
		for _, sel := range h.strangers(c) {
			w := newWorld(t, h, h.few())
			w.about = describe(sel)
			if err := w.a.Supports(sel); err != nil {
				w.refused(sel, err)
			} else if ended, _ := h.split(sel, w.seeded); len(ended) == 0 {
				r := w.run(sel)
				switch err := r.drive(w.ctx); adapters.KindOf(err) {
				case 0, adapters.Unsupported, adapters.Rejected, adapters.Failed:
				default:
					w.errorf("Invalidate: error %v, want unsupported, rejected or failed", err)
				}
				w.judgeCount(r.out, w.judge(false, sel))
			}
			w.close()
		}
	}
}

func refusesUnlisted(t *testing.T, h Harness) {
	for _, c := range h.Type.Criteria {
		if !c.Has(adapters.ByProvider) {
			continue
		}
		for _, p := range h.Providers {
			for _, name := range []string{"no-such-provider", swapCase(p.Name), p.Name + " ", p.Name} {
				if name == "" || name == " " {
					continue
				}
				sel := adapters.Selector{By: c, Providers: []adapters.Provider{{Type: p.Type, Name: name, MustBeListed: true}}}
				h.fill(&sel)
				w := newWorld(t, h, h.few())
				w.about = describe(sel)
				r := w.run(sel)
				err := r.drive(w.ctx)
				if name == p.Name {
					if err != nil {
						w.errorf("Invalidate: %v, but the target lists the provider", err)
					}
					w.judgeCount(r.out, w.judge(true, sel))
				} else {
					var e *adapters.Error
					if !errors.As(err, &e) || e.Kind != adapters.Unsupported || e.Reason() != adapters.ReasonUnknownProvider {
						w.errorf("Invalidate: %v, want unsupported with %s", err, adapters.ReasonUnknownProvider)
					}
					w.untouched()
				}
				w.close()
			}
		}
	}
}

func nothingCanMatch(t *testing.T, h Harness) {
	tried := 0
	for _, a := range h.Providers {
		for _, b := range h.Providers {
			sel := adapters.Selector{
				By:    adapters.ByUser | adapters.ByProvider,
				Users: []adapters.User{{Name: alice, At: []adapters.Provider{a}}}, Providers: []adapters.Provider{b},
			}
			if len(sel.UserScopes()) > 0 {
				continue
			}
			w := newWorld(t, h, h.few())
			w.about = describe(sel)
			if err := w.a.Supports(sel); err != nil {
				w.refused(sel, err)
			} else {
				tried++
				if p := w.preview(sel); len(p.Requests) > 0 {
					w.errorf("nothing can match, but the preview plans %+v", p.Requests)
				}
				r := w.run(sel)
				if err := r.drive(w.ctx); err != nil {
					w.errorf("Invalidate: %v", err)
				}
				w.impossible(r.out)
			}
			w.close()
		}
	}
	if tried == 0 {
		t.Error("no two providers of the harness exclude each other in a selector that is supported")
	}
}

// drill is a selector to practise failure with, made anew for each emulator.
type drill struct {
	name string
	make func(seeded []adapters.Session) adapters.Selector
}

// drills picks one selector by user, the broadest one there is, and one more sort.
func (h Harness) drills(t *testing.T) []drill {
	first := func(cs ...adapters.Criteria) []drill {
		ds := h.drillsOf(t, cs...)
		return ds[:min(1, len(ds))]
	}
	out := slices.Concat(
		first(adapters.ByUser, adapters.ByUser|adapters.ByProvider, adapters.ByUser|adapters.ByGroup),
		first(adapters.All, adapters.ByProvider, adapters.ByGroup),
		first(adapters.BySessions, adapters.ByUser|adapters.ByProvider, adapters.ByUser|adapters.ByGroup),
	)
	if len(out) == 0 {
		t.Fatal("adaptertest: the harness has no selector that ends anybody")
	}
	return out
}

// drillsOf picks the selector of each combination that ends most.
func (h Harness) drillsOf(t *testing.T, cs ...adapters.Criteria) (out []drill) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, h, h.few())
		defer w.close()
		for _, c := range cs {
			if !h.Type.Supports(c) {
				continue
			}
			best, most := -1, 0
			for i, sel := range h.selectors(c, w.seeded) {
				if ended, _ := h.split(sel, w.seeded); len(ended) > most && w.a.Supports(sel) == nil {
					best, most = i, len(ended)
				}
			}
			if best >= 0 {
				out = append(out, drill{c.String(), func(seeded []adapters.Session) adapters.Selector {
					return h.selectors(c, seeded)[best]
				}})
			}
		}
	})
	return out
}

// start makes a small world and a run of the drill in it.
func (d drill) start(t testing.TB, h Harness) (*world, *run) {
	t.Helper()
	w := newWorld(t, h, h.few())
	sel := d.make(w.seeded)
	w.about = describe(sel)
	return w, w.run(sel)
}

// clean drives the drill without any fault and returns what was sent.
func (d drill) clean(t testing.TB, h Harness) (sent []request, fences int) {
	t.Helper()
	w, r := d.start(t, h)
	defer w.close()
	if err := r.drive(w.ctx); err != nil {
		w.errorf("Invalidate: %v", err)
	}
	w.judge(true, r.sel)
	return w.tape.sent(), w.tape.fenceCalls()
}

// finish drives on until completion, which nothing hinders any more, and judges the end.
func (w *world) finish(r *run) {
	w.t.Helper()
	if !r.out.Complete {
		if err := r.drive(w.ctx); err != nil {
			w.errorf("nothing is wrong any more, but Invalidate: %v", err)
			return
		}
	}
	w.judgeCount(r.out, w.judge(true, r.sel))
}

// positions are the requests at which a run of n requests is broken: all, or, of more than most, the first, the last and
// some between.
func positions(n, most int) []int {
	var out []int
	head, tail := most/2, most/4
	step := max(1, (n-head-tail)/max(1, most-head-tail))
	for i := 1; i <= n; i++ {
		if n <= most || i <= head || i > n-tail || (i-head)%step == 0 {
			out = append(out, i)
		}
	}
	return out
}

func repeatIsHarmless(t *testing.T, h Harness, d drill) {
	w, r := d.start(t, h)
	defer w.close()
	w.finish(r)
	w.seeded = w.e.Sessions()
	time.Sleep(time.Minute)
	again := w.run(r.sel)
	if err := again.drive(w.ctx); err != nil {
		w.errorf("the second time: %v", err)
	}
	w.judge(false)
	if again.out.Counted && (again.out.Count != 0 || !again.out.Warned(adapters.WarnNoSessionMatched)) {
		w.errorf("the second time: counts %d, warnings %+v, want 0 and %s", again.out.Count, again.out.Warnings, adapters.WarnNoSessionMatched)
	}
}

func crashLosesNothing(t *testing.T, h Harness, d drill) {
	sent, _ := d.clean(t, h)
	for _, after := range []bool{false, true} {
		for _, n := range positions(len(sent), 20) {
			w, r := d.start(t, h)
			w.about = fmt.Sprintf("crash at request %d of %d, after its effect %t: %s", n, len(sent), after, w.about)
			w.tape.dieAt, w.tape.dieAfter = n, after
			for !w.tape.isDead() && !r.out.Complete && r.out.Calls < maxCalls {
				journal := *r
				r.t = quiet{w.t} // what a dying process returns is nobody's business
				err := r.call(w.ctx)
				r.t = w.t
				if w.tape.isDead() {
					*r = journal
					r.crashed()
				} else if err != nil {
					w.errorf("before the crash: %v", err)
					break
				}
				time.Sleep(r.wait)
			}
			w.judge(false, r.sel)
			w.reopen()
			r.a = w.a
			w.finish(r)
			w.close()
		}
	}
}

// quiet swallows failures.
type quiet struct{ testing.TB }

// Errorf does nothing.
func (quiet) Errorf(string, ...any) {}
