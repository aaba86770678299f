package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// The algebra of outcomes: what a run and an invalidation say of themselves is one of few things, means one thing, and is
// true of the targets' own tables of sessions. It is said here once more, as a caller may rely on it, and held against
// schedules of the campaign in which every kind of selector is called for.
//
//	CHAOS_SEED=n CHAOS_SCHEDULES=m go test -run TestOutcomeAlgebra ./cmd/endsession

// algebraSeeds are carried out by every test run, beside a fresh one.
const algebraSeeds = 12

func TestOutcomeAlgebra(t *testing.T) {
	setup, reasons := newChaosSetup(t), documentedReasons(t)
	first, given := chaosSeed(t)
	var seeds []uint64
	if !given {
		for seed := range uint64(algebraSeeds) {
			seeds = append(seeds, seed)
		}
	}
	for i := range max(envInt(t, "CHAOS_SCHEDULES", 0), 1) {
		seeds = append(seeds, first+uint64(i))
	}
	total := &tally{counts: map[string]int{}}
	queue := make(chan uint64)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := range queue {
				t.Run(fmt.Sprintf("Seed=%d", seed), func(t *testing.T) { total.add(carryOutAlgebra(t, setup, reasons, seed)) })
			}
		})
	}
	for _, seed := range seeds {
		queue <- seed
	}
	close(queue)
	workers.Wait()
	report(t, fmt.Sprintf("%d schedules of all selectors", len(seeds)), total)
	if given {
		return
	}
	// A law that nothing was held against has not been tested.
	for _, kind := range []string{"bigiq", "kibana", "element"} {
		for _, state := range []string{"SUCCEEDED", "FAILED", "CANCELLED", "UNSUPPORTED"} {
			if total.counts[kind+" "+state] == 0 {
				t.Errorf("no run at a %s ended %s", kind, state)
			}
		}
	}
	for _, what := range []string{
		"kibana counted exactly", "element counted exactly", "kibana counted at least", "element counted at least", "bigiq not counted",
		"nothing can match", "verification CONFIRMED_BY_LIST", "verification CONFIRMED_BY_REPEAT", "verification UNVERIFIABLE",
		"invalidation SUCCEEDED", "invalidation PARTIALLY_SUCCEEDED", "invalidation FAILED", "invalidation CANCELLED",
		"cancelled with something sent", "cancelled with nothing sent", "snapshots of unfinished runs",
	} {
		if total.counts[what] == 0 {
			t.Errorf("never seen: %s", what)
		}
	}
}

// documentedReasons are those that the API's list of reasons explains.
func documentedReasons(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../proto/endsession/v1/error.proto")
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if row, ok := strings.CutPrefix(line, "// | "); ok {
			cell, _, _ := strings.Cut(row, " | ")
			for _, m := range regexp.MustCompile("`([A-Z_]+)`").FindAllStringSubmatch(cell, -1) {
				reasons[m[1]] = true
			}
		}
	}
	if len(reasons) < 30 {
		t.Fatalf("the list of reasons has only %d", len(reasons))
	}
	return reasons
}

