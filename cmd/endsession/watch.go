package main

import (
	"errors"
	"io"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
)

func newWatch(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "watch NAME",
		Short:   "Show an invalidation after every change, until it is final",
		Example: `  endsession watch invalidations/0190b7a2-0000-7000-8000-000000000000 -o json`,
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
			stream, err := client.WatchInvalidation(cmd.Context(), &endsessionv1.WatchInvalidationRequest{Name: invalidationName(args[0])})
			if err != nil {
				return callError(err)
			}
			var last *endsessionv1.Invalidation
			for {
				msg, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return callError(err)
				}
				if last.GetRevision() == msg.GetInvalidation().GetRevision() {
					continue // a heartbeat
				}
				last = msg.GetInvalidation()
				if err := out.print(cmd.OutOrStdout(), msg, func(w io.Writer) error { return printInvalidation(w, last) }); err != nil {
					return err
				}
			}
			return outcome(last)
		},
	}
	conn.flags(cmd)
	out.flags(cmd)
	return cmd
}
