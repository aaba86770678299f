package telemetry_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/telemetry"
)

func newTelemetry(t *testing.T, o telemetry.Options) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Close(context.Background()) })
	return tel
}

// scrape returns the lines that Prometheus would read.
func scrape(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	tel.Metrics().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(text, l+"\n") {
			t.Errorf("no %q", l)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func spanContext(id byte) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{id}, SpanID: trace.SpanID{id}, TraceFlags: trace.FlagsSampled})
}

func claimed(id string) invalidation.ClaimedRun {
	return invalidation.ClaimedRun{Lease: invalidation.Lease{InvalidationID: id, Run: 2}, Run: invalidation.Run{Target: "apm", Kind: "bigiq"}}
}

// TestSendsOnlyWhatTheEnvironmentAsksFor has a collector stand by, which the process's own environment names: what is
// read of the environment is only the test's.
func TestSendsOnlyWhatTheEnvironmentAsksFor(t *testing.T) {
	const both = "/v1/metrics /v1/traces"
	for name, test := range map[string]struct {
		env  map[string]string
		want string
	}{
		"Unset":               {nil, ""},
		"Endpoint":            {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "it"}, both},
		"EndpointForTraces":   {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "it"}, "/v1/traces"},
		"EndpointForMetrics":  {map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "it"}, "/v1/metrics"},
		"ExporterForTraces":   {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, "/v1/traces"},
		"ExporterForMetrics":  {map[string]string{"OTEL_METRICS_EXPORTER": "otlp"}, "/v1/metrics"},
		"None":                {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "it", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, ""},
		"PrometheusIsServed":  {map[string]string{"OTEL_METRICS_EXPORTER": "prometheus"}, ""},
		"DisabledAltogether":  {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "it", "OTEL_SDK_DISABLED": "true"}, ""},
		"DisabledIsNotAsked":  {map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, ""},
		"NotDisabledByABlank": {map[string]string{"OTEL_SDK_DISABLED": "", "OTEL_TRACES_EXPORTER": "otlp"}, "/v1/traces"},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var got []string
			collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if !slices.Contains(got, r.URL.Path) {
					got = append(got, r.URL.Path)
				}
			}))
			defer collector.Close()
			for _, variable := range os.Environ() {
				if key, _, _ := strings.Cut(variable, "="); strings.HasPrefix(key, "OTEL_") {
					t.Setenv(key, "")
				}
			}
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
			tel, err := telemetry.New(t.Context(), telemetry.Options{Getenv: func(key string) string { return test.env[key] }})
			if err != nil {
				t.Fatal(err)
			}
			tel.JournalReady(true)
			_, done := tel.Begun(t.Context(), claimed("i1"))
			done()
			if err := tel.Close(t.Context()); err != nil {
				t.Error(err)
			}
			slices.Sort(got)
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("sent to %q, want %q", text, test.want)
			}
		})
	}
}

func TestUnknownExporterIsAnError(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "pigeon")
	if _, err := telemetry.New(t.Context(), telemetry.Options{Getenv: os.Getenv}); err == nil {
		t.Error("no error")
	}
}

// answered is a transport that notes what it is sent.
type answered struct {
	status int
	err    error
	sent   *http.Request
	closed int
}

type closing struct {
	io.Reader
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }

func (a *answered) RoundTrip(r *http.Request) (*http.Response, error) {
	a.sent = r
	if a.err != nil {
		return nil, a.err
	}
	return &http.Response{StatusCode: a.status, Body: closing{strings.NewReader("answer"), &a.closed}}, nil
}

