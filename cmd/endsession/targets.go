package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
)

func newTargets(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "targets", Short: "List, check, pause and resume targets", Args: cobra.NoArgs,
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
		Example: `  endsession targets list`,
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
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TARGET\tKIND\tSTATE\tHEALTH\tCAN MATCH")
	for _, t := range targets {
		var combinations []string
		for _, c := range t.GetSupportedCriteria() {
			var names []string
			for _, x := range c.GetCriteria() {
				names = append(names, strings.ToLower(word(x, "CRITERION_")))
			}
			combinations = append(combinations, strings.Join(names, "+"))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", t.GetName(), t.GetKind(), word(t.GetState(), "TARGET_STATE_"),
			word(t.GetHealth().GetStatus(), "HEALTH_STATUS_"), strings.Join(combinations, ", "))
	}
	return tw.Flush()
}

func newTargetsCheck(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{Use: "check TARGET", Short: "Probe a target: reachability, credentials, privilege, scope; ends nothing",
		Example: `  endsession targets check kibana-prod`,
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
			resp, err := client.CheckTarget(cmd.Context(), &endsessionv1.CheckTargetRequest{Target: args[0]})
			if err != nil {
				return callError(err)
			}
			if err := out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error { return printChecks(w, resp) }); err != nil {
				return err
			}
			for _, c := range resp.GetChecks() {
				if c.GetStatus() == endsessionv1.CheckStatus_CHECK_STATUS_FAILED {
					return &exitError{status: exitFailed}
				}
			}
			return nil
		}}
	conn.flags(cmd)
	out.flags(cmd)
	return cmd
}

func printChecks(w io.Writer, resp *endsessionv1.CheckTargetResponse) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CHECK\tSTATUS\tMESSAGE\tREMEDY")
	for _, c := range resp.GetChecks() {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", c.GetName(), word(c.GetStatus(), "CHECK_STATUS_"), c.GetMessage(), c.GetRemedy())
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if v := resp.GetVersion(); v != "" {
		fmt.Fprintf(w, "version %s\n", v)
	}
	return nil
}

func newTargetsPause(conn *connection) *cobra.Command {
	var out output
	var reason string
	cmd := &cobra.Command{Use: "pause TARGET", Short: "Send nothing to a target until it is resumed; its runs wait",
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
	cmd.Flags().StringVar(&reason, "reason", "", "why, shown to others")
	return cmd
}

func newTargetsResume(conn *connection) *cobra.Command {
	var out output
	cmd := &cobra.Command{Use: "resume TARGET", Short: "End a pause, or let a parked target be tried at once",
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
	return cmd
}
