package httpclient_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/httpclient"
)

const secret = "s3cr3t"

// client makes a client of rt, or of the real network if rt is nil.
func client(t *testing.T, base string, rt http.RoundTripper, change func(*httpclient.Options)) *httpclient.Client {
	t.Helper()
	u, err := httpclient.ParseURL(base)
	if err != nil {
		t.Fatal(err)
	}
	o := httpclient.Options{
		BaseURL: u, Header: http.Header{"Authorization": {"Bearer " + secret}}, Deps: adapters.Deps{Transport: rt},
	}
	if change != nil {
		change(&o)
	}
	c, err := httpclient.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// kill is a call that changes something and whose URL and body hold a name; read is one that does not.
var (
	kill = httpclient.Call{Method: http.MethodPost, Path: "/kill/alice", Query: "q=alice", JSON: map[string]string{"user": "alice"}, Mutating: true}
	read = httpclient.Call{Method: http.MethodGet, Path: "/list/alice", Query: "q=alice"}
)

// silent checks that an error shows neither the request nor the answer.
func silent(t *testing.T, err error) {
	t.Helper()
	for e := err; e != nil; e = errors.Unwrap(e) {
		j, _ := json.Marshal(e)
		for _, text := range []string{e.Error(), fmt.Sprintf("%+v", e), fmt.Sprintf("%#v", e), string(j)} {
			for _, bad := range []string{emulator.Canary, secret, "alice", "/kill", "/list"} {
				if strings.Contains(text, bad) {
					t.Errorf("error %q shows %q", text, bad)
				}
			}
		}
	}
}

// ok is a target that answers everything, and counts.
type ok struct{ served atomic.Int32 }

func (o *ok) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	o.served.Add(1)
	emulator.WriteJSON(w, http.StatusOK, map[string]int{"n": 1})
}

func TestStatus(t *testing.T) {
	for _, test := range []struct {
		status     int
		read, kill adapters.Kind
	}{
		{200, 0, 0}, {201, 0, 0}, {204, 0, 0},
		{301, adapters.BadReply, adapters.BadReply}, {302, adapters.BadReply, adapters.BadReply},
		{304, adapters.BadReply, adapters.BadReply}, {307, adapters.BadReply, adapters.BadReply},
		{400, adapters.Rejected, adapters.Rejected}, {401, adapters.Credentials, adapters.Credentials},
		{403, adapters.Denied, adapters.Denied}, {404, adapters.Rejected, adapters.Rejected},
		{405, adapters.Rejected, adapters.Rejected}, {407, adapters.Credentials, adapters.Credentials},
		{408, adapters.Unreachable, adapters.Uncertain}, {409, adapters.Rejected, adapters.Rejected},
		{415, adapters.Rejected, adapters.Rejected}, {422, adapters.Rejected, adapters.Rejected},
		{429, adapters.Busy, adapters.Busy},
		{500, adapters.Unreachable, adapters.Uncertain}, {501, adapters.Unreachable, adapters.Uncertain},
		{502, adapters.Unreachable, adapters.Uncertain}, {503, adapters.Busy, adapters.Uncertain},
		{504, adapters.Unreachable, adapters.Uncertain}, {520, adapters.Unreachable, adapters.Uncertain},
		{600, adapters.Unreachable, adapters.Uncertain},
	} {
		t.Run(fmt.Sprint(test.status), func(t *testing.T) {
			for _, fault := range []emulator.Fault{emulator.Status(test.status), emulator.StatusHTML(test.status), emulator.StatusRetryAfter(test.status, "7")} {
				faults := emulator.NewFaults(emulator.Transport(&ok{}))
				faults.Add(emulator.Rule{Fault: fault})
				c := client(t, "https://target.example", faults, nil)
				for call, want := range map[*httpclient.Call]adapters.Kind{&read: test.read, &kill: test.kill} {
					reply, err := c.Do(t.Context(), *call)
					if got := adapters.KindOf(err); got != want || (err == nil) != (want == 0) {
						t.Errorf("mutating %t: %v of kind %s, want %s", call.Mutating, err, got, want)
					}
					if reply.Status != test.status || reply.Mutating != call.Mutating {
						t.Errorf("reply %d, mutating %t, want %d, %t", reply.Status, reply.Mutating, test.status, call.Mutating)
					}
					var e *adapters.Error
					if errors.As(err, &e) && strings.Contains(fault.Name, "Retry-After") && e.RetryAfter != 7*time.Second {
						t.Errorf("retry after %v, want 7s", e.RetryAfter)
					}
					silent(t, err)
					accepting := *call
					accepting.Accept = []int{599, test.status}
					if reply, err := c.Do(t.Context(), accepting); err != nil || len(reply.Body) == 0 {
						t.Errorf("accepted: %v with %d bytes, want no error and the body", err, len(reply.Body))
					}
				}
			}
		})
	}
}

