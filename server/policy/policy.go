package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// Options make a [Policy].
type Options struct {
	// Rules are in the order in which they are tried.
	Rules []Rule
	// Open allows everything, within the brakes, while there are no rules: for a gateway that serves its own machine only
	// and asks nobody who they are. Otherwise no rules allow nothing.
	Open bool
	// Protected are people whose sessions are ended nowhere, by any of their names.
	Protected []string
	Targets   []Target
}

// Target is what a policy knows of a target.
type Target struct {
	Name string
	Kind string
	// Account is the gateway's own account at the target; empty if it has none or it is not known.
	Account string
	// Protected are people whose sessions at this target are not ended, by their names there.
	Protected []string
}

// Rule is one rule.
type Rule struct {
	// Name is what the journal and explanations call the rule.
	Name string
	// Deny makes the rule one that refuses; otherwise it allows.
	Deny bool
	// When is the CEL expression that says which calls the rule is for.
	When string
	// Rights are what the rule is about; at least one.
	Rights []invalidation.Right
	// MayName allows calls that give more of a person than the id: e-mail address, attributes, names at targets.
	MayName bool
	// Terms, without their rule, are what the calls that it allows may do.
	Terms invalidation.Terms
	// Where begins the messages about the rule: its expression's place in the configuration.
	Where string
	// Hidden keeps the expression out of messages.
	Hidden bool
}

// Policy judges what callers ask. It is safe for concurrent use.
type Policy struct {
	rules    []rule
	open     bool
	guard    guard
	kinds    map[string]string // of targets, by name
	warnings []string
}

var _ invalidation.Policy = (*Policy)(nil)

// rule is a rule with its expression compiled.
type rule struct {
	Rule
	when program
}

// New compiles the rules. The error holds everything that is wrong, one problem a line.
func New(o Options) (*Policy, error) {
	p := &Policy{open: o.Open && len(o.Rules) == 0, kinds: map[string]string{}}
	var errs []error
	names := map[string]bool{}
	for _, r := range o.Rules {
		when, err := compile(r.When, r.Hidden)
		if err != nil {
			errs = append(errs, at(r.Where, err))
			continue
		}
		for _, problem := range r.problems(names) {
			errs = append(errs, at(r.Where, problem))
		}
		names[r.Name] = true
		p.rules = append(p.rules, rule{r, when})
		p.warnings = append(p.warnings, r.warnings(when)...)
	}
	if len(o.Rules) == 0 && !o.Open {
		p.warnings = append(p.warnings, "policy: there are no rules: nobody is allowed anything")
	}
	for _, t := range o.Targets {
		p.kinds[t.Name] = t.Kind
	}
	var err error
	p.guard, err = newGuard(o.Protected, o.Targets)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return p, nil
}

// problems says what is wrong with a rule beside its expression.
func (r Rule) problems(names map[string]bool) (problems []error) {
	if r.Name == "" || names[r.Name] {
		problems = append(problems, fmt.Errorf("a rule needs a name of its own, got %q", r.Name))
	}
	if len(r.Rights) == 0 {
		problems = append(problems, fmt.Errorf("rule %s: no rights", r.Name))
	}
	for _, right := range r.Rights {
		if !slices.Contains(invalidation.Rights, right) {
			problems = append(problems, fmt.Errorf("rule %s: unknown right %q", r.Name, right))
		}
	}
	if r.Deny && (r.MayName || r.Terms != invalidation.Terms{}) {
		problems = append(problems, fmt.Errorf("rule %s: it denies, so it cannot say how much is allowed", r.Name))
	}
	return problems
}

// at puts a place before each line of err.
func at(where string, err error) error {
	if where == "" {
		return err
	}
	return errors.New(where + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+where+": "))
}

// Warnings are what is allowed in the rules and unwise, each with its place.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

// Judge decides about one question. The error is an [*invalidation.CallError] with code [invalidation.Denied] if the
// answer is no, and the context's if there was no time to find out: that is no answer.
func (p *Policy) Judge(ctx context.Context, q invalidation.Question) (invalidation.Terms, error) {
	d, err := p.decide(ctx, q, func(Step) {})
	if err != nil {
		return invalidation.Terms{}, err
	}
	if !d.Allowed {
		return invalidation.Terms{}, denial(q.Right, d.Reason)
	}
	return d.Terms, nil
}

