package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// DefaultMaxMembers is how many members a group of the directory may have if its mapping does not say.
const DefaultMaxMembers = 500

// Options make a [Resolver].
type Options struct {
	Targets []Target
	// Directory is asked for people and for groups' members; nil if there is none.
	Directory Directory
	// FailMissing fails runs for a user whom the directory does not know, instead of going on with what the caller gave.
	FailMissing bool
}

// Target is what the configuration says of names at one target.
type Target struct {
	Name string
	// Type brings the kind's criteria and default providers.
	Type adapters.Type
	// Usernames name a person at the target; none means user.id.
	Usernames []Username
	// Providers maps "type" and "type/name", in the API's words, to the target's own.
	Providers map[string][]adapters.Provider
	Groups    map[string]Group
}

// Username is an expression that yields names of a person.
type Username struct {
	// Provider, as "type" or "type/name" in the API's words, is where the names count; empty means everywhere.
	Provider string
	// Name is the CEL expression.
	Name string
	// Where begins the messages about the expression: its place in the configuration.
	Where string
	// Hidden keeps the expression out of messages.
	Hidden bool
}

// Group is what a group is at a target: groups of its own, or a group of the directory.
type Group struct {
	Groups    []adapters.Group
	Directory string
	// MaxMembers bounds a group of the directory; 0 means [DefaultMaxMembers].
	MaxMembers int
	// Where begins the messages about the mapping: its place in the configuration.
	Where string
}

// Resolver resolves selectors. It is safe for concurrent use.
type Resolver struct {
	targets     map[string]*target
	directory   Directory
	failMissing bool
}

var _ invalidation.Resolver = (*Resolver)(nil)

type target struct {
	Target
	entries []entry
}

// entry is one of a target's usernames, compiled.
type entry struct {
	program program
	at      []adapters.Provider // nil: everywhere
}

// New compiles what the configuration says. The error holds everything that is wrong, one problem a line.
func New(o Options) (*Resolver, error) {
	r := &Resolver{targets: map[string]*target{}, directory: o.Directory, failMissing: o.FailMissing}
	var errs []error
	for _, conf := range o.Targets {
		t := &target{Target: conf}
		if len(t.Usernames) == 0 {
			t.Usernames = []Username{{Name: "user.id"}}
		}
		for _, u := range t.Usernames {
			e, err := t.entry(u)
			if err != nil {
				errs = append(errs, at(u.Where, err))
			}
			t.entries = append(t.entries, e)
		}
		for _, name := range slices.Sorted(maps.Keys(t.Groups)) {
			if err := r.checkGroup(t.Groups[name]); err != nil {
				errs = append(errs, at(t.Groups[name].Where, err))
			}
		}
		if r.targets[t.Name] != nil {
			errs = append(errs, fmt.Errorf("target %s: configured twice", t.Name))
		}
		r.targets[t.Name] = t
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return r, nil
}

// at puts a place before each line of err.
func at(where string, err error) error {
	if where == "" {
		return err
	}
	return errors.New(where + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+where+": "))
}

func (t *target) entry(u Username) (entry, error) {
	var e entry
	var problem error
	if u.Provider != "" {
		kind, name, _ := strings.Cut(u.Provider, "/")
		ps := t.configured(invalidation.Provider{Type: kind, Name: name})
		if len(ps) == 0 {
			problem = fmt.Errorf("provider %q: the target maps no such provider", u.Provider)
		}
		e.at = ps
	}
	p, err := compile(u.Name, u.Hidden)
	e.program = p
	return e, errors.Join(problem, err)
}

func (r *Resolver) checkGroup(g Group) error {
	if g.Directory == "" {
		if len(g.Groups) == 0 {
			return errors.New("the group is mapped to nothing")
		}
		return nil
	}
	if r.directory == nil {
		return errors.New("there is no directory")
	}
	if d, ok := r.directory.(interface{ CheckGroup(name string) error }); ok {
		return d.CheckGroup(g.Directory)
	}
	return nil
}

