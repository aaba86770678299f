package adapters

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Criteria is the set of criteria that a selector uses. A session must satisfy all of them.
type Criteria uint8

// The criteria. BySessions and All stand alone.
const (
	ByUser Criteria = 1 << iota
	ByProvider
	ByGroup
	BySessions
	All
)

var criteriaNames = []struct {
	c    Criteria
	name string
}{{ByUser, "user"}, {ByProvider, "provider"}, {ByGroup, "group"}, {BySessions, "sessions"}, {All, "all"}}

// Has reports whether c holds every criterion of x.
func (c Criteria) Has(x Criteria) bool { return x != 0 && c&x == x }

// Broad reports whether the criteria name neither a user nor sessions.
func (c Criteria) Broad() bool { return c&(ByUser|BySessions) == 0 }

// Names returns the names of the criteria in a fixed order: user, provider, group, sessions, all.
func (c Criteria) Names() []string {
	var names []string
	for _, e := range criteriaNames {
		if c&e.c != 0 {
			names = append(names, e.name)
		}
	}
	return names
}

// String joins the names with "+": "user+provider".
func (c Criteria) String() string { return strings.Join(c.Names(), "+") }

// MarshalJSON writes the names as a list.
func (c Criteria) MarshalJSON() ([]byte, error) {
	text := make([]byte, 0, 32)
	text = append(text, '[')
	for _, name := range c.Names() {
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = append(append(append(text, '"'), name...), '"') // words, with nothing in them to be escaped
	}
	return append(text, ']'), nil
}

// UnmarshalJSON reads a list of names; an unknown one is an error, never ignored.
func (c *Criteria) UnmarshalJSON(data []byte) error {
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return err
	}
	*c = 0
	for _, name := range names {
		i := slices.IndexFunc(criteriaNames, func(e struct {
			c    Criteria
			name string
		}) bool {
			return e.name == name
		})
		if i < 0 {
			return fmt.Errorf("unknown criterion %q", name)
		}
		*c |= criteriaNames[i].c
	}
	return nil
}

// Provider is one of the target's own ways to sign in, in the target's words: a Kibana authentication provider
// (type "saml", name "saml1"), an Element authentication method (type "Idp"), a BIG-IQ access group (type
// "access_group", name "TestGroup2").
type Provider struct {
	Type string `json:"type"`
	// Name is empty in a selector for every provider of the type.
	Name string `json:"name,omitempty"`
	// MustBeListed marks a name that came from the caller and not from the configuration. The adapter must see the
	// target list it under that very name before using it, and answers [Unsupported] with [ReasonUnknownProvider]
	// otherwise: a wrong name would match nothing and look like success.
	MustBeListed bool `json:"must_be_listed,omitempty"`
}

// String is the type, with "/" and the name if there is one.
func (p Provider) String() string {
	if p.Name == "" {
		return p.Type
	}
	return p.Type + "/" + p.Name
}

// covers reports whether a session that signed in through x counts as one of p.
func (p Provider) covers(x Provider) bool {
	return p.Type == x.Type && (p.Name == "" || p.Name == x.Name)
}

// Group is one of the target's own groupings, in the target's words: a BIG-IQ access group, cluster or device
// ("access_group", "cluster", "device"), an Element access group or cluster admin id ("access_group",
// "cluster_admin_id").
type Group struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// String is the kind, "/" and the name.
func (g Group) String() string { return g.Kind + "/" + g.Name }

// User is one of the names a person has at the target.
type User struct {
	Name string `json:"name"`
	// At narrows the name to these providers; empty means every provider. The directory person "admin" must not end
	// the sessions of the local account "admin".
	At []Provider `json:"at,omitempty"`
}

// SessionKey names one session. Device is empty where session ids are unique in the target.
type SessionKey struct {
	Device string `json:"device,omitempty"`
	ID     string `json:"id"`
}

// Selector says which sessions of one target a run ends, in the target's own names. By lists the criteria in use and
// is authoritative: a criterion whose list is empty matches nothing, and a list whose criterion is absent from By is
// invalid. Within one list any element may match; between criteria all must.
type Selector struct {
	By        Criteria     `json:"by"`
	Users     []User       `json:"users,omitempty"`
	Providers []Provider   `json:"providers,omitempty"`
	Groups    []Group      `json:"groups,omitempty"`
	Sessions  []SessionKey `json:"sessions,omitempty"`
}

// Validate reports the first thing that is wrong with s. Every selector is validated after resolution and again when
// it is read back from the journal; adapters need not repeat it, but may rely on it.
func (s Selector) Validate() error {
	switch {
	case s.By == 0:
		return errors.New("selector: no criterion")
	case s.By&^(ByUser|ByProvider|ByGroup|BySessions|All) != 0:
		// Nobody would look at it, and a criterion that is not looked at matches everybody.
		return errors.New("selector: unknown criterion")
	case s.By&BySessions != 0 && s.By != BySessions:
		return errors.New("selector: sessions stand alone")
	case s.By&All != 0 && s.By != All:
		return errors.New("selector: all stands alone")
	}
	for _, l := range []struct {
		c Criteria
		n int
	}{{ByUser, len(s.Users)}, {ByProvider, len(s.Providers)}, {ByGroup, len(s.Groups)}, {BySessions, len(s.Sessions)}} {
		if (l.n > 0) != s.By.Has(l.c) {
			return fmt.Errorf("selector: by %s, but %d values for %s", s.By, l.n, l.c)
		}
	}
	for _, u := range s.Users {
		if blank(u.Name) {
			return errors.New("selector: empty user name")
		}
		if err := validProviders(u.At); err != nil {
			return err
		}
	}
	if err := validProviders(s.Providers); err != nil {
		return err
	}
	for _, g := range s.Groups {
		if blank(g.Kind) || blank(g.Name) {
			return errors.New("selector: empty group")
		}
	}
	for _, k := range s.Sessions {
		if blank(k.ID) {
			return errors.New("selector: empty session id")
		}
	}
	return nil
}

