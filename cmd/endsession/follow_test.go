package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// seen is a view that notes what it is told.
type seen struct {
	shown  []int64 // revisions
	states []string
	ticks  int
	losses []string
	ended  int
}

func (v *seen) show(inv *endsessionv1.Invalidation) {
	v.shown = append(v.shown, inv.GetRevision())
	v.states = append(v.states, stateWord(inv.GetState()))
}
func (v *seen) tick()              { v.ticks++ }
func (v *seen) lost(reason string) { v.losses = append(v.losses, reason) }
func (v *seen) end(*endsessionv1.Invalidation) error {
	v.ended++
	return nil
}

// shaky is a client whose watches go wrong.
type shaky struct {
	endsessionv1.SessionServiceClient
	// watches says what happens to each watch in turn; those after the last one work.
	watches []func(ctx context.Context, watch stream) (stream, error)
	begun   int
}

type stream = grpc.ServerStreamingClient[endsessionv1.WatchInvalidationResponse]

func (c *shaky) WatchInvalidation(ctx context.Context, req *endsessionv1.WatchInvalidationRequest, o ...grpc.CallOption) (stream, error) {
	watch, err := c.SessionServiceClient.WatchInvalidation(ctx, req, o...)
	c.begun++
	if err != nil || c.begun > len(c.watches) {
		return watch, err
	}
	return c.watches[c.begun-1](ctx, watch)
}

// cutStream is a watch that ends after some messages.
type cutStream struct {
	stream
	messages int
	end      func() error
	change   func(*endsessionv1.Invalidation)
}

func (s *cutStream) Recv() (*endsessionv1.WatchInvalidationResponse, error) {
	if s.messages == 0 {
		return nil, s.end()
	}
	s.messages--
	msg, err := s.stream.Recv()
	if err == nil && s.change != nil {
		s.change(msg.GetInvalidation())
	}
	return msg, err
}

// breaks is a watch that ends with an error after some messages, refusedWatch is one that does not begin.
func breaks(messages int, err error) func(context.Context, stream) (stream, error) {
	return func(_ context.Context, watch stream) (stream, error) {
		return &cutStream{stream: watch, messages: messages, end: func() error { return err }}, nil
	}
}

func refusedWatch(err error) func(context.Context, stream) (stream, error) {
	return func(context.Context, stream) (stream, error) { return nil, err }
}

// silent is a watch that says nothing after its first message, and does not end.
func silent(ctx context.Context, watch stream) (stream, error) {
	return &cutStream{stream: watch, messages: 1, end: func() error { <-ctx.Done(); return status.FromContextError(ctx.Err()).Err() }}, nil
}

// behind is a watch that tells old news, as that of a replica that has not heard the latest.
func behind(_ context.Context, watch stream) (stream, error) {
	return &cutStream{stream: watch, messages: 1, end: func() error { return io.EOF },
		change: func(inv *endsessionv1.Invalidation) {
			inv.Revision, inv.State = 0, endsessionv1.InvalidationState_INVALIDATION_STATE_UNSPECIFIED
		}}, nil
}

