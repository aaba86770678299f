package endsessionv1_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// calls is a connection that remembers the last call and answers nothing.
type calls struct {
	method string
	req    proto.Message
}

func (c *calls) Invoke(_ context.Context, method string, req, _ any, _ ...grpc.CallOption) error {
	c.method, c.req = method, proto.CloneOf(req.(proto.Message))
	return nil
}

func (c *calls) NewStream(
	ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption,
) (grpc.ClientStream, error) {
	c.method = method
	return &stream{ctx: ctx, calls: c}, nil
}

// stream is one that fails once the request has been sent.
type stream struct {
	grpc.ClientStream
	ctx   context.Context
	calls *calls
}

func (s *stream) SendMsg(req any) error {
	s.calls.req = proto.CloneOf(req.(proto.Message))
	return nil
}

func (s *stream) CloseSend() error { return nil }

func (s *stream) Header() (metadata.MD, error) { return nil, nil }

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) RecvMsg(any) error { return status.Error(codes.Unavailable, "no more") }

// TestRoutes holds the REST bindings against the table that callers know.
func TestRoutes(t *testing.T) {
	const id = someInvalidation
	tests := []struct {
		method, path, body string
		rpc                string
		want               string // the request, as JSON
	}{
		{
			"POST", "/v1/sessions:invalidate", `{"selector":{"user":{"id":"alice"}}}`,
			"InvalidateSessions", `{"selector":{"user":{"id":"alice"}}}`,
		},
		{
			"GET", "/v1/" + id + "?waitTimeout=5s", "",
			"GetInvalidation", `{"name":"` + id + `","waitTimeout":"5s"}`,
		},
		{
			"GET", "/v1/invalidations?state=INVALIDATION_STATE_FAILED&label=a%3Db&label=c%3Dd&userId=alice&pageSize=2" +
				"&createTimeFrom=2026-01-02T03:04:05Z", "",
			"ListInvalidations", `{"state":"INVALIDATION_STATE_FAILED","label":["a=b","c=d"],"userId":"alice","pageSize":2,` +
				`"createTimeFrom":"2026-01-02T03:04:05Z"}`,
		},
		{"GET", "/v1/" + id + ":watch", "", "WatchInvalidation", `{"name":"` + id + `"}`},
		{"POST", "/v1/" + id + ":cancel", "{}", "CancelInvalidation", `{"name":"` + id + `"}`},
		{"POST", "/v1/" + id + ":cancel", "", "CancelInvalidation", `{"name":"` + id + `"}`},
		{"POST", "/v1/invalidations:cancel", `{"label":"a=b"}`, "CancelInvalidations", `{"label":"a=b"}`},
		{
			"POST", "/v1/" + id + ":retry", `{"confirmBroad":true}`,
			"RetryInvalidation", `{"name":"` + id + `","confirmBroad":true}`,
		},
		{"GET", "/v1/targets", "", "ListTargets", `{}`},
		{"POST", "/v1/targets/apm:check", "{}", "CheckTarget", `{"target":"apm"}`},
		{"POST", "/v1/targets/apm:pause", `{"reason":"upgrade"}`, "PauseTarget", `{"target":"apm","reason":"upgrade"}`},
		{"POST", "/v1/targets/apm:resume", "{}", "ResumeTarget", `{"target":"apm"}`},
	}
	reached := map[string]bool{}
	for _, test := range tests {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			conn := &calls{}
			mux := runtime.NewServeMux()
			err := endsessionv1.RegisterSessionServiceHandlerClient(
				t.Context(), mux, endsessionv1.NewSessionServiceClient(conn))
			if err != nil {
				t.Fatal(err)
			}
			reply := httptest.NewRecorder()
			mux.ServeHTTP(reply, httptest.NewRequest(test.method, test.path, strings.NewReader(test.body)))

			rpc := strings.TrimPrefix(conn.method, "/endsession.v1.SessionService/")
			if rpc != test.rpc {
				t.Fatalf("got RPC %q, status %d, %s\nwant %q", rpc, reply.Code, reply.Body, test.rpc)
			}
			reached[rpc] = true
			want := conn.req.ProtoReflect().New().Interface()
			if err := protojson.Unmarshal([]byte(test.want), want); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(conn.req, want) {
				t.Errorf("got request %v\nwant %v", conn.req, want)
			}
		})
	}
	for _, m := range endsessionv1.SessionService_ServiceDesc.Methods {
		if !reached[m.MethodName] {
			t.Errorf("%s has no route here", m.MethodName)
		}
	}
	for _, s := range endsessionv1.SessionService_ServiceDesc.Streams {
		if !reached[s.StreamName] {
			t.Errorf("%s has no route here", s.StreamName)
		}
	}

	t.Run("OtherMethod", func(t *testing.T) {
		conn := &calls{}
		mux := runtime.NewServeMux()
		err := endsessionv1.RegisterSessionServiceHandlerClient(
			t.Context(), mux, endsessionv1.NewSessionServiceClient(conn))
		if err != nil {
			t.Fatal(err)
		}
		reply := httptest.NewRecorder()
		mux.ServeHTTP(reply, httptest.NewRequest(http.MethodGet, "/v1/sessions:invalidate", nil))
		if conn.method != "" || reply.Code < 400 {
			t.Errorf("got RPC %q, status %d\nwant a refusal", conn.method, reply.Code)
		}
	})
}
