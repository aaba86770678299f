package main

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The campaign: random schedules of calls, faults, crashes and cancels against the real engine, journal and adapters, in
// virtual time. See docs/reliability.md.
//
//	CHAOS_SEED=n        carry out the schedule of this seed, or begin with it
//	CHAOS_SCHEDULES=n   that many schedules, of seeds that follow each other
//	CHAOS_KILLS=n       that many kills of real processes
//	CHAOS_REPLICAS=n    that many rounds with replicas on PostgreSQL
//	CHAOS_MINUTES=n     stop after that long, whatever is left
//	CHAOS_LOG=1         show what happened even if nothing is wrong

// fixedSeeds are carried out by every test run, beside a fresh one.
const fixedSeeds = 24

func envInt(t testing.TB, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// chaosSeeds are the schedules to carry out.
func chaosSeeds(t testing.TB) (seeds []uint64) {
	t.Helper()
	first, given := chaosSeed(t)
	n := envInt(t, "CHAOS_SCHEDULES", 0)
	if n == 0 && !given {
		for seed := range uint64(fixedSeeds) {
			seeds = append(seeds, seed)
		}
	}
	for i := range max(n, 1) {
		seeds = append(seeds, first+uint64(i))
	}
	return seeds
}

// chaosSeed is the seed that was asked for, or a fresh one.
func chaosSeed(t testing.TB) (seed uint64, given bool) {
	t.Helper()
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
		return seed, true
	}
	var fresh [8]byte
	_, _ = rand.Read(fresh[:])
	return binary.LittleEndian.Uint64(fresh[:]) >> 24, false // short enough to be typed
}

// chaosEnd is when to stop.
func chaosEnd(t testing.TB) time.Time {
	if n := envInt(t, "CHAOS_MINUTES", 0); n > 0 {
		return time.Now().Add(time.Duration(n) * time.Minute)
	}
	return time.Now().Add(24 * time.Hour)
}

// tally counts what was seen in all schedules.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
	failed []string // how to see again what has failed
}

func (y *tally) add(counts map[string]int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for what, n := range counts {
		y.counts[what] += n
	}
}

func (y *tally) fail(again string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.failed = append(y.failed, again)
}

// print writes the report, in the order of the words.
func (y *tally) print(out io.Writer) {
	y.mu.Lock()
	defer y.mu.Unlock()
	w := bufio.NewWriter(out)
	defer func() { _ = w.Flush() }()
	for _, what := range slices.Sorted(maps.Keys(y.counts)) {
		fmt.Fprintf(w, "%8d  %s\n", y.counts[what], what)
	}
	for _, again := range y.failed {
		fmt.Fprintf(w, "FAILED    %s\n", again)
	}
}

// report is where the numbers go: to whoever runs the campaign, or into the verbose log of a test.
func report(t testing.TB, title string, y *tally) {
	var text strings.Builder
	fmt.Fprintf(&text, "== %s\n", title)
	y.print(&text)
	if campaign() {
		fmt.Print(text.String())
		return
	}
	t.Log(text.String())
}

// campaign is whether somebody wants to see the numbers.
func campaign() bool {
	return os.Getenv("CHAOS_SCHEDULES")+os.Getenv("CHAOS_KILLS")+os.Getenv("CHAOS_REPLICAS") != ""
}

// TestChaos carries out random schedules and judges each of them.
func TestChaos(t *testing.T) {
	carryOutAll(t, "schedules", chaosSeeds(t), newSchedule)
}

// TestChaosClocks is the same with a clock that jumps: a fifth as many schedules, in which the journal's clock is put forward
// and back by anything from moments to minutes. Nothing is lost or ends twice; nothing is sent after a run's expire time by
// what the process could know of that clock.
func TestChaosClocks(t *testing.T) {
	seeds := chaosSeeds(t)
	carryOutAll(t, "schedules with a clock that jumps", seeds[:(len(seeds)+4)/5], func(seed uint64) *schedule { return newSchedule(seed).jumpy() })
}

