package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with a file under testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (go test -update writes it):\n%s\nwant:\n%s", path, got, want)
	}
}

// What differs from run to run.
var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`invalidations/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`), "invalidations/UUIDV7"},
	{regexp.MustCompile(`"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]+)?Z"`), `"TIME"`},
	{regexp.MustCompile(`("revision": )"[1-9][0-9]*"`), `$1"N"`},
	{regexp.MustCompile(`("retryDelay": )"[0-9.]+s"`), `$1"SECONDS"`},
	{regexp.MustCompile(`--page-token \S{8,}`), "--page-token TOKEN"},
	{regexp.MustCompile(`127\.0\.0\.1:[0-9]{2,5}`), "127.0.0.1:PORT"},
}

// steady replaces what differs from run to run.
func steady(text string) string {
	for _, v := range volatile {
		text = v.pattern.ReplaceAllString(text, v.with)
	}
	return text
}

// goldenJSON compares a JSON answer, with its members in the order they came.
func goldenJSON(t *testing.T, name, answer string) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(answer), "", "  "); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, answer)
	}
	golden(t, name, steady(strings.TrimRight(b.String(), "\n")+"\n"))
}

// served is a lab over TLS and a gateway process before it.
type served struct {
	*process
	lab  *lab
	path string
}

func serveLab(t *testing.T, wrap func(string, http.Handler) http.Handler) *served {
	t.Helper()
	l, dir := newLab(), t.TempDir()
	urls := l.serve(t, dir, wrap)
	path := labConfig{dir: dir, urls: urls, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}}.write(t)
	return &served{process: serve(t, path), lab: l, path: path}
}

func (s *served) post(t *testing.T, path, body string) (int, string) {
	t.Helper()
	status, answer := post(t, http.DefaultClient, s.http+path, body)
	asDocumented(t, http.MethodPost, path, status, answer)
	return status, answer
}

// nameOf is the name of an answer's invalidation.
func nameOf(t *testing.T, answer string) string {
	t.Helper()
	var a struct{ Invalidation struct{ Name string } }
	if err := json.Unmarshal([]byte(answer), &a); err != nil || a.Invalidation.Name == "" {
		t.Fatalf("no name in %s (%v)", answer, err)
	}
	return a.Invalidation.Name
}

