package emulator

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Recorded is one request as the client tried to send it.
type Recorded struct {
	Method string
	URL    string
	Path   string
	// Query is the raw query.
	Query  string
	Header http.Header
	Body   []byte
	Time   time.Time
	// Status is that of the answer; 0 if there was none, or not yet.
	Status int
}

// Recorder is a transport that remembers its requests. It is safe for concurrent use.
type Recorder struct {
	next http.RoundTripper

	mu               sync.Mutex
	requests         []*Recorded
	inFlight, atOnce int
}

// NewRecorder wraps next.
func NewRecorder(next http.RoundTripper) *Recorder { return &Recorder{next: next} }

// Requests returns what was sent since the last Reset, in the order of sending.
func (r *Recorder) Requests() []Recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Recorded, len(r.requests))
	for i, x := range r.requests {
		out[i] = *x
	}
	return out
}

// MaxInFlight is the largest number of requests under way at one time since the last Reset.
func (r *Recorder) MaxInFlight() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.atOnce
}

// Reset forgets the requests so far.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.atOnce = nil, r.inFlight
}

// RoundTrip implements [http.RoundTripper].
func (r *Recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := &Recorded{
		Method: req.Method, URL: req.URL.String(), Path: req.URL.Path, Query: req.URL.RawQuery,
		Header: req.Header.Clone(), Body: slices.Clone(Body(req)), Time: time.Now(),
	}
	r.mu.Lock()
	r.requests = append(r.requests, rec)
	r.inFlight++
	r.atOnce = max(r.atOnce, r.inFlight)
	r.mu.Unlock()

	resp, err := r.next.RoundTrip(req)

	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight--
	if err == nil {
		rec.Status = resp.StatusCode
	}
	return resp, err
}

// Body returns a copy of the body of a client's request and leaves it to be sent.
func Body(req *http.Request) []byte {
	if req.Body == nil || req.Body == http.NoBody {
		return nil
	}
	if req.GetBody != nil {
		if b, err := req.GetBody(); err == nil {
			defer func() { _ = b.Close() }()
			data, _ := io.ReadAll(b)
			return data
		}
	}
	data, _ := io.ReadAll(req.Body)
	_ = req.Body.Close()
	req.Body = io.NopCloser(bytes.NewReader(data))
	return data
}
