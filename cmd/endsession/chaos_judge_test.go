package main

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/server/invalidation"
)

// judge holds what the journal says against what happened.
func (c *chaos) judge() {
	var all []invalidation.Invalidation
	q := invalidation.Query{Limit: 500}
	for {
		invs, more, err := c.now.engine.List(context.Background(), invalidation.Caller{}, q)
		if err != nil {
			c.broken("list: %v", err)
			return
		}
		all = append(all, invs...)
		if !more {
			break
		}
		q.Before = invs[len(invs)-1].ID
	}
	c.judgeCalls(all)
	runs := map[string]bool{}
	for _, inv := range all {
		c.judgeInvalidation(inv)
		for _, r := range inv.Runs {
			runs[inv.ID+" at "+r.Target] = true
			c.judgeRun(inv, r)
		}
	}
	for _, s := range c.sent {
		if s.mutating && !runs[s.by.id+" at "+s.target] {
			c.broken("%s was sent a request that changes something for a run that is not in the journal (%s): %s", s.target, s.by.key, s.what)
		}
		if s.mutating && c.pausedAt(s.target, s.at) {
			c.broken("%s was sent a request that changes something although it is paused, by %s: %s", s.target, s.by.key, s.what)
		}
	}
	c.judgeDead(all)
	c.end(c.now, time.Minute)
	accepted := auditTrail(c.now.path, all, c.broken)
	for _, s := range c.sent {
		if s.mutating && s.at.Before(c.moment(accepted[s.by.id], c.accepted[s.by.id])) {
			c.broken("%s: %s was sent before the audit event", s.by.key, s.what)
		}
	}
}

// judgeCalls: what was answered is there, and a request id stands for one invalidation.
func (c *chaos) judgeCalls(all []invalidation.Invalidation) {
	byKey := map[string][]string{}
	for _, inv := range all {
		byKey[inv.Call.Reason] = append(byKey[inv.Call.Reason], inv.ID)
	}
	for key, ids := range byKey {
		if len(ids) > 1 {
			c.broken("%s is %d invalidations: %v", key, len(ids), ids)
		}
	}
	for key, ids := range c.answers {
		for _, id := range ids {
			if !slices.Contains(byKey[key], id) {
				c.broken("%s was accepted as %s, and that is not in the journal", key, id)
			}
		}
	}
}

func (c *chaos) judgeInvalidation(inv invalidation.Invalidation) {
	var states []string
	sum, anyKnown, minimum := 0, false, false
	killed := 0
	for _, r := range inv.Runs {
		if !inv.Call.AllowUnsupported || r.State != invalidation.RunUnsupported {
			states = append(states, string(r.State))
		}
		if r.Counted {
			sum, anyKnown = sum+r.Count, true
		}
		killed += len(c.killedBy(inv.ID, r.Target))
	}
	if want := overall(states); string(inv.State) != want {
		c.broken("%s is %s, but its runs %v make it %s", inv.Call.Reason, inv.State, states, want)
	}
	if inv.State.Final() == inv.CompleteTime.IsZero() {
		c.broken("%s is %s and complete at %v", inv.Call.Reason, inv.State, inv.CompleteTime)
	}
	count, known, minimum := inv.InvalidatedCount()
	if count != sum || known != anyKnown {
		c.broken("%s counts %d (known %t), its runs %d (%t)", inv.Call.Reason, count, known, sum, anyKnown)
	}
	if lied := c.lied && inv.Run("storage") != nil; !lied && (!minimum && count != killed || count > killed) {
		c.broken("%s counts %d (a minimum: %t), and %d sessions died", inv.Call.Reason, count, minimum, killed)
	}
}

// overall is what final runs come to, said once more.
func overall(states []string) string {
	slices.Sort(states)
	text := strings.Join(slices.Compact(states), " ")
	switch {
	case text == "SUCCEEDED" || text == "CANCELLED":
		return text
	case strings.Contains(text, "SUCCEEDED"):
		return "PARTIALLY_SUCCEEDED"
	}
	return "FAILED"
}

// killedBy returns the sessions that a run has ended.
func (c *chaos) killedBy(id, target string) (killed []*seenSession) {
	for _, x := range c.seen {
		if x.target == target && x.by != nil && x.by.id == id {
			killed = append(killed, x)
		}
	}
	return killed
}

// within reports whether a session is in the target's configured reach.
func within(x *seenSession, sel adapters.Selector) bool {
	wide := sel.By == adapters.ByUser || sel.By == adapters.All || sel.By == adapters.BySessions
	return x.target != "apm" || !wide || x.session.Device != bigiqtest.Lone
}