// TestServeAnswersInTheDocumentedShapes runs the gateway as people do and reads what REST clients read, as text.
func TestServeAnswersInTheDocumentedShapes(t *testing.T) {
	t.Parallel()
	s := serveLab(t, nil)
	apm := s.lab.systems["apm"].(*bigiqtest.Server)
	expect := func(name string, want, status int, answer string) {
		t.Helper()
		if status != want {
			t.Errorf("%s: HTTP %d, want %d: %s", name, status, want, answer)
		}
		goldenJSON(t, filepath.Join("serve", name+".json"), answer)
	}

	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get(s.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}

	// One BIG-IQ is still at work: 202, and GET answers 200 all the same.
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	status, answer := s.post(t, "/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "reason": "laptop stolen",
		"onBehalfOf": "helen@corp.example", "labels": {"ticket": "INC-7"}, "waitTimeout": "0s", "requestId": "5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"}`)
	if status != http.StatusAccepted {
		t.Fatalf("HTTP %d, want 202: %s", status, answer)
	}
	name := nameOf(t, answer)
	eventually(t, "only the BIG-IQ is left", func() bool {
		if status, answer = s.get(t, "/v1/"+name); status != http.StatusOK {
			t.Fatalf("HTTP %d while it runs, want 200: %s", status, answer)
		}
		return strings.Count(answer, `"RUN_STATE_SUCCEEDED"`) == 3 && strings.Contains(answer, `"nextAttemptTime"`)
	})
	expect("running", http.StatusOK, http.StatusOK, answer)

	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = false })
	status, answer = s.get(t, "/v1/"+name+"?waitTimeout=60s")
	expect("final", http.StatusOK, status, answer)
	// "Unknown" is absence: not 0, not null.
	for _, run := range strings.SplitAfter(answer, `"target":`)[1:] {
		if counted := strings.Contains(run, `"invalidatedCount"`); counted == strings.Contains(run, `"kind":"bigiq"`) {
			t.Errorf("counted: %t, in %s", counted, run)
		}
	}
	for target, labels := range alicesSeats {
		if gone, want := s.lab.gone(target), s.lab.labels(t, target, labels); fmt.Sprint(gone) != fmt.Sprint(want) {
			t.Errorf("%s: signed out %v, want %v", target, gone, want)
		}
	}

	for _, c := range []struct {
		name, method, path, body string
		status                   int
	}{
		{"replayed", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "reason": "laptop stolen", "onBehalfOf": "helen@corp.example", "labels": {"ticket": "INC-7"}, "requestId": "5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"}`, 200},
		{"error-request-id", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "bob"}}, "requestId": "5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"}`, 409},
		{"unsupported", "POST", "/v1/sessions:invalidate", `{"selector": {"group": "ops"}, "targets": ["kibana-prod"], "confirmBroad": true}`, 200},
		{"partial", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "bob"}, "group": "vpn"}}`, 200},
		{"preview", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "zoë"}}, "targets": ["apm", "kibana-prod", "storage"], "validateOnly": true}`, 200},
		{"error-unknown-fields", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "bob", "nam": "x"}}, "target": "apm"}`, 400},
		{"error-null", "POST", "/v1/sessions:invalidate", `{"selector": {"user": null, "provider": {"type": "saml"}}, "confirmBroad": true}`, 400},
		{"error-empty-user", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": ""}, "group": "vpn"}, "confirmBroad": true}`, 400},
		{"error-blank-user", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "  "}}}`, 400},
		{"error-not-confirmed", "POST", "/v1/sessions:invalidate", `{"selector": {"group": "vpn"}}`, 400},
		{"error-unknown-target", "POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "bob"}}, "targets": ["apm", "amp"]}`, 400},
		{"error-no-such-invalidation", "GET", "/v1/invalidations/0190b7a2-0000-7000-8000-000000000000", "", 404},
		{"error-cancel-final", "POST", "/v1/" + name + ":cancel", `{}`, 400},
		{"error-nothing-to-retry", "POST", "/v1/" + name + ":retry", `{}`, 400},
		{"targets", "GET", "/v1/targets", "", 200},
		{"list", "GET", "/v1/invalidations?label=ticket%3DINC-7&state=INVALIDATION_STATE_SUCCEEDED", "", 200},
		{"list-none", "GET", "/v1/invalidations?userId=nobody", "", 200},
		{"check", "POST", "/v1/targets/storage:check", `{}`, 200},
		{"pause", "POST", "/v1/targets/kibana-prod:pause", `{"reason": "maintenance"}`, 200},
		{"resume", "POST", "/v1/targets/kibana-prod:resume", `{}`, 200},
		{"cancel-label", "POST", "/v1/invalidations:cancel", `{"label": "ticket=INC-7"}`, 200},
	} {
		var status int
		var answer string
		if c.method == "POST" {
			status, answer = s.post(t, c.path, c.body)
		} else {
			status, answer = s.get(t, c.path)
		}
		expect(c.name, c.status, status, answer)
	}

	// The watch of what is final is one line.
	status, answer = s.get(t, "/v1/"+name+":watch")
	if status != http.StatusOK || strings.Contains(answer, "\n") || !strings.HasPrefix(answer, `{"result":{"invalidation":{"name":`) {
		t.Errorf("watch: HTTP %d: %s", status, answer)
	}
	if status, answer = s.get(t, "/openapi.json"); status != http.StatusOK || !json.Valid([]byte(answer)) {
		t.Errorf("openapi.json: HTTP %d", status)
	}
}

