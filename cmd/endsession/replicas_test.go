package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// floor is what happens at the systems' doors: every request takes a while, and is counted.
type floor struct {
	// delay is how long a system takes to answer.
	delay time.Duration
	// hold, if set, may block a request; if it returns false the request has no effect and is not answered.
	hold func(ctx context.Context, target, method, path, body string) bool

	mu       sync.Mutex
	inFlight map[string]int
	most     map[string]int
	arrivals map[string][]arrival
}

// arrival is a request.
type arrival struct {
	at      time.Time
	body    string
	mutates bool
}

func (f *floor) wrap(target string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		f.mu.Lock()
		f.inFlight[target]++
		f.most[target] = max(f.most[target], f.inFlight[target])
		f.arrivals[target] = append(f.arrivals[target], arrival{time.Now(), string(body), mutates(target, r.Method, r.URL.Path, body)})
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			f.inFlight[target]--
			f.mu.Unlock()
		}()
		if f.hold != nil && !f.hold(r.Context(), target, r.Method, r.URL.Path, string(body)) {
			panic(http.ErrAbortHandler)
		}
		select {
		case <-time.After(f.delay):
		case <-r.Context().Done():
		}
		h.ServeHTTP(w, r) // it takes effect even if nobody waits for the answer any more
	})
}

// at returns the most requests that were under way at a target at once, and all that arrived.
func (f *floor) at(target string) (most int, arrivals []arrival) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most[target], slices.Clone(f.arrivals[target])
}

// mutations counts the changing requests at a target whose body holds a text.
func (f *floor) mutations(target, text string) (n int) {
	_, all := f.at(target)
	for _, a := range all {
		if a.mutates && strings.Contains(a.body, text) {
			n++
		}
	}
	return n
}

// limits are those of the targets in the replicas' configuration.
var limits = map[string]struct {
	concurrency int
	rate        float64 // 0 is none
}{"apm": {4, 50}, "apm-all": {8, 0}, "kibana-prod": {3, 60}, "storage": {2, 0}}

// replicas are gateways that share a journal in PostgreSQL and nothing else.
type replicas struct {
	*lab
	t       *testing.T
	floor   *floor
	dsn     string
	path    string
	all     []*process
	clients []endsessionv1.SessionServiceClient
}

// newReplicas starts so many gateways.
func newReplicas(t *testing.T, c *pgtest.Cluster, lease string, n int) *replicas {
	t.Helper()
	r := &replicas{lab: newLab(), t: t, dsn: c.DSN(c.Schema(t)).Reveal(),
		floor: &floor{delay: 20 * time.Millisecond, inFlight: map[string]int{}, most: map[string]int{}, arrivals: map[string][]arrival{}}}
	dir := t.TempDir()
	urls := r.serve(t, dir, r.floor.wrap)
	r.path = labConfig{dir: dir, urls: urls, listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"},
		change: replicated(t, r.dsn, lease)}.write(t)
	r.start(n)
	t.Cleanup(func() {
		for _, p := range r.all {
			if strings.Contains(p.log.String(), c.Password()) {
				t.Error("a gateway's log holds the database's password")
			}
		}
	})
	return r
}

// replicated puts the journal into PostgreSQL, and sets the limits that the tests hold replicas to.
func replicated(t *testing.T, dsn, lease string) func(string) string {
	return func(text string) string {
		for old, with := range map[string]string{
			"sqlite: { path: ./endsession.db }":                     fmt.Sprintf("postgres: { dsn: %q, lease: %s }", dsn, lease),
			"    concurrency: 8\n":                                  "    concurrency: 4\n",
			"    usernames: ['user.email']\n":                       "    usernames: ['user.email']\n    concurrency: 3\n    rate: 60/s\n",
			"    usernames:\n      - { provider: local":             "    concurrency: 2\n    usernames:\n      - { provider: local",
			"    rate: 50/s\n    retry_for: 24h\n  - name: apm-all": "    rate: 50/s\n    retry_for: 1h\n  - name: apm-all",
		} {
			if strings.Count(text, old) != 1 {
				t.Fatalf("the configuration has %d times %q", strings.Count(text, old), old)
			}
			text = strings.Replace(text, old, with, 1)
		}
		return text
	}
}

// start adds gateways.
func (r *replicas) start(n int) {
	r.t.Helper()
	for range n {
		p := serve(r.t, r.path)
		r.all, r.clients = append(r.all, p), append(r.clients, p.client(r.t))
	}
}

