package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
)

func TestHeaderSize(t *testing.T) {
	s := start(t, &fakeEngine{})
	const large = 70 << 10
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", large))
	if _, err := endsessionv1.NewSessionServiceClient(s.conn).InvalidateSessions(ctx, alice(0)); err == nil {
		t.Error("gRPC takes 70 KiB of headers")
	}
	ctx = metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", large/2))
	if _, err := endsessionv1.NewSessionServiceClient(s.conn).InvalidateSessions(ctx, alice(0)); err != nil {
		t.Errorf("gRPC, 35 KiB of headers: %v", err)
	}
	for size, want := range map[int]int{large: http.StatusRequestHeaderFieldsTooLarge, large / 2: http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/v1/targets", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X", strings.Repeat("x", size))
		resp, err := s.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("REST, %d bytes of headers: got %s, want %d", size, resp.Status, want)
		}
	}
}

// TestMessageSize, as it is sent and as it becomes.
func TestMessageSize(t *testing.T) {
	engine := &fakeEngine{}
	s := start(t, engine)
	client := endsessionv1.NewSessionServiceClient(s.conn)
	large := alice(0)
	large.Reason = new(strings.Repeat("x", 3<<20))
	bomb := alice(0)
	bomb.Reason = new(strings.Repeat("x", 64<<20)) // 64 KiB on the wire
	if _, err := client.InvalidateSessions(t.Context(), large); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("3 MiB over gRPC: got %v", err)
	}
	_, err := client.InvalidateSessions(t.Context(), bomb, grpc.UseCompressor(gzip.Name))
	if code := status.Code(err); code != codes.ResourceExhausted && code != codes.Unimplemented {
		t.Errorf("a bomb over gRPC: got %v", err)
	}
	body := fmt.Sprintf(`{"selector": {"user": {"id": "alice"}}, "reason": %q}`, strings.Repeat("x", 3<<20))
	resp, err := s.http.Post("http://localhost/v1/sessions:invalidate", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("3 MiB over REST: got %s", resp.Status)
	}
	if asked := engine.called(); asked != "" {
		t.Errorf("the engine was asked %.100q", asked)
	}
}

// TestDepth: a body that is nested deeply is refused before anything recurses into it.
func TestDepth(t *testing.T) {
	engine := &fakeEngine{}
	s := start(t, engine)
	for depth, want := range map[int]string{
		31: "unknown field", 33: "nested more than 32 deep", 9999: "nested more than 32 deep", 500_000: "not exactly one valid JSON value",
	} {
		body := `{"x": ` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}`
		resp, err := s.http.Post("http://localhost/v1/sessions:invalidate", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(answer, []byte(want)) {
			t.Errorf("depth %d: got %s %s, want %q", depth, resp.Status, answer, want)
		}
	}
	if asked := engine.called(); asked != "" {
		t.Errorf("the engine was asked %q", asked)
	}
}

// watchers is an engine whose watches last, and counts those under way.
func watchers(now *atomic.Int64) *fakeEngine {
	return &fakeEngine{watch: func(ctx context.Context, _ string) iter.Seq2[invalidation.Invalidation, error] {
		return func(yield func(invalidation.Invalidation, error) bool) {
			now.Add(1)
			defer now.Add(-1)
			if yield(succeeded(), nil) {
				<-ctx.Done()
				yield(invalidation.Invalidation{}, ctx.Err())
			}
		}
	}}
}

func TestConcurrentStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int64
		s := start(t, watchers(&now))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 1200 {
			go func() {
				stream, err := endsessionv1.NewSessionServiceClient(s.conn).WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: someName})
				for err == nil {
					_, err = stream.Recv()
				}
			}()
		}
		synctest.Wait()
		if n := now.Load(); n != 1000 {
			t.Errorf("one connection has %d calls under way, want 1000", n)
		}
		cancel()
		synctest.Wait()
	})
}

// TestConnectionAge: after an hour the client is asked to connect anew; what is under way then has ten minutes.
func TestConnectionAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int64
		s := start(t, watchers(&now))
		client := endsessionv1.NewSessionServiceClient(s.conn)
		began := time.Now()
		stream, err := client.WatchInvalidation(t.Context(), &endsessionv1.WatchInvalidationRequest{Name: someName})
		for err == nil {
			_, err = stream.Recv()
		}
		// gRPC spreads the hour by a tenth, so that not all clients come back at once.
		if lived := time.Since(began); lived < 64*time.Minute || lived > 76*time.Minute+time.Second {
			t.Errorf("the connection lived %v", lived)
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the watch ended with %v", err)
		}
		if _, err := client.InvalidateSessions(t.Context(), alice(0)); err != nil {
			t.Errorf("a call on the next connection: %v", err)
		}
	})
}

// TestClientThatDoesNotRead holds its connection half a minute, and no longer.
func TestClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, &fakeEngine{})
		client := dial(t, s.httpListener)
		if _, err := io.WriteString(client, "GET /v1/targets HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(31 * time.Second)
		if answer, err := io.ReadAll(client); len(answer) > 0 {
			t.Errorf("after 31 s it still got %q, %v", answer, err)
		}
	})
}

// TestHandshakeThatDoesNotCome is about connections that are never used.
func TestHandshakeThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startGuarded(t, true)
		overGRPC, err := g.grpcListener.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer overGRPC.Close()
		for what, conn := range map[string]net.Conn{"HTTP": dial(t, g.httpListener), "gRPC": overGRPC} {
			began := time.Now()
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%s: %v", what, err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("%s: the connection lived %v", what, took)
			}
		}
	})
}

// TestRequestThatDoesNotCome: a request line without end.
func TestRequestThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, &fakeEngine{})
		client := dial(t, s.httpListener)
		began := time.Now()
		var typing sync.WaitGroup
		defer typing.Wait()
		typing.Go(func() {
			for { // a byte a second
				if _, err := io.WriteString(client, "G"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		_, _ = io.Copy(io.Discard, client)
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("the connection lived %v", took)
		}
	})
}
