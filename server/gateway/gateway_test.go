package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/gateway"
)

// recorder is a connection to a gRPC server that notes what it is asked.
type recorder struct {
	method   string
	asked    proto.Message
	metadata metadata.MD
}

func (r *recorder) Invoke(ctx context.Context, method string, args, _ any, _ ...grpc.CallOption) error {
	r.method, r.asked = method, args.(proto.Message)
	r.metadata, _ = metadata.FromOutgoingContext(ctx)
	return nil
}

func (r *recorder) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, io.ErrUnexpectedEOF
}

func handler(t testing.TB, conn grpc.ClientConnInterface, loopback bool) http.Handler {
	t.Helper()
	h, err := gateway.New(conn, loopback)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func post(h http.Handler, path string, body []byte) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, "http://localhost"+path, bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// TestHeaders is about what of a request's headers becomes metadata.
func TestHeaders(t *testing.T) {
	conn := &recorder{}
	req := httptest.NewRequest(http.MethodGet, "http://localhost/v1/targets", nil)
	for key, value := range map[string]string{
		"Authorization": "Bearer x", "Traceparent": "00-1-2-01", "Tracestate": "a=b", "Cookie": "c=d",
		"Grpc-Metadata-Authorization": "Bearer y", "Grpc-Metadata-X": "z", "X-Endsession-Caller": "root", "X-Bin": "AA==",
		"Endsession-Client-Address": "192.0.2.7", "Endsession-Client-Certificate-Bin": "AA==",
		"Grpc-Metadata-Endsession-Client-Address": "192.0.2.7", "Grpc-Metadata-Endsession-Client-Certificate-Bin": "AA==",
		"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "bank.example", "Forwarded": "for=192.0.2.7",
	} {
		req.Header.Set(key, value)
	}
	req.RemoteAddr = "127.0.0.1:4711"
	w := httptest.NewRecorder()
	handler(t, conn, true).ServeHTTP(w, req)
	if w.Code != http.StatusOK {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	want := map[string]string{
		"authorization": "Bearer x", "traceparent": "00-1-2-01", "tracestate": "a=b",
		"x-forwarded-for": "127.0.0.1", "x-forwarded-host": "localhost", "endsession-client-address": "127.0.0.1:4711",
	}
	for key, values := range conn.metadata {
		if len(values) != 1 || want[key] != values[0] {
			t.Errorf("got metadata %s: %q, want %q", key, values, want[key])
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("metadata lacks %v", want)
	}
}

// TestLoopback is about listeners that the network reaches: there the host may be any.
func TestLoopback(t *testing.T) {
	for _, test := range []struct {
		host     string
		loopback bool
		want     int
	}{
		{"localhost", true, http.StatusOK},
		{"LOCALHOST.:8080", true, http.StatusOK},
		{"endsession.localhost:8080", true, http.StatusOK},
		{"127.0.0.1:8080", true, http.StatusOK},
		{"127.7.7.7", true, http.StatusOK},
		{"[::1]", true, http.StatusOK},
		{"[::ffff:127.0.0.1]:8080", true, http.StatusOK},
		{"", true, http.StatusForbidden},
		{"10.0.0.1", true, http.StatusForbidden},
		{"notlocalhost", true, http.StatusForbidden},
		{"localhost.evil.example", true, http.StatusForbidden},
		{"2130706433", true, http.StatusForbidden},
		{"endsession.example", true, http.StatusForbidden},
		{"endsession.example", false, http.StatusOK},
	} {
		req := httptest.NewRequest(http.MethodGet, "http://localhost/v1/targets", nil)
		req.Host = test.host
		w := httptest.NewRecorder()
		handler(t, &recorder{}, test.loopback).ServeHTTP(w, req)
		if w.Code != test.want {
			t.Errorf("host %q, loopback %v: got %d, want %d", test.host, test.loopback, w.Code, test.want)
		}
	}
}

// TestBodyThatIsNoText is about bytes that encoding/json would mend in silence.
func TestBodyThatIsNoText(t *testing.T) {
	conn := &recorder{}
	w := post(handler(t, conn, true), "/v1/sessions:invalidate", []byte("{\"selector\": {\"user\": {\"id\": \"al\xffice\"}}}"))
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "UTF-8") || conn.asked != nil {
		t.Errorf("got %d %s, asked %v", w.Code, w.Body, conn.asked)
	}
}

// FuzzBody holds that a body which is let through says neither more nor less than the request it becomes: every value
// of the body is in the message, nothing else is, and nothing in it was null, empty, or said twice.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		`{"selector": {"user": {"id": "alice"}}}`,
		`{"selector": {"user": {"id": "alice", "email": "alice@corp.example", "attributes": {"uid": "a17"}, "targetUsernames": {"storage": {"usernames": ["uid=a17", "x"]}}}, "provider": {"type": "saml", "name": "okta"}, "group": "vpn"}}`,
		`{"selector": {"all": true}, "confirmBroad": true, "confirm_broad": true}`,
		`{"selector": {"user": {"id": "alice"}}, "reason": ""}`,
		`{"selector": {"sessions": [{"target": "apm", "device": "d", "id": "1"}, {"target": "apm", "id": "2"}]}}`,
		`{"selector": {"user": null}, "labels": {}, "targets": [], "reason": ""}`,
		`{"selector": {"user": {"id": "alice", "\u0069d": "bob"}}} {}`,
		`{"waitTimeout": "1.5s", "retryFor": "60s", "priority": "PRIORITY_BULK", "requestId": "x", "validateOnly": false}`,
		`{"priority": 2, "targets": ["a", "b"], "labels": {"a_b": "c", "aB": "d"}, "unknown": [[{"x": [null]}]]}`,
		`{"selector": {"user": {"id": "\ud800"}}}`, "\ufeff{}", `[]`, ``, ` `, `null`, `{"a":`, strings.Repeat("[", 40),
	} {
		f.Add([]byte(seed))
	}
	conn := &recorder{}
	h := handler(f, conn, true)
	f.Fuzz(func(t *testing.T, body []byte) {
		conn.asked = nil
		w := post(h, "/v1/sessions:invalidate", body)
		if conn.asked == nil {
			var st statuspb.Status
			if w.Code < 400 || protojson.Unmarshal(w.Body.Bytes(), &st) != nil {
				t.Fatalf("body %q: neither passed on nor refused: %d %s", body, w.Code, w.Body)
			}
			return
		}
		if len(body) == 0 {
			return
		}
		if !json.Valid(body) {
			t.Fatalf("body %q was let through and is not JSON", body)
		}
		said, wrong := leavesOfJSON(t, body)
		if wrong != "" {
			t.Fatalf("body %q was let through with %s", body, wrong)
		}
		if read := leavesOf(conn.asked.ProtoReflect()); read != said {
			t.Fatalf("body %q has %d values, the request has %d: %v", body, said, read, conn.asked)
		}
	})
}

