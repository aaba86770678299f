package invalidation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

var (
	help  = invalidation.Caller{Kind: "api_key", Name: "helpdesk"}
	other = invalidation.Caller{Kind: "oidc", Name: "helpdesk"} // another kind: another caller
)

// A rulebook is a policy that a test writes. It remembers what it was asked.
type rulebook struct {
	mu        sync.Mutex
	grants    map[invalidation.Right]bool // of help; others have none
	everybody map[invalidation.Right]bool
	terms     invalidation.Terms
	slow      invalidation.Right // to judge it takes as long as one has
	refuse    func(q invalidation.Question) bool
	protected []string // names, anywhere; "target/name" at a target only
	asked     []invalidation.Question
}

func (p *rulebook) Judge(ctx context.Context, q invalidation.Question) (invalidation.Terms, error) {
	p.mu.Lock()
	if p.slow == q.Right {
		p.mu.Unlock()
		<-ctx.Done()
		return invalidation.Terms{}, ctx.Err()
	}
	defer p.mu.Unlock()
	p.asked = append(p.asked, q)
	allowed := p.everybody[q.Right] || q.Caller.Is(help) && p.grants[q.Right]
	if !allowed || p.refuse != nil && p.refuse(q) {
		return invalidation.Terms{}, &invalidation.CallError{Code: invalidation.Denied, Reason: adapters.ReasonPolicyDenied,
			Message: fmt.Sprintf("the policy does not grant the right %q", q.Right)}
	}
	return p.terms, nil
}

func (p *rulebook) Protects(target, name string) bool {
	return slices.Contains(p.protected, name) || slices.Contains(p.protected, target+"/"+name)
}

// ProtectsPerson takes "account" for the gateway's own.
func (p *rulebook) ProtectsPerson(target, name string) bool {
	return name != "account" && p.Protects(target, name)
}

func (p *rulebook) ProtectsAny(target string) bool {
	return slices.ContainsFunc(p.protected, func(s string) bool {
		at, _, bound := strings.Cut(s, "/")
		return !bound || at == target
	})
}

// last returns the last question about a right.
func (p *rulebook) last(t *testing.T, right invalidation.Right) invalidation.Question {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range slices.Backward(p.asked) {
		if q.Right == right {
			return q
		}
	}
	t.Fatalf("the policy was never asked for %s", right)
	return invalidation.Question{}
}

func grants(rights ...invalidation.Right) map[invalidation.Right]bool {
	m := map[invalidation.Right]bool{}
	for _, r := range rights {
		m[r] = true
	}
	return m
}

// ruled is a fixture with a policy, in which help may do everything.
func ruled(t *testing.T, targets ...string) (*fixture, *rulebook) {
	t.Helper()
	f := newFixture(t, targets...)
	p := &rulebook{grants: grants(invalidation.Rights...), terms: invalidation.Terms{Rule: "all", Unlimited: true}}
	f.options.Policy = p
	return f, p
}

