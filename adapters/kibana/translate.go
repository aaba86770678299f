package kibana

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// query is one invalidation request: all sessions, or those of a provider, narrowed to a user if byUser. It is only made
// by plan, which sees to it that nothing Kibana would take for absent is in it.
type query struct {
	all      bool
	provider adapters.Provider
	byUser   bool
	user     string
}

// plan translates a selector into the queries that together end exactly its sessions. anywhere are the provider types
// at which a user is looked for when nothing narrows the name. No query and no error means that nothing can match.
func plan(sel adapters.Selector, anywhere []string) ([]query, *adapters.Error) {
	if err := check(sel); err != nil {
		return nil, err
	}
	var queries []query
	switch sel.By {
	case adapters.All:
		queries = append(queries, query{all: true})
	case adapters.ByProvider:
		for _, p := range adapters.Intersect(sel.Providers, sel.Providers) {
			queries = append(queries, query{provider: p})
		}
	case adapters.ByUser, adapters.ByUser | adapters.ByProvider:
		for _, u := range sel.UserScopes() {
			at := u.At
			if u.Anywhere {
				at = nil
				for _, t := range anywhere {
					at = append(at, adapters.Provider{Type: t})
				}
			}
			for _, p := range at {
				queries = append(queries, query{provider: p, byUser: true, user: u.Name})
			}
		}
	default:
		return nil, adapters.Errorf(adapters.Unsupported, "Kibana cannot match sessions by %s", sel.By)
	}
	return queries, nil
}

// check refuses what Kibana would take for something else.
func check(sel adapters.Selector) *adapters.Error {
	if err := sel.Validate(); err != nil {
		return adapters.Wrap(adapters.Unsupported, err, "the selector is not valid")
	}
	for _, p := range sel.Providers {
		if err := checkProvider(p); err != nil {
			return err
		}
	}
	for _, u := range sel.Users {
		if blank(u.Name) {
			return adapters.Errorf(adapters.Unsupported, "a user name is empty, which to Kibana means every user")
		}
		if !utf8.ValidString(u.Name) {
			return adapters.Errorf(adapters.Unsupported, "a user name is not valid UTF-8 and cannot be sent as it is")
		}
		for _, p := range u.At {
			if err := checkProvider(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkProvider(p adapters.Provider) *adapters.Error {
	if !slices.Contains(providerTypes[:], p.Type) {
		e := adapters.Errorf(adapters.Unsupported, "%q is not a type of Kibana provider that owns sessions; those are %s",
			p.Type, strings.Join(providerTypes[:], ", "))
		e.Why = adapters.ReasonUnknownProvider
		return e
	}
	if p.Name != "" && blank(p.Name) {
		return adapters.Errorf(adapters.Unsupported, "a provider's name is only white space")
	}
	if !utf8.ValidString(p.Name) {
		return adapters.Errorf(adapters.Unsupported, "a provider's name is not valid UTF-8 and cannot be sent as it is")
	}
	return nil
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// covered lists what the queries ask for, in Kibana's words, each once and in the order of asking.
func covered(queries []query) []string {
	var out []string
	for _, q := range queries {
		what := "all"
		if !q.all {
			what = q.provider.String()
		}
		if !slices.Contains(out, what) {
			out = append(out, what)
		}
	}
	return out
}

// unlisted are the providers whose names nobody has vouched for yet, each once.
func unlisted(queries []query) []adapters.Provider {
	var out []adapters.Provider
	for _, q := range queries {
		if q.provider.MustBeListed && q.provider.Name != "" && !slices.Contains(out, q.provider) {
			out = append(out, q.provider)
		}
	}
	return out
}

// digest tells plans apart: progress counted in one plan means nothing in another.
func digest(queries []query) (string, error) {
	h := sha256.New()
	for _, q := range queries {
		b, err := httpclient.Marshal(q.body())
		if err != nil {
			return "", err
		}
		h.Write(b)
		h.Write([]byte{'\n'})
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}
