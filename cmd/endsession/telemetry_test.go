package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofrs/flock"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/endsession/endsession/adapters/emulator"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/telemetry"
)

// The trace context of a caller, and the same in a REST request.
const (
	grpcTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	restTrace = "5bf92f3577b34da6a3ce929d0e0e4736"
	callSpan  = "00f067aa0ba902b7"
)

func traceparent(id string) string { return "00-" + id + "-" + callSpan + "-01" }

// observed is a gateway after a day with a bit of everything, and what it told of it.
type observed struct {
	*memoryGateway
	metrics string
	spans   []sdktrace.ReadOnlySpan
	// invalidations are the IDs of the calls that came over gRPC and REST with a trace context.
	overGRPC, overREST string
}

// held is a transport that, once it is on, lets the next request have no answer until its sender gives up.
type held struct {
	next    http.RoundTripper
	on      atomic.Bool
	reached chan struct{}
}

// RoundTrip implements [http.RoundTripper].
func (h *held) RoundTrip(r *http.Request) (*http.Response, error) {
	if !h.on.Swap(false) {
		return h.next.RoundTrip(r)
	}
	close(h.reached)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// eventful runs a gateway in a bubble through everything that is documented to be told, and has its telemetry looked at.
func eventful(t *testing.T, look func(t *testing.T, o observed)) {
	synctest.Test(t, func(t *testing.T) {
		recorder := tracetest.NewSpanRecorder()
		reported, err := telemetry.New(t.Context(), telemetry.Options{Version: "v1.2.3", Spans: recorder})
		if err != nil {
			t.Fatal(err)
		}
		path := memoryDir(t, func(text string) string {
			return strings.Replace(text, "check_interval: never", "check_interval: 5m", 1)
		})
		hold := &held{reached: make(chan struct{})}
		log := &lockedBuffer{}
		o := observed{memoryGateway: startInMemory(t, newLab(), path, func(opt *server.Options) {
			opt.Telemetry = reported
			opt.Logger = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			real := opt.Transport
			opt.Transport = func(target string) http.RoundTripper {
				if target != "storage" {
					return real(target)
				}
				hold.next = real(target)
				return hold
			}
		})}
		o.log = log
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent(grpcTrace))
		client := endsessionv1.NewSessionServiceClient(o.grpc)
		user := func(id string) *endsessionv1.InvalidateSessionsRequest {
			return &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: id}}}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}

		// Over gRPC, in a trace.
		reply, err := client.InvalidateSessions(ctx, user("alice"))
		must(err)
		o.overGRPC = strings.TrimPrefix(reply.GetInvalidation().GetName(), "invalidations/")
		// Over REST, in another, as bulk, and unsupported at some targets.
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/v1/sessions:invalidate",
			strings.NewReader(`{"selector": {"group": "vpn"}, "confirmBroad": true, "priority": "PRIORITY_BULK", "allowUnsupported": true}`))
		must(err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Traceparent", traceparent(restTrace))
		resp, err := o.http.Do(req)
		must(err)
		answer := read(t, resp.Body)
		_ = resp.Body.Close()
		o.overREST = strings.TrimPrefix(nameOf(t, answer), "invalidations/")
		// Refused, by the API and before it.
		if _, err := client.InvalidateSessions(t.Context(), &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{All: proto.Bool(true)}}); err == nil {
			t.Fatal("a broad call was accepted")
		}
		resp, err = o.http.Get("http://localhost/v1/targets?user=alice")
		must(err)
		_ = resp.Body.Close()
		req, err = http.NewRequestWithContext(t.Context(), "BREW", "http://localhost/coffee", nil)
		must(err)
		resp, err = o.http.Do(req)
		must(err)
		_ = resp.Body.Close()
		// Cancelled while a request is under way.
		hold.on.Store(true)
		slow := user("bob")
		slow.WaitTimeout = durationpb.New(0)
		reply, err = client.InvalidateSessions(t.Context(), slow)
		must(err)
		<-hold.reached
		_, err = client.CancelInvalidation(t.Context(), &endsessionv1.CancelInvalidationRequest{Name: reply.GetInvalidation().GetName()})
		must(err)
		// Left waiting at a target that is paused.
		_, err = client.PauseTarget(t.Context(), &endsessionv1.PauseTargetRequest{Target: "kibana-prod"})
		must(err)
		waiting := user("carol")
		waiting.WaitTimeout, waiting.Targets = durationpb.New(0), []string{"kibana-prod"}
		waiting.Selector.User.Email = proto.String("carol@corp.example")
		_, err = client.InvalidateSessions(t.Context(), waiting)
		must(err)
		time.Sleep(11 * time.Second) // the backlog is counted, probes are made, leases renewed

		resp, err = o.admin.Get("http://localhost/metrics")
		must(err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(err)
		o.metrics, o.spans = string(text), recorder.Ended()
		look(t, o)
	})
}

