package emulator_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters/emulator"
)

// echo answers with the request's body and path, and counts.
type echo struct{ served int }

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.served++
	body, _ := io.ReadAll(r.Body)
	emulator.WriteJSON(w, http.StatusOK, map[string]string{"path": r.RequestURI, "body": string(body), "host": r.Host})
}

func post(ctx context.Context, t *testing.T, rt http.RoundTripper, body string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://target.example/a%2Fb?c=d", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// traced counts the hooks that decide whether a request was sent.
func traced(ctx context.Context) (_ context.Context, got, wrote *bool) {
	got, wrote = new(bool), new(bool)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { *got = true },
		WroteHeaders: func() { *wrote = true },
	}), got, wrote
}

func TestTransport(t *testing.T) {
	t.Run("CarriesARequestAsTheServerReadsIt", func(t *testing.T) {
		ctx, got, wrote := traced(t.Context())
		resp, body, err := post(ctx, t, emulator.Transport(&echo{}), `{"a":1}`)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("post: %v, %v", resp, err)
		}
		for _, want := range []string{`"path":"/a%2Fb?c=d"`, `"host":"target.example"`, `"body":"{\"a\":1}"`} {
			if !strings.Contains(body, want) {
				t.Errorf("answer %s lacks %s", body, want)
			}
		}
		if !*got || !*wrote {
			t.Errorf("hooks: got connection %t, wrote %t, want both", *got, *wrote)
		}
	})
	t.Run("TurnsAPanicIntoAReset", func(t *testing.T) {
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		if _, _, err := post(t.Context(), t, emulator.Transport(h), ""); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("post: %v, want a reset", err)
		}
	})
	t.Run("ReturnsWhenTheContextEnds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var ended error
			h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				ended = r.Context().Err()
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			start := time.Now()
			_, _, err := post(ctx, t, emulator.Transport(h), "")
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Hour {
				t.Errorf("post: %v after %v, want the deadline after an hour", err, time.Since(start))
			}
			synctest.Wait()
			if ended == nil {
				t.Error("the handler's context did not end")
			}
		})
	})
	t.Run("SendsNothingWhenTheContextHasEnded", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e := &echo{}
		if _, _, err := post(ctx, t, emulator.Transport(e), ""); !errors.Is(err, context.Canceled) || e.served != 0 {
			t.Errorf("post: %v, served %d, want cancelled and 0", err, e.served)
		}
	})
}

func TestFaults(t *testing.T) {
	for _, test := range []struct {
		fault       emulator.Fault
		wrote       bool
		served      int
		status      int
		err         error
		bodyHolds   string
		contentType string
	}{
		{fault: emulator.Refuse(), err: syscall.ECONNREFUSED},
		{fault: emulator.Refuse().After(), err: syscall.ECONNREFUSED},
		{fault: emulator.Reset(), wrote: true, err: syscall.ECONNRESET},
		{fault: emulator.Reset().After(), wrote: true, served: 1, err: syscall.ECONNRESET},
		{fault: emulator.Hang(), wrote: true, err: context.DeadlineExceeded},
		{fault: emulator.Hang().After(), wrote: true, served: 1, err: context.DeadlineExceeded},
		{fault: emulator.Stall(), wrote: true, status: 200, err: context.DeadlineExceeded},
		{fault: emulator.Delay(time.Second), wrote: true, served: 1, status: 200, bodyHolds: "a%2Fb"},
		{fault: emulator.Delay(2 * time.Hour), wrote: true, served: 1, err: context.DeadlineExceeded},
		{fault: emulator.Status(429), wrote: true, status: 429, bodyHolds: emulator.Canary, contentType: "application/json"},
		{fault: emulator.Status(502).After(), wrote: true, served: 1, status: 502, bodyHolds: emulator.Canary},
		{fault: emulator.StatusHTML(401), wrote: true, status: 401, bodyHolds: emulator.Canary, contentType: "text/html; charset=utf-8"},
		{fault: emulator.StatusRetryAfter(503, "30"), wrote: true, status: 503},
		{fault: emulator.Redirect("https://elsewhere.example/"), wrote: true, status: 302},
		{fault: emulator.Page(), wrote: true, status: 200, contentType: "text/html; charset=utf-8"},
		{fault: emulator.Null(), wrote: true, status: 200, bodyHolds: "null"},
		{fault: emulator.Empty(), wrote: true, status: 200},
		{fault: emulator.Huge(1000), wrote: true, status: 200, bodyHolds: "xxxx"},
		{fault: emulator.Truncated(), wrote: true, served: 1, status: 200, bodyHolds: "{"},
		{fault: emulator.Cut(), wrote: true, served: 1, status: 200, err: io.ErrUnexpectedEOF},
		{fault: emulator.ContentType("text/plain"), wrote: true, served: 1, status: 200, bodyHolds: "a%2Fb", contentType: "text/plain"},
	} {
		t.Run(test.fault.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &echo{}
				faults := emulator.NewFaults(emulator.Transport(e))
				faults.Add(emulator.Rule{Times: 1, Fault: test.fault})
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				traceCtx, got, wrote := traced(ctx)
				resp, body, err := post(traceCtx, t, faults, `{"name":"alice"}`)
				synctest.Wait()
				if !errors.Is(err, test.err) || (test.err == nil) != (err == nil) {
					t.Errorf("error %v, want %v", err, test.err)
				}
				if !*got || *wrote != test.wrote || *wrote != test.fault.Sent {
					t.Errorf("hooks: got connection %t, wrote %t, fault says %t, want true and %t", *got, *wrote, test.fault.Sent, test.wrote)
				}
				if e.served != test.served || (e.served > 0) != test.fault.Effect {
					t.Errorf("served %d, fault says %t, want %d", e.served, test.fault.Effect, test.served)
				}
				if resp != nil && (resp.StatusCode != test.status || !strings.Contains(body, test.bodyHolds) ||
					test.contentType != "" && resp.Header.Get("Content-Type") != test.contentType) {
					t.Errorf("answer %d %v %q, want %d with %q", resp.StatusCode, resp.Header, body, test.status, test.bodyHolds)
				}
				if _, _, err := post(t.Context(), t, faults, ""); err != nil {
					t.Errorf("once more: %v, want no second fault", err)
				}
				if faults.Seen() != 2 || faults.Struck() != 1 {
					t.Errorf("seen %d, struck %d, want 2 and 1", faults.Seen(), faults.Struck())
				}
			})
		})
	}
}

