package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ran is what a command came to.
type ran struct {
	status   int
	out, err string
}

// cli runs commands as a shell does.
type cli struct {
	in  io.Reader
	env map[string]string
}

func (c cli) run(t testing.TB, args ...string) ran {
	t.Helper()
	var out, errOut bytes.Buffer
	in := c.in
	if in == nil {
		in = strings.NewReader("")
	}
	status := run(t.Context(), args, streams{in: in, out: &out, err: &errOut}, func(name string) (string, bool) {
		v, ok := c.env[name]
		return v, ok
	})
	return ran{status, out.String(), errOut.String()}
}

// startForCLI serves the lab's configuration on a loopback port.
func startForCLI(t *testing.T) (*inProcess, cli) {
	t.Helper()
	g := startInProcess(t, newLab(), memoryDir(t, nil), nil)
	return g, cli{env: map[string]string{"ENDSESSION_SERVER": g.srv.GRPCAddr().String()}}
}

// transcript is what people see, with what differs from run to run taken out.
func (r ran) transcript(args []string) string {
	var b strings.Builder
	b.WriteString("$ endsession")
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \"{}*") {
			a = "'" + a + "'"
		}
		b.WriteString(" " + a)
	}
	b.WriteString("\n" + settled(r.out))
	if r.err != "" {
		b.WriteString("--- standard error\n" + r.err)
	}
	b.WriteString("--- exit status " + string(rune('0'+r.status)) + "\n")
	text := steady(b.String())
	text = regexp.MustCompile(`\b[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}\b`).ReplaceAllString(text, "YYYY-MM-DD HH:MM:SS")
	text = regexp.MustCompile(`"?\b[0-9]{2}:[0-9]{2}:[0-9]{2}\b`).ReplaceAllString(text, "HH:MM:SS")
	// tabwriter pads with spaces, which nobody sees.
	return regexp.MustCompile(`(?m) +$`).ReplaceAllString(text, "")
}

// settled is an output without what was only so for a moment: of the lines for changes of runs, the last of each target,
// in the targets' order.
func settled(out string) string {
	last := map[string]string{}
	var rest strings.Builder
	for line := range strings.Lines(out) {
		if m := changeLine.FindStringSubmatch(line); m != nil {
			last[m[1]] = line
		} else {
			rest.WriteString(line)
		}
	}
	var b strings.Builder
	for _, target := range slices.Sorted(maps.Keys(last)) {
		b.WriteString(last[target])
	}
	return b.String() + rest.String()
}

// changeLine is a line for a change of a run; a terminal has a table in their place.
var changeLine = regexp.MustCompile(`(?m)^invalidations/\S+ ([a-z0-9-]+) [A-Z]+ sessions=.*\n`)

// withoutChanges is what is left on a terminal at last.
func withoutChanges(out string) string { return changeLine.ReplaceAllString(out, "") }

// lineJSON indents a line of JSON.
func lineJSON(t *testing.T, line string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(line), "", "  "); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return b.String()
}

