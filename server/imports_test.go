package server_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/endsession/endsession/"

// layer says which of our packages a package may import, and why.
type layer struct {
	pkg string
	may []string
	why string
}

// layers says which of our packages each of them may import, and why. A package that is not here has no place yet:
// give it one. "x/..." means x and all below it.
var layers = []layer{
	{"cmd/...", []string{"server", "server/...", "adapters", "adapters/...", "gen/...", "docs"}, "wires everything; holds the registry of adapters"},
	{"server", []string{"server/...", "adapters", "gen/..."}, "assembles the service, and knows adapters by their contract only: which ones there are is cmd's to say"},
	{"server/api", []string{"server/auth", "server/invalidation", "adapters", "gen/endsession/v1"}, "translates between protobuf and the engine, and asks who calls"},
	{"server/auth", []string{"server/invalidation"}, "knows who calls; neither how calls arrive nor what callers may do"},
	{"server/auth/authtest", nil, "an OpenID provider must not share code with what judges its tokens"},
	{"server/gateway", []string{"server/api", "gen/endsession/v1", "gen/openapi"}, "dials the gRPC server like any client; the engine is out of its reach, so it cannot go round the interceptors"},
	{"server/alloctest", nil, "measures whatever it is given"},
	{"server/config", []string{"server/config/strictyaml", "server/invalidation", "adapters", "adapters/secret"}, "knows the shape of the file, not what the settings do"},
	{"server/config/manual", []string{"server/config", "server/config/strictyaml", "server/invalidation", "adapters", "adapters/secret"}, "describes the types that the configuration is decoded into; only what generates documents needs it"},
	{"server/config/strictyaml", []string{"adapters/secret"}, "reads YAML"},
	{"server/identity", []string{"server/config/strictyaml", "server/invalidation", "adapters", "adapters/secret"}, "resolves names for the engine, which knows it as an interface"},
	{"server/identity/ldap/slapdtest", nil, "a real server: it must not share code with the client that it judges"},
	{"server/identity/ldap", []string{"server/identity", "adapters/secret"}, "a directory of people; how a target calls them is no business of it"},
	{"server/policy", []string{"server/config/strictyaml", "server/invalidation", "adapters"}, "judges for the engine, which knows it as an interface"},
	{"server/telemetry", []string{"server/invalidation"}, "is told by the engine, through interfaces, what to measure"},
	{"server/audit", []string{"server/invalidation", "adapters/secret"}, "hashes and checks the engine's events, and does no I/O"},
	{"server/store/storetest", []string{"server/audit", "server/invalidation", "adapters", "adapters/secret"}, "holds every store to the engine's interface"},
	{"server/store/...", []string{"server/audit", "server/invalidation", "adapters", "adapters/secret"}, "a store implements the engine's interface; no store knows another"},
	{"server/invalidation", []string{"adapters"}, "the heart: it knows targets, journal and names only as interfaces"},
	{"adapters", nil, "the contract: it must be possible to implement it without taking anything else along"},
	{"adapters/secret", nil, "a value that does not print"},
	{"adapters/httpclient", []string{"adapters", "adapters/secret"}, "classifies for the contract"},
	{"adapters/emulator", nil, "what emulators share is HTTP, not our contract"},
	{"adapters/adaptertest", []string{"adapters", "adapters/emulator"}, "holds every adapter to the contract; knows none"},
	{"adapters/*/*test", []string{"adapters", "adapters/emulator"}, "an emulator must not share code with the adapter it judges"},
	{"adapters/*", []string{"adapters", "adapters/httpclient", "adapters/secret"}, "one product each: no adapter knows another, nor the service"},
	{"docs", nil, "what the program shows of its documentation"},
	{"docs/examples/go", []string{"gen/endsession/v1"}, "is copied by callers, who have the contract only"},
	{"gen/...", []string{"gen/..."}, "generated"},
	{"proto/...", nil, "the contract, and what generates from it"},
}

// fence says which packages alone may import something, and why.
type fence struct {
	of, in []string
	why    string
}

