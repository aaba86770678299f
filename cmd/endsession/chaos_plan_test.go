package main

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/server/invalidation"
)

// A schedule is everything that will happen in one run of the campaign, derived from its seed alone: who is signed in,
// who calls for what and when, what goes wrong. What the gateway makes of it is not in here.
type schedule struct {
	seed uint64
	// calm is when faults end; from then on everything that was accepted must come to its end.
	calm    time.Duration
	seats   []seat
	calls   []plannedCall
	actions []plannedAction
	targets map[string]weather
	// leaseLength and concurrency are the engine's.
	leaseLength time.Duration
	concurrency map[string]int
	// taskTime is how long BIG-IQ works on a task.
	taskTime time.Duration
	// deletionsLag and legacy are Kibana's.
	deletionsLag, legacy bool
	// jumps are when the clock that the journal goes by jumps, forwards or backwards.
	jumps []jump
	// late is how probable it is that a request takes effect although whoever sent it has given up, or died.
	late float64
}

// jump is a jump of a clock: from then on it is that much ahead, or behind, than before.
type jump struct{ at, by time.Duration }

// jumpy lets the clock of a schedule's journal jump: by moments, by more than a lease, by more than a run may take.
func (s *schedule) jumpy() *schedule {
	r := dice(s.seed, "clock")
	for range 1 + r.IntN(5) {
		by := pick(r, span(r, 0, 3*time.Second), span(r, 0, time.Minute), span(r, time.Minute, 8*time.Minute))
		if r.IntN(2) == 0 {
			by = -by
		}
		j := jump{span(r, 0, s.calm), by}
		s.jumps = append(s.jumps, j)
		s.act(j.at, fmt.Sprintf("the clock jumps by %v", by), func(c *chaos) { c.jump(by) })
	}
	slices.SortFunc(s.actions, func(a, b plannedAction) int { return cmp.Compare(a.at, b.at) })
	return s
}

// weather is how bad the way to a target is.
type weather struct {
	// rate is how probable it is that a request meets one of the faults.
	rate float64
	// slowest bounds how long a request travels, and its answer.
	slowest time.Duration
	outages []outage
}

// outage is a time in which every request meets the same fault.
type outage struct {
	from, to time.Duration
	fault    emulator.Fault
}

// plannedCall is one thing a client does, until it has its answer.
type plannedCall struct {
	// key names the call in its reason, so that what it became can be found in the journal.
	key       string
	at        time.Duration
	caller    invalidation.Caller
	call      invalidation.Call
	requestID string
	wait      time.Duration
	// replays are when the same call is made once more by somebody who has lost the answer.
	replays []time.Duration
	// conflict, if not zero, is when the request id is used for something else.
	conflict time.Duration
	// cancel, watch, retry: when, if not zero, the call is cancelled, watched, and what failed of it is called for anew.
	cancel, watch, retry time.Duration
}

// plannedAction is what happens to the gateway, to its targets or to the people.
type plannedAction struct {
	at   time.Duration
	name string
	do   func(*chaos)
}

// dice returns a source of randomness of its own for one part of the schedule, so that a change of one part leaves the
// others as they are.
func dice(seed uint64, part string, n ...int) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, part, n)
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// span returns a time between two others, to the nanosecond: no two things happen at once.
func span(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)+1))
}

