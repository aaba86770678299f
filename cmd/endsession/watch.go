package main

import (
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
)

func newWatch(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Show an invalidation after every change, until it is final",
		Long: `watch shows an invalidation until it is final: in a table that is kept up to date on a terminal, elsewhere in one line
for each change of a run, and with -o json in one document a line for each change. If the gateway is not heard of for a
while, watch says so and tries again. Ctrl-C ends the looking, not the invalidation.

` + outcomeStatuses,
		Example: `  endsession watch invalidations/0190b7a2-0000-7000-8000-000000000000
  endsession watch 0190b7a2-0000-7000-8000-000000000000 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			resp, err := client.GetInvalidation(cmd.Context(), &endsessionv1.GetInvalidationRequest{Name: invalidationName(args[0])})
			if err != nil {
				return callError(err)
			}
			f := &follower{client: client}
			if out.format == "json" {
				f.view = &jsonView{each: func(inv *endsessionv1.Invalidation) error {
					return out.document(cmd, &endsessionv1.WatchInvalidationResponse{Invalidation: inv})
				}}
			}
			look := looking{end: true}
			inv, err := look.see(cmd, &out, f, resp.GetInvalidation())
			if err != nil {
				return err
			}
			return outcome(inv)
		},
	}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = conn.invalidationNames(anyState)
	return cmd
}
