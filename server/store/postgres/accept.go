package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

var (
	invalidationTable = columns{{"id", "text"}, {"state", "text"}, {"unfinished", "int"}, {"succeeded", "int"}, {"failed", "int"},
		{"unsupported", "int"}, {"cancelled", "int"}, {"runs_complete_time", "timestamptz"}, {"allow_unsupported", "bool"}, {"priority", "smallint"},
		{"create_time", "timestamptz"}, {"complete_time", "timestamptz"}, {"caller_kind", "text"}, {"caller_name", "text"}, {"request_id", "text"},
		{"request_digest", "bytea"}, {"user_id", "text"}, {"retry_of", "text"}, {"selector", "json"}, {"call", "json"}, {"facts", "json"}}

	labelTable = columns{{"key", "text"}, {"value", "text"}, {"invalidation_id", "text"}}

	// What is true of a run from its acceptance on, and its lease; then come outcomeColumns.
	runTable = append(columns{{"invalidation_id", "text"}, {"idx", "int"}, {"target", "text"}, {"kind", "text"}, {"fingerprint", "text"},
		{"priority", "smallint"}, {"expire_time", "timestamptz"}, {"lease_owner", "text"}, {"lease_token", "bigint"}, {"lease_until", "interval"},
		{"lease_from", "text"}}, outcomeColumns...)

	// insertInvalidations fails if a request id is taken.
	insertInvalidations = `WITH i AS (
  INSERT INTO invalidations (revision, ` + invalidationTable.names("") + `)
  SELECT 1, ` + invalidationTable.names("a.") + ` FROM ` + invalidationTable.unnest(1) + ` AS a (` + invalidationTable.names("") + `)
  ON CONFLICT (caller_kind, caller_name, request_id) WHERE request_id IS NOT NULL DO NOTHING
  RETURNING id
)
SELECT now(), CASE WHEN (SELECT count(*) FROM i) <> cardinality($1) THEN
  blame(ARRAY(SELECT a.n FROM unnest($1) WITH ORDINALITY AS a (id, n) WHERE a.id NOT IN (SELECT id FROM i))) END`

	insertLabels = `INSERT INTO labels (` + labelTable.names("") + `) SELECT ` + labelTable.names("a.") + `
FROM ` + labelTable.unnest(1) + ` AS a (` + labelTable.names("") + `)`

	// insertRuns leases those that have an owner.
	insertRuns = func() string {
		values := strings.NewReplacer(
			"a.lease_until", "now() + a.lease_until",
			"a.start_time", "CASE WHEN a.lease_owner IS NULL THEN a.start_time ELSE now() END",
		).Replace(runTable.names("a."))
		return `INSERT INTO runs (` + runTable.names("") + `) SELECT ` + values + `
FROM ` + runTable.unnest(1) + ` AS a (` + runTable.names("") + `)`
	}()
)

// errReplayed says that a request id stands for an invalidation that was found.
var errReplayed = errors.New("replayed")

const selectRequest = `SELECT id, request_digest FROM invalidations WHERE caller_kind = $1 AND caller_name = $2 AND request_id = $3`

// acceptance is an [invalidation.Acceptance] in the words of the tables.
type acceptance struct {
	invalidation.Acceptance
	inv          invalidation.Invalidation // as it will be, but for the database's clock
	start        []bool                    // by run
	row          []any
	labels, runs [][]any

	at time.Time // the database's clock, once it is accepted
}

// Accept journals a new invalidation. If the answer is lost, it looks for it.
func (s *Store) Accept(ctx context.Context, a invalidation.Acceptance) (invalidation.Invalidation, bool, []invalidation.Lease, error) {
	inv, replayed, leases, err := s.accept(ctx, a)
	if err != nil {
		return invalidation.Invalidation{}, false, nil, fmt.Errorf("accept: %w", err)
	}
	return inv, replayed, leases, nil
}

