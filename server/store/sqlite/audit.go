package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
)

const (
	selectEvents = `SELECT chain, seq, time, type, caller_kind, caller_name, invalidation_id, target, data, prev_hash, hash
FROM audit WHERE (chain, seq) > (?1, ?2) ORDER BY chain, seq LIMIT ?3`

	selectHash = `SELECT hash FROM audit WHERE chain = ?1 AND seq = ?2`

	// From chain to chain along the primary key: what is in between is not looked at.
	eachChain = `WITH RECURSIVE c (chain) AS (
  SELECT (SELECT a.chain FROM audit AS a WHERE a.chain > '' ORDER BY a.chain LIMIT 1)
  UNION ALL SELECT (SELECT a.chain FROM audit AS a WHERE a.chain > c.chain ORDER BY a.chain LIMIT 1) FROM c WHERE c.chain IS NOT NULL
)
`

	// Then those of which nothing is left.
	selectTips = eachChain + `SELECT a.chain, a.seq, a.hash, a.time, a.type, p.seq
FROM c CROSS JOIN audit AS a ON a.chain = c.chain AND a.seq = (SELECT x.seq FROM audit AS x WHERE x.chain = c.chain ORDER BY x.seq DESC LIMIT 1)
LEFT JOIN audit_checkpoints AS p ON p.chain = c.chain
UNION ALL SELECT p.chain, p.seq, p.hash, p.time, '', p.seq
FROM audit_checkpoints AS p WHERE (SELECT 1 FROM audit AS a WHERE a.chain = p.chain LIMIT 1) IS NULL`

	selectLastLink = `SELECT time FROM audit INDEXED BY audit_links
WHERE type = 'chain.linked' AND json_extract(data, '$.key') = ?1 ORDER BY time DESC LIMIT 1`

	// Chains whose first event is old enough, with what stands for those before it.
	selectOldChains = eachChain + `SELECT c.chain FROM c
WHERE (SELECT a.time FROM audit AS a WHERE a.chain = c.chain ORDER BY a.seq LIMIT 1) < ?1`

	checkpointColumns = `p.chain, p.seq, p.hash, p.chain_key, p.time, p.key, p.mac`
	selectCheckpoint  = `SELECT ` + checkpointColumns + ` FROM audit_checkpoints AS p WHERE p.chain = ?1`
	selectCheckpoints = `SELECT ` + checkpointColumns + ` FROM audit_checkpoints AS p WHERE p.chain > ?1 ORDER BY p.chain LIMIT ?2`

	upsertCheckpoint = `INSERT INTO audit_checkpoints (chain, seq, hash, chain_key, time, key, mac) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (chain) DO UPDATE SET seq = ?2, hash = ?3, chain_key = ?4, time = ?5, key = ?6, mac = ?7`

	deletePrefix = `DELETE FROM audit WHERE chain = ?1 AND seq <= ?2`
)

// place is where the chain ends, to go back to.
func (t *tx) place() (*audit.Chain, audit.Mark) {
	if t.chain == nil {
		return nil, audit.Mark{}
	}
	return t.chain, t.chain.Mark()
}

func (t *tx) rewind(chain *audit.Chain, to audit.Mark) {
	if t.chain = chain; chain != nil {
		chain.Rewind(to)
	}
}

// audit appends events to this process's chain. It begins with the first of them, and with links to the chains of processes
// before.
func (t *tx) audit(events []invalidation.Event) error {
	if len(events) == 0 {
		return nil
	}
	if t.chain == nil {
		chain, err := t.keys.Start()
		if err != nil {
			return fmt.Errorf("begin an audit chain: %w", err)
		}
		t.chain = chain
	}
	if t.chain.Empty() {
		c, err := t.read()
		if err != nil {
			return err
		}
		heads, err := unlinked(c, t.keys)
		if err != nil {
			return fmt.Errorf("read the heads of audit chains: %w", err)
		}
		t.append(t.chain.Opening(t.now))
		for _, e := range t.chain.Link(t.now, heads) {
			t.append(e)
		}
	}
	for _, e := range events {
		t.append(e)
	}
	return nil
}

// append gives an event its place, and puts the row off.
func (t *tx) append(e invalidation.Event) {
	seq, prev, hash := t.chain.Append(&e)
	t.wrote = true
	t.events = append(t.events, t.chain.ID(), seq, e.Time.UnixMicro(), e.Type, e.Caller.Kind, e.Caller.Name,
		orNull(e.InvalidationID), orNull(e.Target), orNull(string(e.Data)), prev[:], hash[:])
}

// unlinked are the heads that no chain under the current key links to yet.
func unlinked(c *conn, keys audit.Keys) ([]audit.Head, error) {
	var last time.Time
	if _, err := c.one(func(r *row) error { last = r.time(); return nil }, selectLastLink, keys.Current()); err != nil {
		return nil, err
	}
	tips, err := tips(context.Background(), c)
	if err != nil {
		return nil, err
	}
	return audit.ToLink(tips, last), nil
}

func tips(ctx context.Context, c *conn) (tips []audit.Tip, err error) {
	err = c.each(ctx, func(r *row) error {
		t := audit.Tip{Head: audit.Head{Chain: r.text(), Seq: r.num()}}
		hash := r.blob()
		t.Time, t.Type, t.Pruned = r.time(), r.text(), r.num()
		if len(hash) == len(t.Hash) { // an event from before there were chains has none
			copy(t.Hash[:], hash)
			tips = append(tips, t)
		}
		return nil
	}, selectTips)
	return tips, err
}

