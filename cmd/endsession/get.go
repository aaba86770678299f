package main

import (
	"errors"
	"io"
	"strings"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

// invalidationName accepts the resource name or only its UUID.
func invalidationName(arg string) string {
	if strings.Contains(arg, "/") {
		return arg
	}
	return "invalidations/" + arg
}

func newGet(conn *connection) *cobra.Command {
	var out output
	var look looking
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show an invalidation",
		Long: `get shows how an invalidation stands: now, once it is final or --wait is over, or, with --watch, as it goes on.

` + outcomeStatuses,
		Example: `  endsession get invalidations/0190b7a2-0000-7000-8000-000000000000
  endsession get 0190b7a2-0000-7000-8000-000000000000 --wait 1m -o json
  endsession get 0190b7a2-0000-7000-8000-000000000000 --watch`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			if err := look.check(); err != nil {
				return err
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			req := &endsessionv1.GetInvalidationRequest{Name: invalidationName(args[0])}
			if cmd.Flags().Changed("wait") && !look.end {
				req.WaitTimeout = durationpb.New(look.wait)
			}
			resp, err := client.GetInvalidation(cmd.Context(), req)
			if err != nil {
				return callError(err)
			}
			if look.end {
				resp.Invalidation, err = look.see(cmd, &out, &follower{client: client}, resp.GetInvalidation())
				if err := errors.Join(err, out.document(cmd, resp)); err != nil {
					return err
				}
				return outcome(resp.GetInvalidation())
			}
			if err := out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error {
				return printInvalidation(w, resp.GetInvalidation())
			}); err != nil {
				return err
			}
			return outcome(resp.GetInvalidation())
		},
	}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = conn.invalidationNames(anyState)
	look.watchFlag(cmd)
	cmd.Flags().DurationVar(&look.wait, "wait", 0, "how long to wait for the final state, at most 5m")
	return cmd
}
