package main

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/auth/authtest"
)

const service = "/endsession.v1.SessionService/"

// rpc is a call that is well-formed, and what comes of it for a caller who may make it.
type rpc struct {
	name, message    string
	method, path     string
	body             string // of a POST
	code             codes.Code
	status           int
	withoutRight     codes.Code
	withoutRightHTTP int
}

const noSuch = "invalidations/0190b7a2-0000-7000-8000-000000000000"

// rpcs are all there are. What a caller may not read is not there for it.
var rpcs = []rpc{
	{name: "InvalidateSessions", message: `{"selector": {"user": {"id": "nobody-here"}}, "targets": ["kibana-prod"]}`, method: "POST", path: "/v1/sessions:invalidate", code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
	{name: "GetInvalidation", message: `{"name": "` + noSuch + `"}`, method: "GET", path: "/v1/" + noSuch, code: codes.NotFound, status: 404, withoutRight: codes.NotFound, withoutRightHTTP: 404},
	{name: "ListInvalidations", message: `{}`, method: "GET", path: "/v1/invalidations", code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
	{name: "WatchInvalidation", message: `{"name": "` + noSuch + `"}`, method: "GET", path: "/v1/" + noSuch + ":watch", code: codes.NotFound, status: 404, withoutRight: codes.NotFound, withoutRightHTTP: 404},
	{name: "CancelInvalidation", message: `{"name": "` + noSuch + `"}`, method: "POST", path: "/v1/" + noSuch + ":cancel", body: `{}`, code: codes.NotFound, status: 404, withoutRight: codes.NotFound, withoutRightHTTP: 404},
	{name: "CancelInvalidations", message: `{"label": "job=none"}`, method: "POST", path: "/v1/invalidations:cancel", code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
	{name: "RetryInvalidation", message: `{"name": "` + noSuch + `"}`, method: "POST", path: "/v1/" + noSuch + ":retry", body: `{}`, code: codes.NotFound, status: 404, withoutRight: codes.NotFound, withoutRightHTTP: 404},
	{name: "ListTargets", message: `{}`, method: "GET", path: "/v1/targets", code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
	{name: "CheckTarget", message: `{"target": "kibana-prod"}`, method: "POST", path: "/v1/targets/kibana-prod:check", body: `{}`, code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
	{name: "PauseTarget", message: `{"target": "kibana-prod", "reason": "test"}`, method: "POST", path: "/v1/targets/kibana-prod:pause", body: `{"reason": "test"}`, code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
	{name: "ResumeTarget", message: `{"target": "kibana-prod"}`, method: "POST", path: "/v1/targets/kibana-prod:resume", body: `{}`, code: codes.OK, status: 200, withoutRight: codes.PermissionDenied, withoutRightHTTP: 403},
}

// call makes the call over gRPC.
func (r rpc) call(ctx context.Context, cc *grpc.ClientConn) error {
	method := endsessionv1.File_endsession_v1_service_proto.Services().Get(0).Methods().ByName(protoreflect.Name(r.name))
	message := func(d protoreflect.MessageDescriptor) proto.Message {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			panic(err)
		}
		return mt.New().Interface()
	}
	in, out := message(method.Input()), message(method.Output())
	if err := protojson.Unmarshal([]byte(r.message), in); err != nil {
		return err
	}
	if !method.IsStreamingServer() {
		return cc.Invoke(ctx, service+r.name, in, out)
	}
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, service+r.name)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil {
		return err
	}
	_ = stream.CloseSend()
	for err == nil {
		err = stream.RecvMsg(out)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// request returns the call over REST.
func (r rpc) request() (method, path, body string) {
	if r.method == http.MethodPost && r.body == "" {
		return r.method, r.path, r.message
	}
	return r.method, r.path, r.body
}

// strangers are clients who are nobody to the gateway.
func (g *guarded) strangers(t *testing.T) map[string]client {
	t.Helper()
	other, err := authtest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	bearer := func(token string) client { return client{authorization: []string{"Bearer " + token}} }
	good := g.token(t, authtest.Client{Subject: "svc-hr", Audience: []string{"endsession"}})
	parts := strings.Split(good, ".")
	wrongKey := []byte(g.keys["helpdesk"])
	// Another character that keys are made of.
	if last := &wrongKey[len(wrongKey)-2]; *last == 'A' {
		*last = 'B'
	} else {
		*last = 'A'
	}
	public, err := x509.MarshalPKIXPublicKey(g.provider.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: public}, (&jose.SignerOptions{}).WithHeader("kid", "key-1"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	hmac, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	helpdesk := "Bearer " + g.keys["helpdesk"]
	return map[string]client{
		"no credential":                    {},
		"wrong key":                        bearer(string(wrongKey)),
		"expired key":                      bearer(g.keys["expired"]),
		"expired token":                    bearer(g.token(t, authtest.Client{Subject: "svc-hr", Audience: []string{"endsession"}, Lifetime: -time.Minute})),
		"wrong audience":                   bearer(g.token(t, authtest.Client{Subject: "svc-hr", Audience: []string{"kibana"}})),
		"wrong algorithm":                  bearer(hmac),
		"no algorithm":                     bearer(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".AA"),
		"unknown CA":                       {certificate: certified(t, other, "cert-hr")},
		"unknown CA and a good key":        {certificate: certified(t, other, "cert-hr"), authorization: []string{helpdesk}},
		"good certificate and a wrong key": {certificate: certified(t, g.ca, "cert-hr"), authorization: []string{"Bearer " + string(wrongKey)}},
		"two headers":                      {authorization: []string{helpdesk, helpdesk}},
		"password":                         {authorization: []string{"Basic aGVscGRlc2s6eA=="}},
	}
}

// callers are clients who may do everything.
func (g *guarded) callers(t *testing.T) map[string]client {
	t.Helper()
	return map[string]client{
		"key":                 {authorization: []string{"Bearer " + g.keys["helpdesk"]}},
		"token":               {authorization: []string{"bearer " + g.token(t, authtest.Client{Subject: "svc-hr", Audience: []string{"x", "endsession"}})}},
		"certificate":         {certificate: certified(t, g.ca, "cert-hr")},
		"key and certificate": {authorization: []string{"Bearer " + g.keys["helpdesk"]}, certificate: certified(t, g.ca, "nobody")},
	}
}

// rows counts what is in the journal, except for the audit.
func (g *guarded) rows(t *testing.T) map[string]int {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(g.dir, "endsession.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tables, err := db.QueryContext(t.Context(), `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'audit%'`)
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	counts := map[string]int{}
	for tables.Next() {
		var name string
		if err := tables.Scan(&name); err != nil {
			t.Fatal(err)
		}
		counts[name] = 0
	}
	if err := tables.Err(); err != nil || len(counts) < 3 {
		t.Fatalf("%v, tables %v", err, counts)
	}
	for name := range counts {
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		counts[name] = n
	}
	return counts
}

// asked is how many requests all targets were sent.
func (g *guarded) asked() (n int) {
	for _, r := range g.sent {
		n += len(r.Requests())
	}
	return n
}

// TestAuthenticationMatrix makes every call as everybody, in both ways.
func TestAuthenticationMatrix(t *testing.T) {
	methods := endsessionv1.File_endsession_v1_service_proto.Services().Get(0).Methods()
	for i := range methods.Len() {
		if name := string(methods.Get(i).Name()); !slices.ContainsFunc(rpcs, func(r rpc) bool { return r.name == name }) {
			t.Errorf("the matrix lacks %s", name)
		}
	}
	g := startGuarded(t)
	before := g.rows(t)

	for name, c := range g.strangers(t) {
		ctx, cc := g.grpc(t, c)
		rest := g.http(t, c)
		for _, r := range rpcs {
			st := status.Convert(r.call(ctx, cc))
			if st.Code() != codes.Unauthenticated || st.Message() != uniform || reasonOf(st) != "UNAUTHENTICATED" {
				t.Errorf("%s, %s over gRPC: got %v", name, r.name, st)
			}
			code, header, answer := rest(r.request())
			var told struct {
				Code    codes.Code
				Message string
			}
			if err := json.Unmarshal([]byte(answer), &told); err != nil || code != http.StatusUnauthorized ||
				told.Code != codes.Unauthenticated || told.Message != uniform || !strings.HasPrefix(header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s, %s over REST: got %d %v %s", name, r.name, code, header, answer)
			}
		}
	}
	powerless := client{authorization: []string{"Bearer " + g.keys["nobody"]}}
	ctx, cc := g.grpc(t, powerless)
	rest := g.http(t, powerless)
	for _, r := range rpcs {
		if got := status.Code(r.call(ctx, cc)); got != r.withoutRight {
			t.Errorf("without the right, %s over gRPC: got %v, want %v", r.name, got, r.withoutRight)
		}
		if got, _, answer := rest(r.request()); got != r.withoutRightHTTP {
			t.Errorf("without the right, %s over REST: got %d %s, want %d", r.name, got, answer, r.withoutRightHTTP)
		}
	}
	if n := g.asked(); n != 0 {
		t.Errorf("the targets were sent %d requests for those who may not", n)
	}
	if after := g.rows(t); !maps.Equal(before, after) {
		t.Errorf("the journal had %v, and has %v", before, after)
	}

	for name, c := range g.callers(t) {
		ctx, cc := g.grpc(t, c)
		rest := g.http(t, c)
		for _, r := range rpcs {
			if got := status.Code(r.call(ctx, cc)); got != r.code {
				t.Errorf("%s, %s over gRPC: got %v, want %v", name, r.name, got, r.code)
			}
			if got, _, answer := rest(r.request()); got != r.status {
				t.Errorf("%s, %s over REST: got %d %s, want %d", name, r.name, got, answer, r.status)
			}
		}
	}
	if maps.Equal(before, g.rows(t)) || g.asked() == 0 {
		t.Error("the calls of those who may left nothing behind: what was counted above is not what they do")
	}
	for _, key := range g.keys {
		if secret := key[len(key)-43:]; strings.Contains(g.log.String(), secret) {
			t.Error("the log holds an API key")
		}
	}
	if log := g.log.String(); !strings.Contains(log, `msg="caller refused"`) || !strings.Contains(log, "remote=127.0.0.1:") {
		t.Errorf("refusals are not in the log, or not whence they came:\n%s", log)
	}
}

// uniform is all that a stranger is told.
const uniform = "no valid credential came with the call"

func reasonOf(st *status.Status) string {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// TestCallersAreNamed: the same caller over gRPC and over REST, and in the journal.
func TestCallersAreNamed(t *testing.T) {
	g := startGuarded(t)
	for name, c := range g.callers(t) {
		want := map[string]string{
			"key": "api_key helpdesk", "token": "oidc svc-hr", "certificate": "mtls cert-hr", "key and certificate": "api_key helpdesk",
		}[name]
		ctx, cc := g.grpc(t, c)
		req := &endsessionv1.InvalidateSessionsRequest{
			Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "nobody-here"}}, Targets: []string{"kibana-prod"},
		}
		reply, err := endsessionv1.NewSessionServiceClient(cc).InvalidateSessions(ctx, req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if caller := reply.GetInvalidation().GetCaller(); caller.GetKind()+" "+caller.GetName() != want {
			t.Errorf("%s over gRPC: got %v, want %s", name, caller, want)
		}
		_, _, answer := g.http(t, c)("POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "nobody-here"}}, "targets": ["kibana-prod"]}`)
		kind, short, _ := strings.Cut(want, " ")
		if !strings.Contains(answer, fmt.Sprintf(`"caller":{"kind":%q,"name":%q}`, kind, short)) {
			t.Errorf("%s over REST: got %s, want %s", name, answer, want)
		}
	}
}
