package main

import (
	"io"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func newRetry(conn *connection) *cobra.Command {
	var out output
	var confirmBroad, yes bool
	var wait, retryFor time.Duration
	var requestID, reason string
	cmd := &cobra.Command{
		Use:     "retry NAME",
		Short:   "Begin a new invalidation for the targets at which one failed",
		Example: `  endsession retry invalidations/0190b7a2-0000-7000-8000-000000000000 --yes`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			req := &endsessionv1.RetryInvalidationRequest{Name: invalidationName(args[0])}
			given := cmd.Flags().Changed
			if given("confirm-broad") {
				req.ConfirmBroad = &confirmBroad
			}
			if given("request-id") {
				req.RequestId = &requestID
			}
			if given("reason") {
				req.Reason = &reason
			}
			if given("wait") {
				req.WaitTimeout = durationpb.New(wait)
			}
			if given("retry-for") {
				req.RetryFor = durationpb.New(retryFor)
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			if !yes {
				if err := canAsk(cmd); err != nil {
					return err
				}
				old, err := client.GetInvalidation(cmd.Context(), &endsessionv1.GetInvalidationRequest{Name: req.GetName()})
				if err != nil {
					return callError(err)
				}
				if err := new(output).print(cmd.ErrOrStderr(), old, func(w io.Writer) error { return printInvalidation(w, old.GetInvalidation()) }); err != nil {
					return err
				}
				if err := ask(cmd, "End these sessions again, at the targets that failed?"); err != nil {
					return err
				}
			}
			resp, err := client.RetryInvalidation(cmd.Context(), req)
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
	f := cmd.Flags()
	f.BoolVar(&confirmBroad, "confirm-broad", false, "needed when the selector has neither a user nor sessions")
	f.DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the final state; 0 returns once accepted, at most 5m")
	f.DurationVar(&retryFor, "retry-for", 0, "how long failed runs are retried (default: as before)")
	f.StringVar(&requestID, "request-id", "", "a `UUID`: repeating the call with it begins nothing new")
	f.StringVar(&reason, "reason", "", "why, for the audit trail (default: as before)")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