// maybe returns such a time with probability p, else zero.
func maybe(r *rand.Rand, p float64, from, to time.Duration) time.Duration {
	if r.Float64() < p {
		return span(r, from, to)
	}
	return 0
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func newSchedule(seed uint64) *schedule {
	r := dice(seed, "schedule")
	s := &schedule{
		seed: seed, calm: span(r, 20*time.Second, 6*time.Minute), targets: map[string]weather{}, concurrency: map[string]int{},
		leaseLength: pick(r, 6*time.Second, 30*time.Second, 30*time.Second), taskTime: span(r, 50*time.Millisecond, 8*time.Second),
		deletionsLag: r.IntN(3) == 0, legacy: r.IntN(4) == 0, late: pick(r, 0, 0.3, 0.9),
	}
	for _, target := range chaosTargets {
		s.targets[target] = newWeather(dice(seed, "weather of "+target), s.calm)
		s.concurrency[target] = pick(r, 1, 2, 3, 8)
	}
	s.populate(dice(seed, "people"))
	s.plan(dice(seed, "calls"))
	s.trouble(dice(seed, "trouble"))
	slices.SortFunc(s.actions, func(a, b plannedAction) int { return cmp.Compare(a.at, b.at) })
	return s
}

func newWeather(r *rand.Rand, calm time.Duration) weather {
	w := weather{
		rate:    pick(r, 0, 0, 0.03, 0.1, 0.1, 0.25, 0.5),
		slowest: pick(r, 20*time.Millisecond, 200*time.Millisecond, 2*time.Second, 9*time.Second),
	}
	for r.IntN(3) == 0 {
		from := span(r, 0, calm)
		w.outages = append(w.outages, outage{from, min(calm, from+span(r, time.Second, 90*time.Second)), pick(r, outageFaults()...)})
	}
	return w
}

// outageFaults are what a target that is away looks like.
func outageFaults() []emulator.Fault {
	return []emulator.Fault{
		emulator.Refuse(), emulator.Refuse(), emulator.Hang(), emulator.Hang().After(), emulator.Reset(), emulator.Reset().After(),
		emulator.Status(503), emulator.StatusHTML(502), emulator.StatusHTML(504).After(), emulator.StatusRetryAfter(429, "7"),
		emulator.Page(), emulator.Status(401),
	}
}

// singleFaults are what a single request can meet. A fault after the effect hides it, but none of them lies: there is no
// "refused" for something that was done.
func singleFaults() []emulator.Fault {
	reset, hang, stall := emulator.Reset(), emulator.Hang(), emulator.Stall()
	faults := []emulator.Fault{
		emulator.Refuse(), emulator.Refuse(), reset, reset.After(), reset.After(), hang, hang.After(), stall, stall.After(),
		emulator.Truncated(), emulator.Truncated(), emulator.Cut(), emulator.ContentType("text/plain"),
		emulator.Page(), emulator.Page().After(), emulator.Empty(), emulator.Empty().After(), emulator.Null(),
		emulator.Delay(3 * time.Second), emulator.Delay(25 * time.Second), emulator.Delay(70 * time.Second),
		emulator.Status(429), emulator.StatusRetryAfter(429, "3"), emulator.StatusRetryAfter(503, "11"), emulator.StatusRetryAfter(429, "90"),
		emulator.Redirect("https://elsewhere.invalid/"),
	}
	for _, status := range []int{500, 502, 503, 504} {
		faults = append(faults, emulator.Status(status), emulator.Status(status).After(), emulator.StatusHTML(status), emulator.StatusHTML(status).After())
	}
	return faults
}

// rareFaults end a run, or park its target: too many of them and nothing else would be seen.
func rareFaults() []emulator.Fault {
	return []emulator.Fault{emulator.Status(401), emulator.StatusHTML(401), emulator.Status(403), emulator.Status(400)}
}

// populate signs people in: most of the lab's, some of them twice, some later or again. Ids are ours, so that they can be
// named in selectors and are the same in every replay.
func (s *schedule) populate(r *rand.Rand) {
	share := 0.4 + 0.6*r.Float64()
	add := func(x seat) {
		if x.session.ID == "" {
			x.session.ID = sessionID(x.target, len(s.seats))
		}
		s.seats = append(s.seats, x)
	}
	for _, x := range seats() {
		if r.Float64() >= share {
			continue
		}
		add(x)
		if x.session.ID == "" && r.IntN(6) == 0 {
			add(x)
		}
	}
	for range r.IntN(25) {
		x := pick(r, seats()...)
		x.session.ID = sessionID(x.target, 1000+len(s.actions))
		s.act(span(r, 0, s.calm), "sign in "+x.label+" at "+x.target, func(c *chaos) { c.signIn(x.target, x.session) })
	}
	for range r.IntN(6) {
		i := r.IntN(max(len(s.seats), 1))
		if i >= len(s.seats) {
			break
		}
		switch x := s.seats[i]; x.target {
		case "storage":
			s.act(span(r, 0, s.calm), "sign out "+x.label, func(c *chaos) { c.signOut(x.session.ID) })
		case "kibana-prod":
			s.act(span(r, 0, s.calm), "use of "+x.label, func(c *chaos) { c.kibana.Use(x.session.ID) })
		}
	}
}

// sessionID is an id as the target would make it.
func sessionID(target string, n int) string {
	switch target {
	case "storage":
		return fmt.Sprintf("00000000-0000-4000-8000-%012x", n)
	case "kibana-prod":
		return fmt.Sprintf("%064x", n)
	}
	return fmt.Sprintf("%08x", n)
}

func (s *schedule) act(at time.Duration, name string, do func(*chaos)) {
	s.actions = append(s.actions, plannedAction{at, name, do})
}

// plan decides on the calls.
func (s *schedule) plan(r *rand.Rand) {
	for n := range 1 + r.IntN(12) {
		at := span(r, 0, s.calm*8/10)
		later := func(p float64) time.Duration { return maybe(r, p, at+1, s.calm) }
		c := plannedCall{
			key: fmt.Sprintf("call-%d", n), at: at, wait: maybe(r, 0.5, time.Millisecond, time.Minute),
			caller: pick(r, invalidation.Caller{Kind: "anonymous", Name: "anonymous"}, invalidation.Caller{Kind: "api_key", Name: "helpdesk"}),
			cancel: later(0.2), watch: later(0.3), retry: later(0.3),
		}
		c.call = invalidation.Call{
			Selector: s.selector(r), ConfirmBroad: r.IntN(12) != 0, AllowUnsupported: r.IntN(2) == 0, Reason: c.key,
			Labels: map[string]string{"batch": pick(r, "a", "b")}, Priority: pick(r, invalidation.PriorityNormal, invalidation.PriorityBulk),
			RetryFor: maybe(r, 0.8, 5*time.Second, 12*time.Minute),
		}
		if r.IntN(3) == 0 && len(c.call.Selector.Sessions) == 0 {
			c.call.Targets = slices.Clone(chaosTargets)
			r.Shuffle(len(c.call.Targets), func(i, j int) {
				c.call.Targets[i], c.call.Targets[j] = c.call.Targets[j], c.call.Targets[i]
			})
			c.call.Targets = c.call.Targets[:1+r.IntN(len(c.call.Targets))]
		}
		if r.IntN(3) > 0 {
			c.requestID = fmt.Sprintf("00000000-0000-4000-9000-%012x", n)
			for r.IntN(3) == 0 {
				// Sometimes the client does not wait for the answer to the first.
				c.replays = append(c.replays, pick(r, at+span(r, 0, time.Second), span(r, at, s.calm)))
			}
			c.conflict = later(0.15)
		}
		s.calls = append(s.calls, c)
		s.signInAround(r, at)
	}
}

// signInAround signs people in just before a call, when Kibana does not find them yet, and while it is being carried out.
func (s *schedule) signInAround(r *rand.Rand, at time.Duration) {
	for r.IntN(2) == 0 {
		x := pick(r, seats()...)
		if r.IntN(2) == 0 {
			x.target, x.session = "kibana-prod", adapters.Session{Username: "alice@corp.example", Provider: adapters.Provider{Type: "saml", Name: "saml1"}}
		}
		x.session.ID = sessionID(x.target, 1000+len(s.actions))
		s.act(max(0, at+span(r, -time.Second, 2*time.Second)), "sign in "+x.label+" at "+x.target, func(c *chaos) { c.signIn(x.target, x.session) })
	}
}

// selector makes one of any form, of values that are mapped, listed, spelt otherwise, or nowhere to be found.
func (s *schedule) selector(r *rand.Rand) (sel invalidation.Selector) {
	form := r.IntN(100)
	has := func(from, to int) bool { return form >= from && form < to }
	switch {
	case form < 10 && len(s.seats) > 0:
		for range 1 + r.IntN(4) {
			x := pick(r, s.seats...)
			if x.target == "kibana-prod" && r.IntN(4) > 0 {
				continue
			}
			sel.Sessions = append(sel.Sessions, invalidation.SessionRef{Target: x.target, Device: x.session.Device, ID: x.session.ID})
		}
		if len(sel.Sessions) > 0 {
			return sel
		}
		form = 50
	case form < 13:
		sel.All = true
		return sel
	}
	if !has(13, 30) { // 13–30: broad
		u := pick(r,
			invalidation.User{ID: "alice"}, invalidation.User{ID: "alice"}, invalidation.User{ID: "bob"}, invalidation.User{ID: "zoë"},
			invalidation.User{ID: `o"brien,+x`}, invalidation.User{ID: "Alice"}, invalidation.User{ID: "nobody", Email: "nobody@corp.example"},
			invalidation.User{ID: "carol", Email: "carol@corp.example", Attributes: map[string]string{"uid": "c42"}},
			invalidation.User{ID: "alice", Email: "bob@corp.example"},
			invalidation.User{ID: "alice", TargetUsernames: map[string][]string{"storage": {"bob", dn("zoë")}, "apm": {"alice", "bob", "carol", "dave", "zoë", "a17"}}},
		)
		sel.User = &u
	}
	if has(13, 20) || has(26, 40) || has(90, 95) {
		p := pick(r, "saml", "saml/okta", "saml/okta", "saml/wide", "saml/saml2", "saml/nosuch", "ldap", "local", "basic", "oidc", "kerberos")
		provider := invalidation.Provider{Type: p}
		if len(p) > 5 && p[:5] == "saml/" {
			provider = invalidation.Provider{Type: "saml", Name: p[5:]}
		}
		sel.Provider = &provider
	}
	if has(20, 30) || has(40, 50) || has(90, 95) {
		sel.Group = pick(r, "vpn", "vpn", "ops", "guests", "mixed", "staff", "nosuch")
	}
	return sel
}

// trouble decides what happens to the gateway and to its targets.
func (s *schedule) trouble(r *rand.Rand) {
	for range pick(r, 0, 0, 1, 1, 2, 4) {
		down := span(r, 0, 20*time.Second)
		s.act(span(r, 0, s.calm), "crash", func(c *chaos) { c.crash(down) })
	}
	for range pick(r, 0, 0, 1, 2, 3) {
		// The process dies in the middle of what it does: just before, or just after, it writes to the journal.
		op, after, n := pick(r, "Accept", "Record", "Record", "Claim", "Cancel", "Renew"), r.IntN(2) == 0, 1+r.IntN(4)
		down := span(r, 0, 20*time.Second)
		s.act(span(r, 0, s.calm), "fuse", func(c *chaos) { c.fuse(op, n, after, down) })
	}
	for range pick(r, 0, 0, 1) {
		grace, down := span(r, 0, 20*time.Second), span(r, 0, 5*time.Second)
		s.act(span(r, 0, s.calm), "restart", func(c *chaos) { c.restart(grace, down) })
	}
	for _, target := range chaosTargets {
		for r.IntN(3) == 0 {
			from := span(r, 0, s.calm)
			s.act(from, "pause "+target, func(c *chaos) { c.pause(target) })
			s.act(span(r, from, s.calm), "resume "+target, func(c *chaos) { c.resume(target) })
		}
		for r.IntN(4) == 0 {
			s.act(span(r, 0, s.calm), "look at "+target, func(c *chaos) { c.look(target, pick(r, s.calls...).call) })
		}
	}
	for r.IntN(4) == 0 {
		batch := pick(r, "a", "b")
		s.act(span(r, 0, s.calm), "cancel batch "+batch, func(c *chaos) { c.cancelBatch(batch) })
	}
	for r.IntN(4) == 0 {
		from := span(r, 0, s.calm)
		s.act(from, "directory away", func(c *chaos) { c.directoryAway.Store(true) })
		s.act(span(r, from, min(s.calm, from+time.Minute)), "directory back", func(c *chaos) { c.directoryAway.Store(false) })
	}
	for r.IntN(3) == 0 {
		from := span(r, 0, s.calm)
		to := span(r, from, min(s.calm, from+40*time.Second))
		s.act(from, "journal away", func(c *chaos) { c.journalAway.Store(true) })
		s.act(to, "journal back", func(c *chaos) { c.journalAway.Store(false) })
	}
	for r.IntN(3) == 0 {
		from := span(r, 0, s.calm)
		s.act(from, "journal: answers are lost", func(c *chaos) { c.answersLost.Store(true) })
		s.act(span(r, from, min(s.calm, from+10*time.Second)), "journal: answers arrive", func(c *chaos) { c.answersLost.Store(false) })
	}
	s.upstreamTrouble(r)
}
