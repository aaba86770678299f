package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/api"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/gateway"
	"github.com/endsession/endsession/server/telemetry"
)

// Engine is what the process needs of [invalidation.Engine] beside the calls of the API.
type Engine interface {
	api.Engine
	// Ready reports whether calls can be accepted.
	Ready(ctx context.Context) error
	// Close lets attempts under way finish until ctx ends, then ends them.
	Close(ctx context.Context) error
}

// Parts are what a [Server] is made of.
type Parts struct {
	Engine Engine
	// Store is closed last; nil if the engine's journal needs no closing.
	Store io.Closer
	// Directory is closed after the engine; nil if it needs no closing.
	Directory io.Closer
	// The listeners are the server's to close, from [New] on.
	GRPC, HTTP, Admin net.Listener
	// TLS protects the gRPC and HTTP listeners; nil means plain text.
	TLS *tls.Config
	// Authenticator finds out who calls; nil means that everybody is the anonymous caller.
	Authenticator api.Authenticator
	// Refusals is told of those who are not let in; nil means the log.
	Refusals api.Refusals
	// Limiter bounds how often each caller may call; nil means that nothing does.
	Limiter *api.Limiter
	// Health and Reflection say to whom the gRPC services of these names answer.
	Health, Reflection Access
	// Background runs beside the listeners, until its context ends; nil means nothing does.
	Background func(ctx context.Context)
	// Telemetry is told of calls, and serves the metrics; nil means one of the server's own. It is closed last.
	Telemetry *telemetry.Telemetry
	// Profiles says that the admin listener serves profiles of the process.
	Profiles bool
	Logger   *slog.Logger
}

// Access is to whom a service answers beside the API.
type Access int

// Who is answered.
const (
	// ByDefault is everybody for health, which balancers without credentials ask for, and callers for reflection.
	ByDefault Access = iota
	// Everybody need not be authenticated.
	Everybody
	// Callers are those who are authenticated.
	Callers
	// Nobody is answered: the service is not there.
	Nobody
)

// Bounds of the steps of a shutdown; see [ShutdownBound].
const (
	httpDrain = 5 * time.Second
	grpcDrain = 5 * time.Second
	// handlerEnd is how long handlers may take to end when their connections are gone.
	handlerEnd   = time.Second
	attemptDrain = 12 * time.Second
	// attemptEnd is how long attempts may take to end when they are told to.
	attemptEnd = 3 * time.Second
	storeClose = 3 * time.Second
	// telemetryClose is within storeClose: both end at the same time.
	telemetryClose = 2 * time.Second
	// directoryClose is long enough for connections to be told.
	directoryClose = time.Second
)

// ShutdownBound is how long [Server.Run] takes at most to end when it is told to. Whoever manages the process has to wait
// longer before it kills.
const ShutdownBound = httpDrain + grpcDrain + handlerEnd + attemptDrain + attemptEnd + directoryClose + storeClose

const (
	// maxStreams is how many calls one connection may have under way.
	maxStreams = 1000
	// maxHeader bounds the headers of a request.
	maxHeader = 64 << 10
	// handshakeTimeout is how long a connection may take to be one.
	handshakeTimeout = 20 * time.Second
	// maxConnectionAge is how old a gRPC connection becomes before its client is asked to make a new one, perhaps to
	// another replica; connectionGrace is how long the calls on it may then still take. That is longer than any call
	// waits; a watch is cut off, and can be made again.
	maxConnectionAge = time.Hour
	connectionGrace  = 10 * time.Minute
	// readyInterval is how often gRPC health follows the journal; readyTimeout how long the journal may take to answer.
	readyInterval = 5 * time.Second
	readyTimeout  = 2 * time.Second
)

// Server is a gateway that listens.
type Server struct {
	parts Parts
	log   *slog.Logger

	drain    context.Context
	endDrain context.CancelFunc

	health *health.Server
	grpc   *grpc.Server
	http   *http.Server
	admin  *http.Server

	reload func(context.Context, *config.Config) error // nil if there is no configuration
}

