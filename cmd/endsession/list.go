package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func newList(conn *connection) *cobra.Command {
	var out output
	var state, target, caller, user, token string
	var labels []string
	var since time.Duration
	var limit int32
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List invalidations, newest first",
		Long: `list shows the invalidations that all of its flags match, newest first, a page at a time.

` + callStatuses,
		Example: `  endsession list --state FAILED --since 24h
  endsession list --label job=offboarding-2026-05 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			req := &endsessionv1.ListInvalidationsRequest{Label: labels, PageSize: limit, PageToken: token}
			given := cmd.Flags().Changed
			if given("state") {
				v, ok := endsessionv1.InvalidationState_value["INVALIDATION_STATE_"+strings.ToUpper(state)]
				if !ok || v == 0 {
					return usageError("--state: want RUNNING, SUCCEEDED, PARTIALLY_SUCCEEDED, FAILED or CANCELLED, got %q", state)
				}
				req.State = endsessionv1.InvalidationState(v)
			}
			for flag, field := range map[string]struct {
				value *string
				to    **string
			}{"target": {&target, &req.Target}, "caller": {&caller, &req.Caller}, "user": {&user, &req.UserId}} {
				if given(flag) {
					*field.to = field.value
				}
			}
			if given("since") {
				req.CreateTimeFrom = timestamppb.New(time.Now().Add(-since))
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			resp, err := client.ListInvalidations(cmd.Context(), req)
			if err != nil {
				return callError(err)
			}
			return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error { return printList(w, resp) })
		},
	}
	conn.flags(cmd)
	out.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "only in this state: RUNNING, SUCCEEDED, PARTIALLY_SUCCEEDED, FAILED or CANCELLED")
	f.StringVarP(&target, "target", "t", "", "only with a run at this target")
	completes(cmd, "state", oneOf("RUNNING", "SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED"))
	completes(cmd, "target", conn.targetNames(""))
	f.StringVar(&caller, "caller", "", "only by this caller")
	f.StringVarP(&user, "user", "u", "", "only for this user id")
	f.StringArrayVar(&labels, "label", nil, "only with this label, `key=value` (repeatable)")
	f.DurationVar(&since, "since", 0, "only created within this time")
	f.Int32Var(&limit, "limit", 50, "how many at most")
	f.StringVar(&token, "page-token", "", "the next page's token, as the page before printed it")
	return cmd
}

func printList(w io.Writer, resp *endsessionv1.ListInvalidationsResponse) error {
	if err := listTable(resp.GetInvalidations()).write(w); err != nil {
		return err
	}
	if t := resp.GetNextPageToken(); t != "" {
		fmt.Fprintf(w, "more: --page-token %s\n", t)
	}
	return nil
}

func listTable(invs []*endsessionv1.Invalidation) *table {
	t := newTable("CREATED", "NAME", "STATE", "SESSIONS", "SELECTOR", "CALLER")
	for _, inv := range invs {
		state := stateWord(inv.GetState())
		row := cells(inv.GetCreateTime().AsTime().Local().Format(time.DateTime), inv.GetName(), state, total(inv),
			selectorText(inv.GetSelector()), inv.GetCaller().GetName())
		row[2].how = stateStyle(state)
		t.add(row...)
	}
	return t
}

// selectorText is a selector in one short line.
func selectorText(s *endsessionv1.Selector) string {
	var parts []string
	if u := s.GetUser(); u != nil {
		parts = append(parts, "user "+u.GetId())
	}
	if p := s.GetProvider(); p != nil {
		text := "provider " + p.GetType()
		if p.Name != nil {
			text += "/" + p.GetName()
		}
		parts = append(parts, text)
	}
	if s.Group != nil {
		parts = append(parts, "group "+s.GetGroup())
	}
	if n := len(s.GetSessions()); n > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions", n))
	}
	if s.GetAll() {
		parts = append(parts, "all")
	}
	return strings.Join(parts, ", ")
}
