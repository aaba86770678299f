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

	insertInvalidation = `INSERT INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time,
  caller_kind, caller_name, request_id, request_digest, user_id, retry_of, selector, call, facts)
VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

	insertLabel = `INSERT INTO labels (key, value, invalidation_id) VALUES (?, ?, ?)`

	insertRun = `INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, expire_time,
  lease_owner, lease_token, lease_until, lease_from,
  state, open, attempts, next_attempt_time, start_time, complete_time, counted, count, count_is_minimum, verification,
  sessions_truncated, operation, error, retry, resume, covered, warnings, sessions, selector, terms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

// acceptance is an [invalidation.Acceptance] as the journal will have it, prepared by the caller's goroutine.
type acceptance struct {
	invalidation.Acceptance
	inv        invalidation.Invalidation
	unfinished int
	selector   driver.Value
	call       driver.Value
	facts      driver.Value
	runs       [][]driver.Value // their outcomes
	start      []bool           // by run
}

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
		if a.RequestID != "" {
			// The table is read as it is: request ids are never put off.
			id, err := requested(t.conn, a.Invalidation.Caller, a.RequestID, a.Digest)
			if err == nil {
				replayed = true
				inv, err = t.load(id)
			}
			if !errors.Is(err, invalidation.ErrNotFound) {
				return err
			}
		}
		inv = p.inv
		leases, err = p.insert(t)
		return err
	})
	if err != nil {
		return invalidation.Invalidation{}, false, nil, fmt.Errorf("accept: %w", err)
	}
	return inv, replayed, leases, nil
}

func prepareAcceptance(a invalidation.Acceptance, now time.Time) (*acceptance, error) {
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
	for i, r := range inv.Runs {
		if r.State != invalidation.RunPending && (p.start[i] || !r.State.Final()) {
			return nil, fmt.Errorf("%w: a run is accepted as %s", invalidation.ErrIllegalTransition, r.State)
		}
		r.Open = false
		if p.start[i] {
			r.State = invalidation.RunRunning
			r.Open = true
			r.Attempts = 1
			r.StartTime = now
			r.NextAttemptTime = time.Time{}
		}
		r = r.Kept(inv.CreateTime)
		values, err := outcome(r)
		if err != nil {
			return nil, err
		}
		selector, terms, err := resolved(r)
		if err != nil {
			return nil, err
		}
		p.runs = append(p.runs, append(values, selector, terms))
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
	call := inv.Call
	call.Selector = invalidation.Selector{}
	e := encoder{}
	p.selector = e.json(inv.Call.Selector, true)
	p.call = e.json(call, true)
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
	if _, err := t.put(insertInvalidation, inv.ID, string(inv.State), int64(p.unfinished), inv.Call.AllowUnsupported, priority,
		inv.CreateTime.UnixMicro(), micros(inv.CompleteTime), inv.Caller.Kind, inv.Caller.Name,
		orNull(p.RequestID), digest, user, orNull(inv.RetryOf), p.selector, p.call, p.facts); err != nil {
		return nil, err
	}
	for k, v := range inv.Call.Labels {
		if _, err := t.put(insertLabel, k, v, inv.ID); err != nil {
			return nil, err
		}
	}
	var leases []invalidation.Lease
	for i, r := range inv.Runs {
		values := []driver.Value{inv.ID, int64(i), r.Target, r.Kind, r.Fingerprint, priority, r.ExpireTime.UnixMicro()}
		if p.start[i] {
			l := invalidation.Lease{InvalidationID: inv.ID, Run: i, Owner: p.Owner, Token: 1, Until: invalidation.Moment(t.now.Add(p.LeaseLength))}
			leases = append(leases, l)
			values = append(values, l.Owner, l.Token, l.Until.UnixMicro(), string(invalidation.RunPending))
		} else {
			values = append(values, nil, int64(0), nil, nil)
		}
		if _, err := t.put(insertRun, append(values, p.runs[i]...)...); err != nil {
			return nil, err
		}
	}
	t.touch(inv.ID, inv.Revision)
	t.know(*inv, leases)
	return leases, t.audit(p.Events)
}