func (s *Store) accept(ctx context.Context, a invalidation.Acceptance) (inv invalidation.Invalidation, replayed bool, leases []invalidation.Lease, err error) {
	p, err := prepareAcceptance(a)
	if err != nil {
		return inv, false, nil, err
	}
	err = s.make(ctx, &part{acceptance: p, events: a.Events}, func(ctx context.Context, c *pgx.Conn) (err error) {
		inv, err = replay(ctx, c, p.inv.Caller, p.RequestID, p.Digest)
		if errors.Is(err, pgx.ErrNoRows) || errors.Is(err, invalidation.ErrNotFound) {
			return nil // it was pruned this very moment, or has not come to be
		}
		replayed = err == nil
		return cmp.Or(err, errReplayed)
	})
	var lost *lostError
	switch {
	case errors.As(err, &lost):
		inv, leases, err = s.settle(ctx, p, lost)
	case errors.Is(err, errReplayed):
		return inv, true, nil, nil
	case err == nil:
		inv, leases = p.accepted()
		s.flights.expect(inv.ID, len(leases))
	}
	return inv, false, leases, err
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
	var user, digest any
	if u := inv.Call.Selector.User; u != nil {
		user = e.text(u.ID)
	}
	if p.RequestID != "" {
		digest = append([]byte{}, p.Digest...)
	}
	p.row = []any{e.text(inv.ID), string(inv.State), int32(unfinished), int32(count[invalidation.RunSucceeded]), int32(count[invalidation.RunFailed]),
		int32(count[invalidation.RunUnsupported]), int32(count[invalidation.RunCancelled]), e.time(lastRun), inv.Call.AllowUnsupported, int16(inv.Call.Priority),
		inv.CreateTime, e.time(inv.CompleteTime), e.text(inv.Caller.Kind), e.text(inv.Caller.Name), e.orNull(p.RequestID),
		digest, user, e.orNull(inv.RetryOf), e.json(inv.Call.Selector, true), e.json(call, true), e.json(inv.Caller.Facts, inv.Caller.Facts != nil)}
	for k, v := range inv.Call.Labels {
		p.labels = append(p.labels, []any{e.text(k), e.text(v), inv.ID})
	}
	for i, r := range inv.Runs {
		var owner, length, from any
		var token int64
		if p.start[i] {
			owner, length, from, token = e.text(p.Owner), p.LeaseLength, "PENDING", 1
		}
		p.runs = append(p.runs, append([]any{inv.ID, int32(i), e.text(r.Target), e.text(r.Kind), e.text(r.Fingerprint), int16(inv.Call.Priority),
			r.ExpireTime, owner, token, length, from}, e.outcome(r)...))
	}
	e.events(a.Events)
	return p, e.err
}

// queueAcceptances returns what is to be done once the transaction is durable.
func queueAcceptances(b *pgx.Batch, parts []*part) (committed func(*tx)) {
	var rows, labels, runs [][]any
	for _, p := range parts {
		a := p.acceptance
		rows, labels, runs = append(rows, a.row), append(labels, a.labels...), append(runs, a.runs...)
	}
	var at time.Time
	if len(rows) > 0 {
		b.Queue(insertInvalidations, invalidationTable.args(rows)...).QueryRow(func(r pgx.Row) error { return r.Scan(&at, nil) })
	}
	if len(labels) > 0 {
		b.Queue(insertLabels, labelTable.args(labels)...)
	}
	if len(runs) > 0 {
		b.Queue(insertRuns, runTable.args(runs)...)
	}
	return func(t *tx) {
		for _, p := range parts {
			p.acceptance.at = at.UTC()
			t.touch(p.acceptance.inv.ID, p.acceptance.inv.Revision)
		}
	}
}

// accepted is what the transaction has made.
func (p *acceptance) accepted() (invalidation.Invalidation, []invalidation.Lease) {
	inv := p.inv
	inv.Runs = slices.Clone(p.inv.Runs)
	var leases []invalidation.Lease
	for i := range inv.Runs {
		if p.start[i] {
			inv.Runs[i].StartTime = p.at
			leases = append(leases, invalidation.Lease{InvalidationID: inv.ID, Run: i, Owner: p.Owner, Token: 1,
				Until: p.at.Add(p.LeaseLength.Truncate(time.Microsecond))})
		}
	}
	return inv, leases
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
