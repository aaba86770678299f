package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestHealth asks admin listeners in several states.
func TestHealth(t *testing.T) {
	t.Parallel()
	answers := func(ready, live int) string {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(ready) })
		mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(live) })
		s := httptest.NewServer(mux)
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	well, starting := answers(200, 200), answers(503, 200)
	for name, test := range map[string]struct {
		env    map[string]string
		args   []string
		status int
		err    string
	}{
		"Ready":          {args: []string{"--admin", well}},
		"ByEnvironment":  {env: map[string]string{"ENDSESSION_ADMIN": well}},
		"FlagGoesFirst":  {env: map[string]string{"ENDSESSION_ADMIN": starting}, args: []string{"--admin", well}},
		"NotReady":       {args: []string{"--admin", starting}, status: exitFailed, err: "/readyz answers 503"},
		"Live":           {args: []string{"--live", "--admin", starting}},
		"NotLive":        {args: []string{"--live", "--admin", answers(200, 500)}, status: exitFailed, err: "/healthz answers 500"},
		"Silent":         {args: []string{"--admin", silent.Addr().String(), "--timeout", "10ms"}, status: exitFailed, err: "no answer in time"},
		"NobodyThere":    {args: []string{"--admin", nobody.Addr().String()}, status: exitFailed, err: "refused"},
		"NoProxyIsAsked": {env: map[string]string{"HTTP_PROXY": "http://" + starting}, args: []string{"--admin", well}},
		"NoAddress":      {args: []string{"--admin", "9091"}, status: exitUsage, err: "want host:port"},
		"NoTime":         {args: []string{"--timeout", "0s"}, status: exitUsage, err: "more than zero"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := program(test.env, append([]string{"health"}, test.args...)...)
			out, _ := cmd.CombinedOutput()
			if status := cmd.ProcessState.ExitCode(); status != test.status || !strings.Contains(string(out), test.err) || test.err == "" && len(out) > 0 {
				t.Errorf("exit status %d, want %d with %q:\n%s", status, test.status, test.err, out)
			}
		})
	}
}
