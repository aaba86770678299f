package server_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
)

// apiCase is one request and what must come of it, over gRPC and over REST. The files under testdata/api hold them.
type apiCase struct {
	Name string `yaml:"name"`
	// RPC is the method's name.
	RPC string `yaml:"rpc"`
	// Message is the request as JSON: the gRPC message and, for a POST whose body is not given, the body.
	Message string `yaml:"message"`
	// Hex is the gRPC message as bytes, instead of Message.
	Hex string `yaml:"hex"`
	// Rest is the HTTP method and the path, "POST /v1/sessions:invalidate" by default.
	Rest string `yaml:"rest"`
	// Body is the HTTP body, if it is not Message.
	Body *string `yaml:"body"`
	// Headers are added to the HTTP request; "Host" is the host. An empty value removes one.
	Headers map[string]string `yaml:"headers"`
	// Metadata is added to the gRPC request.
	Metadata map[string]string `yaml:"metadata"`
	// Fill replaces every @FILL@ in Message, Body and Rest.
	Fill struct {
		With  string `yaml:"with"`
		Times int    `yaml:"times"`
	} `yaml:"fill"`
	// Only is "grpc" or "rest" for what cannot be said the other way.
	Only string `yaml:"only"`
	// Engine is the error with which the engine answers; none if it is absent.
	Engine *struct {
		Code       string        `yaml:"code"`
		Reason     string        `yaml:"reason"`
		Message    string        `yaml:"message"`
		Field      string        `yaml:"field"`
		ID         string        `yaml:"id"`
		RetryDelay time.Duration `yaml:"retry_delay"`
		Cause      string        `yaml:"cause"`
	} `yaml:"engine"`
	Want struct {
		Code string `yaml:"code"`
		HTTP int    `yaml:"http"`
		// Reason is the ErrorInfo's.
		Reason string `yaml:"reason"`
		// Fields are those of the BadRequest; JSONFields how REST spells them, if otherwise.
		Fields     []string `yaml:"fields"`
		JSONFields []string `yaml:"json_fields"`
		// Metadata is the ErrorInfo's.
		Metadata map[string]string `yaml:"metadata"`
		// RetryAfter is the RetryInfo's delay in seconds.
		RetryAfter int `yaml:"retry_after"`
		// Message is the status's message; not compared if it is empty.
		Message string `yaml:"message"`
		// Reply is the whole reply as JSON, for a stream all of them, one a line; not compared if it is empty.
		Reply string `yaml:"reply"`
		// Call is what the engine was asked; a case that wants an error and has none must not reach the engine.
		Call string `yaml:"call"`
	} `yaml:"want"`
}

func TestAPI(t *testing.T) {
	files, err := filepath.Glob("testdata/api/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	answered := map[string]bool{} // by RPC and transport
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dec := yaml.NewDecoder(bytes.NewReader(text))
			dec.KnownFields(true)
			var cases []apiCase
			if err := dec.Decode(&cases); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			engine := &fakeEngine{}
			s := start(t, engine)
			for _, c := range cases {
				c.fill()
				if c.Want.Code == "OK" {
					answered[c.RPC+" over gRPC"] = answered[c.RPC+" over gRPC"] || c.Only != "rest"
					answered[c.RPC+" over REST"] = answered[c.RPC+" over REST"] || c.Only != "grpc"
				}
				if c.Only != "rest" {
					t.Run(c.Name+"/grpc", func(t *testing.T) { engine.reset(c.engineError()); c.overGRPC(t, s, engine) })
				}
				if c.Only != "grpc" && c.Hex == "" || c.Only == "rest" || c.Hex != "" && c.Message != "" {
					t.Run(c.Name+"/rest", func(t *testing.T) { engine.reset(c.engineError()); c.overREST(t, s, engine) })
				}
			}
		})
	}
	methods := endsessionv1.File_endsession_v1_service_proto.Services().Get(0).Methods()
	for i := range methods.Len() {
		for _, way := range []string{" over gRPC", " over REST"} {
			if rpc := string(methods.Get(i).Name()) + way; !answered[rpc] {
				t.Errorf("no case shows an answer of %s", rpc)
			}
		}
	}
}

func (c *apiCase) fill() {
	fill := func(s string) string {
		return strings.ReplaceAll(s, "@FILL@", strings.Repeat(c.Fill.With, c.Fill.Times))
	}
	c.Message, c.Rest = fill(c.Message), fill(c.Rest)
	if c.Body != nil {
		c.Body = new(fill(*c.Body))
	}
}

