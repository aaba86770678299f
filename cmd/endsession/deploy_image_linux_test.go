package main

import (
	"debug/elf"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/endsession/endsession/server/config"
)

// instruction is one of a Dockerfile.
type instruction struct {
	word, rest string
	// flags are those before the rest: --from=build.
	flags map[string]string
}

// list reads the rest as an exec form: ["a", "b"].
func (i instruction) list(t *testing.T) []string {
	t.Helper()
	if !regexp.MustCompile(`^\["[^"\\]*"(, "[^"\\]*")*\]$`).MatchString(i.rest) {
		t.Fatalf("%s is not in exec form, and the image has no shell: %s", i.word, i.rest)
	}
	var words []string
	for _, m := range regexp.MustCompile(`"([^"]*)"`).FindAllStringSubmatch(i.rest, -1) {
		words = append(words, m[1])
	}
	return words
}

// stage is one of a Dockerfile: what comes after FROM.
type stage struct {
	from, name   string
	instructions []instruction
}

// all returns the instructions of a kind.
func (s stage) all(word string) (found []instruction) {
	for _, i := range s.instructions {
		if i.word == word {
			found = append(found, i)
		}
	}
	return found
}

// one returns the only instruction of a kind.
func (s stage) one(t *testing.T, word string) instruction {
	t.Helper()
	found := s.all(word)
	if len(found) != 1 {
		t.Fatalf("the stage from %s has %d times %s", s.from, len(found), word)
	}
	return found[0]
}

