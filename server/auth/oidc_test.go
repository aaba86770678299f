package auth_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
)

const issuerURL = "https://idp.example"

func provider(t testing.TB, issuer string) *authtest.Provider {
	t.Helper()
	p, err := authtest.NewProvider(issuer)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// trusting is how the gateway is configured for a provider, without a network between them.
func trusting(p *authtest.Provider) auth.Issuer {
	return auth.Issuer{URL: p.Issuer(), Audiences: []string{"endsession"}, Transport: emulator.Transport(p)}
}

// token asks the provider for one.
func token(t testing.TB, p *authtest.Provider, c authtest.Client) string {
	t.Helper()
	if c.Audience == nil {
		c.Audience = []string{"endsession"}
	}
	token, err := p.Token(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokenNamesTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		i := trusting(p)
		i.GroupsClaim = "realm_access.roles"
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{i}})
		caller, err := a.Authenticate(t.Context(), bearer(token(t, p, authtest.Client{
			Subject: "svc-hr", Claims: map[string]any{"realm_access": map[string]any{"roles": []string{"hr", "staff"}}, "dept": "people"},
		})))
		if err != nil {
			t.Fatal(err)
		}
		if caller.Kind != "oidc" || caller.Name != "svc-hr" || !reflect.DeepEqual(caller.Facts.Groups, []string{"hr", "staff"}) {
			t.Errorf("got %s %q in %q", caller.Kind, caller.Name, caller.Facts.Groups)
		}
		if caller.Facts.Claims["dept"] != "people" || caller.Facts.Claims["iss"] != issuerURL {
			t.Errorf("got claims %v", caller.Facts.Claims)
		}
		if caller.Facts.Certificate != nil {
			t.Error("a token has no certificate")
		}
	})
}

// TestAlgorithms is about tokens whose signature is good, by an algorithm that is or is not allowed.
func TestAlgorithms(t *testing.T) {
	for algorithm, want := range map[jose.SignatureAlgorithm]string{
		jose.RS256: "oidc svc", jose.PS256: "oidc svc", jose.ES256: "oidc svc", jose.EdDSA: "oidc svc",
		jose.RS384: "refused: algorithm not allowed", jose.RS512: "refused: algorithm not allowed", jose.PS512: "refused: algorithm not allowed",
	} {
		t.Run(string(algorithm), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := provider(t, issuerURL)
				if err := p.Rotate(algorithm); err != nil {
					t.Fatal(err)
				}
				signed := token(t, p, authtest.Client{Subject: "svc"})
				if got := judge(t, authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}}), bearer(signed)); got != want {
					t.Errorf("by default: got %q, want %q", got, want)
				}
				only := trusting(p)
				only.Algorithms = []string{"RS512"}
				want := "refused: algorithm not allowed"
				if algorithm == jose.RS512 {
					want = "oidc svc"
				}
				if got := judge(t, authenticator(t, auth.Options{Issuers: []auth.Issuer{only}}), bearer(signed)); got != want {
					t.Errorf("with RS512 alone: got %q, want %q", got, want)
				}
			})
		})
	}
	p := provider(t, issuerURL)
	for _, algorithm := range []string{"none", "HS256", "ES256K", ""} {
		i := trusting(p)
		i.Algorithms = []string{algorithm}
		if _, err := auth.New(auth.Options{Issuers: []auth.Issuer{i}}); err == nil {
			t.Errorf("algorithm %q can be allowed", algorithm)
		}
	}
}

// claims are those of a good token of the provider.
func claims(p *authtest.Provider) map[string]any {
	now := time.Now().Unix()
	return map[string]any{"iss": p.Issuer(), "sub": "svc", "aud": "endsession", "iat": now, "nbf": now, "exp": now + 300}
}