// TestCommands runs every client command against one gateway, one after the other, and compares what is printed.
func TestCommands(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	apm := g.lab.systems["apm"].(*bigiqtest.Server)
	var name string // of the last invalidation
	named := regexp.MustCompile(`invalidations/[0-9a-f-]{36}`)
	stuck := func(yes bool) func() { return func() { apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = yes }) } }
	for _, step := range []struct {
		golden string
		before func()
		stdin  string
		args   string // separated by spaces; NAME is the last invalidation, and _ a space
		status int
	}{
		{golden: "targets-list", args: "targets list"},
		{golden: "targets-check", args: "targets check storage"},
		{golden: "targets-check-all", args: "targets check"},
		{golden: "targets-check-json", args: "targets check kibana-prod -o json"},
		{golden: "targets-check-some", args: "targets check storage stroage apm", status: exitFailed},
		{golden: "targets-check-failing", before: func() { apm.Change(func(q *bigiqtest.Quirks) { q.NoRole = true }) },
			args: "targets check storage apm", status: exitFailed},
		{golden: "targets-check-unknown", args: "targets check stroage", status: exitFailed},
		{golden: "targets-check-help", before: func() { apm.Change(func(q *bigiqtest.Quirks) { q.NoRole = false }) }, args: "targets check --help"},
		{golden: "preview", args: "preview --user alice"},
		{golden: "preview-unsupported", args: "preview --group ops --confirm-broad --target kibana-prod --target apm"},
		{golden: "preview-json", args: "preview --user zoë --target storage -o json"},
		{golden: "invalidate-not-confirmed", stdin: "no\n", args: "invalidate --user alice --target storage", status: exitNotAccepted},
		{golden: "invalidate-confirmed", stdin: "yes\n", args: "invalidate --user alice --target storage"},
		{golden: "invalidate-again", args: "invalidate --user alice --target storage --yes"},
		{golden: "invalidate-everywhere", args: "invalidate --user bob --reason left_the_company --on-behalf-of helen --label ticket=INC-7 --label job=off-boarding --bulk --yes --request-id 5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"},
		{golden: "get", args: "get NAME"},
		{golden: "get-json", args: "get NAME -o json"},
		{golden: "invalidate-replayed", args: "invalidate --user bob --reason left_the_company --on-behalf-of helen --label ticket=INC-7 --label job=off-boarding --bulk --yes --request-id 5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"},
		{golden: "invalidate-request-id-reused", args: "invalidate --user alice --yes --request-id 5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab", status: exitNotAccepted},
		{golden: "invalidate-partial", args: "invalidate --group ops --confirm-broad --target storage --target kibana-prod --yes", status: exitPartial},
		{golden: "invalidate-allow-unsupported", args: "invalidate --group ops --confirm-broad --target storage --target kibana-prod --allow-unsupported --yes"},
		{golden: "invalidate-unsupported", args: "invalidate --provider oidc/nobody --confirm-broad --target storage --yes", status: exitFailed},
		{golden: "invalidate-no-identity", args: "invalidate --user mallory --target kibana-prod --yes", status: exitFailed},
		{golden: "retry-not-confirmed", stdin: "\n", args: "retry NAME", status: exitNotAccepted},
		{golden: "retry", args: "retry NAME --yes", status: exitFailed},
		{golden: "invalidate-broad", args: "invalidate --provider saml/okta --yes", status: exitUsage},
		{golden: "invalidate-unknown-target", args: "invalidate --user alice --target amp --yes", status: exitUsage},
		{golden: "invalidate-sessions", args: "invalidate --session apm/3f320100-2177-42e0-8a46-2e33cd3366d0/2a5d7604 --session kibana-prod/1 --yes", status: exitPartial},
		{golden: "invalidate-names", args: "invalidate --user carol --email carol@corp.example --attribute uid=c42 --target-username storage=carol@corp.example --target-username storage=bob --target storage --target apm-all --yes"},
		{golden: "invalidate-running", before: stuck(true), args: "invalidate --user alice --target apm --wait 0 --retry-for 1h --yes", status: exitStillRunning},
		{golden: "list-running", args: "list --state running"},
		{golden: "cancel", args: "cancel NAME"},
		{golden: "cancel-again", args: "cancel NAME"},
		{golden: "watch", args: "watch NAME", status: exitFailed},
		{golden: "list", args: "list --limit 3 --target storage"},
		{golden: "list-label", args: "list --label ticket=INC-7 --label job=off-boarding --user bob --since 1h --caller anonymous --state succeeded"},
		{golden: "list-json", args: "list --label ticket=INC-8 -o json"},
		{golden: "cancel-label", args: "cancel --label ticket=INC-7"},
		{golden: "cancel-final", before: stuck(false), args: "cancel NAME-FIRST", status: exitFailed},
		{golden: "targets-pause", args: "targets pause kibana-prod --reason maintenance"},
		{golden: "targets-resume", args: "targets resume kibana-prod"},
	} {
		if step.before != nil {
			step.before()
		}
		var args []string
		first := ""
		for _, a := range strings.Fields(step.args) {
			a = strings.ReplaceAll(a, "_", " ")
			if a == "NAME-FIRST" {
				list := c.run(t, "list", "--label", "ticket=INC-7")
				first = named.FindString(list.out)
				a = first
			}
			if a == "NAME" {
				a = name
			}
			args = append(args, a)
		}
		c.in = strings.NewReader(step.stdin)
		r := c.run(t, args...)
		if r.status != step.status {
			t.Errorf("%s: exit status %d, want %d\n%s%s", step.args, r.status, step.status, r.out, r.err)
		}
		if n := named.FindString(r.out); n != "" && first == "" && args[0] != "list" {
			name = n
		}
		if slices.Contains(args, "json") {
			r.out = lineJSON(t, r.out)
		}
		golden(t, filepath.Join("cli", step.golden+".txt"), r.transcript(args))
	}
}

