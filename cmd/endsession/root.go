package main

import (
	"context"
	"errors"
	"fmt"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The exit statuses. They are part of the interface: scripts act on them.
const (
	exitSucceeded    = 0
	exitFailed       = 1
	exitUsage        = 2
	exitPartial      = 3
	exitStillRunning = 4
	exitNotAccepted  = 5
	exitUnreadable   = 6
)

// What the help of client commands says of their statuses: of those that end as an invalidation stands, and the others.
const (
	outcomeStatuses = `Exit status: 0 all succeeded, 1 failed, 2 usage, 3 partly succeeded, 4 still running, 5 not accepted, or not known
to be.`
	callStatuses = `Exit status: 0 done, 1 failed, 2 usage, 5 not accepted.`
)

// exitError is a command's end with a status other than 0; its message, if any, was not printed yet.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is a mistake in the arguments.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// run is main without the process around it; it returns the exit status.
func run(ctx context.Context, args []string, io streams, lookup func(string) (string, bool)) int {
	cmd := newRoot(io, lookup)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitSucceeded
	}
	var e *exitError
	if !errors.As(err, &e) {
		e = &exitError{exitUsage, err} // what cobra itself complains about
	}
	if e.err != nil {
		fmt.Fprintln(io.err, "endsession: "+describe(e.err))
		if unanswered(e.err) {
			fmt.Fprintln(io.err, "  is a gateway at that address (--server), and does it want TLS (--tls, --tls-ca-file)?")
		}
	}
	return e.status
}

func newRoot(io streams, lookup func(string) (string, bool)) *cobra.Command {
	conn := &connection{lookup: lookup}
	root := &cobra.Command{
		Use:   "endsession",
		Short: "End a person's sessions everywhere, with proof",
		Long: `endsession ends sessions in F5 BIG-IQ APM, Kibana and NetApp Element with one call, and says what each
system confirmed.

Commands that speak to a gateway find it by --server and its fellows, or by ENDSESSION_SERVER and the other variables
that their flags name.

Exit status: 0 all succeeded, 1 failed, 2 usage, 3 partly succeeded, 4 still running, 5 not accepted, or not known to
be; of audit verify and audit export also 6: the journal cannot be read.`,
		Example: `  endsession demo
  endsession serve --config endsession.yaml
  endsession invalidate --user alice --reason "account compromised"
  endsession completion bash --help`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{status: exitUsage}
		},
	}
	root.SetIn(io.in)
	root.SetOut(newScreen(io.out, lookup))
	root.SetErr(io.err)
	root.AddCommand(newServe(), newDemo(), newInvalidate(conn), newPreview(conn), newGet(conn), newList(conn), newWatch(conn),
		newCancel(conn), newRetry(conn), newTargets(conn), newHealth(lookup), newAudit(), newConfig(), newPolicy(), newKey(), newVersion())
	addCompletion(root)
	return root
}

// describe makes one line, or a few, of an error: for a call's error the public message and the fields it names.
func describe(err error) string {
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return err.Error()
	}
	text := fmt.Sprintf("%s (%s)", st.Message(), st.Code())
	for _, v := range violations(st) {
		if line := fmt.Sprintf("%s: %s", v.GetField(), v.GetDescription()); line != st.Message() {
			text += "\n  " + line
		}
	}
	return text
}

// unanswered reports whether no gateway answered a call: one that refuses says for what reason.
func unanswered(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() == codes.Unavailable && len(st.Details()) == 0
}

// callError gives a failed call its exit status: 5 when nothing was accepted, 2 when the request was wrong.
func callError(err error) error {
	if e := new(exitError); errors.As(err, &e) { // it has one already
		return err
	}
	switch status.Code(err) {
	case codes.InvalidArgument:
		return &exitError{exitUsage, err}
	case codes.Unavailable, codes.ResourceExhausted, codes.PermissionDenied, codes.Unauthenticated, codes.AlreadyExists:
		return &exitError{exitNotAccepted, err}
	}
	return &exitError{exitFailed, err}
}

// outcome is the exit status of an invalidation as it stands.
func outcome(inv *endsessionv1.Invalidation) error {
	switch {
	case !final(inv):
		return &exitError{status: exitStillRunning}
	case inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED:
		return nil
	case inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED:
		return &exitError{status: exitPartial}
	}
	return &exitError{status: exitFailed}
}
