package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAdapterGuide does what the guide to writing adapters says, in a copy of the source: it takes the files out of the
// page, adds the lines to the registry, writes the documents anew, builds and vets the whole, holds the adapter to the
// conformance suite, and ends sessions with it through a gateway. No other file changes, so none may have to.
func TestAdapterGuide(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the program anew")
	}
	top := copySource(t)
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(filepath.Join(top, "docs/adapters.md"))
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile("(?ms)^`([^`\n]+)`:\n\n```go\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	changes := regexp.MustCompile("(?ms)^`([^`\n]+)`:\n\n```diff\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	if len(files) != 8 || len(changes) != 1 || changes[0][1] != "cmd/endsession/adapters.go" {
		t.Fatalf("the guide has %d files, and changes %q", len(files), changes)
	}
	for _, m := range files {
		if !strings.HasPrefix(m[1], "adapters/acme/") {
			t.Errorf("the guide has a file %s outside its package", m[1])
		}
		write(m[1], m[2])
	}
	write(changes[0][1], patch(t, filepath.Join(top, changes[0][1]), changes[0][2]))
	gateway, err := os.ReadFile("testdata/adapterguide/gateway_test.go")
	if err != nil {
		t.Fatal(err)
	}
	write("cmd/endsession/adapter_guide_gateway_test.go", string(gateway))

	command := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = top
		cmd.Env = append(os.Environ(), "GOWORK=off", "PWD="+top)
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "no tests to run") {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	if out := command("gofmt", "-l", "adapters/acme", "cmd/endsession"); out != "" {
		t.Errorf("gofmt would change %s", out)
	}
	command("go", "vet", "./adapters/acme/...")
	command("go", "test", "-count=1", "-run=^TestConformance$", "./adapters/acme")
	command("go", "test", "-count=1", "-run=^TestImports$", "./server")
	// It also builds the program, and has the tests of it vetted.
	command("go", "test", "-count=1", "-run=^(TestConfigurationIsDocumented|TestTheGuidesAdapter)$", "./cmd/endsession", "-update-docs")
	reference, err := os.ReadFile(filepath.Join(top, "docs/configuration.md"))
	if err != nil || !strings.Contains(string(reference), "| `token` | secret | **required** | An API token with the scope sessions:admin. | reload |") {
		t.Errorf("the reference lacks the new kind's keys: %v", err)
	}
}

// copySource copies the module's source to a directory of its own, and returns that.
func copySource(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && slices.Contains([]string{".git", "bin", "dist", "proto/deps", "node_modules"}, filepath.ToSlash(name)):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(top, name), 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(top, name), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return top
}

// patch adds the lines of a diff that begin with "+" to a file's text, each after the line that precedes it in the diff.
func patch(t *testing.T, path, diff string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, before := string(b), ""
	for line := range strings.Lines(diff) {
		switch rest := line[1:]; line[0] {
		case '+':
			if strings.Count(text, before) != 1 {
				t.Fatalf("%s has %d times the line %q", path, strings.Count(text, before), before)
			}
			text = strings.Replace(text, before, before+rest, 1)
			before = rest
		case ' ':
			before = rest
		}
	}
	return text
}

// TestEveryKindIsWhole: every kind in the registry is held to the conformance suite, and has a page that the README
// leads to.
func TestEveryKindIsWhole(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, typ := range registry() {
		if name != typ.Kind {
			t.Errorf("%s is registered as %s", typ.Kind, name)
		}
		pkg := reflect.TypeOf(typ.NewConfig()).Elem().PkgPath()
		dir := filepath.Join(root, strings.TrimPrefix(pkg, "github.com/endsession/endsession/"))
		tests, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		held := false
		for _, file := range tests {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			held = held || strings.Contains(string(text), "adaptertest.Run(t, ")
		}
		if !held {
			t.Errorf("%s: no test holds it to adaptertest.Run", pkg)
		}
		if page := "docs/targets/" + name + ".md"; !strings.Contains(string(readme), "("+page+")") {
			t.Errorf("the README does not lead to %s", page)
		} else if _, err := os.Stat(filepath.Join(root, page)); err != nil {
			t.Error(err)
		}
	}
}
