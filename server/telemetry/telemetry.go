package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/exemplar"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// scope is the name under which our instruments and spans are reported, and the service's default name.
const scope = "endsession"

// Options make a [Telemetry].
type Options struct {
	// Version is the release, for the metric that tells it and for the traces' resource.
	Version string
	// Logger is told what cannot be delivered. Nil: nobody is.
	Logger *slog.Logger
	// Getenv reads the environment (os.Getenv): if its OTEL_* variables ask for it, traces and metrics are sent there. Nil
	// means that nothing is sent, whatever the environment says.
	Getenv func(string) string
	// Spans gets all spans, wherever else they go. Nil: nobody does.
	Spans sdktrace.SpanProcessor
}

// Telemetry is where everything is reported to. It is safe for concurrent use.
type Telemetry struct {
	registry   *prometheus.Registry
	meters     *sdkmetric.MeterProvider
	tracers    trace.TracerProvider
	tracer     trace.Tracer
	traced     bool
	propagator propagation.TextMapPropagator
	metrics
	calls remembered
	// ready is what the journal was found to be last: 0 unknown, 1 not ready, 2 ready.
	ready atomic.Int32
	// closers end what was begun, the traces first.
	closers []func(context.Context) error
}

// New makes a Telemetry. It connects to nobody; what is to be sent is sent from time to time, in the background.
func New(ctx context.Context, o Options) (_ *Telemetry, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	res, err := resourceOf(ctx, o.Version, o.Getenv != nil)
	if err != nil {
		return nil, err
	}
	if o.Getenv == nil {
		o.Getenv = func(string) string { return "" }
	}
	t := &Telemetry{registry: prometheus.NewRegistry(), propagator: propagation.TraceContext{}, tracers: noop.NewTracerProvider()}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close(ctx))
		}
	}()
	if err := t.trace(ctx, o, res); err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	if err := t.measure(ctx, o, res); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if err := t.make(t.meters.Meter(scope)); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return t, t.observeProcess(o.Version)
}

// resourceOf describes the process to whom telemetry is sent. The environment has the last word, if it is heeded.
func resourceOf(ctx context.Context, version string, heeded bool) (*resource.Resource, error) {
	options := []resource.Option{
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", scope), attribute.String("service.version", version),
			attribute.String("service.instance.id", uuid.NewString())),
	}
	if heeded {
		options = append(options, resource.WithFromEnv())
	}
	res, err := resource.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	return res, nil
}

// asked reports whether the environment asks for a signal ("TRACES", "METRICS") to be sent. (The specification's default
// is to send to a collector on this machine, asked or not: a gateway that nobody set up for it shall not try.)
func asked(getenv func(string) string, signal string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch getenv("OTEL_" + signal + "_EXPORTER") {
	case "":
		return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
	case "none", "prometheus": // Prometheus is served always, at a place of ours
		return false
	}
	return true
}

// trace sets up traces.
func (t *Telemetry) trace(ctx context.Context, o Options, res *resource.Resource) error {
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	if o.Spans != nil {
		options = append(options, sdktrace.WithSpanProcessor(o.Spans))
	}
	export := asked(o.Getenv, "TRACES")
	if export {
		tellFailures(o.Logger)
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return err
		}
		options = append(options, sdktrace.WithBatcher(exporter))
	}
	if export || o.Spans != nil {
		provider := sdktrace.NewTracerProvider(options...)
		t.tracers, t.traced = provider, true
		t.closers = append(t.closers, provider.Shutdown)
	}
	t.tracer = t.tracers.Tracer(scope)
	return nil
}

// measure sets up metrics.
func (t *Telemetry) measure(ctx context.Context, o Options, res *resource.Resource) error {
	served, err := promexporter.New(
		promexporter.WithRegisterer(t.registry),
		promexporter.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes),
		promexporter.WithoutScopeInfo(), promexporter.WithoutTargetInfo())
	if err != nil {
		return err
	}
	options := []sdkmetric.Option{
		sdkmetric.WithResource(res), sdkmetric.WithReader(served), sdkmetric.WithView(views()...),
		// An exemplar shows what a view leaves out: a Host header, say, which the caller makes up.
		sdkmetric.WithExemplarFilter(exemplar.AlwaysOffFilter),
		// All labels are from closed sets; a limit would put the targets of a large configuration into one series.
		sdkmetric.WithCardinalityLimit(0),
	}
	if asked(o.Getenv, "METRICS") {
		tellFailures(o.Logger)
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return err
		}
		options = append(options, sdkmetric.WithReader(reader))
	}
	t.meters = sdkmetric.NewMeterProvider(options...)
	t.closers = append(t.closers, t.meters.Shutdown)
	return nil
}

// tellFailures has the log told what cannot be delivered. OpenTelemetry knows only one such place for the whole process.
func tellFailures(log *slog.Logger) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry is not delivered", "error", err) }))
}

// observeProcess reports what does not depend on the engine.
func (t *Telemetry) observeProcess(version string) error {
	if version == "" {
		version = "unknown"
	}
	return t.metrics.observeProcess(version, runtime.Version(), func() (ready, known bool) {
		state := t.ready.Load()
		return state == 2, state != 0
	})
}

// JournalReady notes whether changes can be journalled now.
func (t *Telemetry) JournalReady(ready bool) {
	if ready {
		t.ready.Store(2)
		return
	}
	t.ready.Store(1)
}

// Metrics serves what Prometheus scrapes.
func (t *Telemetry) Metrics() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Close sends what has not been sent yet, until ctx ends. What is reported afterwards is dropped.
func (t *Telemetry) Close(ctx context.Context) error {
	var errs []error
	for _, end := range t.closers {
		errs = append(errs, end(ctx))
	}
	return errors.Join(errs...)
}