// TestServeRefusesAndSendsNothing makes calls that must be refused, and looks at the journal and at the targets.
func TestServeRefusesAndSendsNothing(t *testing.T) {
	t.Parallel()
	g := newGate(false, func(upstream) bool { return true }) // any request to any target
	defer g.open()
	s := serveLab(t, g.wrap())
	for _, body := range []string{
		``, `{`, `[]`, `null`, `{}`, `{"selector": {}}`, `{"selector": {"all": false}, "confirmBroad": true}`, `{"selector": {"all": true}}`,
		`{"selector": {"user": {}}}`, `{"selector": {"user": {"id": "\t"}}}`, `{"selector": {"user": {"id": "alice"}}} {}`,
		`{"selector": {"user": {"id": "alice"}, "user": {"id": "bob"}}}`, `{"selector": {"user": {"id": "alice"}}, "Targets": ["apm"]}`,
		`{"selector": {"user": {"id": "alice"}, "all": true}, "confirmBroad": true}`, `{"selector": {"user": {"id": "alice"}}, "targets": [""]}`,
		`{"selector": {"user": {"id": "alice"}}, "targets": []}`, `{"selector": {"provider": {"type": "SAML"}}, "confirmBroad": true}`,
		`{"selector": {"provider": {"type": "saml", "name": ""}}, "confirmBroad": true}`, `{"selector": {"group": null, "all": true}, "confirmBroad": true}`,
		`{"selector": {"sessions": [{"target": "apm", "id": "1"}]}, "targets": ["apm"]}`, `{"selector": {"sessions": []}}`,
		`{"selector": {"user": {"id": "` + strings.Repeat("a", 1025) + `"}}}`, `{"selector": {"user": {"id": "alice", "targetUsernames": {"nowhere": {"usernames": ["x"]}}}}}`,
		`{"selector": {"user": {"id": "alice"}}, "priority": "PRIORITY_HIGH"}`, `{"selector": {"user": {"id": "alice"}}, "waitTimeout": "301s"}`,
	} {
		if status, answer := s.post(t, "/v1/sessions:invalidate", body); status != http.StatusBadRequest || !strings.Contains(answer, `"code":3`) {
			t.Errorf("%s: HTTP %d, want 400: %s", body, status, answer)
		}
	}
	if _, answer := s.get(t, "/v1/invalidations"); answer != "{}" {
		t.Errorf("something was journalled: %s", answer)
	}
	select {
	case <-g.reached:
		t.Error("something was sent to a target")
	default:
	}
}

// TestServeProbesItsTargets: nobody asks for it.
func TestServeProbesItsTargets(t *testing.T) {
	t.Parallel()
	l, dir := newLab(), t.TempDir()
	urls := l.serve(t, dir, nil)
	path := labConfig{dir: dir, urls: urls, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}, change: func(text string) string {
		return strings.Replace(text, "check_interval: never", "check_interval: 5m", 1)
	}}.write(t)
	s := &served{process: serve(t, path), lab: l}
	eventually(t, "every target is found healthy", func() bool {
		_, answer := s.get(t, "/v1/targets")
		return strings.Count(answer, `"status":"HEALTH_STATUS_OK"`) == len(l.targets) && strings.Count(answer, `"checkTime"`) == len(l.targets)
	})
}

// TestServeTrustsOnlyTheConfiguredAuthority takes one target's certificate authority for another's.
func TestServeTrustsOnlyTheConfiguredAuthority(t *testing.T) {
	t.Parallel()
	l, dir := newLab(), t.TempDir()
	urls := l.serve(t, dir, nil)
	path := labConfig{dir: dir, urls: urls, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}, change: func(text string) string {
		return strings.Replace(text, "kibana.pem", "mvip.pem", 1)
	}}.write(t)
	s := &served{process: serve(t, path), lab: l}
	status, answer := s.post(t, "/v1/targets/kibana-prod:check", `{}`)
	if status != http.StatusOK || !strings.Contains(answer, `"name":"tls","status":"CHECK_STATUS_FAILED"`) {
		t.Errorf("check: HTTP %d: %s", status, answer)
	}
	status, answer = s.post(t, "/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "targets": ["kibana-prod"], "waitTimeout": "0s"}`)
	if status != http.StatusAccepted {
		t.Fatalf("HTTP %d: %s", status, answer)
	}
	eventually(t, "the run is retried", func() bool {
		_, answer = s.get(t, "/v1/"+nameOf(t, answer))
		return strings.Contains(answer, `"RUN_STATE_RETRYING"`) && strings.Contains(answer, `"UPSTREAM_UNREACHABLE"`)
	})
	if gone := l.gone("kibana-prod"); gone != nil {
		t.Errorf("signed out: %v", gone)
	}
}

