package main

import (
	"io"
	"strings"
	"time"

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
	var wait time.Duration
	cmd := &cobra.Command{
		Use:     "get NAME",
		Short:   "Show an invalidation",
		Example: `  endsession get invalidations/0190b7a2-0000-7000-8000-000000000000 --wait 1m`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			req := &endsessionv1.GetInvalidationRequest{Name: invalidationName(args[0])}
			if cmd.Flags().Changed("wait") {
				req.WaitTimeout = durationpb.New(wait)
			}
			resp, err := client.GetInvalidation(cmd.Context(), req)
			if err != nil {
				return callError(err)
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
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for the final state, at most 5m")
	return cmd
}
