package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/config"
)

// recoverRuns is how many runs must be unfinished when the gateway is killed.
const recoverRuns = 10_000

// recovered is how a gateway that was killed took up its work.
type recovered struct {
	// Unfinished is how many runs were when the gateway was killed, Open how many of them had an attempt under way.
	Unfinished int `json:"unfinished_runs"`
	Open       int `json:"open_runs"`
	// Serving is from the start of the new process until it served, Ended until the last run was final.
	Serving time.Duration `json:"serving_ns"`
	Ended   time.Duration `json:"ended_ns"`
}

func (r *recovered) table() table {
	return table{
		title: fmt.Sprintf("Recovery after SIGKILL: three targets, concurrency %d, upstreams that answer at once", config.DefaultConcurrency),
		head:  []string{"unfinished runs", "with an attempt under way", "serving after", "all final after", "runs/s"},
		rows: [][]string{{fmt.Sprint(r.Unfinished), fmt.Sprint(r.Open), seconds(r.Serving), seconds(r.Ended),
			fmt.Sprintf("%.0f", float64(r.Unfinished)/r.Ended.Seconds())}},
	}
}

// recovery kills a gateway that has begun with a backlog, and measures how long its successor takes for the rest.
func recovery(ctx context.Context, b *bench) error {
	return b.with(ctx, func(s *stand) error {
		const n = 3
		g, err := s.serve(ctx, setup{name: "recovery", upstream: s.url(0), targets: n, concurrency: config.DefaultConcurrency})
		if err != nil {
			return err
		}
		pause := func(paused bool) error {
			for i := range n {
				ctx, service := g.client.service(ctx)
				var err error
				if paused {
					_, err = service.PauseTarget(ctx, &endsessionv1.PauseTargetRequest{Target: targetName(i)})
				} else {
					_, err = service.ResumeTarget(ctx, &endsessionv1.ResumeTargetRequest{Target: targetName(i)})
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
		if err := pause(true); err != nil {
			return err
		}
		// Some end before the kill.
		if err := g.acceptAll(ctx, recoverRuns/n+300, endsessionv1.Priority_PRIORITY_NORMAL); err != nil {
			return err
		}
		if err := pause(false); err != nil {
			return err
		}
		for counts := (upstreamReport{}); counts.Gateway.Requests < 100; {
			if counts, err = s.counts(ctx); err != nil {
				return err
			}
		}
		g.kill()
		result := &recovered{}
		if result.Unfinished, result.Open, err = g.left(ctx); err != nil {
			return err
		}
		if result.Unfinished < recoverRuns {
			return fmt.Errorf("%d runs were unfinished, want at least %d", result.Unfinished, recoverRuns)
		}
		began := time.Now()
		if err := g.begin(ctx); err != nil {
			return err
		}
		result.Serving = time.Since(began)
		if err := g.settled(ctx); err != nil {
			return err
		}
		result.Ended = time.Since(began)
		s.report.Recovery = result
		s.report.atMost(fmt.Sprintf("recovery of %d runs", recoverRuns), result.Ended.Seconds(), 5, " s")
		s.logf("%d unfinished runs, %d of them with an attempt under way, were final %s after the start", result.Unfinished, result.Open, seconds(result.Ended))
		return nil
	})
}

// left counts what a gateway that was killed has left to do.
func (g *gateway) left(ctx context.Context) (unfinished, open int, err error) {
	db, err := sql.Open("sqlite", "file:"+g.journal()+"?mode=ro")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = db.Close() }()
	err = db.QueryRowContext(ctx, `SELECT count(*), coalesce(sum(open), 0) FROM runs WHERE complete_time IS NULL`).Scan(&unfinished, &open)
	return unfinished, open, err
}