// Resolve turns a selector into the target's own names. The error is an [*invalidation.ResolveError], perhaps with a
// cause for the log around it.
func (r *Resolver) Resolve(ctx context.Context, name string, sel invalidation.Selector) (invalidation.Resolution, error) {
	t := r.targets[name]
	if t == nil {
		return invalidation.Resolution{}, failed(adapters.ReasonTargetRemoved, "the target is not configured")
	}
	if err := sel.Validate(); err != nil {
		return invalidation.Resolution{}, failed(invalidation.ReasonInvalidArgument, err.Error())
	}
	res, err := r.resolve(ctx, t, sel)
	if err != nil {
		return invalidation.Resolution{}, err
	}
	if res.Nothing {
		return res, nil
	}
	if err := res.Selector.Validate(); err != nil {
		return invalidation.Resolution{}, failed(adapters.ReasonInternal, "the selector cannot be resolved: "+err.Error())
	}
	return res, nil
}

func (r *Resolver) resolve(ctx context.Context, t *target, sel invalidation.Selector) (invalidation.Resolution, error) {
	switch {
	case sel.All:
		return invalidation.Resolution{Selector: adapters.Selector{By: adapters.All}}, nil
	case len(sel.Sessions) > 0:
		return t.sessions(sel.Sessions), nil
	}
	var out adapters.Selector
	if sel.Provider != nil {
		ps, err := t.providers(*sel.Provider)
		if err != nil {
			return invalidation.Resolution{}, err
		}
		out.By |= adapters.ByProvider
		out.Providers = ps
	}
	var group Group
	if sel.Group != "" {
		g, ok := t.Groups[sel.Group]
		switch {
		case !ok && len(t.Groups) == 0:
			return invalidation.Resolution{}, unsupported(adapters.ReasonSelectorUnsupported, "the target maps no groups")
		case !ok:
			return invalidation.Resolution{}, unsupported(adapters.ReasonUnknownGroup, "the target does not map the group")
		}
		group = g
		if g.Directory == "" {
			out.By |= adapters.ByGroup
			out.Groups = slices.Clone(g.Groups)
		}
	}
	var warnings []adapters.Warning
	switch {
	case sel.User != nil:
		if group.Directory != "" {
			member, err := r.directory.IsMember(ctx, group.Directory, sel.User.ID)
			if err != nil {
				return invalidation.Resolution{}, directoryError(err)
			}
			if !member {
				return nothing("the user is not a member of the group"), nil
			}
		}
		users, warned, err := r.user(ctx, t, *sel.User, out)
		if err != nil {
			return invalidation.Resolution{}, err
		}
		out.By |= adapters.ByUser
		out.Users, warnings = users, warned
	case group.Directory != "":
		users, err := r.members(ctx, t, group, out)
		if err != nil {
			return invalidation.Resolution{}, err
		}
		if len(users) == 0 {
			return nothing("the group has no members"), nil
		}
		out.By |= adapters.ByUser
		out.Users = users
	}
	return invalidation.Resolution{Selector: out, Warnings: warnings}, nil
}

func (t *target) sessions(refs []invalidation.SessionRef) invalidation.Resolution {
	out := adapters.Selector{By: adapters.BySessions}
	for _, ref := range refs {
		key := adapters.SessionKey{Device: ref.Device, ID: ref.ID}
		if ref.Target == t.Name && !slices.Contains(out.Sessions, key) {
			out.Sessions = append(out.Sessions, key)
		}
	}
	if len(out.Sessions) == 0 {
		return nothing("none of the sessions is the target's")
	}
	return invalidation.Resolution{Selector: out}
}

// configured returns what the configuration, or the kind, says a provider is; nil if neither does.
func (t *target) configured(p invalidation.Provider) []adapters.Provider {
	if ps := t.Providers[p.String()]; len(ps) > 0 {
		return slices.Clone(ps)
	}
	if p.Name == "" {
		return slices.Clone(t.Type.DefaultProviders[p.Type])
	}
	return nil
}

