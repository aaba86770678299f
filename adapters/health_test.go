package adapters_test

import (
	"testing"

	"github.com/endsession/endsession/adapters"
)

func TestHealthStatusIsTheWorst(t *testing.T) {
	const ok, warning, failed, unknown = adapters.CheckOK, adapters.CheckWarning, adapters.CheckFailed, adapters.CheckUnknown
	for _, test := range []struct {
		checks []adapters.CheckStatus
		want   adapters.CheckStatus
	}{
		{nil, 0},
		{[]adapters.CheckStatus{ok}, ok},
		{[]adapters.CheckStatus{unknown}, unknown},
		{[]adapters.CheckStatus{unknown, ok}, ok},
		{[]adapters.CheckStatus{ok, unknown}, ok},
		{[]adapters.CheckStatus{failed, warning, ok, unknown}, failed},
		{[]adapters.CheckStatus{ok, warning}, warning},
	} {
		h := adapters.Health{Checks: []adapters.Check{{Name: "another", Status: failed}}}
		for _, s := range test.checks {
			h.Checks = append(h.Checks, adapters.Check{Name: "tls", Status: s})
		}
		if got := h.Status("tls"); got != test.want {
			t.Errorf("%v: %v, want %v", test.checks, got, test.want)
		}
	}
}
