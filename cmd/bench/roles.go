package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// roleArgument makes this program one of the processes that are measured, or that answer them.
const roleArgument = "role"

// player is what a process does: it begins, says where it is reached, and returns a function that ends it.
type player func(ctx context.Context, args []string) (addresses map[string]string, end func() error, err error)

func roles() map[string]player {
	return map[string]player{"upstream": playUpstream, "bare": playBare, "gateway": playGateway, "emulators": playEmulators}
}

// play is the main function of such a process. It ends when its standard input does, and so with whoever started it.
func play(ctx context.Context, args []string) error {
	begin := roles()[args[0]]
	if begin == nil {
		return errors.New("no such role")
	}
	addresses, end, err := begin(ctx, args[1:])
	if err != nil {
		return err
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	http.HandleFunc("GET /usage", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(ownUsage()) })
	// Linux counts the peak anew; elsewhere it is that since the beginning.
	http.HandleFunc("GET /forget-peak", func(http.ResponseWriter, *http.Request) { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) })
	http.HandleFunc("GET /profile", pprof.Profile)
	http.HandleFunc("GET /allocs", pprof.Handler("allocs").ServeHTTP)
	go func() { _ = http.Serve(control, nil) }()
	addresses["control"] = control.Addr().String()
	if err := json.NewEncoder(os.Stdout).Encode(addresses); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(gone) }()
	select {
	case <-gone:
	case <-ctx.Done():
	}
	return end()
}

// usage is what a process has used since it began.
type usage struct {
	CPU        time.Duration // user and system
	Allocs     uint64        // objects
	AllocBytes uint64
	Resident   int64 // bytes, now
	Peak       int64 // bytes, at most so far, or since that was forgotten
}

func ownUsage() usage {
	var u usage
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err == nil {
		u.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Allocs, u.AllocBytes = m.Mallocs, m.TotalAlloc
	u.Resident, u.Peak = memory("self")
	return u
}

// memory reads what a process occupies, in bytes; zero where there is no /proc.
func memory(pid string) (resident, peak int64) {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			resident = kb << 10
		case "VmHWM":
			peak = kb << 10
		}
	}
	return resident, peak
}

// process is a child in one of the roles.
type process struct {
	cmd     *exec.Cmd
	stdin   io.Closer
	stderr  *tail
	address map[string]string
	ended   chan struct{}
	err     error // once ended
}

// startTimeout bounds how long a process may take until it can be reached; a journal with a million entries is opened in it.
const startTimeout = time.Minute

// start begins a process of this program, or fails with what it wrote to standard error.
func start(ctx context.Context, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(self, append([]string{roleArgument}, args...)...), stderr: &tail{}, ended: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	first := make(chan []byte, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadBytes('\n')
		first <- line
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case line := <-first:
		if json.Unmarshal(line, &p.address) == nil {
			return p, nil
		}
		<-p.ended
		return nil, fmt.Errorf("%s: %w\n%s", args[0], p.err, p.stderr)
	case <-ctx.Done():
		p.kill()
		return nil, fmt.Errorf("%s: %w\n%s", args[0], ctx.Err(), p.stderr)
	}
}

// stop ends the process in order.
func (p *process) stop() error {
	_ = p.stdin.Close()
	<-p.ended
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.cmd.Args[2], p.err, p.stderr)
	}
	return nil
}

// kill ends the process as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// usage asks the process what it has used.
func (p *process) usage(ctx context.Context) (u usage, err error) {
	return u, getJSON(ctx, "http://"+p.address["control"]+"/usage", &u)
}

// forgetPeak has the most memory that the process has occupied counted from now on.
func (p *process) forgetPeak(ctx context.Context) error {
	_, err := get(ctx, "http://"+p.address["control"]+"/forget-peak")
	return err
}

func getJSON(ctx context.Context, url string, v any) error {
	body, err := get(ctx, url)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return body, err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const most = 4 << 10
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - most; n > 0 {
		t.buf = bytes.Clone(t.buf[n:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
