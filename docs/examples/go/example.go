// Package example shows how Go programs call endsession: copy what you need.
package example

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// apiKey is sent with every call, over TLS only.
type apiKey string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (k apiKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(k)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (apiKey) RequireTransportSecurity() bool { return true }

// Dial connects to a gateway by TLS with an API key. caFile names the authorities to trust; empty: the system's.
func Dial(address, caFile, keyFile string) (*grpc.ClientConn, error) {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate", caFile)
		}
	}
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithPerRPCCredentials(apiKey(strings.TrimSpace(string(key)))))
}

// EndSessions ends a person's sessions everywhere, and returns the invalidation once it is final. If the context ends
// before, the invalidation is returned as it was last seen, with the context's error: the gateway goes on with it.
func EndSessions(ctx context.Context, client endsessionv1.SessionServiceClient, user, reason string) (*endsessionv1.Invalidation, error) {
	// One id for all tries: whatever becomes of the connection, the call is accepted once.
	resp, err := invalidate(ctx, client, &endsessionv1.InvalidateSessionsRequest{
		Selector:  &endsessionv1.Selector{User: &endsessionv1.User{Id: user}},
		Reason:    proto.String(reason),
		RequestId: proto.String(uuid.NewString()),
	})
	if err != nil {
		return nil, err
	}
	inv := resp.GetInvalidation()
	for inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING {
		got, err := client.GetInvalidation(ctx, &endsessionv1.GetInvalidationRequest{
			Name: inv.GetName(), WaitTimeout: durationpb.New(time.Minute),
		})
		switch {
		case err == nil:
			inv = got.GetInvalidation()
		case !again(err):
			return inv, err
		default:
			if err := pause(ctx, err, time.Second); err != nil {
				return inv, err
			}
		}
	}
	return inv, nil
}

// invalidate sends the request until there is an answer. The request must have an id: then repeating is safe.
func invalidate(ctx context.Context, client endsessionv1.SessionServiceClient, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		resp, err := client.InvalidateSessions(ctx, req)
		if err == nil || !again(err) {
			return resp, err
		}
		if err := pause(ctx, err, wait); err != nil {
			return nil, err
		}
	}
}

// again reports whether the same call may be answered another time. UNAVAILABLE is both: nothing was accepted, or it is
// not known whether it was.
func again(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	}
	return false
}

// pause waits as long as the error asks for, or the given time.
func pause(ctx context.Context, err error, wait time.Duration) error {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			wait = info.GetRetryDelay().AsDuration()
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w; last answer: %w", ctx.Err(), err)
	}
}

// Reason is why a call was refused: one of the reasons that the contract lists. Act on it, not on the message.
func Reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "endsession" {
			return info.GetReason()
		}
	}
	return ""
}

// Watch calls show for every state of an invalidation until it is final. Streams break: it watches again then.
func Watch(ctx context.Context, client endsessionv1.SessionServiceClient, name string, show func(*endsessionv1.Invalidation)) error {
	revision := int64(0)
	for {
		stream, err := client.WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: name})
		for err == nil {
			var resp *endsessionv1.WatchInvalidationResponse
			if resp, err = stream.Recv(); err != nil {
				break
			}
			// Every 20 seconds the same one comes again, and after a break perhaps an older one from another replica.
			if inv := resp.GetInvalidation(); inv.GetRevision() > revision {
				revision = inv.GetRevision()
				show(inv)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil // it is final
		}
		if !again(err) {
			return err
		}
		if err := pause(ctx, err, time.Second); err != nil {
			return err
		}
	}
}

// Report says what became of an invalidation, and whether it may be called done.
func Report(w io.Writer, inv *endsessionv1.Invalidation) (done bool) {
	for _, run := range inv.GetRuns() {
		// An absent count is unknown. It is not 0.
		count := "an unknown number of"
		if run.InvalidatedCount != nil {
			count = fmt.Sprint(run.GetInvalidatedCount())
			if run.GetCountIsMinimum() {
				count = "at least " + count
			}
		}
		switch run.GetState() {
		case endsessionv1.RunState_RUN_STATE_SUCCEEDED:
			fmt.Fprintf(w, "%s: %s sessions ended\n", run.GetTarget(), count)
		case endsessionv1.RunState_RUN_STATE_UNSUPPORTED:
			fmt.Fprintf(w, "%s: cannot do this, nothing was sent: %s\n", run.GetTarget(), run.GetError().GetMessage())
		default:
			fmt.Fprintf(w, "%s: NOT done (%s): %s\n", run.GetTarget(), run.GetError().GetReason(), run.GetError().GetMessage())
		}
		for _, warning := range run.GetWarnings() {
			fmt.Fprintf(w, "%s: %s: %s\n", run.GetTarget(), warning.GetCode(), warning.GetMessage())
		}
	}
	// A partial success is one for nobody whose sessions go on somewhere.
	return inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED
}
