package telemetry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Upstream returns a wrapper of the transport to a target. It reports every request, until its answer is read, and sends
// the trace context along. (otelhttp's puts the whole URL into the span, and names of people stand in queries.)
func (t *Telemetry) Upstream(target, kind string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return &upstream{t: t, next: next, target: target, kind: kind}
	}
}

type upstream struct {
	t            *Telemetry
	next         http.RoundTripper
	target, kind string
}

// noAnswer stands for the status of a request that none came for.
const noAnswer = "none"

// RoundTrip implements [http.RoundTripper].
func (u *upstream) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, span := req.Context(), trace.Span(nil)
	if u.t.traced {
		ctx, span = u.t.tracer.Start(ctx, "upstream "+req.Method, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
			attribute.String("endsession.target", u.target),
			attribute.String("endsession.kind", u.kind),
			attribute.String("http.request.method", req.Method),
		))
	}
	if trace.SpanContextFromContext(ctx).IsValid() {
		req = req.Clone(ctx) // a transport must leave the request as it is
		u.t.propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
	}
	e := exchange{u: u, ctx: ctx, span: span, method: req.Method, began: time.Now()}
	resp, err := u.next.RoundTrip(req)
	if err != nil {
		e.failed(err)
		return resp, err
	}
	resp.Body = &body{ReadCloser: resp.Body, exchange: e, status: resp.StatusCode}
	return resp, nil
}

// exchange is a request under way.
type exchange struct {
	u      *upstream
	ctx    context.Context
	span   trace.Span // nil if there is none
	method string
	began  time.Time
}

func (e *exchange) record(code string) {
	e.u.t.upstreamDuration.record(e.ctx, time.Since(e.began).Seconds(), e.u.target, e.u.kind, e.method, code)
}

// failed reports a request that no answer came for.
func (e *exchange) failed(err error) {
	e.record(noAnswer)
	if e.span == nil {
		return
	}
	e.span.SetAttributes(attribute.String("error.type", errorType(err)))
	e.span.SetStatus(codes.Error, "")
	e.span.End()
}

// answered reports a request whose answer was read.
func (e *exchange) answered(status int) {
	e.record(strconv.Itoa(status/100) + "xx")
	if e.span == nil {
		return
	}
	if status >= http.StatusBadRequest {
		e.span.SetStatus(codes.Error, "")
	}
	e.span.SetAttributes(attribute.Int("http.response.status_code", status))
	e.span.End()
}

// CloseIdleConnections closes those of the transport.
func (u *upstream) CloseIdleConnections() {
	if c, ok := u.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// errorType is what is wrong, in words that cannot hold a part of the request.
func errorType(err error) string {
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "transport"
}

// body tells when it is closed, which [httpclient.Client] does when it has read all it wants.
type body struct {
	io.ReadCloser
	exchange
	status int
	once   sync.Once
}

// Close closes the body.
func (b *body) Close() error {
	defer b.once.Do(func() { b.answered(b.status) })
	return b.ReadCloser.Close()
}
