package invalidation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/endsession/endsession/adapters"
)

// judge asks the policy. What it refuses is noted in the audit trail.
func (e *Engine) judge(ctx context.Context, q Question) (Terms, error) {
	terms, err := e.policy.Judge(ctx, q)
	if err == nil {
		return terms, nil
	}
	if ctx.Err() != nil {
		// No answer, which is not the same as no.
		return Terms{}, &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "the call ended before it was judged", Err: err}
	}
	var ce *CallError
	if !errors.As(err, &ce) || ce.Code != Denied {
		ce = &CallError{Code: Denied, Reason: adapters.ReasonPolicyDenied, Err: err,
			Message: fmt.Sprintf("the policy does not grant the right %q", q.Right)}
	}
	e.noteDenial(ctx, q, ce)
	return Terms{}, ce
}

// noteDenial journals who was refused what, and why it was asked for.
func (e *Engine) noteDenial(ctx context.Context, q Question, ce *CallError) {
	data := struct {
		Right   Right           `json:"right"`
		Reason  adapters.Reason `json:"reason"`
		Message string          `json:"message,omitempty"`
		Call    *Call           `json:"call,omitempty"`
		Targets []string        `json:"targets,omitempty"`
	}{q.Right, ce.Reason, ce.Message, q.Call, q.Targets}
	e.Note(ctx, q.Caller.Kind+" "+q.Caller.Name, Event{Type: EventDenied, Caller: q.Caller, Data: mustJSON(data)})
}

// names are the names of people that runs would really send, by target.
func names(runs []Run) map[string][]string {
	all := map[string][]string{}
	for _, r := range runs {
		if r.Selector == nil {
			continue
		}
		for _, u := range r.Selector.Users {
			if !slices.Contains(all[r.Target], u.Name) {
				all[r.Target] = append(all[r.Target], u.Name)
			}
		}
	}
	return all
}

func targetsOf(runs []Run) []string {
	all := make([]string, len(runs))
	for i, r := range runs {
		all[i] = r.Target
	}
	return all
}

// permit judges a call with the runs it comes to, and puts the brakes on the runs.
func (e *Engine) permit(ctx context.Context, right Right, caller Caller, call Call, runs []Run) error {
	q := Question{Right: right, Caller: caller, Call: &call, Targets: targetsOf(runs), Names: names(runs)}
	terms, err := e.judge(ctx, q)
	if err != nil {
		return err
	}
	if e.spares(call.Selector, terms) {
		ce := &CallError{Code: Denied, Reason: adapters.ReasonProtected, Message: "the user is protected"}
		e.noteDenial(ctx, q, ce)
		return ce
	}
	for i, r := range runs {
		runs[i] = e.brake(r, terms)
	}
	return nil
}

// spares reports whether the person that a selector names is protected, whatever the names at the targets.
func (e *Engine) spares(sel Selector, terms Terms) bool {
	return sel.User != nil && !terms.Protected && e.policy.Protects("", sel.User.ID)
}

// brake keeps a run within the terms under which it is let through: it ends one that must not, or cannot be known to,
// stay within them. What can only be seen in the target's own list is left to [Engine.vetting].
func (e *Engine) brake(run Run, terms Terms) Run {
	run.Terms = terms
	if run.Selector == nil {
		return run
	}
	at := run.NextAttemptTime
	refuse := func(reason adapters.Reason, message string) Run {
		run.Error = &RunError{Reason: reason, Message: message}
		run.Selector = nil
		return fail(run, at)
	}
	if !terms.Protected {
		for _, u := range run.Selector.Users {
			if e.policy.Protects(run.Target, u.Name) {
				return refuse(adapters.ReasonProtected, "one of the names at the target is a protected user's; nothing was sent")
			}
		}
	}
	if !run.Selector.By.Broad() || e.workers[run.Target].target.Type.ListsSessions {
		return run
	}
	switch {
	case !terms.Protected && e.policy.ProtectsAny(run.Target):
		return refuse(adapters.ReasonProtected,
			"protected users may be among those signed out: the target cannot list them first; nothing was sent")
	case !terms.Unlimited:
		return refuse(adapters.ReasonTooManySessions,
			"the target cannot list how many sessions would end, and the caller's right is not unlimited; nothing was sent")
	}
	return run
}

// vetting returns what judges the sessions that an attempt is about to end. Protected people are those of now: who has
// been protected since the run was accepted is spared.
func (e *Engine) vetting(run Run) adapters.Vetting {
	seen := map[adapters.SessionKey]struct{}{}
	return func(sessions []adapters.Session, opaque bool) error {
		refuse := func(reason adapters.Reason, format string, args ...any) error {
			return &adapters.Error{Kind: adapters.Rejected, Why: reason, Message: fmt.Sprintf(format, args...)}
		}
		for _, s := range sessions {
			seen[s.Key()] = struct{}{}
		}
		if limit := run.Terms.MaxSessions; limit > 0 && run.Count+len(seen) > limit {
			return refuse(adapters.ReasonTooManySessions, "%d sessions match, and the caller may end %d", run.Count+len(seen), limit)
		}
		if run.Terms.Protected {
			return nil
		}
		for _, s := range sessions {
			if s.Username != "" && e.policy.ProtectsPerson(run.Target, s.Username) {
				return refuse(adapters.ReasonProtected, "a protected user's session is among those that match")
			}
		}
		if opaque && run.Selector.By.Broad() && e.policy.ProtectsAny(run.Target) {
			return refuse(adapters.ReasonProtected, "some of the sessions that match are listed under random names: they may be a protected user's")
		}
		return nil
	}
}

// readable reports whether a caller may know of an invalidation.
func (e *Engine) readable(ctx context.Context, caller Caller, inv Invalidation) bool {
	if _, err := e.policy.Judge(ctx, Question{Right: RightRead, Caller: caller}); err == nil {
		return true
	}
	if !inv.Caller.Is(caller) {
		return false
	}
	_, err := e.policy.Judge(ctx, Question{Right: RightReadOwn, Caller: caller})
	return err == nil
}

// readScope restricts a query to what a caller may read.
func (e *Engine) readScope(ctx context.Context, caller Caller, q Query) (Query, error) {
	if _, err := e.policy.Judge(ctx, Question{Right: RightRead, Caller: caller}); err == nil {
		return q, nil
	}
	if _, err := e.judge(ctx, Question{Right: RightReadOwn, Caller: caller}); err != nil {
		return Query{}, err
	}
	q.OnlyOf = &caller
	return q, nil
}

// about is the question whether a caller may do something to an invalidation.
func about(right Right, caller Caller, inv Invalidation) Question {
	return Question{Right: right, Caller: caller, Call: &inv.Call, Targets: targetsOf(inv.Runs), Names: names(inv.Runs),
		Own: inv.Caller.Is(caller)}
}
