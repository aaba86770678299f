package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

const (
	// killsPerRound kill processes that share one journal; then everything must come to its end.
	killsPerRound = 10
	// killPeople are enough that the callers never run out of them.
	killPeople = 220
	// killCallers call at once.
	killCallers = 12
)

// TestChaosKills kills real processes with SIGKILL at random moments while calls stream in, and starts others on the
// same journal.
func TestChaosKills(t *testing.T) {
	kills, end := envInt(t, "CHAOS_KILLS", 6), chaosEnd(t)
	seed, _ := chaosSeed(t)
	total := &tally{counts: map[string]int{}}
	began := time.Now()
	type round struct {
		seed  uint64
		kills int
	}
	rounds := make(chan round)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for r := range rounds {
				t.Run(fmt.Sprintf("Seed=%d", r.seed), func(t *testing.T) {
					carryOutKills(t, r.seed, r.kills, total)
					if t.Failed() {
						total.fail(fmt.Sprintf("CHAOS_SEED=%d CHAOS_KILLS=%d go test -run '^TestChaosKills$' ./cmd/endsession", r.seed, r.kills))
					}
				})
			}
		})
	}
	for n := uint64(0); kills > 0 && time.Now().Before(end); n++ {
		r := round{seed + n, min(kills, killsPerRound)}
		rounds <- r
		kills -= r.kills
	}
	close(rounds)
	workers.Wait()
	report(t, fmt.Sprintf("%d kills of real processes in %v, from seed %d on", total.counts["kills (SIGKILL)"], time.Since(began).Round(time.Second), seed), total)
}

func carryOutKills(t *testing.T, seed uint64, kills int, total *tally) {
	k := newRealRound(t, seed, killPeople)
	for _, target := range k.l.targets {
		k.limits[target] = 8
	}
	// Each process keeps to the limit; what a dead one has left behind is not counted.
	killed := 0
	k.from = func(_ string, _ *http.Request, body []byte) (int, []byte) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return killed, body
	}
	k.counts = func(u *underWay) bool { return u.sender == killed }
	dir := t.TempDir()
	path := labConfig{dir: dir, urls: k.l.serve(t, dir, k.wrap), listen: [3]string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}}.write(t)

	p := serve(t, path)
	var client atomic.Pointer[endsessionv1.SessionServiceClient]
	connect := func() { c := p.client(t); client.Store(&c) }
	connect()
	k.reach = func(int) endsessionv1.SessionServiceClient { return *client.Load() }
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
	moments := dice(seed, "moments")
	for range kills {
		time.Sleep(span(moments, 0, 900*time.Millisecond))
		p.kill()
		k.mu.Lock()
		killed++
		k.mu.Unlock()
		k.count("kills (SIGKILL)")
		p = serve(t, path)
		connect()
	}
	k.over.Store(true)
	k.calm.Store(true)
	callers.Wait()
	k.settle(*client.Load())
	p.terminate(t)
	if status := p.wait(t); status != 0 {
		t.Errorf("the last process ended with status %d", status)
	}
	invs := k.journal(filepath.Join(dir, "endsession.db"))
	k.judge(invs, false)
	auditTrail(filepath.Join(dir, "endsession.db"), invs, k.broken)
	total.add(k.report.counts)
	for _, text := range k.wrong {
		t.Error(text)
	}
}

// settle waits until nothing is under way any more.
func (k *realRound) settle(client endsessionv1.SessionServiceClient) {
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

// journal reads what the last process has left.
func (k *realRound) journal(path string) []invalidation.Invalidation {
	store, err := sqlite.Open(k.t.Context(), sqlite.Options{Path: path})
	if err != nil {
		k.t.Fatalf("the journal cannot be opened: %v", err)
	}
	return k.list(store)
}

// list returns all invalidations of a journal, and closes it.
func (k *realRound) list(store invalidation.Store) []invalidation.Invalidation {
	invs, more, err := store.List(k.t.Context(), invalidation.Query{Limit: 1000})
	if err != nil || more {
		k.t.Fatalf("list: %v, more %t", err, more)
	}
	if err := store.Close(); err != nil {
		k.t.Error(err)
	}
	return invs
}
