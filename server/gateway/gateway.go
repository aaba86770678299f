package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/gen/openapi"
	"github.com/endsession/endsession/server/api"
)

type gateway struct {
	mux    *runtime.ServeMux
	client endsessionv1.SessionServiceClient
	// methods are the methods of the API by the HTTP method and the pattern of their path.
	methods map[string]protoreflect.MethodDescriptor
}

// New returns a handler that serves the REST API and, at /openapi.json, its description. conn leads to the gRPC server.
// loopback says that the handler is for a listener that only this machine reaches; then the Host must be a loopback
// name too.
//
// Refused are unknown fields, null, duplicate keys (two spellings of one field are duplicates too), explicitly empty
// values, trailing data and bodies larger than 1 MiB or nested more than 32 deep; a query string on a POST, a body on
// a GET, unknown or repeated query parameters; content types other than application/json; cross-origin requests; paths
// with escapes or dotted segments; and method overrides. Of the headers only those in [forwarded] reach the API.
func New(conn grpc.ClientConnInterface, loopback bool) (http.Handler, error) {
	g := &gateway{
		client:  endsessionv1.NewSessionServiceClient(conn),
		methods: map[string]protoreflect.MethodDescriptor{},
	}
	g.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &marshaler{}),
		runtime.WithIncomingHeaderMatcher(func(key string) (string, bool) { k, ok := forwarded[key]; return k, ok }),
		runtime.WithMetadata(func(_ context.Context, r *http.Request) metadata.MD { return api.FromHTTP(r) }),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(accepted),
		runtime.WithErrorHandler(handleError),
		runtime.WithRoutingErrorHandler(handleRoutingError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithMiddlewares(g.strict),
	)
	if err := endsessionv1.RegisterSessionServiceHandlerClient(context.Background(), g.mux, g.client); err != nil {
		return nil, fmt.Errorf("register the REST API: %w", err)
	}
	if err := g.learnMethods(); err != nil {
		return nil, err
	}
	top := http.NewServeMux()
	top.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openapi.Document)
	})
	top.Handle("/", g.mux)
	return guard(top, loopback), nil
}

// forwarded are the headers that become metadata, by their canonical names. None of them can be mistaken for metadata
// that only the gateway itself sets: see [api.FromHTTP]. (grpc-gateway adds Authorization and where the request came
// from.)
var forwarded = map[string]string{
	"Traceparent": "traceparent",
	"Tracestate":  "tracestate",
}

// learnMethods reads from the contract which method is behind which pattern.
func (g *gateway) learnMethods() error {
	methods := endsessionv1.File_endsession_v1_service_proto.Services().Get(0).Methods()
	for i := range methods.Len() {
		md := methods.Get(i)
		rule, ok := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule)
		if !ok || len(rule.GetAdditionalBindings()) > 0 {
			return fmt.Errorf("%s: no HTTP rule, or several", md.FullName())
		}
		switch p := rule.GetPattern().(type) {
		case *annotations.HttpRule_Get:
			g.methods[key(http.MethodGet, p.Get)] = md
		case *annotations.HttpRule_Post:
			if rule.GetBody() != "*" {
				return fmt.Errorf("%s: body %q", md.FullName(), rule.GetBody())
			}
			g.methods[key(http.MethodPost, p.Post)] = md
		default:
			return fmt.Errorf("%s: neither GET nor POST", md.FullName())
		}
	}
	return nil
}

// variable is a path variable of one segment, as the contract writes it; grpc-gateway's patterns say it in full.
var variable = regexp.MustCompile(`\{(\w+)\}`)

func key(httpMethod, pattern string) string {
	return httpMethod + " " + variable.ReplaceAllString(pattern, "{$1=*}")
}

// strict stands before every handler that grpc-gateway routes to.
func (g *gateway) strict(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
		pattern, _ := runtime.HTTPPattern(r.Context())
		method := g.methods[key(r.Method, pattern.String())]
		if method == nil { // a defect: the contract has it, or it would not have been routed here
			refuse(w, http.StatusInternalServerError, codes.Internal, "internal error")
			return
		}
		if r.Method == http.MethodPost {
			if r.URL.RawQuery != "" || r.URL.ForceQuery {
				invalid(w, http.StatusBadRequest, api.Violation{
					Description: "a POST takes no query string; everything belongs into the body",
				})
				return
			}
			body, ok := readBody(w, r)
			if !ok {
				return
			}
			if len(body) > 0 {
				if found := checkJSON(body, method.Input(), params); len(found) > 0 {
					invalid(w, http.StatusBadRequest, found...)
					return
				}
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		} else {
			if r.ContentLength != 0 {
				invalid(w, http.StatusBadRequest, api.Violation{Description: "a GET takes no body"})
				return
			}
			if found := checkQuery(r.URL.RawQuery, method.Input(), params); len(found) > 0 {
				invalid(w, http.StatusBadRequest, found...)
				return
			}
		}
		if method.IsStreamingServer() {
			g.watch(w, r, params)
			return
		}
		next(w, r, params)
	}
}

// accepted answers 202 while there is more to come of what was asked for.
func accepted(_ context.Context, w http.ResponseWriter, reply proto.Message) error {
	r, ok := reply.(interface {
		GetInvalidation() *endsessionv1.Invalidation
	})
	if !ok {
		return nil
	}
	switch reply.(type) {
	case *endsessionv1.InvalidateSessionsResponse, *endsessionv1.RetryInvalidationResponse:
		if r.GetInvalidation().GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING {
			w.WriteHeader(http.StatusAccepted)
		}
	}
	return nil
}

// marshaler is grpc-gateway's, with the field names of JSON and without fields that are absent: an unknown count must
// not read as 0. Known counts are answered even when they are 0.
type marshaler struct{ runtime.JSONPb }

// Marshal ends with a line break, for people at a terminal.
func (m *marshaler) Marshal(v any) ([]byte, error) {
	b, err := m.JSONPb.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}
