package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	example "github.com/endsession/endsession/docs/examples/go"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// forgetful loses the answers of the first calls.
type forgetful struct {
	endsessionv1.SessionServiceClient
	calls, lost int
}

func (f *forgetful) InvalidateSessions(ctx context.Context, req *endsessionv1.InvalidateSessionsRequest, opts ...grpc.CallOption) (*endsessionv1.InvalidateSessionsResponse, error) {
	resp, err := f.SessionServiceClient.InvalidateSessions(ctx, req, opts...)
	if f.calls++; f.calls <= f.lost {
		return nil, status.Error(codes.Unavailable, "the connection broke")
	}
	return resp, err
}

// TestGoExample calls a gateway with TLS and API keys as the example for Go programs does.
func TestGoExample(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	files := map[string]string{"ca.pem": string(g.ca.PEM), "helpdesk.key": g.keys["helpdesk"] + "\n", "nobody.key": g.keys["nobody"] + "\n"}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dial := func(key string) endsessionv1.SessionServiceClient {
		cc, err := example.Dial(g.srv.GRPCAddr().String(), filepath.Join(g.dir, "ca.pem"), filepath.Join(g.dir, key))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cc.Close() })
		return endsessionv1.NewSessionServiceClient(cc)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	if _, err := example.EndSessions(ctx, dial("nobody.key"), "alice", ""); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty reason: got %v", err)
	}
	if _, err := example.EndSessions(ctx, dial("nobody.key"), "alice", "test"); status.Code(err) != codes.PermissionDenied || example.Reason(err) != "POLICY_DENIED" {
		t.Errorf("a caller without rights: got %v, reason %q", err, example.Reason(err))
	}

	// Two answers are lost; the sessions are ended once.
	client := dial("helpdesk.key")
	lossy := &forgetful{SessionServiceClient: client, lost: 2}
	inv, err := example.EndSessions(ctx, lossy, "alice", "laptop stolen")
	if err != nil || lossy.calls != 3 {
		t.Fatalf("%d calls: %v, %v", lossy.calls, inv, err)
	}
	list, err := client.ListInvalidations(ctx, &endsessionv1.ListInvalidationsRequest{UserId: proto.String("alice")})
	if err != nil || len(list.GetInvalidations()) != 1 {
		t.Errorf("accepted %d times: %v", len(list.GetInvalidations()), err)
	}
	var report bytes.Buffer
	done := example.Report(&report, inv)
	// In the lab the targets are locked (nobody answers), or not: the report must say the same as the invalidation.
	if succeeded := inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED; done != succeeded {
		t.Errorf("done: %t\n%v", done, inv)
	}
	for _, run := range inv.GetRuns() {
		if !strings.Contains(report.String(), run.GetTarget()+": ") {
			t.Errorf("the report leaves out %s:\n%s", run.GetTarget(), report.String())
		}
	}
	if unknown := "apm: an unknown number of sessions ended"; !strings.Contains(report.String(), unknown) {
		t.Errorf("the report does not say %q:\n%s", unknown, report.String())
	}
	if gone := g.lab.gone("storage"); !slices.Equal(gone, g.lab.labels(t, "storage", alicesSeats["storage"])) {
		t.Errorf("gone from storage: %v", gone)
	}

	// What is unsupported or failed is not done, and the report says so.
	resp, err := client.InvalidateSessions(ctx, &endsessionv1.InvalidateSessionsRequest{
		Selector: &endsessionv1.Selector{Provider: &endsessionv1.Provider{Type: "saml", Name: proto.String("saml2")}}, ConfirmBroad: proto.Bool(true),
	})
	if err != nil {
		t.Fatal(err)
	}
	report.Reset()
	if example.Report(&report, resp.GetInvalidation()) || !strings.Contains(report.String(), "cannot do this, nothing was sent") {
		t.Errorf("the report of %v:\n%s", resp.GetInvalidation().GetState(), report.String())
	}

	// A watch shows every state until the last.
	running, err := client.InvalidateSessions(ctx, &endsessionv1.InvalidateSessionsRequest{
		Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "bob"}}, WaitTimeout: durationpb.New(0),
	})
	if err != nil {
		t.Fatal(err)
	}
	var last *endsessionv1.Invalidation
	if err := example.Watch(ctx, client, running.GetInvalidation().GetName(), func(inv *endsessionv1.Invalidation) { last = inv }); err != nil {
		t.Fatal(err)
	}
	if last.GetCompleteTime() == nil {
		t.Errorf("the watch ended with %v", last)
	}
}

