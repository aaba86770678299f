package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How often a transaction is tried: again after a serialization failure, a deadlock or a connection that turned out to be
// dead before anything was sent on it.
const (
	maxTries   = 6
	firstPause = 2 * time.Millisecond
)

// tx is what a change works with: a connection, for one transaction.
type tx struct {
	*pgx.Conn
	trail   *trail
	timeout time.Duration
	chain   *audit.Chain // nil until there is an event
	mark    audit.Mark   // where the chain ended before
	// mayCommit is true as soon as something was sent that commits. It is at the beginning: most changes are one statement.
	mayCommit bool
	appended  int // audit events; 0 if none were written after all
	changed   []invalidation.Change
}

// touch notes that an invalidation has changed ("" for a pause), and to what revision, if that is known.
func (t *tx) touch(id string, revision int64) {
	t.changed = append(t.changed, invalidation.Change{ID: id, Revision: revision})
}

// lostError says that the connection broke after a change was sent; from says which backend had it.
type lostError struct {
	from backend
	err  error
}

func (e *lostError) Error() string {
	return fmt.Sprintf("%v: %v", invalidation.ErrCommitUnknown, e.err)
}

func (e *lostError) Unwrap() []error { return []error{invalidation.ErrCommitUnknown, e.err} }

// change runs do, which is one durable transaction, on a connection. It waits for a connection as long as ctx allows. Once
// begun, the end is near and is waited for whatever becomes of ctx, but not for ever.
func (s *Store) change(ctx context.Context, do func(context.Context, *tx) error) error {
	var changed []invalidation.Change
	err := s.try(ctx, func(c *pgx.Conn) error {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timeout, errNoAnswer)
		defer cancel()
		t := &tx{Conn: c, trail: s.trail, timeout: s.timeout, mayCommit: true}
		err := do(ctx, t)
		switch {
		case err == nil:
			changed = t.changed
		case c.IsClosed() && t.mayCommit && !pgconn.SafeToRetry(err):
			// It may be committed; whoever waits shall look.
			changed = []invalidation.Change{{ID: invalidation.AnyChange}}
			if errors.Is(context.Cause(ctx), errNoAnswer) {
				err = errNoAnswer
			}
			return &lostError{from: *backendOf(c), err: err} // and the chain's end is not known
		}
		t.giveBack(err == nil)
		return err
	})
	s.news.changed(changed)
	return err
}

// read runs do, which changes nothing.
func (s *Store) read(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, errNoAnswer)
	defer cancel()
	return s.try(ctx, func(c *pgx.Conn) error {
		err := do(ctx, c)
		if err != nil && c.IsClosed() && ctx.Err() == nil {
			return &brokenError{err}
		}
		return err
	})
}

// brokenError says that a connection broke and that it does no harm to try on another.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// try runs do on a connection, again if that helps.
func (s *Store) try(ctx context.Context, do func(*pgx.Conn) error) error {
	for try := 1; ; try++ {
		err := s.once(ctx, do)
		if err == nil {
			return nil
		}
		if try == maxTries || !again(err) || s.closed.Load() {
			return failure(err)
		}
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(firstPause << try))))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return failure(err)
		}
	}
}

// again reports whether a transaction that ended with err did nothing and may do better next time.
func again(err error) bool {
	var broken *brokenError
	switch state(err) {
	case serializationFailure, deadlockDetected, stalePlan:
		return true
	}
	return errors.As(err, &broken) || pgconn.SafeToRetry(err) && !errors.Is(err, invalidation.ErrUnavailable)
}

func (s *Store) once(ctx context.Context, do func(*pgx.Conn) error) error {
	c, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	err = do(c.Conn())
	if err != nil && c.Conn().IsClosed() {
		s.renew(backendOf(c.Conn()).born)
	}
	return err
}

// renew is told that a connection broke. What broke it has probably broken all that are as old, and each call would find out
// for itself: they are given up together.
func (s *Store) renew(born time.Time) {
	s.mu.Lock()
	known := born.Before(s.renewed)
	if !known {
		s.renewed = time.Now()
	}
	s.mu.Unlock()
	if !known {
		s.pool.Reset()
	}
}

// acquire waits for a connection.
func (s *Store) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	if s.closed.Load() {
		return nil, unavailable(errClosed)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, errNoAnswer)
	defer cancel()
	c, err := s.connection(ctx)
	if err == nil {
		return c, nil
	}
	switch {
	case s.closed.Load():
		err = errClosed
	case errors.Is(context.Cause(ctx), errNoAnswer):
		err = errNoAnswer
	}
	return nil, unavailable(err)
}

// connection waits for one that is there if there can be no other now: the server may be full.
func (s *Store) connection(ctx context.Context) (*pgxpool.Conn, error) {
	for {
		c, err := s.pool.Acquire(ctx)
		if err == nil {
			return c, nil
		}
		var refusal *pgconn.ConnectError
		if errors.As(err, &refusal) {
			s.gate.report(err)
		}
		if has := s.pool.Stat(); has.AcquiredConns()+has.IdleConns() == 0 || s.closed.Load() {
			return nil, err
		}
		pause := time.NewTimer(minReconnect)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, err
		}
	}
}

// gate keeps a server that refuses connections from being asked all the time: after a failure it lets nobody connect for a
// while, which grows.
type gate struct {
	mu    sync.Mutex
	err   error
	pause time.Duration
	until time.Time
}

// Bounds of the pause between attempts to connect.
const (
	minReconnect = 20 * time.Millisecond
	maxReconnect = time.Second
)

func (g *gate) pass() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Now().Before(g.until) {
		// Not wrapped: what became of another's attempt, its deadline perhaps, is not this one's error, nor a new failure.
		return errors.New("waiting before connecting again, after: " + g.err.Error())
	}
	return nil
}

func (g *gate) report(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.err, g.pause, g.until = nil, 0, time.Time{}
		return
	}
	if time.Now().Before(g.until) {
		return // one of many that failed together
	}
	g.err = err
	g.pause = min(max(2*g.pause, minReconnect), maxReconnect)
	g.until = time.Now().Add(g.pause)
}

// gone makes sure that a backend has ended, and with it whatever it was about to commit. The server it is asked of must be
// the one that the backend belonged to, or its successor.
func (s *Store) gone(ctx context.Context, b backend) error {
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		var alive bool
		if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
			return c.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2`,
				b.pid, b.start).Scan(&alive)
		}); err != nil {
			return err
		}
		if !alive {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return unavailable(ctx.Err())
		}
	}
}
