package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"buf.build/go/protovalidate"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	// jobLabel is the label by which a job's invalidations are found and cancelled.
	jobLabel = "job"
	// someNames is how many people are named where naming all would be too much.
	someNames = 5
	// maxParallel is how many calls may be asked to be under way at once.
	maxParallel = 256
)

// jobName is what a job may be called: the name is a label's value, and part of a file's name.
var jobName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// bulkFlags are the flags of `invalidate` that belong to a users file.
type bulkFlags struct {
	users    string
	format   string
	job      string
	failures string
	parallel int
}

func (b *bulkFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&b.users, "users-file", "", "end the sessions of everybody in this `file`, one invalidation each; - is standard input")
	f.StringVar(&b.format, "users-format", "", "of the users file: text, one id a line, or csv, with a header (default: by the file's name)")
	f.StringVar(&b.job, "job", "", "the job's `name`, with --users-file: what was accepted under it before is not begun anew (default: from the file's name and content)")
	f.StringVar(&b.failures, "failures", "", "with --users-file: `file` for those who failed, as CSV (default: JOB.failures.csv beside the users file)")
	f.IntVar(&b.parallel, "parallel", 16, "with --users-file: how many calls are under way at once")
}

// given reports whether there is a users file. What belongs to one and comes without, or the other way round, is refused.
func (b *bulkFlags) given(cmd *cobra.Command) (bool, error) {
	changed := cmd.Flags().Changed
	if !changed("users-file") {
		for _, flag := range []string{"users-format", "job", "failures", "parallel"} {
			if changed(flag) {
				return false, usageError("--%s goes with --users-file", flag)
			}
		}
		return false, nil
	}
	for _, flag := range []string{"user", "email", "attribute", "target-username", "session", "all", "request-id"} {
		if changed(flag) {
			return false, usageError("--%s and --users-file: want one, the file says who", flag)
		}
	}
	switch {
	case b.users == "":
		return false, usageError("--users-file: must not be empty")
	case changed("users-format") && b.format != usersText && b.format != usersCSV:
		return false, usageError("--users-format: want text or csv, got %q", b.format)
	case changed("job") && !jobName.MatchString(b.job):
		return false, usageError("--job: want at most 100 letters, digits, '.', '_' and '-', the first a letter or a digit, got %q", b.job)
	case changed("failures") && b.failures == "":
		return false, usageError("--failures: must not be empty")
	case b.parallel < 1 || b.parallel > maxParallel:
		return false, usageError("--parallel: want 1 to %d, got %d", maxParallel, b.parallel)
	}
	return true, nil
}

// read reads the users file.
func (b *bulkFlags) read(cmd *cobra.Command) (usersFile, error) {
	var r io.Reader
	switch b.users {
	case "-":
		r = cmd.InOrStdin()
	default:
		f, err := os.Open(b.users)
		if err != nil {
			return usersFile{}, usageError("--users-file: %w", err)
		}
		defer func() { _ = f.Close() }()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxUsersFile+1))
	switch {
	case err != nil:
		return usersFile{}, usageError("--users-file: %w", err)
	case len(data) > maxUsersFile:
		return usersFile{}, usageError("--users-file: %s is larger than %d MiB", b.called(), maxUsersFile>>20)
	}
	format := b.format
	switch {
	case format != "":
	case strings.EqualFold(filepath.Ext(b.users), ".csv"):
		format = usersCSV
	default:
		format = usersText
	}
	return parseUsers(b.called(), format, data)
}

// called is what the users file is called in what is told.
func (b *bulkFlags) called() string {
	if b.users == "-" {
		return "standard input"
	}
	return b.users
}

// name is the job's: that of the same file with the same content is always the same.
func (b *bulkFlags) name(file usersFile) string {
	if b.job != "" {
		return b.job
	}
	base := "stdin"
	if b.users != "-" {
		base = filepath.Base(b.users)
		base = strings.TrimSuffix(base, filepath.Ext(base))
	}
	base = strings.TrimLeft(regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(base, "-"), "._-")
	if base == "" {
		base = "users"
	}
	return fmt.Sprintf("%.80s-%x", base, file.digest[:5])
}

