package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// Columns that make an invalidation and a run, in the order of scanInvalidation and scanRun.
const (
	invalidationColumns = `i.id, i.state, i.revision, i.create_time, i.complete_time, i.caller_kind, i.caller_name, i.retry_of, i.selector, i.call, i.facts`

	runColumns = `r.target, r.kind, r.fingerprint, r.state, r.open, r.attempts, r.next_attempt_time, r.expire_time, r.start_time,
  r.complete_time, r.counted, r.count, r.count_is_minimum, r.verification, r.sessions_truncated, r.operation, r.error, r.retry,
  r.resume, r.covered, r.warnings, r.sessions, r.selector, r.terms`
)

const (
	selectInvalidation = `SELECT ` + invalidationColumns + ` FROM invalidations AS i WHERE i.id = ?1`
	selectRuns         = `SELECT ` + runColumns + ` FROM runs AS r WHERE r.invalidation_id = ?1 ORDER BY r.idx`
)

// load reads an invalidation with its runs. The caller holds a transaction: both must be of one moment.
func load(ctx context.Context, c *conn, id string) (inv invalidation.Invalidation, err error) {
	found := false
	if err := c.each(ctx, func(r *row) error { found = true; inv = scanInvalidation(r); return nil }, selectInvalidation, id); err != nil {
		return invalidation.Invalidation{}, err
	}
	if !found {
		return invalidation.Invalidation{}, invalidation.ErrNotFound
	}
	inv.Runs, err = loadRuns(ctx, c, id)
	return inv, err
}

func loadRuns(ctx context.Context, c *conn, id string) (runs []invalidation.Run, err error) {
	err = c.each(ctx, func(r *row) error { runs = append(runs, scanRun(r)); return nil }, selectRuns, id)
	return runs, err
}

func scanInvalidation(r *row) invalidation.Invalidation {
	inv := invalidation.Invalidation{
		ID:           r.text(),
		State:        invalidation.State(r.text()),
		Revision:     r.num(),
		CreateTime:   r.time(),
		CompleteTime: r.time(),
		Caller:       invalidation.Caller{Kind: r.text(), Name: r.text()},
		RetryOf:      r.text(),
	}
	var sel invalidation.Selector
	r.json(&sel)
	r.json(&inv.Call)
	r.json(&inv.Caller.Facts)
	inv.Call.Selector = sel
	return inv
}

func scanRun(r *row) invalidation.Run {
	run := invalidation.Run{
		Target:            r.text(),
		Kind:              r.text(),
		Fingerprint:       r.text(),
		State:             invalidation.RunState(r.text()),
		Open:              r.flag(),
		Attempts:          int(r.num()),
		NextAttemptTime:   r.time(),
		ExpireTime:        r.time(),
		StartTime:         r.time(),
		CompleteTime:      r.time(),
		Counted:           r.flag(),
		Count:             int(r.num()),
		CountIsMinimum:    r.flag(),
		Verification:      verifications[r.text()],
		SessionsTruncated: r.flag(),
		Operation:         r.text(),
	}
	r.json(&run.Error)
	r.json(&run.Retry)
	run.Resume = r.rawJSON()
	r.json(&run.Covered)
	r.json(&run.Warnings)
	r.json(&run.Sessions)
	r.json(&run.Selector)
	r.json(&run.Terms)
	if run.Selector != nil && r.err == nil {
		// What is read here is what will be sent.
		if err := run.Selector.Validate(); err != nil {
			r.err = fmt.Errorf("the journal's resolved selector: %w", err)
		}
	}
	return run
}

var verifications = map[string]adapters.Verification{
	adapters.ConfirmedByList.String():   adapters.ConfirmedByList,
	adapters.ConfirmedByRepeat.String(): adapters.ConfirmedByRepeat,
	adapters.Unverifiable.String():      adapters.Unverifiable,
}

func micros(t time.Time) driver.Value {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

func orNull(s string) driver.Value {
	if s == "" {
		return nil
	}
	return s
}

// outcomeColumns are what changes of a run, in the order of outcome.
const outcomeColumns = `state, complete_time, counted, count, count_is_minimum, verification, covered, warnings, sessions,
  open, attempts, start_time, next_attempt_time, sessions_truncated, operation, error, retry, resume`

// endColumns is how many of them, from the first, the end of a run's first attempt mostly changes.
const endColumns = 10

// plain reports whether the rest of them is as it is at the beginning of the first attempt, but for what begins and ends
// it.
func plain(run invalidation.Run) bool {
	return run.Attempts == 1 && run.NextAttemptTime.IsZero() && !run.SessionsTruncated && run.Operation == "" && run.Error == nil &&
		run.Retry == invalidation.RetryState{} && len(run.Resume) == 0
}

// unanswered reports whether there is nothing in the first of them but a state and warnings.
func unanswered(run invalidation.Run) bool {
	return !run.Counted && !run.CountIsMinimum && run.Verification == adapters.VerificationUnspecified &&
		len(run.Covered) == 0 && len(run.Sessions) == 0
}

// outcome is the part of a run that changes.
func outcome(run invalidation.Run) ([]driver.Value, error) {
	e := encoder{}
	verification := driver.Value(nil)
	if run.Verification != adapters.VerificationUnspecified {
		verification = run.Verification.String()
	}
	values := []driver.Value{
		string(run.State), micros(run.CompleteTime), run.Counted, int64(run.Count), run.CountIsMinimum, verification,
		e.strings(run.Covered),
		e.json(run.Warnings, len(run.Warnings) > 0),
		e.json(run.Sessions, len(run.Sessions) > 0),
		run.Open, int64(run.Attempts), micros(run.StartTime), micros(run.NextAttemptTime), run.SessionsTruncated,
		orNull(run.Operation),
		e.json(run.Error, run.Error != nil),
		e.json(run.Retry, run.Retry != invalidation.RetryState{}),
		orNull(string(run.Resume)),
	}
	return values, e.err
}

// warnings are all the outcome that there mostly is of a run that begins.
func warnings(run invalidation.Run) (driver.Value, error) {
	e := encoder{}
	value := e.json(run.Warnings, len(run.Warnings) > 0)
	return value, e.err
}

// resolved is what was made of the selector, and under what terms; it stays once it is there.
func resolved(run invalidation.Run) (selector, terms driver.Value, err error) {
	e := encoder{}
	selector = e.resolved(run.Selector)
	terms = e.terms(run.Terms)
	return selector, terms, e.err
}
