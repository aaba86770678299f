package postgres_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/postgres/pgtest"
	"github.com/google/uuid"
)

// BenchmarkAcceptAndRecord is what a call that is served at once costs: one acceptance with three runs that begin at once,
// and their three answers.
func BenchmarkAcceptAndRecord(b *testing.B) {
	c := pgtest.New(b, pgtest.Durable())
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := openWith(b, postgres.Options{DSN: c.DSN(c.Schema(b))})
			b.ReportAllocs()
			work := make(chan struct{})
			errs := make(chan error, callers)
			server, process := c.CPU(), ownCPU(b)
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
			b.ReportMetric(perOp(b, ownCPU(b)-process), "cpu-µs/op")
			b.ReportMetric(perOp(b, c.CPU()-server), "server-cpu-µs/op")
		})
	}
}

func perOp(b *testing.B, d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N) }

// ownCPU is the processor time of this process, which is the store's and the callers'.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
