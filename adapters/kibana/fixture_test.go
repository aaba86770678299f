package kibana_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	"github.com/endsession/endsession/adapters/secret"
)

const (
	invalidatePath = "/api/security/session/_invalidate"
	loginStatePath = "/internal/security/login_state"
	apiKey         = "keyid:correct-horse"
)

// superuser is the gateway's account at the emulator.
var superuser = kibanatest.Account{APIKey: apiKey, Superuser: true}

// fixture is an adapter before an emulated Kibana, with a recorder and faults in between.
type fixture struct {
	*kibanatest.Server
	config *kibana.Config
	faults *emulator.Faults
	sent   *emulator.Recorder
	log    *bytes.Buffer
	mapped []adapters.Provider
	adapters.Adapter
}

func setup(t testing.TB, o kibanatest.Options, change ...func(*kibana.Config)) *fixture {
	t.Helper()
	if o.Accounts == nil {
		o.Accounts = []kibanatest.Account{superuser}
	}
	o.DeletionsLag = !o.Legacy
	f := &fixture{
		Server: kibanatest.New(o),
		config: &kibana.Config{URL: "https://kibana.example" + o.BasePath, APIKey: secret.New(apiKey)},
		log:    new(bytes.Buffer),
	}
	for _, c := range change {
		c(f.config)
	}
	f.faults = emulator.NewFaults(f.Transport())
	f.sent = emulator.NewRecorder(f.faults)
	f.restart(t)
	return f
}

// restart opens the adapter anew, as another process would.
func (f *fixture) restart(t testing.TB) {
	t.Helper()
	a, err := f.config.Open(adapters.Deps{
		Target: "kibana-prod", Transport: f.sent, Mapped: adapters.Mapped{Providers: f.mapped},
		Logger: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Adapter = a
}

// people signs somebody in everywhere, long enough ago for searches to see it.
func (f *fixture) people(names ...string) {
	for _, p := range []adapters.Provider{
		{Type: "basic", Name: "basic"}, {Type: "token", Name: "token"}, {Type: "saml", Name: "saml1"}, {Type: "saml", Name: "saml2"},
		{Type: "oidc", Name: "oidc1"}, {Type: "kerberos", Name: "kerberos"}, {Type: "pki", Name: "pki"},
		{Type: "anonymous", Name: "anonymous"},
	} {
		for _, name := range names {
			f.SignIn(adapters.Session{Username: name, Provider: p})
		}
	}
	f.Refresh()
}

// outcome is what the calls of one run add up to.
type outcome struct {
	adapters.Result
	calls  int
	resume json.RawMessage
}

func (o outcome) warned(code adapters.Reason) bool {
	return slices.ContainsFunc(o.Warnings, func(w adapters.Warning) bool { return w.Code == code })
}

// drive calls Invalidate as the engine does until the run is complete or fails.
func (f *fixture) drive(ctx context.Context, sel adapters.Selector, mayHaveSent bool, resume json.RawMessage) (outcome, error) {
	var o outcome
	o.resume = resume
	for {
		r, err := f.Invalidate(ctx, adapters.Request{Selector: sel, Resume: o.resume, MayHaveSent: mayHaveSent})
		o.calls++
		o.Counted = o.Counted || r.Counted
		o.Count += r.Count
		o.CountIsMinimum = o.CountIsMinimum || r.CountIsMinimum
		o.Warnings = append(o.Warnings, r.Warnings...)
		o.Covered, o.Verification, o.Pending = r.Covered, r.Verification, r.Pending
		if r.Pending != nil {
			o.resume = r.Pending.Resume
		}
		if err != nil || r.Pending == nil {
			return o, err
		}
		time.Sleep(r.Pending.After)
	}
}

// done drives a run that must succeed.
func (f *fixture) done(t *testing.T, sel adapters.Selector) outcome {
	t.Helper()
	o, err := f.drive(t.Context(), sel, false, nil)
	if err != nil {
		t.Fatalf("invalidate: %v", err)
	}
	return o
}

// bodies are the invalidations sent since the last Reset of the recorder.
func (f *fixture) bodies() []string {
	var out []string
	for _, r := range f.sent.Requests() {
		if strings.HasSuffix(r.Path, invalidatePath) {
			out = append(out, string(r.Body))
		}
	}
	return out
}

// wantSurvivors checks that exactly the sessions that sel does not match are left of those that were there.
func wantSurvivors(t *testing.T, seeded []adapters.Session, f *fixture, sel adapters.Selector) {
	t.Helper()
	want := slices.DeleteFunc(slices.Clone(seeded), sel.Match)
	got := f.Sessions()
	same := func(a, b adapters.Session) bool { return a.ID == b.ID }
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("%s: left are %v,\nwant %v", sel.By, got, want)
	}
}

func wantKind(t *testing.T, err error, kind adapters.Kind) adapters.Error {
	t.Helper()
	var e *adapters.Error
	if !errors.As(err, &e) || e.Kind != kind {
		t.Fatalf("error %v (%v), want kind %v", err, adapters.KindOf(err), kind)
	}
	return *e
}

func user(name string, at ...adapters.Provider) adapters.Selector {
	return adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: name, At: at}}}
}

func provider(ps ...adapters.Provider) adapters.Selector {
	return adapters.Selector{By: adapters.ByProvider, Providers: ps}
}

func userAt(name string, ps ...adapters.Provider) adapters.Selector {
	return adapters.Selector{By: adapters.ByUser | adapters.ByProvider, Users: []adapters.User{{Name: name}}, Providers: ps}
}

var everybody = adapters.Selector{By: adapters.All}

func of(providerType string, name ...string) adapters.Provider {
	return adapters.Provider{Type: providerType, Name: strings.Join(name, "")}
}

func fromCaller(providerType, name string) adapters.Provider {
	return adapters.Provider{Type: providerType, Name: name, MustBeListed: true}
}

var kills = emulator.On(http.MethodPost, invalidatePath)
