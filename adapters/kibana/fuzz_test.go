package kibana_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

// FuzzNeverMatchesMore: whatever the names are, the queries end no session that the selector does not match, and, if the
// selector is supported, all that it matches.
func FuzzNeverMatchesMore(f *testing.F) {
	f.Add(uint8(adapters.ByUser), "alice", "", "saml", "", "oidc", "")
	f.Add(uint8(adapters.ByUser), "", "saml", "saml", "", "oidc", "")
	f.Add(uint8(adapters.ByUser|adapters.ByProvider), "alice", "saml", "saml", "saml1", "saml", "")
	f.Add(uint8(adapters.ByUser|adapters.ByProvider), " ", "oidc", "saml", " ", "", "")
	f.Add(uint8(adapters.ByProvider), "", "", "basic", "\u0000", "basic", "basic")
	f.Add(uint8(adapters.ByProvider), "x\xff", "pki", "saml", "\xff", "saml", "\xfe")
	f.Add(uint8(adapters.All), "", "", "", "", "", "")
	f.Fuzz(func(t *testing.T, by uint8, name, at, type1, name1, type2, name2 string) {
		sel := adapters.Selector{By: adapters.Criteria(by)}
		if sel.By.Has(adapters.ByUser) {
			u := adapters.User{Name: name}
			if at != "" {
				u.At = []adapters.Provider{{Type: at, Name: name2}}
			}
			sel.Users = []adapters.User{u, {Name: name + "2", At: []adapters.Provider{{Type: type2}}}}
		}
		if sel.By.Has(adapters.ByProvider) {
			sel.Providers = []adapters.Provider{{Type: type1, Name: name1}, {Type: type2, Name: name2}}
		}
		x := setup(t, kibanatest.Options{Legacy: true})
		for _, p := range []adapters.Provider{
			{Type: type1, Name: name1}, {Type: type2, Name: name2}, {Type: type1, Name: "other"}, {Type: at, Name: name1},
			{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}, {Type: "pki", Name: strings.ToValidUTF8(name1, "\uFFFD")},
		} {
			if !slices.Contains([]string{"basic", "token", "saml", "oidc", "kerberos", "pki", "anonymous"}, p.Type) || p.Name == "" {
				continue
			}
			for _, who := range []string{name, name + "2", strings.ToUpper(name), strings.TrimSpace(name), strings.ToValidUTF8(name, "\uFFFD"), "alice", ""} {
				x.SignIn(adapters.Session{Username: who, Provider: p})
			}
		}
		seeded := x.Sessions()
		_, err := x.Invalidate(t.Context(), adapters.Request{Selector: sel})
		if supported := x.Supports(sel) == nil; supported != (err == nil) {
			t.Fatalf("%+v: supported %t, but %v", sel, supported, err)
		}
		left := x.Sessions()
		for _, s := range seeded {
			alive := slices.ContainsFunc(left, func(l adapters.Session) bool { return l.ID == s.ID })
			if !alive && !sel.Match(s) {
				t.Errorf("%+v ended %+v, which it does not match", sel, s)
			}
			if alive && err == nil && sel.Match(s) {
				t.Errorf("%+v left %+v, which it matches", sel, s)
			}
		}
		for _, body := range x.bodies() {
			if !utf8.ValidString(body) || strings.Contains(body, `""`) {
				t.Errorf("%+v sent %s", sel, body)
			}
		}
	})
}

// FuzzAnswers: only an object with a whole number as total is a success, and no answer shows in an error.
func FuzzAnswers(f *testing.F) {
	f.Add(200, "application/json", `{"total":3}`)
	f.Add(200, "application/json", `{"total":3.0,"Total":3}`)
	f.Add(200, "text/html", `{"total":3}`)
	f.Add(400, "application/json", `{"statusCode":400,"message":"[request body.match]: canary-7f1c2d"}`)
	f.Add(503, "text/html", "Kibana server is not ready yet canary-7f1c2d")
	f.Add(503, "application/json", `{"statusCode":503,"message":"License is not available. canary-7f1c2d"}`)
	f.Fuzz(func(t *testing.T, status int, contentType, body string) {
		if status < 200 || status > 599 {
			t.Skip()
		}
		x := setup(t, kibanatest.Options{})
		header := http.Header{"Content-Type": {contentType}}
		x.faults.Add(emulator.Rule{Fault: emulator.Answer(status, header, body)})
		r, err := x.Invalidate(t.Context(), adapters.Request{Selector: everybody})
		if err == nil {
			var reply map[string]any
			d := json.NewDecoder(strings.NewReader(body))
			d.UseNumber()
			if d.Decode(&reply) != nil || status != 200 {
				t.Fatalf("%d %q is taken for success", status, body)
			}
			total, ok := reply["total"].(json.Number)
			if n, err := total.Int64(); !ok || err != nil || n < 0 || int64(r.Count) != n {
				t.Fatalf("%q counts as %d", body, r.Count)
			}
		} else {
			var e *adapters.Error
			if !errors.As(err, &e) || r.Count != 0 {
				t.Fatalf("%v, %+v", err, r)
			}
			if status >= 500 && e.Kind == adapters.Busy && status != 503 {
				t.Errorf("%d is %v", status, e.Kind)
			}
			wantQuiet(t, x, err)
		}
		// The same as the answer to a list and to a probe.
		if _, err := x.Preview(t.Context(), provider(fromCaller("saml", "no such provider"))); err == nil {
			t.Errorf("%q vouches for a name", body)
		}
		h, err := x.Probe(t.Context())
		if err != nil || h.Healthy() && status != 400 {
			t.Errorf("%d %q: %+v, %v", status, body, h, err)
		}
	})
}