// denial says which right is missing. It says nothing about rules, which are nobody's business but the operator's.
func denial(right invalidation.Right, reason adapters.Reason) *invalidation.CallError {
	message := fmt.Sprintf("the policy does not grant the right %q", right)
	if reason == adapters.ReasonNamesNotAllowed {
		message += " for a user who is given by more than the id: leave out e-mail address, attributes and names at targets"
	}
	return &invalidation.CallError{Code: invalidation.Denied, Reason: reason, Message: message}
}

// Decision is the answer to a question, and how it came about.
type Decision struct {
	Allowed bool
	// Terms hold, if the answer is yes, what is allowed and by which rule.
	Terms invalidation.Terms
	// Rule is the rule that decided; empty if none did.
	Rule string
	// Reason is why the answer is no.
	Reason adapters.Reason
	// Steps are the rules that were looked at, in order.
	Steps []Step
}

// Step is what became of one rule.
type Step struct {
	Rule    string
	Outcome Outcome
	// Err is why the expression could not be evaluated. It may quote what the question holds.
	Err error
}

// Outcome is what became of a rule.
type Outcome string

// What can become of a rule.
const (
	// OtherRights: the rule is not about the right.
	OtherRights Outcome = "is about other rights"
	NoMatch     Outcome = "does not match"
	// Failed: the expression of a rule that allows cannot be evaluated, which is no match.
	Failed Outcome = "cannot be evaluated, which is no match"
	// NotNaming: the rule matches, but the call gives more of a person than the rule lets it.
	NotNaming Outcome = "matches, but is passed over: without may_name, a call gives no more of a person than the id"
	Allows    Outcome = "matches and allows"
	Denies    Outcome = "matches and denies"
	// FailedDenies: the expression of a rule that denies cannot be evaluated, which is a match.
	FailedDenies Outcome = "cannot be evaluated, which denies"
)

// Explain decides like [Policy.Judge] and tells what became of each rule. It is for operators.
func (p *Policy) Explain(ctx context.Context, q invalidation.Question) (Decision, error) {
	var steps []Step
	d, err := p.decide(ctx, q, func(s Step) { steps = append(steps, s) })
	d.Steps = steps
	return d, err
}

func (p *Policy) decide(ctx context.Context, q invalidation.Question, note func(Step)) (Decision, error) {
	if p.open {
		return Decision{Allowed: true, Terms: invalidation.Terms{Unlimited: true}}, nil
	}
	no := Decision{Reason: adapters.ReasonPolicyDenied}
	in := &input{question: q, kinds: p.kinds}
	for _, r := range p.rules {
		step := Step{Rule: r.Name, Outcome: OtherRights}
		if !slices.Contains(r.Rights, q.Right) {
			note(step)
			continue
		}
		matches, err := r.when.matches(ctx, in)
		if err != nil && ctx.Err() != nil {
			return Decision{}, fmt.Errorf("judge by policy: %w", ctx.Err())
		}
		switch step.Err = err; {
		case err != nil && r.Deny:
			step.Outcome = FailedDenies
		case err != nil:
			step.Outcome = Failed
		case !matches:
			step.Outcome = NoMatch
		case r.Deny:
			step.Outcome = Denies
		case naming(q) && !r.MayName:
			step.Outcome = NotNaming
			no.Reason = adapters.ReasonNamesNotAllowed
		default:
			step.Outcome = Allows
		}
		note(step)
		switch step.Outcome {
		case Allows:
			d := Decision{Allowed: true, Terms: r.Terms, Rule: r.Name}
			d.Terms.Rule = r.Name
			return d, nil
		case Denies, FailedDenies:
			no.Rule = r.Name
			return no, nil
		}
	}
	return no, nil
}

// naming reports whether a call names a person by more than the id. To cancel what somebody else named is not to name;
// and what is retried is judged as a call to invalidate, too.
func naming(q invalidation.Question) bool {
	if q.Call == nil || q.Call.Selector.User == nil || q.Right != invalidation.RightInvalidate && q.Right != invalidation.RightPreview {
		return false
	}
	u := q.Call.Selector.User
	return u.Email != "" || len(u.Attributes) > 0 || len(u.TargetUsernames) > 0
}

// Protects reports whether a name is one of a protected person's at a target; target is empty for the id that callers
// know a person by. The account that the gateway uses at a target is protected there, and as an id.
func (p *Policy) Protects(target, name string) bool { return p.guard.protects(target, name) }

// ProtectsPerson is Protects without the account that the gateway uses at the target.
func (p *Policy) ProtectsPerson(target, name string) bool {
	return p.guard.matches(p.guard.people[target], name)
}

// ProtectsAny reports whether people are configured as protected at a target.
func (p *Policy) ProtectsAny(target string) bool { return p.guard.any(target) }
