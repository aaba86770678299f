package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Defaults of [Options].
const (
	// DefaultTimeout bounds a call whose context does not.
	DefaultTimeout = 10 * time.Second
	// DefaultMaxConns is how many connections answer calls; one more listens.
	DefaultMaxConns = 24
)

// Options say where the journal is.
type Options struct {
	// DSN is a connection string, as URL or as key=value pairs. The first schema of its search path is the journal's.
	DSN secret.String
	// Logger may be nil.
	Logger *slog.Logger
	// Owner names this process in what the server shows of its connections (application_name); it may be empty.
	Owner string
	// Timeout is how long a call waits for a database that does not answer; twice as long for a transaction that has begun.
	// 0 is DefaultTimeout.
	Timeout time.Duration
	// MaxConns bounds the connections; 0 is DefaultMaxConns.
	MaxConns int
	// Keys hash the audit trail.
	Keys audit.Keys

	linkInterval time.Duration // defaultLinkInterval when 0
}

// Store is the journal in a PostgreSQL database.
type Store struct {
	pool    *pgxpool.Pool
	timeout time.Duration
	log     *slog.Logger
	gate    gate
	news    *news
	trail   *trail
	flights flights
	closed  atomic.Bool
	close   sync.Once

	mu      sync.Mutex
	renewed time.Time // when the connections were last given up together
}

var _ invalidation.Store = (*Store)(nil)

// Open connects to the journal, creates it or brings its schema up to date. Replicas may start together. It fails if a newer
// program has written the journal, or if the server does not answer within the timeout.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MaxConns == 0 {
		o.MaxConns = DefaultMaxConns
	}
	cfg, err := pgxpool.ParseConfig(o.DSN.Reveal())
	if err != nil {
		// The driver's message holds what it could not parse, perhaps the password.
		return nil, errors.New("open journal: the DSN cannot be parsed")
	}
	if host := unprovenHost(cfg.ConnConfig.Config); host != "" {
		o.Logger.WarnContext(ctx, "the database may be spoken to without TLS, or without proof that it is the right one: whoever is on the way can write "+
			"what is to be ended; add sslmode=verify-full to the DSN", "host", host)
	}
	s := &Store{timeout: o.Timeout, log: o.Logger, trail: newTrail(o.Keys)}
	s.flights.s, s.flights.gather, s.flights.expected = s, gatherTime, map[string]int{}
	s.configure(cfg, o)
	schema, err := s.prepare(ctx, cfg.ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if s.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("open journal: %w", failure(err))
	}
	s.news = newNews(s, cfg.ConnConfig, schema)
	if err := s.news.listen(ctx); err != nil {
		s.pool.Close()
		return nil, fmt.Errorf("open journal: %w", failure(err))
	}
	s.news.start()
	s.trail.begin(s, o.linkInterval)
	return s, nil
}

// unprovenHost returns a host of the DSN, beyond this machine, that does not have to prove who it is; "" if there is none.
// The driver's default, sslmode=prefer, falls back to plain text.
func unprovenHost(c pgconn.Config) string {
	unproven := func(host string, t *tls.Config) bool {
		ip := net.ParseIP(host)
		local := strings.HasPrefix(host, "/") || host == "localhost" || ip != nil && ip.IsLoopback()
		return !local && (t == nil || t.InsecureSkipVerify && t.VerifyPeerCertificate == nil) // verify-ca does it itself
	}
	if unproven(c.Host, c.TLSConfig) {
		return c.Host
	}
	for _, f := range c.Fallbacks {
		if unproven(f.Host, f.TLSConfig) {
			return f.Host
		}
	}
	return ""
}

// configure adds what the journal needs to what the DSN says.
func (s *Store) configure(cfg *pgxpool.Config, o Options) {
	cfg.MaxConns = int32(o.MaxConns)
	cfg.MinConns = 0
	cfg.ConnConfig.ConnectTimeout = min(5*time.Second, o.Timeout)
	params := cfg.ConnConfig.RuntimeParams
	if params["application_name"] == "" {
		params["application_name"] = "endsession"
		if o.Owner != "" {
			params["application_name"] += " " + o.Owner
		}
	}
	// The server gives up before the client does, so that the client knows how it ended.
	params["statement_timeout"] = ms(o.Timeout * 4 / 5)
	params["lock_timeout"] = ms(o.Timeout / 2) // readyFlight says so once more
	// A client that is frozen between the two halves of a cancellation holds its locks only so long.
	params["idle_in_transaction_session_timeout"] = ms(o.Timeout)
	// Every statement sees what was committed before it: the SQL relies on it.
	params["default_transaction_isolation"] = "read committed"
	params["jit"] = "off" // statements are short: compiling them never pays
	cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return s.gate.pass() }
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		err := begin(ctx, c)
		s.gate.report(err)
		return err
	}
}

// ms is a duration as a setting.
func ms(d time.Duration) string { return strconv.FormatInt(max(d.Milliseconds(), 1), 10) }

// prepare brings the schema up to date, on a connection of its own, and returns its OID.
func (s *Store) prepare(ctx context.Context, cfg *pgx.ConnConfig) (schema uint32, err error) {
	ms, err := readMigrations(migrationFiles)
	if err != nil {
		return 0, err
	}
	cfg = cfg.Copy()
	// A migration may take its time, and waits for that of another replica.
	delete(cfg.RuntimeParams, "statement_timeout")
	delete(cfg.RuntimeParams, "lock_timeout")
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return 0, failure(err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if schema, err = currentSchema(ctx, c); err != nil {
		return 0, err
	}
	if err := migrate(ctx, c, schema, ms); err != nil {
		return 0, err
	}
	var fsync string
	if err := c.QueryRow(ctx, `SHOW fsync`).Scan(&fsync); err != nil {
		return 0, err
	}
	if fsync != "on" {
		s.log.WarnContext(ctx, "the database server runs with fsync off: what it has committed can be lost when the machine fails")
	}
	return schema, nil
}

// backend is what is known of a connection's other end.
type backend struct {
	pid   int32
	start time.Time
	born  time.Time // by this process's clock
}

const backendKey = "endsession"

// begin readies a new connection.
func begin(ctx context.Context, c *pgx.Conn) error {
	b := &backend{born: time.Now()}
	// Whoever set it off for the role or the database did not mean the journal.
	if err := c.QueryRow(ctx, `SELECT a.pid, a.backend_start,
  CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
FROM pg_stat_get_activity(pg_backend_pid()) AS a`).Scan(&b.pid, &b.start, new(*string)); err != nil {
		return err
	}
	c.PgConn().CustomData()[backendKey] = b
	return nil
}

func backendOf(c *pgx.Conn) *backend { return c.PgConn().CustomData()[backendKey].(*backend) }

// Now is the database's clock.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("read the clock: %w", err)
	}
	return now.UTC(), nil
}

// OnChange registers f. For changes of this process it is called before the method that made them returns, for those of
// others when they are told.
func (s *Store) OnChange(f func(invalidation.Change)) { s.news.subscribe(f) }

// OnNews registers f for what other processes tell.
func (s *Store) OnNews(f func(invalidation.News)) { s.news.follow(f) }

// Close waits for transactions under way and closes the connections.
func (s *Store) Close() error {
	s.close.Do(func() {
		s.closed.Store(true)
		s.flights.close()
		s.trail.end()
		s.news.stop() // tells what is left
		s.pool.Close()
	})
	return nil
}