// Audit appends events that change nothing else.
func (s *Store) Audit(ctx context.Context, events []invalidation.Event) error {
	if len(events) == 0 {
		return nil
	}
	if err := s.change(ctx, func(t *tx) error { return t.audit(events) }); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// PruneAudit removes old events from the beginnings of their chains.
func (s *Store) PruneAudit(ctx context.Context, before time.Time, limit int) (removed int, err error) {
	var chains []string
	if err := s.read(ctx, func(ctx context.Context, c *conn) error {
		var found []string
		defer func() { chains = found }()
		return c.each(ctx, func(r *row) error { found = append(found, r.text()); return nil }, selectOldChains, before.UnixMicro())
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
	if err := s.read(ctx, func(ctx context.Context, c *conn) error {
		cp, found, err := checkpoint(c, chain)
		if err != nil {
			return err
		}
		seq := int64(0)
		if found {
			from, seq = &cp, cp.Seq
		}
		events, err = eventsAfter(ctx, c, chain, seq, limit)
		return err
	}); err != nil {
		return 0, err
	}
	prefix, err := s.keys.Prefix(chain, from)
	if err != nil {
		return 0, err
	}
	removed, broken := prefix.AddOlder(events, before)
	if removed == 0 {
		return 0, broken
	}
	err = s.change(ctx, func(t *tx) error {
		cp := prefix.Checkpoint(t.now)
		if _, err := t.exec(upsertCheckpoint, cp.Chain, cp.Seq, cp.Hash[:], cp.ChainKey, cp.Time.UnixMicro(), cp.Key, cp.MAC[:]); err != nil {
			return err
		}
		_, err := t.exec(deletePrefix, cp.Chain, cp.Seq)
		return err
	})
	if err != nil {
		return 0, err
	}
	return removed, broken
}

func checkpoint(c *conn, chain string) (cp audit.Checkpoint, found bool, err error) {
	found, err = c.one(func(r *row) error { cp = scanCheckpoint(r); return nil }, selectCheckpoint, chain)
	return cp, found, err
}

func scanCheckpoint(r *row) audit.Checkpoint {
	cp := audit.Checkpoint{Head: audit.Head{Chain: r.text(), Seq: r.num()}}
	copy(cp.Hash[:], r.blob())
	cp.ChainKey, cp.Time, cp.Key = r.text(), r.time(), r.text()
	copy(cp.MAC[:], r.blob())
	return cp
}

func eventsAfter(ctx context.Context, c *conn, chain string, seq int64, limit int) (entries []audit.Entry, err error) {
	err = c.each(ctx, func(r *row) error {
		e := audit.Entry{Chain: r.text(), Seq: r.num()}
		e.Event = invalidation.Event{Time: r.time(), Type: r.text(), Caller: invalidation.Caller{Kind: r.text(), Name: r.text()},
			InvalidationID: r.text(), Target: r.text(), Data: json.RawMessage(r.rawJSON())}
		e.PrevHash, e.Hash = r.blob(), r.blob()
		entries = append(entries, e)
		return nil
	}, selectEvents, chain, seq, int64(limit))
	return entries, err
}

// Trail is the audit trail of a journal, read beside the process that writes it. All that is read until [Trail.Refresh] is
// of one moment, that of the first read. It belongs to one goroutine.
type Trail struct {
	conn *conn
	open bool // a transaction
}

var _ audit.Journal = (*Trail)(nil)

// OpenTrail opens a journal's audit trail; it changes nothing.
func OpenTrail(path string) (_ *Trail, err error) {
	real, err := resolve(path)
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	c, err := place{path: real, busy: DefaultTimeout}.connect("ro")
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	if err := current(c); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", path, err), c.close())
	}
	return &Trail{conn: c}, nil
}

func (t *Trail) begin() (err error) {
	if !t.open {
		_, err = t.conn.exec("BEGIN")
		t.open = err == nil
	}
	return err
}

// Refresh lets go of the moment: the next read is of the journal as it is then. As long as one is held, the write-ahead log
// only grows.
func (t *Trail) Refresh(context.Context) error {
	if !t.open {
		return nil
	}
	_, err := t.conn.exec("COMMIT")
	t.open = false
	return err
}

// Close closes the journal.
func (t *Trail) Close() error { return t.conn.close() }

// Checkpoints returns up to limit checkpoints of the chains after the given one.
func (t *Trail) Checkpoints(ctx context.Context, after string, limit int) (cps []audit.Checkpoint, err error) {
	if err := t.begin(); err != nil {
		return nil, err
	}
	err = t.conn.each(ctx, func(r *row) error { cps = append(cps, scanCheckpoint(r)); return nil }, selectCheckpoints, after, int64(limit))
	return cps, err
}

// Events returns up to limit events that come after the one at chain and seq.
func (t *Trail) Events(ctx context.Context, chain string, seq int64, limit int) ([]audit.Entry, error) {
	if err := t.begin(); err != nil {
		return nil, err
	}
	return eventsAfter(ctx, t.conn, chain, seq, limit)
}

// Hash returns the hash of an event.
func (t *Trail) Hash(_ context.Context, chain string, seq int64) (hash []byte, found bool, err error) {
	if err := t.begin(); err != nil {
		return nil, false, err
	}
	found, err = t.conn.one(func(r *row) error { hash = r.blob(); return nil }, selectHash, chain, seq)
	return hash, found, err
}

// Tips are the heads of all chains.
func (t *Trail) Tips(ctx context.Context) ([]audit.Tip, error) {
	if err := t.begin(); err != nil {
		return nil, err
	}
	return tips(ctx, t.conn)
}