// trail are the audit events in the journal, without those that chains write about themselves.
func (f *fixture) trail() (events []audit.Entry) {
	f.t.Helper()
	trail, err := sqlite.OpenTrail(f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer trail.Close()
	all, err := trail.Events(f.t.Context(), "", 0, 100_000)
	if err != nil {
		f.t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(e audit.Entry) bool { return strings.HasPrefix(e.Type, "chain.") })
}

// events are the types of the audit events in the journal.
func (f *fixture) events() (types []string) {
	f.t.Helper()
	for _, e := range f.trail() {
		types = append(types, e.Type)
	}
	return types
}

func (f *fixture) ask(c invalidation.Caller, call invalidation.Call) (invalidation.Invalidation, error) {
	inv, _, err := f.engine.Invalidate(f.t.Context(), invalidation.Request{Caller: c, Call: call, Wait: time.Minute})
	return inv, err
}

func everyone() invalidation.Call {
	return invalidation.Call{Selector: invalidation.Selector{All: true}, ConfirmBroad: true}
}

func TestWhatIsDeniedIsNeitherJournalledNorSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		done, err := f.ask(help, user("bob"))
		if err != nil {
			t.Fatal(err)
		}
		calls := f.scripts["apm"].calls.Load()
		p.grants = grants(invalidation.RightRead)
		ctx := t.Context()
		for _, tc := range []struct {
			right invalidation.Right
			do    func() error
		}{
			{invalidation.RightInvalidate, func() error { _, err := f.ask(help, user("alice")); return err }},
			{invalidation.RightPreview, func() error { _, err := f.engine.Preview(ctx, help, user("alice")); return err }},
			{invalidation.RightCancel, func() error { _, err := f.engine.Cancel(ctx, help, done.ID); return err }},
			{invalidation.RightRetry, func() error {
				_, _, err := f.engine.Retry(ctx, invalidation.RetryRequest{Caller: help, ID: done.ID})
				return err
			}},
			{invalidation.RightListTargets, func() error { _, err := f.engine.Targets(ctx, help); return err }},
			{invalidation.RightCheck, func() error { _, err := f.engine.CheckTarget(ctx, help, "apm"); return err }},
			{invalidation.RightPause, func() error { _, err := f.engine.PauseTarget(ctx, help, "apm", ""); return err }},
			{invalidation.RightPause, func() error { _, err := f.engine.ResumeTarget(ctx, help, "apm"); return err }},
			{invalidation.RightReadOwn, func() error { _, _, err := f.engine.List(ctx, other, invalidation.Query{Limit: 9}); return err }},
			{invalidation.RightReadOwn, func() error { _, err := f.engine.CancelByLabel(ctx, other, "job", "x"); return err }},
		} {
			before := f.events()
			ce := wantCallError(t, tc.do(), invalidation.Denied, adapters.ReasonPolicyDenied)
			if !strings.Contains(ce.Message, string(tc.right)) {
				t.Errorf("message %q does not name the right %s", ce.Message, tc.right)
			}
			if got := f.events()[len(before):]; !slices.Equal(got, []string{"call.denied"}) {
				t.Errorf("%s: journalled %q, want the denial", tc.right, got)
			}
		}
		if n := f.scripts["apm"].calls.Load(); n != calls {
			t.Errorf("%d requests were sent", n-calls)
		}
		if invs, _, err := f.engine.List(ctx, help, invalidation.Query{Limit: 9}); err != nil || len(invs) != 1 {
			t.Errorf("List = %d invalidations, %v; want only the one before", len(invs), err)
		}
	})
}

func TestWhatACallerMayNotReadIsNotThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		p.everybody = grants(invalidation.RightInvalidate, invalidation.RightReadOwn, invalidation.RightCancel, invalidation.RightRetry)
		f.start(nil)
		defer f.stop(time.Minute)
		ctx := t.Context()
		mine, err := f.ask(other, invalidation.Call{Selector: user("alice").Selector, Labels: map[string]string{"job": "x"}})
		if err != nil {
			t.Fatal(err)
		}
		f.scripts["apm"].answer(hang)
		theirs, _, err := f.engine.Invalidate(ctx, invalidation.Request{Caller: help, Call: invalidation.Call{Selector: user("bob").Selector,
			Labels: map[string]string{"job": "x"}}, RequestID: "6c1d"})
		if err != nil {
			t.Fatal(err)
		}
		watch := func(c invalidation.Caller, id string) (err error) {
			for _, e := range f.engine.Watch(ctx, c, id) {
				if err = e; err != nil {
					return err
				}
			}
			return nil
		}
		for name, do := range map[string]func(id string) error{
			"Get":    func(id string) error { _, err := f.engine.Get(ctx, other, id, 0); return err },
			"Watch":  func(id string) error { return watch(other, id) },
			"Cancel": func(id string) error { _, err := f.engine.Cancel(ctx, other, id); return err },
			"Retry": func(id string) error {
				_, _, err := f.engine.Retry(ctx, invalidation.RetryRequest{Caller: other, ID: id})
				return err
			},
		} {
			absent := wantCallError(t, do("0198c0de-0000-7000-8000-000000000000"), invalidation.NotFound, invalidation.ReasonNotFound)
			hidden := wantCallError(t, do(theirs.ID), invalidation.NotFound, invalidation.ReasonNotFound)
			if strings.ReplaceAll(hidden.Message, theirs.ID, "") != strings.ReplaceAll(absent.Message, "0198c0de-0000-7000-8000-000000000000", "") {
				t.Errorf("%s: %q tells from %q", name, hidden.Message, absent.Message)
			}
		}
		if _, err := f.engine.Get(ctx, other, mine.ID, 0); err != nil {
			t.Errorf("Get of one's own: %v", err)
		}
		invs, _, err := f.engine.List(ctx, other, invalidation.Query{Limit: 9})
		if err != nil || len(invs) != 1 || invs[0].ID != mine.ID {
			t.Errorf("List = %d, %v; want one's own only", len(invs), err)
		}
		sum, err := f.engine.CancelByLabel(ctx, other, "job", "x")
		if err != nil || len(sum.Cancelled) != 0 || sum.AlreadyFinal != 1 || sum.NotAllowed != 0 {
			t.Errorf("CancelByLabel = %+v, %v; want one's own, which is final", sum, err)
		}
		if got := f.get2(help, theirs.ID); got.State != invalidation.Running {
			t.Errorf("another's invalidation is %s", got.State)
		}
		// The same request id of another caller stands for nothing.
		again, replayed, err := f.engine.Invalidate(ctx, invalidation.Request{Caller: other, Call: theirs.Call, RequestID: "6c1d"})
		if err != nil || replayed || again.ID == theirs.ID {
			t.Errorf("another's request id: replayed %t, %v", replayed, err)
		}
	})
}