// TestMetricsAreThoseDocumented compares what a gateway tells with the tables in docs/telemetry.md.
func TestMetricsAreThoseDocumented(t *testing.T) {
	doc := readTelemetryDoc(t)
	eventful(t, func(t *testing.T, o observed) {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(o.metrics))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range doc.metrics {
			if families[name] == nil {
				t.Errorf("%s is documented, and not there", name)
			} else if got := strings.ToLower(families[name].GetType().String()); got != want.typ {
				t.Errorf("%s is a %s, documented as a %s", name, got, want.typ)
			}
		}
		for name, family := range families {
			if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
				continue
			}
			want, ok := doc.metrics[name]
			if !ok {
				t.Errorf("%s is not documented", name)
				continue
			}
			for _, m := range family.GetMetric() {
				doc.check(t, name, want.labels, m)
			}
		}
		for _, want := range []string{
			`endsession_build_info{go_version="go1.`,
			`endsession_call_duration_seconds_count{code="OK",method="InvalidateSessions"} 4`,
			`endsession_call_duration_seconds_count{code="INVALID_ARGUMENT",method="InvalidateSessions"} 1`,
			`endsession_calls_refused_total{reason="CONFIRM_BROAD_REQUIRED"} 1`,
			`endsession_http_request_duration_seconds_count{http_request_method="POST",http_response_status_code="200"} 1`,
			`endsession_http_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="404"} 1`,
			`endsession_invalidations_accepted_total{priority="PRIORITY_BULK"} 1`,
			`endsession_invalidations_accepted_total{priority="PRIORITY_NORMAL"} 3`,
			`endsession_invalidations_completed_total{state="CANCELLED"} 1`,
			`endsession_invalidations_completed_total{state="SUCCEEDED"} 2`,
			`endsession_runs_ended_total{kind="bigiq",reason="NONE",state="SUCCEEDED",target="apm"} 2`,
			`endsession_runs_ended_total{kind="bigiq",reason="SELECTOR_UNSUPPORTED",state="UNSUPPORTED",target="apm-all"} 1`,
			`endsession_runs_ended_total{kind="element",reason="NONE",state="SUCCEEDED",target="storage"} 2`,
			`endsession_runs_ended_total{kind="element",reason="CANCELLED",state="CANCELLED",target="storage"} 1`,
			`endsession_attempt_duration_seconds_count{kind="element",result="interrupted",target="storage"} 1`,
			`endsession_leases_lost_total{target="storage"} 1`,
			`endsession_upstream_request_duration_seconds_count{code="none",kind="element",method="POST",target="storage"} 1`,
			`endsession_runs_unfinished{target="kibana-prod"} 1`,
			`endsession_runs_oldest_unfinished_age_seconds{target="kibana-prod"} 11`,
			`endsession_runs_unfinished{target="apm"} 0`,
			`endsession_slots_held{target="apm"} 8`,
			`endsession_slots_limit{target="apm"} 8`,
			`endsession_breaker_state{state="closed",target="apm"} 1`,
			`endsession_breaker_state{state="open",target="apm"} 0`,
			`endsession_target_paused{target="kibana-prod"} 1`,
			`endsession_target_paused{target="apm"} 0`,
			`endsession_target_healthy{target="apm"} 1`,
			`endsession_journal_commit_duration_seconds_count{operation="accept",result="committed"} 4`,
			`endsession_journal_ready 1`,
		} {
			if !strings.Contains(o.metrics, want) {
				t.Errorf("no %s", want)
			}
		}
		if t.Failed() {
			t.Log(regexp.MustCompile(`(?m)^(#|go_|process_|\w+_bucket).*\n`).ReplaceAllString(o.metrics, ""))
		}
	})
}

