package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/config/strictyaml"
	"github.com/endsession/endsession/server/invalidation"
)

// Rule is one rule of the policy. Rules are tried in order, among those that are about the right in question; the first
// that matches decides, and if none does the answer is no.
type Rule struct {
	// Name is what the journal and explanations call the rule: lower-case letters, digits and hyphens, at most 63.
	Name string `yaml:"name"`
	// Allow is a CEL expression over caller, request and targets; where it is true the rule allows. A rule has either
	// allow or deny.
	Allow string `yaml:"allow,omitempty"`
	// Deny is the same for a rule that refuses.
	Deny string `yaml:"deny,omitempty"`
	// Rights are what the rule is about: invalidate, preview, read, read_own, retry, cancel, list_targets, check, pause.
	// Default: [invalidate, preview].
	Rights []invalidation.Right `yaml:"rights,flow"`
	// MayName lets calls give more of a person than the id: e-mail address, attributes, names at targets.
	MayName bool `yaml:"may_name,omitempty"`
	// Protected lets calls end sessions of protected people.
	Protected bool `yaml:"protected,omitempty"`
	// MaxSessions is how many sessions a run may end, 1 to 1000000, where the target can list them first. Default: no limit.
	MaxSessions int `yaml:"max_sessions,omitempty"`
	// Unlimited lets broad calls go to targets that cannot list what would end.
	Unlimited bool `yaml:"unlimited,omitempty"`

	// Where is the expression's place in the file, for messages.
	Where string `yaml:"-"`
	// Hidden says that the expression came out of a variable or a file and is not to be shown.
	Hidden bool `yaml:"-"`
}

// Protected names people whose sessions are not ended.
type Protected struct {
	// Users are people's ids or names. Cases, accents, compatibility forms and domains make no difference.
	Users []string `yaml:"users,flow"`
}

// Limits bound what callers may do.
type Limits struct {
	// CallsPerCaller is how often each caller may call: "50/s", "1000/m".
	CallsPerCaller Rate `yaml:"calls_per_caller"`
	// Burst is how many calls may come at once, 1 to 1000000. Default: as many as calls_per_caller names.
	Burst int `yaml:"burst,omitempty"`
}

const (
	maxSessionsBound = 1_000_000
	maxBurst         = 1_000_000
)

// SetDefaults implements [strictyaml.Defaulter].
func (r *Rule) SetDefaults() {
	r.Rights = []invalidation.Right{invalidation.RightInvalidate, invalidation.RightPreview}
}

// When is the rule's expression.
func (r Rule) When() string { return r.Allow + r.Deny }

// MarshalYAML writes the form it is read from, without what is not to be shown.
func (r Rule) MarshalYAML() (any, error) {
	type plain Rule
	if r.Hidden && r.Allow != "" {
		r.Allow = secret.Redacted
	}
	if r.Hidden && r.Deny != "" {
		r.Deny = secret.Redacted
	}
	return plain(r), nil
}

// policy checks the rules. What their expressions mean is package policy's to say.
func (p *parser) policy() {
	key, n := strictyaml.Lookup(p.Root(), "policy")
	if n == nil || n.Kind != yaml.SequenceNode || p.Broken(n) {
		return
	}
	if len(n.Content) == 0 {
		p.Problemf(key.Line, "policy", "has no rules: nobody would be allowed anything")
	}
	names := map[string]int{}
	var sound []Rule
	for i, item := range n.Content {
		path, before := strictyaml.Index("policy", i), p.Count()
		if item.Kind != yaml.MappingNode || p.Broken(item) {
			continue
		}
		r := &p.config.Policy[i]
		p.ruleName(r, item, path, names)
		p.expression(r, item, path)
		p.rights(r, item, path)
		p.terms(r, item, path)
		if p.Count() == before && !p.Reported(path) {
			sound = append(sound, *r)
		}
	}
	p.config.Policy = sound
}

func (p *parser) ruleName(r *Rule, n *yaml.Node, path string, names map[string]int) {
	v := p.required(n, path, "name")
	at := path + ".name"
	if v == nil || p.Reported(at) {
		return
	}
	line, taken := names[r.Name]
	switch {
	case !targetName.MatchString(r.Name) || len(r.Name) > maxNameLength:
		p.Invalid(v, v.Line, at, errors.New("want lower-case letters, digits and hyphens, a letter or digit at both ends, at most 63"))
	case taken:
		p.Invalid(v, v.Line, at, fmt.Errorf("the name is taken by the rule in line %d", line))
	}
	names[r.Name] = v.Line
}