// TestWatch shows each change until the final one.
func TestWatch(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	apm := g.lab.systems["apm"].(*bigiqtest.Server)
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	begun := c.run(t, "invalidate", "--user", "alice", "--target", "apm", "--target", "storage", "--wait", "0s", "--yes", "-o", "json")
	if begun.status != exitStillRunning {
		t.Fatalf("exit status %d: %s", begun.status, begun.err)
	}
	name := nameOf(t, begun.out)
	done := make(chan ran)
	go func() { done <- c.run(t, "watch", strings.TrimPrefix(name, "invalidations/"), "-o", "json") }()
	eventually(t, "the other target is done", func() bool {
		return strings.Contains(c.run(t, "get", name, "-o", "json").out, "RUN_STATE_SUCCEEDED")
	})
	if r := c.run(t, "get", name); r.status != exitStillRunning {
		t.Errorf("get while it runs: exit status %d", r.status)
	}
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = false })
	if r := c.run(t, "get", name, "--wait", "1m"); r.status != exitSucceeded {
		t.Errorf("get --wait: exit status %d: %s%s", r.status, r.out, r.err)
	}
	r := <-done
	lines := slices.Collect(strings.Lines(r.out))
	if r.status != exitSucceeded || len(lines) < 1 || !strings.Contains(lines[len(lines)-1], "INVALIDATION_STATE_SUCCEEDED") {
		t.Fatalf("exit status %d:\n%s%s", r.status, r.out, r.err)
	}
	last := -1
	for _, line := range lines {
		var m struct {
			Invalidation struct {
				Revision int `json:",string"`
			}
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil || m.Invalidation.Revision <= last {
			t.Errorf("revision %d after %d (%v)", m.Invalidation.Revision, last, err)
		}
		last = m.Invalidation.Revision
	}
}

// TestWhatIsGivenEmptyIsRefused gives every flag an empty value, as an empty shell variable does: nothing may be ended
// that the caller did not ask for.
func TestWhatIsGivenEmptyIsRefused(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	for _, args := range [][]string{
		{"--user", ""},
		{"--user", " "},
		{"--user", "", "--group", "vpn", "--confirm-broad"},
		{"--user", "", "--provider", "saml", "--confirm-broad"},
		{"--email", "alice@corp.example"},
		{"--email", "alice@corp.example", "--group", "vpn", "--confirm-broad"},
		{"--attribute", "uid=a17", "--group", "vpn", "--confirm-broad"},
		{"--target-username", "storage=alice"},
		{"--user", "alice", "--email", ""},
		{"--user", "alice", "--attribute", ""},
		{"--user", "alice", "--attribute", "uid="},
		{"--user", "alice", "--attribute", "=x"},
		{"--user", "alice", "--target-username", ""},
		{"--user", "alice", "--target-username", "storage="},
		{"--user", "alice", "--target-username", "=alice"},
		{"--user", "alice", "--provider", ""},
		{"--user", "alice", "--provider", "saml/"},
		{"--user", "alice", "--group", ""},
		{"--group", "", "--confirm-broad"},
		{"--provider", "", "--confirm-broad"},
		{"--provider", "/okta", "--confirm-broad"},
		{"--user", "alice", "--target", ""},
		{"--user", "alice", "--reason", ""},
		{"--user", "alice", "--on-behalf-of", ""},
		{"--user", "alice", "--label", ""},
		{"--user", "alice", "--label", "ticket="},
		{"--user", "alice", "--request-id", ""},
		{"--user", "alice", "--retry-for", "0s"},
		{"--user", "alice", "--wait", "-1s"},
		{"--user", "alice", "--wait", "6m"},
		{"--user", "alice", "--session", "storage/1"},
		{"--user", "alice", "--all", "--confirm-broad"},
		{"--session", ""},
		{"--session", "storage/"},
		{"--session", "storage"},
		{"--session", "apm//1"},
		{"--all=false", "--confirm-broad"},
		{"--all"},
		{"--all", "--confirm-broad=false"},
		{"--confirm-broad"},
		{},
		{"alice"},
		{"--user", "alice", "bob"},
		{"--user"},
		{"--usr", "alice"},
		{"--user", "alice", "-o", "yaml"},
		{"--user", "alice", "-o", ""},
		{"--user", "alice", "--attribute", "a=1", "--attribute", "a=2"},
		{"--user", "alice", "--label", "a=1", "--label", "a=1"},
	} {
		for _, command := range []string{"invalidate", "preview"} {
			args := append([]string{command}, args...)
			if command == "invalidate" {
				args = slices.Insert(args, 1, "--yes")
			} else if slices.ContainsFunc(args, func(a string) bool { return a == "--wait" || a == "--request-id" }) {
				continue
			}
			if r := c.run(t, args...); r.status != exitUsage || r.out != "" || r.err == "" {
				t.Errorf("%q: exit status %d, want %d: %s%s", args, r.status, exitUsage, r.out, r.err)
			}
		}
	}
	for _, args := range [][]string{
		{"get", ""}, {"get"}, {"get", "nonsense"}, {"get", "targets/apm"}, {"watch", ""}, {"cancel"}, {"cancel", ""}, {"cancel", "--label", ""},
		{"cancel", "--label", "ticket"}, {"cancel", "a", "--label", "a=b"}, {"retry", ""}, {"retry", "--yes", ""}, {"list", "--user", ""},
		{"list", "--target", ""}, {"list", "--caller", ""}, {"list", "--label", ""}, {"list", "--state", ""}, {"list", "--state", "done"},
		{"list", "--limit", "-1"}, {"list", "--page-token", "nonsense"}, {"targets"}, {"targets", "check", ""}, {"targets", "pause", ""},
		{"targets", "resume", ""}, {"targets", "pause", "apm", "--reason", ""}, {"targets", "lsit"}, {"nonsense"}, {}, {"config"},
		{"get", "0190b7a2-0000-7000-8000-000000000000", "--server", ""}, {"get", "0190b7a2-0000-7000-8000-000000000000", "--server", "localhost"},
	} {
		if r := c.run(t, args...); r.status != exitUsage {
			t.Errorf("%q: exit status %d, want %d: %s%s", args, r.status, exitUsage, r.out, r.err)
		}
	}
	if r := c.run(t, "list", "-o", "json"); r.out != "{}\n" {
		t.Errorf("something was journalled: %s", r.out)
	}
	for _, target := range g.lab.targets {
		if sent := g.sent[target].Requests(); len(sent) > 0 {
			t.Errorf("%d requests were sent to %s", len(sent), target)
		}
	}
}

