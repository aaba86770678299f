//go:build unix

package sqlite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
	"github.com/google/uuid"
)

// BenchmarkAcceptAndRecord is what a call that is served at once costs: one acceptance with three runs that begin at once,
// and their three answers.
func BenchmarkAcceptAndRecord(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s, err := sqlite.Open(b.Context(), sqlite.Options{Path: filepath.Join(b.TempDir(), "journal.db")})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.ReportAllocs()
			work := make(chan struct{})
			errs := make(chan error, callers)
			if err := serve(b.Context(), s); err != nil { // statements are prepared
				b.Fatal(err)
			}
			cpu, pages := cpuTime(b), pagesWritten(b, s)
			b.ResetTimer()
			for range callers {
				go func() {
					var err error
					for range work {
						if err == nil {
							err = serve(b.Context(), s)
						}
					}
					errs <- err
				}()
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			for range callers {
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(pagesWritten(b, s)-pages)/float64(b.N), "pages/op")
		})
	}
}

// cpuTime is the CPU time that the process has used, with what the kernel did for it.
func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func pagesWritten(b *testing.B, s *sqlite.Store) int {
	n, err := s.PagesWritten(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// serve journals one call with three targets, each answered by a goroutine of its own, as the engine does.
func serve(ctx context.Context, s invalidation.Store) error {
	now := time.Now()
	id := uuid.Must(uuid.NewV7()).String()
	caller := invalidation.Caller{Kind: "api_key", Name: "helpdesk"}
	inv := invalidation.Invalidation{ID: id, Caller: caller, CreateTime: now,
		Call: invalidation.Call{Selector: invalidation.Selector{User: &invalidation.User{ID: "alice-" + id}}, Reason: "left the company"}}
	for _, target := range []string{"apm", "kibana-prod", "storage"} {
		inv.Runs = append(inv.Runs, invalidation.Run{Target: target, Kind: "kibana", Fingerprint: "0123456789abcdef0123456789abcdef",
			State: invalidation.RunPending, ExpireTime: now.Add(24 * time.Hour),
			Selector: &adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}}}})
	}
	inv, _, leases, err := s.Accept(ctx, invalidation.Acceptance{Invalidation: inv, Owner: "me", LeaseLength: 30 * time.Second,
		Start: []int{0, 1, 2}, RequestID: id, Digest: []byte(id),
		Events: []invalidation.Event{{Time: now, Type: "invalidation.accepted", Caller: caller, InvalidationID: id, Data: []byte(`{"targets":3}`)}}})
	if err != nil {
		return err
	}
	errs := make(chan error, len(leases))
	for _, l := range leases {
		go func() {
			run := inv.Runs[l.Run]
			run.State, run.CompleteTime = invalidation.RunSucceeded, time.Now()
			run.Counted, run.Count, run.Verification = true, 2, adapters.ConfirmedByRepeat
			run.Covered = []string{"saml", "basic", "token"}
			_, err := s.Record(ctx, l, run, []invalidation.Event{{Time: now, Type: "run.succeeded", Caller: caller, InvalidationID: id,
				Target: run.Target, Data: []byte(`{"attempts":1,"count":2,"verification":"CONFIRMED_BY_REPEAT"}`)}})
			errs <- err
		}()
	}
	for range leases {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return err
}

