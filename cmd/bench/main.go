// Command bench measures the gateway beside a bare fan-out: a gRPC handler that sends the same upstream requests and
// journals, judges and records nothing. Both are processes of their own, on the machine that also makes the load and
// answers upstream; they are measured in alternating rounds, so that what the machine does besides meets both. See
// docs/performance.md.
//
//	go run ./cmd/bench                     # everything, in less than twenty minutes
//	go run ./cmd/bench -only compare       # one part
//	go run ./cmd/bench -json bench.json -markdown docs/performance.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == roleArgument {
		if err := play(ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", strings.Join(os.Args[2:], " ")+":", err)
			os.Exit(1)
		}
		return
	}
	missed, err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	case missed:
		fmt.Fprintln(os.Stderr, "bench: some figures were not reached")
		os.Exit(3)
	}
}

// part is one group of scenarios.
type part struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var parts = []part{
	{partCompare, compare},
	{partTargets, targets},
	{partJournal, journal},
	{partAccept, accept},
	{"bulk", bulk},
	{"recovery", recovery},
	{"overload", overload},
	{"adapters", realAdapters},
	{"manners", manners},
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// run carries out the parts that are asked for. missed says that a figure that is to be reached was not.
func run(ctx context.Context, args []string, out io.Writer) (missed bool, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("only", "", "comma-separated `parts`: "+strings.Join(partNames(), ", "))
	rounds := flags.Int("rounds", 5, "how often each measurement is repeated, in turn with those it is compared with")
	length := flags.Duration("length", 1500*time.Millisecond, "how long one measurement takes")
	jsonFile := flags.String("json", "", "write the figures to this `file`")
	markdown := flags.String("markdown", "", "replace the figures in this `file`, between its marks")
	profile := flags.String("profile", "", "write CPU profiles of the measured processes into this `directory`, of the last round")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	chosen := parts
	if *only != "" {
		chosen = nil
		for name := range strings.SplitSeq(*only, ",") {
			i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
			if i < 0 {
				return false, fmt.Errorf("-only: %q is not one of %s", name, strings.Join(partNames(), ", "))
			}
			chosen = append(chosen, parts[i])
		}
	}
	dir, err := os.MkdirTemp("", "endsession-bench-")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if fileSystem(dir) == "tmpfs" {
		return false, fmt.Errorf("journals in %s would be in memory, and their commits cost nothing: set TMPDIR to a directory on a disk", os.TempDir())
	}
	b := &bench{dir: dir, out: out, rounds: *rounds, length: *length, profile: *profile}
	defer b.removePostgres()
	began := time.Now()
	b.report = report{Machine: describeMachine(dir), Began: began, Rounds: *rounds, Length: *length}
	fmt.Fprintln(out, b.report.Machine)
	if b.fsyncs, err = appendDurably(dir, 40); err != nil {
		return false, err
	}
	for _, p := range chosen {
		b.logf("%s", p.name)
		if err = p.run(ctx, b); err != nil {
			err = fmt.Errorf("%s: %w", p.name, err)
			break
		}
	}
	b.report.Took = time.Since(began)
	b.report.Machine.Fsync = median(b.fsyncs)
	fmt.Fprintln(out)
	// What was found before something went wrong is shown, but not kept.
	if err = errors.Join(err, b.report.print(out)); err != nil {
		return false, err
	}
	if *jsonFile != "" {
		err = errors.Join(err, b.report.writeJSON(*jsonFile))
	}
	if *markdown != "" {
		err = errors.Join(err, b.report.writeMarkdown(*markdown))
	}
	return b.report.missed(), err
}

// bench is what the parts share.
type bench struct {
	dir     string
	out     io.Writer
	rounds  int
	length  time.Duration
	profile string
	report  report
	// fsyncs is how long appendDurably took, now and then.
	fsyncs   []time.Duration
	postgres *pgtest.Cluster // nil until it is needed
}

// logf tells whoever waits what is being measured.
func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.out, time.Now().Format(time.TimeOnly)+"  "+format+"\n", args...)
}
