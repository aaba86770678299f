package pgtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a running server.
type process struct {
	pid   int
	ended chan struct{}
	err   error // once ended
}

// launch starts a process that ends with this one. The system sends the signal when the thread that started it ends, so
// that thread is kept.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.ended:
	default:
		_ = syscall.Kill(p.pid, s)
	}
}

// children are the server's processes, one a connection and some more. Each has a process group of its own, so they are
// looked up in /proc.
func (p *process) children() []int {
	var pids []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		if fields := statFields(stat); len(fields) < 2 || fields[1] != strconv.Itoa(p.pid) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(stat))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// statFields are what a process's stat file says, from the state on.
func statFields(stat string) []string {
	text, err := os.ReadFile(stat)
	if err != nil {
		return nil
	}
	// pid (name) state ppid …; the name may hold anything, a parenthesis too.
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// cpu is the processor time of the server's processes, also of those that have ended.
func (p *process) cpu() (d time.Duration) {
	const tick = time.Second / 100 // on every Linux
	for _, pid := range append(p.children(), p.pid) {
		fields := statFields("/proc/" + strconv.Itoa(pid) + "/stat")
		if len(fields) < 15 {
			continue // it has just ended
		}
		times := fields[11:13] // utime, stime
		if pid == p.pid {
			times = fields[11:15] // cutime, cstime: of its children that have ended
		}
		for _, field := range times {
			n, _ := strconv.ParseInt(field, 10, 64)
			d += time.Duration(n) * tick
		}
	}
	return d
}