// TestFollow looks at an invalidation whose target takes a minute, through watches that go wrong.
func TestFollow(t *testing.T) {
	t.Parallel()
	unavailable := status.Error(codes.Unavailable, "the network is gone")
	for name, test := range map[string]struct {
		watches []func(context.Context, stream) (stream, error)
		wait    time.Duration
		// interrupt ends the looking after that time.
		interrupt time.Duration
		state     string
		lost      string        // begins the reasons of every loss
		after     time.Duration // how long it took; about a minute if 0
		err       string
	}{
		"ToTheEnd":          {wait: forEver, state: "SUCCEEDED"},
		"WithinTheWait":     {wait: 5 * time.Minute, state: "SUCCEEDED"},
		"TheWaitIsOver":     {wait: 45 * time.Second, state: "RUNNING", after: 45 * time.Second},
		"NoWait":            {state: "RUNNING", after: 1},
		"Interrupted":       {wait: forEver, interrupt: 7 * time.Second, state: "RUNNING", after: 7 * time.Second},
		"Broken":            {watches: []func(context.Context, stream) (stream, error){breaks(1, unavailable), refusedWatch(unavailable), breaks(0, unavailable), breaks(1, unavailable)}, wait: forEver, state: "SUCCEEDED", lost: "the network is gone"},
		"BrokenAtTheEnd":    {watches: []func(context.Context, stream) (stream, error){breaks(1, unavailable)}, wait: time.Second / 10, state: "RUNNING", lost: "the network is gone", after: time.Second / 10},
		"EndedTooEarly":     {watches: []func(context.Context, stream) (stream, error){breaks(1, io.EOF)}, wait: forEver, state: "SUCCEEDED", lost: "the stream ended too early"},
		"Silent":            {watches: []func(context.Context, stream) (stream, error){silent}, wait: forEver, state: "SUCCEEDED", lost: "nothing came for too long"},
		"Behind":            {watches: []func(context.Context, stream) (stream, error){behind}, wait: forEver, state: "SUCCEEDED", lost: "the stream ended too early"},
		"NobodyAnyMore":     {watches: []func(context.Context, stream) (stream, error){refusedWatch(status.Error(codes.Unauthenticated, "the token is over"))}, wait: forEver, state: "RUNNING", after: 1, err: "goes on, but cannot be watched: the token is over (Unauthenticated)"},
		"RemovedMeanwhile":  {watches: []func(context.Context, stream) (stream, error){breaks(1, status.Error(codes.NotFound, "there is none"))}, wait: forEver, state: "RUNNING", after: 1, err: "there is none (NotFound)"},
		"ADefectPassesAway": {watches: []func(context.Context, stream) (stream, error){refusedWatch(status.Error(codes.Internal, "oh"))}, wait: forEver, state: "SUCCEEDED", lost: "oh (Internal)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := startInMemory(t, newLab(), memoryDir(t, nil))
				client := &shaky{SessionServiceClient: endsessionv1.NewSessionServiceClient(g.grpc), watches: test.watches}
				inv := slowly(t, g, client)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if test.interrupt > 0 {
					time.AfterFunc(test.interrupt, stop)
				}
				v := &seen{}
				began := time.Now()
				last, err := (&follower{client: client, view: v}).follow(ctx, inv, test.wait)
				took := time.Since(began)
				if got := fmt.Sprint(err); (err != nil || test.err != "") && (!strings.HasSuffix(got, test.err) || test.err == "") {
					t.Errorf("error %v, want %q", err, test.err)
				}
				if exit := new(exitError); test.err != "" && (!errors.As(err, &exit) || exit.status != exitStillRunning) {
					t.Errorf("%v has not the exit status %d", err, exitStillRunning)
				}
				if got := stateWord(last.GetState()); got != test.state || v.ended != 1 || v.states[len(v.states)-1] != test.state {
					t.Errorf("at last it is %s, want %s; shown was %v, ended %d times", got, test.state, v.states, v.ended)
				}
				for i := range v.shown[1:] {
					if v.shown[i+1] < v.shown[i] {
						t.Errorf("shown were revisions %d", v.shown)
					}
				}
				if test.after > 0 && (took < test.after-time.Millisecond || took > test.after+time.Second/4) || test.after == 0 && took < time.Minute {
					t.Errorf("it took %v, want %v", took, test.after)
				}
				if test.after == 0 && v.ticks < 59 {
					t.Errorf("%d ticks in %v", v.ticks, took)
				}
				if name == "ToTheEnd" && len(v.shown) < 4 {
					t.Errorf("heartbeats were not shown: %d", v.shown)
				}
				if (test.lost != "") != (len(v.losses) > 0) {
					t.Errorf("lost for %q, want %q", v.losses, test.lost)
				}
				for _, reason := range v.losses {
					if !strings.HasPrefix(reason, test.lost) {
						t.Errorf("lost for %q, want %q", reason, test.lost)
					}
				}
				// Whatever happened to the looking, the invalidation goes on.
				resp, err := client.GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{Name: inv.GetName(), WaitTimeout: durationpb.New(longestWait)})
				if err != nil || resp.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED {
					t.Errorf("it became %v, %v", resp, err)
				}
			})
		})
	}
}

