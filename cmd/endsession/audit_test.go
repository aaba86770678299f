package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// auditLine is what export promises of a line.
type auditLine struct {
	Time, Type, Target, Invalidation, Chain, Hash string
	Caller                                        struct{ Kind, Name string }
	Data                                          json.RawMessage
	Seq                                           int64
}

// command runs endsession in a process of its own.
func command(t *testing.T, args ...string) (status int, out, errs string) {
	t.Helper()
	cmd := program(labEnv, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// TestAudit verifies and exports the trail of a gateway that runs, then of one that was killed, then one that was tampered
// with.
func TestAudit(t *testing.T) {
	l, dir := newLab(), t.TempDir()
	path := labConfig{dir: dir, urls: l.serve(t, dir, nil), listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}}.write(t)
	journal := filepath.Join(dir, "endsession.db")
	key := filepath.Join(dir, "audit-key")
	if err := os.WriteFile(key, []byte(strings.Repeat("0123456789abcdef", 4)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(conf, []byte("\naudit: { key: '${file:"+key+"}' }\n")...), 0o600); err != nil {
		t.Fatal(err)
	}
	p := serve(t, path)
	invalidate := func(who string) {
		t.Helper()
		if status, out, errs := command(t, "invalidate", "--server", p.grpc, "--yes", "--user", who, "--reason", "left"); status > exitStillRunning || status == exitUsage {
			t.Fatalf("invalidate: status %d\n%s%s", status, out, errs)
		}
	}
	invalidate("alice")

	follow := program(labEnv, "audit", "export", "--config", path, "--follow", "--position", filepath.Join(dir, "position"))
	pipe, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 1<<20)
	until := func(typ, reason string) {
		t.Helper()
		for lines.Scan() {
			var x auditLine
			if err := json.Unmarshal(lines.Bytes(), &x); err != nil {
				t.Fatalf("%v: %s", err, lines.Bytes())
			}
			if x.Type == typ && strings.Contains(string(x.Data), reason) {
				if x.Chain == "" || x.Seq == 0 || x.Hash == "" || x.Invalidation == "" || x.Caller.Kind == "" {
					t.Errorf("a line without its parts: %s", lines.Bytes())
				}
				return
			}
		}
		t.Fatalf("no %s with %s: %v", typ, reason, lines.Err())
	}
	until("invalidation.accepted", "alice")
	invalidate("bob")
	until("invalidation.accepted", "bob")

	status, heads, errs := command(t, "audit", "verify", "--config", path)
	if status != exitSucceeded || !strings.Contains(heads, "0 findings") || !strings.Contains(heads, "\nhead ") {
		t.Fatalf("beside the gateway: status %d\n%s%s", status, heads, errs)
	}
	if err := follow.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("an export that is interrupted: %v", err)
	}
	p.kill()

	kept := filepath.Join(dir, "heads.txt")
	if err := os.WriteFile(kept, []byte(heads), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func(want int, args ...string) string {
		t.Helper()
		status, out, errs := command(t, append([]string{"audit", "verify"}, args...)...)
		if status != want {
			t.Errorf("verify %v: status %d, want %d\n%s%s", args, status, want, out, errs)
		}
		return out
	}
	verify(exitSucceeded, "--sqlite", journal, "--key-file", key, "--head", kept)
	if out := verify(exitFailed, "--sqlite", journal); !strings.Contains(out, "unknown key") {
		t.Errorf("without the key:\n%s", out)
	}
	verify(exitUsage)
	verify(exitUsage, "--config", path, "--key-file", key)
	verify(exitUsage, "--config", path, "--head", path)
	verify(exitUsage, "--config", filepath.Join(dir, "none.yaml"))
	verify(exitUsage, "--sqlite", journal, "--key-file", filepath.Join(dir, "none"))
	short := filepath.Join(dir, "short-key")
	if err := os.WriteFile(short, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	verify(exitUsage, "--sqlite", journal, "--key-file", short)
	verify(exitUnreadable, "--sqlite", filepath.Join(dir, "none.db"), "--key-file", key)
	verify(exitUnreadable, "--sqlite", path, "--key-file", key)

	// What was exported already does not come again.
	if status, out, errs := command(t, "audit", "export", "--config", path, "--position", filepath.Join(dir, "position")); status != 0 || strings.Contains(out, "alice") {
		t.Errorf("export from the position: status %d\n%s%s", status, out, errs)
	}
	status, all, _ := command(t, "audit", "export", "--config", path)
	if status != 0 || strings.Count(all, "\n") < 4 || !strings.HasPrefix(all, `{"time":"`) {
		t.Errorf("export: status %d\n%s", status, all)
	}
	if status, out, _ := command(t, "audit", "export", "--config", path, "--since", "2999-01-01T00:00:00Z"); status != 0 || out != "" {
		t.Errorf("export of what is to come: status %d\n%s", status, out)
	}

	db, err := sql.Open("sqlite", journal)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"DROP TRIGGER audit_delete", "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	verify(exitSucceeded, "--config", path) // nothing links to the only chain
	if out := verify(exitFailed, "--config", path, "--head", kept); !strings.Contains(out, "the end of the chain was cut off") {
		t.Errorf("an end that was cut off:\n%s", out)
	}
}
