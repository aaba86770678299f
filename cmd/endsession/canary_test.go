package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/status"

	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/auth/authtest"
	"github.com/endsession/endsession/server/telemetry"
)

// echoing is a system that now and then, instead of doing what it is asked, sends back all it was sent: in an error, in
// an answer that means nothing, in a refusal.
type echoing struct {
	emulated
	requests atomic.Int64
}

func (e *echoing) Handler() http.Handler {
	real := e.emulated.Handler()
	answers := []int{0, 500, 0, 0, 400, 0, 200, 0, 403, 0, 0, 503, 0, 404, 0}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := answers[int(e.requests.Add(1))%len(answers)]
		if code == 0 {
			real.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"message": %q, "error": {"code": 500, "name": "xEcho", "message": %q}, "sent": %q}`, fmt.Sprint(r.Header), fmt.Sprint(r.Header), body)
	})
}

// forms are how a secret may look where it should not be.
func forms(secret string) []string {
	all := []string{secret, url.QueryEscape(secret), hex.EncodeToString([]byte(secret))}
	// Within a longer text in base64, a secret looks one of three ways, but for the characters at its ends.
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret + "xx"))
		all = append(all, text[4*((shift+2)/3):len(text)-8])
	}
	return all
}

// No secret is in anything that leaves the process or stays on the disk, whatever the targets send back.
func TestSecretsAreNowhere(t *testing.T) {
	l := newLab()
	for name, s := range l.systems {
		l.systems[name] = &echoing{emulated: s}
	}
	spans := tracetest.NewSpanRecorder()
	reported, err := telemetry.New(t.Context(), telemetry.Options{Spans: spans})
	if err != nil {
		t.Fatal(err)
	}
	const auditKey = "audit-s3cret-0123456789-abcdefghij-xyz"
	g := startGuardedLab(t, l, "\naudit: { key: "+auditKey+" }\n", func(o *server.Options) { o.Telemetry = reported })
	secrets := map[string]string{
		"BIG-IQ password": labBIGIQPassword, "Kibana key": labKibanaKey, "Element password": labElementPassword,
		"audit key": auditKey, "API key": g.keys["helpdesk"], "expired API key": g.keys["expired"],
		"token": g.token(t, authtest.Client{Subject: "svc-hr", Audience: []string{"endsession"}}),
	}
	key, err := os.ReadFile(filepath.Join(g.dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	secrets["private key"] = strings.Split(string(key), "\n")[1]

	outputs := map[string]string{}
	note := func(what, text string) { outputs[what] += text + "\n" }
	bearer := func(secret string) client { return client{authorization: []string{"Bearer " + secret}} }
	callers := map[string]client{
		"helpdesk": bearer(secrets["API key"]), "svc-hr": bearer(secrets["token"]), "expired": bearer(secrets["expired API key"]),
		"malformed": bearer(secrets["API key"] + "x"), "basic": {authorization: []string{"Basic " + base64.StdEncoding.EncodeToString([]byte(secrets["API key"]))}},
	}
	for name, c := range callers {
		send := g.http(t, c)
		ctx, cc := g.grpc(t, c)
		for _, r := range rpcs {
			method, path, body := r.request()
			code, header, answer := send(method, path, body)
			note("answers over REST", fmt.Sprint(name, code, header, answer))
			if err := r.call(ctx, cc); err != nil {
				st := status.Convert(err)
				note("errors over gRPC", fmt.Sprint(name, st.Code(), st.Message(), st.Details()))
			}
		}
	}
	send := g.http(t, callers["helpdesk"])
	for i, body := range []string{
		`{"selector": {"user": {"id": "alice"}}, "waitTimeout": "2s"}`,
		`{"selector": {"user": {"id": "bob"}}, "waitTimeout": "2s"}`,
		`{"selector": {"provider": {"type": "saml", "name": "okta"}}, "confirmBroad": true, "waitTimeout": "2s"}`,
		`{"selector": {"group": "vpn"}, "confirmBroad": true, "waitTimeout": "2s"}`,
		`{"selector": {"all": true}, "confirmBroad": true, "waitTimeout": "2s"}`,
	} {
		_, _, answer := send("POST", "/v1/sessions:invalidate", strings.Replace(body, `"waitTimeout": "2s"`, `"validateOnly": true`, 1))
		note("previews", answer)
		_, _, answer = send("POST", "/v1/sessions:invalidate", body)
		note("invalidations", fmt.Sprint(i, answer))
	}
	for _, target := range l.targets {
		for range 4 {
			_, _, answer := send("POST", "/v1/targets/"+target+":check", "{}")
			note("checks", answer)
		}
	}
	_, _, answer := send("GET", "/v1/invalidations", "")
	note("lists", answer)
	resp, err := http.Get("http://" + g.srv.AdminAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	note("metrics", string(metrics))
	for name, value := range labEnv {
		t.Setenv(name, value)
	}
	checked := cli{}.run(t, "config", "check", g.path)
	if checked.status != 0 {
		t.Fatalf("config check: %s", checked.err)
	}
	note("config check", checked.out+checked.err)

	// What the targets gave out to be let in with is secret as well.
	for target, recorder := range g.sent {
		for _, r := range recorder.Requests() {
			for _, name := range []string{"Authorization", "X-F5-Auth-Token", "Cookie"} {
				if v := r.Header.Get(name); v != "" {
					secrets[fmt.Sprintf("%s sent to %s: %.12s", name, target, v)] = v[strings.LastIndex(v, " ")+1:]
				}
			}
		}
	}
	if n := len(secrets); n < 10 {
		t.Errorf("only %d secrets are looked for", n)
	}

	note("log", g.log.String())
	for _, s := range spans.Ended() {
		note("traces", fmt.Sprint(s.Name(), s.Attributes(), s.Events(), s.Status()))
	}
	for name, least := range map[string]int{"log": 5000, "previews": 2000, "invalidations": 5000, "checks": 2000, "metrics": 5000,
		"answers over REST": 5000, "errors over gRPC": 1000, "config check": 1000, "traces": 5000} {
		if len(outputs[name]) < least {
			t.Errorf("%s: only %d bytes: the test has lost what it looks at", name, len(outputs[name]))
		}
	}
	if err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), "endsession.db") {
			return err
		}
		data, err := os.ReadFile(path)
		outputs["journal, "+d.Name()] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(outputs["journal, endsession.db"])+len(outputs["journal, endsession.db-wal"]) < 50_000 {
		t.Error("the journal was not read")
	}
	for where, text := range outputs {
		for name, secret := range secrets {
			for _, form := range forms(secret) {
				if i := strings.Index(text, form); i >= 0 {
					t.Errorf("%s: %s is in it: …%.200q", where, name, bytes.ToValidUTF8([]byte(text[max(i-80, 0):]), nil))
					break
				}
			}
		}
	}
}
