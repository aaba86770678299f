package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/endsession/endsession/server/invalidation"
)

// Defaults of an [Issuer].
const (
	DefaultNameClaim   = "sub"
	DefaultGroupsClaim = "groups"
)

// Algorithms are those that can be allowed: all are asymmetric. DefaultAlgorithms are those that are allowed where
// nothing else is said.
var (
	Algorithms = []string{
		oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
	}
	DefaultAlgorithms = []string{oidc.RS256, oidc.ES256, oidc.PS256, oidc.EdDSA}
)

// leeway is how far an issuer's clock may be off.
const leeway = 30 * time.Second

// Issuer is an OpenID provider whose tokens are accepted. URL and Audiences are required.
type Issuer struct {
	// URL is the issuer, exactly as it is in the tokens; its keys are found from there by discovery.
	URL string
	// Alias goes before the names of its callers: "alias/name". It may be empty if there is only one issuer.
	Alias string
	// Audiences are whom tokens may be for: one of these must be among a token's.
	Audiences []string
	// Algorithms are those that tokens may be signed with; empty means [DefaultAlgorithms].
	Algorithms []string
	// NameClaim is the claim that names the caller, GroupsClaim the one with its groups; empty means the defaults.
	NameClaim, GroupsClaim string
	// RequiredClaims are claims that a token must have, each with one of the values.
	RequiredClaims map[string][]string
	// MaxAge is how long ago a token may have been issued; zero means as long ago as its expiry allows.
	MaxAge time.Duration

	// RootCAs are trusted for the issuer's own certificate; nil means the system's.
	RootCAs *x509.CertPool
	// Transport takes the place of the network; nil means the network, RootCAs and all.
	Transport http.RoundTripper
}

type issuer struct {
	Issuer
	keys *keySet
	log  *slog.Logger
}

// newIssuer makes an issuer. Its keys are at first those of known, which is nil or the key set of the same issuer.
func newIssuer(i Issuer, known *keySet, log *slog.Logger) (*issuer, error) {
	if len(i.Audiences) == 0 || slices.Contains(i.Audiences, "") {
		return nil, errors.New("no audience")
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = DefaultAlgorithms
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(Algorithms, a) {
			return nil, fmt.Errorf("algorithm %q is not allowed", a)
		}
	}
	if i.NameClaim == "" {
		i.NameClaim = DefaultNameClaim
	}
	if i.GroupsClaim == "" {
		i.GroupsClaim = DefaultGroupsClaim
	}
	s := &issuer{Issuer: i, keys: newKeySet(i, log), log: log}
	if known != nil {
		known.mu.Lock()
		defer known.mu.Unlock()
		s.keys.keys, s.keys.fetched, s.keys.tried = known.keys, known.fetched, known.tried
	}
	return s, nil
}

// byToken names the caller by a token. certificate is the client's, if it is known to be good.
func (a *Authenticator) byToken(ctx context.Context, token string, certificate *x509.Certificate) (invalidation.Caller, error) {
	refused := func(why, whose string, err error) (invalidation.Caller, error) {
		e := &Error{Kind: KindOIDC, Why: why, Whose: whose, Err: err}
		var later *unjudged
		if errors.As(err, &later) {
			e.Why, e.RetryAfter = "the issuer's keys are not to be had", later.after
		}
		return invalidation.Caller{}, e
	}
	header, claims, ok := peek(token)
	if !ok {
		return refused("malformed token", "", nil)
	}
	url, _ := claims["iss"].(string)
	i := a.issuers[url]
	if i == nil {
		return refused("unknown issuer", "", nil)
	}
	if alg, _ := header["alg"].(string); !slices.Contains(i.Algorithms, alg) {
		return refused("algorithm not allowed", i.URL, nil)
	}
	if !isAccessToken(header) {
		return refused("not a token for this use", i.URL, nil)
	}
	signature := &signature{keys: i.keys}
	_, err := oidc.NewVerifier(i.URL, signature, &oidc.Config{
		SupportedSigningAlgs: i.Algorithms,
		// Judged below: go-oidc takes claims whatever the case of their names, and is five minutes early.
		SkipClientIDCheck: true, SkipExpiryCheck: true,
	}).Verify(ctx, token)
	switch {
	case signature.err != nil:
		if ctx.Err() != nil {
			return invalidation.Caller{}, ctx.Err()
		}
		return refused("signature not by the issuer", i.URL, signature.err)
	case err != nil:
		return refused("malformed token", i.URL, nil) // the text may quote it
	}
	// From here on the claims are the issuer's.
	if why := i.judge(claims, certificate); why != "" {
		return refused(why, i.URL, nil)
	}
	name, _ := claims[i.NameClaim].(string)
	if !namable(name) {
		return refused("no usable name in the token", i.URL, nil)
	}
	if i.Alias != "" {
		name = i.Alias + "/" + name
	}
	return invalidation.Caller{
		Kind: KindOIDC, Name: name, Facts: &invalidation.Facts{Groups: groups(claims, i.GroupsClaim), Claims: claims},
	}, nil
}