// TestForgedTokens is about tokens that the issuer did not sign.
func TestForgedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stranger := provider(t, issuerURL), provider(t, issuerURL)
		a := authenticator(t, auth.Options{Issuers: []auth.Issuer{trusting(p)}})
		good := token(t, p, authtest.Client{Subject: "svc"})
		parts := strings.Split(good, ".")
		part := func(v any) string {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return base64.RawURLEncoding.EncodeToString(text)
		}
		public, err := x509.MarshalPKIXPublicKey(p.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: public}, (&jose.SignerOptions{}).WithHeader("kid", "key-1"))
		if err != nil {
			t.Fatal(err)
		}
		payload, _ := json.Marshal(claims(p))
		signed, err := hmac.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		withPublicKeyAsSecret, _ := signed.CompactSerialize()
		admin := claims(p)
		admin["sub"] = "admin"
		own, err := stranger.Sign(claims(stranger), map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: stranger.PublicKey()}})
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct{ name, token, want string }{
			{"Good", good, "oidc svc"},
			{"NoSignature", parts[0] + "." + parts[1] + ".", "refused: malformed token"},
			{"None", part(map[string]any{"alg": "none"}) + "." + parts[1] + ".AA", "refused: algorithm not allowed"},
			{"NoneInOtherCase", part(map[string]any{"alg": "nOnE"}) + "." + parts[1] + ".AA", "refused: algorithm not allowed"},
			{"NoAlgorithm", part(map[string]any{"kid": "key-1"}) + "." + parts[1] + "." + parts[2], "refused: algorithm not allowed"},
			{"HMACWithThePublicKey", withPublicKeyAsSecret, "refused: algorithm not allowed"},
			{"OtherClaims", parts[0] + "." + part(admin) + "." + parts[2], "refused: signature not by the issuer"},
			{"OtherHeader", part(map[string]any{"alg": "RS256", "kid": "key-1", "x": "y"}) + "." + parts[1] + "." + parts[2], "refused: signature not by the issuer"},
			{"AStrangersKeyOfThatID", token(t, stranger, authtest.Client{Subject: "svc"}), "refused: signature not by the issuer"},
			{"BringsItsOwnKey", own, "refused: signature not by the issuer"},
			{"CriticalHeader", part(map[string]any{"alg": "RS256", "kid": "key-1", "crit": []string{"b64"}, "b64": false}) + "." + parts[1] + "." + parts[2], "refused: signature not by the issuer"},
			{"FourParts", good + ".x", "refused: malformed token"},
			{"Padded", parts[0] + "=." + parts[1] + "." + parts[2], "refused: malformed Authorization header"},
			{"NotAnObject", parts[0] + "." + part([]string{"x"}) + "." + parts[2], "refused: malformed token"},
			{"Null", parts[0] + "." + part(nil) + "." + parts[2], "refused: malformed token"},
			{"Deep", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 11000))) + "." + parts[2], "refused: malformed token"},
			{"UnknownIssuer", parts[0] + "." + part(map[string]any{"iss": "https://evil.example"}) + "." + parts[2], "refused: unknown issuer"},
			{"IssuerWithASlash", parts[0] + "." + part(map[string]any{"iss": issuerURL + "/"}) + "." + parts[2], "refused: unknown issuer"},
			{"IssuerInCapitals", parts[0] + "." + part(map[string]any{"ISS": issuerURL}) + "." + parts[2], "refused: unknown issuer"},
			{"NoIssuer", parts[0] + "." + part(map[string]any{"sub": "svc"}) + "." + parts[2], "refused: unknown issuer"},
		} {
			if got := judge(t, a, bearer(test.token)); got != test.want {
				t.Errorf("%s: got %q, want %q", test.name, got, test.want)
			}
		}
	})
}

