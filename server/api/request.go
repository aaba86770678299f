package api

import (
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
)

const namePrefix = "invalidations/"

// idOf returns the ID in a name; that it is a name is a rule of the contract.
func idOf(name string) string { return strings.TrimPrefix(name, namePrefix) }

func nameOf(id string) string { return namePrefix + id }

func callFrom(req *endsessionv1.InvalidateSessionsRequest) invalidation.Call {
	priority := invalidation.PriorityNormal
	if req.GetPriority() == endsessionv1.Priority_PRIORITY_BULK {
		priority = invalidation.PriorityBulk
	}
	return invalidation.Call{
		Selector:         selectorFrom(req.GetSelector()),
		Targets:          req.GetTargets(),
		ConfirmBroad:     req.GetConfirmBroad(),
		AllowUnsupported: req.GetAllowUnsupported(),
		Reason:           req.GetReason(),
		OnBehalfOf:       req.GetOnBehalfOf(),
		Labels:           maps.Clone(req.GetLabels()),
		Priority:         priority,
		RetryFor:         req.GetRetryFor().AsDuration(),
	}
}

func selectorFrom(s *endsessionv1.Selector) invalidation.Selector {
	sel := invalidation.Selector{Group: s.GetGroup(), All: s.GetAll()}
	if u := s.GetUser(); u != nil {
		sel.User = &invalidation.User{ID: u.GetId(), Email: u.GetEmail(), Attributes: maps.Clone(u.GetAttributes())}
		for target, names := range u.GetTargetUsernames() {
			if sel.User.TargetUsernames == nil {
				sel.User.TargetUsernames = map[string][]string{}
			}
			sel.User.TargetUsernames[target] = names.GetUsernames()
		}
	}
	if p := s.GetProvider(); p != nil {
		sel.Provider = &invalidation.Provider{Type: p.GetType(), Name: p.GetName()}
	}
	for _, r := range s.GetSessions() {
		sel.Sessions = append(sel.Sessions, invalidation.SessionRef{
			Target: r.GetTarget(), Device: r.GetDevice(), ID: r.GetId(),
		})
	}
	return sel
}

// waitFrom is how long a call that may be absent-minded about it waits.
func waitFrom(d *durationpb.Duration) time.Duration {
	if d == nil {
		return invalidation.DefaultWait
	}
	return d.AsDuration()
}

// requestIDFrom makes the two spellings of one UUID one.
func requestIDFrom(id string) string { return strings.ToLower(id) }

func labelFrom(label string) (key, value string) {
	key, value, _ = strings.Cut(label, "=")
	return key, value
}

// defaultPageSize is how many invalidations a page has where the caller does not say.
const defaultPageSize = 100

func queryFrom(req *endsessionv1.ListInvalidationsRequest) (invalidation.Query, error) {
	q := invalidation.Query{
		State:  stateFrom(req.GetState()),
		Target: req.GetTarget(),
		Caller: req.GetCaller(),
		UserID: req.GetUserId(),
		Limit:  int(req.GetPageSize()),
	}
	if q.Limit == 0 {
		q.Limit = defaultPageSize
	}
	for _, l := range req.GetLabel() {
		if q.Labels == nil {
			q.Labels = map[string]string{}
		}
		key, value := labelFrom(l)
		if _, twice := q.Labels[key]; twice {
			return q, Refusal(Violation{Field: "label", Description: "names one key twice"}).Err()
		}
		q.Labels[key] = value
	}
	for _, t := range []struct {
		field string
		from  *timestamppb.Timestamp
		to    *time.Time
	}{{"create_time_from", req.GetCreateTimeFrom(), &q.From}, {"create_time_to", req.GetCreateTimeTo(), &q.To}} {
		if t.from == nil {
			continue
		}
		if err := t.from.CheckValid(); err != nil {
			return q, Refusal(Violation{Field: t.field, Description: "is not a time"}).Err()
		}
		*t.to = t.from.AsTime()
		if t.to.IsZero() { // the first of all times; to the engine it would mean that there is no bound
			*t.to = t.to.Add(1)
		}
	}
	if req.GetPageToken() == "" {
		return q, nil
	}
	before, err := readPageToken(req)
	if err != nil {
		return q, err
	}
	q.Before = before
	return q, nil
}

func stateFrom(s endsessionv1.InvalidationState) invalidation.State {
	for state, x := range states {
		if x == s {
			return state
		}
	}
	return ""
}
