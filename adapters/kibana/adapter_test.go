package kibana_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestRequests holds the requests of each sort of selector against a golden file.
func TestRequests(t *testing.T) {
	f := setup(t, kibanatest.Options{BasePath: "/base"})
	var got strings.Builder
	for _, c := range []struct {
		name string
		sel  adapters.Selector
	}{
		{"all", everybody},
		{"provider type", provider(of("saml"))},
		{"provider name", provider(of("saml", "saml1"))},
		{"providers", provider(of("saml", "saml1"), of("oidc"))},
		{"a type covers its names", provider(of("saml", "saml1"), of("saml"))},
		{"user", user("alice@corp.example")},
		{"user of one provider", user("alice", of("kerberos"))},
		{"user at a type", userAt("alice", of("basic"))},
		{"user at a name", userAt("alice", of("saml", "saml1"))},
		{"user of one provider at another", adapters.Selector{
			By: adapters.ByUser | adapters.ByProvider, Users: []adapters.User{{Name: "alice", At: []adapters.Provider{of("basic")}}},
			Providers: []adapters.Provider{of("saml")},
		}},
		{"two names of one user at providers of their own", adapters.Selector{By: adapters.ByUser, Users: []adapters.User{
			{Name: "alice", At: []adapters.Provider{of("basic")}}, {Name: "alice@corp.example", At: []adapters.Provider{of("saml"), of("oidc")}},
		}}},
		{"characters carried as they are", userAt(`<Zoë>&"\`+"\u2028 ", of("pki", " p "))},
	} {
		p, err := f.Preview(t.Context(), c.sel)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		fmt.Fprintf(&got, "# %s: covers %s\n", c.name, strings.Join(p.Covered, ", "))
		for _, w := range p.Warnings {
			fmt.Fprintf(&got, "warning %s\n", w.Code)
		}
		for _, r := range p.Requests {
			fmt.Fprintf(&got, "%s %s\n%s\n", r.Method, r.URL, r.Body)
		}
		if p.Listed || len(p.Sessions) > 0 {
			t.Errorf("%s: claims to list sessions", c.name)
		}
	}
	file := filepath.Join("testdata", "requests.golden")
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
	if n := len(f.sent.Requests()); n > 0 {
		t.Errorf("the previews sent %d requests", n)
	}
}

// TestInvalidateSendsWhatPreviewShows: one planner serves both.
func TestInvalidateSendsWhatPreviewShows(t *testing.T) {
	f := setup(t, kibanatest.Options{BasePath: "/base"})
	sel := user("alice")
	p, err := f.Preview(t.Context(), sel)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Invalidate(t.Context(), adapters.Request{Selector: sel}); err != nil {
		t.Fatal(err)
	}
	var sent []adapters.PlannedRequest
	for _, r := range f.sent.Requests() {
		sent = append(sent, adapters.PlannedRequest{Method: r.Method, URL: r.URL, Body: string(r.Body)})
	}
	if !slices.Equal(sent, p.Requests) {
		t.Errorf("sent %v,\nshown %v", sent, p.Requests)
	}
	// Each total is logged; whom it was about is the audit log's.
	if log := f.log.String(); strings.Count(log, "total=0") != len(sent) || strings.Contains(log, "alice") {
		t.Errorf("log: %s", log)
	}
}

// TestSurvivors asks who is still signed in.
func TestSurvivors(t *testing.T) {
	for _, sel := range []adapters.Selector{
		everybody, user("alice"), user("Zoë"), provider(of("saml")), provider(of("saml", "saml2")), provider(of("oidc"), of("saml", "saml1")),
		userAt("alice", of("saml")), userAt("alice", of("saml", "saml1")), user("alice", of("basic")), user("nobody"),
	} {
		synctest.Test(t, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			// Near misses, a login in progress among them.
			f.people("alice", "Alice", "alice ", " alice", "alice@corp.example", "alic", "Zoë", "Zoe\u0308", "*", "")
			seeded := f.Sessions()
			o := f.done(t, sel)
			wantSurvivors(t, seeded, f, sel)
			want := 0
			for _, x := range seeded {
				if sel.Match(x) {
					want++
				}
			}
			if !o.Counted || o.Count != want || o.CountIsMinimum || o.Verification != adapters.ConfirmedByRepeat {
				t.Errorf("%s: %+v, want %d confirmed by repeat", sel.By, o.Result, want)
			}
			if got := o.warned(adapters.WarnNoSessionMatched); got != (want == 0) {
				t.Errorf("%s: %d ended, warned that none matched: %t", sel.By, want, got)
			}
		})
	}
}

// TestNeverWider are selectors of which a careless body would end more than they match: Kibana takes what is empty for
// absent. Nothing may be sent.
func TestNeverWider(t *testing.T) {
	for _, c := range []struct {
		name string
		sel  adapters.Selector
	}{
		{"an empty user is everybody", user("")},
		{"a blank user", user(" \t")},
		{"an empty user at a provider", userAt("", of("saml"))},
		{"no user at a provider", adapters.Selector{By: adapters.ByUser | adapters.ByProvider, Providers: []adapters.Provider{of("saml")}}},
		{"no provider", provider()},
		{"an empty provider type", provider(of(""))},
		{"a blank provider name", provider(of("saml", " "))},
		{"a blank provider name of a user", user("alice", of("saml", "\u00a0"))},
		{"all, but a user", adapters.Selector{By: adapters.All, Users: []adapters.User{{Name: "alice"}}}},
		// Encoded as JSON this would become "alice\uFFFD", which is somebody else.
		{"a user that is not UTF-8", user("alice\xff")},
		{"a provider that is not UTF-8", provider(of("saml", "saml\xff"))},
		{"another case", provider(of("SAML"))},
		{"a wildcard", provider(of("*"))},
		{"http owns no sessions", userAt("alice", of("http"))},
		{"an API type that is not Kibana's", user("alice", of("ldap"))},
		{"a group", adapters.Selector{By: adapters.ByGroup, Groups: []adapters.Group{{Kind: "role", Name: "staff"}}}},
		{"a user in a group", adapters.Selector{
			By: adapters.ByUser | adapters.ByGroup, Users: []adapters.User{{Name: "alice"}}, Groups: []adapters.Group{{Kind: "role", Name: "staff"}},
		}},
		{"sessions", adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{{ID: "1"}}}},
		{"nothing at all", adapters.Selector{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			f.people("alice", "bob")
			before := len(f.Sessions())
			wantKind(t, f.Supports(c.sel), adapters.Unsupported)
			_, err := f.Invalidate(t.Context(), adapters.Request{Selector: c.sel})
			wantKind(t, err, adapters.Unsupported)
			_, err = f.Preview(t.Context(), c.sel)
			wantKind(t, err, adapters.Unsupported)
			if n := len(f.sent.Requests()); n > 0 || len(f.Sessions()) != before {
				t.Errorf("%d requests sent, %d sessions left of %d", n, len(f.Sessions()), before)
			}
		})
	}
}

func TestUserAloneIsOneQueryForEachProviderType(t *testing.T) {
	f := setup(t, kibanatest.Options{})
	r, err := f.Invalidate(t.Context(), adapters.Request{Selector: user("alice")})
	if err != nil {
		t.Fatal(err)
	}
	types := []string{"basic", "token", "saml", "oidc", "kerberos", "pki", "anonymous"}
	var want []string
	for _, p := range types {
		want = append(want, `{"match":"query","query":{"provider":{"type":"`+p+`"},"username":"alice"}}`)
	}
	if got := f.bodies(); !slices.Equal(got, want) || !slices.Equal(r.Covered, types) {
		t.Errorf("sent %v, covered %v", got, r.Covered)
	}
}

func TestProviderTypesNarrowsOnlyUsersWithoutProvider(t *testing.T) {
	narrow := func(c *kibana.Config) { c.ProviderTypes = []string{"saml", "basic"} }
	f := setup(t, kibanatest.Options{}, narrow)
	for _, c := range []struct {
		sel  adapters.Selector
		want string
	}{
		{user("alice"), "saml, basic"},
		{user("alice", of("oidc")), "oidc"},
		{userAt("alice", of("oidc", "oidc1")), "oidc/oidc1"},
		{provider(of("oidc")), "oidc"},
		{everybody, "all"},
	} {
		r, err := f.Invalidate(t.Context(), adapters.Request{Selector: c.sel})
		if got := strings.Join(r.Covered, ", "); err != nil || got != c.want {
			t.Errorf("%s: covered %q, error %v, want %q", c.sel.By, got, err, c.want)
		}
	}
}

func TestNothingCanMatch(t *testing.T) {
	f := setup(t, kibanatest.Options{})
	r, err := f.Invalidate(t.Context(), adapters.Request{Selector: adapters.Selector{
		By: adapters.ByUser | adapters.ByProvider, Users: []adapters.User{{Name: "alice", At: []adapters.Provider{of("basic")}}},
		Providers: []adapters.Provider{of("saml")},
	}})
	if err != nil || r.Pending != nil || len(r.Warnings) != 1 || r.Warnings[0].Code != adapters.WarnNothingCanMatch || r.Count != 0 {
		t.Errorf("%+v, %v; want nothing done and said so", r, err)
	}
	if n := len(f.sent.Requests()); n > 0 {
		t.Errorf("%d requests sent", n)
	}
}

// TestHeaders: kbn-xsrf must be there, kbn-version must not, and only the internal route is asked for as one.
func TestHeaders(t *testing.T) {
	f := setup(t, kibanatest.Options{Providers: []kibanatest.Provider{{Type: "saml", Name: "okta"}}, RestrictInternalAPIs: true})
	if _, err := f.Invalidate(t.Context(), adapters.Request{Selector: provider(fromCaller("saml", "okta"))}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.sent.Requests() {
		if r.Header.Get("kbn-xsrf") == "" || r.Header["Kbn-Version"] != nil {
			t.Errorf("%s %s: headers %v", r.Method, r.Path, r.Header)
		}
		if got, want := r.Header.Get("x-elastic-internal-origin") != "", r.Path == loginStatePath; got != want {
			t.Errorf("%s %s: internal origin %t, want %t", r.Method, r.Path, got, want)
		}
		if r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: content type %q", r.Path, r.Header.Get("Content-Type"))
		}
	}
}

// TestNamesFromCallersAreLookedUp: Kibana answers 0 to a wrong name, which would look like success.
func TestNamesFromCallersAreLookedUp(t *testing.T) {
	// The default name is "basic"; "basic1" is only customary.
	configured := []kibanatest.Provider{{Type: "basic", Name: "basic"}, {Type: "saml", Name: "okta"}, {Type: "oidc", Name: "cloud"}}
	for _, c := range []struct {
		name string
		sel  adapters.Selector
		ok   bool
	}{
		{"listed", provider(fromCaller("saml", "okta")), true},
		{"a listed name of a user", userAt("alice", fromCaller("saml", "okta")), true},
		{"the default name", provider(fromCaller("basic", "basic")), true},
		{"the customary name", provider(fromCaller("basic", "basic1")), false},
		{"another case", provider(fromCaller("saml", "Okta")), false},
		{"listed under another type", provider(fromCaller("oidc", "okta")), false},
		{"one of two", provider(fromCaller("saml", "okta"), fromCaller("oidc", "okta")), false},
		{"one of two users", adapters.Selector{By: adapters.ByUser, Users: []adapters.User{
			{Name: "alice", At: []adapters.Provider{of("basic")}}, {Name: "alice", At: []adapters.Provider{fromCaller("saml", "saml1")}},
		}}, false},
		{"mapped names are not", provider(of("saml", "removed-last-week")), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := setup(t, kibanatest.Options{Providers: configured})
			_, errPreview := f.Preview(t.Context(), c.sel)
			_, err := f.Invalidate(t.Context(), adapters.Request{Selector: c.sel})
			if c.ok {
				if err != nil || errPreview != nil {
					t.Errorf("%v, preview %v", err, errPreview)
				}
				return
			}
			for _, err := range []error{err, errPreview} {
				if e := wantKind(t, err, adapters.Unsupported); e.Reason() != adapters.ReasonUnknownProvider {
					t.Errorf("reason %s", e.Reason())
				}
			}
			if sent := f.bodies(); len(sent) > 0 {
				t.Errorf("sent %v", sent)
			}
		})
	}
}

// TestNoListNoName: an unverified name is never sent. What may pass is retried, what will not is refused.
func TestNoListNoName(t *testing.T) {
	list := emulator.On(http.MethodGet, loginStatePath)
	for _, c := range []struct {
		fault emulator.Fault
		want  adapters.Kind
	}{
		{emulator.Status(http.StatusNotFound), adapters.Unsupported},
		{emulator.Status(http.StatusBadRequest), adapters.Unsupported},
		{emulator.Status(http.StatusForbidden), adapters.Unsupported},
		{emulator.Page(), adapters.Unsupported},
		{emulator.Null(), adapters.Unsupported},
		{emulator.Redirect("https://elsewhere.example/"), adapters.Unsupported},
		{emulator.Answer(200, http.Header{"Content-Type": {"application/json"}}, `{"selector":{}}`), adapters.Unsupported},
		{emulator.Status(http.StatusServiceUnavailable), adapters.Busy},
		{emulator.Status(http.StatusTooManyRequests), adapters.Busy},
		{emulator.Status(http.StatusInternalServerError), adapters.Unreachable},
		{emulator.Refuse(), adapters.Unreachable},
		{emulator.Reset(), adapters.Unreachable},
	} {
		t.Run(c.fault.Name, func(t *testing.T) {
			f := setup(t, kibanatest.Options{Providers: []kibanatest.Provider{{Type: "saml", Name: "okta"}}})
			f.faults.Add(emulator.Rule{Match: list, Fault: c.fault})
			_, err := f.Invalidate(t.Context(), adapters.Request{Selector: provider(fromCaller("saml", "okta"))})
			e := wantKind(t, err, c.want)
			if c.want == adapters.Unsupported && e.Reason() != adapters.ReasonUnknownProvider {
				t.Errorf("reason %s", e.Reason())
			}
			if sent := f.bodies(); len(sent) > 0 {
				t.Errorf("sent %v", sent)
			}
		})
	}
}

// TestANameIsLookedUpOnce: a provider that disappears during a run does not turn what was done into "unsupported".
func TestANameIsLookedUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{Providers: []kibanatest.Provider{{Type: "saml", Name: "saml1"}}})
		f.people("alice")
		f.faults.Add(emulator.Rule{Match: emulator.On(http.MethodGet, loginStatePath), Skip: 1, Fault: emulator.Status(404)})
		if o := f.done(t, provider(fromCaller("saml", "saml1"))); o.Count != 1 {
			t.Errorf("count %d, want 1", o.Count)
		}
	})
}

// TestSessionsOfTheLastSecondDie: from 8.8 on a search misses them, so that one pass is not enough.
func TestSessionsOfTheLastSecondDie(t *testing.T) {
	for _, sel := range []adapters.Selector{user("alice"), provider(of("saml")), everybody} {
		synctest.Test(t, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			f.people("alice", "bob")
			f.SignIn(adapters.Session{Username: "alice", Provider: of("saml", "saml1")})
			seeded := f.Sessions()
			start := time.Now()

			r, err := f.Invalidate(t.Context(), adapters.Request{Selector: sel})
			if err != nil || r.Pending == nil {
				t.Fatalf("first pass: %+v, %v; want more to do", r, err)
			}
			if r.Pending.After <= kibanatest.RefreshInterval {
				t.Errorf("the pause of %v is not longer than the refresh interval", r.Pending.After)
			}
			if time.Since(start) != 0 {
				t.Error("the call waited itself")
			}
			time.Sleep(r.Pending.After)
			o, err := f.drive(t.Context(), sel, false, r.Pending.Resume)
			if err != nil {
				t.Fatal(err)
			}
			if o.Count != 1 || o.Verification != adapters.ConfirmedByRepeat {
				t.Errorf("%s: repeated passes ended %d, %v; want 1, confirmed", sel.By, o.Count, o.Verification)
			}
			if passes := o.calls + 1; passes != 3 {
				t.Errorf("%s: %d passes, want 3: one that misses it, one that finds it, one that finds nothing", sel.By, passes)
			}
			wantSurvivors(t, seeded, f, sel)
		})
	}
}

// TestSomebodyKeepsSigningIn: single sign-on may open a session as fast as it is ended. The run ends nevertheless, and
// does not claim what it cannot know.
func TestSomebodyKeepsSigningIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{})
		f.people("alice")
		var o outcome
		var pauses []time.Duration
		for {
			r, err := f.Invalidate(t.Context(), adapters.Request{Selector: user("alice"), Resume: o.resume})
			if err != nil {
				t.Fatal(err)
			}
			o.Count += r.Count
			if o.Warnings, o.Verification = r.Warnings, r.Verification; r.Pending == nil {
				break
			}
			f.SignIn(adapters.Session{Username: "alice", Provider: of("kerberos")})
			o.resume = r.Pending.Resume
			pauses = append(pauses, r.Pending.After)
			time.Sleep(r.Pending.After)
		}
		if o.Verification != adapters.Unverifiable || !o.warned(adapters.WarnSignedInAgain) {
			t.Errorf("verification %v, warnings %v", o.Verification, o.Warnings)
		}
		if len(pauses) != 4 || !slices.IsSorted(pauses) || pauses[0] == pauses[3] {
			t.Errorf("pauses %v, want four that grow", pauses)
		}
		if o.Count != 8+4 {
			t.Errorf("count %d, want those who were there and those who came", o.Count)
		}
	})
}

// TestSignedInAfterTheEndIsNotPursued.
func TestSignedInAfterTheEndIsNotPursued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{})
		f.people("alice")
		o := f.done(t, user("alice"))
		f.SignIn(adapters.Session{Username: "alice", Provider: of("basic")})
		if o.calls != 2 || len(f.Sessions()) != 1 {
			t.Errorf("%d passes, %d sessions", o.calls, len(f.Sessions()))
		}
	})
}

// TestAConflictIsUncertain: a session in use makes Elasticsearch stop in the middle, which Kibana reports as an opaque
// 500. Asking again is safe, and the count stays a minimum.
func TestAConflictIsUncertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{})
		f.people("alice", "bob")
		sel := provider(of("saml"))
		seeded := f.Sessions()
		f.Use(seeded[4].ID) // alice at saml1
		o, err := f.drive(t.Context(), sel, false, nil)
		wantKind(t, err, adapters.Uncertain)
		if got := len(seeded) - len(f.Sessions()); got != 3 {
			t.Fatalf("%d ended; the test wants a partial deletion of 3", got)
		}
		if !o.CountIsMinimum || o.Counted {
			t.Errorf("%+v, want no count and a minimum", o.Result)
		}
		time.Sleep(kibanatest.RefreshInterval)
		o, err = f.drive(t.Context(), sel, true, o.resume)
		if err != nil || o.Count != 1 || o.Verification != adapters.ConfirmedByRepeat {
			t.Errorf("again: %+v, %v", o.Result, err)
		}
		wantSurvivors(t, seeded, f, sel)
	})
}

// TestALostAnswerIsNotNobody: 0 after an uncertain outcome does not mean that there was nobody.
func TestALostAnswerIsNotNobody(t *testing.T) {
	for _, fault := range []emulator.Fault{emulator.Reset().After(), emulator.StatusHTML(504).After(), emulator.Page().After()} {
		synctest.Test(t, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			f.SignIn(adapters.Session{Username: "alice"})
			f.Refresh()
			f.faults.Add(emulator.Rule{Match: kills, Times: 1, Fault: fault})
			o, err := f.drive(t.Context(), user("alice"), false, nil)
			if err == nil || !o.CountIsMinimum {
				t.Fatalf("%s: %+v, %v; want an error and a minimum", fault.Name, o.Result, err)
			}
			time.Sleep(kibanatest.RefreshInterval)
			o, err = f.drive(t.Context(), user("alice"), false, o.resume)
			if err != nil || o.Count != 0 || o.warned(adapters.WarnNoSessionMatched) {
				t.Errorf("%s: %+v, %v; want 0 without the warning that nobody was there", fault.Name, o.Result, err)
			}
		})
	}
	t.Run("after a crash", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			for _, inFirst := range []bool{true, false} {
				r, err := f.Invalidate(t.Context(), adapters.Request{Selector: user("alice"), MayHaveSent: inFirst})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(r.Pending.After)
				o, err := f.drive(t.Context(), user("alice"), !inFirst, r.Pending.Resume)
				if err != nil || o.warned(adapters.WarnNoSessionMatched) {
					t.Errorf("in the first pass %t: %+v, %v", inFirst, o.Result, err)
				}
			}
		})
	})
}

// TestResumeAfterAnError: what was answered is not asked again in the same pass, whichever query fails.
func TestResumeAfterAnError(t *testing.T) {
	const queries = 7
	for fails := range 2 * queries {
		synctest.Test(t, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			f.people("alice", "bob")
			seeded := f.Sessions()
			f.faults.Add(emulator.Rule{Match: kills, Skip: fails, Times: 1, Fault: emulator.Status(http.StatusBadGateway)})
			o, err := f.drive(t.Context(), user("alice"), false, nil)
			wantKind(t, err, adapters.Uncertain)
			count := o.Count
			f.restart(t)
			time.Sleep(kibanatest.RefreshInterval)
			o, err = f.drive(t.Context(), user("alice"), false, o.resume)
			if err != nil {
				t.Fatal(err)
			}
			sent := f.bodies()
			if len(sent) != 2*queries+1 || sent[fails] != sent[fails+1] {
				t.Errorf("query %d failed: sent %d bodies, want %d with that one repeated: %v", fails, len(sent), 2*queries+1, sent)
			}
			if count += o.Count; count != 8 || o.Verification != adapters.ConfirmedByRepeat {
				t.Errorf("query %d failed: %d ended, %v", fails, count, o.Verification)
			}
			wantSurvivors(t, seeded, f, user("alice"))
		})
	}
}

// TestResumeAfterACrash: a process that dies takes the answers it got with it. The next one begins the pass again.
func TestResumeAfterACrash(t *testing.T) {
	const queries = 7
	for dies := range 2 * queries {
		synctest.Test(t, func(t *testing.T) {
			f := setup(t, kibanatest.Options{})
			f.people("alice", "bob")
			seeded := f.Sessions()
			// The last answer is lost with the process. What the dying call returns is never seen.
			f.faults.Add(emulator.Rule{Match: kills, Skip: dies, Times: 1, Fault: emulator.Reset().After()})
			var journal json.RawMessage
			for {
				r, err := f.Invalidate(t.Context(), adapters.Request{Selector: user("alice"), Resume: journal})
				if err != nil {
					break
				}
				journal = r.Pending.Resume
				time.Sleep(r.Pending.After)
			}
			f.restart(t)
			time.Sleep(kibanatest.RefreshInterval)
			o, err := f.drive(t.Context(), user("alice"), true, journal)
			if err != nil || o.Verification != adapters.ConfirmedByRepeat || o.warned(adapters.WarnNoSessionMatched) {
				t.Errorf("died after query %d: %+v, %v", dies, o.Result, err)
			}
			wantSurvivors(t, seeded, f, user("alice"))
		})
	}
}

// TestStrangeResumeBeginsAnew: skipping is never safe, asking again is.
func TestStrangeResumeBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{})
		r, err := f.Invalidate(t.Context(), adapters.Request{Selector: user("alice")})
		if err != nil {
			t.Fatal(err)
		}
		good := string(r.Pending.Resume)
		alter := func(old, new string) string {
			if !strings.Contains(good, old) {
				t.Fatalf("no %s in %s", old, good)
			}
			return strings.Replace(good, old, new, 1)
		}
		for _, resume := range []string{
			`null`, `7`, `{}`, `{"v":1,"pass":5,"done":6}`, alter(`"v":1`, `"v":2`), alter(`"pass":2`, `"pass":6`), alter(`"pass":2`, `"pass":0`),
			alter(`"done":0`, `"done":-1`), alter(`"done":0`, `"done":7`), alter(`"found":0`, `"found":-1`), `{"v":`,
		} {
			f.sent.Reset()
			o, err := f.drive(t.Context(), user("alice"), false, json.RawMessage(resume))
			if err != nil || o.calls != 2 || len(f.bodies()) != 14 || o.warned(adapters.WarnNoSessionMatched) {
				t.Errorf("%s: %d calls, %d queries, %+v, %v; want two whole passes and no word on what was before",
					resume, o.calls, len(f.bodies()), o.Warnings, err)
			}
		}
		f.sent.Reset()
		o, err := f.drive(t.Context(), user("alice"), false, json.RawMessage(good))
		if err != nil || o.calls != 1 || len(f.bodies()) != 7 {
			t.Errorf("%s: %d calls, %d queries, %v; want the second pass alone", good, o.calls, len(f.bodies()), err)
		}
	})
}

// TestChangedConfigurationBeginsAnew: the second pass over other queries would be their first.
func TestChangedConfigurationBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{}, func(c *kibana.Config) { c.ProviderTypes = []string{"basic"} })
		r, err := f.Invalidate(t.Context(), adapters.Request{Selector: user("alice")})
		if err != nil {
			t.Fatal(err)
		}
		f.config.ProviderTypes = nil
		f.restart(t)
		time.Sleep(r.Pending.After)
		// The first pass over the new queries misses this one.
		f.SignIn(adapters.Session{Username: "alice", Provider: of("oidc")})
		o, err := f.drive(t.Context(), user("alice"), false, r.Pending.Resume)
		if err != nil || o.calls != 3 || o.Count != 1 || len(f.Sessions()) != 0 {
			t.Errorf("%d calls, %d ended, %d alive, %v; want three passes over all types", o.calls, o.Count, len(f.Sessions()), err)
		}
	})
}

// TestTheFenceIsAskedBeforeEachQuery, and its refusal is returned as it is.
func TestTheFenceIsAskedBeforeEachQuery(t *testing.T) {
	f := setup(t, kibanatest.Options{})
	f.people("alice")
	lost := errors.New("lease lost")
	n := 0
	ctx := adapters.WithFence(t.Context(), func(context.Context) error {
		if n++; n > 3 {
			return lost
		}
		return nil
	})
	r, err := f.Invalidate(ctx, adapters.Request{Selector: user("alice")})
	if !errors.Is(err, lost) || len(f.bodies()) != 3 || r.Count != 4 || r.CountIsMinimum || r.Pending == nil {
		t.Errorf("%+v, %v, %d queries sent", r, err, len(f.bodies()))
	}
}

// TestTotalsCountSessionDocuments: expired ones that were not swept, and logins in progress, too.
func TestTotalsCountSessionDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, kibanatest.Options{})
		f.SignIn(adapters.Session{Username: "alice", Provider: of("saml"), ExpireTime: time.Now().Add(time.Millisecond)})
		f.SignIn(adapters.Session{Provider: of("saml")})
		time.Sleep(kibanatest.RefreshInterval)
		if o := f.done(t, user("alice")); o.Count != 1 {
			t.Errorf("user: %d, want the expired session", o.Count)
		}
		if o := f.done(t, provider(of("saml"))); o.Count != 1 {
			t.Errorf("provider: %d, want the login in progress", o.Count)
		}
	})
}
