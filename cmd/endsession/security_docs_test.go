package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is where the module is, seen from this package.
const root = "../.."

// TestSecurityPage: every test that the page names is there, with the case of it.
func TestSecurityPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{} // "package Test"
	var sources strings.Builder
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
	if err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || filepath.Base(file) == "security_docs_test.go" {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		sources.Write(text)
		if strings.HasSuffix(file, "_test.go") {
			dir, err := filepath.Rel(root, filepath.Dir(file))
			if err != nil {
				return err
			}
			for _, m := range function.FindAllStringSubmatch(string(text), -1) {
				declared[filepath.ToSlash(dir)+" "+m[1]] = true
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+) ((?:Test|Fuzz)\\w+)(?:/([\\w/]+))?`").FindAllStringSubmatch(string(page), -1)
	if len(named) < 100 {
		t.Errorf("the page names only %d tests", len(named))
	}
	for _, m := range named {
		if !declared[m[1]+" "+m[2]] {
			t.Errorf("%s: there is no such test", m[0])
		}
		if m[3] != "" && !strings.Contains(sources.String(), `"`+m[3]+`"`) {
			t.Errorf("%s: there is no such case", m[0])
		}
	}
	// A test in any other form would not be looked for.
	for _, loose := range regexp.MustCompile("`[^`]*\\b(?:Test|Fuzz)[A-Z]\\w*[^`]*`").FindAllString(string(page), -1) {
		if whole := slices.ContainsFunc(named, func(m []string) bool { return m[0] == loose }); !whole && !regexp.MustCompile("^`Fuzz\\w+`$").MatchString(loose) {
			t.Errorf("%s does not say in which package it is", loose)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(Fuzz\\w+)` \\| `([a-z/]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		if !declared[m[2]+" "+m[1]] {
			t.Errorf("%s: there is no such fuzz test in %s", m[1], m[2])
		}
	}
}

// TestDependenciesPage: every module that go.mod requires for itself, or as a tool, has a line, and no other has.
func TestDependenciesPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
		Tool []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	required := map[string]bool{}
	for _, r := range mod.Require {
		provides := func(tool struct{ Path string }) bool { return strings.HasPrefix(tool.Path+"/", r.Path+"/") }
		if !r.Indirect || slices.ContainsFunc(mod.Tool, provides) {
			required[r.Path] = true
		}
	}
	if len(required) < 20 {
		t.Fatalf("go.mod requires only %d modules", len(required))
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|(.*)$").FindAllStringSubmatch(string(page), -1) {
		name, columns := m[1], strings.Split(strings.TrimSuffix(strings.TrimSpace(m[2]), "|"), "|")
		if told[name] {
			t.Errorf("%s has two lines", name)
		}
		told[name] = true
		if len(columns) != 3 || slices.ContainsFunc(columns, func(c string) bool { return strings.TrimSpace(c) == "" }) {
			t.Errorf("%s: want why, what else was considered, and whether it is the newest; got %q", name, columns)
		}
		if !required[name] {
			t.Errorf("%s has a line, and go.mod does not require it", name)
		}
	}
	for name := range required {
		if !told[name] {
			t.Errorf("%s has no line", name)
		}
	}
}
