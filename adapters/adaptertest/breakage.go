package adaptertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// trouble is a fault and the kinds of error it may yield: struck at a request that ends sessions, or at another.
type trouble struct {
	emulator.Fault
	kill, other []adapters.Kind
}

// troubles are the faults a run meets. A fault may also pass unnoticed, if the run then ends right.
func troubles() []trouble {
	type kinds = []adapters.Kind
	const (
		unsupported = adapters.Unsupported
		rejected    = adapters.Rejected
		busy        = adapters.Busy
		unreachable = adapters.Unreachable
		uncertain   = adapters.Uncertain
		badReply    = adapters.BadReply
	)
	lost := func(f emulator.Fault) trouble { return trouble{f, kinds{uncertain}, kinds{unreachable}} }
	unclear := func(f emulator.Fault) trouble {
		return trouble{f, kinds{uncertain, badReply}, kinds{badReply, unreachable}}
	}
	same := func(f emulator.Fault, ks ...adapters.Kind) trouble { return trouble{f, ks, ks} }
	html503 := emulator.StatusHTML(http.StatusServiceUnavailable)
	return []trouble{
		same(emulator.Refuse(), unreachable),
		lost(emulator.Reset()),
		lost(emulator.Reset().After()),
		lost(emulator.Hang()),
		lost(emulator.Hang().After()),
		unclear(emulator.Stall()),
		unclear(emulator.Cut()),
		unclear(emulator.Truncated()),
		unclear(emulator.ContentType("text/plain")),
		unclear(emulator.Page()),
		unclear(emulator.Empty()),
		// A node that answers null may be known not to have begun.
		{emulator.Null(), kinds{uncertain, badReply, busy}, kinds{badReply, unreachable, busy}},
		unclear(emulator.Redirect("https://" + elsewhere + "/")),
		same(emulator.Status(http.StatusBadRequest), rejected, unsupported),
		same(emulator.Status(http.StatusUnauthorized), adapters.Credentials),
		same(emulator.StatusHTML(http.StatusUnauthorized), adapters.Credentials),
		same(emulator.Status(http.StatusForbidden), adapters.Denied, adapters.Credentials),
		// What was there a moment ago and is not now may also be in doubt.
		same(emulator.Status(http.StatusNotFound), rejected, unsupported, uncertain, unreachable),
		same(emulator.Status(http.StatusTooManyRequests), busy),
		same(emulator.StatusRetryAfter(http.StatusTooManyRequests, "30"), busy),
		lost(emulator.Status(http.StatusInternalServerError)),
		lost(emulator.Status(http.StatusInternalServerError).After()),
		lost(emulator.StatusHTML(http.StatusBadGateway)),
		lost(emulator.StatusHTML(http.StatusBadGateway).After()),
		lost(emulator.Status(http.StatusGatewayTimeout)),
		{html503, kinds{uncertain}, kinds{busy, unreachable}},
		{html503.After(), kinds{uncertain}, kinds{busy, unreachable}},
		// With Retry-After it may be the product's own word that it is not ready.
		{emulator.StatusRetryAfter(http.StatusServiceUnavailable, "30"), kinds{uncertain, busy}, kinds{busy, unreachable}},
	}
}

// faultYieldsItsKind strikes each request of a run once.
func faultYieldsItsKind(t *testing.T, h Harness, d drill, f trouble) {
	sent, _ := d.clean(t, h)
	for _, n := range positions(len(sent), 10) {
		w, r := d.start(t, h)
		w.about = fmt.Sprintf("%s at request %d of %d: %s", f.Name, n, len(sent), w.about)
		w.faults.Add(emulator.Rule{Skip: n - 1, Times: 1, Fault: f.Fault})
		if err := r.drive(w.ctx); err != nil {
			kinds := f.other
			if struck := w.tape.sent()[n-1]; struck.mutating {
				kinds = f.kill
			}
			var e *adapters.Error
			switch died := w.judge(false, r.sel); {
			case !errors.As(err, &e) || !slices.Contains(kinds, e.Kind):
				w.errorf("error %v of kind %s, want one of %v", err, adapters.KindOf(err), kinds)
			case e.Kind == adapters.Unsupported && died > 0:
				w.errorf("unsupported, but %d sessions ended", died)
			case f.Name == "429 Too Many Requests with Retry-After 30" && e.RetryAfter != 30*time.Second:
				w.errorf("asks to come back after %v, want what the target said, 30s", e.RetryAfter)
			}
			time.Sleep(r.wait)
		}
		w.finish(r)
		w.close()
	}
}

