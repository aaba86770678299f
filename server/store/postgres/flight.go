package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// enough changes on the ground are worth a second flight, that is on its way while the first commits; with fewer it would
	// only carry what the first has just missed.
	enough = 16
	// maxInAir is how many flights there are at most. More than two are needed only if they take long: if one hangs, or if the
	// server is slow for everybody.
	maxInAir = 4
	// patience is how long a change waits on the ground before another flight departs.
	patience = 100 * time.Millisecond
	// gatherTime is how long an answer that is not the last of its invalidation waits for the others: nobody is told anything
	// before the last.
	gatherTime = 500 * time.Microsecond
	// maxExpected bounds of how many invalidations it is known that answers are expected.
	maxExpected = 1 << 12
	// maxAboard bounds how many changes share a transaction, so that the first of them does not wait for ever.
	maxAboard = 128
	// lockPart is the part of the timeout that a flight waits for a lock: a change that waits for somebody who hangs shall do
	// so alone.
	lockPart = 40
)

// readyFlight is for the rest of the transaction. Planning takes longer than a flight of one; but a plan that is made once, for
// any number of changes, has to be made when the journal is so large already that it goes by the right indexes.
const readyFlight = `SELECT set_config('lock_timeout', $1, true),
  set_config('plan_cache_mode', CASE WHEN least(pg_relation_size('invalidations'), pg_relation_size('runs')) < 1 << 20
    THEN 'force_custom_plan' ELSE 'force_generic_plan' END, true)`

// part is one caller's change, which shares a transaction with others: an acceptance or an answer.
type part struct {
	acceptance *acceptance // one of the two
	answer     *answer
	events     []invalidation.Event

	// stage is where it stands: the caller may withdraw it as long as it is not in the air, and then it is certain that
	// nothing has changed.
	stage   atomic.Int32
	err     error
	settled chan struct{}
}

const (
	queued int32 = iota
	aboard
	withdrawn
)

var (
	// errRefused says that a change cannot be made: its request id is taken, or the lease does not hold. Why is found out
	// afterwards.
	errRefused = errors.New("the change cannot be made")
	// errAlone says that a flight failed, and that a change of it has to be tried by itself: each caller shall have its own
	// error.
	errAlone = errors.New("the change has to be made alone")
)

// refusal is the server's answer to a flight of which some parts cannot be made.
type refusal struct{ parts []*part }

func (r *refusal) Error() string {
	return fmt.Sprintf("%d of the changes cannot be made", len(r.parts))
}
func (r *refusal) Unwrap() error { return errRefused }

// flights gathers what goes into shared transactions. While one is in the air, changes queue up; all that are there when it
// ends, or as soon as they are enough, go with the next one. With nothing in the air a change goes at once,
// but for an answer that others are expected to follow: it waits for a moment, or until anything else is asked for.
type flights struct {
	s *Store

	gather time.Duration // gatherTime
	mu     sync.Mutex
	queue  []*part
	inAir  int
	closed bool
	loops  sync.WaitGroup
	// expected are how many answers are still to come, by invalidation, of runs that began when they were accepted. It may
	// be wrong: then an answer waits in vain, or not at all.
	expected map[string]int
}

// together makes a change in a durable transaction that others may share, once. If ctx ends before it is in the air, it is
// withdrawn. Otherwise its end is near and is waited for. errRefused and errAlone mean that nothing has changed.
func (f *flights) together(ctx context.Context, p *part) error {
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	p.settled = make(chan struct{})
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return unavailable(errClosed)
	}
	pause := patience
	f.queue = append(f.queue, p)
	switch more := f.expects(p); {
	case f.inAir == 0 && more && p.follows(f.queue[0]):
		pause = f.gather
	case f.inAir == 0 || f.inAir == 1 && len(f.queue) >= enough:
		f.depart()
	}
	f.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	why := errNoAnswer
	select {
	case <-p.settled:
		return p.err
	case <-timer.C:
		f.mu.Lock()
		if f.inAir < maxInAir && p.stage.Load() == queued && !f.closed {
			f.depart()
		}
		f.mu.Unlock()
		timer.Reset(f.s.timeout - pause)
		select {
		case <-p.settled:
			return p.err
		case <-ctx.Done():
			why = ctx.Err()
		case <-timer.C:
		}
	case <-ctx.Done():
		why = ctx.Err()
	}
	if p.stage.CompareAndSwap(queued, withdrawn) {
		return unavailable(why)
	}
	<-p.settled
	return p.err
}

// make makes a change, with others if that works out. Where it is refused, why says the reason; if there is none any more,
// it is tried again.
func (s *Store) make(ctx context.Context, p *part, why func(context.Context, *pgx.Conn) error) error {
	err := s.flights.together(ctx, p)
	for try := 1; errors.Is(err, errAlone) || errors.Is(err, errRefused) && try <= maxTries; try++ {
		if errors.Is(err, errRefused) {
			if err := s.read(ctx, why); err != nil {
				return err
			}
		}
		err = s.alone(ctx, p)
	}
	if errors.Is(err, errRefused) {
		return unavailable(err)
	}
	return err
}

// alone is together for a change by itself.
func (s *Store) alone(ctx context.Context, p *part) error {
	return s.change(ctx, func(ctx context.Context, t *tx) error { return t.write(ctx, []*part{p}, t.timeout/2) })
}

