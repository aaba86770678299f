package api

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// NewServer returns a gRPC server that serves s behind the interceptors that every way in shares. More services and
// options (credentials, say) may be added.
func NewServer(s *Service, opts ...grpc.ServerOption) *grpc.Server {
	c := chain{rules: s.rules, log: s.log, drain: s.drain}
	opts = append(opts,
		grpc.ForceServerCodecV2(newCodec()),
		// More than is allowed, so that a request which is too large by a little is told what is wrong with it.
		grpc.MaxRecvMsgSize(2*MaxMessage),
		grpc.ChainUnaryInterceptor(c.unary),
		grpc.ChainStreamInterceptor(c.stream),
	)
	srv := grpc.NewServer(opts...)
	endsessionv1.RegisterSessionServiceServer(srv, s)
	return srv
}

// chain is what stands between the wire and the handlers.
type chain struct {
	rules rules
	log   *slog.Logger
	drain context.Context
}

func (c chain) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (reply any, err error) {
	defer c.translate(ctx, info.FullMethod, &err)
	caller, err := authenticate(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.check(req); err != nil {
		return nil, err
	}
	return handler(withCaller(ctx, caller), req)
}

func (c chain) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer c.translate(ss.Context(), info.FullMethod, &err)
	caller, err := authenticate(ss.Context())
	if err != nil {
		return err
	}
	// Streams have no natural end, so they end with the drain.
	ctx, cancel := context.WithCancelCause(withCaller(ss.Context(), caller))
	defer cancel(nil)
	defer context.AfterFunc(c.drain, func() { cancel(closing().Err()) })()
	return handler(srv, &checkedStream{ServerStream: ss, ctx: ctx, check: c.check})
}

// checkedStream checks what it receives.
type checkedStream struct {
	grpc.ServerStream
	ctx   context.Context
	check func(any) error
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