// slowly begins to end alice's sessions at a target that takes a minute.
func slowly(t *testing.T, g *memoryGateway, client endsessionv1.SessionServiceClient) *endsessionv1.Invalidation {
	t.Helper()
	apm := g.lab.systems["apm"].(*bigiqtest.Server)
	apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	time.AfterFunc(time.Minute, func() { apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = false }) })
	resp, err := client.InvalidateSessions(t.Context(), slowCall())
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetInvalidation()
}

func slowCall() *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}}, Targets: []string{"apm"},
		WaitTimeout: durationpb.New(0), RequestId: proto.String(uuid.NewString())}
}

// TestFollowWithoutTheRightToRead: who may end sessions hears what became of them, although no watch is allowed.
func TestFollowWithoutTheRightToRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := startInMemory(t, newLab(), memoryDir(t, func(text string) string {
			return text + "\npolicy: [ { name: end-only, rights: [invalidate, preview], allow: 'true' } ]\n"
		}))
		client := &shaky{SessionServiceClient: endsessionv1.NewSessionServiceClient(g.grpc)}
		req := slowCall()
		apm := g.lab.systems["apm"].(*bigiqtest.Server)
		apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
		time.AfterFunc(time.Minute, func() { apm.Change(func(q *bigiqtest.Quirks) { q.Stuck = false }) })
		resp, err := client.InvalidateSessions(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{Name: resp.GetInvalidation().GetName()}); status.Code(err) != codes.NotFound {
			t.Fatalf("it can be read: %v", err)
		}
		v := &seen{}
		last, err := (&follower{client: client, view: v, again: func(ctx context.Context, wait time.Duration) (*endsessionv1.Invalidation, error) {
			req.WaitTimeout = durationpb.New(wait)
			resp, err := client.InvalidateSessions(ctx, req)
			if err == nil && !resp.GetReplayed() {
				t.Error("a second invalidation was begun")
			}
			return resp.GetInvalidation(), err
		}}).follow(t.Context(), resp.GetInvalidation(), forEver)
		if err != nil || stateWord(last.GetState()) != "SUCCEEDED" || len(v.losses) > 0 {
			t.Errorf("%v, %v, lost for %q", last, err, v.losses)
		}
	})
}