func TestTransportFailure(t *testing.T) {
	for _, test := range []struct {
		fault      emulator.Fault
		read, kill adapters.Kind
		cause      error
	}{
		{emulator.Refuse(), adapters.Unreachable, adapters.Unreachable, syscall.ECONNREFUSED},
		{emulator.Reset(), adapters.Unreachable, adapters.Uncertain, syscall.ECONNRESET},
		{emulator.Reset().After(), adapters.Unreachable, adapters.Uncertain, syscall.ECONNRESET},
		{emulator.Hang(), adapters.Unreachable, adapters.Uncertain, context.DeadlineExceeded},
		{emulator.Stall(), adapters.Unreachable, adapters.Uncertain, context.DeadlineExceeded},
		{emulator.Cut(), adapters.Unreachable, adapters.Uncertain, io.ErrUnexpectedEOF},
		{emulator.Huge(httpclient.DefaultMaxBody), adapters.BadReply, adapters.BadReply, nil},
	} {
		t.Run(test.fault.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				faults := emulator.NewFaults(emulator.Transport(&ok{}))
				faults.Add(emulator.Rule{Fault: test.fault})
				c := client(t, "https://target.example", faults, nil)
				for call, want := range map[*httpclient.Call]adapters.Kind{&read: test.read, &kill: test.kill} {
					start := time.Now()
					reply, err := c.Do(t.Context(), *call)
					if got := adapters.KindOf(err); got != want || test.cause != nil && !errors.Is(err, test.cause) {
						t.Errorf("mutating %t: %v of kind %s, want %s because of %v", call.Mutating, err, got, want, test.cause)
					}
					if took := time.Since(start); took > httpclient.DefaultTimeout {
						t.Errorf("took %v", took)
					}
					if len(reply.Body) > 0 {
						t.Errorf("a reply of %d bytes beside the error", len(reply.Body))
					}
					silent(t, err)
				}
			})
		})
	}
}

