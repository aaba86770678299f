package pgtest_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// A child process of this test starts a server, says where, and waits to be killed.
const childVariable = "ENDSESSION_PGTEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		c, err := pgtest.Start(pgtest.Fast())
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("addr", c.Addr())
		select {}
	}
	pgtest.Main(m)
}

func TestServerEndsWithTheProcessThatStartedIt(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends it")
	}
	pgtest.Shared(t) // there is a PostgreSQL
	tmp := t.TempDir()
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"=1", "TMPDIR="+tmp)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "addr ")
	if !ok {
		t.Fatalf("child: %q, %v", line, err)
	}
	reachable := func() bool {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	if !reachable() {
		t.Fatal("the child's server does not answer")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for reachable() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the server outlives the process that started it")
		}
	}
}

func TestSchemasAreApart(t *testing.T) {
	a, b := pgtest.Shared(t).Schema(t), pgtest.Shared(t).Schema(t)
	if a == b {
		t.Errorf("two tests share schema %s", a)
	}
}

func TestACopyIsWhatACrashLeaves(t *testing.T) {
	c := pgtest.New(t, pgtest.Fast())
	c.Exec(t, "CREATE TABLE before ()")
	x, err := c.Copy()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Remove)
	c.Exec(t, "CREATE TABLE after ()") // the server goes on
	if err := x.Restart(); err != nil {
		t.Fatal(err)
	}
	x.Exec(t, "SELECT FROM before")
	x.Exec(t, "CREATE TABLE after ()") // it is not there
	c.Kill()
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "SELECT FROM before, after")
}
