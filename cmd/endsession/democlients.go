package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
)

// demoTimeout bounds one call of the demo.
const demoTimeout = time.Minute

// demoClients call a gateway as other services would.
type demoClients struct {
	grpc, http string
	service    endsessionv1.SessionServiceClient
}

func newDemoClients(grpcAddr, httpAddr string) (demoClients, error) {
	cc, err := grpc.NewClient(grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return demoClients{}, err
	}
	return demoClients{grpc: grpcAddr, http: httpAddr, service: endsessionv1.NewSessionServiceClient(cc)}, nil
}

func (c demoClients) invalidate(ctx context.Context, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.Invalidation, error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	resp, err := c.service.InvalidateSessions(ctx, req)
	return resp.GetInvalidation(), err
}

func (c demoClients) invalidateREST(ctx context.Context, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.Invalidation, error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	body, err := protojson.Marshal(req)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.http+"/v1/sessions:invalidate", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("REST answered %s: %s", resp.Status, answer)
	}
	var m endsessionv1.InvalidateSessionsResponse
	if err := protojson.Unmarshal(answer, &m); err != nil {
		return nil, err
	}
	return m.GetInvalidation(), nil
}