// faultInPreview strikes each request of a preview.
func faultInPreview(t *testing.T, h Harness, d drill, f trouble) {
	w, r := d.start(t, h)
	defer w.close()
	w.about = f.Name + " in a preview: " + w.about
	w.faults.Add(emulator.Rule{Fault: f.Fault})
	p, err := w.a.Preview(w.ctx, r.sel)
	w.look("preview", p)
	w.look("error", err)
	if err != nil {
		checkError(w.ctx, err, w.errorf)
		if kind := adapters.KindOf(err); kind == adapters.Uncertain {
			w.errorf("error %v of kind %s, but a preview changes nothing", err, kind)
		}
	}
	w.untouched()
}

// hangs leaves each request of a run without an answer. begin makes the context of each call; struck is called when the
// request arrives.
func hangs(t *testing.T, h Harness, d drill, begin func(context.Context) (ctx context.Context, struck, end func()), bound time.Duration) {
	sent, _ := d.clean(t, h)
	for _, fault := range []emulator.Fault{emulator.Hang(), emulator.Hang().After()} {
		for _, n := range positions(len(sent), 16) {
			w, r := d.start(t, h)
			w.about = fmt.Sprintf("%s at request %d of %d: %s", fault.Name, n, len(sent), w.about)
			w.faults.Add(emulator.Rule{Skip: n - 1, Times: 1, Fault: fault})
			for w.faults.Struck() == 0 && !r.out.Complete && r.out.Calls < maxCalls {
				ctx, struck, end := begin(w.ctx)
				var at time.Time
				w.tape.onRequest = func(i int) {
					if i == n {
						at = time.Now()
						struck()
					}
				}
				w.tape.watch(ctx)
				err := r.call(ctx)
				took := time.Since(at)
				end()
				w.tape.watch(context.Background())
				if w.faults.Struck() > 0 && took > bound {
					w.errorf("the call went on for %v after the request got no answer, want at most %v", took, bound)
				}
				ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
				switch kind := adapters.KindOf(err); {
				case err == nil:
				case w.faults.Struck() == 0:
					w.errorf("before the fault: %v", err)
				case w.tape.sent()[n-1].mutating && kind != adapters.Uncertain:
					w.errorf("error %v of kind %s, want uncertain: the request may have had its effect", err, kind)
				case kind != adapters.Uncertain && kind != adapters.Unreachable && !ended:
					w.errorf("error %v of kind %s, want unreachable or the context's", err, kind)
				}
				w.judge(false, r.sel)
				time.Sleep(r.wait)
			}
			w.finish(r)
			w.close()
		}
	}
}

func deadlineEndsTheCall(t *testing.T, h Harness, d drill) {
	const length = 20 * time.Second
	hangs(t, h, d, func(ctx context.Context) (context.Context, func(), func()) {
		ctx, cancel := context.WithTimeout(ctx, length)
		return ctx, func() {}, cancel
	}, length)
}

func cancellationEndsTheCall(t *testing.T, h Harness, d drill) {
	const patience = 2 * time.Second
	hangs(t, h, d, func(ctx context.Context) (context.Context, func(), func()) {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, func() { time.AfterFunc(patience, cancel) }, cancel
	}, patience)
}

// fenceStops has the fence refuse at each request that ends sessions.
func fenceStops(t *testing.T, h Harness, d drill) {
	sent, fences := d.clean(t, h)
	kills := len(mutating(sent))
	if fences < kills {
		t.Errorf("%s: the fence was asked %d times for %d requests that can end sessions", d.name, fences, kills)
	}
	for _, k := range positions(fences, 20) {
		w, r := d.start(t, h)
		w.about = fmt.Sprintf("fence refuses at its call %d of %d: %s", k, fences, w.about)
		w.tape.refuseFence, w.tape.refuseFrom = errFence, k
		if err := r.drive(w.ctx); !errors.Is(err, errFence) {
			w.errorf("error %v, want the fence's", err)
		}
		if got := len(mutating(w.tape.sent())); got >= k {
			w.errorf("%d requests that can end sessions were sent, but the fence let only %d pass", got, k-1)
		}
		w.judge(false, r.sel)
		w.tape.refuseFrom = 0
		w.finish(r)
		w.close()
	}
}

