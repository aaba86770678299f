package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

// acceptInvalidation inserts everything or, if the request key is taken, nothing and no row.
var acceptInvalidation = `WITH inv AS (
  INSERT INTO invalidations (id, state, revision, unfinished, succeeded, failed, unsupported, cancelled, runs_complete_time,
    allow_unsupported, priority, create_time, complete_time, caller_kind, caller_name, request_id, request_digest, user_id, retry_of, selector, call, facts)
  VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19::text::json, $20::text::json, $48::text::json)
  ON CONFLICT (caller_kind, caller_name, request_id) WHERE request_id IS NOT NULL DO NOTHING
  RETURNING id
), label AS (
  INSERT INTO labels (key, value, invalidation_id)
  SELECT l.key, l.value, inv.id FROM inv, unnest($21::text[], $22::text[]) AS l (key, value)
), run AS (
  INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, expire_time,
    lease_owner, lease_token, lease_until, lease_from,
    state, open, attempts, next_attempt_time, start_time, complete_time, counted, count, count_is_minimum, verification,
    sessions_truncated, operation, error, retry, resume, covered, warnings, sessions, selector, terms)
  SELECT inv.id, r.n - 1, r.target, r.kind, r.fingerprint, $10::smallint, r.expire_time,
    CASE WHEN r.begun THEN $23::text END, r.begun::int,
    CASE WHEN r.begun THEN statement_timestamp() + $24::interval END, CASE WHEN r.begun THEN 'PENDING' END,
    r.state, r.begun, r.begun::int, r.next_attempt_time, CASE WHEN r.begun THEN statement_timestamp() ELSE r.start_time END,
    r.complete_time, r.counted, r.count, r.count_is_minimum, r.verification,
    r.sessions_truncated, r.operation::json, r.error::json, r.retry::json, r.resume::json, r.covered::json, r.warnings::json, r.sessions::json, r.selector::json, r.terms::json
  FROM inv, unnest($25::text[], $26::text[], $27::text[], $28::timestamptz[], $29::bool[], $30::text[], $31::timestamptz[], $32::timestamptz[],
      $33::timestamptz[], $34::bool[], $35::bigint[], $36::bool[], $37::text[], $38::bool[], $39::text[], $40::text[], $41::text[], $42::text[],
      $43::text[], $44::text[], $45::text[], $46::text[], $47::text[])
    WITH ORDINALITY AS r (target, kind, fingerprint, expire_time, begun, state, next_attempt_time, start_time,
      complete_time, counted, count, count_is_minimum, verification, sessions_truncated, operation, error, retry, resume,
      covered, warnings, sessions, selector, terms, n)
), event AS (
  ` + insertEvents(49, "inv,") + `
)
SELECT statement_timestamp(), statement_timestamp() + $24::interval FROM inv`

const selectRequest = `SELECT id, request_digest FROM invalidations WHERE caller_kind = $1 AND caller_name = $2 AND request_id = $3`

// acceptance is an [invalidation.Acceptance] in the words of acceptInvalidation.
type acceptance struct {
	invalidation.Acceptance
	inv   invalidation.Invalidation // as it will be, but for the database's clock
	start []bool                    // by run
	args  []any                     // without the events
}

// Accept journals a new invalidation. If the answer is lost, it looks for it.
func (s *Store) Accept(ctx context.Context, a invalidation.Acceptance) (invalidation.Invalidation, bool, []invalidation.Lease, error) {
	p, err := prepareAcceptance(a)
	if err != nil {
		return invalidation.Invalidation{}, false, nil, fmt.Errorf("accept: %w", err)
	}
	var (
		inv      invalidation.Invalidation
		leases   []invalidation.Lease
		replayed bool
	)
	err = s.change(ctx, func(ctx context.Context, t *tx) (err error) {
		inv, replayed, leases, err = p.accept(ctx, t)
		return err
	})
	var lost *lostError
	if errors.As(err, &lost) {
		inv, leases, err = s.settle(ctx, p, lost)
	}
	if err != nil {
		return invalidation.Invalidation{}, false, nil, fmt.Errorf("accept: %w", err)
	}
	return inv, replayed, leases, nil
}

