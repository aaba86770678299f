package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// The names of the parts that consist of measurements.
const (
	partCompare = "compare"
	partTargets = "targets"
	partJournal = "journal"
	partAccept  = "accept"
)

// The contenders of the comparison.
const (
	bareContender = "bare"
	grpcContender = "gRPC, SQLite"
	restContender = "REST, SQLite"
	pgContender   = "gRPC, PostgreSQL"
)

// contender is one of those that are measured in turn.
type contender struct {
	name   string
	server *process
	client client
	// after is called after each measurement; nil means nothing is to be done.
	after func(context.Context) error
}

// alternate measures the contenders in turn, round after round, so that what else the machine does meets all of them.
func (b *bench) alternate(ctx context.Context, callers int, contenders ...contender) (map[string]series, error) {
	all := map[string]series{}
	for round := range b.rounds {
		// How fast the disk is belongs to what is compared with it.
		took, err := appendDurably(b.dir, 40)
		if err != nil {
			return nil, err
		}
		b.fsyncs = append(b.fsyncs, took...)
		for _, c := range contenders {
			profiled := func() error { return nil }
			if b.profile != "" && round == b.rounds-1 {
				profiled = b.profileOf(ctx, c, callers)
			}
			s, err := measure(ctx, c.server, c.client, callers, b.length)
			if err = errors.Join(err, profiled()); err != nil {
				return nil, fmt.Errorf("%s with %d callers: %w", c.name, callers, err)
			}
			if c.after != nil {
				if err := c.after(ctx); err != nil {
					return nil, err
				}
			}
			s.fsync = median(took)
			all[c.name] = append(all[c.name], s)
		}
	}
	return all, nil
}

// profileOf begins to take a contender's CPU profile, and returns a function that waits for its end.
func (b *bench) profileOf(ctx context.Context, c contender, callers int) (wait func() error) {
	ended := make(chan error, 1)
	go func() {
		url := fmt.Sprintf("http://%s/profile?seconds=%d", c.server.address["control"], max(1, int(b.length.Seconds())))
		text, err := get(ctx, url)
		if err == nil {
			err = os.MkdirAll(b.profile, 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(b.profile, fmt.Sprintf("%s-%d.pprof", c.name, callers)), text, 0o644)
		}
		ended <- err
	}()
	return func() error { return <-ended }
}

// series are the measurements of one contender, round by round.
type series []sample

// of returns the medians.
func (s series) of() sample {
	return sample{
		Calls:      int(pick(s, func(x sample) float64 { return float64(x.Calls) })),
		Rate:       pick(s, func(x sample) float64 { return x.Rate }),
		P50:        pick(s, func(x sample) time.Duration { return x.P50 }),
		P99:        pick(s, func(x sample) time.Duration { return x.P99 }),
		CPU:        pick(s, func(x sample) time.Duration { return x.CPU }),
		Allocs:     pick(s, func(x sample) float64 { return x.Allocs }),
		AllocBytes: pick(s, func(x sample) float64 { return x.AllocBytes }),
		Peak:       pick(s, func(x sample) int64 { return x.Peak }),
	}
}

// pick returns the median of one value.
func pick[T float64 | time.Duration | int64](s series, f func(sample) T) T {
	var values []T
	for _, x := range s {
		values = append(values, f(x))
	}
	return median(values)
}

// against is the median of what two series make of each other, round by round.
func (s series) against(to series, f func(mine, other sample) float64) float64 {
	var all []float64
	for i := range s {
		all = append(all, f(s[i], to[i]))
	}
	return median(all)
}

func rates(mine, other sample) float64 { return mine.Rate / other.Rate }

// keep reports what was measured, with the ratio of each to one of them.
func (b *bench) keep(m measurement, all map[string]series, to contender, contenders ...contender) {
	for _, c := range contenders {
		m.Contender, m.sample, m.Ratio = c.name, all[c.name].of(), all[c.name].against(all[to.name], rates)
		b.report.Measurements = append(b.report.Measurements, m)
		b.logf("%5v  %3d callers  %-18s %6.0f/s  %.2f  p50 %8s  CPU %8s  %5.0f allocs", m.Upstream, m.Callers, c.name, m.Rate, m.Ratio, milliseconds(m.P50), milliseconds(m.CPU), m.Allocs)
	}
}

// stand is a fixture: an upstream, and whatever is started beside it.
type stand struct {
	*bench
	upstream *process
	gateways []*gateway
	ends     []func() error
}

// with makes a stand for f. Afterwards everything is stopped, and what the gateways have journalled is proven.
func (b *bench) with(ctx context.Context, f func(s *stand) error) (err error) {
	up, err := start(ctx, "upstream")
	if err != nil {
		return err
	}
	s := &stand{bench: b, upstream: up, ends: []func() error{up.stop}}
	if err = f(s); err == nil {
		for _, g := range s.gateways {
			if !g.unfinished {
				err = errors.Join(err, g.settled(ctx))
			}
		}
	}
	for i := len(s.ends); i > 0; i-- {
		err = errors.Join(err, s.ends[i-1]())
	}
	if err != nil {
		return err
	}
	for _, g := range s.gateways {
		p, err := g.prove(ctx)
		if err != nil {
			return err
		}
		b.report.Proofs = append(b.report.Proofs, p)
		if err := os.RemoveAll(g.dir); err != nil {
			return err
		}
	}
	return nil
}

