package main

import (
	"bytes"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
)

// sitting is somebody at a terminal: a command in a process of its own that has the terminal, and what is shown there.
type sitting struct {
	t      *testing.T
	cmd    *exec.Cmd
	shown  *lockedBuffer
	keys   interface{ Write([]byte) (int, error) }
	closed chan struct{}
}

// sit runs a command at a terminal of 100 by 30.
func sit(t *testing.T, env map[string]string, args ...string) *sitting {
	t.Helper()
	at := &sitting{t: t, cmd: program(env, args...), shown: &lockedBuffer{}, closed: make(chan struct{})}
	f, err := pty.StartWithSize(at.cmd, &pty.Winsize{Cols: 100, Rows: 30})
	if err != nil {
		t.Fatal(err)
	}
	at.keys = f
	go func() {
		defer close(at.closed)
		b := make([]byte, 4096)
		for {
			n, err := f.Read(b)
			_, _ = at.shown.Write(b[:n])
			if err != nil {
				return // the other side is gone
			}
		}
	}()
	t.Cleanup(func() {
		_ = at.cmd.Process.Kill()
		<-at.closed
		f.Close()
	})
	return at
}

func (at *sitting) await(text string) {
	at.t.Helper()
	eventually(at.t, "it shows "+text, func() bool { return strings.Contains(at.shown.String(), text) })
}

func (at *sitting) press(keys string) {
	at.t.Helper()
	if _, err := at.keys.Write([]byte(keys)); err != nil {
		at.t.Fatal(err)
	}
}

// leave waits for the end of the command, and returns its exit status and all that it has shown.
func (at *sitting) leave() (status int, shown string) {
	at.t.Helper()
	<-at.closed
	_ = at.cmd.Wait()
	return at.cmd.ProcessState.ExitCode(), strings.ReplaceAll(at.shown.String(), "\r\n", "\n")
}

const ctrlC = "\x03"

