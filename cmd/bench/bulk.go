package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/config"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	bulkUsers = 10_000
	// probeInterval is how often somebody is signed out while the bulk is under way.
	probeInterval = 200 * time.Millisecond
)

// bulkResult is how normal invalidations fare beside a bulk.
type bulkResult struct {
	Users int `json:"users"`
	// Accepted is how long it took until the whole bulk was, Ended until all its runs were final.
	Accepted time.Duration `json:"accepted_ns"`
	Ended    time.Duration `json:"ended_ns"`
	// Probes are normal invalidations; First is from their calls to their first upstream requests, Whole to their answers.
	Probes   int           `json:"probes"`
	FirstP50 time.Duration `json:"first_request_p50_ns"`
	FirstP99 time.Duration `json:"first_request_p99_ns"`
	WholeP50 time.Duration `json:"answer_p50_ns"`
	WholeP99 time.Duration `json:"answer_p99_ns"`
}

func (r *bulkResult) table() table {
	return table{
		title: fmt.Sprintf("A normal invalidation each %v beside a bulk of %d users: three targets, concurrency %d, upstreams that take 20 ms", probeInterval, r.Users, config.DefaultConcurrency),
		head:  []string{"bulk accepted", "bulk ended", "probes", "first request p50", "p99", "answer p50", "p99"},
		rows: [][]string{{seconds(r.Accepted), seconds(r.Ended), fmt.Sprint(r.Probes), milliseconds(r.FirstP50), milliseconds(r.FirstP99),
			milliseconds(r.WholeP50), milliseconds(r.WholeP99)}},
	}
}

// acceptAll has many users' sessions ended, without waiting for the end.
func (g *gateway) acceptAll(ctx context.Context, users int, priority endsessionv1.Priority) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(64)
	for range users {
		group.Go(func() error {
			req := byUser(nextUser())
			req.WaitTimeout, req.Priority = durationpb.New(0), priority
			ctx, service := g.client.service(ctx)
			_, err := service.InvalidateSessions(ctx, req)
			if err == nil {
				g.calls.Add(1)
			}
			return err
		})
	}
	return group.Wait()
}

// bulk measures how long normal invalidations wait beside many that are not urgent.
func bulk(ctx context.Context, b *bench) error {
	return b.with(ctx, func(s *stand) error {
		g, err := s.serve(ctx, setup{name: "bulk", upstream: s.url(20 * time.Millisecond), targets: 3, concurrency: config.DefaultConcurrency})
		if err != nil {
			return err
		}
		began := time.Now()
		result := &bulkResult{Users: bulkUsers}
		// The probes begin with the bulk: its acceptance is the busiest time.
		ended := make(chan struct{})
		var probes errgroup.Group
		var mu sync.Mutex
		asked := map[string]time.Time{}
		var whole []time.Duration
		probes.Go(func() error {
			tick := time.NewTicker(probeInterval)
			defer tick.Stop()
			var calls errgroup.Group
			for n := 0; ; n++ {
				select {
				case <-ended:
					return calls.Wait()
				case <-tick.C:
				}
				calls.Go(func() error {
					user, at := fmt.Sprintf("%s%d", probe, n), time.Now()
					if err := g.grpc("").client.end(ctx, user); err != nil {
						return fmt.Errorf("a normal invalidation: %w", err)
					}
					mu.Lock()
					defer mu.Unlock()
					asked[user] = at
					whole = append(whole, time.Since(at))
					return nil
				})
			}
		})
		err = g.acceptAll(ctx, bulkUsers, endsessionv1.Priority_PRIORITY_BULK)
		result.Accepted = time.Since(began)
		if err == nil {
			err = g.bulkEnded(ctx)
		}
		result.Ended = time.Since(began)
		close(ended)
		if err := errors.Join(err, probes.Wait()); err != nil {
			return err
		}
		var arrivals map[string]time.Time
		if err := getJSON(ctx, "http://"+s.upstream.address["http"]+"/arrivals", &arrivals); err != nil {
			return err
		}
		var first []time.Duration
		for user, at := range asked {
			arrived, ok := arrivals[user]
			if !ok {
				return fmt.Errorf("the upstream was never asked for %s", user)
			}
			first = append(first, arrived.Sub(at))
		}
		slices.Sort(first)
		slices.Sort(whole)
		result.Probes = len(first)
		result.FirstP50, result.FirstP99 = quantile(first, 0.5), quantile(first, 0.99)
		result.WholeP50, result.WholeP99 = quantile(whole, 0.5), quantile(whole, 0.99)
		s.report.Bulk = result
		s.report.atMost("first upstream request of a normal invalidation during the bulk, p99", result.FirstP99.Seconds(), 2, " s")
		s.logf("bulk accepted after %s, ended after %s; %d probes, first request p99 %s", seconds(result.Accepted), seconds(result.Ended), result.Probes, milliseconds(result.FirstP99))
		return nil
	})
}

// bulkEnded waits until little is unfinished: the probes themselves always leave something.
func (g *gateway) bulkEnded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	poll := time.NewTicker(500 * time.Millisecond)
	defer poll.Stop()
	const probesUnderWay = 20
	for {
		ctx, service := g.client.service(ctx)
		page, err := service.ListInvalidations(ctx, &endsessionv1.ListInvalidationsRequest{
			State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING, PageSize: probesUnderWay})
		if err != nil {
			return fmt.Errorf("wait for the end of the bulk: %w", err)
		}
		if len(page.GetInvalidations()) < probesUnderWay {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of the bulk: %w", ctx.Err())
		case <-poll.C:
		}
	}
}
