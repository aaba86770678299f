package sqlite

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

const (
	selectRequest = `SELECT id, request_digest FROM invalidations WHERE caller_kind = ?1 AND caller_name = ?2 AND request_id = ?3`

	// A caller's request id is taken once; otherwise nothing is inserted.
	insertInvalidation = `INSERT OR FAIL INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time,
  caller_kind, caller_name, request_id, request_digest, user_id, retry_of, selector, call, facts)
VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (caller_kind, caller_name, request_id) WHERE request_id IS NOT NULL DO NOTHING`

	insertLabel = `INSERT OR FAIL INTO labels (key, value, invalidation_id) VALUES (?, ?, ?)`

	insertRun = `INSERT OR FAIL INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, expire_time, selector, terms,
  lease_owner, lease_token, lease_until, lease_from, ` + outcomeColumns + `)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

	// A run that begins mostly has no outcome yet.
	insertStarted = `INSERT OR FAIL INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, expire_time, selector, terms,
  lease_owner, lease_until, start_time, warnings,
  lease_token, lease_from, state, open, attempts, counted, count, count_is_minimum, sessions_truncated)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 'PENDING', 'RUNNING', 1, 1, 0, 0, 0, 0)`
)

// acceptance is an [invalidation.Acceptance] as the journal will have it, prepared by the caller's goroutine.
type acceptance struct {
	invalidation.Acceptance
	inv        invalidation.Invalidation
	unfinished int
	selector   driver.Value
	call       driver.Value
	facts      driver.Value
	runs       []acceptedRun
}

// acceptedRun is one of its runs.
type acceptedRun struct {
	start           bool
	selector, terms driver.Value
	// plain is true if it begins, and has no outcome but warnings; otherwise there is all of it.
	plain    bool
	warnings driver.Value
	outcome  []driver.Value
}

// errRequested says that the request id is known already. Nothing was written.
var errRequested = errors.New("the request id is known")

// Accept journals a new invalidation.
func (s *Store) Accept(ctx context.Context, a invalidation.Acceptance) (invalidation.Invalidation, bool, []invalidation.Lease, error) {
	p, err := prepareAcceptance(a, s.clock())
	if err != nil {
		return invalidation.Invalidation{}, false, nil, fmt.Errorf("accept: %w", err)
	}
	var (
		inv      invalidation.Invalidation
		leases   []invalidation.Lease
		replayed bool
	)
	err = s.change(ctx, func(t *tx) (err error) {
		replayed = false // it may have been true before what it found was undone
		inv = p.inv
		leases, err = p.insert(t)
		if errors.Is(err, errRequested) {
			replayed = true
			var id string
			// The table is read as it is: request ids are never put off.
			if id, err = requested(t.conn, a.Invalidation.Caller, a.RequestID, a.Digest); err == nil {
				inv, err = t.load(id)
			}
		}
		return err
	})
	if err != nil {
		return invalidation.Invalidation{}, false, nil, fmt.Errorf("accept: %w", err)
	}
	return inv, replayed, leases, nil
}

func prepareAcceptance(a invalidation.Acceptance, now time.Time) (*acceptance, error) {
	p := &acceptance{Acceptance: a, inv: a.Invalidation, runs: make([]acceptedRun, len(a.Invalidation.Runs))}
	for _, i := range a.Start {
		p.runs[i].start = true
	}
	inv := &p.inv
	inv.Revision = 1
	inv.CreateTime = invalidation.Moment(inv.CreateTime)
	inv.CompleteTime = time.Time{}
	inv.Runs = slices.Clone(inv.Runs)
	states := make([]invalidation.RunState, len(inv.Runs))
	for i, r := range inv.Runs {
		run := &p.runs[i]
		if r.State != invalidation.RunPending && (run.start || !r.State.Final()) {
			return nil, fmt.Errorf("%w: a run is accepted as %s", invalidation.ErrIllegalTransition, r.State)
		}
		r.Open = false
		if run.start {
			r.State = invalidation.RunRunning
			r.Open = true
			r.Attempts = 1
			r.StartTime = now
			r.NextAttemptTime = time.Time{}
		}
		r = r.Kept(inv.CreateTime)
		run.plain = run.start && plain(r) && unanswered(r)
		var err error
		if run.plain {
			run.warnings, err = warnings(r)
		} else {
			run.outcome, err = outcome(r)
		}
		if err != nil {
			return nil, err
		}
		if run.selector, run.terms, err = resolved(r); err != nil {
			return nil, err
		}
		inv.Runs[i] = r
		states[i] = r.State
		if !r.State.Final() {
			p.unfinished++
		} else if r.CompleteTime.After(inv.CompleteTime) {
			inv.CompleteTime = r.CompleteTime
		}
	}
	inv.State = invalidation.StateOf(states, inv.Call.AllowUnsupported)
	switch {
	case !inv.State.Final():
		inv.CompleteTime = time.Time{}
	case inv.CompleteTime.IsZero():
		inv.CompleteTime = inv.CreateTime
	}
	e := encoder{}
	p.selector = e.selector(inv.Call.Selector)
	p.call = e.call(inv.Call)
	p.facts = e.json(inv.Caller.Facts, inv.Caller.Facts != nil)
	return p, e.err
}

// Replay returns the invalidation that a caller's request id stands for.
func (s *Store) Replay(ctx context.Context, caller invalidation.Caller, requestID string, digest []byte) (inv invalidation.Invalidation, err error) {
	err = s.read(ctx, func(_ context.Context, c *conn) (err error) {
		id, err := requested(c, caller, requestID, digest)
		if err == nil {
			inv, err = load(context.Background(), c, id)
		}
		return err
	})
	if err != nil {
		return invalidation.Invalidation{}, fmt.Errorf("replay: %w", err)
	}
	return inv, nil
}

// requested returns the ID of the invalidation that a caller's request id stands for.
func requested(c *conn, caller invalidation.Caller, requestID string, digest []byte) (id string, err error) {
	var known []byte
	found, err := c.one(func(r *row) error { id, known = r.text(), r.blob(); return nil },
		selectRequest, caller.Kind, caller.Name, requestID)
	switch {
	case err != nil:
		return "", err
	case !found:
		return "", invalidation.ErrNotFound
	case !bytes.Equal(known, digest):
		return "", invalidation.ErrRequestReused
	}
	return id, nil
}

// insert writes the acceptance and returns the leases on the runs that begin.
func (p *acceptance) insert(t *tx) ([]invalidation.Lease, error) {
	inv := &p.inv
	var user, digest driver.Value
	if u := inv.Call.Selector.User; u != nil {
		user = u.ID
	}
	if p.RequestID != "" {
		digest = slices.Concat([]byte{}, p.Digest) // never NULL
	}
	priority := int64(inv.Call.Priority)
	wrote := t.wrote
	n, err := t.put(insertInvalidation, inv.ID, string(inv.State), int64(p.unfinished), inv.Call.AllowUnsupported, priority,
		inv.CreateTime.UnixMicro(), micros(inv.CompleteTime), inv.Caller.Kind, inv.Caller.Name,
		orNull(p.RequestID), digest, user, orNull(inv.RetryOf), p.selector, p.call, p.facts)
	switch {
	case err != nil:
		return nil, err
	case n == 0:
		t.wrote = wrote
		return nil, errRequested
	}
	for k, v := range inv.Call.Labels {
		if _, err := t.put(insertLabel, k, v, inv.ID); err != nil {
			return nil, err
		}
	}
	var leases []invalidation.Lease
	until := invalidation.Moment(t.now.Add(p.LeaseLength))
	for i := range inv.Runs {
		r, run := &inv.Runs[i], &p.runs[i]
		values := make([]driver.Value, 0, 31) // as insertRun has
		values = append(values, inv.ID, int64(i), r.Target, r.Kind, r.Fingerprint, priority, r.ExpireTime.UnixMicro(), run.selector, run.terms)
		if run.start {
			leases = append(leases, invalidation.Lease{InvalidationID: inv.ID, Run: i, Owner: p.Owner, Token: 1, Until: until})
		}
		statement := insertRun
		switch {
		case run.plain:
			statement = insertStarted
			values = append(values, p.Owner, until.UnixMicro(), r.StartTime.UnixMicro(), run.warnings)
		case run.start:
			values = append(values, p.Owner, int64(1), until.UnixMicro(), string(invalidation.RunPending))
			values = append(values, run.outcome...)
		default:
			values = append(values, nil, int64(0), nil, nil)
			values = append(values, run.outcome...)
		}
		if _, err := t.put(statement, values...); err != nil {
			return nil, err
		}
	}
	t.touch(inv.ID, inv.Revision)
	t.know(p, leases)
	return leases, t.audit(p.Events)
}