func TestFaultsPickRequests(t *testing.T) {
	statuses := func(f *emulator.Faults, paths ...string) (got []int) {
		for _, p := range paths {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://target.example"+p, nil)
			resp, err := f.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, resp.StatusCode)
		}
		return got
	}
	f := emulator.NewFaults(emulator.Transport(&echo{}))
	f.Add(emulator.Rule{Match: emulator.On(http.MethodGet, "/b"), Skip: 1, Times: 2, Fault: emulator.Status(500)})
	got := statuses(f, "/a", "/b", "/b", "/a", "/b", "/b")
	want := []int{200, 200, 500, 200, 500, 200}
	if len(got) != len(want) {
		t.Fatalf("statuses %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("statuses %v, want %v", got, want)
		}
	}
	f.Clear()
	f.Choose(emulator.Sometimes(1, 0.5, emulator.Status(500)))
	first := statuses(f, "/a", "/a", "/a", "/a", "/a", "/a", "/a", "/a", "/a", "/a")
	struck := f.Struck()
	f.Choose(emulator.Sometimes(1, 0.5, emulator.Status(500)))
	second := statuses(f, "/a", "/a", "/a", "/a", "/a", "/a", "/a", "/a", "/a", "/a")
	if struck == 0 || struck == 10 {
		t.Errorf("struck %d of 10, want some", struck)
	}
	for i := range first {
		if first[i] != second[i] {
			t.Errorf("the same seed gave %v and %v", first, second)
			break
		}
	}
}

func TestRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := emulator.NewRecorder(emulator.Transport(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-release
			w.WriteHeader(http.StatusTeapot)
		})))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _, _, _ = post(t.Context(), t, r, `{"a":1}`) })
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if r.MaxInFlight() != 3 {
			t.Errorf("%d in flight, want 3", r.MaxInFlight())
		}
		got := r.Requests()
		if len(got) != 3 || got[0].Method != http.MethodPost || got[0].Path != "/a/b" || got[0].Query != "c=d" ||
			string(got[0].Body) != `{"a":1}` || got[0].Status != http.StatusTeapot {
			t.Errorf("recorded %+v", got)
		}
		r.Reset()
		if len(r.Requests()) != 0 || r.MaxInFlight() != 0 {
			t.Error("something is left after Reset")
		}
	})
}

func TestServeTLS(t *testing.T) {
	url, ca, stop, err := emulator.ServeTLS(&echo{})
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate in the PEM")
	}
	trusting := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	for _, u := range []string{url, strings.Replace(url, "127.0.0.1", "localhost", 1)} {
		resp, err := trusting.Get(u + "/x")
		if err != nil {
			t.Fatalf("get %s: %v", u, err)
		}
		_ = resp.Body.Close()
	}
	var unknown *tls.CertificateVerificationError
	if _, err := http.Get(url); !errors.As(err, &unknown) {
		t.Errorf("without the authority: %v, want a refused certificate", err)
	}
	stop()
	if _, err := trusting.Get(url); err == nil {
		t.Error("still served after stop")
	}
}

func TestObject(t *testing.T) {
	got, err := emulator.Object([]byte(` {"userName":"alice","username":"admin","x":{"y":[1]}} `))
	if err != nil || string(got["userName"]) != `"alice"` || string(got["username"]) != `"admin"` || len(got) != 3 {
		t.Errorf("object: %s, %v", got, err)
	}
	for _, bad := range []string{``, `null`, `[]`, `{"a":1,"a":2}`, `{"a":1}{}`, `{"a":1`, `{"a"}`, `{"a":1} x`} {
		if got, err := emulator.Object([]byte(bad)); err == nil {
			t.Errorf("object %s: %s, want an error", bad, got)
		}
	}
	var v any
	if err := emulator.ReadJSON([]byte(`{} {}`), &v); err == nil {
		t.Error("two values were read as one")
	}
}

func TestIDs(t *testing.T) {
	a, b, c := emulator.IDs{Seed: "a"}, emulator.IDs{Seed: "a"}, emulator.IDs{Seed: "c"}
	x, y, z := a.UUID(), b.UUID(), c.UUID()
	if x != y || x == z || x == a.UUID() || len(x) != 36 || x[14] != '4' {
		t.Errorf("identifiers %s, %s, %s", x, y, z)
	}
	if h := a.Hex(8); len(h) != 8 {
		t.Errorf("hex %q, want 8 digits", h)
	}
}
