package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/config/strictyaml"
	"github.com/endsession/endsession/server/invalidation"
)

// Case is a question to try a policy with, and the answer that is expected.
type Case struct {
	Name string
	// Question without names is resolved before it is asked.
	Question invalidation.Question
	// Allow is the answer that is expected.
	Allow bool
	// Rule and Reason, unless empty, are the rule that is to decide and why the answer is to be no.
	Rule   string
	Reason adapters.Reason
	// Where is the case's place in its file.
	Where string
}

// casesFile is a file of cases.
type casesFile struct {
	Cases []caseEntry `yaml:"cases"`
}

// caseEntry is a [Case] as it is written.
type caseEntry struct {
	Name    string              `yaml:"name"`
	Caller  caseCaller          `yaml:"caller"`
	Request caseRequest         `yaml:"request"`
	Names   map[string][]string `yaml:"names"`
	Expect  string              `yaml:"expect"`
	Rule    string              `yaml:"rule"`
	Reason  string              `yaml:"reason"`
}

type caseCaller struct {
	Kind        string           `yaml:"kind"`
	Name        string           `yaml:"name"`
	Groups      []string         `yaml:"groups"`
	Claims      map[string]any   `yaml:"claims"`
	Certificate *caseCertificate `yaml:"certificate"`
}

type caseCertificate struct {
	Subject    string   `yaml:"subject"`
	CommonName string   `yaml:"common_name"`
	DNS        []string `yaml:"dns"`
	Emails     []string `yaml:"emails"`
	URIs       []string `yaml:"uris"`
}

type caseRequest struct {
	Right      invalidation.Right `yaml:"right"`
	Selector   *caseSelector      `yaml:"selector"`
	Targets    []string           `yaml:"targets"`
	Labels     map[string]string  `yaml:"labels"`
	Reason     string             `yaml:"reason"`
	OnBehalfOf string             `yaml:"on_behalf_of"`
	Priority   string             `yaml:"priority"`
	Own        bool               `yaml:"own"`
}

type caseSelector struct {
	User     *caseUser     `yaml:"user"`
	Provider *caseProvider `yaml:"provider"`
	Group    string        `yaml:"group"`
	Sessions []caseSession `yaml:"sessions"`
	All      bool          `yaml:"all"`
}

type caseUser struct {
	ID              string              `yaml:"id"`
	Email           string              `yaml:"email"`
	Attributes      map[string]string   `yaml:"attributes"`
	TargetUsernames map[string][]string `yaml:"target_usernames"`
}

type caseProvider struct {
	Type string `yaml:"type"`
	Name string `yaml:"name"`
}

type caseSession struct {
	Target string `yaml:"target"`
	Device string `yaml:"device"`
	ID     string `yaml:"id"`
}

// ReadCases reads a file of cases for a gateway with these targets. The error holds everything that is wrong, with lines.
func ReadCases(file string, data []byte, targets []string) ([]Case, error) {
	d := strictyaml.Read(data, strictyaml.Options{File: file})
	if d.Root() == nil {
		return nil, d.Err()
	}
	var f casesFile
	d.Decode(d.Root(), "", &f)
	_, list := strictyaml.Lookup(d.Root(), "cases")
	if len(f.Cases) == 0 && !d.Reported("") {
		d.Problemf(d.Root().Line, "cases", "want at least one")
	}
	var cases []Case
	for i, e := range f.Cases {
		r := caseReader{Document: d, node: list.Content[i], path: strictyaml.Index("cases", i), targets: targets}
		if !d.Reported(r.path) {
			cases = append(cases, r.read(e))
		}
	}
	return cases, d.Err()
}

// caseReader makes a case of an entry.
type caseReader struct {
	*strictyaml.Document
	node    *yaml.Node
	path    string
	targets []string
}

// wrong notes a problem at a key of the entry, or of a mapping in it.
func (r caseReader) wrong(keys, format string, args ...any) {
	at, path, line := r.node, r.path, r.node.Line
	for key := range strings.SplitSeq(keys, ".") {
		k, v := strictyaml.Lookup(at, key)
		if path += "." + key; k != nil {
			line = k.Line
		}
		at = v
	}
	r.Problemf(line, path, format, args...)
}

