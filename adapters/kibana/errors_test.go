package kibana_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/httpclient"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	"github.com/endsession/endsession/adapters/secret"
)

var weakling = []kibanatest.Account{{APIKey: apiKey}}

// TestErrorsOfKibana are the refusals of the product itself.
func TestErrorsOfKibana(t *testing.T) {
	for _, c := range []struct {
		name    string
		options kibanatest.Options
		trouble kibanatest.Trouble
		change  func(*kibana.Config)
		kind    adapters.Kind
		after   time.Duration
		say     string // part of the public message
	}{
		{name: "wrong credentials", change: func(c *kibana.Config) { c.APIKey = secret.New("keyid:wrong-horse") },
			kind: adapters.Credentials, say: "credentials"},
		{name: "Basic without a basic provider", kind: adapters.Credentials, say: "of this kind",
			options: kibanatest.Options{Providers: []kibanatest.Provider{{Type: "saml", Name: "saml1"}},
				Accounts: []kibanatest.Account{{Username: "elastic", Password: "correct-horse", Superuser: true}}},
			change: func(c *kibana.Config) {
				c.APIKey, c.Username, c.Password = secret.String{}, "elastic", secret.New("correct-horse")
			}},
		{name: "HTTP authentication off", options: kibanatest.Options{HTTPAuthenticationDisabled: true}, kind: adapters.Credentials},
		{name: "not a superuser", options: kibanatest.Options{Accounts: weakling}, kind: adapters.Denied, say: "superuser"},
		{name: "not a superuser, before 8.17", options: kibanatest.Options{Accounts: weakling, Legacy: true}, kind: adapters.Denied, say: "superuser"},
		{name: "excluded or too old", options: kibanatest.Options{ExcludeRoute: true}, kind: adapters.Rejected, say: "7.13"},
		{name: "wrong base path", change: func(c *kibana.Config) { c.URL += "/kibana" }, kind: adapters.Rejected, say: "base path"},
		{name: "serverless", options: kibanatest.Options{Serverless: true}, kind: adapters.Rejected, say: "Serverless"},
		{name: "overloaded", trouble: kibanatest.Overloaded, kind: adapters.Busy},
		{name: "starting", trouble: kibanatest.NotReady, kind: adapters.Busy, after: 30 * time.Second, say: "not ready"},
		{name: "no licence", trouble: kibanatest.NoLicense, kind: adapters.Busy, after: 30 * time.Second},
		{name: "not initialized", trouble: kibanatest.NotInitialized, kind: adapters.Busy, after: 30 * time.Second},
		{name: "Elasticsearch refuses", trouble: kibanatest.ElasticsearchDown, kind: adapters.Uncertain, say: "a part"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var change []func(*kibana.Config)
			if c.change != nil {
				change = append(change, c.change)
			}
			f := setup(t, c.options, change...)
			f.people("alice")
			f.Suffer(c.trouble)
			r, err := f.Invalidate(t.Context(), adapters.Request{Selector: everybody})
			e := wantKind(t, err, c.kind)
			if e.RetryAfter != c.after || !strings.Contains(e.Message, c.say) {
				t.Errorf("%q, again after %v; want %q, %v", e.Message, e.RetryAfter, c.say, c.after)
			}
			if r.CountIsMinimum != (c.kind == adapters.Uncertain) || r.Counted {
				t.Errorf("%+v", r)
			}
			wantQuiet(t, f, err)
		})
	}
}

// kibanaError is an error body in Kibana's form, with something that must not leak.
func kibanaError(status int, message string) emulator.Fault {
	f := emulator.Answer(status, http.Header{"Content-Type": {"application/json; charset=utf-8"}},
		fmt.Sprintf(`{"statusCode":%d,"error":"%s","message":"%s %s"}`, status, http.StatusText(status), message, emulator.Canary))
	f.Name = fmt.Sprintf("%d %.30s", status, message)
	return f
}

