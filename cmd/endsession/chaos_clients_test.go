package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// carryOut lives through the schedule, until everything that was accepted is final.
func (c *chaos) carryOut() {
	c.start()
	for _, p := range c.calls {
		c.later(p.at, func() { c.invalidate(p, p.call, p.key) })
		for i, at := range p.replays {
			c.later(at+time.Duration(i+1), func() { c.invalidate(p, p.call, p.key) })
		}
		if p.conflict > 0 {
			c.later(p.conflict, func() { c.reuse(p) })
		}
		if p.cancel > 0 {
			c.later(p.cancel, func() { c.cancelCall(p) })
		}
		if p.watch > 0 {
			c.later(p.watch, func() { c.watchCall(p) })
		}
		if p.retry > 0 {
			c.later(p.retry, func() { c.retryCall(p) })
		}
	}
	for _, a := range c.actions {
		c.until(a.at)
		c.say("* %s", a.name)
		a.do(c)
	}
	c.until(c.calm)
	c.say("* calm")
	c.directoryAway.Store(false)
	c.journalAway.Store(false)
	c.answersLost.Store(false)
	if g := c.current(); g != nil {
		g.store.fuse.Store(nil)
	}
	c.until(c.calm + 1)
	for _, target := range chaosTargets {
		c.resume(target)
	}
	c.settle()
}

// until waits for a moment of the schedule. A process that dies meanwhile is followed by another.
func (c *chaos) until(at time.Duration) {
	timer := time.NewTimer(at - time.Since(c.began))
	defer timer.Stop()
	for {
		select {
		case down := <-c.died:
			c.bury(down)
		case <-timer.C:
			select {
			case down := <-c.died:
				c.bury(down)
			default:
			}
			return
		}
	}
}

// settlesWithin bounds how long everything may take once nothing goes wrong any more: a parked target is left alone for a
// quarter of an hour, a target that asked for time gets it.
const settlesWithin = time.Hour

func (c *chaos) settle() {
	deadline := time.Now().Add(settlesWithin)
	answered := make(chan struct{})
	go func() { c.clients.Wait(); close(answered) }()
	for {
		select {
		case down := <-c.died: // at the very moment at which the faults ended
			c.bury(down)
		default:
		}
		calling := true // somebody may still accept something
		select {
		case <-answered:
			calling = false
		default:
		}
		unfinished, err := c.now.store.Unfinished(context.Background())
		if err != nil {
			c.broken("count what is unfinished: %v", err)
			return
		}
		if len(unfinished) == 0 && !calling {
			break
		}
		if time.Now().After(deadline) {
			c.broken("after %v of calm there are still unfinished runs: %v, or calls without an answer: %t", settlesWithin, unfinished, calling)
			c.now.stopping.Store(true) // whoever waits for them need not wait for ever
			c.now.cancel()
			break
		}
		time.Sleep(5 * time.Second)
	}
	<-answered
	// What is still on its way arrives.
	time.Sleep(time.Minute)
	for _, target := range chaosTargets {
		c.targetLocks[target].Lock()
		c.compare(target, nil)
		c.targetLocks[target].Unlock()
	}
}

// later has a client do something.
func (c *chaos) later(at time.Duration, do func()) {
	c.clients.Go(func() {
		time.Sleep(at - time.Since(c.began))
		do()
	})
}

// ask calls f with the gateway's process, again and again as long as there is none, or it dies before it has answered;
// answered is false if that is not wanted, or does not help.
func (c *chaos) ask(again bool, f func(*gateway) error) (err error, answered bool) {
	for range 200 {
		g := c.current()
		if g != nil {
			err = f(g)
			var call *invalidation.CallError
			lost := g.isDead() || g.stopping.Load() && err != nil ||
				errors.As(err, &call) && (call.Code == invalidation.Unavailable || call.Code == invalidation.AcceptanceUnknown)
			if !lost {
				return err, true
			}
		}
		if !again {
			return err, false
		}
		time.Sleep(1234567891 * time.Nanosecond)
	}
	return err, false
}

// shown notes what somebody was shown of an invalidation: what was final stays as it was.
func (c *chaos) shown(inv invalidation.Invalidation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range inv.Runs {
		if r.State.Final() {
			c.views[inv.ID+" at "+r.Target] = append(c.views[inv.ID+" at "+r.Target], string(r.State))
		}
	}
}

