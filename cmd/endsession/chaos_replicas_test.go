package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// replicaCount gateways share the journal.
	replicaCount = 3
	// replicaPeople are called for while things go wrong.
	replicaPeople = 45
	// replicaTrouble is how long things go wrong.
	replicaTrouble = 14 * time.Second
	// replicaLease is the length of leases: a third of it must be more than a busy machine may dawdle.
	replicaLease = 4 * time.Second
	// afterThaw is how long a replica that was frozen, or whose journal was away, may need to learn what has happened.
	afterThaw = 2 * time.Second
)

// TestChaosReplicas runs three real processes on one PostgreSQL. They are killed, frozen past their leases and cut off from
// the database, and the database crashes, hangs and restarts, while calls stream in, to whichever replica, and targets
// misbehave.
func TestChaosReplicas(t *testing.T) {
	rounds, end := envInt(t, "CHAOS_REPLICAS", 2), chaosEnd(t)
	seed, _ := chaosSeed(t)
	total := &tally{counts: map[string]int{}}
	began := time.Now()
	clusters := make(chan *pgtest.Cluster, 2) // a round crashes its server
	for range cap(clusters) {
		clusters <- pgtest.New(t, pgtest.Fast())
	}
	var running sync.WaitGroup
	carried := 0
	for n := range uint64(rounds) {
		c := <-clusters
		if time.Now().After(end) {
			break
		}
		carried++
		running.Go(func() {
			defer func() { clusters <- c }()
			t.Run(fmt.Sprintf("Seed=%d", seed+n), func(t *testing.T) {
				newReplicaRound(t, c, seed+n).carryOut(total)
				if t.Failed() {
					total.fail(fmt.Sprintf("CHAOS_SEED=%d CHAOS_REPLICAS=1 go test -run '^TestChaosReplicas$' ./cmd/endsession", seed+n))
				}
			})
		})
	}
	running.Wait()
	report(t, fmt.Sprintf("%d rounds with %d replicas on PostgreSQL in %v, from seed %d on", carried, replicaCount, time.Since(began).Round(time.Second), seed), total)
}

// replicaRound is one round: the replicas, their database and what happens to them.
type replicaRound struct {
	*realRound
	cluster *pgtest.Cluster
	schema  string // where the journal is, as a search path
	jumps   bool   // the database's clock does
	pool    *pgxpool.Pool
	nodes   []*replica
	host    *chaos // carries out what goes wrong within the targets

	// Guarded by realRound's mu:
	tokens  map[string]int // which replica a BIG-IQ token was given to
	pauses  map[string][]pauseSpan
	story   strings.Builder
	began   time.Time
	planned []plannedEvent
	clock   []clockSpan // how far the database's clock was ahead

	ofDatabase sync.Mutex // one thing at a time happens to it
}

// replica is one of the gateways, by its place: a process that was killed is followed by another.
type replica struct {
	n      int
	path   string
	env    map[string]string
	proxy  *pgtest.Proxy // between it and the database
	client atomic.Pointer[endsessionv1.SessionServiceClient]

	happens sync.Mutex // one thing at a time

	// Guarded by realRound's mu:
	process *process
	owners  []string // the names in leases of its processes
	thawed  time.Time
	working map[string]int  // what it was working on when it was frozen, by target
	late    map[string]bool // what it has sent since that it should not have
	deaf    []pauseSpan     // when it could not hear what others do
}

// plannedEvent is what happens to a replica or to the database.
type plannedEvent struct {
	at   time.Duration
	name string
	do   func()
}

