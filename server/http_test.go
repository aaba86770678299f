package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// TestBodyThatDoesNotArrive is about requests that would hold a connection for ever: net/http takes what is left of a
// body from the connection before it answers, whoever refused the request.
func TestBodyThatDoesNotArrive(t *testing.T) {
	const head = " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
	for name, test := range map[string]struct {
		request string
		admin   bool
		status  int
	}{
		"ToACall":        {"POST /v1/sessions:invalidate" + head + "Content-Type: application/json\r\n", false, http.StatusBadRequest},
		"RefusedByQuery": {"POST /v1/sessions:invalidate?x" + head, false, http.StatusBadRequest},
		"RefusedByType":  {"POST /v1/sessions:invalidate" + head + "Content-Type: text/plain\r\n", false, http.StatusUnsupportedMediaType},
		"OfAGET":         {"GET /v1/targets" + head, false, http.StatusBadRequest},
		"ToNowhere":      {"POST /x" + head, false, http.StatusNotFound},
		"FromElsewhere":  {"POST /x" + head + "Origin: https://evil.example\r\n", false, http.StatusForbidden},
		"ToAdmin":        {"GET /healthz" + head, true, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, &fakeEngine{})
				listener := s.httpListener
				if test.admin {
					listener = s.adminListener
				}
				client := dial(t, listener)
				if _, err := io.WriteString(client, test.request+"\r\n"); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				answer, err := http.ReadResponse(bufio.NewReader(client), nil)
				took := time.Since(began)
				if err != nil {
					t.Fatalf("no answer after %v: %v", took, err)
				}
				if answer.StatusCode != test.status || took != 20*time.Second || !answer.Close {
					t.Errorf("got %s after %v, closing: %t; want %d after 20s, closing", answer.Status, took, answer.Close, test.status)
				}
			})
		})
	}
}

// TestChunksThatDoNotArrive: after a body in chunks the connection ends, so what is left of it is not waited for.
func TestChunksThatDoNotArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, &fakeEngine{})
		client := dial(t, s.httpListener)
		if _, err := io.WriteString(client, "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil || answer.StatusCode != http.StatusNotFound || !answer.Close {
			t.Errorf("got %v, %v; want 404, closing", answer, err)
		}
	})
}

// TestCallOutlivesTheTimeouts is about a connection's own deadlines, which must not end a call that waits.
func TestCallOutlivesTheTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, &fakeEngine{
			invalidate: func(ctx context.Context, _ invalidation.Request) (invalidation.Invalidation, bool, error) {
				select {
				case <-time.After(5 * time.Minute):
					return succeeded(), false, nil
				case <-ctx.Done():
					return invalidation.Invalidation{}, false, context.Cause(ctx)
				}
			},
		})
		client := dial(t, s.httpListener)
		const body = `{"selector": {"user": {"id": "alice"}}}`
		if _, err := fmt.Fprintf(client, "POST /v1/sessions:invalidate HTTP/1.1\r\nHost: localhost\r\n"+
			"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("got %v, %v", answer, err)
		}
	})
}

func dial(t *testing.T, l *pipeListener) net.Conn {
	t.Helper()
	client, err := l.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(time.Now().Add(time.Hour))
	return client
}