func TestUpstreamRequests(t *testing.T) {
	const secretURL = "https://target.example/users/alice?filter=alice"
	for name, test := range map[string]struct {
		transport  answered
		code, kind string // of the metric; of the error
		status     int
	}{
		"OK":          {answered{status: 200}, "2xx", "", 200},
		"Refused":     {answered{status: 404}, "4xx", "", 404},
		"Broken":      {answered{status: 502}, "5xx", "", 502},
		"Unreachable": {answered{err: errors.New("dial " + secretURL)}, "none", "transport", 0},
		"Cancelled":   {answered{err: context.Canceled}, "none", "canceled", 0},
		"Late":        {answered{err: context.DeadlineExceeded}, "none", "timeout", 0},
	} {
		t.Run(name, func(t *testing.T) {
			spans := tracetest.NewSpanRecorder()
			tel := newTelemetry(t, telemetry.Options{Spans: spans})
			rt := tel.Upstream("apm", "bigiq")(&test.transport)
			ctx := trace.ContextWithSpanContext(t.Context(), spanContext(7))
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, secretURL, strings.NewReader("alice"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := rt.RoundTrip(req)
			if !errors.Is(err, test.transport.err) {
				t.Fatalf("error %v, want %v", err, test.transport.err)
			}
			if len(req.Header) != 0 {
				t.Errorf("the caller's request was changed: %v", req.Header)
			}
			if err == nil {
				if n := len(spans.Ended()); n != 0 {
					t.Errorf("%d spans ended before the answer was read", n)
				}
				_ = resp.Body.Close()
				_ = resp.Body.Close()
				if test.transport.closed != 2 {
					t.Errorf("the body was closed %d times, want 2", test.transport.closed)
				}
			}
			wantLines(t, scrape(t, tel), `endsession_upstream_request_duration_seconds_count{code="`+test.code+`",kind="bigiq",method="POST",target="apm"} 1`)
			ended := spans.Ended()
			if len(ended) != 1 {
				t.Fatalf("%d spans", len(ended))
			}
			span := ended[0]
			want := []attribute.KeyValue{
				attribute.String("endsession.target", "apm"), attribute.String("endsession.kind", "bigiq"), attribute.String("http.request.method", "POST"),
			}
			if test.kind != "" {
				want = append(want, attribute.String("error.type", test.kind))
			} else {
				want = append(want, attribute.Int("http.response.status_code", test.status))
			}
			if got := span.Attributes(); !slices.Equal(got, want) {
				t.Errorf("attributes %v, want %v", got, want)
			}
			if strings.Contains(span.Status().Description+span.Name(), "alice") || len(span.Events()) > 0 {
				t.Errorf("the span tells too much: %q, %q, %v", span.Name(), span.Status().Description, span.Events())
			}
			id := span.SpanContext()
			if got, want := test.transport.sent.Header.Get("Traceparent"), "00-"+id.TraceID().String()+"-"+id.SpanID().String()+"-01"; got != want {
				t.Errorf("traceparent %q, want %q", got, want)
			}
			if span.Parent().SpanID() != spanContext(7).SpanID() {
				t.Errorf("parent %v", span.Parent())
			}
		})
	}
}

// TestRunsBelongToTheirCallsTrace is about work that begins when the call is over.
func TestRunsBelongToTheirCallsTrace(t *testing.T) {
	tel := newTelemetry(t, telemetry.Options{})
	traceOf := func(id string) trace.TraceID {
		ctx, done := tel.Begun(t.Context(), claimed(id))
		defer done()
		return trace.SpanContextFromContext(ctx).TraceID()
	}
	accept := func(id string, of byte, state invalidation.State) {
		tel.Accepted(trace.ContextWithSpanContext(t.Context(), spanContext(of)), invalidation.Invalidation{ID: id, State: state})
	}
	accept("one", 1, invalidation.Running)
	accept("two", 2, invalidation.Running)
	accept("over", 3, invalidation.Failed)
	if got := traceOf("one"); got != (trace.TraceID{1}) {
		t.Errorf("the first is in trace %v", got)
	}
	tel.Completed(t.Context(), "one", invalidation.Succeeded)
	for id, want := range map[string]trace.TraceID{"one": {}, "two": {2}, "over": {}, "unknown": {}} {
		if got := traceOf(id); got != want {
			t.Errorf("%s: in trace %v, want %v", id, got, want)
		}
	}
	// What others complete is forgotten in the end: memory is bounded.
	for i := range 8192 {
		accept(strings.Repeat("x", i+1), 9, invalidation.Running)
	}
	if got := traceOf("two"); got.IsValid() {
		t.Errorf("remembered for ever: %v", got)
	}
	if got := traceOf("x"); got != (trace.TraceID{9}) {
		t.Errorf("forgotten too early: %v", got)
	}
}

func TestLogKnowsTheWork(t *testing.T) {
	tel := newTelemetry(t, telemetry.Options{})
	tel.Accepted(trace.ContextWithSpanContext(t.Context(), spanContext(1)), invalidation.Invalidation{ID: "i1", State: invalidation.Running})
	work, done := tel.Begun(t.Context(), claimed("i1"))
	defer done()
	const traced = " trace_id=01000000000000000000000000000000 span_id=0100000000000000"
	for name, test := range map[string]struct {
		log  func(*slog.Logger)
		want string
	}{
		"OutsideOfWork": {func(l *slog.Logger) { l.Info("m", "a", 1) }, "msg=m a=1"},
		"InWork":        {func(l *slog.Logger) { l.InfoContext(work, "m", "a", 1) }, "msg=m a=1 target=apm invalidation=i1 run=2" + traced},
		"SaidByTheLine": {func(l *slog.Logger) { l.InfoContext(work, "m", "target", "x", "run", 9) }, "msg=m target=x run=9 invalidation=i1" + traced},
		"SaidByTheLogger": {func(l *slog.Logger) { l.With("target", "x", "invalidation", "y").InfoContext(work, "m") },
			"msg=m target=x invalidation=y run=2" + traced},
		"InACall": {func(l *slog.Logger) {
			l.InfoContext(trace.ContextWithSpanContext(t.Context(), spanContext(1)), "m")
		}, "msg=m" + traced},
		"InAGroup": {func(l *slog.Logger) { l.WithGroup("g").InfoContext(work, "m") },
			"msg=m g.target=apm g.invalidation=i1 g.run=2 g.trace_id=01000000000000000000000000000000 g.span_id=0100000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			test.log(slog.New(telemetry.Log(slog.NewTextHandler(&b, nil))))
			if _, got, _ := strings.Cut(strings.TrimSpace(b.String()), "level=INFO "); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// refusing is a store that answers everything with an error.
type refusing struct {
	invalidation.Store
	err error
}

func (r refusing) Record(context.Context, invalidation.Lease, invalidation.Run, []invalidation.Event) (invalidation.Head, error) {
	return invalidation.Head{Revision: 7}, r.err
}

func TestJournalTellsOutcomesApart(t *testing.T) {
	tel := newTelemetry(t, telemetry.Options{})
	for _, err := range []error{nil, invalidation.ErrLeaseLost, errors.Join(invalidation.ErrUnavailable), invalidation.ErrCommitUnknown} {
		head, got := tel.Journal(refusing{err: err}).Record(t.Context(), invalidation.Lease{}, invalidation.Run{}, nil)
		if !errors.Is(got, err) || head.Revision != 7 {
			t.Errorf("Record = %+v, %v; want the store's own answer and %v", head, got, err)
		}
	}
	for _, result := range []string{"committed", "refused", "failed", "unknown"} {
		wantLines(t, scrape(t, tel), `endsession_journal_commit_duration_seconds_count{operation="record",result="`+result+`"} 1`)
	}
}

// readings are what an engine might say.
type readings invalidation.Readings

func (r readings) Readings() invalidation.Readings { return invalidation.Readings(r) }

func TestReadings(t *testing.T) {
	tel := newTelemetry(t, telemetry.Options{})
	if text := scrape(t, tel); strings.Contains(text, "endsession_journal_ready") || !strings.Contains(text, `endsession_build_info{go_version="`) {
		t.Errorf("before anything is known:\n%s", text)
	}
	tel.JournalReady(false)
	if err := tel.Follow(readings{ClockSkew: -2 * time.Second, Targets: []invalidation.TargetReadings{
		{Target: "apm", Unfinished: 3, Age: time.Minute, Working: 2, Slots: 4, Concurrency: 8, Breaker: "half_open", Parked: true, Probed: true},
		{Target: "storage", Breaker: "closed", Paused: true},
	}}); err != nil {
		t.Fatal(err)
	}
	text := scrape(t, tel)
	wantLines(t, text, `endsession_journal_ready 0`, `endsession_journal_clock_skew_seconds -2`,
		`endsession_runs_unfinished{target="apm"} 3`, `endsession_runs_oldest_unfinished_age_seconds{target="apm"} 60`,
		`endsession_slots_used{target="apm"} 2`, `endsession_slots_held{target="apm"} 4`, `endsession_slots_limit{target="apm"} 8`,
		`endsession_breaker_state{state="half_open",target="apm"} 1`, `endsession_breaker_state{state="closed",target="apm"} 0`,
		`endsession_target_parked{target="apm"} 1`, `endsession_target_paused{target="apm"} 0`, `endsession_target_healthy{target="apm"} 0`,
		`endsession_runs_unfinished{target="storage"} 0`, `endsession_target_paused{target="storage"} 1`)
	if strings.Contains(text, `endsession_target_healthy{target="storage"}`) {
		t.Error("a target that was never probed is said to be something")
	}
}
