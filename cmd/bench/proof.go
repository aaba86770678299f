package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/config"
)

// proof is what a gateway's journal held after it had been measured: that nothing was left out for the sake of a figure.
type proof struct {
	Gateway string `json:"gateway"`
	Store   string `json:"store"`
	// Calls were answered as accepted, Before were in the journal beforehand.
	Calls  int64 `json:"calls"`
	Before int64 `json:"before"`
	// Invalidations and Runs are rows in the journal, those beforehand included; Unfinished are runs, and so are Unsupported,
	// which were final when they were accepted.
	Invalidations int64 `json:"invalidations"`
	Runs          int64 `json:"runs"`
	Unfinished    int64 `json:"unfinished"`
	Unsupported   int64 `json:"unsupported"`
	// Accepted and Ended are audit events: one for each call, one for each run that did not end with its acceptance.
	Accepted int64 `json:"audit_accepted"`
	Ended    int64 `json:"audit_ended"`
	// Events are those that were verified.
	Events int `json:"audit_events"`
}

func proofTable(proofs []proof) table {
	t := table{title: "What the journals held afterwards, counted in the database; all audit chains verified", head: []string{
		"gateway", "store", "calls", "in the journal before", "invalidations", "runs", "unfinished", "unsupported", "audit: accepted", "audit: runs ended", "audit events verified"}}
	for _, p := range proofs {
		row := []string{p.Gateway, p.Store}
		for _, n := range []int64{p.Calls, p.Before, p.Invalidations, p.Runs, p.Unfinished, p.Unsupported, p.Accepted, p.Ended, int64(p.Events)} {
			row = append(row, fmt.Sprint(n))
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// settleTime is how long runs may take to end that nobody waits for any more.
const settleTime = 2 * time.Minute

// settled waits until no invalidation of the gateway is unfinished.
func (g *gateway) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		ctx, service := g.client.service(ctx)
		page, err := service.ListInvalidations(ctx, &endsessionv1.ListInvalidationsRequest{State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING, PageSize: 1})
		if err != nil {
			return fmt.Errorf("wait for the end of all runs: %w", err)
		}
		if len(page.GetInvalidations()) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of all runs: %w", ctx.Err())
		case <-poll.C:
		}
	}
}

// prove counts what the gateway has journalled, after its end. It fails unless that is everything: an invalidation for each
// call, a run for each target, an audit event for each acceptance and for each end.
func (g *gateway) prove(ctx context.Context) (p proof, err error) {
	p = proof{Gateway: g.name, Store: "sqlite", Calls: g.calls.Load(), Before: g.before}
	driver, source := "sqlite", "file:"+g.journal()+"?mode=ro"
	if g.dsn != "" {
		p.Store, driver, source = "postgres", "pgx", g.dsn
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return p, err
	}
	defer func() { _ = db.Close() }()
	for _, q := range []struct {
		into *int64
		text string
	}{
		{&p.Invalidations, `SELECT count(*) FROM invalidations`},
		{&p.Runs, `SELECT count(*) FROM runs`},
		{&p.Unfinished, `SELECT count(*) FROM runs WHERE complete_time IS NULL`},
		{&p.Unsupported, `SELECT count(*) FROM runs WHERE state = 'UNSUPPORTED' AND attempts = 0`},
		{&p.Accepted, `SELECT count(*) FROM audit WHERE type = 'invalidation.accepted'`},
		{&p.Ended, `SELECT count(*) FROM audit WHERE type IN ('run.succeeded', 'run.failed', 'run.unsupported', 'run.cancelled')`},
	} {
		if err := db.QueryRowContext(ctx, q.text).Scan(q.into); err != nil {
			return p, err
		}
	}
	var wrong []string
	expect := func(what string, got, want int64) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%d %s, want %d", got, what, want))
		}
	}
	if g.lost { // of calls whose answer nobody got the journal knows more
		p.Calls = p.Invalidations - p.Before
		if p.Calls < g.calls.Load() {
			wrong = append(wrong, fmt.Sprintf("%d invalidations for %d calls", p.Calls, g.calls.Load()))
		}
	}
	runs := p.Calls * int64(g.targets)
	expect("invalidations", p.Invalidations, p.Before+p.Calls)
	expect("runs", p.Runs, (p.Before+p.Calls)*int64(g.targets))
	expect("audit events of acceptances", p.Accepted, p.Calls)
	expect("audit events of the ends of runs", p.Ended, runs-p.Unfinished-p.Unsupported)
	if !g.unfinished {
		expect("unfinished runs", p.Unfinished, 0)
	}
	conf, err := config.Load(g.config(), targetTypes())
	if err != nil {
		return p, err
	}
	keys, err := server.AuditKeys(conf)
	if err != nil {
		return p, err
	}
	trail, err := server.OpenTrail(ctx, conf)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, trail.Close()) }()
	verified, err := audit.Verify(ctx, trail, audit.Verification{Keys: keys, Found: func(f audit.Finding) {
		if len(wrong) < 10 {
			wrong = append(wrong, fmt.Sprintf("audit: %+v", f))
		}
	}})
	if err != nil {
		return p, err
	}
	p.Events = verified.Events
	if int64(p.Events) < p.Accepted+p.Ended {
		wrong = append(wrong, fmt.Sprintf("%d audit events verified", p.Events))
	}
	if len(wrong) > 0 {
		return p, fmt.Errorf("the journal of %s does not hold what it should: %s", g.name, strings.Join(wrong, "; "))
	}
	return p, nil
}
