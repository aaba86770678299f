package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters/secret"
	"go.yaml.in/yaml/v3"
)

type account struct {
	Name     string        `json:"name" yaml:"name"`
	Password secret.String `json:"password" yaml:"password"`
}

func TestSecretNeverPrints(t *testing.T) {
	const canary = "s3cr3t-canary"
	a := account{Name: "svc", Password: secret.New(canary)}
	var printed []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%q", "%s", "%x", "%X", "%d", "%T %v"} {
		args := []any{a}
		if strings.Contains(verb, "%T") {
			args = []any{a, a}
		}
		printed = append(printed, fmt.Sprintf(verb, args...), fmt.Sprintf(verb, append([]any{}, toPointers(args)...)...))
		if !strings.Contains(verb, "%T") {
			printed = append(printed, fmt.Sprintf(verb, a.Password), fmt.Sprintf(verb, &a.Password))
		}
	}
	j, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var text, structured bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("x", "account", a, "password", a.Password)
	slog.New(slog.NewJSONHandler(&structured, nil)).Info("x", "account", a, "password", a.Password)
	printed = append(printed, string(j), string(y), text.String(), structured.String())
	for _, p := range printed {
		if strings.Contains(p, canary) || strings.Contains(p, fmt.Sprintf("%x", canary)) {
			t.Errorf("secret printed: %s", p)
		}
	}
	if !strings.Contains(string(j), secret.Redacted) {
		t.Errorf("JSON = %s, want it to say %s", j, secret.Redacted)
	}
}

func toPointers(args []any) []any {
	var out []any
	for _, a := range args {
		x := a.(account)
		out = append(out, &x)
	}
	return out
}

func TestSecretReadsFromConfiguration(t *testing.T) {
	var a account
	if err := yaml.Unmarshal([]byte("name: svc\npassword: hunter2\n"), &a); err != nil {
		t.Fatal(err)
	}
	if got := a.Password.Reveal(); got != "hunter2" {
		t.Errorf("Reveal() = %q, want hunter2", got)
	}
	if !a.Password.Equal(secret.New("hunter2")) || a.Password.Equal(secret.New("hunter")) {
		t.Error("Equal does not compare the texts")
	}
	if !(secret.String{}).IsZero() || a.Password.IsZero() {
		t.Error("IsZero does not tell absence")
	}
}