// TestConfirmation asks, and takes nothing but a yes for one.
func TestConfirmation(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	call := []string{"invalidate", "--user", "alice", "--target", "storage"}
	for _, answer := range []string{"", "\n", "n\n", "no\n", "yess\n", "ye\n", "ja\n", "0\n", "y y\n", "\ny\n", "alice\n"} {
		c.in = strings.NewReader(answer)
		if r := c.run(t, call...); r.status != exitNotAccepted || !strings.Contains(r.err, "End these sessions? [y/N]") || !strings.Contains(r.err, "not confirmed; nothing was done") {
			t.Errorf("answered %q: exit status %d: %s%s", answer, r.status, r.out, r.err)
		}
	}
	// A pipe is nobody to ask.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	if _, err := w.WriteString("yes\n"); err != nil {
		t.Fatal(err)
	}
	asked := len(g.sent["storage"].Requests())
	for _, in := range []io.Reader{null, pipe} {
		for _, args := range [][]string{call, {"retry", "0190b7a2-0000-7000-8000-000000000000"}} {
			c.in = in
			if r := c.run(t, args...); r.status != exitUsage || !strings.Contains(r.err, "add --yes") {
				t.Errorf("%v without a terminal: exit status %d: %s%s", args, r.status, r.out, r.err)
			}
		}
	}
	if n := len(g.sent["storage"].Requests()); n != asked {
		t.Errorf("%d requests were sent although nobody could be asked", n-asked)
	}
	if gone := g.lab.gone("storage"); gone != nil || g.mutations("storage") > 0 {
		t.Fatalf("signed out without a yes: %v", gone)
	}
	for _, answer := range []string{"y\n", "Y\n", "yes\n", " YES \r\n", "y"} {
		g.lab.signIn()
		c.in = strings.NewReader(answer)
		r := c.run(t, call...)
		if gone, want := g.lab.gone("storage"), g.lab.labels(t, "storage", alicesSeats["storage"]); r.status != exitSucceeded || !slices.Equal(gone, want) {
			t.Errorf("answered %q: exit status %d, signed out %v: %s", answer, r.status, gone, r.err)
		}
	}
}

