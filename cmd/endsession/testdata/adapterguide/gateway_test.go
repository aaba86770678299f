package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/acme/acmetest"
	"github.com/endsession/endsession/adapters/emulator"
)

// TestTheGuidesAdapter is compiled into this package by TestAdapterGuide: it ends sessions through a gateway that has
// the guide's adapter.
func TestTheGuidesAdapter(t *testing.T) {
	desk := acmetest.New()
	url, ca, stop, err := emulator.ServeTLS(desk.Handler())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, name := range []string{"alice", "bob", "alice", "Alice"} {
		desk.SignIn(adapters.Session{Username: name})
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "endsession.yaml")
	for name, text := range map[string]string{
		"ca.pem": string(ca),
		"endsession.yaml": "listen: { grpc: '127.0.0.1:0', http: '127.0.0.1:0', admin: '127.0.0.1:0' }\ntargets:\n  - name: desk\n" +
			fmt.Sprintf("    acme: { url: %q, token: '${env:ACME_TOKEN}', ca_file: ca.pem }\n", url),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gateway := serveWith(t, map[string]string{"ACME_TOKEN": acmetest.Token}, path)
	post := func(path, body string) string {
		resp, err := http.Post(gateway.http+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: HTTP %d %v: %s", path, resp.StatusCode, err, answer)
		}
		return string(answer)
	}
	if checked := post("/v1/targets/desk:check", "{}"); !strings.Contains(checked, "the token is accepted") || strings.Contains(checked, "FAILED") {
		t.Errorf("check: %s", checked)
	}
	var answer struct {
		Invalidation struct {
			State string
			Runs  []struct {
				Kind, Verification string
				InvalidatedCount   int
			}
		}
	}
	text := post("/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}}`)
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatal(err)
	}
	inv := answer.Invalidation
	if inv.State != "INVALIDATION_STATE_SUCCEEDED" || len(inv.Runs) != 1 || inv.Runs[0].Kind != "acme" ||
		inv.Runs[0].InvalidatedCount != 2 || inv.Runs[0].Verification != "VERIFICATION_CONFIRMED_BY_LIST" {
		t.Errorf("answer: %s", text)
	}
	var left []string
	for _, x := range desk.Sessions() {
		left = append(left, x.Username)
	}
	if strings.Join(left, " ") != "bob Alice" {
		t.Errorf("signed in are %q, want bob and Alice", left)
	}
}
