package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// relay stands before a gateway and holds up the calls that end sessions, from some on.
type relay struct {
	endsessionv1.UnimplementedSessionServiceServer
	to endsessionv1.SessionServiceClient
	// from is the first that is held up, reached is closed when most are, and opened lets them through.
	from, most int
	reached    chan struct{}
	opened     chan struct{}
	open       func()

	mu   sync.Mutex
	n    int
	held int
}

// relayTo serves a relay on a loopback port.
func relayTo(t *testing.T, gateway string, from, most int) (*relay, string) {
	t.Helper()
	cc, err := grpc.NewClient(gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{to: endsessionv1.NewSessionServiceClient(cc), from: from, most: most, reached: make(chan struct{}), opened: make(chan struct{})}
	r.open = sync.OnceFunc(func() { close(r.opened) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	endsessionv1.RegisterSessionServiceServer(srv, r)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() {
		r.open()
		srv.Stop()
		_ = cc.Close()
	})
	return r, l.Addr().String()
}

func (r *relay) InvalidateSessions(_ context.Context, req *endsessionv1.InvalidateSessionsRequest) (*endsessionv1.InvalidateSessionsResponse, error) {
	r.mu.Lock()
	r.n++
	hold := r.n >= r.from
	if hold {
		if r.held++; r.held == r.most {
			close(r.reached)
		}
	}
	r.mu.Unlock()
	if hold {
		<-r.opened
	}
	// Like a real gateway: what has arrived is carried out, whether the caller is still there or not.
	return r.to.InvalidateSessions(context.Background(), req)
}

func (r *relay) GetInvalidation(ctx context.Context, req *endsessionv1.GetInvalidationRequest) (*endsessionv1.GetInvalidationResponse, error) {
	return r.to.GetInvalidation(ctx, req)
}

func (r *relay) ListInvalidations(ctx context.Context, req *endsessionv1.ListInvalidationsRequest) (*endsessionv1.ListInvalidationsResponse, error) {
	return r.to.ListInvalidations(ctx, req)
}

func (r *relay) ListTargets(ctx context.Context, req *endsessionv1.ListTargetsRequest) (*endsessionv1.ListTargetsResponse, error) {
	return r.to.ListTargets(ctx, req)
}

// jobOf is a users file with alice, zoë and n-2 whom nobody knows, all of whom have a name at storage.
func jobOf(t testing.TB, n int) (path string) {
	t.Helper()
	text := "id,email\nalice,\n"
	for _, id := range numbered(n - 2) {
		text += id + "," + id + "@corp.example\n"
	}
	return usersIn(t, "leavers.csv", text+"zoë,\n")
}

// exactly fails the test unless a job's invalidations are one for each of n people, and only alice and zoë are gone.
func exactly(t *testing.T, g *inProcess, c cli, job string, n int) {
	t.Helper()
	seen := map[string]bool{}
	token := ""
	for {
		var page struct {
			Invalidations []struct {
				Selector struct{ User struct{ ID string } }
				State    string
			}
			NextPageToken string
		}
		args := []string{"list", "--label", "job=" + job, "--limit", "500", "-o", "json"}
		if token != "" {
			args = append(args, "--page-token", token)
		}
		if err := json.Unmarshal([]byte(c.run(t, args...).mustExit(t, 0).out), &page); err != nil {
			t.Fatal(err)
		}
		for _, inv := range page.Invalidations {
			if id := inv.Selector.User.ID; seen[id] {
				t.Errorf("%s has two invalidations", id)
			} else if seen[id] = true; inv.State != "INVALIDATION_STATE_SUCCEEDED" {
				t.Errorf("%s: %s", id, inv.State)
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if len(seen) != n {
		t.Errorf("%d invalidations for %d people", len(seen), n)
	}
	for target, list := range map[string]string{"apm": "", "apm-all": "", "kibana-prod": "", "storage": "alice-local alice-ldap alice-idp zoë-ldap"} {
		if gone := g.lab.gone(target); !slices.Equal(gone, g.lab.labels(t, target, list)) {
			t.Errorf("%s: signed out %v, want %s", target, gone, list)
		}
	}
}

// client is a command in a process of its own.
type clientProcess struct {
	*exec.Cmd
	out, err *lockedBuffer
	ended    chan struct{}
}

func beginClient(t *testing.T, args ...string) *clientProcess {
	t.Helper()
	p := &clientProcess{Cmd: program(nil, args...), out: &lockedBuffer{}, err: &lockedBuffer{}, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p.out, p.err
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Wait(); close(p.ended) }()
	t.Cleanup(func() { _ = p.Process.Kill(); <-p.ended })
	return p
}

func (p *clientProcess) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (p *clientProcess) wait(t *testing.T) (status int) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("it has not ended after %v:\n%s%s", patience, p.out, p.err)
	}
	return p.ProcessState.ExitCode()
}

// TestBulkGoesOnWhereItWas ends a client in the middle, with SIGKILL, Ctrl-C and Ctrl-C twice, and runs the job again.
func TestBulkGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	const n, parallel, before = 40, 4, 12
	for _, test := range []struct {
		name string
		end  func(t *testing.T, p *clientProcess, r *relay)
	}{
		{"Killed", func(t *testing.T, p *clientProcess, r *relay) {
			p.signal(t, syscall.SIGKILL)
			p.wait(t)
		}},
		{"Interrupted", func(t *testing.T, p *clientProcess, r *relay) {
			p.signal(t, os.Interrupt)
			eventually(t, "it says so", func() bool { return strings.Contains(p.err.String(), "interrupted: ") })
			select {
			case <-p.ended:
				t.Error("it left calls alone that were under way")
			default:
			}
			r.open()
			if status := p.wait(t); status != exitStillRunning && status != exitPartial {
				t.Errorf("exit status %d", status)
			}
			if want := fmt.Sprintf("%d accepted, %d not sent", before-1+parallel, n-before+1-parallel); !strings.Contains(p.err.String(), want) {
				t.Errorf("no %q in %s", want, p.err)
			}
		}},
		{"InterruptedTwice", func(t *testing.T, p *clientProcess, r *relay) {
			p.signal(t, os.Interrupt)
			eventually(t, "it says so", func() bool { return strings.Contains(p.err.String(), "interrupted: ") })
			p.signal(t, os.Interrupt)
			if status := p.wait(t); status != exitStillRunning {
				t.Errorf("exit status %d", status)
			}
			if want := fmt.Sprintf("%d  unknown", parallel); !strings.Contains(p.out.String(), want) {
				t.Errorf("no %q in %s%s", want, p.out, p.err)
			}
		}},
		{"Terminated", func(t *testing.T, p *clientProcess, r *relay) {
			p.signal(t, syscall.SIGTERM)
			eventually(t, "it says so", func() bool { return strings.Contains(p.err.String(), "interrupted: ") })
			r.open()
			p.wait(t)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g, c := startForCLI(t)
			r, address := relayTo(t, g.srv.GRPCAddr().String(), before, parallel)
			path := jobOf(t, n)
			p := beginClient(t, "invalidate", "--users-file", path, "--yes", "--target", "storage", "--reason", "it's over", "--server", address, "--parallel", fmt.Sprint(parallel))
			select {
			case <-r.reached:
			case <-time.After(patience):
				t.Fatalf("nothing was held up:\n%s%s", p.out, p.err)
			}
			test.end(t, p, r)
			r.open()

			job := regexp.MustCompile(`(?m)^job: (.*)$`).FindStringSubmatch(p.err.String())
			if job == nil {
				t.Fatal(p.err)
			}
			command := "endsession invalidate --users-file=" + path + " --target=storage --reason=\"it's over\" --yes --server=" + address
			if test.name != "Killed" {
				found := regexp.MustCompile(`(?m)^to go on: (.*)$`).FindStringSubmatch(p.err.String())
				if found == nil {
					t.Fatal(p.err)
				}
				command = found[1]
			}
			again := exec.Command("bash", "-c", "endsession() { '"+os.Args[0]+"' \"$@\"; }\n"+command+" -o json")
			again.Env = append(os.Environ(), asProgram+"=1")
			var told lockedBuffer
			again.Stderr = &told
			out, err := again.Output()
			if err != nil {
				t.Fatalf("%s: %v\n%s%s", command, err, out, &told)
			}
			_, sum := summaryOf(t, string(out))
			if sum.Job != job[1] || sum.Succeeded != n || sum.Replayed < before-1 || sum.Replayed > before-1+parallel {
				t.Errorf("%+v", sum)
			}
			exactly(t, g, c, job[1], n)
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*.failures.csv")); len(left) > 0 && test.name != "InterruptedTwice" {
				t.Errorf("%v is left although all succeeded", left)
			}
		})
	}
}

// TestBulkOutlivesItsGateway kills the gateway in the middle of a job, and starts it again.
func TestBulkOutlivesItsGateway(t *testing.T) {
	t.Parallel()
	const n = 150
	l, dir := newLab(), t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	path := labConfig{dir: dir, urls: l.serve(t, dir, nil), listen: [3]string{address, "127.0.0.1:0", "127.0.0.1:0"}, change: func(text string) string {
		return strings.Replace(text, "retention: 90d\n", "retention: 90d\nlimits: { calls_per_caller: 100/s, burst: 5 }\n", 1)
	}}.write(t)
	p := serve(t, path)
	users := jobOf(t, n)
	bulk := beginClient(t, "invalidate", "--users-file", users, "--yes", "--target", "storage", "--server", address, "--job", "outlive", "-o", "json")
	client := p.client(t)
	eventually(t, "some are accepted", func() bool {
		resp, err := client.ListInvalidations(t.Context(), &endsessionv1.ListInvalidationsRequest{Label: []string{"job=outlive"}})
		return err == nil && len(resp.GetInvalidations()) >= 20
	})
	p.kill()
	select {
	case <-bulk.ended:
		t.Errorf("it had ended before the gateway did:\n%s%s", bulk.out, bulk.err)
	default:
	}
	p = serve(t, path)
	if status := bulk.wait(t); status != 0 {
		t.Fatalf("exit status %d:\n%s%s", status, bulk.out, bulk.err)
	}
	_, sum := summaryOf(t, bulk.out.String())
	if sum.Succeeded != n {
		t.Errorf("%+v", sum)
	}
	exactly(t, &inProcess{lab: l}, cli{env: map[string]string{"ENDSESSION_SERVER": p.grpc}}, "outlive", n)
}

// bulkWorld is running, and knows who must be gone after each command of the page.
func bulkWorld(t *testing.T, s *shell) {
	w := s.emulate(t)
	s.write(t, "endsession.yaml", s.configuration(w, ""), 0o600)
	s.do(t, "endsession serve --config endsession.yaml &")
	s.awaitGateway(t)
	s.before = func(string) { w.signEverybodyIn() }
	dies := map[string][]string{
		"endsession invalidate --users-file leavers.txt":                  {"alice", "bob"},
		"endsession invalidate --users-file leavers.csv":                  {"carol"},
		"endsession invalidate --users-file leavers-2026-06.failures.csv": nil, // mallory has no session, and carol did not fail
	}
	s.after = func(command, _ string) {
		var who []string
		for beginning, people := range dies {
			if strings.HasPrefix(command, beginning) {
				who = people
				dies[beginning] = nil // run again, the job ends nobody's
			}
		}
		w.judge(t, command, func(x signedIn) bool { return slices.Contains(who, x.person) })
	}
	t.Cleanup(func() {
		for beginning, people := range dies {
			if people != nil && !t.Failed() {
				t.Errorf("the page does not have %q any more", beginning)
			}
		}
	})
}