// TestClaims is about tokens that the issuer did sign.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, issuerURL)
		ca, err := authtest.NewAuthority()
		if err != nil {
			t.Fatal(err)
		}
		mine, err := ca.Client("mine")
		if err != nil {
			t.Fatal(err)
		}
		other, err := ca.Client("other")
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(mine.Leaf.Raw)
		thumbprint := base64.RawURLEncoding.EncodeToString(sum[:])
		now := time.Now().Unix()
		for _, test := range []struct {
			name    string
			claims  map[string]any // nil removes one
			headers map[jose.HeaderKey]any
			change  func(*auth.Issuer)
			with    *x509.Certificate
			want    string
		}{
			{name: "Good", want: "oidc svc"},
			{name: "AccessToken", headers: map[jose.HeaderKey]any{"typ": "at+jwt"}, want: "oidc svc"},
			{name: "AccessTokenInFull", headers: map[jose.HeaderKey]any{"typ": "application/AT+JWT"}, want: "oidc svc"},
			{name: "LogoutToken", headers: map[jose.HeaderKey]any{"typ": "logout+jwt"}, want: "refused: not a token for this use"},
			{name: "UntypedLogoutToken", claims: map[string]any{"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}, want: "refused: not a token for this use"},
			{name: "TypeIsNoText", headers: map[jose.HeaderKey]any{"typ": 7}, want: "refused: not a token for this use"},

			{name: "Expired", claims: map[string]any{"exp": now - 31}, want: "refused: expired token"},
			{name: "JustExpired", claims: map[string]any{"exp": now - 29}, want: "oidc svc"},
			{name: "NoExpiry", claims: map[string]any{"exp": nil}, want: "refused: no expiry in the token"},
			{name: "ExpiryInCapitals", claims: map[string]any{"exp": nil, "EXP": now + 300}, want: "refused: no expiry in the token"},
			{name: "ExpiryIsText", claims: map[string]any{"exp": "2100"}, want: "refused: no expiry in the token"},
			{name: "ExpiryBeyondTime", claims: map[string]any{"exp": 1e300}, want: "refused: no expiry in the token"},
			{name: "NotYet", claims: map[string]any{"nbf": now + 31}, want: "refused: token not valid yet"},
			{name: "NearlyYet", claims: map[string]any{"nbf": now + 29}, want: "oidc svc"},
			{name: "NotBeforeIsText", claims: map[string]any{"nbf": "soon"}, want: "refused: malformed token"},
			{name: "FromTheFuture", claims: map[string]any{"iat": now + 60}, want: "refused: token issued in the future"},
			{name: "TooOld", claims: map[string]any{"iat": now - 700}, change: func(i *auth.Issuer) { i.MaxAge = 10 * time.Minute }, want: "refused: token issued too long ago"},
			{name: "NotTooOld", claims: map[string]any{"iat": now - 500}, change: func(i *auth.Issuer) { i.MaxAge = 10 * time.Minute }, want: "oidc svc"},
			{name: "OfNoKnownAge", claims: map[string]any{"iat": nil}, change: func(i *auth.Issuer) { i.MaxAge = 10 * time.Minute }, want: "refused: token issued too long ago"},

			{name: "OneAudienceOfSeveral", claims: map[string]any{"aud": []string{"x", "endsession"}}, want: "oidc svc"},
			{name: "AnotherAudienceOfOurs", claims: map[string]any{"aud": "api://endsession"}, change: func(i *auth.Issuer) { i.Audiences = append(i.Audiences, "api://endsession") }, want: "oidc svc"},
			{name: "WrongAudience", claims: map[string]any{"aud": "kibana"}, want: "refused: wrong audience"},
			{name: "AudienceInCapitals", claims: map[string]any{"aud": "kibana", "Aud": "endsession"}, want: "refused: wrong audience"},
			{name: "LongerAudience", claims: map[string]any{"aud": "endsession2"}, want: "refused: wrong audience"},
			{name: "NoAudience", claims: map[string]any{"aud": nil}, want: "refused: wrong audience"},
			{name: "EmptyAudience", claims: map[string]any{"aud": []string{}}, want: "refused: wrong audience"},

			{name: "NoSubject", claims: map[string]any{"sub": nil}, want: "refused: no usable name in the token"},
			{name: "EmptySubject", claims: map[string]any{"sub": ""}, want: "refused: no usable name in the token"},
			{name: "SubjectWithALineBreak", claims: map[string]any{"sub": "svc\nadmin"}, want: "refused: no usable name in the token"},
			{name: "SubjectWithSpaceAround", claims: map[string]any{"sub": " svc"}, want: "refused: no usable name in the token"},
			{name: "SubjectThatTurnsText", claims: map[string]any{"sub": "svc\u202egro"}, want: "refused: no usable name in the token"},
			{name: "LongSubject", claims: map[string]any{"sub": strings.Repeat("x", 513)}, want: "refused: no usable name in the token"},
			{name: "AnotherName", claims: map[string]any{"client_id": "cli"}, change: func(i *auth.Issuer) { i.NameClaim = "client_id" }, want: "oidc cli"},
			{name: "AnotherNameThatIsNotThere", change: func(i *auth.Issuer) { i.NameClaim = "client_id" }, want: "refused: no usable name in the token"},
			{name: "Email", claims: map[string]any{"email": "a@corp.example", "email_verified": true}, change: func(i *auth.Issuer) { i.NameClaim = "email" }, want: "oidc a@corp.example"},
			{name: "UnverifiedEmail", claims: map[string]any{"email": "a@corp.example"}, change: func(i *auth.Issuer) { i.NameClaim = "email" }, want: "refused: email address not verified by the issuer"},
			{name: "Alias", change: func(i *auth.Issuer) { i.Alias = "corp" }, want: "oidc corp/svc"},

			{name: "Required", claims: map[string]any{"azp": "cli"}, change: func(i *auth.Issuer) { i.RequiredClaims = map[string][]string{"azp": {"ui", "cli"}} }, want: "oidc svc"},
			{name: "RequiredInAList", claims: map[string]any{"scp": []string{"read", "kill"}}, change: func(i *auth.Issuer) { i.RequiredClaims = map[string][]string{"scp": {"kill"}} }, want: "oidc svc"},
			{name: "RequiredIsAnother", claims: map[string]any{"azp": "evil"}, change: func(i *auth.Issuer) { i.RequiredClaims = map[string][]string{"azp": {"ui", "cli"}} }, want: "refused: a required claim is missing"},
			{name: "RequiredIsMissing", change: func(i *auth.Issuer) { i.RequiredClaims = map[string][]string{"azp": {"ui"}} }, want: "refused: a required claim is missing"},

			{name: "BoundToTheCertificate", claims: map[string]any{"cnf": map[string]any{"x5t#S256": thumbprint}}, with: mine.Leaf, want: "oidc svc"},
			{name: "BoundToAnother", claims: map[string]any{"cnf": map[string]any{"x5t#S256": thumbprint}}, with: other.Leaf, want: "refused: token bound to another key"},
			{name: "BoundAndStolen", claims: map[string]any{"cnf": map[string]any{"x5t#S256": thumbprint}}, want: "refused: token bound to another key"},
			{name: "BoundByDPoP", claims: map[string]any{"cnf": map[string]any{"jkt": "x"}}, with: mine.Leaf, want: "refused: token bound to another key"},
		} {
			signed := claims(p)
			maps.Copy(signed, test.claims)
			maps.DeleteFunc(signed, func(_ string, v any) bool { return v == nil })
			text, err := p.Sign(signed, test.headers)
			if err != nil {
				t.Fatal(err)
			}
			i := trusting(p)
			if test.change != nil {
				test.change(&i)
			}
			a := authenticator(t, auth.Options{Issuers: []auth.Issuer{i}, MTLS: &auth.MTLS{Name: auth.NameCN, Roots: ca.Pool}})
			c := bearer(text)
			if test.with != nil {
				c.Certificates = []*x509.Certificate{test.with}
			}
			if got := judge(t, a, c); got != test.want {
				t.Errorf("%s: got %q, want %q", test.name, got, test.want)
			}
		}
	})
}

