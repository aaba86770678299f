package bigiq_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// ends says which sessions a task ends, from the guides alone: by the action, in the union of the scopes. It shares no
// code with the adapter or the emulator. Passive units and unreachable devices do not make a task end more.
func ends(t testing.TB, body string, devices []bigiqtest.Device, x adapters.Session) bool {
	t.Helper()
	var task map[string]any
	if err := json.Unmarshal([]byte(body), &task); err != nil {
		t.Fatalf("task %q: %v", body, err)
	}
	i := slices.IndexFunc(devices, func(d bigiqtest.Device) bool { return d.MachineID == x.Device })
	d := devices[i]
	list := func(key string) []any { l, _ := task[key].([]any); return l }
	link := "https://localhost/mgmt/cm/system/machineid-resolver/" + d.MachineID
	points := func(v any) bool { return v.(map[string]any)["link"] == link }
	switch task["action"] {
	case "KILL_BY_LIST_OF_SESSIONS":
		for _, e := range list("sessions") {
			entry := e.(map[string]any)
			if points(entry["deviceReference"]) && slices.Contains(entry["sessionIds"].([]any), any(x.ID)) {
				return true
			}
		}
		return false
	case "KILL_BY_USER":
		if task["userName"] != any(x.Username) {
			return false
		}
	case "KILL_ALL_SESSIONS":
	default:
		t.Fatalf("task %q has an unknown action", body)
	}
	return d.Cluster != "" && slices.Contains(list("clusterNames"), any(d.Cluster)) ||
		!d.NotImported && slices.Contains(list("accessGroupNames"), any(d.AccessGroup)) ||
		slices.ContainsFunc(list("deviceReferences"), points)
}

// inLab is a population of the lab: everybody at every place.
func inLab(names ...string) []adapters.Session {
	var xs []adapters.Session
	for _, place := range bigiqtest.Places(bigiqtest.Lab()) {
		for i, name := range names {
			place.Username, place.ID = name, "id"+string(rune('a'+i))
			xs = append(xs, place)
		}
	}
	return xs
}

// exact checks that the tasks planned for sel end what it matches and nothing else.
func exact(t testing.TB, a adapters.Adapter, sel adapters.Selector, population []adapters.Session) {
	t.Helper()
	if err := a.Supports(sel); err != nil {
		return
	}
	p, err := a.Preview(background(), sel)
	if err != nil {
		return // a name that is not there: nothing would be sent
	}
	for _, x := range population {
		hit := slices.ContainsFunc(p.Requests, func(r adapters.PlannedRequest) bool { return ends(t, r.Body, bigiqtest.Lab(), x) })
		if hit != sel.Match(x) {
			t.Errorf("selector %+v, session %+v: the plan ends it %t, the selector matches it %t\nplan: %v", sel, x, hit, sel.Match(x), p.Requests)
		}
	}
}

func TestPlanEndsExactlyWhatTheSelectorMatches(t *testing.T) {
	a := newTarget(t, bigiqtest.Options{})
	population := inLab("alice", "bob", "Alice", "")
	users := [][]adapters.User{nil, {{Name: "alice"}}, {{Name: "alice"}, {Name: "bob"}},
		{{Name: "alice", At: []adapters.Provider{accessGroup("TestGroup1")}}, {Name: "bob"}},
		{{Name: "alice", At: []adapters.Provider{accessGroup("TestGroup1")}}, {Name: "alice", At: []adapters.Provider{accessGroup("TestGroup2")}}}}
	providers := subsets([]adapters.Provider{accessGroup("TestGroup"), accessGroup("TestGroup1"), accessGroup("TestGroup2")})
	groups := subsets([]adapters.Group{group("access_group", "TestGroup1"), group("access_group", "TestGroup2"), group("cluster", "RedCluster"),
		group("cluster", "BlueCluster"), group("device", bigiqtest.Branch), group("device", bigiqtest.Lone)})
	supported := map[adapters.Criteria]int{}
	for _, us := range users {
		for _, ps := range providers {
			for _, gs := range groups {
				sel := adapters.Selector{Users: us, Providers: ps, Groups: gs}
				if us != nil {
					sel.By |= adapters.ByUser
				}
				if len(ps) > 0 {
					sel.By |= adapters.ByProvider
				}
				if len(gs) > 0 {
					sel.By |= adapters.ByGroup
				}
				if sel.By == 0 {
					continue
				}
				if a.Supports(sel) == nil {
					supported[sel.By]++
				}
				exact(t, a, sel, population)
			}
		}
	}
	for _, c := range bigiq.Type().Criteria {
		if c != adapters.All && c != adapters.BySessions && supported[c] == 0 {
			t.Errorf("no selector by %s was supported", c)
		}
	}
	exact(t, a, adapters.Selector{By: adapters.All}, population)
	exact(t, a, adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{{Device: bigiqtest.Branch, ID: "ida"}, {Device: bigiqtest.Lone, ID: "idb"}}}, population)
}

