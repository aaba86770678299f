// Package endsessionv1_test holds the validation rules of the contract against messages that they must accept and
// messages that they must refuse. The rules are all there is between a careless request and everybody's sessions.
package endsessionv1_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

const (
	someInvalidation = "invalidations/0197f3c2-5d11-7abc-8def-0123456789ab"
	someRequestID    = "0197f3c2-5d11-7abc-8def-0123456789ab"
)

// aliceAnd is a request for alice's sessions, which is valid, with changes that may make it invalid.
func aliceAnd(change func(*endsessionv1.InvalidateSessionsRequest)) *endsessionv1.InvalidateSessionsRequest {
	req := &endsessionv1.InvalidateSessionsRequest{
		Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}},
	}
	change(req)
	return req
}

// forUser is a request for one user's sessions.
func forUser(user *endsessionv1.User) *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{User: user}}
}

// confirmed is a request with confirm_broad.
func confirmed(sel *endsessionv1.Selector) *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{Selector: sel, ConfirmBroad: new(true)}
}

// unconfirmed is a request without confirm_broad.
func unconfirmed(sel *endsessionv1.Selector) *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{Selector: sel}
}

// forSessions is a request for n sessions.
func forSessions(n int) *endsessionv1.InvalidateSessionsRequest {
	sel := &endsessionv1.Selector{}
	for i := range n {
		sel.Sessions = append(sel.Sessions, session("apm", fmt.Sprint(i)))
	}
	return unconfirmed(sel)
}

func session(target, id string) *endsessionv1.SessionRef {
	return &endsessionv1.SessionRef{Target: target, Id: id}
}

// many makes n different strings.
func many(n int, format string) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = fmt.Sprintf(format, i)
	}
	return s
}

// manyPairs makes a map of n pairs.
func manyPairs(n int) map[string]string {
	m := map[string]string{}
	for _, k := range many(n, "k%d") {
		m[k] = "v"
	}
	return m
}

// namesAt makes a name at each of n targets.
func namesAt(n int) map[string]*endsessionv1.TargetUsernames {
	m := map[string]*endsessionv1.TargetUsernames{}
	for _, target := range many(n, "t%d") {
		m[target] = &endsessionv1.TargetUsernames{Usernames: []string{"a"}}
	}
	return m
}

// violations are the rules that a message breaks, each as "field rule", or just the rule where it is the message's.
func violations(t *testing.T, msg proto.Message) []string {
	t.Helper()
	err := protovalidate.Validate(msg)
	if err == nil {
		return nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		t.Fatalf("the rules themselves are broken: %v", err)
	}
	var got []string
	for _, v := range invalid.Violations {
		field := protovalidate.FieldPathString(v.Proto.GetField())
		got = append(got, strings.TrimSpace(field+" "+v.Proto.GetRuleId()))
		if v.Proto.GetMessage() == "" {
			t.Errorf("%s has no message", v.Proto.GetRuleId())
		}
	}
	slices.Sort(got)
	return got
}

