package auth_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
)

// FuzzAuthorization holds that no header but the good ones names a caller, and that a refusal never repeats the header.
func FuzzAuthorization(f *testing.F) {
	p := provider(f, issuerURL)
	key := auth.NewKey()
	a := authenticator(f, auth.Options{Issuers: []auth.Issuer{trusting(p)}, Keys: []auth.Key{{Name: "x", SHA256: auth.HashKey(key)}}})
	a.Warm(f.Context())
	c := claims(p)
	c["exp"] = 4102444800
	good, err := p.Sign(c, nil)
	if err != nil {
		f.Fatal(err)
	}
	parts := strings.Split(good, ".")
	for _, seed := range []string{
		"Bearer " + key, "Bearer " + good, "bearer " + good, "Bearer " + key + ".", "Basic eDp5", "Bearer ",
		"Bearer " + parts[0] + "." + parts[1] + ".", "Bearer eyJhbGciOiJub25lIn0." + parts[1] + ".AA",
		"Bearer eyJhbGciOiJIUzI1NiIsImtpZCI6ImtleS0xIn0." + parts[1] + "." + parts[2], "Bearer e30.e30.e30", "Bearer .." + good,
		"Bearer esk_aaaaaaaaaa_" + strings.Repeat("A", 43),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		caller, err := a.Authenticate(t.Context(), auth.Credentials{Authorization: []string{header}})
		scheme, credential, _ := strings.Cut(header, " ")
		if err == nil {
			if !strings.EqualFold(scheme, "bearer") || credential != key && credential != good {
				t.Fatalf("header %q is %s %q", header, caller.Kind, caller.Name)
			}
			return
		}
		var refused *auth.Error
		if !errors.As(err, &refused) || caller.Kind != "" || caller.Name != "" {
			t.Fatalf("header %q: caller %v, error %v", header, caller, err)
		}
		if len(credential) > 60 && strings.Contains(err.Error(), credential) {
			t.Fatalf("header %q is repeated: %v", header, err)
		}
	})
}

// FuzzToken holds that of all payloads, signed by the issuer, only those name a caller that say who it is, for whom the
// token is and that it has not expired; and that no payload makes it panic.
func FuzzToken(f *testing.F) {
	p, err := authtest.NewProvider(issuerURL)
	if err != nil {
		f.Fatal(err)
	}
	if err := p.Rotate(jose.EdDSA); err != nil {
		f.Fatal(err)
	}
	a := authenticator(f, auth.Options{Issuers: []auth.Issuer{{
		URL: issuerURL, Audiences: []string{"endsession"}, Transport: emulator.Transport(p), GroupsClaim: "a.b",
	}}})
	a.Warm(f.Context())
	for _, seed := range []string{
		`{"iss": "https://idp.example", "sub": "svc", "aud": "endsession", "exp": 4102444800}`,
		`{"iss": "https://idp.example", "sub": "svc", "aud": ["endsession"], "exp": 4102444800.5, "iat": 1, "nbf": 1e3, "a": {"b": ["g", 1]}}`,
		`{"iss": "https://idp.example", "sub": 7, "aud": {"x": 1}, "exp": "x"}`, `{"iss": "https://idp.example", "exp": -1, "cnf": []}`,
		`{"iss": "https://idp.example", "sub": "a", "sub": "b", "aud": "endsession", "exp": 1e308, "_claim_names": {"x": "y"}}`,
		`[]`, `null`, ``, `{`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		token, err := p.SignBytes(payload)
		if err != nil {
			t.Skip()
		}
		caller, err := a.Authenticate(t.Context(), bearer(token))
		if err != nil {
			return
		}
		sub, _ := caller.Facts.Claims["sub"].(string)
		exp, _ := caller.Facts.Claims["exp"].(float64)
		if caller.Name == "" || caller.Name != sub || exp < 1.7e9 || caller.Facts.Claims["iss"] != issuerURL || !strings.Contains(string(payload), "endsession") {
			t.Fatalf("payload %q is caller %q", payload, caller.Name)
		}
	})
}
