package adaptertest

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// elsewhere is the host that redirects lead to. Nothing may ever be sent there.
const elsewhere = "elsewhere.invalid"

// request is one request that left the adapter.
type request struct {
	method, url string
	body        []byte
	mutating    bool
	// fenced is true when a fence was asked for it: since the request before, or, if the adapter does several things at
	// once, since any.
	fenced bool
	// limited is true when the limit was asked for it.
	limited bool
	// late is true when the call's context had ended before.
	late bool
	time time.Time
}

// tape is the outermost transport of one process: it knows the order of fences, limits and requests, and can end the
// process in the middle of one.
type tape struct {
	next    http.RoundTripper
	mutates func(*http.Request, []byte) bool

	mu                       sync.Mutex
	requests                 []request
	fences, limits           int
	unspent                  int             // fences asked that no mutating request has used
	inFlight                 int             // requests
	overlapping              bool            // the adapter does several things at once
	call                     context.Context // the call under way, if it is watched
	refuseFence, refuseLimit error
	refuseFrom               int // the fence refuses from this call on; 0 never
	dieAt                    int // the process dies at this request; 0 never
	dieAfter                 bool
	die                      context.CancelFunc
	dead                     bool
	onMutation               func()
	onRequest                func(n int)
}

var errDead = errors.New("the process is dead")

// fence is what the engine would put into the context.
func (tp *tape) fence(context.Context) error {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.fences++
	if tp.refuseFrom > 0 && tp.fences >= tp.refuseFrom {
		return tp.refuseFence
	}
	tp.unspent++
	if tp.unspent > 1 {
		tp.overlapping = true
	}
	return nil
}

func (tp *tape) limit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tp.mu.Lock()
	defer tp.mu.Unlock()
	if tp.refuseLimit != nil {
		return tp.refuseLimit
	}
	tp.limits++
	return nil
}

// RoundTrip implements [http.RoundTripper].
func (tp *tape) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := context.Cause(req.Context()); err != nil {
		return tp.next.RoundTrip(req) // it sends nothing, as net/http's would not
	}
	body := emulator.Body(req)
	tp.mu.Lock()
	if tp.dead {
		tp.mu.Unlock()
		return nil, errDead
	}
	r := request{
		method: req.Method, url: req.URL.String(), body: body, mutating: tp.mutates(req, body), time: time.Now(), late: tp.call != nil && tp.call.Err() != nil,
	}
	if tp.inFlight > 0 {
		tp.overlapping = true
	}
	switch {
	case r.mutating:
		r.fenced = tp.unspent > 0
		tp.unspent = max(0, tp.unspent-1)
	case !tp.overlapping:
		tp.unspent = 0
	}
	tp.inFlight++
	tp.requests = append(tp.requests, r)
	n := len(tp.requests)
	tp.requests[n-1].limited = tp.limits >= n
	dying := n == tp.dieAt
	onMutation, onRequest := tp.onMutation, tp.onRequest
	tp.mu.Unlock()
	defer func() {
		tp.mu.Lock()
		tp.inFlight--
		tp.mu.Unlock()
	}()
	if onRequest != nil {
		onRequest(n)
	}
	if dying && !tp.dieAfter {
		tp.kill()
		return nil, errDead
	}
	resp, err := tp.next.RoundTrip(req)
	if dying {
		tp.kill()
		return nil, errDead
	}
	if r.mutating && onMutation != nil {
		onMutation()
	}
	return resp, err
}

func (tp *tape) kill() {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.dead = true
	if tp.die != nil {
		tp.die()
	}
}

// watch says which context the next call runs under: what is sent after its end is late.
func (tp *tape) watch(ctx context.Context) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.call = ctx
}

// isDead reports whether the process has died.
func (tp *tape) isDead() bool {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.dead
}

// sent returns the requests so far.
func (tp *tape) sent() []request {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return append([]request(nil), tp.requests...)
}

func (tp *tape) fenceCalls() int {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.fences
}

// mutating returns those requests that can end sessions.
func mutating(rs []request) []request {
	var out []request
	for _, r := range rs {
		if r.mutating {
			out = append(out, r)
		}
	}
	return out
}

// logs is where the adapter's log goes.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is the log so far.
func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// split returns the sessions that sel must end, and those it must not.
func (h Harness) split(sel adapters.Selector, xs []adapters.Session) (ended, kept []adapters.Session) {
	for _, x := range xs {
		if sel.Match(x) && (h.Exact == nil || h.Exact(sel, x)) {
			ended = append(ended, x)
		} else {
			kept = append(kept, x)
		}
	}
	return ended, kept
}