// TestNobodyThere has no gateway to speak to.
func TestNobodyThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	uuid := "0190b7a2-0000-7000-8000-000000000000"
	for _, args := range [][]string{
		{"invalidate", "--user", "alice", "--yes"}, {"invalidate", "--user", "alice"}, {"preview", "--user", "alice"}, {"get", uuid}, {"list"},
		{"watch", uuid}, {"cancel", uuid}, {"cancel", "--label", "a=b"}, {"retry", uuid, "--yes"}, {"targets", "list"},
		{"targets", "check", "apm"}, {"targets", "pause", "apm"}, {"targets", "resume", "apm"},
	} {
		r := cli{}.run(t, append(args, "--server", addr)...)
		if r.status != exitNotAccepted || r.out != "" || !strings.Contains(r.err, "Unavailable") || !strings.Contains(r.err, "--server") {
			t.Errorf("%v: exit status %d, want %d: %s%s", args, r.status, exitNotAccepted, r.out, r.err)
		}
	}
}

// TestConnectionOverTLS speaks to a gateway with a certificate.
func TestConnectionOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile, otherFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "other.pem")
	certificate(t, certFile, keyFile)
	certificate(t, otherFile, "")
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := startInProcess(t, newLab(), memoryDir(t, func(text string) string {
		return strings.Replace(text, "listen:\n", "listen:\n  tls: { cert_file: "+certFile+", key_file: "+keyFile+" }\n", 1)
	}), nil)
	server := g.srv.GRPCAddr().String()
	for name, test := range map[string]struct {
		args   []string
		env    map[string]string
		status int
	}{
		"Authority":            {args: []string{"--tls-ca-file", certFile}},
		"AuthorityFromTheEnv":  {env: map[string]string{"ENDSESSION_TLS_CA_FILE": certFile}},
		"FlagBeatsTheEnv":      {args: []string{"--tls-ca-file", certFile}, env: map[string]string{"ENDSESSION_TLS_CA_FILE": otherFile}},
		"ClientCertificate":    {args: []string{"--tls-ca-file", certFile, "--tls-cert-file", certFile, "--tls-key-file", keyFile}},
		"PlainText":            {status: exitNotAccepted},
		"OtherAuthority":       {args: []string{"--tls-ca-file", otherFile}, status: exitNotAccepted},
		"SystemsAuthorities":   {args: []string{"--tls"}, status: exitNotAccepted},
		"TLSFromTheEnv":        {env: map[string]string{"ENDSESSION_TLS": "true"}, status: exitNotAccepted},
		"NoSuchFile":           {args: []string{"--tls-ca-file", filepath.Join(dir, "none")}, status: exitUsage},
		"NoCertificateInIt":    {args: []string{"--tls-ca-file", empty}, status: exitUsage},
		"CertificateWithoutIt": {args: []string{"--tls-cert-file", certFile}, status: exitUsage},
		"KeyWithoutIt":         {args: []string{"--tls-key-file", keyFile}, status: exitUsage},
		"EmptyAuthority":       {args: []string{"--tls-ca-file", ""}, status: exitUsage},
		"SomeWordInTheEnv":     {env: map[string]string{"ENDSESSION_TLS": "yes"}, status: exitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			if test.env == nil {
				test.env = map[string]string{}
			}
			test.env["ENDSESSION_SERVER"] = server
			r := cli{env: test.env}.run(t, append([]string{"targets", "list"}, test.args...)...)
			if r.status != test.status || (r.status == 0) != strings.Contains(r.out, "kibana-prod") {
				t.Errorf("exit status %d, want %d: %s%s", r.status, test.status, r.out, r.err)
			}
		})
	}
}

