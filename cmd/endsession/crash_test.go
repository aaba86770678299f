package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// atOnce runs subtests several at a time: they wait most of the time.
func atOnce[T any](t *testing.T, most int, tests []T, name func(T) string, f func(*testing.T, T)) {
	t.Helper()
	slots := make(chan struct{}, most)
	var wg sync.WaitGroup
	for _, test := range tests {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			t.Run(name(test), func(t *testing.T) { f(t, test) })
		})
	}
	wg.Wait()
}

// alicesSeats are who is gone when alice's sessions have ended; written down a second time, on purpose.
var alicesSeats = map[string]string{
	"apm":         "alice-blue alice-red alice-branch alice-guest",
	"apm-all":     "alice-blue alice-red alice-branch alice-guest alice-lone a17-guest",
	"kibana-prod": "alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
	"storage":     "alice-local alice-ldap alice-idp",
}

// client returns a gRPC client of a process.
func (p *process) client(t testing.TB) endsessionv1.SessionServiceClient {
	t.Helper()
	cc, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return endsessionv1.NewSessionServiceClient(cc)
}

// crash is a moment at which the gateway is killed.
type crash struct {
	name  string
	after bool
	which func(upstream) bool
	// then, if given, must hold of the invalidation before the kill; the gate is opened first.
	then func(*endsessionv1.Invalidation) bool
	// late lets the request that was held up take effect only after the gateway serves again.
	late bool
	// always: the request is known to be sent, so that the gate must strike.
	always bool
	// again kills the gateway once more, that many requests after the restart.
	again int
}

func of(target, method, path, body string, nth int) func(upstream) bool {
	n := 0
	return func(u upstream) bool {
		if u.target == target && u.method == method && strings.Contains(u.path, path) && strings.Contains(u.body, body) {
			n++
			return n == nth
		}
		return false
	}
}

const (
	killTasks  = "/access/tasks/kill-sessions"
	invalidate = "/_invalidate"
)

// crashes are instants that matter, at each of the three.
func crashes() []crash {
	return []crash{
		{name: "BIG-IQ/Login", which: of("apm", http.MethodPost, "/authn/login", "", 1), after: true},
		{name: "BIG-IQ/BeforeTheTaskExists", which: of("apm", http.MethodPost, killTasks, "", 1)},
		{name: "BIG-IQ/BeforeTheTaskExistsWhichComesLate", which: of("apm", http.MethodPost, killTasks, "", 1), late: true},
		{name: "BIG-IQ/AfterTheTaskExists", which: of("apm-all", http.MethodPost, killTasks, "", 1), after: true},
		{name: "BIG-IQ/WhileTheTaskRuns", which: of("apm", http.MethodGet, killTasks+"/", "", 1), after: true},
		{name: "BIG-IQ/BetweenTwoTasks", which: of("apm-all", http.MethodPost, killTasks, "", 2)},
		{name: "Kibana/BeforeTheFirstQuery", which: of("kibana-prod", http.MethodPost, invalidate, "", 1)},
		{name: "Kibana/InTheMiddleOfAPass", which: of("kibana-prod", http.MethodPost, invalidate, "", 3), after: true},
		{name: "Kibana/InTheMiddleOfAPassLate", which: of("kibana-prod", http.MethodPost, invalidate, "", 4), late: true},
		{name: "Kibana/BetweenThePasses", which: of("kibana-prod", http.MethodPost, invalidate, "", 7), after: true,
			then: func(inv *endsessionv1.Invalidation) bool { return runAt(inv, "kibana-prod").InvalidatedCount != nil }},
		{name: "Kibana/InTheSecondPass", which: of("kibana-prod", http.MethodPost, invalidate, "", 9)},
		{name: "Element/BeforeTheFirstDelete", which: of("storage", http.MethodPost, "", `"DeleteAuthSessionsByUsername"`, 1)},
		{name: "Element/AfterTheFirstDelete", which: of("storage", http.MethodPost, "", `"DeleteAuthSessionsByUsername"`, 1), after: true},
		{name: "Element/SecondDeleteLate", which: of("storage", http.MethodPost, "", `"DeleteAuthSessionsByUsername"`, 2), late: true},
		{name: "Element/AfterTheLastDelete", which: of("storage", http.MethodPost, "", `"DeleteAuthSessionsByUsername"`, 3), after: true},
		{name: "Everything/OnlyAccepted", which: func(u upstream) bool { return u.nth == 1 }},
	}
}

// TestKilledInTheMiddleEveryRunIsFinished kills the gateway with SIGKILL at instants that matter.
func TestKilledInTheMiddleEveryRunIsFinished(t *testing.T) {
	t.Parallel()
	list := crashes()
	for i := range list {
		list[i].always = true
	}
	atOnce(t, 6, list, func(c crash) string { return c.name }, killAndResume)
}

