package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// fakeGateway keeps invalidations in memory and does with them what a test wants. What it may not do is what the real
// one would not: another invalidation for a request id, a state that goes back.
type fakeGateway struct {
	endsessionv1.UnimplementedSessionServiceServer

	// before, if given, may refuse a call, and may hold it up.
	before func(ctx context.Context, user string, nth int) error
	// becomes is what an invalidation becomes at once; nil: it succeeds with one session.
	becomes func(user string) endsessionv1.InvalidationState
	// onRead, if given, is told of each reading call.
	onRead func(nth int)
	// blind: nobody may read.
	blind bool
	// after, if given, may lose the answer to a call that was accepted.
	after func(user string, nth int) error

	mu     sync.Mutex
	calls  int
	reads  int
	byID   map[string]*endsessionv1.Invalidation // by request id
	sent   map[string]*endsessionv1.InvalidateSessionsRequest
	all    []*endsessionv1.Invalidation
	denied int
}

func newFakeGateway() *fakeGateway {
	return &fakeGateway{byID: map[string]*endsessionv1.Invalidation{}, sent: map[string]*endsessionv1.InvalidateSessionsRequest{}}
}

func (g *fakeGateway) InvalidateSessions(ctx context.Context, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	if req.GetValidateOnly() {
		return &endsessionv1.InvalidateSessionsResponse{}, nil
	}
	user := req.GetSelector().GetUser().GetId()
	g.mu.Lock()
	g.calls++
	nth := g.calls
	g.mu.Unlock()
	if g.before != nil {
		if err := g.before(ctx, user, nth); err != nil {
			return nil, err
		}
	}
	resp, err := g.accept(user, req)
	if err == nil && g.after != nil {
		err = g.after(user, nth)
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (g *fakeGateway) accept(user string, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := req.GetRequestId()
	if inv := g.byID[id]; inv != nil {
		content := func(r *endsessionv1.InvalidateSessionsRequest) *endsessionv1.InvalidateSessionsRequest {
			r = proto.CloneOf(r)
			r.WaitTimeout = nil
			return r
		}
		if !proto.Equal(content(g.sent[id]), content(req)) {
			return nil, refusedWith(codes.AlreadyExists, "REQUEST_ID_REUSED", "request_id was used for a request with other contents")
		}
		return &endsessionv1.InvalidateSessionsResponse{Invalidation: proto.CloneOf(inv), Replayed: true}, nil
	}
	name, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	inv := &endsessionv1.Invalidation{Name: "invalidations/" + name.String(), Selector: req.GetSelector(), Labels: req.GetLabels(), Priority: req.GetPriority(),
		State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING}
	answer := proto.CloneOf(inv)
	state := endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED
	if g.becomes != nil {
		state = g.becomes(user)
	}
	become(inv, state)
	g.byID[id], g.sent[id] = inv, req
	g.all = append(g.all, inv)
	return &endsessionv1.InvalidateSessionsResponse{Invalidation: answer}, nil
}

// become moves an invalidation to a state.
func become(inv *endsessionv1.Invalidation, state endsessionv1.InvalidationState) {
	inv.State = state
	switch state {
	case endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED:
		inv.InvalidatedCount = proto.Int32(1)
		inv.Runs = []*endsessionv1.Run{{Target: "apm", State: endsessionv1.RunState_RUN_STATE_SUCCEEDED, InvalidatedCount: proto.Int32(1)}}
	case endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED:
		inv.Runs = []*endsessionv1.Run{{Target: "apm", State: endsessionv1.RunState_RUN_STATE_FAILED, Error: &endsessionv1.Error{Reason: "EXPIRED", Message: "time was up"}}}
	case endsessionv1.InvalidationState_INVALIDATION_STATE_CANCELLED:
		inv.Runs = []*endsessionv1.Run{{Target: "apm", State: endsessionv1.RunState_RUN_STATE_CANCELLED}}
	}
}

// finish moves all that are running to a state.
func (g *fakeGateway) finish(state endsessionv1.InvalidationState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, inv := range g.all {
		if inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING {
			become(inv, state)
		}
	}
}

func (g *fakeGateway) read() error {
	g.reads++
	if g.onRead != nil {
		g.onRead(g.reads)
	}
	if g.blind {
		g.denied++
		return refusedWith(codes.PermissionDenied, "POLICY_DENIED", "the policy does not grant the right \"read\"")
	}
	return nil
}

func (g *fakeGateway) GetInvalidation(_ context.Context, req *endsessionv1.GetInvalidationRequest) (*endsessionv1.GetInvalidationResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.read(); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(g.all, func(inv *endsessionv1.Invalidation) bool { return inv.GetName() == req.GetName() })
	if i < 0 {
		return nil, refusedWith(codes.NotFound, "NOT_FOUND", "there is no such invalidation")
	}
	return &endsessionv1.GetInvalidationResponse{Invalidation: proto.CloneOf(g.all[i])}, nil
}

func (g *fakeGateway) ListInvalidations(_ context.Context, req *endsessionv1.ListInvalidationsRequest) (*endsessionv1.ListInvalidationsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.read(); err != nil {
		return nil, err
	}
	resp := &endsessionv1.ListInvalidationsResponse{}
	for i := len(g.all) - 1; i >= 0; i-- {
		inv := g.all[i]
		switch {
		case req.GetPageToken() != "" && inv.GetName() >= req.GetPageToken(),
			req.GetState() != 0 && req.GetState() != inv.GetState(),
			!slices.Contains(req.GetLabel(), "job="+inv.GetLabels()["job"]):
			continue
		case len(resp.Invalidations) == int(req.GetPageSize()):
			resp.NextPageToken = resp.Invalidations[len(resp.Invalidations)-1].GetName()
			return resp, nil
		}
		resp.Invalidations = append(resp.Invalidations, proto.CloneOf(inv))
	}
	return resp, nil
}

func (g *fakeGateway) ListTargets(context.Context, *endsessionv1.ListTargetsRequest) (*endsessionv1.ListTargetsResponse, error) {
	return &endsessionv1.ListTargetsResponse{Targets: []*endsessionv1.Target{{Name: "apm"}, {Name: "storage"}}}, nil
}

// users are whose sessions were asked to be ended, in order.
func (g *fakeGateway) users() (users []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, inv := range g.all {
		users = append(users, inv.GetSelector().GetUser().GetId())
	}
	slices.Sort(users)
	return users
}

// refusedWith is an error as the gateway makes them.
func refusedWith(code codes.Code, reason, message string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: "endsession"}}, details...)...)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// serve serves the fake on a loopback port.
func (g *fakeGateway) serve(t testing.TB) cli {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	endsessionv1.RegisterSessionServiceServer(srv, g)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return cli{env: map[string]string{"ENDSESSION_SERVER": l.Addr().String()}}
}

// inMemory returns a client that works in virtual time.
func (g *fakeGateway) inMemory(t testing.TB) endsessionv1.SessionServiceClient {
	t.Helper()
	l := newPipeListener()
	srv := grpc.NewServer()
	endsessionv1.RegisterSessionServiceServer(srv, g)
	go func() { _ = srv.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		srv.Stop()
	})
	return endsessionv1.NewSessionServiceClient(cc)
}

// numbered are n different ids.
func numbered(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("user-%05d", i))
	}
	return ids
}
