package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// copyOf puts a file of testdata into a directory.
func copyOf(t *testing.T, name, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// badPlaces is everything that is wrong in testdata/bad.yaml, found by reading it.
var badPlaces = []string{
	"2: listen.grpc", "3: listen.http", "4: listen.adminn", "5: listen.tls.key_file", "6: store.sqlite.path", "7: auth", "8: directory.on_missing",
	"9: retention", "11: targets[0].name", "13: targets[0].bigiq.url", "15: targets[0].bigiq.password", "16: targets[0].bigiq.scope",
	"18: targets[0].groups.vpn.acces_groups", "19: targets[0].concurrency", "20: targets[0].rate", "23: targets[1].kibana.url",
	"24: targets[1].kibana.api_key", "25: targets[1].providers.saml/okta[0].nam", "25: targets[1].providers.samml",
	"26: targets[1].groups.staff.max_members", "29: targets[2].element.url", "36: targets[3].name", "48: targets[4].usernames[0]",
}

// TestABadConfigurationIsReportedWhole gives `config check` and `serve` a file in which nearly every line is wrong.
func TestABadConfigurationIsReportedWhole(t *testing.T) {
	t.Setenv("ELEMENT_PASSWORD", labElementPassword)
	dir := t.TempDir()
	copyOf(t, "people.yaml", dir)
	path := copyOf(t, "bad.yaml", dir)
	for _, test := range []struct {
		args   []string
		status int
	}{{[]string{"config", "check", path}, exitFailed}, {[]string{"serve", "--config", path}, exitUsage}} {
		r := cli{}.run(t, test.args...)
		if r.status != test.status || r.out != "" {
			t.Errorf("%v: exit status %d, want %d: %s", test.args, r.status, test.status, r.out)
		}
		var places []string
		for _, m := range regexp.MustCompile(`(?m)^(?:endsession: )?`+regexp.QuoteMeta(path)+`:([0-9]+: [^ ]+): \S`).FindAllStringSubmatch(r.err, -1) {
			places = append(places, m[1])
		}
		for _, want := range badPlaces {
			if !slices.Contains(places, want) {
				t.Errorf("%v does not report line %s", test.args, want)
			}
		}
		if len(places) != strings.Count(r.err, "\n") {
			t.Errorf("%v prints lines without a place", test.args)
		}
		if strings.Contains(r.err, labElementPassword) {
			t.Errorf("%v prints a secret", test.args)
		}
		if t.Failed() {
			t.Logf("%s", r.err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "endsession.db")); !os.IsNotExist(err) {
		t.Errorf("a journal was made: %v", err)
	}
}

// TestConfigCheckPrintsWhatWorks checks a good configuration, and what it prints of it.
func TestConfigCheckPrintsWhatWorks(t *testing.T) {
	for name, value := range labEnv {
		t.Setenv(name, value)
	}
	path := memoryDir(t, nil)
	r := cli{}.run(t, "config", "check", path)
	if r.status != 0 || r.err != "" {
		t.Fatalf("exit status %d: %s", r.status, r.err)
	}
	for _, secret := range []string{labBIGIQPassword, labKibanaKey, labElementPassword} {
		if strings.Contains(r.out, secret) {
			t.Errorf("it prints the secret %q", secret)
		}
	}
	for _, want := range []string{"name: kibana-prod", "https://mvip.example", "concurrency: 8", "90d", "user.email"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("it does not print %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", r.out)
	}
}

// TestOneMistake changes one thing of a good configuration.
func TestOneMistake(t *testing.T) {
	for name, value := range labEnv {
		t.Setenv(name, value)
	}
	for name, test := range map[string]struct{ old, with, says string }{
		"NoSuchAuthority":   {"bigiq.pem", "none.pem", "none.pem"},
		"NoSuchDirectory":   {"people.yaml", "none.yaml", "none.yaml"},
		"NoSuchGroup":       {"'cn=staff,ou=groups,dc=corp' }\n  - name: storage", "nobody }\n  - name: storage", "nobody"},
		"Expression":        {"['user.email']", "['user.email +']", "usernames[0]"},
		"ExpressionOfAType": {"['user.email']", "['1']", "usernames[0]"},
		"UnknownProvider":   {"provider: ldap", "provider: kerberos", "kerberos"},
		"Beyond":            {"grpc: 127.0.0.1:0", "grpc: 0.0.0.0:0", "insecure"},
		"SecretInTheFile":   {"${env:KIBANA_API_KEY}", "${env:KIBANA_API_KYE}", "KIBANA_API_KYE"},
		"ShortAuditKey":     {"targets:\n", "audit: { key: only-28-characters-of-the-32, retention: 400d }\ntargets:\n", "audit: a key of 28 bytes: want at least 32"},
		"PreviousAuditKey":  {"targets:\n", "audit: { previous_keys: [0123456789abcdef0123456789abcdef] }\ntargets:\n", "audit: there are previous keys, but no key"},
		"SameAuditKey":      {"targets:\n", "audit: { key: 0123456789abcdef0123456789abcdef, previous_keys: [0123456789abcdef0123456789abcdef] }\ntargets:\n", "is given twice"},
		"EmptyFile":         {"", "", "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			path := memoryDir(t, func(text string) string {
				if test.old == "" {
					return ""
				}
				if !strings.Contains(text, test.old) {
					t.Fatalf("the configuration does not have %q", test.old)
				}
				return strings.Replace(text, test.old, test.with, 1)
			})
			for _, args := range [][]string{{"config", "check", path}, {"serve", "-c", path}} {
				r := cli{}.run(t, args...)
				if (r.status != exitFailed && r.status != exitUsage) || !strings.Contains(r.err, test.says) || r.out != "" {
					t.Errorf("%v: exit status %d: %s%s", args, r.status, r.out, r.err)
				}
				if strings.Contains(r.err, "0123456789abcdef") || strings.Contains(r.err, "28-characters") {
					t.Errorf("%v: the message shows a key: %s", args, r.err)
				}
			}
		})
	}
	for _, args := range [][]string{
		{"config", "check", "/nowhere/endsession.yaml"}, {"config", "check", t.TempDir()}, {"serve", "-c", "/nowhere/endsession.yaml"},
		{"config", "check"}, {"serve"}, {"serve", "-c", ""}, {"serve", "-c", memoryDir(t, nil), "--log-format", "xml"},
	} {
		if r := (cli{}).run(t, args...); r.status != exitFailed && r.status != exitUsage || r.err == "" || r.out != "" {
			t.Errorf("%v: exit status %d: %s%s", args, r.status, r.out, r.err)
		}
	}
}