// New makes a server of its parts. It serves nothing before [Server.Run].
func New(parts Parts) (*Server, error) {
	s := &Server{
		parts: parts, log: parts.Logger, health: health.NewServer(),
	}
	if s.parts.Telemetry == nil {
		var err error
		if s.parts.Telemetry, err = telemetry.New(context.Background(), telemetry.Options{}); err != nil {
			return nil, err
		}
	}
	reported := s.parts.Telemetry.Calls(endsessionv1.SessionService_ServiceDesc.ServiceName)
	// The drain begins with the shutdown, not with the context of a caller.
	s.drain, s.endDrain = context.WithCancel(context.Background())
	service, err := api.New(s.drain, parts.Engine, parts.Logger)
	if err != nil {
		return nil, err
	}

	options := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: connectionGrace,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	if parts.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(parts.TLS.Clone())))
	}
	door := api.Door{Authenticator: parts.Authenticator, Refusals: parts.Refusals, Limiter: parts.Limiter}
	if door.Refusals == nil {
		door.Refusals = api.NewLogRefusals(parts.Logger)
	}
	network := door
	if parts.Health == ByDefault || parts.Health == Everybody {
		network.Open = append(network.Open, healthv1.Health_ServiceDesc.ServiceName)
	}
	if parts.Reflection == Everybody {
		network.Open = append(network.Open, reflectionv1.ServerReflection_ServiceDesc.ServiceName,
			reflectionv1alpha.ServerReflection_ServiceDesc.ServiceName)
	}
	s.grpc = api.NewServer(service, network, append(options, reported.ServerOptions()...)...)
	if parts.Health != Nobody {
		healthv1.RegisterHealthServer(s.grpc, s.health)
	}
	if parts.Reflection != Nobody {
		reflection.Register(s.grpc)
	}
	door.Gateway = true
	rest, err := gateway.New(api.NewInProcess(service, door, api.Reporter(reported)), onlyThisMachine(parts.HTTP.Addr()))
	if err != nil {
		return nil, err
	}
	s.http = s.httpServer(s.parts.Telemetry.HTTP(rest))
	if parts.TLS != nil {
		s.http.TLSConfig = parts.TLS.Clone()
	}
	s.admin = s.httpServer(s.adminHandler())
	return s, nil
}

// onlyThisMachine reports whether a listener is out of the network's reach.
func onlyThisMachine(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback() // what is not TCP is memory, or a file
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		// For the body too: net/http takes it from the connection before it answers, whoever refused the request. There is
		// no timeout for the answer: a call may wait for minutes, and a watch has no end.
		ReadTimeout:    20 * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, SendPingTimeout: time.Minute, PingTimeout: 20 * time.Second,
			WriteByteTimeout: 30 * time.Second,
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// GRPCAddr is where gRPC listens.
func (s *Server) GRPCAddr() net.Addr { return s.parts.GRPC.Addr() }

// HTTPAddr is where REST listens.
func (s *Server) HTTPAddr() net.Addr { return s.parts.HTTP.Addr() }

// AdminAddr is where liveness, readiness and metrics are answered.
func (s *Server) AdminAddr() net.Addr { return s.parts.Admin.Addr() }

// Reload takes over from a configuration who may call and what for (keys, issuers, certificates, policy, protected people,
// limits), what names mean (user names, providers, groups, the directory), and how the targets are signed in to; files are
// read anew. Connections, calls and runs go on. The rest of the configuration needs a restart; what of it has changed is
// logged. After an error everything is as it was.
func (s *Server) Reload(ctx context.Context, c *config.Config) error {
	if s.reload == nil {
		return errors.New("the server was made without a configuration")
	}
	return s.reload(ctx, c)
}

// Run serves until ctx ends, or a listener fails, and then shuts down in order: nobody new is let in, callers get their
// answers, attempts finish, the journal closes. Every step is bounded; when force ends they all are cut short. That is
// safe, as a crash would be, but runs whose answers are lost say so for ever.
func (s *Server) Run(ctx, force context.Context) error {
	serving := make(chan error, 4)
	serve := func(what string, f func() error) {
		go func() {
			err := f()
			if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				serving <- fmt.Errorf("serve %s: %w", what, err)
				return
			}
			serving <- nil
		}()
	}
	serve("gRPC", func() error { return s.grpc.Serve(s.parts.GRPC) })
	serve("admin", func() error { return s.admin.Serve(s.parts.Admin) })
	serve("HTTP", func() error {
		if s.parts.TLS != nil {
			return s.http.ServeTLS(s.parts.HTTP, "", "")
		}
		return s.http.Serve(s.parts.HTTP)
	})
	s.log.InfoContext(ctx, "serving", "grpc", s.GRPCAddr().String(), "http", s.HTTPAddr().String(),
		"admin", s.AdminAddr().String(), "tls", s.parts.TLS != nil)

	var followed sync.WaitGroup
	followed.Go(func() { s.followJournal(ctx) })
	if s.parts.Background != nil {
		background, cancel := context.WithCancel(ctx)
		defer context.AfterFunc(s.drain, cancel)()
		followed.Go(func() { s.parts.Background(background) })
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-serving:
		s.log.ErrorContext(ctx, "a listener ended", "error", err)
	}
	s.endDrain()
	followed.Wait()
	return errors.Join(err, s.shutdown(force))
}

