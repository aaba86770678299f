package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/durationpb"
)

func newInvalidate(conn *connection) *cobra.Command {
	var call callFlags
	var out output
	var wait time.Duration
	var requestID string
	var yes bool
	cmd := &cobra.Command{
		Use:   "invalidate",
		Short: "End sessions, and say what each target confirmed",
		Example: `  endsession invalidate --user alice --reason "account compromised"
  endsession invalidate --user alice --provider saml/okta --target kibana-prod
  endsession invalidate --group vpn --confirm-broad --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			req, err := call.request(cmd)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("request-id") {
				req.RequestId = &requestID
			}
			if cmd.Flags().Changed("wait") {
				req.WaitTimeout = durationpb.New(wait)
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			if !yes {
				if err := confirm(cmd, client, req); err != nil {
					return err
				}
			}
			resp, err := client.InvalidateSessions(cmd.Context(), req)
			if err != nil {
				return callError(err)
			}
			if err := out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error {
				if resp.GetReplayed() {
					fmt.Fprintln(w, "this request was accepted before; nothing new was begun")
				}
				return printInvalidation(w, resp.GetInvalidation())
			}); err != nil {
				return err
			}
			return outcome(resp.GetInvalidation())
		},
	}
	conn.flags(cmd)
	call.flags(cmd)
	out.flags(cmd)
	f := cmd.Flags()
	f.DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the final state; 0 returns once accepted, at most 5m")
	f.StringVar(&requestID, "request-id", "", "a `UUID`: repeating the call with it begins nothing new")
	f.BoolVarP(&yes, "yes", "y", false, "do not show a preview and ask")
	return cmd
}

// canAsk refuses where there is no terminal to ask at: a script says --yes.
func canAsk(cmd *cobra.Command) error {
	if f, ok := cmd.InOrStdin().(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return usageError("standard input is not a terminal to ask at; add --yes to go on without being asked")
	}
	return nil
}

// confirm shows what the call would do and asks.
func confirm(cmd *cobra.Command, client endsessionv1.SessionServiceClient, req *endsessionv1.InvalidateSessionsRequest) error {
	if err := canAsk(cmd); err != nil {
		return err
	}
	previews, err := preview(cmd, client, req)
	if err != nil {
		return callError(err)
	}
	if err := new(output).print(cmd.ErrOrStderr(), previews, func(w io.Writer) error { return printPreviews(w, previews.GetPreviews()) }); err != nil {
		return err
	}
	return ask(cmd, "End these sessions?")
}

// ask returns nil only for an explicit yes.
func ask(cmd *cobra.Command, question string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return &exitError{exitNotAccepted, fmt.Errorf("not confirmed; nothing was done")}
}
