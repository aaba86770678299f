package gateway_test

import (
	"context"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/alloctest"
)

// answering is a connection to a gRPC server that answers everything alike.
type answering struct {
	recorder
	reply proto.Message
}

func (a *answering) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	proto.Merge(reply.(proto.Message), a.reply)
	return a.recorder.Invoke(ctx, method, args, reply, options...)
}

// transcoding answers a REST call: the checks of the body, protobuf of JSON, and JSON of protobuf.
func transcoding(tb testing.TB) func() {
	run := &endsessionv1.Run{Target: "apm", Kind: "bigiq", State: endsessionv1.RunState_RUN_STATE_SUCCEEDED, InvalidatedCount: proto.Int32(2), Attempts: 1}
	h := handler(tb, &answering{reply: &endsessionv1.InvalidateSessionsResponse{Invalidation: &endsessionv1.Invalidation{
		Name: "invalidations/0197f3c2-5d11-7abc-8def-0123456789ab", State: endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED,
		Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}}, Runs: []*endsessionv1.Run{run, run, run},
	}}}, false)
	body := []byte(`{"selector":{"user":{"id":"alice"}},"reason":"left the company"}`)
	return func() {
		if w := post(h, "/v1/sessions:invalidate", body); w.Code != http.StatusOK {
			tb.Fatal(w.Code, w.Body)
		}
	}
}

// BenchmarkTranscode is what REST costs beside the call itself.
func BenchmarkTranscode(b *testing.B) {
	transcode := transcoding(b)
	b.ReportAllocs()
	for b.Loop() {
		transcode()
	}
}

func TestAllocations(t *testing.T) {
	alloctest.Compare(t, map[string]func(){"transcode": transcoding(t)})
}