// leavesOfJSON counts the values in a JSON text, by its tokens. The priority is not counted: it may be unspecified, and
// then a message does not tell that it was given.
func leavesOfJSON(t *testing.T, text []byte) (n int, wrong string) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var walk func(depth int, key string)
	walk = func(depth int, key string) {
		token, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch token {
		case nil:
			wrong = "null"
		case "":
			wrong = "an empty text"
		case json.Delim('{'), json.Delim('['):
			empty, object := true, token == json.Delim('{')
			for ; dec.More(); empty = false {
				key := ""
				if object {
					k, err := dec.Token()
					if err != nil {
						t.Fatal(err)
					}
					key = k.(string)
				}
				walk(depth+1, key)
			}
			if _, err := dec.Token(); err != nil {
				t.Fatal(err)
			}
			if empty && depth > 0 {
				wrong = "something empty"
			}
		default:
			if depth != 1 || key != "priority" {
				n++
			}
		}
	}
	walk(0, "")
	return n, wrong
}

// leavesOf counts the values in a message.
func leavesOf(m protoreflect.Message) (n int) {
	if m.Descriptor().FullName() == "google.protobuf.Duration" {
		return 1
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				if fd.MapValue().Message() != nil {
					n += leavesOf(v.Message())
				} else {
					n++
				}
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				if fd.Message() != nil {
					n += leavesOf(v.List().Get(i).Message())
				} else {
					n++
				}
			}
		case fd.Message() != nil:
			n += leavesOf(v.Message())
		case fd.Name() == "priority":
		default:
			n++
		}
		return true
	})
	return n
}

// FuzzPath holds that no path but its own leads to the call that ends sessions.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/v1/sessions:invalidate", "/v1/sessions%3Ainvalidate", "/v1/./sessions:invalidate", "//v1/sessions:invalidate",
		"/v1/sessions:invalidate/", "/v1/targets/x:pause", "/v1/invalidations:cancel", "/v1/x/../sessions:invalidate",
		"/v1/sessions:invalidate?x", "/V1/sessions:invalidate", "/v1/invalidations/x:cancel", "/",
	} {
		f.Add(seed)
	}
	conn := &recorder{}
	h := handler(f, conn, true)
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path) // as net/http reads a request line
		if err != nil {
			t.Skip()
		}
		req := httptest.NewRequest(http.MethodPost, "http://localhost/", strings.NewReader(`{"selector": {"all": true}, "confirmBroad": true}`))
		req.URL = u
		req.Header.Set("Content-Type", "application/json")
		conn.asked = nil
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if _, ok := conn.asked.(*endsessionv1.InvalidateSessionsRequest); ok && path != "/v1/sessions:invalidate" {
			t.Errorf("path %q led to the call", path)
		}
		if w.Code >= 300 && w.Code < 400 {
			t.Errorf("path %q is redirected", path)
		}
	})
}

// TestMethodNotAllowed: the answer says which method the path has.
func TestMethodNotAllowed(t *testing.T) {
	h := handler(t, &recorder{}, true)
	for path, allow := range map[string]string{
		"/v1/targets":              "GET",
		"/v1/targets/apm:check":    "POST",
		"/v1/sessions:invalidate":  "POST",
		"/v1/invalidations:cancel": "POST",
		"/v1/invalidations/0190b7a2-0000-7000-8000-000000000000:watch": "GET",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodDelete, "http://localhost"+path, nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != allow {
			t.Errorf("DELETE %s: %d, Allow %q; want 405, %q", path, w.Code, w.Header().Get("Allow"), allow)
		}
	}
}