// TestKilledAtRandomEveryRunIsFinished kills it anywhere, sometimes twice.
func TestKilledAtRandomEveryRunIsFinished(t *testing.T) {
	t.Parallel()
	const seed = 20260831
	random := rand.New(rand.NewPCG(seed, 1))
	var list []crash
	for i := range 12 {
		at := 1 + random.IntN(36)
		c := crash{
			after: random.IntN(2) == 0, late: random.IntN(3) == 0,
			which: func(u upstream) bool { return u.nth == at },
		}
		if random.IntN(3) == 0 {
			c.again = 1 + random.IntN(20)
		}
		c.name = fmt.Sprintf("%d/Request%d,After=%t,Late=%t,Again=%d", i, at, c.after, c.late, c.again)
		list = append(list, c)
	}
	atOnce(t, 6, list, func(c crash) string { return c.name }, killAndResume)
}

func killAndResume(t *testing.T, c crash) {
	l, dir := newLab(), t.TempDir()
	first := newGate(c.after, c.which)
	second := newGate(false, func(u upstream) bool { return u.nth == c.again })
	wrapFirst, wrapSecond := first.wrap(), second.wrap()
	var mu sync.Mutex
	restarted := false
	urls := l.serve(t, dir, func(target string, h http.Handler) http.Handler {
		one, two := wrapFirst(target, h), wrapSecond(target, h)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			again := restarted
			mu.Unlock()
			if again {
				two.ServeHTTP(w, r)
				return
			}
			one.ServeHTTP(w, r)
		})
	})
	// Whatever happens, nobody waits at a gate when the emulators stop.
	t.Cleanup(func() { first.open(); second.open() })
	path := labConfig{dir: dir, urls: urls, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}}.write(t)
	request := &endsessionv1.InvalidateSessionsRequest{
		Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}}, WaitTimeout: durationpb.New(0),
		RequestId: proto.String("5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"),
	}

	p := serve(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	client := p.client(t)
	accepted, err := client.InvalidateSessions(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	name := accepted.GetInvalidation().GetName()
	if !reached(t, first, client, name) && c.always {
		t.Error("it was final before the request that was to be held up")
	}
	if c.then != nil {
		first.open()
		eventually(t, "the state before the kill", func() bool {
			resp, err := client.GetInvalidation(ctx, &endsessionv1.GetInvalidationRequest{Name: name})
			return err == nil && c.then(resp.GetInvalidation())
		})
	}
	p.kill()
	mu.Lock()
	restarted = true
	mu.Unlock()
	if !c.late {
		first.open()
	}

	p = serve(t, path)
	client = p.client(t)
	if c.again > 0 {
		reached(t, second, client, name)
		p.kill()
		second.open()
		p = serve(t, path)
		client = p.client(t)
	}
	first.open()
	replayed, err := client.InvalidateSessions(ctx, request)
	if err != nil || !replayed.GetReplayed() || replayed.GetInvalidation().GetName() != name {
		t.Fatalf("asked again: %v, %v; want %s, replayed", replayed, err, name)
	}
	final, err := client.GetInvalidation(ctx, &endsessionv1.GetInvalidationRequest{Name: name, WaitTimeout: durationpb.New(patience)})
	if err != nil {
		t.Fatal(err)
	}
	inv := final.GetInvalidation()
	if got := stateWord(inv.GetState()); got != "SUCCEEDED" {
		t.Errorf("state %s, want SUCCEEDED", got)
	}
	for _, target := range l.targets {
		r := runAt(inv, target)
		gone, want := l.gone(target), l.labels(t, target, alicesSeats[target])
		if !slices.Equal(gone, want) {
			t.Errorf("%s: signed out %v, want %v", target, gone, want)
		}
		switch n := int(r.GetInvalidatedCount()); {
		case strings.HasPrefix(target, "apm"):
			if r.InvalidatedCount != nil {
				t.Errorf("%s: count %d, but a BIG-IQ never tells", target, n)
			}
		case n > len(gone):
			t.Errorf("%s: counts %d, but %d sessions ended", target, n, len(gone))
		case n < len(gone) && !r.GetCountIsMinimum():
			t.Errorf("%s: counts exactly %d, but %d sessions ended", target, n, len(gone))
		}
	}
	if t.Failed() {
		text, _ := json.MarshalIndent(inv, "", " ")
		t.Logf("%s", text)
	}
}

// reached waits until the gate has struck (true), or the invalidation is final without it.
func reached(t *testing.T, g *gate, client endsessionv1.SessionServiceClient, name string) bool {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		select {
		case <-g.reached:
			return true
		case <-time.After(20 * time.Millisecond):
		}
		resp, err := client.GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{Name: name})
		if err == nil && resp.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING {
			return false
		}
		if time.Now().After(deadline) {
			t.Fatalf("the request to be held up was not sent within %v", patience)
		}
	}
}

// runAt returns the run at a target; an empty one if there is none.
func runAt(inv *endsessionv1.Invalidation, target string) *endsessionv1.Run {
	for _, r := range inv.GetRuns() {
		if r.GetTarget() == target {
			return r
		}
	}
	return &endsessionv1.Run{}
}