var callErrorCodes = map[string]invalidation.CallErrorCode{
	"InvalidArgument": invalidation.InvalidArgument, "NotFound": invalidation.NotFound,
	"AlreadyExists": invalidation.AlreadyExists, "FailedPrecondition": invalidation.FailedPrecondition,
	"Unavailable": invalidation.Unavailable, "AcceptanceUnknown": invalidation.AcceptanceUnknown,
	"Exhausted": invalidation.Exhausted, "Denied": invalidation.Denied,
}

func (c *apiCase) engineError() error {
	e := c.Engine
	switch {
	case e == nil:
		return nil
	case e.Code == "":
		return fmt.Errorf("%s", e.Cause)
	}
	call := &invalidation.CallError{
		Code: callErrorCodes[e.Code], Reason: adapters.Reason(e.Reason), Message: e.Message, Field: e.Field, ID: e.ID,
		RetryDelay: e.RetryDelay,
	}
	if e.Cause != "" {
		call.Err = fmt.Errorf("%s", e.Cause)
	}
	return call
}

func (c *apiCase) method(t *testing.T) protoreflect.MethodDescriptor {
	t.Helper()
	md := endsessionv1.File_endsession_v1_service_proto.Services().Get(0).Methods().ByName(protoreflect.Name(c.RPC))
	if md == nil {
		t.Fatalf("case %q: no RPC %q", c.Name, c.RPC)
	}
	return md
}

