package telemetry

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/endsession/endsession/server/invalidation"
)

// Bounds of the histograms' buckets, in seconds.
var (
	// seconds is for what a computer waits for.
	seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	// commits is for what a disk does.
	commits = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}
	// days is for what is retried for up to a day.
	days = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600}
)

// metrics are the instruments. Their names become Prometheus's by underscores, the unit and "_total" for counters.
type metrics struct {
	meter metric.Meter

	callDuration     histogram // method, code
	callsRefused     counter   // reason
	accepted         counter   // priority
	completed        counter   // state
	runsEnded        counter   // target, kind, state, reason
	runDuration      histogram // target, kind
	attemptDuration  histogram // target, kind, result
	leasesLost       counter   // target
	pollWait         histogram // target
	upstreamDuration histogram // target, kind, method, code
	journalDuration  histogram // operation, result
}

func (m *metrics) make(meter metric.Meter) error {
	m.meter = meter
	w := wright{meter: meter}
	m.callDuration = w.histogram("endsession.call.duration", seconds, "How long calls took, by RPC and gRPC code.", "method", "code")
	m.callsRefused = w.counter("endsession.calls.refused", "Calls that ended with an error, by its reason.", "reason")
	m.accepted = w.counter("endsession.invalidations.accepted", "Invalidations that were accepted.", "priority")
	m.completed = w.counter("endsession.invalidations.completed", "Invalidations that have ended, by their final state.", "state")
	m.runsEnded = w.counter("endsession.runs.ended", "Runs that have ended, by their final state and the reason for it.", "target", "kind", "state", "reason")
	m.runDuration = w.histogram("endsession.run.duration", days, "How long runs took from acceptance to their final state.", "target", "kind")
	m.attemptDuration = w.histogram("endsession.attempt.duration", seconds, "How long calls of an adapter took, by what they came to.", "target", "kind", "result")
	m.leasesLost = w.counter("endsession.leases.lost", "Runs that this process could not end: cancelled, taken over, or their leases were over.", "target")
	m.pollWait = w.histogram("endsession.poll.wait", seconds, "How long polls of a target's own work had to wait for their share of the target's budget.", "target")
	m.upstreamDuration = w.histogram("endsession.upstream.request.duration", seconds, "How long requests to targets took, by the class of the answer's status.", "target", "kind", "method", "code")
	m.journalDuration = w.histogram("endsession.journal.commit.duration", commits, "How long changes of the journal took, waiting for their turn included.", "operation", "result")
	return w.err
}

// wright makes instruments and keeps the first error.
type wright struct {
	meter metric.Meter
	err   error
}

func (w *wright) note(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *wright) counter(name, help string, labels ...string) counter {
	c, err := w.meter.Int64Counter(name, metric.WithDescription(help))
	w.note(err)
	return counter{c, &series[metric.AddOption]{labels: labels}}
}

func (w *wright) histogram(name string, bounds []float64, help string, labels ...string) histogram {
	h, err := w.meter.Float64Histogram(name, metric.WithDescription(help), metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(bounds...))
	w.note(err)
	return histogram{h, &series[metric.RecordOption]{labels: labels}}
}

func (w *wright) gauge(name, unit, help string) metric.Float64ObservableGauge {
	g, err := w.meter.Float64ObservableGauge(name, metric.WithDescription(help), metric.WithUnit(unit))
	w.note(err)
	return g
}

type counter struct {
	metric.Int64Counter
	series *series[metric.AddOption]
}

func (c counter) add(ctx context.Context, values ...string) {
	c.Add(ctx, 1, c.series.of(values)...)
}

type histogram struct {
	metric.Float64Histogram
	series *series[metric.RecordOption]
}

func (h histogram) record(ctx context.Context, seconds float64, values ...string) {
	h.Record(ctx, seconds, h.series.of(values)...)
}

// series remembers the options that stand for label values: to make them costs more than to count.
type series[O any] struct {
	labels []string
	mu     sync.RWMutex
	made   map[[maxLabels]string][]O
}

const maxLabels = 4

