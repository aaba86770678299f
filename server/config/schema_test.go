package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/kibana"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/config/manual"
	"github.com/endsession/endsession/server/config/strictyaml"
)

// kinds are the made-up ones and the real ones.
func kinds() map[string]adapters.Type {
	all := maps.Clone(registry)
	for _, t := range []adapters.Type{bigiq.Type(), kibana.Type(), element.Type()} {
		all[t.Kind] = t
	}
	return all
}

func compile(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := manual.Schema("../..", kinds())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("configuration.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("configuration.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fault is one thing that is wrong, and where.
type fault struct {
	at      string // "/targets/0/name"
	message string
	// formal: it is about keys and types. Such a fault the schema must find too.
	formal bool
	// missing is where a key is missing, with a slash.
	missing string
	// name is a key that may not be called so, with a slash.
	name string
	// choice: it is about which keys a mapping has, not about what is below them.
	choice bool
}

func (f fault) String() string { return f.at + ": " + f.message }

// under reports whether f is at or below a place.
func (f fault) under(at string) bool { return f.at == at || strings.HasPrefix(f.at, at+"/") }

var (
	formal = regexp.MustCompile(`^(unknown key|want a (text|mapping of keys|list|whole number)|want true or false|want \d+ to \d+$|` +
		`required$|required; |has no value|names no kind|a second kind|want (sqlite|file|allow) or|the rule has allow already|a \w+ target has no providers)`)
	step = regexp.MustCompile(`\[("(?:[^"\\]|\\.)*"|\d+)\]|[^.\[\]]+`)
)

// parsed returns what is wrong with a document as the gateway sees it.
func parsed(t *testing.T, text []byte) []fault {
	t.Helper()
	_, err := config.Parse("etc/endsession.yaml", text, kinds(), config.Environment{
		LookupEnv: func(name string) (string, bool) {
			if name == "D" || name == "N" {
				return map[string]string{"D": "5d", "N": "5"}[name], true
			}
			v, ok := variables[name]
			if !ok {
				v, ok = "id:secret", !strings.Contains(name, "UNSET")
			}
			return v, ok
		},
		ReadFile: func(string) ([]byte, error) { return []byte("from-a-file"), nil },
	})
	var wrong *strictyaml.Error
	if err != nil && !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	var faults []fault
	if wrong == nil {
		return nil
	}
	for _, p := range wrong.Problems {
		f := fault{message: p.Message, formal: formal.MatchString(p.Message) && !strings.Contains(p.Message, "comes from a variable")}
		for _, m := range step.FindAllStringSubmatch(p.Path, -1) {
			word := m[0]
			if m[1] != "" {
				word = m[1]
				if unquoted, err := strconv.Unquote(word); err == nil {
					word = unquoted
				}
			}
			f.at += "/" + word
		}
		if strings.HasPrefix(p.Message, "a second kind") || strings.HasPrefix(p.Message, "the rule has allow") {
			f.at = f.at[:strings.LastIndex(f.at, "/")]
		}
		faults = append(faults, f)
	}
	return faults
}

// validated returns what is wrong with it as the schema sees it.
func validated(t *testing.T, s *jsonschema.Schema, text []byte) []fault {
	t.Helper()
	root := strictyaml.Read(text, strictyaml.Options{}).Root()
	if root == nil {
		t.Fatalf("not YAML:\n%s", text)
	}
	err := s.Validate(plain(root))
	if err == nil {
		return nil
	}
	var wrong *jsonschema.ValidationError
	if !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	var faults []fault
	var leaves func(e *jsonschema.ValidationError)
	leaves = func(e *jsonschema.ValidationError) {
		at := ""
		for _, word := range e.InstanceLocation {
			at += "/" + word
		}
		note := func(at string) {
			faults = append(faults, fault{at: at, message: fmt.Sprintf("%T", e.ErrorKind)})
		}
		switch k := e.ErrorKind.(type) {
		case *kind.AdditionalProperties:
			for _, name := range k.Properties {
				note(at + "/" + name)
			}
		case *kind.Required:
			for _, name := range k.Missing {
				// The gateway may leave it at a misspelt one.
				faults = append(faults, fault{at: at + "/" + name, message: "required", missing: at + "/"})
			}
		case *kind.PropertyNames:
			// The library's location is not to be relied on.
			faults = append(faults, fault{at: "/", name: "/" + k.Property, message: "propertyNames", choice: true})
		case *kind.OneOf:
			faults = append(faults, fault{at: at, message: "oneOf", choice: true})
		default:
			if len(e.Causes) == 0 {
				note(at)
			}
			for _, c := range e.Causes {
				leaves(c)
			}
		}
	}
	leaves(wrong)
	return faults
}

var digits = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

// plain is what an editor makes of a node.
func plain(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = plain(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Content {
			list = append(list, plain(item))
		}
		return list
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return n.Value == "true"
	case "!!int":
		if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil && digits.MatchString(n.Value) {
			return i
		}
	case "!!float":
		if f, err := strconv.ParseFloat(n.Value, 64); err == nil {
			return f
		}
	}
	return n.Value
}

// agree checks that the schema finds what is formally wrong with a document, where the gateway does, and nothing else.
func agree(t *testing.T, s *jsonschema.Schema, about string, text []byte) {
	t.Helper()
	told, found := parsed(t, text), validated(t, s, text)
	for _, p := range told {
		if p.formal && !slices.ContainsFunc(found, func(f fault) bool { return f.under(p.at) || p.under(f.at) && !f.choice }) {
			t.Errorf("%s: the schema does not see %v; it says %v\n%s", about, p, found, text)
		}
	}
	for _, f := range found {
		if !slices.ContainsFunc(told, func(p fault) bool {
			return f.under(p.at) || p.under(f.at) || f.missing != "" && strings.HasPrefix(p.at, f.missing) ||
				f.name != "" && strings.HasSuffix(p.at, f.name)
		}) {
			t.Errorf("%s: only the schema says %v; the gateway says %v\n%s", about, f, told, text)
		}
	}
}

// documents are configurations: those of the tests, and those that the pages show.
func documents(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, name := range []string{"everything", "ldap", "wrong", "wrong2", "wrong3", "wrong-ldap"} {
		all[name] = []byte(read(t, name+".yaml"))
	}
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	key := regexp.MustCompile(`(?m)^([a-z_]+):`)
	top := map[string]bool{}
	for _, f := range strictyaml.Fields(reflect.TypeFor[config.Config]()) {
		top[f.Name] = true
	}
	for _, dir := range []string{"../../README.md", "../../docs"} {
		if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".md") {
				return err
			}
			page, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i, m := range block.FindAllSubmatch(page, -1) {
				keys := key.FindAllSubmatch(m[1], -1)
				if len(keys) > 0 && !slices.ContainsFunc(keys, func(k [][]byte) bool { return !top[string(k[1])] }) {
					all[fmt.Sprintf("%s/%d", filepath.Base(path), i)] = m[1]
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestSchemaAgreesWithTheGateway: about every document the schema says what the gateway says.
func TestSchemaAgreesWithTheGateway(t *testing.T) {
	s := compile(t)
	all := documents(t)
	if len(all) < 15 {
		t.Errorf("there are only %d documents: %v", len(all), slices.Sorted(maps.Keys(all)))
	}
	for name, text := range all {
		agree(t, s, name, text)
	}
}

// TestSchemaAgreesAboutWhatIsMissingOrMisplaced: each key of the documents is misspelt and left out, and each value
// is replaced by one of another type.
func TestSchemaAgreesAboutWhatIsMissingOrMisplaced(t *testing.T) {
	s := compile(t)
	values := []string{"text", "7", "99999999", "-1", "true", "null", "[]", "{}", "[text]", "{key: text}"}
	for name, text := range documents(t) {
		if strings.HasPrefix(name, "wrong") {
			continue
		}
		root := strictyaml.Read(text, strictyaml.Options{}).Root()
		changed := func(about string) {
			out, err := yaml.Marshal(root)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, s, name+" with "+about, out)
		}
		var walk func(n *yaml.Node, at string)
		walk = func(n *yaml.Node, at string) {
			for i := range n.Content {
				place := at + "/" + strconv.Itoa(i)
				if n.Kind == yaml.MappingNode {
					if i%2 == 0 {
						k := n.Content[i]
						whole, word := n.Content, k.Value
						k.Value = word + "x"
						changed(word + " misspelt")
						k.Value = word
						n.Content = slices.Concat(whole[:i], whole[i+2:])
						changed("no " + word)
						n.Content = whole
						continue
					}
					place = at + "/" + n.Content[i-1].Value
				}
				old := n.Content[i]
				for _, v := range values {
					var other yaml.Node
					if err := yaml.Unmarshal([]byte(v), &other); err != nil {
						t.Fatal(err)
					}
					n.Content[i] = other.Content[0]
					changed(place + " " + v)
				}
				n.Content[i] = old
				walk(old, place)
			}
		}
		walk(root, "")
	}
}

// TestSchemaAcceptsEveryFormOfAText: what the gateway reads, the schema takes.
func TestSchemaAcceptsEveryFormOfAText(t *testing.T) {
	s := compile(t)
	const target = "targets: [{name: a, bare: {}}]\n"
	for _, text := range []string{
		"retention: 1d2h3m4s\n", "retention: 1h\n", "retention: ${env:D}\n", "check_interval: never\n", "check_interval: 1h30m\n",
		"limits: {calls_per_caller: 1000000/h, burst: 1}\n", "limits: {calls_per_caller: 1/m, burst: ${env:N}}\n",
		"log: {format: auto, level: error}\n", "log: {format: json, level: warn}\n", "log: {format: text, level: debug}\n",
		"listen: {health: off, reflection: open, pprof: ${env:YES}}\n", "listen: {insecure: [grpc, http, admin]}\n", "listen: {insecure: true}\n",
		"policy: [{name: a, allow: 'true', rights: [invalidate, preview, read, read_own, retry, cancel, list_targets, check, pause]}]\n",
		"auth: {api_keys: [{name: a, sha256: [" + strings.Repeat("1", 64) + "]}]}\n",
		"auth: {api_keys: [{name: a, keys: [{sha256: " + strings.Repeat("aB", 32) + ", not_after: 2100-01-01}]}]}\n",
		"auth: {oidc: [{issuer: 'https://a', audience: [a, b], required_claims: {x: y, z: [a]}}]}\n",
		"directory: {ldap: {urls: ['ldaps://a'], user: {base: 'dc=a'}, group: {base: 'dc=b', members: memberUid}, cache: 0s}, on_missing: use_given}\n",
		"store: {postgres: {dsn: 'postgres://a', lease: 3s}}\n",
	} {
		if told := parsed(t, []byte(target+text)); len(told) > 0 {
			t.Errorf("%s: %v", text, told)
		}
		if found := validated(t, s, []byte(target+text)); len(found) > 0 {
			t.Errorf("%s: the schema says %v", text, found)
		}
	}
}
