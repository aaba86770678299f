package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/config"
)

// needCurl skips the test where there is no curl, except where tests are to be complete.
func needCurl(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no curl")
		}
		t.Skip("there is no curl")
	}
	return "curl "
}

// blocks returns a document's fenced blocks of one language.
func blocks(t *testing.T, path, language string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		found = append(found, m[1])
	}
	return found
}

// readmeWorld has the three systems that the README's configuration names. What the README has people write is written
// here; everything else is done by its commands.
func readmeWorld(t *testing.T, s *shell) {
	w := s.emulate(t)
	for _, name := range []string{"people.yaml", "kibana.key", "element.password"} {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"apm.pem": "bigiq.pem", "storage.pem": "mvip.pem"} {
		if err := os.Rename(filepath.Join(s.dir, from), filepath.Join(s.dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	s.env["KIBANA_API_KEY"], s.env["ELEMENT_PASSWORD"] = demoKibanaKey, demoElementPassword
	// The README's Kibana has a certificate that the system trusts. What is asked of anything else is asked without it.
	s.env["SSL_CERT_FILE"] = filepath.Join(s.dir, "kibana-prod.pem")

	yaml := blocks(t, filepath.Join(root, "README.md"), "yaml")
	if len(yaml) != 2 {
		t.Fatalf("the README has %d YAML blocks, want the configuration and the directory", len(yaml))
	}
	for _, address := range []string{"https://bigiq.example", "https://kibana.example", "https://mvip.example", "127.0.0.1:9090", "127.0.0.1:8080", "127.0.0.1:9091"} {
		if n := strings.Count(yaml[0], address); n != 1 {
			t.Fatalf("the README's configuration has %d times %s", n, address)
		}
	}
	s.write(t, "endsession.yaml", s.put(yaml[0]), 0o600)
	s.write(t, "people.yaml", yaml[1], 0o600)

	s.before = func(string) { w.signEverybodyIn() }
	s.after = func(command, out string) {
		answersJSON(t, command, out)
		invalidates := regexp.MustCompile(`[ /:.]([iI]nvalidate|InvalidateSessions)\b`).MatchString(command)
		if invalidates && (!strings.Contains(out, "SUCCEEDED") || strings.Contains(out, "PARTIALLY")) {
			t.Errorf("%s: %s", command, out)
		}
		w.judge(t, command, func(x signedIn) bool { return invalidates && x.person == "alice" })
	}
	kinds := map[string]bool{}
	for _, b := range blocks(t, filepath.Join(root, "README.md"), "sh") {
		for _, c := range commands(b) {
			kinds[strings.Fields(c)[0]] = true
		}
	}
	for _, kind := range []string{"go", "make", "bin/endsession", "curl", "grpcurl"} {
		if !kinds[kind] {
			t.Errorf("the README has no %s command any more", kind)
		}
	}
}

// judge compares who is still signed in with who should be.
func (w *world) judge(t *testing.T, command string, dies func(signedIn) bool) {
	t.Helper()
	present := w.present()
	for _, x := range w.population {
		if here := slices.Contains(present, x); here == dies(x) {
			t.Errorf("%s: %s is signed in at %s: %t", command, x.person, x.target, here)
		}
	}
}

// TestTargetPages loads the configurations that the pages about the targets show.
func TestTargetPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/targets/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%v, %v", pages, err)
	}
	for _, page := range pages {
		for i, block := range blocks(t, page, "yaml") {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(page), i), func(t *testing.T) {
				if !strings.HasPrefix(block, "targets:") {
					t.Skip("not a configuration")
				}
				_, err := config.Parse("endsession.yaml", []byte("directory: { file: { path: people.yaml } }\n"+block), registry(), config.Environment{
					LookupEnv: func(string) (string, bool) { return "id:secret", true },
					ReadFile:  func(string) ([]byte, error) { return []byte("secret"), nil },
				})
				if err != nil {
					t.Errorf("%v\n%s", err, block)
				}
			})
		}
	}
}