// fill signs people in everywhere, once at each target, and returns their IDs.
func (r *replicas) fill(prefix string, n int) (ids []string) {
	for i := range n {
		id := fmt.Sprintf("%s%03d", prefix, i)
		ids = append(ids, id)
		for target, s := range map[string]adapters.Session{
			"apm":         {Username: id, Device: bigiqtest.Blue1},
			"apm-all":     {Username: id, Device: bigiqtest.Lone},
			"kibana-prod": {Username: id + "@corp.example", Provider: adapters.Provider{Type: "saml", Name: "saml2"}},
			"storage": {Username: id, Provider: adapters.Provider{Type: "Cluster"}, Groups: []adapters.Group{
				{Kind: "access_group", Name: "read"}, {Kind: "cluster_admin_id", Name: fmt.Sprint(1000 + i)},
			}},
		} {
			s.CreateTime = time.Now().Add(-time.Hour)
			r.systems[target].SignIn(s)
		}
	}
	return ids
}

// signedIn reports whether somebody made by fill is signed in at a target.
func (r *replicas) signedIn(target, id string) bool {
	return slices.ContainsFunc(r.systems[target].Sessions(), func(x adapters.Session) bool {
		return x.Username == id || x.Username == id+"@corp.example"
	})
}

// bystanders checks that nobody but those who were called is gone: neither of these, nor of the lab.
func (r *replicas) bystanders(ids ...string) {
	r.t.Helper()
	for _, target := range r.targets {
		if gone := r.gone(target); len(gone) != 0 {
			r.t.Errorf("%s: signed out %v of the lab, whom nobody named", target, gone)
		}
		for _, id := range ids {
			if !r.signedIn(target, id) {
				r.t.Errorf("%s: %s is signed out, whom nobody named", target, id)
			}
		}
	}
}

// bounds checks the limits that all replicas keep to together. extra is how many more requests may have been under way.
func (r *replicas) bounds(extra int) {
	r.t.Helper()
	for target, limit := range limits {
		most, arrivals := r.floor.at(target)
		if most > limit.concurrency+extra {
			r.t.Errorf("%s: %d requests under way at once, want %d at most", target, most, limit.concurrency+extra)
		}
		if limit.rate == 0 {
			continue
		}
		// Requests may arrive in bunches on a busy machine; each replica on its own rate would be three times the bound.
		const window = 3 * time.Second
		for i := range arrivals {
			n, _ := slices.BinarySearchFunc(arrivals[i:], arrivals[i].at.Add(window), func(a arrival, t time.Time) int { return a.at.Compare(t) })
			if bound := int(limit.rate * window.Seconds() * 1.3); n > bound {
				r.t.Errorf("%s: %d requests in %v, want about %v", target, n, window, limit.rate*window.Seconds())
				break
			}
		}
		r.t.Logf("%s: %d requests, %d at once", target, len(arrivals), most)
	}
}

func person(id string) *endsessionv1.Selector {
	return &endsessionv1.Selector{User: &endsessionv1.User{Id: id, Email: proto.String(id + "@corp.example")}}
}

