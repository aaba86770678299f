package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// released is a file in an archive.
type released struct {
	mode  os.FileMode
	owner string // empty where the archive has none
	time  time.Time
	data  []byte
}

// unpack returns what is in an archive.
func unpack(t *testing.T, path string) map[string]released {
	t.Helper()
	archive, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content := func(r io.Reader) []byte {
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	files := map[string]released{}
	if strings.HasSuffix(path, ".zip") {
		z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range z.File {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			files[f.Name] = released{mode: f.Mode().Perm(), time: f.Modified, data: content(r)}
		}
		return files
	}
	g, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(g); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		owner := fmt.Sprintf("%d/%d %s/%s", h.Uid, h.Gid, h.Uname, h.Gname)
		files[h.Name] = released{mode: h.FileInfo().Mode().Perm(), owner: owner, time: h.ModTime, data: content(r)}
	}
}

// releaseTime is when the source of the tests' releases was committed.
var releaseTime = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// checkout puts the sources into a directory, as a commit that is always the same, with the tag v9.8.7.
func checkout(t *testing.T, dir string) (commit string) {
	t.Helper()
	copyFiles(t, sources(t), dir)
	env := []string{
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@corp.example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@corp.example",
		"GIT_AUTHOR_DATE=" + releaseTime.Format(time.RFC3339), "GIT_COMMITTER_DATE=" + releaseTime.Format(time.RFC3339),
	}
	do(t, dir, env, "git", "init", "-q")
	do(t, dir, env, "git", "add", "-A")
	do(t, dir, env, "git", "commit", "-q", "-m", "release")
	do(t, dir, env, "git", "tag", "v9.8.7")
	return strings.TrimSpace(do(t, dir, env, "git", "rev-parse", "HEAD"))
}

// makeRelease runs make release where and as somebody else might, and returns what is in dist by its name.
func makeRelease(t *testing.T, dir string, environment string, args ...string) map[string][]byte {
	t.Helper()
	do(t, dir, nil, "bash", append([]string{"-c", environment + ` make -s release "$@"`, "make"}, args...)...)
	files := map[string][]byte{}
	entries, err := os.ReadDir(filepath.Join(dir, "dist"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, "dist", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = b
	}
	return files
}

// The two releasers differ in where, when and as whom they work.
const (
	oneReleaser     = "umask 022; TZ=UTC"
	anotherReleaser = "umask 077; TZ=Asia/Tokyo LC_ALL=C GOFLAGS=-buildvcs=auto"
)

// sameRelease compares two releases, byte by byte, and their checksums with them.
func sameRelease(t *testing.T, one, other map[string][]byte) {
	t.Helper()
	names := slices.Sorted(maps.Keys(one))
	if got := slices.Sorted(maps.Keys(other)); !slices.Equal(names, got) {
		t.Fatalf("one release has %v, the other %v", names, got)
	}
	var sums strings.Builder
	for _, name := range names {
		if !bytes.Equal(one[name], other[name]) {
			t.Errorf("%s is different in another directory", name)
		}
		if name != "SHA256SUMS" {
			fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(one[name]), name)
		}
	}
	if got := string(one["SHA256SUMS"]); got != sums.String() {
		t.Errorf("SHA256SUMS:\n%swant\n%s", got, &sums)
	}
}

// TestReleaseIsReproducible builds the same release twice, and looks at the program.
func TestReleaseIsReproducible(t *testing.T) {
	t.Parallel()
	needTool(t, "make", "git", "gzip")
	platform := runtime.GOOS + "/" + runtime.GOARCH
	if runtime.GOOS != "linux" {
		t.Skip("GNU tar is needed")
	}
	here, there := t.TempDir(), filepath.Join(t.TempDir(), "a directory", "of another length")
	commit := checkout(t, here)
	checkout(t, there)
	one := makeRelease(t, here, oneReleaser, "PLATFORMS="+platform)
	sameRelease(t, one, makeRelease(t, there, anotherReleaser, "PLATFORMS="+platform))

	name := "endsession_v9.8.7_linux_" + runtime.GOARCH
	program := unpack(t, filepath.Join(here, "dist", name+".tar.gz"))[name+"/endsession"].data
	path := filepath.Join(here, "endsession")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("endsession v9.8.7 (commit %s of 2026-03-14T15:09:26Z) %s %s\n", commit, runtime.Version(), platform)
	if got := do(t, here, nil, path, "version"); got != want {
		t.Errorf("version: %swant %s", got, want)
	}
	for _, secret := range []string{here, there, os.Getenv("HOME") + "/"} {
		if bytes.Contains(program, []byte(secret)) {
			t.Errorf("the program tells of the directory %s", secret)
		}
	}
}

// TestReleaseArchives has all archives made, with a compiler that only writes down what it is asked for, and leaves its
// file to somebody else if it may.
func TestReleaseArchives(t *testing.T) {
	t.Parallel()
	needTool(t, "make", "git", "gzip", "zip")
	if runtime.GOOS != "linux" {
		t.Skip("GNU tar is needed")
	}
	compiler := filepath.Join(t.TempDir(), "go")
	script := "#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\necho \"$GOOS $GOARCH $CGO_ENABLED $3\" >\"$2\"\nchown 12:34 \"$2\" || true\n"
	if err := os.WriteFile(compiler, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	here, there := t.TempDir(), t.TempDir()
	checkout(t, here)
	checkout(t, there)
	one := makeRelease(t, here, oneReleaser, "GO="+compiler)
	sameRelease(t, one, makeRelease(t, there, anotherReleaser, "GO="+compiler))

	want := map[string]string{ // the archive, and what its program is built for
		"linux_amd64.tar.gz": "linux amd64", "linux_arm64.tar.gz": "linux arm64", "darwin_amd64.tar.gz": "darwin amd64",
		"darwin_arm64.tar.gz": "darwin arm64", "windows_amd64.zip": "windows amd64", "windows_arm64.zip": "windows arm64",
	}
	if len(one) != len(want)+1 {
		t.Errorf("dist holds %v", slices.Sorted(maps.Keys(one)))
	}
	for suffix, platform := range want {
		archive := "endsession_v9.8.7_" + suffix
		dir := strings.TrimSuffix(strings.TrimSuffix(archive, ".tar.gz"), ".zip") + "/"
		program, files := "endsession", map[string]string{"README.md": "README.md", "LICENSE": "LICENSE"}
		switch {
		case strings.HasPrefix(suffix, "windows"):
			program += ".exe"
		case strings.HasPrefix(suffix, "linux"):
			files["endsession.service"], files["endsession.yaml"] = "deploy/systemd/endsession.service", "deploy/systemd/endsession.yaml"
		}
		got := unpack(t, filepath.Join(here, "dist", archive))
		if g, want := string(got[dir+program].data), platform+" 0 ./cmd/endsession\n"; g != want {
			t.Errorf("%s: the program is built as %q, want %q", archive, g, want)
		}
		for name, source := range files {
			if string(got[dir+name].data) != readText(t, source) {
				t.Errorf("%s: %s is not that of the source", archive, name)
			}
		}
		if len(got) != len(files)+2 { // with the program and the directory
			t.Errorf("%s holds %v", archive, slices.Sorted(maps.Keys(got)))
		}
		for name, f := range got {
			mode := os.FileMode(0o644)
			if name == dir || name == dir+program {
				mode = 0o755
			}
			if f.mode != mode || f.owner != "" && f.owner != "0/0 /" || !f.time.Equal(releaseTime) {
				t.Errorf("%s: %s has mode %o, owner %q and time %v", archive, name, f.mode, f.owner, f.time)
			}
		}
	}
}
