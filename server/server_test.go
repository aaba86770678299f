package server_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/big"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/invalidation"
)

const someName = "invalidations/" + someID

func alice(wait time.Duration) *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{
		Selector:    &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}},
		WaitTimeout: durationpb.New(wait),
	}
}

func get(t *testing.T, c *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := c.Get("http://localhost" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// patient is an engine whose calls wait as they are told to, and then answer that the invalidation is running.
func patient() *fakeEngine {
	wait := func(ctx context.Context, length time.Duration) invalidation.Invalidation {
		select {
		case <-time.After(length):
		case <-ctx.Done():
		}
		inv := succeeded()
		inv.State = invalidation.Running
		return inv
	}
	return &fakeEngine{
		invalidate: func(ctx context.Context, req invalidation.Request) (invalidation.Invalidation, bool, error) {
			return wait(ctx, req.Wait), false, nil
		},
		get: func(ctx context.Context, _ string, length time.Duration) (invalidation.Invalidation, error) {
			return wait(ctx, length), nil
		},
		watch: func(ctx context.Context, _ string) iter.Seq2[invalidation.Invalidation, error] {
			return func(yield func(invalidation.Invalidation, error) bool) {
				if yield(wait(ctx, 0), nil) {
					<-ctx.Done()
					yield(invalidation.Invalidation{}, ctx.Err())
				}
			}
		},
	}
}

// closer notes when it is closed.
type closer func() error

func (c closer) Close() error { return c() }

func TestShutdownAnswersThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []string
		engine := patient()
		engine.close = func(context.Context) error { steps = append(steps, "engine"); return nil }
		s := start(t, engine, func(p *server.Parts) {
			p.Store = closer(func() error { steps = append(steps, "store"); return nil })
		})
		client := endsessionv1.NewSessionServiceClient(s.conn)
		answers := make(chan string, 5)
		go func() {
			reply, err := client.InvalidateSessions(t.Context(), alice(5*time.Minute))
			answers <- "invalidate " + status.Code(err).String() + " " + reply.GetInvalidation().GetState().String()
		}()
		go func() {
			reply, err := client.GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{
				Name: someName, WaitTimeout: durationpb.New(5 * time.Minute),
			})
			answers <- "get " + status.Code(err).String() + " " + reply.GetInvalidation().GetState().String()
		}()
		go func() {
			stream, err := client.WatchInvalidation(t.Context(), &endsessionv1.WatchInvalidationRequest{Name: someName})
			for err == nil {
				_, err = stream.Recv()
			}
			answers <- "watch " + status.Code(err).String()
		}()
		go func() {
			resp, err := s.http.Post("http://localhost/v1/sessions:invalidate", "application/json",
				strings.NewReader(`{"selector": {"user": {"id": "alice"}}, "waitTimeout": "300s"}`))
			if err != nil {
				answers <- err.Error()
				return
			}
			defer resp.Body.Close()
			answers <- "rest invalidate " + resp.Status
		}()
		go func() {
			resp, err := s.http.Get("http://localhost/v1/" + someName + ":watch")
			if err != nil {
				answers <- err.Error()
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			last := regexp.MustCompile(`"code":\s*\d+`).FindString(string(body))
			answers <- "rest watch " + strings.ReplaceAll(last, " ", "") + " " + errText(err)
		}()
		synctest.Wait()
		if len(answers) > 0 {
			t.Fatalf("before the shutdown: %s", <-answers)
		}
		began := time.Now()
		s.stop()
		if err := s.wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the shutdown took %v although everybody could be answered", took)
		}
		var got []string
		for range cap(answers) {
			got = append(got, <-answers)
		}
		slices.Sort(got)
		want := []string{
			"get OK INVALIDATION_STATE_RUNNING", "invalidate OK INVALIDATION_STATE_RUNNING", "rest invalidate 202 Accepted",
			`rest watch "code":14 `, "watch Unavailable",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got answers %q\nwant %q", got, want)
		}
		if want := []string{"engine", "store"}; !slices.Equal(steps, want) {
			t.Errorf("closed %q, want %q", steps, want)
		}
		logged := regexp.MustCompile(`shutting down: [^:"]*`).FindAllString(s.log.String(), -1)
		wantLog := []string{
			"shutting down: NOT_SERVING", "shutting down: HTTP drains", "shutting down: gRPC drains",
			"shutting down: attempts finish", "shutting down: journal closes", "shutting down: telemetry is sent",
		}
		if !slices.Equal(logged, wantLog) {
			t.Errorf("logged %q\nwant %q", logged, wantLog)
		}
	})
}

