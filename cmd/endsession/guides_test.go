package main

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/endsession/endsession/server/auth/authtest"
)

// A guide is a page with commands for people to type. The test carries them out in the page's order and in its words,
// in one shell; only addresses are put in, where the page has example hosts and ports that may be taken.
//
// To add a page, add a line to guides with a world that has what the page takes for granted: somewhere (the programs
// and nothing else), or running (the systems with people signed in, and a gateway before them). What cannot be
// carried out here goes into notRun.
type guide struct {
	page string
	// choice is set where readers choose between commands; skip are those that this choice leaves out, by a word in them.
	choice string
	skip   []string
	// outputs says that the page's blocks of output and JSON are what the command before them prints.
	outputs bool
	// world prepares the shell.
	world func(t *testing.T, s *shell)
	// status are the exit statuses of the commands that do not end with 0, by how they begin.
	status map[string]int
	// endless are commands that go on until they are stopped, by how they begin: one line of output is waited for.
	endless []string
}

var guides = []guide{
	{page: "README.md", world: readmeWorld},
	{page: "docs/quickstart.md", choice: "kibana", skip: []string{"bigiq:", "element:"}, world: nothing, outputs: true},
	{page: "docs/quickstart.md", choice: "bigiq", skip: []string{"kibana:", "element:"}, world: nothing},
	{page: "docs/quickstart.md", choice: "element", skip: []string{"kibana:", "bigiq:"}, world: nothing},
	{page: "docs/api.md", world: apiWorld, outputs: true},
	{page: "docs/CONTRIBUTING.md", world: somewhere},
	{page: "docs/audit.md", world: auditWorld, endless: []string{"endsession audit export --config endsession.yaml --follow"}},
	{page: "docs/authentication.md", world: securedWorld},
	{page: "docs/bulk.md", world: bulkWorld, status: map[string]int{"endsession invalidate --users-file leavers.csv": exitPartial}},
	{page: "docs/configuration.md", world: running},
	{page: "docs/operations.md", world: running},
	{page: "docs/performance.md", world: somewhere},
	{page: "docs/targets/checks.md", world: running},
	{page: "docs/deploy.md", world: somewhere},
	{page: "docs/terminal.md", world: running},
}

// notRun are the commands that no test carries out as they are printed, by how they begin, and why. It is kept short.
var notRun = []struct{ page, command, why string }{
	{"README.md", "make test", "carries out this very test"},
	{"docs/CONTRIBUTING.md", "make test", "carries out this very test"},
	{"docs/CONTRIBUTING.md", "make generate", "writes into the checkout; make verify, which is part of make test, does the same elsewhere"},
	{"docs/CONTRIBUTING.md", "make bench", "takes a quarter of an hour, and wants the machine for itself"},
	{"docs/performance.md", "make bench", "takes a quarter of an hour, and wants the machine for itself"},
	{"docs/operations.md", "sqlite3 /var", "TestBackupAndRestore does, without that program"},
	{"docs/operations.md", "pg_dump", "PostgreSQL's own"},
	{"docs/operations.md", "pg_restore", "as above"},
	{"docs/operations.md", "mv /var", "TestBackupAndRestore does, elsewhere"},
	{"docs/operations.md", "cp /backup", "as above"},
	{"docs/operations.md", "endsession retry", "the name stands for somebody's; TestCLI has it"},
	{"docs/operations.md", "kill -HUP", "would reach every gateway on the machine; TestReload has it"},
	{"docs/adapters.md", "go test ./adapters/acme/...", "TestAdapterGuide does, with the files of the page"},
	{"docs/adapters.md", "make generate", "as above"},
	{"docs/adapters.md", "make test", "carries out this very test"},
	{"docs/reliability.md", "make chaos", "takes a quarter of an hour or more; make test carries out a part of it"},
	{"docs/deploy.md", "make build", "TestImage carries it out, in another checkout"},
	{"docs/deploy.md", "make release", "TestReleaseIsReproducible and TestReleaseArchives carry it out, in other checkouts"},
	{"docs/deploy.md", "sha256sum", "there is no release to download; TestReleaseIsReproducible checks the sums"},
	{"docs/deploy.md", "tar", "as above"},
	{"docs/deploy.md", "sudo", "changes the machine; TestUnitRuns carries the unit out"},
	{"docs/deploy.md", "systemctl", "needs systemd to run"},
	{"docs/deploy.md", "journalctl", "needs systemd to run"},
	{"docs/deploy.md", "docker", "needs a container engine; TestImage carries the Dockerfile out"},
	{"docs/deploy.md", "kubectl", "needs a cluster; TestManifests and TestManifestsRun carry the manifests out"},
}

