package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

var (
	// Whose answer it is; then come outcomeColumns.
	answerColumns = append(columns{{"id", "text"}, {"idx", "int"}, {"owner", "text"}, {"token", "bigint"}}, outcomeColumns...)

	// recordRuns writes outcomes and ends the leases. It fails if a lease does not hold or a transition is illegal.
	recordRuns = `WITH l AS MATERIALIZED (
  SELECT a.* FROM ` + answerColumns.unnest(1) + ` WITH ORDINALITY AS a (` + answerColumns.names("") + `, n) CROSS JOIN LATERAL (
    SELECT 1 FROM runs AS r
    WHERE r.invalidation_id = a.id AND r.idx = a.idx AND r.lease_owner = a.owner AND r.lease_token = a.token AND r.lease_until > clock_timestamp()
      AND ` + legal("r.state", "a.state") + `
    FOR NO KEY UPDATE
  ) AS r
), r AS (
  UPDATE runs AS r SET lease_owner = NULL, lease_until = NULL, lease_from = NULL, ` +
		outcomeColumns.set(func(i int) string { return "l." + outcomeColumns[i].name }) + `
  FROM l WHERE r.invalidation_id = l.id AND r.idx = l.idx
  RETURNING l.n
)
SELECT CASE WHEN (SELECT count(*) FROM r) <> cardinality($1) THEN
  blame(ARRAY(SELECT $` + strconv.Itoa(len(answerColumns)+1) + `::bigint + n FROM generate_series(1, cardinality($1)) AS n WHERE n NOT IN (SELECT n FROM r))) END`

	sumColumns = columns{{"id", "text"}, {"answers", "int"}, {"ended", "int"}, {"succeeded", "int"}, {"failed", "int"}, {"unsupported", "int"},
		{"cancelled", "int"}, {"latest", "timestamptz"}}

	// countRuns updates invalidations for what became of their runs. It looks only at an invalidation's own row: its latest
	// version, if it had to wait for another's answer.
	countRuns = func() string {
		succeeded, failed := `i.succeeded + l.succeeded`, `i.failed + l.failed`
		unsupported, cancelled := `i.unsupported + l.unsupported`, `i.cancelled + l.cancelled`
		ended := `i.unfinished = l.ended`
		latest := `greatest(i.runs_complete_time, l.latest)`
		return `WITH l AS MATERIALIZED (
  SELECT a.* FROM ` + sumColumns.unnest(1) + ` AS a (` + sumColumns.names("") + `)
  CROSS JOIN LATERAL (SELECT 1 FROM invalidations AS i WHERE i.id = a.id FOR NO KEY UPDATE) AS i
)
UPDATE invalidations AS i SET revision = i.revision + l.answers, unfinished = i.unfinished - l.ended,
  succeeded = ` + succeeded + `, failed = ` + failed + `, unsupported = ` + unsupported + `, cancelled = ` + cancelled + `,
  runs_complete_time = ` + latest + `, complete_time = CASE WHEN ` + ended + ` THEN ` + latest + ` END,
  state = CASE WHEN ` + ended + ` THEN ` + stateOf(succeeded, failed, unsupported, cancelled) + ` ELSE 'RUNNING' END
FROM l WHERE i.id = l.id
RETURNING i.id, i.state, i.revision, i.complete_time`
	}()
)

const stillLeased = `SELECT state FROM runs
WHERE invalidation_id = $1 AND idx = $2 AND lease_owner = $3 AND lease_token = $4 AND lease_until > clock_timestamp()`

// stateOf is [invalidation.StateOf] in SQL: a table of its answers. They depend only on which of the final states occur.
func stateOf(succeeded, failed, unsupported, cancelled string) string {
	present := []invalidation.RunState{invalidation.RunSucceeded, invalidation.RunFailed, invalidation.RunUnsupported, invalidation.RunCancelled}
	var answers []string
	for bits := range 32 {
		var states []invalidation.RunState
		for i, s := range present {
			if bits&(1<<i) != 0 {
				states = append(states, s)
			}
		}
		answers = append(answers, "'"+string(invalidation.StateOf(states, bits&16 != 0))+"'")
	}
	return fmt.Sprintf(`(ARRAY[%s])[1 + (%s > 0)::int + 2 * (%s > 0)::int + 4 * (%s > 0)::int + 8 * (%s > 0)::int + 16 * i.allow_unsupported::int]`,
		strings.Join(answers, ", "), succeeded, failed, unsupported, cancelled)
}