// carryOutAlgebra lives through one schedule.
func carryOutAlgebra(t *testing.T, setup *chaosSetup, reasons map[string]bool, seed uint64) map[string]int {
	t.Helper()
	dir, err := os.MkdirTemp(memoryDisk(), "endsession-algebra-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	counts := map[string]int{}
	synctest.Test(t, func(t *testing.T) {
		a := &algebra{reasons: reasons, seen: counts, runs: map[string][]sight{}}
		s := algebraSchedule(seed)
		for range 60 {
			s.act(span(dice(seed, "looks", len(s.actions)), 0, s.calm), "look at everything", a.look)
		}
		slices.SortStableFunc(s.actions, func(x, y plannedAction) int { return int(x.at - y.at) })
		a.chaos = newChaos(t, setup, s, dir)
		defer func() {
			if len(a.wrong) > 0 || t.Failed() || os.Getenv("CHAOS_LOG") != "" {
				t.Logf("seed %d:\n%s", seed, a.story.String())
			}
			for _, text := range a.wrong {
				t.Errorf("seed %d: %s", seed, text)
			}
		}()
		a.carryOut()
		synctest.Wait()
		a.look(a.chaos)
		a.law()
		a.judge()
	})
	return counts
}

// algebraSchedule calls for every kind of selector, at all targets, in bad weather.
func algebraSchedule(seed uint64) *schedule {
	r := dice(seed, "algebra")
	s := &schedule{
		seed: seed, calm: span(r, 30*time.Second, 5*time.Minute), targets: map[string]weather{}, concurrency: map[string]int{},
		leaseLength: 30 * time.Second, taskTime: span(r, 50*time.Millisecond, 4*time.Second),
		deletionsLag: r.IntN(3) == 0, legacy: r.IntN(4) == 0, late: pick(r, 0, 0.5),
	}
	for _, target := range chaosTargets {
		s.targets[target] = newWeather(dice(seed, "algebra's weather of "+target), s.calm)
		s.concurrency[target] = pick(r, 2, 4, 8)
	}
	s.populate(dice(seed, "algebra's people"))
	for n, sel := range s.everySelector(r) {
		at := span(r, 0, s.calm*8/10)
		s.calls = append(s.calls, plannedCall{
			key: fmt.Sprintf("call-%d", n), at: at, wait: maybe(r, 0.5, time.Millisecond, time.Minute),
			caller: invalidation.Caller{Kind: "anonymous", Name: "anonymous"},
			cancel: maybe(r, 0.25, at+1, at+span(r, 2, 20*time.Second)),
			call: invalidation.Call{
				Selector: sel, ConfirmBroad: true, AllowUnsupported: r.IntN(2) == 0, Reason: fmt.Sprintf("call-%d", n),
				RetryFor: maybe(r, 0.8, 5*time.Second, 6*time.Minute),
			},
		})
		s.signInAround(r, at)
	}
	if r.IntN(2) == 0 {
		s.trouble(dice(seed, "algebra's trouble")) // crashes, pauses, a journal that is away
	} else {
		s.upstreamTrouble(dice(seed, "algebra's trouble"))
	}
	return s
}

// everySelector is every kind of selector there is, in random order, with values that are known, mapped, listed, or not.
func (s *schedule) everySelector(r *rand.Rand) (sels []invalidation.Selector) {
	users := []invalidation.User{
		{ID: "alice"}, {ID: "bob"}, {ID: "zoë"}, {ID: `o"brien,+x`}, {ID: "Alice"}, {ID: "nobody", Email: "nobody@corp.example"},
		{ID: "carol", Email: "carol@corp.example", Attributes: map[string]string{"uid": "c42"}},
		{ID: "alice", TargetUsernames: map[string][]string{"storage": {"bob", dn("zoë")}, "apm": {"alice", "bob", "zoë"}}},
	}
	providers := []invalidation.Provider{
		{Type: "saml"}, {Type: "saml", Name: "okta"}, {Type: "saml", Name: "wide"}, {Type: "saml", Name: "saml2"}, {Type: "saml", Name: "nosuch"},
		{Type: "ldap"}, {Type: "local"}, {Type: "kerberos"},
	}
	groups := []string{"vpn", "ops", "guests", "mixed", "staff", "nosuch"}
	for form := range 8 {
		for range 2 {
			var sel invalidation.Selector
			if form&1 != 0 {
				u := pick(r, users...)
				sel.User = &u
			}
			if form&2 != 0 {
				p := pick(r, providers...)
				sel.Provider = &p
			}
			if form&4 != 0 {
				sel.Group = pick(r, groups...)
			}
			if form == 0 {
				for range 3 {
					if len(s.seats) > 0 {
						x := pick(r, s.seats...)
						sel.Sessions = append(sel.Sessions, invalidation.SessionRef{Target: x.target, Device: x.session.Device, ID: x.session.ID})
					}
				}
				sel.All = len(sel.Sessions) == 0
			}
			sels = append(sels, sel)
		}
	}
	if r.IntN(2) == 0 {
		sels = append(sels, invalidation.Selector{All: true})
	}
	r.Shuffle(len(sels), func(i, j int) { sels[i], sels[j] = sels[j], sels[i] })
	return sels
}

// algebra is a schedule and what its runs said of themselves over time.
type algebra struct {
	*chaos
	reasons map[string]bool
	seen    map[string]int
	runs    map[string][]sight // what each look at a run has shown
}

// sight is what a run was said to be like at a moment.
type sight struct {
	at  time.Time
	run invalidation.Run
}

// all lists every invalidation there is.
func (a *algebra) all(g *gateway) ([]invalidation.Invalidation, error) {
	var all []invalidation.Invalidation
	q := invalidation.Query{Limit: 500}
	for {
		invs, more, err := g.engine.List(context.Background(), invalidation.Caller{}, q)
		if err != nil {
			return nil, err
		}
		all = append(all, invs...)
		if !more {
			return all, nil
		}
		q.Before = invs[len(invs)-1].ID
	}
}

// look remembers what everything is said to be like.
func (a *algebra) look(*chaos) {
	g := a.current()
	if g == nil {
		return
	}
	all, err := a.all(g)
	if err != nil {
		return // the process has died meanwhile
	}
	for _, inv := range all {
		unfinished := false
		for _, r := range inv.Runs {
			key := inv.ID + " at " + r.Target
			a.runs[key] = append(a.runs[key], sight{time.Now(), r})
			unfinished = unfinished || !r.State.Final()
			if !r.State.Final() {
				a.seen["snapshots of unfinished runs"]++
			}
		}
		if unfinished == inv.State.Final() {
			a.broken("%s is %s, and runs are unfinished: %t", inv.Call.Reason, inv.State, unfinished)
		}
	}
}

// law holds everything that was said against the algebra.
func (a *algebra) law() {
	all, err := a.all(a.now)
	if err != nil {
		a.broken("list: %v", err)
		return
	}
	for _, inv := range all {
		a.lawOfInvalidation(inv)
		for _, r := range inv.Runs {
			bad := func(format string, args ...any) {
				a.broken("%s at %s (%s): %s", inv.Call.Reason, r.Target, r.State, fmt.Sprintf(format, args...))
			}
			a.lawOfRun(inv, r, bad)
			a.lawOfTime(inv.ID, a.runs[inv.ID+" at "+r.Target], bad)
		}
	}
}

// lawOfTime: nothing that was said is ever taken back. An attempt is, when it was given up before anything was sent: the run
// is then as it was before.
func (a *algebra) lawOfTime(id string, said []sight, bad func(string, ...any)) {
	for i, now := range said {
		if i == 0 {
			continue
		}
		before, after := said[i-1].run, now.run
		switch {
		case before.State.Final() && !reflect.DeepEqual(before, after):
			bad("it was final as %+v and is %+v", before, after)
		case after.State == invalidation.RunPending && slices.ContainsFunc(a.sent, func(s sentRequest) bool {
			return s.mutating && s.by.id == id && s.target == after.Target && s.at.Before(now.at)
		}):
			bad("it says that nothing has been sent, and something has")
		case before.Counted && !after.Counted || after.Count < before.Count || before.CountIsMinimum && !after.CountIsMinimum:
			bad("it counted %t %d, a minimum %t, and then %t %d, %t", before.Counted, before.Count, before.CountIsMinimum, after.Counted, after.Count, after.CountIsMinimum)
		case len(after.Sessions) < len(before.Sessions) || before.SessionsTruncated && !after.SessionsTruncated:
			bad("it named %d sessions, and then %d", len(before.Sessions), len(after.Sessions))
		case !after.State.Final() && (after.Verification != adapters.VerificationUnspecified || !after.CompleteTime.IsZero()):
			bad("it is %s with verification %s, complete at %v", after.State, after.Verification, after.CompleteTime)
		case after.State == invalidation.RunRetrying && after.Error == nil:
			bad("it is tried again, and does not say why")
		}
	}
}

// unsupportedReasons say why a target cannot be asked; nothing was sent.
var unsupportedReasons = []adapters.Reason{
	adapters.ReasonSelectorUnsupported, adapters.ReasonUnknownProvider, adapters.ReasonUnknownGroup, adapters.ReasonNoIdentity,
	adapters.ReasonAmbiguousIdentity, adapters.ReasonTooManyMembers,
}

func (a *algebra) lawOfRun(inv invalidation.Invalidation, r invalidation.Run, bad func(string, ...any)) {
	a.seen[r.Kind+" "+string(r.State)]++
	codes := map[adapters.Reason]int{}
	for _, w := range r.Warnings {
		codes[w.Code]++
		if !a.reasons[string(w.Code)] || w.Message == "" {
			bad("the warning %+v is not documented, or says nothing", w)
		}
	}
	if r.Error != nil && (!a.reasons[string(r.Error.Reason)] || r.Error.Message == "" || r.Error.RetryDelay != 0) {
		bad("the error %+v is not documented, says nothing, or promises another try", *r.Error)
	}
	mutations := 0
	for _, s := range a.sent {
		if s.mutating && s.by.id == inv.ID && s.target == r.Target {
			mutations++
		}
	}
	nothing, unknown := codes[adapters.WarnNothingCanMatch] > 0, codes[adapters.ReasonOutcomeUnknown] > 0

	// The state, and what goes with it.
	if (r.State == invalidation.RunSucceeded) == (r.Error != nil) {
		bad("its error is %v", r.Error)
	}
	if (r.Verification != adapters.VerificationUnspecified) != (r.State == invalidation.RunSucceeded && !nothing) {
		bad("its verification is %s, and nothing can match: %t", r.Verification, nothing)
	}
	if r.Attempts == 0 != r.StartTime.IsZero() || r.CompleteTime.Before(r.StartTime) || r.CompleteTime.Before(inv.CreateTime) || !r.NextAttemptTime.IsZero() || r.Open {
		bad("%d attempts from %v to %v, the next at %v, open %t", r.Attempts, r.StartTime, r.CompleteTime, r.NextAttemptTime, r.Open)
	}
	switch r.State {
	case invalidation.RunSucceeded:
		a.seen["verification "+r.Verification.String()]++
		if nothing {
			a.seen["nothing can match"]++
			if mutations > 0 || !r.Counted || r.Count != 0 || r.CountIsMinimum || len(r.Sessions) > 0 {
				bad("nothing can match, and it sent %d requests and counts %t %d, a minimum %t", mutations, r.Counted, r.Count, r.CountIsMinimum)
			}
		} else if r.Attempts == 0 {
			bad("without an attempt")
		}
		if none := r.Counted && r.Count == 0 && !r.CountIsMinimum && !nothing; none != (codes[adapters.WarnNoSessionMatched] > 0) {
			bad("it counts %t %d, a minimum %t, and warns that no session matched: %t", r.Counted, r.Count, r.CountIsMinimum, !none)
		}
	case invalidation.RunUnsupported:
		if !slices.Contains(unsupportedReasons, r.Error.Reason) {
			bad("its reason is %s", r.Error.Reason)
		}
		if mutations > 0 || r.Counted || r.CountIsMinimum || len(r.Sessions) > 0 || unknown {
			bad("it sent %d requests, counts %t, a minimum %t, unknown %t", mutations, r.Counted, r.CountIsMinimum, unknown)
		}
	case invalidation.RunFailed:
		// Whether a run has expired is the journal's clock to say, when it ended the process's.
		if early := r.ExpireTime.Sub(r.CompleteTime); r.Error.Reason == adapters.ReasonCancelled || r.Error.Reason == adapters.ReasonExpired && early > time.Millisecond {
			bad("%s at %v, it expires at %v", r.Error.Reason, r.CompleteTime, r.ExpireTime)
		}
		if unknown != r.CountIsMinimum && r.Error.Reason != adapters.ReasonOutcomeUnknown {
			bad("the count is a minimum: %t, and it warns of an unknown outcome: %t", r.CountIsMinimum, unknown)
		}
	case invalidation.RunCancelled:
		if r.Error.Reason != adapters.ReasonCancelled {
			bad("its reason is %s", r.Error.Reason)
		}
		if mutations > 0 && !unknown || unknown && r.Attempts == 0 {
			bad("%d requests in %d attempts, and it warns of an unknown outcome: %t", mutations, r.Attempts, unknown)
		}
		if unknown {
			a.seen["cancelled with something sent"]++
		} else {
			a.seen["cancelled with nothing sent"]++
		}
	default:
		bad("it is not final")
	}
	a.lawOfCount(inv, r, nothing, bad)
}

// lawOfCount: a count is there when it is known, exact when it is not called a minimum, and never too high.
func (a *algebra) lawOfCount(inv invalidation.Invalidation, r invalidation.Run, nothing bool, bad func(string, ...any)) {
	killed := a.killedBy(inv.ID, r.Target)
	switch {
	case r.Count < 0 || !r.Counted && (r.Count != 0 || len(r.Sessions) > 0):
		bad("it counts %d and names %d sessions, and says that it does not know", r.Count, len(r.Sessions))
	case r.Kind == "bigiq" && r.Counted && !nothing:
		bad("it counts %d, which no BIG-IQ tells", r.Count)
	case len(r.Sessions) > invalidation.MaxRunSessions || r.SessionsTruncated && len(r.Sessions) < invalidation.MaxRunSessions:
		bad("it names %d sessions, truncated %t", len(r.Sessions), r.SessionsTruncated)
	}
	names := map[adapters.SessionKey]bool{}
	for _, x := range r.Sessions {
		if names[x.Key()] {
			bad("it names %v twice", x.Key())
		}
		names[x.Key()] = true
	}
	if a.lied && r.Kind == "element" {
		return // what is counted then is what a liar says
	}
	exact := r.Counted && !r.CountIsMinimum
	switch {
	case exact && r.Count != len(killed), r.Count > len(killed):
		bad("it counts %d, a minimum %t, and %d ended", r.Count, r.CountIsMinimum, len(killed))
	case !r.Counted && !r.CountIsMinimum && len(killed) > 0 && r.Kind != "bigiq" && r.State != invalidation.RunCancelled:
		bad("it knows of nothing, and %d ended", len(killed))
	case exact && r.Kind == "element" && !r.SessionsTruncated && len(names) != r.Count:
		bad("it counts %d and names %d", r.Count, len(names))
	}
	for key := range names {
		if !slices.ContainsFunc(killed, func(x *seenSession) bool { return x.session.Key() == key }) {
			bad("it names %v, which it did not end", key)
		}
	}
	switch {
	case exact && !nothing:
		a.seen[r.Kind+" counted exactly"]++
	case r.Counted:
		a.seen[r.Kind+" counted at least"]++
	default:
		a.seen[r.Kind+" not counted"]++
	}
}

// lawOfInvalidation: its state and its count are functions of its runs.
func (a *algebra) lawOfInvalidation(inv invalidation.Invalidation) {
	a.seen["invalidation "+string(inv.State)]++
	bad := func(format string, args ...any) {
		a.broken("%s (%s): %s", inv.Call.Reason, inv.State, fmt.Sprintf(format, args...))
	}
	var states []string
	var last time.Time
	sum, killed, short, targets := 0, 0, false, map[string]bool{}
	for _, r := range inv.Runs {
		if !inv.Call.AllowUnsupported || r.State != invalidation.RunUnsupported {
			states = append(states, string(r.State))
		}
		if r.CompleteTime.After(last) {
			last = r.CompleteTime
		}
		sum += r.Count
		killed += len(a.killedBy(inv.ID, r.Target))
		// A run is short when it says so, or when it may have ended some and says no number.
		short = short || r.CountIsMinimum || !r.Counted && (r.State == invalidation.RunSucceeded || r.State != invalidation.RunUnsupported && r.Attempts > 0)
		if targets[r.Target] {
			bad("two runs at %s", r.Target)
		}
		targets[r.Target] = true
	}
	if want := overall(states); string(inv.State) != want {
		bad("its runs are %v, which makes it %s", states, want)
	}
	if !inv.CompleteTime.Equal(last) {
		bad("it was complete at %v, its last run at %v", inv.CompleteTime, last)
	}
	count, known, minimum := inv.InvalidatedCount()
	if count != sum || minimum != short || !known && count != 0 {
		bad("it counts %d (known %t, a minimum %t), its runs %d (%t)", count, known, minimum, sum, short)
	}
	if a.lied && targets["storage"] {
		return
	}
	if count > killed || known && !minimum && count != killed {
		bad("it counts %d, a minimum %t, and %d ended", count, minimum, killed)
	}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		if !slices.Contains(chaosTargets, target) {
			bad("a run at %s", target)
		}
	}
}
