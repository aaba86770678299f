package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

const (
	selectEvents = `SELECT chain, seq, time, type, caller_kind, caller_name, coalesce(invalidation_id, ''), coalesce(target, ''), data, prev_hash, hash
FROM audit WHERE (chain, seq) > ($1, $2) ORDER BY chain, seq LIMIT $3`

	selectHash = `SELECT hash FROM audit WHERE chain = $1 AND seq = $2`

	// From chain to chain along the primary key: what is in between is not looked at.
	eachChain = `WITH RECURSIVE c (chain) AS (
  SELECT (SELECT a.chain FROM audit AS a ORDER BY a.chain LIMIT 1)
  UNION ALL SELECT (SELECT a.chain FROM audit AS a WHERE a.chain > c.chain ORDER BY a.chain LIMIT 1) FROM c WHERE c.chain IS NOT NULL
)
`

	// Then those of which nothing is left.
	selectTips = eachChain + `SELECT a.chain, a.seq, a.hash, a.time, a.type, coalesce(p.seq, 0)
FROM c CROSS JOIN LATERAL (SELECT * FROM audit WHERE audit.chain = c.chain ORDER BY seq DESC LIMIT 1) AS a
LEFT JOIN audit_checkpoints AS p ON p.chain = c.chain
UNION ALL SELECT p.chain, p.seq, p.hash, p.time, '', p.seq
FROM audit_checkpoints AS p WHERE (SELECT 1 FROM audit AS a WHERE a.chain = p.chain LIMIT 1) IS NULL`

	selectLastLink = `SELECT clock_timestamp(),
  (SELECT time FROM audit WHERE type = 'chain.linked' AND data ->> 'key' = $1 ORDER BY time DESC LIMIT 1)`

	// Chains whose first event is old enough.
	selectOldChains = eachChain + `SELECT c.chain FROM c
WHERE (SELECT a.time FROM audit AS a WHERE a.chain = c.chain ORDER BY a.seq LIMIT 1) < $1`

	checkpointColumns = `p.chain, p.seq, p.hash, p.chain_key, p.time, p.key, p.mac`
	selectCheckpoint  = `SELECT ` + checkpointColumns + ` FROM audit_checkpoints AS p WHERE p.chain = $1`
	selectCheckpoints = `SELECT ` + checkpointColumns + ` FROM audit_checkpoints AS p WHERE p.chain > $1 ORDER BY p.chain LIMIT $2`

	// One replica prunes at a time.
	tryPruneLock = `SELECT pg_try_advisory_xact_lock($1, $2), coalesce((SELECT seq FROM audit_checkpoints WHERE chain = $3), 0), clock_timestamp()`

	upsertCheckpoint = `INSERT INTO audit_checkpoints (chain, seq, hash, chain_key, time, key, mac) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (chain) DO UPDATE SET seq = $2, hash = $3, chain_key = $4, time = $5, key = $6, mac = $7`

	deletePrefix = `DELETE FROM audit WHERE chain = $1 AND seq <= $2`
)

var eventColumns = columns{{"time", "timestamptz"}, {"type", "text"}, {"caller_kind", "text"}, {"caller_name", "text"}, {"invalidation_id", "text"},
	{"target", "text"}, {"data", "json"}, {"prev_hash", "bytea"}, {"hash", "bytea"}}

var appendEvents = insertEvents(1)

// insertEvents appends what [tx.audit] returns, whose parameters begin at $n.
func insertEvents(n int) string {
	return fmt.Sprintf(`INSERT INTO audit (chain, seq, %[1]s)
  SELECT $%[2]d::text, $%[3]d::bigint + e.n, %[4]s FROM %[5]s WITH ORDINALITY AS e (%[1]s, n)`,
		eventColumns.names(""), n, n+1, eventColumns.names("e."), eventColumns.unnest(n+2))
}

// How often a process links its chains to the others: after this time, and after so many events of its own.
const (
	defaultLinkInterval = 5 * time.Minute
	linkEvents          = 5000
)

