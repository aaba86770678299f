package kibana_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/adaptertest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	"github.com/endsession/endsession/adapters/secret"
)

// TestConformance runs the suite against Kibana as it is, where searches lag, and as it was before 8.8.
func TestConformance(t *testing.T) {
	for name, legacy := range map[string]bool{"Current": false, "Before88": true} {
		t.Run(name, func(t *testing.T) { adaptertest.Run(t, harness(legacy)) })
	}
}

func harness(legacy bool) adaptertest.Harness {
	const password = `pass"wörd & more`
	places := []adapters.Provider{
		of("basic", "basic"), of("saml", "saml1"), of("saml", "saml2"), of("saml", "Saml1"), of("oidc", "saml1"), of("token", "token"),
		of("kerberos", "kerberos"), of("pki", "pki"), of("anonymous", "anonymous"),
	}
	h := adaptertest.Harness{
		Type: kibana.Type(),
		Providers: []adapters.Provider{
			of("saml", "saml1"), of("saml"), of("basic"), of("oidc", "saml1"), of("basic", "basic"), of("anonymous"),
		},
		Secrets: []string{password, apiKey},
		// A total is all that Kibana tells.
		Undetected: map[emulator.Lie]adapters.Verification{
			emulator.Keep:        adapters.Unverifiable,
			emulator.KeepAndHide: adapters.ConfirmedByRepeat,
			emulator.Deny:        adapters.ConfirmedByRepeat,
			emulator.EndSome:     adapters.Unverifiable,
		},
		Start: func(testing.TB) adaptertest.Emulator {
			var configured []kibanatest.Provider
			for _, p := range places {
				configured = append(configured, kibanatest.Provider{Type: p.Type, Name: p.Name})
			}
			return kibanatest.New(kibanatest.Options{
				BasePath: "/base", Legacy: legacy, Providers: configured, RestrictInternalAPIs: true,
				Accounts: []kibanatest.Account{{Username: "svc-endsession", Password: password, Superuser: true}},
			})
		},
		Open: func(t testing.TB, _ adaptertest.Emulator, deps adapters.Deps) adapters.Adapter {
			a, err := (&kibana.Config{
				URL: "https://kibana.example/base", Username: "svc-endsession", Password: secret.New(password),
			}).Open(deps)
			if err != nil {
				t.Fatal(err)
			}
			return a
		},
		// Whatever reaches the route ends sessions, unless Kibana's schema cannot take it.
		Mutates: func(r *http.Request, body []byte) bool {
			var b struct{ Match string }
			_ = json.Unmarshal(body, &b)
			return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, invalidatePath) && b.Match != "probe"
		},
	}
	for _, p := range places {
		h.Places = append(h.Places, adapters.Session{Provider: p})
	}
	return h
}