func newReplicaRound(t *testing.T, c *pgtest.Cluster, seed uint64) *replicaRound {
	k := &replicaRound{realRound: newRealRound(t, seed, replicaPeople), cluster: c, tokens: map[string]int{}, pauses: map[string][]pauseSpan{}}
	k.journalTime = k.byItsClock
	k.longest, k.retryFor = 250*time.Millisecond, [2]time.Duration{2 * time.Second, 20 * time.Second}
	for target, limit := range limits {
		k.limits[target] = limit.concurrency
	}
	k.from, k.counts, k.check, k.enters, k.reach = k.sender, func(u *underWay) bool { return !u.excess }, k.owned, k.thawing, k.client
	k.host = &chaos{
		t: t, l: k.l, began: time.Now(), counts: map[string]int{}, seen: map[string]*seenSession{}, tasks: map[string]*attemptCall{},
		endedTasks: map[string][]bigiqtest.Task{}, targetLocks: map[string]*sync.Mutex{}, bigiq: map[string]*bigiqtest.Server{},
		kibana: k.l.systems["kibana-prod"].(*kibanatest.Server), element: k.l.systems["storage"].(*elementtest.Server),
	}
	for _, target := range chaosTargets {
		k.host.targetLocks[target] = &sync.Mutex{}
		if b, ok := k.l.systems[target].(*bigiqtest.Server); ok {
			k.host.bigiq[target] = b
		}
	}
	k.schema = c.Schema(t)
	k.clock = []clockSpan{{}}
	if k.jumps = dice(seed, "clock").IntN(4) == 0; k.jumps {
		k.ownClock()
	}
	k.configure()
	k.plan(dice(seed, "replicas"))
	return k
}

// ownClock puts a clock of our own before the database's.
func (k *replicaRound) ownClock() {
	name := k.schema + "_clock"
	k.cluster.Exec(k.t, fmt.Sprintf(`CREATE SCHEMA %[1]s;
CREATE TABLE %[1]s.ahead (by interval NOT NULL);
INSERT INTO %[1]s.ahead VALUES ('0');
CREATE FUNCTION %[1]s.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
  AS 'SELECT pg_catalog.clock_timestamp() + by FROM %[1]s.ahead';
CREATE FUNCTION %[1]s.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
  AS 'SELECT pg_catalog.statement_timestamp() + by FROM %[1]s.ahead'`, name))
	k.schema += "," + name + ",pg_catalog"
}

// jump puts the database's clock forward or back.
func (k *replicaRound) jump(by time.Duration) {
	k.ofDatabase.Lock() // it is there
	defer k.ofDatabase.Unlock()
	k.mu.Lock()
	ahead := k.clock[len(k.clock)-1].ahead + by
	k.clock = append(k.clock, clockSpan{time.Now(), ahead})
	for u := range k.under {
		u.excess = true // its sender learns at its next heartbeat that others may have its slots
	}
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(k.t.Context(), patience)
	defer cancel()
	for {
		_, err := k.pool.Exec(ctx, `UPDATE ahead SET by = $1`, ahead)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			k.broken("put the clock: %v", err)
			return
		}
	}
	k.mu.Lock()
	k.clock[len(k.clock)-1].from = time.Now()
	k.mu.Unlock()
	k.count("jumps of the database's clock")
}

// jumped reports whether the database's clock has jumped so lately that a replica may not know. The lock is held.
func (k *replicaRound) jumped(at time.Time) bool {
	last := k.clock[len(k.clock)-1]
	return len(k.clock) > 1 && at.Sub(last.from) < afterThaw
}

// byItsClock returns the earliest that a replica may have taken a moment for.
func (k *replicaRound) byItsClock(at time.Time) time.Time {
	var earliest time.Time
	for i, x := range k.clock {
		if i+1 < len(k.clock) && k.clock[i+1].from.Before(at.Add(-afterThaw)) || x.from.After(at) {
			continue
		}
		if t := at.Add(x.ahead); earliest.IsZero() || t.Before(earliest) {
			earliest = t
		}
	}
	return earliest
}