// trail holds this process's chains. A transaction takes one that no other is appending to, so that none waits for another's
// commit; the one that was used last comes first, so that there are no more chains than transactions at once.
type trail struct {
	keys audit.Keys
	due  chan struct{} // cap 1: it is time to link
	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	free     []*audit.Chain
	appended int // since the last link
}

func newTrail(keys audit.Keys) *trail {
	return &trail{keys: keys, due: make(chan struct{}, 1), done: make(chan struct{})}
}

func (t *trail) take() (*audit.Chain, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.free); n > 0 {
		c := t.free[n-1]
		t.free = t.free[:n-1]
		return c, nil
	}
	return t.keys.Start()
}

func (t *trail) give(c *audit.Chain, appended int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free = append(t.free, c)
	if t.appended += appended; t.appended >= linkEvents {
		t.appended = 0
		select {
		case t.due <- struct{}{}:
		default:
		}
	}
}

// begin links from time to time.
func (t *trail) begin(s *Store, interval time.Duration) {
	if interval == 0 {
		interval = defaultLinkInterval
	}
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	go func() {
		defer close(t.done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			case <-t.due:
			}
			if err := s.link(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("link the audit chains", "error", err)
			}
		}
	}()
}

func (t *trail) end() {
	t.stop()
	<-t.done
}

// link writes the heads of all chains that have grown into one of this process's.
func (s *Store) link(ctx context.Context) error {
	var heads []audit.Head
	var now time.Time
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		var last *time.Time
		if err := c.QueryRow(ctx, selectLastLink, s.trail.keys.Current()).Scan(&now, &last); err != nil {
			return err
		}
		tips, err := tips(ctx, c)
		if err != nil {
			return err
		}
		heads = audit.ToLink(tips, utc(last))
		return nil
	}); err != nil || len(heads) == 0 {
		return err
	}
	return s.change(ctx, func(ctx context.Context, t *tx) error {
		if err := t.take(); err != nil {
			return err
		}
		events := t.chain.Link(now, heads)
		if len(events) == 0 {
			return nil
		}
		log, err := t.audit(events)
		if err != nil {
			return err
		}
		_, err = t.Exec(ctx, appendEvents, log...)
		t.appended = len(events)
		return err
	})
}

// take makes sure that the transaction has a chain.
func (t *tx) take() (err error) {
	if t.chain == nil {
		if t.chain, err = t.trail.take(); err != nil {
			return fmt.Errorf("begin an audit chain: %w", err)
		}
		t.mark = t.chain.Mark()
	}
	return nil
}

// giveBack ends the use of a chain. What was not committed is not in it.
func (t *tx) giveBack(committed bool) {
	if t.chain == nil {
		return
	}
	if !committed {
		t.appended = 0
	}
	if t.appended == 0 {
		t.chain.Rewind(t.mark)
	}
	t.trail.give(t.chain, t.appended)
}

// audit gives events their places in a chain and returns the arguments of insertEvents. The caller sets appended when they
// are written.
func (t *tx) audit(events []invalidation.Event) ([]any, error) {
	if len(events) > 0 {
		if err := t.take(); err != nil {
			return nil, err
		}
		if t.chain.Empty() {
			events = append([]invalidation.Event{t.chain.Opening(time.Now())}, events...)
		}
	}
	var chain string
	var after int64
	var e encoder
	rows := make([][]any, len(events))
	for i := range events {
		x := &events[i]
		seq, prev, hash := t.chain.Append(x)
		if i == 0 {
			chain, after = t.chain.ID(), seq-1
		}
		var data any
		if len(x.Data) > 0 {
			data = []byte(x.Data)
		}
		rows[i] = []any{invalidation.Moment(x.Time), x.Type, x.Caller.Kind, x.Caller.Name, e.orNull(x.InvalidationID), e.orNull(x.Target), data, prev[:], hash[:]}
	}
	return append([]any{chain, after}, eventColumns.args(rows)...), nil
}

// events looks for what cannot be kept.
func (e *encoder) events(list []invalidation.Event) {
	for _, x := range list {
		for _, s := range []string{x.Type, x.Caller.Kind, x.Caller.Name, x.InvalidationID, x.Target, string(x.Data)} {
			e.text(s)
		}
	}
}