// TestShellExample runs the script for the shell where all is well, and where it is not.
func TestShellExample(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("jq"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no jq")
		}
		t.Skip("there is no jq")
	}
	s := newShell(t)
	w := s.emulate(t)
	script, err := filepath.Abs(filepath.Join(root, "docs/examples/shell/invalidate.sh"))
	if err != nil {
		t.Fatal(err)
	}
	s.env["SCRIPT"] = script
	s.write(t, "endsession.yaml", s.configuration(w, ""), 0o600)
	run := func(command string, status int, says ...string) {
		t.Helper()
		_, got := s.do(t, command)
		if got != status {
			t.Errorf("%s: exit status %d, want %d:\n%s", command, got, status, s.all(s.n))
		}
		for _, text := range says {
			if !strings.Contains(s.all(s.n), text) {
				t.Errorf("%s does not say %q:\n%s", command, text, s.all(s.n))
			}
		}
	}
	s.env["ENDSESSION_URL"] = "http://" + s.host + ":8080"
	run("PATIENCE=1 $SCRIPT alice", 2, "no answer from")
	s.do(t, "endsession serve --config endsession.yaml &")
	s.awaitGateway(t)
	run("$SCRIPT alice 'laptop stolen'", 0, ": SUCCEEDED", "apm: SUCCEEDED, sessions ended: unknown\n", "storage: SUCCEEDED, sessions ended: 1\n")
	w.judge(t, "the script", func(x signedIn) bool { return x.person == "alice" })
	run("$SCRIPT alice", 0, "storage: warning NO_SESSION_MATCHED")
	run("$SCRIPT ' '", 2, "refused: INVALID_ARGUMENT: selector.user.id")
	run("$SCRIPT nobody-knows-him", 1, "PARTIALLY_SUCCEEDED", "kibana-prod: NO_IDENTITY")
	run("id=$(cat /proc/sys/kernel/random/uuid); REQUEST_ID=$id $SCRIPT bob >first; REQUEST_ID=$id $SCRIPT bob >second; diff first second", 0)
	w.closers[2]()
	run("PATIENCE=2 $SCRIPT carol", 4, ": RUNNING", "apm: SUCCEEDED", "storage: RETRYING", "storage: UPSTREAM_UNREACHABLE")
}

// TestTypeScriptExample holds the OpenAPI document to what linters recommend, makes a client of it, compiles that
// strictly and ends somebody's sessions with it.
func TestTypeScriptExample(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("npm"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no npm")
		}
		t.Skip("there is no npm")
	}
	s := newShell(t)
	// npm writes into its folder, so it gets one of its own.
	for _, file := range []string{
		"docs/examples/typescript/package.json", "docs/examples/typescript/package-lock.json", "docs/examples/typescript/tsconfig.json",
		"docs/examples/typescript/redocly.yaml", "docs/examples/typescript/lint.mjs", "docs/examples/typescript/src/invalidate.ts",
		"gen/openapi/endsession.openapi.json",
	} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, file, string(text), 0o600)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"npm_config_userconfig": ".npmrc", "npm_config_cache": ".npm"} {
		if os.Getenv(name) == "" {
			s.env[name] = filepath.Join(home, file)
		}
	}
	w := s.emulate(t)
	s.write(t, "endsession.yaml", s.configuration(w, ""), 0o600)
	s.env["ENDSESSION_URL"] = "http://" + s.host + ":8080"
	s.do(t, "endsession serve --config endsession.yaml &")
	s.awaitGateway(t)
	run := func(command string, want int) string {
		t.Helper()
		out, got := s.do(t, command)
		if got != want {
			t.Fatalf("%s: exit status %d, want %d:\n%s", command, got, want, s.all(s.n))
		}
		return out
	}
	run("cd docs/examples/typescript && npm ci --no-audit --no-fund --ignore-scripts", 0)
	run("npm run lint", 0)
	run("npm run generate", 0)
	run("npm run build", 0)
	out := run("npm run --silent invalidate alice", 0)
	for _, says := range []string{": SUCCEEDED\n", "apm: SUCCEEDED, sessions ended: unknown\n", "storage: SUCCEEDED, sessions ended: 1\n"} {
		if !strings.Contains(out, says) {
			t.Errorf("it does not say %q:\n%s", says, out)
		}
	}
	w.judge(t, "the example", func(x signedIn) bool { return x.person == "alice" })
	if out := run("npm run --silent invalidate nobody-knows-him", 1); !strings.Contains(out, "PARTIALLY_SUCCEEDED") || !strings.Contains(out, "kibana-prod: NO_IDENTITY") {
		t.Errorf("somebody without a name in Kibana:\n%s", out)
	}
	run("npm run --silent invalidate ' '", 2)
	// A linter that finds nothing in a document with a mistake would find nothing in ours.
	run(`sed -i 's#"/components/schemas/Run"#"/components/schemas/Rum"#; s#schemas/Caller"#schemas/Cellar"#' ../../../gen/openapi/endsession.openapi.json`, 0)
	run("npm run lint", 1)
}
