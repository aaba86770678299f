package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/endsession/endsession/server"
)

const unitFile = "deploy/systemd/endsession.service"

// settings are those of a unit: a list each, in the file's order.
func settings(t *testing.T, unit string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == '[' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("not a setting: %s", line)
		}
		found[name] = append(found[name], value)
	}
	return found
}

// TestUnitIsSound has systemd judge the unit: that it knows every word of it, and how much is left to somebody who takes
// over the process.
func TestUnitIsSound(t *testing.T) {
	t.Parallel()
	needTool(t, "systemd-analyze")
	dir := t.TempDir()
	here, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(dir, "endsession.service")
	// The program need not be installed where the test runs.
	text := strings.Replace(readText(t, unitFile), "ExecStart=/usr/bin/endsession ", "ExecStart="+here+" ", 1)
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := do(t, dir, nil, "systemd-analyze", "verify", "--man=no", unit); strings.Contains(out, "endsession.service:") {
		t.Errorf("verify: %s", out)
	}
	// From 0, nothing can be taken away any more, to 10: here in tenths.
	do(t, dir, nil, "systemd-analyze", "security", "--offline=true", "--threshold=15", unit)
}

// TestUnitStops: the unit waits longer than an orderly shutdown takes, and so do the other ways to run it.
func TestUnitStops(t *testing.T) {
	t.Parallel()
	stop, err := time.ParseDuration(settings(t, readText(t, unitFile))["TimeoutStopSec"][0])
	if err != nil || stop <= server.ShutdownBound {
		t.Errorf("TimeoutStopSec is %v, and a shutdown takes up to %v: %v", stop, server.ShutdownBound, err)
	}
	said := fmt.Sprintf("up to %.0f s", server.ShutdownBound.Seconds())
	for _, name := range []string{unitFile, "Dockerfile"} {
		if !strings.Contains(readText(t, name), said) {
			t.Errorf("%s does not say that a shutdown takes %s", name, said)
		}
	}
}

// serviceManager is what systemd does with a unit of Type=notify, as far as the service sees it.
type serviceManager struct {
	t      *testing.T
	socket *net.UnixConn
	heard  []string
}

func newServiceManager(t *testing.T) (m *serviceManager, address string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // short: t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	address = filepath.Join(dir, "s")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = socket.Close(), os.RemoveAll(dir) })
	return &serviceManager{t: t, socket: socket}, address
}

// hear waits until the service says something that begins so, and returns it.
func (m *serviceManager) hear(want string) string {
	m.t.Helper()
	if err := m.socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		m.t.Fatal(err)
	}
	for buffer := make([]byte, 4<<10); ; {
		n, err := m.socket.Read(buffer)
		if err != nil {
			m.t.Fatalf("waiting for %s: %v; heard %q", want, err, slices.Compact(m.heard))
		}
		said := string(buffer[:n])
		m.heard = append(m.heard, said)
		if strings.HasPrefix(said, want) {
			return said
		}
	}
}