func (p *parser) expression(r *Rule, n *yaml.Node, path string) {
	_, allow := strictyaml.Lookup(n, "allow")
	_, deny := strictyaml.Lookup(n, "deny")
	v, at := allow, path+".allow"
	switch {
	case allow == nil && deny == nil:
		p.Problemf(n.Line, path, "want allow or deny, with a CEL expression")
		return
	case allow != nil && deny != nil:
		p.Problemf(deny.Line, path+".deny", "the rule has allow already (line %d); make two rules of it", allow.Line)
		return
	case allow == nil:
		v, at = deny, path+".deny"
	}
	r.Where, r.Hidden = p.Where(v.Line, at), p.Expanded(v)
	if !p.Reported(at) && strings.TrimSpace(r.When()) == "" {
		p.Invalid(v, v.Line, at, errors.New("empty expression"))
	}
}

func (p *parser) rights(r *Rule, n *yaml.Node, path string) {
	_, v := strictyaml.Lookup(n, "rights")
	at := path + ".rights"
	if v == nil || v.Kind != yaml.SequenceNode || p.Broken(v) || p.Reported(at) {
		return
	}
	if len(v.Content) == 0 {
		p.Problemf(v.Line, at, "empty; leave the key out for [%s, %s]", invalidation.RightInvalidate, invalidation.RightPreview)
	}
	for i, item := range v.Content {
		at := strictyaml.Index(at, i)
		switch right := r.Rights[i]; {
		case !slices.Contains(invalidation.Rights, right):
			var known []string
			for _, k := range invalidation.Rights {
				known = append(known, string(k))
			}
			p.Invalid(item, item.Line, at, fmt.Errorf("unknown right; want one of %s", strings.Join(known, ", ")))
		case slices.Index(r.Rights, right) != i:
			p.Invalid(item, item.Line, at, errors.New("named twice"))
		}
	}
}

func (p *parser) terms(r *Rule, n *yaml.Node, path string) {
	if _, v := strictyaml.Lookup(n, "max_sessions"); v != nil {
		p.within(v, path+".max_sessions", r.MaxSessions, maxSessionsBound)
	}
	if _, deny := strictyaml.Lookup(n, "deny"); deny == nil {
		return
	}
	for _, word := range []string{"may_name", "protected", "max_sessions", "unlimited"} {
		if key, _ := strictyaml.Lookup(n, word); key != nil {
			p.Problemf(key.Line, strictyaml.Join(path, word), "a rule that denies cannot say how much is allowed")
		}
	}
}

// within checks that a number is 1 to most.
func (p *parser) within(v *yaml.Node, path string, n, most int) {
	if !p.Reported(path) && (n < 1 || n > most) {
		p.Invalid(v, v.Line, path, fmt.Errorf("want 1 to %d", most))
	}
}

// protected checks the list of protected people under the key of that name in n.
func (p *parser) protected(n *yaml.Node, path string, x *Protected) {
	_, section := strictyaml.Lookup(n, "protected")
	at := strictyaml.Join(path, "protected")
	if section == nil || section.Kind != yaml.MappingNode || p.Broken(section) || x == nil {
		return
	}
	users := p.required(section, at, "users")
	at += ".users"
	if users == nil || users.Kind != yaml.SequenceNode || p.Broken(users) {
		return
	}
	if len(users.Content) == 0 {
		p.Problemf(users.Line, at, "empty; name people, or leave protected out")
	}
	for i, item := range users.Content {
		if at := strictyaml.Index(at, i); !p.Reported(at) && strings.TrimSpace(x.Users[i]) == "" {
			p.Invalid(item, item.Line, at, errors.New("empty"))
		}
	}
}

func (p *parser) limits() {
	_, n := strictyaml.Lookup(p.Root(), "limits")
	l := p.config.Limits
	if n == nil || n.Kind != yaml.MappingNode || l == nil {
		return
	}
	_, burst := strictyaml.Lookup(n, "burst")
	switch {
	case p.Reported("limits.calls_per_caller"):
	case l.CallsPerCaller.IsZero():
		p.Problemf(n.Line, "limits.calls_per_caller", "required")
	case burst == nil:
		l.Burst = l.CallsPerCaller.Requests
	}
	if burst != nil {
		p.within(burst, "limits.burst", l.Burst, maxBurst)
	}
}