func TestRules(t *testing.T) {
	type invalidate = endsessionv1.InvalidateSessionsRequest
	alice := &endsessionv1.User{Id: "alice"}
	saml := &endsessionv1.Provider{Type: "saml"}

	tests := []struct {
		name string
		msg  proto.Message
		want []string // nothing: accepted
	}{
		// The selector as a whole.
		{"NoSelector", &invalidate{}, []string{"selector required"}},
		{"EmptySelector", unconfirmed(&endsessionv1.Selector{}), []string{"selector selector.empty"}},
		{"EmptySelectorConfirmed", confirmed(&endsessionv1.Selector{}), []string{"selector selector.empty"}},
		{"User", unconfirmed(&endsessionv1.Selector{User: alice}), nil},
		{"UserConfirmed", confirmed(&endsessionv1.Selector{User: alice}), nil},
		{"UserProviderGroup", unconfirmed(&endsessionv1.Selector{User: alice, Provider: saml, Group: new("vpn")}), nil},
		{"Provider", confirmed(&endsessionv1.Selector{Provider: saml}), nil},
		{"ProviderUnconfirmed", unconfirmed(&endsessionv1.Selector{Provider: saml}), []string{"confirm_broad.required"}},
		{"Group", confirmed(&endsessionv1.Selector{Group: new("vpn")}), nil},
		{"GroupUnconfirmed", unconfirmed(&endsessionv1.Selector{Group: new("vpn")}), []string{"confirm_broad.required"}},
		{
			"ProviderAndGroupUnconfirmed",
			unconfirmed(&endsessionv1.Selector{Provider: saml, Group: new("vpn")}),
			[]string{"confirm_broad.required"},
		},
		{"All", confirmed(&endsessionv1.Selector{All: new(true)}), nil},
		{"AllUnconfirmed", unconfirmed(&endsessionv1.Selector{All: new(true)}), []string{"confirm_broad.required"}},
		{
			"AllDenied",
			&invalidate{Selector: &endsessionv1.Selector{All: new(true)}, ConfirmBroad: new(false)},
			[]string{"confirm_broad.required"},
		},
		{"AllFalse", confirmed(&endsessionv1.Selector{All: new(false)}), []string{"selector.all selector.all_true"}},
		{
			"AllFalseBesideUser",
			unconfirmed(&endsessionv1.Selector{User: alice, All: new(false)}),
			[]string{"selector selector.all_alone", "selector.all selector.all_true"},
		},
		{
			"AllBesideUser",
			confirmed(&endsessionv1.Selector{User: alice, All: new(true)}),
			[]string{"selector selector.all_alone"},
		},
		{
			"AllBesideProvider",
			confirmed(&endsessionv1.Selector{Provider: saml, All: new(true)}),
			[]string{"selector selector.all_alone"},
		},
		{
			"AllBesideGroup",
			confirmed(&endsessionv1.Selector{Group: new("vpn"), All: new(true)}),
			[]string{"selector selector.all_alone"},
		},
		{
			"AllBesideSessions",
			confirmed(&endsessionv1.Selector{
				Sessions: []*endsessionv1.SessionRef{session("apm", "1")}, All: new(true),
			}),
			[]string{"selector selector.all_alone"},
		},

		// Sessions.
		{"OneSession", forSessions(1), nil},
		{"1000Sessions", forSessions(1000), nil},
		{"1001Sessions", forSessions(1001), []string{"selector.sessions repeated.max_items"}},
		{
			"SessionsBesideUser",
			unconfirmed(&endsessionv1.Selector{
				User: alice, Sessions: []*endsessionv1.SessionRef{session("apm", "1")},
			}),
			[]string{"selector selector.sessions_alone"},
		},
		{
			"SessionsBesideProvider",
			unconfirmed(&endsessionv1.Selector{
				Provider: saml, Sessions: []*endsessionv1.SessionRef{session("apm", "1")},
			}),
			[]string{"selector selector.sessions_alone"},
		},
		{
			"SessionsBesideGroup",
			unconfirmed(&endsessionv1.Selector{
				Group: new("vpn"), Sessions: []*endsessionv1.SessionRef{session("apm", "1")},
			}),
			[]string{"selector selector.sessions_alone"},
		},
		{
			"SessionsBesideTargets",
			&invalidate{
				Selector: &endsessionv1.Selector{Sessions: []*endsessionv1.SessionRef{session("apm", "1")}},
				Targets:  []string{"apm"},
			},
			[]string{"targets.with_sessions"},
		},
		{
			"SessionWithNothing",
			unconfirmed(&endsessionv1.Selector{Sessions: []*endsessionv1.SessionRef{{}}}),
			[]string{"selector.sessions[0].id required", "selector.sessions[0].target required"},
		},
		{
			"SessionWithBlanks",
			unconfirmed(&endsessionv1.Selector{Sessions: []*endsessionv1.SessionRef{
				{Target: "apm", Device: new(""), Id: " "},
			}}),
			[]string{
				"selector.sessions[0].device string.given.blank", "selector.sessions[0].id string.given.blank",
			},
		},
		{
			"SessionWithDevice",
			unconfirmed(&endsessionv1.Selector{Sessions: []*endsessionv1.SessionRef{
				{Target: "apm", Device: new("98901455-6384-47cd-bc41-00a39dfe338f"), Id: "2a5d7604"},
			}}),
			nil,
		},
		{
			"SessionWithBadTarget",
			unconfirmed(&endsessionv1.Selector{Sessions: []*endsessionv1.SessionRef{session("APM", "1")}}),
			[]string{"selector.sessions[0].target string.target_name"},
		},

		// Users.
		{"UserWithNothing", forUser(&endsessionv1.User{}), []string{"selector.user.id required"}},
		{
			"UserWithoutID",
			forUser(&endsessionv1.User{Email: new("alice@corp.example")}),
			[]string{"selector.user.id required"},
		},
		{
			"UserWithEverything",
			forUser(&endsessionv1.User{
				Id: "alice", Email: new("alice@corp.example"), Attributes: map[string]string{"uid": "a17"},
				TargetUsernames: map[string]*endsessionv1.TargetUsernames{
					"storage": {Usernames: []string{"uid=a17,ou=people,dc=corp"}},
				},
			}),
			nil,
		},
		{
			"UserWithBlankEmail",
			forUser(&endsessionv1.User{Id: "alice", Email: new("")}),
			[]string{"selector.user.email string.given.blank"},
		},
		{
			"UserWithBlankAttribute",
			forUser(&endsessionv1.User{Id: "alice", Attributes: map[string]string{"uid": ""}}),
			[]string{`selector.user.attributes["uid"] string.given.blank`},
		},
		{
			"UserWithBlankAttributeName",
			forUser(&endsessionv1.User{Id: "alice", Attributes: map[string]string{"": "a17"}}),
			[]string{`selector.user.attributes[""] string.given.blank`},
		},
		{"UserWith64Attributes", forUser(&endsessionv1.User{Id: "alice", Attributes: manyPairs(64)}), nil},
		{
			"UserWith65Attributes",
			forUser(&endsessionv1.User{Id: "alice", Attributes: manyPairs(65)}),
			[]string{"selector.user.attributes map.max_pairs"},
		},
		{
			"UserWithNoNameAtTarget",
			forUser(&endsessionv1.User{
				Id: "alice", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"storage": {}},
			}),
			[]string{`selector.user.target_usernames["storage"].usernames repeated.min_items`},
		},
		{
			"UserWithBlankNameAtTarget",
			forUser(&endsessionv1.User{
				Id: "alice", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"storage": {Usernames: []string{""}}},
			}),
			[]string{`selector.user.target_usernames["storage"].usernames[0] string.given.blank`},
		},
		{
			"UserWithOneNameTwice",
			forUser(&endsessionv1.User{
				Id: "alice", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"storage": {Usernames: []string{"a", "a"}}},
			}),
			[]string{`selector.user.target_usernames["storage"].usernames repeated.unique`},
		},
		{
			"UserWith101NamesAtTarget",
			forUser(&endsessionv1.User{
				Id: "alice", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"storage": {Usernames: many(101, "a%d")}},
			}),
			[]string{`selector.user.target_usernames["storage"].usernames repeated.max_items`},
		},
		{
			"UserWithNameAtBadTarget",
			forUser(&endsessionv1.User{
				Id: "alice", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"": {Usernames: []string{"a"}}},
			}),
			[]string{`selector.user.target_usernames[""] string.target_name`},
		},

		{
			"UserWithNamesAt1000Targets",
			forUser(&endsessionv1.User{Id: "alice", TargetUsernames: namesAt(1000)}),
			nil,
		},
		{
			"UserWithNamesAt1001Targets",
			forUser(&endsessionv1.User{Id: "alice", TargetUsernames: namesAt(1001)}),
			[]string{"selector.user.target_usernames map.max_pairs"},
		},

		// Providers and groups.
		{
			"ProviderWithNothing",
			unconfirmed(&endsessionv1.Selector{User: alice, Provider: &endsessionv1.Provider{}}),
			[]string{"selector.provider.type required"},
		},
		{
			"ProviderOfUnknownType",
			unconfirmed(&endsessionv1.Selector{User: alice, Provider: &endsessionv1.Provider{Type: "SAML"}}),
			[]string{"selector.provider.type string.in"},
		},
		{
			"ProviderWithBlankName",
			unconfirmed(&endsessionv1.Selector{User: alice, Provider: &endsessionv1.Provider{Type: "saml", Name: new("")}}),
			[]string{"selector.provider.name string.given.blank"},
		},
		{
			"ProviderWithName",
			unconfirmed(&endsessionv1.Selector{
				User: alice, Provider: &endsessionv1.Provider{Type: "saml", Name: new("okta")},
			}),
			nil,
		},
		{
			"BlankGroupBesideUser",
			unconfirmed(&endsessionv1.Selector{User: alice, Group: new("")}),
			[]string{"selector.group string.given.blank"},
		},

		// Targets.
		{"1000Targets", aliceAnd(func(r *invalidate) { r.Targets = many(1000, "t%d") }), nil},
		{
			"1001Targets",
			aliceAnd(func(r *invalidate) { r.Targets = many(1001, "t%d") }),
			[]string{"targets repeated.max_items"},
		},
		{
			"OneTargetTwice",
			aliceAnd(func(r *invalidate) { r.Targets = []string{"apm", "apm"} }),
			[]string{"targets repeated.unique"},
		},
		{
			"BlankTarget",
			aliceAnd(func(r *invalidate) { r.Targets = []string{"apm", ""} }),
			[]string{"targets[1] string.target_name"},
		},

		// For the audit.
		{
			"AuditFields",
			aliceAnd(func(r *invalidate) {
				r.Reason, r.OnBehalfOf = new("left the company"), new("bob")
				r.Labels = map[string]string{"ticket": "INC-1", "0_.-": "x"}
			}),
			nil,
		},
		{"LongReason", aliceAnd(func(r *invalidate) { r.Reason = new(strings.Repeat("é", 256)) }), nil},
		{
			"TooLongReason",
			aliceAnd(func(r *invalidate) { r.Reason = new(strings.Repeat("é", 256) + "x") }),
			[]string{"reason string.max_bytes"},
		},
		{"BlankReason", aliceAnd(func(r *invalidate) { r.Reason = new("\n") }), []string{"reason string.given.blank"}},
		{
			"TooLongOnBehalfOf",
			aliceAnd(func(r *invalidate) { r.OnBehalfOf = new(strings.Repeat("x", 513)) }),
			[]string{"on_behalf_of string.max_bytes"},
		},
		{
			"BlankOnBehalfOf",
			aliceAnd(func(r *invalidate) { r.OnBehalfOf = new("") }),
			[]string{"on_behalf_of string.given.blank"},
		},
		{"16Labels", aliceAnd(func(r *invalidate) { r.Labels = manyPairs(16) }), nil},
		{"17Labels", aliceAnd(func(r *invalidate) { r.Labels = manyPairs(17) }), []string{"labels map.max_pairs"}},
		{
			"BlankLabelValue",
			aliceAnd(func(r *invalidate) { r.Labels = map[string]string{"a": ""} }),
			[]string{`labels["a"] string.given.blank`},
		},
		{
			"LongLabelValue",
			aliceAnd(func(r *invalidate) { r.Labels = map[string]string{"a": strings.Repeat("é", 256)} }),
			nil,
		},
		{
			"TooLongLabelValue",
			aliceAnd(func(r *invalidate) { r.Labels = map[string]string{"a": strings.Repeat("é", 257)} }),
			[]string{`labels["a"] string.max_len`},
		},
		{
			"BadLabelKey",
			aliceAnd(func(r *invalidate) { r.Labels = map[string]string{"A": "x"} }),
			[]string{`labels["A"] string.label_key`},
		},

		// The rest of the request.
		{
			"OtherFields",
			aliceAnd(func(r *invalidate) {
				r.RequestId, r.ValidateOnly, r.AllowUnsupported = new(someRequestID), new(true), new(true)
				r.Priority = endsessionv1.Priority_PRIORITY_BULK
				r.WaitTimeout, r.RetryFor = durationpb.New(5*time.Minute), durationpb.New(30*24*time.Hour)
			}),
			nil,
		},
		{"NoWait", aliceAnd(func(r *invalidate) { r.WaitTimeout = durationpb.New(0) }), nil},
		{
			"NegativeWait",
			aliceAnd(func(r *invalidate) { r.WaitTimeout = durationpb.New(-1) }),
			[]string{"wait_timeout duration.gte_lte"},
		},
		{
			"TooLongWait",
			aliceAnd(func(r *invalidate) { r.WaitTimeout = durationpb.New(5*time.Minute + 1) }),
			[]string{"wait_timeout duration.gte_lte"},
		},
		{
			"RetryForNoTime",
			aliceAnd(func(r *invalidate) { r.RetryFor = durationpb.New(0) }),
			[]string{"retry_for duration.gt_lte"},
		},
		{
			"RetryForTooLong",
			aliceAnd(func(r *invalidate) { r.RetryFor = durationpb.New(30*24*time.Hour + 1) }),
			[]string{"retry_for duration.gt_lte"},
		},
		{
			"EmptyRequestID",
			aliceAnd(func(r *invalidate) { r.RequestId = new("") }),
			[]string{"request_id string.uuid_empty"},
		},
		{
			"BadRequestID",
			aliceAnd(func(r *invalidate) { r.RequestId = new("1") }),
			[]string{"request_id string.uuid"},
		},
		{
			"UnknownPriority",
			aliceAnd(func(r *invalidate) { r.Priority = 7 }),
			[]string{"priority enum.defined_only"},
		},

		// The other requests.
		{"Get", &endsessionv1.GetInvalidationRequest{Name: someInvalidation, WaitTimeout: durationpb.New(0)}, nil},
		{"GetNothing", &endsessionv1.GetInvalidationRequest{}, []string{"name required"}},
		{
			"GetTooLongWait",
			&endsessionv1.GetInvalidationRequest{Name: someInvalidation, WaitTimeout: durationpb.New(5*time.Minute + 1)},
			[]string{"wait_timeout duration.gte_lte"},
		},
		{
			"GetNegativeWait",
			&endsessionv1.GetInvalidationRequest{Name: someInvalidation, WaitTimeout: durationpb.New(-1)},
			[]string{"wait_timeout duration.gte_lte"},
		},
		{"List", &endsessionv1.ListInvalidationsRequest{}, nil},
		{
			"ListWithEverything",
			&endsessionv1.ListInvalidationsRequest{
				State:  endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED,
				Target: new("apm"), Caller: new("helpdesk"), UserId: new("alice"),
				Label:          []string{"ticket=INC-1", "job=a=b"},
				CreateTimeFrom: timestamppb.New(time.Unix(1, 0)), CreateTimeTo: timestamppb.New(time.Unix(2, 0)),
				PageSize: 1000, PageToken: strings.Repeat("x", 1024),
			},
			nil,
		},
		{
			"ListWithBlanks",
			&endsessionv1.ListInvalidationsRequest{
				Target: new(""), Caller: new(""), UserId: new(""), Label: []string{""},
			},
			[]string{
				"caller string.given.blank", "label[0] string.label", "target string.target_name",
				"user_id string.given.blank",
			},
		},
		{
			"ListUnknownState",
			&endsessionv1.ListInvalidationsRequest{State: 6},
			[]string{"state enum.defined_only"},
		},
		{
			"ListEmptySpan",
			&endsessionv1.ListInvalidationsRequest{
				CreateTimeFrom: timestamppb.New(time.Unix(1, 0)), CreateTimeTo: timestamppb.New(time.Unix(1, 0)),
			},
			[]string{"create_time_to.after_from"},
		},
		{"ListSince", &endsessionv1.ListInvalidationsRequest{CreateTimeFrom: timestamppb.New(time.Unix(1, 0))}, nil},
		{"ListUntil", &endsessionv1.ListInvalidationsRequest{CreateTimeTo: timestamppb.New(time.Unix(1, 0))}, nil},
		{
			"ListOneLabelTwice",
			&endsessionv1.ListInvalidationsRequest{Label: []string{"a=b", "a=b"}},
			[]string{"label repeated.unique"},
		},
		{
			"List17Labels",
			&endsessionv1.ListInvalidationsRequest{Label: many(17, "k%d=v")},
			[]string{"label repeated.max_items"},
		},
		{
			"ListNegativePage",
			&endsessionv1.ListInvalidationsRequest{PageSize: -1},
			[]string{"page_size int32.gte_lte"},
		},
		{
			"ListTooMuch",
			&endsessionv1.ListInvalidationsRequest{PageSize: 1001, PageToken: strings.Repeat("x", 1025)},
			[]string{"page_size int32.gte_lte", "page_token string.max_len"},
		},
		{"Watch", &endsessionv1.WatchInvalidationRequest{Name: someInvalidation}, nil},
		{"WatchNothing", &endsessionv1.WatchInvalidationRequest{}, []string{"name required"}},
		{
			"WatchBadName",
			&endsessionv1.WatchInvalidationRequest{Name: "invalidations/1"},
			[]string{"name string.invalidation_name"},
		},
		{"Cancel", &endsessionv1.CancelInvalidationRequest{Name: someInvalidation}, nil},
		{"CancelNothing", &endsessionv1.CancelInvalidationRequest{}, []string{"name required"}},
		{
			"CancelBadName",
			&endsessionv1.CancelInvalidationRequest{Name: "invalidations/1"},
			[]string{"name string.invalidation_name"},
		},
		{"CancelMany", &endsessionv1.CancelInvalidationsRequest{Label: "job=a"}, nil},
		{"CancelManyOfNothing", &endsessionv1.CancelInvalidationsRequest{}, []string{"label required"}},
		{"CancelManyOfBlank", &endsessionv1.CancelInvalidationsRequest{Label: "job="}, []string{"label string.label"}},
		{
			"Retry",
			&endsessionv1.RetryInvalidationRequest{
				Name: someInvalidation, ConfirmBroad: new(true), RequestId: new(someRequestID), Reason: new("again"),
				WaitTimeout: durationpb.New(0), RetryFor: durationpb.New(1),
			},
			nil,
		},
		{
			"RetryWithBlanks",
			&endsessionv1.RetryInvalidationRequest{
				RequestId: new(""), Reason: new(""), WaitTimeout: durationpb.New(-1), RetryFor: durationpb.New(0),
			},
			[]string{
				"name required", "reason string.given.blank", "request_id string.uuid_empty",
				"retry_for duration.gt_lte", "wait_timeout duration.gte_lte",
			},
		},
		{
			"RetryBadNameTooLong",
			&endsessionv1.RetryInvalidationRequest{
				Name: "invalidations/1", WaitTimeout: durationpb.New(5*time.Minute + 1),
				RetryFor: durationpb.New(30*24*time.Hour + 1),
			},
			[]string{
				"name string.invalidation_name", "retry_for duration.gt_lte", "wait_timeout duration.gte_lte",
			},
		},
		{
			"RetryTooLongReason",
			&endsessionv1.RetryInvalidationRequest{Name: someInvalidation, Reason: new(strings.Repeat("x", 513))},
			[]string{"reason string.max_bytes"},
		},
		{"ListTargets", &endsessionv1.ListTargetsRequest{}, nil},
		{"Check", &endsessionv1.CheckTargetRequest{Target: "apm"}, nil},
		{"CheckNothing", &endsessionv1.CheckTargetRequest{}, []string{"target required"}},
		{"CheckBadName", &endsessionv1.CheckTargetRequest{Target: "a/b"}, []string{"target string.target_name"}},
		{"Pause", &endsessionv1.PauseTargetRequest{Target: "apm", Reason: new("upgrade")}, nil},
		{
			"PauseWithBlanks",
			&endsessionv1.PauseTargetRequest{Reason: new("")},
			[]string{"reason string.given.blank", "target required"},
		},
		{
			"PauseBadName",
			&endsessionv1.PauseTargetRequest{Target: "a/b"},
			[]string{"target string.target_name"},
		},
		{
			"PauseTooLongReason",
			&endsessionv1.PauseTargetRequest{Target: "apm", Reason: new(strings.Repeat("x", 513))},
			[]string{"reason string.max_bytes"},
		},
		{"Resume", &endsessionv1.ResumeTargetRequest{Target: "apm"}, nil},
		{"ResumeBadName", &endsessionv1.ResumeTargetRequest{Target: "a/b"}, []string{"target string.target_name"}},
		{"ResumeNothing", &endsessionv1.ResumeTargetRequest{}, []string{"target required"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := violations(t, test.msg)
			if !slices.Equal(got, test.want) {
				t.Errorf("message %v\n got %q\nwant %q", test.msg, got, test.want)
			}
		})
	}
}