// Audit appends events that change nothing else.
func (s *Store) Audit(ctx context.Context, events []invalidation.Event) error {
	if len(events) == 0 {
		return nil
	}
	e := &encoder{}
	e.events(events)
	err := e.err
	if err == nil {
		err = s.change(ctx, func(ctx context.Context, t *tx) error {
			log, err := t.audit(events)
			if err != nil {
				return err
			}
			_, err = t.Exec(ctx, appendEvents, log...)
			t.appended = len(events)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// PruneAudit removes old events from the beginnings of their chains. While another replica does, it removes nothing.
func (s *Store) PruneAudit(ctx context.Context, before time.Time, limit int) (removed int, err error) {
	var chains []string
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, selectOldChains, before)
		if err != nil {
			return err
		}
		chains, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	}); err != nil {
		return 0, fmt.Errorf("prune the audit trail: %w", err)
	}
	var errs []error
	for _, chain := range chains {
		if removed == limit {
			break
		}
		n, err := s.pruneChain(ctx, chain, before, limit-removed)
		removed += n
		if err != nil {
			errs = append(errs, fmt.Errorf("prune the audit trail: %w", err))
		}
		if err != nil && !errors.Is(err, audit.ErrBroken) {
			break
		}
	}
	return removed, errors.Join(errs...)
}

// pruneChain checks the old events of a chain, and then replaces them by a checkpoint. They do not change meanwhile.
func (s *Store) pruneChain(ctx context.Context, chain string, before time.Time, limit int) (removed int, err error) {
	var from *audit.Checkpoint
	var events []audit.Entry
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		from = nil
		cps, err := checkpoints(ctx, c, selectCheckpoint, chain)
		if err != nil {
			return err
		}
		seq := int64(0)
		if len(cps) > 0 {
			from, seq = &cps[0], cps[0].Seq
		}
		events, err = eventsAfter(ctx, c, chain, seq, limit)
		return err
	}); err != nil {
		return 0, err
	}
	prefix, err := s.trail.keys.Prefix(chain, from)
	if err != nil {
		return 0, err
	}
	n, broken := prefix.AddOlder(events, before)
	if n == 0 {
		return 0, broken
	}
	err = s.change(ctx, func(ctx context.Context, t *tx) error {
		ours, err := s.replace(ctx, t, prefix, from)
		if ours {
			removed = n
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return removed, broken
}

// replace puts a checkpoint in the place of a chain's beginning, unless another replica does or has done.
func (s *Store) replace(ctx context.Context, t *tx, prefix *audit.Prefix, from *audit.Checkpoint) (ours bool, err error) {
	t.mayCommit = false
	var seq int64
	var now time.Time
	b := &pgx.Batch{}
	b.Queue(`BEGIN`)
	b.Queue(tryPruneLock, pruneLock, int32(s.news.schema), prefix.Chain()).QueryRow(func(r pgx.Row) error { return r.Scan(&ours, &seq, &now) })
	err = t.SendBatch(ctx, b).Close()
	if err == nil && ours && (from == nil && seq == 0 || from != nil && seq == from.Seq) {
		cp := prefix.Checkpoint(now)
		b = &pgx.Batch{}
		b.Queue(upsertCheckpoint, cp.Chain, cp.Seq, cp.Hash[:], cp.ChainKey, cp.Time, cp.Key, cp.MAC[:])
		b.Queue(deletePrefix, cp.Chain, cp.Seq)
		b.Queue(`COMMIT`)
		t.mayCommit = true
		if err = t.SendBatch(ctx, b).Close(); err == nil {
			return true, nil
		}
	}
	if !t.IsClosed() {
		_, _ = t.Exec(ctx, `ROLLBACK`)
	}
	return false, err
}

func tips(ctx context.Context, c *pgx.Conn) ([]audit.Tip, error) {
	rows, err := c.Query(ctx, selectTips)
	if err != nil {
		return nil, err
	}
	var tips []audit.Tip
	var t audit.Tip
	var hash []byte
	_, err = pgx.ForEachRow(rows, []any{&t.Chain, &t.Seq, &hash, &t.Time, &t.Type, &t.Pruned}, func() error {
		if len(hash) == len(t.Hash) { // an event from before there were chains has none
			copy(t.Hash[:], hash)
			t.Time = t.Time.UTC()
			tips = append(tips, t)
		}
		return nil
	})
	return tips, err
}

func checkpoints(ctx context.Context, c *pgx.Conn, query string, args ...any) ([]audit.Checkpoint, error) {
	rows, err := c.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.AppendRows([]audit.Checkpoint(nil), rows, func(r pgx.CollectableRow) (cp audit.Checkpoint, err error) {
		var hash, mac []byte
		err = r.Scan(&cp.Chain, &cp.Seq, &hash, &cp.ChainKey, &cp.Time, &cp.Key, &mac)
		copy(cp.Hash[:], hash)
		copy(cp.MAC[:], mac)
		cp.Time = cp.Time.UTC()
		return cp, err
	})
}

func eventsAfter(ctx context.Context, c *pgx.Conn, chain string, seq int64, limit int) ([]audit.Entry, error) {
	rows, err := c.Query(ctx, selectEvents, chain, seq, limit)
	if err != nil {
		return nil, err
	}
	return pgx.AppendRows([]audit.Entry(nil), rows, func(r pgx.CollectableRow) (e audit.Entry, err error) {
		var data []byte
		err = r.Scan(&e.Chain, &e.Seq, &e.Time, &e.Type, &e.Caller.Kind, &e.Caller.Name, &e.InvalidationID, &e.Target, &data, &e.PrevHash, &e.Hash)
		e.Time = e.Time.UTC()
		if data != nil {
			e.Data = json.RawMessage(data)
		}
		return e, err
	})
}

// Trail is the audit trail of a journal, read beside the processes that write it. All that is read until [Trail.Refresh] is
// of one moment, that of the first read. It belongs to one goroutine.
type Trail struct {
	conn *pgx.Conn
	open bool // a transaction
}

var _ audit.Journal = (*Trail)(nil)

// OpenTrail opens a journal's audit trail; it changes nothing.
func OpenTrail(ctx context.Context, dsn secret.String) (*Trail, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, errors.New("open journal: the DSN cannot be parsed")
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "endsession audit"
	}
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", failure(err))
	}
	t := &Trail{conn: c}
	if err := current(ctx, c); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal: %w", err), t.Close())
	}
	return t, nil
}

