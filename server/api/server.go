package api

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// Door says who is let in to a server.
type Door struct {
	// Authenticator finds out who calls; nil means that everybody is the anonymous caller.
	Authenticator Authenticator
	// Refusals is told of those who are not let in; nil means the log.
	Refusals Refusals
	// Limiter bounds how often each caller may call; nil means that nothing does.
	Limiter *Limiter
	// Open are the services that are for everybody, "grpc.health.v1.Health". What they do has no caller.
	Open []string
	// Gateway says that nobody reaches the server but the REST gateway of this process, whose word about the clients for
	// whom it calls is taken; see [FromHTTP].
	Gateway bool
}

// How many bytes of a request, and of all requests of a connection, may be on their way without having been taken.
const (
	streamWindow = MaxMessage
	connWindow   = 4 * MaxMessage
)

// NewServer returns a gRPC server that serves s behind the interceptors that every way in shares. More services and
// options (credentials, say) may be added.
func NewServer(s *Service, door Door, opts ...grpc.ServerOption) *grpc.Server {
	c := newChain(s, door)
	opts = append(opts,
		grpc.ForceServerCodecV2(newCodec()),
		// More than is allowed, so that a request which is too large by a little is told what is wrong with it.
		grpc.MaxRecvMsgSize(2*MaxMessage),
		// Constant windows: to find out what a connection could carry, a server pings the client after almost every request.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ChainUnaryInterceptor(c.unary),
		grpc.ChainStreamInterceptor(c.stream),
	)
	srv := grpc.NewServer(opts...)
	endsessionv1.RegisterSessionServiceServer(srv, s)
	return srv
}

// Reporter is told of calls before anything else is done with them.
type Reporter struct {
	Stats  stats.Handler
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
}

// NewInProcess returns a connection to s that does not leave the process. Behind the reporter's interceptors are those that
// every way in shares. A call that is over before it begins is not made, as on the network.
func NewInProcess(s *Service, door Door, report Reporter) grpc.ClientConnInterface {
	c := newChain(s, door)
	conn := new(inprocgrpc.Channel).
		WithServerStatsHandler(report.Stats).
		WithServerUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := ctx.Err(); err != nil {
				return nil, status.FromContextError(err).Err()
			}
			return report.Unary(ctx, req, info, func(ctx context.Context, req any) (any, error) { return c.unary(ctx, req, info, handler) })
		}).
		WithServerStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := ss.Context().Err(); err != nil {
				return status.FromContextError(err).Err()
			}
			return report.Stream(srv, ss, info, func(srv any, ss grpc.ServerStream) error { return c.stream(srv, ss, info, handler) })
		})
	endsessionv1.RegisterSessionServiceServer(conn, s)
	return conn
}

// chain is what stands between the wire and the handlers.
type chain struct {
	rules rules
	log   *slog.Logger
	drain context.Context
	door  Door
}

func newChain(s *Service, door Door) chain {
	if door.Refusals == nil {
		door.Refusals = NewLogRefusals(s.log)
	}
	return chain{rules: s.rules, log: s.log, drain: s.drain, door: door}
}

func (c chain) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (reply any, err error) {
	defer c.translate(ctx, info.FullMethod, &err)
	caller, err := c.authenticate(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if err := c.limit(caller, info.FullMethod); err != nil {
		return nil, err
	}
	if err := c.check(req); err != nil {
		return nil, err
	}
	return handler(withCaller(ctx, caller), req)
}

func (c chain) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer c.translate(ss.Context(), info.FullMethod, &err)
	caller, err := c.authenticate(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if err := c.limit(caller, info.FullMethod); err != nil {
		return err
	}
	// Streams have no natural end, so they end with the drain.
	ctx, cancel := context.WithCancelCause(withCaller(ss.Context(), caller))
	defer cancel(nil)
	defer context.AfterFunc(c.drain, func() { cancel(closing().Err()) })()
	again := func() error {
		now, err := c.authenticate(ss.Context(), info.FullMethod)
		if err == nil && !now.Is(caller) {
			return unauthenticated().Err()
		}
		return err
	}
	return handler(srv, &checkedStream{ServerStream: ss, ctx: ctx, check: c.check, authenticate: again, authenticated: time.Now()})
}

// checkedStream checks what it receives, and from time to time to whom it sends.
type checkedStream struct {
	grpc.ServerStream
	ctx           context.Context
	check         func(any) error
	authenticate  func() error
	authenticated time.Time
}

// Context has the caller, and ends with the drain.
func (s *checkedStream) Context() context.Context { return s.ctx }

// RecvMsg receives a message and checks it.
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.check(m)
}

// SendMsg sends a message if the caller is still one.
func (s *checkedStream) SendMsg(m any) error {
	if time.Since(s.authenticated) >= reauthenticate {
		if err := s.authenticate(); err != nil {
			return err
		}
		s.authenticated = time.Now()
	}
	return s.ServerStream.SendMsg(m)
}

func (c chain) check(m any) error {
	violations, err := c.rules.check(m.(proto.Message))
	if err != nil {
		return fmt.Errorf("apply the contract's rules: %w", err)
	}
	if len(violations) > 0 {
		return Refusal(violations...).Err()
	}
	return nil
}

// translate makes an error, or a panic, into what the caller sees. It is deferred.
func (c chain) translate(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		c.log.ErrorContext(ctx, "panic", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = internal().Err()
		return
	}
	if *err != nil {
		*err = statusOf(ctx, c.log, method, *err).Err()
	}
}
