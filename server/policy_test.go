package server_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/api"
)

// person asks to end a person's sessions at once.
func person(id string) *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: id}}}
}

// TestPolicyIsAsked: the policy, the protected people and the limits of a configuration are those of the gateway.
func TestPolicyIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desks := newDesks()
		s := openAs(t, t.TempDir(), `
policy:
  - { name: few, allow: 'request.user.id in ["alice", "ROOT@corp.example"]' }
  - { name: targets, allow: 'true', rights: [list_targets, read_own], max_sessions: 3 }
protected: { users: [root] }
limits: { calls_per_caller: 1/h, burst: 7 }
`+deskYAML, desks)
		client := endsessionv1.NewSessionServiceClient(s.conn)
		ask := func(req *endsessionv1.InvalidateSessionsRequest) func() error {
			return func() error {
				_, err := client.InvalidateSessions(t.Context(), req)
				return err
			}
		}
		refused(t, "somebody else", codes.PermissionDenied, "POLICY_DENIED", "", ask(person("bob")))
		naming := person("alice")
		naming.Selector.User.Email = new("bob@corp.example")
		refused(t, "an e-mail address", codes.PermissionDenied, "NAMES_NOT_ALLOWED", "", ask(naming))
		refused(t, "a protected person", codes.PermissionDenied, "PROTECTED", "", ask(person("ROOT@corp.example")))
		if !desks["front"].signedIn["alice"] || !desks["front"].signedIn["bob"] {
			t.Errorf("signed in are %v, want both", desks["front"].signedIn)
		}
		if err := ask(person("alice"))(); err != nil {
			t.Errorf("who may: %v", err)
		}
		if desks["front"].signedIn["alice"] || !desks["front"].signedIn["bob"] {
			t.Errorf("signed in are %v, want bob alone", desks["front"].signedIn)
		}
		if _, err := client.ListTargets(t.Context(), &endsessionv1.ListTargetsRequest{}); err != nil {
			t.Errorf("list targets: %v", err)
		}
		refused(t, "to pause", codes.PermissionDenied, "POLICY_DENIED", "", func() error {
			_, err := client.PauseTarget(t.Context(), &endsessionv1.PauseTargetRequest{Target: "front", Reason: new("why")})
			return err
		})
		if code, _ := get(t, s.http, "/v1/targets"); code != http.StatusOK {
			t.Errorf("the seventh call, over REST: %d", code)
		}
		refused(t, "an eighth call", codes.ResourceExhausted, "RATE_LIMITED", "", ask(person("alice")))
		if !strings.Contains(s.log.String(), "policy[1].allow: may_name, protected, max_sessions and unlimited mean nothing") {
			t.Errorf("nothing is said of a rule that makes no sense:\n%s", s.log)
		}
	})
}

// TestProtectedWithoutPolicy: where everything is allowed, protected people are still protected.
func TestProtectedWithoutPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desks := newDesks()
		text := "protected: { users: [bob] }\n" + strings.Replace(deskYAML, "    rate:", "    protected: { users: [Alice] }\n    rate:", 1)
		s := openAs(t, t.TempDir(), text, desks)
		client := endsessionv1.NewSessionServiceClient(s.conn)
		refused(t, "bob", codes.PermissionDenied, "PROTECTED", "", func() error {
			_, err := client.InvalidateSessions(t.Context(), person("bob"))
			return err
		})
		reply, err := client.InvalidateSessions(t.Context(), person("alice"))
		if err != nil || reply.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED {
			t.Errorf("alice: got %v, %v", reply, err)
		}
		if !desks["front"].signedIn["bob"] || desks["front"].signedIn["alice"] || !desks["back"].signedIn["alice"] {
			t.Errorf("signed in are %v and %v", desks["front"].signedIn, desks["back"].signedIn)
		}
	})
}

// TestCallersHaveALimit: both ways in share one, callers are told how long to wait, and what has no caller has no limit.
func TestCallersHaveALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, &fakeEngine{}, func(p *server.Parts) { p.Limiter = api.NewLimiter(0.1, 3) })
		client := endsessionv1.NewSessionServiceClient(s.conn)
		call := func() error {
			_, err := client.ListTargets(t.Context(), &endsessionv1.ListTargetsRequest{})
			return err
		}
		watch := func() error {
			stream, err := client.WatchInvalidation(t.Context(), &endsessionv1.WatchInvalidationRequest{Name: someName})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		if err := call(); err != nil {
			t.Fatal(err)
		}
		if err := watch(); err != nil {
			t.Fatal(err)
		}
		if code, body := get(t, s.http, "/v1/targets"); code != http.StatusOK {
			t.Fatalf("REST: %d %s", code, body)
		}
		refused(t, "a fourth call", codes.ResourceExhausted, "RATE_LIMITED", "", call)
		refused(t, "a watch", codes.ResourceExhausted, "RATE_LIMITED", "", watch)
		if code, body := get(t, s.http, "/v1/targets"); code != http.StatusTooManyRequests || !strings.Contains(body, "RATE_LIMITED") {
			t.Errorf("REST: %d %s", code, body)
		}
		for range 10 {
			if _, err := healthv1.NewHealthClient(s.conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
				t.Errorf("health: %v", err)
			}
		}
		for _, d := range status.Convert(call()).Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				time.Sleep(info.GetRetryDelay().AsDuration())
			}
		}
		if err := call(); err != nil {
			t.Errorf("after the time to wait: %v", err)
		}
	})
}
