package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func newInvalidate(conn *connection) *cobra.Command {
	var call callFlags
	var users bulkFlags
	var out output
	var look looking
	var requestID string
	var yes bool
	cmd := &cobra.Command{
		Use:   "invalidate",
		Short: "End sessions, and say what each target confirmed",
		Long: `invalidate shows what it would do and asks; with --yes it does not. Then it shows how each target gets on: in a table
that is kept up to date on a terminal, elsewhere in one line for each change. Ctrl-C, or the end of --wait, ends the
looking and not the invalidation, which goes on at the gateway until it is final.

With --users-file it ends the sessions of everybody in a file, one id a line or CSV with the column id (email,
target_username:TARGET and attributes may follow), and waits until all are final; --wait bounds that. It can be run
again: what was accepted before, under the same --job, is not begun anew. Ctrl-C then makes no more calls, and says how
to go on. Who failed is written to a CSV file that can be a users file itself.

` + outcomeStatuses,
		Example: `  endsession invalidate --user alice --reason "account compromised"
  endsession invalidate --user alice --provider saml/okta --target kibana-prod
  endsession invalidate --group vpn --confirm-broad --yes
  endsession invalidate --user alice --yes --watch
  endsession invalidate --user alice --yes -o json | jq .invalidation.state
  endsession invalidate --users-file leavers.csv --reason "off-boarding" --job leavers-2026-05`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			if many, err := users.given(cmd); err != nil {
				return err
			} else if many {
				return bulk(cmd, conn, &call, &users, &out, &look, yes)
			}
			if err := look.check(); err != nil {
				return err
			}
			req, err := call.request(cmd)
			if err != nil {
				return err
			}
			given := cmd.Flags().Changed("request-id")
			if !given {
				requestID = uuid.NewString() // makes repeating safe
			}
			req.RequestId = &requestID
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			if !yes {
				if err := confirm(cmd, client, req); err != nil {
					return err
				}
			}
			req.WaitTimeout = durationpb.New(0)
			resp, err := accept(cmd.Context(), requestID, func(ctx context.Context, o ...grpc.CallOption) (*endsessionv1.InvalidateSessionsResponse, error) {
				return client.InvalidateSessions(ctx, req, o...)
			})
			if err != nil {
				return callError(err)
			}
			resp.Replayed = resp.GetReplayed() && given
			if resp.GetReplayed() {
				fmt.Fprintln(cmd.ErrOrStderr(), replayedText)
			}
			resp.Invalidation, err = look.see(cmd, &out, &follower{client: client,
				again: func(ctx context.Context, wait time.Duration) (*endsessionv1.Invalidation, error) {
					again := proto.Clone(req).(*endsessionv1.InvalidateSessionsRequest)
					again.WaitTimeout = durationpb.New(wait)
					resp, err := client.InvalidateSessions(ctx, again)
					return resp.GetInvalidation(), err
				}}, resp.GetInvalidation())
			if err := errors.Join(err, out.document(cmd, resp)); err != nil {
				return err
			}
			return outcome(resp.GetInvalidation())
		},
	}
	conn.flags(cmd)
	call.flags(cmd)
	conn.completeCall(cmd)
	users.flags(cmd)
	out.flags(cmd)
	look.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&requestID, "request-id", "", "a `UUID`: repeating the call with it begins nothing new")
	f.BoolVarP(&yes, "yes", "y", false, "do not show a preview and ask")
	return cmd
}

// replayedText is said where a request id was used before.
const replayedText = "this request was accepted before; nothing new was begun"

// canAsk refuses where there is no terminal to ask at: a script says --yes.
func canAsk(cmd *cobra.Command) error {
	if f, ok := cmd.InOrStdin().(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return usageError("standard input is not a terminal to ask at; add --yes to go on without being asked")
	}
	return nil
}

// confirm shows what the call would do and asks.
func confirm(cmd *cobra.Command, client endsessionv1.SessionServiceClient, req *endsessionv1.InvalidateSessionsRequest) error {
	if err := canAsk(cmd); err != nil {
		return err
	}
	if err := showPreview(cmd, client, req); err != nil {
		return err
	}
	return ask(cmd, "End these sessions?")
}

// showPreview shows what the call would do, to somebody who is asked about it.
func showPreview(cmd *cobra.Command, client endsessionv1.SessionServiceClient, req *endsessionv1.InvalidateSessionsRequest) error {
	previews, err := preview(cmd, client, req)
	if err != nil {
		return callError(err)
	}
	return new(output).print(cmd.ErrOrStderr(), previews, func(w io.Writer) error { return printPreviews(w, previews.GetPreviews()) })
}

// ask returns nil only for an explicit yes.
func ask(cmd *cobra.Command, question string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	type answer struct {
		line string
		err  error
	}
	answers := make(chan answer, 1)
	go func() { // nothing but its end interrupts the reading of a terminal
		line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answers <- answer{line, err}
	}()
	refused := &exitError{exitNotAccepted, errors.New("not confirmed; nothing was done")}
	select {
	case <-cmd.Context().Done():
		fmt.Fprintln(cmd.ErrOrStderr())
		return refused
	case a := <-answers:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return &exitError{exitNotAccepted, fmt.Errorf("read the answer: %w; nothing was done", a.err)}
		}
		switch strings.ToLower(strings.TrimSpace(a.line)) {
		case "y", "yes":
			return nil
		}
		return refused
	}
}
