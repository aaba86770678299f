package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/protobuf/proto"
)

// selectorRepeats is how often each selector is used at each target.
const selectorRepeats = 3

// selectorCost is what one form of selector costs at one kind of target, a call.
type selectorCost struct {
	Kind     string `json:"kind"`
	Selector string `json:"selector"`
	// Unsupported: nothing is sent.
	Unsupported bool `json:"unsupported,omitempty"`
	// Sessions is how many ended, as the target itself counts.
	Sessions     int            `json:"sessions"`
	Requests     map[string]int `json:"requests"` // of the last call
	CPU          time.Duration  `json:"cpu_ns"`
	Time         time.Duration  `json:"time_ns"` // the median
	Verification string         `json:"verification"`
}

func selectorTable(costs []selectorCost) table {
	t := table{
		title: fmt.Sprintf("The real adapters at their emulators over TLS, %d people signed in, an invalidation at one target", population),
		head:  []string{"target", "selector", "sessions ended", "upstream requests", "of which", "CPU", "time", "verification"},
	}
	for _, c := range costs {
		if c.Unsupported {
			t.rows = append(t.rows, []string{c.Kind, c.Selector, "unsupported", "0", "", "", "", ""})
			continue
		}
		sum := 0
		var list []string
		for _, what := range slices.Sorted(maps.Keys(c.Requests)) {
			sum += c.Requests[what]
			list = append(list, fmt.Sprintf("%d %s", c.Requests[what], what))
		}
		t.rows = append(t.rows, []string{c.Kind, c.Selector, fmt.Sprint(c.Sessions), fmt.Sprint(sum), strings.Join(list, ", "), milliseconds(c.CPU), milliseconds(c.Time), c.Verification})
	}
	return t
}

// form is a form of selector, for the first of the people who are signed in.
type form struct {
	name string
	make func(target string, in signedIn) *endsessionv1.Selector
}

var forms = []form{
	{"user", func(string, signedIn) *endsessionv1.Selector {
		return &endsessionv1.Selector{User: &endsessionv1.User{Id: person(0)}}
	}},
	{"provider", func(string, signedIn) *endsessionv1.Selector {
		return &endsessionv1.Selector{Provider: &endsessionv1.Provider{Type: "saml", Name: proto.String("okta")}}
	}},
	{"group", func(string, signedIn) *endsessionv1.Selector {
		return &endsessionv1.Selector{Group: proto.String("staff")}
	}},
	// The last person came in through the provider everywhere.
	{"user + provider", func(string, signedIn) *endsessionv1.Selector {
		return &endsessionv1.Selector{User: &endsessionv1.User{Id: person(population - 1)}, Provider: &endsessionv1.Provider{Type: "saml", Name: proto.String("okta")}}
	}},
	{"sessions", func(target string, in signedIn) *endsessionv1.Selector {
		ref := &endsessionv1.SessionRef{Target: target, Id: in.First[target].ID}
		if d := in.First[target].Device; d != "" {
			ref.Device = &d
		}
		return &endsessionv1.Selector{Sessions: []*endsessionv1.SessionRef{ref}}
	}},
	{"all", func(string, signedIn) *endsessionv1.Selector { return &endsessionv1.Selector{All: proto.Bool(true)} }},
}

// realAdapters measures what each form of selector costs at each kind of target.
func realAdapters(ctx context.Context, b *bench) error {
	return b.with(ctx, func(s *stand) error {
		emulated, g, err := s.serveReal(ctx, "adapters")
		if err != nil {
			return err
		}
		for _, target := range []string{apm, kibana1, storage} {
			for _, f := range forms {
				c, err := g.cost(ctx, emulated, target, f)
				if err != nil {
					return fmt.Errorf("%s at %s: %w", f.name, target, err)
				}
				s.report.Selectors = append(s.report.Selectors, c)
			}
			s.logf("%s: %d forms of selector", target, len(forms))
		}
		return nil
	})
}

func (g *gateway) cost(ctx context.Context, emulated *process, target string, f form) (c selectorCost, err error) {
	c.Selector = f.name
	var times []time.Duration
	for i := range selectorRepeats + 1 {
		var in signedIn
		if err := ask(ctx, emulated, "/sign-in", &in); err != nil {
			return c, err
		}
		req := &endsessionv1.InvalidateSessionsRequest{Selector: f.make(target, in), ConfirmBroad: proto.Bool(true)}
		if req.Selector.Sessions == nil {
			req.Targets = []string{target}
		}
		before, err := g.usage(ctx)
		if err != nil {
			return c, err
		}
		began := time.Now()
		callCtx, service := g.client.service(ctx)
		resp, err := service.InvalidateSessions(callCtx, req)
		if err != nil {
			return c, err
		}
		took := time.Since(began)
		g.calls.Add(1)
		after, err := g.usage(ctx)
		if err != nil {
			return c, err
		}
		run := resp.GetInvalidation().GetRuns()[0]
		c.Kind = run.GetKind()
		if run.GetState() == endsessionv1.RunState_RUN_STATE_UNSUPPORTED {
			c.Unsupported = true
			return c, nil
		}
		if run.GetState() != endsessionv1.RunState_RUN_STATE_SUCCEEDED {
			return c, fmt.Errorf("%v: %v", run.GetState(), run.GetError())
		}
		var seen emulatorsSeen
		if err := getJSON(ctx, "http://"+emulated.address["control"]+"/seen", &seen); err != nil {
			return c, err
		}
		c.Requests = seen.Requests[target]
		c.Verification = strings.TrimPrefix(run.GetVerification().String(), "VERIFICATION_")
		if i == 0 {
			continue // it signed in, looked around, and made connections
		}
		c.CPU += (after.CPU - before.CPU) / selectorRepeats
		times = append(times, took)
	}
	c.Time = median(times)
	var in signedIn
	if err := ask(ctx, emulated, "/sign-in", &in); err != nil {
		return c, err
	}
	if c.Sessions = in.Again[target]; c.Sessions == 0 {
		return c, fmt.Errorf("nobody was signed out")
	}
	return c, nil
}
