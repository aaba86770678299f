package gateway

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/endsession/endsession/server/api"
)

// refuse answers what is no call of the API.
func refuse(w http.ResponseWriter, httpStatus int, code codes.Code, message string) {
	writeStatus(w, httpStatus, status.New(code, message))
}

// invalid answers that the request is wrong.
func invalid(w http.ResponseWriter, httpStatus int, violations ...api.Violation) {
	writeStatus(w, httpStatus, api.Refusal(violations...))
}

// writeStatus writes a google.rpc.Status as JSON.
func writeStatus(w http.ResponseWriter, httpStatus int, st *status.Status) {
	p := st.Proto()
	if httpStatus == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="endsession"`)
	}
	if after := retryAfter(st); after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(after))
	}
	for i, d := range p.GetDetails() {
		var bad errdetails.BadRequest
		if d.UnmarshalTo(&bad) != nil {
			continue
		}
		for _, v := range bad.FieldViolations {
			v.Field = camelPath(v.Field)
		}
		if d.MarshalFrom(&bad) == nil {
			p.Details[i] = d
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus)
	_, _ = w.Write(jsonOf(p))
}

// retryAfter is the whole seconds that the status asks to wait; 0 if it does not.
func retryAfter(st *status.Status) int {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return int((info.GetRetryDelay().AsDuration() + time.Second - 1) / time.Second)
		}
	}
	return 0
}

// jsonOf is the JSON of a message, in a line of its own.
func jsonOf(m proto.Message) []byte {
	b, err := protojson.Marshal(m)
	if err != nil { // a detail of a type that is not linked in
		b = []byte(`{"code":13,"message":"internal error","details":[]}`)
	}
	return append(b, '\n')
}

// camelPath spells a field path as JSON does: selector.user.target_usernames["a_b"] has one name to change.
func camelPath(path string) string {
	var b strings.Builder
	upper, bracket, quoted := false, false, false
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case quoted && c == '\\' && i+1 < len(path):
			b.WriteByte(c)
			i++
			c = path[i]
		case c == '"' && bracket:
			quoted = !quoted
		case c == '[' && !quoted:
			bracket = true
		case c == ']' && !quoted:
			bracket = false
		case c == '_' && !bracket:
			upper = true
			continue
		case upper && 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		}
		upper = false
		b.WriteByte(c)
	}
	return b.String()
}

// handleError answers for a call that failed.
func handleError(
	_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error,
) {
	st := status.Convert(err)
	if st.Code() == codes.InvalidArgument && len(st.Details()) == 0 {
		// grpc-gateway could not read something that the checks before it let pass.
		st = api.Refusal(api.Violation{Description: "the request cannot be read"})
	}
	if st.Code() == codes.DeadlineExceeded && len(st.Details()) == 0 {
		// It ended here, before the API's answer came; what was sent on its way is not called back.
		st = status.New(st.Code(), "the deadline passed before there was an answer; what was asked may still be carried out")
	}
	code := runtime.HTTPStatusFromCode(st.Code())
	var he *runtime.HTTPStatusError
	if errors.As(err, &he) {
		code = he.HTTPStatus
	}
	writeStatus(w, code, st)
}

// handleRoutingError answers a path or a method that leads nowhere.
func handleRoutingError(
	_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int,
) {
	switch code {
	case http.StatusMethodNotAllowed:
		// Every path of the API has one method: what ends in a verb is a POST, except for watching.
		allow := http.MethodGet
		if _, verb, ok := strings.Cut(r.URL.Path, ":"); ok && verb != "watch" {
			allow = http.MethodPost
		}
		w.Header().Set("Allow", allow)
		refuse(w, code, codes.Unimplemented, "the method is not allowed here")
	case http.StatusNotFound:
		refuse(w, code, codes.NotFound, "there is nothing at this path")
	default:
		refuse(w, http.StatusBadRequest, codes.InvalidArgument, "the request cannot be routed")
	}
}
