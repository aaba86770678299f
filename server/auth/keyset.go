package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/time/rate"
)

// How keys are fetched. go-oidc's own key set asks the issuer whenever a token names a key that it does not know, so
// whoever invents key ids could have the gateway ask it all day.
const (
	// keysFresh is how old keys may be before they are fetched again: how long a key that the issuer took back can still
	// be used.
	keysFresh = 10 * time.Minute
	// keysLast is how long the keys of an issuer that does not answer are used.
	keysLast = 24 * time.Hour
	// refreshPause is the pause between attempts to replace keys that are not fresh but still serve.
	refreshPause = 30 * time.Second
	// unknownPause is how often keys are fetched for the sake of tokens whose key is not known, after a burst of
	// unknownBurst.
	unknownPause = 10 * time.Second
	unknownBurst = 3
	// fetchTimeout bounds one attempt.
	fetchTimeout = 10 * time.Second

	// maxDocument bounds what an issuer may answer, after decompression; maxKeys how many keys of it are looked at.
	maxDocument = 1 << 20
	maxKeys     = 100
	// minRSA is how long an RSA key must be.
	minRSA = 2048
)

var (
	errUnknownKey = errors.New("the issuer has no such key")
	errSignature  = errors.New("the signature is wrong")
)

// unjudged says that a signature cannot be judged now.
type unjudged struct {
	after time.Duration
	err   error
}

func (u *unjudged) Error() string { return u.err.Error() }
func (u *unjudged) Unwrap() error { return u.err }

// keySet is the signing keys of an issuer.
type keySet struct {
	issuer string
	client *http.Client
	log    *slog.Logger
	budget *rate.Limiter

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time // when keys were last fetched; zero if never
	tried   time.Time // when it was last tried
	failing bool
	flight  *flight
}

// flight is an attempt to fetch keys, which all who need them wait for.
type flight struct {
	done chan struct{}
	err  error // once done
}

func newKeySet(i Issuer, log *slog.Logger) *keySet {
	return &keySet{
		issuer: i.URL, client: clientFor(i), log: log, budget: rate.NewLimiter(rate.Every(unknownPause), unknownBurst),
	}
}

// verify returns the payload of a token whose signature is by one of the issuer's keys.
func (s *keySet) verify(ctx context.Context, token *jose.JSONWebSignature) ([]byte, error) {
	keys := s.current(ctx)
	payload, err := open(token, keys)
	if !errors.Is(err, errUnknownKey) {
		return payload, err
	}
	// Perhaps the key is new.
	if err := s.fetchUnknown(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	keys = s.keys
	s.mu.Unlock()
	return open(token, keys)
}

// current returns the keys, fetched again if they are not fresh; those that there are if that fails.
func (s *keySet) current(ctx context.Context) []jose.JSONWebKey {
	s.mu.Lock()
	age := time.Since(s.fetched)
	refresh := !s.fetched.IsZero() && age >= keysFresh && time.Since(s.tried) >= refreshPause
	s.mu.Unlock()
	if refresh {
		_ = s.fetch(ctx) // logged there
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.fetched) >= keysLast {
		return nil
	}
	return s.keys
}

// fetchUnknown fetches the keys because a token names one that is not there. An error is an [unjudged].
func (s *keySet) fetchUnknown(ctx context.Context) error {
	s.mu.Lock()
	under := s.flight != nil
	s.mu.Unlock()
	if !under {
		r := s.budget.Reserve()
		if wait := r.Delay(); wait > 0 {
			r.Cancel()
			return &unjudged{wait, errors.New("the issuer was asked too often already for keys that are not known")}
		}
	}
	if err := s.fetch(ctx); err != nil {
		return &unjudged{unknownPause, err}
	}
	return nil
}

// fetch fetches the keys, or waits for whoever does. The attempt goes on when ctx ends: others may wait for it.
func (s *keySet) fetch(ctx context.Context) error {
	s.mu.Lock()
	f := s.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flight, s.tried = f, time.Now()
		go s.fly(f)
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *keySet) fly(f *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	keys, err := s.download(ctx)

	s.mu.Lock()
	before, failing := s.fetched, s.failing
	f.err, s.flight = err, nil
	if s.failing = err != nil; err == nil {
		s.keys, s.fetched = keys, time.Now()
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		s.log.WarnContext(ctx, "the keys of an issuer of tokens cannot be fetched", "issuer", s.issuer, "error", err,
			"age_of_keys", age(before))
	case failing || before.IsZero():
		s.log.InfoContext(ctx, "the keys of an issuer of tokens were fetched", "issuer", s.issuer, "keys", len(keys))
	}
	close(f.done)
}

func age(since time.Time) string {
	if since.IsZero() {
		return "there are none"
	}
	return time.Since(since).Round(time.Second).String()
}

// download asks the issuer where its keys are, and for the keys. What it answers is not in the error.
func (s *keySet) download(ctx context.Context) ([]jose.JSONWebKey, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, s.client), s.issuer)
	var other *oidc.IssuerMismatchError
	switch {
	case errors.As(err, &other):
		return nil, errors.New("discovery: the document is that of another issuer (they must be equal, down to a slash at the end)")
	case err != nil:
		return nil, fmt.Errorf("discovery: %w", plainly(err))
	}
	var document struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, fmt.Errorf("discovery: %w", plainly(err))
	}
	if u, err := url.Parse(document.JWKS); err != nil || !SecureURL(u) {
		return nil, errors.New("discovery: jwks_uri is not a URL with https")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, document.JWKS, nil)
	if err != nil {
		return nil, errors.New("discovery: jwks_uri is malformed")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", plainly(err))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", plainly(err))
	}
	return parseKeys(body)
}

