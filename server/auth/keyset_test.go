package auth_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
)

// retry returns how long the caller is told to wait; 0 if the token was judged.
func retry(t testing.TB, a *auth.Authenticator, token string) time.Duration {
	t.Helper()
	_, err := a.Authenticate(t.Context(), bearer(token))
	var refused *auth.Error
	if err != nil && !errors.As(err, &refused) {
		t.Fatalf("got %v", err)
	}
	if refused == nil {
		return 0
	}
	return refused.RetryAfter
}

func down(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(canary))
}

// canary is what an issuer answers and no log may repeat.
const canary = "canary-5f1c"

func TestKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}})
		old := token(t, p, authtest.Client{Subject: "svc", Lifetime: time.Hour})
		if got := judge(t, a, bearer(old)); got != "oidc svc" {
			t.Fatalf("before: got %q", got)
		}
		if err := p.Rotate(jose.ES256); err != nil {
			t.Fatal(err)
		}
		fresh := token(t, p, authtest.Client{Subject: "svc", Lifetime: time.Hour})
		for what, token := range map[string]string{"the new key": fresh, "the old key, still published": old} {
			if got := judge(t, a, bearer(token)); got != "oidc svc" {
				t.Errorf("%s: got %q", what, got)
			}
		}
		p.Retire()
		time.Sleep(10 * time.Minute)
		if got := judge(t, a, bearer(old)); got != "refused: signature not by the issuer" {
			t.Errorf("ten minutes after the issuer took the old key back: got %q", got)
		}
		if got := judge(t, a, bearer(fresh)); got != "oidc svc" {
			t.Errorf("the new key then: got %q", got)
		}
	})
}

func TestIssuerOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := provider(t, issuerURL)
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		known := token(t, p, authtest.Client{Subject: "svc", Lifetime: 48 * time.Hour})
		a.Warm(t.Context())
		p.Instead(down)
		if err := p.Rotate(jose.RS256); err != nil {
			t.Fatal(err)
		}
		fresh := token(t, p, authtest.Client{Subject: "svc", Lifetime: time.Hour})
		if after := retry(t, a, fresh); after <= 0 || after > time.Minute {
			t.Errorf("a key that is not known while the issuer is down: told to wait %v", after)
		}
		for _, passed := range []time.Duration{0, 5 * time.Minute, time.Hour, 22 * time.Hour} {
			time.Sleep(passed)
			if got := judge(t, a, bearer(known)); got != "oidc svc" {
				t.Errorf("a known key, %v later: got %q", passed, got)
			}
			if forged := known[:len(known)-4] + "AAAA"; retry(t, a, forged) != 0 {
				t.Errorf("a forged token by a known key, %v later: called unknown", passed)
			}
		}
		time.Sleep(2 * time.Hour)
		if retry(t, a, known) == 0 {
			t.Error("keys are used although they could not be fetched for a day")
		}
		p.Instead(nil)
		time.Sleep(time.Minute)
		if got := judge(t, a, bearer(known)); got != "oidc svc" {
			t.Errorf("once the issuer is there again: got %q", got)
		}
		if strings.Contains(log.String(), canary) || !strings.Contains(log.String(), "the issuer answered 503") {
			t.Errorf("the log says:\n%s", &log)
		}
	})
}

func TestStartWhileTheIssuerIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		p.Instead(down)
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}})
		a.Warm(t.Context())
		good := token(t, p, authtest.Client{Subject: "svc", Lifetime: time.Hour})
		if retry(t, a, good) == 0 {
			t.Error("a token was judged without keys")
		}
		p.Instead(nil)
		time.Sleep(10 * time.Second)
		if got := judge(t, a, bearer(good)); got != "oidc svc" {
			t.Errorf("once the issuer is there: got %q", got)
		}
	})
}

