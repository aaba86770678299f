package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/policy"
	"github.com/spf13/cobra"
)

func newPolicy() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Try the policy of a configuration", Args: cobra.NoArgs,
		Example: `  endsession policy test --config endsession.yaml cases.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{status: exitUsage}
		}}
	cmd.AddCommand(newPolicyTest())
	return cmd
}

func newPolicyTest() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "test --config FILE CASES",
		Short: "Judge a file of cases, and say which rule decided each and why",
		Long: `Judge a file of cases by the policy of a configuration, and say which rule decided each and why.

A case has a caller, a request and the answer that is expected:

  cases:
    - name: the help desk signs one person out
      caller: { kind: api_key, name: helpdesk }
      request: { right: invalidate, selector: { user: { id: alice } }, targets: [apm] }
      names: { apm: [alice] }
      expect: allow
      rule: helpdesk

Only name, caller and expect are required; the right is invalidate if there is none. Names are those that would be sent
to each target; without them they are resolved as the configuration has it, which may ask its directory. Nothing is
sent to a target. A rule, or a reason such as NAMES_NOT_ALLOWED, is compared if it is given.

Exit status: 0 all cases are as expected, 1 some are not, or the configuration is wrong, 2 usage.`,
		Example: `  endsession policy test --config endsession.yaml cases.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := loadConfig(path)
			if err != nil {
				return &exitError{exitFailed, err}
			}
			var targets []string
			for _, t := range conf.Targets {
				targets = append(targets, t.Name)
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("read cases: %w", err)}
			}
			cases, err := policy.ReadCases(args[0], data, targets)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			verdicts, err := server.TryPolicy(cmd.Context(), conf, cases)
			if err != nil {
				return &exitError{exitFailed, err}
			}
			failed := printVerdicts(cmd.OutOrStdout(), verdicts)
			if failed > 0 {
				return &exitError{status: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration `file`")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

// printVerdicts prints what the policy says to each case, and returns how many are not as expected.
func printVerdicts(w io.Writer, verdicts []policy.Verdict) (failed int) {
	for _, v := range verdicts {
		mark := "ok  "
		if len(v.Problems) > 0 {
			mark = "FAIL"
			failed++
		}
		fmt.Fprintf(w, "%s  %s\n      %s\n", mark, v.Case.Name, answer(v.Decision))
		for _, s := range v.Decision.Steps {
			line := fmt.Sprintf("rule %s %s", s.Rule, s.Outcome)
			if s.Err != nil {
				line += ": " + s.Err.Error()
			}
			fmt.Fprintf(w, "      - %s\n", line)
		}
		q := v.Case.Question
		for _, target := range q.Targets {
			if names := q.Names[target]; len(names) > 0 {
				fmt.Fprintf(w, "      - at %s: %s\n", target, strings.Join(names, ", "))
			}
		}
		for _, target := range slices.Sorted(maps.Keys(v.Unnamed)) {
			fmt.Fprintf(w, "      - at %s: no names: %s\n", target, v.Unnamed[target])
		}
		for _, target := range v.Protected {
			fmt.Fprintf(w, "      - at %s: a name is protected; the run there would fail with PROTECTED\n", target)
		}
		for _, problem := range v.Problems {
			fmt.Fprintf(w, "      %s: %s\n", v.Case.Where, problem)
		}
	}
	fmt.Fprintf(w, "%d of %d as expected\n", len(verdicts)-failed, len(verdicts))
	return failed
}

// answer says how a case was decided.
func answer(d policy.Decision) string {
	switch {
	case d.Allowed && d.Rule == "":
		return "allow: there are no rules, and nobody is asked who they are"
	case d.Allowed:
		return "allow: " + strings.Join(append([]string{"rule " + d.Rule}, terms(d)...), ", ")
	case d.Reason == adapters.ReasonProtected:
		return fmt.Sprintf("deny: the user is protected, and rule %s does not lift that (%s)", d.Rule, d.Reason)
	case d.Rule != "":
		return fmt.Sprintf("deny: rule %s (%s)", d.Rule, d.Reason)
	}
	return fmt.Sprintf("deny: no rule allows it (%s)", d.Reason)
}

// terms says how much a decision allows.
func terms(d policy.Decision) (all []string) {
	if d.Terms.Protected {
		all = append(all, "protected people too")
	}
	if d.Terms.MaxSessions > 0 {
		all = append(all, fmt.Sprintf("at most %d sessions a run", d.Terms.MaxSessions))
	}
	if d.Terms.Unlimited {
		all = append(all, "broad runs of unknown size")
	}
	return all
}