func (f *fixture) get2(c invalidation.Caller, id string) invalidation.Invalidation {
	f.t.Helper()
	inv, err := f.engine.Get(f.t.Context(), c, id, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	return inv
}

func TestCancelByLabelTellsWhatItMayNotCancel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		f.scripts["apm"].answer(hang)
		f.start(nil)
		defer f.stop(time.Second)
		job := map[string]string{"job": "x"}
		var ids []string
		for _, u := range []string{"alice", "bob"} {
			inv, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: help,
				Call: invalidation.Call{Selector: user(u).Selector, Labels: job}})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, inv.ID)
		}
		p.refuse = func(q invalidation.Question) bool {
			return q.Right == invalidation.RightCancel && q.Call.Selector.User.ID == "bob"
		}
		sum, err := f.engine.CancelByLabel(t.Context(), help, "job", "x")
		if err != nil || !slices.Equal(sum.Cancelled, ids[:1]) || sum.NotAllowed != 1 {
			t.Errorf("CancelByLabel = %+v, %v; want alice's cancelled, and one that may not be", sum, err)
		}
		p.refuse = func(q invalidation.Question) bool { return q.Right == invalidation.RightCancel }
		_, err = f.engine.CancelByLabel(t.Context(), help, "job", "x")
		if err != nil { // alice's is final: there is that to tell
			t.Errorf("CancelByLabel: %v", err)
		}
	})
}

func TestThePolicySeesWhatWouldBeSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm", "kibana")
		f.start(nil)
		defer f.stop(time.Minute)
		call := user("alice")
		call.Labels = map[string]string{"ticket": "42"}
		if _, err := f.ask(help, call); err != nil {
			t.Fatal(err)
		}
		q := p.last(t, invalidation.RightInvalidate)
		if !slices.Equal(q.Targets, []string{"apm", "kibana"}) || !slices.Equal(q.Names["apm"], []string{"alice"}) ||
			!slices.Equal(q.Names["kibana"], []string{"alice"}) || q.Call.Labels["ticket"] != "42" {
			t.Errorf("asked %+v", q)
		}
	})
}