// xterm is the environment of somebody at a terminal that can do everything.
func (c cli) xterm(more ...string) map[string]string {
	env := map[string]string{"TERM": "xterm-256color", "NO_COLOR": "", "ENDSESSION_SERVER": c.env["ENDSESSION_SERVER"]}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

// onScreen is what is to be seen at the end of what was written to a terminal.
func onScreen(t *testing.T, written string) string {
	t.Helper()
	x := &terminal{width: 100, height: 30}
	paint := regexp.MustCompile("\x1b\\[[0-9;]*m")
	if _, err := x.Write([]byte(paint.ReplaceAllString(written, ""))); err != nil {
		t.Fatalf("%v: %q", err, written)
	}
	return strings.Join(x.rows, "\n") + "\n"
}

// TestAtATerminal: somebody is asked, says yes, and sees a table, once.
func TestAtATerminal(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	at := sit(t, c.xterm(), "invalidate", "--user", "alice", "--target", "storage", "--target", "kibana-prod")
	at.await("End these sessions? [y/N] ")
	if n := g.mutations("storage") + g.mutations("kibana-prod"); n > 0 {
		t.Errorf("%d requests were sent before the answer", n)
	}
	at.press("y\r")
	status, shown := at.leave()
	if status != exitSucceeded {
		t.Errorf("exit status %d", status)
	}
	if !strings.Contains(shown, "\x1b[32mSUCCEEDED\x1b[0m") || !strings.Contains(shown, eraseBelow) {
		t.Errorf("no colour, or nothing in place: %q", shown)
	}
	_, last, _ := strings.Cut(onScreen(t, shown), "[y/N] y\n")
	last = steady(last)
	const want = `invalidations/UUIDV7  SUCCEEDED  sessions ended: 11
TARGET       STATE      SESSIONS  VERIFICATION         ATTEMPTS  NEXT TRY
kibana-prod  SUCCEEDED  8         CONFIRMED_BY_REPEAT  1         -
storage      SUCCEEDED  3         CONFIRMED_BY_LIST    1         -
`
	if last != want {
		t.Errorf("at the end there is\n%s\nwant\n%s", last, want)
	}
	if gone := g.lab.gone("storage"); !slices.Equal(gone, g.lab.labels(t, "storage", alicesSeats["storage"])) {
		t.Errorf("gone are %v", gone)
	}
}

// TestCtrlCAtTheQuestion ends the command, and nothing else.
func TestCtrlCAtTheQuestion(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	at := sit(t, c.xterm(), "invalidate", "--user", "alice", "--target", "storage")
	at.await("End these sessions? [y/N] ")
	at.press(ctrlC)
	if status, shown := at.leave(); status != exitNotAccepted || !strings.Contains(shown, "not confirmed; nothing was done") {
		t.Errorf("exit status %d: %s", status, shown)
	}
	if n := g.mutations("storage"); n > 0 {
		t.Errorf("%d requests were sent", n)
	}
	if r := c.run(t, "list", "-o", "json"); r.out != "{}\n" {
		t.Errorf("something was accepted: %s", r.out)
	}
}

// TestCtrlCEndsTheLooking: the invalidation goes on, and it is said how to watch and how to cancel it.
func TestCtrlCEndsTheLooking(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	apm := g.lab.systems["apm"].(*bigiqtest.Server)
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	first := sit(t, c.xterm(), "invalidate", "--user", "alice", "--target", "apm", "--yes", "--watch")
	first.await("RUNNING  0 of 1 targets final")
	first.press(ctrlC)
	status, shown := first.leave()
	name := regexp.MustCompile(`invalidations/[0-9a-f-]{36}`).FindString(shown)
	if status != exitStillRunning || name == "" || !strings.HasSuffix(onScreen(t, shown), `you stopped looking; the invalidation goes on.
  To go on watching: endsession watch `+name+`
  To cancel it:      endsession cancel `+name+"\n") {
		t.Fatalf("exit status %d: %s", status, onScreen(t, shown))
	}
	if r := c.run(t, "get", name); r.status != exitStillRunning {
		t.Errorf("get: exit status %d: %s", r.status, r.out)
	}
	for _, args := range [][]string{{"watch", name}, {"get", name, "--watch"}} {
		again := sit(t, c.xterm("NO_COLOR", "1"), args...)
		again.await("RUNNING  0 of 1 targets final")
		if args[0] == "get" {
			apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = false })
		} else {
			if err := again.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		status, shown := again.leave()
		if want := map[string]int{"watch": exitStillRunning, "get": exitSucceeded}[args[0]]; status != want {
			t.Errorf("%s: exit status %d, want %d: %s", args[0], status, want, shown)
		}
		if regexp.MustCompile("\x1b\\[[0-9;]*m").MatchString(shown) || !strings.Contains(shown, eraseBelow) {
			t.Errorf("with NO_COLOR: %q", shown)
		}
	}
}

// TestDumbTerminals get lines, and no commands that they would show.
func TestDumbTerminals(t *testing.T) {
	t.Parallel()
	_, c := startForCLI(t)
	for _, kind := range []string{"dumb", ""} {
		at := sit(t, c.xterm("TERM", kind), "invalidate", "--user", "alice", "--target", "storage", "--yes")
		if status, shown := at.leave(); status != exitSucceeded || strings.Contains(shown, "\x1b") || !changeLine.MatchString(shown) {
			t.Errorf("TERM=%q: exit status %d: %q", kind, status, shown)
		}
	}
}

// TestColor: the flag has the last word.
func TestColor(t *testing.T) {
	t.Parallel()
	_, c := startForCLI(t)
	for _, test := range []struct {
		args  []string
		color bool
	}{{nil, false}, {[]string{"--color=auto"}, false}, {[]string{"--color=always"}, true}, {[]string{"--color=never"}, false}} {
		r := c.run(t, append([]string{"targets", "check", "storage"}, test.args...)...)
		if r.status != 0 || bytes.Contains([]byte(r.out), []byte("\x1b[32mOK\x1b[0m")) != test.color {
			t.Errorf("%v into a pipe: exit status %d: %q", test.args, r.status, r.out)
		}
	}
	at := sit(t, c.xterm("NO_COLOR", "1"), "targets", "check", "storage", "--color=always")
	if _, shown := at.leave(); !strings.Contains(shown, "\x1b[32mOK\x1b[0m") {
		t.Errorf("NO_COLOR beats the flag: %q", shown)
	}
	if r := c.run(t, "targets", "list", "--color", "red"); r.status != exitUsage {
		t.Errorf("a wrong word: exit status %d", r.status)
	}
}
