package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/config"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// needCurl skips the test where there is no curl, except where tests are to be complete.
func needCurl(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no curl")
		}
		t.Skip("there is no curl")
	}
	return "curl "
}

// blocks returns a document's fenced blocks of one language.
func blocks(t *testing.T, path, language string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		found = append(found, m[1])
	}
	return found
}

// commands are the commands of a shell block: one a line, unless the line is continued.
func commands(block string) (list []string) {
	for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", "\\\v")) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, strings.ReplaceAll(line, "\v", "\n"))
		}
	}
	return list
}

// TestReadme does what the README says, in its order and in its words; only addresses are put in, where the README has
// example hosts and ports that may be taken.
func TestReadme(t *testing.T) {
	t.Parallel()
	needCurl(t)
	dir := t.TempDir()
	w := newWorld()
	if err := w.serve(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	write := func(name, content string, mode os.FileMode) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	pem := func(from, to string) {
		b, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		write(to, string(b), 0o600)
	}
	pem("apm.pem", "bigiq.pem")
	pem("storage.pem", "mvip.pem")
	write("bigiq.password", demoBIGIQPassword, 0o600)
	// The README's Kibana has a certificate that the system trusts.
	env := map[string]string{
		"KIBANA_API_KEY": demoKibanaKey, "ELEMENT_PASSWORD": demoElementPassword, "SSL_CERT_FILE": filepath.Join(dir, "kibana-prod.pem"),
	}

	const readme = "../../README.md"
	yaml := blocks(t, readme, "yaml")
	if len(yaml) != 2 {
		t.Fatalf("the README has %d YAML blocks, want the configuration and the directory", len(yaml))
	}
	configuration := yaml[0]
	for old, with := range map[string]string{
		"https://bigiq.example": w.targets[0].url, "https://kibana.example": w.targets[1].url, "https://mvip.example": w.targets[2].url,
		"127.0.0.1:9090": "127.0.0.1:0", "127.0.0.1:8080": "127.0.0.1:0", "127.0.0.1:9091": "127.0.0.1:0",
	} {
		if strings.Count(configuration, old) != 1 {
			t.Fatalf("the README's configuration has %d times %s", strings.Count(configuration, old), old)
		}
		configuration = strings.Replace(configuration, old, with, 1)
	}
	write("endsession.yaml", configuration, 0o600)
	write("people.yaml", yaml[1], 0o600)

	var gateway *process
	address := func(command string) string {
		if gateway == nil {
			return command
		}
		command = strings.ReplaceAll(command, "http://127.0.0.1:8080", gateway.http)
		return strings.ReplaceAll(command, "127.0.0.1:9090", gateway.grpc)
	}
	shell := func(command string) (string, error) {
		cmd := exec.Command("bash", "-c", address(command))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), asProgram+"=1")
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	done := map[string]int{}
	for _, block := range blocks(t, readme, "sh") {
		for _, command := range commands(block) {
			// Everybody is there again before each command.
			w.signEverybodyIn()
			var out string
			var err error
			kind := strings.Fields(command)[0]
			switch {
			case command == "go run ./cmd/endsession demo": // TestDemo
			case command == "make test": // .ci/run
			case command == "go build -o bin/endsession ./cmd/endsession":
				write("bin/endsession", "#!/bin/sh\nexec '"+os.Args[0]+"' \"$@\"\n", 0o700)
			case command == "bin/endsession serve --config endsession.yaml &":
				gateway = serveWith(t, env, filepath.Join(dir, "endsession.yaml"))
				env["ENDSESSION_SERVER"] = gateway.grpc
			case kind == "bin/endsession" || kind == "curl":
				if out, err = shell(command); err != nil {
					t.Errorf("%s: %v\n%s", command, err, out)
				}
				if kind == "curl" && !json.Valid([]byte(out)) {
					t.Errorf("%s: answers what is no JSON: %s", command, out)
				}
			case kind == "grpcurl":
				out = grpcurl(t, address(command))
			default:
				t.Errorf("the README has a command that this test does not know: %s", command)
			}
			done[kind]++
			if !regexp.MustCompile(`[ /:.]([iI]nvalidate|InvalidateSessions)\b`).MatchString(command) {
				if n := len(w.population) - len(w.present()); n != 0 {
					t.Errorf("%s signed %d people out", command, n)
				}
				continue
			}
			if !strings.Contains(out, "SUCCEEDED") || strings.Contains(out, "PARTIALLY") {
				t.Errorf("%s: %s", command, out)
			}
			present := w.present()
			for _, s := range w.population {
				if here := slices.Contains(present, s); here == (s.person == "alice") {
					t.Errorf("%s: %s is signed in at %s: %t", command, s.person, s.target, here)
				}
			}
		}
	}
	for _, kind := range []string{"go", "make", "bin/endsession", "curl", "grpcurl"} {
		if done[kind] == 0 {
			t.Errorf("the README has no %s command any more", kind)
		}
	}
	if status, answer := gateway.get(t, "/openapi.json"); status != http.StatusOK || !json.Valid([]byte(answer)) {
		t.Errorf("openapi.json: HTTP %d", status)
	}
}