// TestHelp holds every command to having a description and an example that begins with its own name.
func TestHelp(t *testing.T) {
	root := newRoot(streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard}, func(string) (string, bool) { return "", false })
	var visit func(*cobra.Command)
	var all []string
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if cmd.Name() == "help" {
			return
		}
		if !cmd.HasSubCommands() {
			all = append(all, strings.TrimPrefix(cmd.CommandPath(), "endsession "))
		}
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s has no description or no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  "+cmd.CommandPath()+" ") && strings.TrimSpace(line) != cmd.CommandPath() {
				t.Errorf("%s has the example %q", cmd.CommandPath(), line)
			}
			// What the example says must at least be understood.
			program, _, _ := strings.Cut(strings.TrimSpace(line), " | ")
			program, _, _ = strings.Cut(program, " > ")
			args := strings.Fields(strings.TrimPrefix(program, "endsession"))
			found, rest, err := root.Find(args)
			if err != nil || found != cmd && found.Parent() != cmd && cmd != root {
				t.Errorf("%q is %q, %v", line, found.CommandPath(), err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil && !errors.Is(err, pflag.ErrHelp) {
				t.Errorf("%q: %v", line, err)
			}
		}
		r := cli{}.run(t, append(strings.Fields(strings.TrimPrefix(cmd.CommandPath(), "endsession")), "--help")...)
		for _, status := range statuses(cmd) {
			if text, _, _ := strings.Cut(r.out, "\nUsage:\n"); !regexp.MustCompile(`(?s)Exit status:.*\b` + status + `\b`).MatchString(text) {
				t.Errorf("%s --help does not say what status %s means", cmd.CommandPath(), status)
			}
		}
		if r.status != 0 || !strings.Contains(r.out, cmd.Example) || r.err != "" {
			t.Errorf("%s --help: exit status %d: %s%s", cmd.CommandPath(), r.status, r.out, r.err)
		}
	}
	visit(root)
	want := []string{"audit export", "audit verify", "cancel", "completion bash", "completion fish", "completion powershell", "completion zsh", "config check", "config schema", "demo", "get", "health", "invalidate", "key new", "list", "policy test", "preview", "retry", "serve", "targets check",
		"targets list", "targets pause", "targets resume", "version", "watch"}
	if slices.Sort(all); !slices.Equal(all, want) {
		t.Errorf("commands %v, want %v", all, want)
	}
	for _, args := range [][]string{{"--help"}, {"invalidate", "--help"}, {"serve", "--help"}, {"list", "--help"}, {"targets", "--help"}, {"policy", "test", "--help"}} {
		name := strings.ReplaceAll(strings.Join(args, "-"), "---help", "-help")
		golden(t, filepath.Join("cli", strings.TrimLeft(name, "-")+".txt"), cli{}.run(t, args...).transcript(args))
	}
}

// statuses are those that the help of a command has to explain.
func statuses(cmd *cobra.Command) []string {
	switch path := cmd.CommandPath(); {
	case path == "endsession":
		return []string{"0", "1", "2", "3", "4", "5", "6"}
	case strings.HasPrefix(path, "endsession audit "):
		return []string{"0", "1", "2", "6"}
	case cmd.Flag("wait") != nil || cmd.Name() == "watch":
		return []string{"0", "1", "2", "3", "4", "5"}
	case cmd.Flag("server") != nil:
		return []string{"0", "1", "2", "5"}
	}
	return nil
}

func TestVersion(t *testing.T) {
	if r := (cli{}).run(t, "version"); r.status != 0 || !regexp.MustCompile(`^endsession \S+( \(commit [0-9a-f]{40} of \S+\))? go1\.\S+ \w+/\w+\n$`).MatchString(r.out) {
		t.Errorf("exit status %d: %q %s", r.status, r.out, r.err)
	}
}

// TestTerminalsAreNotSpokenTo: what callers and targets name is shown, and does nothing to a terminal.
func TestTerminalsAreNotSpokenTo(t *testing.T) {
	_, c := startForCLI(t)
	const name = "eve\x1b[2J\r\x9b\u009b31m\u202e\tforged\ninvalidations/x  SUCCEEDED"
	id := strings.ToValidUTF8(name, "")
	for _, args := range [][]string{
		{"preview", "--user", id},
		{"invalidate", "--yes", "--user", id, "--reason", id, "--wait", "1s"},
		{"list"},
		{"targets", "pause", "apm", "--reason", id},
		{"targets", "list"},
	} {
		got := c.run(t, args...)
		if bad := strings.IndexFunc(got.out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); bad >= 0 || strings.Contains(got.out, "\ninvalidations/x") {
			t.Errorf("%s: at %d of %q", args[0], bad, got.out)
		}
		if args[0] == "list" && !strings.Contains(got.out, `eve\x1b[2J\r\u009b31m\u202e\tforged\ninvalidations/x`) {
			t.Errorf("the name is not shown:\n%s", got.out)
		}
	}
}
