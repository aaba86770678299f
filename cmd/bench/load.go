package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
)

// client makes calls that end one person's sessions.
type client interface {
	// end makes one call and returns an error unless it succeeded, at as many targets as it was to.
	end(ctx context.Context, user string) error
	close()
}

// connections is how many connections the calls of gRPC callers share.
const connections = 4

// grpcClient speaks gRPC.
type grpcClient struct {
	conns   []*grpc.ClientConn
	key     string
	targets int
	wait    *durationpb.Duration // nil: the server's default
	next    atomic.Uint64
}

func newGRPCClient(address, key string, targets, connections int) (*grpcClient, error) {
	c := &grpcClient{key: key, targets: targets}
	for range connections {
		cc, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		c.conns = append(c.conns, cc)
	}
	return c, nil
}

func (c *grpcClient) close() {
	for _, cc := range c.conns {
		_ = cc.Close()
	}
}

// service returns one of the connections, in turn, and the context that its calls need.
func (c *grpcClient) service(ctx context.Context) (context.Context, endsessionv1.SessionServiceClient) {
	if c.key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.key)
	}
	return ctx, endsessionv1.NewSessionServiceClient(c.conns[c.next.Add(1)%uint64(len(c.conns))])
}

func byUser(user string) *endsessionv1.InvalidateSessionsRequest {
	return &endsessionv1.InvalidateSessionsRequest{Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: user}}}
}

// accepted makes one call, and says whether it was answered after all runs had ended.
func (c *grpcClient) accepted(ctx context.Context, user string) (final bool, err error) {
	ctx, service := c.service(ctx)
	resp, err := service.InvalidateSessions(ctx, byUser(user))
	return resp.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING, err
}

func (c *grpcClient) end(ctx context.Context, user string) error {
	req := byUser(user)
	req.WaitTimeout = c.wait
	ctx, service := c.service(ctx)
	resp, err := service.InvalidateSessions(ctx, req)
	if err != nil {
		return err
	}
	inv := resp.GetInvalidation()
	if c.wait != nil && c.wait.AsDuration() == 0 {
		return nil // accepted is all that was asked
	}
	if inv.GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED || len(inv.GetRuns()) != c.targets {
		return fmt.Errorf("%s with %d runs", inv.GetState(), len(inv.GetRuns()))
	}
	return nil
}

// restClient speaks REST.
type restClient struct {
	url, key string
	targets  int
	http     *http.Client
}

func newRESTClient(address, key string, targets int) *restClient {
	return &restClient{"http://" + address + "/v1/sessions:invalidate", key, targets, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4096}}}
}

func (c *restClient) close() { c.http.CloseIdleConnections() }

func (c *restClient) end(ctx context.Context, user string) error {
	body := fmt.Appendf(nil, `{"selector":{"user":{"id":%s}}}`, strconv.Quote(user))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header["Content-Type"] = jsonType
	req.Header.Set("Authorization", "Bearer "+c.key)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	var r struct {
		Invalidation struct {
			State string
			Runs  []json.RawMessage
		}
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return err
	}
	if r.Invalidation.State != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED.String() || len(r.Invalidation.Runs) != c.targets {
		return fmt.Errorf("unexpected answer: %s", answer)
	}
	return nil
}

// counted counts the calls of a client that succeeded.
type counted struct {
	client
	calls *atomic.Int64
}

func (c counted) end(ctx context.Context, user string) error {
	err := c.client.end(ctx, user)
	if err == nil {
		c.calls.Add(1)
	}
	return err
}

// sample is one measurement.
type sample struct {
	Calls int           `json:"calls"`
	Rate  float64       `json:"calls_per_second"`
	P50   time.Duration `json:"p50_ns"`
	P99   time.Duration `json:"p99_ns"`
	// CPU, Allocs and AllocBytes are the server's, per call.
	CPU        time.Duration `json:"cpu_per_call_ns"`
	Allocs     float64       `json:"allocs_per_call"`
	AllocBytes float64       `json:"alloc_bytes_per_call"`
	// Peak is the server's resident memory at most, in bytes, from the beginning of the measurement.
	Peak int64 `json:"peak_bytes"`

	fsync time.Duration // what appendDurably took just before
}

// users makes names that nobody had before.
var users atomic.Int64

func nextUser() string { return fmt.Sprintf("user-%08d", users.Add(1)) }

// measure has so many callers call, each as soon as it was answered, for a while. Any failure is the end: figures of a server
// that fails are none.
func measure(ctx context.Context, server *process, c client, callers int, length time.Duration) (s sample, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	latencies := make([][]time.Duration, callers)
	run := func(length time.Duration, keep bool) time.Duration {
		began := time.Now()
		deadline := began.Add(length)
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for time.Now().Before(deadline) && ctx.Err() == nil {
					at := time.Now()
					if err := c.end(ctx, nextUser()); err != nil {
						cancel(err)
						return
					}
					if keep {
						latencies[i] = append(latencies[i], time.Since(at))
					}
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	run(length/5, false) // connections are made, caches filled
	if err := server.forgetPeak(ctx); err != nil {
		return s, errors.Join(context.Cause(ctx), err)
	}
	before, err := server.usage(ctx)
	if err != nil {
		return s, errors.Join(context.Cause(ctx), err)
	}
	took := run(length, true)
	if ctx.Err() != nil {
		return s, context.Cause(ctx)
	}
	after, err := server.usage(ctx)
	if err != nil {
		return s, err
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	s.Calls = len(all)
	n := float64(s.Calls)
	s.Rate = n / took.Seconds()
	s.P50, s.P99 = quantile(all, 0.5), quantile(all, 0.99)
	s.CPU = time.Duration(float64(after.CPU-before.CPU) / n)
	s.Allocs = float64(after.Allocs-before.Allocs) / n
	s.AllocBytes = float64(after.AllocBytes-before.AllocBytes) / n
	s.Peak = after.Peak
	return s, nil
}

// quantile of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// median of values that need not be sorted.
func median[T float64 | time.Duration | int64](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
