package server_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
)

// desk is a target for these tests: a set of user names that are signed in. It knows no network; what is asked of it
// goes through the transport, so that tests see that they can inject one.
type desk struct {
	mu       sync.Mutex
	signedIn map[string]bool
	down     bool
	asked    int
}

// RoundTrip signs the user out whom the query names.
func (d *desk) RoundTrip(req *http.Request) (*http.Response, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	if d.down {
		return nil, errors.New("down")
	}
	name := req.URL.Query().Get("user")
	body := "0"
	if d.signedIn[name] {
		body = "1"
	}
	delete(d.signedIn, name)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body))}, nil
}

type deskConfig struct {
	URL string `yaml:"url"`
}

func (c *deskConfig) Validate() error  { return nil }
func (c *deskConfig) Endpoint() string { return c.URL }
func (c *deskConfig) Account() string  { return "" }
func (c *deskConfig) Open(d adapters.Deps) (adapters.Adapter, error) {
	if c.URL == "" {
		return nil, errors.New("no url")
	}
	return &deskAdapter{deps: d, url: c.URL}, nil
}

type deskAdapter struct {
	deps adapters.Deps
	url  string
}

func (a *deskAdapter) Supports(adapters.Selector) error { return nil }

func (a *deskAdapter) Preview(context.Context, adapters.Selector) (adapters.Preview, error) {
	return adapters.Preview{Summary: []string{"sign out"}}, nil
}

func (a *deskAdapter) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	result := adapters.Result{Counted: true, Verification: adapters.ConfirmedByRepeat}
	for _, u := range req.Selector.Users {
		if a.deps.Limit != nil {
			if err := a.deps.Limit(ctx); err != nil {
				return result, err
			}
		}
		if err := adapters.Fence(ctx); err != nil {
			return result, err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"?user="+u.Name, nil)
		if err != nil {
			return result, adapters.Wrap(adapters.Rejected, err, "no request")
		}
		resp, err := a.deps.Transport.RoundTrip(r)
		if err != nil {
			return result, adapters.Wrap(adapters.Unreachable, err, "the desk does not answer")
		}
		body, _ := io.ReadAll(resp.Body)
		if string(body) == "1" {
			result.Count++
		}
	}
	return result, nil
}

func (a *deskAdapter) Probe(context.Context) (adapters.Health, error) {
	return adapters.Health{Checks: []adapters.Check{{Name: "reachable", Status: adapters.CheckOK, Message: "answers"}}}, nil
}

var registry = map[string]adapters.Type{"desk": {
	Kind: "desk", Criteria: []adapters.Criteria{adapters.ByUser}, NewConfig: func() adapters.Config { return new(deskConfig) },
}}

const deskYAML = `
listen: { grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "127.0.0.1:0" }
store: { sqlite: { path: journal.db } }
targets:
  - name: front
    desk: { url: "http://front.example/" }
  - name: back
    desk: { url: "http://back.example/" }
    rate: 1/s
`

