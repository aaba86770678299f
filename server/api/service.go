package api

import (
	"context"
	"iter"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
)

// Engine is what the API needs of [invalidation.Engine].
type Engine interface {
	Invalidate(ctx context.Context, req invalidation.Request) (inv invalidation.Invalidation, replayed bool, err error)
	Preview(ctx context.Context, caller invalidation.Caller, call invalidation.Call) ([]invalidation.TargetPreview, error)
	Get(ctx context.Context, caller invalidation.Caller, id string, wait time.Duration) (invalidation.Invalidation, error)
	List(ctx context.Context, caller invalidation.Caller, q invalidation.Query) ([]invalidation.Invalidation, bool, error)
	Watch(ctx context.Context, caller invalidation.Caller, id string) iter.Seq2[invalidation.Invalidation, error]
	Cancel(ctx context.Context, caller invalidation.Caller, id string) (invalidation.Invalidation, error)
	CancelByLabel(ctx context.Context, caller invalidation.Caller, key, value string) (invalidation.CancelSummary, error)
	Retry(ctx context.Context, req invalidation.RetryRequest) (inv invalidation.Invalidation, replayed bool, err error)
	Targets(ctx context.Context, caller invalidation.Caller) ([]invalidation.TargetStatus, error)
	CheckTarget(ctx context.Context, caller invalidation.Caller, target string) (adapters.Health, error)
	PauseTarget(ctx context.Context, caller invalidation.Caller, target, reason string) (invalidation.TargetStatus, error)
	ResumeTarget(ctx context.Context, caller invalidation.Caller, target string) (invalidation.TargetStatus, error)
}

var _ Engine = (*invalidation.Engine)(nil)

// Service implements endsession.v1.SessionService. Its handlers rely on the interceptors of [NewServer]: requests are
// valid and have a caller.
type Service struct {
	endsessionv1.UnimplementedSessionServiceServer
	engine Engine
	log    *slog.Logger
	drain  context.Context
	rules  rules
}

// New returns a service. When drain ends, streams end and waiting calls answer with what they have, so that a server
// can stop gracefully without waiting as long as its callers would.
func New(drain context.Context, engine Engine, log *slog.Logger) (*Service, error) {
	rules, err := newRules()
	if err != nil {
		return nil, err
	}
	return &Service{engine: engine, log: log, drain: drain, rules: rules}, nil
}

// patience returns the context to wait in and how long to wait: neither survives the drain.
func (s *Service) patience(ctx context.Context, wait time.Duration) (context.Context, time.Duration, func()) {
	if s.drain.Err() != nil {
		return ctx, 0, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.drain, cancel)
	return ctx, wait, func() { stop(); cancel() }
}

// InvalidateSessions ends sessions, or previews it.
func (s *Service) InvalidateSessions(
	ctx context.Context, req *endsessionv1.InvalidateSessionsRequest,
) (*endsessionv1.InvalidateSessionsResponse, error) {
	call := callFrom(req)
	if req.GetValidateOnly() {
		previews, err := s.engine.Preview(ctx, callerOf(ctx), call)
		if err != nil {
			return nil, err
		}
		return &endsessionv1.InvalidateSessionsResponse{Previews: each(previews, previewReply)}, nil
	}
	waiting, wait, done := s.patience(ctx, waitFrom(req.WaitTimeout))
	defer done()
	inv, replayed, err := s.engine.Invalidate(waiting, invalidation.Request{
		Caller: callerOf(ctx), Call: call, RequestID: requestIDFrom(req.GetRequestId()), Wait: wait,
	})
	if err != nil {
		return nil, err
	}
	return &endsessionv1.InvalidateSessionsResponse{Invalidation: invalidationReply(inv), Replayed: replayed}, nil
}

// GetInvalidation answers an invalidation, perhaps once it is final.
func (s *Service) GetInvalidation(
	ctx context.Context, req *endsessionv1.GetInvalidationRequest,
) (*endsessionv1.GetInvalidationResponse, error) {
	waiting, wait, done := s.patience(ctx, req.GetWaitTimeout().AsDuration())
	defer done()
	inv, err := s.engine.Get(waiting, callerOf(ctx), idOf(req.GetName()), wait)
	if err != nil && waiting.Err() != nil && ctx.Err() == nil { // the drain began while it was read
		inv, err = s.engine.Get(ctx, callerOf(ctx), idOf(req.GetName()), 0)
	}
	if err != nil {
		return nil, err
	}
	return &endsessionv1.GetInvalidationResponse{Invalidation: invalidationReply(inv)}, nil
}

// maxPage is how many bytes a page has at most, so that clients with gRPC's usual limit of 4 MiB can read every page.
const maxPage = 3 << 20