// legal says in SQL that a run's state may become another, by the table in package invalidation.
func legal(from, to string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CASE %s", to)
	for _, s := range invalidation.RunStates {
		var origins []string
		for _, o := range invalidation.RunStates {
			if o.CanBecome(s) {
				origins = append(origins, "'"+string(o)+"'")
			}
		}
		if len(origins) > 0 {
			fmt.Fprintf(&b, " WHEN '%s' THEN %s IN (%s)", s, from, strings.Join(origins, ", "))
		}
	}
	b.WriteString(" ELSE false END")
	return b.String()
}

// answer is what became of a leased run.
type answer struct {
	lease    invalidation.Lease
	state    invalidation.RunState
	complete any
	row      []any

	head invalidation.Head // once it is recorded
}

// Record writes what became of a leased run.
func (s *Store) Record(ctx context.Context, l invalidation.Lease, run invalidation.Run, events []invalidation.Event) (invalidation.Head, error) {
	head, err := s.record(ctx, l, run, events)
	if err != nil {
		return invalidation.Head{}, fmt.Errorf("record run: %w", err)
	}
	return head, nil
}

func (s *Store) record(ctx context.Context, l invalidation.Lease, run invalidation.Run, events []invalidation.Event) (head invalidation.Head, err error) {
	if !storable(l.InvalidationID) || !storable(l.Owner) {
		return head, invalidation.ErrLeaseLost
	}
	run.Open = false
	run = run.Kept(time.Now())
	e := &encoder{}
	a := &answer{lease: l, state: run.State, complete: e.time(run.CompleteTime),
		row: append([]any{l.InvalidationID, int32(l.Run), l.Owner, l.Token}, e.outcome(run)...)}
	e.events(events)
	if e.err != nil {
		return head, e.err
	}
	err = s.make(ctx, &part{answer: a, events: events}, func(ctx context.Context, c *pgx.Conn) error {
		var old invalidation.RunState
		err := c.QueryRow(ctx, stillLeased, l.InvalidationID, l.Run, l.Owner, l.Token).Scan(&old)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return invalidation.ErrLeaseLost
		case err == nil && !old.CanBecome(run.State):
			return fmt.Errorf("%w: %s to %s", invalidation.ErrIllegalTransition, old, run.State)
		}
		return err
	})
	return a.head, err
}

// sum is what the answers of one invalidation come to.
type sum struct {
	parts    []*part
	count    map[invalidation.RunState]int32
	ended    int32
	latest   time.Time
	complete *time.Time
	state    invalidation.State
	revision int64
}

// queueAnswers returns what is to be done once the transaction is durable. The answers are sorted, and come after others.
func queueAnswers(b *pgx.Batch, parts []*part, after int) (committed func(*tx)) {
	if len(parts) == 0 {
		return func(*tx) {}
	}
	answers := make([][]any, len(parts))
	sums := map[string]*sum{}
	var rows [][]any
	for i := 0; i < len(parts); {
		id := parts[i].answer.lease.InvalidationID
		s := &sum{count: map[invalidation.RunState]int32{}}
		sums[id] = s
		first := i
		for ; i < len(parts) && parts[i].answer.lease.InvalidationID == id; i++ {
			a := parts[i].answer
			answers[i] = a.row
			s.count[a.state]++
			if at, ok := a.complete.(time.Time); ok {
				s.ended++
				if at.After(s.latest) {
					s.latest = at
				}
			}
		}
		s.parts = parts[first:i]
		rows = append(rows, []any{id, int32(len(s.parts)), s.ended, s.count[invalidation.RunSucceeded], s.count[invalidation.RunFailed],
			s.count[invalidation.RunUnsupported], s.count[invalidation.RunCancelled], (&encoder{}).time(s.latest)})
	}
	b.Queue(recordRuns, append(answerColumns.args(answers), after)...)
	b.Queue(countRuns, sumColumns.args(rows)...).Query(func(rows pgx.Rows) error {
		var id string
		var s sum
		_, err := pgx.ForEachRow(rows, []any{&id, &s.state, &s.revision, &s.complete}, func() error {
			sums[id].state, sums[id].revision, sums[id].complete = s.state, s.revision, s.complete
			return nil
		})
		return err
	})
	return func(t *tx) {
		for id, s := range sums {
			for i, p := range s.parts {
				// Each raises the revision by one; only the last can have ended it.
				p.answer.head = invalidation.Head{State: invalidation.Running, Revision: s.revision - int64(len(s.parts)-1-i)}
				if i == len(s.parts)-1 {
					p.answer.head.State, p.answer.head.CompleteTime = s.state, utc(s.complete)
				}
				t.touch(id, p.answer.head.Revision)
			}
		}
	}
}
