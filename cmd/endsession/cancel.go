package main

import (
	"errors"
	"fmt"
	"io"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
)

func newCancel(conn *connection) *cobra.Command {
	var out output
	var label string
	var yes bool
	cmd := &cobra.Command{
		Use:   "cancel NAME | cancel --label KEY=VALUE",
		Short: "Stop what is not final of an invalidation, or of all that carry a label",
		Long: `cancel makes no further attempts; what has ended stays ended. With --label it shows how many invalidations it would stop
and asks; with --yes it does not.

` + callStatuses,
		Example: `  endsession cancel invalidations/0190b7a2-0000-7000-8000-000000000000
  endsession cancel --label job=offboarding-2026-05
  endsession cancel --label job=offboarding-2026-05 --yes`,
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
				if !yes {
					if some, err := confirmCancel(cmd, client, label); err != nil || !some {
						return errors.Join(err, out.document(cmd, &endsessionv1.CancelInvalidationsResponse{}))
					}
				}
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
	cmd.ValidArgsFunction = conn.invalidationNames(endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING)
	cmd.Flags().StringVar(&label, "label", "", "cancel every unfinished invalidation that carries this label, `key=value`")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "with --label: do not show how many and ask")
	return cmd
}

// shownCancelled is how many invalidations are shown to somebody who is asked about all of them.
const shownCancelled = 10

// confirmCancel shows which invalidations would be stopped, and asks. There may be none, and nothing to ask.
func confirmCancel(cmd *cobra.Command, client endsessionv1.SessionServiceClient, label string) (some bool, err error) {
	if err := canAsk(cmd); err != nil {
		return false, err
	}
	n, all, first, err := withLabel(cmd, client, label)
	if err != nil {
		return false, callError(err)
	}
	w := cmd.ErrOrStderr()
	label = visible(label)
	if n == 0 {
		fmt.Fprintf(w, "nothing with the label %s is running; nothing was done\n", label)
		return false, nil
	}
	for _, inv := range first {
		defuse(inv.ProtoReflect())
	}
	if err := listTable(first).write(w); err != nil {
		return false, err
	}
	number := fmt.Sprint(n)
	if !all {
		number = "at least " + number
	}
	if n > len(first) {
		fmt.Fprintf(w, "and others: %s in all\n", number)
	}
	return true, ask(cmd, fmt.Sprintf("Cancel %s with the label %s?", number, label))
}

// countedPages is how many pages are read to find out how many invalidations there are.
const countedPages = 10

// withLabel counts the invalidations that are not final and carry a label, and returns the newest of them. It reports
// whether it has counted all.
func withLabel(cmd *cobra.Command, client endsessionv1.SessionServiceClient, label string) (n int, all bool, first []*endsessionv1.Invalidation, err error) {
	req := &endsessionv1.ListInvalidationsRequest{
		Label: []string{label}, State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING, PageSize: 1000,
	}
	for range countedPages {
		resp, err := client.ListInvalidations(cmd.Context(), req)
		if err != nil {
			return 0, false, nil, err
		}
		page := resp.GetInvalidations()
		n += len(page)
		first = append(first, page[:min(len(page), shownCancelled-len(first))]...)
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return n, true, first, nil
		}
	}
	return n, false, first, nil
}