// TestErrorsInBetween are those of versions the emulator is not, of proxies and of the network.
func TestErrorsInBetween(t *testing.T) {
	asIf := func(status int, contentType, body string) emulator.Fault {
		f := emulator.Answer(status, http.Header{"Content-Type": {contentType}}, body)
		f.Name = fmt.Sprintf("%d %s %.40s", status, contentType, body)
		return f
	}
	const json = "application/json"
	for _, c := range []struct {
		fault emulator.Fault
		kind  adapters.Kind
		say   string
	}{
		{kibanaError(400, "[request body.query.provider.type]: expected value of type [string] but got [undefined]"), adapters.Rejected, "form"},
		{kibanaError(400, "Request must contain a kbn-xsrf header."), adapters.Rejected, "kbn-xsrf"},
		{kibanaError(400, "Browser client is out of date, please refresh the page"), adapters.Rejected, "kbn-version"},
		{kibanaError(400, "something else"), adapters.Rejected, ""},
		{kibanaError(415, "Unsupported Media Type"), adapters.Rejected, ""},
		{kibanaError(503, "License is not available."), adapters.Busy, ""},
		{emulator.StatusHTML(400), adapters.Rejected, ""},
		{emulator.StatusHTML(403), adapters.Denied, ""},
		{emulator.StatusHTML(404), adapters.Rejected, "base path"},
		{emulator.StatusRetryAfter(429, "7"), adapters.Busy, ""},
		// A 500 may come after a part was deleted, and any 503 that is not Kibana's own after all of it.
		{emulator.Status(500), adapters.Uncertain, ""},
		{emulator.StatusHTML(500), adapters.Uncertain, ""},
		{emulator.Status(502), adapters.Uncertain, ""},
		{emulator.Status(503), adapters.Uncertain, ""},
		{emulator.StatusHTML(503), adapters.Uncertain, ""},
		{emulator.StatusHTML(504), adapters.Uncertain, ""},
		{emulator.Refuse(), adapters.Unreachable, ""},
		{emulator.Reset(), adapters.Uncertain, ""},
		{emulator.Cut(), adapters.Uncertain, ""},
		// What is not an answer of Kibana's is not "0 sessions".
		{emulator.Redirect("https://elsewhere.example/login"), adapters.BadReply, ""},
		{emulator.Page(), adapters.BadReply, ""},
		{emulator.Null(), adapters.BadReply, ""},
		{emulator.Empty(), adapters.BadReply, ""},
		{emulator.Huge(2 << 20), adapters.BadReply, ""},
		{emulator.Truncated(), adapters.BadReply, ""},
		{emulator.ContentType("text/html"), adapters.BadReply, ""},
		{asIf(200, "text/html", `{"total":0}`), adapters.BadReply, ""},
		{asIf(200, json, `{}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"Total":1}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":null}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":"1"}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":1.5}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":1.0}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":1e3}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":-1}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":-0}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":99999999999999999999}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":2147483648}`), adapters.BadReply, "total"},
		{asIf(200, json, `{"total":[1]}`), adapters.BadReply, "total"},
		{asIf(200, json, `[{"total":1}]`), adapters.BadReply, ""},
		{asIf(200, json, `7`), adapters.BadReply, ""},
		{asIf(202, json, `{"total":1}`), adapters.BadReply, "202"},
		{asIf(204, json, ``), adapters.BadReply, "204"},
	} {
		t.Run(c.fault.Name, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			f.people("alice")
			f.faults.Add(emulator.Rule{Match: kills, Fault: c.fault})
			r, err := f.Invalidate(t.Context(), adapters.Request{Selector: everybody})
			e := wantKind(t, err, c.kind)
			if !strings.Contains(e.Message, c.say) {
				t.Errorf("%q, want %q in it", e.Message, c.say)
			}
			if want := c.kind == adapters.Uncertain || c.kind == adapters.BadReply; r.CountIsMinimum != want || r.Counted {
				t.Errorf("%+v", r)
			}
			wantQuiet(t, f, err)
		})
	}
}

// TestAsksLongerThanKibanaDoes: Kibana gives Elasticsearch up after 30 s, and says so. To wait longer is to learn it.
func TestAsksLongerThanKibanaDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{Legacy: true})
		f.people("alice")
		f.faults.Add(emulator.Rule{Match: kills, Times: 1, Fault: emulator.Delay(40 * time.Second)})
		if r, err := f.Invalidate(t.Context(), adapters.Request{Selector: everybody}); err != nil || r.Count != 8 {
			t.Errorf("slow: %+v, %v", r, err)
		}
		f.faults.Add(emulator.Rule{Match: kills, Times: 1, Fault: emulator.Hang()})
		_, err := f.Invalidate(t.Context(), adapters.Request{Selector: everybody})
		wantKind(t, err, adapters.Uncertain)
	})
}

// wantQuiet checks that neither the error with its causes nor the log shows a secret or what the upstream said.
func wantQuiet(t *testing.T, f *fixture, err error) {
	t.Helper()
	texts := []string{f.log.String()}
	for e := err; e != nil; e = errors.Unwrap(e) {
		texts = append(texts, e.Error(), fmt.Sprintf("%+v %#v", e, e))
	}
	for _, text := range texts {
		for _, bad := range []string{emulator.Canary, "correct-horse", "wrong-horse", "a2V5aWQ6", "security_exception", "alice"} {
			if strings.Contains(text, bad) {
				t.Errorf("%q shows in %s", bad, text)
			}
		}
	}
}

