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
	began := time.Now()
	resp, err := u.next.RoundTrip(req)
	code := noAnswer
	if err == nil {
		code = strconv.Itoa(resp.StatusCode/100) + "xx"
	}
	end := sync.OnceFunc(func() {
		u.t.upstreamDuration.record(ctx, time.Since(began).Seconds(), u.target, u.kind, req.Method, code)
		if span == nil {
			return
		}
		switch {
		case err != nil:
			span.SetAttributes(attribute.String("error.type", errorType(err)))
			span.SetStatus(codes.Error, "")
		case resp.StatusCode >= http.StatusBadRequest:
			span.SetStatus(codes.Error, "")
			fallthrough
		default:
			span.SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
		}
		span.End()
	})
	if err != nil {
		end()
		return resp, err
	}
	resp.Body = &body{resp.Body, end}
	return resp, nil
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
	closed func()
}

// Close closes the body.
func (b *body) Close() error {
	defer b.closed()
	return b.ReadCloser.Close()
}