// expect says that answers of an invalidation will come.
func (f *flights) expect(id string, answers int) {
	if answers < 2 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.expected) >= maxExpected {
		clear(f.expected)
	}
	f.expected[id] = answers
}

// expects counts an answer, and reports whether more of its invalidation are to come. The mutex is held.
func (f *flights) expects(p *part) bool {
	if p.answer == nil {
		return false
	}
	id := p.answer.lease.InvalidationID
	left := f.expected[id] - 1
	if left > 0 {
		f.expected[id] = left
	} else {
		delete(f.expected, id)
	}
	return left > 0
}

// follows reports whether both are answers of one invalidation.
func (p *part) follows(first *part) bool {
	return p.answer != nil && first.answer != nil && p.answer.lease.InvalidationID == first.answer.lease.InvalidationID
}

// depart begins a flight. The mutex is held.
func (f *flights) depart() {
	f.inAir++
	f.loops.Go(f.fly)
}

// fly makes one flight after the other until nobody waits for one.
func (f *flights) fly() {
	for {
		f.flight()
		f.mu.Lock()
		if len(f.queue) == 0 {
			f.inAir--
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
	}
}

// flight makes the changes that are queued. What it has to wait for first, a connection, they wait for on the ground. It bets
// that all of them can be made; if the server says which cannot, the others go on without these.
func (f *flights) flight() {
	var parts, refused []*part
	boarded := false
	err := f.s.change(context.Background(), func(ctx context.Context, t *tx) error {
		if !boarded {
			runtime.Gosched() // so that callers who are just about to ask come along
			parts, boarded = f.board(), true
		}
		for len(parts) > 0 {
			err := t.write(ctx, parts, t.timeout/lockPart)
			var r *refusal
			if !errors.As(err, &r) {
				return err
			}
			refused = append(refused, r.parts...)
			parts = slices.DeleteFunc(parts, func(p *part) bool { return slices.Contains(r.parts, p) })
		}
		return nil
	})
	if !boarded && err != nil {
		parts = f.board() // no connection
	}
	if code := state(err); code == lockTimeout || code != "" && len(parts) > 1 && !errors.Is(err, invalidation.ErrCommitUnknown) {
		err = errAlone
	}
	settle(parts, err)
	settle(refused, errRefused)
}

func settle(parts []*part, err error) {
	for _, p := range parts {
		p.err = err
		close(p.settled)
	}
}

// board takes what is queued, in the order in which a flight writes and locks: acceptances by request, then answers by run.
// So flights do not wait for each other in a circle.
func (f *flights) board() []*part {
	f.mu.Lock()
	n := min(len(f.queue), maxAboard)
	parts := slices.Clone(f.queue[:n])
	f.queue = slices.Delete(f.queue, 0, n)
	f.mu.Unlock()
	parts = slices.DeleteFunc(parts, func(p *part) bool { return !p.stage.CompareAndSwap(queued, aboard) })
	slices.SortStableFunc(parts, func(a, b *part) int {
		switch {
		case a.acceptance != nil && b.acceptance != nil:
			x, y := a.acceptance, b.acceptance
			return cmp.Or(cmp.Compare(x.inv.Caller.Kind, y.inv.Caller.Kind), cmp.Compare(x.inv.Caller.Name, y.inv.Caller.Name),
				cmp.Compare(x.RequestID, y.RequestID))
		case a.acceptance != nil:
			return -1
		case b.acceptance != nil:
			return 1
		}
		x, y := a.answer.lease, b.answer.lease
		return cmp.Or(cmp.Compare(x.InvalidationID, y.InvalidationID), cmp.Compare(x.Run, y.Run))
	})
	return parts
}

// close waits for what is in the air. What is still queued goes, or is told that the journal is closed.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	if f.inAir == 0 && len(f.queue) > 0 {
		f.depart()
	}
	f.mu.Unlock()
	f.loops.Wait()
}

// write makes the changes of all parts, acceptances first, or none of them: then the error may be a [*refusal]. It waits
// so long for locks.
func (t *tx) write(ctx context.Context, parts []*part, wait time.Duration) error {
	first := slices.IndexFunc(parts, func(p *part) bool { return p.answer != nil })
	if first < 0 {
		first = len(parts)
	}
	var events []invalidation.Event
	for _, p := range parts {
		events = append(events, p.events...)
	}
	log, err := t.audit(events)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	b.Queue(readyFlight, ms(wait))
	accepted := queueAcceptances(b, parts[:first])
	recorded := queueAnswers(b, parts[first:], first)
	if len(events) > 0 {
		b.Queue(appendEvents, log...)
	}
	if err := t.SendBatch(ctx, b).Close(); err != nil {
		if t.chain != nil {
			t.chain.Rewind(t.mark)
		}
		return blamed(err, parts)
	}
	t.appended = len(events)
	accepted(t)
	recorded(t)
	return nil
}

// blamed turns the error of function blame into a refusal.
func blamed(err error, parts []*part) error {
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != notAll {
		return err
	}
	var numbers []int
	if err := pgtype.NewMap().Scan(pgtype.Int8ArrayOID, pgtype.TextFormatCode, []byte(e.Detail), &numbers); err != nil {
		return err
	}
	if len(numbers) == 0 {
		return err // a change is there twice: each will see for itself
	}
	r := &refusal{}
	for _, n := range numbers {
		r.parts = append(r.parts, parts[n-1])
	}
	return r
}
