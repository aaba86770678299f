package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// killsPerRound kill processes that share one journal; then everything must come to its end.
	killsPerRound = 10
	// killPeople are enough that the callers never run out of them.
	killPeople = 220
	// killCallers call at once.
	killCallers = 4
	// onTheWay is how long a request that left in time may need until it is seen, on a machine that is busy.
	onTheWay = 2 * time.Second
)

// killRound is the emulated systems over TLS, a journal, and the processes that are killed over it. In real time nothing
// replays exactly; the seed decides on faults and on the moments of the kills.
type killRound struct {
	t      *testing.T
	l      *lab
	report *tally

	mu      sync.Mutex
	dice    *rand.Rand
	killed  int            // processes so far
	under   map[string]int // requests under way, by target, of the process of the moment
	most    map[string]int
	sent    []personRequest
	wrong   []string
	answers map[int]string // the invalidations' names that callers were answered with, by person
	calm    atomic.Bool
	process atomic.Pointer[process]
	over    atomic.Bool // no more calls
}

// personRequest is one request that could end a person's sessions.
type personRequest struct {
	target string
	person int
	at     time.Time
}

// TestChaosKills kills real processes with SIGKILL at random moments while calls stream in, and starts others on the
// same journal.
func TestChaosKills(t *testing.T) {
	kills, end := envInt(t, "CHAOS_KILLS", 6), chaosEnd(t)
	seed, _ := chaosSeed(t)
	total := &tally{counts: map[string]int{}}
	began := time.Now()
	type round struct{ n, kills int }
	rounds := make(chan round)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for r := range rounds {
				t.Run(fmt.Sprintf("Seed=%d,Round=%d", seed, r.n), func(t *testing.T) {
					carryOutKills(t, dice(seed, "kills", r.n), r.kills, total)
					if t.Failed() {
						t.Logf("CHAOS_SEED=%d go test -run '^TestChaosKills$' ./cmd/endsession", seed)
					}
				})
			}
		})
	}
	for n := 0; kills > 0 && time.Now().Before(end); n++ {
		r := round{n, min(kills, killsPerRound)}
		rounds <- r
		kills -= r.kills
	}
	close(rounds)
	workers.Wait()
	report(t, fmt.Sprintf("%d kills of real processes in %v, seed %d", total.counts["kills (SIGKILL)"], time.Since(began).Round(time.Second), seed), total)
}

func killPerson(n int) string { return fmt.Sprintf("u%03d", n) }

func carryOutKills(t *testing.T, dice *rand.Rand, kills int, total *tally) {
	k := &killRound{t: t, dice: dice, report: &tally{counts: map[string]int{}}, under: map[string]int{}, most: map[string]int{}, answers: map[int]string{}}
	k.l = newLab()
	k.l.seats, k.l.keys = nil, nil
	k.l.systems = newEmptyLab(&schedule{taskTime: 100 * time.Millisecond}).systems
	k.signIn()
	dir := t.TempDir()
	path := labConfig{dir: dir, urls: k.l.serve(t, dir, k.wrap), listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}}.write(t)

	k.process.Store(serve(t, path))
	var callers sync.WaitGroup
	var next atomic.Int64
	for range killCallers {
		callers.Go(func() {
			for !k.over.Load() {
				n := int(next.Add(1)) - 1
				if n >= killPeople {
					return
				}
				k.call(n)
			}
		})
	}
	for range kills {
		time.Sleep(k.span(0, 900*time.Millisecond))
		k.process.Load().kill()
		k.mu.Lock()
		k.killed++
		k.under = map[string]int{}
		k.mu.Unlock()
		k.report.add(map[string]int{"kills (SIGKILL)": 1})
		k.process.Store(serve(t, path))
	}
	k.over.Store(true)
	k.calm.Store(true)
	callers.Wait()
	k.settle()
	p := k.process.Load()
	p.terminate(t)
	if status := p.wait(t); status != 0 {
		t.Errorf("the last process ended with status %d", status)
	}
	k.judge(filepath.Join(dir, "endsession.db"))
	total.add(k.report.counts)
	for _, text := range k.wrong {
		t.Error(text)
	}
}

func (k *killRound) span(from, to time.Duration) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return span(k.dice, from, to)
}

// signIn signs everybody in, and beside each of them two whose names are nearly the same.
func (k *killRound) signIn() {
	for n := range killPeople {
		for i, name := range []string{killPerson(n), strings.ToUpper(killPerson(n)), killPerson(n) + "x"} {
			add := func(target string, x adapters.Session) {
				x.CreateTime = time.Now().Add(-time.Hour)
				x.ID = sessionID(target, 3*n+i)
				k.l.systems[target].SignIn(x)
			}
			devices := []string{"98901455-6384-47cd-bc41-00a39dfe338f", "3f320100-2177-42e0-8a46-2e33cd3366d0"}
			add("apm", adapters.Session{Username: name, Device: devices[n%2]})
			add("apm-all", adapters.Session{Username: name, Device: devices[n%2]})
			add("kibana-prod", adapters.Session{Username: name + "@corp.example", Provider: adapters.Provider{Type: "saml", Name: "saml1"}})
			add("storage", adapters.Session{Username: name, Provider: adapters.Provider{Type: "Cluster"}, Groups: []adapters.Group{{Kind: "access_group", Name: "read"}}})
		}
	}
}