func TestStatusCountsEvenIfTheBodyBreaks(t *testing.T) {
	rt := roundTripper(func(req *http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: http.StatusUnauthorized, Header: http.Header{}, Request: req,
			Body: io.NopCloser(io.MultiReader(strings.NewReader("<html>"), broken{})),
		}, nil
	})
	reply, err := client(t, "https://target.example", rt, nil).Do(t.Context(), kill)
	if adapters.KindOf(err) != adapters.Credentials || reply.Body != nil {
		t.Errorf("%v with body %q, want credentials and no body", err, reply.Body)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestSentIsDecidedByTheHooks(t *testing.T) {
	for name, test := range map[string]struct {
		hooks func(*httptrace.ClientTrace)
		want  adapters.Kind
	}{
		"NoHooksCountAsSending":       {func(*httptrace.ClientTrace) {}, adapters.Uncertain},
		"LookingForAConnectionIsNone": {func(h *httptrace.ClientTrace) { h.GetConn("") }, adapters.Unreachable},
		// HTTP/2 may be interrupted between sending the headers and saying so.
		"TheFirstFieldIsSending": {func(h *httptrace.ClientTrace) { h.GetConn(""); h.WroteHeaderField("Host", nil) }, adapters.Uncertain},
		"TheHeadersAreSending":   {func(h *httptrace.ClientTrace) { h.GetConn(""); h.WroteHeaders() }, adapters.Uncertain},
	} {
		t.Run(name, func(t *testing.T) {
			for _, cause := range []error{
				errors.New(emulator.Canary), &net.OpError{Op: "proxyconnect", Net: "tcp", Err: errors.New(emulator.Canary)},
			} {
				rt := roundTripper(func(r *http.Request) (*http.Response, error) {
					test.hooks(httptrace.ContextClientTrace(r.Context()))
					return nil, cause
				})
				_, err := client(t, "https://target.example", rt, nil).Do(t.Context(), kill)
				if adapters.KindOf(err) != test.want {
					t.Errorf("%v of kind %s, want %s", err, adapters.KindOf(err), test.want)
				}
				silent(t, err)
			}
		})
	}
}

func TestEndlessBodyIsNotReadToItsEnd(t *testing.T) {
	const most = 1 << 10
	read, body := 0, endless{}
	rt := roundTripper(func(req *http.Request) (*http.Response, error) {
		counted := readerFunc(func(p []byte) (int, error) {
			if read += len(p); read > 1<<20 {
				return 0, io.EOF
			}
			return body.Read(p)
		})
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: req, Body: io.NopCloser(counted)}, nil
	})
	c := client(t, "https://target.example", rt, func(o *httpclient.Options) { o.MaxBody = most })
	if _, err := c.Do(t.Context(), kill); adapters.KindOf(err) != adapters.BadReply || read > 2*most {
		t.Errorf("%v after %d bytes, want a bad reply after about %d", err, read, most)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestContext(t *testing.T) {
	lost := errors.New("the lease is lost")
	for _, test := range []struct {
		name  string
		fault emulator.Fault
		end   func(context.Context) (context.Context, context.CancelFunc)
		call  httpclient.Call
		kind  adapters.Kind // 0: the context's own error
		is    error
	}{
		{"CancelledRead", emulator.Hang(), cancelAfter(nil), read, 0, context.Canceled},
		{"CancelledReadWithACause", emulator.Hang(), cancelAfter(lost), read, 0, context.Canceled},
		{"CancelledKill", emulator.Hang(), cancelAfter(nil), kill, adapters.Uncertain, context.Canceled},
		{"CancelledKillWithACause", emulator.Hang(), cancelAfter(lost), kill, adapters.Uncertain, nil},
		{"CancelledBody", emulator.Stall(), cancelAfter(lost), read, 0, context.Canceled},
		{"DeadlineOfRead", emulator.Hang(), deadline, read, adapters.Unreachable, context.DeadlineExceeded},
		{"DeadlineOfKill", emulator.Hang(), deadline, kill, adapters.Uncertain, context.DeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				faults := emulator.NewFaults(emulator.Transport(&ok{}))
				faults.Add(emulator.Rule{Fault: test.fault})
				ctx, cancel := test.end(t.Context())
				defer cancel()
				start := time.Now()
				_, err := client(t, "https://target.example", faults, nil).Do(ctx, test.call)
				if adapters.KindOf(err) != test.kind || test.is != nil && !errors.Is(err, test.is) || time.Since(start) != time.Second {
					t.Errorf("%v of kind %s after %v, want %s, %v after 1s", err, adapters.KindOf(err), time.Since(start), test.kind, test.is)
				}
			})
		})
	}
	t.Run("EndedBefore", func(t *testing.T) {
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		late, cancel := context.WithTimeout(t.Context(), -time.Second)
		defer cancel()
		o := &ok{}
		for _, ctx := range []context.Context{cancelled, late} {
			for _, call := range []httpclient.Call{read, kill} {
				_, err := client(t, "https://target.example", emulator.Transport(o), nil).Do(ctx, call)
				if !errors.Is(err, ctx.Err()) || o.served.Load() > 0 {
					t.Errorf("%v, served %d, want %v and nothing sent", err, o.served.Load(), ctx.Err())
				}
			}
		}
	})
}