// TestGuides carries out every command that a page shows.
func TestGuides(t *testing.T) {
	for _, g := range guides {
		t.Run(strings.TrimSuffix(g.page+"/"+g.choice, "/"), func(t *testing.T) {
			t.Parallel()
			g.carryOut(t)
		})
	}
}

// TestGuidesAreWhole: no page shows commands that nobody carries out.
func TestGuidesAreWhole(t *testing.T) {
	// What looks like a command in a block that is not said to be one.
	typed := regexp.MustCompile(`^(\$ |sudo |(\./)?bin/|(endsession|curl|grpcurl|make|go|git|docker|podman|kubectl|helm|systemctl|journalctl|npm|npx|node|buf|openssl|psql|ldapsearch|kill|ssh|scp|apt|apt-get) [^:=])`)
	excused := map[int]bool{}
	for _, page := range documents(t) {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		known := slices.ContainsFunc(guides, func(g guide) bool { return g.page == page })
		for _, b := range fenced(string(text)) {
			where := fmt.Sprintf("%s:%d", page, b.line)
			switch b.language {
			case "sh":
				if !known {
					t.Errorf("%s: the page is not in the table of guides", where)
				}
				for _, c := range commands(b.text) {
					if i := excuse(page, c); i >= 0 {
						excused[i] = true
					}
				}
				continue
			case "bash", "shell", "zsh", "shellsession":
				t.Errorf("%s: commands are in blocks of sh (carried out) or console (not), not of %s", where, b.language)
				continue
			case "mermaid":
				continue
			}
			found := false
			for line := range strings.Lines(b.text) {
				if !typed.MatchString(line) {
					continue
				}
				found = true
				command := strings.TrimPrefix(strings.TrimSpace(line), "$ ")
				i := excuse(page, command)
				if i < 0 {
					t.Errorf("%s: nobody carries out %q: make it a block of sh, or give a reason in notRun", where, command)
					continue
				}
				excused[i] = true
			}
			if b.language == "console" && !found {
				t.Errorf("%s: a console block without a command", where)
			}
		}
	}
	for i, n := range notRun {
		if !excused[i] {
			t.Errorf("%s has no command %q any more: remove it from notRun", n.page, n.command)
		}
	}
}

// TestLinksLeadSomewhere: every file, and every heading of one, that a page links to is there.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	n := 0
	for _, page := range documents(t) {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			n++
			name, heading, _ := strings.Cut(m[1], "#")
			to := filepath.Join(root, filepath.Dir(page), name)
			if name == "" {
				to = filepath.Join(root, page)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[0])
				continue
			}
			if heading == "" || !strings.HasSuffix(to, ".md") {
				continue
			}
			there, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(anchors(string(there)), heading) {
				t.Errorf("%s: %s leads to no heading", page, m[0])
			}
		}
	}
	if n < 50 {
		t.Errorf("the pages have only %d links", n)
	}
}

