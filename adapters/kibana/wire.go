package kibana

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

const (
	invalidatePath = "/api/security/session/_invalidate"
	loginStatePath = "/internal/security/login_state"
	statusPath     = "/api/status"
)

// The bodies of the invalidation API. No field is optional: an empty value is never left out, and plan lets none in.
type (
	matchAll struct {
		Match string `json:"match"`
	}
	matchQuery[Q any] struct {
		Match string `json:"match"`
		Query Q      `json:"query"`
	}
	anyUser[P any] struct {
		Provider P `json:"provider"`
	}
	oneUser[P any] struct {
		Provider P      `json:"provider"`
		Username string `json:"username"`
	}
	everyName struct {
		Type string `json:"type"`
	}
	oneName struct {
		Type string `json:"type"`
		Name string `json:"name"`
	}
)

// body is what the query looks like on the wire.
func (q query) body() any {
	p := q.provider
	switch {
	case q.all:
		return matchAll{"all"}
	case q.byUser && p.Name != "":
		return matching(oneUser[oneName]{oneName{p.Type, p.Name}, q.user})
	case q.byUser:
		return matching(oneUser[everyName]{everyName{p.Type}, q.user})
	case p.Name != "":
		return matching(anyUser[oneName]{oneName{p.Type, p.Name}})
	default:
		return matching(anyUser[everyName]{everyName{p.Type}})
	}
}

func matching[Q any](q Q) any { return matchQuery[Q]{"query", q} }

// probeBody cannot validate: "probe" is not a way to match. Kibana checks credentials and privilege before the body.
func probeBody() any { return matchAll{"probe"} }

// header goes with every request. Kibana asks for kbn-xsrf, with any value, and compares kbn-version, if it comes, with
// its own: that one is never sent.
func header(authorization string) http.Header {
	h := http.Header{}
	h.Set("Authorization", authorization)
	h.Set("Kbn-Xsrf", "endsession")
	h.Set("User-Agent", "endsession")
	return h
}

// invalidate is the call that ends the sessions a query matches.
func invalidate(q query) httpclient.Call {
	return httpclient.Call{
		Method: http.MethodPost, Path: invalidatePath, JSON: q.body(), Mutating: true, Accept: judged[:],
	}
}

// judged are the statuses on which Kibana itself says more than HTTP does.
var judged = [...]int{
	http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
	http.StatusInternalServerError, http.StatusServiceUnavailable,
}

// maxTotal is more than an Elasticsearch shard can hold, and little enough for sums.
const maxTotal = 1<<31 - 1

// decodeTotal reads the answer to an invalidation: 200 and an object with an integer "total". Whatever else comes with
// 200, a proxy's page say, must not be read as "0 sessions".
func decodeTotal(r httpclient.Reply) (int, error) {
	if r.Status != http.StatusOK {
		return 0, judge(r)
	}
	// A map, because its keys are exact: a struct would accept "Total" too.
	var reply map[string]json.RawMessage
	if err := r.Decode(&reply); err != nil {
		return 0, err
	}
	raw := string(reply["total"])
	total, err := strconv.Atoi(raw)
	if err != nil || raw[0] == '-' {
		return 0, adapters.Errorf(adapters.BadReply, "Kibana's answer has no total that is a whole number")
	}
	if total > maxTotal {
		return 0, adapters.Errorf(adapters.BadReply, "Kibana's answer has a total that no index can hold")
	}
	return total, nil
}

// judge makes an error of a reply, by its status and by what Kibana is known to say with it.
func judge(r httpclient.Reply) error {
	if r.Status/100 == 2 {
		return adapters.Errorf(adapters.BadReply, "the target answered with an unexpected status %d", r.Status)
	}
	var e *adapters.Error
	if err := httpclient.Classify(r); !errors.As(err, &e) {
		return err
	}
	message, kibana := errorMessage(r)
	switch r.Status {
	case http.StatusBadRequest:
		if kibana {
			e.Message = badRequest(message)
		}
	case http.StatusUnauthorized:
		e.Message = "Kibana does not accept the credentials, or no credentials of this kind"
	case http.StatusForbidden:
		if kibana {
			e.Message = "the account may not end sessions: Kibana asks for a superuser"
		}
	case http.StatusNotFound:
		e.Message = "there is no session invalidation at this URL: the base path is wrong, Kibana is older than 7.13, or the route is excluded"
	case http.StatusInternalServerError:
		if kibana && r.Mutating {
			e.Message = "Kibana reports an internal error; a part of the sessions may have ended"
		}
	case http.StatusServiceUnavailable:
		// These are said before a request is looked at, so that nothing has happened, unlike behind any other 503.
		if notReady(r, message) {
			e.Kind, e.Message = adapters.Busy, "Kibana is not ready yet"
		}
	}
	return e
}