// call is accepted by the first replica of the list, beginning with that one, that answers.
func (r *replicas) call(ctx context.Context, first int, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	for try := 0; ; try++ {
		// A connection to a process that was killed may break only when it is used: the same request again is the same call.
		resp, err := r.clients[(first+try)%len(r.clients)].InvalidateSessions(ctx, req)
		if err == nil || status.Code(err) != codes.Unavailable || try > 100 {
			return resp, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// must makes a call that is answered as soon as it is accepted, and returns the name.
func (r *replicas) must(replica int, id string, targets ...string) string {
	r.t.Helper()
	resp, err := r.clients[replica].InvalidateSessions(r.t.Context(), &endsessionv1.InvalidateSessionsRequest{
		Selector: person(id), Targets: targets, WaitTimeout: durationpb.New(0),
	})
	if err != nil {
		r.t.Fatalf("replica %d: %v", replica, err)
	}
	return resp.GetInvalidation().GetName()
}

// get waits at a replica for the final state.
func (r *replicas) get(replica int, name string, wait time.Duration) *endsessionv1.Invalidation {
	r.t.Helper()
	resp, err := r.clients[replica].GetInvalidation(r.t.Context(), &endsessionv1.GetInvalidationRequest{Name: name, WaitTimeout: durationpb.New(wait)})
	if err != nil {
		r.t.Fatalf("replica %d: get %s: %v", replica, name, err)
	}
	return resp.GetInvalidation()
}

// runWord is a run's state without its prefix.
func runWord(r *endsessionv1.Run) string {
	return strings.TrimPrefix(r.GetState().String(), "RUN_STATE_")
}

// truthful checks a final invalidation of somebody made by fill against the systems.
func (r *replicas) truthful(inv *endsessionv1.Invalidation, id string) {
	r.t.Helper()
	if got := stateWord(inv.GetState()); got != "SUCCEEDED" {
		text, _ := json.MarshalIndent(inv, "", " ")
		r.t.Errorf("%s: state %s, want SUCCEEDED\n%s", id, got, text)
	}
	for _, run := range inv.GetRuns() {
		target := run.GetTarget()
		if r.signedIn(target, id) {
			r.t.Errorf("%s: %s is still signed in", target, id)
		}
		switch n := run.GetInvalidatedCount(); {
		case strings.HasPrefix(target, "apm"):
			if run.InvalidatedCount != nil {
				r.t.Errorf("%s: %s: count %d, but a BIG-IQ never tells", target, id, n)
			}
		case run.InvalidatedCount == nil && !run.GetCountIsMinimum(), n > 1, n < 1 && !run.GetCountIsMinimum():
			r.t.Errorf("%s: %s: count %d (minimum: %t), but one session ended", target, id, n, run.GetCountIsMinimum())
		}
	}
}

// query reads rows of the journal.
func query[T any](r *replicas, scan func(pgx.CollectableRow) (T, error), sql string, args ...any) []T {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.dsn)
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, scan)
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// owner is the name in leases of the only process that runs.
func (r *replicas) owner() string {
	r.t.Helper()
	owners := query(r, pgx.RowTo[string], `SELECT DISTINCT owner FROM target_slots WHERE owner IS NOT NULL`)
	if len(owners) != 1 {
		r.t.Fatalf("%d owners hold slots, want one", len(owners))
	}
	return owners[0]
}

// leased is a run under a lease.
type leased struct {
	ID    string
	Idx   int
	Token int64
	Until time.Time
}

// leases are those of an owner; they are for ever what they are once it is dead.
func (r *replicas) leases(owner string) []leased {
	return query(r, pgx.RowToStructByPos[leased],
		`SELECT invalidation_id, idx, lease_token, lease_until FROM runs WHERE lease_owner = $1`, owner)
}

// endings counts the audit events that end a run.
func (r *replicas) endings(name, target string) int {
	return query(r, pgx.RowTo[int], `SELECT count(*) FROM audit WHERE invalidation_id = $1 AND target = $2
  AND type IN ('run.succeeded', 'run.failed', 'run.unsupported', 'run.cancelled')`, strings.TrimPrefix(name, "invalidations/"), target)[0]
}

// TestReplicas runs three gateways on one PostgreSQL, reached through nothing but a list of addresses.
func TestReplicas(t *testing.T) {
	c := pgtest.New(t, pgtest.Fast())
	for name, test := range map[string]func(*testing.T, *pgtest.Cluster){
		"OneIsKilledUnderLoad":                            killedUnderLoad,
		"AllSeeEveryChange":                               allSeeEveryChange,
		"ARequestIDIsOneInvalidation":                     oneRequestID,
		"OneIsFrozenPastItsLease":                         frozenPastItsLease,
		"APauseStopsAll":                                  pauseStopsAll,
		"ACancellationBreaksOffWhatAnotherOneIsWorkingOn": cancelledElsewhere,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
}

func killedUnderLoad(t *testing.T, c *pgtest.Cluster) {
	const length, calls = 4 * time.Second, 36
	r := newReplicas(t, c, "4s", 1)
	owner := r.owner()
	r.start(2)
	goers, stayers := r.fill("goer", calls), r.fill("stayer", 10)
	r.floor.delay = 60 * time.Millisecond

	var mu sync.Mutex
	names := map[string]string{}
	work := make(chan int)
	var callers sync.WaitGroup
	for range 4 { // about as many as a target works on at once: what is taken over finds no long queue
		callers.Go(func() {
			for i := range work {
				resp, err := r.call(t.Context(), i, &endsessionv1.InvalidateSessionsRequest{
					Selector: person(goers[i]), WaitTimeout: durationpb.New(patience), RequestId: proto.String(uuid.NewString()),
				})
				if err != nil {
					t.Errorf("%s: %v", goers[i], err)
					continue
				}
				r.truthful(resp.GetInvalidation(), goers[i])
				mu.Lock()
				names[goers[i]] = resp.GetInvalidation().GetName()
				mu.Unlock()
			}
		})
	}
	next := 0
	for ; next < calls/3 || next < calls && len(r.leases(owner)) < 2; next++ {
		work <- next
	}
	r.all[0].kill()
	killed := time.Now()
	dead := r.leases(owner)
	if len(dead) == 0 {
		t.Error("the replica that was killed was not at work")
	}
	callers.Go(func() {
		defer close(work)
		for ; next < calls; next++ {
			work <- next // the address of the dead one stays in the list
		}
	})
	taken := map[leased]bool{}
	eventually(t, "the others take over", func() bool {
		now := r.leases(owner)
		for _, l := range dead {
			if !taken[l] && !slices.Contains(now, l) {
				taken[l] = true
				if late := time.Since(l.Until); late > 2*time.Second || l.Until.After(killed.Add(length)) {
					t.Errorf("%s/%d was taken over %v after the end of its lease, which was %v after the kill", l.ID, l.Idx, late, l.Until.Sub(killed))
				}
			}
		}
		return len(taken) == len(dead)
	})
	t.Logf("%d runs of the dead replica were taken over", len(taken))
	callers.Wait()
	for i, id := range goers {
		r.truthful(r.get(1+i%2, names[id], 0), id)
	}
	r.bystanders(stayers...)
	r.bounds(0)
}

func allSeeEveryChange(t *testing.T, c *pgtest.Cluster) {
	r := newReplicas(t, c, "30s", 3)
	id := r.fill("goer", 1)[0]
	opened := make(chan struct{})
	r.floor.hold = func(ctx context.Context, target, _, _, _ string) bool {
		if target == "kibana-prod" {
			select {
			case <-opened:
			case <-ctx.Done():
			}
		}
		return true
	}
	name := r.must(0, id)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := r.clients[1].WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	type waited struct {
		inv *endsessionv1.Invalidation
		at  time.Time
	}
	done := make(chan waited, 1)
	go func() {
		resp, err := r.clients[2].GetInvalidation(ctx, &endsessionv1.GetInvalidationRequest{Name: name, WaitTimeout: durationpb.New(patience)})
		if err != nil {
			t.Errorf("the waiter: %v", err)
		}
		done <- waited{resp.GetInvalidation(), time.Now()}
	}()
	eventually(t, "the other targets are done", func() bool {
		inv := r.get(0, name, 0)
		return runWord(runAt(inv, "storage")) == "SUCCEEDED"
	})
	close(opened)
	last, seen := first.GetInvalidation(), 1
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		inv := resp.GetInvalidation()
		if inv.GetRevision() <= last.GetRevision() {
			t.Errorf("revision %d after %d", inv.GetRevision(), last.GetRevision())
		}
		last, seen = inv, seen+1
	}
	if seen < 3 {
		t.Errorf("the watcher saw %d states, want one while others were done at least", seen)
	}
	r.truthful(last, id)
	got := <-done
	r.truthful(got.inv, id)
	if late := got.at.Sub(got.inv.GetCompleteTime().AsTime()); late > 2*time.Second {
		t.Errorf("the waiter was woken %v after the end", late)
	}
	r.bystanders()
	r.bounds(0)
}

func oneRequestID(t *testing.T, c *pgtest.Cluster) {
	r := newReplicas(t, c, "30s", 3)
	for _, id := range r.fill("goer", 5) {
		request := &endsessionv1.InvalidateSessionsRequest{
			Selector: person(id), WaitTimeout: durationpb.New(0), RequestId: proto.String(uuid.NewString()), Targets: []string{"kibana-prod"},
		}
		var mu sync.Mutex
		names, fresh := map[string]bool{}, 0
		var callers sync.WaitGroup
		for _, client := range r.clients {
			for range 2 {
				callers.Go(func() {
					resp, err := client.InvalidateSessions(t.Context(), request)
					if err != nil {
						t.Errorf("%s: %v", id, err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					names[resp.GetInvalidation().GetName()] = true
					if !resp.GetReplayed() {
						fresh++
					}
				})
			}
		}
		callers.Wait()
		if len(names) != 1 || fresh != 1 {
			t.Errorf("%s: one request id was %d invalidations, accepted %d times", id, len(names), fresh)
		}
		for name := range names {
			r.truthful(r.get(2, name, patience), id)
		}
	}
	if n := query(r, pgx.RowTo[int], `SELECT count(*) FROM invalidations`)[0]; n != 5 {
		t.Errorf("%d invalidations, want 5", n)
	}
	r.bounds(0)
}

func frozenPastItsLease(t *testing.T, c *pgtest.Cluster) {
	const length = 3 * time.Second
	r := newReplicas(t, c, "3s", 1)
	owner := r.owner()
	goers := r.fill("goer", 5)
	const target = "kibana-prod"
	frozen := limits[target].concurrency // requests of the first replica that are held up

	var mu sync.Mutex
	held, opened := 0, make(chan struct{})
	open := sync.OnceFunc(func() { close(opened) })
	t.Cleanup(open)
	reached := make(chan struct{})
	r.floor.hold = func(ctx context.Context, at, method, path, body string) bool {
		if !mutates(at, method, path, []byte(body)) {
			return true
		}
		mu.Lock()
		held++
		n := held
		mu.Unlock()
		if n == frozen {
			close(reached)
		}
		if n <= frozen {
			<-opened // whatever becomes of the sender
		}
		return true
	}
	names := map[string]string{}
	for _, id := range goers {
		names[id] = r.must(0, id, target)
	}
	<-reached
	first := r.all[0]
	if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	if n := len(r.leases(owner)); n != frozen {
		t.Fatalf("the frozen replica has %d leases, want %d", n, frozen)
	}
	r.start(2)
	finals := map[string]*endsessionv1.Invalidation{}
	for i, id := range goers {
		finals[id] = r.get(1+i%2, names[id], patience)
		r.truthful(finals[id], id)
	}
	if took := time.Since(stopped); took < length/2 || took > 4*length {
		t.Errorf("its runs were finished %v after it was frozen with leases of %v", took, length)
	}
	if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	before := r.floor.mutations(target, "")
	open()
	// It learns that what it was working on is not its own any more.
	eventually(t, "the late replica gives up", func() bool {
		log := first.log.String()
		return strings.Count(log, "run is no longer ours")+strings.Count(log, "run was ended or taken over meanwhile") >= frozen
	})
	eventually(t, "the late replica serves", func() bool {
		resp, err := r.clients[0].GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{Name: names[goers[0]]})
		return err == nil && resp.GetInvalidation() != nil
	})
	if n := r.floor.mutations(target, ""); n != before {
		t.Errorf("the late replica sent %d changing requests under leases that had ended", n-before)
	}
	for _, id := range goers {
		if n := r.endings(names[id], target); n != 1 {
			t.Errorf("%s: ended %d times", id, n)
		}
		if now := r.get(1, names[id], 0); !proto.Equal(now, finals[id]) {
			t.Errorf("%s: changed after its end:\n%v\nwas\n%v", id, now, finals[id])
		}
	}
	r.bystanders()
	r.bounds(frozen)
}

func pauseStopsAll(t *testing.T, c *pgtest.Cluster) {
	r := newReplicas(t, c, "30s", 3)
	goers := r.fill("goer", 6)
	const target = "storage"
	if _, err := r.clients[1].PauseTarget(t.Context(), &endsessionv1.PauseTargetRequest{Target: target}); err != nil {
		t.Fatal(err)
	}
	targetState := func(replica int) string {
		resp, err := r.clients[replica].ListTargets(t.Context(), &endsessionv1.ListTargetsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range resp.GetTargets() {
			if x.GetName() == target {
				return strings.TrimPrefix(x.GetState().String(), "TARGET_STATE_")
			}
		}
		return ""
	}
	asked := time.Now()
	for replica := range r.all {
		eventually(t, "the pause is known", func() bool { return targetState(replica) == "PAUSED" })
	}
	if took := time.Since(asked); took > 3*time.Second {
		t.Errorf("all knew of the pause after %v", took)
	}
	names := map[string]string{}
	for i, id := range goers {
		names[id] = r.must(i%3, id)
	}
	for i, id := range goers {
		eventually(t, "the others are done", func() bool {
			inv := r.get((i+1)%3, names[id], 0)
			return !slices.ContainsFunc(inv.GetRuns(), func(x *endsessionv1.Run) bool {
				return x.GetTarget() != target && runWord(x) != "SUCCEEDED"
			})
		})
		if run := runAt(r.get(i%3, names[id], 0), target); runWord(run) != "PENDING" {
			t.Errorf("%s: %s at the paused target", id, runWord(run))
		}
	}
	if _, all := r.floor.at(target); len(all) != 0 {
		t.Errorf("a paused target was sent %d requests", len(all))
	}
	if _, err := r.clients[2].ResumeTarget(t.Context(), &endsessionv1.ResumeTargetRequest{Target: target}); err != nil {
		t.Fatal(err)
	}
	for i, id := range goers {
		r.truthful(r.get((i+2)%3, names[id], patience), id)
	}
	r.bystanders()
	r.bounds(0)
}

func cancelledElsewhere(t *testing.T, c *pgtest.Cluster) {
	r := newReplicas(t, c, "30s", 1) // a heartbeat, 10 s, would be too late
	ids := r.fill("goer", 2)
	const target = "kibana-prod"
	opened := make(chan struct{})
	reached, left := make(chan struct{}), make(chan time.Time, 1)
	var once sync.Once
	r.floor.hold = func(ctx context.Context, at, method, path, body string) bool {
		if !mutates(at, method, path, []byte(body)) || !strings.Contains(body, ids[0]) {
			return true
		}
		once.Do(func() { close(reached) })
		select {
		case <-ctx.Done():
			left <- time.Now()
		case <-opened:
		}
		return false
	}
	t.Cleanup(func() { close(opened) })
	name := r.must(0, ids[0], target)
	<-reached
	r.start(2)
	asked := time.Now()
	resp, err := r.clients[2].CancelInvalidation(t.Context(), &endsessionv1.CancelInvalidationRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	run := runAt(resp.GetInvalidation(), target)
	if runWord(run) != "CANCELLED" || !slices.ContainsFunc(run.GetWarnings(), func(w *endsessionv1.Warning) bool { return w.GetCode() == "OUTCOME_UNKNOWN" }) {
		t.Errorf("cancelled while a request was under way: %v", run)
	}
	select {
	case at := <-left:
		if took := at.Sub(asked); took > 3*time.Second {
			t.Errorf("the request was broken off after %v", took)
		}
	case <-time.After(patience):
		t.Fatal("the request was not broken off")
	}
	// Its slot is free again, and everybody can work.
	r.truthful(r.get(0, r.must(1, ids[1]), patience), ids[1])
	if n := r.endings(name, target); n > 1 {
		t.Errorf("ended %d times", n)
	}
	if !r.signedIn(target, ids[0]) {
		t.Error("the request that was broken off had an effect in this test; it should have none")
	}
	r.bystanders(ids[0])
	r.bounds(0)
}

// TestReplicasOutliveTheirDatabase crashes the database under load and starts it again.
func TestReplicasOutliveTheirDatabase(t *testing.T) {
	c := pgtest.New(t, pgtest.Fast())
	r := newReplicas(t, c, "5s", 3)
	ready := func() (yes int) {
		for _, p := range r.all {
			resp, err := http.Get(p.admin + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				yes++
			}
		}
		return yes
	}
	if n := ready(); n != 3 {
		t.Fatalf("%d replicas are ready, want 3", n)
	}
	goers, refused, later := r.fill("goer", 15), r.fill("refused", 9), r.fill("later", 3)
	r.floor.delay = 60 * time.Millisecond
	names := map[string]string{}
	for i, id := range goers {
		names[id] = r.must(i%3, id)
	}
	c.Kill()
	eventually(t, "nobody is ready", func() bool { return ready() == 0 })
	for i, id := range refused {
		_, err := r.clients[i%3].InvalidateSessions(t.Context(), &endsessionv1.InvalidateSessionsRequest{
			Selector: person(id), WaitTimeout: durationpb.New(0), RequestId: proto.String(uuid.NewString()),
		})
		if status.Code(err) != codes.Unavailable || errorReason(err) != "NOT_ACCEPTED" {
			t.Errorf("%s: %v (%s), want Unavailable and NOT_ACCEPTED", id, err, errorReason(err))
		}
	}
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are ready again", func() bool { return ready() == 3 })
	for i, id := range later {
		names[id] = r.must(i%3, id)
	}
	for i, id := range slices.Sorted(maps.Keys(names)) {
		r.truthful(r.get(i%3, names[id], patience), id)
	}
	for _, target := range r.targets {
		for _, id := range refused {
			if n := r.floor.mutations(target, id); n != 0 {
				t.Errorf("%s: %d requests for %s, whose call was not accepted", target, n, id)
			}
		}
	}
	if n := query(r, pgx.RowTo[int], `SELECT count(*) FROM invalidations`)[0]; n != len(names) {
		t.Errorf("%d invalidations, want %d", n, len(names))
	}
	r.bystanders(refused...)
	r.bounds(0)
}

// errorReason is the reason in an error's details.
func errorReason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}
