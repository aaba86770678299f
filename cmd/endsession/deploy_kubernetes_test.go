package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// kubernetes is the version whose schemas the manifests are held to.
const kubernetes = "1.30"

// manifest is a document for Kubernetes.
type manifest map[string]any

// at returns what is at a path of keys and indices, or nil.
func at(v any, path ...any) any {
	for _, p := range path {
		switch key := p.(type) {
		case string:
			if m, ok := v.(manifest); ok {
				v = m[key]
				continue
			}
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			list, _ := v.([]any)
			if key >= len(list) {
				return nil
			}
			v = list[key]
		}
	}
	return v
}

// list is a list at a path.
func list(v any, path ...any) []any {
	l, _ := at(v, path...).([]any)
	return l
}

func (m manifest) kind() string { return fmt.Sprint(m["kind"]) }
func (m manifest) name() string { return fmt.Sprint(at(m, "metadata", "name")) }

// kustomize builds an overlay.
func kustomize(t *testing.T, overlay string) []manifest {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=deploy.mod", "kustomize", "build", "deploy/kubernetes/"+overlay)
	cmd.Dir = root
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kustomize: %v\n%s", err, &problems)
	}
	var all []manifest
	for d := yaml.NewDecoder(bytes.NewReader(out)); ; {
		var m map[string]any
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
}