// errorMessage returns the message of an error in Kibana's own form. It is only compared, never passed on.
func errorMessage(r httpclient.Reply) (string, bool) {
	var e struct {
		StatusCode int    `json:"statusCode"`
		Message    string `json:"message"`
	}
	if !r.IsJSON() || json.Unmarshal(r.Body, &e) != nil || e.StatusCode != r.Status {
		return "", false
	}
	return e.Message, true
}

// schemaRefusal begins the message of every body that Kibana's schema refuses.
const schemaRefusal = "[request body"

func badRequest(message string) string {
	switch {
	case strings.HasPrefix(message, schemaRefusal):
		return "Kibana refuses the form of the request; this version may have changed its API"
	case strings.Contains(message, "exists but is not available with the current configuration"):
		return "this Kibana does not offer session invalidation, as Kibana in Elastic Cloud Serverless"
	case strings.Contains(message, "Request must contain a kbn-xsrf header"):
		return "the kbn-xsrf header did not reach Kibana; something in between takes it away"
	case strings.Contains(message, "Browser client is out of date"):
		return "a kbn-version header reached Kibana; something in between adds it"
	}
	return "Kibana refuses the request"
}

// notReady reports whether a 503 is one of those with which Kibana turns a request away at the door: by the server that
// answers during start-up, in plain text, and by the authentication service.
func notReady(r httpclient.Reply, message string) bool {
	for _, known := range []string{
		"License information could not be obtained from Elasticsearch",
		"License is not available",
		"Authentication sub-system is not fully initialized yet",
	} {
		if strings.HasPrefix(message, known) {
			return true
		}
	}
	return strings.HasPrefix(strings.TrimSpace(string(r.Body)), "Kibana server is not ready yet")
}

// decodeLoginState reads the providers that the login page offers, which are all that are configured.
func decodeLoginState(r httpclient.Reply) ([]adapters.Provider, error) {
	var state struct {
		Selector *struct {
			Providers []struct {
				Type string `json:"type"`
				Name string `json:"name"`
			} `json:"providers"`
		} `json:"selector"`
	}
	if err := r.Decode(&state); err != nil {
		return nil, err
	}
	if state.Selector == nil || state.Selector.Providers == nil {
		return nil, adapters.Errorf(adapters.BadReply, "Kibana's login state does not list providers")
	}
	var out []adapters.Provider
	for _, p := range state.Selector.Providers {
		out = append(out, adapters.Provider{Type: p.Type, Name: p.Name})
	}
	return out, nil
}

// status is what Kibana tells of itself; what it does not tell is empty.
type status struct {
	version string
	// elasticsearch is how it sees Elasticsearch: "available", "degraded", "unavailable" or "critical"; or, before 8.0, how
	// it is as a whole: "green", "yellow" or "red".
	elasticsearch string
}

// decodeStatus reads the status. Words that are none are left out.
func decodeStatus(r httpclient.Reply) (s status) {
	var reply struct {
		Version struct {
			Number string `json:"number"`
		} `json:"version"`
		Status struct {
			Overall struct {
				State string `json:"state"`
			} `json:"overall"`
			Core struct {
				Elasticsearch struct {
					Level string `json:"level"`
				} `json:"elasticsearch"`
			} `json:"core"`
		} `json:"status"`
	}
	if r.Decode(&reply) != nil {
		return status{}
	}
	if presentable(reply.Version.Number) {
		s.version = reply.Version.Number
	}
	s.elasticsearch = cmp.Or(reply.Status.Core.Elasticsearch.Level, reply.Status.Overall.State)
	return s
}

// presentable reports whether a word of Kibana's may be shown: short, and without anything but visible ASCII.
func presentable(s string) bool { return visible(s) && len(s) <= 64 }
