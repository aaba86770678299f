package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// view shows an invalidation while it goes on.
type view interface {
	// show shows how it stands now. The same may come again.
	show(*endsessionv1.Invalidation)
	// tick comes about every second.
	tick()
	// lost says that nothing is heard of the gateway now; the next show, that it is again.
	lost(reason string)
	// end shows how it stands when nobody looks any longer.
	end(*endsessionv1.Invalidation) error
}

// liveView is a table that is written again in place.
type liveView struct {
	screen *screen
	began  time.Time
	inv    *endsessionv1.Invalidation
	trouble
	// written are the lines that are on the screen now.
	written []string
}

// trouble is why nothing is heard, and since when; the zero value if something is.
type trouble struct {
	reason string
	since  time.Time
}

func (v *liveView) show(inv *endsessionv1.Invalidation) {
	v.inv, v.trouble = inv, trouble{}
	v.draw()
}

func (v *liveView) tick() { v.draw() }

func (v *liveView) lost(reason string) {
	if v.since.IsZero() {
		v.since = time.Now()
	}
	v.reason = reason
	v.draw()
}

// draw replaces what is on the screen. It is one write, so that nobody sees half of it.
func (v *liveView) draw() {
	width, height := v.screen.size()
	p := picture{screen: v.screen, width: width, height: height, elapsed: time.Since(v.began)}
	if !v.since.IsZero() {
		p.footer = fmt.Sprintf("nothing heard of the gateway for %v, trying again: %s", time.Since(v.since).Round(time.Second), v.reason)
	}
	lines := p.lines(v.inv)
	var b strings.Builder
	b.WriteString(v.back(width))
	for _, l := range lines {
		b.WriteString(eraseLine + l + "\n") // erased first: behind a full line the cursor is still on its last cell
	}
	b.WriteString(eraseBelow)
	v.written = lines
	_, _ = io.WriteString(v.screen, b.String())
}

// Commands of terminals, from ECMA-48.
const (
	eraseLine  = "\x1b[K"
	eraseBelow = "\x1b[J"
	cursorUp   = "\x1b[%dA"
)

// back goes to where the first of the lines on the screen begins. A terminal that has become narrower has broken them.
func (v *liveView) back(width int) string {
	rows := 0
	for _, l := range v.written {
		rows += max(1, (cellWidth(l)+width-1)/width)
	}
	if rows == 0 {
		return ""
	}
	return fmt.Sprintf("\r"+cursorUp, rows)
}

func (v *liveView) end(inv *endsessionv1.Invalidation) error {
	width, _ := v.screen.size()
	if _, err := io.WriteString(v.screen, v.back(width)+eraseBelow); err != nil {
		return err
	}
	v.written = nil
	return printInvalidation(v.screen, inv)
}

// picture is what a live table looks like at one moment.
type picture struct {
	screen        *screen
	width, height int
	elapsed       time.Duration
	// footer is said below the table, if it is not empty.
	footer string
}

// fewest is how many lines a picture has at the very least: two above the table, its header, a target, the tally of the
// other targets and a footer.
const fewest = 6

// lines draws an invalidation in fewer lines than the screen is high (there is always one more, below them), none wider
// than the screen.
func (p picture) lines(inv *endsessionv1.Invalidation) []string {
	runs := inv.GetRuns()
	room := max(p.height-1, fewest) - 3 // without the two lines above the table, and its header
	if p.footer != "" {
		room--
	}
	done := 0
	for _, r := range runs {
		if runFinal(r) {
			done++
		}
	}
	state := stateWord(inv.GetState())
	lines := []string{
		cut(inv.GetName(), p.width),
		p.screen.paint(stateStyle(state), cut(fmt.Sprintf("%s  %d of %d targets final  sessions ended: %s  %v", state, done, len(runs),
			total(inv), p.elapsed.Truncate(time.Second)), p.width)),
	}
	shown, others := runs, []*endsessionv1.Run(nil)
	if len(runs) > room { // those that do not fit are counted instead
		sorted := slices.Clone(runs)
		slices.SortStableFunc(sorted, func(a, b *endsessionv1.Run) int { return cmp.Compare(interest(a), interest(b)) })
		shown, others = sorted[:room-1], sorted[room-1:]
	}
	lines = append(lines, runTable(shown, p.width, true).lines(p.screen, p.width)...)
	room -= len(shown)
	if len(others) > 0 {
		lines = append(lines, cut(fmt.Sprintf("and %d more: %s", len(others), tallyRuns(others)), p.width))
		room--
	}
	for _, n := range notes(inv)[:min(room, len(notes(inv)))] {
		lines = append(lines, p.screen.paint(n.how, cut(n.text, p.width)))
	}
	if p.footer != "" {
		lines = append(lines, p.screen.paint(alarm, cut(p.footer, p.width)))
	}
	return lines[:min(len(lines), max(1, p.height-1))]
}

// interest orders runs by how much there is to be seen: those that are not final before those that are, and in both
// those in trouble first.
func interest(r *endsessionv1.Run) int {
	switch r.GetState() {
	case endsessionv1.RunState_RUN_STATE_RETRYING:
		return 0
	case endsessionv1.RunState_RUN_STATE_RUNNING:
		return 1
	case endsessionv1.RunState_RUN_STATE_PENDING:
		return 2
	case endsessionv1.RunState_RUN_STATE_SUCCEEDED:
		return 4
	}
	return 3
}

// lineView writes one line for each change of a run, for programs and for logs.
type lineView struct {
	out, err io.Writer
	written  map[string]string
	trouble  bool
}

func (v *lineView) show(inv *endsessionv1.Invalidation) {
	if v.trouble {
		v.trouble = false
		fmt.Fprintln(v.err, "the gateway is heard of again")
	}
	for _, r := range inv.GetRuns() {
		if l := plainRun(inv.GetName(), r); v.written[r.GetTarget()] != l {
			v.written[r.GetTarget()] = l
			fmt.Fprintln(v.out, l)
		}
	}
}

func (v *lineView) tick() {}

func (v *lineView) lost(reason string) {
	if !v.trouble {
		fmt.Fprintln(v.err, "nothing is heard of the gateway, trying again: "+reason)
	}
	v.trouble = true
}

func (v *lineView) end(inv *endsessionv1.Invalidation) error {
	return printInvalidation(v.out, inv)
}

// jsonView writes a document for each change, or only hands the last one over: then each is nil.
type jsonView struct {
	each     func(*endsessionv1.Invalidation) error
	revision int64
	wrong    error
}

func (v *jsonView) show(inv *endsessionv1.Invalidation) {
	if v.each != nil && v.wrong == nil && inv.GetRevision() != v.revision {
		v.wrong = v.each(inv)
	}
	v.revision = inv.GetRevision()
}

func (v *jsonView) tick()                                {}
func (v *jsonView) lost(string)                          {}
func (v *jsonView) end(*endsessionv1.Invalidation) error { return v.wrong }
