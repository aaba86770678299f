package main

import (
	"io"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func newPreview(conn *connection) *cobra.Command {
	var call callFlags
	var out output
	cmd := &cobra.Command{
		Use:   "preview",
		Short: "Say what invalidate would do, without doing it",
		Long: `preview shows for each target what it would be asked, and the sessions that would end now where the target can list
them. It ends nothing.

` + callStatuses,
		Example: `  endsession preview --user alice
  endsession preview --provider saml/okta --confirm-broad --target kibana-prod`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			req, err := call.request(cmd)
			if err != nil {
				return err
			}
			client, done, err := conn.dial()
			if err != nil {
				return err
			}
			defer done()
			resp, err := preview(cmd, client, req)
			if err != nil {
				return callError(err)
			}
			return out.print(cmd.OutOrStdout(), resp, func(w io.Writer) error { return printPreviews(w, resp.GetPreviews()) })
		},
	}
	conn.flags(cmd)
	call.flags(cmd)
	conn.completeCall(cmd)
	out.flags(cmd)
	return cmd
}

// preview asks what req would do.
func preview(cmd *cobra.Command, client endsessionv1.SessionServiceClient, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	only := proto.Clone(req).(*endsessionv1.InvalidateSessionsRequest)
	only.ValidateOnly = proto.Bool(true)
	only.RequestId, only.WaitTimeout = nil, nil
	return client.InvalidateSessions(cmd.Context(), only)
}