func (t *Trail) begin(ctx context.Context) (err error) {
	if !t.open {
		_, err = t.conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
		t.open = err == nil
	}
	return err
}

// Refresh lets go of the moment: the next read is of the journal as it is then.
func (t *Trail) Refresh(ctx context.Context) error {
	if !t.open {
		return nil
	}
	_, err := t.conn.Exec(ctx, `COMMIT`)
	t.open = false
	return err
}

// Close ends the connection.
func (t *Trail) Close() error { return t.conn.Close(context.Background()) }

// Checkpoints returns up to limit checkpoints of the chains after the given one.
func (t *Trail) Checkpoints(ctx context.Context, after string, limit int) ([]audit.Checkpoint, error) {
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	return checkpoints(ctx, t.conn, selectCheckpoints, after, limit)
}

// Events returns up to limit events that come after the one at chain and seq.
func (t *Trail) Events(ctx context.Context, chain string, seq int64, limit int) ([]audit.Entry, error) {
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	return eventsAfter(ctx, t.conn, chain, seq, limit)
}

// Hash returns the hash of an event.
func (t *Trail) Hash(ctx context.Context, chain string, seq int64) (hash []byte, found bool, err error) {
	if err := t.begin(ctx); err != nil {
		return nil, false, err
	}
	err = t.conn.QueryRow(ctx, selectHash, chain, seq).Scan(&hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	return hash, err == nil, err
}

// Tips are the heads of all chains.
func (t *Trail) Tips(ctx context.Context) ([]audit.Tip, error) {
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	return tips(ctx, t.conn)
}