// TestServeEndsInOrder sends SIGTERM while a caller waits: the caller is answered, what is under way is finished, and
// what is left is taken up at the next start.
func TestServeEndsInOrder(t *testing.T) {
	t.Parallel()
	g := newGate(false, of("kibana-prod", http.MethodPost, invalidate, "", 2))
	s := serveLab(t, g.wrap())
	t.Cleanup(g.open)
	type reply struct {
		status int
		answer string
	}
	answered := make(chan reply, 1)
	go func() {
		status, answer := post(t, http.DefaultClient, s.http+"/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "waitTimeout": "300s"}`)
		answered <- reply{status, answer}
	}()
	<-g.reached
	s.terminate(t)
	var r reply
	select {
	case r = <-answered:
	case <-time.After(patience):
		t.Fatal("the caller is kept waiting for what hangs")
	}
	if r.status != http.StatusAccepted || !strings.Contains(r.answer, `"state":"INVALIDATION_STATE_RUNNING"`) {
		t.Errorf("the caller was answered HTTP %d: %s", r.status, r.answer)
	}
	g.open()
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}

	s.process = serve(t, s.path)
	_, answer := s.get(t, "/v1/"+nameOf(t, r.answer)+"?waitTimeout=60s")
	if !strings.Contains(answer, `"state":"INVALIDATION_STATE_SUCCEEDED"`) {
		t.Errorf("after the restart: %s", answer)
	}
	for target, labels := range alicesSeats {
		if gone, want := s.lab.gone(target), s.lab.labels(t, target, labels); fmt.Sprint(gone) != fmt.Sprint(want) {
			t.Errorf("%s: signed out %v, want %v", target, gone, want)
		}
	}
	// Nothing was lost in an orderly shutdown, so the counts are exact.
	var final struct {
		Invalidation struct {
			Runs []struct {
				Target           string
				InvalidatedCount *int
				CountIsMinimum   bool
			}
		}
	}
	if err := json.Unmarshal([]byte(answer), &final); err != nil {
		t.Fatal(err)
	}
	for _, run := range final.Invalidation.Runs {
		if n := len(s.lab.gone(run.Target)); run.CountIsMinimum || run.InvalidatedCount != nil && *run.InvalidatedCount != n {
			t.Errorf("%s: %v sessions, minimum %t; want exactly %d", run.Target, run.InvalidatedCount, run.CountIsMinimum, n)
		}
	}
}

// TestServeRefusesToShare starts a second gateway on the same journal, and one on a port that is taken.
func TestServeRefusesToShare(t *testing.T) {
	t.Parallel()
	s := serveLab(t, nil)
	second := begin(t, s.path)
	if status := second.wait(t); status != exitFailed || !strings.Contains(second.log.String(), "another process has it open") {
		t.Errorf("exit status %d:\n%s", status, second.log)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	text, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(s.path), "taken.yaml")
	if err := os.WriteFile(path, bytes.Replace(text, []byte("grpc: 127.0.0.1:0"), []byte("grpc: "+l.Addr().String()), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	third := begin(t, path)
	if status := third.wait(t); status != exitFailed || !strings.Contains(third.log.String(), "listen.grpc: ") {
		t.Errorf("exit status %d:\n%s", status, third.log)
	}
}

// TestServeGoesOnWhenATargetIsDown has one target that answers nothing but errors.
func TestServeGoesOnWhenATargetIsDown(t *testing.T) {
	t.Parallel()
	s := serveLab(t, nil)
	kibana := s.lab.systems["kibana-prod"].(*kibanatest.Server)
	kibana.Suffer(kibanatest.ElasticsearchDown)
	status, answer := s.post(t, "/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "waitTimeout": "0s"}`)
	if status != http.StatusAccepted {
		t.Fatalf("HTTP %d: %s", status, answer)
	}
	name := nameOf(t, answer)
	eventually(t, "the others are done", func() bool {
		_, answer = s.get(t, "/v1/"+name)
		return strings.Count(answer, `"RUN_STATE_SUCCEEDED"`) == 3 && strings.Contains(answer, `"OUTCOME_UNKNOWN"`)
	})
	if gone := s.lab.gone("kibana-prod"); gone != nil {
		t.Errorf("signed out of a target that is down: %v", gone)
	}
	kibana.Suffer(kibanatest.Healthy)
	_, answer = s.get(t, "/v1/"+name+"?waitTimeout=60s")
	if !strings.Contains(answer, `"state":"INVALIDATION_STATE_SUCCEEDED"`) || !strings.Contains(answer, `"invalidatedCount":8,"countIsMinimum":true`) {
		t.Errorf("after the target came back: %s", answer)
	}
	if gone, want := s.lab.gone("kibana-prod"), s.lab.labels(t, "kibana-prod", alicesSeats["kibana-prod"]); fmt.Sprint(gone) != fmt.Sprint(want) {
		t.Errorf("signed out %v, want %v", gone, want)
	}
}
