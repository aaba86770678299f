package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/config"
	"modernc.org/sqlite"
)

// maxConcurrency is as many attempts as a target may be configured to have under way at once.
const maxConcurrency = 1000

func targetName(i int) string { return fmt.Sprintf("t%d", i) }

// targetTypes are the kinds of targets: the constant ones beside the real ones.
func targetTypes() map[string]adapters.Type {
	types := map[string]adapters.Type{}
	for _, t := range []adapters.Type{constantType(), bigiq.Type(), kibana.Type(), element.Type()} {
		types[t.Kind] = t
	}
	return types
}

// playGateway serves the gateway itself, as it is assembled for `endsession serve`, with the constant targets beside the
// real ones. The argument is its configuration. It logs as much as it would in production.
func playGateway(ctx context.Context, args []string) (map[string]string, func() error, error) {
	server.Tune()
	var durable atomic.Int64
	sqlite.RegisterConnectionHook(func(conn sqlite.ExecQuerierContext, _ string) error { return mustBeDurable(conn, &durable) })
	conf, err := config.Load(args[0], targetTypes())
	if err != nil {
		return nil, nil, err
	}
	log, err := os.OpenFile(args[0]+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	srv, err := server.Open(ctx, server.Options{Config: conf, Logger: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.Level(conf.Log.Level)}))})
	if err != nil {
		return nil, nil, err
	}
	if conf.Store.SQLite != nil && durable.Load() == 0 {
		return nil, nil, errors.New("nobody has looked whether the journal is durable")
	}
	first, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(first, context.WithoutCancel(ctx)) }()
	return map[string]string{"grpc": srv.GRPCAddr().String(), "http": srv.HTTPAddr().String(), "admin": srv.AdminAddr().String()}, func() error {
		stop()
		return errors.Join(<-ended, log.Close())
	}, nil
}

// mustBeDurable refuses a connection to the journal whose commits would not outlive a loss of power.
func mustBeDurable(conn sqlite.ExecQuerierContext, seen *atomic.Int64) error {
	for pragma, want := range map[string]driver.Value{"synchronous": int64(2), "journal_mode": "wal"} {
		rows, err := conn.QueryContext(context.Background(), "PRAGMA "+pragma, nil)
		if err != nil {
			return err
		}
		got := make([]driver.Value, 1)
		err = errors.Join(rows.Next(got), rows.Close())
		if err != nil {
			return err
		}
		if got[0] != want {
			return fmt.Errorf("PRAGMA %s is %v, want %v", pragma, got[0], want)
		}
	}
	seen.Add(1)
	return nil
}

// setup is how a gateway of the comparison is configured: everything on that a careful operator has on.
type setup struct {
	// name is that of its directory.
	name string
	// upstream is the URL, with the delay, that the targets' numbers are appended to. Empty: more has the targets.
	upstream string
	// targets is how many runs a call has.
	targets int
	// concurrency of each target; zero means as much as is allowed.
	concurrency int
	// dsn of PostgreSQL; empty means SQLite.
	dsn string
	// more is further configuration.
	more string
}

// gateway is one that runs, with what is to be found in its journal afterwards.
type gateway struct {
	*process
	setup
	dir    string
	key    string
	client *grpcClient
	// calls counts those that were answered as accepted; before is how many invalidations the journal held beforehand.
	calls  atomic.Int64
	before int64
	// lost: callers may have been left without an answer. unfinished: runs may be left that are not final.
	lost, unfinished bool
}

func (g *gateway) journal() string { return filepath.Join(g.dir, "journal.db") }

// configure writes a gateway's configuration into a directory of its own.
func (b *bench) configure(s setup) (*gateway, error) {
	g := &gateway{setup: s, dir: filepath.Join(b.dir, s.name), key: auth.NewKey()}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return nil, err
	}
	var text strings.Builder
	store := "sqlite: { path: journal.db }"
	if s.dsn != "" {
		store = "postgres: { dsn: '" + s.dsn + "' }"
	}
	fmt.Fprintf(&text, `listen: { grpc: 127.0.0.1:0, http: 127.0.0.1:0, admin: 127.0.0.1:0 }
store: { %s }
audit: { key: %s }
check_interval: never
log: { format: json, level: warn }
auth: { api_keys: [ { name: bench, sha256: [ "%x" ] } ] }
policy:
  - { name: no-broad-night-jobs, deny: 'request.broad && request.priority == "bulk"' }
  - { name: oncall, allow: '"oncall" in caller.groups', rights: [invalidate, preview, read, retry, cancel, list_targets, check, pause] }
  - { name: bench, allow: 'caller.name == "bench" && !request.broad', rights: [invalidate, preview, read, retry, cancel, list_targets, check, pause] }
  - { name: bench-broad, allow: 'caller.name == "bench" && request.broad', protected: true, unlimited: true }
protected: { users: [break-glass, "ceo@corp.example"] }
%s`, store, strings.Repeat("k", 40), auth.HashKey(g.key), s.more)
	if s.upstream == "" {
		return g, os.WriteFile(g.config(), []byte(text.String()), 0o600)
	}
	text.WriteString("targets:\n")
	concurrency := s.concurrency
	if concurrency == 0 {
		concurrency = maxConcurrency
	}
	for i := range s.targets {
		fmt.Fprintf(&text, "  - { name: %s, constant: { url: %s/%d }, usernames: ['user.id'], concurrency: %d }\n", targetName(i), s.upstream, i, concurrency)
	}
	return g, os.WriteFile(g.config(), []byte(text.String()), 0o600)
}

func (g *gateway) config() string { return filepath.Join(g.dir, "endsession.yaml") }

// begin starts the gateway, or starts it again.
func (g *gateway) begin(ctx context.Context) (err error) {
	if g.process, err = start(ctx, "gateway", g.config()); err != nil {
		return err
	}
	if g.client != nil {
		g.client.close()
	}
	g.client, err = newGRPCClient(g.address["grpc"], g.key, g.targets, connections)
	return err
}

// end stops the gateway in order.
func (g *gateway) end() error {
	g.client.close()
	return g.stop()
}

// grpc and rest are ways in, as contenders.
func (g *gateway) grpc(name string) contender {
	return contender{name: name, server: g.process, client: counted{g.client, &g.calls}}
}

func (g *gateway) rest(name string) contender {
	return contender{name: name, server: g.process, client: counted{newRESTClient(g.address["http"], g.key, g.targets), &g.calls}}
}
