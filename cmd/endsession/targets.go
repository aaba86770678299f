package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func newTargets(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "targets", Short: "List, check, pause and resume targets", Args: cobra.NoArgs,
		Example: `  endsession targets list
  endsession targets check kibana-prod`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{status: exitUsage}
		}}
	cmd.AddCommand(newTargetsList(conn), newTargetsCheck(conn), newTargetsPause(conn), newTargetsResume(conn))
	return cmd
}

func newTargetsList(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{Use: "list", Short: "List the targets, their state and what they can match", Args: cobra.NoArgs,
		Long: `list shows the targets in the order of the configuration, whether runs are sent to them, what the last check found, and
which selectors they can express. It asks the gateway, and nothing of the targets.

` + callStatuses,
		Example: `  endsession targets list
  endsession targets list -o json | jq '.targets[] | select(.state != "TARGET_STATE_ACTIVE") | .name'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			resp, err := client.ListTargets(cmd.Context(), &endsessionv1.ListTargetsRequest{})
			if err != nil {
				return callError(err)
			}
			return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error { return printTargets(w, resp.GetTargets()) })
		}}
	conn.flags(cmd)
	out.flags(cmd)
	return cmd
}

func printTargets(w io.Writer, targets []*endsessionv1.Target) error {
	list := newTable("TARGET", "KIND", "STATE", "HEALTH", "CAN MATCH")
	for _, t := range targets {
		var combinations []string
		for _, c := range t.GetSupportedCriteria() {
			var names []string
			for _, x := range c.GetCriteria() {
				names = append(names, strings.ToLower(word(x, "CRITERION_")))
			}
			combinations = append(combinations, strings.Join(names, "+"))
		}
		list.add(cells(t.GetName(), t.GetKind(), word(t.GetState(), "TARGET_STATE_"),
			word(t.GetHealth().GetStatus(), "HEALTH_STATUS_"), strings.Join(combinations, ", "))...)
	}
	return list.write(w)
}

func newTargetsCheck(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{Use: "check [NAME...]", Short: "Probe targets: connection, version, credentials, privilege, scope; ends nothing",
		Long: `check probes the targets named, or all of them, and says what it found and what to do about it. It ends nothing.
A target that is paused or parked is asked all the same, and one that was parked is released if it accepts the
credentials.

Exit status: 0 no check failed, warnings notwithstanding, 1 one did, 2 usage, 5 not accepted.`,
		Example: `  endsession targets check
  endsession targets check kibana-prod storage
  endsession targets check -o json | jq '.targets[] | select(.health.status != "HEALTH_STATUS_OK")'`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := out.check(); err != nil {
				return err
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			if len(names) == 0 {
				all, err := client.ListTargets(cmd.Context(), &endsessionv1.ListTargetsRequest{})
				if err != nil {
					return callError(err)
				}
				for _, t := range all.GetTargets() {
					names = append(names, t.GetName())
				}
			}
			resp, err := checkTargets(cmd.Context(), client, names)
			if len(resp.GetTargets()) > 0 {
				if err := out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error { return printChecks(w, resp.GetTargets()) }); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
			for _, t := range resp.GetTargets() {
				if t.GetHealth().GetStatus() != endsessionv1.HealthStatus_HEALTH_STATUS_OK {
					return &exitError{status: exitFailed}
				}
			}
			return nil
		}}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = conn.manyTargets
	return cmd
}

// checksAtOnce is how many targets are checked at the same time.
const checksAtOnce = 8

// checkTargets checks targets and returns those that could be, in the order given, in the form of a list
// of targets of which only the health is known. The error says why others could not.
func checkTargets(ctx context.Context, client endsessionv1.SessionServiceClient, names []string) (*endsessionv1.ListTargetsResponse, error) {
	targets := make([]*endsessionv1.Target, len(names))
	errs := make([]error, len(names))
	var group errgroup.Group
	group.SetLimit(checksAtOnce)
	for i, name := range names {
		group.Go(func() error {
			resp, err := client.CheckTarget(ctx, &endsessionv1.CheckTargetRequest{Target: name})
			if err != nil {
				errs[i] = err
				return nil
			}
			health := &endsessionv1.TargetHealth{
				Status: endsessionv1.HealthStatus_HEALTH_STATUS_OK, Checks: resp.GetChecks(), Version: resp.Version,
			}
			if len(resp.GetChecks()) == 0 || slices.ContainsFunc(resp.GetChecks(), func(c *endsessionv1.Check) bool {
				return c.GetStatus() == endsessionv1.CheckStatus_CHECK_STATUS_FAILED
			}) {
				health.Status = endsessionv1.HealthStatus_HEALTH_STATUS_FAILING
			}
			targets[i] = &endsessionv1.Target{Name: name, Health: health}
			return nil
		})
	}
	_ = group.Wait() // nothing in it fails
	resp := &endsessionv1.ListTargetsResponse{
		Targets: slices.DeleteFunc(targets, func(t *endsessionv1.Target) bool { return t == nil }),
	}
	var messages []string
	for i, err := range errs {
		switch {
		case err == nil:
		case len(names) == 1:
			return resp, callError(err)
		default:
			messages = append(messages, names[i]+": "+describe(err))
		}
	}
	if len(messages) == 0 {
		return resp, nil
	}
	return resp, &exitError{exitFailed, errors.New(strings.Join(messages, "\n"))}
}

func printChecks(w io.Writer, targets []*endsessionv1.Target) error {
	list := newTable("TARGET", "CHECK", "VERDICT", "MESSAGE, AND → REMEDY")
	for _, t := range targets {
		for _, c := range t.GetHealth().GetChecks() {
			verdict := word(c.GetStatus(), "CHECK_STATUS_")
			row := cells(t.GetName(), c.GetName(), verdict, c.GetMessage())
			row[2].how = verdictStyle(c.GetStatus())
			list.add(row...)
			if c.GetRemedy() != "" {
				list.add(cells("", "", "", "→ "+c.GetRemedy())...)
			}
		}
	}
	return list.write(w)
}

func verdictStyle(s endsessionv1.CheckStatus) style {
	switch s {
	case endsessionv1.CheckStatus_CHECK_STATUS_OK:
		return good
	case endsessionv1.CheckStatus_CHECK_STATUS_FAILED:
		return bad
	}
	return wary
}

func newTargetsPause(conn *connection) *cobra.Command {
	var out output
	var reason string
	cmd := &cobra.Command{Use: "pause TARGET", Short: "Send nothing to a target until it is resumed; its runs wait",
		Long: `pause makes the runs of a target wait, also across restarts, until resume. What is on its way is not called back, and
runs whose time is up expire. No session ends by it, so it does not ask.

` + callStatuses,
		Example: `  endsession targets pause apm --reason "maintenance CHG-17"`,
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
			req := &endsessionv1.PauseTargetRequest{Target: args[0]}
			if cmd.Flags().Changed("reason") {
				req.Reason = &reason
			}
			resp, err := client.PauseTarget(cmd.Context(), req)
			if err != nil {
				return callError(err)
			}
			return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error {
				return printTargets(w, []*endsessionv1.Target{resp.GetTarget()})
			})
		}}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = conn.oneTarget
	cmd.Flags().StringVar(&reason, "reason", "", "why, shown to others")
	return cmd
}

func newTargetsResume(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{Use: "resume TARGET", Short: "End a pause, or let a parked target be tried at once",
		Long: `resume lets the runs of a target go on that waited for it. They are what was accepted before, so it does not ask.

` + callStatuses,
		Example: `  endsession targets resume apm`,
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
			resp, err := client.ResumeTarget(cmd.Context(), &endsessionv1.ResumeTargetRequest{Target: args[0]})
			if err != nil {
				return callError(err)
			}
			return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error {
				return printTargets(w, []*endsessionv1.Target{resp.GetTarget()})
			})
		}}
	conn.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = conn.oneTarget
	return cmd
}
