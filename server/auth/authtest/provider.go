// Package authtest is what tests of authentication share: an OpenID provider that can be run in the test, whose tokens
// are asked for as programs ask for them, and an authority for client certificates.
package authtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// Client is a program that the provider knows. It gets access tokens for itself with the client credentials grant.
type Client struct {
	Subject  string
	Audience []string
	// Lifetime is that of its tokens; zero means 5 minutes.
	Lifetime time.Duration
	// Claims are added to its tokens.
	Claims map[string]any
}

// Provider is an OpenID provider. It is safe for concurrent use.
type Provider struct {
	issuer  string
	handler http.Handler
	state   *state
}

// NewProvider returns a provider for an issuer, a URL, that signs with an RS256 key.
func NewProvider(issuer string) (*Provider, error) {
	p := &Provider{issuer: issuer, state: &state{clients: map[string]Client{}, asked: map[string]int{}}}
	if err := p.Rotate(jose.RS256); err != nil {
		return nil, err
	}
	provider, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}}, p.state, op.StaticIssuer(issuer), op.WithAllowInsecure(),
		op.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, err
	}
	p.handler = provider
	return p, nil
}

// ServeHTTP serves the provider's endpoints.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.state.mu.Lock()
	p.state.asked[r.URL.Path]++
	instead := p.state.instead
	p.state.mu.Unlock()
	if instead != nil {
		instead(w, r)
		return
	}
	p.handler.ServeHTTP(w, r)
}

// Issuer is the provider's name.
func (p *Provider) Issuer() string { return p.issuer }

// Instead makes something else answer all requests; nil makes the provider answer again.
func (p *Provider) Instead(h http.HandlerFunc) {
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	p.state.instead = h
}

// KeysAsked is how often the provider was asked for its keys.
func (p *Provider) KeysAsked() int {
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	return p.state.asked[op.DefaultEndpoints.JwksURI.Relative()]
}

// Token asks the provider's token endpoint for an access token of a client.
func (p *Provider) Token(ctx context.Context, c Client) (string, error) {
	if c.Lifetime == 0 {
		c.Lifetime = 5 * time.Minute
	}
	p.state.mu.Lock()
	p.state.clients[c.Subject] = c
	p.state.mu.Unlock()
	form := url.Values{"grant_type": {"client_credentials"}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.issuer+op.DefaultEndpoints.Token.Relative(), strings.NewReader(form))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(c.Subject), clientSecret)
	w := httptest.NewRecorder()
	p.handler.ServeHTTP(w, req)
	body, _ := io.ReadAll(w.Body)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.AccessToken == "" {
		return "", fmt.Errorf("the provider answered %d %s", w.Code, body)
	}
	return answer.AccessToken, nil
}

// Sign signs any payload with the provider's key of the moment, as an issuer of odd tokens would. More headers may be
// given.
func (p *Provider) Sign(claims map[string]any, headers map[jose.HeaderKey]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return p.sign(payload, headers)
}

// SignBytes signs what need not be claims.
func (p *Provider) SignBytes(payload []byte) (string, error) { return p.sign(payload, nil) }

func (p *Provider) sign(payload []byte, headers map[jose.HeaderKey]any) (string, error) {
	k := p.state.current()
	options := (&jose.SignerOptions{}).WithHeader("kid", k.id)
	for name, value := range headers {
		options = options.WithHeader(name, value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.algorithm, Key: k.private}, options)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// PublicKey is the provider's key of the moment.
func (p *Provider) PublicKey() crypto.PublicKey { return p.state.current().Key() }

// Rotate makes a new signing key. The older ones are still published: see [Provider.Retire].
func (p *Provider) Rotate(algorithm jose.SignatureAlgorithm) error {
	var private crypto.Signer
	var err error
	switch algorithm {
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		return err
	}
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	p.state.made++
	p.state.keys = append(p.state.keys, key{fmt.Sprintf("key-%d", p.state.made), algorithm, private})
	return nil
}

// Retire publishes only the newest key from now on.
func (p *Provider) Retire() {
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	p.state.keys = p.state.keys[len(p.state.keys)-1:]
}

const clientSecret = "s3cret"

// key is a signing key; it implements what the provider wants of a public one.
type key struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func (k key) ID() string                         { return k.id }
func (k key) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k key) Use() string                        { return "sig" }
func (k key) Key() any                           { return k.private.Public() }

// signingKey is the private half.
type signingKey struct{ key }

func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k signingKey) Key() any                                    { return k.private }

// state is the provider's storage. Only what the client credentials grant needs is there; the rest is refused by the
// nil interface.
type state struct {
	op.Storage

	mu      sync.Mutex
	clients map[string]Client
	keys    []key
	made    int
	asked   map[string]int
	instead http.HandlerFunc
}

var _ op.ClientCredentialsStorage = (*state)(nil)

func (s *state) current() key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[len(s.keys)-1]
}

func (s *state) client(id string) (Client, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.clients[id]
	return c, ok
}

func (s *state) ClientCredentials(_ context.Context, id, secret string) (op.Client, error) {
	if _, ok := s.client(id); !ok || secret != clientSecret {
		return nil, errors.New("unknown client")
	}
	return registered{id: id}, nil
}

func (s *state) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	c, _ := s.client(id)
	return request{c, scopes}, nil
}

func (s *state) CreateAccessToken(_ context.Context, r op.TokenRequest) (id string, expiry time.Time, err error) {
	c, _ := s.client(r.GetSubject())
	return rand.Text(), time.Now().Add(c.Lifetime), nil
}

func (s *state) GetPrivateClaimsFromScopes(_ context.Context, subject, _ string, _ []string) (map[string]any, error) {
	c, _ := s.client(subject)
	return c.Claims, nil
}

func (s *state) SigningKey(context.Context) (op.SigningKey, error) {
	return signingKey{s.current()}, nil
}

func (s *state) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{s.current().algorithm}, nil
}

func (s *state) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []op.Key
	for _, k := range slices.Backward(s.keys) {
		keys = append(keys, k)
	}
	return keys, nil
}

func (s *state) Health(context.Context) error { return nil }

// request is a client's request for a token.
type request struct {
	Client
	scopes []string
}

func (r request) GetSubject() string    { return r.Subject }
func (r request) GetAudience() []string { return r.Audience }
func (r request) GetScopes() []string   { return r.scopes }

// registered is a client as the provider's library sees it.
type registered struct{ id string }

func (c registered) GetID() string                       { return c.id }
func (c registered) RedirectURIs() []string              { return nil }
func (c registered) PostLogoutRedirectURIs() []string    { return nil }
func (c registered) ApplicationType() op.ApplicationType { return op.ApplicationTypeWeb }
func (c registered) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodBasic }
func (c registered) ResponseTypes() []oidc.ResponseType  { return nil }
func (c registered) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials}
}
func (c registered) LoginURL(string) string               { return "" }
func (c registered) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeJWT }
func (c registered) IDTokenLifetime() time.Duration       { return time.Minute }
func (c registered) DevMode() bool                        { return false }
func (c registered) IsScopeAllowed(string) bool           { return false }
func (c registered) IDTokenUserinfoClaimsAssertion() bool { return false }
func (c registered) ClockSkew() time.Duration             { return 0 }

//nolint:staticcheck // the provider's library spells it so
func (c registered) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}
func (c registered) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}