// TestSpansAreThoseDocumented compares spans and their attributes with the tables in docs/telemetry.md, and follows the
// trace of a call to the targets and back into the log.
func TestSpansAreThoseDocumented(t *testing.T) {
	doc := readTelemetryDoc(t)
	eventful(t, func(t *testing.T, o observed) {
		documented := map[string]bool{}
		named := map[trace.SpanID]string{}
		for _, s := range o.spans {
			named[s.SpanContext().SpanID()] = s.Name()
		}
		below := map[string]map[string]int{grpcTrace: {}, restTrace: {}}
		for _, s := range o.spans {
			name := s.Name()
			if strings.HasPrefix(name, "endsession.v1.SessionService/") {
				name = "endsession.v1.SessionService/…"
			}
			kind, ok := doc.spans[name]
			if !ok || kind != s.SpanKind().String() {
				t.Errorf("span %q of kind %s: documented kind %q", s.Name(), s.SpanKind(), kind)
			}
			documented[name] = true
			has := map[string]bool{}
			for _, a := range s.Attributes() {
				has[string(a.Key)] = true
				if personal.MatchString(a.Value.String()) {
					t.Errorf("span %q: %s=%s", s.Name(), a.Key, a.Value.String())
				}
			}
			if of := doc.attributes[name]; of != nil {
				for key := range has {
					if !slices.Contains(of, key) {
						t.Errorf("span %q has the attribute %s, which is not documented", s.Name(), key)
					}
				}
				for _, key := range of {
					if !has[key] && key != "error.type" && key != "http.response.status_code" && key != "endsession.result" {
						t.Errorf("span %q lacks %s: %v", s.Name(), key, s.Attributes())
					}
				}
			}
			if in := below[s.SpanContext().TraceID().String()]; in != nil {
				in[named[s.Parent().SpanID()]+" > "+s.Name()]++
			}
		}
		for name := range doc.spans {
			if !documented[name] {
				t.Errorf("span %q is documented, and was not made", name)
			}
		}
		const call = "endsession.v1.SessionService/InvalidateSessions"
		for id, want := range map[string][]string{
			grpcTrace: {" > " + call, call + " > run", "run > upstream POST", "run > upstream GET"},
			restTrace: {" > HTTP POST", "HTTP POST > " + call, call + " > run", "run > upstream POST"},
		} {
			for _, w := range want {
				if below[id][w] == 0 {
					t.Errorf("trace %s has no %q: %v", id, w, below[id])
				}
			}
		}
		for _, target := range o.lab.targets {
			sent := slices.ContainsFunc(o.sent[target].Requests(), func(r emulator.Recorded) bool {
				return strings.HasPrefix(r.Header.Get("Traceparent"), "00-"+grpcTrace) && !strings.Contains(r.Header.Get("Traceparent"), callSpan)
			})
			if !sent {
				t.Errorf("%s was sent nothing in the caller's trace", target)
			}
		}
	})
}

