package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/config"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func newKey() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Make API keys", Args: cobra.NoArgs,
		Example: `  endsession key new --name helpdesk --key-file helpdesk.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{status: exitUsage}
		}}
	cmd.AddCommand(newKeyNew())
	return cmd
}

func newKeyNew() *cobra.Command {
	var name, notAfter string
	var to file
	cmd := &cobra.Command{
		Use:   "new --name NAME",
		Short: "Make an API key and print what goes into the configuration",
		Long: `Make an API key for a caller and print what goes into the configuration: its hash. The key itself is
printed once, or written to a new file that only its owner can read, and kept nowhere.`,
		Example: `  endsession key new --name helpdesk --not-after 2027-01-31 --key-file helpdesk.key`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			entry, key, err := makeKey(name, notAfter)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if to != "" {
				if err := writeNew(string(to), key+"\n"); err != nil {
					return &exitError{exitFailed, err}
				}
			} else {
				fmt.Fprintf(out, "# The key. It is not shown again:\n#\n#   %s\n#\n", key)
			}
			fmt.Fprintf(out, "# What goes into the configuration, under auth.api_keys:\n%s", entry)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the caller's `name`, as policies and the audit know it")
	cmd.Flags().StringVar(&notAfter, "not-after", "", `when the key ends: a date, or a time such as "2027-01-31T12:00:00Z"; never if absent`)
	cmd.Flags().Var(&to, "key-file", "write the key to this new file instead of printing it")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

// makeKey makes a key and the entry of the configuration that lets it in.
func makeKey(name, notAfter string) (entry, key string, err error) {
	if strings.TrimSpace(name) != name || name == "" {
		return "", "", usageError("--name: want a name without space around it")
	}
	key = auth.NewKey()
	caller := config.APIKey{Name: name}
	hash := config.KeyHash(auth.HashKey(key))
	if notAfter == "" {
		caller.SHA256 = []config.KeyHash{hash}
	} else {
		expiring := config.ExpiringKey{SHA256: hash}
		if err := expiring.NotAfter.UnmarshalText([]byte(notAfter)); err != nil {
			return "", "", usageError("--not-after: %w", err)
		}
		if time.Now().After(time.Time(expiring.NotAfter)) {
			return "", "", usageError("--not-after: is over already")
		}
		caller.Keys = []config.ExpiringKey{expiring}
	}
	text, err := yaml.Marshal([]config.APIKey{caller})
	if err != nil {
		return "", "", &exitError{exitFailed, err}
	}
	return string(text), key, nil
}

// writeNew writes a secret to a file that must not be there yet.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
