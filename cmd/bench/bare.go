package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// bareAgent tells the upstream whose connections are whose.
var bareAgent = []string{"bare"}

// bareServer is the fan-out that everything is compared with: the same call, answered with the same message, after the
// same requests. It knows neither policy nor journal nor audit, retries nothing and asks nobody who they are.
type bareServer struct {
	endsessionv1.UnimplementedSessionServiceServer
	targets []bareTarget
}

type bareTarget struct {
	name, url string
	client    *http.Client
}

// playBare serves it; the arguments are the upstream's URL and how many targets there are.
func playBare(_ context.Context, args []string) (map[string]string, func() error, error) {
	if len(args) != 2 {
		return nil, nil, errors.New("want the upstream's URL and a number of targets")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return nil, nil, err
	}
	s := &bareServer{}
	for i := range n {
		s.targets = append(s.targets, bareTarget{targetName(i), fmt.Sprintf("%s/%d/end", args[0], i), &http.Client{
			Timeout: time.Minute,
			// The same kind of connections as the gateway's.
			Transport: &http.Transport{MaxIdleConnsPerHost: maxConcurrency, IdleConnTimeout: 90 * time.Second},
		}})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	endsessionv1.RegisterSessionServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	return map[string]string{"grpc": listener.Addr().String()}, func() error { server.Stop(); return nil }, nil
}

// InvalidateSessions asks all targets at once and answers when all have.
func (s *bareServer) InvalidateSessions(ctx context.Context, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	inv := &endsessionv1.Invalidation{State: endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED, Runs: make([]*endsessionv1.Run, len(s.targets))}
	group, ctx := errgroup.WithContext(ctx)
	for i, t := range s.targets {
		group.Go(func() error {
			ended, err := t.end(ctx, req.GetSelector().GetUser().GetId())
			inv.Runs[i] = &endsessionv1.Run{Target: t.name, State: endsessionv1.RunState_RUN_STATE_SUCCEEDED, InvalidatedCount: &ended, Attempts: 1}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return &endsessionv1.InvalidateSessionsResponse{Invalidation: inv}, nil
}

func (t bareTarget) end(ctx context.Context, user string) (int32, error) {
	body, err := json.Marshal(order{[]string{user}})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header["Content-Type"] = jsonType
	req.Header["User-Agent"] = bareAgent
	resp, err := t.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var d done
	if resp.StatusCode != http.StatusOK {
		return 0, errors.New(resp.Status)
	}
	err = json.Unmarshal(answer, &d)
	return int32(d.Ended), err
}
