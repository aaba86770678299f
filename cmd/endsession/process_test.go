package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asProgram in the environment makes the test binary the program itself, so that tests can run it as a process of its
// own (and kill it) without building another binary; with the race detector, when the tests have it.
const asProgram = "ENDSESSION_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// patience is how long tests wait for what must happen. It is generous: the machine may be busy.
const patience = time.Minute

// eventually polls until f returns true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// process is `endsession serve` in a process of its own.
type process struct {
	cmd    *exec.Cmd
	log    *lockedBuffer
	ended  chan struct{}
	status int // once ended
	// grpc, http and admin are where it listens.
	grpc, http, admin string
}

// program returns a command that is endsession itself.
func program(env map[string]string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// begin starts `endsession serve` and does not wait for it to serve.
func begin(t testing.TB, path string) *process {
	t.Helper()
	return beginWith(t, labEnv, path)
}

func beginWith(t testing.TB, env map[string]string, path string) *process {
	t.Helper()
	return beginCommand(t, program(env, "serve", "--config", path, "--log-format", "json"))
}

// beginCommand starts a command that is endsession serve, in whatever surroundings.
func beginCommand(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, log: &lockedBuffer{}, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		p.status = p.cmd.ProcessState.ExitCode()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", p.log)
		}
		for _, secret := range []string{labBIGIQPassword, labKibanaKey, labElementPassword} {
			if strings.Contains(p.log.String(), secret) {
				t.Errorf("the log holds the secret %q:\n%s", secret, p.log)
			}
		}
	})
	return p
}

// serve starts `endsession serve` and waits until it does.
func serve(t testing.TB, path string) *process {
	t.Helper()
	return serveWith(t, labEnv, path)
}

// serveWith is serve with another environment.
func serveWith(t testing.TB, env map[string]string, path string) *process {
	t.Helper()
	p := beginWith(t, env, path)
	eventually(t, "the gateway serves", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("the gateway ended with status %d:\n%s", p.status, p.log)
		default:
		}
		return p.listens()
	})
	return p
}

// listens reports whether the process serves, and notes where.
func (p *process) listens() bool {
	for line := range strings.Lines(p.log.String()) {
		var entry struct{ Msg, GRPC, HTTP, Admin string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "serving" {
			p.grpc, p.http, p.admin = entry.GRPC, "http://"+entry.HTTP, "http://"+entry.Admin
			return true
		}
	}
	return false
}

// kill ends the process without a warning.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// terminate asks the process to end.
func (p *process) terminate(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// wait returns the exit status.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("the gateway has not ended after %v", patience)
	}
	return p.status
}

// get reads a path of the REST API.
func (p *process) get(t testing.TB, path string) (status int, answer string) {
	t.Helper()
	resp, err := http.Get(p.http + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer = read(t, resp.Body)
	asDocumented(t, http.MethodGet, path, resp.StatusCode, answer)
	return resp.StatusCode, answer
}

// gate stands before the systems and holds up one request.
type gate struct {
	// which picks the request; the first one counts.
	which func(upstream) bool
	// after holds up the answer: the system has acted already. Otherwise the request itself is held up.
	after bool

	mu      sync.Mutex
	struck  bool
	reached chan struct{}
	opened  chan struct{}
	open    func()
}

// upstream is a request to one of the systems, the nth to all of them and the own-th to this one.
type upstream struct {
	target, method, path, body string
	nth, own                   int
}

func newGate(after bool, which func(upstream) bool) *gate {
	g := &gate{which: which, after: after, reached: make(chan struct{}), opened: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	return g
}

func (g *gate) strikes(u upstream) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.struck || !g.which(u) {
		return false
	}
	g.struck = true
	return true
}

// wrap puts the gate before the systems of a lab. What was held up is let through when the gate opens, even if whoever
// sent it is dead by then.
func (g *gate) wrap() func(target string, h http.Handler) http.Handler {
	var mu sync.Mutex
	n, own := 0, map[string]int{}
	return func(target string, h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return // the sender died while sending
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			mu.Lock()
			n++
			own[target]++
			u := upstream{target, r.Method, r.URL.Path, string(body), n, own[target]}
			mu.Unlock()
			strikes := g.strikes(u)
			hold := func() {
				close(g.reached)
				<-g.opened
			}
			if strikes && !g.after {
				hold()
			}
			answer := httptest.NewRecorder()
			h.ServeHTTP(answer, r)
			if strikes && g.after {
				hold()
			}
			for k, v := range answer.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Bytes())
		})
	}
}
