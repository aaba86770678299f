package element_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
)

// sessionSeeds are results as the vendor's documents show them, and near misses.
var sessionSeeds = []string{
	`{"sessions":[{"accessGroupList":["administrator"],"authMethod":"Cluster","clusterAdminIDs":[1],"finalTimeout":"2020-03-14T19:21:24Z","idpConfigVersion":0,"lastAccessTimeout":"2020-03-11T19:51:24Z","sessionCreationTime":"2020-03-11T19:21:24Z","sessionID":"b12bfc64-f233-44df-8b9f-6fb6c011abf7","username":"admin"}]}`,
	`{"sessions":[]}`,
	`{"sessions":null}`,
	`{"Sessions":[{"sessionID":"1"}]}`,
	`{"sessions":[{"sessionID":"1","username":"alice","userName":"bob"}]}`,
	`{"sessions":[{"sessionID":"1","username":"alice"},{"sessionID":"1","username":"bob"}]}`,
	`{"sessions":[{"sessionID":"1","clusterAdminIDs":[9223372036854775808]}]}`,
	`{"sessions":[{"sessionID":"1","username":"\ud800"}]}`,
}

// badly reports an error of a decoder that is not a bad reply.
func badly(t *testing.T, err error) {
	t.Helper()
	if err != nil && adapters.KindOf(err) != adapters.BadReply {
		t.Fatalf("error %v of kind %v", err, adapters.KindOf(err))
	}
}