func prepareAcceptance(a invalidation.Acceptance) (*acceptance, error) {
	p := &acceptance{Acceptance: a, inv: a.Invalidation, start: make([]bool, len(a.Invalidation.Runs))}
	for _, i := range a.Start {
		p.start[i] = true
	}
	inv := &p.inv
	inv.Revision = 1
	inv.CreateTime = invalidation.Moment(inv.CreateTime)
	inv.CompleteTime = time.Time{}
	inv.Runs = slices.Clone(inv.Runs)
	states := make([]invalidation.RunState, len(inv.Runs))
	count := map[invalidation.RunState]int{}
	unfinished := 0
	for i, r := range inv.Runs {
		if r.State != invalidation.RunPending && (p.start[i] || !r.State.Final()) {
			return nil, fmt.Errorf("%w: a run is accepted as %s", invalidation.ErrIllegalTransition, r.State)
		}
		r.Open = false
		r = r.Kept(inv.CreateTime)
		if p.start[i] {
			r.State = invalidation.RunRunning
			r.Open = true
			r.Attempts = 1
			r.NextAttemptTime = time.Time{}
		}
		if r.CompleteTime.After(inv.CompleteTime) {
			inv.CompleteTime = r.CompleteTime
		}
		if !r.State.Final() {
			unfinished++
		}
		count[r.State]++
		states[i] = r.State
		inv.Runs[i] = r
	}
	lastRun := inv.CompleteTime
	inv.State = invalidation.StateOf(states, inv.Call.AllowUnsupported)
	switch {
	case !inv.State.Final():
		inv.CompleteTime = time.Time{}
	case inv.CompleteTime.IsZero():
		inv.CompleteTime = inv.CreateTime
	}

	e := &encoder{}
	call := inv.Call
	call.Selector = invalidation.Selector{}
	var user *string
	if u := inv.Call.Selector.User; u != nil {
		id := e.text(u.ID)
		user = &id
	}
	var digest []byte
	if p.RequestID != "" {
		digest = append([]byte{}, p.Digest...)
	}
	keys, values := []string{}, []string{}
	for k, v := range inv.Call.Labels {
		keys, values = append(keys, e.text(k)), append(values, e.text(v))
	}
	p.args = []any{e.text(inv.ID), string(inv.State), unfinished, count[invalidation.RunSucceeded], count[invalidation.RunFailed],
		count[invalidation.RunUnsupported], count[invalidation.RunCancelled], e.time(lastRun),
		inv.Call.AllowUnsupported, int16(inv.Call.Priority), inv.CreateTime, e.time(inv.CompleteTime),
		e.text(inv.Caller.Kind), e.text(inv.Caller.Name), e.orNull(p.RequestID), digest, user, e.orNull(inv.RetryOf),
		e.json(inv.Call.Selector, true), e.json(call, true), keys, values, e.text(p.Owner), p.LeaseLength}
	p.args = append(p.args, e.runs(inv.Runs, p.start)...)
	p.args = append(p.args, e.json(inv.Caller.Facts, inv.Caller.Facts != nil))
	e.events(a.Events)
	return p, e.err
}

// runs are the runs as arrays, a column each.
func (e *encoder) runs(runs []invalidation.Run, start []bool) []any {
	n := len(runs)
	var (
		targets, kinds, fingerprints, states                                   = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		expire, next, started, complete                                        = make([]*time.Time, n), make([]*time.Time, n), make([]*time.Time, n), make([]*time.Time, n)
		counted, minimum, truncated                                            = make([]bool, n), make([]bool, n), make([]bool, n)
		counts                                                                 = make([]int64, n)
		verification, operation, errs, retry, resume, covered, warns, sess, by = make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n)
		terms                                                                  = make([]*string, n)
	)
	for i, r := range runs {
		o := e.outcome(r)
		targets[i], kinds[i], fingerprints[i], states[i] = e.text(r.Target), e.text(r.Kind), e.text(r.Fingerprint), o.state
		expire[i], next[i], started[i], complete[i] = new(r.ExpireTime), o.next, o.start, o.complete
		counted[i], minimum[i], truncated[i], counts[i] = o.counted, o.minimum, o.truncated, o.count
		verification[i], operation[i], errs[i], retry[i], resume[i] = o.verification, o.operation, o.err, o.retry, o.resume
		covered[i], warns[i], sess[i], by[i], terms[i] = o.covered, o.warnings, o.sessions, o.runSelector, o.terms
	}
	return []any{targets, kinds, fingerprints, expire, start, states, next, started, complete, counted, counts, minimum, verification,
		truncated, operation, errs, retry, resume, covered, warns, sess, by, terms}
}

