package element

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
)

// The authentication methods, as they are sent. Some documents and versions spell them otherwise when they are read.
const (
	MethodCluster = "Cluster"
	MethodLdap    = "Ldap"
	MethodIdp     = "Idp"
)

var methods = []string{MethodCluster, MethodLdap, MethodIdp}

// writtenMethod returns the canonical spelling of a method in a configuration.
func writtenMethod(s string) (string, bool) {
	for _, m := range methods {
		if strings.EqualFold(s, m) {
			return m, true
		}
	}
	return "", false
}

// readMethod returns the canonical spelling of a method in a reply: documents also have "LDAP", "IdP" and, for
// Cluster, "Local". One that is none of these is kept as it is and matches no provider.
func readMethod(s string) string {
	if m, ok := writtenMethod(s); ok {
		return m
	}
	if strings.EqualFold(s, "Local") {
		return MethodCluster
	}
	return s
}

// maxSteps bounds the native deletes of one run. With more names, the members of a large group say, one list of all
// sessions and a delete for each match asks less of the cluster and is just as exact.
const maxSteps = 24

// plan is how a selector is carried out: natively in steps, or, if there are none, by listing all sessions and deleting
// each match.
type plan struct {
	// nothing: no session can match; nothing is sent.
	nothing bool
	steps   []step
	covered []string
	// idp: the selector asks for people by name at an identity provider, where names can be random.
	idp bool
}

// step is one native delete, with the list that shows beforehand what it would end.
type step struct {
	list, delete string
	// params goes to both methods, as the very same object.
	params any
	// sel matches what the step ends: never more than the run's selector.
	sel adapters.Selector
	// title is the step in words.
	title string
}

// byUsername are the parameters of ListAuthSessionsByUsername and DeleteAuthSessionsByUsername. Both are always sent:
// what the cluster does without one of them is not documented.
type byUsername struct {
	AuthMethod string `json:"authMethod"`
	Username   string `json:"username"`
}

// byClusterAdmin are the parameters of ListAuthSessionsByClusterAdmin and DeleteAuthSessionsByClusterAdmin.
type byClusterAdmin struct {
	ClusterAdminID int64 `json:"clusterAdminID"`
}

// bySession are the parameters of DeleteAuthSession.
type bySession struct {
	SessionID string `json:"sessionID"`
}

// translate decides how to end exactly the sessions that sel matches, or refuses.
func translate(sel adapters.Selector) (plan, error) {
	if err := sel.Validate(); err != nil {
		return plan{}, adapters.Wrap(adapters.Unsupported, err, "the selector is not valid")
	}
	if err := expressible(sel); err != nil {
		return plan{}, err
	}
	p := plan{covered: covered(sel)}
	if sel.By.Has(adapters.ByUser) {
		scopes := sel.UserScopes()
		if len(scopes) == 0 {
			return plan{nothing: true}, nil
		}
		p.idp = slices.ContainsFunc(scopes, func(s adapters.UserScope) bool {
			return s.Anywhere || slices.Contains(s.At, adapters.Provider{Type: MethodIdp})
		})
		if !sel.By.Has(adapters.ByGroup) {
			p.steps = userSteps(scopes)
		}
	}
	if sel.By == adapters.ByGroup {
		p.steps = adminSteps(sel.Groups)
	}
	if len(p.steps) > maxSteps {
		p.steps = nil
	}
	return p, nil
}

// expressible refuses what no session of a cluster can be compared with exactly.
func expressible(sel adapters.Selector) error {
	providers := slices.Clone(sel.Providers)
	for _, u := range sel.Users {
		if !exact(u.Name) {
			return adapters.Errorf(adapters.Unsupported, "a user name is not valid UTF-8 text")
		}
		providers = append(providers, u.At...)
	}
	for _, p := range providers {
		if !slices.Contains(methods, p.Type) || p != (adapters.Provider{Type: p.Type}) {
			return &adapters.Error{
				Kind: adapters.Unsupported, Why: adapters.ReasonUnknownProvider,
				Message: "Element knows the providers Cluster, Ldap and Idp, without names",
			}
		}
	}
	for _, g := range sel.Groups {
		id, numeric := adminID(g)
		if g.Kind == GroupAccess && exact(g.Name) || numeric && id > 0 {
			continue
		}
		return &adapters.Error{
			Kind: adapters.Unsupported, Why: adapters.ReasonUnknownGroup,
			Message: "Element knows groups of the kinds access_group and cluster_admin_id (a positive number)",
		}
	}
	for _, k := range sel.Sessions {
		if k.Device != "" {
			return adapters.Errorf(adapters.Unsupported, "Element sessions have no device")
		}
		if !exact(k.ID) {
			return adapters.Errorf(adapters.Unsupported, "a session id is not valid UTF-8 text")
		}
	}
	return nil
}

// exact reports whether s is the same text after JSON. Bytes that are not UTF-8 would be sent as U+FFFD, and read back
// as U+FFFD, that is, as another name.
func exact(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError) }

// adminID returns the number of a cluster_admin_id group, if it is written as the cluster would.
func adminID(g adapters.Group) (int64, bool) {
	if g.Kind != GroupClusterAdmin {
		return 0, false
	}
	id, err := strconv.ParseInt(g.Name, 10, 64)
	return id, err == nil && strconv.FormatInt(id, 10) == g.Name
}

func userSteps(scopes []adapters.UserScope) []step {
	var steps []step
	for _, scope := range scopes {
		at := scope.At
		if scope.Anywhere {
			at = nil
			for _, m := range methods {
				at = append(at, adapters.Provider{Type: m})
			}
		}
		for _, p := range at {
			steps = append(steps, step{
				list:   listByUsername,
				delete: deleteByUsername,
				params: byUsername{AuthMethod: p.Type, Username: scope.Name},
				sel: adapters.Selector{
					By:        adapters.ByUser | adapters.ByProvider,
					Users:     []adapters.User{{Name: scope.Name}},
					Providers: []adapters.Provider{{Type: p.Type}},
				},
				title: strconv.Quote(scope.Name) + " at " + p.Type,
			})
		}
	}
	return steps
}

// adminSteps is for a selector of groups alone: nil unless all are cluster administrators' ids.
func adminSteps(groups []adapters.Group) []step {
	var steps []step
	for i, g := range groups {
		id, ok := adminID(g)
		if !ok {
			return nil
		}
		if slices.Contains(groups[:i], g) {
			continue
		}
		steps = append(steps, step{
			list:   listByClusterAdmin,
			delete: deleteByClusterAdmin,
			params: byClusterAdmin{ClusterAdminID: id},
			sel:    adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{g}},
			title:  "cluster administrator " + g.Name,
		})
	}
	return steps
}

// covered names what is asked: the authentication methods and the groups.
func covered(sel adapters.Selector) []string {
	if sel.By == adapters.BySessions {
		return nil
	}
	var out []string
	for _, m := range methods {
		at := adapters.Provider{Type: m}
		in := !sel.By.Has(adapters.ByProvider) || slices.Contains(sel.Providers, at)
		if in && sel.By.Has(adapters.ByUser) {
			in = slices.ContainsFunc(sel.UserScopes(), func(s adapters.UserScope) bool {
				return s.Anywhere || slices.Contains(s.At, at)
			})
		}
		if in {
			out = append(out, m)
		}
	}
	for _, g := range sel.Groups {
		out = append(out, g.String())
	}
	return out
}