// invalidate makes a call.
func (c *chaos) invalidate(p plannedCall, call invalidation.Call, key string) {
	var inv invalidation.Invalidation
	err, answered := c.ask(p.requestID != "", func(g *gateway) (err error) {
		c.count("calls")
		c.say("%s: %+v", key, describeCall(call))
		inv, _, err = g.engine.Invalidate(g.ctx, invalidation.Request{Caller: p.caller, Call: call, RequestID: p.requestID, Wait: p.wait})
		return err
	})
	c.answered(key, inv, err, answered)
	if !answered && p.requestID != "" {
		c.broken("%s was called for again and again and never answered: %v", key, err)
	}
}

func (c *chaos) answered(key string, inv invalidation.Invalidation, err error, answered bool) {
	var call *invalidation.CallError
	switch {
	case !answered:
		c.count("calls without an answer")
		c.say("%s: no answer (%v)", key, err)
	case err == nil:
		c.say("%s: answered %s", key, inv.State)
		c.mu.Lock()
		c.answers[key] = append(c.answers[key], inv.ID)
		c.mu.Unlock()
		c.shown(inv)
	case errors.As(err, &call) && call.Code == invalidation.InvalidArgument:
		c.count("calls refused")
	case errors.As(err, &call) && call.Reason == invalidation.ReasonRequestReused && c.used(key+"-other"):
		c.count("request ids reused and refused")
	default:
		c.broken("%s: %v", key, err)
	}
}

// reuse uses a call's request id for something else: that must be refused, if there is anything it was used for.
func (c *chaos) reuse(p plannedCall) {
	call := p.call
	call.Labels = map[string]string{"batch": "other"}
	call.Reason = p.key + "-other"
	var inv invalidation.Invalidation
	before := c.used(p.key)
	err, answered := c.ask(true, func(g *gateway) (err error) {
		inv, _, err = g.engine.Invalidate(g.ctx, invalidation.Request{Caller: p.caller, Call: call, RequestID: p.requestID})
		return err
	})
	var refused *invalidation.CallError
	reused := errors.As(err, &refused) && refused.Reason == invalidation.ReasonRequestReused
	switch {
	case answered && before && err == nil:
		c.broken("the request id of %s was used for another call and accepted", p.key)
	case reused:
		c.count("request ids reused and refused")
	case answered: // it was first; then the call itself is the one to be refused
		c.answered(call.Reason, inv, err, answered)
	}
}

func (c *chaos) used(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.answers[key]) > 0
}

// id returns what a call was answered with; empty if it was not.
func (c *chaos) id(key string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers[key]) == 0 {
		return ""
	}
	return c.answers[key][0]
}

func (c *chaos) cancelCall(p plannedCall) {
	id := c.id(p.key)
	if id == "" {
		return
	}
	var inv invalidation.Invalidation
	err, answered := c.ask(true, func(g *gateway) (err error) {
		c.say("%s: cancel", p.key)
		inv, err = g.engine.Cancel(g.ctx, p.caller, id)
		return err
	})
	var call *invalidation.CallError
	switch {
	case !answered:
	case err == nil:
		c.count("cancels")
		if !inv.State.Final() {
			c.broken("%s was cancelled and is %s", p.key, inv.State)
		}
		c.shown(inv)
	case errors.As(err, &call) && call.Reason == invalidation.ReasonAlreadyFinal:
	default:
		c.broken("%s: cancel: %v", p.key, err)
	}
}

func (c *chaos) cancelBatch(batch string) {
	c.clients.Go(func() {
		err, answered := c.ask(true, func(g *gateway) error {
			_, err := g.engine.CancelByLabel(g.ctx, invalidation.Caller{Kind: "anonymous", Name: "anonymous"}, "batch", batch)
			return err
		})
		if answered && err != nil {
			c.broken("cancel batch %s: %v", batch, err)
		}
		c.count("cancels by label")
	})
}

// watchCall watches until the end, with as many processes as it takes.
func (c *chaos) watchCall(p plannedCall) {
	id := c.id(p.key)
	if id == "" {
		return
	}
	c.count("watches")
	ended := false
	_, answered := c.ask(true, func(g *gateway) error {
		var seen int64
		for inv, err := range g.engine.Watch(g.ctx, p.caller, id) {
			if err != nil {
				return err
			}
			if g.isDead() {
				return nil
			}
			if ended {
				c.broken("%s: watch goes on after the final state", p.key)
			}
			if inv.Revision < seen {
				c.broken("%s: watch shows revision %d after %d", p.key, inv.Revision, seen)
			}
			seen, ended = inv.Revision, inv.State.Final()
			c.shown(inv)
		}
		return nil
	})
	if answered && !ended {
		c.broken("%s: watch ended before the final state", p.key)
	}
}

