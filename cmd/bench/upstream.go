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
	var requests, connections atomic.Int64
	var arrivals sync.Map // user → time.Time
	answer, err := json.Marshal(done{Ended: 2})
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
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
		_ = json.NewEncoder(w).Encode(upstreamCounts{requests.Load(), connections.Load()})
	})
	mux.HandleFunc("GET /arrivals", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string]time.Time{}
		arrivals.Range(func(user, at any) bool { all[user.(string)] = at.(time.Time); return true })
		_ = json.NewEncoder(w).Encode(all)
	})
	server := &http.Server{Handler: mux, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}}
	go func() { _ = server.Serve(listener) }()
	return map[string]string{"http": listener.Addr().String()}, server.Close, nil
}

var jsonType = []string{"application/json"}

// upstreamCounts is what the upstream has seen.
type upstreamCounts struct{ Requests, Connections int64 }
