package emulator

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fault is one way a request can go wrong. Make one with the functions that return it.
type Fault struct {
	// Name says what happens, for the names of subtests.
	Name string
	// Effect is true when the target acts on the request before the fault strikes: the answer alone is lost or spoilt.
	Effect bool
	// Sent is false when not a byte of the request leaves.
	Sent bool
	// strike makes the outcome. resp is the target's own answer, nil without Effect.
	strike func(req *http.Request, resp *http.Response) (*http.Response, error)
}

// After is the same fault, striking after the target has acted. It means nothing for a fault that is not sent.
func (f Fault) After() Fault {
	if f.Sent && !f.Effect {
		f.Effect, f.Name = true, f.Name+" after the effect"
	}
	return f
}

// Refuse lets no connection come about: nothing is sent.
func Refuse() Fault {
	return Fault{Name: "connection refused", strike: func(*http.Request, *http.Response) (*http.Response, error) {
		return nil, errRefused
	}}
}

// Reset breaks the connection after the request was written and before the target acts on it.
func Reset() Fault {
	return Fault{Name: "connection reset", Sent: true, strike: func(*http.Request, *http.Response) (*http.Response, error) {
		return nil, errReset
	}}
}

// Hang answers nothing until the request's context ends.
func Hang() Fault {
	return Fault{Name: "no answer", Sent: true, strike: func(req *http.Request, _ *http.Response) (*http.Response, error) {
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	}}
}

// Stall answers 200 with the beginning of a body, and nothing more until the request's context ends.
func Stall() Fault {
	return Fault{Name: "answer stalls", Sent: true, strike: func(req *http.Request, _ *http.Response) (*http.Response, error) {
		r := newResponse(req, http.StatusOK, jsonHeader(), nil)
		r.ContentLength = -1
		r.Header.Del("Content-Length")
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), blocked{req.Context()}))
		return r, nil
	}}
}

type blocked struct{ ctx context.Context }

// Read waits for the end of the context.
func (b blocked) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, context.Cause(b.ctx)
}

// Delay passes the request on after d, and is no failure of itself.
func Delay(d time.Duration) Fault {
	return Fault{
		Name: "delay of " + d.String(), Sent: true, Effect: true,
		strike: func(req *http.Request, resp *http.Response) (*http.Response, error) {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-t.C:
				return resp, nil
			case <-req.Context().Done():
				return nil, context.Cause(req.Context())
			}
		},
	}
}

// Answer replaces the target's answer.
func Answer(status int, header http.Header, body string) Fault {
	return Fault{
		Name: strconv.Itoa(status) + " " + http.StatusText(status), Sent: true,
		strike: func(req *http.Request, _ *http.Response) (*http.Response, error) {
			return newResponse(req, status, header.Clone(), []byte(body)), nil
		},
	}
}

// Canary is part of the body of every answer that faults make. No error, log line or result may show it.
const Canary = "canary-7f1c2d"

func jsonHeader() http.Header { return http.Header{"Content-Type": {"application/json"}} }
func htmlHeader() http.Header { return http.Header{"Content-Type": {"text/html; charset=utf-8"}} }

const htmlBody = "<!DOCTYPE html><html><head><title>" + Canary + "</title></head><body>" + Canary + "</body></html>"

// Status answers with a status and a JSON error body.
func Status(status int) Fault {
	return Answer(status, jsonHeader(), `{"statusCode":`+strconv.Itoa(status)+`,"code":`+strconv.Itoa(status)+
		`,"error":"`+Canary+`","message":"`+Canary+`"}`)
}

// StatusHTML answers with a status and a page, as proxies do.
func StatusHTML(status int) Fault {
	f := Answer(status, htmlHeader(), htmlBody)
	f.Name += " as a page"
	return f
}

// StatusRetryAfter answers with a status, a JSON error body and a Retry-After header.
func StatusRetryAfter(status int, retryAfter string) Fault {
	h := jsonHeader()
	h.Set("Retry-After", retryAfter)
	f := Answer(status, h, `{"message":"`+Canary+`"}`)
	f.Name += " with Retry-After " + retryAfter
	return f
}

// Redirect answers 302 to another host.
func Redirect(location string) Fault {
	h := htmlHeader()
	h.Set("Location", location)
	return Answer(http.StatusFound, h, htmlBody)
}

// Page answers 200 with a page: a login form or a captive portal in between.
func Page() Fault {
	f := Answer(http.StatusOK, htmlHeader(), htmlBody)
	f.Name = "a page with 200"
	return f
}

// Null answers 200 with the JSON text null.
func Null() Fault {
	f := Answer(http.StatusOK, jsonHeader(), "null")
	f.Name = "null with 200"
	return f
}

// Empty answers 200 with no body at all, but a JSON content type.
func Empty() Fault {
	f := Answer(http.StatusOK, jsonHeader(), "")
	f.Name = "empty body with 200"
	return f
}

