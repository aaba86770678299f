package adapters_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/endsession/endsession/adapters"
)

func TestFence(t *testing.T) {
	lost := errors.New("the lease is lost")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	asked := 0
	refusing := func(context.Context) error { asked++; return lost }
	for name, test := range map[string]struct {
		ctx   context.Context
		want  error
		asked int
	}{
		"NoFence":                 {t.Context(), nil, 0},
		"Refuses":                 {adapters.WithFence(t.Context(), refusing), lost, 1},
		"AnEndedContextIsEnough":  {cancelled, context.Canceled, 0},
		"ItDoesNotAskForTheEnded": {adapters.WithFence(cancelled, refusing), context.Canceled, 0},
	} {
		t.Run(name, func(t *testing.T) {
			asked = 0
			if err := adapters.Fence(test.ctx); !errors.Is(err, test.want) || asked != test.asked {
				t.Errorf("Fence: %v, asked %d times, want %v and %d", err, asked, test.want, test.asked)
			}
		})
	}
}

func TestError(t *testing.T) {
	cause := fmt.Errorf("dial: %w", context.DeadlineExceeded)
	err := fmt.Errorf("run: %w", adapters.Wrap(adapters.Unreachable, cause, "target %s cannot be reached", "apm"))
	var e *adapters.Error
	switch {
	case !errors.As(err, &e), !errors.Is(err, context.DeadlineExceeded):
		t.Fatalf("the chain of %v is broken", err)
	case e.Message != "target apm cannot be reached":
		t.Errorf("message %q shows the cause, or not what it should", e.Message)
	case e.Reason() != adapters.ReasonUpstreamUnreachable || adapters.KindOf(err) != adapters.Unreachable:
		t.Errorf("reason %s, kind %s", e.Reason(), adapters.KindOf(err))
	case adapters.KindOf(cause) != 0 || adapters.KindOf(nil) != 0:
		t.Error("an error of nobody's has a kind")
	}
	e.Why = adapters.ReasonUnknownProvider
	if e.Reason() != adapters.ReasonUnknownProvider {
		t.Errorf("reason %s, want the given one", e.Reason())
	}
	seen := map[adapters.Reason]adapters.Kind{}
	for k := adapters.Unsupported; k <= adapters.StillAlive; k++ {
		r := k.Reason()
		if other, ok := seen[r]; ok || r == adapters.ReasonInternal || k.String() == fmt.Sprintf("kind %d", int(k)) {
			t.Errorf("kind %d, %q, has reason %s, like %s", k, k, r, other)
		}
		seen[r] = k
	}
}

func TestHealthy(t *testing.T) {
	checks := func(s ...adapters.CheckStatus) (h adapters.Health) {
		for _, x := range s {
			h.Checks = append(h.Checks, adapters.Check{Name: "x", Status: x})
		}
		return h
	}
	for _, test := range []struct {
		h    adapters.Health
		want bool
	}{
		{checks(), false}, // nothing was checked
		{checks(adapters.CheckOK), true},
		{checks(adapters.CheckOK, adapters.CheckWarning, adapters.CheckUnknown), true},
		{checks(adapters.CheckOK, adapters.CheckFailed), false},
	} {
		if got := test.h.Healthy(); got != test.want {
			t.Errorf("%+v is healthy: %t, want %t", test.h, got, test.want)
		}
	}
}