// TestValues asks for the rules that single values of several fields share.
func TestValues(t *testing.T) {
	tests := []struct {
		name  string
		value string
		rule  string // empty: accepted
		make  func(value string) proto.Message
	}{
		{"GivenLetters", "alice", "", userID},
		{"GivenOtherScript", "アリス", "", userID},
		{"GivenInnerSpace", " alice b ", "", userID},
		{"GivenPunctuation", "*", "", userID},
		{"GivenInvisibleInside", "a\u200db", "", userID},
		{"GivenSpace", " ", "string.given.blank", userID},
		{"GivenTabsAndLines", "\t\r\n\v\f", "string.given.blank", userID},
		{"GivenNoBreakSpace", "\u00a0", "string.given.blank", userID},
		{"GivenNextLine", "\u0085", "string.given.blank", userID},
		{"GivenIdeographicSpace", "\u3000", "string.given.blank", userID},
		{"GivenLineSeparators", "\u2028\u2029", "string.given.blank", userID},
		{"GivenZeroWidth", "\u200b\ufeff", "string.given.blank", userID},
		{"GivenNUL", "al\x00ice", "string.given.nul", userID},
		{"Given1024Characters", strings.Repeat("é", 1024), "", userID},
		{"Given1025Characters", strings.Repeat("é", 1025), "string.given.length", userID},

		{"TargetNameOne", "a", "", targetName},
		{"TargetNameInnerHyphens", "kibana--prod-2", "", targetName},
		{"TargetName63", strings.Repeat("a", 63), "", targetName},
		{"TargetName64", strings.Repeat("a", 64), "string.target_name", targetName},
		{"TargetNameUpperCase", "Apm", "string.target_name", targetName},
		{"TargetNameHyphenFirst", "-apm", "string.target_name", targetName},
		{"TargetNameHyphenLast", "apm-", "string.target_name", targetName},
		{"TargetNameSpace", "a pm", "string.target_name", targetName},
		{"TargetNameNewLine", "apm\n", "string.target_name", targetName},

		{"InvalidationName", someInvalidation, "", invalidationName},
		{"InvalidationNameUpperCase", strings.ToUpper(someInvalidation), "string.invalidation_name", invalidationName},
		{"InvalidationNameOfOther", "targets/" + someRequestID, "string.invalidation_name", invalidationName},
		{"InvalidationNameWithoutFolder", someRequestID, "string.invalidation_name", invalidationName},
		{"InvalidationNameWithMore", someInvalidation + "/x", "string.invalidation_name", invalidationName},
		{"InvalidationNameWithMoreBefore", "x" + someInvalidation, "string.invalidation_name", invalidationName},
		{"InvalidationNameNewLine", someInvalidation + "\n", "string.invalidation_name", invalidationName},

		{"LabelKeyAll", "0a_.-", "", labelKey},
		{"LabelKey64", strings.Repeat("a", 64), "", labelKey},
		{"LabelKey65", strings.Repeat("a", 65), "string.label_key", labelKey},
		{"LabelKeyEmpty", "", "string.label_key", labelKey},
		{"LabelKeyDotFirst", ".a", "string.label_key", labelKey},
		{"LabelKeySpace", "a b", "string.label_key", labelKey},

		{"Label", "ticket=INC-1", "", label},
		{"LabelOfLines", "a=\nb", "", label},
		{"LabelLongest", strings.Repeat("a", 64) + "=" + strings.Repeat("é", 256), "", label},
		{"LabelTooLong", strings.Repeat("a", 64) + "=" + strings.Repeat("é", 257), "string.label", label},
		{"LabelWithoutValue", "ticket", "string.label", label},
		{"LabelBlankValue", "ticket=\u00a0", "string.label", label},
		{"LabelWithoutKey", "=INC-1", "string.label", label},
		{"LabelInvisibleValue", "ticket=\u200b", "string.label", label},
		{"LabelLongKey", strings.Repeat("a", 65) + "=x", "string.label", label},
		{"LabelNUL", "ticket=a\x00", "string.label", label},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := violations(t, test.make(test.value))
			switch {
			case test.rule == "" && len(got) > 0:
				t.Errorf("value %q\n got %q\nwant it accepted", test.value, got)
			case test.rule != "" && (len(got) != 1 || !strings.HasSuffix(got[0], " "+test.rule)):
				t.Errorf("value %q\n got %q\nwant %q", test.value, got, test.rule)
			}
		})
	}
}

