package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// output is the form a command prints in.
type output struct{ format string }

func (o *output) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "`form`: table or json")
	completes(cmd, "output", oneOf("table", "json"))
	cmd.Flags().Var(&colorFlag{cmd, "auto"}, "color", "colours, `when`: auto, always or never; auto is on a terminal, unless NO_COLOR is set [NO_COLOR]")
	completes(cmd, "color", oneOf("auto", "always", "never"))
}

// check refuses an unknown format before anything is done.
func (o *output) check() error {
	if o.format != "table" && o.format != "json" {
		return usageError("--output: want table or json, got %q", o.format)
	}
	return nil
}

// print writes a message as JSON, in one line, or makes it harmless to a terminal and hands it to table.
func (o *output) print(w io.Writer, m proto.Message, table func(io.Writer) error) error {
	if o.format != "json" {
		defuse(m.ProtoReflect())
		return table(w)
	}
	return printJSON(w, m)
}

// document writes a message if it is JSON that is wanted; if not, something else was shown already.
func (o *output) document(cmd *cobra.Command, m proto.Message) error {
	if o.format != "json" {
		return nil
	}
	return printJSON(cmd.OutOrStdout(), m)
}

func printJSON(w io.Writer, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// defuse makes what is not to be seen, in all texts of a message, an escape that is: line breaks, tabs, a terminal's
// commands, marks that turn the direction. Callers and targets choose names, and could otherwise forge lines of a table
// that somebody decides by.
func defuse(m protoreflect.Message) {
	value := func(v protoreflect.Value) protoreflect.Value {
		switch x := v.Interface().(type) {
		case string:
			return protoreflect.ValueOfString(visible(x))
		case protoreflect.Message:
			defuse(x)
		}
		return v
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap(): // keys are names of targets, and labels, which have no such characters
			v.Map().Range(func(key protoreflect.MapKey, x protoreflect.Value) bool {
				v.Map().Set(key, value(x))
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, value(v.List().Get(i)))
			}
		default:
			m.Set(fd, value(v))
		}
		return true
	})
}

// visible writes characters that are not to be seen as Go does in a literal.
func visible(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// word takes the enum's prefix off: RUN_STATE_SUCCEEDED with prefix RUN_STATE_ is SUCCEEDED.
func word(v fmt.Stringer, prefix string) string { return strings.TrimPrefix(v.String(), prefix) }

func stateWord(s endsessionv1.InvalidationState) string { return word(s, "INVALIDATION_STATE_") }

// printPreviews writes what a call would do.
func printPreviews(w io.Writer, previews []*endsessionv1.Preview) error {
	for _, p := range previews {
		fmt.Fprintf(w, "%s (%s)\n", p.GetTarget(), p.GetKind())
		if e := p.GetError(); e != nil {
			what := "would fail"
			if !p.GetSupported() {
				what = "nothing would be sent"
			}
			fmt.Fprintf(w, "  %s: %s: %s\n", what, e.GetReason(), e.GetMessage())
		}
		for _, line := range p.GetSummary() {
			fmt.Fprintf(w, "  %s\n", line)
		}
		switch {
		case p.GetCanList():
			more := ""
			if p.GetSessionsTruncated() {
				more = ", and more"
			}
			fmt.Fprintf(w, "  sessions that would end now: %d%s\n", len(p.GetSessions()), more)
			for _, s := range p.GetSessions() {
				fmt.Fprintf(w, "    %s  %s  %s\n", s.GetId(), s.GetUsername(), s.GetProvider())
			}
		case p.GetError() == nil && len(p.GetRequests()) > 0:
			fmt.Fprintln(w, "  the target cannot list its sessions")
		}
		for _, r := range p.GetRequests() {
			fmt.Fprintf(w, "  %s %s %s\n", r.GetMethod(), r.GetUrl(), r.GetBody())
		}
		for _, wa := range p.GetWarnings() {
			fmt.Fprintf(w, "  warning: %s: %s\n", wa.GetCode(), wa.GetMessage())
		}
	}
	return nil
}