func TestProtectedUsersAreSpared(t *testing.T) {
	for _, tc := range []struct {
		name      string
		protected []string
		call      invalidation.Call
		terms     invalidation.Terms
		lists     bool     // the target lists sessions
		listed    []string // whose
		opaque    bool
		denied    bool
		want      string // the run's reason; empty: it succeeds
	}{
		{"ById", []string{"alice"}, user("alice"), invalidation.Terms{}, false, nil, false, true, ""},
		{"ByNameAtTheTarget", []string{"apm/alice"}, user("alice"), invalidation.Terms{}, false, nil, false, false, "PROTECTED"},
		{"SomebodyElse", []string{"alice"}, user("bob"), invalidation.Terms{}, false, nil, false, false, ""},
		{"TheRuleLiftsIt", []string{"alice"}, user("alice"), invalidation.Terms{Protected: true}, false, nil, false, false, ""},
		{"BroadAndNotListed", []string{"alice"}, everyone(), invalidation.Terms{Unlimited: true}, false, nil, false, false, "PROTECTED"},
		{"BroadAndProtectedElsewhere", []string{"kibana/alice"}, everyone(), invalidation.Terms{Unlimited: true}, false, nil, false, false, ""},
		{"BroadLiftedByTheRule", []string{"alice"}, everyone(), invalidation.Terms{Unlimited: true, Protected: true}, false, nil, false, false, ""},
		{"BroadAndListedWithout", []string{"alice"}, everyone(), invalidation.Terms{}, true, []string{"bob", "carol"}, false, false, ""},
		{"BroadAndListedWith", []string{"alice"}, everyone(), invalidation.Terms{}, true, []string{"bob", "alice"}, false, false, "PROTECTED"},
		{"BroadAndListedAtRandom", []string{"alice"}, everyone(), invalidation.Terms{}, true, []string{"bob", "0d4f"}, true, false, "PROTECTED"},
		{"RandomAndNobodyProtected", nil, everyone(), invalidation.Terms{}, true, []string{"bob", "0d4f"}, true, false, ""},
		{"BroadAndListedWithTheAccount", []string{"alice", "account"}, everyone(), invalidation.Terms{}, true, []string{"bob", "account"}, false, false, ""},
		{"TheAccountByName", []string{"account"}, user("account"), invalidation.Terms{}, true, []string{"account"}, false, true, ""},
		{"TooMany", nil, everyone(), invalidation.Terms{MaxSessions: 2}, true, []string{"a", "b", "c"}, false, false, "TOO_MANY_SESSIONS"},
		{"JustNotTooMany", nil, everyone(), invalidation.Terms{MaxSessions: 3}, true, []string{"a", "b", "c"}, false, false, ""},
		{"OfUnknownSize", nil, everyone(), invalidation.Terms{MaxSessions: 3}, false, nil, false, false, "TOO_MANY_SESSIONS"},
		{"OfUnknownSizeAndUnlimited", nil, everyone(), invalidation.Terms{MaxSessions: 3, Unlimited: true}, false, nil, false, false, ""},
		{"OnePersonsTooMany", nil, user("alice"), invalidation.Terms{MaxSessions: 2}, true, []string{"alice", "alice", "alice"}, false, false, "TOO_MANY_SESSIONS"},
		{"OnePersonNotListed", nil, user("alice"), invalidation.Terms{MaxSessions: 2}, false, nil, false, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, p := ruled(t, "apm")
				p.protected, p.terms = tc.protected, tc.terms
				f.options.Targets[0].Type.ListsSessions = tc.lists
				var sent int
				vet := func(ctx context.Context) error {
					var sessions []adapters.Session
					for i, name := range tc.listed {
						sessions = append(sessions, adapters.Session{ID: fmt.Sprint(i), Username: name})
					}
					return adapters.Vet(ctx, sessions, tc.opaque)
				}
				f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
					if err := vet(ctx); tc.lists && err != nil {
						return adapters.Result{Counted: true}, err
					}
					sent++
					return ended(len(tc.listed))(ctx, req)
				})
				f.scripts["apm"].preview = vet
				f.start(nil)
				defer f.stop(time.Minute)

				previews, previewErr := f.engine.Preview(t.Context(), help, tc.call)
				inv, err := f.ask(help, tc.call)
				if tc.denied {
					wantCallError(t, previewErr, invalidation.Denied, adapters.ReasonProtected)
					wantCallError(t, err, invalidation.Denied, adapters.ReasonProtected)
					return
				}
				if err != nil || previewErr != nil {
					t.Fatal(err, previewErr)
				}
				reason, previewed := "", ""
				if e := inv.Runs[0].Error; e != nil {
					reason = string(e.Reason)
				}
				if e := previews[0].Err; e != nil {
					previewed = string(e.Reason)
				}
				if reason != tc.want || previewed != tc.want || (sent > 0) != (tc.want == "") {
					t.Errorf("run: %s, preview: %s, sent %d; want %q", reason, previewed, sent, tc.want)
				}
				if want := map[bool]invalidation.RunState{true: invalidation.RunSucceeded, false: invalidation.RunFailed}[tc.want == ""]; inv.Runs[0].State != want {
					t.Errorf("state %s, want %s", inv.Runs[0].State, want)
				}
			})
		})
	}
}