// TestLogSaysWhatItIsAbout looks at every line that is about a run, or a call in a trace.
func TestLogSaysWhatItIsAbout(t *testing.T) {
	eventful(t, func(t *testing.T, o observed) {
		about := map[string]int{}
		for line := range strings.Lines(o.log.String()) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			for _, key := range []string{"trace_id", "invalidation", "run", "target"} {
				if strings.Count(line, `"`+key+`":`) > 1 {
					t.Errorf("says %s more than once: %s", key, line)
				}
			}
			msg := entry["msg"].(string)
			ofRun := strings.HasPrefix(msg, "run ") || msg == "kibana ended sessions" || msg == "attempt failed" || msg == "task started"
			if !ofRun {
				continue
			}
			about[msg]++
			if entry["invalidation"] == nil || entry["run"] == nil || entry["target"] == nil {
				t.Errorf("does not say which run it is about: %s", line)
			}
			if want := map[any]string{o.overGRPC: grpcTrace, o.overREST: restTrace}[entry["invalidation"]]; want != "" && entry["trace_id"] != want {
				t.Errorf("is not in the trace %s: %s", want, line)
			}
			if personal.MatchString(line) {
				t.Errorf("names somebody: %s", line)
			}
		}
		for _, msg := range []string{"run recorded", "kibana ended sessions", "task started"} {
			if about[msg] == 0 {
				t.Errorf("no line %q:\n%s", msg, o.log)
			}
		}
	})
}

// personal matches the names of people who were asked for.
var personal = regexp.MustCompile(`(?i)alice|bob|carol|vpn`)

// TestTraceContextGoesThroughUntraced has no traces made: the caller's go on beyond the gateway nevertheless.
func TestTraceContextGoesThroughUntraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lockedBuffer{}
		g := startInMemory(t, newLab(), memoryDir(t, nil), func(o *server.Options) {
			o.Logger = slog.New(slog.NewJSONHandler(log, nil))
		})
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent(grpcTrace))
		_, err := endsessionv1.NewSessionServiceClient(g.grpc).InvalidateSessions(ctx, &endsessionv1.InvalidateSessionsRequest{
			Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}}, Targets: []string{"kibana-prod"},
		})
		if err != nil {
			t.Fatal(err)
		}
		requests := g.sent["kibana-prod"].Requests()
		if len(requests) == 0 {
			t.Fatal("nothing was sent")
		}
		for _, r := range requests {
			if got := r.Header.Get("Traceparent"); got != traceparent(grpcTrace) {
				t.Errorf("traceparent %q, want the caller's", got)
			}
		}
		if !regexp.MustCompile(`"msg":"run recorded".*"trace_id":"` + grpcTrace + `"`).MatchString(log.String()) {
			t.Errorf("the log does not know the trace:\n%s", log)
		}
	})
}

// TestMetricsPleasePromtool has Prometheus's own tool look for what is unusual.
func TestMetricsPleasePromtool(t *testing.T) {
	tool := promtool(t)
	eventful(t, func(t *testing.T, o observed) {
		cmd := exec.Command(tool, "check", "metrics")
		cmd.Stdin = strings.NewReader(o.metrics)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	})
}

// promtool finds the tool, or installs it where that is possible. Without it the test is skipped; in CI that is a failure.
func promtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err == nil {
		return path
	}
	if apt, missing := exec.LookPath("apt-get"); missing == nil && os.Geteuid() == 0 {
		lock := flock.New(filepath.Join(os.TempDir(), "endsession-install-prometheus.lock"))
		if err := lock.Lock(); err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		for _, args := range [][]string{{"update", "-qq"}, {"install", "-qqy", "--no-install-recommends", "prometheus"}} {
			cmd := exec.Command(apt, args...)
			cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Logf("apt-get %s: %v\n%s", args[0], err, out)
				break
			}
		}
		if path, err = exec.LookPath("promtool"); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("no promtool (Debian: apt-get install prometheus)")
	}
	t.Skip("no promtool (Debian: apt-get install prometheus)")
	return ""
}

