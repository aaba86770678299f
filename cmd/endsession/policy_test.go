package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPolicyTest compares what `policy test` prints: for cases that are as expected, for some that are not, and for files
// that cannot be read.
func TestPolicyTest(t *testing.T) {
	for _, x := range []struct {
		golden, config, cases string
		status                int
	}{
		{"policy-test", "endsession.yaml", "cases.yaml", exitSucceeded},
		{"policy-test-wrong", "endsession.yaml", "wrong.yaml", exitFailed},
		{"policy-test-bad", "endsession.yaml", "bad.yaml", exitUsage},
		{"policy-test-no-cases", "endsession.yaml", "people.yaml", exitUsage},
		{"policy-test-bad-rules", "bad-rules.yaml", "cases.yaml", exitFailed},
	} {
		args := []string{"policy", "test", "--config", "testdata/policy/" + x.config, "testdata/policy/" + x.cases}
		r := cli{}.run(t, args...)
		if r.status != x.status {
			t.Errorf("%s: exit status %d, want %d", x.golden, r.status, x.status)
		}
		golden(t, filepath.Join("cli", x.golden+".txt"), r.transcript(args))
	}
}

// TestPolicyPage: the policy that docs/policy.md shows says what the page says it does.
func TestPolicyPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var policy, cases string
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		switch block := m[1]; {
		case strings.HasPrefix(block, "policy:"):
			policy += block
		case strings.HasPrefix(block, "cases:"):
			cases += block
		}
	}
	if n := strings.Count(cases, "expect:"); n < 15 || strings.Count(policy, "- name:") < 6 {
		t.Fatalf("the page has %d cases and this policy:\n%s", n, policy)
	}
	targets := `
targets:
  - { name: apm, bigiq: { url: 'https://bigiq.example', username: svc-endsession, password: x, scope: { discover: true } } }
  - { name: kibana-prod, kibana: { url: 'https://kibana.example', api_key: "id:key" } }
`
	for name, text := range map[string]string{"endsession.yaml": policy + targets, "cases.yaml": cases} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := cli{}.run(t, "policy", "test", "-c", filepath.Join(dir, "endsession.yaml"), filepath.Join(dir, "cases.yaml"))
	if r.status != exitSucceeded {
		t.Errorf("exit status %d:\n%s%s", r.status, r.out, r.err)
	}
	// Every rule of the page decides a case.
	for _, m := range regexp.MustCompile(`- name: (\S+)\n`).FindAllStringSubmatch(policy, -1) {
		if !strings.Contains(r.out, "allow: rule "+m[1]) && !strings.Contains(r.out, "deny: rule "+m[1]) {
			t.Errorf("no case is decided by rule %s", m[1])
		}
	}
	r = cli{}.run(t, "config", "check", filepath.Join(dir, "endsession.yaml"))
	if r.status != exitSucceeded || strings.Contains(r.err, "policy") {
		t.Errorf("config check: exit status %d:\n%s", r.status, r.err)
	}
}
