package postgres

import (
	"context"
	"io/fs"
	"runtime"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

// MigrationFiles are the real ones.
var MigrationFiles fs.FS = migrationFiles

// Migrate brings a schema to the last of other migrations.
func Migrate(ctx context.Context, dsn secret.String, files fs.FS) error {
	ms, err := readMigrations(files)
	if err != nil {
		return err
	}
	c, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	schema, err := currentSchema(ctx, c)
	if err != nil {
		return err
	}
	return migrate(ctx, c, schema, ms)
}

// Statements are the ones that are asked often, by name, with arguments to plan them for.
var Statements = map[string]struct {
	SQL  string
	Args string
}{
	"claim":             {claimDue, `'apm', 0, 4, 'me', '30 s'`},
	"claim expired":     {claimExpired, `'apm', 1, 4, 'me', '30 s'`},
	"next due":          {selectNextDue, `'apm'`},
	"hasten":            {hastenRuns, `'apm', 'R'`},
	"renew":             {renewLeases, `'{a}', '{0}', '{me}', '{1}', '30 s'`},
	"release":           {releaseRun, `'a', 0, 'me', 1`},
	"get":               {selectInvalidation, `'a'`},
	"request":           {selectRequest, `'k', 'n', 'r'`},
	"unfinished":        {selectUnfinished, ``},
	"lock runs":         {lockRuns, `'a'`},
	"prune":             {deleteCompleted, `'2020-01-01', 100`},
	"accept":            {insertInvalidations, nulls(invalidationTable)},
	"accept runs":       {insertRuns, nulls(runTable)},
	"accept labels":     {insertLabels, nulls(labelTable)},
	"record":            {recordRuns, nulls(answerColumns) + ", 0"},
	"count":             {countRuns, nulls(sumColumns)},
	"lock invalidation": {lockInvalidation, `'a'`},
	"tips":              {selectTips, ``},
	"last link":         {selectLastLink, `'k'`},
	"old chains":        {selectOldChains, `'2020-01-01'`},
}

// ReadyFlight is what every flight begins with.
const ReadyFlight = readyFlight

// List is the query of a page.
func List(q invalidation.Query) (string, []any) { return list(q) }

// StateOf is [invalidation.StateOf] in SQL; the counts are columns of i.
var StateOf = stateOf("i.succeeded", "i.failed", "i.unsupported", "i.cancelled")

// Link links the chains now.
func (s *Store) Link(ctx context.Context) error { return s.link(ctx) }

// nulls is a row without anything in it.
func nulls(c columns) string { return strings.Repeat(", '{NULL}'", len(c))[2:] }

// Gather sets how long an answer waits for the others of its invalidation.
func (s *Store) Gather(d time.Duration) { s.flights.gather = d }

// Queued is how many changes are on the ground.
func (s *Store) Queued() int {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	return len(s.flights.queue)
}

// Ground keeps flights from departing until depart is called. It waits for those in the air: one that has told its callers
// takes along what is queued before it ends.
func (s *Store) Ground() (depart func()) {
	f := &s.flights
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.inAir > 0 {
		f.mu.Unlock()
		runtime.Gosched()
		f.mu.Lock()
	}
	f.inAir += maxInAir
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.inAir -= maxInAir; len(f.queue) > 0 {
			f.depart()
		}
	}
}
