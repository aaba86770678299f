package postgres

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

// Columns that make an invalidation and a run, in the order of invalidationRow.dest and runRow.dest. The texts of an
// invalidation are sent only with its first run.
const (
	invalidationColumns = `i.id, i.state, i.revision, i.create_time, i.complete_time, i.caller_kind, i.caller_name, i.retry_of,
  CASE WHEN r.idx IS NULL OR r.idx = 0 THEN i.selector END, CASE WHEN r.idx IS NULL OR r.idx = 0 THEN i.call END, CASE WHEN r.idx IS NULL OR r.idx = 0 THEN i.facts END`

	runColumns = `r.idx, r.target, r.kind, r.fingerprint, r.state, r.open, r.attempts, r.next_attempt_time, r.expire_time, r.start_time,
  r.complete_time, r.counted, r.count, r.count_is_minimum, r.verification, r.sessions_truncated, r.operation, r.error, r.retry,
  r.resume, r.covered, r.warnings, r.sessions, r.selector, r.terms`
)

type invalidationRow struct {
	id, state             string
	revision              int64
	create                time.Time
	complete              *time.Time
	callerKind, callerID  string
	retryOf               *string
	selector, call, facts []byte
}

func (r *invalidationRow) dest() []any {
	return []any{&r.id, &r.state, &r.revision, &r.create, &r.complete, &r.callerKind, &r.callerID, &r.retryOf, &r.selector, &r.call, &r.facts}
}

func (r *invalidationRow) invalidation() (invalidation.Invalidation, error) {
	inv := invalidation.Invalidation{
		ID: r.id, State: invalidation.State(r.state), Revision: r.revision, CreateTime: r.create.UTC(), CompleteTime: utc(r.complete),
		Caller: invalidation.Caller{Kind: r.callerKind, Name: r.callerID}, RetryOf: orZero(r.retryOf),
	}
	d := decoder{}
	var sel invalidation.Selector
	d.json(r.selector, &sel)
	d.json(r.call, &inv.Call)
	d.json(r.facts, &inv.Caller.Facts)
	inv.Call.Selector = sel
	return inv, d.err
}

// runRow is a run, or nothing at all: an invalidation without runs.
type runRow struct {
	idx                               *int32
	target, kind, fingerprint, state  *string
	open                              *bool
	attempts                          *int32
	next, expire, start, complete     *time.Time
	counted                           *bool
	count                             *int64
	minimum                           *bool
	verification                      *string
	truncated                         *bool
	operation, err, retry, resume     []byte
	covered, warnings, sessions, sele []byte
	terms                             []byte
}

func (r *runRow) dest() []any {
	return []any{&r.idx, &r.target, &r.kind, &r.fingerprint, &r.state, &r.open, &r.attempts, &r.next, &r.expire, &r.start,
		&r.complete, &r.counted, &r.count, &r.minimum, &r.verification, &r.truncated, &r.operation, &r.err, &r.retry,
		&r.resume, &r.covered, &r.warnings, &r.sessions, &r.sele, &r.terms}
}

func (r *runRow) run() (invalidation.Run, error) {
	run := invalidation.Run{
		Target: *r.target, Kind: *r.kind, Fingerprint: *r.fingerprint, State: invalidation.RunState(*r.state), Open: *r.open,
		Attempts: int(*r.attempts), NextAttemptTime: utc(r.next), ExpireTime: utc(r.expire), StartTime: utc(r.start),
		CompleteTime: utc(r.complete), Counted: *r.counted, Count: int(*r.count), CountIsMinimum: *r.minimum,
		Verification: verifications[orZero(r.verification)], SessionsTruncated: *r.truncated,
	}
	if len(r.resume) > 0 {
		run.Resume = bytes.Clone(r.resume)
	}
	d := decoder{}
	d.json(r.operation, &run.Operation)
	d.json(r.err, &run.Error)
	d.json(r.retry, &run.Retry)
	d.json(r.covered, &run.Covered)
	d.json(r.warnings, &run.Warnings)
	d.json(r.sessions, &run.Sessions)
	d.json(r.sele, &run.Selector)
	d.json(r.terms, &run.Terms)
	if run.Selector != nil && d.err == nil {
		// What is read here is what will be sent.
		if err := run.Selector.Validate(); err != nil {
			d.err = fmt.Errorf("the journal's resolved selector: %w", err)
		}
	}
	return run, d.err
}

