package api

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// Domain is the domain of every google.rpc.ErrorInfo.
const Domain = "endsession"

// retryDelay is how long callers are told to wait where the engine does not say.
const retryDelay = time.Second

// Violation is one thing that is wrong with a request. Field is a path in the API's form ("selector.user.id"); it is
// empty where the request as a whole is wrong.
type Violation struct {
	Field       string
	Description string
	// Reason of the refusal; empty for INVALID_ARGUMENT. Of several violations the first counts.
	Reason adapters.Reason
}

// Bounds of what a refusal says: details travel in HTTP/2 trailers, whose size clients limit, and field paths hold keys
// that the caller chose.
const (
	maxViolations = 16
	maxFieldBytes = 200
)

// Refusal is the status of a call whose request is wrong.
func Refusal(violations ...Violation) *status.Status {
	violations = violations[:min(len(violations), maxViolations)]
	message, reason := "invalid request", invalidation.ReasonInvalidArgument
	bad := &errdetails.BadRequest{}
	for i, v := range violations {
		field := shorten(v.Field)
		if i == 0 {
			message = v.Description
			if field != "" {
				message = field + ": " + v.Description
			}
			if v.Reason != "" {
				reason = v.Reason
			}
		}
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: field, Description: v.Description,
		})
	}
	details := []protoadapt.MessageV1{errorInfo(reason, nil)}
	if len(violations) > 0 {
		details = append(details, bad)
	}
	return withDetails(codes.InvalidArgument, message, details...)
}

// shorten cuts a field path to a size that fits into a trailer, and to text.
func shorten(field string) string {
	field = strings.ToValidUTF8(field, "\uFFFD")
	if len(field) <= maxFieldBytes {
		return field
	}
	cut := maxFieldBytes
	for !utf8.RuneStart(field[cut]) {
		cut--
	}
	return field[:cut] + "…"
}

func errorInfo(reason adapters.Reason, metadata map[string]string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: string(reason), Domain: Domain, Metadata: metadata}
}

func retryInfo(after time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(after)}
}

func withDetails(code codes.Code, message string, details ...protoadapt.MessageV1) *status.Status {
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil { // cannot happen: details are messages and the code is not OK
		return status.New(code, message)
	}
	return st
}

// callCodes says for each way to refuse a call its gRPC code and the reason that applies where the engine gives none.
var callCodes = map[invalidation.CallErrorCode]struct {
	code   codes.Code
	reason adapters.Reason
}{
	invalidation.InvalidArgument:    {codes.InvalidArgument, invalidation.ReasonInvalidArgument},
	invalidation.NotFound:           {codes.NotFound, invalidation.ReasonNotFound},
	invalidation.AlreadyExists:      {codes.AlreadyExists, invalidation.ReasonRequestReused},
	invalidation.FailedPrecondition: {codes.FailedPrecondition, invalidation.ReasonNotFinal},
	invalidation.Unavailable:        {codes.Unavailable, invalidation.ReasonNotAccepted},
	invalidation.AcceptanceUnknown:  {codes.Unavailable, invalidation.ReasonAcceptanceUnknown},
	invalidation.Exhausted:          {codes.ResourceExhausted, invalidation.ReasonOverloaded},
	invalidation.Denied:             {codes.PermissionDenied, adapters.ReasonPolicyDenied},
}

// statusOf is what the caller sees of an error, and the one place where an error's cause is logged.
func statusOf(ctx context.Context, log *slog.Logger, method string, err error) *status.Status {
	if st, ok := status.FromError(err); ok { // made here, or by gRPC
		return st
	}
	var call *invalidation.CallError
	if !errors.As(err, &call) {
		// The caller's own deadline or hang-up; only reading calls end so, what was accepted is answered.
		if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			return status.FromContextError(ctx.Err())
		}
		if !errors.Is(err, invalidation.ErrUnavailable) {
			log.ErrorContext(ctx, "call failed", "method", method, "error", err)
			return internal()
		}
		// The journal ran into a time limit of its own, not into the caller's.
		call = &invalidation.CallError{Code: invalidation.Unavailable, Message: "the journal is not available", Err: err}
	}
	known, ok := callCodes[call.Code]
	if !ok {
		log.ErrorContext(ctx, "call failed", "method", method, "error", err)
		return internal()
	}
	if call.Err != nil {
		log.WarnContext(ctx, "call not carried out", "method", method, "code", known.code.String(), "error", err)
	}
	reason := known.reason
	if call.Reason != "" {
		reason = call.Reason
	}
	switch call.Code {
	case invalidation.InvalidArgument:
		return Refusal(Violation{Field: call.Field, Description: call.Message, Reason: reason})
	case invalidation.Unavailable, invalidation.Exhausted:
		after := call.RetryDelay
		if after <= 0 {
			after = retryDelay
		}
		return withDetails(known.code, call.Message, errorInfo(reason, nil), retryInfo(after))
	case invalidation.AcceptanceUnknown:
		// Nothing is said about retrying: without a request id that would be another invalidation.
		return withDetails(known.code, call.Message, errorInfo(reason, map[string]string{"name": nameOf(call.ID)}))
	default:
		return withDetails(known.code, call.Message, errorInfo(reason, nil))
	}
}

// internal is all that a caller learns of a defect.
func internal() *status.Status {
	return withDetails(codes.Internal, "internal error", errorInfo(adapters.ReasonInternal, nil))
}

// closing is what a watcher is told when the process ends.
func closing() *status.Status {
	return withDetails(codes.Unavailable, "the gateway is shutting down; watch again",
		errorInfo(reasonShuttingDown, nil), retryInfo(retryDelay))
}

const reasonShuttingDown adapters.Reason = "SHUTTING_DOWN"
