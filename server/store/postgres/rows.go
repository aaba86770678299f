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
	"github.com/jackc/pgx/v5/pgtype"
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

// encoder makes arguments, nil for NULL, and remembers the first that cannot be one.
type encoder struct{ err error }

// text is a string as it is, byte by byte, or an error.
func (e *encoder) text(s string) string {
	if e.err == nil && !storable(s) {
		e.err = errText
	}
	return s
}

func (e *encoder) orNull(s string) any {
	if s == "" {
		return nil
	}
	return e.text(s)
}

func (e *encoder) time(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return invalidation.Moment(t)
}

func (e *encoder) json(v any, present bool) any {
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
	return data
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

// outcomeColumns are the part of a run that changes, in the order of [encoder.outcome].
var outcomeColumns = columns{{"state", "text"}, {"open", "bool"}, {"attempts", "int"}, {"next_attempt_time", "timestamptz"},
	{"start_time", "timestamptz"}, {"complete_time", "timestamptz"}, {"counted", "bool"}, {"count", "bigint"}, {"count_is_minimum", "bool"},
	{"verification", "text"}, {"sessions_truncated", "bool"}, {"operation", "json"}, {"error", "json"}, {"retry", "json"}, {"resume", "json"},
	{"covered", "json"}, {"warnings", "json"}, {"sessions", "json"}, {"selector", "json"}, {"terms", "json"}}

func (e *encoder) outcome(run invalidation.Run) []any {
	var verification, resume any
	if run.Verification != adapters.VerificationUnspecified {
		verification = e.orNull(run.Verification.String())
	}
	if len(run.Resume) > 0 {
		if resume = []byte(run.Resume); !storable(string(run.Resume)) {
			e.err = errText
		}
	}
	return []any{string(run.State), run.Open, int32(run.Attempts), e.time(run.NextAttemptTime), e.time(run.StartTime), e.time(run.CompleteTime),
		run.Counted, int64(run.Count), run.CountIsMinimum, verification, run.SessionsTruncated,
		e.json(run.Operation, run.Operation != ""), e.json(run.Error, run.Error != nil), e.json(run.Retry, run.Retry != invalidation.RetryState{}),
		resume, e.json(run.Covered, len(run.Covered) > 0), e.json(run.Warnings, len(run.Warnings) > 0),
		e.json(run.Sessions, len(run.Sessions) > 0), e.json(run.Selector, run.Selector != nil), e.json(run.Terms, run.Terms != invalidation.Terms{})}
}

// columns are those of many rows that are given as arguments, an array for each column.
type columns []struct{ name, typ string }

// names are the columns' names, each after a prefix.
func (c columns) names(prefix string) string {
	var b strings.Builder
	for i, col := range c {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(prefix + col.name)
	}
	return b.String()
}

// unnest is the call that makes rows of the arguments from $n on.
func (c columns) unnest(n int) string {
	var b strings.Builder
	for i, col := range c {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "$%d::%s[]", n+i, col.typ)
	}
	return "unnest(" + b.String() + ")"
}

// set is a SET list of what value says for each column.
func (c columns) set(value func(i int) string) string {
	var b strings.Builder
	for i, col := range c {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(col.name + " = " + value(i))
	}
	return b.String()
}

// args are the arguments for [columns.unnest]: the rows, column by column.
func (c columns) args(rows [][]any) []any {
	cells := make([]any, len(c)*len(rows))
	args := make([]any, len(c))
	for i := range c {
		col := cells[i*len(rows) : (i+1)*len(rows)]
		for n, row := range rows {
			col[n] = row[i]
		}
		args[i] = array(col)
	}
	return args
}

// array is an array as the driver encodes it.
type array []any

var _ pgtype.ArrayGetter = array(nil)

func (a array) Dimensions() []pgtype.ArrayDimension {
	return []pgtype.ArrayDimension{{Length: int32(len(a)), LowerBound: 1}}
}
func (a array) Index(i int) any { return a[i] }
func (a array) IndexType() any  { return nil }
