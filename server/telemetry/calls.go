package telemetry

import (
	"context"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Calls report the calls of a service: one span a call, how long it took and, if it was refused, why. The interceptors come
// before all others, so that what is measured is what callers see.
type Calls struct {
	Stats  stats.Handler
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
}

// Calls returns what reports the calls of a service.
func (t *Telemetry) Calls(service string) Calls {
	prefix := "/" + service + "/"
	s := server{t, prefix}
	return Calls{
		Stats: otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(t.tracers), otelgrpc.WithPropagators(t.propagator),
			// Its metrics count the methods that callers make up, too.
			otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
			otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return strings.HasPrefix(info.FullMethodName, prefix) }),
		),
		Unary:  s.unary,
		Stream: s.stream,
	}
}

// ServerOptions have a gRPC server report its calls.
func (c Calls) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.StatsHandler(c.Stats), grpc.ChainUnaryInterceptor(c.Unary), grpc.ChainStreamInterceptor(c.Stream)}
}

// server reports the calls of one service.
type server struct {
	*Telemetry
	prefix string
}

func (s server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	reply, err := handler(ctx, req)
	s.report(ctx, info.FullMethod, time.Since(began), err)
	return reply, err
}

func (s server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := time.Now()
	err := handler(srv, ss)
	s.report(ss.Context(), info.FullMethod, time.Since(began), err)
	return err
}

func (s server) report(ctx context.Context, fullMethod string, took time.Duration, err error) {
	method, ours := strings.CutPrefix(fullMethod, s.prefix)
	if !ours {
		return
	}
	st := status.Convert(err)
	s.callDuration.record(ctx, took.Seconds(), method, code.Code(st.Code()).String())
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			s.callsRefused.add(ctx, info.GetReason())
		}
	}
}

// HTTP reports the requests to a handler that calls the gRPC server: a span of each, to which the call's belongs, and how
// long it took.
func (t *Telemetry) HTTP(next http.Handler) http.Handler {
	pass := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if trace.SpanContextFromContext(r.Context()).IsValid() {
			t.propagator.Inject(r.Context(), propagation.HeaderCarrier(r.Header)) // the gateway forwards the header
		}
		next.ServeHTTP(w, r)
	})
	return otelhttp.NewHandler(pass, "HTTP", otelhttp.WithTracerProvider(t.tracers), otelhttp.WithMeterProvider(t.meters),
		otelhttp.WithPropagators(t.propagator),
		otelhttp.WithSpanNameFormatter(func(operation string, r *http.Request) string {
			switch r.Method {
			case http.MethodGet, http.MethodPost:
				return operation + " " + r.Method
			}
			return operation // whatever the caller made up
		}))
}
