package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// presenceInterval is how often a process looks who else is there, and whether its own listening connection lives.
	presenceInterval = 2 * time.Second
	// maxPayload is less than the 8,000 bytes that PostgreSQL allows.
	maxPayload = 7000
	// slotsWanted begins a line that is no change: a target's name follows.
	slotsWanted = "slots wanted: "
	// maxUntold is how many changes are told one by one; more of them are told as one [invalidation.AnyChange].
	maxUntold = 10000
)

// news carries changes from and to other processes.
type news struct {
	s       *Store
	cfg     *pgx.ConnConfig
	schema  uint32
	channel string
	me      string // so that what this process tells does not come back to it

	mu          sync.Mutex
	subscribers []func(invalidation.Change)
	followers   []func(invalidation.News)
	untold      []string
	known       map[string]bool // what is in untold
	wake        chan struct{}   // cap 1

	conn    *pgx.Conn // the listener's own
	peers   map[int32]bool
	stopped context.CancelFunc
	ctx     context.Context
	loops   sync.WaitGroup
}

func newNews(s *Store, cfg *pgx.ConnConfig, schema uint32) *news {
	n := &news{s: s, cfg: cfg.Copy(), schema: schema, channel: fmt.Sprintf("endsession_%d", schema), me: uuid.NewString(),
		known: map[string]bool{}, wake: make(chan struct{}, 1)}
	n.ctx, n.stopped = context.WithCancel(context.Background())
	return n
}

func (n *news) subscribe(f func(invalidation.Change)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.subscribers = append(n.subscribers, f)
}

func (n *news) follow(f func(invalidation.News)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.followers = append(n.followers, f)
}

// changed tells this process at once, and the others soon.
func (n *news) changed(changes []invalidation.Change) {
	if len(changes) == 0 {
		return
	}
	ids := make([]string, len(changes))
	for i, c := range changes {
		n.publish(c)
		ids[i] = c.ID
	}
	n.others(ids)
}

// others tells other processes soon.
func (n *news) others(ids []string) {
	n.mu.Lock()
	for _, id := range ids {
		switch {
		case n.known[id] || n.known[invalidation.AnyChange] && id != "":
		case len(n.untold) == maxUntold || len(id) > maxPayload/2:
			n.untold, n.known = append(n.untold, invalidation.AnyChange), map[string]bool{invalidation.AnyChange: true}
		default:
			n.untold = append(n.untold, id)
			n.known[id] = true
		}
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *news) publish(c invalidation.Change) {
	n.mu.Lock()
	subscribers := n.subscribers
	n.mu.Unlock()
	for _, f := range subscribers {
		f(c)
	}
}

// heard passes on what others tell.
func (n *news) heard(lines []string) {
	n.mu.Lock()
	followers := n.followers
	n.mu.Unlock()
	for _, line := range lines {
		var told invalidation.News
		if target, wish := strings.CutPrefix(line, slotsWanted); wish {
			told.SlotsWanted = target
		} else {
			n.publish(invalidation.Change{ID: line})
			told.Changed = line
		}
		for _, f := range followers {
			f(told)
		}
	}
}

func (n *news) start() {
	n.loops.Go(n.tell)
	n.loops.Go(n.hear)
}

// stop tells what is untold, if the server answers, and ends both loops.
func (n *news) stop() {
	n.stopped()
	n.loops.Wait()
}

// tell sends what has been committed. It joins what is there when it comes to it.
func (n *news) tell() {
	pause := minReconnect
	for {
		select {
		case <-n.wake:
		case <-n.ctx.Done():
			_ = n.send(context.Background())
			return
		}
		if err := n.send(n.ctx); err == nil {
			pause = minReconnect
			continue
		}
		// It stays untold. The log hears of it from those who want to change something.
		select {
		case <-time.After(jitter(pause)):
		case <-n.ctx.Done():
		}
		pause = min(2*pause, maxReconnect)
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

func (n *news) send(ctx context.Context) error {
	n.mu.Lock()
	ids := n.untold
	n.untold, n.known = nil, map[string]bool{}
	n.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	err := n.notify(ctx, ids)
	if err != nil {
		n.mu.Lock()
		// Twice told does no harm. What came meanwhile is later.
		n.untold = append(ids, n.untold...)
		if len(n.untold) > maxUntold {
			n.untold = []string{invalidation.AnyChange, ""}
		}
		for _, id := range n.untold {
			n.known[id] = true
		}
		n.mu.Unlock()
	}
	return err
}

func (n *news) notify(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, n.s.timeout)
	defer cancel()
	c, err := n.s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	for len(ids) > 0 {
		// The sender, then the changes; none of them holds a line break that would be taken for two.
		var text strings.Builder
		text.WriteString(n.me)
		for len(ids) > 0 && text.Len()+1+len(ids[0]) <= maxPayload {
			text.WriteByte('\n')
			text.WriteString(line(ids[0]))
			ids = ids[1:]
		}
		// The transaction writes nothing: it is not worth an fsync.
		if _, err := c.Exec(ctx, `SELECT pg_notify($1, $2)`, n.channel, text.String()); err != nil {
			return err
		}
	}
	return nil
}

// line is an ID in a payload of lines. IDs are UUIDs; of any other the others hear only that something changed.
func line(id string) string {
	if strings.ContainsAny(id, "\n") {
		return invalidation.AnyChange
	}
	return id
}

// listen connects the listener. Whoever holds the lock in shared mode is there.
func (n *news) listen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.s.timeout)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, n.cfg)
	if err != nil {
		return err
	}
	// Not in one statement: LISTEN takes no arguments, and needs none here.
	if _, err = c.Exec(ctx, `LISTEN `+n.channel); err == nil {
		_, err = c.Exec(ctx, `SELECT pg_advisory_lock_shared($1, $2)`, presenceLock, int32(n.schema))
	}
	if err == nil {
		n.conn = c
		n.peers = nil
		_, err = n.look(ctx)
	}
	if err != nil {
		n.conn = nil
		_ = c.Close(ctx)
	}
	return err
}