// TestAccept: what is not known of a call is asked for once, and then said.
func TestAccept(t *testing.T) {
	t.Parallel()
	gone := status.Error(codes.Unavailable, "the connection broke")
	for name, test := range map[string]struct {
		// lost are the answers of the calls in turn that do not arrive, and come as this error.
		lost  []error
		calls int
		says  string // of the error; empty if there is none
		hint  bool
	}{
		"Arrives":       {calls: 1},
		"LostOnce":      {lost: []error{gone}, calls: 2},
		"LostTwice":     {lost: []error{gone, gone}, calls: 2, says: "the connection broke (Unavailable)", hint: true},
		"Refused":       {lost: []error{status.Error(codes.PermissionDenied, "no")}, calls: 1, says: "no"},
		"NotJournalled": {lost: []error{gatewaySays(t, "NOT_ACCEPTED")}, calls: 1, says: "in a word"},
		"CommitUnknown": {lost: []error{gatewaySays(t, "ACCEPTANCE_UNKNOWN")}, calls: 2},
		"RefusedAtLast": {lost: []error{gone, status.Error(codes.PermissionDenied, "no")}, calls: 2, says: "no", hint: true},
		"BusyAtLast":    {lost: []error{gone, gatewaySays(t, "NOT_ACCEPTED")}, calls: 2, says: "in a word", hint: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := startInMemory(t, newLab(), memoryDir(t, nil))
				client := endsessionv1.NewSessionServiceClient(g.grpc)
				req, calls := slowCall(), 0
				resp, err := accept(t.Context(), req.GetRequestId(), func(ctx context.Context, o ...grpc.CallOption) (*endsessionv1.InvalidateSessionsResponse, error) {
					resp, err := client.InvalidateSessions(ctx, req, o...)
					if calls++; err == nil && calls <= len(test.lost) {
						return nil, test.lost[calls-1]
					}
					return resp, err
				})
				if calls != test.calls || (err == nil) != (test.says == "") || err == nil && resp.GetInvalidation() == nil {
					t.Errorf("%d calls, want %d: %v, %v", calls, test.calls, resp, err)
				}
				if err != nil {
					if !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "--request-id "+req.GetRequestId()) != test.hint {
						t.Errorf("%q, want %q", err, test.says)
					}
					if exit := new(exitError); test.hint && (!errors.As(callError(err), &exit) || exit.status != exitNotAccepted) {
						t.Errorf("%v has not the exit status %d", err, exitNotAccepted)
					}
				}
				list, err := client.ListInvalidations(t.Context(), &endsessionv1.ListInvalidationsRequest{})
				if err != nil || len(list.GetInvalidations()) != 1 {
					t.Errorf("accepted were %v, %v", list, err)
				}
			})
		})
	}
}

// gatewaySays is an error of the gateway's own.
func gatewaySays(t *testing.T, reason string) error {
	t.Helper()
	st, err := status.New(codes.Unavailable, "in a word").WithDetails(&errdetails.ErrorInfo{Domain: "endsession", Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

// TestAcceptIsNotCutOff: an interruption does not take away an answer that is on its way, but ends a call without one.
func TestAcceptIsNotCutOff(t *testing.T) {
	for name, late := range map[string]time.Duration{"InTime": grace / 2, "TooLate": 2 * grace} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, interrupt := context.WithCancel(t.Context())
				interrupt()
				began := time.Now()
				got, err := accept(ctx, "id", func(ctx context.Context, _ ...grpc.CallOption) (string, error) {
					select {
					case <-time.After(late):
						return "accepted", nil
					case <-ctx.Done():
						return "", status.FromContextError(ctx.Err()).Err()
					}
				})
				if took, inTime := time.Since(began), late < grace; (err == nil) != inTime || (got != "") != inTime || took != min(late, grace) {
					t.Errorf("%q, %v after %v", got, err, took)
				}
			})
		})
	}
}

// noWatch is a client of a caller who may not read.
type noWatch struct {
	endsessionv1.SessionServiceClient
}

func (noWatch) WatchInvalidation(context.Context, *endsessionv1.WatchInvalidationRequest, ...grpc.CallOption) (stream, error) {
	return nil, status.Error(codes.PermissionDenied, "no")
}

// TestFollowRepeatsACallThatIsNotAnswered: a connection that is dead without anybody's having said so holds nobody up.
func TestFollowRepeatsACallThatIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		calls, view := 0, &seen{}
		inv := &endsessionv1.Invalidation{Name: "invalidations/1", State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING}
		f := &follower{client: noWatch{}, view: view, again: func(ctx context.Context, _ time.Duration) (*endsessionv1.Invalidation, error) {
			if calls++; calls == 1 {
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			return &endsessionv1.Invalidation{Name: inv.GetName(), Revision: 1, State: endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED}, nil
		}}
		last, err := f.follow(ctx, inv, forEver)
		if err != nil || !final(last) || len(view.losses) != 1 {
			t.Errorf("%v after %d calls, %d losses: %v", last, calls, len(view.losses), err)
		}
	})
}