// bulk ends the sessions of everybody in a users file.
func bulk(cmd *cobra.Command, conn *connection, call *callFlags, flags *bulkFlags, out *output, look *looking, yes bool) error {
	base, err := call.request(cmd)
	if err != nil {
		return err
	}
	if _, taken := base.GetLabels()[jobLabel]; taken {
		return usageError("--label %s=…: that is the job's name; give it with --job", jobLabel)
	}
	if !yes {
		if flags.users == "-" {
			return usageError("the users come from standard input, so nobody can be asked there; add --yes to go on without being asked")
		}
		if err := canAsk(cmd); err != nil {
			return err
		}
	}
	file, err := flags.read(cmd)
	if err != nil {
		return err
	}
	j := newBulkJob(flags.name(file), base, file.people)
	j.parallel, j.calls, j.wait = flags.parallel, newGovernor(flags.parallel+1), -1 // one call to look what became of them
	if cmd.Flags().Changed("wait") && !look.end {
		if j.wait = look.wait; j.wait < 0 {
			return usageError("--wait: must not be negative")
		}
	}
	// The file was held against the contract; this is about the rest.
	if err := protovalidate.Validate(j.request(file.people[0])); err != nil {
		return usageError("%w", err)
	}
	path := flags.failures
	if path == "" {
		path = filepath.Join(filepath.Dir(flags.users), j.name+".failures.csv") // beside -, that is here
	}
	failures, err := openFailures(path, flags.users)
	if err != nil {
		return err
	}

	client, done, err := conn.dial()
	if err != nil {
		return err
	}
	defer done()
	j.client = client
	if err := introduce(cmd, j, file, flags.called()); err != nil {
		return err
	}
	if !yes {
		if err := sample(cmd, j); err != nil {
			return err
		}
		if err := ask(cmd, fmt.Sprintf("End the sessions of %s?", people(len(file.people)))); err != nil {
			return err
		}
	}

	report := &bulkReport{job: j, file: file, failures: failures, cmd: cmd, flags: flags}
	if out.format == "json" {
		report.json = cmd.OutOrStdout()
	}
	j.settled = report.person
	hard, stopWatching := secondInterrupt(cmd.Context())
	defer stopWatching()
	stopTelling := context.AfterFunc(cmd.Context(), func() {
		fmt.Fprintln(cmd.ErrOrStderr(), "interrupted: no more calls are made; those under way are finished, unless you interrupt again")
	})
	defer stopTelling()
	shown := showProgress(newScreen(cmd.ErrOrStderr(), conn.lookup), j)
	ended := j.run(cmd.Context(), hard)
	shown()
	if cmd.Context().Err() != nil {
		ended = errInterrupted
	}
	return report.finish(ended)
}

func people(n int) string {
	if n == 1 {
		return "1 person"
	}
	return fmt.Sprintf("%d people", n)
}

// secondInterrupt returns a context that the first interrupt, which ends ctx, does not end, and the second does.
func secondInterrupt(ctx context.Context) (hard context.Context, stop func()) {
	hard, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-ctx.Done():
		case <-hard.Done():
		}
		for range 2 { // the first one is what ended ctx
			select {
			case <-signals:
			case <-hard.Done():
				return
			}
		}
		cancel(errInterrupted)
	}()
	return hard, func() { signal.Stop(signals); cancel(nil) }
}

// introduce says what is going to be done, to whom and where. It is also how a gateway that does not answer, or does not
// know the caller, is found out before anything is sent.
func introduce(cmd *cobra.Command, j *bulkJob, file usersFile, called string) error {
	w := cmd.ErrOrStderr()
	targets := slices.Clone(j.base.GetTargets())
	resp, err := j.client.ListTargets(cmd.Context(), &endsessionv1.ListTargetsRequest{})
	switch status.Code(err) {
	case codes.OK:
		if len(targets) == 0 {
			for _, t := range resp.GetTargets() {
				targets = append(targets, t.GetName())
			}
		}
	case codes.PermissionDenied: // may be so; ending sessions is another right
	default:
		return callError(err)
	}
	fmt.Fprintf(w, "%s in %s", people(len(file.people)), visible(called))
	if file.repeated > 0 {
		fmt.Fprintf(w, " (%s repeated)", plural(file.repeated, "line"))
	}
	where := "every configured target"
	if len(targets) > 0 {
		where = strings.Join(targets, ", ")
	}
	fmt.Fprintf(w, ": %s\njob: %s\ntargets: %s\n", someOf(len(file.people), func(i int) string { return file.people[i].user.GetId() }), j.name, visible(where))
	if only := selectorText(&endsessionv1.Selector{Provider: j.base.GetSelector().GetProvider(), Group: j.base.GetSelector().Group}); only != "" {
		fmt.Fprintf(w, "only: %s\n", visible(only))
	}
	if len(file.columns) > 0 {
		fmt.Fprintf(w, "sent besides the id: %s\n", visible(strings.Join(file.columns, ", ")))
	}
	return nil
}