func subsets[T any](xs []T) [][]T {
	out := [][]T{}
	for i := range 1 << len(xs) {
		var s []T
		for j, x := range xs {
			if i>>j&1 == 1 {
				s = append(s, x)
			}
		}
		out = append(out, s)
	}
	return out
}

// FuzzPlanNeverEndsMore varies names and scopes. The property is one-sided: a plan may refuse, but never match more.
func FuzzPlanNeverEndsMore(f *testing.F) {
	f.Add("alice", "TestGroup1", "cluster", "RedCluster", byte(7))
	f.Add("*", "*", "device", bigiqtest.Branch, byte(1))
	f.Add("a\xffb", "TestGroup2", "access_group", "TestGroup2", byte(6))
	f.Add("", "", "", "", byte(0))
	f.Add(`alice","action":"KILL_ALL_SESSIONS`, "TestGroup", "device", "x' or 'y", byte(5))
	f.Add("alice", "TestGroup1", "device", "10.255.6.2", byte(4))
	a := newTarget(f, bigiqtest.Options{})
	f.Fuzz(func(t *testing.T, user, provider, kind, name string, by byte) {
		sel := adapters.Selector{By: adapters.Criteria(by) & (adapters.ByUser | adapters.ByProvider | adapters.ByGroup)}
		if sel.By.Has(adapters.ByUser) {
			sel.Users = []adapters.User{{Name: user}}
		}
		if sel.By.Has(adapters.ByProvider) {
			sel.Providers = []adapters.Provider{accessGroup(provider), accessGroup("TestGroup1")}
		}
		if sel.By.Has(adapters.ByGroup) {
			sel.Groups = []adapters.Group{{Kind: kind, Name: name}, group("access_group", "TestGroup2")}
		}
		if sel.Validate() != nil || a.Supports(sel) != nil {
			return
		}
		p, err := a.Preview(background(), sel)
		if err != nil {
			return
		}
		for _, x := range inLab("alice", "bob", "", user, strings.ToValidUTF8(user, string(utf8.RuneError))) {
			// A device may be given by address or host name: then the group has another name than the sessions know.
			if kind == "device" {
				for i, g := range sel.Groups {
					for _, d := range bigiqtest.Lab() {
						if g.Kind == "device" && (g.Name == d.Address || strings.EqualFold(g.Name, d.Hostname) || strings.HasSuffix(g.Name, "/"+d.MachineID)) {
							sel.Groups[i].Name = d.MachineID
						}
					}
				}
			}
			for _, r := range p.Requests {
				if ends(t, r.Body, bigiqtest.Lab(), x) && !sel.Match(x) {
					t.Fatalf("selector %+v does not match %+v, but %s ends it", sel, x, r.Body)
				}
			}
		}
	})
}

