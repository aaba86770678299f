package main

import (
	"fmt"
	"io"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
)

func newCancel(conn *connection) *cobra.Command {
	var out output
	var label string
	cmd := &cobra.Command{
		Use:   "cancel NAME | cancel --label KEY=VALUE",
		Short: "Stop what is not final of an invalidation, or of all that carry a label",
		Example: `  endsession cancel invalidations/0190b7a2-0000-7000-8000-000000000000
  endsession cancel --label job=offboarding-2026-05`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			byLabel := cmd.Flags().Changed("label")
			if byLabel == (len(args) == 1) {
				return usageError("give either a name or --label")
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			if byLabel {
				resp, err := client.CancelInvalidations(cmd.Context(), &endsessionv1.CancelInvalidationsRequest{Label: label})
				if err != nil {
					return callError(err)
				}
				return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%d cancelled, %d had ended before\n", resp.GetCancelledCount(), resp.GetNotCancelledCount())
					return err
				})
			}
			resp, err := client.CancelInvalidation(cmd.Context(), &endsessionv1.CancelInvalidationRequest{Name: invalidationName(args[0])})
			if err != nil {
				return callError(err)
			}
			return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error { return printInvalidation(w, resp.GetInvalidation()) })
		},
	}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.Flags().StringVar(&label, "label", "", "cancel every unfinished invalidation that carries this label, `key=value`")
	return cmd
}
