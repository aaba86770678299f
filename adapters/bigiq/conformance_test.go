package bigiq_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/adaptertest"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
)

func harness() adaptertest.Harness {
	_, password := bigiqtest.New(bigiqtest.Options{}).Credentials()
	return adaptertest.Harness{
		Type:      bigiq.Type(),
		Places:    bigiqtest.Places(bigiqtest.Lab()),
		Providers: []adapters.Provider{accessGroup("TestGroup1"), accessGroup("TestGroup2"), accessGroup("TestGroup")},
		Groups: []adapters.Group{
			group("access_group", "TestGroup1"), group("cluster", "BlueCluster"), group("device", bigiqtest.Branch),
			group("device", bigiqtest.Lone), group("cluster", "RedCluster"), group("access_group", "TestGroup2"),
		},
		// The end of a task is all that BIG-IQ tells.
		Undetected: map[emulator.Lie]adapters.Verification{
			emulator.Keep:               adapters.Unverifiable,
			emulator.KeepAndHide:        adapters.Unverifiable,
			emulator.EndSome:            adapters.Unverifiable,
			emulator.EndAnotherSilently: adapters.Unverifiable,
		},
		Secrets: []string{password, "eyJhbGciOiJSUzM4NCJ9.", "eyJyZWZyZXNo."},
		Start:   func(testing.TB) adaptertest.Emulator { return bigiqtest.New(bigiqtest.Options{}) },
		Open: func(t testing.TB, e adaptertest.Emulator, deps adapters.Deps) adapters.Adapter {
			t.Helper()
			a, err := config(e.(*bigiqtest.Server)).Open(deps)
			if err != nil {
				t.Fatalf("open: %v", err)
			}
			return a
		},
		Mutates: mutates,
	}
}

// mutates knows one request that ends sessions: a task with an action. An empty one is refused by BIG-IQ. PATCH of a
// task, which runs other kinds of tasks again, would be another.
func mutates(r *http.Request, body []byte) bool {
	if r.Method != http.MethodPost {
		return r.Method != http.MethodGet
	}
	var b map[string]any
	return r.URL.Path == tasksPath && (json.Unmarshal(body, &b) != nil || len(b) > 0)
}

func TestConformance(t *testing.T) { adaptertest.Run(t, harness()) }

func TestConformanceWhenDiscovering(t *testing.T) {
	h := harness()
	h.Open = func(t testing.TB, e adaptertest.Emulator, deps adapters.Deps) adapters.Adapter {
		t.Helper()
		c := config(e.(*bigiqtest.Server))
		c.Scope = bigiq.ScopeConfig{Discover: true}
		a, err := c.Open(deps)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		return a
	}
	// A device that BIG-IQ does not list is not discovered.
	h.Undetected[emulator.ListPageTwice] = adapters.Unverifiable
	adaptertest.Run(t, h)
}