func TestSupports(t *testing.T) {
	a := newTarget(t, bigiqtest.Options{})
	by := func(us []adapters.User, ps []adapters.Provider, gs []adapters.Group) adapters.Selector {
		sel := adapters.Selector{Users: us, Providers: ps, Groups: gs}
		if us != nil {
			sel.By |= adapters.ByUser
		}
		if ps != nil {
			sel.By |= adapters.ByProvider
		}
		if gs != nil {
			sel.By |= adapters.ByGroup
		}
		return sel
	}
	ps := func(names ...string) (out []adapters.Provider) {
		for _, n := range names {
			out = append(out, accessGroup(n))
		}
		return out
	}
	sessions := func(device, id string) adapters.Selector {
		return adapters.Selector{By: adapters.BySessions, Sessions: []adapters.SessionKey{{Device: device, ID: id}}}
	}
	alice := []adapters.User{{Name: "alice"}}
	for _, tt := range []struct {
		name string
		sel  adapters.Selector
		why  adapters.Reason // empty: supported
	}{
		{"User", byUser("alice"), ""},
		{"WildcardInUserName", byUser("ali*"), adapters.ReasonSelectorUnsupported},
		{"WildcardInOneOfSeveral", byUser("alice", "*"), adapters.ReasonSelectorUnsupported},
		{"UserNameThatIsNotUTF8", byUser("a\xff"), adapters.ReasonSelectorUnsupported},
		{"AnotherTypeOfProvider", by(alice, []adapters.Provider{{Type: "saml", Name: "okta"}}, nil), adapters.ReasonUnknownProvider},
		{"ProviderWithoutAName", by(nil, []adapters.Provider{{Type: "access_group"}}, nil), adapters.ReasonUnknownProvider},
		{"ProviderFromTheCaller", by(nil, []adapters.Provider{{Type: "access_group", Name: "TestGroup", MustBeListed: true}}, nil), adapters.ReasonUnknownProvider},
		{"WildcardProvider", by(nil, ps("*"), nil), adapters.ReasonUnknownProvider},
		{"AnotherKindOfGroup", by(nil, nil, []adapters.Group{group("role", "x")}), adapters.ReasonUnknownGroup},
		{"WildcardCluster", by(nil, nil, []adapters.Group{group("cluster", "Blue*")}), adapters.ReasonUnknownGroup},
		{"QuotedDevice", by(nil, nil, []adapters.Group{group("device", "x' or 'y")}), adapters.ReasonUnknownGroup},
		{"ClusterNarrowedToAccessGroup", by(nil, ps("TestGroup1"), []adapters.Group{group("cluster", "RedCluster")}), adapters.ReasonSelectorUnsupported},
		{"DeviceNarrowedToAccessGroup", by(alice, ps("TestGroup1"), []adapters.Group{group("device", bigiqtest.Branch)}), adapters.ReasonSelectorUnsupported},
		{"MixedNarrowedToAccessGroups", by(nil, ps("TestGroup1", "TestGroup2"), []adapters.Group{group("access_group", "TestGroup1"), group("cluster", "RedCluster")}), adapters.ReasonSelectorUnsupported},
		{"MixedButAllInside", by(nil, ps("TestGroup1"), []adapters.Group{group("access_group", "TestGroup1"), group("cluster", "RedCluster")}), ""},
		{"OneUserNarrowedTheOtherNot", by([]adapters.User{{Name: "alice", At: ps("TestGroup1")}, {Name: "bob"}}, nil, []adapters.Group{group("cluster", "RedCluster")}), adapters.ReasonSelectorUnsupported},
		{"AccessGroupsIntersect", by(nil, ps("TestGroup1", "TestGroup"), []adapters.Group{group("access_group", "TestGroup1")}), ""},
		{"NothingInCommon", by(nil, ps("TestGroup"), []adapters.Group{group("access_group", "TestGroup1")}), ""},
		{"Session", sessions(bigiqtest.Blue1, "2a5d7604"), ""},
		{"SessionByReference", sessions("https://localhost/mgmt/cm/system/machineid-resolver/"+bigiqtest.Blue1, "2a5d7604"), ""},
		{"SessionWithoutDevice", sessions("", "2a5d7604"), adapters.ReasonSelectorUnsupported},
		{"SessionOnAWildcard", sessions("*", "2a5d7604"), adapters.ReasonSelectorUnsupported},
		{"WildcardSession", sessions(bigiqtest.Blue1, "*"), adapters.ReasonSelectorUnsupported},
		{"All", adapters.Selector{By: adapters.All}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := a.Supports(tt.sel)
			if tt.why == "" {
				if err != nil {
					t.Errorf("Supports(%+v) = %v", tt.sel, err)
				}
				return
			}
			wantError(t, err, adapters.Unsupported, tt.why)
			if _, err := a.Invalidate(t.Context(), adapters.Request{Selector: tt.sel}); adapters.KindOf(err) != adapters.Unsupported {
				t.Errorf("Invalidate: %v, want unsupported", err)
			}
		})
	}
	if n := len(a.sent.Requests()); n > 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// TestGoldenRequests shows, for review, what is sent for each sort of selector.
func TestGoldenRequests(t *testing.T) {
	for name, sel := range map[string]adapters.Selector{
		"user":       byUser("user2"),
		"user_odd":   byUser(`CORP\o"brien <é>&`),
		"two_users":  byUser("user2", "user2@corp.example"),
		"user_bound": {By: adapters.ByUser, Users: []adapters.User{{Name: "user2", At: []adapters.Provider{accessGroup("TestGroup1")}}, {Name: "user2@corp.example"}}},
		"user_group_mixed": {By: adapters.ByUser | adapters.ByGroup, Users: []adapters.User{{Name: "user2"}},
			Groups: []adapters.Group{group("access_group", "TestGroup1"), group("cluster", "BlueCluster"), group("device", bigiqtest.Branch)}},
		"provider": {By: adapters.ByProvider, Providers: []adapters.Provider{accessGroup("TestGroup1"), accessGroup("TestGroup2")}},
		"group":    {By: adapters.ByGroup, Groups: []adapters.Group{group("cluster", "RedCluster")}},
		"user_provider_group": {By: adapters.ByUser | adapters.ByProvider | adapters.ByGroup, Users: []adapters.User{{Name: "user2"}},
			Providers: []adapters.Provider{accessGroup("TestGroup1"), accessGroup("TestGroup2")}, Groups: []adapters.Group{group("access_group", "TestGroup2")}},
		"all": {By: adapters.All},
		"sessions": {By: adapters.BySessions, Sessions: []adapters.SessionKey{
			{Device: bigiqtest.Branch, ID: "2a5d7604"}, {Device: bigiqtest.Blue1, ID: "2hjj234"}, {Device: bigiqtest.Branch, ID: "875f7fed"}, {Device: bigiqtest.Branch, ID: "2a5d7604"}}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := newTarget(t, bigiqtest.Options{}).Preview(t.Context(), sel)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, r := range p.Requests {
				b.WriteString(r.Method + " " + r.URL + "\n" + r.Body + "\n")
			}
			for _, line := range p.Summary {
				b.WriteString("# " + line + "\n")
			}
			for _, w := range p.Warnings {
				b.WriteString("! " + string(w.Code) + ": " + w.Message + "\n")
			}
			golden(t, name+".golden", b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}