// parseKeys returns the keys of a JWK set that can sign tokens. Others are passed over (RFC 7517, section 5).
func parseKeys(text []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, errors.New("keys: not a JWK set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("keys: more than %d", maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) == nil && k.Valid() && (k.Use == "" || k.Use == "sig") && strong(k.Key) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("keys: none that can be used")
	}
	return keys, nil
}

// strong reports whether a key is a public one that is not too weak. A symmetric one is not: who can check a signature by
// it can make one, too.
func strong(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

// fits reports whether a key is for an algorithm.
func fits(k jose.JSONWebKey, algorithm string) bool {
	if k.Algorithm != "" && k.Algorithm != algorithm {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return algorithm[:2] == "RS" || algorithm[:2] == "PS"
	case *ecdsa.PublicKey:
		return algorithm == map[elliptic.Curve]string{
			elliptic.P256(): oidc.ES256, elliptic.P384(): oidc.ES384, elliptic.P521(): oidc.ES512,
		}[key.Curve]
	case ed25519.PublicKey:
		return algorithm == oidc.EdDSA
	}
	return false
}

// open returns the payload of a token if one of the keys has signed it. A token that names no key may be by any of them.
func open(token *jose.JSONWebSignature, keys []jose.JSONWebKey) ([]byte, error) {
	header := token.Signatures[0].Header
	err := errUnknownKey
	for _, k := range keys {
		if header.KeyID != "" && k.KeyID != header.KeyID || !fits(k, header.Algorithm) {
			continue
		}
		if payload, e := token.Verify(k.Key); e == nil {
			return payload, nil
		}
		err = errSignature
	}
	return nil, err
}

// SecureURL reports whether what is fetched from a URL is the issuer's: https, or http within this machine.
func SecureURL(u *url.URL) bool {
	if u.Hostname() == "" || u.User != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// clientFor returns the client that asks an issuer.
func clientFor(i Issuer) *http.Client {
	transport := i.Transport
	if transport == nil {
		transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: i.RootCAs},
			TLSHandshakeTimeout:    fetchTimeout,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
		}
	}
	return &http.Client{
		Transport: bounded{transport},
		// The keys are where the issuer says they are, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bounded is a transport whose answers are 200 and not too long; go-oidc would read any, and quote some.
type bounded struct{ http.RoundTripper }

type statusError int

func (e statusError) Error() string { return fmt.Sprintf("the issuer answered %d", int(e)) }

var errTooLong = errors.New("the issuer's answer is too long")

// RoundTrip makes an error of an answer that is not the document.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, statusError(resp.StatusCode)
	}
	// Read here: go-oidc would keep only the text of an error from the body.
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxDocument:
		return nil, errTooLong
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// plainly keeps of an error what cannot hold a part of the issuer's answer.
func plainly(err error) error {
	var (
		status  statusError
		dns     *net.DNSError
		op      *net.OpError
		untrust *tls.CertificateVerificationError
		host    x509.HostnameError
		timeout net.Error
	)
	switch {
	case errors.As(err, &status):
		return status
	case errors.Is(err, errTooLong):
		return errTooLong
	case errors.As(err, &untrust):
		return untrust
	case errors.As(err, &host):
		return host
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("the issuer did not answer in time")
	case errors.As(err, &op):
		return op
	}
	return errors.New("the issuer cannot be reached, or answers what cannot be read")
}
