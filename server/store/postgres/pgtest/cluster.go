package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/gofrs/flock"
	"github.com/jackc/pgx/v5"
)

// User owns everything in a [Cluster].
const User = "endsession"

// startTimeout bounds how long a server may take to answer; it may recover from a crash first.
const startTimeout = time.Minute

// Settings are server settings, as in postgresql.conf.
type Settings map[string]string

// Fast gives up durability for speed: nothing outlives a crash of the machine (a killed server is no such crash).
func Fast() Settings { return Settings{"fsync": "off", "full_page_writes": "off"} }

// Durable keeps what is committed, as an operator would.
func Durable() Settings { return Settings{} }

// always are set in every server; log_statement may be switched on to see what a test does.
var always = Settings{
	"listen_addresses":        "127.0.0.1",
	"unix_socket_directories": "",
	"max_connections":         "200",
	"shared_buffers":          "64MB",
	"deadlock_timeout":        "200ms",
	"logging_collector":       "off",
	"log_line_prefix":         "%m [%p] ",
}

// Cluster is a PostgreSQL server with a data directory of its own.
type Cluster struct {
	dir      string
	bin      string
	port     int
	password string
	settings Settings
	account  *account
	lock     *flock.Flock

	mu      sync.Mutex
	process *process // nil while it does not run
}

// Start makes a cluster and starts its server. [ErrMissing] means that there is no PostgreSQL here.
func Start(s Settings) (_ *Cluster, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	removeStale()
	c := &Cluster{bin: bin, password: rand.Text(), settings: maps.Clone(s)}
	if c.account, err = unprivileged(); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", prefix); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Remove()
		}
	}()
	c.lock = flock.New(filepath.Join(c.dir, "lock"))
	if err := c.lock.Lock(); err != nil {
		return nil, err
	}
	pwfile := filepath.Join(c.dir, "password")
	if err := os.WriteFile(pwfile, []byte(c.password), 0o600); err != nil {
		return nil, err
	}
	if err := c.account.own(c.dir, pwfile); err != nil {
		return nil, err
	}
	initdb := c.command("initdb", "-D", c.data(), "-U", User, "-A", "scram-sha-256", "--pwfile", pwfile,
		"-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return c, c.Restart()
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }
func (c *Cluster) log() string  { return filepath.Join(c.dir, "log") }

func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = c.account.attributes()
	return cmd
}

// Addr is where the server listens; it keeps its port when it is restarted.
func (c *Cluster) Addr() string { return fmt.Sprintf("127.0.0.1:%d", c.port) }

// DSN connects to the server as its owner, with a search path.
func (c *Cluster) DSN(schema string) secret.String { return c.DSNAt(c.Addr(), schema) }

// DSNAt is [Cluster.DSN] by way of another address, a proxy's.
func (c *Cluster) DSNAt(addr, schema string) secret.String {
	return secret.New(fmt.Sprintf("postgres://%s:%s@%s/postgres?sslmode=disable&search_path=%s", User, c.password, addr, schema))
}

// Password is what must appear in no message.
func (c *Cluster) Password() string { return c.password }

// Restart starts the server, after it was stopped or killed, and waits until it answers.
func (c *Cluster) Restart() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		return errors.New("pgtest: the server is running")
	}
	var err error
	for range 5 {
		if c.port == 0 {
			if c.port, err = freePort(); err != nil {
				return err
			}
		}
		if err = c.start(); err == nil {
			return nil
		}
		if !bytes.Contains(c.Log(), []byte("Address already in use")) {
			break
		}
		c.port = 0 // somebody was faster
	}
	return err
}

func (c *Cluster) start() error {
	args := []string{"-D", c.data(), "-p", fmt.Sprint(c.port)}
	settings := maps.Clone(always)
	maps.Copy(settings, c.settings)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	log, err := os.OpenFile(c.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := c.command("postgres", args...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := launch(cmd)
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		conn, err := pgx.Connect(ctx, c.DSN("public").Reveal())
		if err == nil {
			c.process = p
			return conn.Close(ctx)
		}
		select {
		case <-p.ended:
			return fmt.Errorf("postgres ended: %w\n%s", p.err, c.Log())
		case <-ctx.Done():
			p.signal(syscall.SIGKILL)
			return fmt.Errorf("postgres does not answer: %w\n%s", err, c.Log())
		case <-poll.C:
		}
	}
}

// Log is what the server has written to its log.
func (c *Cluster) Log() []byte {
	text, _ := os.ReadFile(c.log())
	return text
}

// Stop shuts the server down in order: connections are told.
func (c *Cluster) Stop() { c.end(syscall.SIGINT) }

// Kill ends the server as a crash would: no transaction is finished, and it recovers at the next start.
func (c *Cluster) Kill() { c.end(syscall.SIGQUIT) }

func (c *Cluster) end(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return
	}
	c.process.signal(syscall.SIGCONT)
	c.process.signal(s)
	<-c.process.ended
	c.process = nil
}

// Freeze stops every process of the server without ending it, as a hanging disk or host does: connections stay, nobody
// answers. The function it returns lets the server go on.
func (c *Cluster) Freeze() (thaw func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.process
	p.signal(syscall.SIGSTOP) // first, so that it starts no more children
	for _, pid := range p.children() {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	return sync.OnceFunc(func() {
		for _, pid := range p.children() {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		p.signal(syscall.SIGCONT)
	})
}

// CPU is the processor time that the server has taken since its start; 0 where that is not known, which is not on Linux.
func (c *Cluster) CPU() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return 0
	}
	return c.process.cpu()
}

// Remove ends the server and deletes its data.
func (c *Cluster) Remove() {
	c.Kill()
	_ = os.RemoveAll(c.dir)
	if c.lock != nil {
		_ = c.lock.Close()
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

const prefix = "endsession-postgres-"

// removeStale deletes what test binaries that were killed have left behind: nobody holds its lock.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil || time.Since(info.ModTime()) < time.Minute || strings.Contains(dir, "..") {
			continue // perhaps just being made
		}
		l := flock.New(filepath.Join(dir, "lock"))
		if held, err := l.TryLock(); err == nil && held {
			_ = os.RemoveAll(dir)
			_ = l.Close()
		}
	}
}

// Copy makes a cluster of what a crash at this moment would leave: it freezes the server and copies its data directory. The
// copy is started with [Cluster.Restart], and removed by its owner.
func (c *Cluster) Copy() (_ *Cluster, err error) {
	x := &Cluster{bin: c.bin, password: c.password, settings: c.settings, account: c.account}
	if x.dir, err = os.MkdirTemp("", prefix); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			x.Remove()
		}
	}()
	x.lock = flock.New(filepath.Join(x.dir, "lock"))
	if err := x.lock.Lock(); err != nil {
		return nil, err
	}
	if err := c.account.own(x.dir); err != nil {
		return nil, err
	}
	thaw := c.Freeze()
	defer thaw()
	return x, filepath.WalkDir(c.data(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.data(), path)
		if err != nil {
			return err
		}
		to := filepath.Join(x.data(), rel)
		switch {
		case d.Name() == "postmaster.pid":
			return nil // it says that the server runs
		case d.IsDir():
			err = os.Mkdir(to, 0o700)
		default:
			var data []byte
			if data, err = os.ReadFile(path); err == nil {
				err = os.WriteFile(to, data, 0o600)
			}
		}
		if err == nil {
			err = c.account.own(to)
		}
		return err
	})
}
