package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestCancelAsks: who cancels by label sees how many and which, and is asked.
func TestCancelAsks(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	apm := g.lab.systems["apm"].(*bigiqtest.Server)
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	label := "job=off-boarding"
	n := shownCancelled + 2
	for i := range n {
		if r := c.run(t, "invalidate", "--user", fmt.Sprintf("user-%02d", i), "--target", "apm", "--label", label, "--wait", "0", "--yes"); r.status != exitStillRunning {
			t.Fatalf("exit status %d: %s", r.status, r.err)
		}
	}
	unfinished := func() int {
		return strings.Count(c.run(t, "list", "--label", label, "--state", "running").out, "invalidations/")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c.in = null
	if r := c.run(t, "cancel", "--label", label); r.status != exitUsage || !strings.Contains(r.err, "add --yes") || unfinished() != n {
		t.Errorf("without a terminal: exit status %d, %d unfinished: %s", r.status, unfinished(), r.err)
	}
	c.in = strings.NewReader("no\n")
	r := c.run(t, "cancel", "--label", label)
	if r.status != exitNotAccepted || r.out != "" || unfinished() != n || strings.Count(r.err, "invalidations/") != shownCancelled ||
		!strings.Contains(r.err, "and others: 12 in all\n") || !strings.Contains(r.err, "Cancel 12 with the label job=off-boarding? [y/N]") {
		t.Errorf("answered no: exit status %d, %d unfinished: %s%s", r.status, unfinished(), r.out, r.err)
	}
	if got, _ := c.offered(t, "cancel", ""); len(got) != n {
		t.Errorf("to be cancelled are offered %q", got)
	}
	c.in = strings.NewReader("yes\n")
	if r := c.run(t, "cancel", "--label", label); r.status != exitSucceeded || r.out != "12 cancelled, 0 had ended before\n" {
		t.Errorf("answered yes: exit status %d: %s%s", r.status, r.out, r.err)
	}
	c.in = strings.NewReader("")
	eventually(t, "all is cancelled", func() bool { return unfinished() == 0 })
	if r := c.run(t, "cancel", "--label", label); r.status != exitSucceeded || r.out != "" || !strings.Contains(r.err, "nothing with the label") {
		t.Errorf("nothing left: exit status %d: %s%s", r.status, r.out, r.err)
	}
	if r := c.run(t, "cancel", "--label", label, "--yes"); r.status != exitSucceeded || r.out != "0 cancelled, 12 had ended before\n" {
		t.Errorf("--yes: exit status %d: %s%s", r.status, r.out, r.err)
	}
}

// TestRetryAsks: who retries sees what failed and what would be done, there only, and is asked.
func TestRetryAsks(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	r := c.run(t, "invalidate", "--user", "mallory", "--target", "kibana-prod", "--target", "apm", "--yes", "-o", "json")
	if r.status != exitPartial {
		t.Fatalf("exit status %d: %s", r.status, r.out)
	}
	name := nameOf(t, r.out)
	c.in = strings.NewReader("n\n")
	r = c.run(t, "retry", name)
	_, preview, _ := strings.Cut(r.err, "kibana-prod (kibana)\n")
	if r.status != exitNotAccepted || !strings.Contains(r.err, "NO_IDENTITY") || !strings.Contains(preview, "End these sessions, at the targets that failed? [y/N]") ||
		strings.Contains(r.err, "apm (bigiq)") {
		t.Errorf("exit status %d: %s", r.status, r.err)
	}
	for state, args := range map[string][]string{
		"too early to retry":     {"--user", "alice", "--target", "apm", "--wait", "0"},
		"there is nothing to re": {"--user", "bob", "--target", "storage"},
	} {
		g.lab.systems["apm"].(*bigiqtest.Server).Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
		begun := c.run(t, append([]string{"invalidate", "--yes", "-o", "json"}, args...)...)
		c.in = strings.NewReader("yes\n")
		if r := c.run(t, "retry", nameOf(t, begun.out)); r.status != exitFailed || !strings.Contains(r.err, state) || strings.Contains(r.err, "[y/N]") {
			t.Errorf("want %q: exit status %d: %s", state, r.status, r.err)
		}
	}
}

// TestOneDocument: with -o json there is one document on standard output, whatever else is said.
func TestOneDocument(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	apm := g.lab.systems["apm"].(*bigiqtest.Server)
	one := func(status int, args ...string) string {
		t.Helper()
		r := c.run(t, append(args, "-o", "json")...)
		if lines := strings.Count(r.out, "\n"); r.status != status || lines != 1 || !json.Valid([]byte(r.out)) {
			t.Errorf("%q: exit status %d, want %d: %s%s", args, r.status, status, r.out, r.err)
		}
		return r.out
	}
	done := nameOf(t, one(exitSucceeded, "invalidate", "--user", "alice", "--target", "storage", "--yes"))
	partial := nameOf(t, one(exitPartial, "invalidate", "--user", "mallory", "--target", "kibana-prod", "--target", "apm", "--yes", "--watch"))
	one(exitSucceeded, "get", done)
	one(exitSucceeded, "get", done, "--watch")
	one(exitSucceeded, "watch", done)
	one(exitSucceeded, "list")
	one(exitSucceeded, "preview", "--user", "bob")
	one(exitSucceeded, "cancel", "--label", "no=body")
	one(exitSucceeded, "cancel", "--label", "no=body", "--yes")
	one(exitFailed, "retry", partial, "--yes")
	one(exitSucceeded, "targets", "list")
	one(exitSucceeded, "targets", "check", "apm", "storage")
	one(exitSucceeded, "targets", "pause", "apm")
	one(exitSucceeded, "targets", "resume", "apm")
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	slow := nameOf(t, one(exitStillRunning, "invalidate", "--user", "alice", "--target", "apm", "--yes", "--wait", "100ms"))
	one(exitStillRunning, "get", slow, "--wait", "10ms")
	if !strings.Contains(one(exitSucceeded, "cancel", slow), slow) {
		t.Errorf("%s was not cancelled", slow)
	}
}

// TestTheWaitIsOver says how to go on.
func TestTheWaitIsOver(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	g.lab.systems["apm"].(*bigiqtest.Server).Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	r := c.run(t, "invalidate", "--user", "alice", "--target", "apm", "--yes", "--wait", "50ms")
	if r.status != exitStillRunning || !regexp.MustCompile(`^after 50ms it is not final; the invalidation goes on\.\n .*endsession watch invalidations/\S+\n .*endsession cancel invalidations/\S+\n$`).MatchString(r.err) {
		t.Errorf("exit status %d: %s", r.status, r.err)
	}
}

// TestConnectionSettings: each flag of the connection has its variable, says so, and beats it.
func TestConnectionSettings(t *testing.T) {
	connected := new(cobra.Command)
	(&connection{lookup: func(string) (string, bool) { return "", false }}).flags(connected)
	variables := 0
	connected.Flags().VisitAll(func(f *pflag.Flag) {
		said := regexp.MustCompile(`\bENDSESSION_[A-Z_]+`).FindAllString(f.Usage, -1)
		variables += len(said)
		if len(said) == 0 {
			t.Errorf("--%s names no variable", f.Name)
			return
		}
		variable := said[len(said)-1] // that of the file, where a secret has two
		fromEnv, fromFlag := "from-the-environment", "from-the-flag"
		if f.Value.Type() == "bool" {
			fromEnv, fromFlag = "true", "false"
		}
		cmd := new(cobra.Command)
		(&connection{lookup: func(name string) (string, bool) { return fromEnv, name == variable }}).flags(cmd)
		if got := cmd.Flag(f.Name).Value.String(); got != fromEnv {
			t.Errorf("%s=%s makes --%s %q", variable, fromEnv, f.Name, got)
		}
		if err := cmd.ParseFlags([]string{"--" + f.Name + "=" + fromFlag}); err != nil {
			t.Fatal(err)
		}
		if got := cmd.Flag(f.Name).Value.String(); got != fromFlag {
			t.Errorf("--%s=%s beside %s is %q", f.Name, fromFlag, variable, got)
		}
	})
	if variables < 10 {
		t.Errorf("the connection has only %d variables", variables)
	}
}