// anchors are what GitHub makes of a page's headings.
func anchors(page string) (list []string) {
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.+)$`).FindAllStringSubmatch(page, -1) {
		list = append(list, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return list
}

// excuse is the index in notRun of a page's command, or -1.
func excuse(page, command string) int {
	for i, n := range notRun {
		if n.page == page && strings.HasPrefix(command, n.command) {
			return i
		}
	}
	return -1
}

// documents are the Markdown files of the module, seen from root.
func documents(t *testing.T) []string {
	t.Helper()
	var list []string
	if err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "node_modules", "testdata", "bin", "dist", "deps"}, d.Name()):
			return filepath.SkipDir
		case strings.HasSuffix(file, ".md"):
			name, err := filepath.Rel(root, file)
			list = append(list, filepath.ToSlash(name))
			return err
		}
		return nil
	}); err != nil || len(list) < 20 {
		t.Fatalf("%v, %v", list, err)
	}
	return list
}

// block is a fenced block of a page; line is where it begins.
type block struct {
	language, text string
	line           int
}

// fenced returns a page's blocks. A block that is indented, as in a list, loses the indentation.
func fenced(page string) (list []block) {
	fence := regexp.MustCompile("^( *)(```+)([^`]*)$")
	var open *block
	indent, ticks := "", ""
	n := 0
	for line := range strings.Lines(page) {
		n++
		m := fence.FindStringSubmatch(strings.TrimRight(line, " \n"))
		switch {
		case open == nil && m != nil:
			indent, ticks = m[1], m[2]
			language, _, _ := strings.Cut(m[3], " ")
			open = &block{language: language, line: n}
		case open != nil && m != nil && m[2] == ticks && m[3] == "":
			list = append(list, *open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent)
		}
	}
	return list
}

// commands are the commands of a shell block. A command goes on over several lines if bash says that something is
// missing: a quote, the end of a here-document, what follows a backslash.
func commands(text string) (list []string) {
	command := ""
	for line := range strings.Lines(text) {
		if first := strings.TrimSpace(line); command == "" && (first == "" || first[0] == '#') {
			continue
		}
		command += line
		check := exec.Command("bash", "-n")
		check.Stdin = strings.NewReader(command)
		if says, err := check.CombinedOutput(); err != nil || len(says) > 0 || strings.HasSuffix(command, "\\\n") {
			continue
		}
		list = append(list, strings.TrimSpace(command))
		command = ""
	}
	if command != "" { // bash will say what is wrong
		list = append(list, command)
	}
	return list
}

// carryOut does what the page says.
func (g guide) carryOut(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, g.page))
	if err != nil {
		t.Fatal(err)
	}
	s := newShell(t)
	g.world(t, s)
	done, last := 0, ""
	for _, b := range fenced(string(text)) {
		if g.outputs && (b.language == "output" || b.language == "json") {
			if got, want := readable(last), readable(b.text); got != want {
				t.Errorf("%s:%d: the command before it prints\n%s\nthe page has\n%s", g.page, b.line, got, want)
			}
		}
		if b.language != "sh" {
			continue
		}
		for _, command := range commands(b.text) {
			done++
			skipped := func(word string) bool { return strings.Contains(command, word) }
			if excuse(g.page, command) >= 0 || slices.ContainsFunc(g.skip, skipped) {
				continue
			}
			begins := func(with string) bool { return strings.HasPrefix(command, with) }
			want := 0
			for beginning, status := range g.status {
				if begins(beginning) {
					want = status
				}
			}
			s.before(command)
			var out string
			var status int
			if slices.ContainsFunc(g.endless, begins) {
				out = s.begin(t, command)
			} else {
				out, status = s.do(t, command)
			}
			if status != want {
				t.Errorf("%s:%d: %s: exit status %d, want %d\n%s", g.page, b.line, command, status, want, s.all(s.n))
			}
			switch {
			case !strings.HasSuffix(command, "&"):
			case strings.Contains(command, " serve "):
				s.awaitGateway(t)
			case strings.Contains(command, " demo "):
				s.await(t, "9441", "9442", "9443")
			}
			last = out
			s.after(command, out)
		}
	}
	if done == 0 {
		t.Error("the page has no commands any more")
	}
}

// readable is an output without what differs from run to run; JSON is put into one form.
func readable(out string) string {
	var v any
	d := json.NewDecoder(strings.NewReader(out))
	d.UseNumber()
	if d.Decode(&v) == nil {
		if canonical, err := json.MarshalIndent(v, "", "  "); err == nil {
			out = string(canonical)
		}
	}
	return steady(strings.TrimSpace(withoutChanges(out)))
}

// shell is a bash that carries out commands one after the other, as somebody's terminal does.
type shell struct {
	// dir is where it works, and the home of who works there.
	dir string
	// host stands for 127.0.0.1 in what the pages print, so that their ports are free.
	host string
	// instead are what else stands for what: old, new, old, new.
	instead []string
	// env is what is exported.
	env map[string]string
	// before and after are called for each command; after judges what it printed.
	before func(command string)
	after  func(command, out string)

	bash     *exec.Cmd
	in       *os.File
	statuses chan string
	// n counts the commands; background are those that go on.
	n          int
	background []int
}

// hosts counts the shells.
var hosts atomic.Int32

// newShell returns a shell in an empty directory, with the programs that the pages use: those of this module as they
// are in the checkout, and grpcurl.
func newShell(t *testing.T) *shell {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs a loopback network, 127.0.0.0/8, as Linux has")
	}
	needCurl(t)
	pid := os.Getpid()
	s := &shell{
		dir: t.TempDir(), host: fmt.Sprintf("127.%d.%d.%d", 64+pid%180, 1+pid/180%250, hosts.Add(1)), env: map[string]string{},
		before: func(string) {}, after: func(string, string) {},
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, ".bin/endsession", "#!/bin/sh\n"+asProgram+"=1 exec '"+os.Args[0]+"' \"$@\"\n", 0o700)
	s.write(t, ".bin/grpcurl", "#!/bin/sh\nexec '"+grpcurl(t)+"' \"$@\"\n", 0o700)
	// Where the page is stands for the checkout.
	s.write(t, ".bin/go", `#!/bin/sh
PATH=${PATH#*:}
verb=$1; shift
if [ "$1" = -o ]; then out=$PWD/$2; shift 2; set -- -o "$out" "$@"; fi
exec go "$verb" -C '`+top+`' "$@"
`, 0o700)
	s.write(t, ".bin/git", "#!/bin/sh\n[ \"$*\" = 'clone https://github.com/endsession/endsession' ] && mkdir endsession\n", 0o700)
	s.env["ENDSESSION_SERVER"], s.env["ENDSESSION_ADMIN"] = s.host+":9090", s.host+":9091"
	t.Cleanup(func() {
		s.end(t)
		if t.Failed() {
			for _, n := range s.background {
				t.Logf("what goes on in the background printed:\n%s", s.all(n))
			}
		}
	})
	return s
}

// grpcurl is where the program is. It is built when it is needed first.
func grpcurl(t *testing.T) string {
	t.Helper()
	path, err := buildGRPCurl()
	if err != nil {
		t.Fatalf("build grpcurl: %v", err)
	}
	return path
}

var buildGRPCurl = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-modfile=grpcurl.mod", "-n", "grpcurl")
	cmd.Dir = root
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
})

// write puts a file into the shell's directory.
func (s *shell) write(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// put puts the addresses in.
func (s *shell) put(text string) string {
	return strings.NewReplacer(append(slices.Clone(s.instead), "127.0.0.1", s.host, "localhost", s.host)...).Replace(text)
}

// printed is where the output of the nth command goes, also of one that goes on in the background: what is wanted, and
// what is said beside it.
func (s *shell) printed(n int) (out, err string) {
	return filepath.Join(s.dir, fmt.Sprintf(".out-%d", n)), filepath.Join(s.dir, fmt.Sprintf(".err-%d", n))
}

// all is what the nth command printed so far.
func (s *shell) all(n int) string {
	o, e := s.printed(n)
	out, _ := os.ReadFile(o)
	says, _ := os.ReadFile(e)
	return string(out) + string(says)
}

// start starts the shell, if it was not yet.
func (s *shell) start(t *testing.T) {
	t.Helper()
	if s.bash != nil {
		return
	}
	s.bash = exec.Command("bash", "--norc")
	s.bash.Dir = s.dir
	s.bash.Env = os.Environ()
	for k, v := range s.env {
		s.bash.Env = append(s.bash.Env, k+"="+v)
	}
	// Go's caches stay where they are.
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOENV"} {
		v, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		s.bash.Env = append(s.bash.Env, name+"="+strings.TrimSpace(string(v)))
	}
	s.bash.Env = append(s.bash.Env, "HOME="+s.dir, "PATH="+filepath.Join(s.dir, ".bin")+":"+os.Getenv("PATH"))
	s.bash.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r, statuses, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.bash.Stdin, s.bash.ExtraFiles = in, []*os.File{statuses}
	if err := s.bash.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Close(), statuses.Close()
	s.in, s.statuses = w, make(chan string, 1)
	go func() {
		defer close(s.statuses)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			s.statuses <- lines.Text()
		}
	}()
}

// do carries out a command, and returns its standard output and exit status.
func (s *shell) do(t *testing.T, command string) (out string, status int) {
	t.Helper()
	s.start(t)
	if s.n++; strings.HasSuffix(command, "&") {
		s.background = append(s.background, s.n)
	}
	o, e := s.printed(s.n)
	fmt.Fprintf(s.in, "{ %s\n} >'%s' 2>'%s' </dev/null 3>&-\necho $? >&3\n", s.put(command), o, e)
	// Building may take a while where nothing is built yet.
	select {
	case line, ok := <-s.statuses:
		if !ok {
			t.Fatalf("%s ended the shell", command)
		}
		if _, err := fmt.Sscan(line, &status); err != nil {
			t.Fatalf("%s: %q: %v", command, line, err)
		}
	case <-time.After(10 * patience):
		t.Fatalf("%s: has not ended", command)
	}
	b, err := os.ReadFile(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), status
}

// begin carries out a command that does not end, and returns the first that it prints.
func (s *shell) begin(t *testing.T, command string) (out string) {
	t.Helper()
	if _, status := s.do(t, command+" &"); status != 0 {
		t.Fatalf("%s: exit status %d", command, status)
	}
	printed, _ := s.printed(s.n)
	eventually(t, command+" prints something", func() bool {
		b, err := os.ReadFile(printed)
		if err != nil {
			t.Fatal(err)
		}
		out = string(b)
		return bytes.HasSuffix(b, []byte("\n"))
	})
	if _, status := s.do(t, "kill $!"); status != 0 {
		t.Errorf("%s ended by itself:\n%s", command, out)
	}
	return out
}

// awaitGateway waits until a gateway that was started in the background serves.
func (s *shell) awaitGateway(t *testing.T) {
	t.Helper()
	s.await(t, "9090", "8080")
}

func (s *shell) await(t *testing.T, ports ...string) {
	t.Helper()
	for _, port := range ports {
		eventually(t, "something serves at port "+port, func() bool {
			c, err := net.Dial("tcp", s.host+":"+port)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
	}
}

// end ends the shell and what it started.
func (s *shell) end(t *testing.T) {
	if s.bash == nil {
		return
	}
	_ = s.in.Close()
	_ = syscall.Kill(-s.bash.Process.Pid, syscall.SIGTERM)
	_ = s.bash.Wait()
	eventually(t, "what the page started has ended", func() bool {
		return syscall.Kill(-s.bash.Process.Pid, syscall.SIGKILL) == syscall.ESRCH
	})
}

// somewhere is a world where nothing is but the programs, and no command is judged but by its exit status.
func somewhere(*testing.T, *shell) {}

// nothing is a world with nothing but the programs, where checks find nothing wrong and invalidations succeed.
func nothing(t *testing.T, s *shell) {
	s.after = func(command, out string) {
		answersJSON(t, command, out)
		if strings.Contains(command, "invalidate") && (!strings.Contains(out, "SUCCEEDED") || strings.Contains(out, "PARTIALLY")) {
			t.Errorf("%s: %s", command, out)
		}
		if strings.Contains(command, "targets check") && regexp.MustCompile(`(?m)(FAILED|WARNING|UNKNOWN)`).MatchString(out) {
			t.Errorf("%s: %s", command, out)
		}
	}
}

// emulate puts the demo's systems behind listeners, and returns them.
func (s *shell) emulate(t *testing.T) *world {
	t.Helper()
	w := newWorld()
	if err := w.serve(s.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	for name, content := range demoFiles() {
		s.write(t, name, content, 0o600)
	}
	s.instead = append(s.instead, "https://bigiq.example", w.targets[0].url, "https://kibana.example", w.targets[1].url, "https://mvip.example", w.targets[2].url)
	return w
}

// configuration is that of the demo, for listeners where the pages have them, with more of it.
func (s *shell) configuration(w *world, more string) string {
	text := fmt.Sprintf(demoConfig, w.targets[0].url, w.targets[1].url, w.targets[2].url)
	for _, port := range []string{"9090", "8080", "9091"} {
		text = strings.Replace(text, "127.0.0.1:0", s.host+":"+port, 1)
	}
	return text + more
}

// running is a world with the demo's systems and its gateway, configured by endsession.yaml, and bin/endsession. Before
// each command everybody is signed in.
func running(t *testing.T, s *shell) {
	w := s.emulate(t)
	s.write(t, "endsession.yaml", s.configuration(w, ""), 0o600)
	s.do(t, "mkdir bin && ln -s ../.bin/endsession bin/endsession")
	s.do(t, "endsession serve --config endsession.yaml &")
	s.awaitGateway(t)
	s.before = func(string) { w.signEverybodyIn() }
	s.after = func(command, out string) { answersJSON(t, command, out) }
}

// apiWorld is running, and knows what must become of each of the page's commands.
func apiWorld(t *testing.T, s *shell) {
	w := s.emulate(t)
	s.write(t, "endsession.yaml", s.configuration(w, ""), 0o600)
	s.do(t, "endsession serve --config endsession.yaml &")
	s.awaitGateway(t)
	s.before = func(string) {
		if len(w.present()) < len(w.population) {
			w.signEverybodyIn()
		}
	}
	n := 0
	s.after = func(command, out string) {
		answersJSON(t, command, out)
		if n++; n > len(apiCommands) || !strings.Contains(command, apiCommands[n-1].has) {
			t.Fatalf("command %d of the page is %s: what should become of it?", n, command)
		}
		c := apiCommands[n-1]
		// protobuf breaks its JSON after commas, or does not, as it likes.
		if !strings.Contains(strings.ReplaceAll(out, ", ", ","), c.says) {
			t.Errorf("%s does not say %q: %s", command, c.says, out)
		}
		if c.dies != nil {
			w.judge(t, command, c.dies)
		}
		if !strings.HasPrefix(command, "curl ") {
			return
		}
		url := regexp.MustCompile(`http://127\.0\.0\.1:8080(/[^\s"']*)`).FindStringSubmatch(command)[1]
		path := strings.Replace(url, "$name", "invalidations/"+strings.Repeat("0", 8), 1)
		method, status := http.MethodGet, http.StatusOK
		if strings.Contains(command, " -d ") {
			method = http.MethodPost
		}
		refused := strings.HasPrefix(out, `{"code":`)
		if refused {
			status = http.StatusBadRequest
		}
		if answer, accepted := strings.CutSuffix(out, "\n202\n"); accepted {
			out, status = answer, http.StatusAccepted
		}
		asDocumented(t, method, path, status, out)
		if body := regexp.MustCompile(`(?s) -d '([^']*)'(\s|$)`).FindStringSubmatch(command); body != nil {
			if err := askedAsDocumented(t, path, body[1]); (err == nil) == refused {
				t.Errorf("%s: refused: %t; the OpenAPI document says %v", command, refused, err)
			}
		}
	}
	t.Cleanup(func() {
		if n < len(apiCommands) && !t.Failed() {
			t.Errorf("the page has only %d commands, want %d", n, len(apiCommands))
		}
	})
}

func noneDies(signedIn) bool { return false }

// apiCommands are those of the page about the API, in its order: something in them, something in their answers, and who
// must be gone, if that can be known when they are answered.
var apiCommands = []struct {
	has, says string
	dies      func(signedIn) bool
}{
	{"describe", "rpc InvalidateSessions ", noneDies},
	{"/openapi.json", `"InvalidateSessions"`, noneDies},
	// End a person's sessions.
	{`"requestId"`, `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.person == "alice" && x.target == "kibana-prod" }},
	{"SessionService/InvalidateSessions", `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.person == "alice" }},
	// Select.
	{`"bob"`, `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.person == "bob" && x.okta }},
	{`{"provider"`, `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.okta }},
	{`{"group"`, `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.vpn }},
	{`{"all"`, `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.target == "storage" }},
	{"id=$(", "", noneDies},
	{`{"sessions"`, `"invalidatedCount":1`, nil},
	// Preview.
	{`"validateOnly"`, `KILL_BY_USER`, noneDies},
	// Wait.
	{`"waitTimeout": "0s"`, "\n202\n", nil},
	{"name=$(", "", nil},
	{`/v1/$name"`, `"name":"invalidations/`, nil},
	{"?waitTimeout=60s", `"INVALIDATION_STATE_SUCCEEDED"`, nil},
	{":watch", `"INVALIDATION_STATE_SUCCEEDED"`, noneDies},
	// Repeat.
	{`"requestId"`, `"replayed":true`, noneDies},
	// List.
	{"userId=alice", `{"invalidations":[{"name":`, noneDies},
	{"label=ticket=INC-7", `{"invalidations":[{"name":`, noneDies},
	{"page=$(", "", noneDies},
	{"pageToken=$page", `"nextPageToken":"`, noneDies},
	// Targets.
	{"/v1/targets", `{"targets":[{"name":"apm"`, noneDies},
	{"storage:check", `{"checks":[{"name":"reachable","status":"CHECK_STATUS_OK"`, noneDies},
	{"storage:pause", `"TARGET_STATE_PAUSED"`, noneDies},
	// Cancel.
	{"name=$(", "", noneDies},
	{":cancel", `"INVALIDATION_STATE_CANCELLED"`, noneDies},
	{"invalidations:cancel", `"notCancelledCount":1`, noneDies},
	// Retry.
	{"name=$(", "", noneDies},
	{"storage:resume", `"TARGET_STATE_ACTIVE"`, noneDies},
	{":retry", `"INVALIDATION_STATE_SUCCEEDED"`, func(x signedIn) bool { return x.person == "carol" && x.target == "storage" }},
	// Errors.
	{`"usr"`, `"INVALID_ARGUMENT"`, noneDies},
}