// Huge answers 200 with JSON of n bytes and more.
func Huge(n int64) Fault {
	return Fault{Name: "huge body", Sent: true, strike: func(req *http.Request, _ *http.Response) (*http.Response, error) {
		r := newResponse(req, http.StatusOK, jsonHeader(), nil)
		r.ContentLength = -1
		r.Header.Del("Content-Length")
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"`+Canary+`":"`), io.LimitReader(endless{}, n), strings.NewReader(`"}`)))
		return r, nil
	}}
}

type endless struct{}

// Read fills p with a letter.
func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// Truncated ends the target's own body in the middle, without a word: JSON that does not close. The target has acted.
func Truncated() Fault {
	return spoil("truncated JSON", func(req *http.Request, resp *http.Response, body []byte) *http.Response {
		return newResponse(req, resp.StatusCode, resp.Header, body[:len(body)/2])
	})
}

// Cut breaks the connection in the middle of the target's own body. The target has acted.
func Cut() Fault {
	return spoil("connection cut within the body", func(req *http.Request, resp *http.Response, body []byte) *http.Response {
		r := newResponse(req, resp.StatusCode, resp.Header, body)
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body[:len(body)/2]), failing{io.ErrUnexpectedEOF}))
		return r
	})
}

type failing struct{ err error }

// Read returns the error.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

// ContentType replaces the content type of the target's own answer. The target has acted.
func ContentType(t string) Fault {
	return spoil("content type "+t, func(req *http.Request, resp *http.Response, body []byte) *http.Response {
		resp.Header.Set("Content-Type", t)
		return newResponse(req, resp.StatusCode, resp.Header, body)
	})
}

// spoil makes a fault that alters the target's own answer.
func spoil(name string, alter func(*http.Request, *http.Response, []byte) *http.Response) Fault {
	return Fault{Name: name, Sent: true, Effect: true, strike: func(req *http.Request, resp *http.Response) (*http.Response, error) {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		_ = resp.Body.Close()
		return alter(req, resp, body), nil
	}}
}

// Rule says when a fault strikes.
type Rule struct {
	// Match picks the requests the rule is about; nil: every request. It must not read the body; see [Body].
	Match func(*http.Request) bool
	// Skip lets that many of them pass first.
	Skip int
	// Times is how often the fault strikes; 0: every time.
	Times int
	Fault Fault
}

// On matches a method and a path; an empty method is any.
func On(method, path string) func(*http.Request) bool {
	return func(r *http.Request) bool { return (method == "" || r.Method == method) && r.URL.Path == path }
}

// Faults is a transport that goes wrong as told. It is safe for concurrent use.
type Faults struct {
	next http.RoundTripper

	mu     sync.Mutex
	rules  []*rule
	choose func(*http.Request) (Fault, bool)
	seen   int
	struck int
}

type rule struct {
	Rule
	seen, struck int
}

// NewFaults wraps next; without rules everything passes.
func NewFaults(next http.RoundTripper) *Faults { return &Faults{next: next} }

// Add adds a rule. The first rule that applies to a request wins.
func (f *Faults) Add(r Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &rule{Rule: r})
}

// Choose has every request that no rule applies to judged by choose, one at a time: [Sometimes], say.
func (f *Faults) Choose(choose func(*http.Request) (Fault, bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.choose = choose
}

// Sometimes strikes each request with probability p, with one of the faults: the same ones for the same seed and order
// of requests.
func Sometimes(seed uint64, p float64, faults ...Fault) func(*http.Request) (Fault, bool) {
	rnd := rand.New(rand.NewPCG(seed, seed))
	return func(*http.Request) (Fault, bool) {
		if rnd.Float64() >= p {
			return Fault{}, false
		}
		return faults[rnd.IntN(len(faults))], true
	}
}

// Clear takes all rules away and starts counting anew.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules, f.choose, f.seen, f.struck = nil, nil, 0, 0
}

// Seen is the number of requests since the last Clear.
func (f *Faults) Seen() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// Struck is the number of faults since the last Clear.
func (f *Faults) Struck() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck
}

func (f *Faults) pick(req *http.Request) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	found := -1
	for i, r := range f.rules {
		if r.Match != nil && !r.Match(req) {
			continue
		}
		r.seen++
		if found < 0 && r.seen > r.Skip && (r.Times == 0 || r.struck < r.Times) {
			found = i
		}
	}
	if found >= 0 {
		f.rules[found].struck++
		f.struck++
		return f.rules[found].Fault, true
	}
	if f.choose != nil {
		if fault, ok := f.choose(req); ok {
			f.struck++
			return fault, true
		}
	}
	return Fault{}, false
}

// RoundTrip implements [http.RoundTripper].
func (f *Faults) RoundTrip(req *http.Request) (*http.Response, error) {
	fault, ok := f.pick(req)
	if !ok {
		return f.next.RoundTrip(req)
	}
	if fault.Effect {
		resp, err := f.next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		return fault.strike(req, resp)
	}
	if err := connect(req); err != nil {
		return nil, err
	}
	defer closeBody(req)
	if fault.Sent {
		wrote(req)
	}
	return fault.strike(req, nil)
}