func parse(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	c, err := config.Parse(filepath.Join(dir, "endsession.yaml"), []byte(text), registry, config.Environment{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// open opens a gateway with two desks in memory, and runs it until the test ends.
func open(t *testing.T, dir string, desks map[string]*desk) *served {
	t.Helper()
	return openAs(t, dir, deskYAML, desks)
}

// openAs opens one with a configuration of its own.
func openAs(t *testing.T, dir, text string, desks map[string]*desk) *served {
	t.Helper()
	s := &served{
		log: &lockedBuffer{}, grpcListener: bufconn.Listen(1 << 20), httpListener: newPipeListener(),
		adminListener: newPipeListener(),
	}
	listeners := []net.Listener{s.grpcListener, s.httpListener, s.adminListener}
	srv, err := server.Open(t.Context(), server.Options{
		Config:    parse(t, dir, text),
		Logger:    slog.New(slog.NewTextHandler(s.log, nil)),
		Transport: func(target string) http.RoundTripper { return desks[target] },
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
	return s
}

func newDesks() map[string]*desk {
	return map[string]*desk{
		"front": {signedIn: map[string]bool{"alice": true, "bob": true}},
		"back":  {signedIn: map[string]bool{"alice": true}},
	}
}

func TestOpenedGatewayEndsSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desks := newDesks()
		s := open(t, t.TempDir(), desks)
		client := endsessionv1.NewSessionServiceClient(s.conn)
		req := alice(time.Minute)
		req.RequestId = new("0197f3c2-5d11-7abc-8def-0123456789ab")
		reply, err := client.InvalidateSessions(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		inv := reply.GetInvalidation()
		if inv.GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED || inv.GetInvalidatedCount() != 2 {
			t.Errorf("got %v", inv)
		}
		if desks["front"].signedIn["alice"] || desks["back"].signedIn["alice"] || !desks["front"].signedIn["bob"] {
			t.Errorf("signed in are %v and %v, want bob alone", desks["front"].signedIn, desks["back"].signedIn)
		}

		again, err := client.InvalidateSessions(t.Context(), req)
		if err != nil || !again.GetReplayed() || again.GetInvalidation().GetName() != inv.GetName() {
			t.Errorf("the same request again: got %v, %v", again, err)
		}
		req.Reason = new("another")
		refused(t, "the same request id with other content", codes.AlreadyExists, "REQUEST_ID_REUSED", "", func() error {
			_, err := client.InvalidateSessions(t.Context(), req)
			return err
		})
		refused(t, "a target that there is not", codes.InvalidArgument, "UNKNOWN_TARGET", "targets[0]", func() error {
			_, err := client.InvalidateSessions(t.Context(), &endsessionv1.InvalidateSessionsRequest{
				Selector: alice(0).Selector, Targets: []string{"side"},
			})
			return err
		})
		refused(t, "an invalidation that there is not", codes.NotFound, "NOT_FOUND", "", func() error {
			_, err := client.GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{Name: someName})
			return err
		})
		refused(t, "a watch of what there is not", codes.NotFound, "NOT_FOUND", "", func() error {
			stream, err := client.WatchInvalidation(t.Context(), &endsessionv1.WatchInvalidationRequest{Name: someName})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		})
		refused(t, "to cancel what has ended", codes.FailedPrecondition, "ALREADY_FINAL", "", func() error {
			_, err := client.CancelInvalidation(t.Context(), &endsessionv1.CancelInvalidationRequest{Name: inv.GetName()})
			return err
		})
		refused(t, "to retry what succeeded", codes.FailedPrecondition, "NOTHING_TO_RETRY", "", func() error {
			_, err := client.RetryInvalidation(t.Context(), &endsessionv1.RetryInvalidationRequest{Name: inv.GetName()})
			return err
		})
		if code, body := get(t, s.http, "/v1/"+inv.GetName()); code != http.StatusOK || !strings.Contains(body, "SUCCEEDED") {
			t.Errorf("over REST: got %d %s", code, body)
		}
		if code, _ := get(t, s.admin, "/readyz"); code != http.StatusOK {
			t.Errorf("/readyz answers %d", code)
		}
	})
}

func refused(t *testing.T, what string, code codes.Code, reason, field string, call func() error) {
	t.Helper()
	st := status.Convert(call())
	gotReason, gotField := "", ""
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			gotReason = d.GetReason()
		case *errdetails.BadRequest:
			gotField = d.GetFieldViolations()[0].GetField()
		}
	}
	if st.Code() != code || gotReason != reason || gotField != field {
		t.Errorf("%s: got %v %s %q, want %v %s %q", what, st, gotReason, gotField, code, reason, field)
	}
}

// TestDeadlineLosesNoWork is about a caller whose deadline comes before a target answers: the call is accepted, it is
// answered in time with what there is, and the work goes on.
func TestDeadlineLosesNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desks := newDesks()
		desks["back"].down = true
		s := open(t, t.TempDir(), desks)
		client := endsessionv1.NewSessionServiceClient(s.conn)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		reply, err := client.InvalidateSessions(ctx, alice(time.Minute))
		if err != nil || reply.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING {
			t.Fatalf("got %v, %v; want it running", reply, err)
		}
		desks["back"].mu.Lock()
		desks["back"].down = false
		desks["back"].mu.Unlock()
		got, err := client.GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{
			Name: reply.GetInvalidation().GetName(), WaitTimeout: durationpb.New(5 * time.Minute),
		})
		if err != nil || got.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED {
			t.Errorf("later: got %v, %v; want it to have succeeded", got, err)
		}
	})
}

// TestReopenedGatewayGoesOn is about a journal with an unfinished run.
func TestReopenedGatewayGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, desks := t.TempDir(), newDesks()
		desks["back"].down = true
		first := open(t, dir, desks)
		reply, err := endsessionv1.NewSessionServiceClient(first.conn).InvalidateSessions(t.Context(), alice(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		first.stop()
		if err := first.wait(); err != nil {
			t.Fatal(err)
		}
		desks["back"].mu.Lock()
		desks["back"].down = false
		desks["back"].mu.Unlock()
		second := open(t, dir, desks)
		got, err := endsessionv1.NewSessionServiceClient(second.conn).GetInvalidation(t.Context(), &endsessionv1.GetInvalidationRequest{
			Name: reply.GetInvalidation().GetName(), WaitTimeout: durationpb.New(5 * time.Minute),
		})
		if err != nil || got.GetInvalidation().GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED {
			t.Errorf("got %v, %v; want it to have succeeded", got, err)
		}
	})
}