func limitStops(t *testing.T, h Harness, d drill) {
	w, r := d.start(t, h)
	defer w.close()
	w.tape.refuseLimit = errLimit
	if err := r.drive(w.ctx); !errors.Is(err, errLimit) {
		w.errorf("error %v, want the limit's", err)
	}
	if n := len(w.tape.sent()); n > 0 {
		w.errorf("%d requests were sent", n)
	}
	w.tape.refuseLimit = nil
	w.finish(r)
}

func cancelledSendsNothing(t *testing.T, h Harness, d drill) {
	w, r := d.start(t, h)
	defer w.close()
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if err := r.call(ctx); !errors.Is(err, context.Canceled) {
		w.errorf("Invalidate: %v, want cancelled", err)
	}
	if _, err := w.a.Preview(ctx, r.sel); !errors.Is(err, context.Canceled) && err != nil {
		w.errorf("Preview: %v, want cancelled", err)
	}
	if _, err := w.a.Probe(ctx); !errors.Is(err, context.Canceled) {
		w.errorf("Probe: %v, want cancelled", err)
	}
	if n := len(w.tape.sent()); n > 0 {
		w.errorf("%d requests were sent", n)
	}
	w.finish(r)
}

// storm breaks requests at random, process deaths included, until it is over. The seeds are fixed.
func storm(t *testing.T, h Harness, d drill) {
	var faults []emulator.Fault
	for _, f := range troubles() {
		faults = append(faults, f.Fault)
	}
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w, r := d.start(t, h)
		w.about = fmt.Sprintf("storm %d: %s", seed, w.about)
		w.faults.Choose(emulator.Sometimes(seed, 0.25, faults...))
		for range 25 {
			if rnd.IntN(4) == 0 {
				w.tape.mu.Lock()
				w.tape.dieAt, w.tape.dieAfter = len(w.tape.requests)+1+rnd.IntN(4), rnd.IntN(2) == 0
				w.tape.mu.Unlock()
			}
			journal := *r
			_ = r.call(w.ctx)
			w.judge(r.out.Complete && !w.tape.isDead(), r.sel)
			if w.tape.isDead() {
				*r = journal
				r.crashed()
				w.reopen()
				r.a = w.a
				w.faults.Choose(emulator.Sometimes(seed+uint64(r.out.Calls)+100, 0.25, faults...))
			}
			if r.out.Complete {
				break
			}
			time.Sleep(r.wait)
		}
		w.faults.Clear()
		w.tape.mu.Lock()
		w.tape.dieAt = 0
		w.tape.mu.Unlock()
		w.finish(r)
		w.close()
	}
}

// newcomers has somebody whom the selector matches sign in after every request that ends sessions, or in every gap: before
// each request, too.
func newcomers(t *testing.T, h Harness, d drill, gaps bool) {
	sent, _ := d.clean(t, h)
	w, r := d.start(t, h)
	defer w.close()
	listed := w.preview(r.sel).Listed
	ended, _ := h.split(r.sel, w.seeded)
	again := ended[0]
	again.ID, again.CreateTime, again.LastAccessTime, again.ExpireTime = "", time.Time{}, time.Time{}, time.Time{}
	if !r.sel.Match(again) {
		return // sessions by id: nobody new can match
	}
	var added []adapters.Session
	var mu sync.Mutex
	signIn := func() {
		mu.Lock()
		defer mu.Unlock()
		if len(added) < 500 {
			added = append(added, w.e.SignIn(again))
		}
	}
	w.tape.onMutation = signIn
	if gaps {
		w.tape.onRequest = func(int) { signIn() }
	}
	if err := r.drive(w.ctx); err != nil {
		w.errorf("Invalidate: %v", err)
	}
	died := w.judge(true, r.sel)
	_, left := w.fates(added)
	w.judgeCount(r.out, died+len(added)-len(left))
	if bound, got := 4*len(mutating(sent))+10, len(mutating(w.tape.sent())); got > bound {
		w.errorf("sent %d requests that end sessions, want at most %d: it pursues whoever signs in", got, bound)
	}
	if listed && len(left) > 0 && !r.out.Warned(adapters.WarnSignedInAgain) {
		w.errorf("%d sessions began meanwhile and are there; warnings %+v, want %s", len(left), r.out.Warnings, adapters.WarnSignedInAgain)
	}
}

