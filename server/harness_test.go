package server_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/endsession/endsession/server"
)

// served is a server that runs in memory, and its clients.
type served struct {
	conn  *grpc.ClientConn
	http  *http.Client
	admin *http.Client
	log   *lockedBuffer

	grpcListener                *bufconn.Listener
	httpListener, adminListener *pipeListener

	// stop begins the shutdown, force cuts it short, wait returns what Run returned.
	stop, force context.CancelFunc
	wait        func() error
}

// start serves an engine until the test ends.
func start(t *testing.T, engine server.Engine, change ...func(*server.Parts)) *served {
	t.Helper()
	s := &served{
		log: &lockedBuffer{}, grpcListener: bufconn.Listen(1 << 20), httpListener: newPipeListener(),
		adminListener: newPipeListener(),
	}
	parts := server.Parts{
		Engine: engine, GRPC: s.grpcListener, HTTP: s.httpListener, Admin: s.adminListener,
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&parts)
	}
	srv, err := server.New(parts)
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, srv)
	return s
}

// run runs a server until the test ends, and connects to it.
func (s *served) run(t testing.TB, srv *server.Server) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	forced, force := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx, forced) }()
	s.stop, s.force = stop, force
	s.wait = sync.OnceValue(func() error { return <-ended })

	conn, err := grpc.NewClient("passthrough:///memory",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.grpcListener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	s.http, s.admin = clientOf(s.httpListener), clientOf(s.adminListener)
	t.Cleanup(func() {
		_ = conn.Close()
		s.http.CloseIdleConnections()
		s.admin.CloseIdleConnections()
		stop()
		if err := s.wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
		force()
	})
}

func clientOf(l *pipeListener) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) },
	}}
}

// pipeListener accepts connections within the process. (bufconn is not for net/http: a deadline that net/http sets and
// takes back may fire afterwards, and end the request.)
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) DialContext(ctx context.Context) (net.Conn, error) {
	client, srv := net.Pipe()
	select {
	case l.conns <- srv:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}
