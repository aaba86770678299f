package invalidation

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
)

// DefaultProbeInterval is how often a target is probed when [Options] do not say.
const DefaultProbeInterval = 5 * time.Minute

// Bounds of probing.
const (
	// probeTimeout bounds a probe, and before that its wait for a slot.
	probeTimeout = 30 * time.Second
	// probesAtOnce is how many targets a process probes at once on its own account.
	probesAtOnce = 4
	// firstProbes is the time in which the first probes of all targets begin.
	firstProbes = 5 * time.Second
	// probeLead is how long a parked target's runs wait longer than its probe: it goes first, and has told by then.
	probeLead = 2 * probeTimeout
)

// checkup is a probe under way. All who ask for one meanwhile share it.
type checkup struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the fields below are set
	health adapters.Health
	err    error
}

// watchHealth probes the target soon after the start and every few minutes from then on, until ctx ends. It leaves alone
// a target that is paused, and asks one that is parked only when the account has rested for parkLength.
func (w *worker) watchHealth(ctx context.Context) {
	timer := time.NewTimer(time.Duration(w.e.random() * float64(firstProbes)))
	defer timer.Stop()
	due := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.rethink:
			due = false
		case <-timer.C:
		}
		if due && w.untilProbe() <= 0 {
			w.probeUnasked(ctx)
		}
		// Never in a circle, whatever is still due now.
		timer.Reset(max(w.untilProbe(), time.Second))
		due = true
	}
}

// untilProbe is how long it is until the target is to be probed without having been asked to. A paused one is looked at
// again when the pause may be over.
func (w *worker) untilProbe() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	interval := w.e.probeInterval
	if w.pause != nil {
		return interval
	}
	at := w.probed
	if !at.IsZero() {
		at = at.Add(time.Duration(float64(interval) * (0.9 + w.spread/5)))
	}
	if rested := w.parkedUntil.Add(-probeLead); !w.parkedUntil.IsZero() && w.probed.Before(rested) {
		at = rested
	}
	return at.Sub(w.e.now())
}

// probeUnasked probes the target when few others are being probed.
func (w *worker) probeUnasked(ctx context.Context) {
	select {
	case w.e.probes <- struct{}{}:
		defer func() { <-w.e.probes }()
	case <-ctx.Done():
		return
	}
	if _, err := w.probe(ctx); err != nil && ctx.Err() == nil {
		w.log.DebugContext(ctx, "target not probed", "error", err)
	}
}

// probe makes a probe and notes what it finds, or waits for the one that is under way. It goes on without those who asked
// for it.
func (w *worker) probe(ctx context.Context) (adapters.Health, error) {
	w.mu.Lock()
	c := w.checkup
	if c == nil {
		if w.e.closing.Load() {
			w.mu.Unlock()
			return adapters.Health{}, stopping()
		}
		var probing context.Context
		c = &checkup{done: make(chan struct{})}
		probing, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
		w.checkup, w.probed, w.spread = c, w.e.now(), w.e.random()
		go w.examine(probing, c)
	}
	w.mu.Unlock()
	select {
	case <-c.done:
		return c.health, c.err
	case <-ctx.Done():
		return adapters.Health{}, ctx.Err()
	}
}