// someOf lists the first of n.
func someOf(n int, of func(int) string) string {
	var list []string
	for i := range min(n, someNames) {
		list = append(list, visible(of(i)))
	}
	if n > someNames {
		list = append(list, "…")
	}
	return strings.Join(list, ", ")
}

// sample shows what would be done about the first person. That this one is refused says nothing about the others.
func sample(cmd *cobra.Command, j *bulkJob) error {
	p := j.entries[0].person
	previews, err := preview(cmd, j.client, j.request(p))
	fmt.Fprintf(cmd.ErrOrStderr(), "the first of them, %s:\n", visible(p.user.GetId()))
	switch {
	case err == nil:
	case status.Code(err) == codes.PermissionDenied:
		_, err := fmt.Fprintf(cmd.ErrOrStderr(), "  no preview: %s\n", visibleLines(describe(err)))
		return err
	default:
		return callError(err)
	}
	return new(output).print(cmd.ErrOrStderr(), previews, func(w io.Writer) error { return printPreviews(w, previews.GetPreviews()) })
}

// visibleLines is visible for a text of several lines.
func visibleLines(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		end := strings.TrimSuffix(line, "\n")
		b.WriteString(visible(end) + line[len(end):])
	}
	return b.String()
}

// bulkReport tells what became of a job.
type bulkReport struct {
	job      *bulkJob
	file     usersFile
	failures failuresFile
	cmd      *cobra.Command
	flags    *bulkFlags
	// json is where a line is written for each person; nil: nowhere.
	json io.Writer
}

// personLine is one person's line of JSON. The invalidation is as the API has it.
type personLine struct {
	User string `json:"user"`
	// Outcome is SUCCEEDED, PARTIALLY_SUCCEEDED, FAILED, CANCELLED, RUNNING, NOT_ACCEPTED, NOT_SENT or UNKNOWN.
	Outcome      string          `json:"outcome"`
	Replayed     bool            `json:"replayed,omitempty"`
	Reason       string          `json:"reason,omitempty"`
	Message      string          `json:"message,omitempty"`
	Invalidation json.RawMessage `json:"invalidation,omitempty"`
}

// person writes what became of one.
func (r *bulkReport) person(e *entry) {
	if r.json == nil {
		return
	}
	line := personLine{User: e.person.user.GetId(), Replayed: e.replayed}
	switch e.standing {
	case unsent:
		line.Outcome = "NOT_SENT"
	case refused:
		line.Outcome = "NOT_ACCEPTED"
	case unclear:
		line.Outcome = "UNKNOWN"
	default:
		line.Outcome = stateWord(e.inv.GetState())
	}
	if e.err != nil {
		line.Reason, line.Message = refusalOf(e.err)
	}
	if e.inv != nil {
		if b, err := protojson.Marshal(e.inv); err == nil {
			line.Invalidation = b
		}
	}
	r.line(line)
}

func (r *bulkReport) line(v any) {
	enc := json.NewEncoder(r.json)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // nothing can be done about a reader that is gone
}

