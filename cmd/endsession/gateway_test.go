package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// certificate writes a certificate for this machine and its key; it is its own authority.
func certificate(t testing.TB, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Virtual time begins in 2000.
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Now().AddDate(30, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if name == "" {
			continue
		}
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// inProcess is a whole gateway in the process of the tests, whose targets are in memory.
type inProcess struct {
	lab *lab
	// sent is what the gateway sent to each target.
	sent map[string]*emulator.Recorder
	log  *lockedBuffer
	srv  *server.Server
}

// optioned changes how a gateway is opened.
type optioned func(*server.Options)

// startInProcess serves the configuration at path until the test, or the bubble, ends. A nil listen means real sockets.
func startInProcess(t *testing.T, l *lab, path string, listen func(context.Context, string, string) (net.Listener, error), change ...optioned) *inProcess {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.Parse(path, text, registry(), config.Environment{
		LookupEnv: func(name string) (string, bool) { v, ok := labEnv[name]; return v, ok },
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &inProcess{lab: l, sent: map[string]*emulator.Recorder{}, log: &lockedBuffer{}}
	for _, target := range l.targets {
		g.sent[target] = emulator.NewRecorder(emulator.Transport(l.systems[target].Handler()))
	}
	options := server.Options{
		Config: conf, Logger: slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Transport: func(target string) http.RoundTripper { return g.sent[target] }, Listen: listen,
		DialDirectory: l.dial,
	}
	for _, f := range change {
		f(&options)
	}
	g.srv, err = server.Open(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.srv.Run(ctx, context.Background()) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the gateway ended with %v\n%s", err, g.log)
		}
	})
	return g
}

// mutations is how many requests were sent to a target that could end sessions.
func (g *inProcess) mutations(target string) (n int) {
	for _, r := range g.sent[target].Requests() {
		if mutates(target, r.Method, r.Path, r.Body) {
			n++
		}
	}
	return n
}

// memoryGateway is a gateway without a socket: virtual time works.
type memoryGateway struct {
	*inProcess
	grpc *grpc.ClientConn
	http *http.Client
	// admin is a client of the admin listener.
	admin *http.Client
}

func startInMemory(t *testing.T, l *lab, path string, change ...optioned) *memoryGateway {
	t.Helper()
	var listeners []*pipeListener // in the order of opening: gRPC, HTTP, admin
	g := &memoryGateway{inProcess: startInProcess(t, l, path, func(context.Context, string, string) (net.Listener, error) {
		l := newPipeListener()
		listeners = append(listeners, l)
		return l, nil
	}, change...)}
	var err error
	g.grpc, err = grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listeners[0].DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	to := func(i int) *http.Client {
		return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return listeners[i].DialContext(ctx)
		}}}
	}
	g.http, g.admin = to(1), to(2)
	t.Cleanup(func() {
		_ = g.grpc.Close()
		g.http.CloseIdleConnections()
		g.admin.CloseIdleConnections()
	})
	return g
}

// post sends a body to a path of the REST API, whose host is the client's affair.
func post(t testing.TB, client *http.Client, url, body string) (status int, answer string) {
	t.Helper()
	resp, err := client.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, read(t, resp.Body)
}

// read returns an answer without the white space within JSON, of which the encoder promises nothing.
func read(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(b, []byte("\n")) {
		t.Errorf("an answer does not end with a line break: %s", b)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return string(b)
	}
	return compact.String()
}

// pipeListener accepts connections within the process.
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

// lockedBuffer is an output that can be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// memoryDir prepares a directory with the lab's configuration for a gateway whose targets are in memory.
func memoryDir(t *testing.T, change func(string) string) (path string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range authorities {
		certificate(t, filepath.Join(dir, name), "")
	}
	return labConfig{dir: dir, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}, change: change}.write(t)
}
