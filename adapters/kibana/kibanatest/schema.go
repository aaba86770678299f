package kibanatest

import (
	"maps"
	"slices"
)

// filter is a validated body.
type filter struct {
	all          bool
	providerType string
	providerName string
	username     string
}

// match is the deletion's query. A name or a user that is empty is no term in it: that is the trap.
func (f filter) match(d *document) bool {
	switch {
	case f.all:
		return true
	case d.session.Provider.Type != f.providerType:
		return false
	case f.providerName != "" && d.session.Provider.Name != f.providerName:
		return false
	case f.username != "" && d.usernameHash != UsernameHash(f.username):
		return false
	}
	return true
}

// validate applies the route's schema and returns the message of the first violation. Keys are checked in the order of the
// schema, unknown ones last.
func validate(payload any) (filter, string) {
	body, problem := object("request body", payload)
	if problem != "" {
		return filter{}, problem
	}
	match, ok := body["match"]
	switch {
	case !ok:
		return filter{}, "[request body.match]: expected at least one defined value but got [undefined]"
	case match != "all" && match != "query":
		return filter{}, "[request body.match]: types that failed validation:\n" +
			"- [request body.match.0]: expected value to equal [all]\n" +
			"- [request body.match.1]: expected value to equal [query]"
	}
	var f filter
	q, ok := body["query"]
	switch {
	case match == "all" && ok:
		return filter{}, "[request body.query]: a value wasn't expected to be present"
	case match == "all":
		f.all = true
	default:
		if !ok {
			q = map[string]any{}
		}
		if f, problem = validateQuery(q); problem != "" {
			return filter{}, problem
		}
	}
	return f, unknown("request body", body, "match", "query")
}

func validateQuery(v any) (filter, string) {
	var f filter
	q, problem := object("request body.query", v)
	if problem != "" {
		return f, problem
	}
	p, ok := q["provider"]
	if !ok {
		p = map[string]any{}
	}
	provider, problem := object("request body.query.provider", p)
	if problem != "" {
		return f, problem
	}
	if f.providerType, problem = text("request body.query.provider.type", provider, "type", true); problem != "" {
		return f, problem
	}
	if f.providerName, problem = text("request body.query.provider.name", provider, "name", false); problem != "" {
		return f, problem
	}
	if problem = unknown("request body.query.provider", provider, "type", "name"); problem != "" {
		return f, problem
	}
	if f.username, problem = text("request body.query.username", q, "username", false); problem != "" {
		return f, problem
	}
	return f, unknown("request body.query", q, "provider", "username")
}

func object(path string, v any) (map[string]any, string) {
	if m, ok := v.(map[string]any); ok {
		return m, ""
	}
	return nil, "[" + path + "]: expected a plain object value, but found [" + typeName(v) + "] instead."
}

// text reads a string, which may be absent if it is not required, but never null.
func text(path string, m map[string]any, key string, required bool) (string, string) {
	v, ok := m[key]
	if s, isString := v.(string); isString {
		return s, ""
	}
	switch {
	case ok:
		return "", "[" + path + "]: expected value of type [string] but got [" + typeName(v) + "]"
	case required:
		return "", "[" + path + "]: expected value of type [string] but got [undefined]"
	}
	return "", ""
}

func unknown(path string, m map[string]any, known ...string) string {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if !slices.Contains(known, key) {
			return "[" + path + "." + key + "]: definition for this key is missing"
		}
	}
	return ""
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case float64:
		return "number"
	case string:
		return "string"
	case []any:
		return "Array"
	}
	return "Object"
}