// auditWorld is a gateway that has something to audit, with a key.
func auditWorld(t *testing.T, s *shell) {
	w := s.emulate(t)
	s.instead = append(s.instead, "/var/lib/endsession/", "") // nobody but root may write there
	s.write(t, "audit.key", strings.Repeat("0123456789abcdef", 4)+"\n", 0o600)
	s.write(t, "endsession.yaml", s.configuration(w, "audit: { key: '${file:audit.key}' }\n"), 0o600)
	s.do(t, "endsession serve --config endsession.yaml &")
	s.awaitGateway(t)
	if out, status := s.do(t, "endsession invalidate --user alice --yes"); status != 0 {
		t.Fatalf("exit status %d:\n%s", status, out)
	}
	s.after = func(command, out string) {
		if strings.Contains(command, "export") && !strings.HasPrefix(out, `{"time":"`) {
			t.Errorf("%s: %s", command, out)
		}
	}
}

// securedWorld has a gateway with TLS, which begins as soon as there is a key for its configuration.
func securedWorld(t *testing.T, s *shell) {
	w := s.emulate(t)
	ca, err := authtest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Server(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP(s.host)} })
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authtest.Encode(server)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "tls.crt", string(cert), 0o600)
	s.write(t, "tls.key", string(key), 0o600)
	s.write(t, "ca.pem", string(ca.PEM), 0o600)
	s.instead = append(s.instead, "gateway.example", s.host)
	// The certificate of the pages' gateway is trusted by the system.
	s.env["ENDSESSION_TLS_CA_FILE"], s.env["CURL_CA_BUNDLE"] = filepath.Join(s.dir, "ca.pem"), filepath.Join(s.dir, "ca.pem")
	s.after = func(command, out string) {
		answersJSON(t, command, out)
		if !strings.HasPrefix(command, "endsession key new ") {
			return
		}
		_, entry, ok := strings.Cut(out, "auth.api_keys:\n")
		if !ok {
			t.Fatalf("%s: %s", command, out)
		}
		text := s.configuration(w, "auth:\n  api_keys:\n    "+strings.ReplaceAll(strings.TrimSpace(entry), "\n", "\n    ")+"\npolicy: [{ name: all, allow: 'true', rights: [list_targets] }]\n")
		s.write(t, "endsession.yaml", strings.Replace(text, " }\n", ", tls: { cert_file: tls.crt, key_file: tls.key } }\n", 1), 0o600)
		s.do(t, "endsession serve --config endsession.yaml &")
		s.awaitGateway(t)
	}
}

// answersJSON: what curl and grpcurl answer is JSON: one value, or one a line.
func answersJSON(t *testing.T, command, out string) {
	t.Helper()
	if kind := strings.Fields(command)[0]; kind != "curl" && kind != "grpcurl" || strings.Contains(command, " describe ") {
		return
	}
	if json.Valid([]byte(out)) {
		return
	}
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%s: answers what is no JSON: %s", command, out)
			return
		}
	}
}