// call ends one person's sessions everywhere. The caller insists until it has an answer.
func (k *killRound) call(n int) {
	k.mu.Lock()
	req := &endsessionv1.InvalidateSessionsRequest{
		Selector:    &endsessionv1.Selector{User: &endsessionv1.User{Id: killPerson(n), Email: proto.String(killPerson(n) + "@corp.example")}},
		Reason:      proto.String(killPerson(n)),
		RequestId:   proto.String(fmt.Sprintf("00000000-0000-4000-9000-%012x", n)),
		WaitTimeout: durationpb.New(span(k.dice, 0, 300*time.Millisecond)),
		RetryFor:    durationpb.New(span(k.dice, 2*time.Second, time.Minute)),
	}
	cancels := k.dice.IntN(12) == 0
	k.mu.Unlock()
	var name string
	k.insist(func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		k.report.add(map[string]int{"calls": 1})
		resp, err := client.InvalidateSessions(ctx, req)
		if err == nil {
			name = resp.GetInvalidation().GetName()
			if resp.GetReplayed() {
				k.report.add(map[string]int{"calls replayed": 1})
			}
		}
		return err
	})
	k.mu.Lock()
	k.answers[n] = name
	k.mu.Unlock()
	if cancels && name != "" {
		k.insist(func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
			_, err := client.CancelInvalidation(ctx, &endsessionv1.CancelInvalidationRequest{Name: name})
			if status.Code(err) == codes.FailedPrecondition {
				return nil
			}
			return err
		})
		k.report.add(map[string]int{"cancels": 1})
	}
}

// insist asks the process of the moment until one has answered.
func (k *killRound) insist(f func(context.Context, endsessionv1.SessionServiceClient) error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		cc, err := grpc.NewClient(k.process.Load().grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err == nil {
			ctx, cancel := context.WithTimeout(k.t.Context(), 5*time.Second)
			err = f(ctx, endsessionv1.NewSessionServiceClient(cc))
			cancel()
			_ = cc.Close()
		}
		switch code := status.Code(err); {
		case err == nil:
			return
		case code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled, time.Now().After(deadline):
			k.broken("a call was answered with %v", err)
			return
		}
		k.report.add(map[string]int{"calls without an answer": 1})
	}
}

func (k *killRound) broken(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wrong = append(k.wrong, fmt.Sprintf(format, args...))
}

// settle waits until nothing is under way any more.
func (k *killRound) settle() {
	p := k.process.Load()
	client := p.client(k.t)
	for deadline := time.Now().Add(3 * patience); ; time.Sleep(100 * time.Millisecond) {
		resp, err := client.ListInvalidations(k.t.Context(), &endsessionv1.ListInvalidationsRequest{
			State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING, PageSize: 1,
		})
		if err == nil && len(resp.GetInvalidations()) == 0 {
			return
		}
		if time.Now().After(deadline) {
			k.broken("not everything is final after %v: %v, %v", 3*patience, resp, err)
			return
		}
	}
}

// wrap lets requests meet faults, and notes them.
func (k *killRound) wrap(target string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender died while sending
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		k.mu.Lock()
		of := k.killed
		k.under[target]++
		k.most[target] = max(k.most[target], k.under[target])
		if mutates(target, r.Method, r.URL.Path, body) {
			k.sent = append(k.sent, personRequest{target, personIn(body), time.Now()})
		}
		roll, which, d := k.dice.Float64(), k.dice.IntN(11), span(k.dice, 0, 400*time.Millisecond)
		k.mu.Unlock()
		k.report.add(map[string]int{"requests to targets": 1})
		defer func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.killed == of {
				k.under[target]--
			}
		}()
		if k.calm.Load() || roll > 0.3 {
			h.ServeHTTP(w, r)
			return
		}
		k.fault(which, d, w, r, h)
	})
}

// personIn finds the person whom a request is about; -1 if there is none, or more than one.
func personIn(body []byte) int {
	text := string(body)
	for n := range killPeople {
		if strings.Contains(text, `"`+killPerson(n)+`"`) || strings.Contains(text, `"`+killPerson(n)+`@`) || strings.Contains(text, "uid="+killPerson(n)+",") {
			return n
		}
	}
	return -1
}