func (r caseReader) read(e caseEntry) Case {
	right := e.Request.Right
	if right == "" {
		right = invalidation.RightInvalidate
	}
	c := Case{
		Name: e.Name, Allow: e.Expect == "allow", Rule: e.Rule, Reason: adapters.Reason(e.Reason),
		Where:    r.Where(r.node.Line, r.path),
		Question: invalidation.Question{Right: right, Caller: e.Caller.caller(), Names: e.Names, Own: e.Request.Own},
	}
	if strings.TrimSpace(e.Name) == "" {
		r.wrong("name", "required")
	}
	if e.Caller.Kind == "" || e.Caller.Name == "" {
		r.wrong("caller", "want kind and name")
	}
	if e.Expect != "allow" && e.Expect != "deny" {
		r.wrong("expect", "want allow or deny")
	}
	if e.Reason != "" && e.Expect == "allow" {
		r.wrong("reason", "is why the answer is no; the case expects yes")
	}
	for name := range e.Names {
		if !slices.Contains(r.targets, name) {
			r.wrong("names", "there is no target %q", name)
		}
	}
	r.request(&c, e)
	return c
}

func (c caseCaller) caller() invalidation.Caller {
	facts := &invalidation.Facts{Groups: c.Groups, Claims: c.Claims}
	if x := c.Certificate; x != nil {
		facts.Certificate = &invalidation.CertificateNames{
			Subject: x.Subject, CommonName: x.CommonName, DNS: x.DNS, Emails: x.Emails, URIs: x.URIs,
		}
	}
	return invalidation.Caller{Kind: c.Kind, Name: c.Name, Facts: facts}
}

// request fills in what would be asked, and refuses what the gateway would not ask a policy.
func (r caseReader) request(c *Case, e caseEntry) {
	x, q := e.Request, &c.Question
	for i, name := range x.Targets {
		if !slices.Contains(r.targets, name) {
			r.wrong("request.targets", "there is no target %q", name)
		}
		if slices.Index(x.Targets, name) != i {
			r.wrong("request.targets", "%q is named twice", name)
		}
	}
	given := x.Selector != nil || x.Labels != nil || x.Reason != "" || x.OnBehalfOf != "" || x.Priority != "" || e.Names != nil
	switch q.Right {
	case invalidation.RightInvalidate, invalidation.RightPreview, invalidation.RightRetry, invalidation.RightCancel:
		call := invalidation.Call{Labels: x.Labels, Reason: x.Reason, OnBehalfOf: x.OnBehalfOf, Targets: x.Targets}
		switch x.Priority {
		case "", "normal":
		case "bulk":
			call.Priority = invalidation.PriorityBulk
		default:
			r.wrong("request.priority", "want normal or bulk")
		}
		if x.Selector != nil {
			call.Selector = x.Selector.selector()
		}
		if err := call.Selector.Validate(); err != nil {
			r.wrong("request.selector", "%s", strings.TrimPrefix(err.Error(), "selector: "))
		}
		if len(call.Selector.Sessions) > 0 && len(x.Targets) > 0 {
			r.wrong("request.targets", "must be empty: the sessions name their targets")
		}
		q.Call = &call
		q.Targets = r.chosen(call)
	case invalidation.RightCheck, invalidation.RightPause:
		if given || len(x.Targets) != 1 {
			r.wrong("request", "%s is about one target, and nothing else is known", q.Right)
		}
		q.Targets = x.Targets
	case invalidation.RightRead, invalidation.RightReadOwn, invalidation.RightListTargets:
		if given || x.Targets != nil || x.Own {
			r.wrong("request", "%s is judged by the caller alone", q.Right)
		}
	default:
		r.wrong("request.right", "unknown right %q", q.Right)
	}
}

// chosen returns the targets that a call concerns, in the order of the configuration.
func (r caseReader) chosen(call invalidation.Call) []string {
	names := call.Targets
	if len(call.Selector.Sessions) > 0 {
		names = call.Selector.SessionTargets()
	}
	if len(names) == 0 {
		return r.targets
	}
	return slices.DeleteFunc(slices.Clone(r.targets), func(t string) bool { return !slices.Contains(names, t) })
}

