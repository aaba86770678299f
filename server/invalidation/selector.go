package invalidation

import (
	"errors"
	"maps"
	"slices"

	"github.com/endsession/endsession/adapters"
)

// Selector says which sessions to end, in the caller's words: the canonical form. [Resolver] turns it into each target's
// own names. User, Provider and Group combine with AND; Sessions and All stand alone.
type Selector struct {
	User     *User        `json:"user,omitempty"`
	Provider *Provider    `json:"provider,omitempty"`
	Group    string       `json:"group,omitempty"`
	Sessions []SessionRef `json:"sessions,omitempty"`
	All      bool         `json:"all,omitempty"`
}

// User names one person. ID is required; the rest are further names the caller knows.
type User struct {
	ID         string            `json:"id"`
	Email      string            `json:"email,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	// TargetUsernames overrides the names at the targets it is keyed by.
	TargetUsernames map[string][]string `json:"target_usernames,omitempty"`
}

// Provider is a way to sign in, in the API's words. Type is one of [ProviderTypes].
type Provider struct {
	Type string `json:"type"`
	Name string `json:"name,omitempty"`
}

// SessionRef names one session at one target.
type SessionRef struct {
	Target string `json:"target"`
	Device string `json:"device,omitempty"`
	ID     string `json:"id"`
}

// ProviderTypes is the closed list of provider types of the API.
var ProviderTypes = []string{"local", "ldap", "saml", "oidc", "kerberos", "pki", "token", "basic", "anonymous"}

// String is the type, with "/" and the name if there is one: the key of a target's providers mapping.
func (p Provider) String() string {
	if p.Name == "" {
		return p.Type
	}
	return p.Type + "/" + p.Name
}

// Criteria returns the set of criteria that s uses.
func (s Selector) Criteria() adapters.Criteria {
	var c adapters.Criteria
	if s.User != nil {
		c |= adapters.ByUser
	}
	if s.Provider != nil {
		c |= adapters.ByProvider
	}
	if s.Group != "" {
		c |= adapters.ByGroup
	}
	if len(s.Sessions) > 0 {
		c |= adapters.BySessions
	}
	if s.All {
		c |= adapters.All
	}
	return c
}

// Broad reports whether s names neither a user nor sessions.
func (s Selector) Broad() bool { return s.Criteria().Broad() }

// Validate reports the first contradiction in s. The API's validation comes before it and is stricter; this one guards
// every other way in.
func (s Selector) Validate() error {
	c := s.Criteria()
	switch {
	case c == 0:
		return errors.New("selector: empty")
	case c.Has(adapters.All) && c != adapters.All:
		return errors.New("selector: all stands alone")
	case c.Has(adapters.BySessions) && c != adapters.BySessions:
		return errors.New("selector: sessions stand alone")
	case s.User != nil && s.User.ID == "":
		return errors.New("selector: user without id")
	case s.Provider != nil && !slices.Contains(ProviderTypes, s.Provider.Type):
		return errors.New("selector: unknown provider type")
	}
	for _, r := range s.Sessions {
		if r.Target == "" || r.ID == "" {
			return errors.New("selector: session without target or id")
		}
	}
	return nil
}

// SessionTargets returns the names of the targets that the sessions name, sorted.
func (s Selector) SessionTargets() []string {
	names := map[string]struct{}{}
	for _, r := range s.Sessions {
		names[r.Target] = struct{}{}
	}
	return slices.Sorted(maps.Keys(names))
}