// url is the upstream that answers after a delay.
func (s *stand) url(delay time.Duration) string {
	return fmt.Sprintf("http://%s/%v", s.upstream.address["http"], delay)
}

// counts asks the upstream what it has seen.
func (s *stand) counts(ctx context.Context) (r upstreamReport, err error) {
	return r, getJSON(ctx, "http://"+s.upstream.address["http"]+"/counts", &r)
}

func (s *stand) bare(ctx context.Context, name string, delay time.Duration, targets int) (contender, error) {
	p, err := start(ctx, "bare", s.url(delay), fmt.Sprint(targets))
	if err != nil {
		return contender{}, err
	}
	s.ends = append(s.ends, p.stop)
	c, err := newGRPCClient(p.address["grpc"], "", targets, connections)
	return contender{name: name, server: p, client: c}, err
}

// serve configures a gateway and starts it.
func (s *stand) serve(ctx context.Context, set setup) (*gateway, error) {
	g, err := s.configure(set)
	if err != nil {
		return nil, err
	}
	if err := g.begin(ctx); err != nil {
		return nil, err
	}
	s.took(g)
	return g, nil
}

// took has a gateway that runs ended with the stand.
func (s *stand) took(g *gateway) {
	s.gateways = append(s.gateways, g)
	s.ends = append(s.ends, func() error { return g.end() })
}

// compare measures the gateway beside the bare fan-out, by callers, upstream delay, journal, and way in.
func compare(ctx context.Context, b *bench) error {
	var restRatio []float64
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		err := b.with(ctx, func(s *stand) error {
			rest, err := s.compareAt(ctx, delay)
			restRatio = append(restRatio, rest)
			return err
		})
		if err != nil {
			return err
		}
	}
	b.report.atLeast("REST / gRPC, 64 callers, the lower of both upstreams", min(restRatio[0], restRatio[1]), 0.8)
	return nil
}

// compareAt measures with one delay. It returns the rate of REST in relation to that of gRPC.
func (s *stand) compareAt(ctx context.Context, delay time.Duration) (restRatio float64, err error) {
	bare, err := s.bare(ctx, bareContender, delay, 3)
	if err != nil {
		return 0, err
	}
	g, err := s.serve(ctx, setup{name: fmt.Sprintf("sqlite-%v", delay), upstream: s.url(delay), targets: 3})
	if err != nil {
		return 0, err
	}
	contenders := []contender{bare, g.grpc(grpcContender), g.rest(restContender)}
	p, err := s.servePostgres(ctx, setup{name: fmt.Sprintf("postgres_%v", delay), upstream: s.url(delay), targets: 3})
	havePostgres := !errors.Is(err, pgtest.ErrMissing)
	switch {
	case err == nil:
		contenders = append(contenders, p.grpc(pgContender))
	case havePostgres:
		return 0, err
	default:
		s.logf("without PostgreSQL: %v", err)
	}
	upstream := "upstreams that answer at once"
	if delay > 0 {
		upstream = fmt.Sprintf("upstreams that take %v", delay)
	}
	for _, callers := range []int{1, 16, 64, 256} {
		all, err := s.alternate(ctx, callers, contenders...)
		if err != nil {
			return 0, err
		}
		s.keep(measurement{Part: partCompare, Upstream: delay, Callers: callers, Targets: 3}, all, bare, contenders...)
		switch callers {
		case 1:
			added := all[grpcContender].against(all[bareContender], func(mine, other sample) float64 { return float64(mine.P50-other.P50) / 1e6 })
			disk := float64(pick(all[grpcContender], func(x sample) time.Duration { return x.fsync })) / 1e6
			s.report.atMost(fmt.Sprintf("added median, 1 caller, %s (2 x fsync of %.2f ms + 0.3 ms)", upstream, disk), added, 2*disk+0.3, " ms")
		case 64:
			bound := 0.7
			if delay > 0 {
				bound = 0.95
			}
			s.report.atLeast("rate / bare, 64 callers, "+upstream, all[grpcContender].against(all[bareContender], rates), bound)
			restRatio = all[restContender].against(all[grpcContender], rates)
			if delay > 0 {
				f := figure{Name: "PostgreSQL: rate / bare, 64 callers, " + upstream, Bound: 0.6}
				if havePostgres {
					f.Value = all[pgContender].against(all[bareContender], rates)
				} else {
					f.Unmeasured = "no PostgreSQL here"
				}
				s.report.Figures = append(s.report.Figures, f)
			}
		}
	}
	counts, err := s.counts(ctx)
	if err != nil {
		return 0, err
	}
	s.logf("connections to the upstream: bare %d for %d requests, gateway %d for %d", counts.Bare.Connections, counts.Bare.Requests, counts.Gateway.Connections, counts.Gateway.Requests)
	s.report.connections(delay, counts)
	return restRatio, nil
}