// TestIdentitiesDoNotCollide: the same subject at two issuers is two callers.
func TestIdentitiesDoNotCollide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		corp, partner := provider(t, "https://idp.corp.example"), provider(t, "https://idp.partner.example")
		with := func(aliases ...string) error {
			a, b := trusting(corp), trusting(partner)
			a.Alias, b.Alias = aliases[0], aliases[1]
			_, err := auth.New(auth.Options{Issuers: []auth.Issuer{a, b}})
			return err
		}
		for _, aliases := range [][]string{{"", ""}, {"corp", ""}, {"", "partner"}, {"corp", "corp"}, {"corp/x", "corp"}} {
			if with(aliases...) == nil {
				t.Errorf("aliases %q are taken", aliases)
			}
		}
		a, b := trusting(corp), trusting(partner)
		a.Alias, b.Alias = "corp", "partner"
		both := authenticator(t, auth.Options{Issuers: []auth.Issuer{a, b}})
		if got := judge(t, both, bearer(token(t, corp, authtest.Client{Subject: "admin"}))); got != "oidc corp/admin" {
			t.Errorf("got %q", got)
		}
		if got := judge(t, both, bearer(token(t, partner, authtest.Client{Subject: "admin"}))); got != "oidc partner/admin" {
			t.Errorf("got %q", got)
		}
		// One issuer cannot speak for the other.
		forged := claims(corp)
		text, err := partner.Sign(forged, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := judge(t, both, bearer(text)); got != "refused: signature not by the issuer" {
			t.Errorf("a token of one issuer in the name of the other: got %q", got)
		}
		if _, err := auth.New(auth.Options{Issuers: []auth.Issuer{a, {URL: a.URL, Alias: "x", Audiences: []string{"y"}}}}); err == nil {
			t.Error("an issuer can be given twice")
		}
	})
}