func (x caseSelector) selector() invalidation.Selector {
	sel := invalidation.Selector{Group: x.Group, All: x.All}
	if u := x.User; u != nil {
		sel.User = &invalidation.User{ID: u.ID, Email: u.Email, Attributes: u.Attributes, TargetUsernames: u.TargetUsernames}
	}
	if p := x.Provider; p != nil {
		sel.Provider = &invalidation.Provider{Type: p.Type, Name: p.Name}
	}
	for _, s := range x.Sessions {
		sel.Sessions = append(sel.Sessions, invalidation.SessionRef{Target: s.Target, Device: s.Device, ID: s.ID})
	}
	return sel
}

// Verdict is what a policy says to a case.
type Verdict struct {
	Case     Case // with the names that were resolved
	Decision Decision
	// Unnamed says at which targets no names could be resolved, and why.
	Unnamed map[string]string
	// Protected are the targets at which one of the names is a protected person's, so that the run there would fail.
	Protected []string
	// Problems are in what the answer is not the one that is expected; none means that it is.
	Problems []string
}

// Try judges cases as the engine would: what is allowed is refused nevertheless if the user's id is a protected one.
func (p *Policy) Try(ctx context.Context, resolver invalidation.Resolver, cases []Case) ([]Verdict, error) {
	var verdicts []Verdict
	for _, c := range cases {
		v := Verdict{Case: c}
		q := &v.Case.Question
		if q.Names == nil && q.Call != nil {
			q.Names, v.Unnamed = resolve(ctx, resolver, *q)
		}
		var err error
		if v.Decision, err = p.Explain(ctx, *q); err != nil {
			return nil, err
		}
		p.brakes(&v)
		v.compare()
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

// brakes notes what protects people although the rules allow the call.
func (p *Policy) brakes(v *Verdict) {
	q := v.Case.Question
	ends := q.Right == invalidation.RightInvalidate || q.Right == invalidation.RightPreview
	if !ends || !v.Decision.Allowed || v.Decision.Terms.Protected {
		return
	}
	if u := q.Call.Selector.User; u != nil && p.Protects("", u.ID) {
		v.Decision.Allowed, v.Decision.Reason = false, adapters.ReasonProtected
		return
	}
	for _, target := range q.Targets {
		if slices.ContainsFunc(q.Names[target], func(name string) bool { return p.Protects(target, name) }) {
			v.Protected = append(v.Protected, target)
		}
	}
}

func (v *Verdict) compare() {
	word := map[bool]string{true: "allow", false: "deny"}
	wrong := func(what, want, got string) {
		if got == "" {
			got = "none"
		}
		v.Problems = append(v.Problems, fmt.Sprintf("want %s %s, got %s", what, want, got))
	}
	c, d := v.Case, v.Decision
	if c.Allow != d.Allowed {
		wrong("the answer", word[c.Allow], word[d.Allowed])
	}
	if c.Rule != "" && c.Rule != d.Rule {
		wrong("the rule", c.Rule, d.Rule)
	}
	if c.Reason != "" && c.Reason != d.Reason {
		wrong("the reason", string(c.Reason), string(d.Reason))
	}
}

// resolve names the people that a call would be sent for.
func resolve(ctx context.Context, resolver invalidation.Resolver, q invalidation.Question) (names map[string][]string, unnamed map[string]string) {
	names, unnamed = map[string][]string{}, map[string]string{}
	for _, target := range q.Targets {
		res, err := resolver.Resolve(ctx, target, q.Call.Selector)
		var public *invalidation.ResolveError
		switch {
		case errors.As(err, &public):
			unnamed[target] = fmt.Sprintf("%s: %s", public.Reason, public.Message)
		case err != nil:
			unnamed[target] = err.Error()
		case res.Nothing:
			unnamed[target] = "nothing can match there"
		}
		if err != nil || res.Nothing {
			continue
		}
		for _, u := range res.Selector.Users {
			if !slices.Contains(names[target], u.Name) {
				names[target] = append(names[target], u.Name)
			}
		}
	}
	return names, unnamed
}