func errText(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestShutdownIsBounded(t *testing.T) {
	for _, test := range []struct {
		name  string
		force bool
		took  time.Duration // gRPC, attempts, and the time these have to end
	}{
		{"Patiently", false, (5 + 12 + 3) * time.Second},
		{"Forced", true, 3 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				defer close(release)
				closed := false
				s := start(t, &fakeEngine{
					close: func(context.Context) error { <-release; return nil },
					check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
				}, func(p *server.Parts) {
					p.Store = closer(func() error { closed = true; return nil })
				})
				go func() { // a probe, which the drain does not cut short
					_, err := endsessionv1.NewSessionServiceClient(s.conn).CheckTarget(t.Context(), &endsessionv1.CheckTargetRequest{Target: "apm"})
					if err == nil {
						t.Error("the probe was answered")
					}
				}()
				synctest.Wait()
				began := time.Now()
				s.stop()
				if test.force {
					s.force()
				}
				if err := s.wait(); err == nil || !strings.Contains(err.Error(), "attempts finish") {
					t.Errorf("the server ended with %v, want to be told of the attempts", err)
				}
				if took := time.Since(began); took != test.took {
					t.Errorf("the shutdown took %v, want %v", took, test.took)
				}
				if !closed {
					t.Error("the journal was not closed")
				}
				s.wait = func() error { return nil }
			})
		})
	}
}

func TestListenerThatFailsEndsTheServer(t *testing.T) {
	closed := false
	s := start(t, &fakeEngine{close: func(context.Context) error { closed = true; return nil }})
	_ = s.httpListener.Close()
	if err := s.wait(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the server ended with %v, want the listener's error", err)
	}
	if !closed {
		t.Error("the engine was not closed")
	}
	s.wait = func() error { return nil }
}

func TestReadinessFollowsTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		s := start(t, &fakeEngine{ready: func() error {
			if down.Load() {
				return errors.New("disk full")
			}
			return nil
		}})
		client := healthv1.NewHealthClient(s.conn)
		expect := func(when string, ready int, serving healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			synctest.Wait()
			if code, _ := get(t, s.admin, "/healthz"); code != http.StatusOK {
				t.Errorf("%s: /healthz answers %d", when, code)
			}
			if code, body := get(t, s.admin, "/readyz"); code != ready || strings.Contains(body, "disk") {
				t.Errorf("%s: /readyz answers %d %q, want %d without the cause", when, code, body, ready)
			}
			for _, service := range []string{"", "endsession.v1.SessionService"} {
				reply, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
				if err != nil || reply.GetStatus() != serving {
					t.Errorf("%s: health of %q: %v, %v; want %v", when, service, reply.GetStatus(), err, serving)
				}
			}
		}
		expect("at first", http.StatusOK, healthv1.HealthCheckResponse_SERVING)
		down.Store(true)
		time.Sleep(6 * time.Second)
		expect("journal down", http.StatusServiceUnavailable, healthv1.HealthCheckResponse_NOT_SERVING)
		down.Store(false)
		time.Sleep(6 * time.Second)
		expect("journal up again", http.StatusOK, healthv1.HealthCheckResponse_SERVING)
		if n := strings.Count(s.log.String(), "readiness changed"); n != 2 {
			t.Errorf("the change was logged %d times, want 2", n)
		}
	})
}

// TestDrainingIsNotReady is about the time in which callers get their last answers.
func TestDrainingIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := start(t, &fakeEngine{check: func(context.Context) error { <-release; return nil }})
		health := healthv1.NewHealthClient(s.conn)
		if _, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil { // so that there is a connection
			t.Fatal(err)
		}
		answered := make(chan int, 1)
		go func() {
			resp, err := s.http.Post("http://localhost/v1/targets/apm:check", "application/json", nil)
			if err != nil {
				t.Error(err)
				answered <- 0
				return
			}
			_ = resp.Body.Close()
			answered <- resp.StatusCode
		}()
		synctest.Wait()
		s.stop()
		synctest.Wait() // HTTP drains
		if code, _ := get(t, s.admin, "/readyz"); code != http.StatusServiceUnavailable {
			t.Errorf("/readyz answers %d", code)
		}
		reply, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || reply.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("health: got %v, %v; want NOT_SERVING", reply, err)
		}
		close(release)
		if code := <-answered; code != http.StatusOK {
			t.Errorf("the call under way was answered %d", code)
		}
	})
}

