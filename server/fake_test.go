package server_test

import (
	"context"
	"encoding/json"
	"iter"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/invalidation"
)

// fakeEngine notes what it is asked, and answers with an invalidation that says the same, or with an error.
type fakeEngine struct {
	mu    sync.Mutex
	calls []any
	err   error

	// Where set, they take the place of the answers below.
	invalidate func(context.Context, invalidation.Request) (invalidation.Invalidation, bool, error)
	get        func(context.Context, string, time.Duration) (invalidation.Invalidation, error)
	watch      func(context.Context, string) iter.Seq2[invalidation.Invalidation, error]
	list       func(invalidation.Query) ([]invalidation.Invalidation, bool, error)
	check      func(context.Context) error
	ready      func() error
	close      func(context.Context) error
}

var _ server.Engine = (*fakeEngine)(nil)

const someID = "0197f3c2-5d11-7abc-8def-0123456789ab"

var someTime = time.Date(2026, 8, 31, 12, 0, 0, 0, time.UTC)

func (e *fakeEngine) reset(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls, e.err = nil, err
}

// called is what the engine was asked since it was reset, as JSON.
func (e *fakeEngine) called() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	text := ""
	for _, c := range e.calls {
		b, err := json.Marshal(c)
		if err != nil {
			return err.Error()
		}
		text += string(b) + "\n"
	}
	return text
}

// note notes what was asked, under the method's name.
func (e *fakeEngine) note(method string, asked ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, map[string]any{method: asked})
	return e.err
}

func (e *fakeEngine) Invalidate(ctx context.Context, req invalidation.Request) (invalidation.Invalidation, bool, error) {
	if e.invalidate != nil {
		return e.invalidate(ctx, req)
	}
	if err := e.note("Invalidate", req); err != nil {
		return invalidation.Invalidation{}, false, err
	}
	inv := succeeded()
	inv.Caller, inv.Call = req.Caller, req.Call
	if req.Wait == 0 {
		inv.State, inv.CompleteTime = invalidation.Running, time.Time{}
		inv.Runs = []invalidation.Run{{Target: "apm", Kind: "bigiq", State: invalidation.RunPending, ExpireTime: someTime.Add(time.Hour)}}
	}
	return inv, req.RequestID != "", nil
}

func (e *fakeEngine) Preview(_ context.Context, caller invalidation.Caller, call invalidation.Call) ([]invalidation.TargetPreview, error) {
	if err := e.note("Preview", caller, call); err != nil {
		return nil, err
	}
	return []invalidation.TargetPreview{
		{
			Target: "storage", Kind: "element", Preview: adapters.Preview{
				Summary:  []string{"delete 1 session"},
				Requests: []adapters.PlannedRequest{{Method: "POST", URL: "https://mvip.example/json-rpc/12.0", Body: "{}"}},
				Listed:   true, Sessions: []adapters.Session{someSession()}, Covered: []string{"Ldap"},
				Warnings: []adapters.Warning{{Code: adapters.WarnNotInDirectory, Message: "not known"}},
			}, SessionsTruncated: true,
		},
		{
			Target: "apm", Kind: "bigiq", Unsupported: true,
			Err: &invalidation.RunError{Reason: adapters.ReasonUnknownProvider, Message: "no such provider"},
		},
	}, nil
}

func (e *fakeEngine) Get(ctx context.Context, caller invalidation.Caller, id string, wait time.Duration) (invalidation.Invalidation, error) {
	if e.get != nil {
		return e.get(ctx, id, wait)
	}
	if err := e.note("Get", caller, id, wait); err != nil {
		return invalidation.Invalidation{}, err
	}
	return everything(), nil
}

func (e *fakeEngine) List(_ context.Context, caller invalidation.Caller, q invalidation.Query) ([]invalidation.Invalidation, bool, error) {
	if e.list != nil {
		return e.list(q)
	}
	if err := e.note("List", caller, q); err != nil {
		return nil, false, err
	}
	return []invalidation.Invalidation{succeeded()}, false, nil
}

func (e *fakeEngine) Watch(ctx context.Context, caller invalidation.Caller, id string) iter.Seq2[invalidation.Invalidation, error] {
	if e.watch != nil {
		return e.watch(ctx, id)
	}
	return func(yield func(invalidation.Invalidation, error) bool) {
		if err := e.note("Watch", caller, id); err != nil {
			yield(invalidation.Invalidation{}, err)
			return
		}
		running := succeeded()
		running.Revision, running.State, running.CompleteTime = 1, invalidation.Running, time.Time{}
		if yield(running, nil) {
			yield(succeeded(), nil)
		}
	}
}

func (e *fakeEngine) Cancel(_ context.Context, caller invalidation.Caller, id string) (invalidation.Invalidation, error) {
	return succeeded(), e.note("Cancel", caller, id)
}

func (e *fakeEngine) CancelByLabel(_ context.Context, caller invalidation.Caller, key, value string) (invalidation.CancelSummary, error) {
	return invalidation.CancelSummary{Cancelled: []string{someID}, AlreadyFinal: 2}, e.note("CancelByLabel", caller, key, value)
}

func (e *fakeEngine) Retry(_ context.Context, req invalidation.RetryRequest) (invalidation.Invalidation, bool, error) {
	inv := succeeded()
	inv.RetryOf = req.ID
	if req.Wait == 0 {
		inv.State = invalidation.Running
	}
	return inv, false, e.note("Retry", req)
}