// retryCall calls anew for what has failed.
func (c *chaos) retryCall(p plannedCall) {
	id := c.id(p.key)
	if id == "" {
		return
	}
	key := strings.Replace(p.key, "call", "retry", 1)
	requestID := strings.Replace("00000000-0000-4000-9000-000000000000", "9000", "a000", 1)[:36-len(p.key)] + p.key
	var inv invalidation.Invalidation
	err, answered := c.ask(true, func(g *gateway) (err error) {
		inv, _, err = g.engine.Retry(g.ctx, invalidation.RetryRequest{
			Caller: p.caller, ID: id, ConfirmBroad: true, RequestID: requestID, Reason: key, Wait: p.wait, RetryFor: p.call.RetryFor,
		})
		return err
	})
	var call *invalidation.CallError
	if errors.As(err, &call) && call.Code == invalidation.FailedPrecondition {
		return
	}
	if err == nil && answered {
		c.count("retries")
		if inv.RetryOf != id {
			c.broken("%s is a retry of %s", key, inv.RetryOf)
		}
	}
	c.answered(key, inv, err, answered)
}

// pause lets nothing be sent to a target.
func (c *chaos) pause(target string) {
	g := c.current()
	if g == nil {
		return
	}
	if _, err := g.engine.PauseTarget(g.ctx, invalidation.Caller{Kind: "anonymous", Name: "ops"}, target, "maintenance"); err != nil || g.isDead() {
		return
	}
	c.count("pauses")
	c.mu.Lock()
	defer c.mu.Unlock()
	if spans := c.pauses[target]; len(spans) == 0 || !spans[len(spans)-1].to.IsZero() {
		c.pauses[target] = append(spans, pauseSpan{from: time.Now()})
	}
}

func (c *chaos) resume(target string) {
	g := c.current()
	if g == nil {
		return
	}
	c.mu.Lock()
	if spans := c.pauses[target]; len(spans) > 0 && spans[len(spans)-1].to.IsZero() {
		spans[len(spans)-1].to = time.Now()
	}
	c.mu.Unlock()
	_, err := g.engine.ResumeTarget(g.ctx, invalidation.Caller{Kind: "anonymous", Name: "ops"}, target)
	if err != nil && !g.isDead() && !c.journalAway.Load() && !c.answersLost.Load() {
		c.broken("resume %s: %v", target, err)
	}
}

// pausedAt reports whether nothing may be sent to a target. The caller holds the lock.
func (c *chaos) pausedAt(target string, at time.Time) bool {
	return slices.ContainsFunc(c.pauses[target], func(s pauseSpan) bool {
		return at.After(s.from) && (s.to.IsZero() || at.Before(s.to))
	})
}

// beganAttempt: at a paused target none begins.
func (c *chaos) beganAttempt(x *attemptCall) {
	c.mu.Lock()
	paused := c.pausedAt(x.target, x.began)
	c.mu.Unlock()
	if paused {
		c.broken("%s: an attempt of %s began although the target is paused", x.target, x.key)
	}
}

// look previews a call, checks a target, and lists everything: none of it may change anything.
func (c *chaos) look(target string, call invalidation.Call) {
	c.clients.Go(func() {
		who := invalidation.Caller{Kind: "anonymous", Name: "anonymous"}
		call.ConfirmBroad = true
		_, _ = c.ask(false, func(g *gateway) error {
			c.count("previews")
			_, err := g.engine.Preview(g.ctx, who, call)
			return err
		})
		_, _ = c.ask(false, func(g *gateway) error {
			c.count("checks of targets")
			_, err := g.engine.CheckTarget(g.ctx, who, target)
			return err
		})
		_, _ = c.ask(false, func(g *gateway) error {
			invs, _, err := g.engine.List(g.ctx, who, invalidation.Query{Limit: 100})
			for _, inv := range invs {
				c.shown(inv)
			}
			return err
		})
	})
}

// describeCall is a call in a line.
func describeCall(call invalidation.Call) string {
	sel := call.Selector
	text := sel.Criteria().String()
	if sel.User != nil {
		text += " user=" + sel.User.ID
	}
	if sel.Provider != nil {
		text += " provider=" + sel.Provider.String()
	}
	if sel.Group != "" {
		text += " group=" + sel.Group
	}
	for _, s := range sel.Sessions {
		text += " " + seenKey(s.Target, adapters.SessionKey{Device: s.Device, ID: s.ID})
	}
	return text + " at " + strings.Join(call.Targets, ",") + " for " + call.RetryFor.String()
}