// signature is the key set for one token. It keeps the error, of which go-oidc would keep the text.
type signature struct {
	keys *keySet
	err  error
}

// VerifySignature implements [oidc.KeySet].
func (s *signature) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	defer func() { s.err = err }()
	algorithms := make([]jose.SignatureAlgorithm, len(Algorithms))
	for i, a := range Algorithms {
		algorithms[i] = jose.SignatureAlgorithm(a)
	}
	parsed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil || len(parsed.Signatures) != 1 {
		return nil, errSignature
	}
	return s.keys.verify(ctx, parsed)
}

// peek reads a token of three parts without believing any of it.
func peek(token string) (header, claims map[string]any, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[2] == "" {
		return nil, nil, false
	}
	for i, to := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil || !utf8.Valid(text) || json.Unmarshal(text, to) != nil || *to == nil {
			return nil, nil, false
		}
	}
	return header, claims, true
}

// isAccessToken reports whether a token may be used to call somebody, as far as its type says (RFC 8725, section 3.11).
// Logout tokens and the like are signed with the same keys.
func isAccessToken(header map[string]any) bool {
	typ, given := header["typ"]
	if !given {
		return true
	}
	text, _ := typ.(string)
	switch strings.TrimPrefix(strings.ToLower(text), "application/") {
	case "jwt", "at+jwt":
		return true
	}
	return false
}

// judge returns why the claims of a token are not good; nothing if they are.
func (i *issuer) judge(claims map[string]any, certificate *x509.Certificate) (why string) {
	now := time.Now()
	expiry, ok := instant(claims["exp"])
	switch {
	case !ok:
		return "no expiry in the token"
	case now.After(expiry.Add(leeway)):
		return "expired token"
	}
	if _, given := claims["nbf"]; given {
		if begin, ok := instant(claims["nbf"]); !ok || now.Add(leeway).Before(begin) {
			return "token not valid yet"
		}
	}
	issued, known := instant(claims["iat"])
	switch _, given := claims["iat"]; {
	case given && (!known || now.Add(leeway).Before(issued)):
		return "token issued in the future"
	case i.MaxAge > 0 && !known, i.MaxAge > 0 && now.After(issued.Add(i.MaxAge+leeway)):
		return "token issued too long ago"
	}
	if !slices.ContainsFunc(texts(claims["aud"]), func(a string) bool { return slices.Contains(i.Audiences, a) }) {
		return "wrong audience"
	}
	if _, event := claims["events"]; event {
		return "not a token for this use" // a security event (RFC 8417), logout tokens included
	}
	if binding, bound := claims["cnf"]; bound && !boundTo(binding, certificate) {
		return "token bound to another key"
	}
	if i.NameClaim == "email" && claims["email_verified"] != true {
		return "email address not verified by the issuer"
	}
	for name, allowed := range i.RequiredClaims {
		if !slices.ContainsFunc(texts(claims[name]), func(v string) bool { return slices.Contains(allowed, v) }) {
			return "a required claim is missing"
		}
	}
	return ""
}

// boundTo reports whether a token's confirmation claim names the client's certificate (RFC 8705, section 3.1). A token
// that is bound to a key otherwise (DPoP) is not for use by its mere possession.
func boundTo(cnf any, certificate *x509.Certificate) bool {
	members, _ := cnf.(map[string]any)
	want, _ := members["x5t#S256"].(string)
	if len(members) != 1 || want == "" || certificate == nil {
		return false
	}
	sum := sha256.Sum256(certificate.Raw)
	return subtle.ConstantTimeCompare([]byte(want), []byte(base64.RawURLEncoding.EncodeToString(sum[:]))) == 1
}

// instant reads a NumericDate.
func instant(claim any) (time.Time, bool) {
	seconds, ok := claim.(float64)
	if !ok || math.IsNaN(seconds) || seconds < 0 || seconds > 253402300799 { // the year 9999
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// texts reads a claim that is a text or a list of texts.
func texts(claim any) []string {
	switch x := claim.(type) {
	case string:
		return []string{x}
	case []any:
		var list []string
		for _, v := range x {
			if s, ok := v.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
}

// groups reads the groups from a claim of that name or, if there is none, along a path with dots
// ("realm_access.roles").
func groups(claims map[string]any, name string) []string {
	if claim, ok := claims[name]; ok {
		return texts(claim)
	}
	var at any = claims
	for key := range strings.SplitSeq(name, ".") {
		m, _ := at.(map[string]any)
		at = m[key]
	}
	return texts(at)
}

// printable reports whether a text has only characters that can be seen, and spaces.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