// keepsOut reports whether a package must not be imported from outside.
func (f fence) keepsOut(imported string) bool {
	return slices.ContainsFunc(f.of, func(x string) bool { return imported == x || strings.HasPrefix(imported, x+"/") })
}

// fences say which packages alone may import something that is not ours, and why.
var fences = []fence{
	{
		[]string{"google.golang.org/protobuf", "google.golang.org/grpc", "google.golang.org/genproto", "buf.build/go/protovalidate", "github.com/grpc-ecosystem/grpc-gateway", module + "gen/endsession"},
		[]string{"server/api", "server/gateway", "server/telemetry", "server", "cmd/...", "gen/...", "proto/...", "docs/examples/go"},
		"protobuf stops at the API: the engine's types are its own; telemetry stands before the API",
	},
	{
		[]string{"database/sql", "modernc.org/sqlite", "github.com/jackc/pgx"},
		[]string{"server/store/...", "cmd/bench"},
		"SQL stops at the stores; the bench counts in their databases what they say they have written",
	},
	{
		[]string{"github.com/go-ldap/ldap"},
		[]string{"server/identity/ldap/...", "server/config"},
		"LDAP stops at the directory; the configuration checks names and filters with it",
	},
	{
		[]string{"github.com/spf13/cobra", "os/signal"},
		[]string{"cmd/..."},
		"terminals and signals are the program's business",
	},
	{
		[]string{"go.opentelemetry.io", "github.com/prometheus"},
		[]string{"server/telemetry"},
		"what is measured is told in our words: the names of metrics and spans, and that nobody's name gets into them, are one package's to decide",
	},
	{
		[]string{"testing"},
		[]string{"server/alloctest", "server/store/storetest", "server/store/postgres/pgtest", "server/identity/ldap/slapdtest", "adapters/adaptertest", "adapters/*/*test"},
		"only what tests others may import package testing",
	},
}

type listed struct {
	ImportPath    string
	Imports, Deps []string
}

func TestImports(t *testing.T) {
	packages := list(t)
	for _, p := range packages {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		i := slices.IndexFunc(layers, func(l layer) bool { return within(pkg, l.pkg) })
		if i < 0 {
			t.Errorf("%s has no place in the table of layers", pkg)
			continue
		}
		for _, imported := range p.Imports {
			if ours, ok := strings.CutPrefix(imported, module); ok && !withinAny(ours, layers[i].may) {
				t.Errorf("%s imports %s\nit may import %q: %s", pkg, ours, layers[i].may, layers[i].why)
			}
			for _, f := range fences {
				if f.keepsOut(imported) && !withinAny(pkg, f.in) {
					t.Errorf("%s imports %s\nonly %q may: %s", pkg, imported, f.in, f.why)
				}
			}
		}
		// Not even by a detour.
		if pkg == "server/invalidation" || pkg == "adapters" {
			for _, dep := range p.Deps {
				if dep == "database/sql/driver" { // google/uuid's types can be values of a database; that is an interface
					continue
				}
				for _, f := range fences[:2] {
					if f.keepsOut(dep) {
						t.Errorf("%s depends on %s\nit must not: %s", pkg, dep, f.why)
					}
				}
			}
		}
	}
	// A rule for what is not there guards nothing.
	for _, l := range layers {
		if !slices.ContainsFunc(packages, func(p listed) bool { return within(strings.TrimPrefix(p.ImportPath, module), l.pkg) }) {
			t.Errorf("no package is within %s: remove it from the table", l.pkg)
		}
	}
}

// list asks the go command for our packages.
func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", module+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []listed
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("no packages")
	}
	return packages
}

// within reports whether a package matches a pattern of the table: "a/..." is a and all below, "*" any word or part.
func within(pkg, pattern string) bool {
	if top, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == top || strings.HasPrefix(pkg, top+"/")
	}
	have, want := strings.Split(pkg, "/"), strings.Split(pattern, "/")
	if len(have) != len(want) {
		return false
	}
	for i := range want {
		suffix, wild := strings.CutPrefix(want[i], "*")
		if have[i] != want[i] && (!wild || !strings.HasSuffix(have[i], suffix)) {
			return false
		}
	}
	return true
}

func withinAny(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(pkg, p) })
}