func (s *series[O]) of(values []string) []O {
	var key [maxLabels]string
	copy(key[:], values)
	s.mu.RLock()
	options, ok := s.made[key]
	s.mu.RUnlock()
	if ok {
		return options
	}
	attributes := make([]attribute.KeyValue, len(s.labels))
	for i, l := range s.labels {
		attributes[i] = attribute.String(l, values[i])
	}
	options = []O{any(metric.WithAttributeSet(attribute.NewSet(attributes...))).(O)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made == nil {
		s.made = map[[maxLabels]string][]O{}
	}
	s.made[key] = options
	return options
}

// views adapt the instruments that are not ours. What they would say of the client (its address, the Host it asked for)
// is left out.
func views() []sdkmetric.View {
	http := func(name string, s sdkmetric.Stream) sdkmetric.View {
		return sdkmetric.NewView(sdkmetric.Instrument{Name: "http.server." + name}, s)
	}
	return []sdkmetric.View{
		http("request.duration", sdkmetric.Stream{
			Name: "endsession.http.request.duration", Description: "How long REST requests took, also those that never became a call.",
			AttributeFilter: attribute.NewAllowKeysFilter("http.request.method", "http.response.status_code"),
			Aggregation:     sdkmetric.AggregationExplicitBucketHistogram{Boundaries: seconds, NoMinMax: true},
		}),
		http("request.body.size", sdkmetric.Stream{Aggregation: sdkmetric.AggregationDrop{}}),
		http("response.body.size", sdkmetric.Stream{Aggregation: sdkmetric.AggregationDrop{}}),
	}
}

// observeProcess makes the gauges that are there from the start.
func (m *metrics) observeProcess(version, goVersion string, ready func() (ready, known bool)) error {
	w := wright{meter: m.meter}
	build := w.gauge("endsession.build_info", "", "1, with the release and what built it.")
	journal := w.gauge("endsession.journal.ready", "", "1 if changes could be journalled when that was looked at last, else 0.")
	if w.err != nil {
		return w.err
	}
	what := metric.WithAttributes(attribute.String("version", version), attribute.String("go_version", goVersion))
	_, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveFloat64(build, 1, what)
		if ready, known := ready(); known {
			o.ObserveFloat64(journal, number(ready))
		}
		return nil
	}, build, journal)
	return err
}

// Measured is what can be asked for measurements: [invalidation.Engine].
type Measured interface {
	Readings() invalidation.Readings
}

// Follow reports the engine's readings whenever somebody looks. It is called once.
func (t *Telemetry) Follow(e Measured) error {
	w := wright{meter: t.meter}
	var instruments []metric.Observable
	gauge := func(name, unit, help string) metric.Float64ObservableGauge {
		g := w.gauge(name, unit, help)
		instruments = append(instruments, g)
		return g
	}
	var (
		unfinished = gauge("endsession.runs.unfinished", "", "Runs that are not final, in all processes that share the journal.")
		age        = gauge("endsession.runs.oldest_unfinished_age", "s", "How long ago the oldest unfinished run was accepted; 0 if there is none.")
		working    = gauge("endsession.slots.used", "", "Runs that this process works on now.")
		slots      = gauge("endsession.slots.held", "", "Runs that this process may work on at once.")
		limit      = gauge("endsession.slots.limit", "", "Runs that all processes together may work on at once.")
		breaker    = gauge("endsession.breaker.state", "", "1 for the state that the circuit breaker is in, 0 for the others.")
		parked     = gauge("endsession.target.parked", "", "1 if the target refused the account's credentials and is left alone.")
		paused     = gauge("endsession.target.paused", "", "1 if a caller paused the target.")
		healthy    = gauge("endsession.target.healthy", "", "1 if the last probe found nothing wrong; absent before the first.")
		skew       = gauge("endsession.journal.clock_skew", "s", "How far the journal's clock is ahead of this process's.")
	)
	if w.err != nil {
		return w.err
	}
	_, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		r := e.Readings()
		o.ObserveFloat64(skew, r.ClockSkew.Seconds())
		for _, x := range r.Targets {
			target := attribute.String("target", x.Target)
			with := metric.WithAttributes(target)
			o.ObserveFloat64(unfinished, float64(x.Unfinished), with)
			o.ObserveFloat64(age, x.Age.Seconds(), with)
			o.ObserveFloat64(working, float64(x.Working), with)
			o.ObserveFloat64(slots, float64(x.Slots), with)
			o.ObserveFloat64(limit, float64(x.Concurrency), with)
			for _, state := range []string{"closed", "half_open", "open"} {
				o.ObserveFloat64(breaker, number(x.Breaker == state), metric.WithAttributes(target, attribute.String("state", state)))
			}
			o.ObserveFloat64(parked, number(x.Parked), with)
			o.ObserveFloat64(paused, number(x.Paused), with)
			if x.Probed {
				o.ObserveFloat64(healthy, number(x.Healthy), with)
			}
		}
		return nil
	}, instruments...)
	return err
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