// fault carries out one request badly.
func (k *killRound) fault(which int, d time.Duration, w http.ResponseWriter, r *http.Request, h http.Handler) {
	count := func(name string) { k.report.add(map[string]int{"fault: " + name: 1}) }
	act := func() *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		return answer
	}
	page := func(status int) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<html><title>proxy</title></html>")
	}
	wait := func() {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	switch which {
	case 0:
		count("delay before the effect")
		time.Sleep(d) // it takes effect even if the sender is dead by then
		h.ServeHTTP(w, r)
	case 1, 2:
		count("delay after the effect")
		answer := act()
		wait()
		for name, v := range answer.Header() {
			w.Header()[name] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	case 3:
		count("connection reset")
		panic(http.ErrAbortHandler)
	case 4, 5:
		count("connection reset after the effect")
		act()
		panic(http.ErrAbortHandler)
	case 6:
		count("502 as a page after the effect")
		act()
		page(http.StatusBadGateway)
	case 7:
		count("503 as a page")
		page(http.StatusServiceUnavailable)
	case 8:
		count("429")
		w.Header().Set("Retry-After", "1")
		page(http.StatusTooManyRequests)
	case 9:
		count("truncated JSON")
		answer := act()
		w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
	case 10:
		count("a page with 200 after the effect")
		act()
		page(http.StatusOK)
	}
}

// judge opens the journal that the last process has left and holds it against who is still signed in.
func (k *killRound) judge(path string) {
	store, err := sqlite.Open(k.t.Context(), sqlite.Options{Path: path})
	if err != nil {
		k.t.Fatalf("the journal cannot be opened: %v", err)
	}
	invs, more, err := store.List(k.t.Context(), invalidation.Query{Limit: 2 * killPeople})
	if err != nil || more {
		k.t.Fatalf("list: %v, more %t", err, more)
	}
	if err := store.Close(); err != nil {
		k.t.Error(err)
	}
	ended := k.ended()
	byPerson := map[int]invalidation.Invalidation{}
	for _, inv := range invs {
		n := -1
		_, _ = fmt.Sscanf(inv.Call.Reason, "u%03d", &n)
		if again, ok := byPerson[n]; ok {
			k.broken("%s is two invalidations: %s and %s", inv.Call.Reason, again.ID, inv.ID)
		}
		byPerson[n] = inv
		for _, r := range inv.Runs {
			k.judgeRun(n, inv, r, ended[r.Target][killPerson(n)])
		}
	}
	for n, name := range k.answers {
		if name != "" && name != "invalidations/"+byPerson[n].ID {
			k.broken("%s was accepted as %s, and the journal has %q", killPerson(n), name, byPerson[n].ID)
		}
	}
	for target, names := range ended {
		for name := range names {
			n := -1
			_, _ = fmt.Sscanf(name, "u%03d", &n)
			if _, ok := byPerson[n]; !ok || name != killPerson(n) {
				k.broken("%s: the sessions of %q ended, for which nobody had asked", target, name)
			}
		}
	}
	for target, most := range k.most {
		if most > 8 {
			k.broken("%s saw %d requests of one process at once, but its limit is 8", target, most)
		}
	}
	auditTrail(path, invs, k.broken)
	k.report.add(map[string]int{"invalidations": len(invs)})
}

// ended returns how many sessions are gone, by target and user name.
func (k *killRound) ended() map[string]map[string]int {
	ended := map[string]map[string]int{}
	for _, target := range k.l.targets {
		ended[target] = map[string]int{}
		for n := range killPeople {
			for _, name := range []string{killPerson(n), strings.ToUpper(killPerson(n)), killPerson(n) + "x"} {
				ended[target][name] = 1
			}
		}
		for _, x := range k.l.systems[target].Sessions() {
			delete(ended[target], strings.TrimSuffix(x.Username, "@corp.example"))
		}
		k.report.add(map[string]int{"sessions ended": len(ended[target])})
	}
	return ended
}

func (k *killRound) judgeRun(n int, inv invalidation.Invalidation, r invalidation.Run, gone int) {
	bad := func(format string, args ...any) {
		k.broken("%s at %s (%s): %s", inv.Call.Reason, r.Target, r.State, fmt.Sprintf(format, args...))
	}
	k.report.add(map[string]int{"runs that ended " + string(r.State): 1})
	mutations := 0
	for _, s := range k.sent {
		if s.target != r.Target || s.person != n {
			continue
		}
		mutations++
		if s.at.After(r.ExpireTime.Add(onTheWay)) {
			bad("it expired at %v, and at %v something was sent", r.ExpireTime, s.at)
		}
	}
	judgeCount(r, gone, mutations, bad)
	warned := slices.ContainsFunc(r.Warnings, func(w adapters.Warning) bool { return w.Code == adapters.ReasonOutcomeUnknown })
	switch {
	case !r.State.Final():
		bad("it is not final")
	case r.State == invalidation.RunSucceeded && gone == 0:
		bad("its session is still there")
	case r.State == invalidation.RunCancelled && mutations > 0 && !warned:
		bad("%d requests that change something were sent, and it does not warn of an unknown outcome", mutations)
	case r.State == invalidation.RunUnsupported:
		bad("everybody can be asked for a user")
	}
}
