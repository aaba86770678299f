package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// count says how many sessions ended, and how sure that is.
func count(n *int32, minimum bool) string {
	switch {
	case n == nil, minimum && *n == 0: // "at least 0" says nothing
		return "unknown"
	case minimum:
		return fmt.Sprintf("at least %d", *n)
	}
	return fmt.Sprint(*n)
}

// total is the count of all runs; if nothing was sent and nothing will be, there is none.
func total(inv *endsessionv1.Invalidation) string {
	if inv.InvalidatedCount == nil && !inv.GetCountIsMinimum() {
		return "-"
	}
	return count(inv.InvalidatedCount, inv.GetCountIsMinimum())
}

// runCount is the count of one run; a run that sent nothing and never will has none.
func runCount(r *endsessionv1.Run) string {
	if r.InvalidatedCount == nil && r.GetAttempts() == 0 {
		return "-"
	}
	return count(r.InvalidatedCount, r.GetCountIsMinimum())
}

// final reports whether nothing about an invalidation will change any more. Of a state that this program does not know
// that cannot be said.
func final(inv *endsessionv1.Invalidation) bool {
	switch inv.GetState() {
	case endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED, endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED,
		endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED, endsessionv1.InvalidationState_INVALIDATION_STATE_CANCELLED:
		return true
	}
	return false
}

// runFinal reports the same of a run.
func runFinal(r *endsessionv1.Run) bool {
	switch r.GetState() {
	case endsessionv1.RunState_RUN_STATE_SUCCEEDED, endsessionv1.RunState_RUN_STATE_UNSUPPORTED,
		endsessionv1.RunState_RUN_STATE_FAILED, endsessionv1.RunState_RUN_STATE_CANCELLED:
		return true
	}
	return false
}

func runStateWord(s endsessionv1.RunState) string { return word(s, "RUN_STATE_") }

// stateStyle is how a state looks, of a run or an invalidation.
func stateStyle(state string) style {
	switch state {
	case "SUCCEEDED":
		return good
	case "FAILED":
		return bad
	case "RETRYING", "UNSUPPORTED", "CANCELLED", "PARTIALLY_SUCCEEDED":
		return wary
	}
	return plain
}

// printInvalidation writes one line for each target, and what people should know below.
func printInvalidation(w io.Writer, inv *endsessionv1.Invalidation) error {
	s := screenOf(w)
	state := stateWord(inv.GetState())
	ended := "sessions ended: " + total(inv)
	between := gap
	if width := s.width(); width > 0 && across([]int{cellWidth(inv.GetName()), len(state), len(ended)}) > width {
		between = "\n"
	}
	fmt.Fprintln(w, inv.GetName()+between+s.paint(stateStyle(state), state)+gap+ended)
	if err := runTable(inv.GetRuns(), s.width(), false).write(w); err != nil {
		return err
	}
	return printNotes(w, inv)
}

// printNotes writes what people should know of an invalidation's runs.
func printNotes(w io.Writer, inv *endsessionv1.Invalidation) error {
	s := screenOf(w)
	for _, n := range notes(inv) {
		if _, err := fmt.Fprintln(w, s.paint(n.how, n.text)); err != nil {
			return err
		}
	}
	return nil
}

// runTable has one line for each run. Where width is not 0 and not enough, words are shorter; reasons says whether there
// is a column with what is wrong, for where the notes may not be shown.
func runTable(runs []*endsessionv1.Run, width int, reasons bool) *table {
	build := func(short bool) *table {
		t := newTable("TARGET", "STATE", "SESSIONS", "VERIFICATION", "ATTEMPTS", "NEXT TRY")
		t.shrinks = []int{0}
		if reasons {
			t.header = append(t.header, "REASON")
			t.shrinks = append(t.shrinks, 6)
		}
		for _, r := range runs {
			next := "-"
			if at := r.GetNextAttemptTime(); at != nil {
				next = at.AsTime().Local().Format(time.TimeOnly)
			}
			state := runStateWord(r.GetState())
			row := []cell{{r.GetTarget(), plain}, {state, stateStyle(state)}, {runCount(r), countStyle(r)},
				{verification(r, short), plain}, {fmt.Sprint(r.GetAttempts()), plain}, {next, plain}}
			if reasons {
				row = append(row, cell{strings.Join(reasonsOf(r), ", "), stateStyle(state)})
			}
			t.add(row...)
		}
		return t
	}
	t := build(false)
	if width > 0 && t.width() > width {
		t = build(true)
	}
	return t
}

func verification(r *endsessionv1.Run, short bool) string {
	v := r.GetVerification()
	if v == endsessionv1.Verification_VERIFICATION_UNSPECIFIED {
		return "-"
	}
	text := word(v, "VERIFICATION_")
	if short {
		text = strings.TrimPrefix(text, "CONFIRMED_")
	}
	return text
}

func countStyle(r *endsessionv1.Run) style {
	if endedNone(r) {
		return alarm
	}
	return plain
}

// reasonsOf are the words for what is wrong with a run, or should be known of it.
func reasonsOf(r *endsessionv1.Run) (words []string) {
	if e := r.GetError(); e != nil {
		words = append(words, e.GetReason())
	}
	for _, w := range warnings(r) {
		words = append(words, w.GetCode())
	}
	return words
}

// note is a line below the table.
type note struct {
	how  style
	text string
}