func carryOutAll(t *testing.T, what string, seeds []uint64, plan func(seed uint64) *schedule) {
	setup, end := newChaosSetup(t), chaosEnd(t)
	total, name := &tally{counts: map[string]int{}}, t.Name()
	began := time.Now()
	queue := make(chan uint64)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := range queue {
				t.Run(fmt.Sprintf("Seed=%d", seed), func(t *testing.T) {
					c := carryOut(t, setup, plan(seed))
					total.add(c.counts)
					if len(c.wrong) > 0 {
						total.fail(fmt.Sprintf("CHAOS_SEED=%d go test -run '^%s$' ./cmd/endsession", seed, name))
					}
				})
			}
		})
	}
	carried := 0
	for _, seed := range seeds {
		if time.Now().After(end) {
			break
		}
		queue <- seed
		if carried++; carried%500 == 0 && campaign() {
			fmt.Printf("== %d of %d %s after %v\n", carried, len(seeds), what, time.Since(began).Round(time.Second))
		}
	}
	close(queue)
	workers.Wait()
	took := time.Since(began)
	report(t, fmt.Sprintf("%d %s in %v, %.1f a second, from seed %d on", carried, what, took.Round(time.Second/10),
		float64(carried)/took.Seconds(), seeds[0]), total)
}

// carryOut lives through one schedule, in a bubble of virtual time.
func carryOut(t *testing.T, setup *chaosSetup, s *schedule) (c *chaos) {
	t.Helper()
	dir, err := os.MkdirTemp(memoryDisk(), "endsession-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	synctest.Test(t, func(t *testing.T) {
		c = newChaos(t, setup, s, dir)
		defer func() {
			if len(c.wrong) > 0 || t.Failed() || os.Getenv("CHAOS_LOG") != "" {
				t.Logf("seed %d:\n%s", s.seed, c.story.String())
			}
			for _, text := range c.wrong {
				t.Errorf("seed %d: %s", s.seed, text)
			}
		}()
		c.carryOut()
		synctest.Wait() // requests that arrived late are over
		c.judge()
		for _, state := range c.finals {
			c.counts["runs that ended "+state]++
		}
		c.counts["requests to targets"] += len(c.sent)
	})
	return c
}

// memoryDisk is a file system without a disk, where there is one: in virtual time nobody cuts the power, so there is
// nothing to be learnt from the disk's.
func memoryDisk() string {
	const dir = "/dev/shm"
	if f, err := os.CreateTemp(dir, "endsession-chaos-"); err == nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return dir
	}
	return ""
}

// TestChaosReplays: a seed that failed fails again. The same seed sends the same requests, which meet the same faults and
// get the same answers, and its runs end the same. When two runs want the last slot at the very same instant the Go
// scheduler chooses, now and then differently; so two of a few times must be the same, not all of them.
func TestChaosReplays(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector has the scheduler choose at random; make test-fast and make chaos run this test")
	}
	const times = 6
	setup := newChaosSetup(t)
	for seed := range uint64(3) {
		seed += 1000
		var all [][]string
		same := false
		for len(all) < times && !same {
			now := told(carryOut(t, setup, newSchedule(seed)))
			same = slices.ContainsFunc(all, func(before []string) bool { return slices.Equal(before, now) })
			all = append(all, now)
		}
		if !same {
			t.Errorf("seed %d: no two of %d times are the same", seed, times)
		}
	}
}

// told is what happened in a schedule, in an order that does not depend on what happened at the same instant.
func told(c *chaos) []string {
	var list []string
	for _, s := range c.sent {
		list = append(list, fmt.Sprintf("%12.6f process %d: %s at %s: %s %s %s: %d", s.at.Sub(c.began).Seconds(), s.process, s.by.key, s.target, s.method, s.what, s.fault, s.status))
	}
	for run, state := range c.finals {
		id, target, _ := strings.Cut(run, " at ")
		list = append(list, fmt.Sprintf("%s at %s is %s", c.keys[id], target, state))
	}
	slices.Sort(list)
	return list
}