func (t *target) providers(p invalidation.Provider) ([]adapters.Provider, error) {
	if ps := t.configured(p); len(ps) > 0 {
		return ps, nil
	}
	if p.Name == "" {
		return nil, unsupported(adapters.ReasonSelectorUnsupported, fmt.Sprintf("the target has no provider of type %s, and none is mapped", p.Type))
	}
	if !t.Type.ListsProviders {
		return nil, unsupported(adapters.ReasonUnknownProvider, "the target does not map the provider")
	}
	var ps []adapters.Provider
	for _, own := range t.Type.DefaultProviders[p.Type] {
		if own.Name == "" {
			ps = append(ps, adapters.Provider{Type: own.Type, Name: p.Name, MustBeListed: true})
		}
	}
	if len(ps) == 0 {
		return nil, unsupported(adapters.ReasonUnknownProvider, "the target does not map the provider")
	}
	return ps, nil
}

// user names the user of a selector whose other criteria are in sel.
func (r *Resolver) user(ctx context.Context, t *target, u invalidation.User, sel adapters.Selector) ([]adapters.User, []adapters.Warning, error) {
	// Names that the caller gave for this very target need no directory: they work while it is down.
	if given, ok := u.TargetUsernames[t.Name]; ok {
		var users []adapters.User
		for _, name := range given {
			if strings.TrimSpace(name) == "" {
				return nil, nil, failed(adapters.ReasonNoIdentity, "a name given for the target is empty")
			}
			users = add(users, adapters.User{Name: name})
		}
		if len(users) == 0 {
			return nil, nil, failed(adapters.ReasonNoIdentity, "no name is given for the target")
		}
		return users, nil, nil
	}
	p, warnings, err := r.person(ctx, u)
	if err != nil {
		return nil, nil, err
	}
	users, err := t.names(p, sel)
	if err != nil {
		return nil, nil, nameless("the user", err)
	}
	return users, warnings, nil
}

// person joins what the caller gave and what the directory knows.
func (r *Resolver) person(ctx context.Context, u invalidation.User) (Person, []adapters.Warning, error) {
	p := Person{ID: u.ID, Email: u.Email, Attributes: u.Attributes}
	if r.directory == nil {
		return p, nil, nil
	}
	known, ok, err := r.directory.Person(ctx, u.ID)
	switch {
	case err != nil:
		return Person{}, nil, directoryError(err)
	case !ok && r.failMissing:
		return Person{}, nil, failed(adapters.ReasonNoIdentity, "the directory does not know the user")
	case !ok:
		return p, []adapters.Warning{{
			Code: adapters.WarnNotInDirectory, Message: "the directory does not know the user; what the caller gave was used",
		}}, nil
	}
	p.ID, p.Emails, p.Several = known.ID, known.Emails, known.Several
	switch {
	case u.Email == "":
		p.Email = known.Email
	case known.Email != "" && u.Email != known.Email, known.Emails != nil && !slices.Contains(known.Emails, u.Email):
		return Person{}, nil, failed(adapters.ReasonAmbiguousIdentity, "the directory has another e-mail address for the user than the caller gave")
	}
	p.Attributes = map[string]string{}
	maps.Copy(p.Attributes, known.Attributes)
	for _, key := range slices.Sorted(maps.Keys(u.Attributes)) {
		given := u.Attributes[key]
		one, single := known.Attributes[key]
		if several, ok := known.Several[key]; single && given != one || ok && !slices.Contains(several, given) {
			return Person{}, nil, failed(adapters.ReasonAmbiguousIdentity,
				fmt.Sprintf("the directory has another value for the user's attribute %q than the caller gave", key))
		}
		p.Attributes[key] = given
	}
	return p, nil, nil
}

// members names everybody in a group of the directory.
func (r *Resolver) members(ctx context.Context, t *target, g Group, sel adapters.Selector) ([]adapters.User, error) {
	limit := g.MaxMembers
	if limit <= 0 {
		limit = DefaultMaxMembers
	}
	people, err := r.directory.Members(ctx, g.Directory, limit+1)
	if err != nil {
		return nil, directoryError(err)
	}
	if len(people) > limit {
		return nil, failed(adapters.ReasonTooManyMembers, fmt.Sprintf("the group has more than %d members", limit))
	}
	var users []adapters.User
	for _, p := range people {
		names, err := t.names(p, sel)
		if err != nil {
			return nil, nameless(fmt.Sprintf("member %q of the group", p.ID), err)
		}
		for _, u := range names {
			users = add(users, u)
		}
	}
	return users, nil
}

