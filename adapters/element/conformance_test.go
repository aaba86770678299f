package element_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/adaptertest"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
)

func harness() adaptertest.Harness {
	place := func(method string, groups ...adapters.Group) adapters.Session {
		return adapters.Session{Provider: adapters.Provider{Type: method}, Groups: groups}
	}
	access := func(name string) adapters.Group { return adapters.Group{Kind: element.GroupAccess, Name: name} }
	admin := func(id string) adapters.Group { return adapters.Group{Kind: element.GroupClusterAdmin, Name: id} }
	return adaptertest.Harness{
		Type: element.Type(),
		Places: []adapters.Session{
			place("Cluster", access("administrator"), admin("1")),
			place("Ldap", access("read"), admin("9"), admin("10")),
			place("Idp", access("administrator"), access("read"), admin("10")),
			place("Cluster"),
			place("Ldap", access("drives"), admin("90")),
			place("Idp"),
		},
		Providers: []adapters.Provider{{Type: "Cluster"}, {Type: "Ldap"}, {Type: "Idp"}},
		Groups:    []adapters.Group{admin("9"), admin("10"), access("administrator"), access("read")},
		Secrets:   []string{elementtest.Password},
		// What no list shows, nobody sees.
		Undetected: map[emulator.Lie]adapters.Verification{
			emulator.KeepAndHide: adapters.ConfirmedByList,
			emulator.ListNone:    adapters.ConfirmedByList,
			emulator.ListLess:    adapters.ConfirmedByList,
		},
		Start: func(testing.TB) adaptertest.Emulator {
			return elementtest.New(elementtest.Options{})
		},
		Open: func(t testing.TB, _ adaptertest.Emulator, deps adapters.Deps) adapters.Adapter {
			c := config()
			a, err := c.Open(deps)
			if err != nil {
				t.Fatal(err)
			}
			return a
		},
		// Of the API's methods in use those that end sessions, and only those, are named Delete….
		Mutates: func(_ *http.Request, body []byte) bool { return strings.HasPrefix(methodOf(body), "Delete") },
	}
}

func TestConformance(t *testing.T) { adaptertest.Run(t, harness()) }
