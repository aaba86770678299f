package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// report is everything that a run has found. It is written as JSON as it is, and for people as tables.
type report struct {
	Machine machine       `json:"machine"`
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"took_ns"`
	Rounds  int           `json:"rounds"`
	Length  time.Duration `json:"length_ns"`

	Figures      []figure       `json:"figures"`
	Measurements []measurement  `json:"measurements,omitempty"`
	Bulk         *bulkResult    `json:"bulk,omitempty"`
	Recovery     *recovered     `json:"recovery,omitempty"`
	Overload     *overloaded    `json:"overload,omitempty"`
	Selectors    []selectorCost `json:"selectors,omitempty"`
	Manners      *manner        `json:"manners,omitempty"`
	Proofs       []proof        `json:"proofs,omitempty"`
}

// figure is one that is to be reached.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Bound float64 `json:"bound"`
	// Most is true if the value must be at most the bound; otherwise it must be at least that.
	Most bool   `json:"most"`
	Unit string `json:"unit,omitempty"`
	// Unmeasured says why there is no value.
	Unmeasured string `json:"unmeasured,omitempty"`
}

func (f figure) reached() bool {
	return f.Unmeasured == "" && (f.Most && f.Value <= f.Bound || !f.Most && f.Value >= f.Bound)
}

func (r *report) atLeast(name string, value, bound float64) {
	r.Figures = append(r.Figures, figure{Name: name, Value: value, Bound: bound})
}

func (r *report) atMost(name string, value, bound float64, unit string) {
	r.Figures = append(r.Figures, figure{Name: name, Value: value, Bound: bound, Most: true, Unit: unit})
}

// missed reports whether a figure was not reached.
func (r *report) missed() bool {
	for _, f := range r.Figures {
		if !f.reached() {
			return true
		}
	}
	return false
}

// measurement is one contender under one load: medians over the rounds.
type measurement struct {
	Part      string        `json:"part"`
	Upstream  time.Duration `json:"upstream_delay_ns"`
	Callers   int           `json:"callers"`
	Targets   int           `json:"targets"`
	Journal   int           `json:"journalled,omitempty"` // invalidations in the journal beforehand
	Contender string        `json:"contender"`
	sample
	// Ratio is the median of the rates' ratios, round by round, to the bare fan-out or to whatever came first.
	Ratio float64 `json:"ratio"`
}

// table is how people get to see results.
type table struct {
	title string
	head  []string
	rows  [][]string
}

// tables lists what there is, the figures to be reached first.
func (r *report) tables() []table {
	list := []table{r.figures()}
	for _, part := range []struct{ name, title string }{
		{partCompare, "The gateway beside the bare fan-out, three targets"},
		{partTargets, "By number of targets, upstreams that answer at once"},
		{partJournal, "By what is in the journal already, upstreams that answer at once, three targets"},
		{partAccept, "Acceptance only (`wait_timeout` 0), upstreams that answer at once, three targets"},
	} {
		if t := r.measurements(part.name, part.title); len(t.rows) > 0 {
			list = append(list, t)
		}
	}
	if r.Bulk != nil {
		list = append(list, r.Bulk.table())
	}
	if r.Recovery != nil {
		list = append(list, r.Recovery.table())
	}
	if r.Overload != nil {
		list = append(list, r.Overload.table())
	}
	if len(r.Selectors) > 0 {
		list = append(list, selectorTable(r.Selectors))
	}
	if r.Manners != nil {
		list = append(list, r.Manners.table())
	}
	if len(r.Proofs) > 0 {
		list = append(list, proofTable(r.Proofs))
	}
	return list
}

func (r *report) figures() table {
	t := table{title: "Figures to be reached", head: []string{"figure", "measured", "bound", ""}}
	for _, f := range r.Figures {
		word, value := ">=", fmt.Sprintf("%.3g%s", f.Value, f.Unit)
		if f.Most {
			word = "<="
		}
		if f.Unmeasured != "" {
			value = f.Unmeasured
		}
		verdict := "reached"
		if !f.reached() {
			verdict = "MISSED"
		}
		t.rows = append(t.rows, []string{f.Name, value, fmt.Sprintf("%s %.3g%s", word, f.Bound, f.Unit), verdict})
	}
	return t
}

func (r *report) measurements(part, title string) table {
	t := table{title: title, head: []string{"upstream", "callers", "contender", "calls/s", "ratio", "p50", "p99", "CPU/call", "allocs/call", "kB/call", "peak MB"}}
	for _, m := range r.Measurements {
		if m.Part != part {
			continue
		}
		t.rows = append(t.rows, []string{
			m.Upstream.String(), fmt.Sprint(m.Callers), m.Contender, fmt.Sprintf("%.0f", m.Rate), fmt.Sprintf("%.2f", m.Ratio), milliseconds(m.P50), milliseconds(m.P99),
			milliseconds(m.CPU), fmt.Sprintf("%.0f", m.Allocs), fmt.Sprintf("%.1f", m.AllocBytes/1e3), megabytes(m.Peak),
		})
	}
	return t
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }
func seconds(d time.Duration) string      { return fmt.Sprintf("%.2f s", d.Seconds()) }
func megabytes(n int64) string            { return fmt.Sprintf("%.0f", float64(n)/1e6) }

// heading says what the figures are of.
func (r *report) heading() []string {
	return []string{
		r.Machine.String(),
		fmt.Sprintf("%s, in %v; %d rounds of %v each; appending to a file and fsync: %v (median)",
			r.Began.UTC().Format("2006-01-02 15:04 UTC"), r.Took.Round(time.Second), r.Rounds, r.Length, r.Machine.Fsync.Round(time.Microsecond)),
	}
}

// print writes the tables for a terminal.
func (r *report) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range r.heading() {
		fmt.Fprintln(tw, line)
	}
	for _, t := range r.tables() {
		fmt.Fprintf(tw, "\n%s\n", t.title)
		fmt.Fprintln(tw, strings.Join(t.head, "\t"))
		for _, row := range t.rows {
			fmt.Fprintln(tw, strings.Join(row, "\t"))
		}
	}
	return tw.Flush()
}

func (r *report) writeJSON(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// The marks in a document between which the figures are.
const (
	beginMark = "<!-- begin of what make bench printed -->\n"
	endMark   = "<!-- end of what make bench printed -->\n"
)

// writeMarkdown replaces what is between the marks.
func (r *report) writeMarkdown(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(beginMark))
	_, after, found := bytes.Cut(rest, []byte(endMark))
	if !ok || !found {
		return errors.New(file + ": the marks are missing")
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(beginMark + "\n")
	for _, line := range r.heading() {
		fmt.Fprintf(&b, "%s\n\n", line)
	}
	for _, t := range r.tables() {
		fmt.Fprintf(&b, "### %s\n\n| %s |\n|%s\n", t.title, strings.Join(t.head, " | "), strings.Repeat(" --- |", len(t.head)))
		for _, row := range t.rows {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
		b.WriteString("\n")
	}
	b.WriteString(endMark)
	b.Write(after)
	return os.WriteFile(file, b.Bytes(), 0o644)
}
