package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/invalidation"
)

// Authenticator finds out who calls. A refusal is an [*auth.Error].
type Authenticator interface {
	Authenticate(ctx context.Context, c auth.Credentials) (invalidation.Caller, error)
}

var (
	_ Authenticator = (*auth.Authenticator)(nil)
	_ Authenticator = (*auth.Current)(nil)
)

// RefusedCall is a call whose caller could not be authenticated.
type RefusedCall struct {
	// Method is the call, "/endsession.v1.SessionService/InvalidateSessions".
	Method string
	// Kind is which kind of credential was judged ([auth.KindAPIKey] and so on), and Why one of a few fixed texts.
	Kind, Why string
	// Whose is whom the credential claims to be of; it is not verified, and may be empty.
	Whose string
	// Remote is the address that the call came from; empty if it is not known.
	Remote string
	// Unjudged says that the credential may be good: it could not be judged now.
	Unjudged bool
	// Err is the cause, for the log; nil if there is none beyond Why.
	Err error
}

// Refusals is told of calls whose callers could not be authenticated. Anybody who reaches a port can make many.
type Refusals interface {
	Refused(ctx context.Context, r RefusedCall)
}

// LogRefusals is a [Refusals] that writes a line for each, but no more than a few a second.
type LogRefusals struct {
	log *slog.Logger

	mu      sync.Mutex
	lines   *rate.Limiter
	skipped int
}

// NewLogRefusals returns one that writes to a log.
func NewLogRefusals(log *slog.Logger) *LogRefusals {
	return &LogRefusals{log: log, lines: rate.NewLimiter(1, 10)}
}

// Refused writes a line, or counts one that is left out.
func (l *LogRefusals) Refused(ctx context.Context, r RefusedCall) {
	l.mu.Lock()
	if !l.lines.Allow() {
		l.skipped++
		l.mu.Unlock()
		return
	}
	skipped := l.skipped
	l.skipped = 0
	l.mu.Unlock()
	l.log.WarnContext(ctx, "caller refused", "method", r.Method, "kind", r.Kind, "why", r.Why, "whose", r.Whose,
		"remote", r.Remote, "cause", r.Err, "lines_left_out", skipped)
}

// Metadata that the gateway sets about a REST call. A server of the network never looks at it.
const (
	mdAddress     = "endsession-client-address"
	mdCertificate = "endsession-client-certificate-bin"
)

// FromHTTP is the metadata by which the REST gateway tells the service about the client of a request, where it
// calls from and what certificates it presented.
func FromHTTP(r *http.Request) metadata.MD {
	md := metadata.MD{}
	if r.RemoteAddr != "" {
		md.Set(mdAddress, r.RemoteAddr)
	}
	if r.TLS != nil {
		for _, c := range r.TLS.PeerCertificates {
			md.Append(mdCertificate, string(c.Raw))
		}
	}
	return md
}

// origin is who makes a call, before anything of it is believed.
type origin struct {
	credentials auth.Credentials
	address     string
}

// originOf finds out where a call comes from. gateway says that the REST gateway made it for somebody else.
func originOf(ctx context.Context, gateway bool) (o origin, err error) {
	o.credentials.Authorization = metadata.ValueFromIncomingContext(ctx, "authorization")
	if gateway {
		if a := metadata.ValueFromIncomingContext(ctx, mdAddress); len(a) == 1 {
			o.address = a[0]
		}
		for _, der := range metadata.ValueFromIncomingContext(ctx, mdCertificate) {
			c, err := x509.ParseCertificate([]byte(der))
			if err != nil {
				return origin{}, fmt.Errorf("read the certificate of a REST client: %w", err)
			}
			o.credentials.Certificates = append(o.credentials.Certificates, c)
		}
		return o, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return o, nil
	}
	o.address = p.Addr.String()
	if t, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		o.credentials.Certificates = t.State.PeerCertificates
	}
	return o, nil
}

// authenticate finds out who calls, before anything else of the request is looked at. The error is what the caller sees:
// it does not say what was wrong.
func (c chain) authenticate(ctx context.Context, method string) (invalidation.Caller, error) {
	if c.door.Authenticator == nil || c.open(method) {
		return invalidation.Caller{Kind: "anonymous", Name: "anonymous"}, nil
	}
	o, err := originOf(ctx, c.door.Gateway)
	if err != nil {
		return invalidation.Caller{}, err
	}
	caller, err := c.door.Authenticator.Authenticate(ctx, o.credentials)
	var refused *auth.Error
	if !errors.As(err, &refused) {
		return caller, err
	}
	c.door.Refusals.Refused(ctx, RefusedCall{
		Method: method, Kind: refused.Kind, Why: refused.Why, Whose: refused.Whose, Remote: o.address,
		Unjudged: refused.RetryAfter > 0, Err: refused.Err,
	})
	if refused.RetryAfter > 0 {
		return invalidation.Caller{}, withDetails(codes.Unavailable, "the caller cannot be authenticated at the moment; try again",
			errorInfo(reasonAuthenticationUnavailable, nil), retryInfo(refused.RetryAfter)).Err()
	}
	return invalidation.Caller{}, unauthenticated().Err()
}

// open reports whether a method is for everybody.
func (c chain) open(method string) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	for _, s := range c.door.Open {
		if s == service {
			return true
		}
	}
	return false
}

// unauthenticated is all that a caller who is refused learns.
func unauthenticated() *status.Status {
	return withDetails(codes.Unauthenticated, "no valid credential came with the call", errorInfo(reasonUnauthenticated, nil))
}

const (
	reasonUnauthenticated           adapters.Reason = "UNAUTHENTICATED"
	reasonAuthenticationUnavailable adapters.Reason = "AUTHENTICATION_UNAVAILABLE"
)

// reauthenticate is how often the caller of a stream is authenticated again: a stream can outlive the credential.
const reauthenticate = time.Minute

type callerKey struct{}

func withCaller(ctx context.Context, c invalidation.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns who calls. Every context that a handler sees has a caller.
func callerOf(ctx context.Context) invalidation.Caller {
	return ctx.Value(callerKey{}).(invalidation.Caller)
}