// names evaluates the entries that apply within the selector's providers. If any of them yields no name, there is
// none: part of a person's names would leave sessions alive and look like success.
func (t *target) names(p Person, sel adapters.Selector) (users []adapters.User, err error) {
	for i, e := range t.entries {
		if e.at != nil && sel.By.Has(adapters.ByProvider) && len(adapters.Intersect(e.at, sel.Providers)) == 0 {
			continue
		}
		names, err := e.program.eval(p)
		if err != nil {
			return nil, fmt.Errorf("usernames[%d] %w", i, err)
		}
		for _, name := range names {
			users = add(users, adapters.User{Name: name, At: slices.Clone(e.at)})
		}
	}
	if len(users) == 0 {
		return nil, errors.New("none of its usernames applies to the provider")
	}
	return users, nil
}

// nameless says what it means to a run that somebody has no name.
func nameless(who string, err error) error {
	reason := adapters.ReasonNoIdentity
	if errors.Is(err, errSeveral) {
		reason = adapters.ReasonAmbiguousIdentity
	}
	return failed(reason, who+" has no name at the target: "+err.Error())
}

// add appends u unless it is there already.
func add(users []adapters.User, u adapters.User) []adapters.User {
	if slices.ContainsFunc(users, func(x adapters.User) bool { return x.Name == u.Name && slices.Equal(x.At, u.At) }) {
		return users
	}
	return append(users, u)
}

// Supported returns the combinations of criteria, in the API's words, that can be resolved for a target and that its
// kind can then express. It is nil for a target that is not configured.
func (r *Resolver) Supported(name string) []adapters.Criteria {
	t := r.targets[name]
	if t == nil {
		return nil
	}
	var native, directory bool
	for _, g := range t.Groups {
		native = native || g.Directory == ""
		directory = directory || g.Directory != ""
	}
	hasProviders := len(t.Providers)+len(t.Type.DefaultProviders) > 0
	var out []adapters.Criteria
	for c := adapters.ByUser; c <= adapters.ByUser|adapters.ByProvider|adapters.ByGroup; c++ {
		if c.Has(adapters.ByProvider) && !hasProviders {
			continue
		}
		asMembers := c&^adapters.ByGroup | adapters.ByUser
		switch {
		case !c.Has(adapters.ByGroup) && t.Type.Supports(c),
			c.Has(adapters.ByGroup) && native && t.Type.Supports(c),
			c.Has(adapters.ByGroup) && directory && t.Type.Supports(asMembers):
			out = append(out, c)
		}
	}
	for _, c := range []adapters.Criteria{adapters.BySessions, adapters.All} {
		if t.Type.Supports(c) {
			out = append(out, c)
		}
	}
	return out
}

func nothing(message string) invalidation.Resolution {
	return invalidation.Resolution{
		Nothing:  true,
		Warnings: []adapters.Warning{{Code: adapters.WarnNothingCanMatch, Message: message + "; nothing was sent"}},
	}
}

func failed(reason adapters.Reason, message string) *invalidation.ResolveError {
	return &invalidation.ResolveError{Reason: reason, Message: message}
}

func unsupported(reason adapters.Reason, message string) *invalidation.ResolveError {
	return &invalidation.ResolveError{Reason: reason, Message: message, Unsupported: true}
}

// directoryError says what a directory's error means to a run. What is not known to be final is worth another try.
func directoryError(err error) error {
	switch {
	case errors.Is(err, ErrUnknownGroup):
		return failed(adapters.ReasonUnknownGroup, "the directory does not know the group")
	case errors.Is(err, ErrAmbiguous):
		return failed(adapters.ReasonAmbiguousIdentity, "more than one entry of the directory fits the user")
	case errors.Is(err, ErrAmbiguousGroup):
		return failed(adapters.ReasonUnknownGroup, "more than one group of the directory has the group's name")
	case errors.Is(err, ErrUnknownMember):
		return failed(adapters.ReasonNoIdentity, "the directory does not know who one of the group's members is")
	case errors.Is(err, ErrTooDeep):
		return failed(adapters.ReasonTooManyMembers, "groups within the group are nested more deeply than the directory may be searched")
	}
	public := failed(adapters.ReasonDirectoryUnavailable, "the directory does not answer")
	public.Retryable = true
	return fmt.Errorf("%w: %w", public, err)
}
