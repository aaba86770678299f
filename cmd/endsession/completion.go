package main

import (
	"context"
	"slices"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	// completionPatience is how long a shell is kept waiting for the gateway.
	completionPatience = 2 * time.Second
	// completedNames is how many invalidations are offered.
	completedNames = 20
)

// addCompletion adds the command that prints scripts for shells, and sees to it that files are offered only where a file
// is wanted.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Short = "Print a script that completes commands, targets and names in a shell"
		cmd.Example = `  endsession completion bash > /etc/bash_completion.d/endsession
  endsession completion zsh > "${fpath[1]}/_endsession"
  endsession completion fish > ~/.config/fish/completions/endsession.fish`
		for _, shell := range cmd.Commands() {
			shell.Example = map[string]string{
				"bash":       `  endsession completion bash > /etc/bash_completion.d/endsession`,
				"zsh":        `  endsession completion zsh > "${fpath[1]}/_endsession"`,
				"fish":       `  endsession completion fish > ~/.config/fish/completions/endsession.fish`,
				"powershell": `  endsession completion powershell | Out-String | Invoke-Expression`,
			}[shell.Name()]
		}
	}
	offerNoFiles(root)
}

// offerNoFiles has nothing offered for arguments and flags that nothing else is offered for, unless they are files.
func offerNoFiles(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && !strings.Contains(cmd.Use, " FILE") && !strings.Contains(cmd.Use, " CASES") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		what, _ := pflag.UnquoteUsage(f)
		if _, known := cmd.GetFlagCompletionFunc(f.Name); !known && what != "file" && f.NoOptDefVal == "" {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions) // it is there, and has none
		}
	})
	for _, sub := range cmd.Commands() {
		offerNoFiles(sub)
	}
}

// completes says what is offered for the value of a flag that the command has.
func completes(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

// oneOf offers some words, and nothing else.
func oneOf(list ...cobra.Completion) cobra.CompletionFunc {
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
}

// asked is what the gateway answers to somebody who is completing a word: in time, or nothing. A shell is no place for
// errors.
func asked[R any](cmd *cobra.Command, conn *connection, call func(context.Context, endsessionv1.SessionServiceClient) (R, error)) (resp R) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	client, done, err := conn.dial()
	if err != nil {
		return resp
	}
	defer done()
	answer, err := call(ctx, client)
	if err != nil {
		return resp
	}
	return answer
}

// targetNames offers the targets, each followed by a suffix: nothing, or what has to come next.
func (c *connection) targetNames(suffix string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		resp := asked(cmd, c, func(ctx context.Context, client endsessionv1.SessionServiceClient) (*endsessionv1.ListTargetsResponse, error) {
			return client.ListTargets(ctx, &endsessionv1.ListTargetsRequest{})
		})
		directive := cobra.ShellCompDirectiveNoFileComp
		if suffix != "" {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		var list []cobra.Completion
		for _, t := range resp.GetTargets() {
			state := strings.ToLower(word(t.GetState(), "TARGET_STATE_"))
			list = append(list, cobra.CompletionWithDesc(visible(t.GetName())+suffix, visible(t.GetKind())+", "+state))
		}
		return list, directive
	}
}

// completeCall offers values for the flags of a call.
func (c *connection) completeCall(cmd *cobra.Command) {
	completes(cmd, "target", c.targetNames(""))
	completes(cmd, "target-username", c.targetNames("="))
	completes(cmd, "session", c.targetNames("/"))
	completes(cmd, "provider", oneOf("local", "ldap", "saml", "oidc", "kerberos", "pki", "token", "basic", "anonymous"))
}

// oneTarget offers the targets for the one argument of a command, and manyTargets those that were not given yet.
func (c *connection) oneTarget(cmd *cobra.Command, given []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.targetNames("")(cmd, given, toComplete)
}

func (c *connection) manyTargets(cmd *cobra.Command, given []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, directive := c.targetNames("")(cmd, given, toComplete)
	var rest []cobra.Completion
	for _, t := range list {
		if name, _, _ := strings.Cut(t, "\t"); !slices.Contains(given, name) {
			rest = append(rest, t)
		}
	}
	return rest, directive
}

// invalidationNames offers the newest invalidations in some states for the one argument of a command.
func (c *connection) invalidationNames(states ...endsessionv1.InvalidationState) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		const keep = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		if len(given) > 0 {
			return nil, keep
		}
		resp := asked(cmd, c, func(ctx context.Context, client endsessionv1.SessionServiceClient) (all []*endsessionv1.Invalidation, err error) {
			for _, state := range states {
				resp, err := client.ListInvalidations(ctx, &endsessionv1.ListInvalidationsRequest{State: state, PageSize: completedNames})
				if err != nil {
					return nil, err
				}
				all = append(all, resp.GetInvalidations()...)
			}
			return all, nil
		})
		newest := func(a, b *endsessionv1.Invalidation) int {
			return b.GetCreateTime().AsTime().Compare(a.GetCreateTime().AsTime())
		}
		slices.SortStableFunc(resp, newest)
		var list []cobra.Completion
		for _, inv := range resp {
			list = append(list, invalidationCompletion(inv, toComplete))
		}
		return list, keep
	}
}

// anyState as a filter lets all pass.
const anyState = endsessionv1.InvalidationState_INVALIDATION_STATE_UNSPECIFIED

// invalidationCompletion is a name with what people know the invalidation by. Who has begun to type the UUID is offered
// UUIDs.
func invalidationCompletion(inv *endsessionv1.Invalidation, toComplete string) cobra.Completion {
	defuse(inv.ProtoReflect())
	name := inv.GetName()
	if uuid := strings.TrimPrefix(name, invalidationName("")); toComplete != "" && strings.HasPrefix(uuid, toComplete) {
		name = uuid
	}
	return cobra.CompletionWithDesc(name, strings.Join([]string{
		inv.GetCreateTime().AsTime().Local().Format(time.DateTime), stateWord(inv.GetState()), selectorText(inv.GetSelector()),
	}, ", "))
}
