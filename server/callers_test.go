package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/api"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
	"github.com/endsession/endsession/server/invalidation"
)

// guarded is a server whose callers are authenticated, by a key or a certificate.
type guarded struct {
	*served
	engine *fakeEngine
	// key is helpdesk's, until end; certificate is cert-hr's.
	key         string
	end         time.Time
	certificate tls.Certificate
	ca          *authtest.Authority
}

// startGuarded serves with TLS, or in plain text, where there are no certificates.
func startGuarded(t *testing.T, withTLS bool, change ...func(*server.Parts)) *guarded {
	t.Helper()
	g := &guarded{engine: &fakeEngine{}, key: auth.NewKey(), end: time.Now().Add(time.Hour)}
	var err error
	if g.ca, err = authtest.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	if g.certificate, err = g.ca.Client("cert-hr"); err != nil {
		t.Fatal(err)
	}
	own, err := g.ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	pool := g.ca.Pool()
	a, err := auth.New(auth.Options{
		Keys: []auth.Key{{Name: "helpdesk", SHA256: auth.HashKey(g.key), NotAfter: g.end}},
		MTLS: &auth.MTLS{Name: auth.NameCN, Roots: func() *x509.CertPool { return pool }}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	g.served = start(t, g.engine, append([]func(*server.Parts){func(p *server.Parts) {
		p.Authenticator = a
		if withTLS {
			p.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
		}
	}}, change...)...)
	return g
}

// https is a client that presents a certificate, or none.
func (g *guarded) https(t *testing.T, certificate *tls.Certificate) *http.Client {
	t.Helper()
	c := clientOf(g.httpListener)
	transport := c.Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = true
	transport.TLSClientConfig = g.tls(certificate)
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

func (g *guarded) tls(certificate *tls.Certificate) *tls.Config {
	conf := &tls.Config{RootCAs: g.ca.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}
	if certificate != nil {
		conf.Certificates = []tls.Certificate{*certificate}
	}
	return conf
}

// do makes the call that ends sessions, with headers, and returns the status and what the engine was asked.
func (g *guarded) do(t *testing.T, c *http.Client, url string, header http.Header) (status int, asked string) {
	t.Helper()
	g.engine.reset(nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(`{"selector": {"user": {"id": "alice"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/json")
	if host := header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, g.engine.called()
}

const invalidateURL = "https://localhost/v1/sessions:invalidate"

// asCaller reports whether the engine was asked once, for that caller.
func asCaller(asked, kind, name string) bool {
	return strings.Count(asked, "\n") == 1 && strings.Contains(asked, fmt.Sprintf(`"Caller":{"kind":%q,"name":%q}`, kind, name))
}

// TestHeadersAreNoCredentials: of a REST client only its Authorization header and its TLS certificate say who it is.
func TestHeadersAreNoCredentials(t *testing.T) {
	g := startGuarded(t, true)
	der := base64.StdEncoding.EncodeToString(g.certificate.Leaf.Raw)
	pretenders := http.Header{}
	for name, value := range map[string]string{
		"Endsession-Client-Certificate-Bin": der, "Grpc-Metadata-Endsession-Client-Certificate-Bin": der,
		"Endsession-Client-Address": "127.0.0.1:1", "Grpc-Metadata-Endsession-Client-Address": "127.0.0.1:1",
		"Grpc-Metadata-Authorization": "Bearer " + g.key, "Grpcgateway-Authorization": "Bearer " + g.key,
		"Proxy-Authorization": "Bearer " + g.key, "X-Authorization": "Bearer " + g.key, "Cookie": "authorization=Bearer " + g.key,
		"X-Forwarded-Client-Cert": `By=x;Subject="CN=cert-hr"`, "X-Client-Cert": der, "Ssl-Client-Cert": der, "Ssl-Client-Verify": "SUCCESS",
		"Client-Cert": ":" + der + ":", "X-Remote-User": "helpdesk", "X-Endsession-Caller": "helpdesk", "X-Forwarded-User": "helpdesk",
	} {
		pretenders.Set(name, value)
	}
	anonymous, certified := g.https(t, nil), g.https(t, &g.certificate)
	if code, asked := g.do(t, anonymous, invalidateURL, pretenders); code != http.StatusUnauthorized || asked != "" {
		t.Errorf("with headers alone: got %d, asked %q", code, asked)
	}
	if code, asked := g.do(t, certified, invalidateURL, pretenders); code != http.StatusOK || !asCaller(asked, "mtls", "cert-hr") {
		t.Errorf("with a certificate: got %d, asked %q", code, asked)
	}
	pretenders.Set("Authorization", "Bearer "+g.key)
	if code, asked := g.do(t, anonymous, invalidateURL, pretenders); code != http.StatusOK || !asCaller(asked, "api_key", "helpdesk") {
		t.Errorf("with a key: got %d, asked %q", code, asked)
	}
	if code, asked := g.do(t, anonymous, invalidateURL+"?access_token="+g.key, nil); code < 400 || asked != "" {
		t.Errorf("with a key in the address: got %d, asked %q", code, asked)
	}
}

// TestAuthorizationHeaders: one that is not taken must not count as none, for a certificate would do then.
func TestAuthorizationHeaders(t *testing.T) {
	g := startGuarded(t, true)
	good := "Bearer " + g.key
	for _, c := range []*http.Client{g.https(t, nil), g.https(t, &g.certificate)} {
		for name, values := range map[string][]string{
			"Two": {good, good}, "GoodAndEmpty": {good, ""}, "EmptyAndGood": {"", good}, "Empty": {""}, "NotASCII": {"Bearer \xff"},
			"GoodAndNotASCII": {good, "Bearer é"}, "Tab": {"Bearer\t" + g.key}, "Joined": {good + "," + good}, "Basic": {"Basic eDp5"},
		} {
			if code, asked := g.do(t, c, invalidateURL, http.Header{"Authorization": values}); code != http.StatusUnauthorized || asked != "" {
				t.Errorf("%s: got %d, asked %q", name, code, asked)
			}
		}
	}
	if code, asked := g.do(t, g.https(t, &g.certificate), invalidateURL, http.Header{"Authorization": {good}}); code != http.StatusOK || !asCaller(asked, "api_key", "helpdesk") {
		t.Errorf("a good one: got %d, asked %q", code, asked)
	}
}

// dialGRPC connects to the network's gRPC listener.
func (g *guarded) dialGRPC(t *testing.T, certificate *tls.Certificate) endsessionv1.SessionServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.grpcListener.DialContext(ctx) }),
		grpc.WithTransportCredentials(credentials.NewTLS(g.tls(certificate))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return endsessionv1.NewSessionServiceClient(conn)
}

// TestNetworkCannotSpeakAsTheGateway: the metadata by which the gateway tells of a REST client is nothing from elsewhere.
func TestNetworkCannotSpeakAsTheGateway(t *testing.T) {
	g := startGuarded(t, true)
	told := metadata.AppendToOutgoingContext(t.Context(),
		"endsession-client-certificate-bin", string(g.certificate.Leaf.Raw), "endsession-client-address", "127.0.0.1:1",
		"x-forwarded-for", "127.0.0.1", "grpcgateway-authorization", "Bearer "+g.key)
	if _, err := g.dialGRPC(t, nil).InvalidateSessions(told, alice(0)); status.Code(err) != codes.Unauthenticated || g.engine.called() != "" {
		t.Errorf("got %v, asked %q", err, g.engine.called())
	}
	if _, err := g.dialGRPC(t, &g.certificate).InvalidateSessions(told, alice(0)); err != nil || !asCaller(g.engine.called(), "mtls", "cert-hr") {
		t.Errorf("with a certificate: got %v, asked %q", err, g.engine.called())
	}
}

// TestWebPages: a browser that has a client certificate would lend it to any page.
func TestWebPages(t *testing.T) {
	g := startGuarded(t, true)
	c := g.https(t, &g.certificate)
	for name, header := range map[string]http.Header{
		"Origin":            {"Origin": {"https://evil.example"}},
		"NullOrigin":        {"Origin": {"null"}},
		"ByTheBrowsersWord": {"Sec-Fetch-Site": {"cross-site"}},
		"SameSite":          {"Sec-Fetch-Site": {"same-site"}},
		"Rebinding":         {"Host": {"evil.example"}},
		"RebindingSaysSame": {"Host": {"evil.example"}, "Origin": {"https://evil.example"}, "Sec-Fetch-Site": {"same-origin"}},
	} {
		if code, asked := g.do(t, c, invalidateURL, header); code != http.StatusForbidden || asked != "" {
			t.Errorf("%s: got %d, asked %q", name, code, asked)
		}
	}
}

// TestPathTricks: no other path leads to the call, whoever asks.
func TestPathTricks(t *testing.T) {
	g := startGuarded(t, true)
	c := g.https(t, &g.certificate)
	for _, path := range []string{
		"/v1/../v1/sessions:invalidate", "/v1/./sessions:invalidate", "/v1/x/../sessions:invalidate", "//v1/sessions:invalidate", "/v1//sessions:invalidate",
		"/v1/sessions%3Ainvalidate", "/v1/sessions%3ainvalidate", "/v1%2Fsessions:invalidate", "/%761/sessions:invalidate", "/v1/%2e%2e/v1/sessions:invalidate",
		"/v1/sessions:invalidate/", "/v1/sessions:invalidate;x=y", "/v1/sessions:invalidate%00", "/V1/sessions:invalidate", "/v1/sessions:Invalidate",
		"/v1\\sessions:invalidate", "/endsession.v1.SessionService/InvalidateSessions", "/v1/sessions:invalidate:invalidate",
	} {
		if code, asked := g.do(t, c, "https://localhost"+path, nil); code != http.StatusNotFound && code != http.StatusBadRequest || asked != "" {
			t.Errorf("%s: got %d, asked %q", path, code, asked)
		}
	}
}

// TestSmuggling sends what proxies and servers read differently. What comes after the first request on a connection must
// not be taken for a second one, unless it plainly is.
func TestSmuggling(t *testing.T) {
	const (
		body  = `{"selector": {"user": {"id": "alice"}}}`
		inner = "POST /v1/sessions:invalidate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer @KEY@\r\nContent-Length: 39\r\n\r\n" + body
		head  = "POST /v1/sessions:invalidate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	)
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	if len(body) != 39 {
		t.Fatal(len(body))
	}
	for name, test := range map[string]struct {
		request string
		calls   int // of helpdesk's
	}{
		"TwoPlainly":            {inner + inner, 2},
		"LengthAndChunks":       {head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner, 0},
		"ChunksAndMore":         {head + "Authorization: Bearer @KEY@\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + inner, 1},
		"TwoLengths":            {head + "Content-Length: 39\r\nContent-Length: 0\r\n\r\n" + inner, 0},
		"ListOfLengths":         {head + "Content-Length: 39, 0\r\n\r\n" + inner, 0},
		"SignedLength":          {head + "Content-Length: +0\r\n\r\n" + inner, 0},
		"SpaceBeforeTheColon":   {head + "Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n" + inner, 0},
		"UnknownCoding":         {head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner, 0},
		"TwoCodings":            {head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner, 0},
		"CodingAfterAnother":    {head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + inner, 0},
		"BadChunkSize":          {head + "Transfer-Encoding: chunked\r\n\r\n0x27\r\n" + body + "\r\n0\r\n\r\n" + inner, 0},
		"TwoHosts":              {"POST /v1/sessions:invalidate HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n", 0},
		"OtherHostInTheRequest": {strings.Replace(inner, "POST /v1", "POST http://evil.example/v1", 1), 0},
		"KeyInATrailer":         {head + "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n" + strings.TrimSuffix(chunked, "\r\n") + "Authorization: Bearer @KEY@\r\n\r\n", 0},
		"LineBreakInAHeader":    {head + "X: y\rAuthorization: Bearer @KEY@\r\nContent-Length: 0\r\n\r\n", 0},
		"NULInAHeader":          {head + "X: \x00\r\nAuthorization: Bearer @KEY@\r\nContent-Length: 39\r\n\r\n" + body, 0},
		"NoVersion":             {"POST /v1/sessions:invalidate\r\n\r\n" + inner, 0},
		"HTTP2Preface":          {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inner, 0},
		"Tunnel":                {"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 0},
		"Upgrade":               {"GET /v1/targets HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n", 0},
		"BodyOfAGET":            {"GET /v1/targets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := startGuarded(t, false)
				client := dial(t, g.httpListener)
				go func() { _, _ = io.WriteString(client, strings.ReplaceAll(test.request, "@KEY@", g.key)) }()
				_ = client.SetReadDeadline(time.Now().Add(5 * time.Minute))
				answers, _ := io.ReadAll(bufio.NewReader(client))
				if calls := strings.Count(g.engine.called(), `"name":"helpdesk"`); calls != test.calls || strings.Count(g.engine.called(), "\n") != calls {
					t.Errorf("the engine was asked %d times, want %d:\n%s\nanswers:\n%s", calls, test.calls, g.engine.called(), answers)
				}
				if strings.Count(string(answers), "200 OK") != test.calls {
					t.Errorf("the answers are not of %d calls:\n%s", test.calls, answers)
				}
			})
		})
	}
}

// TestHealthAndReflection: who may ask is configured.
func TestHealthAndReflection(t *testing.T) {
	for _, test := range []struct {
		name                string
		health, reflection  server.Access
		stranger, caller    codes.Code // health
		reflects, toCallers codes.Code
	}{
		{"ByDefault", server.ByDefault, server.ByDefault, codes.OK, codes.OK, codes.Unauthenticated, codes.OK},
		{"Open", server.Everybody, server.Everybody, codes.OK, codes.OK, codes.OK, codes.OK},
		{"Closed", server.Callers, server.Callers, codes.Unauthenticated, codes.OK, codes.Unauthenticated, codes.OK},
		{"Off", server.Nobody, server.Nobody, codes.Unimplemented, codes.Unimplemented, codes.Unimplemented, codes.Unimplemented},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := startGuarded(t, false, func(p *server.Parts) { p.Health, p.Reflection = test.health, test.reflection })
			ask := func(ctx context.Context) (health, reflection codes.Code) {
				_, err := healthv1.NewHealthClient(g.conn).Check(ctx, &healthv1.HealthCheckRequest{})
				health = status.Code(err)
				stream, err := reflectionv1.NewServerReflectionClient(g.conn).ServerReflectionInfo(ctx)
				if err == nil {
					_ = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
					_, err = stream.Recv()
				}
				return health, status.Code(err)
			}
			if health, reflection := ask(t.Context()); health != test.stranger || reflection != test.reflects {
				t.Errorf("a stranger: health %v, reflection %v; want %v, %v", health, reflection, test.stranger, test.reflects)
			}
			ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+g.key))
			defer cancel()
			if health, reflection := ask(ctx); health != test.caller || reflection != test.toCallers {
				t.Errorf("a caller: health %v, reflection %v; want %v, %v", health, reflection, test.caller, test.toCallers)
			}
		})
	}
}

// TestWatchEndsWithItsCredential, over both ways in.
func TestWatchEndsWithItsCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startGuarded(t, false)
		g.engine.watch = func(ctx context.Context, _ string) iter.Seq2[invalidation.Invalidation, error] {
			return func(yield func(invalidation.Invalidation, error) bool) {
				for yield(succeeded(), nil) {
					select {
					case <-time.After(20 * time.Second):
					case <-ctx.Done():
						return
					}
				}
			}
		}
		began := time.Now()
		done := make(chan string, 2)
		go func() {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+g.key)
			stream, err := endsessionv1.NewSessionServiceClient(g.conn).WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: someName})
			for err == nil {
				_, err = stream.Recv()
			}
			done <- status.Code(err).String()
		}()
		go func() {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/v1/"+someName+":watch", nil)
			req.Header.Set("Authorization", "Bearer "+g.key)
			resp, err := g.http.Do(req)
			if err != nil {
				done <- err.Error()
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			lines := strings.Split(strings.TrimSpace(string(body)), "\n")
			if last := lines[len(lines)-1]; strings.Contains(last, `"error"`) && strings.Contains(strings.ReplaceAll(last, " ", ""), `"code":16`) {
				done <- "Unauthenticated"
				return
			}
			done <- string(body)
		}()
		for range 2 {
			if got := <-done; got != "Unauthenticated" {
				t.Errorf("the watch ended with %s", got)
			}
			if lived := time.Since(began); lived < time.Hour || lived > time.Hour+2*time.Minute {
				t.Errorf("the watch lived %v, its credential an hour", lived)
			}
		}
	})
}

// TestUnjudgedCallersAreToldToRetry is about credentials that cannot be judged now.
func TestUnjudgedCallersAreToldToRetry(t *testing.T) {
	unjudged := func(context.Context, auth.Credentials) (invalidation.Caller, error) {
		return invalidation.Caller{}, &auth.Error{Kind: auth.KindOIDC, Why: "the issuer's keys are not to be had", RetryAfter: 7 * time.Second}
	}
	g := startGuarded(t, false, func(p *server.Parts) { p.Authenticator = authenticate(unjudged) })
	_, err := endsessionv1.NewSessionServiceClient(g.conn).InvalidateSessions(t.Context(), alice(0))
	if st := status.Convert(err); st.Code() != codes.Unavailable || !strings.Contains(st.String(), "try again") {
		t.Errorf("gRPC: got %v", err)
	}
	resp, err := g.http.Get("http://localhost/v1/targets")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "7" {
		t.Errorf("REST: got %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	if asked := g.engine.called(); asked != "" {
		t.Errorf("the engine was asked %q", asked)
	}
}

type authenticate func(context.Context, auth.Credentials) (invalidation.Caller, error)

func (f authenticate) Authenticate(ctx context.Context, c auth.Credentials) (invalidation.Caller, error) {
	return f(ctx, c)
}

// refusals counts those who were not let in.
type refusals struct {
	n    atomic.Int64
	last atomic.Pointer[api.RefusedCall]
}

func (r *refusals) Refused(_ context.Context, call api.RefusedCall) {
	r.n.Add(1)
	r.last.Store(&call)
}

// TestRefusalsAreTold, once for each call, with what is known of it.
func TestRefusalsAreTold(t *testing.T) {
	told := &refusals{}
	g := startGuarded(t, true, func(p *server.Parts) { p.Refusals = told })
	wrong := auth.NewKey()
	id, _ := auth.KeyID(wrong)
	_, _ = g.dialGRPC(t, nil).InvalidateSessions(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+wrong), alice(0))
	call := told.last.Load()
	if told.n.Load() != 1 || call.Method != "/endsession.v1.SessionService/InvalidateSessions" || call.Kind != auth.KindAPIKey ||
		call.Why != "unknown key" || call.Whose != id || call.Remote == "" || call.Unjudged {
		t.Errorf("gRPC: told %d times, %+v", told.n.Load(), call)
	}
	_, _ = g.do(t, g.https(t, nil), invalidateURL, http.Header{"X-Forwarded-For": {"192.0.2.1"}})
	call = told.last.Load()
	if told.n.Load() != 2 || call.Kind != auth.KindNone || call.Remote != "pipe" {
		t.Errorf("REST: told %d times, %+v", told.n.Load(), call)
	}
}

// TestRefusalsCannotFillTheLog.
func TestRefusalsCannotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startGuarded(t, false)
		client := endsessionv1.NewSessionServiceClient(g.conn)
		for range 1000 {
			_, _ = client.InvalidateSessions(t.Context(), alice(0))
		}
		if n := strings.Count(g.log.String(), "caller refused"); n == 0 || n > 20 {
			t.Errorf("1000 refusals at once are %d lines", n)
		}
		time.Sleep(time.Minute)
		_, _ = client.InvalidateSessions(t.Context(), alice(0))
		if !strings.Contains(g.log.String(), "lines_left_out=990") {
			t.Error("the log does not say how many lines are left out")
		}
	})
}