// TestHealthWatchersDoNotHoldUpTheEnd is about a stream that never ends by itself.
func TestHealthWatchersDoNotHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, &fakeEngine{})
		stream, err := healthv1.NewHealthClient(s.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		s.stop()
		if err := s.wait(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the shutdown took %v", took)
		}
	})
}

func TestDeadlineReachesTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan time.Duration, 1)
		s := start(t, &fakeEngine{
			invalidate: func(ctx context.Context, _ invalidation.Request) (invalidation.Invalidation, bool, error) {
				deadline, ok := ctx.Deadline()
				if !ok {
					deadline = time.Now()
				}
				left <- time.Until(deadline)
				return succeeded(), false, nil
			},
		})
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		if _, err := endsessionv1.NewSessionServiceClient(s.conn).InvalidateSessions(ctx, alice(0)); err != nil {
			t.Fatal(err)
		}
		if got := <-left; got != 7*time.Second {
			t.Errorf("gRPC: %v were left, want 7s", got)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/v1/sessions:invalidate",
			strings.NewReader(`{"selector": {"user": {"id": "alice"}}}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Grpc-Timeout", "7S")
		resp, err := s.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := <-left; got != 7*time.Second {
			t.Errorf("REST: %v were left, want 7s", got)
		}
	})
}

// TestCausesAreLoggedOnce also holds that they are told to nobody.
func TestCausesAreLoggedOnce(t *testing.T) {
	for _, test := range []struct {
		name string
		fail func() error
		code codes.Code
	}{
		{"Defect", func() error { return errors.New("the cause") }, codes.Internal},
		{"Panic", func() error { panic("the cause") }, codes.Internal},
		{"JournalDown", func() error {
			return &invalidation.CallError{Code: invalidation.Unavailable, Message: "no", Err: errors.New("the cause")}
		}, codes.Unavailable},
		{"JournalOutOfTime", func() error {
			return fmt.Errorf("%w: the cause: %w", invalidation.ErrUnavailable, context.DeadlineExceeded)
		}, codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, &fakeEngine{
				invalidate: func(context.Context, invalidation.Request) (invalidation.Invalidation, bool, error) {
					return invalidation.Invalidation{}, false, test.fail()
				},
				watch: func(context.Context, string) iter.Seq2[invalidation.Invalidation, error] {
					return func(yield func(invalidation.Invalidation, error) bool) {
						yield(invalidation.Invalidation{}, test.fail())
					}
				},
			})
			client := endsessionv1.NewSessionServiceClient(s.conn)
			_, err := client.InvalidateSessions(t.Context(), alice(0))
			check := func(err error, logged int) {
				t.Helper()
				st := status.Convert(err)
				if st.Code() != test.code || strings.Contains(st.String(), "the cause") {
					t.Errorf("got %v, want %v without the cause", st, test.code)
				}
				if n := strings.Count(s.log.String(), "the cause"); n != logged {
					t.Errorf("the cause was logged %d times, want %d:\n%s", n, logged, s.log)
				}
			}
			check(err, 1)
			stream, err := client.WatchInvalidation(t.Context(), &endsessionv1.WatchInvalidationRequest{Name: someName})
			if err == nil {
				_, err = stream.Recv()
			}
			check(err, 2)
			if !strings.Contains(s.log.String(), "method=/endsession.v1.SessionService/WatchInvalidation") {
				t.Errorf("the log does not name the method:\n%s", s.log)
			}
		})
	}
}

func TestPages(t *testing.T) {
	var asked []invalidation.Query
	engine := &fakeEngine{list: func(q invalidation.Query) ([]invalidation.Invalidation, bool, error) {
		asked = append(asked, q)
		return []invalidation.Invalidation{succeeded()}, true, nil
	}}
	s := start(t, engine)
	client := endsessionv1.NewSessionServiceClient(s.conn)
	first := &endsessionv1.ListInvalidationsRequest{Target: new("apm"), Label: []string{"job=7"}, PageSize: 1}
	page, err := client.ListInvalidations(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	token := page.GetNextPageToken()
	if token == "" || strings.Contains(token, someID) {
		t.Fatalf("got token %q, want an opaque one", token)
	}
	second := &endsessionv1.ListInvalidationsRequest{Target: new("apm"), Label: []string{"job=7"}, PageSize: 2, PageToken: token}
	if _, err := client.ListInvalidations(t.Context(), second); err != nil {
		t.Fatalf("the next page, of another size: %v", err)
	}
	if got := asked[1].Before; got != someID {
		t.Errorf("the next page is before %q, want %q", got, someID)
	}
	for name, change := range map[string]func(*endsessionv1.ListInvalidationsRequest){
		"another target": func(r *endsessionv1.ListInvalidationsRequest) { r.Target = new("storage") },
		"no target":      func(r *endsessionv1.ListInvalidationsRequest) { r.Target = nil },
		"another label":  func(r *endsessionv1.ListInvalidationsRequest) { r.Label = []string{"job=8"} },
		"a state": func(r *endsessionv1.ListInvalidationsRequest) {
			r.State = endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED
		},
		"a broken token": func(r *endsessionv1.ListInvalidationsRequest) { r.PageToken = token[1:] },
		"a longer token": func(r *endsessionv1.ListInvalidationsRequest) { r.PageToken = token + "AAAA" },
	} {
		other := &endsessionv1.ListInvalidationsRequest{Target: new("apm"), Label: []string{"job=7"}, PageToken: token}
		change(other)
		if _, err := client.ListInvalidations(t.Context(), other); status.Code(err) != codes.InvalidArgument {
			t.Errorf("with %s: got %v, want INVALID_ARGUMENT", name, err)
		}
	}
}

// TestPagesCanBeReadByEveryClient is about gRPC's limit of 4 MiB for what a client receives.
func TestPagesCanBeReadByEveryClient(t *testing.T) {
	const n = 100
	large := succeeded()
	large.Call.Selector.User.Attributes = map[string]string{"a": strings.Repeat("x", 100_000)}
	engine := &fakeEngine{list: func(q invalidation.Query) ([]invalidation.Invalidation, bool, error) {
		return slices.Repeat([]invalidation.Invalidation{large}, n), false, nil
	}}
	s := start(t, engine)
	page, err := endsessionv1.NewSessionServiceClient(s.conn).ListInvalidations(t.Context(), &endsessionv1.ListInvalidationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(page.GetInvalidations()); got == 0 || got >= n || page.GetNextPageToken() == "" {
		t.Errorf("got %d of %d invalidations and token %q, want some of them and a token", got, n, page.GetNextPageToken())
	}
}

func TestWatchOverRESTComesLineByLine(t *testing.T) {
	next := make(chan invalidation.Invalidation)
	s := start(t, &fakeEngine{watch: func(context.Context, string) iter.Seq2[invalidation.Invalidation, error] {
		return func(yield func(invalidation.Invalidation, error) bool) {
			for inv := range next {
				if !yield(inv, nil) {
					return
				}
			}
		}
	}})
	go func() { next <- succeeded() }()
	resp, err := s.http.Get("http://localhost/v1/" + someName + ":watch")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for revision := int64(3); revision < 6; revision++ {
		line, err := lines.ReadString('\n') // before there is a next one
		if err != nil || !strings.Contains(line, someName) {
			t.Fatalf("got line %q, %v", line, err)
		}
		inv := succeeded()
		inv.Revision = revision + 1
		next <- inv
	}
	close(next)
}

func TestOpenAPI(t *testing.T) {
	s := start(t, &fakeEngine{})
	code, body := get(t, s.http, "/openapi.json")
	var doc struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil || code != http.StatusOK || doc.Paths["/v1/sessions:invalidate"] == nil {
		t.Errorf("got %d, %v, paths %v", code, err, doc.Paths)
	}
}

func TestReflection(t *testing.T) {
	s := start(t, &fakeEngine{})
	stream, err := reflectionv1.NewServerReflectionClient(s.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil || !strings.Contains(reply.String(), "endsession.v1.SessionService") {
		t.Errorf("got %v, %v", reply, err)
	}
	_ = stream.CloseSend()
}

func TestTLS(t *testing.T) {
	cert, pool := certificate(t)
	s := start(t, &fakeEngine{}, func(p *server.Parts) { p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.grpcListener.DialContext(ctx) }),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := endsessionv1.NewSessionServiceClient(conn).InvalidateSessions(t.Context(), alice(0)); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	if _, err := endsessionv1.NewSessionServiceClient(s.conn).InvalidateSessions(t.Context(), alice(0)); status.Code(err) != codes.Unavailable {
		t.Errorf("gRPC without TLS: got %v, want UNAVAILABLE", err)
	}
	client := clientOf(s.httpListener)
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://localhost/v1/targets")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("HTTPS: got %s", resp.Status)
	}
	if code, body := get(t, s.http, "/v1/targets"); code != http.StatusBadRequest {
		t.Errorf("HTTP without TLS: got %d %s", code, body)
	}
}

// certificate is one for localhost, and the pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