// finish tells how the job as a whole came out, and gives the exit status.
func (r *bulkReport) finish(ended error) error {
	j := r.job
	var failures []failure
	for _, e := range j.entries {
		switch e.standing {
		case unsent, accepted:
			r.person(e)
		case refused:
			failures = append(failures, notAccepted(e.person, e.err))
		case unclear:
			failures = append(failures, unknownOutcome(e.person, e.inv.GetName(), e.err))
		case finished:
			failures = append(failures, failuresOf(e.person, e.inv)...)
		}
	}
	t := j.count()
	var writeErr error
	if len(failures) > 0 || t.done() == t.total { // else those of an earlier run may still be true
		writeErr = r.failures.write(r.file.columns, failures)
	}
	if r.json != nil {
		r.line(map[string]any{"summary": r.summary(t, failures, ended)})
	} else {
		r.table(t, failures)
	}
	w := r.cmd.ErrOrStderr()
	if writeErr != nil {
		fmt.Fprintf(w, "the failures could not be written to %s: %v\n", r.failures.path, writeErr)
	}
	unsent := t.total - t.sent
	if ended != nil {
		fmt.Fprintf(w, "stopped: %s\n%d accepted, %d not sent\n", visibleLines(describe(ended)), t.accepted(), unsent)
	}
	// A command line that was wrong from the beginning does not get better.
	if wrong := t.accepted()+t.lost == 0 && status.Code(ended) == codes.InvalidArgument; !wrong && (ended != nil && (unsent > 0 || t.running > 0) || t.lost > 0) {
		fmt.Fprintf(w, "to go on: %s\n", r.command(r.flags.users, j.name))
	}
	if t.running > 0 {
		fmt.Fprintf(w, "%s still running; to stop them: %s\n", people(t.running), r.cancel())
	}
	if len(failures) > 0 && writeErr == nil {
		fmt.Fprintf(w, "failures: %s; to try them again: %s\n", r.failures.path, r.command(r.failures.path, ""))
	}
	return exitOf(t, ended)
}

// exitOf is the exit status of a job.
func exitOf(t bulkTally, ended error) error {
	exit := func(code int) error {
		return &exitError{status: code}
	}
	switch {
	case status.Code(ended) == codes.InvalidArgument && t.accepted()+t.lost == 0:
		return exit(exitUsage)
	case t.accepted()+t.lost == 0:
		return exit(exitNotAccepted)
	case t.running+t.lost > 0:
		return exit(exitStillRunning)
	case t.succeeded == t.total:
		return nil
	case t.succeeded+t.partial > 0:
		return exit(exitPartial)
	}
	return exit(exitFailed)
}

// bulkSummary is the last line of JSON.
type bulkSummary struct {
	Job                string `json:"job"`
	Users              int    `json:"users"`
	Succeeded          int    `json:"succeeded"`
	PartiallySucceeded int    `json:"partiallySucceeded"`
	Failed             int    `json:"failed"`
	Cancelled          int    `json:"cancelled"`
	Running            int    `json:"running"`
	NotAccepted        int    `json:"notAccepted"`
	NotSent            int    `json:"notSent"`
	Unknown            int    `json:"unknown"`
	// Replayed is how many were accepted by an earlier run of the job.
	Replayed int `json:"replayed"`
	// InvalidatedCount is how many sessions ended; at least, if CountIsMinimum.
	InvalidatedCount int64 `json:"invalidatedCount"`
	CountIsMinimum   bool  `json:"countIsMinimum"`
	// WithoutSession is how many had no session.
	WithoutSession int `json:"withoutSession"`
	// Failures is the file with the failures.
	Failures string `json:"failures,omitempty"`
	// Stopped says why the job ended early.
	Stopped string `json:"stopped,omitempty"`
}

func (r *bulkReport) summary(t bulkTally, failures []failure, ended error) bulkSummary {
	s := bulkSummary{
		Job: r.job.name, Users: t.total, Succeeded: t.succeeded, PartiallySucceeded: t.partial, Failed: t.failed, Cancelled: t.cancelled,
		Running: t.running, NotAccepted: t.refused, NotSent: t.total - t.sent, Unknown: t.lost, Replayed: t.replayed,
		InvalidatedCount: t.sessions, CountIsMinimum: t.atLeast(), WithoutSession: t.nothing,
	}
	if len(failures) > 0 {
		s.Failures = r.failures.path
	}
	if ended != nil {
		s.Stopped = describe(ended)
	}
	return s
}

// atLeast reports whether more sessions may have ended, or may end, than were counted.
func (t bulkTally) atLeast() bool { return t.minimum || t.running+t.lost > 0 }