// FuzzNeverMatchesMore: whatever the names are, no session ends that the selector does not match; and if the selector is
// supported, every one that it matches does.
func FuzzNeverMatchesMore(f *testing.F) {
	f.Add(uint8(adapters.ByUser), "alice", "", "Cluster", "9", "read")
	f.Add(uint8(adapters.ByUser), "uid=o'neil\\\\,x,dc=\u00e4", "Ldap", "Idp", "9", "read")
	f.Add(uint8(adapters.ByUser|adapters.ByProvider), "a\x00b", "Idp", "idp", "09", "*")
	f.Add(uint8(adapters.ByGroup), "x", "", "Ldap", "-1", "")
	f.Add(uint8(adapters.ByGroup), "x\xff", "", "Ldap", "10", "\xff")
	f.Add(uint8(adapters.ByUser|adapters.ByGroup), "\ufffd", "LDAP", "Local", "1e1", "\ufffd")
	f.Add(uint8(adapters.BySessions), "\xff", "", "", "", "")
	f.Add(uint8(adapters.All), "", "", "", "", "")
	f.Fuzz(func(t *testing.T, by uint8, name, at, method, admin, access string) {
		sel := adapters.Selector{By: adapters.Criteria(by)}
		if sel.By.Has(adapters.ByUser) {
			u := adapters.User{Name: name}
			if at != "" {
				u.At = []adapters.Provider{{Type: at}}
			}
			sel.Users = []adapters.User{u, {Name: name + "2"}}
		}
		if sel.By.Has(adapters.ByProvider) {
			sel.Providers = []adapters.Provider{{Type: method}}
		}
		if sel.By.Has(adapters.ByGroup) {
			sel.Groups = []adapters.Group{{Kind: element.GroupClusterAdmin, Name: admin}, {Kind: element.GroupAccess, Name: access}}
			if access == "" {
				sel.Groups = sel.Groups[:1]
			}
		}
		if sel.By == adapters.BySessions {
			sel.Sessions = []adapters.SessionKey{{ID: name}}
		}
		c := start(elementtest.Options{})
		for _, who := range []string{name, name + "2", strings.ToUpper(name), strings.TrimSpace(name), strings.ToValidUTF8(name, "\ufffd"), "alice"} {
			if !utf8.ValidString(who) {
				continue // no cluster can hold it
			}
			for _, m := range []string{"Cluster", "Ldap", "Idp"} {
				c.in(m, who, "9", "10", strings.ToValidUTF8(access, "\ufffd")+"x")
				c.in(m, who, "1", strings.ToValidUTF8(access, "\ufffd"))
			}
		}
		if id := strings.ToValidUTF8(name, "\ufffd"); id != "" {
			c.SignIn(adapters.Session{ID: id, Username: "by id"})
		}
		seeded := c.Sessions()
		_, err := call(t, c.open(t), sel)
		if err != nil && adapters.KindOf(err) != adapters.Unsupported {
			t.Fatalf("%+v: %v", sel, err)
		}
		for _, x := range seeded {
			switch alive := c.alive(x); {
			case !alive && !sel.Match(x):
				t.Errorf("%+v ended %+v, which it does not match", sel, x)
			case alive && err == nil && sel.Match(x):
				t.Errorf("%+v left %+v, which it matches", sel, x)
			}
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, s := range sessionSeeds {
		f.Add([]byte(`{"id":7,"result":` + s + `}`))
		f.Add([]byte(s))
	}
	f.Add([]byte(`{"id":7,"sessions":[]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"id":"7","error":{"code":500,"name":"xUnknownAPIMethod","message":"..."}}`))
	f.Add([]byte(`{"id":7,"result":{},"unusedParameters":{"userName":"x"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		result, ok, err := element.DecodeAnswer(body, 7)
		badly(t, err)
		if !ok {
			return
		}
		// Whatever is taken as a result is one by an ordinary reader's eyes, too.
		var plain struct {
			ID     any             `json:"id"`
			Result json.RawMessage `json:"result"`
		}
		if !utf8.Valid(body) || json.Unmarshal(body, &plain) != nil || len(result) == 0 || string(result) == "null" {
			t.Fatalf("takes %q as a result: %q", body, result)
		}
	})
}

func FuzzDecodeSessions(f *testing.F) {
	for _, s := range sessionSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, result []byte) {
		sessions, err := element.DecodeSessions(result)
		badly(t, err)
		ids := map[string]bool{}
		for _, x := range sessions {
			quoted, _ := json.Marshal(x.ID)
			switch {
			case x.ID == "" || ids[x.ID] || x.Device != "":
				t.Fatalf("%q: session %+v", result, x)
			case utf8.Valid(result) && !bytes.ContainsRune(result, '\\') && !bytes.Contains(result, quoted) && !strings.ContainsAny(x.ID, "<>&\u2028\u2029"):
				t.Fatalf("%q: the id %q is not there", result, x.ID)
			}
			ids[x.ID] = true
		}
		if err == nil && sessions == nil {
			t.Fatal("no list and no error")
		}
	})
}

func FuzzDecodeDeleted(f *testing.F) {
	f.Add([]byte(`{"session":{"sessionID":"1","username":"alice"}}`))
	f.Add([]byte(`{"sessions":[{"sessionID":"1"}]}`))
	f.Fuzz(func(t *testing.T, result []byte) {
		x, err := element.DecodeDeleted(result)
		badly(t, err)
		if err == nil && x.ID == "" {
			t.Fatalf("%q: %+v", result, x)
		}
	})
}

func FuzzDecodeAPI(f *testing.F) {
	f.Add([]byte(`{"12.0":["DeleteAuthSessionsByUsername"],"currentVersion":"12.0","supportedVersions":["1.0","12.0"]}`))
	f.Add([]byte(`{"12.5":["GetConfig"],"currentVersion":12.5,"supportedVersions":[1.0,12.5]}`))
	f.Add([]byte(`{"currentVersion":"12.10","supportedVersions":["12.10","12.9",12,"x",1e2,null]}`))
	f.Fuzz(func(t *testing.T, result []byte) {
		v, err := element.DecodeAPI(result)
		if err != nil {
			if k := adapters.KindOf(err); k != adapters.BadReply && k != adapters.Rejected {
				t.Fatalf("%q: %v of kind %v", result, err, k)
			}
			return
		}
		// The version becomes part of a path.
		major, minor, ok := strings.Cut(v, ".")
		if !ok || len(major) < 2 || major == "10" || major == "11" || minor == "" || strings.Trim(major+minor, "0123456789") != "" {
			t.Fatalf("%q: version %q", result, v)
		}
	})
}

func FuzzDecodeAccess(f *testing.F) {
	f.Add([]byte(`{"clusterAdmin":{"access":["administrator"],"attributes":null,"authMethod":"Cluster","clusterAdminID":1,"username":"admin"}}`))
	f.Add([]byte(`{"clusterAdmin":{"Access":["administrator"]}}`))
	f.Add([]byte(`{"clusterAdmin":{"access":["read"],"username":"administrator"}}`))
	f.Fuzz(func(t *testing.T, result []byte) {
		admin, err := element.DecodeAccess(result)
		badly(t, err)
		if admin && err != nil {
			t.Fatalf("%q: an administrator by mistake", result)
		}
	})
}

func FuzzDecodeVersionInfo(f *testing.F) {
	f.Add([]byte(`{"clusterAPIVersion":"12.5","clusterVersion":"12.5.0.897"}`))
	f.Add([]byte(`{"clusterVersion":12.5}`))
	f.Fuzz(func(t *testing.T, result []byte) {
		if v := element.DecodeVersionInfo(result); strings.ContainsAny(v, "<>\"\n ") || len(v) > 64 {
			t.Fatalf("%q: version %q", result, v)
		}
	})
}
