package main

import (
	"context"
	"fmt"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// pollStretch is how long polls are counted.
	pollStretch = 10 * time.Second
	// pollBound is the budget, and the few polls that were due shortly before and came shortly after the beginning.
	pollBound = invalidation.DefaultPollsPerSecond + 3/(float64(pollStretch)/float64(time.Second))
)

// manner is how upstreams are treated.
type manner struct {
	// Polls are those of BIG-IQ's tasks that do not end.
	Polls []polling `json:"polls,omitempty"`
	// Logins and Exchanges are what BIG-IQ issued tokens for, over this time of constant use.
	Logins    int           `json:"logins"`
	Exchanges int           `json:"exchanges"`
	Over      time.Duration `json:"over_ns"`
	// Connections are those of the comparison.
	Connections []connectionCount `json:"connections,omitempty"`
}

type polling struct {
	Tasks     int     `json:"tasks"`
	PerSecond float64 `json:"polls_per_second"`
	// Most is how many came within one second.
	Most int `json:"most_in_a_second"`
}

type connectionCount struct {
	Upstream time.Duration `json:"upstream_delay_ns"`
	Bare     seen          `json:"bare"`
	Gateway  seen          `json:"gateway"`
}

func (m *manner) table() table {
	t := table{title: "Manners towards upstreams", head: []string{"what", "measured"}}
	for _, p := range m.Polls {
		t.rows = append(t.rows, []string{fmt.Sprintf("BIG-IQ, %d running tasks: polls over %v", p.Tasks, pollStretch), fmt.Sprintf("%.1f/s, at most %d in one second", p.PerSecond, p.Most)})
	}
	if m.Over > 0 {
		t.rows = append(t.rows, []string{"BIG-IQ, logins and token exchanges", fmt.Sprintf("%d and %d in %v of use", m.Logins, m.Exchanges, m.Over.Round(time.Second))})
	}
	for _, c := range m.Connections {
		t.rows = append(t.rows, []string{fmt.Sprintf("connections to constant upstreams (%v), comparison with up to 256 callers", c.Upstream),
			fmt.Sprintf("gateways %d for %d requests; bare %d for %d", c.Gateway.Connections, c.Gateway.Requests, c.Bare.Connections, c.Bare.Requests)})
	}
	return t
}

func (r *report) manners() *manner {
	if r.Manners == nil {
		r.Manners = &manner{}
	}
	return r.Manners
}

// manners measures how BIG-IQ is polled while tasks do not end.
func manners(ctx context.Context, b *bench) error {
	return b.with(ctx, func(s *stand) error {
		began := time.Now()
		emulated, g, err := s.serveReal(ctx, "manners")
		if err != nil {
			return err
		}
		g.unfinished = true
		look := func() (seen emulatorsSeen, err error) {
			return seen, getJSON(ctx, "http://"+emulated.address["control"]+"/seen", &seen)
		}
		if err := ask(ctx, emulated, "/stick", nil); err != nil {
			return err
		}
		running := 0
		for _, tasks := range []int{1, 100, 1000} {
			if err := g.acceptAt(ctx, apm, tasks-running); err != nil {
				return err
			}
			running = tasks
			for {
				seen, err := look()
				if err != nil {
					return err
				}
				if seen.Tasks >= tasks {
					break
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(50 * time.Millisecond):
				}
			}
			from := time.Now()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pollStretch):
			}
			seen, err := look()
			if err != nil {
				return err
			}
			p := polling{Tasks: tasks}
			p.PerSecond, p.Most = perSecond(seen.Polls, from)
			m := s.report.manners()
			m.Polls = append(m.Polls, p)
			m.Logins, m.Exchanges, m.Over = seen.Logins, seen.Exchanges, time.Since(began)
			s.report.atMost(fmt.Sprintf("BIG-IQ polls per second, %d running tasks", tasks), p.PerSecond, pollBound, "/s")
			s.logf("%4d running tasks: %.1f polls/s, at most %d in one second", tasks, p.PerSecond, p.Most)
		}
		m := s.report.manners()
		s.report.atMost("BIG-IQ logins during that", float64(m.Logins), 1, "")
		return nil
	})
}

// perSecond says how many events there were in a second since a time, on average and at most.
func perSecond(events []time.Time, from time.Time) (rate float64, most int) {
	for len(events) > 0 && events[0].Before(from) {
		events = events[1:]
	}
	begin := 0
	for i, at := range events {
		for at.Sub(events[begin]) >= time.Second {
			begin++
		}
		most = max(most, i-begin+1)
	}
	return float64(len(events)) / pollStretch.Seconds(), most
}

// acceptAt has people's sessions ended at one target, without waiting for the end.
func (g *gateway) acceptAt(ctx context.Context, target string, n int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for range n {
		group.Go(func() error {
			req := byUser(nextUser())
			req.Targets, req.WaitTimeout = []string{target}, durationpb.New(0)
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

// mostConnections is how many connections the comparison needs at most: a request of each of 256 callers to each of three
// targets, of two gateways; and as many again for those that net/http opens while others are about to be free.
const mostConnections = 2 * 2 * 256 * 3

// connections reports those of the comparison.
func (r *report) connections(delay time.Duration, counts upstreamReport) {
	m := r.manners()
	m.Connections = append(m.Connections, connectionCount{delay, counts.Bare, counts.Gateway})
	r.atMost(fmt.Sprintf("connections to upstreams, two gateways with up to 256 callers, %v", delay), float64(counts.Gateway.Connections), mostConnections, "")
}
