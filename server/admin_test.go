package server_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/endsession/endsession/server"
)

// TestAdminServesProfilesOnRequest asks every listener for profiles.
func TestAdminServesProfilesOnRequest(t *testing.T) {
	for name, profiles := range map[string]bool{"Off": false, "On": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, &fakeEngine{}, func(p *server.Parts) { p.Profiles = profiles })
				get := func(client *http.Client, path string) (status int, body string) {
					t.Helper()
					resp, err := client.Get("http://localhost" + path)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					b, err := io.ReadAll(resp.Body)
					if err != nil {
						t.Fatal(err)
					}
					return resp.StatusCode, string(b)
				}
				want := http.StatusNotFound
				if profiles {
					want = http.StatusOK
				}
				for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/heap"} {
					if status, _ := get(s.admin, path); status != want {
						t.Errorf("%s: %d, want %d", path, status, want)
					}
					if status, _ := get(s.http, path); status == http.StatusOK {
						t.Errorf("%s is served to everybody", path)
					}
				}
				if status, body := get(s.admin, "/metrics"); status != http.StatusOK || !strings.Contains(body, "\nendsession_build_info{") {
					t.Errorf("/metrics: %d\n%s", status, body)
				}
				if status, _ := get(s.http, "/metrics"); status == http.StatusOK {
					t.Error("metrics are served to everybody")
				}
			})
		})
	}
}
