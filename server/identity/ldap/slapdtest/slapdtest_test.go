package slapdtest_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/server/identity/ldap/slapdtest"
)

// childVariable makes TestChild, in a process of its own, start a server, say where, and wait to be killed.
const childVariable = "ENDSESSION_SLAPDTEST_CHILD"

func TestChild(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		t.Skip("only in the child")
	}
	s := slapdtest.New(t, slapdtest.Options{})
	_, _ = os.Stdout.WriteString("\nurl " + s.URL() + "\n")
	select {}
}

func TestServerEndsWithTheProcessThatStartedIt(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends it")
	}
	slapdtest.New(t, slapdtest.Options{}) // there is an OpenLDAP
	child := exec.Command(os.Args[0], "-test.run=^TestChild$")
	child.Env = append(os.Environ(), childVariable+"=1", "TMPDIR="+t.TempDir())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var address string
	for lines := bufio.NewScanner(out); address == "" && lines.Scan(); {
		address, _ = strings.CutPrefix(lines.Text(), "url ldap://")
		if address == lines.Text() {
			address = ""
		}
	}
	reachable := func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	if !reachable() {
		t.Fatalf("the child's server at %q does not answer", address)
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
