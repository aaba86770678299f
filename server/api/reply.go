package api

import (
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
)

// maxNames is how many invalidations CancelInvalidations names.
const maxNames = 1000

var states = map[invalidation.State]endsessionv1.InvalidationState{
	invalidation.Running:            endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING,
	invalidation.Succeeded:          endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED,
	invalidation.PartiallySucceeded: endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED,
	invalidation.Failed:             endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED,
	invalidation.Cancelled:          endsessionv1.InvalidationState_INVALIDATION_STATE_CANCELLED,
}

var runStates = map[invalidation.RunState]endsessionv1.RunState{
	invalidation.RunPending:     endsessionv1.RunState_RUN_STATE_PENDING,
	invalidation.RunRunning:     endsessionv1.RunState_RUN_STATE_RUNNING,
	invalidation.RunRetrying:    endsessionv1.RunState_RUN_STATE_RETRYING,
	invalidation.RunSucceeded:   endsessionv1.RunState_RUN_STATE_SUCCEEDED,
	invalidation.RunUnsupported: endsessionv1.RunState_RUN_STATE_UNSUPPORTED,
	invalidation.RunFailed:      endsessionv1.RunState_RUN_STATE_FAILED,
	invalidation.RunCancelled:   endsessionv1.RunState_RUN_STATE_CANCELLED,
}

var verifications = map[adapters.Verification]endsessionv1.Verification{
	adapters.ConfirmedByList:   endsessionv1.Verification_VERIFICATION_CONFIRMED_BY_LIST,
	adapters.ConfirmedByRepeat: endsessionv1.Verification_VERIFICATION_CONFIRMED_BY_REPEAT,
	adapters.Unverifiable:      endsessionv1.Verification_VERIFICATION_UNVERIFIABLE,
}

var targetStates = map[invalidation.TargetState]endsessionv1.TargetState{
	invalidation.TargetActive: endsessionv1.TargetState_TARGET_STATE_ACTIVE,
	invalidation.TargetPaused: endsessionv1.TargetState_TARGET_STATE_PAUSED,
	invalidation.TargetParked: endsessionv1.TargetState_TARGET_STATE_PARKED,
}

var checkStatuses = map[adapters.CheckStatus]endsessionv1.CheckStatus{
	adapters.CheckOK:      endsessionv1.CheckStatus_CHECK_STATUS_OK,
	adapters.CheckWarning: endsessionv1.CheckStatus_CHECK_STATUS_WARNING,
	adapters.CheckFailed:  endsessionv1.CheckStatus_CHECK_STATUS_FAILED,
	adapters.CheckUnknown: endsessionv1.CheckStatus_CHECK_STATUS_UNKNOWN,
}

var criteria = map[string]endsessionv1.Criterion{
	"user":     endsessionv1.Criterion_CRITERION_USER,
	"provider": endsessionv1.Criterion_CRITERION_PROVIDER,
	"group":    endsessionv1.Criterion_CRITERION_GROUP,
	"sessions": endsessionv1.Criterion_CRITERION_SESSIONS,
	"all":      endsessionv1.Criterion_CRITERION_ALL,
}

func each[T, U any](list []T, reply func(T) U) []U {
	if len(list) == 0 {
		return nil
	}
	out := make([]U, len(list))
	for i, x := range list {
		out[i] = reply(x)
	}
	return out
}

// count is a count as the API has it.
func count(n int) int32 { return int32(min(max(n, 0), math.MaxInt32)) }

// text is a string that came from an upstream, as text: an answer with invalid UTF-8 could not be sent at all, and a
// caller must learn what became of the rest.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func instant(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func invalidationReply(inv invalidation.Invalidation) *endsessionv1.Invalidation {
	priority := endsessionv1.Priority_PRIORITY_NORMAL
	if inv.Call.Priority == invalidation.PriorityBulk {
		priority = endsessionv1.Priority_PRIORITY_BULK
	}
	reply := &endsessionv1.Invalidation{
		Name:             nameOf(inv.ID),
		State:            states[inv.State],
		Revision:         inv.Revision,
		Selector:         selectorReply(inv.Call.Selector),
		Reason:           inv.Call.Reason,
		OnBehalfOf:       inv.Call.OnBehalfOf,
		Labels:           inv.Call.Labels,
		Caller:           &endsessionv1.Caller{Kind: inv.Caller.Kind, Name: inv.Caller.Name},
		CreateTime:       instant(inv.CreateTime),
		CompleteTime:     instant(inv.CompleteTime),
		Runs:             each(inv.Runs, runReply),
		Priority:         priority,
		AllowUnsupported: inv.Call.AllowUnsupported,
	}
	if inv.RetryOf != "" {
		reply.RetryOf = nameOf(inv.RetryOf)
	}
	n, known, minimum := inv.InvalidatedCount()
	if known {
		reply.InvalidatedCount = new(count(n))
	}
	reply.CountIsMinimum = minimum
	return reply
}

