package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// The kinds of credential; those that name a caller are also the caller's kind.
const (
	KindNone   = "none"
	KindAPIKey = "api_key"
	KindOIDC   = "oidc"
	KindMTLS   = "mtls"
)

// Credentials are what a call brought to prove who makes it.
type Credentials struct {
	// Authorization are the values of its Authorization headers.
	Authorization []string
	// Certificates are what the client presented in the TLS handshake, its own first. It has shown there that it holds
	// that one's key; nothing else about them is known yet.
	Certificates []*x509.Certificate
}

// Error is why a caller was not let in. It holds no secret, and nothing of it is for the caller but RetryAfter.
type Error struct {
	// Kind is which kind of credential was judged.
	Kind string
	// Why is one of a few fixed texts.
	Why string
	// Whose is whom the credential claims to be of: a key's id, a token's issuer, a certificate's subject. It is not
	// verified, and empty where it cannot be told.
	Whose string
	// RetryAfter is more than zero if the credential could not be judged now. It may be a good one.
	RetryAfter time.Duration
	// Err is the cause, if there is another one.
	Err error
}

// Error describes the refusal for a log.
func (e *Error) Error() string {
	text := e.Kind + ": " + e.Why
	if e.Whose != "" {
		text += fmt.Sprintf(" (%q)", e.Whose)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Options are what an [Authenticator] goes by. At least one of Keys, Issuers and MTLS is set.
type Options struct {
	Keys    []Key
	Issuers []Issuer
	MTLS    *MTLS
	Logger  *slog.Logger
	// Previous is the authenticator that the new one replaces, or nil. Signing keys of issuers that stay the same are
	// taken over from it, so that a reload while an issuer is down refuses nobody.
	Previous *Authenticator
}

// Authenticator judges credentials. It is safe for concurrent use.
type Authenticator struct {
	keys    []Key
	issuers map[string]*issuer
	mtls    *mutual
}

// New returns an authenticator. It reaches nobody: see [Authenticator.Warm].
func New(o Options) (*Authenticator, error) {
	if len(o.Keys) == 0 && len(o.Issuers) == 0 && o.MTLS == nil {
		return nil, errors.New("no way to authenticate is configured")
	}
	a := &Authenticator{keys: o.Keys, issuers: map[string]*issuer{}}
	if o.MTLS != nil {
		a.mtls = newMutual(*o.MTLS)
	}
	names := map[string]bool{}
	for _, i := range o.Issuers {
		if a.issuers[i.URL] != nil {
			return nil, fmt.Errorf("issuer %s: given twice", i.URL)
		}
		// Two people of two issuers may have the same name there, and must not be the same caller here.
		if names[i.Alias] || i.Alias == "" && len(o.Issuers) > 1 || strings.Contains(i.Alias, "/") {
			return nil, fmt.Errorf("issuer %s: needs an alias of its own", i.URL)
		}
		names[i.Alias] = true
		var known *keySet
		if o.Previous != nil && o.Previous.issuers[i.URL] != nil {
			known = o.Previous.issuers[i.URL].keys
		}
		issuer, err := newIssuer(i, known, o.Logger)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", i.URL, err)
		}
		a.issuers[i.URL] = issuer
	}
	return a, nil
}

// Warm asks the issuers for their keys, so that the first callers need not wait and an operator learns from the log what
// is wrong. It returns when all have answered, or cannot be asked.
func (a *Authenticator) Warm(ctx context.Context) {
	for _, i := range a.issuers {
		_ = i.keys.fetch(ctx) // logged there
	}
}

// Authenticate names the caller whose credentials these are, or returns an [*Error].
//
// Everything that is presented must be valid: a bad token is refused even if the certificate is good, and a bad
// certificate even if the token is. If both are, the token names the caller. (Certificates count only where client
// certificates are configured; elsewhere they are never asked for.)
func (a *Authenticator) Authenticate(ctx context.Context, c Credentials) (invalidation.Caller, error) {
	var byCertificate invalidation.Caller
	var certificate *x509.Certificate
	if a.mtls != nil && len(c.Certificates) > 0 {
		var err error
		if byCertificate, err = a.mtls.caller(c.Certificates); err != nil {
			return invalidation.Caller{}, err
		}
		certificate = c.Certificates[0]
	}
	switch len(c.Authorization) {
	case 0:
		if certificate != nil {
			return byCertificate, nil
		}
		return invalidation.Caller{}, &Error{Kind: KindNone, Why: "no credential"}
	case 1:
	default:
		return invalidation.Caller{}, &Error{Kind: KindNone, Why: "several Authorization headers"}
	}
	token, ok := bearer(c.Authorization[0])
	switch {
	case !ok:
		return invalidation.Caller{}, &Error{Kind: KindNone, Why: "malformed Authorization header"}
	case strings.HasPrefix(token, keyPrefix):
		return a.byKey(token)
	default:
		return a.byToken(ctx, token, certificate)
	}
}

// maxToken is how long a token may be.
const maxToken = 16 << 10

// bearer returns the token of an Authorization header (RFC 6750, section 2.1; the scheme in any case).
func bearer(header string) (token string, ok bool) {
	const scheme = "bearer "
	if len(header) <= len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) || len(header) > len(scheme)+maxToken {
		return "", false
	}
	token = header[len(scheme):]
	for _, c := range []byte(strings.TrimRight(token, "=")) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '.', c == '_', c == '~', c == '+', c == '/':
		default:
			return "", false
		}
	}
	return token, token[0] != '='
}

// maxName is how long a caller's name may be, in bytes.
const maxName = 512

// namable reports whether a text can be a caller's name: it is shown to people and kept in the journal.
func namable(s string) bool {
	return s != "" && len(s) <= maxName && s == strings.TrimSpace(s) && printable(s)
}

// Current is an authenticator that can be replaced while it is in use.
type Current struct{ is atomic.Pointer[Authenticator] }

// NewCurrent returns one that is a at first.
func NewCurrent(a *Authenticator) *Current {
	c := &Current{}
	c.is.Store(a)
	return c
}

// Authenticate does what the authenticator of the moment does.
func (c *Current) Authenticate(ctx context.Context, creds Credentials) (invalidation.Caller, error) {
	return c.is.Load().Authenticate(ctx, creds)
}

// Load returns the authenticator of the moment.
func (c *Current) Load() *Authenticator { return c.is.Load() }

// Replace makes a the authenticator. Calls that are let in already go on.
func (c *Current) Replace(a *Authenticator) { c.is.Store(a) }
