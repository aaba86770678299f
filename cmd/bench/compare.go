package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// contender is one of those that are measured in turn.
type contender struct {
	name   string
	server *process
	client client
}

// alternate measures the contenders in turn, round after round, so that what else the machine does meets all of them.
func (b *bench) alternate(ctx context.Context, callers, rounds int, length time.Duration, contenders ...contender) (map[string]series, error) {
	all := map[string]series{}
	for range rounds {
		for _, c := range contenders {
			s, err := measure(ctx, c.server, c.client, callers, length)
			if err != nil {
				return nil, fmt.Errorf("%s with %d callers: %w", c.name, callers, err)
			}
			all[c.name] = append(all[c.name], s)
		}
	}
	return all, nil
}

// series are the measurements of one contender, round by round.
type series []sample

// of returns the medians.
func (s series) of() sample {
	pick := func(f func(sample) float64) float64 {
		var values []float64
		for _, x := range s {
			values = append(values, f(x))
		}
		return median(values)
	}
	return sample{
		Calls:      int(pick(func(x sample) float64 { return float64(x.Calls) })),
		Rate:       pick(func(x sample) float64 { return x.Rate }),
		P50:        time.Duration(pick(func(x sample) float64 { return float64(x.P50) })),
		P99:        time.Duration(pick(func(x sample) float64 { return float64(x.P99) })),
		CPU:        time.Duration(pick(func(x sample) float64 { return float64(x.CPU) })),
		Allocs:     pick(func(x sample) float64 { return x.Allocs }),
		AllocBytes: pick(func(x sample) float64 { return x.AllocBytes }),
		Peak:       int64(pick(func(x sample) float64 { return float64(x.Peak) })),
	}
}

// ratio is the median of the ratios of the rates, round by round.
func (s series) ratio(to series) float64 {
	var all []float64
	for i := range s {
		all = append(all, s[i].Rate/to[i].Rate)
	}
	return median(all)
}

// stand is the bench's fixture: an upstream, and whatever is started beside it.
type stand struct {
	*bench
	upstream *process
	ends     []func() error
}

func (b *bench) stand(ctx context.Context) (*stand, error) {
	up, err := start(ctx, "upstream")
	if err != nil {
		return nil, err
	}
	return &stand{bench: b, upstream: up, ends: []func() error{up.stop}}, nil
}

// close ends what was started, the last first.
func (s *stand) close() (err error) {
	for i := len(s.ends); i > 0; i-- {
		err = errors.Join(err, s.ends[i-1]())
	}
	return err
}

// url is the upstream that answers after a delay.
func (s *stand) url(delay time.Duration) string {
	return fmt.Sprintf("http://%s/%v", s.upstream.address["http"], delay)
}

func (s *stand) bare(ctx context.Context, delay time.Duration, targets int) (contender, error) {
	p, err := start(ctx, "bare", s.url(delay), fmt.Sprint(targets))
	if err != nil {
		return contender{}, err
	}
	s.ends = append(s.ends, p.stop)
	c, err := newGRPCClient(p.address["grpc"], "", targets)
	return contender{"bare", p, c}, err
}

// serve starts a gateway and returns it with a contender for gRPC.
func (s *stand) serve(ctx context.Context, set setup) (*gateway, contender, error) {
	g, err := s.gateway(ctx, set)
	if err != nil {
		return nil, contender{}, err
	}
	s.ends = append(s.ends, g.stop)
	c, err := newGRPCClient(g.address["grpc"], g.key, set.targets)
	return g, contender{set.name, g.process, c}, err
}

// compare measures the gateway beside the bare fan-out, by callers, upstream delay, journal, and way in.
func compare(ctx context.Context, b *bench) (err error) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		if err := b.compareAt(ctx, delay); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) compareAt(ctx context.Context, delay time.Duration) (err error) {
	s, err := b.stand(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	bare, err := s.bare(ctx, delay, 3)
	if err != nil {
		return err
	}
	g, grpc, err := s.serve(ctx, setup{name: fmt.Sprintf("sqlite-%v", delay), upstream: s.url(delay), targets: 3})
	if err != nil {
		return err
	}
	rest := contender{"rest", g.process, newRESTClient(g.address["http"], g.key, 3)}
	for _, callers := range []int{1, 16, 64, 256} {
		all, err := b.alternate(ctx, callers, b.rounds, b.length, bare, grpc, rest)
		if err != nil {
			return err
		}
		for _, c := range []contender{bare, grpc, rest} {
			x := all[c.name].of()
			b.logf("%v, %3d callers, %-12s %6.0f/s (%.2f)  p50 %-10v p99 %-10v cpu %-10v allocs %.0f  %.0f B", delay, callers, c.name, x.Rate, all[c.name].ratio(all["bare"]), x.P50.Round(time.Microsecond), x.P99.Round(time.Microsecond), x.CPU.Round(time.Microsecond), x.Allocs, x.AllocBytes)
		}
	}
	return nil
}
