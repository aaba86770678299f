package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func newRetry(conn *connection) *cobra.Command {
	var out output
	var look looking
	var confirmBroad, yes bool
	var retryFor time.Duration
	var requestID, reason string
	cmd := &cobra.Command{
		Use:   "retry NAME",
		Short: "Begin a new invalidation for the targets at which one failed",
		Long: `retry shows what failed and what would be done about it, and asks; with --yes it does not. Then it shows the new
invalidation as invalidate does.

` + outcomeStatuses,
		Example: `  endsession retry invalidations/0190b7a2-0000-7000-8000-000000000000
  endsession retry 0190b7a2-0000-7000-8000-000000000000 --yes --watch`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			if err := look.check(); err != nil {
				return err
			}
			req := &endsessionv1.RetryInvalidationRequest{Name: invalidationName(args[0])}
			given := cmd.Flags().Changed
			if given("confirm-broad") {
				req.ConfirmBroad = &confirmBroad
			}
			if !given("request-id") {
				requestID = uuid.NewString() // makes repeating safe
			}
			req.RequestId = &requestID
			if given("reason") {
				req.Reason = &reason
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
				if err := confirmRetry(cmd, client, req); err != nil {
					return err
				}
			}
			req.WaitTimeout = durationpb.New(0)
			resp, err := accept(cmd.Context(), requestID, func(ctx context.Context, o ...grpc.CallOption) (*endsessionv1.RetryInvalidationResponse, error) {
				return client.RetryInvalidation(ctx, req, o...)
			})
			if err != nil {
				return callError(err)
			}
			resp.Replayed = resp.GetReplayed() && given("request-id")
			if resp.GetReplayed() {
				fmt.Fprintln(cmd.ErrOrStderr(), replayedText)
			}
			resp.Invalidation, err = look.see(cmd, &out, &follower{client: client,
				again: func(ctx context.Context, wait time.Duration) (*endsessionv1.Invalidation, error) {
					again := proto.Clone(req).(*endsessionv1.RetryInvalidationRequest)
					again.WaitTimeout = durationpb.New(wait)
					resp, err := client.RetryInvalidation(ctx, again)
					return resp.GetInvalidation(), err
				}}, resp.GetInvalidation())
			if err := errors.Join(err, out.document(cmd, resp)); err != nil {
				return err
			}
			return outcome(resp.GetInvalidation())
		},
	}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = conn.invalidationNames(endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED, endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED)
	look.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&confirmBroad, "confirm-broad", false, "needed when the selector has neither a user nor sessions")
	f.DurationVar(&retryFor, "retry-for", 0, "how long failed runs are retried (default: as before)")
	f.StringVar(&requestID, "request-id", "", "a `UUID`: repeating the call with it begins nothing new")
	f.StringVar(&reason, "reason", "", "why, for the audit trail (default: as before)")
	f.BoolVarP(&yes, "yes", "y", false, "do not show a preview and ask")
	return cmd
}

// confirmRetry shows what failed, what would be done at those targets, and asks.
func confirmRetry(cmd *cobra.Command, client endsessionv1.SessionServiceClient, req *endsessionv1.RetryInvalidationRequest) error {
	if err := canAsk(cmd); err != nil {
		return err
	}
	old, err := client.GetInvalidation(cmd.Context(), &endsessionv1.GetInvalidationRequest{Name: req.GetName()})
	if err != nil {
		return callError(err)
	}
	call := retryPreview(old.GetInvalidation(), req.ConfirmBroad)
	if err := new(output).print(cmd.ErrOrStderr(), old, func(w io.Writer) error { return printInvalidation(w, old.GetInvalidation()) }); err != nil {
		return err
	}
	switch {
	case !final(old.GetInvalidation()):
		return &exitError{exitFailed, errors.New("it is still running: too early to retry; nothing was done")}
	case call == nil:
		return &exitError{exitFailed, errors.New("no run failed: there is nothing to retry; nothing was done")}
	}
	if err := showPreview(cmd, client, call); err != nil {
		return err
	}
	return ask(cmd, "End these sessions, at the targets that failed?")
}

// retryPreview is the call that a retry of an invalidation comes down to; nil if no run failed.
func retryPreview(old *endsessionv1.Invalidation, confirmBroad *bool) *endsessionv1.InvalidateSessionsRequest {
	req := &endsessionv1.InvalidateSessionsRequest{
		Selector: proto.Clone(old.GetSelector()).(*endsessionv1.Selector), ConfirmBroad: confirmBroad,
		AllowUnsupported: proto.Bool(old.GetAllowUnsupported()), Priority: old.GetPriority(),
	}
	for _, r := range old.GetRuns() {
		if r.GetState() == endsessionv1.RunState_RUN_STATE_FAILED {
			req.Targets = append(req.Targets, r.GetTarget())
		}
	}
	if len(req.GetTargets()) == 0 {
		return nil
	}
	if len(req.GetSelector().GetSessions()) > 0 { // they name their targets themselves
		req.Selector.Sessions = slices.DeleteFunc(req.GetSelector().GetSessions(), func(s *endsessionv1.SessionRef) bool {
			return !slices.Contains(req.GetTargets(), s.GetTarget())
		})
		req.Targets = nil
	}
	return req
}