func cancelAfter(cause error) func(context.Context) (context.Context, context.CancelFunc) {
	return func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancelCause(ctx)
		timer := time.AfterFunc(time.Second, func() { cancel(cause) })
		return ctx, func() { timer.Stop(); cancel(nil) }
	}
}

func deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Second)
}

func TestFenceAndLimit(t *testing.T) {
	refused := errors.New("refused")
	for _, test := range []struct {
		name               string
		call               httpclient.Call
		limitErr, fenceErr error
		limits, fences     int
		served             int32
		want               error
	}{
		{"Kill", kill, nil, nil, 1, 1, 1, nil},
		{"Read", read, nil, nil, 1, 0, 1, nil},
		{"FenceRefusesAKill", kill, nil, refused, 1, 1, 0, refused},
		{"FenceDoesNotConcernARead", read, nil, refused, 1, 0, 1, nil},
		{"LimitRefusesAKill", kill, refused, nil, 1, 0, 0, refused},
		{"LimitRefusesARead", read, refused, nil, 1, 0, 0, refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := &ok{}
			limits, fences := 0, 0
			c := client(t, "https://target.example", emulator.Transport(o), func(o *httpclient.Options) {
				o.Deps.Limit = func(context.Context) error {
					limits++
					if fences > 0 {
						t.Error("the fence was asked before the limit, which may have to wait")
					}
					return test.limitErr
				}
			})
			ctx := adapters.WithFence(t.Context(), func(context.Context) error {
				fences++
				if o.served.Load() > 0 {
					t.Error("the fence was asked after the request")
				}
				return test.fenceErr
			})
			if _, err := c.Do(ctx, test.call); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if limits != test.limits || fences != test.fences || o.served.Load() != test.served {
				t.Errorf("limit %d, fence %d, served %d, want %d, %d, %d", limits, fences, o.served.Load(), test.limits, test.fences, test.served)
			}
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	o := &ok{}
	recorder := emulator.NewRecorder(http.RoundTripper(redirecting{emulator.Transport(o)}))
	_, err := client(t, "https://target.example", recorder, nil).Do(t.Context(), kill)
	if adapters.KindOf(err) != adapters.BadReply || len(recorder.Requests()) != 1 || o.served.Load() != 0 {
		t.Errorf("%v after %d requests, want a bad reply after 1", err, len(recorder.Requests()))
	}
}

type redirecting struct{ next http.RoundTripper }

func (r redirecting) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != "target.example" {
		return r.next.RoundTrip(req)
	}
	f := emulator.NewFaults(r.next)
	f.Add(emulator.Rule{Fault: emulator.Answer(http.StatusTemporaryRedirect, http.Header{"Location": {"https://elsewhere.example/"}}, "")})
	return f.RoundTrip(req)
}

func TestDecode(t *testing.T) {
	for _, test := range []struct {
		contentType, body string
		ok                bool
	}{
		{"application/json", `{"n":1}`, true},
		{"application/json; charset=utf-8", ` {"n":1} `, true},
		{"application/json-rpc", `{"n":1}`, true},
		{"application/problem+json", `{"n":1}`, true},
		{"text/html", `{"n":1}`, false},
		{"text/plain; charset=utf-8", `{"n":1}`, false},
		{"", `{"n":1}`, false},
		{"application/jsonx", `{"n":1}`, false},
		{"application/json", `<html>` + emulator.Canary, false},
		{"application/json", ``, false},
		{"application/json", ` null `, false},
		{"application/json", `{"n":1`, false},
		{"application/json", `{"n":"` + emulator.Canary + `"}`, false},
		{"application/json", `{"n":1} {"n":2}`, false},
		{"application/json", `[]`, false},
	} {
		var v struct{ N int }
		err := httpclient.Reply{Status: 200, Header: http.Header{"Content-Type": {test.contentType}}, Body: []byte(test.body)}.Decode(&v)
		if test.ok != (err == nil) || !test.ok && adapters.KindOf(err) != adapters.BadReply || test.ok && v.N != 1 {
			t.Errorf("decode %q of %q: %v, %+v, want success %t or a bad reply", test.body, test.contentType, err, v, test.ok)
		}
		silent(t, err)
	}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().UTC()
		for value, want := range map[string]time.Duration{
			"": 0, "0": 0, "30": 30 * time.Second, "3599": 3599 * time.Second, "3600": time.Hour, "86400": time.Hour,
			"99999999999999999999999": time.Hour, "-5": 0, "soon": 0, "1.5": 0, "5 seconds": 0,
			now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
			now.Add(-time.Hour).Format(http.TimeFormat):       0,
			now.Add(48 * time.Hour).Format(http.TimeFormat):   time.Hour,
			now.Add(time.Minute).Format(time.RFC850):          time.Minute,
			now.Add(time.Minute).Format(time.ANSIC):           time.Minute,
		} {
			if got := httpclient.RetryAfter(http.Header{"Retry-After": {value}}); got != want {
				t.Errorf("Retry-After %q: %v, want %v", value, got, want)
			}
		}
	})
}

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://target.example":            "https://target.example",
		"https://Target.Example:443/base//": "https://target.example/base",
		"https://target.example:8443/a%2Fb": "https://target.example:8443/a%2Fb",
		"https://[::1]:443":                 "https://[::1]",
		"http://127.0.0.1:9200/":            "http://127.0.0.1:9200",
		"http://[::1]:80":                   "http://[::1]:80",
		"http://localhost":                  "http://localhost",
		"":                                  "",
		"target.example":                    "",
		"https://":                          "",
		"https://:443":                      "",
		"http://target.example":             "",
		"http://localhost.example":          "",
		"http://127.0.0.1.example":          "",
		"ftp://target.example":              "",
		"https://u:p@target.example":        "",
		"https://@target.example":           "",
		"https://target.example?x=y":        "",
		"https://target.example?":           "",
		"https://target.example#x":          "",
		"https://target.example/a/../b":     "",
		"https://target.example/%2e%2e/b":   "",
		"https://target.example/%zz":        "",
		"https:target.example":              "",
	} {
		u, err := httpclient.ParseURL(raw)
		if got := ""; err == nil {
			got = u.String()
			if got != want {
				t.Errorf("ParseURL(%q) = %q, want %q", raw, got, want)
			}
		} else if want != "" || strings.Contains(err.Error(), "u:p") {
			t.Errorf("ParseURL(%q): %v, want %q", raw, err, want)
		}
	}
}

