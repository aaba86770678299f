package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/gofrs/flock"
)

// ErrMissing means that there is no PostgreSQL server on this machine, and that it could not be installed.
var ErrMissing = errors.New("no PostgreSQL server (Debian: apt-get install postgresql)")

// binaries is the folder that holds initdb and postgres.
var binaries = sync.OnceValues(func() (string, error) {
	if dir := find(); dir != "" {
		return dir, nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return "", ErrMissing
	}
	// Test binaries run side by side; the package manager does not.
	lock := flock.New(filepath.Join(os.TempDir(), "endsession-install-postgres.lock"))
	if err := lock.Lock(); err != nil {
		return "", err
	}
	defer lock.Close()
	if dir := find(); dir != "" {
		return dir, nil
	}
	fmt.Fprintln(os.Stderr, "pgtest: installing postgresql")
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-qqy", "--no-install-recommends", "postgresql"}} {
		cmd := exec.Command(apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: apt-get %s: %w\n%s", ErrMissing, args[0], err, out)
		}
	}
	if dir := find(); dir != "" {
		return dir, nil
	}
	return "", ErrMissing
})

// find prefers the newest of Debian's versions, which are not in the PATH.
func find() string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, dir := range dirs {
		if _, err := exec.LookPath(filepath.Join(dir, "postgres")); err != nil {
			continue
		}
		if _, err := exec.LookPath(filepath.Join(dir, "initdb")); err == nil {
			return dir
		}
	}
	return ""
}

func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// account is whom the server runs as when this process is root, which PostgreSQL refuses. nil is this process's own.
type account struct{ uid, gid int }

func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.Atoi(u.Gid)
		return &account{uid, gid}, err
	}
	return nil, errors.New("pgtest: PostgreSQL does not run as root, and there is no account postgres or nobody")
}

// own gives files to the account.
func (a *account) own(paths ...string) error {
	if a == nil {
		return nil
	}
	for _, p := range paths {
		if err := os.Chown(p, a.uid, a.gid); err != nil {
			return err
		}
	}
	return nil
}
