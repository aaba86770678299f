package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// watch streams an invalidation as lines of JSON, each with the message in "result" and perhaps a last one with a
// google.rpc.Status in "error": the form of grpc-gateway's streams. It is written here because grpc-gateway wraps also
// an error that comes before anything else, which callers expect to look like that of any other call.
func (g *gateway) watch(w http.ResponseWriter, r *http.Request, params map[string]string) {
	const method = "/endsession.v1.SessionService/WatchInvalidation"
	ctx, err := runtime.AnnotateContext(r.Context(), g.mux, r, method)
	if err != nil {
		handleError(ctx, nil, nil, w, r, err)
		return
	}
	stream, err := g.client.WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: params["name"]})
	if err != nil {
		handleError(ctx, nil, nil, w, r, err)
		return
	}
	ctl := http.NewResponseController(w)
	begun := false
	for {
		reply, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil && !begun:
			handleError(ctx, nil, nil, w, r, err)
			return
		}
		if !begun {
			w.Header().Set("Content-Type", "application/json")
			begun = true
		}
		key, message := "result", proto.Message(reply)
		if err != nil {
			key, message = "error", status.Convert(err).Proto()
		}
		line, marshalErr := json.Marshal(map[string]json.RawMessage{key: jsonOf(message)})
		if marshalErr != nil {
			return
		}
		if _, writeErr := w.Write(append(line, '\n')); writeErr != nil || err != nil {
			return
		}
		if ctl.Flush() != nil {
			return
		}
	}
}