func TestRequestGoesWhereItSays(t *testing.T) {
	recorder := emulator.NewRecorder(emulator.Transport(&ok{}))
	c := client(t, "https://target.example/base", recorder, nil)
	for _, test := range []struct {
		call httpclient.Call
		want string
	}{
		{httpclient.Call{Path: "/x", Query: "a=b%20c&$filter='x'+eq+'y'"}, "https://target.example/base/x?a=b%20c&$filter='x'+eq+'y'"},
		{httpclient.Call{Path: "/x/a%2Fb%25c"}, "https://target.example/base/x/a%2Fb%25c"},
		{httpclient.Call{Path: ""}, "https://target.example/base"},
		{httpclient.Call{Path: "/x/.."}, ""},
		{httpclient.Call{Path: "/x/%2e%2E"}, ""},
		{httpclient.Call{Path: "/x/a%2F..%2Fb"}, ""},
		{httpclient.Call{Path: "/./x"}, ""},
		{httpclient.Call{Path: "/a b"}, ""},
		{httpclient.Call{Path: "/a?b"}, ""},
		{httpclient.Call{Path: "/a#b"}, ""},
		{httpclient.Call{Path: "/a%zz"}, ""},
		{httpclient.Call{Path: "/x", Query: "name=a#b"}, ""},
		{httpclient.Call{Path: "/x", Query: "name=a b"}, ""},
		{httpclient.Call{Path: "/x", Query: "name=\u00e4"}, ""},
		{httpclient.Call{Path: "/x", Query: "name=a\r\nX: y"}, ""},
		{httpclient.Call{Path: "/x", Header: http.Header{"X-Name": {"a\r\nX: y"}}}, ""},
	} {
		recorder.Reset()
		call := test.call
		call.Method, call.Mutating = http.MethodPost, true
		_, err := c.Do(t.Context(), call)
		sent := recorder.Requests()
		switch {
		case test.want == "" && (adapters.KindOf(err) != adapters.Rejected || len(sent) > 0):
			t.Errorf("%+v: %v after %d requests, want rejected and nothing sent", test.call, err, len(sent))
		case test.want != "" && (err != nil || len(sent) != 1 || sent[0].URL != test.want):
			t.Errorf("%+v: %v, sent %+v, want %s", test.call, err, sent, test.want)
		}
	}
	elsewhere := client(t, "https://target.example", recorder, nil)
	for _, path := range []string{"@evil.example/x", ".evil.example/x", ":444/x"} {
		recorder.Reset()
		if _, err := elsewhere.Do(t.Context(), httpclient.Call{Method: http.MethodGet, Path: path}); adapters.KindOf(err) != adapters.Rejected || len(recorder.Requests()) > 0 {
			t.Errorf("path %s: %v after %d requests, want rejected and nothing sent", path, err, len(recorder.Requests()))
		}
	}
}

