package emulator

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"runtime/debug"
	"strconv"
	"syscall"
)

// Transport carries requests to h in memory. A request reaches h as net/http's server would read it from a wire, and
// its answer comes back whole: nothing is streamed. When the request's context ends, RoundTrip returns at once with the
// context's cause, and the context that h sees ends too; h may still finish what it began, as behind a real connection.
// A panic of h is a reset connection.
func Transport(h http.Handler) http.RoundTripper { return transport{h} }

type transport struct{ h http.Handler }

// RoundTrip implements [http.RoundTripper].
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if err := connect(req); err != nil {
		return nil, err
	}
	served, err := received(req)
	if err != nil {
		return nil, err
	}
	wrote(req)

	serving, cancel := context.WithCancel(context.Background())
	defer cancel()
	type outcome struct {
		w  *answer
		ok bool
	}
	done := make(chan outcome, 1)
	go func() {
		w := &answer{header: http.Header{}}
		defer func() {
			p := recover()
			if err, ok := p.(error); p != nil && (!ok || !errors.Is(err, http.ErrAbortHandler)) {
				log.Printf("emulator: panic serving %s: %v\n%s", served.URL.Path, p, debug.Stack())
			}
			done <- outcome{w, p == nil}
		}()
		t.h.ServeHTTP(w, served.WithContext(serving))
	}()
	select {
	case o := <-done:
		if !o.ok {
			return nil, errReset
		}
		return o.w.response(req), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var (
	errReset   = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
)

// connect does what precedes the first byte: it calls the hooks of a connection being found, and closes the body when
// the request ends here.
func connect(req *http.Request) error {
	if err := context.Cause(req.Context()); err != nil {
		closeBody(req)
		return err
	}
	trace := httptrace.ContextClientTrace(req.Context())
	if trace == nil {
		return nil
	}
	if trace.GetConn != nil {
		trace.GetConn(req.URL.Host)
	}
	return nil
}

// wrote calls the hooks of a request that has been written.
func wrote(req *http.Request) {
	trace := httptrace.ContextClientTrace(req.Context())
	if trace == nil {
		return
	}
	if trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	if trace.WroteHeaders != nil {
		trace.WroteHeaders()
	}
	if trace.WroteRequest != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
}

// received writes req as HTTP/1.1 and reads it back, as a server would. It closes the body.
func received(req *http.Request) (*http.Request, error) {
	var wire bytes.Buffer
	out := req.Clone(context.Background())
	if out.URL.Scheme == "" || out.URL.Host == "" {
		closeBody(req)
		return nil, errors.New("emulator: request without a scheme or host")
	}
	if err := out.Write(&wire); err != nil {
		return nil, fmt.Errorf("emulator: write request: %w", err)
	}
	in, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		return nil, fmt.Errorf("emulator: read request: %w", err)
	}
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, fmt.Errorf("emulator: read request: %w", err)
	}
	in.Body = io.NopCloser(bytes.NewReader(body))
	in.RemoteAddr = "127.0.0.1:1"
	return in, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// answer collects what a handler writes.
type answer struct {
	header http.Header
	sent   http.Header
	status int
	body   bytes.Buffer
}

// Header implements [http.ResponseWriter].
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status, a.sent = status, a.header.Clone()
	}
}

// Write implements [http.ResponseWriter].
func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		if a.header.Get("Content-Type") == "" {
			a.header.Set("Content-Type", http.DetectContentType(p))
		}
		a.WriteHeader(http.StatusOK)
	}
	return a.body.Write(p)
}

func (a *answer) response(req *http.Request) *http.Response {
	a.WriteHeader(http.StatusOK)
	return newResponse(req, a.status, a.sent, a.body.Bytes())
}

// newResponse makes a complete answer.
func newResponse(req *http.Request, status int, header http.Header, body []byte) *http.Response {
	if req.Method == http.MethodHead {
		body = nil
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return &http.Response{
		Status:        strconv.Itoa(status) + " " + http.StatusText(status),
		StatusCode:    status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       req,
	}
}