// configure writes a configuration for each replica. They differ in their way to the database and in their secrets, by
// which requests are told from each other's.
func (k *replicaRound) configure() {
	t, dir := k.t, k.t.TempDir()
	const dsn = "postgres://somewhere"
	path := labConfig{dir: dir, urls: k.l.serve(t, dir, k.learn), listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"},
		change: replicated(t, dsn, replicaLease.String())}.write(t)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range replicaCount {
		r := &replica{n: n, path: filepath.Join(dir, fmt.Sprintf("replica-%d.yaml", n)), proxy: pgtest.NewProxy(t, k.cluster.Addr())}
		r.env = map[string]string{"KIBANA_API_KEY": labKibanaKey + mark(n), "ELEMENT_PASSWORD": labElementPassword + mark(n)}
		password := fmt.Sprintf("bigiq.password-%d", n)
		own := strings.NewReplacer(dsn, k.cluster.DSNAt(r.proxy.Addr(), k.schema).Reveal(), "bigiq.password", password).Replace(string(text))
		for path, content := range map[string]string{r.path: own, filepath.Join(dir, password): labBIGIQPassword + mark(n)} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k.nodes = append(k.nodes, r)
	}
	cfg, err := pgxpool.ParseConfig(k.cluster.DSN(k.schema).Reveal())
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 8
	cfg.ConnConfig.RuntimeParams["statement_timeout"] = "2000"
	if k.pool, err = pgxpool.NewWithConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.pool.Close)
}

// --- who has sent a request ---

// mark is what a replica's secrets end with.
func mark(n int) string { return fmt.Sprintf("-replica%d", n) }

var (
	marked      = regexp.MustCompile(`-replica([0-9])`)
	bigiqTokens = regexp.MustCompile(`"token" *: *"([^"]+)"`)
)

