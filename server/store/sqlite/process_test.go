package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

// childEnv makes the test binary be another process, with a journal open at the path that it holds.
const childEnv = "ENDSESSION_TEST_JOURNAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := child(path); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child accepts one invalidation after the other until it is killed, with leases that would last for hours; it prints the
// ID of each before it asks and again when it is accepted.
func child(path string) error {
	s, err := sqlite.Open(context.Background(), sqlite.Options{Path: path})
	if err != nil {
		return err
	}
	fmt.Println("open")
	for {
		a := asked("apm", "kibana")
		a.Start = []int{0}
		fmt.Println("asks", a.Invalidation.ID)
		if err := accept(context.Background(), s, a); err != nil {
			return err
		}
		fmt.Println("accepted", a.Invalidation.ID)
	}
}

// One process writes; others are refused until it is gone, however it went, and then find all that it was promised.
func TestOpen_OneProcessWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var accepted []string
	asks := ""
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, id, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "open":
			if _, err := sqlite.Open(t.Context(), sqlite.Options{Path: path}); err == nil || !strings.Contains(err.Error(), "another process has it open") {
				t.Errorf("Open beside another process: %v", err)
			}
			link := filepath.Join(t.TempDir(), "link.db")
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			if _, err := sqlite.Open(t.Context(), sqlite.Options{Path: link}); err == nil || !strings.Contains(err.Error(), "another process has it open") {
				t.Errorf("Open by another name: %v", err)
			}
		case "error:":
			t.Fatalf("the other process: %s", lines.Text())
		case "asks":
			asks = id
		case "accepted":
			accepted, asks = append(accepted, id), ""
		}
		if len(accepted) == 20 {
			// Reading is free to all.
			db, err := sql.Open("sqlite", path+"?mode=ro")
			if err != nil {
				t.Fatal(err)
			}
			var n int
			if err := db.QueryRow("SELECT count(*) FROM invalidations").Scan(&n); err != nil || n < 20 {
				t.Errorf("a shell reads %d invalidations (%v), want 20 at least", n, err)
			}
			db.Close()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed
	if len(accepted) < 20 {
		t.Fatalf("only %d were accepted", len(accepted))
	}
	s := openAt(t, path)
	for _, id := range accepted {
		if _, err := s.Get(t.Context(), id); err != nil {
			t.Errorf("accepted, and lost: %v", err)
		}
	}
	unfinished, err := s.Unfinished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if extra := unfinished["apm"].Runs - len(accepted); extra < 0 || extra > 1 || extra == 1 && asks == "" {
		t.Errorf("%d are in the journal, %d were accepted, %q was asked for", unfinished["apm"].Runs, len(accepted), asks)
	}
	// The leases of the killed process are over, and what it was doing is known.
	claimed, err := s.Claim(t.Context(), invalidation.Claim{Target: "apm", Owner: "me", Limit: 1000, LeaseLength: time.Hour})
	if err != nil || len(claimed) != unfinished["apm"].Runs {
		t.Fatalf("claimed %d of %d, error %v", len(claimed), unfinished["apm"].Runs, err)
	}
	for _, c := range claimed {
		if !c.Lost || c.Run.Attempts != 2 {
			t.Errorf("claimed after a kill: lost %t, %d attempts", c.Lost, c.Run.Attempts)
		}
	}
}

func TestOpen_FilesAreTheOwners(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("has no modes")
	}
	dir := t.TempDir()
	s := openAt(t, filepath.Join(dir, "a journal? 100% #1.db")) // a path is not a URI
	if err := accept(t.Context(), s, asked("apm")); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		info, err := d.Info()
		if err == nil && (info.Mode().Perm() != 0o600 || !strings.HasPrefix(d.Name(), "a journal? 100% #1.db")) {
			t.Errorf("%s has mode %v", d.Name(), info.Mode())
		}
		return err
	})
	if err != nil || n != 4 {
		t.Errorf("%d files, want database, log, index and lock; error %v", n, err)
	}
}

// A file that takes the journal's place is not written to.
func TestReopen_RefusesAnotherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openAt(t, path)
	if err := accept(t.Context(), s, asked("apm")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.Rename(name, name+".away"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Break(t.Context()); err == nil { // as an outage does: the connection will be opened anew
		t.Fatal("no outage")
	}
	for range 2 {
		if err := accept(t.Context(), s, asked("apm")); !isUnavailable(err) {
			t.Errorf("Accept without a file: %v", err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 0 {
		t.Errorf("the other file has been written to: %v, %v", info, err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.Rename(name+".away", name); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := accept(t.Context(), s, asked("apm")); err != nil {
		t.Errorf("Accept when the file is back: %v", err)
	}
}
