package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// defaultAdmin is where `endsession serve` answers about itself by default.
const defaultAdmin = "127.0.0.1:9091"

func newHealth(lookup func(string) (string, bool)) *cobra.Command {
	var (
		admin   string
		live    bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a gateway whether it is ready, for containers and scripts",
		Long: `health asks the gateway's admin listener whether calls can be accepted now, or with --live whether the process
answers at all. It needs neither a configuration nor a credential.

Exit status: 0 it is, 1 it is not, 2 usage.`,
		Example: `  endsession health
  endsession health --live --admin 127.0.0.1:9091`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, _, err := net.SplitHostPort(admin); err != nil {
				return usageError("--admin: want host:port, got %q", admin)
			}
			if timeout <= 0 {
				return usageError("--timeout: want more than zero")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			path := "/readyz"
			if live {
				path = "/healthz"
			}
			if err := askHealth(ctx, admin, path); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	if v, ok := lookup("ENDSESSION_ADMIN"); ok && v != "" {
		admin = v
	} else {
		admin = defaultAdmin
	}
	cmd.Flags().StringVar(&admin, "admin", admin, "host:port of the gateway's admin listener [ENDSESSION_ADMIN]")
	cmd.Flags().BoolVar(&live, "live", false, "ask only whether the process answers")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}

// askHealth asks an admin listener; any answer but 200 is an error.
func askHealth(ctx context.Context, admin, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+path, nil)
	if err != nil {
		return err
	}
	// The gateway is beside us: no proxy is asked, whatever the environment says, and no connection is kept.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return fmt.Errorf("%s: no answer in time", admin)
	case err != nil:
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s answers %d", admin, path, resp.StatusCode)
	}
	return nil
}
