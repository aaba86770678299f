package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// order is what the upstreams of the comparison are sent: whose sessions are to end.
type order struct {
	Users []string `json:"users"`
}

// done is what they answer.
type done struct {
	Ended int `json:"ended"`
}

// probe is the beginning of the names of users whose first request's arrival the upstream remembers.
const probe = "probe-"

// playUpstream answers every order alike: at once under /0s/, after 20 ms under /20ms/, and so on. It stands for all
// targets: what follows the delay in the path tells them apart.
func playUpstream(context.Context, []string) (map[string]string, func() error, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	var bare, gateway upstreamCounts
	var arrivals sync.Map // user → time.Time
	answer, err := json.Marshal(done{Ended: 2})
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		counts := &gateway
		if r.UserAgent() == bareAgent[0] {
			counts = &bare
		}
		counts.requests.Add(1)
		if !r.Context().Value(connectionKey{}).(*atomic.Bool).Swap(true) {
			counts.connections.Add(1)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if strings.Contains(string(body), probe) {
			now := time.Now()
			var o order
			if json.Unmarshal(body, &o) == nil {
				arrivals.LoadOrStore(o.Users[0], now)
			}
		}
		word, _, _ := strings.Cut(r.URL.Path[1:], "/")
		if word != "0s" {
			delay, err := time.ParseDuration(word)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			time.Sleep(delay)
		}
		w.Header()["Content-Type"] = jsonType
		_, _ = w.Write(answer)
	})
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(upstreamReport{bare.load(), gateway.load()})
	})
	mux.HandleFunc("GET /arrivals", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string]time.Time{}
		arrivals.Range(func(user, at any) bool { all[user.(string)] = at.(time.Time); return true })
		_ = json.NewEncoder(w).Encode(all)
	})
	server := &http.Server{Handler: mux, ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, new(atomic.Bool))
	}}
	go func() { _ = server.Serve(listener) }()
	return map[string]string{"http": listener.Addr().String()}, server.Close, nil
}

var jsonType = []string{"application/json"}

// connectionKey leads to whether a connection has carried a request.
type connectionKey struct{}

// upstreamCounts is what the upstream has seen of one sort of client; connections are those that carried a request.
type upstreamCounts struct{ requests, connections atomic.Int64 }

func (c *upstreamCounts) load() seen { return seen{c.requests.Load(), c.connections.Load()} }

// upstreamReport is what the upstream tells of what it has seen.
type upstreamReport struct{ Bare, Gateway seen }

type seen struct {
	Requests    int64 `json:"requests"`
	Connections int64 `json:"connections"`
}
