package main

import (
	"math/rand/v2"
	"time"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

// upstreamTrouble is what goes wrong within the targets: each of the three has its own ways.
func (s *schedule) upstreamTrouble(r *rand.Rand) {
	for _, target := range []string{"apm", "apm-all"} {
		quirks := bigiqtest.Quirks{Collections: r.IntN(2) == 0, NoStep: r.IntN(2) == 0, OneL: r.IntN(2) == 0, GoneIDsFail: r.IntN(3) == 0}
		change := func(at time.Duration, name string, f func(*bigiqtest.Quirks)) {
			s.act(at, target+": "+name, func(c *chaos) { c.bigiq[target].Change(f) })
		}
		s.act(0, target+": its ways", func(c *chaos) { c.bigiq[target].Change(func(q *bigiqtest.Quirks) { *q = quirks }) })
		for r.IntN(2) == 0 {
			at := span(r, 0, s.calm)
			end := span(r, at, min(s.calm, at+time.Minute))
			switch r.IntN(7) {
			case 0:
				s.act(at, target+": tasks cancelled", func(c *chaos) { c.cancelTasks(target) })
			case 1:
				s.act(at, target+": tasks forgotten", func(c *chaos) { c.forgetTasks(target) })
			case 2:
				s.act(at, target+": tokens ended", func(c *chaos) { c.count("tokens ended"); c.bigiq[target].EndTokens() })
			case 3:
				ending := pick(r,
					bigiqtest.Ending{Status: "FAILED", Result: "FAILED", ErrorMessage: "Internal Error occurred"},
					bigiqtest.Ending{Status: "FAILED", ErrorMessage: "Internal Error occurred", Kills: true},
					bigiqtest.Ending{Status: "CANCELLED"}, bigiqtest.Ending{Status: "FINISHED", Result: "FAILED", Kills: true})
				change(at, "tasks fail", func(q *bigiqtest.Quirks) { q.Ending = &ending })
				change(end, "tasks work", func(q *bigiqtest.Quirks) { q.Ending = nil })
			case 4:
				change(at, "tasks are stuck", func(q *bigiqtest.Quirks) { q.Stuck = true })
				change(end, "tasks go on", func(q *bigiqtest.Quirks) { q.Stuck = false })
			case 5:
				change(at, "too many tokens", func(q *bigiqtest.Quirks) { q.TokenCap = 1 })
				change(end, "enough tokens", func(q *bigiqtest.Quirks) { q.TokenCap = 0 })
			case 6:
				device := pick(r, bigiqtest.Blue1, bigiqtest.Red2, bigiqtest.Branch)
				s.act(at, target+": a device is away", func(c *chaos) {
					c.count("device away")
					c.bigiq[target].Update(device, func(d *bigiqtest.Device) { d.Unreachable = true })
				})
				s.act(end, target+": the device is back", func(c *chaos) {
					c.bigiq[target].Update(device, func(d *bigiqtest.Device) { d.Unreachable = false })
				})
			}
		}
	}
	for r.IntN(2) == 0 {
		trouble := pick(r, kibanatest.NotReady, kibanatest.NoLicense, kibanatest.NotInitialized, kibanatest.Overloaded, kibanatest.ElasticsearchDown)
		at := span(r, 0, s.calm)
		s.act(at, "kibana: trouble", func(c *chaos) { c.count("kibana trouble"); c.kibana.Suffer(trouble) })
		s.act(span(r, at, min(s.calm, at+time.Minute)), "kibana: well again", func(c *chaos) { c.kibana.Suffer(kibanatest.Healthy) })
	}
	for r.IntN(3) > 0 {
		at, times := span(r, 0, s.calm), 1+r.IntN(4)
		method := pick(r, "", "", "DeleteAuthSession", "DeleteAuthSessionsByUsername", "ListActiveAuthSessions", "ListAuthSessionsByUsername")
		switch r.IntN(4) {
		case 0:
			s.act(at, "element: null", func(c *chaos) { c.count("element not serving"); c.element.NotServing(times) })
		case 1:
			// Whether these were carried out is left open by the documents.
			name := pick(r, "xDBConnectionLoss", "xDBOperationTimeout", "xDBNoServerResponse")
			s.act(at, "element: "+name+" after the effect", func(c *chaos) {
				c.count("element " + name + " after the effect")
				c.element.FailAfter(method, times, name)
			})
		case 2:
			name := pick(r, "xDBVersionMismatch", "xNotPrimary", "xNotReadyForIO", "xDBSessionExpired", "xUnknownAPIVersion")
			s.act(at, "element: "+name, func(c *chaos) { c.count("element " + name); c.element.Fail(method, times, name) })
		case 3:
			name := pick(r, "xPermissionDenied", "xInvalidParameter", "xSomethingElse")
			s.act(at, "element: "+name, func(c *chaos) { c.count("element " + name); c.element.Fail(method, 1, name) })
		}
	}
	if r.IntN(5) == 0 {
		// It says that it has ended sessions, and keeps them. What it counts is no truth then; what it lists is.
		at := span(r, 0, s.calm)
		s.act(at, "element: lies", func(c *chaos) { c.count("element lies"); c.lied = true; c.element.SetLie(emulator.Keep) })
		s.act(span(r, at, min(s.calm, at+2*time.Minute)), "element: is honest", func(c *chaos) { c.element.SetLie(emulator.Honest) })
	}
}