// TestRate is about the limit of a target: one request a second, for four persons at once.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desks := newDesks()
		s := open(t, t.TempDir(), desks)
		client := endsessionv1.NewSessionServiceClient(s.conn)
		began := time.Now()
		var wg sync.WaitGroup
		for _, name := range []string{"alice", "bob", "carol", "dave"} {
			wg.Go(func() {
				_, err := client.InvalidateSessions(t.Context(), &endsessionv1.InvalidateSessionsRequest{
					Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: name}}, WaitTimeout: durationpb.New(time.Minute),
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took < 3*time.Second || desks["back"].asked != 4 {
			t.Errorf("%d requests within %v, want one a second", desks["back"].asked, took)
		}
	})
}

// TestOpenOnFreePorts uses real sockets: the addresses are those the system chose.
func TestOpenOnFreePorts(t *testing.T) {
	dir := t.TempDir()
	desks := newDesks()
	srv, err := server.Open(t.Context(), server.Options{
		Config: parse(t, dir, deskYAML), Logger: slog.New(slog.DiscardHandler),
		Transport: func(target string) http.RoundTripper { return desks[target] },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx, context.Background()) }()
	conn, err := grpc.NewClient(srv.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := endsessionv1.NewSessionServiceClient(conn).InvalidateSessions(t.Context(), alice(time.Minute)); err != nil {
		t.Error(err)
	}
	_ = conn.Close()
	for _, url := range []string{"http://" + srv.HTTPAddr().String() + "/v1/targets", "http://" + srv.AdminAddr().String() + "/readyz"} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s answers %s", url, resp.Status)
		}
	}
	rebound, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+srv.HTTPAddr().String()+"/v1/targets", nil)
	if err != nil {
		t.Fatal(err)
	}
	rebound.Host = "rebound.example"
	if resp, err := http.DefaultClient.Do(rebound); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another host's name on a loopback port: got %v, %v; want it refused", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	// A second gateway on a port that is taken gives the others back, and does not touch the journal.
	taken := parse(t, dir, strings.Replace(deskYAML, `http: "127.0.0.1:0"`, `http: "`+srv.HTTPAddr().String()+`"`, 1))
	taken.Store.SQLite.Path = filepath.Join(dir, "other.db")
	var listeners []net.Listener
	_, err = server.Open(t.Context(), server.Options{
		Config: taken, Logger: slog.New(slog.DiscardHandler),
		Listen: func(ctx context.Context, network, address string) (net.Listener, error) {
			l, err := new(net.ListenConfig).Listen(ctx, network, address)
			if err == nil {
				listeners = append(listeners, l)
			}
			return l, err
		},
	})
	if err == nil || !strings.Contains(err.Error(), "listen.http") {
		t.Errorf("on a port that is taken: got %v", err)
	}
	for _, l := range listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener %v was left open", l.Addr())
		}
	}
	if _, err := os.Stat(taken.Store.SQLite.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal was opened without a port: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestCheckReportsAllProblems(t *testing.T) {
	c := parse(t, t.TempDir(), `
listen: { tls: { cert_file: none.pem, key_file: none.pem } }
directory: { file: { path: nobody.yaml } }
targets:
  - name: front
    desk: { url: "" }
    usernames: ["user."]
`)
	_, err := server.Check(c)
	if err == nil {
		t.Fatal("nothing is reported")
	}
	for _, want := range []string{":2: listen.tls: ", ":3: directory: ", "no url", ":7: targets[0].usernames[0]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported in:\n%v", want, err)
		}
	}
	if _, err := server.Check(parse(t, t.TempDir(), deskYAML)); err != nil {
		t.Errorf("a sound configuration: %v", err)
	}
}

// TestAuditWithoutAKeyIsWarnedOf, where it matters who did what.
func TestAuditWithoutAKeyIsWarnedOf(t *testing.T) {
	const auth = "auth: { api_keys: [ { name: helpdesk, sha256: ['0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'] } ] }\n"
	const key = "audit: { key: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef }\n"
	for name, test := range map[string]struct {
		text string
		want bool
	}{"Without": {auth, true}, "With": {auth + key, false}, "Nobody": {"", false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := openAs(t, t.TempDir(), test.text+deskYAML, newDesks())
				if got := strings.Contains(s.log.String(), "the audit trail has no key"); got != test.want {
					t.Errorf("warned %t, want %t:\n%s", got, test.want, s.log)
				}
			})
		})
	}
}