// notes are the errors and warnings of all runs.
func notes(inv *endsessionv1.Invalidation) (list []note) {
	for _, r := range inv.GetRuns() {
		if e := r.GetError(); e != nil {
			list = append(list, note{stateStyle(runStateWord(r.GetState())), fmt.Sprintf("%s: %s: %s", r.GetTarget(), e.GetReason(), e.GetMessage())})
		}
		for _, w := range warnings(r) {
			message := w.GetMessage()
			switch {
			case w.GetCode() == noSessionMatched:
				message = "0 sessions matched" + checkWhat(inv.GetSelector(), r.GetTarget(), "the target was asked for")
			case w.GetCode() == nothingCanMatch && endedNone(r):
				message = "0 sessions matched: " + message
			}
			list = append(list, note{wary, fmt.Sprintf("%s: warning: %s: %s", r.GetTarget(), w.GetCode(), message)})
		}
	}
	if allEndedNone(inv) {
		list = append(list, note{alarm, "WARNING: 0 sessions matched in all" +
			checkWhat(inv.GetSelector(), "", "and see with `endsession preview` what the targets are asked for")})
	}
	return list
}

const (
	noSessionMatched = "NO_SESSION_MATCHED"
	nothingCanMatch  = "NOTHING_CAN_MATCH"
)

// endedNone reports whether a run succeeded although there was not a single session: then it is told that nothing
// matched, because a wrong name looks just the same.
func endedNone(r *endsessionv1.Run) bool {
	return r.GetState() == endsessionv1.RunState_RUN_STATE_SUCCEEDED && r.InvalidatedCount != nil && r.GetInvalidatedCount() == 0 &&
		!r.GetCountIsMinimum()
}

// allEndedNone reports whether that is so of all runs, and some target could express what was asked.
func allEndedNone(inv *endsessionv1.Invalidation) bool {
	asked := slices.DeleteFunc(slices.Clone(inv.GetRuns()), func(r *endsessionv1.Run) bool {
		return r.GetState() == endsessionv1.RunState_RUN_STATE_UNSUPPORTED
	})
	return len(asked) > 0 && !slices.ContainsFunc(asked, func(r *endsessionv1.Run) bool { return !endedNone(r) })
}

// warnings are a run's, with one that nothing matched wherever that is so.
func warnings(r *endsessionv1.Run) []*endsessionv1.Warning {
	list := r.GetWarnings()
	says := func(w *endsessionv1.Warning) bool {
		return w.GetCode() == noSessionMatched || w.GetCode() == nothingCanMatch
	}
	if endedNone(r) && !slices.ContainsFunc(list, says) {
		list = append(slices.Clone(list), &endsessionv1.Warning{Code: noSessionMatched})
	}
	return list
}

// checkWhat says what may be wrong where nothing matched.
func checkWhat(sel *endsessionv1.Selector, target, what string) string {
	var parts []string
	if u := sel.GetUser(); u != nil {
		names := u.GetTargetUsernames()[target].GetUsernames()
		if len(names) == 0 {
			names = []string{u.GetId()}
		}
		parts = append(parts, `the name "`+strings.Join(names, `", "`)+`"`)
	}
	if p := sel.GetProvider(); p != nil {
		parts = append(parts, `the provider "`+strings.TrimSuffix(p.GetType()+"/"+p.GetName(), "/")+`"`)
	}
	if sel.GetGroup() != "" {
		parts = append(parts, `the group "`+sel.GetGroup()+`"`)
	}
	if len(sel.GetSessions()) > 0 {
		parts = append(parts, "the ids of the sessions")
	}
	if len(parts) == 0 {
		return ""
	}
	return ": check " + strings.Join(parts, ", ") + " " + what
}

// attemptUnderWay reports whether one is: then the next try is only the next question, of which there may be many.
func attemptUnderWay(r *endsessionv1.Run) bool {
	return r.GetState() == endsessionv1.RunState_RUN_STATE_RUNNING
}

// plainRun is a run in one line for programs that search lines. It has no spaces but between its parts, and in the
// message, which is last.
func plainRun(name string, r *endsessionv1.Run) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s sessions=%s verification=%s attempts=%d", name, r.GetTarget(), runStateWord(r.GetState()),
		strings.ReplaceAll(runCount(r), " ", "-"), verification(r, false), r.GetAttempts())
	if at := r.GetNextAttemptTime(); at != nil && !attemptUnderWay(r) {
		fmt.Fprintf(&b, " next_try=%s", at.AsTime().UTC().Format(time.RFC3339))
	}
	var codes []string
	for _, w := range warnings(r) {
		codes = append(codes, w.GetCode())
	}
	if len(codes) > 0 {
		fmt.Fprintf(&b, " warnings=%s", strings.Join(codes, ","))
	}
	if e := r.GetError(); e != nil {
		fmt.Fprintf(&b, " reason=%s message=%q", e.GetReason(), e.GetMessage())
	}
	return b.String()
}

// tallyRuns says how many runs are in which state, the most first.
func tallyRuns(runs []*endsessionv1.Run) string {
	numbers := map[string]int{}
	for _, r := range runs {
		numbers[runStateWord(r.GetState())]++
	}
	states := slices.SortedFunc(maps.Keys(numbers), func(a, b string) int {
		return cmp.Or(cmp.Compare(numbers[b], numbers[a]), cmp.Compare(a, b))
	})
	for i, s := range states {
		states[i] = fmt.Sprintf("%d %s", numbers[s], s)
	}
	return strings.Join(states, ", ")
}
