package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// offered is what a shell is offered for the last of the words, and what it is told to do with that.
func (c cli) offered(t *testing.T, words ...string) (list []string, directive cobra.ShellCompDirective) {
	t.Helper()
	r := c.run(t, append([]string{"__complete"}, words...)...)
	if r.status != 0 {
		t.Fatalf("%q: exit status %d: %s", words, r.status, r.err)
	}
	lines := strings.Split(strings.TrimSuffix(r.out, "\n"), "\n")
	if _, err := fmt.Sscanf(lines[len(lines)-1], ":%d", &directive); err != nil {
		t.Fatalf("%q: %v: %s", words, err, r.out)
	}
	return lines[:len(lines)-1], directive
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	_, c := startForCLI(t)
	partly := nameOf(t, c.run(t, "invalidate", "--group", "ops", "--confirm-broad", "--target", "storage", "--target", "kibana-prod", "--yes", "-o", "json").out)
	whole := nameOf(t, c.run(t, "invalidate", "--user", "eve\x1b[2J\tforged", "--target", "storage", "--target", "apm", "--yes", "-o", "json").out)
	const (
		none    = cobra.ShellCompDirectiveNoFileComp
		noSpace = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		ordered = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		files   = cobra.ShellCompDirectiveDefault
	)
	for words, test := range map[string]struct {
		// want are words without what explains them.
		want      string
		directive cobra.ShellCompDirective
	}{
		"invalidate -t ":                {"apm apm-all kibana-prod storage", none},
		"invalidate --target a":         {"apm apm-all", none},
		"preview --target=s":            {"storage", none},
		"list --target k":               {"kibana-prod", none},
		"targets check ":                {"apm apm-all kibana-prod storage", none},
		"targets check storage ":        {"apm apm-all kibana-prod", none},
		"targets pause ":                {"apm apm-all kibana-prod storage", none},
		"targets pause apm ":            {"", none},
		"targets resume st":             {"storage", none},
		"invalidate --target-username ": {"apm= apm-all= kibana-prod= storage=", noSpace},
		"invalidate --session st":       {"storage/", noSpace},
		"list --state ":                 {"RUNNING SUCCEEDED PARTIALLY_SUCCEEDED FAILED CANCELLED", none},
		"invalidate --provider ":        {"local ldap saml oidc kerberos pki token basic anonymous", none},
		"get ":                          {whole + " " + partly, ordered},
		"get invalidations/":            {whole + " " + partly, ordered},
		"watch " + strings.TrimPrefix(whole, "invalidations/")[:4]: {strings.ReplaceAll(whole+" "+partly, "invalidations/", ""), ordered},
		"get " + whole + " ":         {"", ordered},
		"cancel ":                    {"", ordered}, // nothing runs
		"retry ":                     {whole + " " + partly, ordered},
		"invalidate ":                {"", none},
		"invalidate --user ":         {"", none},
		"invalidate --reason ":       {"", none},
		"invalidate -o ":             {"table json", none},
		"list --color ":              {"auto always never", none},
		"invalidate --api-key-file ": {"", files},
		"list --tls-ca-file ":        {"", files},
		"serve --config ":            {"", files},
		"audit verify --head ":       {"", files},
		"key new --key-file ":        {"", files},
		"invalidate --users-file ":   {"", files},
		"config check ":              {"", files},
		"policy test ":               {"", files},
		"completion ":                {"bash fish powershell zsh", none},
		"can":                        {"cancel", none},
	} {
		t.Run(words, func(t *testing.T) {
			args := strings.Split(words, " ")
			lines, directive := c.offered(t, args...)
			last := args[len(args)-1]
			last = last[strings.Index(last, "=")+1:]
			var got []string
			for _, line := range lines {
				word, _, _ := strings.Cut(line, "\t")
				if strings.HasPrefix(word, last) && !strings.HasPrefix(word, "-") { // as shells do
					got = append(got, word)
				}
			}
			want := strings.Fields(test.want)
			if directive&cobra.ShellCompDirectiveKeepOrder == 0 {
				slices.Sort(got)
				slices.Sort(want)
			}
			if !slices.Equal(got, want) || directive != test.directive {
				t.Errorf("offered %q, %d, want %q, %d", got, directive, want, test.directive)
			}
		})
	}
	lines, _ := c.offered(t, "get", "")
	if got := strings.Join(lines, "\n"); !strings.Contains(got, ", user eve\\x1b[2J\\tforged") || strings.Count(got, "\t") != 2 {
		t.Errorf("the names are explained with %q", got)
	}
}

// TestCompletionOfNobody: without a gateway, or with one that does not answer, a shell gets nothing, soon.
func TestCompletionOfNobody(t *testing.T) {
	t.Parallel()
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, addr := range []string{deaf.Addr().String(), gone.Addr().String(), "nonsense"} {
		for _, words := range [][]string{{"invalidate", "-t", ""}, {"get", ""}, {"retry", ""}} {
			got, directive := cli{env: map[string]string{"ENDSESSION_SERVER": addr}}.offered(t, words...)
			if len(got) > 0 || directive&cobra.ShellCompDirectiveNoFileComp == 0 {
				t.Errorf("%s, %q: offered %q, %d", addr, words, got, directive)
			}
		}
	}
}

// TestShells loads each script into its shell, and has bash complete a target.
func TestShells(t *testing.T) {
	t.Parallel()
	_, c := startForCLI(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "endsession"), []byte("#!/bin/sh\nexec '"+os.Args[0]+"' \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for shell, script := range map[string]string{
		// Where the package bash-completion is not installed, what the script needs of it stands in.
		"bash": `source <(endsession completion bash)
type -t _get_comp_words_by_ref >/dev/null || _get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
complete() {
	COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
	__start_endsession
	printf '%s\n' "${COMPREPLY[@]}"
}
compopt() { :; }
complete endsession invalidate --target k
complete endsession targets ch
complete endsession list --state PART`,
		"zsh":  `autoload -U compinit; compinit -u -d "$HOME/dump"; source <(endsession completion zsh); print -l kibana-prod check PARTIALLY_SUCCEEDED; whence -w _endsession >/dev/null`,
		"fish": `endsession completion fish | source; for w in 'invalidate --target k' 'targets ch' 'list --state PART'; complete --do-complete "endsession $w" | string split -f1 \t; end; true`,
	} {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				if shell == "bash" || os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skipf("there is no %s", shell)
			}
			cmd := exec.Command(shell, "-c", script)
			cmd.Env = append(os.Environ(), asProgram+"=1", "HOME="+dir, "PATH="+dir+":"+os.Getenv("PATH"), "ENDSESSION_SERVER="+c.env["ENDSESSION_SERVER"])
			out, err := cmd.CombinedOutput()
			words := strings.Fields(string(out))
			if want := []string{"kibana-prod", "check", "PARTIALLY_SUCCEEDED"}; err != nil || !slices.Equal(words, want) {
				t.Errorf("%v: %s, want %q", err, out, want)
			}
		})
	}
}
