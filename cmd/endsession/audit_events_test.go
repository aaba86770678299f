package main

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/store/sqlite"
)

// trail are the events of a type in the gateway's journal.
func (g *guarded) trail(t *testing.T, typ string) (events []audit.Entry) {
	t.Helper()
	trail, err := sqlite.OpenTrail(filepath.Join(g.dir, "endsession.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer trail.Close()
	all, err := trail.Events(t.Context(), "", 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(e audit.Entry) bool { return e.Type != typ })
}

// refusal is the data of a refused caller.
type refusal struct{ Method, Why, Whose, Remote string }

// TestRefusalsAreInTheAuditTrail: who was not let in, and who was let in and not allowed.
func TestRefusalsAreInTheAuditTrail(t *testing.T) {
	g := startGuarded(t)
	strangers := g.strangers(t)
	// No more than a source may have journalled at once.
	tried := map[string]struct{ kind, whose string }{
		"no credential":                    {"none", ""},
		"wrong key":                        {"api_key", strings.Split(g.keys["helpdesk"], "_")[1]},
		"expired key":                      {"api_key", strings.Split(g.keys["expired"], "_")[1]},
		"expired token":                    {"oidc", "https://127.0.0.1:"},
		"wrong audience":                   {"oidc", "https://127.0.0.1:"},
		"unknown CA":                       {"mtls", "CN=cert-hr"},
		"good certificate and a wrong key": {"api_key", ""},
		"password":                         {"none", ""},
	}
	before := 0
	for _, name := range slices.Sorted(maps.Keys(tried)) {
		c, want := strangers[name], tried[name]
		if name < "o" {
			ctx, cc := g.grpc(t, c)
			if err := rpcs[0].call(ctx, cc); status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s: %v", name, err)
			}
		} else if code, _, answer := g.http(t, c)(rpcs[0].request()); code != 401 {
			t.Errorf("%s: %d %s", name, code, answer)
		}
		events := g.trail(t, "caller.refused")
		if len(events) != before+1 {
			t.Fatalf("%s: %d events, want one", name, len(events)-before)
		}
		before++
		e := events[before-1]
		var data refusal
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		if data.Method != service+"InvalidateSessions" || data.Why == "" || !strings.HasPrefix(data.Remote, "127.0.0.1:") {
			t.Errorf("%s: %s", name, e.Data)
		}
		if e.Caller.Kind != want.kind || e.Caller.Name != "" || !strings.Contains(data.Whose, want.whose) {
			t.Errorf("%s: caller %v, %s; want %+v", name, e.Caller, e.Data, want)
		}
	}

	ctx, cc := g.grpc(t, client{authorization: []string{"Bearer " + g.keys["nobody"]}})
	_, err := endsessionv1.NewSessionServiceClient(cc).InvalidateSessions(ctx, &endsessionv1.InvalidateSessionsRequest{
		Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}}, Targets: []string{"kibana-prod"}, Reason: proto.String("curious"), OnBehalfOf: proto.String("bob"),
	})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("without the right: %v", err)
	}
	denials := g.trail(t, "call.denied")
	if len(denials) != 1 || denials[0].Caller.Kind != "api_key" || denials[0].Caller.Name != "nobody" || denials[0].InvalidationID != "" {
		t.Fatalf("denials: %+v", denials)
	}
	var denial struct {
		Right, Reason, Message string
		Targets                []string
		Call                   struct {
			Reason     string
			OnBehalfOf string `json:"on_behalf_of"`
			Selector   struct{ User struct{ ID string } }
		}
	}
	if err := json.Unmarshal(denials[0].Data, &denial); err != nil {
		t.Fatal(err)
	}
	if denial.Right != "invalidate" || denial.Reason != "POLICY_DENIED" || denial.Message == "" || !slices.Equal(denial.Targets, []string{"kibana-prod"}) ||
		denial.Call.Reason != "curious" || denial.Call.OnBehalfOf != "bob" || denial.Call.Selector.User.ID != "alice" {
		t.Errorf("the denial: %s", denials[0].Data)
	}
	for _, e := range append(g.trail(t, "caller.refused"), denials...) {
		line, err := e.Line()
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range strangers {
			for _, a := range append(c.authorization, g.keys["nobody"]) {
				words := strings.Fields(a)
				for _, part := range strings.FieldsFunc(words[len(words)-1], func(r rune) bool { return r == '.' || r == '_' }) {
					if len(part) > 10 && strings.Contains(string(line), part) {
						t.Errorf("%s: an event holds a part of the credential: %s", name, line)
					}
				}
			}
		}
	}
}