// object returns the one of a kind and name.
func object(t *testing.T, all []manifest, kind, name string) manifest {
	t.Helper()
	for _, m := range all {
		if m.kind() == kind && (m.name() == name || strings.HasPrefix(m.name(), name+"-") && kind == "ConfigMap") {
			return m
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

// schemas are those of Kubernetes, as its API servers publish them.
type schemas struct{ dir string }

func newSchemas(t *testing.T) schemas {
	t.Helper()
	var module struct{ Dir string }
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-modfile=deploy.mod", "-json", "sigs.k8s.io/kubectl-validate")
	cmd.Dir = root
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &module)
	}
	if err != nil {
		t.Fatalf("the schemas of Kubernetes: %v\n%s", err, out)
	}
	return schemas{filepath.Join(module.Dir, "pkg/openapiclient/builtins", kubernetes)}
}

// judge says what is wrong with a manifest; fields that the schema does not know are, as for kubectl --validate=strict.
func (s schemas) judge(m manifest) error {
	group, version, named := strings.Cut(fmt.Sprint(m["apiVersion"]), "/")
	file := filepath.Join(s.dir, "apis", group, version+".json")
	if !named {
		group, version = "", group
		file = filepath.Join(s.dir, "api", version+".json")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	components := at(doc, "components", "schemas").(map[string]any)
	fragment := ""
	for name, c := range components {
		for _, g := range list(c, "x-kubernetes-group-version-kind") {
			if at(g, "group") == group && at(g, "version") == version && at(g, "kind") == m["kind"] {
				fragment = name
			}
		}
		closed(c)
	}
	if fragment == "" {
		return fmt.Errorf("no %s %s in Kubernetes %s", m["apiVersion"], m["kind"], kubernetes)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("k8s.json", doc); err != nil {
		return err
	}
	schema, err := compiler.Compile("k8s.json#/components/schemas/" + fragment)
	if err != nil {
		return err
	}
	// What YAML made of it goes to the schema as JSON would.
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// closed has every object of a schema refuse what it does not name.
func closed(schema any) {
	switch s := schema.(type) {
	case map[string]any:
		if properties, ok := s["properties"].(map[string]any); ok && s["additionalProperties"] == nil && s["x-kubernetes-preserve-unknown-fields"] == nil {
			s["additionalProperties"] = false
			for _, p := range properties {
				closed(p)
			}
			return
		}
		for _, v := range s {
			closed(v)
		}
	case []any:
		for _, v := range s {
			closed(v)
		}
	}
}

// overlays are the ways to run the gateway in Kubernetes.
var overlays = []struct {
	name, workload string
	replicas       int
}{{"sqlite", "StatefulSet", 1}, {"postgres", "Deployment", 3}}

// TestManifests builds each overlay, has Kubernetes's schemas judge it, and compares what has to fit together: ports, paths,
// labels, times, secrets.
func TestManifests(t *testing.T) {
	t.Parallel()
	judges := newSchemas(t)
	for _, o := range overlays {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			all := kustomize(t, o.name)
			for _, m := range all {
				if err := judges.judge(m); err != nil {
					t.Errorf("%s %s: %v", m.kind(), m.name(), err)
				}
			}
			workload := object(t, all, o.workload, "endsession")
			if at(workload, "spec", "replicas") != o.replicas {
				t.Errorf("%v replicas, want %d", at(workload, "spec", "replicas"), o.replicas)
			}
			pod := at(workload, "spec", "template", "spec")
			container := at(pod, "containers", 0)
			if n := len(list(pod, "containers")); n != 1 {
				t.Fatalf("%d containers", n)
			}
			restricted(t, pod, container)

			// The judges are no rubber stamps.
			container.(map[string]any)["livenessProb"] = map[string]any{}
			if judges.judge(workload) == nil {
				t.Error("a misspelt field is not found out")
			}
			delete(container.(map[string]any), "livenessProb")

			// Ports: of the configuration, the container, the services, the network policy.
			configured := configuration(t, all)
			ports := map[string]string{} // name: number
			for _, p := range list(container, "ports") {
				ports[fmt.Sprint(at(p, "name"))] = fmt.Sprint(at(p, "containerPort"))
			}
			for name, address := range map[string]string{"grpc": configured.Listen.GRPC, "http": configured.Listen.HTTP, "admin": configured.Listen.Admin} {
				if ":"+ports[name] != address {
					t.Errorf("the container's port %s is %s, the configuration listens at %s", name, ports[name], address)
				}
			}
			served := map[string]bool{}
			for _, name := range []string{"endsession", "endsession-pods"} {
				service := object(t, all, "Service", name)
				for _, p := range list(service, "spec", "ports") {
					to := fmt.Sprint(at(p, "targetPort"))
					served[to] = true
					if ports[to] != fmt.Sprint(at(p, "port")) {
						t.Errorf("service %s: port %v leads to %s, which is %s", name, at(p, "port"), to, ports[to])
					}
				}
			}
			policy := object(t, all, "NetworkPolicy", "endsession")
			open := map[string]bool{}
			for _, rule := range list(policy, "spec", "ingress") {
				if len(list(rule, "from")) == 0 || len(list(rule, "ports")) == 0 {
					t.Errorf("everybody, or every port, is let in: %v", rule)
				}
				for _, p := range list(rule, "ports") {
					open[fmt.Sprint(at(p, "port"))] = true
				}
			}
			for name := range ports {
				if !served[name] || !open[name] {
					t.Errorf("port %s: in a service %t, in the network policy %t", name, served[name], open[name])
				}
			}
			out := map[string]bool{}
			for _, rule := range list(policy, "spec", "egress") {
				for _, p := range list(rule, "ports") {
					out[fmt.Sprint(at(p, "port"))] = true
				}
			}
			for port, want := range map[string]bool{"53": true, "443": true, "5432": configured.Store.Postgres != nil} {
				if out[port] != want {
					t.Errorf("egress to port %s: %t, want %t", port, out[port], want)
				}
			}

			// What selects pods selects these, and nothing of the selector changes with the version.
			labels := at(workload, "spec", "template", "metadata", "labels")
			for what, selector := range map[string]any{
				"the workload": at(workload, "spec", "selector", "matchLabels"), "the policy": at(policy, "spec", "podSelector", "matchLabels"),
				"the budget":       at(object(t, all, "PodDisruptionBudget", "endsession"), "spec", "selector", "matchLabels"),
				"service":          at(object(t, all, "Service", "endsession"), "spec", "selector"),
				"service for pods": at(object(t, all, "Service", "endsession-pods"), "spec", "selector"),
			} {
				s, _ := selector.(map[string]any)
				if len(s) == 0 {
					t.Errorf("%s selects everything", what)
				}
				for k, v := range s {
					if at(labels, k) != v {
						t.Errorf("%s selects %s=%v, the pods have %v", what, k, v, at(labels, k))
					}
				}
			}

			// Time to stop: the pause before, and a whole shutdown.
			pause, _ := at(container, "lifecycle", "preStop", "sleep", "seconds").(int)
			grace, _ := at(pod, "terminationGracePeriodSeconds").(int)
			if need := time.Duration(pause)*time.Second + server.ShutdownBound; pause == 0 || time.Duration(grace)*time.Second <= need {
				t.Errorf("the pod has %d s to stop, and needs up to %v", grace, need)
			}
			if at(object(t, all, "ServiceAccount", fmt.Sprint(at(pod, "serviceAccountName"))), "automountServiceAccountToken") != false {
				t.Error("the service account brings a token")
			}
			for _, m := range all {
				if m.kind() == "Secret" {
					t.Errorf("a secret's value is among the manifests: %s", m.name())
				}
			}
			// How many may be missing, and what spreads them.
			if o.replicas > 1 {
				keys := map[any]bool{}
				for _, c := range list(pod, "topologySpreadConstraints") {
					keys[at(c, "topologyKey")] = true
				}
				if !keys["kubernetes.io/hostname"] || !keys["topology.kubernetes.io/zone"] {
					t.Errorf("spread over %v", keys)
				}
			}
		})
	}
}

// restricted holds a pod to the restricted profile of the Pod Security Standards, and to a root that cannot be written.
func restricted(t *testing.T, pod, container any) {
	t.Helper()
	for what, ok := range map[string]bool{
		"runAsNonRoot":                at(pod, "securityContext", "runAsNonRoot") == true,
		"the image's user":            fmt.Sprint(at(pod, "securityContext", "runAsUser"), ":", at(pod, "securityContext", "runAsGroup")) == imageUser(t),
		"seccompProfile":              at(pod, "securityContext", "seccompProfile", "type") == "RuntimeDefault",
		"no privilege escalation":     at(container, "securityContext", "allowPrivilegeEscalation") == false,
		"no capabilities":             fmt.Sprint(at(container, "securityContext", "capabilities", "drop")) == "[ALL]" && at(container, "securityContext", "capabilities", "add") == nil,
		"not privileged":              at(container, "securityContext", "privileged") == nil,
		"a read-only root":            at(container, "securityContext", "readOnlyRootFilesystem") == true,
		"nothing of the host":         at(pod, "hostNetwork") == nil && at(pod, "hostPID") == nil && at(pod, "hostIPC") == nil,
		"no token":                    at(pod, "automountServiceAccountToken") == false,
		"requests and a memory limit": at(container, "resources", "requests", "cpu") != nil && at(container, "resources", "limits", "memory") != nil,
	} {
		if !ok {
			t.Errorf("the pod lacks: %s", what)
		}
	}
	for _, v := range list(pod, "volumes") {
		if at(v, "projected") == nil {
			t.Errorf("volume %v is of a kind that the test does not know", at(v, "name"))
		}
	}
}

// imageUser is the user of the container image.
func imageUser(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(readText(t, "Dockerfile")) {
		if user, ok := strings.CutPrefix(line, "USER "); ok {
			return strings.TrimSpace(user)
		}
	}
	t.Fatal("the image has no user")
	return ""
}

// configuration is what the ConfigMap of an overlay says.
func configuration(t *testing.T, all []manifest) *config.Config {
	t.Helper()
	text := fmt.Sprint(at(object(t, all, "ConfigMap", "endsession"), "data", "endsession.yaml"))
	conf, err := config.Parse("endsession.yaml", []byte(text), registry(), config.Environment{
		ReadFile: func(name string) ([]byte, error) {
			if strings.HasSuffix(name, ".sha256") {
				return bytes.Repeat([]byte("0"), 64), nil
			}
			return []byte("id:" + strings.Repeat("x", 32)), nil // also the form of a key of Kibana
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// mount lays out the directory of the configuration as the pod's volume does: from the ConfigMap, and from secrets that hold
// exactly what the volume takes from them.
func mount(t *testing.T, all []manifest, workload any, values map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var sources []any
	for _, v := range list(workload, "spec", "template", "spec", "volumes") {
		if at(v, "name") == "configuration" {
			sources = list(v, "projected", "sources")
		}
	}
	write := func(name, content string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range sources {
		if name := at(s, "configMap", "name"); name != nil {
			for key, text := range at(object(t, all, "ConfigMap", fmt.Sprint(name)), "data").(map[string]any) {
				write(key, fmt.Sprint(text))
			}
		}
		for _, item := range list(s, "secret", "items") {
			key := fmt.Sprint(at(item, "key"))
			value, known := values[key]
			if !known {
				t.Errorf("the volume has a key that the test does not know: %s", key)
			}
			write(fmt.Sprint(at(item, "path")), value)
		}
	}
	return dir
}

// TestManifestsRun runs the container of each overlay with its configuration, and probes it.
func TestManifestsRun(t *testing.T) {
	t.Parallel()
	for _, o := range overlays {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			all := kustomize(t, o.name)
			workload := object(t, all, o.workload, "endsession")
			container := at(workload, "spec", "template", "spec", "containers", 0)

			certDir := t.TempDir()
			certificate(t, filepath.Join(certDir, "tls.crt"), filepath.Join(certDir, "tls.key"))
			key, hash := newAPIKey(t)
			l := newLab()
			urls := l.serve(t, certDir, nil)
			values := map[string]string{
				"audit.key": strings.Repeat("k", 32), "helpdesk.sha256": hash + "\n", "bigiq.password": labBIGIQPassword,
				"kibana.api-key": labKibanaKey, "element.password": labElementPassword,
			}
			for _, name := range []string{"tls.crt", "tls.key"} {
				b, err := os.ReadFile(filepath.Join(certDir, name))
				if err != nil {
					t.Fatal(err)
				}
				values[name] = string(b)
			}
			if o.name == "postgres" {
				values["postgres.dsn"] = pgtest.New(t, pgtest.Fast()).DSN("public").Reveal()
			}
			dir := mount(t, all, workload, values)

			// The image's ENTRYPOINT, and the pod's arguments.
			var args []string
			for _, a := range list(container, "args") {
				args = append(args, fmt.Sprint(a))
			}
			mounted := fmt.Sprint(at(container, "volumeMounts", slices.IndexFunc(list(container, "volumeMounts"), func(m any) bool { return at(m, "name") == "configuration" }), "mountPath"))
			file := args[len(args)-1]
			if path.Dir(file) != mounted {
				t.Fatalf("%s is not in %s", file, mounted)
			}
			file = filepath.Join(dir, path.Base(file))
			args[len(args)-1] = file
			if out, err := program(nil, "config", "check", file).CombinedOutput(); err != nil {
				t.Errorf("config check: %v\n%s", err, out)
			}

			// Addresses are put in, as everywhere in the tests.
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := string(b)
			state := t.TempDir()
			for old, with := range map[string]string{
				`":9090"`: "127.0.0.1:0", `":8080"`: "127.0.0.1:0", `":9091"`: "127.0.0.1:0", "/var/lib/endsession/": state + "/",
				"https://bigiq.example": urls["apm"], "https://kibana.example": urls["kibana-prod"], "https://mvip.example": urls["storage"],
			} {
				text = strings.ReplaceAll(text, old, with)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			authority := filepath.Join(certDir, "all.pem")
			var pems []byte
			for _, target := range []string{"apm", "kibana-prod", "storage"} {
				b, err := os.ReadFile(filepath.Join(certDir, authorities[target]))
				if err != nil {
					t.Fatal(err)
				}
				pems = append(pems, b...)
			}
			if err := os.WriteFile(authority, pems, 0o600); err != nil {
				t.Fatal(err)
			}
			env := map[string]string{"SSL_CERT_FILE": authority}
			for _, e := range list(container, "env") {
				env[fmt.Sprint(at(e, "name"))] = fmt.Sprint(at(e, "value"))
			}
			gateway := beginCommand(t, program(env, args...))
			eventually(t, "the gateway serves", func() bool {
				select {
				case <-gateway.ended:
					t.Fatalf("it ended with status %d:\n%s", gateway.status, gateway.log)
				default:
				}
				return gateway.listens()
			})
			for _, probe := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
				if at(container, probe, "httpGet", "port") != "admin" {
					t.Errorf("%s is not at the port admin", probe)
				}
				eventually(t, probe+" succeeds", func() bool {
					resp, err := http.Get(gateway.admin + fmt.Sprint(at(container, probe, "httpGet", "path")))
					if err != nil {
						return false
					}
					defer resp.Body.Close()
					return resp.StatusCode == http.StatusOK
				})
			}
			client := map[string]string{
				"ENDSESSION_SERVER": gateway.grpc, "ENDSESSION_TLS_CA_FILE": filepath.Join(certDir, "tls.crt"), "ENDSESSION_API_KEY": key,
			}
			if out, err := program(client, "invalidate", "--user", "bob", "--yes").CombinedOutput(); err != nil || !strings.Contains(string(out), "SUCCEEDED") {
				t.Errorf("invalidate: %v\n%s", err, out)
			}
			for _, args := range [][]string{{"list"}, {"targets", "list"}} { // who may end sessions may look, too
				if out, err := program(client, args...).CombinedOutput(); err != nil || !strings.Contains(string(out), "bob") && !strings.Contains(string(out), "storage") {
					t.Errorf("%s: %v\n%s", args, err, out)
				}
			}
			gateway.terminate(t)
			if status := gateway.wait(t); status != 0 {
				t.Errorf("exit status %d", status)
			}
		})
	}
}
