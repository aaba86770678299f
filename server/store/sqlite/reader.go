package sqlite

import (
	"context"
	"errors"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// readers is how many queries are answered at once.
const readers = 4

type query struct {
	ctx    context.Context
	do     func(context.Context, *conn) error
	answer chan error // cap 1
}

// read answers a query on one of the readers' connections, in one transaction: all it reads is of one moment. When it
// returns an error, do may still be running: what do writes to must not be used then.
func (s *Store) read(ctx context.Context, do func(context.Context, *conn) error) error {
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, errNoAnswer)
	defer cancel()
	q := query{ctx: ctx, do: do, answer: make(chan error, 1)}
	select {
	case s.queries <- q:
	case <-s.closing:
		return unavailable(errClosed)
	case <-ctx.Done():
		return unavailable(context.Cause(ctx))
	}
	select {
	case err := <-q.answer:
		return err
	case <-ctx.Done():
		return unavailable(context.Cause(ctx))
	}
}

// reader answers queries until the store is closed.
func (s *Store) reader() {
	var c *conn
	defer func() {
		if c != nil {
			_ = c.close()
		}
	}()
	for {
		select {
		case q := <-s.queries:
			if q.ctx.Err() != nil {
				continue
			}
			var err error
			if c == nil {
				c, err = s.place.reconnect("ro")
			}
			if err == nil {
				err = snapshot(q, c)
			}
			if ctxErr := q.ctx.Err(); ctxErr != nil && errors.Is(err, ctxErr) {
				err = unavailable(context.Cause(q.ctx))
			}
			if errors.Is(err, invalidation.ErrUnavailable) && c != nil {
				_ = c.close()
				c = nil
			}
			q.answer <- err
		case <-s.closing:
			return
		}
	}
}

func snapshot(q query, c *conn) error {
	if _, err := c.exec("BEGIN"); err != nil {
		return err
	}
	err := q.do(q.ctx, c)
	if _, cerr := c.exec("COMMIT"); err == nil {
		err = cerr
	}
	return err
}

// Now is the clock of the options: the process's.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := s.usable(ctx); err != nil {
		return time.Time{}, err
	}
	return invalidation.Moment(s.clock()), nil
}

// usable is for what needs no connection: an error if the store is closed or the context has ended.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	select {
	case <-s.closing:
		return unavailable(errClosed)
	default:
		return nil
	}
}
