package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
)

// TestDemo runs what the README begins with.
func TestDemo(t *testing.T) {
	t.Parallel()
	r := cli{}.run(t, "demo")
	if r.status != 0 || r.err != "" || !strings.Contains(r.out, "\nExactly the right sessions died, in all 4 steps.\n") || strings.Contains(r.out, "WRONG") {
		t.Fatalf("exit status %d:\n%s%s", r.status, r.out, r.err)
	}
	steps := strings.Split(r.out, "\n== ")[1:]
	for i, step := range steps {
		died := regexp.MustCompile(`\d -> \d`).MatchString(step)
		stayed := regexp.MustCompile(`(?m)^\w+ .* [1-9]( |$)`).MatchString(step)
		if !died || !stayed || !strings.Contains(step, "  SUCCEEDED  ") {
			t.Errorf("step %d proves nothing: somebody died: %t, somebody stayed: %t\n%s", i+1, died, stayed, step)
		}
	}
	for i, step := range demoSteps {
		dies, lives := 0, 0
		for _, s := range newWorld().population {
			if step.dies(s) {
				dies++
			} else {
				lives++
			}
		}
		if dies == 0 || lives == 0 {
			t.Errorf("step %d expects %d to die and %d to live", i+1, dies, lives)
		}
	}
}

// lying is a system that does something else than it should.
type lying struct {
	emulated
	handler http.Handler
}

func (l lying) Handler() http.Handler { return l.handler }

// TestDemoNotices lets a system do too much or too little: the demo must say so and fail.
func TestDemoNotices(t *testing.T) {
	kibana := func(f func(next http.Handler, w http.ResponseWriter, r *http.Request)) func(*world) {
		return func(w *world) {
			next := w.targets[1].system
			w.targets[1].system = lying{next, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(next.Handler(), w, r) })}
		}
	}
	tests := []struct {
		name  string
		spoil func(*world)
		step  func(*demoStep)
		says  string
	}{
		{name: "TooMuchAtKibana", says: "WRONG: bob was signed out of kibana-prod", spoil: kibana(func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if strings.HasSuffix(r.URL.Path, invalidate) {
				body = bytes.ReplaceAll(body, []byte("alice@"), []byte("bob@"))
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			next.ServeHTTP(w, r)
		})},
		{name: "TooLittleAtKibana", says: "WRONG: alice is still signed in at kibana-prod", spoil: kibana(func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, invalidate) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"total":0}`)
				return
			}
			next.ServeHTTP(w, r)
		})},
		{name: "TooLittleAtBIGIQ", says: "WRONG: alice is still signed in at apm", spoil: func(w *world) {
			w.targets[0].system.(*bigiqtest.Server).Change(func(q *bigiqtest.Quirks) {
				q.Ending = &bigiqtest.Ending{Status: "FINISHED", Result: "COMPLETE"}
			})
		}},
		{name: "TooMuchAtElement", says: "WRONG: the invalidation is PARTIALLY_SUCCEEDED", spoil: func(w *world) {
			w.targets[2].system.(*elementtest.Server).SetLie(emulator.EndMore)
		}},
		{name: "AnotherExpectation", says: "WRONG: alice was signed out of apm", step: func(s *demoStep) {
			s.dies = func(x signedIn) bool { return x.person == "bob" }
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w, step := newWorld(), demoSteps[0]
			if test.spoil != nil {
				test.spoil(w)
			}
			if test.step != nil {
				test.step(&step)
			}
			var out bytes.Buffer
			err := demo(t.Context(), &out, io.Discard, w, []demoStep{step}, false)
			var exit *exitError
			if !errors.As(err, &exit) || exit.status != exitFailed {
				t.Errorf("the demo ended with %v, want exit status %d", err, exitFailed)
			}
			if !strings.Contains(out.String(), test.says) || !strings.Contains(out.String(), "\nWRONG: in 1 of 1 steps") || strings.Contains(out.String(), "Exactly the right") {
				t.Errorf("it does not say %q:\n%s", test.says, out.String())
			}
		})
	}
}

// TestDemoKeepsRunning tries what `demo --keep` says to try.
func TestDemoKeepsRunning(t *testing.T) {
	t.Parallel()
	curl := needCurl(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	w, out, ended := newWorld(), &lockedBuffer{}, make(chan error, 1)
	go func() { ended <- demo(ctx, out, io.Discard, w, nil, true) }()
	eventually(t, "everybody is signed in again", func() bool {
		return strings.Contains(out.String(), "Try, until Ctrl-C:") && strings.Contains(out.String(), "--user carol")
	})
	_, text, _ := strings.Cut(out.String(), "Try, until Ctrl-C:")
	addr := ""
	for _, command := range commands(text) {
		if !strings.HasPrefix(command, curl) {
			continue
		}
		answer, err := exec.Command("bash", "-c", command).Output()
		if err != nil || !bytes.HasPrefix(answer, []byte("{")) {
			t.Errorf("%s: %v: %s", command, err, answer)
		}
		if strings.Contains(command, ":invalidate") && !bytes.Contains(answer, []byte("INVALIDATION_STATE_SUCCEEDED")) {
			t.Errorf("%s: %s", command, answer)
		}
		addr = regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(command)
	}
	for _, s := range w.population {
		if here := strings.Contains(fmt.Sprint(w.present()), s.id); here == (s.person == "alice") {
			t.Errorf("%s is signed in at %s: %t", s.person, s.target, here)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("interrupted, the demo ended with %v", err)
	}
	if conn, err := net.Dial("tcp", addr); addr == "" || err == nil {
		if err == nil {
			conn.Close()
		}
		t.Errorf("something still listens at %q", addr)
	}
}