// table writes the summary for people.
func (r *bulkReport) table(t bulkTally, failures []failure) {
	w := r.cmd.OutOrStdout()
	fmt.Fprintf(w, "job %s: %s", r.job.name, people(t.total))
	if t.replayed > 0 {
		fmt.Fprintf(w, ", %d of them accepted before", t.replayed)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, x := range []struct {
		n      int
		what   string
		always bool
	}{
		{t.succeeded, "succeeded", true}, {t.partial, "partly succeeded", false}, {t.failed, "failed", true}, {t.cancelled, "cancelled", false},
		{t.running, "still running", false}, {t.refused, "not accepted", false}, {t.total - t.sent, "not sent", false}, {t.lost, "unknown", false},
	} {
		if x.n > 0 || x.always {
			fmt.Fprintf(tw, "%d\t  %s\n", x.n, x.what)
		}
	}
	_ = tw.Flush()
	least := ""
	if t.atLeast() {
		least = "at least "
	}
	fmt.Fprintf(w, "sessions ended: %s%d\n", least, t.sessions)
	if t.nothing > 0 {
		fmt.Fprintf(w, "warning: %s had no session: signed out already, or the name is wrong (%s)\n", people(t.nothing),
			someOf(t.nothing, func(i int) string { return t.nothingNamed[i] }))
	}
	r.reasons(w, failures)
}

// reasons writes why people failed: each reason once, with how many and who the first are.
func (r *bulkReport) reasons(w io.Writer, failures []failure) {
	type kind struct{ target, state, reason string }
	type group struct {
		message string
		who     []string
	}
	groups := map[kind]*group{}
	var order []kind
	for _, f := range failures {
		k := kind{f.target, f.state, f.reason}
		if groups[k] == nil {
			groups[k] = &group{message: f.message}
			order = append(order, k)
		}
		groups[k].who = append(groups[k].who, f.person.user.GetId())
	}
	slices.SortStableFunc(order, func(a, b kind) int { return len(groups[b].who) - len(groups[a].who) })
	for i, k := range order {
		if i == maxProblems {
			fmt.Fprintf(w, "and %d more reasons\n", len(order)-i)
			return
		}
		g := groups[k]
		parts := slices.DeleteFunc([]string{k.target, k.state, k.reason, g.message}, func(s string) bool { return s == "" })
		fmt.Fprintf(w, "%d × %s (%s)\n", len(g.who), visible(strings.Join(parts, ": ")), someOf(len(g.who), func(i int) string { return g.who[i] }))
		if k.reason == "REQUEST_ID_REUSED" {
			fmt.Fprintf(w, "    the job %s asked for them before, with other content (the person, the targets, the reason, …); what it asked then stands\n"+
				"    to ask for something else, give it another name with --job\n", r.job.name)
		}
	}
}

// command is the command line that was given, for another file or with the job's name.
func (r *bulkReport) command(users, job string) string {
	args := []string{"endsession", "invalidate", "--users-file=" + quote(users)}
	if job != "" {
		args = append(args, "--job="+quote(job))
	}
	return strings.Join(append(args, r.given(func(name string) bool {
		// The failures have a file, a form and a job of their own.
		return name == "users-file" || name == "job" || job == "" && (name == "users-format" || name == "failures")
	})...), " ")
}

// cancel is the command line that stops the job at the gateway.
func (r *bulkReport) cancel() string {
	only := map[string]bool{}
	newCancel(&connection{lookup: func(string) (string, bool) { return "", false }}).Flags().VisitAll(func(f *pflag.Flag) { only[f.Name] = true })
	args := []string{"endsession", "cancel", "--label=" + quote(jobLabel+"="+r.job.name)}
	return strings.Join(append(args, r.given(func(name string) bool { return !only[name] || name == "label" || name == "output" || name == "yes" })...), " ")
}

// given are the flags that were given, as a shell reads them.
func (r *bulkReport) given(except func(string) bool) []string {
	var args []string
	r.cmd.Flags().Visit(func(f *pflag.Flag) {
		if except(f.Name) {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			if f.Value.Type() == "bool" && v == "true" {
				args = append(args, "--"+f.Name)
				continue
			}
			args = append(args, "--"+f.Name+"="+quote(v))
		}
	})
	return args
}

// quote writes a word so that a shell takes it as it is.
func quote(s string) string {
	if s != "" && !regexp.MustCompile(`[^A-Za-z0-9_./:=@%+,-]`).MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(visible(s), "'", `'\''`) + "'"
}
