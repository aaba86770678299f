package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

// recordRun writes an outcome ($1 to $20), ends the lease and counts the run's state in its invalidation. It yields a row if
// the lease holds and the transition is legal ($25 are the states that may become the new one).
var recordRun = `WITH r AS (
  UPDATE runs SET lease_owner = NULL, lease_until = NULL, lease_from = NULL, ` + setOutcome + `
  WHERE invalidation_id = $21 AND idx = $22 AND lease_owner = $23 AND lease_token = $24 AND lease_until > clock_timestamp()
    AND state = ANY ($25::text[])
  RETURNING invalidation_id, state, complete_time
), i AS (
  ` + countRuns("r", `r.complete_time IS NOT NULL`) + `
), event AS (
  ` + insertEvents(26, "i,") + `
)
SELECT state, revision, complete_time FROM i`

const stillLeased = `SELECT state FROM runs
WHERE invalidation_id = $1 AND idx = $2 AND lease_owner = $3 AND lease_token = $4 AND lease_until > clock_timestamp()`

// countRuns updates an invalidation for one of its runs, the row of from, which is final if that condition holds. It looks
// only at the invalidation's own row: its latest version, if it had to wait for another run's.
func countRuns(from, final string) string {
	added := func(s invalidation.RunState) string {
		return fmt.Sprintf(`i.%s + (%s.state = '%s')::int`, strings.ToLower(string(s)), from, s)
	}
	succeeded, failed := added(invalidation.RunSucceeded), added(invalidation.RunFailed)
	unsupported, cancelled := added(invalidation.RunUnsupported), added(invalidation.RunCancelled)
	ended := `i.unfinished - (` + final + `)::int = 0`
	latest := `greatest(i.runs_complete_time, ` + from + `.complete_time)`
	return `UPDATE invalidations AS i SET revision = i.revision + 1, unfinished = i.unfinished - (` + final + `)::int,
    succeeded = ` + succeeded + `, failed = ` + failed + `, unsupported = ` + unsupported + `, cancelled = ` + cancelled + `,
    runs_complete_time = ` + latest + `, complete_time = CASE WHEN ` + ended + ` THEN ` + latest + ` END,
    state = CASE WHEN ` + ended + ` THEN ` + stateOf(succeeded, failed, unsupported, cancelled) + ` ELSE 'RUNNING' END
  FROM ` + from + ` WHERE i.id = ` + from + `.invalidation_id
  RETURNING i.state, i.revision, i.complete_time`
}

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

// origins are the states that may become a state, by the table in package invalidation.
var origins = func() map[invalidation.RunState][]string {
	m := map[invalidation.RunState][]string{}
	for _, to := range invalidation.RunStates {
		m[to] = []string{}
		for _, from := range invalidation.RunStates {
			if from.CanBecome(to) {
				m[to] = append(m[to], string(from))
			}
		}
	}
	return m
}()

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
	e := &encoder{}
	args := e.outcome(run.Kept(time.Now())).args()
	args = append(args, l.InvalidationID, l.Run, l.Owner, l.Token, origins[run.State])
	e.events(events)
	if e.err != nil {
		return head, e.err
	}
	err = s.change(ctx, func(ctx context.Context, t *tx) error {
		var complete *time.Time
		log, err := t.audit(events)
		if err != nil {
			return err
		}
		args := append(args[:len(args):len(args)], log...)
		err = t.QueryRow(ctx, recordRun, args...).Scan(&head.State, &head.Revision, &complete)
		if errors.Is(err, pgx.ErrNoRows) {
			return refusal(ctx, t, l, run)
		}
		if err != nil {
			return err
		}
		head.CompleteTime = utc(complete)
		t.appended = len(events)
		t.touch(l.InvalidationID, head.Revision)
		return nil
	})
	return head, err
}

// refusal says why recordRun has changed nothing.
func refusal(ctx context.Context, t *tx, l invalidation.Lease, run invalidation.Run) error {
	t.mayCommit = false
	var old string
	err := t.QueryRow(ctx, stillLeased, l.InvalidationID, l.Run, l.Owner, l.Token).Scan(&old)
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s to %s", invalidation.ErrIllegalTransition, old, run.State)
	case errors.Is(err, pgx.ErrNoRows):
		return invalidation.ErrLeaseLost
	}
	return err
}
