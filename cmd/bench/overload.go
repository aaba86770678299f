package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/server/config"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	overloadLength = 20 * time.Second
	// overloadFactor is how many times more is asked than the targets take.
	overloadFactor = 10
	memoryInterval = 500 * time.Millisecond
	// overloadConnections carry more calls than the gateway has under way at once: a connection carries 1,000.
	overloadConnections = 8
	// mostUnderWay bounds the calls that the bench itself has under way: it is not the one that is to be overloaded.
	mostUnderWay = overloadConnections * 1000
)

// overloaded is how a gateway fares that is asked for more than its targets take.
type overloaded struct {
	// Capacity is what was served with 64 callers before, Asked what was then asked, both in calls per second.
	Capacity float64 `json:"capacity_per_second"`
	Asked    float64 `json:"asked_per_second"`
	// Served, Refused and Unfinished are calls: with success, with RESOURCE_EXHAUSTED and RetryInfo, and those that were
	// accepted and answered before their end, when the time to wait was over.
	Served     int64 `json:"served"`
	Refused    int64 `json:"refused"`
	Unfinished int64 `json:"unfinished"`
	// Unavailable are calls that the journal did not take in time: an honest answer, and not the one that is wanted.
	Unavailable int64 `json:"unavailable"`
	// Skipped were not made, because the bench had too many under way.
	Skipped int64        `json:"skipped"`
	Memory  []memoryThen `json:"memory"`
	// Second and Last are the most memory in the second and the last quarter.
	Second int64 `json:"second_quarter_bytes"`
	Last   int64 `json:"last_quarter_bytes"`
	// After is what was served with 64 callers afterwards, per second.
	After float64 `json:"after_per_second"`
}

// memoryThen is how much memory the gateway occupied.
type memoryThen struct {
	Since    time.Duration `json:"since_ns"`
	Resident int64         `json:"resident_bytes"`
}

func (r *overloaded) table() table {
	t := table{
		title: fmt.Sprintf("Overload: %d times what the targets take (concurrency %d, 20 ms) for %v; resident memory in MB", overloadFactor, config.DefaultConcurrency, overloadLength),
		head:  []string{"capacity/s", "asked/s", "served", "refused", "accepted, not final in time", "UNAVAILABLE", "not made", "after/s"},
	}
	row := []string{fmt.Sprintf("%.0f", r.Capacity), fmt.Sprintf("%.0f", r.Asked), fmt.Sprint(r.Served), fmt.Sprint(r.Refused), fmt.Sprint(r.Unfinished), fmt.Sprint(r.Unavailable), fmt.Sprint(r.Skipped), fmt.Sprintf("%.0f", r.After)}
	for i := 0; i < len(r.Memory); i += max(1, len(r.Memory)/8) {
		t.head = append(t.head, r.Memory[i].Since.Round(100*time.Millisecond).String())
		row = append(row, megabytes(r.Memory[i].Resident))
	}
	t.rows = append(t.rows, row)
	return t
}

// judge compares the most memory in the last quarter with that in the second: the first is when everything fills up.
func (r *overloaded) judge() {
	for _, m := range r.Memory {
		switch quarter := 4 * m.Since / overloadLength; {
		case quarter == 1:
			r.Second = max(r.Second, m.Resident)
		case quarter >= 3:
			r.Last = max(r.Last, m.Resident)
		}
	}
}

// overload asks for much more than the targets take, however long the answers take, and looks at the gateway's memory.
func overload(ctx context.Context, b *bench) error {
	return b.with(ctx, func(s *stand) error {
		g, err := s.serve(ctx, setup{name: "overload", upstream: s.url(20 * time.Millisecond), targets: 3, concurrency: config.DefaultConcurrency})
		if err != nil {
			return err
		}
		c := g.grpc(g.name)
		before, err := measure(ctx, c.server, c.client, 64, 2*time.Second)
		if err != nil {
			return err
		}
		r := &overloaded{Capacity: before.Rate}
		if err := g.flood(ctx, r); err != nil {
			return err
		}
		if err := g.settled(ctx); err != nil {
			return err
		}
		after, err := measure(ctx, c.server, c.client, 64, 2*time.Second)
		if err != nil {
			return fmt.Errorf("after the overload: %w", err)
		}
		r.After = after.Rate
		r.judge()
		s.report.Overload = r
		if r.Refused == 0 {
			return errors.New("nothing was refused: that was no overload")
		}
		s.report.atMost("overload: most memory in the last quarter / in the second", float64(r.Last)/float64(r.Second), 1.2, "")
		s.report.atMost("overload: calls answered UNAVAILABLE instead of RESOURCE_EXHAUSTED", float64(r.Unavailable), 0, "")
		s.report.atLeast("rate after the overload / before", r.After/r.Capacity, 0.8)
		s.logf("asked %.0f/s of %.0f/s: %d served, %d refused; memory %s MB in the second quarter, %s MB in the last", r.Asked, r.Capacity, r.Served, r.Refused, megabytes(r.Second), megabytes(r.Last))
		return nil
	})
}

// flood makes calls at a steady rate, whatever becomes of them.
func (g *gateway) flood(ctx context.Context, r *overloaded) error {
	client, err := newGRPCClient(g.address["grpc"], g.key, g.targets, overloadConnections)
	if err != nil {
		return err
	}
	defer client.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var underWay, asked, served, refused, unfinished, unavailable atomic.Int64
	call := func() {
		defer underWay.Add(-1)
		switch final, err := client.accepted(ctx, nextUser()); {
		case err == nil:
			g.calls.Add(1)
			if final {
				served.Add(1)
			} else {
				unfinished.Add(1)
			}
		case isRefusal(err):
			refused.Add(1)
		case status.Code(err) == codes.Unavailable:
			unavailable.Add(1)
		default:
			cancel(err)
		}
	}
	began := time.Now()
	var calls sync.WaitGroup
	calls.Go(func() {
		const step = 5 * time.Millisecond
		tick := time.NewTicker(step)
		defer tick.Stop()
		for due := 0.0; ctx.Err() == nil; <-tick.C {
			since := time.Since(began)
			if since >= overloadLength {
				return
			}
			for ; due < since.Seconds()*r.Capacity*overloadFactor; due++ {
				if underWay.Add(1) > mostUnderWay {
					underWay.Add(-1)
					r.Skipped++
					continue
				}
				asked.Add(1)
				calls.Go(call)
			}
		}
	})
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for time.Since(began) < overloadLength && ctx.Err() == nil {
		<-tick.C
		resident, _ := memory(fmt.Sprint(g.cmd.Process.Pid))
		r.Memory = append(r.Memory, memoryThen{time.Since(began), resident})
	}
	calls.Wait()
	r.Asked = float64(asked.Load()) / overloadLength.Seconds()
	r.Served, r.Refused, r.Unfinished, r.Unavailable = served.Load(), refused.Load(), unfinished.Load(), unavailable.Load()
	g.lost = r.Unavailable > 0 // whether such a call was accepted need not be known
	return context.Cause(ctx)
}

// isRefusal reports whether an error is what an overloaded gateway may answer: that it is, and when to come again.
func isRefusal(err error) bool {
	st := status.Convert(err)
	if st.Code() != codes.ResourceExhausted {
		return false
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration() > 0
		}
	}
	return false
}