// followJournal keeps gRPC health what the journal says, until the drain.
func (s *Server) followJournal(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.drain, cancel)()
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	ready := true
	for {
		err := s.ready(ctx)
		if ctx.Err() != nil {
			return
		}
		s.parts.Telemetry.JournalReady(err == nil)
		status := healthv1.HealthCheckResponse_SERVING
		if err != nil {
			status = healthv1.HealthCheckResponse_NOT_SERVING
		}
		if (err == nil) != ready {
			ready = err == nil
			s.log.WarnContext(ctx, "readiness changed", "ready", ready, "error", err)
		}
		s.health.SetServingStatus("", status)
		s.health.SetServingStatus(endsessionv1.SessionService_ServiceDesc.ServiceName, status)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ready reports whether calls can be accepted now.
func (s *Server) ready(ctx context.Context) error {
	if s.drain.Err() != nil {
		return errors.New("shutting down")
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return s.parts.Engine.Ready(ctx)
}

// shutdown ends everything, from the outside to the inside.
func (s *Server) shutdown(force context.Context) error {
	s.log.Info("shutting down: NOT_SERVING")
	s.health.Shutdown()
	// The health of a process that is on its way out is asked for until the very end.
	defer func() { _ = s.admin.Close() }()

	// Who is cut off here learns it from the connection; what was accepted goes on all the same.
	_ = s.step(force, "HTTP drains", httpDrain, func(ctx context.Context) error {
		if err := s.http.Shutdown(ctx); err != nil {
			return errors.Join(err, s.http.Close())
		}
		return nil
	})
	_ = s.step(force, "gRPC drains", grpcDrain, func(ctx context.Context) error {
		return stopGracefully(ctx, s.grpc)
	})
	engine := s.step(force, "attempts finish", attemptDrain, func(ctx context.Context) error {
		return within(ctx, attemptEnd, func() error { return s.parts.Engine.Close(ctx) })
	})
	if s.parts.Directory != nil {
		_ = s.step(context.WithoutCancel(force), "directory closes", directoryClose, func(ctx context.Context) error {
			return within(ctx, 0, s.parts.Directory.Close)
		})
	}
	// Nothing more is done that could be told. Whom it is sent to may not answer; the journal does not wait for that.
	sent := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(force, telemetryClose)
		defer cancel()
		sent <- within(ctx, 0, func() error { return s.parts.Telemetry.Close(ctx) })
	}()
	var store error
	if s.parts.Store != nil {
		store = s.step(context.WithoutCancel(force), "journal closes", storeClose, func(ctx context.Context) error {
			return within(ctx, 0, s.parts.Store.Close)
		})
	}
	_ = s.step(force, "telemetry is sent", telemetryClose, func(context.Context) error { return <-sent })
	return errors.Join(engine, store)
}

// step does one step of the shutdown, within its bound.
func (s *Server) step(force context.Context, name string, bound time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(force, bound)
	defer cancel()
	began := time.Now()
	err := do(ctx)
	took := slog.Duration("took", time.Since(began))
	if err != nil {
		s.log.Warn("shutting down: "+name+": cut short", took, slog.Any("error", err))
		return fmt.Errorf("%s: %w", name, err)
	}
	s.log.Info("shutting down: "+name, took)
	return nil
}

// stopGracefully stops a gRPC server when its calls are answered, or when ctx ends. It leaves behind handlers that hear
// no one: GracefulStop and Stop would both wait for them.
func stopGracefully(ctx context.Context, srv *grpc.Server) error {
	defer context.AfterFunc(ctx, srv.Stop)()
	return within(ctx, handlerEnd, func() error { srv.GracefulStop(); return nil })
}

// within does something that may not end with ctx; it gives up some time after that.
func within(ctx context.Context, grace time.Duration, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return ctx.Err()
	}
}

// adminHandler answers whether the process lives and whether it can accept calls, and what was measured.
func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, code int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text+"\n")
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.ready(r.Context()); err != nil {
			answer(w, http.StatusServiceUnavailable, "not ready") // why is in the log
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.Handle("GET /metrics", s.parts.Telemetry.Metrics())
	if s.parts.Profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}