func TestHeadersAndBody(t *testing.T) {
	recorder := emulator.NewRecorder(emulator.Transport(&ok{}))
	c := client(t, "https://target.example", recorder, nil)
	if _, err := c.Do(t.Context(), httpclient.Call{Method: http.MethodPost, Path: "/x", JSON: map[string]string{"user": `<a> & "b" ü`}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), httpclient.Call{
		Method: http.MethodPost, Path: "/x", JSON: 1, ContentType: "application/json-rpc", Header: http.Header{"Accept": {"*/*"}, "Authorization": {"Basic x"}},
	}); err != nil {
		t.Fatal(err)
	}
	got := recorder.Requests()
	if string(got[0].Body) != `{"user":"<a> & \"b\" ü"}` {
		t.Errorf("body %s", got[0].Body)
	}
	for i, want := range []map[string]string{
		{"Content-Type": "application/json", "Accept": "application/json", "Authorization": "Bearer " + secret},
		{"Content-Type": "application/json-rpc", "Accept": "*/*", "Authorization": "Basic x"},
	} {
		for k, v := range want {
			if got[i].Header.Get(k) != v {
				t.Errorf("request %d: %s %q, want %q", i, k, got[i].Header.Get(k), v)
			}
		}
	}
	_, err := c.Do(t.Context(), httpclient.Call{Method: http.MethodPost, Path: "/x", JSON: func() {}, Mutating: true})
	if adapters.KindOf(err) != adapters.Rejected || len(recorder.Requests()) != 2 {
		t.Errorf("a body that is no JSON: %v, want rejected and nothing sent", err)
	}
}

// The rest runs over real connections.