func (c *chaos) judgeRun(inv invalidation.Invalidation, r invalidation.Run) {
	name := inv.Call.Reason + " at " + r.Target
	bad := func(format string, args ...any) { c.broken("%s (%s): %s", name, r.State, fmt.Sprintf(format, args...)) }
	if c.finals[inv.ID+" at "+r.Target] != string(r.State) {
		bad("%q was recorded", c.finals[inv.ID+" at "+r.Target])
	}
	for _, state := range c.views[inv.ID+" at "+r.Target] {
		if state != string(r.State) {
			bad("somebody was shown that it is %s", state)
		}
	}
	if !r.State.Final() || r.Open || !r.NextAttemptTime.IsZero() || r.CompleteTime.IsZero() {
		bad("open %t, next attempt %v, complete %v", r.Open, r.NextAttemptTime, r.CompleteTime)
	}
	mutations := 0
	created := c.moment(inv.CreateTime, c.accepted[inv.ID])
	for _, s := range c.sent {
		if s.by.id != inv.ID || s.target != r.Target || !s.mutating {
			continue
		}
		mutations++
		if at := c.earliest(s.at); !at.Before(r.ExpireTime) {
			bad("it expired at %v, and at %v %s was sent", r.ExpireTime.Sub(c.began), at.Sub(c.began), s.what)
		}
		if s.status == 0 && s.fault != "connection refused" && !r.CountIsMinimum {
			bad("%s was never answered, and the count is no minimum", s.what)
		}
		if s.at.Before(created) {
			bad("%s was sent before it was accepted", s.what)
		}
	}
	killed := c.killedBy(inv.ID, r.Target)
	lied := c.lied && r.Kind == "element"
	if !lied {
		judgeCount(r, len(killed), mutations, bad)
	}
	for _, x := range r.Sessions {
		if !lied && !slices.ContainsFunc(killed, func(k *seenSession) bool { return k.session.Key() == x.Key() }) {
			bad("it names %s, which it did not end", x.ID)
		}
	}
	warned := func(code adapters.Reason) bool {
		return slices.ContainsFunc(r.Warnings, func(w adapters.Warning) bool { return w.Code == code })
	}
	switch r.State {
	case invalidation.RunUnsupported:
		if mutations > 0 {
			bad("%d requests that change something were sent for it", mutations)
		}
	case invalidation.RunCancelled:
		if mutations > 0 && !warned(adapters.ReasonOutcomeUnknown) {
			bad("%d requests that change something were sent, and it does not warn of an unknown outcome", mutations)
		}
	case invalidation.RunFailed:
		if r.Error == nil {
			bad("no error")
		}
		if r.CountIsMinimum && !warned(adapters.ReasonOutcomeUnknown) {
			bad("the count is a minimum, and it does not warn of an unknown outcome")
		}
	case invalidation.RunSucceeded:
		c.judgeSuccess(inv, r, mutations, bad)
	}
}

// judgeCount: what is called exact is exact, what is called a minimum is one, what nobody knows is absent.
func judgeCount(r invalidation.Run, n, mutations int, bad func(string, ...any)) {
	tells := r.Kind != "bigiq"
	nothing := slices.ContainsFunc(r.Warnings, func(w adapters.Warning) bool { return w.Code == adapters.WarnNothingCanMatch }) ||
		r.Selector == nil
	switch {
	case r.Counted && !tells && !nothing:
		bad("it counts %d, but a BIG-IQ never tells", r.Count)
	case !r.Counted && r.Count != 0:
		bad("it counts %d and says that it does not know", r.Count)
	case r.Counted && !r.CountIsMinimum && r.Count != n:
		bad("it counts exactly %d, and %d sessions died", r.Count, n)
	case r.Count > n:
		bad("it counts at least %d, and %d sessions died", r.Count, n)
	case !r.Counted && !r.CountIsMinimum && n > 0 && tells:
		bad("it counts nothing and hints at nothing, and %d sessions died", n)
	case r.Attempts == 0 && (n > 0 || mutations > 0):
		bad("no attempt, but %d requests and %d dead", mutations, n)
	case r.State == invalidation.RunSucceeded && !r.Counted && tells && !r.CountIsMinimum:
		bad("this target tells the number, and the count is unknown")
	}
}

// judgeSuccess: what is said to be over is over, and confirmed as it says.
func (c *chaos) judgeSuccess(inv invalidation.Invalidation, r invalidation.Run, mutations int, bad func(string, ...any)) {
	if r.Error != nil {
		bad("it has the error %v", r.Error)
	}
	if r.Selector == nil {
		if mutations > 0 {
			bad("it was not resolved, and %d requests were sent", mutations)
		}
		return // nothing can match
	}
	created := c.moment(inv.CreateTime, c.accepted[inv.ID])
	complete := c.moment(r.CompleteTime, c.ended[inv.ID+" at "+r.Target])
	for _, x := range c.seen {
		if x.target != r.Target || !r.Selector.Match(x.session) || !within(x, *r.Selector) || x.born.After(created) {
			continue
		}
		if x.died.IsZero() || x.died.After(complete) {
			bad("session %s of %q, signed in before, was still there when it was complete", x.session.ID, x.session.Username)
		}
	}
	nothing := slices.ContainsFunc(r.Warnings, func(w adapters.Warning) bool { return w.Code == adapters.WarnNothingCanMatch })
	want := map[string][]adapters.Verification{
		"bigiq": {adapters.Unverifiable}, "kibana": {adapters.ConfirmedByRepeat, adapters.Unverifiable}, "element": {adapters.ConfirmedByList},
	}[r.Kind]
	if nothing {
		want = []adapters.Verification{adapters.VerificationUnspecified}
	}
	if !slices.Contains(want, r.Verification) {
		bad("its verification is %s", r.Verification)
	}
	if r.Verification != adapters.ConfirmedByList && r.Verification != adapters.ConfirmedByRepeat {
		return
	}
	// It was confirmed after the run had begun; Kibana finds a session only a second after it began.
	began := c.moment(r.StartTime, c.begun[inv.ID+" at "+r.Target]).Add(-time.Second)
	for _, x := range c.seen {
		if x.target == r.Target && r.Selector.Match(x.session) && x.born.Before(began) && (x.died.IsZero() || x.died.After(complete)) {
			bad("it is %s, but session %s of %q, signed in before it began, was there", r.Verification, x.session.ID, x.session.Username)
		}
	}
}

