package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"google.golang.org/protobuf/types/known/durationpb"
)

// targets measures what a call costs by how many targets it is to.
func targets(ctx context.Context, b *bench) error {
	const callers = 16
	counts := []int{1, 3, 10, 100}
	return b.with(ctx, func(s *stand) error {
		var all []contender
		for _, n := range counts {
			bare, err := s.bare(ctx, fmt.Sprintf("bare, targets: %d", n), 0, n)
			if err != nil {
				return err
			}
			g, err := s.serve(ctx, setup{name: fmt.Sprintf("targets-%d", n), upstream: s.url(0), targets: n})
			if err != nil {
				return err
			}
			all = append(all, bare, g.grpc(fmt.Sprintf("gateway, targets: %d", n)))
		}
		found, err := s.alternate(ctx, callers, all...)
		if err != nil {
			return err
		}
		perRun := map[int]float64{}
		for i, n := range counts {
			s.keep(measurement{Part: partTargets, Callers: callers, Targets: n}, found, all[2*i], all[2*i:2*i+2]...)
			perRun[n] = float64(found[all[2*i+1].name].of().CPU) / float64(n)
		}
		s.report.atMost("CPU per run with 100 targets / with 3", perRun[100]/perRun[3], 1.2, "")
		return nil
	})
}

// journal measures the gateway beside what is in its journal already.
func journal(ctx context.Context, b *bench) error {
	const callers = 64
	return b.with(ctx, func(s *stand) error {
		var all []contender
		sizes := []int{10, 10_000, 1_000_000}
		for _, n := range sizes {
			set := setup{name: fmt.Sprintf("journal-%d", n), upstream: s.url(0), targets: 3}
			g, err := s.configure(set)
			if err != nil {
				return err
			}
			began := time.Now()
			if err := g.prefill(ctx, n); err != nil {
				return fmt.Errorf("fill the journal: %w", err)
			}
			s.logf("%d invalidations journalled in %v", n, time.Since(began).Round(time.Millisecond))
			if err := g.begin(ctx); err != nil {
				return err
			}
			s.took(g)
			all = append(all, g.grpc(fmt.Sprintf("gateway, journalled: %d", n)))
		}
		found, err := s.alternate(ctx, callers, all...)
		if err != nil {
			return err
		}
		for i, n := range sizes {
			s.keep(measurement{Part: partJournal, Callers: callers, Targets: 3, Journal: n}, found, all[0], all[i])
		}
		s.report.atLeast("rate with 1,000,000 invalidations journalled / with 10", found[all[2].name].against(found[all[0].name], rates), 0.95)
		return nil
	})
}

// accept measures acceptance alone: callers do not wait for the runs, which end before the next measurement begins.
func accept(ctx context.Context, b *bench) error {
	return b.with(ctx, func(s *stand) error {
		g, err := s.serve(ctx, setup{name: "accept-sqlite", upstream: s.url(0), targets: 3})
		if err != nil {
			return err
		}
		gateways, names := []*gateway{g}, []string{grpcContender}
		p, err := s.servePostgres(ctx, setup{name: "accept_postgres", upstream: s.url(0), targets: 3})
		switch {
		case err == nil:
			gateways, names = append(gateways, p), append(names, pgContender)
		case !errors.Is(err, pgtest.ErrMissing):
			return err
		}
		for _, callers := range []int{1, 64} {
			var all []contender
			for i, g := range gateways {
				g.client.wait = durationpb.New(0)
				c := g.grpc(names[i])
				c.after = g.settled
				all = append(all, c)
			}
			found, err := s.alternate(ctx, callers, all...)
			if err != nil {
				return err
			}
			s.keep(measurement{Part: partAccept, Callers: callers, Targets: 3}, found, all[0], all...)
		}
		return nil
	})
}
