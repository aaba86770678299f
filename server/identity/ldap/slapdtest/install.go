package slapdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/gofrs/flock"
)

// errMissing means that there is no OpenLDAP server on this machine, and that it could not be installed.
var errMissing = errors.New("no OpenLDAP server (Debian: apt-get install slapd)")

// binary is the server's program.
var binary = sync.OnceValues(func() (string, error) {
	if path := find(); path != "" {
		return path, nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return "", errMissing
	}
	// Test binaries run side by side; the package manager does not.
	lock := flock.New(filepath.Join(os.TempDir(), "endsession-install-slapd.lock"))
	if err := lock.Lock(); err != nil {
		return "", err
	}
	defer lock.Close()
	if path := find(); path != "" {
		return path, nil
	}
	fmt.Fprintln(os.Stderr, "slapdtest: installing slapd")
	// The package would start a server of its own, unless it is told by this file that it must not.
	const policy = "/usr/sbin/policy-rc.d"
	if _, err := os.Lstat(policy); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return "", err
		}
		defer func() { _ = os.Remove(policy) }()
	}
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-qqy", "--no-install-recommends", "slapd"}} {
		cmd := exec.Command(apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: apt-get %s: %w\n%s", errMissing, args[0], err, out)
		}
	}
	if path := find(); path != "" {
		return path, nil
	}
	return "", errMissing
})

func find() string {
	for _, name := range []string{"slapd", "/usr/sbin/slapd", "/usr/local/libexec/slapd", "/usr/libexec/slapd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// folder returns the first of the folders that is there, or "".
func folder(names ...string) string {
	for _, name := range names {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			return name
		}
	}
	return ""
}
