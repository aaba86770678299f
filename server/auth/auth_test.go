package auth_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/invalidation"
)

// authenticator makes one that logs nothing.
func authenticator(t testing.TB, o auth.Options) *auth.Authenticator {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a, err := auth.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// judge returns the caller's kind and name, or why there is none.
func judge(t testing.TB, a *auth.Authenticator, c auth.Credentials) string {
	t.Helper()
	caller, err := a.Authenticate(t.Context(), c)
	return verdict(t, caller, err)
}

func verdict(t testing.TB, caller invalidation.Caller, err error) string {
	t.Helper()
	var refused *auth.Error
	switch {
	case err == nil:
		return caller.Kind + " " + caller.Name
	case !errors.As(err, &refused):
		t.Errorf("got error %v, want an *auth.Error", err)
		return err.Error()
	case caller.Kind != "" || caller.Name != "":
		t.Errorf("got caller %v and error %v", caller, err)
	}
	return "refused: " + refused.Why
}

func bearer(token string) auth.Credentials {
	return auth.Credentials{Authorization: []string{"Bearer " + token}}
}

func TestAPIKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, temporary, other := auth.NewKey(), auth.NewKey(), auth.NewKey(), auth.NewKey()
		weak := "esk_aaaaaaaaaa_secret"
		key := func(name, key string) auth.Key { return auth.Key{Name: name, SHA256: auth.HashKey(key)} }
		expiring := key("helpdesk", temporary)
		expiring.NotAfter = time.Now().Add(time.Hour)
		a := authenticator(t, auth.Options{Keys: []auth.Key{
			key("helpdesk", first), key("helpdesk", second), expiring, key("hr", other), key("weak", weak),
		}})
		changed := []byte(first)
		// Another character that keys are made of.
		if c := &changed[len(changed)-10]; *c == 'A' {
			*c = 'B'
		} else {
			*c = 'A'
		}
		for _, test := range []struct{ name, key, want string }{
			{"One", first, "api_key helpdesk"},
			{"AnotherOfTheSame", second, "api_key helpdesk"},
			{"OneOfAnother", other, "api_key hr"},
			{"Expiring", temporary, "api_key helpdesk"},
			{"Unknown", auth.NewKey(), "refused: unknown key"},
			{"KnownID", string(changed), "refused: unknown key"},
			{"Short", first[:len(first)-1], "refused: malformed key"},
			{"Long", first + "A", "refused: malformed key"},
			{"Chosen", weak, "refused: malformed key"},
			{"Prefix", "esk_", "refused: malformed key"},
			{"OtherCase", strings.ToUpper(first[:4]) + first[4:], "refused: malformed token"},
		} {
			if got := judge(t, a, bearer(test.key)); got != test.want {
				t.Errorf("%s: got %q, want %q", test.name, got, test.want)
			}
		}
		time.Sleep(time.Hour)
		if got := judge(t, a, bearer(temporary)); got != "api_key helpdesk" {
			t.Errorf("at its last moment: got %q", got)
		}
		time.Sleep(time.Second)
		if got := judge(t, a, bearer(temporary)); got != "refused: expired key" {
			t.Errorf("after its last moment: got %q", got)
		}
		if got := judge(t, a, bearer(first)); got != "api_key helpdesk" {
			t.Errorf("another key of that name: got %q", got)
		}
	})
}

func TestNewKey(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		key := auth.NewKey()
		id, ok := auth.KeyID(key)
		secret, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(key, "esk_"+id+"_"))
		if !ok || err != nil || len(secret) != 32 || seen[key] || seen[id] {
			t.Fatalf("got key %q with id %q, %v, %d bytes", key, id, err, len(secret))
		}
		seen[key], seen[id] = true, true
		if auth.HashKey(key) != sha256.Sum256([]byte(key)) {
			t.Fatal("the hash is not what sha256sum would print")
		}
	}
}

// TestRefusalsTellNoSecret: an error goes into logs.
func TestRefusalsTellNoSecret(t *testing.T) {
	key := auth.NewKey()
	id, _ := auth.KeyID(key)
	a := authenticator(t, auth.Options{Keys: []auth.Key{{Name: "x", SHA256: auth.HashKey(auth.NewKey())}}})
	_, err := a.Authenticate(t.Context(), bearer(key))
	if err == nil || !strings.Contains(err.Error(), id) || strings.Contains(err.Error(), key[len("esk_")+len(id)+1:]) {
		t.Errorf("got %v, want the key's id and not its secret", err)
	}
}

func TestAuthorizationHeader(t *testing.T) {
	key := auth.NewKey()
	a := authenticator(t, auth.Options{Keys: []auth.Key{{Name: "x", SHA256: auth.HashKey(key)}}})
	for _, test := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"Good", []string{"Bearer " + key}, "api_key x"},
		{"SchemeInAnyCase", []string{"bEARER " + key}, "api_key x"},
		{"None", nil, "refused: no credential"},
		{"Two", []string{"Bearer " + key, "Bearer " + key}, "refused: several Authorization headers"},
		{"OneAndAnEmptyOne", []string{"Bearer " + key, ""}, "refused: several Authorization headers"},
		{"Empty", []string{""}, "refused: malformed Authorization header"},
		{"NoToken", []string{"Bearer "}, "refused: malformed Authorization header"},
		{"NoScheme", []string{key}, "refused: malformed Authorization header"},
		{"OtherScheme", []string{"Basic " + key}, "refused: malformed Authorization header"},
		{"TwoInOne", []string{"Bearer " + key + ", Bearer " + key}, "refused: malformed Authorization header"},
		{"TwoSpaces", []string{"Bearer  " + key}, "refused: malformed Authorization header"},
		{"Tab", []string{"Bearer\t" + key}, "refused: malformed Authorization header"},
		{"SpaceAfter", []string{"Bearer " + key + " "}, "refused: malformed Authorization header"},
		{"LineBreak", []string{"Bearer " + key + "\n"}, "refused: malformed Authorization header"},
		{"NUL", []string{"Bearer " + key + "\x00"}, "refused: malformed Authorization header"},
		{"NotASCII", []string{"Bearer " + key + "é"}, "refused: malformed Authorization header"},
		{"OnlyPadding", []string{"Bearer ===="}, "refused: malformed Authorization header"},
		{"Long", []string{"Bearer " + strings.Repeat("x", 16<<10+1)}, "refused: malformed Authorization header"},
		{"NoJWT", []string{"Bearer x.y"}, "refused: malformed token"},
	} {
		if got := judge(t, a, auth.Credentials{Authorization: test.headers}); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestNothingConfigured(t *testing.T) {
	if _, err := auth.New(auth.Options{Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("an authenticator was made that could let nobody in, or everybody")
	}
}

// TestCurrent: a replaced authenticator judges from then on.
func TestCurrent(t *testing.T) {
	old, next := auth.NewKey(), auth.NewKey()
	with := func(key string) *auth.Authenticator {
		return authenticator(t, auth.Options{Keys: []auth.Key{{Name: "x", SHA256: auth.HashKey(key)}}})
	}
	c := auth.NewCurrent(with(old))
	c.Replace(with(next))
	for key, want := range map[string]string{old: "refused: unknown key", next: "api_key x"} {
		caller, err := c.Authenticate(t.Context(), bearer(key))
		if got := verdict(t, caller, err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