// The bound holds for a run as a whole, not for each of its calls.
func TestMaxSessionsBoundsTheWholeRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		p.terms = invalidation.Terms{MaxSessions: 3}
		f.options.Targets[0].Type.ListsSessions = true
		call := 0
		f.scripts["apm"].answer(func(ctx context.Context, req adapters.Request) (adapters.Result, error) {
			call++
			if err := adapters.Vet(ctx, []adapters.Session{{ID: fmt.Sprint(2 * call)}, {ID: fmt.Sprint(2*call + 1)}}, false); err != nil {
				return adapters.Result{}, err
			}
			if err := adapters.Fence(ctx); err != nil {
				return adapters.Result{}, err
			}
			if call == 3 {
				return adapters.Result{Counted: true, Verification: adapters.ConfirmedByList}, nil
			}
			return adapters.Result{Counted: true, Count: 2, Pending: &adapters.Pending{Resume: []byte("{}")}}, nil
		})
		f.start(nil)
		defer f.stop(time.Minute)
		inv, err := f.ask(help, everyone())
		if err != nil {
			t.Fatal(err)
		}
		r := inv.Runs[0]
		if r.State != invalidation.RunFailed || r.Error.Reason != adapters.ReasonTooManySessions || r.Count != 2 {
			t.Errorf("run %s, %+v, count %d; want FAILED, TOO_MANY_SESSIONS after 2", r.State, r.Error, r.Count)
		}
	})
}

// Nothing is sent under names that were not known when the call was accepted before policy and brakes have seen them.
func TestLateNamesAreJudgedAgain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(p *rulebook)
		want   adapters.Reason
	}{
		{"Allowed", func(*rulebook) {}, ""},
		{"TheNameIsRefused", func(p *rulebook) {
			p.refuse = func(q invalidation.Question) bool { return slices.Contains(q.Names["apm"], "alice") }
		}, adapters.ReasonPolicyDenied},
		{"TheRightIsGone", func(p *rulebook) { p.grants = grants() }, adapters.ReasonPolicyDenied},
		{"TheClaimsAreKept", func(p *rulebook) {
			p.refuse = func(q invalidation.Question) bool {
				return q.Right == invalidation.RightInvalidate && (q.Caller.Facts == nil || q.Caller.Facts.Claims["dept"] != "it")
			}
		}, ""},
		{"TheIDIsProtectedMeanwhile", func(p *rulebook) { p.protected = []string{"/alice"} }, adapters.ReasonProtected},
		{"ProtectedMeanwhile", func(p *rulebook) { p.protected = []string{"apm/alice"} }, adapters.ReasonProtected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, p := ruled(t, "apm")
				directory := &names{}
				directory.away.Store(true)
				f.options.Resolver = directory
				f.start(nil)
				caller := help
				caller.Facts = &invalidation.Facts{Claims: map[string]any{"dept": "it"}}
				inv, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: caller, Call: user("alice")})
				if err != nil || inv.Runs[0].State != invalidation.RunPending {
					t.Fatalf("Invalidate = %+v, %v; want PENDING", inv.Runs, err)
				}
				f.crash() // what the policy needs survives
				f.start(nil)
				defer f.stop(time.Minute)
				tc.change(p)
				directory.away.Store(false)
				p.mu.Lock()
				p.grants[invalidation.RightRead] = true
				p.mu.Unlock()
				sleep(time.Minute)
				r := f.get2(help, inv.ID).Runs[0]
				switch calls := f.scripts["apm"].calls.Load(); {
				case tc.want == "" && (r.State != invalidation.RunSucceeded || calls != 1):
					t.Errorf("run %s, %+v after %d calls, want SUCCEEDED after one", r.State, r.Error, calls)
				case tc.want != "" && (r.State != invalidation.RunFailed || r.Error.Reason != tc.want || calls != 0):
					t.Errorf("run %s, %+v after %d calls, want FAILED with %s and nothing sent", r.State, r.Error, calls, tc.want)
				}
			})
		})
	}
}