// probe calls Probe and checks its form.
func (w *world) probe() adapters.Health {
	w.t.Helper()
	health, err := w.a.Probe(w.ctx)
	if err != nil {
		w.errorf("Probe: %v; what is wrong with the target belongs into Health", err)
	}
	w.look("health", health)
	for _, c := range health.Checks {
		switch {
		case c.Name == "" || c.Status < adapters.CheckOK || c.Status > adapters.CheckUnknown:
			w.errorf("check %+v has no name or no status", c)
		case c.Message == "" || (c.Status == adapters.CheckOK) != (c.Remedy == ""):
			w.errorf("check %+v has no message or no remedy, or needs no remedy", c)
		}
	}
	w.untouched()
	return health
}

func probeEndsNobody(t *testing.T, h Harness) {
	w := newWorld(t, h, h.few())
	defer w.close()
	w.about = "probe"
	if health := w.probe(); !health.Healthy() || health.Status(adapters.CheckCredentials) != adapters.CheckOK {
		w.errorf("not healthy, or does not say that the credentials are accepted: %+v", health)
	}
}

// probeTroubles are faults that meet every request of a probe.
func probeTroubles() []emulator.Fault {
	return []emulator.Fault{
		emulator.Refuse(), emulator.Reset(), emulator.Hang(), emulator.Page(), emulator.Null(),
		emulator.Status(http.StatusUnauthorized), emulator.StatusHTML(http.StatusUnauthorized), emulator.Status(http.StatusForbidden),
		emulator.Status(http.StatusNotFound), emulator.Status(http.StatusInternalServerError),
		emulator.StatusHTML(http.StatusBadGateway), emulator.Redirect("https://" + elsewhere + "/"),
	}
}

func probeReports(t *testing.T, h Harness, f emulator.Fault) {
	w := newWorld(t, h, h.few())
	defer w.close()
	w.about = "probe: " + f.Name
	w.faults.Add(emulator.Rule{Fault: f})
	health := w.probe()
	if health.Healthy() {
		w.errorf("healthy: %+v", health)
	}
	// The engine parks a target for this, and for nothing else.
	refused := health.Status(adapters.CheckCredentials) == adapters.CheckFailed
	if want := strings.Contains(f.Name, strconv.Itoa(http.StatusUnauthorized)); refused != want {
		w.errorf("credentials refused: %t, want %t: %+v", refused, want, health)
	}
	w.faults.Clear()
	if health := w.probe(); !health.Healthy() {
		w.errorf("nothing is wrong any more, but not healthy: %+v", health)
	}
}

// runsAtOnce drives several selectors at the same time through one adapter.
func runsAtOnce(t *testing.T, h Harness, drills []drill) {
	w := newWorld(t, h, h.population())
	defer w.close()
	w.about = "several runs at once"
	w.tape.overlapping = true
	var sels []adapters.Selector
	for _, d := range drills {
		sels = append(sels, d.make(w.seeded))
	}
	for _, c := range h.Type.Criteria {
		if c == adapters.All {
			continue
		}
		for i, sel := range h.selectors(c, w.seeded) {
			if i < 3 && w.a.Supports(sel) == nil {
				sels = append(sels, sel)
			}
		}
	}
	// Without the broadest ones, so that somebody is left to be spared.
	sels = slices.DeleteFunc(sels, func(s adapters.Selector) bool { return s.By == adapters.All })
	runs := make([]*run, len(sels))
	var wg sync.WaitGroup
	for i, sel := range sels {
		runs[i] = w.run(sel)
		wg.Go(func() {
			r := runs[i]
			for r.out.Calls < maxCalls && !r.out.Complete {
				if err := r.call(w.ctx); err != nil {
					w.errorf("%s: %v", describe(r.sel), err)
					return
				}
				time.Sleep(r.wait)
			}
		})
	}
	wg.Wait()
	died := w.judge(true, sels...)
	counted := 0
	for _, r := range runs {
		if !r.out.Complete {
			w.errorf("%s: not complete", describe(r.sel))
		}
		counted += r.out.Count
	}
	if counted > died {
		w.errorf("the runs count %d together, but %d ended", counted, died)
	}
}