func (e *fakeEngine) Targets(_ context.Context, caller invalidation.Caller) ([]invalidation.TargetStatus, error) {
	return []invalidation.TargetStatus{someTarget(), {Name: "storage", Kind: "element", State: invalidation.TargetParked}}, e.note("Targets", caller)
}

func (e *fakeEngine) CheckTarget(ctx context.Context, caller invalidation.Caller, target string) (adapters.Health, error) {
	if e.check != nil {
		return adapters.Health{}, e.check(ctx)
	}
	return someTarget().Health, e.note("CheckTarget", caller, target)
}

func (e *fakeEngine) PauseTarget(_ context.Context, caller invalidation.Caller, target, reason string) (invalidation.TargetStatus, error) {
	return someTarget(), e.note("PauseTarget", caller, target, reason)
}

func (e *fakeEngine) ResumeTarget(_ context.Context, caller invalidation.Caller, target string) (invalidation.TargetStatus, error) {
	return invalidation.TargetStatus{Name: target, Kind: "bigiq", State: invalidation.TargetActive}, e.note("ResumeTarget", caller, target)
}

func (e *fakeEngine) Ready(context.Context) error {
	if e.ready != nil {
		return e.ready()
	}
	return nil
}

func (e *fakeEngine) Close(ctx context.Context) error {
	if e.close != nil {
		return e.close(ctx)
	}
	return nil
}

func someSession() adapters.Session {
	return adapters.Session{
		ID: "2a5d7604", Device: "d1", Username: "alice", Provider: adapters.Provider{Type: "Ldap", Name: "corp"},
		Groups: []adapters.Group{{Kind: "access_group", Name: "administrator"}}, CreateTime: someTime,
		LastAccessTime: someTime.Add(time.Second), ExpireTime: someTime.Add(time.Hour),
	}
}

func someTarget() invalidation.TargetStatus {
	return invalidation.TargetStatus{
		Name: "apm", Kind: "bigiq", State: invalidation.TargetPaused,
		Pause:     &invalidation.Pause{Target: "apm", Caller: invalidation.Caller{Kind: "anonymous", Name: "anonymous"}, Reason: "upgrade", Time: someTime},
		Supported: []adapters.Criteria{adapters.ByUser, adapters.ByUser | adapters.ByGroup, adapters.BySessions},
		Health: adapters.Health{Version: "8.1", Checks: []adapters.Check{
			{Name: "reachable", Status: adapters.CheckOK, Message: "answers"},
			{Name: "credentials", Status: adapters.CheckFailed, Message: "refused", Remedy: "mend the password"},
		}},
		CheckTime: someTime,
	}
}

// succeeded is an invalidation whose target confirmed that no session was there.
func succeeded() invalidation.Invalidation {
	return invalidation.Invalidation{
		ID: someID, State: invalidation.Succeeded, Revision: 3,
		Call:       invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice"}}},
		Caller:     invalidation.Caller{Kind: "anonymous", Name: "anonymous"},
		CreateTime: someTime, CompleteTime: someTime.Add(time.Second),
		Runs: []invalidation.Run{{
			Target: "apm", Kind: "bigiq", State: invalidation.RunSucceeded, Counted: true, Attempts: 1,
			Verification: adapters.ConfirmedByRepeat, ExpireTime: someTime.Add(time.Hour), StartTime: someTime,
			CompleteTime: someTime.Add(time.Second),
		}},
	}
}

// everything is an invalidation with something in every field.
func everything() invalidation.Invalidation {
	return invalidation.Invalidation{
		ID: someID, State: invalidation.PartiallySucceeded, Revision: 9,
		Call: invalidation.Call{
			Selector: invalidation.Selector{
				User: &invalidation.User{
					ID: "alice", Email: "alice@corp.example", Attributes: map[string]string{"uid": "a17"},
					TargetUsernames: map[string][]string{"storage": {"uid=a17"}},
				},
				Provider: &invalidation.Provider{Type: "saml", Name: "okta"}, Group: "vpn",
			},
			Targets: []string{"apm"}, ConfirmBroad: true, AllowUnsupported: true, Reason: "left", OnBehalfOf: "bob",
			Labels: map[string]string{"ticket": "INC-1"}, Priority: invalidation.PriorityBulk, RetryFor: time.Hour,
		},
		Caller: invalidation.Caller{Kind: "api_key", Name: "helpdesk"}, RetryOf: "0197f3c2-5d11-7abc-8def-0123456789aa",
		CreateTime: someTime, CompleteTime: someTime.Add(time.Minute),
		Runs: []invalidation.Run{
			{
				Target: "storage", Kind: "element", State: invalidation.RunSucceeded, Counted: true, Count: 2,
				CountIsMinimum: true, Verification: adapters.ConfirmedByList, Sessions: []adapters.Session{someSession()},
				SessionsTruncated: true, Covered: []string{"Ldap"},
				Warnings: []adapters.Warning{{Code: adapters.WarnSignedInAgain, Message: "one more"}},
				Attempts: 2, ExpireTime: someTime.Add(time.Hour), StartTime: someTime, CompleteTime: someTime.Add(time.Minute),
			},
			{
				Target: "apm", Kind: "bigiq", State: invalidation.RunFailed, Attempts: 3, Operation: "task-1",
				Error:           &invalidation.RunError{Reason: adapters.ReasonUpstreamBusy, Message: "busy\xff", RetryDelay: 90 * time.Second},
				NextAttemptTime: someTime.Add(time.Minute), ExpireTime: someTime.Add(time.Hour), StartTime: someTime,
			},
		},
	}
}