func userID(v string) proto.Message {
	return forUser(&endsessionv1.User{Id: v})
}

func targetName(v string) proto.Message {
	return &endsessionv1.CheckTargetRequest{Target: v}
}

func invalidationName(v string) proto.Message {
	return &endsessionv1.GetInvalidationRequest{Name: v}
}

func labelKey(v string) proto.Message {
	return aliceAnd(func(r *endsessionv1.InvalidateSessionsRequest) { r.Labels = map[string]string{v: "x"} })
}

func label(v string) proto.Message {
	return &endsessionv1.CancelInvalidationsRequest{Label: v}
}

// TestJSON holds the JSON of requests, as the documentation shows it, against the contract.
func TestJSON(t *testing.T) {
	for _, text := range []string{
		`{"selector": {"user": {"id": "alice"}, "provider": {"type": "saml", "name": "okta"}, "group": "vpn"}}`,
		`{"selector": {"user": {"id": "alice", "email": "alice@corp.example", "attributes": {"uid": "a17"},
		  "targetUsernames": {"storage": {"usernames": ["uid=a17,ou=people,dc=corp"]}}}}}`,
		`{"selector": {"sessions": [{"target": "apm", "device": "98901455-6384-47cd-bc41-00a39dfe338f", "id": "2a5d7604"}]}}`,
		`{"selector": {"all": true}, "confirmBroad": true}`,
		`{"selector": {"user": {"id": "alice"}}, "targets": ["apm"], "reason": "left", "onBehalfOf": "bob",
		  "labels": {"ticket": "INC-1"}, "requestId": "0197f3c2-5d11-7abc-8def-0123456789ab", "validateOnly": true,
		  "waitTimeout": "0s", "retryFor": "3600s", "allowUnsupported": true, "priority": "PRIORITY_BULK"}`,
	} {
		var req endsessionv1.InvalidateSessionsRequest
		if err := protojson.Unmarshal([]byte(text), &req); err != nil {
			t.Errorf("request %s\n got %v\nwant it read", text, err)
			continue
		}
		if got := violations(t, &req); got != nil {
			t.Errorf("request %s\n got %q\nwant it accepted", text, got)
		}
	}
}

// TestReasonsAreDocumented holds the list of reasons that callers read against those that the code has.
func TestReasonsAreDocumented(t *testing.T) {
	contract, err := os.ReadFile("error.proto")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, dir := range []string{"../../../adapters", "../../../server"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			for _, reason := range reasons(t, path) {
				found++
				if !strings.Contains(string(contract), "`"+reason+"`") {
					t.Errorf("%s is in %s but not documented in error.proto", reason, path)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("no reasons were found: was the type Reason renamed?")
	}
}

// reasons are the values of the constants of type Reason in a Go file.
func reasons(t *testing.T, path string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		switch typ := spec.Type.(type) {
		case *ast.Ident:
			ok = typ.Name == "Reason"
		case *ast.SelectorExpr:
			ok = typ.Sel.Name == "Reason"
		default:
			ok = false
		}
		for _, value := range spec.Values {
			lit, isLit := value.(*ast.BasicLit)
			if !ok || !isLit {
				continue
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			values = append(values, text)
		}
		return true
	})
	return values
}