// telemetryDoc is what docs/telemetry.md promises.
type telemetryDoc struct {
	metrics map[string]documentedMetric
	// values are the closed sets, by "label metric" or "label all"; nil stands for what others say.
	values map[string][]string
	// spans are the kinds of the spans by their names, attributes those of a span if they are ours to say.
	spans      map[string]string
	attributes map[string][]string
}

type documentedMetric struct {
	typ    string
	labels []string
}

var (
	code   = regexp.MustCompile("`([^`]+)`")
	reason = regexp.MustCompile("`([A-Z_]+)`")
)

func words(cell string) (all []string) {
	for _, m := range code.FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}

func readTelemetryDoc(t *testing.T) telemetryDoc {
	t.Helper()
	read := func(path ...string) string {
		b, err := os.ReadFile(filepath.Join(append([]string{"..", ".."}, path...)...))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	d := telemetryDoc{map[string]documentedMetric{}, map[string][]string{}, map[string]string{}, map[string][]string{}}
	var head string
	for line := range strings.Lines(read("docs", "telemetry.md")) {
		if !strings.HasPrefix(line, "|") {
			head = ""
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if head == "" {
			head = cells[0]
			continue
		}
		if strings.HasPrefix(cells[0], "---") {
			continue
		}
		switch names := words(cells[0]); head {
		case "metric":
			d.metrics[names[0]] = documentedMetric{cells[1], words(cells[2])}
		case "label":
			of := "all"
			if w := words(cells[1]); len(w) > 0 {
				of = w[0]
			}
			set := words(cells[2])
			if names[0] == "reason" {
				for line := range strings.Lines(read("proto", "endsession", "v1", "error.proto")) {
					if first, ok := strings.CutPrefix(line, "// | `"); ok {
						first, _, _ = strings.Cut(first, " |")
						for _, m := range reason.FindAllStringSubmatch("`"+first, -1) {
							set = append(set, m[1])
						}
					}
				}
			}
			if cells[2] == "…" {
				set = nil
			}
			d.values[names[0]+" "+of] = set
		case "span":
			for _, name := range names {
				d.spans[name] = cells[1]
			}
		case "attribute":
			for _, of := range words(cells[1]) {
				if of == "upstream …" {
					for _, m := range []string{"upstream GET", "upstream POST"} {
						d.attributes[m] = append(d.attributes[m], names[0])
					}
				} else {
					d.attributes[of] = append(d.attributes[of], names[0])
				}
			}
		}
	}
	if len(d.metrics) == 0 || len(d.values) == 0 || len(d.spans) == 0 || len(d.attributes) == 0 {
		t.Fatalf("a table of docs/telemetry.md is missing: %+v", d)
	}
	return d
}

// check compares one series with its metric's labels and their closed sets.
func (d telemetryDoc) check(t *testing.T, name string, labels []string, m *dto.Metric) {
	t.Helper()
	got := map[string]string{}
	for _, l := range m.GetLabel() {
		got[l.GetName()] = l.GetValue()
	}
	keys := slices.Sorted(maps.Keys(got))
	if want := slices.Sorted(slices.Values(labels)); !slices.Equal(keys, want) {
		t.Errorf("%s has the labels %v, documented are %v", name, keys, want)
	}
	for key, value := range got {
		set, ok := d.values[key+" "+name]
		if !ok {
			set, ok = d.values[key+" all"]
		}
		switch {
		case !ok:
			t.Errorf("%s: the values of the label %s are not documented", name, key)
		case set != nil && !slices.Contains(set, value):
			t.Errorf("%s{%s=%q}: documented are %v", name, key, value, set)
		case key == "target" && !slices.Contains(newLab().targets, value):
			t.Errorf("%s{target=%q} is not configured", name, value)
		case personal.MatchString(value):
			t.Errorf("%s{%s=%q} names somebody", name, key, value)
		}
	}
}
