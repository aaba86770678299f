package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/config/manual"
)

var updateDocs = flag.Bool("update-docs", false, "rewrite what is generated in docs (make generate)")

// TestConfigurationIsDocumented: the page and the schema are what the types and their comments say today.
func TestConfigurationIsDocumented(t *testing.T) {
	for name, generate := range map[string]func(old []byte) ([]byte, error){
		"configuration.schema.json": func([]byte) ([]byte, error) { return manual.Schema(root, registry()) },
		"configuration.md":          func(old []byte) ([]byte, error) { return manual.Page(old, root, registry()) },
	} {
		path := filepath.Join(root, "docs", name)
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		now, err := generate(old)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if bytes.Equal(old, now) {
			continue
		}
		if !*updateDocs {
			t.Errorf("%s is not what the types say: run make generate", name)
		} else if err := os.WriteFile(path, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigSchema(t *testing.T) {
	shown, err := os.ReadFile(filepath.Join(root, "docs/configuration.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var out, problems bytes.Buffer
	status := run(t.Context(), []string{"config", "schema"}, streams{in: strings.NewReader(""), out: &out, err: &problems}, os.LookupEnv)
	if status != exitSucceeded || !bytes.Equal(out.Bytes(), shown) || problems.Len() > 0 {
		t.Errorf("exit status %d, %d bytes, want the %d of the file; says %s", status, out.Len(), len(shown), &problems)
	}
}