// A policy that has no time to answer, because the process ends, has not said no.
func TestNoAnswerOfThePolicyIsNoRefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		directory := &names{}
		directory.away.Store(true)
		f.options.Resolver = directory
		f.start(nil)
		inv, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: help, Call: user("alice")})
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		p.slow = invalidation.RightInvalidate
		p.mu.Unlock()
		directory.away.Store(false)
		sleep(15 * time.Second) // the policy is being asked
		f.stop(time.Second)
		p.mu.Lock()
		p.slow = ""
		p.mu.Unlock()
		f.start(nil)
		defer f.stop(time.Minute)
		sleep(time.Minute)
		if r := f.get2(help, inv.ID).Runs[0]; r.State != invalidation.RunSucceeded {
			t.Errorf("run %s, %+v; want SUCCEEDED", r.State, r.Error)
		}
	})
}

// Retrying is authorised like a new call, for whoever retries.
func TestRetryIsJudgedForWhoRetries(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		p.everybody = grants(invalidation.RightRead, invalidation.RightRetry)
		f.scripts["apm"].answer(func(context.Context, adapters.Request) (adapters.Result, error) {
			return adapters.Result{}, adapters.Errorf(adapters.Rejected, "no")
		})
		f.start(nil)
		defer f.stop(time.Minute)
		inv, err := f.ask(help, user("alice"))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = f.engine.Retry(t.Context(), invalidation.RetryRequest{Caller: other, ID: inv.ID})
		wantCallError(t, err, invalidation.Denied, adapters.ReasonPolicyDenied)
		if q := p.last(t, invalidation.RightInvalidate); !q.Caller.Is(other) {
			t.Errorf("judged for %+v, want who retries", q.Caller)
		}
		if q := p.last(t, invalidation.RightRetry); q.Own || q.Call == nil {
			t.Errorf("asked %+v", q)
		}
	})
}

// TestDenialsCannotFillTheJournal, and none is forgotten: what is not written is counted. Accepted calls are written
// meanwhile, and so are the denials of others.
func TestDenialsCannotFillTheJournal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		f.start(nil)
		defer f.stop(time.Minute)
		for range 1000 {
			_, err := f.ask(other, user("alice"))
			wantCallError(t, err, invalidation.Denied, adapters.ReasonPolicyDenied)
		}
		if _, err := f.ask(help, user("bob")); err != nil {
			t.Fatal(err)
		}
		p.grants = grants()
		_, err := f.ask(help, user("alice"))
		wantCallError(t, err, invalidation.Denied, adapters.ReasonPolicyDenied)
		sleep(2 * time.Minute)
		told := map[string]int{}
		suppressed := 0
		for _, e := range f.trail() {
			told[e.Type+" "+e.Caller.Kind]++
			if e.Type == invalidation.EventSuppressed {
				var data struct{ Count int }
				if err := json.Unmarshal(e.Data, &data); err != nil {
					t.Fatal(err)
				}
				suppressed += data.Count
			}
		}
		if told["call.denied oidc"] != 10 || suppressed != 990 {
			t.Errorf("1000 denials of one caller are %d events, and %d are counted; want 10 and 990", told["call.denied oidc"], suppressed)
		}
		if told["invalidation.accepted api_key"] != 1 || told["call.denied api_key"] != 1 {
			t.Errorf("of another caller there are %v, want one accepted and one denied", told)
		}
	})
}

// A cancellation by label that runs out of time while it is judged says so: nobody was refused anything.
func TestCancelByLabelOutOfTimeIsNoRefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, p := ruled(t, "apm")
		f.scripts["apm"].answer(hang)
		f.start(nil)
		defer f.stop(time.Second)
		_, _, err := f.engine.Invalidate(t.Context(), invalidation.Request{Caller: help,
			Call: invalidation.Call{Selector: user("alice").Selector, Labels: map[string]string{"job": "x"}}})
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		p.slow = invalidation.RightCancel
		p.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		sum, err := f.engine.CancelByLabel(ctx, help, "job", "x")
		wantCallError(t, err, invalidation.Unavailable, invalidation.ReasonNotAccepted)
		if sum.NotAllowed != 0 || len(sum.Cancelled) != 0 {
			t.Errorf("summary %+v, want nothing", sum)
		}
	})
}
