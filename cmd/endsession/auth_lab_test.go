package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// guarded is a gateway with every way to authenticate, on real sockets with TLS.
type guarded struct {
	*inProcess
	dir, path string
	// ca is the authority of the gateway and of its clients; provider issues tokens.
	ca       *authtest.Authority
	provider *authtest.Provider
	// keys are API keys by the names of their callers; "expired" is one that has expired.
	keys map[string]string
}

// guardedPolicy lets the callers of the tests do everything, except for those who may do nothing.
const guardedPolicy = `
policy:
  - name: all
    allow: 'caller.name in ["helpdesk", "svc-hr", "cert-hr"]'
    rights: [invalidate, preview, read, read_own, retry, cancel, list_targets, check, pause]
    unlimited: true
`

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	return startGuardedLab(t, newLab(), "")
}

// startGuardedLab serves a lab, with more of a configuration.
func startGuardedLab(t *testing.T, l *lab, more string, change ...optioned) *guarded {
	t.Helper()
	g := &guarded{dir: t.TempDir(), keys: map[string]string{}}
	var err error
	if g.ca, err = authtest.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	// The provider's URL is known when it listens.
	url, caPEM, stop, err := emulator.ServeTLS(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.provider.ServeHTTP(w, r) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if g.provider, err = authtest.NewProvider(url); err != nil {
		t.Fatal(err)
	}
	server, err := g.ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authtest.Encode(server)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": cert, "tls.key": key, "clients.pem": g.ca.PEM, "idp.pem": caPEM} {
		if err := os.WriteFile(filepath.Join(g.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var keys strings.Builder
	for _, name := range []string{"helpdesk", "nobody", "expired"} {
		key := auth.NewKey()
		g.keys[name] = key
		hash := auth.HashKey(key)
		end := time.Now().Add(time.Hour)
		if name == "expired" {
			end = time.Now().Add(-time.Second)
		}
		fmt.Fprintf(&keys, "    - { name: %s, keys: [{ sha256: %q, not_after: %q }] }\n", name, hex.EncodeToString(hash[:]), end.Format(time.RFC3339))
	}
	for _, name := range authorities {
		certificate(t, filepath.Join(g.dir, name), "")
	}
	g.path = labConfig{dir: g.dir, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}, change: func(text string) string {
		return strings.Replace(text, "\nstore:", "\n  tls: { cert_file: tls.crt, key_file: tls.key, client_ca_file: clients.pem }\nstore:", 1) +
			"\nauth:\n  api_keys:\n" + keys.String() +
			"  oidc: [{ issuer: '" + url + "', audience: endsession, ca_file: idp.pem }]\n  mtls: { name: cn }\n" + guardedPolicy + more
	}}.write(t)
	g.inProcess = startInProcess(t, l, g.path, nil, change...)
	return g
}

// client is somebody who calls, with what it brings.
type client struct {
	// authorization are the Authorization headers.
	authorization []string
	certificate   *tls.Certificate
}

// token asks the provider for one.
func (g *guarded) token(t testing.TB, c authtest.Client) string {
	t.Helper()
	token, err := g.provider.Token(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// certified is a client certificate of an authority.
func certified(t testing.TB, ca *authtest.Authority, name string) *tls.Certificate {
	t.Helper()
	c, err := ca.Client(name)
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// tls is how a client connects. It presents its certificate whatever the gateway says it would like.
func (g *guarded) tls(c client) *tls.Config {
	conf := &tls.Config{RootCAs: g.ca.Pool(), MinVersion: tls.VersionTLS12}
	if c.certificate != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate, nil }
	}
	return conf
}

// grpc connects as a client, and returns the context to call in.
func (g *guarded) grpc(t testing.TB, c client) (context.Context, *grpc.ClientConn) {
	t.Helper()
	cc, err := grpc.NewClient(g.srv.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(g.tls(c))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	ctx := t.Context()
	for _, a := range c.authorization {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
	}
	return ctx, cc
}

// http returns a function that makes requests as a client.
func (g *guarded) http(t testing.TB, c client) func(method, path, body string) (int, http.Header, string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: g.tls(c), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return func(method, path, body string) (int, http.Header, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+g.srv.HTTPAddr().String()+path, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		for _, a := range c.authorization {
			req.Header.Add("Authorization", a)
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, resp.Header, read(t, resp.Body)
	}
}