func TestProbe(t *testing.T) {
	says := func(status string) *emulator.Rule {
		return &emulator.Rule{Match: emulator.On("", "/api/status"), Fault: emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, status)}
	}
	saml := []kibanatest.Provider{{Type: "basic", Name: "basic"}, {Type: "saml", Name: "okta"}}
	for _, c := range []struct {
		name    string
		options kibanatest.Options
		trouble kibanatest.Trouble
		change  func(*kibana.Config)
		fault   *emulator.Rule
		mapped  []adapters.Provider
		want    string
	}{
		{name: "all is well", options: kibanatest.Options{Providers: saml, RestrictInternalAPIs: true, Version: "8.17.1"},
			want: "8.17.1 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=ok"},
		{name: "wrong credentials", change: func(c *kibana.Config) { c.APIKey = secret.New("keyid:wrong-horse") },
			want: " reachable=ok credentials=failed"},
		{name: "not a superuser", options: kibanatest.Options{Accounts: weakling}, want: " reachable=ok credentials=ok privilege=failed"},
		{name: "too old", options: kibanatest.Options{ExcludeRoute: true}, want: " reachable=ok api=failed"},
		{name: "serverless", options: kibanatest.Options{Serverless: true}, want: " reachable=ok api=failed"},
		{name: "starting", trouble: kibanatest.NotReady, want: " reachable=ok api=failed"},
		{name: "overloaded", trouble: kibanatest.Overloaded, want: " reachable=ok api=failed"},
		{name: "security disabled", options: kibanatest.Options{SecurityDisabled: true},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=warning scope=ok"},
		{name: "narrowed", options: kibanatest.Options{Providers: saml}, change: func(c *kibana.Config) { c.ProviderTypes = []string{"basic"} },
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=warning"},
		{name: "a type nobody knows", options: kibanatest.Options{Providers: []kibanatest.Provider{{Type: "passkey", Name: "passkey"}}},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=warning"},
		{name: "no login state", fault: &emulator.Rule{Match: emulator.On("", loginStatePath), Fault: emulator.Status(404)},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=unknown"},
		{name: "no status", fault: &emulator.Rule{Match: emulator.On("", "/api/status"), Fault: emulator.Page()},
			want: " reachable=ok credentials=ok privilege=ok api=ok version=unknown security=ok scope=ok"},
		{name: "a strange version", fault: &emulator.Rule{Match: emulator.On("", "/api/status"),
			Fault: emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, `{"version":{"number":"9\n<b>"}}`)},
			want: " reachable=ok credentials=ok privilege=ok api=ok version=unknown security=ok scope=ok"},
		{name: "no second answer", fault: &emulator.Rule{Match: kills, Skip: 1, Fault: emulator.Reset()},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=unknown scope=ok"},
		{name: "old", options: kibanatest.Options{Version: "7.12.1", Legacy: true},
			want: "7.12.1 reachable=ok credentials=ok privilege=ok api=ok version=warning elasticsearch=ok security=ok scope=ok"},
		{name: "first", options: kibanatest.Options{Version: "7.13.0", Legacy: true},
			want: "7.13.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=ok"},
		{name: "new", options: kibanatest.Options{Version: "10.0.0-SNAPSHOT"},
			want: "10.0.0-SNAPSHOT reachable=ok credentials=ok privilege=ok api=ok version=warning elasticsearch=ok security=ok scope=ok"},
		{name: "elasticsearch is down", trouble: kibanatest.ElasticsearchDown,
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=failed security=ok scope=ok"},
		{name: "degraded", fault: says(`{"version":{"number":"8.1.0"},"status":{"core":{"elasticsearch":{"level":"degraded"}}}}`),
			want: "8.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=warning security=ok scope=ok"},
		{name: "green", fault: says(`{"version":{"number":"7.17.0"},"status":{"overall":{"state":"green"}}}`),
			want: "7.17.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=ok"},
		{name: "red", fault: says(`{"version":{"number":"7.17.0"},"status":{"overall":{"state":"red"}}}`),
			want: "7.17.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=failed security=ok scope=ok"},
		{name: "a word nobody knows", fault: says(`{"version":{"number":"8.1.0"},"status":{"core":{"elasticsearch":{"level":"<b>alice</b>"}}}}`),
			want: "8.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok security=ok scope=ok"},
		{name: "mapped", options: kibanatest.Options{Providers: saml}, mapped: []adapters.Provider{{Type: "saml", Name: "okta"}, {Type: "basic"}},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=ok mapping=ok"},
		{name: "mapped to a wrong name", options: kibanatest.Options{Providers: saml}, mapped: []adapters.Provider{{Type: "saml", Name: "saml1"}},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=ok mapping=warning"},
		{name: "mapped to a wrong type", options: kibanatest.Options{Providers: saml}, mapped: []adapters.Provider{{Type: "basic"}, {Type: "oidc"}},
			want: "9.1.0 reachable=ok credentials=ok privilege=ok api=ok version=ok elasticsearch=ok security=ok scope=ok mapping=warning"},
		{name: "breaks", fault: &emulator.Rule{Fault: emulator.Status(500)}, want: " reachable=ok api=failed"},
		{name: "out of reach", fault: &emulator.Rule{Fault: emulator.Refuse()}, want: " reachable=failed"},
		{name: "a proxy's page", fault: &emulator.Rule{Fault: emulator.Page()}, want: " reachable=ok api=failed"},
		{name: "a redirect", fault: &emulator.Rule{Fault: emulator.Redirect("https://elsewhere.example/")}, want: " reachable=ok api=failed"},
		// Whatever would accept such a body is not the API this adapter knows.
		{name: "a body accepted", fault: &emulator.Rule{Fault: emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, `{"total":0}`)},
			want: " reachable=ok api=failed"},
		{name: "another refusal", fault: &emulator.Rule{Fault: kibanaError(400, "[request body.query]: no")}, want: " reachable=ok api=failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var change []func(*kibana.Config)
			if c.change != nil {
				change = append(change, c.change)
			}
			f := setup(t, c.options, change...)
			f.mapped = c.mapped
			f.restart(t)
			f.people("alice")
			seeded := len(f.Sessions())
			f.Suffer(c.trouble)
			if c.fault != nil {
				f.faults.Add(*c.fault)
			}
			fenced := false
			h, err := f.Probe(adapters.WithFence(t.Context(), func(context.Context) error { fenced = true; return nil }))
			if err != nil {
				t.Fatal(err)
			}
			got := h.Version
			for _, x := range h.Checks {
				got += " " + x.Name + "=" + [...]string{"", "ok", "warning", "failed", "unknown"}[x.Status]
				if (x.Status == adapters.CheckOK) != (x.Remedy == "") {
					t.Errorf("%+v: no remedy, or needs none", x)
				}
				wantQuiet(t, f, errors.New(x.Message+x.Remedy))
			}
			if got != c.want {
				t.Errorf("got %s,\nwant %s", got, c.want)
			}
			if fenced || len(f.Sessions()) != seeded {
				t.Errorf("fence asked: %t; %d sessions of %d left", fenced, len(f.Sessions()), seeded)
			}
			for _, body := range f.bodies() {
				if body != `{"match":"probe"}` {
					t.Errorf("sent %s", body)
				}
			}
		})
	}
}

// TestProbeNamesTheProviders, so that an operator can map them.
func TestProbeNamesTheProviders(t *testing.T) {
	f := setup(t, kibanatest.Options{Providers: []kibanatest.Provider{{Type: "basic", Name: "cloud-basic"}, {Type: "saml", Name: "a\x1b[31mb"}}})
	h, err := f.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := h.Checks[len(h.Checks)-1].Message
	if want := "providers: basic/cloud-basic, one with an unusual name (12 bytes)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := setup(t, kibanatest.Options{}).Probe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
}

// TestOverTLS goes over a real listener: an authority that nobody trusts is a finding, one in ca_file is not.
func TestOverTLS(t *testing.T) {
	s := kibanatest.New(kibanatest.Options{Accounts: []kibanatest.Account{superuser}})
	url, ca, stop, err := emulator.ServeTLS(s.Handler())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for name, c := range map[string]struct {
		ca   []byte
		want adapters.CheckStatus
	}{
		"trusted": {ca, adapters.CheckOK}, "not trusted": {nil, adapters.CheckFailed},
	} {
		config := &kibana.Config{URL: url, APIKey: secret.New(apiKey)}
		if c.ca != nil {
			config.CAFile = filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(config.CAFile, c.ca, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a, err := config.Open(adapters.Deps{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		h, err := a.Probe(t.Context())
		if err != nil || len(h.Checks) == 0 || h.Status("tls") != c.want || h.Healthy() != (c.ca != nil) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
	if _, err := (&kibana.Config{URL: url, APIKey: secret.New(apiKey), TLSConfig: httpclient.TLSConfig{CAFile: "no such file"}}).Open(adapters.Deps{Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("opened without the CA file")
	}
}