// TestUnitRuns carries the unit out: its command, its example configuration, its credentials, its reload and its end.
func TestUnitRuns(t *testing.T) {
	t.Parallel()
	unit := settings(t, readText(t, unitFile))
	dir := t.TempDir()
	// What systemd would lay out in the root directory is laid out here.
	inside := func(path string) string { return filepath.Join(dir, path) }
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(inside(path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(inside(path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab()
	urls := l.serve(t, dir, nil)
	credentials := "/run/credentials/endsession.service"
	secrets := map[string]string{"bigiq.password": labBIGIQPassword, "audit.key": strings.Repeat("k", 32)}
	certificate(t, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	for _, name := range []string{"tls.crt", "tls.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		secrets[name] = string(b)
	}
	for _, load := range unit["LoadCredential"] {
		name, from, _ := strings.Cut(load, ":")
		if secrets[name] == "" || from != "/etc/endsession/credentials/"+name {
			t.Errorf("LoadCredential=%s: the test does not know it", load)
		}
		write(credentials+"/"+name, secrets[name])
		delete(secrets, name)
	}
	if len(secrets) > 0 {
		t.Errorf("the unit does not load %v", secrets)
	}

	key, hash := newAPIKey(t)
	text := readText(t, "deploy/systemd/endsession.yaml")
	state := "/var/lib/" + unit["StateDirectory"][0]
	if err := os.MkdirAll(inside(state), 0o700); err != nil {
		t.Fatal(err)
	}
	for old, with := range map[string]string{
		strings.Repeat("0", 64): hash, "https://bigiq.example": urls["apm"],
		`":9090"`: "127.0.0.1:0", `":8080"`: "127.0.0.1:0", "127.0.0.1:9091": "127.0.0.1:0",
		credentials: inside(credentials), state: inside(state),
	} {
		if !strings.Contains(text, old) {
			t.Errorf("the example has no %s", old)
		}
		text = strings.ReplaceAll(text, old, with)
	}
	words := strings.Fields(unit["ExecStart"][0])
	write(words[len(words)-1], text)
	words[len(words)-1] = inside(words[len(words)-1])
	if words[0] != "/usr/bin/endsession" {
		t.Fatalf("ExecStart=%s", unit["ExecStart"])
	}
	env := map[string]string{"SSL_CERT_FILE": filepath.Join(dir, authorities["apm"])}

	out, err := program(env, "config", "check", words[len(words)-1]).CombinedOutput()
	if err != nil || strings.Contains(string(out), "warning:") {
		t.Errorf("config check: %v\n%s", err, out)
	}

	manager, address := newServiceManager(t)
	env["NOTIFY_SOCKET"], env["WATCHDOG_USEC"] = address, "50000"
	cmd := program(env, words[1:]...)
	cmd.Dir = inside(unit["WorkingDirectory"][0])
	gateway := beginCommand(t, cmd)
	manager.hear("READY=1")
	eventually(t, "the log says where it listens", gateway.listens)
	client := map[string]string{
		"ENDSESSION_SERVER": gateway.grpc, "ENDSESSION_TLS_CA_FILE": filepath.Join(dir, "tls.crt"), "ENDSESSION_API_KEY": key,
	}
	if out, err := program(client, "invalidate", "--user", "alice", "--yes").CombinedOutput(); err != nil || !strings.Contains(string(out), "SUCCEEDED") {
		t.Errorf("invalidate: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"list"}, {"targets", "list"}} { // who may end sessions may look, too
		if out, err := program(client, args...).CombinedOutput(); err != nil || !strings.Contains(string(out), "alice") && !strings.Contains(string(out), "apm") {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	if _, err := os.Stat(inside(state + "/endsession.db")); err != nil {
		t.Error(err)
	}
	manager.hear("WATCHDOG=1")

	// systemd runs ExecReload, and takes the reload for done when the service says READY again.
	if reload := unit["ExecReload"]; len(reload) != 1 || reload[0] != "/bin/kill -HUP $MAINPID" {
		t.Errorf("ExecReload=%q", reload)
	}
	for _, good := range []bool{true, false} {
		if !good {
			write("/etc/endsession/endsession.yaml", "nonsense")
		}
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		said := manager.hear("RELOADING=1")
		if !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+\n$`).MatchString(said) {
			t.Errorf("said %q", said)
		}
		manager.hear("READY=1")
	}

	gateway.terminate(t)
	manager.hear("STOPPING=1")
	if status := gateway.wait(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// newAPIKey makes an API key, and returns it with its hash.
func newAPIKey(t *testing.T) (key, hash string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	out, err := program(nil, "key", "new", "--name", "helpdesk", "--key-file", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b)), regexp.MustCompile(`[0-9a-f]{64}`).FindString(string(out))
}

// TestWatchdogIsTheProcess: a process that does not answer itself does not say that it lives.
func TestWatchdogIsTheProcess(t *testing.T) {
	heard, address := newServiceManager(t)
	t.Setenv("NOTIFY_SOCKET", address)
	t.Setenv("WATCHDOG_USEC", "2000")
	var asked atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		manager{slog.New(slog.DiscardHandler)}.watchdog(ctx, func(context.Context) error {
			if asked.Add(1) < 4 {
				return errors.New("mute")
			}
			return nil
		})
	}()
	heard.hear("WATCHDOG=1")
	if n := asked.Load(); n < 4 {
		t.Errorf("it said that it lives after %d questions, and answered the 4th", n)
	}
	cancel()
	<-ended
}