// dockerfile reads the Dockerfile: as much of its language as ours uses, and no more.
func dockerfile(t *testing.T) (stages []stage, args map[string]string) {
	t.Helper()
	args = map[string]string{}
	flag := regexp.MustCompile(`^--([a-z-]+)=(\S+) +`)
	for line := range strings.Lines(readText(t, "Dockerfile")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		i := instruction{word: word, flags: map[string]string{}}
		for m := flag.FindStringSubmatch(rest); m != nil; m = flag.FindStringSubmatch(rest) {
			i.flags[m[1]] = m[2]
			rest = strings.TrimPrefix(rest, m[0])
		}
		i.rest = rest
		switch word {
		case "FROM":
			image, name, _ := strings.Cut(rest, " AS ")
			stages = append(stages, stage{from: image, name: name})
			continue
		case "ARG":
			name, value, _ := strings.Cut(rest, "=")
			args[name] = value
		case "COPY", "RUN", "WORKDIR", "LABEL", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD":
		default:
			t.Fatalf("the test does not know %s", word)
		}
		if strings.HasSuffix(line, `\`) || strings.Contains(line, "<<") {
			t.Fatalf("the test does not know continued lines: %s", line)
		}
		if len(stages) > 0 {
			last := &stages[len(stages)-1]
			last.instructions = append(last.instructions, i)
		}
	}
	return stages, args
}

// dockerContext are the files that .dockerignore leaves to the build; the last pattern that matches decides.
func dockerContext(t *testing.T) []string {
	t.Helper()
	type pattern struct {
		text string
		keep bool
	}
	var patterns []pattern
	for line := range strings.Lines(readText(t, ".dockerignore")) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, keep := strings.CutPrefix(line, "!")
		patterns = append(patterns, pattern{strings.TrimPrefix(text, "/"), keep})
	}
	matches := func(pattern, name string) bool {
		if pattern == "**" {
			return true
		}
		anywhere, ok := strings.CutPrefix(pattern, "**/")
		for dir := name; dir != "."; dir = path.Dir(dir) {
			subject := dir
			if ok {
				pattern, subject = anywhere, path.Base(dir)
			}
			if matched, err := path.Match(pattern, subject); err != nil {
				t.Fatal(err)
			} else if matched {
				return true
			}
		}
		return false
	}
	var kept []string
	for _, name := range sources(t) {
		keep := true
		for _, p := range patterns {
			if matches(p.text, name) {
				keep = p.keep
			}
		}
		if keep {
			kept = append(kept, name)
		}
	}
	return kept
}

// buildImage does what the Dockerfile says, without its base images: the build runs in a directory with this machine's Go,
// and what the last stage copies is laid out in another, which is returned.
func buildImage(t *testing.T) (final stage, dir string) {
	t.Helper()
	stages, args := dockerfile(t)
	if len(stages) != 2 || stages[0].name != "build" || stages[1].from != "scratch" {
		t.Fatalf("want a stage build and one from scratch, got %v", stages)
	}
	build, final := stages[0], stages[1]
	args["TARGETOS"], args["TARGETARCH"] = runtime.GOOS, runtime.GOARCH
	args["VERSION"], args["COMMIT"], args["DATE"] = "v9.8.7", strings.Repeat("a", 40), "2026-03-14T15:09:26Z"

	tree := t.TempDir()
	if c := build.one(t, "COPY"); c.rest != ". ." {
		t.Fatalf("the build copies %s", c.rest)
	}
	copyFiles(t, dockerContext(t), tree)
	env := []string{"GOPROXY=off"}
	for name, value := range args {
		env = append(env, name+"="+value)
	}
	for _, run := range build.all("RUN") {
		do(t, tree, env, "/bin/sh", "-c", run.rest)
	}

	dir = t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	workdir := build.one(t, "WORKDIR").rest
	for _, c := range final.all("COPY") {
		from, to, _ := strings.Cut(c.rest, " ")
		if c.flags["from"] != "build" {
			t.Fatalf("COPY %s is not from the build", c.rest)
		}
		if inside, ok := strings.CutPrefix(from, workdir+"/"); ok {
			from = filepath.Join(tree, inside)
		}
		to = filepath.Join(dir, to)
		info, err := os.Stat(from)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Mkdir(to, info.Mode().Perm())); err != nil {
				t.Fatal(err)
			}
		} else {
			copyFile(t, from, to)
		}
		if owner := c.flags["chown"]; owner != "" && os.Getuid() == 0 {
			uid, gid := numbers(t, owner)
			if err := os.Chown(to, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	return final, dir
}

// numbers reads "user:group".
func numbers(t *testing.T, owner string) (uid, gid int) {
	t.Helper()
	user, group, _ := strings.Cut(owner, ":")
	uid, err := strconv.Atoi(user)
	gid, err2 := strconv.Atoi(group)
	if err := errors.Join(err, err2); err != nil {
		t.Fatalf("%s: want numbers, there is no /etc/passwd: %v", owner, err)
	}
	return uid, gid
}

// TestImage builds what the Dockerfile describes, and runs it as a container would: as its user, with nothing of this
// machine in sight, and nothing to write to but the volume.
func TestImage(t *testing.T) {
	t.Parallel()
	needTool(t, "make", "git")
	final, dir := buildImage(t)
	uid, gid := numbers(t, final.one(t, "USER").rest)
	if uid == 0 || gid == 0 {
		t.Error("the image runs as root")
	}
	volume := final.one(t, "VOLUME").rest

	var files []string
	if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(name, dir)
		if rel == volume {
			if owner := info.Sys().(*syscall.Stat_t); os.Getuid() == 0 && int(owner.Uid) != uid || info.Mode().Perm() != 0o700 {
				t.Errorf("the volume belongs to %d with mode %o", owner.Uid, info.Mode().Perm())
			}
		} else if info.Mode().Perm()&0o022 != 0 {
			t.Errorf("others can write to %s", rel)
		}
		if !d.IsDir() {
			files = append(files, rel)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/LICENSE", "/endsession", "/etc/ssl/certs/ca-certificates.crt"}; !slices.Equal(files, want) {
		t.Errorf("the image holds %v, want %v", files, want)
	}
	binary, err := elf.Open(filepath.Join(dir, "endsession"))
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	if slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("the program is linked dynamically")
	}
	if got := do(t, dir, nil, filepath.Join(dir, "endsession"), "version"); !strings.HasPrefix(got, "endsession v9.8.7 (commit "+strings.Repeat("a", 40)+" of 2026-03-14T15:09:26Z) ") {
		t.Errorf("version: %s", got)
	}
	var ports []string
	for _, address := range []string{config.DefaultGRPC, config.DefaultHTTP, config.DefaultAdmin} {
		ports = append(ports, address[strings.LastIndex(address, ":")+1:])
	}
	if got := strings.Fields(final.one(t, "EXPOSE").rest); !slices.Equal(got, ports) {
		t.Errorf("the image exposes %v, want %v", got, ports)
	}
	labels := map[string]bool{}
	for _, l := range final.all("LABEL") {
		name, _, _ := strings.Cut(l.rest, "=")
		labels[strings.TrimPrefix(name, "org.opencontainers.image.")] = true
	}
	for _, name := range []string{"title", "description", "source", "documentation", "licenses", "version", "revision", "created"} {
		if !labels[name] {
			t.Errorf("there is no label %s", name)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("to run it takes root, for chroot")
	}

	command := append(final.one(t, "ENTRYPOINT").list(t), final.one(t, "CMD").list(t)...)
	path := command[len(command)-1]
	l := newLab()
	mounted := filepath.Join(dir, filepath.Dir(path))
	if err := os.MkdirAll(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	labConfig{dir: mounted, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}, urls: l.serve(t, mounted, nil), change: func(text string) string {
		return strings.Replace(text, "./endsession.db", volume+"/endsession.db", 1)
	}}.write(t)
	for _, name := range []string{"endsession.yaml", "people.yaml", "bigiq.password", "bigiq.pem", "bigiq-2.pem", "kibana.pem", "mvip.pem"} {
		if err := os.Chmod(filepath.Join(mounted, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	container := func(env map[string]string, words ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
		cmd.Path, cmd.Err = words[0], nil // it is there after chroot
		cmd.Dir = "/"
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return cmd
	}
	env := maps.Clone(labEnv)
	gateway := beginCommand(t, container(env, command...))
	eventually(t, "the gateway serves", func() bool {
		select {
		case <-gateway.ended:
			t.Fatalf("it ended with status %d:\n%s", gateway.status, gateway.log)
		default:
		}
		return gateway.listens()
	})
	check := instruction{word: "HEALTHCHECK", rest: strings.TrimPrefix(final.one(t, "HEALTHCHECK").rest, "CMD ")}.list(t)
	healthy := map[string]string{"ENDSESSION_ADMIN": strings.TrimPrefix(gateway.admin, "http://")}
	eventually(t, "the container is healthy", func() bool { return container(healthy, check...).Run() == nil })
	out, err := container(map[string]string{"ENDSESSION_SERVER": gateway.grpc}, "/endsession", "invalidate", "--user", "alice", "--yes").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "SUCCEEDED") {
		t.Errorf("invalidate: %v\n%s", err, out)
	}
	for target, labels := range alicesSeats {
		if gone, want := l.gone(target), l.labels(t, target, labels); !slices.Equal(gone, want) {
			t.Errorf("%s: signed out %v, want %v", target, gone, want)
		}
	}

	signals := map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT, "SIGKILL": syscall.SIGKILL, "SIGHUP": syscall.SIGHUP}
	signal, known := signals[final.one(t, "STOPSIGNAL").rest]
	if !known {
		t.Fatal("the test does not know the signal")
	}
	if err := gateway.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if status := gateway.wait(t); status != 0 || !strings.Contains(gateway.log.String(), "journal closes") {
		t.Errorf("stopped with status %d:\n%s", status, gateway.log)
	}
	if err := container(healthy, check...).Run(); err == nil {
		t.Error("what has stopped is healthy")
	}
}