// BenchmarkJournalled is what the verbs cost beside what is journalled already; it should not be told from the numbers.
func BenchmarkJournalled(b *testing.B) {
	for _, n := range []int{10, 10_000, 1_000_000} {
		if n > 10_000 && testing.Short() {
			continue
		}
		b.Run(fmt.Sprintf("invalidations=%d", n), func(b *testing.B) {
			s, err := sqlite.Open(b.Context(), sqlite.Options{Path: filepath.Join(b.TempDir(), "journal.db"), Timeout: time.Hour})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			for start := 0; start < n; start += 10_000 {
				if err := seed(b.Context(), s, start, min(n, start+10_000)); err != nil {
					b.Fatal(err)
				}
			}
			var last string
			ctx := b.Context()
			must := func(err error) {
				if err != nil {
					b.Fatal(err)
				}
			}
			list := func(q invalidation.Query) func() {
				q.Limit = 20
				return func() { _, _, err := s.List(ctx, q); must(err) }
			}
			for _, verb := range []struct {
				name string
				call func()
			}{
				{"AcceptAndRecord", func() { must(serve(ctx, s)) }},
				{"Get", func() {
					if last == "" {
						invs, _, err := s.List(ctx, invalidation.Query{Limit: 1})
						must(err)
						last = invs[0].ID
					}
					_, err := s.Get(ctx, last)
					must(err)
				}},
				{"ClaimAndRelease", func() {
					claimed, err := s.Claim(ctx, invalidation.Claim{Target: "busy", Owner: "me", Limit: 4, LeaseLength: time.Hour})
					must(err)
					for _, c := range claimed {
						must(s.Release(ctx, c.Lease))
					}
				}},
				{"NextDue", func() { _, _, err := s.NextDue(ctx, "busy"); must(err) }},
				{"List", list(invalidation.Query{})},
				{"List/user", list(invalidation.Query{UserID: "user 7"})},
				{"List/target", list(invalidation.Query{Target: "busy"})},
				{"List/failed", list(invalidation.Query{State: invalidation.Failed})},
				{"List/unfinished", list(invalidation.Query{Unfinished: true})},
				{"List/onlyOf", list(invalidation.Query{OnlyOf: &invalidation.Caller{Kind: "k", Name: "caller 7"}})},
				{"List/label", list(invalidation.Query{Labels: map[string]string{"job": "7"}})},
				{"Unfinished", func() { _, err := s.Unfinished(ctx); must(err) }},
				{"PruneNothing", func() { _, err := s.Prune(ctx, time.Unix(1, 0), 100); must(err) }},
			} {
				b.Run(verb.name, func(b *testing.B) {
					for b.Loop() {
						verb.call()
					}
				})
			}
		})
	}
}

// seed journals invalidations by SQL: of each thousand, ten are unfinished at a target, and as many have failed.
func seed(ctx context.Context, s *sqlite.Store, from, to int) error {
	return s.Change(ctx, func(exec func(string) error) error {
		n := fmt.Sprintf("WITH RECURSIVE n (n) AS (SELECT %d UNION ALL SELECT n + 1 FROM n WHERE n + 1 < %d) ", from, to)
		id := "printf('00%014x-7000-8000-%012x', n, n)"
		for _, q := range []string{
			"INSERT INTO invalidations (id, state, revision, unfinished, allow_unsupported, priority, create_time, complete_time, caller_kind, caller_name, request_id, request_digest, user_id, selector, call) " +
				n + "SELECT " + id + ", CASE n % 100 WHEN 0 THEN 'RUNNING' WHEN 1 THEN 'FAILED' ELSE 'SUCCEEDED' END, 1, n % 100 = 0, 0, 0, 1000000000000000 + n, " +
				"CASE WHEN n % 100 > 0 THEN 2000000000000000 + n END, 'k', 'caller ' || (n % 50), 'request ' || (n * 7919 % 1000003), x'00', 'user ' || (n % 1000), '{}', '{}' FROM n",
			"INSERT INTO labels " + n + "SELECT 'job', n / 50, " + id + " FROM n",
			"INSERT INTO runs (invalidation_id, idx, target, kind, fingerprint, priority, state, open, attempts, expire_time, start_time, complete_time, lease_token, counted, count, count_is_minimum, sessions_truncated, selector) " +
				n + "SELECT " + id + ", t, CASE WHEN n % 100 = 0 THEN 'busy' ELSE 'target ' || t END, 'k', 'f', 0, CASE n % 100 WHEN 0 THEN 'PENDING' WHEN 1 THEN 'FAILED' ELSE 'SUCCEEDED' END, 0, n % 100 > 0, " +
				"4000000000000000, CASE WHEN n % 100 > 0 THEN 1 END, CASE WHEN n % 100 > 0 THEN 2000000000000000 + n END, 0, 0, 0, 0, 0, '{\"by\":[\"all\"]}' FROM n, (SELECT 0 AS t UNION ALL SELECT 1) WHERE n % 100 > 0 OR t = 0",
		} {
			if err := exec(q); err != nil {
				return err
			}
		}
		return nil
	})
}