func TestTrust(t *testing.T) {
	dir := t.TempDir()
	url, ca, stop, err := emulator.ServeTLS(&ok{})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	_, otherCA, stopOther, err := emulator.ServeTLS(&ok{})
	if err != nil {
		t.Fatal(err)
	}
	stopOther()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile, otherFile, emptyFile := write("ca.pem", ca), write("other.pem", otherCA), write("empty.pem", []byte("nothing"))
	pin := leafPin(t, url)
	colons := ""
	for i := 0; i < len(pin); i += 2 {
		colons += ":" + strings.ToUpper(pin[i:i+2])
	}
	colons = colons[1:]
	otherPin := strings.Repeat("ab", sha256.Size)
	block, _ := pem.Decode(ca)
	caPin := fmt.Sprintf("%x", sha256.Sum256(block.Bytes))
	byName := strings.Replace(url, "127.0.0.1", "localhost", 1)
	notNamed := forward(t, "127.0.0.2:0", strings.TrimPrefix(url, "https://"))

	for _, test := range []struct {
		name    string
		url     string
		tls     httpclient.TLSConfig
		trusted bool
	}{
		{"SystemRootsDoNotKnowIt", url, httpclient.TLSConfig{}, false},
		{"Authority", url, httpclient.TLSConfig{CAFile: caFile}, true},
		{"AuthorityByName", byName, httpclient.TLSConfig{CAFile: caFile}, true},
		{"AuthorityAndAnotherName", notNamed, httpclient.TLSConfig{CAFile: caFile}, false},
		{"OtherAuthority", url, httpclient.TLSConfig{CAFile: otherFile}, false},
		{"Pin", url, httpclient.TLSConfig{PinSHA256: pin}, true},
		{"PinWithColons", url, httpclient.TLSConfig{PinSHA256: colons}, true},
		{"PinReplacesTheName", notNamed, httpclient.TLSConfig{PinSHA256: pin}, true},
		{"OtherPin", url, httpclient.TLSConfig{PinSHA256: otherPin}, false},
		{"PinOfTheAuthorityIsNotOfTheTarget", url, httpclient.TLSConfig{PinSHA256: caPin}, false},
		{"AuthorityAndPin", url, httpclient.TLSConfig{CAFile: caFile, PinSHA256: pin}, true},
		{"AuthorityAndOtherPin", url, httpclient.TLSConfig{CAFile: caFile, PinSHA256: otherPin}, false},
		{"OtherAuthorityAndPin", url, httpclient.TLSConfig{CAFile: otherFile, PinSHA256: pin}, false},
		{"AuthorityAndPinAndAnotherName", notNamed, httpclient.TLSConfig{CAFile: caFile, PinSHA256: pin}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.url == "" {
				t.Skip("this system has a single loopback address")
			}
			c := client(t, test.url, nil, func(o *httpclient.Options) { o.TLS = test.tls })
			for range 2 { // a resumed session is checked too
				_, err := c.Do(t.Context(), kill)
				c.CloseIdleConnections()
				if test.trusted && err != nil {
					t.Errorf("%v, want success", err)
				}
				if !test.trusted && (adapters.KindOf(err) != adapters.Unreachable || !httpclient.IsCertificate(err)) {
					t.Errorf("%v of kind %s, want unreachable for the certificate", err, adapters.KindOf(err))
				}
				silent(t, err)
			}
		})
	}
	for name, conf := range map[string]httpclient.TLSConfig{
		"missing file": {CAFile: filepath.Join(dir, "none.pem")}, "no certificate": {CAFile: emptyFile},
		"pin not hexadecimal": {PinSHA256: strings.Repeat("xy", sha256.Size)}, "pin too short": {PinSHA256: pin[2:]},
		"pin too short, good file": {CAFile: caFile, PinSHA256: pin[2:]},
	} {
		u, _ := httpclient.ParseURL(url)
		if _, err := httpclient.New(httpclient.Options{BaseURL: u, TLS: conf}); err == nil {
			t.Errorf("%s: the client was made, want an error", name)
		}
	}
}