// judgeDead: nobody died whom no run was to end.
func (c *chaos) judgeDead(all []invalidation.Invalidation) {
	for _, x := range c.seen {
		if x.died.IsZero() || x.left {
			continue
		}
		c.counts["sessions ended"]++
		if x.by == nil {
			c.broken("%s: session %s of %q died, and nobody knows by whom", x.target, x.session.ID, x.session.Username)
			continue
		}
		i := slices.IndexFunc(all, func(inv invalidation.Invalidation) bool { return inv.ID == x.by.id })
		if i < 0 {
			c.broken("%s: session %s of %q died by %q, which is not in the journal", x.target, x.session.ID, x.session.Username, x.by.key)
			continue
		}
		r := all[i].Run(x.target)
		if r == nil || r.Selector == nil || !r.Selector.Match(x.session) || !within(x, *r.Selector) {
			c.broken("%s: session %s of %q died by %s, whose selector does not match it", x.target, x.session.ID, x.session.Username, x.by.key)
		}
	}
}

// auditEvent is what the judge looks at of an event of the audit trail.
type auditEvent struct {
	Chain            string
	Seq, At          int64 // At in microseconds since 1970
	Type, ID, Target string
}

// auditTrail reads the audit trail from a journal that nobody has open, and judges it.
func auditTrail(path string, all []invalidation.Invalidation, broken func(string, ...any)) (accepted map[string]time.Time) {
	events, err := readAudit(path)
	if err != nil {
		broken("read the audit trail: %v", err)
		return nil
	}
	return judgeAudit(events, all, broken)
}

func readAudit(path string) (events []auditEvent, err error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: "mode=ro&immutable=1"}).String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	rows, err := db.Query(`SELECT chain, seq, time, type, coalesce(invalidation_id, ''), coalesce(target, '') FROM audit ORDER BY chain, seq`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var e auditEvent
		if err := rows.Scan(&e.Chain, &e.Seq, &e.At, &e.Type, &e.ID, &e.Target); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// judgeAudit holds the audit trail against the invalidations: each was accepted once, and each run ended once. It returns
// when they were accepted. The events come in the order of their chains and numbers.
func judgeAudit(events []auditEvent, all []invalidation.Invalidation, broken func(string, ...any)) (accepted map[string]time.Time) {
	accepted = map[string]time.Time{}
	cancelled, finals := map[string]int{}, map[string][]string{}
	chain, next := "", int64(1)
	for _, e := range events {
		if e.Chain != chain {
			chain, next = e.Chain, 1
		}
		if e.Seq != next {
			broken("the audit chain %s goes on with %d instead of %d", e.Chain, e.Seq, next)
		}
		next = e.Seq + 1
		switch word := strings.TrimPrefix(e.Type, "run."); {
		case e.Type == "invalidation.accepted":
			if _, again := accepted[e.ID]; again {
				broken("the audit trail has %s accepted twice", e.ID)
			}
			accepted[e.ID] = time.UnixMicro(e.At)
		case e.Type == "invalidation.cancelled":
			cancelled[e.ID]++
		case word == "succeeded" || word == "failed" || word == "unsupported" || word == "cancelled":
			finals[e.ID+" at "+e.Target] = append(finals[e.ID+" at "+e.Target], strings.ToUpper(word))
		}
	}
	for _, inv := range all {
		if accepted[inv.ID].IsZero() {
			broken("the audit trail does not have %s accepted", inv.Call.Reason)
		}
		ends := 0
		for _, r := range inv.Runs {
			var want []string
			switch {
			case r.Attempts == 0 && r.CompleteTime.Equal(inv.CreateTime): // final at acceptance: the event of that says so
			case r.State == invalidation.RunCancelled:
				ends = 1
			default:
				want = []string{string(r.State)}
			}
			if got := finals[inv.ID+" at "+r.Target]; !slices.Equal(got, want) {
				broken("%s at %s is %s, and the audit trail has %v", inv.Call.Reason, r.Target, r.State, got)
			}
		}
		if cancelled[inv.ID] != ends {
			broken("%s was cancelled %d times, says the audit trail; want %d", inv.Call.Reason, cancelled[inv.ID], ends)
		}
	}
	if len(accepted) > len(all) {
		broken("the audit trail has %d invalidations accepted, the journal %d", len(accepted), len(all))
	}
	return accepted
}
