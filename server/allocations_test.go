package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/httpclient"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/alloctest"
	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/config"
)

// counter is a target that answers everything alike: what remains is what the gateway costs.
type counter struct{ client *httpclient.Client }

type counterConfig struct {
	URL string `yaml:"url"`
}

func (c *counterConfig) Validate() error  { return nil }
func (c *counterConfig) Endpoint() string { return c.URL }
func (c *counterConfig) Account() string  { return "" }
func (c *counterConfig) Open(d adapters.Deps) (adapters.Adapter, error) {
	url, err := httpclient.ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	client, err := httpclient.New(httpclient.Options{BaseURL: url, Deps: d})
	return counter{client}, err
}

func (counter) Supports(adapters.Selector) error { return nil }

func (counter) Preview(context.Context, adapters.Selector) (adapters.Preview, error) {
	return adapters.Preview{}, nil
}

func (c counter) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	reply, err := c.client.Do(ctx, httpclient.Call{Method: http.MethodPost, Path: "/end", JSON: req.Selector.Users, Mutating: true})
	if err != nil {
		return adapters.Result{}, err
	}
	var count int
	err = reply.Decode(&count)
	return adapters.Result{Counted: true, Count: count, Verification: adapters.Unverifiable}, err
}

func (counter) Probe(context.Context) (adapters.Health, error) { return adapters.Health{}, nil }

const counterYAML = `
listen: { grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "127.0.0.1:0" }
store: { sqlite: { path: journal.db } }
check_interval: never
audit: { key: kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk }
auth: { api_keys: [ { name: helpdesk, sha256: [ "%x" ] } ] }
policy:
  - { name: no-broad-night-jobs, deny: 'request.broad && request.priority == "bulk"' }
  - { name: helpdesk, allow: 'caller.name == "helpdesk" && request.has_user' }
protected: { users: [break-glass] }
targets:
  - { name: apm, counter: { url: "https://apm.example" }, usernames: ['user.id'] }
  - { name: kibana-prod, counter: { url: "https://kibana.example" }, usernames: ['user.id'] }
  - { name: storage, counter: { url: "https://storage.example" }, usernames: ['user.id'] }
`

// ways returns functions that end one person's sessions at three targets that answer at once, by each way into a whole
// gateway with a durable journal, authentication, a policy and an audit trail.
func ways(t testing.TB) map[string]func() {
	t.Helper()
	key := auth.NewKey()
	types := map[string]adapters.Type{"counter": {
		Kind: "counter", Criteria: []adapters.Criteria{adapters.ByUser}, NewConfig: func() adapters.Config { return new(counterConfig) },
	}}
	conf, err := config.Parse(filepath.Join(t.TempDir(), "endsession.yaml"), fmt.Appendf(nil, counterYAML, auth.HashKey(key)), types, config.Environment{})
	if err != nil {
		t.Fatal(err)
	}
	s := &served{
		log: &lockedBuffer{}, grpcListener: bufconn.Listen(1 << 20), httpListener: newPipeListener(), adminListener: newPipeListener(),
	}
	listeners := []net.Listener{s.grpcListener, s.httpListener, s.adminListener}
	upstream := emulator.Transport(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "2")
	}))
	srv, err := server.Open(t.Context(), server.Options{
		Config: conf, Logger: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Transport: func(string) http.RoundTripper { return upstream },
		Listen: func(context.Context, string, string) (net.Listener, error) {
			l := listeners[0]
			listeners = listeners[1:]
			return l, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, srv)
	client := endsessionv1.NewSessionServiceClient(s.conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+key)
	user := 0
	return map[string]func(){
		"gRPC": func() {
			user++
			reply, err := client.InvalidateSessions(ctx, &endsessionv1.InvalidateSessionsRequest{
				Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: fmt.Sprintf("user-%d", user)}},
			})
			if n := reply.GetInvalidation().GetInvalidatedCount(); err != nil || n != 6 {
				t.Fatalf("%d sessions, %v; want 6", n, err)
			}
		},
		"REST": func() {
			user++
			body := fmt.Appendf(nil, `{"selector":{"user":{"id":"user-%d"}}}`, user)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/v1/sessions:invalidate", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+key)
			resp, err := s.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte("INVALIDATION_STATE_SUCCEEDED")) {
				t.Fatalf("%s: %s, %v", resp.Status, answer, err)
			}
		},
	}
}

// TestAllocations is about an accepted request, the client's part included.
func TestAllocations(t *testing.T) { alloctest.Compare(t, ways(t)) }

// BenchmarkInvalidate is a whole request, from the client to the last answer of three targets and back.
func BenchmarkInvalidate(b *testing.B) {
	all := ways(b)
	for _, way := range []string{"gRPC", "REST"} {
		b.Run(way, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				all[way]()
			}
		})
	}
}