func validProviders(ps []Provider) error {
	for _, p := range ps {
		switch {
		case blank(p.Type):
			return errors.New("selector: empty provider type")
		case p.Name != "" && blank(p.Name), p.Name == "" && p.MustBeListed:
			// A name that got lost must not turn into every provider of the type.
			return errors.New("selector: empty provider name")
		}
	}
	return nil
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// Match is the one definition of what a selector means: whether x is a session that s ends. Comparison is exact, byte
// by byte. Whether x is within the target's configured reach is not the selector's business.
func (s Selector) Match(x Session) bool {
	switch {
	case s.Validate() != nil:
		return false
	case s.By == All:
		return true
	case s.By == BySessions:
		return slices.ContainsFunc(s.Sessions, func(k SessionKey) bool {
			return k.ID == x.ID && k.Device == x.Device
		})
	}
	if s.By.Has(ByUser) && !slices.ContainsFunc(s.Users, func(u User) bool {
		return u.Name == x.Username && (len(u.At) == 0 || covered(u.At, x.Provider))
	}) {
		return false
	}
	if s.By.Has(ByProvider) && !covered(s.Providers, x.Provider) {
		return false
	}
	if s.By.Has(ByGroup) && !slices.ContainsFunc(s.Groups, func(g Group) bool {
		return slices.Contains(x.Groups, g)
	}) {
		return false
	}
	return true
}

func covered(ps []Provider, x Provider) bool {
	return slices.ContainsFunc(ps, func(p Provider) bool { return p.covers(x) })
}

// UserScope is one user name and where it is to be looked for.
type UserScope struct {
	Name string
	// Anywhere is true when no provider narrows the name; then At is empty. When it is false, At is not empty.
	Anywhere bool
	At       []Provider
}

// UserScopes returns the users of s, each with the providers at which it counts: its own binding and the provider
// criterion, intersected. Names whose intersection is empty are left out; if none is left, nothing can match. Names
// are distinct, in the order of s.Users.
func (s Selector) UserScopes() []UserScope {
	var scopes []UserScope
	for _, u := range s.Users {
		scope := UserScope{Name: u.Name}
		switch {
		case len(u.At) == 0 && !s.By.Has(ByProvider):
			scope.Anywhere = true
		case len(u.At) == 0:
			scope.At = Intersect(s.Providers, s.Providers)
		case !s.By.Has(ByProvider):
			scope.At = Intersect(u.At, u.At)
		default:
			scope.At = Intersect(u.At, s.Providers)
		}
		if !scope.Anywhere && len(scope.At) == 0 {
			continue
		}
		i := slices.IndexFunc(scopes, func(x UserScope) bool { return x.Name == u.Name })
		switch {
		case i < 0:
			scopes = append(scopes, scope)
		case scopes[i].Anywhere:
		case scope.Anywhere:
			scopes[i] = scope
		default:
			all := append(slices.Clone(scopes[i].At), scope.At...)
			scopes[i].At = Intersect(all, all)
		}
	}
	return scopes
}

// Intersect returns providers that together cover exactly the sessions covered by both a and b, without one that
// another covers.
func Intersect(a, b []Provider) []Provider {
	var both []Provider
	for _, x := range a {
		for _, y := range b {
			switch {
			case x.covers(y):
				both = append(both, Provider{Type: y.Type, Name: y.Name, MustBeListed: y.MustBeListed || x.MustBeListed && x.Name == y.Name})
			case y.covers(x):
				both = append(both, x)
			}
		}
	}
	var out []Provider
	for i, p := range both {
		redundant := false
		for j, q := range both {
			if i == j || !q.covers(p) {
				continue
			}
			// Of two that cover each other the first stays; a wider one always wins.
			if !p.covers(q) || j < i {
				redundant = true
				break
			}
		}
		if !redundant {
			out = append(out, p)
		}
	}
	return out
}

// Session is one session as the target, or its emulator, knows it.
type Session struct {
	ID       string `json:"id"`
	Device   string `json:"device,omitempty"`
	Username string `json:"username,omitempty"`
	// Provider is how the session signed in; its type may be empty if the target does not say.
	Provider Provider `json:"provider,omitzero"`
	Groups   []Group  `json:"groups,omitempty"`
	// The times are zero where the target does not tell them.
	CreateTime     time.Time `json:"create_time,omitzero"`
	LastAccessTime time.Time `json:"last_access_time,omitzero"`
	ExpireTime     time.Time `json:"expire_time,omitzero"`
}

// Key returns what names the session in its target.
func (x Session) Key() SessionKey { return SessionKey{Device: x.Device, ID: x.ID} }