func newMessage(t *testing.T, md protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = rawCodec{}

func (c *apiCase) overGRPC(t *testing.T, s *served, engine *fakeEngine) {
	md := c.method(t)
	var request []byte
	if c.Hex != "" {
		var err error
		if request, err = hex.DecodeString(strings.ReplaceAll(c.Hex, " ", "")); err != nil {
			t.Fatal(err)
		}
	} else {
		m := newMessage(t, md.Input())
		if err := protojson.Unmarshal([]byte(c.Message), m); err != nil {
			t.Fatalf("message %s cannot be sent: %v", c.Message, err)
		}
		var err error
		if request, err = (proto.MarshalOptions{AllowPartial: true}).Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	ctx := metadata.NewOutgoingContext(t.Context(), metadata.New(c.Metadata))
	full := "/endsession.v1.SessionService/" + c.RPC
	var replies []string
	read := func(raw []byte) {
		m := newMessage(t, md.Output())
		if err := proto.Unmarshal(raw, m); err != nil {
			t.Fatal(err)
		}
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		replies = append(replies, string(b))
	}
	var err error
	if md.IsStreamingServer() {
		var stream grpc.ClientStream
		stream, err = s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, full, grpc.ForceCodecV2(rawCodec{}))
		if err == nil {
			err = stream.SendMsg(&request)
		}
		if err == nil {
			err = stream.CloseSend()
		}
		for err == nil {
			var raw []byte
			if err = stream.RecvMsg(&raw); err == nil {
				read(raw)
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
	} else {
		var raw []byte
		if err = s.conn.Invoke(ctx, full, &request, &raw, grpc.ForceCodecV2(rawCodec{})); err == nil {
			read(raw)
		}
	}
	st := status.Convert(err)
	c.compare(t, st, c.Want.Fields, strings.Join(replies, "\n"), engine)
}

func (c *apiCase) overREST(t *testing.T, s *served, engine *fakeEngine) {
	method, target, ok := strings.Cut(c.Rest, " ")
	if !ok {
		method, target = http.MethodPost, "/v1/sessions:invalidate"
	}
	body := ""
	switch {
	case c.Body != nil:
		body = *c.Body
	case c.Rest == "":
		body = c.Message
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://localhost", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	// As it is, for paths that a well-behaved client would mend.
	req.URL.Opaque = target
	if path, query, ok := strings.Cut(target, "?"); ok {
		req.URL.Opaque, req.URL.RawQuery, req.URL.ForceQuery = path, query, query == ""
	}
	if strings.HasPrefix(req.URL.Opaque, "//") {
		req.URL.Opaque = "http://localhost" + req.URL.Opaque
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	for key, value := range c.Headers {
		switch {
		case key == "Host":
			req.Host = value
		case value == "":
			req.Header.Del(key)
		default:
			req.Header.Set(key, value)
		}
	}
	resp, err := s.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != c.Want.HTTP {
		t.Errorf("%s %s\nbody %.300s\n got HTTP %d: %.500s\nwant HTTP %d", method, target, body, resp.StatusCode, answer, c.Want.HTTP)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("got Content-Type %q, want application/json", got)
	}
	for key, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
	} {
		if got := resp.Header.Get(key); got != want {
			t.Errorf("got %s %q, want %q", key, got, want)
		}
	}
	for key := range resp.Header {
		if strings.HasPrefix(key, "Grpc-") {
			t.Errorf("the answer has the header %s", key)
		}
	}
	st := status.New(codes.OK, "")
	if resp.StatusCode >= 300 {
		var p statuspb.Status
		if err := protojson.Unmarshal(answer, &p); err != nil {
			t.Fatalf("got error %.300s, want a google.rpc.Status: %v", answer, err)
		}
		st = status.FromProto(&p)
		if want := fmt.Sprint(c.Want.RetryAfter); c.Want.RetryAfter > 0 && resp.Header.Get("Retry-After") != want {
			t.Errorf("got Retry-After %q, want %q", resp.Header.Get("Retry-After"), want)
		}
		answer = nil
	}
	fields := c.Want.Fields
	if c.Want.JSONFields != nil {
		fields = c.Want.JSONFields
	}
	if c.method(t).IsStreamingServer() {
		var results []string
		for line := range strings.Lines(string(answer)) {
			var wrapped map[string]json.RawMessage
			if err := json.Unmarshal([]byte(line), &wrapped); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			results = append(results, string(wrapped["result"]))
		}
		answer = []byte(strings.Join(results, "\n"))
	}
	c.compare(t, st, fields, string(answer), engine)
}

func (c *apiCase) compare(t *testing.T, got *status.Status, fields []string, reply string, engine *fakeEngine) {
	t.Helper()
	if got.Code().String() != codeOf(c.Want.Code) {
		t.Errorf("message %.300s\n got %v: %s\nwant %s", c.Message, got.Code(), got.Message(), c.Want.Code)
	}
	if c.Want.Message != "" && got.Message() != c.Want.Message {
		t.Errorf(" got message %q\nwant message %q", got.Message(), c.Want.Message)
	}
	var gotFields []string
	var info errdetails.ErrorInfo
	retryAfter := 0
	for _, d := range got.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				gotFields = append(gotFields, v.GetField())
				if v.GetDescription() == "" {
					t.Errorf("field %q has no description", v.GetField())
				}
			}
		case *errdetails.ErrorInfo:
			proto.Merge(&info, d)
		case *errdetails.RetryInfo:
			retryAfter = int(d.GetRetryDelay().AsDuration() / time.Second)
		default:
			t.Errorf("unexpected detail %v", d)
		}
	}
	slices.Sort(gotFields)
	if want := slices.Sorted(slices.Values(fields)); !slices.Equal(gotFields, want) {
		t.Errorf("message %.300s\n got fields %q (%s)\nwant fields %q", c.Message, gotFields, got.Message(), want)
	}
	if info.GetReason() != c.Want.Reason {
		t.Errorf("got reason %q, want %q", info.GetReason(), c.Want.Reason)
	}
	if info.GetReason() != "" && info.GetDomain() != "endsession" {
		t.Errorf("got domain %q, want endsession", info.GetDomain())
	}
	if len(info.GetMetadata())+len(c.Want.Metadata) > 0 && !maps.Equal(info.GetMetadata(), c.Want.Metadata) {
		t.Errorf("got metadata %q, want %q", info.GetMetadata(), c.Want.Metadata)
	}
	if retryAfter != c.Want.RetryAfter {
		t.Errorf("got RetryInfo of %d s, want %d s", retryAfter, c.Want.RetryAfter)
	}
	if c.Want.Reply != "" && !sameJSON(t, reply, c.Want.Reply) {
		t.Errorf(" got reply %s\nwant reply %s", reply, c.Want.Reply)
	}
	call := engine.called()
	switch {
	case c.Want.Call != "" && call == "":
		t.Errorf("the engine was not asked, want %s", c.Want.Call)
	case c.Want.Call != "" && !sameJSON(t, call, c.Want.Call):
		t.Errorf(" got call %s\nwant call %s", call, c.Want.Call)
	case c.Want.Call == "" && c.Engine == nil && c.Want.Code != "OK" && call != "":
		t.Errorf("the engine was asked %s, want nothing to reach it", call)
	}
}

// codeOf spells a code as google.rpc.Code does in the way that gRPC does.
func codeOf(name string) string {
	var c codes.Code
	if err := c.UnmarshalJSON([]byte(`"` + name + `"`)); err != nil {
		return err.Error()
	}
	return c.String()
}

// sameJSON compares lines of JSON.
func sameJSON(t *testing.T, got, want string) bool {
	t.Helper()
	read := func(text string) (values []any) {
		dec := json.NewDecoder(strings.NewReader(text))
		for {
			var v any
			if err := dec.Decode(&v); err == io.EOF {
				return values
			} else if err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			values = append(values, v)
		}
	}
	return reflect.DeepEqual(read(got), read(want))
}