func (p *acceptance) accept(ctx context.Context, t *tx) (invalidation.Invalidation, bool, []invalidation.Lease, error) {
	log, err := t.audit(p.Events)
	if err != nil {
		return invalidation.Invalidation{}, false, nil, err
	}
	args := append(slices.Clone(p.args), log...)
	for {
		var now, until time.Time
		err := t.QueryRow(ctx, acceptInvalidation, args...).Scan(&now, &until)
		if err == nil {
			t.appended = len(p.Events)
			t.touch(p.inv.ID, p.inv.Revision)
			inv, leases := p.accepted(now, until)
			return inv, false, leases, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return invalidation.Invalidation{}, false, nil, err
		}
		// The request id is taken: by an invalidation that is there, unless it was pruned this very moment.
		inv, err := p.replay(ctx, t)
		if !errors.Is(err, pgx.ErrNoRows) && !errors.Is(err, invalidation.ErrNotFound) {
			return inv, true, nil, err
		}
	}
}

// accepted is what the transaction has made, at a moment of the database's clock.
func (p *acceptance) accepted(now, until time.Time) (invalidation.Invalidation, []invalidation.Lease) {
	inv := p.inv
	inv.Runs = slices.Clone(p.inv.Runs)
	var leases []invalidation.Lease
	for i := range inv.Runs {
		if p.start[i] {
			inv.Runs[i].StartTime = now.UTC()
			leases = append(leases, invalidation.Lease{InvalidationID: inv.ID, Run: i, Owner: p.Owner, Token: 1, Until: until.UTC()})
		}
	}
	return inv, leases
}

// replay returns the invalidation that the caller's request id stands for already.
func (p *acceptance) replay(ctx context.Context, t *tx) (invalidation.Invalidation, error) {
	t.mayCommit = false
	return replay(ctx, t.Conn, p.inv.Caller, p.RequestID, p.Digest)
}

// replay looks a request id up; pgx.ErrNoRows if it stands for nothing.
func replay(ctx context.Context, c *pgx.Conn, caller invalidation.Caller, requestID string, digest []byte) (invalidation.Invalidation, error) {
	var id string
	var known []byte
	if err := c.QueryRow(ctx, selectRequest, caller.Kind, caller.Name, requestID).Scan(&id, &known); err != nil {
		return invalidation.Invalidation{}, err
	}
	if !bytes.Equal(known, digest) {
		return invalidation.Invalidation{}, invalidation.ErrRequestReused
	}
	return load(ctx, c, id)
}

// Replay returns the invalidation that a caller's request id stands for.
func (s *Store) Replay(ctx context.Context, caller invalidation.Caller, requestID string, digest []byte) (inv invalidation.Invalidation, err error) {
	err = invalidation.ErrNotFound
	if storable(caller.Kind) && storable(caller.Name) && storable(requestID) {
		err = s.read(ctx, func(ctx context.Context, c *pgx.Conn) (err error) {
			inv, err = replay(ctx, c, caller, requestID, digest)
			if errors.Is(err, pgx.ErrNoRows) {
				return invalidation.ErrNotFound
			}
			return err
		})
	}
	if err != nil {
		return invalidation.Invalidation{}, fmt.Errorf("replay: %w", err)
	}
	return inv, nil
}

// settle finds out what became of an acceptance whose answer was lost.
func (s *Store) settle(ctx context.Context, p *acceptance, lost *lostError) (invalidation.Invalidation, []invalidation.Lease, error) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timeout, errNoAnswer)
	defer cancel()
	if err := s.gone(ctx, lost.from); err != nil {
		return invalidation.Invalidation{}, nil, lost
	}
	inv, err := s.Get(ctx, p.inv.ID)
	switch {
	case errors.Is(err, invalidation.ErrNotFound):
		// Nor will it ever be.
		return invalidation.Invalidation{}, nil, unavailable(lost.err)
	case err != nil:
		return invalidation.Invalidation{}, nil, lost
	}
	leases, err := s.leases(ctx, p)
	if err != nil {
		return invalidation.Invalidation{}, nil, lost
	}
	s.log.InfoContext(ctx, "an acceptance whose answer was lost was found", "invalidation", inv.ID)
	s.news.changed([]invalidation.Change{{ID: inv.ID}})
	return inv, leases, nil
}

// leases are those of an acceptance that still hold.
func (s *Store) leases(ctx context.Context, p *acceptance) (leases []invalidation.Lease, err error) {
	err = s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, `SELECT idx, lease_until FROM runs
WHERE invalidation_id = $1 AND lease_owner = $2 AND lease_token = 1 AND lease_until > clock_timestamp() ORDER BY idx`, p.inv.ID, p.Owner)
		if err != nil {
			return err
		}
		leases, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (invalidation.Lease, error) {
			l := invalidation.Lease{InvalidationID: p.inv.ID, Owner: p.Owner, Token: 1}
			err := r.Scan(&l.Run, &l.Until)
			l.Until = l.Until.UTC()
			return l, err
		})
		return err
	})
	return leases, err
}
