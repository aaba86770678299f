package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The form of the file and its expressions are two readers' business; who mends a file wants to hear of both at once.
func TestConfigCheckReportsFormAndExpressionsAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endsession.yaml")
	text := `store: { sqlit: { path: x } }
targets:
  - name: apm
    bigiq: { url: "https://b.example", username: svc, password: x, scope: { discover: true } }
    usernames: ['user.emial', 'size(user.id)']
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"config", "check", path}, {"serve", "--config", path}} {
		var out, problems bytes.Buffer
		if status := run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &problems}, os.LookupEnv); status == exitSucceeded {
			t.Errorf("%v: exit status 0", args)
		}
		for _, want := range []string{":1: store.sqlit", ":5: targets[0].usernames[0]", ":5: targets[0].usernames[1]"} {
			if !strings.Contains(problems.String(), want) {
				t.Errorf("%v: says\n%s\nwant a line with %q", args, problems.String(), want)
			}
		}
	}
}
