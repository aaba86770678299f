package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// manager is the process manager, if it wants to be told how the service is: systemd's Type=notify. Otherwise telling it
// does nothing.
type manager struct{ log *slog.Logger }

// tell says how the service is, in the words of sd_notify(3).
func (m manager) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.log.Warn("the process manager could not be told", "state", state, "error", err)
	}
}

// reloading says that a reload has begun. The manager waits for the next [daemon.SdNotifyReady].
func (m manager) reloading() {
	m.tell(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// watchdog tells the manager twice in the interval that it sets (WatchdogSec=) that the service lives, as long as alive
// says so, until ctx ends. What is silent for the whole interval is killed and started anew.
func (m manager) watchdog(ctx context.Context, alive func(context.Context) error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		m.log.WarnContext(ctx, "the watchdog's interval cannot be read", "error", err)
	}
	if interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, interval/2)
		err := alive(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.log.WarnContext(ctx, "the process does not answer itself", "error", err)
		default:
			m.tell(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