// scanInvalidations reads rows of invalidationColumns, runColumns: each invalidation once for each of its runs.
func scanInvalidations(rows pgx.Rows) (invs []invalidation.Invalidation, err error) {
	defer rows.Close()
	for rows.Next() {
		var i invalidationRow
		var r runRow
		if err := rows.Scan(append(i.dest(), r.dest()...)...); err != nil {
			return nil, err
		}
		if r.idx == nil || *r.idx == 0 {
			inv, err := i.invalidation()
			if err != nil {
				return nil, err
			}
			invs = append(invs, inv)
		}
		if r.idx != nil {
			run, err := r.run()
			if err != nil {
				return nil, err
			}
			last := &invs[len(invs)-1]
			last.Runs = append(last.Runs, run)
		}
	}
	return invs, rows.Err()
}

var verifications = map[string]adapters.Verification{
	adapters.ConfirmedByList.String():   adapters.ConfirmedByList,
	adapters.ConfirmedByRepeat.String(): adapters.ConfirmedByRepeat,
	adapters.Unverifiable.String():      adapters.Unverifiable,
}

type decoder struct{ err error }

func (d *decoder) json(data []byte, v any) {
	if len(data) > 0 && d.err == nil {
		d.err = json.Unmarshal(data, v)
	}
}

func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func orZero(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// encoder makes arguments and remembers the first that cannot be one.
type encoder struct{ err error }

// text is a string as it is, byte by byte, or an error.
func (e *encoder) text(s string) string {
	if e.err == nil && !storable(s) {
		e.err = errText
	}
	return s
}

func (e *encoder) orNull(s string) *string {
	if s == "" {
		return nil
	}
	s = e.text(s)
	return &s
}

func (e *encoder) time(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = invalidation.Moment(t)
	return &t
}

func (e *encoder) json(v any, present bool) *string {
	if !present || e.err != nil {
		return nil
	}
	data, err := json.Marshal(v)
	if err == nil && mangled(data) {
		err = errText
	}
	if err != nil {
		e.err = err
		return nil
	}
	s := string(data)
	return &s
}

// storable reports whether a text column can hold s.
func storable(s string) bool { return strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) }

// mangled reports whether json.Marshal has replaced an invalid byte: it writes the escape \ufffd for that, but the
// character itself when a string really has it. The journal keeps a string as it is, or refuses it.
func mangled(data []byte) bool {
	for {
		i := bytes.Index(data, []byte(`\ufffd`))
		if i < 0 {
			return false
		}
		escapes := 0
		for i-escapes > 0 && data[i-escapes-1] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return true
		}
		data = data[i+len(`\ufffd`):]
	}
}

// outcome is the part of a run that changes.
type outcome struct {
	state                                                                   string
	open                                                                    bool
	attempts                                                                int32
	next, start, complete                                                   *time.Time
	counted                                                                 bool
	count                                                                   int64
	minimum                                                                 bool
	verification                                                            *string
	truncated                                                               bool
	operation, err, retry, resume, covered, warnings, sessions, runSelector *string
	terms                                                                   *string
}

func (e *encoder) outcome(run invalidation.Run) outcome {
	o := outcome{
		state: string(run.State), open: run.Open, attempts: int32(run.Attempts),
		next: e.time(run.NextAttemptTime), start: e.time(run.StartTime), complete: e.time(run.CompleteTime),
		counted: run.Counted, count: int64(run.Count), minimum: run.CountIsMinimum, truncated: run.SessionsTruncated,
		operation:   e.json(run.Operation, run.Operation != ""),
		err:         e.json(run.Error, run.Error != nil),
		retry:       e.json(run.Retry, run.Retry != invalidation.RetryState{}),
		covered:     e.json(run.Covered, len(run.Covered) > 0),
		warnings:    e.json(run.Warnings, len(run.Warnings) > 0),
		sessions:    e.json(run.Sessions, len(run.Sessions) > 0),
		runSelector: e.json(run.Selector, run.Selector != nil),
		terms:       e.json(run.Terms, run.Terms != invalidation.Terms{}),
		resume:      e.orNull(string(run.Resume)),
	}
	if run.Verification != adapters.VerificationUnspecified {
		o.verification = e.orNull(run.Verification.String())
	}
	return o
}

// setOutcome is the SET list for args, whose parameters begin at $1.
const setOutcome = `state = $1, open = $2, attempts = $3, next_attempt_time = $4, start_time = $5, complete_time = $6, counted = $7, count = $8,
  count_is_minimum = $9, verification = $10, sessions_truncated = $11, operation = $12::text::json, error = $13::text::json,
  retry = $14::text::json, resume = $15::text::json, covered = $16::text::json, warnings = $17::text::json,
  sessions = $18::text::json, selector = $19::text::json, terms = $20::text::json`

func (o outcome) args() []any {
	return []any{o.state, o.open, o.attempts, o.next, o.start, o.complete, o.counted, o.count, o.minimum, o.verification, o.truncated,
		o.operation, o.err, o.retry, o.resume, o.covered, o.warnings, o.sessions, o.runSelector, o.terms}
}
