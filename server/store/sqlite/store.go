package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/gofrs/flock"
)

// DefaultTimeout bounds a call whose context does not.
const DefaultTimeout = 10 * time.Second

// Options say where the journal is.
type Options struct {
	// Path is the database file; it is created if it does not exist, the directory is not. Beside it are Path-wal and
	// Path-shm, which belong to it, and Path.lock.
	Path string
	// Logger may be nil.
	Logger *slog.Logger
	// Timeout is how long a call waits for a database that does not answer; twice as long for a transaction that has begun,
	// half as long for another program's lock.
	// 0 is DefaultTimeout.
	Timeout time.Duration
	// Clock is what the journal's times are compared with; nil is [time.Now].
	Clock func() time.Time
	// Keys hash the audit trail.
	Keys audit.Keys

	vfs string // SQLite's own when empty
}

// Store is the journal in a SQLite file.
type Store struct {
	place     place
	timeout   time.Duration
	clock     func() time.Time
	keys      audit.Keys
	lock      *flock.Flock
	writer    *writer
	queries   chan query
	closing   chan struct{}
	reading   sync.WaitGroup
	news      *news
	slots     slotTable
	closeOnce sync.Once
	closeErr  error
}

var _ invalidation.Store = (*Store)(nil)

// Open opens the journal, creates it or brings its schema up to date. It fails if another process has it open. Leases that
// earlier processes held are over.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	path, err := resolve(o.Path)
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", o.Path, err)
	}
	lock := flock.New(path+".lock", flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("open journal %s: lock: %w", o.Path, err)
	}
	if !locked {
		return nil, fmt.Errorf("open journal %s: another process has it open; only one may write", o.Path)
	}
	p := place{path: path, vfs: o.vfs, busy: o.Timeout / 2}
	c, err := p.prepare()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", o.Path, err), lock.Unlock())
	}
	s := &Store{
		place: p, timeout: o.Timeout, clock: o.Clock, keys: o.Keys, lock: lock,
		queries: make(chan query),
		closing: make(chan struct{}),
		news:    newNews(),
		slots:   slotTable{by: map[string][]invalidation.Slot{}},
	}
	s.writer = &writer{
		place: p, log: o.Logger, conn: c,
		tx:        tx{conn: c, keys: o.Keys, heads: heads{}},
		clock:     o.Clock,
		queue:     make(chan *change, 2*maxBatch),
		closing:   s.closing,
		stopped:   make(chan struct{}),
		committed: s.news.add,
	}
	go s.writer.run()
	for range readers {
		s.reading.Go(s.reader)
	}
	go s.news.run()
	return s, nil
}

// resolve makes the path absolute and follows links, so that one database has one lock.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		dir, derr := filepath.EvalSymlinks(filepath.Dir(path))
		return filepath.Join(dir, filepath.Base(path)), derr
	}
	return real, err
}

// prepare creates the file if need be, migrates it, and returns the writer's connection.
func (p place) prepare() (_ *conn, err error) {
	// SQLite would create it readable for all; the log and the index beside it follow its mode.
	f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	ms, err := readMigrations(migrationFiles)
	if err != nil {
		return nil, err
	}
	c, err := p.connect("rw")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if err := migrate(c, ms); err != nil {
		return nil, err
	}
	var mode string
	if _, err := c.one(func(r *row) error { mode = r.text(); return nil }, `PRAGMA journal_mode`); err != nil {
		return nil, err
	}
	if mode != "wal" {
		return nil, fmt.Errorf("the file system does not allow a write-ahead log (journal mode %q)", mode)
	}
	if _, err := c.exec(endLeases); err != nil {
		return nil, fmt.Errorf("end the leases of earlier processes: %w", err)
	}
	return c, nil
}

// This process is the only one: whoever held a lease is gone.
const endLeases = `UPDATE runs SET lease_owner = NULL, lease_until = NULL, lease_from = NULL
WHERE due_time IS NOT NULL AND lease_until IS NOT NULL`

// OnChange registers f; it is called from a goroutine of its own, after the commit.
func (s *Store) OnChange(f func(invalidation.Change)) { s.news.subscribe(f) }

// OnNews has nothing to tell: no other process writes to the journal.
func (s *Store) OnNews(func(invalidation.News)) {}

// Close waits for transactions under way and closes the journal.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		<-s.writer.stopped
		s.reading.Wait()
		s.news.stop()
		if s.writer.conn != nil {
			s.closeErr = s.writer.conn.close()
		}
		s.closeErr = errors.Join(s.closeErr, s.lock.Unlock())
	})
	return s.closeErr
}

// news tells the subscribers what has changed, without holding up the writer.
type news struct {
	mu          sync.Mutex
	subscribers []func(invalidation.Change)
	changes     []invalidation.Change
	wake        chan struct{} // cap 1
	ended       chan struct{}
}

func newNews() *news {
	return &news{wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

func (n *news) subscribe(f func(invalidation.Change)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.subscribers = append(n.subscribers, f)
}

func (n *news) add(changes []invalidation.Change) {
	n.mu.Lock()
	n.changes = append(n.changes, changes...)
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *news) run() {
	defer close(n.ended)
	for more := true; more; {
		_, more = <-n.wake
		n.mu.Lock()
		changes, subscribers := n.changes, n.subscribers
		n.changes = nil
		n.mu.Unlock()
		for _, c := range changes {
			for _, f := range subscribers {
				f(c)
			}
		}
	}
}

// stop tells what is left and ends. Nothing is added any more.
func (n *news) stop() {
	close(n.wake)
	<-n.ended
}

// Path is the database file.
func (s *Store) Path() string { return s.place.path }