// endProbe breaks off the probe under way, if there is one. No other begins, because the engine is closing.
func (w *worker) endProbe(ctx context.Context) {
	w.mu.Lock()
	c := w.checkup
	w.mu.Unlock()
	if c == nil {
		return
	}
	c.cancel()
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

func stopping() error {
	return &CallError{Code: Unavailable, Reason: ReasonNotAccepted, Message: "the gateway is stopping"}
}

func (w *worker) examine(ctx context.Context, c *checkup) {
	defer c.cancel()
	c.health, c.err = w.ask(ctx)
	if c.err == nil {
		w.noteHealth(ctx, c.health)
	}
	w.mu.Lock()
	w.checkup = nil
	w.mu.Unlock()
	close(c.done)
}

// ask has the adapter probe, in one of the target's slots.
func (w *worker) ask(ctx context.Context) (adapters.Health, error) {
	waiting, cancel := context.WithTimeout(ctx, probeTimeout)
	err := w.slots.acquire(waiting)
	cancel()
	switch {
	case ctx.Err() != nil:
		if err == nil {
			w.free()
		}
		return adapters.Health{}, stopping()
	case err != nil:
		return adapters.Health{}, &CallError{Code: Unavailable, Reason: adapters.ReasonUpstreamBusy,
			Message: "the target is busy with other runs", RetryDelay: overloadDelay, Err: err}
	}
	defer w.free()
	bounded, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	h, err := w.adapterProbe(bounded)
	switch {
	case err == nil:
		return h, nil
	case ctx.Err() != nil:
		return adapters.Health{}, stopping()
	}
	// What was found before is kept, but that the target is too slow is not to be overlooked.
	h.Checks = append(slices.Clone(h.Checks), adapters.Check{
		Name: "timeout", Status: adapters.CheckFailed, Message: fmt.Sprintf("the target did not answer all questions within %v", probeTimeout),
		Remedy: "look at the target's load and at the network to it; a low rate in the configuration slows the questions, too",
	})
	return h, nil
}

// adapterProbe turns a panic into a finding: one adapter's bug must not end the process.
func (w *worker) adapterProbe(ctx context.Context) (h adapters.Health, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.log.ErrorContext(ctx, "adapter panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			h, err = adapters.Health{Checks: []adapters.Check{{
				Name: "internal", Status: adapters.CheckFailed, Message: "the adapter failed", Remedy: "report it; the gateway's log says where",
			}}}, nil
		}
	}()
	return w.target.Adapter.Probe(ctx)
}

// noteHealth keeps what a probe found, tells the log if it is news, and parks a target that refused the credentials, or
// ends its parking when it accepts them.
func (w *worker) noteHealth(ctx context.Context, h adapters.Health) {
	now := w.e.now()
	w.mu.Lock()
	news := w.checkTime.IsZero() || !slices.Equal(findings(w.health), findings(h))
	w.health, w.checkTime = h, now
	parked := !w.parkedUntil.IsZero()
	w.mu.Unlock()
	switch credentials := h.Status(adapters.CheckCredentials); {
	case credentials == adapters.CheckFailed:
		w.refused(now)
	case parked && (credentials == adapters.CheckOK || h.Healthy()):
		w.unpark(ctx)
	}
	if !news {
		return
	}
	var found []string
	for _, c := range h.Checks {
		if c.Status != adapters.CheckOK {
			found = append(found, fmt.Sprintf("%s: %s", c.Name, c.Message))
		}
	}
	switch list := strings.Join(found, "; "); {
	case !h.Healthy():
		w.log.ErrorContext(ctx, "target is not healthy", "findings", list)
	case len(found) > 0:
		w.log.WarnContext(ctx, "target is healthy, with findings", "findings", list, "version", h.Version)
	default:
		w.log.InfoContext(ctx, "target is healthy", "version", h.Version)
	}
}

// findings are what is not as it should be, in a form to compare: messages may count days.
func findings(h adapters.Health) []string {
	var f []string
	for _, c := range h.Checks {
		if c.Status != adapters.CheckOK {
			f = append(f, fmt.Sprint(c.Name, c.Status))
		}
	}
	return f
}

// refused parks the target, because it refused the account's credentials at that time. Where targets are probed a probe
// goes first when the time is over: it asks with one login what several runs would ask with several.
func (w *worker) refused(at time.Time) {
	until := at.Add(parkLength)
	if w.e.probeInterval > 0 {
		until = until.Add(probeLead)
	}
	w.park(until)
	w.reconsider()
}

// reconsider makes watchHealth think again about when the next probe is due.
func (w *worker) reconsider() {
	select {
	case w.rethink <- struct{}{}:
	default:
	}
}
