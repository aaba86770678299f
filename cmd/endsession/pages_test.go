package main

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```+ *$")
	codeSpan = regexp.MustCompile("`[^`\n]*`")
	pageLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// links are where a page's links lead that are no addresses.
func links(text string) (list []string) {
	text = codeSpan.ReplaceAllString(fence.ReplaceAllString(text, ""), "`")
	for _, m := range pageLink.FindAllStringSubmatch(text, -1) {
		if !regexp.MustCompile(`^[a-z]+:`).MatchString(m[1]) {
			list = append(list, m[1])
		}
	}
	return list
}

func readPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEveryPageIsListed: the index of guides leads to every page, and that of decisions to every decision.
func TestEveryPageIsListed(t *testing.T) {
	lists := map[string][]string{}
	for _, index := range []string{"docs/README.md", "docs/decisions/README.md"} {
		for _, link := range links(readPage(t, index)) {
			lists[index] = append(lists[index], path.Join(path.Dir(index), link))
		}
	}
	for _, page := range documents(t) {
		index := "docs/README.md"
		switch {
		case page == index || !strings.HasPrefix(page, "docs/"):
			continue
		case strings.HasPrefix(page, "docs/decisions/") && path.Base(page) != "README.md":
			index = "docs/decisions/README.md"
		}
		if !slices.Contains(lists[index], page) {
			t.Errorf("%s does not list %s", index, page)
		}
	}
	if !slices.Contains(links(readPage(t, "README.md")), "docs/README.md") {
		t.Error("README.md does not lead to docs/README.md")
	}
}

// TestEveryPackageHasARoom: the table of the architecture has every package, and no others.
func TestEveryPackageHasARoom(t *testing.T) {
	const module = "github.com/endsession/endsession"
	_, table, found := strings.Cut(readPage(t, "docs/architecture.md"), "## The rooms\n")
	table, _, _ = strings.Cut(table, "\n## ")
	if !found {
		t.Fatal("the architecture has no rooms")
	}
	rooms := map[string]*regexp.Regexp{}
	for _, m := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllStringSubmatch(table, -1) {
		for _, name := range codeSpan.FindAllString(m[1], -1) {
			name = strings.Trim(name, "`")
			pattern := strings.ReplaceAll(regexp.QuoteMeta(name), "<x>", "[a-z]+")
			if below, ok := strings.CutSuffix(pattern, `/\.\.\.`); ok {
				pattern = below + "(/.*)?"
			}
			rooms[name] = regexp.MustCompile("^" + pattern + "$")
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", module+"/...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, pkg := range strings.Fields(string(out)) {
		pkg = strings.TrimPrefix(pkg, module+"/")
		has := false
		for name, pattern := range rooms {
			if pattern.MatchString(pkg) {
				used[name], has = true, true
			}
		}
		if !has {
			t.Errorf("docs/architecture.md has no room for %s", pkg)
		}
	}
	for name := range rooms {
		if !used[name] {
			t.Errorf("docs/architecture.md has a room for %s, which is gone", name)
		}
	}
}
