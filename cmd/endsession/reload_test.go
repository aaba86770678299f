package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/config"
)

// reload has the gateway take over what change makes of its configuration.
func (g *guarded) reload(t *testing.T, change func(string) string) error {
	t.Helper()
	text, err := os.ReadFile(g.path)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.Parse(g.path, []byte(change(string(text))), registry(), config.Environment{
		LookupEnv: func(name string) (string, bool) { v, ok := labEnv[name]; return v, ok },
	})
	if err != nil {
		t.Fatal(err)
	}
	return g.srv.Reload(t.Context(), conf)
}

// replacing is a change that has to be one.
func replacing(t *testing.T, pairs ...string) func(string) string {
	return func(text string) string {
		t.Helper()
		for i := 0; i < len(pairs); i += 2 {
			if strings.Count(text, pairs[i]) != 1 {
				t.Fatalf("the configuration has %d times %q", strings.Count(text, pairs[i]), pairs[i])
			}
			text = strings.Replace(text, pairs[i], pairs[i+1], 1)
		}
		return text
	}
}

func same(text string) string { return text }

func TestReload(t *testing.T) {
	g := startGuarded(t)
	send := g.http(t, client{authorization: []string{"Bearer " + g.keys["helpdesk"]}})
	preview := func(user string) (int, string) {
		t.Helper()
		code, _, answer := send("POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "`+user+`"}}, "validateOnly": true}`)
		return code, answer
	}
	if code, answer := preview("alice"); code != 200 || !strings.Contains(answer, "alice@corp.example") {
		t.Fatalf("at first: %d %s", code, answer)
	}

	t.Run("WhatCannotBeTakenOverChangesNothing", func(t *testing.T) {
		for name, change := range map[string]func(string) string{
			"a rule":         replacing(t, `caller.name in [`, `nobody.name in [`),
			"a name":         replacing(t, `usernames: ['user.email']`, `usernames: ['user.mail']`),
			"the directory":  replacing(t, `people.yaml`, `nobody.yaml`),
			"a certificate":  replacing(t, `cert_file: tls.crt`, `cert_file: tls.key`),
			"a group's name": replacing(t, "      vpn: { directory: 'cn=staff,ou=groups,dc=corp', max_members: 500 }", "      vpn: { directory: nobody }"),
		} {
			err := g.reload(t, func(text string) string { return change(strings.ReplaceAll(text, `"helpdesk", `, ``)) })
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		if code, answer := preview("alice"); code != 200 || !strings.Contains(answer, "alice@corp.example") {
			t.Errorf("afterwards: %d %s", code, answer)
		}
	})
	t.Run("TheDirectoryIsReadAgain", func(t *testing.T) {
		path := filepath.Join(g.dir, "people.yaml")
		people, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(people), "alice@corp.example", "a.lice@corp.example")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := g.reload(t, same); err != nil {
			t.Fatal(err)
		}
		if _, answer := preview("alice"); !strings.Contains(answer, "a.lice@corp.example") || strings.Contains(answer, "alice@corp.example.") {
			t.Errorf("got %s", answer)
		}
		if err := os.WriteFile(path, people, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("ProtectedPeopleAndNames", func(t *testing.T) {
		if err := g.reload(t, func(text string) string {
			return replacing(t, `usernames: ['user.email']`, `usernames: ['"x-" + user.email']`)(text) + "\nprotected: { users: [bob] }\n"
		}); err != nil {
			t.Fatal(err)
		}
		if code, answer := preview("bob"); code != 403 || !strings.Contains(answer, "PROTECTED") {
			t.Errorf("bob: %d %s", code, answer)
		}
		if _, answer := preview("alice"); !strings.Contains(answer, "x-alice@corp.example") {
			t.Errorf("alice: %s", answer)
		}
	})
	t.Run("Credentials", func(t *testing.T) {
		password := filepath.Join(g.dir, "bigiq.password")
		if err := os.WriteFile(password, []byte("wrong"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := g.reload(t, same); err != nil {
			t.Fatal(err)
		}
		_, _, answer := send("POST", "/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "targets": ["apm"], "waitTimeout": "1s"}`)
		if !strings.Contains(answer, "UPSTREAM_UNAUTHENTICATED") {
			t.Fatalf("with a wrong password: %s", answer)
		}
		name := answer[strings.Index(answer, "invalidations/"):]
		name = name[:strings.IndexByte(name, '"')]
		if err := os.WriteFile(password, []byte(labBIGIQPassword), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := g.reload(t, same); err != nil {
			t.Fatal(err)
		}
		// Without the reload it would be left alone for a quarter of an hour.
		if _, _, answer := send("GET", "/v1/"+name+"?waitTimeout=20s", ""); !strings.Contains(answer, `"state":"INVALIDATION_STATE_SUCCEEDED"`) {
			t.Errorf("with the right one: %s", answer)
		}
	})
	t.Run("WhatNeedsARestartWaits", func(t *testing.T) {
		err := g.reload(t, replacing(t, "https://mvip.example ", "https://elsewhere.example ", "  - name: apm-all", "  - name: apm-new",
			"concurrency: 8", "concurrency: 9", "retention: 90d", "retention: 30d",
			`- { provider: local, name: 'user.id' }`, `- { provider: local, name: '"x-" + user.id' }`))
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"target storage is another system", "target apm-all is gone", "target apm-new is new",
			"concurrency, rate or retry_for of target apm:", "retention"} {
			if !strings.Contains(g.log.String(), "configuration: "+what) {
				t.Errorf("the log does not say that this needs a restart: %s", what)
			}
		}
		_, answer := preview("alice")
		if strings.Contains(answer, "elsewhere") || strings.Contains(answer, "x-alice") || !strings.Contains(answer, `"apm-all"`) || strings.Contains(answer, `"apm-new"`) {
			t.Errorf("got %s", answer)
		}
	})
	t.Run("Limits", func(t *testing.T) {
		if err := g.reload(t, func(text string) string { return text + "\nlimits: { calls_per_caller: 1/h, burst: 1 }\n" }); err != nil {
			t.Fatal(err)
		}
		preview("alice")
		if code, answer := preview("alice"); code != 429 || !strings.Contains(answer, "RATE_LIMITED") {
			t.Errorf("the second call: %d %s", code, answer)
		}
		if err := g.reload(t, same); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if code, _ := preview("alice"); code != 200 {
				t.Errorf("without a limit: %d", code)
			}
		}
	})
	t.Run("Rights", func(t *testing.T) {
		if err := g.reload(t, func(text string) string { return strings.ReplaceAll(text, `"helpdesk", `, ``) }); err != nil {
			t.Fatal(err)
		}
		if code, answer := preview("alice"); code != 403 || !strings.Contains(answer, "POLICY_DENIED") {
			t.Errorf("got %d %s", code, answer)
		}
	})
}