// hear passes on what others tell, until stop. When it may have missed something, it says that anything may have changed.
func (n *news) hear() {
	pause := minReconnect
	for {
		err := n.hearOn()
		if n.ctx.Err() != nil {
			n.disconnect()
			return
		}
		n.s.log.Warn("the connection that listens for other replicas' changes is lost; connecting again", "error", err)
		n.disconnect()
		for {
			select {
			case <-time.After(jitter(pause)):
			case <-n.ctx.Done():
				return
			}
			pause = min(2*pause, maxReconnect)
			if n.listen(n.ctx) == nil {
				break
			}
		}
		pause = minReconnect
		n.s.log.Info("listening for other replicas' changes again")
		n.heard([]string{invalidation.AnyChange, ""})
	}
}

func (n *news) disconnect() {
	if n.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = n.conn.Close(ctx)
	n.conn = nil
}

// hearOn returns when the connection breaks.
func (n *news) hearOn() error {
	for {
		ctx, cancel := context.WithTimeout(n.ctx, presenceInterval)
		heard, err := n.conn.WaitForNotification(ctx)
		expired := ctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			sender, text, _ := strings.Cut(heard.Payload, "\n")
			if sender != n.me {
				n.heard(strings.Split(text, "\n"))
			}
			continue
		case n.ctx.Err() != nil || n.conn.IsClosed() || !expired:
			return err
		}
		ctx, cancel = context.WithTimeout(n.ctx, n.s.timeout)
		left, err := n.look(ctx)
		cancel()
		if err != nil {
			return err
		}
		if left {
			// It may have died between a commit and telling of it.
			n.heard([]string{invalidation.AnyChange, ""})
		}
	}
}

// look finds out who is there, and whether somebody has left since it looked last.
func (n *news) look(ctx context.Context) (left bool, err error) {
	rows, err := n.conn.Query(ctx, `SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid = $1 AND objid = $2 AND objsubid = 2`, uint32(presenceLock), n.schema)
	if err != nil {
		return false, err
	}
	peers := map[int32]bool{}
	var pid int32
	if _, err := pgx.ForEachRow(rows, []any{&pid}, func() error { peers[pid] = true; return nil }); err != nil {
		return false, err
	}
	for pid := range n.peers {
		left = left || !peers[pid]
	}
	n.peers = peers
	return left, nil
}

// jitter keeps replicas from coming back all at once.
func jitter(d time.Duration) time.Duration { return d/2 + time.Duration(rand.Int64N(int64(d))) }
