package auth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
)

// pki is a directory with a server's files.
type pki struct {
	files auth.Files
	ca    *authtest.Authority
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	dir := t.TempDir()
	p := &pki{files: auth.Files{
		Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "clients.pem"),
	}, ca: authority(t)}
	cert, key := p.issue(t)
	put(t, p.files.Cert, cert)
	put(t, p.files.Key, key)
	put(t, p.files.ClientCA, p.ca.PEM)
	return p
}

// issue makes a new certificate for the server.
func (p *pki) issue(t testing.TB) (cert, key []byte) {
	t.Helper()
	c, err := p.ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	if cert, key, err = authtest.Encode(c); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func put(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// echo serves a connection until it ends.
func echo(t testing.TB, conf *tls.Config) (client net.Conn) {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		c := tls.Server(server, conf)
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func handshake(t testing.TB, conf *tls.Config, client *tls.Config) (*tls.Conn, error) {
	t.Helper()
	client.ServerName = "localhost"
	c := tls.Client(echo(t, conf), client)
	return c, c.HandshakeContext(t.Context())
}

func TestTLSVersions(t *testing.T) {
	p := newPKI(t)
	c, err := auth.LoadCertificates(p.files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		most, want uint16
	}{{tls.VersionTLS13, tls.VersionTLS13}, {tls.VersionTLS12, tls.VersionTLS12}, {tls.VersionTLS11, 0}, {tls.VersionTLS10, 0}} {
		conn, err := handshake(t, c.Config(), &tls.Config{RootCAs: p.ca.Pool(), MinVersion: tls.VersionTLS10, MaxVersion: test.most, NextProtos: []string{"h2"}})
		if (err == nil) != (test.want != 0) {
			t.Errorf("%s at most: %v", tls.VersionName(test.most), err)
		}
		if state := conn.ConnectionState(); err == nil && (state.Version != test.want || state.NegotiatedProtocol != "h2") {
			t.Errorf("%s at most: got %s and %q", tls.VersionName(test.most), tls.VersionName(state.Version), state.NegotiatedProtocol)
		}
	}
}

func TestCertificatesFollowTheirFiles(t *testing.T) {
	p := newPKI(t)
	stranger := authority(t)
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		c, err := auth.LoadCertificates(p.files, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go c.Follow(ctx)
		conf := c.Config()
		serves := func() []byte {
			t.Helper()
			conn, err := handshake(t, conf, &tls.Config{RootCAs: p.ca.Pool()})
			if err != nil {
				t.Fatal(err)
			}
			return conn.ConnectionState().PeerCertificates[0].Raw
		}
		first := serves()
		open, err := handshake(t, conf, &tls.Config{RootCAs: p.ca.Pool()})
		if err != nil {
			t.Fatal(err)
		}

		time.Sleep(time.Minute) // nothing changes
		cert, key := p.issue(t)
		put(t, p.files.Cert, cert) // and the key is still to come
		time.Sleep(time.Minute)
		if !bytes.Equal(serves(), first) {
			t.Error("a certificate without its key is in use")
		}
		if n := strings.Count(log.String(), "cannot be used"); n != 1 {
			t.Errorf("a lasting problem was logged %d times:\n%s", n, &log)
		}
		put(t, p.files.Key, key)
		time.Sleep(6 * time.Second)
		second := serves()
		if bytes.Equal(second, first) {
			t.Error("the new certificate is not in use")
		}

		roots := c.Roots()
		put(t, p.files.ClientCA, []byte("no certificate"))
		if err := os.Remove(p.files.Key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		put(t, p.files.Key, key)
		time.Sleep(6 * time.Second)
		if !bytes.Equal(serves(), second) || c.Roots() != roots {
			t.Error("files that cannot be used changed something")
		}
		put(t, p.files.ClientCA, stranger.PEM)
		time.Sleep(6 * time.Second)
		if _, err := client(t, stranger, "x").Leaf.Verify(x509.VerifyOptions{Roots: c.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("the new authority is not trusted: %v", err)
		}

		if n := strings.Count(log.String(), "were read again"); n != 2 {
			t.Errorf("the files changed twice for the better, and were taken over %d times", n)
		}

		// The connection from the beginning has seen it all.
		if _, err := open.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("still here"))
		if _, err := io.ReadFull(open, answer); err != nil || string(answer) != "still here" {
			t.Errorf("got %q, %v", answer, err)
		}
	})
}

// TestReloadCertificates: other files may be named; what is wrong changes nothing.
func TestReloadCertificates(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	c, err := auth.LoadCertificates(p.files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	serves := func(by *pki) bool {
		_, err := handshake(t, c.Config(), &tls.Config{RootCAs: by.ca.Pool()})
		return err == nil
	}
	if err := c.Reload(auth.Files{Cert: "none", Key: "none"}); !errors.Is(err, fs.ErrNotExist) || !serves(p) {
		t.Errorf("got %v", err)
	}
	if err := c.Reload(other.files); err != nil || serves(p) || !serves(other) {
		t.Errorf("got %v; the old certificate: %t, the new one: %t", err, serves(p), serves(other))
	}
}

// TestClientCertificatesAreAskedFor, and only where there is an authority for them. In the handshake any is taken: the
// authenticator judges.
func TestClientCertificatesAreAskedFor(t *testing.T) {
	p := newPKI(t)
	mine := client(t, authority(t), "x")
	for _, files := range []auth.Files{p.files, {Cert: p.files.Cert, Key: p.files.Key}} {
		c, err := auth.LoadCertificates(files, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		asked := false
		_, err = handshake(t, c.Config(), &tls.Config{RootCAs: p.ca.Pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			return &mine, nil
		}})
		if err != nil || asked != (files.ClientCA != "") || (c.Roots() != nil) != asked {
			t.Errorf("client CA %q: asked: %t, %v", files.ClientCA, asked, err)
		}
	}
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