// ListInvalidations answers a page of invalidations.
func (s *Service) ListInvalidations(
	ctx context.Context, req *endsessionv1.ListInvalidationsRequest,
) (*endsessionv1.ListInvalidationsResponse, error) {
	q, err := queryFrom(req)
	if err != nil {
		return nil, err
	}
	invs, more, err := s.engine.List(ctx, callerOf(ctx), q)
	if err != nil {
		return nil, err
	}
	reply := &endsessionv1.ListInvalidationsResponse{}
	size := 0
	for i, inv := range invs {
		entry := invalidationReply(inv)
		if size += proto.Size(entry); size > maxPage && i > 0 {
			invs, more = invs[:i], true
			break
		}
		reply.Invalidations = append(reply.Invalidations, entry)
	}
	if more && len(invs) > 0 {
		if reply.NextPageToken, err = pageToken(req, invs[len(invs)-1].ID); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// WatchInvalidation streams an invalidation until it is final.
func (s *Service) WatchInvalidation(
	req *endsessionv1.WatchInvalidationRequest, stream endsessionv1.SessionService_WatchInvalidationServer,
) error {
	ctx := stream.Context()
	for inv, err := range s.engine.Watch(ctx, callerOf(ctx), idOf(req.GetName())) {
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx) // the drain says why
			}
			return err
		}
		if err := stream.Send(&endsessionv1.WatchInvalidationResponse{Invalidation: invalidationReply(inv)}); err != nil {
			return err
		}
	}
	return nil
}

// CancelInvalidation stops an invalidation.
func (s *Service) CancelInvalidation(
	ctx context.Context, req *endsessionv1.CancelInvalidationRequest,
) (*endsessionv1.CancelInvalidationResponse, error) {
	inv, err := s.engine.Cancel(ctx, callerOf(ctx), idOf(req.GetName()))
	if err != nil {
		return nil, err
	}
	return &endsessionv1.CancelInvalidationResponse{Invalidation: invalidationReply(inv)}, nil
}

// CancelInvalidations stops all that have a label.
func (s *Service) CancelInvalidations(
	ctx context.Context, req *endsessionv1.CancelInvalidationsRequest,
) (*endsessionv1.CancelInvalidationsResponse, error) {
	key, value := labelFrom(req.GetLabel())
	sum, err := s.engine.CancelByLabel(ctx, callerOf(ctx), key, value)
	if err != nil {
		return nil, err
	}
	named := sum.Cancelled[:min(len(sum.Cancelled), maxNames)]
	return &endsessionv1.CancelInvalidationsResponse{
		CancelledCount:    count(len(sum.Cancelled)),
		Names:             each(named, nameOf),
		NamesTruncated:    len(named) < len(sum.Cancelled),
		NotCancelledCount: count(sum.AlreadyFinal + sum.NotAllowed),
	}, nil
}

// RetryInvalidation makes a new invalidation of what failed.
func (s *Service) RetryInvalidation(
	ctx context.Context, req *endsessionv1.RetryInvalidationRequest,
) (*endsessionv1.RetryInvalidationResponse, error) {
	waiting, wait, done := s.patience(ctx, waitFrom(req.WaitTimeout))
	defer done()
	inv, replayed, err := s.engine.Retry(waiting, invalidation.RetryRequest{
		Caller:       callerOf(ctx),
		ID:           idOf(req.GetName()),
		ConfirmBroad: req.GetConfirmBroad(),
		RequestID:    requestIDFrom(req.GetRequestId()),
		Reason:       req.GetReason(),
		RetryFor:     req.GetRetryFor().AsDuration(),
		Wait:         wait,
	})
	if err != nil {
		return nil, err
	}
	return &endsessionv1.RetryInvalidationResponse{Invalidation: invalidationReply(inv), Replayed: replayed}, nil
}

// ListTargets answers the configured targets.
func (s *Service) ListTargets(
	ctx context.Context, _ *endsessionv1.ListTargetsRequest,
) (*endsessionv1.ListTargetsResponse, error) {
	targets, err := s.engine.Targets(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	return &endsessionv1.ListTargetsResponse{Targets: each(targets, targetReply)}, nil
}

// CheckTarget probes a target.
func (s *Service) CheckTarget(
	ctx context.Context, req *endsessionv1.CheckTargetRequest,
) (*endsessionv1.CheckTargetResponse, error) {
	health, err := s.engine.CheckTarget(ctx, callerOf(ctx), req.GetTarget())
	if err != nil {
		return nil, err
	}
	return &endsessionv1.CheckTargetResponse{Checks: each(health.Checks, checkReply), Version: text(health.Version)}, nil
}

// PauseTarget makes a target's runs wait.
func (s *Service) PauseTarget(
	ctx context.Context, req *endsessionv1.PauseTargetRequest,
) (*endsessionv1.PauseTargetResponse, error) {
	target, err := s.engine.PauseTarget(ctx, callerOf(ctx), req.GetTarget(), req.GetReason())
	if err != nil {
		return nil, err
	}
	return &endsessionv1.PauseTargetResponse{Target: targetReply(target)}, nil
}

// ResumeTarget ends a pause.
func (s *Service) ResumeTarget(
	ctx context.Context, req *endsessionv1.ResumeTargetRequest,
) (*endsessionv1.ResumeTargetResponse, error) {
	target, err := s.engine.ResumeTarget(ctx, callerOf(ctx), req.GetTarget())
	if err != nil {
		return nil, err
	}
	return &endsessionv1.ResumeTargetResponse{Target: targetReply(target)}, nil
}