func selectorReply(s invalidation.Selector) *endsessionv1.Selector {
	reply := &endsessionv1.Selector{}
	if u := s.User; u != nil {
		reply.User = &endsessionv1.User{Id: u.ID, Email: optional(u.Email), Attributes: u.Attributes}
		for target, names := range u.TargetUsernames {
			if reply.User.TargetUsernames == nil {
				reply.User.TargetUsernames = map[string]*endsessionv1.TargetUsernames{}
			}
			reply.User.TargetUsernames[target] = &endsessionv1.TargetUsernames{Usernames: names}
		}
	}
	if p := s.Provider; p != nil {
		reply.Provider = &endsessionv1.Provider{Type: p.Type, Name: optional(p.Name)}
	}
	reply.Group = optional(s.Group)
	for _, r := range s.Sessions {
		reply.Sessions = append(reply.Sessions, &endsessionv1.SessionRef{
			Target: r.Target, Device: optional(r.Device), Id: r.ID,
		})
	}
	if s.All {
		reply.All = new(true)
	}
	return reply
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func runReply(r invalidation.Run) *endsessionv1.Run {
	reply := &endsessionv1.Run{
		Target:            r.Target,
		Kind:              r.Kind,
		State:             runStates[r.State],
		CountIsMinimum:    r.CountIsMinimum,
		Verification:      verifications[r.Verification],
		Sessions:          each(r.Sessions, sessionReply),
		SessionsTruncated: r.SessionsTruncated,
		Covered:           each(r.Covered, text),
		Warnings:          each(r.Warnings, warningReply),
		Error:             errorReply(r.Error),
		Attempts:          count(r.Attempts),
		NextAttemptTime:   instant(r.NextAttemptTime),
		ExpireTime:        instant(r.ExpireTime),
		UpstreamOperation: text(r.Operation),
		StartTime:         instant(r.StartTime),
		CompleteTime:      instant(r.CompleteTime),
	}
	if r.Counted {
		reply.InvalidatedCount = new(count(r.Count))
	}
	return reply
}

func sessionReply(x adapters.Session) *endsessionv1.Session {
	reply := &endsessionv1.Session{
		Id:             text(x.ID),
		Device:         text(x.Device),
		Username:       text(x.Username),
		CreateTime:     instant(x.CreateTime),
		LastAccessTime: instant(x.LastAccessTime),
		ExpireTime:     instant(x.ExpireTime),
	}
	if x.Provider != (adapters.Provider{}) {
		reply.Provider = text(x.Provider.String())
	}
	for _, g := range x.Groups {
		reply.Groups = append(reply.Groups, text(g.String()))
	}
	return reply
}

func warningReply(w adapters.Warning) *endsessionv1.Warning {
	return &endsessionv1.Warning{Code: string(w.Code), Message: text(w.Message)}
}

func errorReply(e *invalidation.RunError) *endsessionv1.Error {
	if e == nil {
		return nil
	}
	reply := &endsessionv1.Error{Reason: string(e.Reason), Message: text(e.Message)}
	if e.RetryDelay > 0 {
		reply.RetryDelay = durationpb.New(e.RetryDelay)
	}
	return reply
}

func previewReply(p invalidation.TargetPreview) *endsessionv1.Preview {
	return &endsessionv1.Preview{
		Target:            p.Target,
		Kind:              p.Kind,
		Supported:         !p.Unsupported,
		Summary:           each(p.Summary, text),
		Requests:          each(p.Requests, requestReply),
		Sessions:          each(p.Sessions, sessionReply),
		CanList:           p.Listed,
		SessionsTruncated: p.SessionsTruncated,
		Covered:           each(p.Covered, text),
		Warnings:          each(p.Warnings, warningReply),
		Error:             errorReply(p.Err),
	}
}

func requestReply(r adapters.PlannedRequest) *endsessionv1.UpstreamRequest {
	return &endsessionv1.UpstreamRequest{Method: r.Method, Url: text(r.URL), Body: text(r.Body)}
}

func targetReply(t invalidation.TargetStatus) *endsessionv1.Target {
	reply := &endsessionv1.Target{
		Name:   t.Name,
		Kind:   t.Kind,
		State:  targetStates[t.State],
		Health: healthReply(t),
	}
	for _, combination := range t.Supported {
		supported := &endsessionv1.SupportedCriteria{}
		for _, name := range combination.Names() {
			supported.Criteria = append(supported.Criteria, criteria[name])
		}
		reply.SupportedCriteria = append(reply.SupportedCriteria, supported)
	}
	if t.State == invalidation.TargetParked {
		reply.StateReason = "the target refuses the gateway's credentials"
	}
	if p := t.Pause; p != nil {
		reply.PausedBy, reply.PauseReason, reply.PauseTime = p.Caller.Name, p.Reason, instant(p.Time)
	}
	return reply
}

func healthReply(t invalidation.TargetStatus) *endsessionv1.TargetHealth {
	reply := &endsessionv1.TargetHealth{
		Status:    endsessionv1.HealthStatus_HEALTH_STATUS_UNKNOWN,
		Checks:    each(t.Health.Checks, checkReply),
		Version:   text(t.Health.Version),
		CheckTime: instant(t.CheckTime),
	}
	switch {
	case t.CheckTime.IsZero():
	case t.Health.Healthy():
		reply.Status = endsessionv1.HealthStatus_HEALTH_STATUS_OK
	default:
		reply.Status = endsessionv1.HealthStatus_HEALTH_STATUS_FAILING
	}
	return reply
}

func checkReply(c adapters.Check) *endsessionv1.Check {
	return &endsessionv1.Check{
		Name: c.Name, Status: checkStatuses[c.Status], Message: text(c.Message), Remedy: text(c.Remedy),
	}
}