// grpcurl does what the program of that name would with these arguments: it asks the server for its contract, and
// makes the call with it.
func grpcurl(t *testing.T, command string) string {
	t.Helper()
	// The shell splits the words, as it would for grpcurl.
	words, err := exec.Command("bash", "-c", `grpcurl() { printf '%s\0' "$@"; }; `+command).Output()
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	args := strings.Split(strings.TrimSuffix(string(words), "\x00"), "\x00")
	if len(args) != 5 || args[0] != "-plaintext" || args[1] != "-d" {
		t.Fatalf("%q: want -plaintext -d BODY ADDRESS METHOD", args)
	}
	body, address, method := args[2], args[3], args[4]
	service, name, _ := strings.Cut(method, "/")
	cc, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	seen := map[string]bool{}
	learn := func(req *reflectionv1.ServerReflectionRequest) {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || resp.GetFileDescriptorResponse() == nil {
			t.Fatalf("reflection: %v, %v", resp, err)
		}
		for _, b := range resp.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := new(descriptorpb.FileDescriptorProto)
			if err := proto.Unmarshal(b, file); err != nil {
				t.Fatal(err)
			}
			if !seen[file.GetName()] {
				seen[file.GetName()] = true
				set.File = append(set.File, file)
			}
		}
	}
	learn(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service}})
	for i := 0; i < len(set.File); i++ {
		for _, dep := range set.File[i].GetDependency() {
			if !seen[dep] {
				learn(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: dep}})
			}
		}
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		t.Fatal(err)
	}
	d, err := files.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	if err != nil {
		t.Fatal(err)
	}
	md := d.(protoreflect.MethodDescriptor)
	in, out := dynamicpb.NewMessage(md.Input()), dynamicpb.NewMessage(md.Output())
	if err := protojson.Unmarshal([]byte(body), in); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if err := cc.Invoke(ctx, "/"+method, in, out); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	answer, err := protojson.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// TestTargetPages loads the configurations that the pages about the targets show.
func TestTargetPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/targets/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%v, %v", pages, err)
	}
	for _, page := range pages {
		for i, block := range blocks(t, page, "yaml") {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(page), i), func(t *testing.T) {
				if !strings.HasPrefix(block, "targets:") {
					t.Skip("not a configuration")
				}
				_, err := config.Parse("endsession.yaml", []byte("directory: { file: { path: people.yaml } }\n"+block), registry(), config.Environment{
					LookupEnv: func(string) (string, bool) { return "id:secret", true },
					ReadFile:  func(string) ([]byte, error) { return []byte("secret"), nil },
				})
				if err != nil {
					t.Errorf("%v\n%s", err, block)
				}
			})
		}
	}
}