// TestInventedKeysDoNotHammerTheIssuer is also about those who come at the wrong moment: they are told to come again.
func TestInventedKeysDoNotHammerTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}})
		a.Warm(t.Context())
		good := token(t, p, authtest.Client{Subject: "svc", Lifetime: time.Hour})
		before := p.KeysAsked()
		invent := func(n int) string {
			text, err := p.Sign(claims(p), map[jose.HeaderKey]any{"kid": fmt.Sprint("invented-", n)})
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		if got := judge(t, a, bearer(invent(0))); got != "refused: signature not by the issuer" {
			t.Errorf("an invented key: got %q", got)
		}
		for n := range 200 { // over 100 seconds
			_ = judge(t, a, bearer(invent(n)))
			if n%10 == 0 {
				if got := judge(t, a, bearer(good)); got != "oidc svc" {
					t.Fatalf("a good caller meanwhile: got %q", got)
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
		if asked := p.KeysAsked() - before; asked > 3+100/10 {
			t.Errorf("the issuer was asked %d times for 200 invented keys in 100 s", asked)
		}
		if retry(t, a, invent(1)) == 0 && retry(t, a, invent(2)) == 0 {
			t.Error("keys that were not looked for are called wrong")
		}
		if got := judge(t, a, bearer(good[:len(good)-4]+"AAAA")); got != "refused: signature not by the issuer" {
			t.Errorf("a wrong signature: got %q", got)
		}
	})
}

// TestOneFetchForAll: callers that come at once wait for one fetch.
func TestOneFetchForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		release := make(chan struct{})
		held := func(req *http.Request) (*http.Response, error) {
			<-release
			return emulator.Transport(p).RoundTrip(req)
		}
		i := trusting(p)
		i.Transport = roundTrip(held)
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{i}})
		good := token(t, p, authtest.Client{Subject: "svc"})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got := judge(t, a, bearer(good)); got != "oidc svc" {
					t.Errorf("got %q", got)
				}
			})
		}
		synctest.Wait()
		// Whoever gives up does not end it for the others.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Authenticate(ctx, bearer(good)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		close(release)
		wg.Wait()
		if n := p.KeysAsked(); n != 1 {
			t.Errorf("the keys were asked for %d times", n)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// TestWhatIssuersMayNotAnswer: none of it makes keys, and none of it is repeated in the log.
func TestWhatIssuersMayNotAnswer(t *testing.T) {
	document := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, format, args...)
		}
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(bytes.Repeat([]byte(" "), 64<<20))
	_ = z.Close()
	elsewhere := provider(t, issuerURL)
	for name, answer := range map[string]http.HandlerFunc{
		"OtherIssuer": document(`{"issuer": "https://evil.example/%s", "jwks_uri": "https://idp.example/keys"}`, canary),
		"NoIssuer":    document(`{"jwks_uri": "https://idp.example/keys"}`),
		"PlainHTTP": func(w http.ResponseWriter, r *http.Request) { // where there would be keys
			if r.URL.Path == "/keys" {
				elsewhere.ServeHTTP(w, r)
				return
			}
			document(`{"issuer": %q, "jwks_uri": "http://idp.example/keys"}`, issuerURL)(w, r)
		},
		"NoURL":  document(`{"issuer": %q, "jwks_uri": "%s"}`, issuerURL, canary),
		"NoKeys": document(`{"issuer": %q}`, issuerURL),
		"File":   document(`{"issuer": %q, "jwks_uri": "file:///etc/passwd"}`, issuerURL),
		"Page":   document(`<html>%s`, canary),
		"Long":   document(`{"issuer": %q, "x": "%s"}`, issuerURL, strings.Repeat("x", 2<<20)),
		"Bomb": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		},
		"Redirect": func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "evil.example" {
				elsewhere.ServeHTTP(w, r)
				return
			}
			http.Redirect(w, r, "https://evil.example"+r.URL.Path, http.StatusFound)
		},
		"Error": down,
		// All keys that there are: too weak, symmetric, for encryption, private, broken.
		"NoUsableKeys": func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "well-known") {
				document(`{"issuer": %q, "jwks_uri": "https://idp.example/keys"}`, issuerURL)(w, r)
				return
			}
			document(`{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}, {"kty": "RSA", "n": "%s", "e": "AQAB", "kid": "2"},
				{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "%s"}, {}]}`, strings.Repeat("A_w8", 40), canary)(w, r)
		},
		"KeysOfNoSet": func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "well-known") {
				document(`{"issuer": %q, "jwks_uri": "https://idp.example/keys"}`, issuerURL)(w, r)
				return
			}
			document(`["%s"]`, canary)(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				p := provider(t, issuerURL)
				p.Instead(answer)
				i := trusting(p)
				if name == "Bomb" { // the network's transport unpacks
					i.Transport = unpack{i.Transport}
				}
				a := authenticator(t, auth.Options{Issuers: []auth.Issuer{i}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				if retry(t, a, token(t, p, authtest.Client{Subject: "svc"})) == 0 {
					t.Error("a token was judged")
				}
				if long := name == "Long" || name == "Bomb"; long != strings.Contains(log.String(), "too long") {
					t.Errorf("the log says:\n%s", &log)
				}
				if strings.Contains(log.String(), canary) || !strings.Contains(log.String(), "cannot be fetched") {
					t.Errorf("the log says:\n%s", &log)
				}
			})
		})
	}
}

// unpack decompresses what is answered, as net/http's transport does.
type unpack struct{ http.RoundTripper }

func (u unpack) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := u.RoundTripper.RoundTrip(req)
	if err == nil && resp.Header.Get("Content-Encoding") == "gzip" {
		body := resp.Body
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		resp.Body = struct {
			io.Reader
			io.Closer
		}{z, body}
	}
	return resp, err
}

// TestReloadKeepsKeys: who reloads while the issuer is down refuses nobody.
func TestReloadKeepsKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		good := token(t, p, authtest.Client{Subject: "svc"})
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}})
		a.Warm(t.Context())
		p.Instead(down)
		again := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}, Previous: a})
		if got := judge(t, again, bearer(good)); got != "oidc svc" {
			t.Errorf("got %q", got)
		}
	})
}