// sender finds out which replica has sent a request, by its secret or its token, and puts the true secret in its place.
func (k *replicaRound) sender(target string, r *http.Request, body []byte) (int, []byte) {
	auth := r.Header.Get("Authorization")
	scheme, coded, _ := strings.Cut(auth, " ")
	if plain, err := base64.StdEncoding.DecodeString(coded); err == nil && marked.Match(plain) {
		n := int(marked.FindSubmatch(plain)[1][0] - '0')
		r.Header.Set("Authorization", scheme+" "+base64.StdEncoding.EncodeToString(marked.ReplaceAll(plain, nil)))
		return n, body
	}
	if found := marked.FindSubmatch(body); found != nil {
		return int(found[1][0] - '0'), marked.ReplaceAll(body, nil)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if n, ok := k.tokens[target+" "+r.Header.Get("X-F5-Auth-Token")]; ok {
		return n, body
	}
	for _, found := range bigiqTokens.FindAllSubmatch(body, -1) {
		if n, ok := k.tokens[target+" "+string(found[1])]; ok {
			return n, body
		}
	}
	return -1, body
}

// learn is wrap, and notes which tokens a replica is given.
func (k *replicaRound) learn(target string, h http.Handler) http.Handler {
	if k.host.bigiq[target] == nil {
		return k.wrap(target, h)
	}
	return k.wrap(target, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		if strings.Contains(r.URL.Path, "/authn/") {
			n, _ := r.Context().Value(senderKey{}).(int)
			k.mu.Lock()
			for _, found := range bigiqTokens.FindAllSubmatch(answer.Body.Bytes(), -1) {
				k.tokens[target+" "+string(found[1])] = n
			}
			k.mu.Unlock()
		}
		for name, v := range answer.Header() {
			w.Header()[name] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
}

// owned checks, before a request that could end sessions takes effect, that its sender holds the lease on the run: by the
// database, which is the only one to know. A replica that was frozen between its own look and the sending may be late by
// that one request of each run; a cancellation by another replica takes a moment to be heard of; and a request that left
// right before its run expired may arrive when its sender has given up.
func (k *replicaRound) owned(u *underWay) {
	if u.sender < 0 || u.person < 0 {
		k.broken("%s was sent a request that changes something by replica %d for person %d", u.target, u.sender, u.person)
		return
	}
	k.mu.Lock()
	r := k.nodes[u.sender]
	owners := r.names()
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Second)
	defer cancel()
	var held, over int
	var of string
	err := k.pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE r.lease_owner = ANY ($3) AND r.lease_until > clock_timestamp()),
  count(*) FILTER (WHERE r.state = 'CANCELLED' AND r.complete_time > clock_timestamp() - interval '3 s'
    OR r.lease_owner IS NULL AND r.expire_time BETWEEN clock_timestamp() - interval '3 s' AND clock_timestamp()),
  string_agg(concat_ws(' ', r.state, r.lease_owner, r.lease_until - clock_timestamp()), ', ')
FROM runs AS r JOIN invalidations AS i ON i.id = r.invalidation_id WHERE r.target = $1 AND i.user_id = $2`,
		u.target, killPerson(u.person), owners).Scan(&held, &over, &of)
	if err != nil {
		k.count("leases that could not be looked up: the database was away")
		return
	}
	k.count("leases looked up when a kill arrived")
	if held > 0 || over > 0 {
		return
	}
	k.mu.Lock()
	key := fmt.Sprint(u.target, u.person)
	jumped := k.jumped(u.at)
	u.late = !jumped && !r.thawed.IsZero() && u.at.Sub(r.thawed) < afterThaw && !r.late[key]
	if u.late {
		r.late[key] = true
	}
	k.mu.Unlock()
	if jumped {
		k.count("requests whose lease was over when the clock jumped")
		return
	}
	if u.late {
		k.count("late requests of a replica that was frozen")
		return
	}
	k.say("BROKEN lease: replica %d at %s for %d: %s", u.sender, u.target, u.person, of)
	k.broken("replica %d sent %s a request that changes something for %s without holding the lease; the runs are %s",
		u.sender, u.target, killPerson(u.person), of)
}

// --- what happens ---

// plan decides what happens to each replica, to the database and to the targets.
func (k *replicaRound) plan(d *rand.Rand) {
	for _, r := range k.nodes {
		at := span(d, 500*time.Millisecond, replicaTrouble/2)
		for range 1 + d.IntN(3) {
			long := span(d, 100*time.Millisecond, 2*time.Second)
			switch d.IntN(6) {
			case 0, 1, 2:
				k.event(at, fmt.Sprintf("kill replica %d for %v", r.n, long), func() { k.kill(r, long) })
			case 3:
				k.event(at, fmt.Sprintf("freeze replica %d for %v", r.n, long), func() { k.freeze(r, long, "replicas frozen for a moment (SIGSTOP)") })
			case 4:
				long += replicaLease
				k.event(at, fmt.Sprintf("freeze replica %d for %v", r.n, long), func() { k.freeze(r, long, "replicas frozen past their leases (SIGSTOP)") })
			case 5:
				long += span(d, 0, replicaLease)
				k.event(at, fmt.Sprintf("cut replica %d off from the database for %v", r.n, long), func() { k.cutOff(r, long) })
			}
			at += long + span(d, 0, 4*time.Second)
		}
		if d.IntN(3) == 0 {
			p := 0.02 + 0.1*d.Float64()
			rolls := dice(k.seed, "answers of the database", r.n)
			from := span(d, 0, replicaTrouble/2)
			long := span(d, 0, replicaTrouble-from)
			k.event(from, fmt.Sprintf("replica %d loses answers of the database for %v", r.n, long), func() { k.loseAnswers(r, p, rolls, long) })
		}
	}
	for range d.IntN(3) {
		down := span(d, 0, 2500*time.Millisecond)
		at := span(d, time.Second, replicaTrouble*3/4)
		switch d.IntN(4) {
		case 0, 1:
			k.event(at, fmt.Sprintf("crash the database for %v", down), func() { k.database("database crashes", k.cluster.Kill, k.restartDatabase, down) })
		case 2:
			k.event(at, fmt.Sprintf("stop the database for %v", down), func() { k.database("database restarts in order", k.cluster.Stop, k.restartDatabase, down) })
		case 3:
			k.event(at, fmt.Sprintf("freeze the database for %v", down), func() {
				var thaw func()
				k.database("database frozen", func() { thaw = k.cluster.Freeze() }, func() { thaw() }, down)
			})
		}
	}
	for _, target := range k.l.targets {
		if d.IntN(4) == 0 {
			from, first := span(d, 0, replicaTrouble*3/4), d.IntN(replicaCount)
			long := span(d, 3*time.Second, 7*time.Second)
			k.event(from, fmt.Sprintf("pause %s for %v", target, long), func() {
				k.pause(first, target)
				time.Sleep(long)
				k.resume(first+1, target)
			})
		}
	}
	if d.IntN(2) == 0 {
		first, batch := d.IntN(replicaCount), fmt.Sprint(d.IntN(10))
		k.event(span(d, 0, replicaTrouble), "cancel batch "+batch, func() {
			k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
				_, err := client.CancelInvalidations(ctx, &endsessionv1.CancelInvalidationsRequest{Label: "batch=" + batch})
				return err
			})
			k.count("cancels by label")
		})
	}
	for range 1 + d.IntN(3) {
		by, at := span(d, 500*time.Millisecond, 10*time.Second), span(d, time.Second, replicaTrouble)
		if d.IntN(2) == 0 {
			by = -by
		}
		if k.jumps {
			k.event(at, fmt.Sprintf("the database's clock jumps by %v", by), func() { k.jump(by) })
		}
	}
	within := &schedule{seed: k.seed, calm: replicaTrouble}
	within.upstreamTrouble(dice(k.seed, "trouble within the targets"))
	for _, a := range within.actions {
		k.event(a.at, a.name, func() { a.do(k.host) })
	}
	calls := dice(k.seed, "moments of the calls")
	for n := range replicaPeople {
		k.event(span(calls, 0, replicaTrouble), "", func() { k.call(n) })
	}
	slices.SortStableFunc(k.planned, func(a, b plannedEvent) int { return cmp.Compare(a.at, b.at) })
}

func (k *replicaRound) event(at time.Duration, name string, do func()) {
	k.planned = append(k.planned, plannedEvent{at, name, do})
}

func (k *replicaRound) say(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fmt.Fprintf(&k.story, "%8.3f  %s\n", time.Since(k.began).Seconds(), fmt.Sprintf(format, args...))
}

// carryOut lives through the round, until everything that was accepted is final.
func (k *replicaRound) carryOut(total *tally) {
	k.began = time.Now()
	for _, r := range k.nodes {
		k.start(r)
	}
	k.began = time.Now()
	// What happens to one replica, or to the database, happens in its order; the rest when its time has come.
	var happening sync.WaitGroup
	for _, e := range k.planned {
		happening.Go(func() {
			time.Sleep(e.at - time.Since(k.began))
			if e.name != "" {
				k.say("* %s", e.name)
			}
			e.do()
		})
	}
	happening.Go(func() {
		time.Sleep(replicaTrouble - time.Since(k.began))
		k.calm.Store(true)
		k.say("* calm")
	})
	happening.Wait()
	for _, target := range k.l.targets {
		for n := range k.nodes {
			k.resume(n, target) // it also ends what a 401 has parked
		}
	}
	k.settle(*k.nodes[0].client.Load())
	k.lookAround()
	for _, r := range k.nodes {
		r.process.terminate(k.t)
	}
	for _, r := range k.nodes {
		if status := r.process.wait(k.t); status != 0 {
			k.t.Errorf("replica %d ended with status %d", r.n, status)
		}
		if strings.Contains(r.process.log.String(), k.cluster.Password()) {
			k.t.Error("a gateway's log holds the database's password")
		}
	}
	store, err := postgres.Open(k.t.Context(), postgres.Options{DSN: k.cluster.DSN(k.schema)})
	if err != nil {
		k.t.Fatal(err)
	}
	invs := k.list(store)
	k.judge(invs, k.host.lied)
	k.judgePauses()
	judgeAudit(k.audit(), invs, k.broken)
	total.add(k.report.counts)
	total.add(k.host.counts)
	if len(k.wrong) > 0 || os.Getenv("CHAOS_LOG") != "" {
		k.t.Log("\n" + k.story.String())
	}
	for _, text := range k.wrong {
		k.t.Error(text)
	}
}

// client returns a client of the i-th replica, nil while it is down. A frozen one has a client; it does not answer.
func (k *replicaRound) client(i int) endsessionv1.SessionServiceClient {
	if c := k.nodes[i%len(k.nodes)].client.Load(); c != nil {
		return *c
	}
	return nil
}

// start begins a replica's next process. It does not start while the database is away: it is started until it does.
func (k *replicaRound) start(r *replica) {
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(50 * time.Millisecond) {
		p := beginWith(k.t, r.env, r.path)
		k.mu.Lock()
		r.process = p
		k.mu.Unlock()
		if p.serving() {
			client := p.client(k.t)
			r.client.Store(&client)
			k.mu.Lock()
			owners := r.names()
			k.mu.Unlock()
			k.say("replica %d serves as %s", r.n, owners[len(owners)-1])
			return
		}
		p.kill()
		k.count("starts without a database")
		if time.Now().After(deadline) {
			k.broken("replica %d does not start:\n%s", r.n, p.log)
			return
		}
	}
}

// names are those in the leases of its processes. The lock is held: the latest tells its own before it begins anything.
func (r *replica) names() []string {
	for line := range strings.Lines(r.process.log.String()) {
		var entry struct{ Owner string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Owner != "" {
			if !slices.Contains(r.owners, entry.Owner) {
				r.owners = append(r.owners, entry.Owner)
			}
			break
		}
	}
	return slices.Clone(r.owners)
}

// serving waits until the process serves; it reports false if it ended, or does not get there.
func (p *process) serving() bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.ended:
			return false
		default:
		}
		if p.listens() {
			return true
		}
	}
	return false
}

// kill ends a replica's process and starts another after a while.
func (k *replicaRound) kill(r *replica, down time.Duration) {
	r.happens.Lock()
	defer r.happens.Unlock()
	r.client.Store(nil)
	r.process.kill()
	k.count("replicas killed (SIGKILL)")
	time.Sleep(down)
	k.start(r)
}

// freeze stops a replica's process and lets it go on. What it had under way when its lease can have ended does not count
// towards the targets' limits: others have its slots by then.
func (k *replicaRound) freeze(r *replica, long time.Duration, what string) {
	r.happens.Lock()
	defer r.happens.Unlock()
	thaws := time.Now().Add(long)
	if err := r.process.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		k.broken("freeze replica %d: %v", r.n, err)
		return
	}
	defer k.deafened(r)()
	k.count(what)
	working := k.leases(r)
	time.Sleep(min(time.Until(thaws), replicaLease/3)) // leases are not relied on in their last third
	k.mu.Lock()
	for u := range k.under {
		if u.sender == r.n {
			u.excess = true
		}
	}
	k.mu.Unlock()
	time.Sleep(time.Until(thaws))
	k.mu.Lock()
	r.thawed, r.working, r.late = time.Now(), working, map[string]bool{}
	k.mu.Unlock()
	if err := r.process.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		k.broken("thaw replica %d: %v", r.n, err)
	}
}

// leases counts what a replica is working on, by target.
func (k *replicaRound) leases(r *replica) map[string]int {
	working := map[string]int{}
	k.mu.Lock()
	owners := r.names()
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Second)
	defer cancel()
	rows, err := k.pool.Query(ctx, `SELECT target, count(*) FROM runs WHERE lease_owner = ANY ($1) GROUP BY target`, owners)
	if err == nil {
		var target string
		var n int
		_, err = pgx.ForEachRow(rows, []any{&target, &n}, func() error { working[target] = n; return nil })
	}
	if err != nil { // nobody can know
		for target, limit := range k.limits {
			working[target] = limit
		}
	}
	return working
}

// thawing lets what a replica had begun before it was frozen exceed a target's limit, and nothing more. The lock is held.
func (k *replicaRound) thawing(u *underWay) {
	if u.sender < 0 {
		return
	}
	r := k.nodes[u.sender]
	if k.jumped(u.at) {
		u.excess = true
		return
	}
	if r.thawed.IsZero() || u.at.Sub(r.thawed) > afterThaw {
		return
	}
	excess := 0
	for x := range k.under {
		if x.excess && x.sender == u.sender && x.target == u.target {
			excess++
		}
	}
	u.excess = excess < r.working[u.target]
}

// cutOff keeps a replica from the database; its targets and its callers still reach it.
func (k *replicaRound) cutOff(r *replica, long time.Duration) {
	r.happens.Lock()
	defer r.happens.Unlock()
	defer k.deafened(r)()
	k.count("replicas cut off from the database")
	cut := func([]byte) pgtest.Verdict { return pgtest.Cut }
	r.proxy.Hook(cut, cut)
	r.proxy.Break()
	time.Sleep(long)
	r.proxy.Hook(nil, nil)
}

// loseAnswers breaks a replica's connections now and then when the database has been asked and before it has answered.
func (k *replicaRound) loseAnswers(r *replica, p float64, rolls *rand.Rand, long time.Duration) {
	defer k.deafened(r)()
	var mu sync.Mutex
	r.proxy.Hook(func([]byte) pgtest.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if rolls.Float64() < p {
			k.count("connections to the database that broke before an answer")
			return pgtest.PassAndCut
		}
		return pgtest.Pass
	}, nil)
	time.Sleep(long)
	r.proxy.Hook(nil, nil)
}

// database lets something happen to the database and ends it after a while.
func (k *replicaRound) database(what string, begin, end func(), long time.Duration) {
	k.ofDatabase.Lock()
	defer k.ofDatabase.Unlock()
	for _, r := range k.nodes {
		defer k.deafened(r)()
	}
	k.count(what)
	begin()
	time.Sleep(long)
	end()
}

func (k *replicaRound) restartDatabase() {
	if err := k.cluster.Restart(); err != nil {
		k.broken("the database does not start: %v", err)
	}
}

// deafened notes that a replica cannot hear what others do, until the function it returns is called.
func (k *replicaRound) deafened(r *replica) (hears func()) {
	from := time.Now()
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		r.deaf = append(r.deaf, pauseSpan{from, time.Now().Add(afterThaw)})
	}
}

func (k *replicaRound) pause(first int, target string) {
	k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		_, err := client.PauseTarget(ctx, &endsessionv1.PauseTargetRequest{Target: target})
		return err
	})
	k.count("pauses")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pauses[target] = append(k.pauses[target], pauseSpan{from: time.Now().Add(afterThaw)}) // the others have heard of it
}

func (k *replicaRound) resume(first int, target string) {
	k.mu.Lock()
	if n := len(k.pauses[target]); n > 0 && k.pauses[target][n-1].to.IsZero() {
		k.pauses[target][n-1].to = time.Now()
	}
	k.mu.Unlock()
	k.insist(first, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
		_, err := client.ResumeTarget(ctx, &endsessionv1.ResumeTargetRequest{Target: target})
		return err
	})
}

// judgePauses: nothing that changes something is sent to a target after everybody who can hear has heard of its pause.
func (k *replicaRound) judgePauses() {
	in := func(at time.Time) func(pauseSpan) bool {
		return func(s pauseSpan) bool { return at.After(s.from) && at.Before(s.to) }
	}
	for _, u := range k.sent {
		if u.sender >= 0 && slices.ContainsFunc(k.pauses[u.target], in(u.at)) && !slices.ContainsFunc(k.nodes[u.sender].deaf, in(u.at)) {
			k.broken("replica %d sent %s a request that changes something for %d although it was paused", u.sender, u.target, u.person)
		}
	}
}

// lookAround lists everything at every replica: all show the same.
func (k *replicaRound) lookAround() {
	for n := range k.nodes {
		req := &endsessionv1.ListInvalidationsRequest{PageSize: 20}
		for more := true; more; {
			k.insistAt(n, func(ctx context.Context, client endsessionv1.SessionServiceClient) error {
				resp, err := client.ListInvalidations(ctx, req)
				if err != nil {
					return err
				}
				for _, inv := range resp.GetInvalidations() {
					k.shown(inv)
				}
				req.PageToken = resp.GetNextPageToken()
				more = req.GetPageToken() != ""
				return nil
			})
		}
	}
}

// insistAt is insist at one replica.
func (k *replicaRound) insistAt(n int, f func(context.Context, endsessionv1.SessionServiceClient) error) {
	k.insist(n, func(ctx context.Context, _ endsessionv1.SessionServiceClient) error { return f(ctx, k.client(n)) })
}

// audit reads the audit trail.
func (k *replicaRound) audit() []auditEvent {
	rows, err := k.pool.Query(k.t.Context(), `SELECT chain, seq, (extract(epoch FROM time) * 1000000)::bigint AS at, type,
  coalesce(invalidation_id, ''), coalesce(target, '') FROM audit ORDER BY chain, seq`)
	if err != nil {
		k.t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[auditEvent])
	if err != nil {
		k.t.Fatal(err)
	}
	return events
}