// forward makes a TLS server reachable at an address that its certificate does not name; "" where there is none.
func forward(t *testing.T, from, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		return ""
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				return
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		}
	}()
	return "https://" + l.Addr().String()
}

func leafPin(t *testing.T, url string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // reads the certificate only
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return fmt.Sprintf("%x", sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw))
}

func TestGzipBombIsBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		zeros := make([]byte, 1<<20)
		for range 64 {
			if _, err := z.Write(zeros); err != nil {
				return
			}
		}
		_ = z.Close()
	}))
	defer server.Close()
	c := client(t, server.URL, nil, func(o *httpclient.Options) { o.MaxBody = 1 << 20 })
	reply, err := c.Do(t.Context(), read)
	if adapters.KindOf(err) != adapters.BadReply || len(reply.Body) > 0 {
		t.Errorf("%v with %d bytes, want a bad reply", err, len(reply.Body))
	}
}

// A server that takes the request and breaks may have acted; one that cannot be reached has not.
func TestSentOrNotOverRealConnections(t *testing.T) {
	abort := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	h2, ca, stop, err := emulator.ServeTLS(abort)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	h1 := httptest.NewServer(abort)
	defer h1.Close()
	closed := httptest.NewServer(abort)
	closed.Close()
	long := strings.Repeat("x", 64<<10)

	for _, test := range []struct {
		name, url  string
		read, kill adapters.Kind
	}{
		{"HTTP1", h1.URL, adapters.Unreachable, adapters.Uncertain},
		{"HTTP2", h2, adapters.Unreachable, adapters.Uncertain},
		{"Refused", closed.URL, adapters.Unreachable, adapters.Unreachable},
		{"PlainTextWhereTLSIsExpected", strings.Replace(h1.URL, "http", "https", 1), adapters.Unreachable, adapters.Unreachable},
		{"MalformedStatus", raw(t, "HTTP/1.1 "+emulator.Canary+"\r\n\r\n"), adapters.Unreachable, adapters.Uncertain},
		{"MalformedAnswer", raw(t, emulator.Canary+"\r\n\r\n"), adapters.Unreachable, adapters.Uncertain},
		{"MalformedHeader", raw(t, "HTTP/1.1 200 OK\r\n"+emulator.Canary+"\r\n\r\n"), adapters.Unreachable, adapters.Uncertain},
		{"LongHeader", raw(t, "HTTP/1.1 200 OK\r\nX: "+emulator.Canary+strings.Repeat(long, 8)+"\r\n\r\n"), adapters.Unreachable, adapters.Uncertain},
		{"ShortBody", raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"+emulator.Canary), adapters.Unreachable, adapters.Uncertain},
		{"BadGzip", raw(t, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n"+emulator.Canary+"123456"), adapters.Unreachable, adapters.Uncertain},
	} {
		t.Run(test.name, func(t *testing.T) {
			for call, want := range map[*httpclient.Call]adapters.Kind{&read: test.read, &kill: test.kill} {
				c := client(t, test.url, nil, func(o *httpclient.Options) { o.TLS.CAFile = caFile })
				_, err := c.Do(t.Context(), *call)
				if got := adapters.KindOf(err); got != want {
					t.Errorf("mutating %t: %v of kind %s, want %s", call.Mutating, err, got, want)
				}
				silent(t, err)
			}
		})
	}
}

// raw answers every request with the same bytes and closes the connection.
func raw(t *testing.T, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
					_, _ = io.WriteString(conn, answer)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

func TestTimeoutOverARealConnection(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	c := client(t, server.URL, nil, func(o *httpclient.Options) { o.Timeout = 50 * time.Millisecond })
	for call, want := range map[*httpclient.Call]adapters.Kind{&read: adapters.Unreachable, &kill: adapters.Uncertain} {
		if _, err := c.Do(t.Context(), *call); adapters.KindOf(err) != want || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("mutating %t: %v, want %s for the deadline", call.Mutating, err, want)
		}
	}
}
