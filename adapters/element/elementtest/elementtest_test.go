package elementtest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element/elementtest"
)

// reply is an answer as it comes over the wire.
type reply struct {
	status int
	text   string
	ID     json.RawMessage
	Result json.RawMessage
	Error  struct {
		Code          int
		Name, Message string
	}
	UnusedParameters map[string]json.RawMessage
}

// sessions is the number of sessions in the result; -1 if there is no such list.
func (r reply) sessions() int {
	var v struct{ Sessions []json.RawMessage }
	if json.Unmarshal(r.Result, &v) != nil || v.Sessions == nil {
		return -1
	}
	return len(v.Sessions)
}

func post(t *testing.T, s *elementtest.Server, path, body string, edit func(*http.Request)) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://mvip.example"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(elementtest.Username, elementtest.Password)
	req.Header.Set("Content-Type", "application/json-rpc")
	if edit != nil {
		edit(req)
	}
	resp, err := s.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, text: string(b)}
	if resp.Header.Get("Content-Type") == "application/json-rpc" {
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	}
	return r
}

func call(t *testing.T, s *elementtest.Server, method, params string) reply {
	t.Helper()
	return post(t, s, "/json-rpc/12.0", fmt.Sprintf(`{"method":%q,"params":%s,"id":1}`, method, params), nil)
}

// people are five sessions: alice everywhere, bob at Cluster.
func people(s *elementtest.Server) {
	for _, m := range []string{"Cluster", "Ldap", "Idp"} {
		s.SignIn(adapters.Session{Username: "alice", Provider: adapters.Provider{Type: m}})
	}
	for range 2 {
		s.SignIn(adapters.Session{Username: "bob", Groups: []adapters.Group{{Kind: "cluster_admin_id", Name: "9"}}})
	}
}

// TestDeletesByUsername ends what the parameters it knows select, and the call runs whatever else it was given.
func TestDeletesByUsername(t *testing.T) {
	for _, test := range []struct {
		params        string
		ended, unused int
	}{
		{`{"username":"alice","authMethod":"Ldap"}`, 1, 0},
		{`{"username":"alice"}`, 3, 0},
		{`{"authMethod":"Cluster"}`, 3, 0},
		{`{}`, 5, 0},
		{`{"username":"","authMethod":"Cluster"}`, 3, 0},
		{`{"userName":"alice","authMethod":"Cluster"}`, 3, 1},
		{`{"username":"alice","authmethod":"Ldap"}`, 3, 1},
		{`{"userName":"alice","authmethod":"Ldap"}`, 5, 2},
		{`{"username":"Alice","authMethod":"Ldap"}`, 0, 0},
		{`{"username":"nobody","authMethod":"Ldap"}`, 0, 0},
	} {
		t.Run(test.params, func(t *testing.T) {
			s := elementtest.New(elementtest.Options{})
			people(s)
			listed := call(t, s, "ListAuthSessionsByUsername", test.params)
			deleted := call(t, s, "DeleteAuthSessionsByUsername", test.params)
			for what, r := range map[string]reply{"list": listed, "delete": deleted} {
				if r.status != http.StatusOK || string(r.ID) != "1" || r.sessions() != test.ended || len(r.UnusedParameters) != test.unused {
					t.Errorf("%s: %d %s, want %d sessions and %d unused", what, r.status, r.text, test.ended, test.unused)
				}
			}
			if left := len(s.Sessions()); left != 5-test.ended {
				t.Errorf("%d sessions left, want %d", left, 5-test.ended)
			}
		})
	}
}

func TestDeletesByClusterAdminAndByID(t *testing.T) {
	s := elementtest.New(elementtest.Options{})
	people(s)
	if r := call(t, s, "ListAuthSessionsByClusterAdmin", `{"clusterAdminID":9}`); r.sessions() != 2 {
		t.Errorf("list: %s", r.text)
	}
	if r := call(t, s, "DeleteAuthSessionsByClusterAdmin", `{"clusterAdminID":9}`); r.sessions() != 2 || len(s.Sessions()) != 3 {
		t.Errorf("delete: %s", r.text)
	}
	id := s.Sessions()[0].ID
	r := call(t, s, "DeleteAuthSession", `{"sessionID":"`+id+`"}`)
	var one struct {
		Session struct{ SessionID string }
	}
	if json.Unmarshal(r.Result, &one) != nil || one.Session.SessionID != id || len(s.Sessions()) != 2 {
		t.Errorf("delete one: %s", r.text)
	}
	if r := call(t, s, "DeleteAuthSession", `{"sessionID":"`+id+`"}`); r.Error.Name == "" || r.status != http.StatusOK {
		t.Errorf("delete it again: %s", r.text)
	}
}

func TestErrors(t *testing.T) {
	ordinary := elementtest.Options{}
	reader := elementtest.Options{Access: []string{"read"}}
	for _, test := range []struct {
		name            string
		o               elementtest.Options
		method, params  string
		errorName, path string
	}{
		{"UnknownMethod", ordinary, "DeleteAllAuthSessions", `{}`, "xUnknownAPIMethod", ""},
		{"MethodOfALaterVersion", ordinary, "ListActiveAuthSessions", `{}`, "xUnknownAPIMethod", "/json-rpc/11.0"},
		{"ClusterMethodAtANode", elementtest.Options{Node: true}, "ListActiveAuthSessions", `{}`, "xUnknownAPIMethod", ""},
		{"UnknownAuthMethod", ordinary, "DeleteAuthSessionsByUsername", `{"username":"alice","authMethod":"cluster"}`, "xInvalidParameter", ""},
		{"NotText", ordinary, "DeleteAuthSessionsByUsername", `{"username":1}`, "xInvalidParameterType", ""},
		{"NoClusterAdmin", ordinary, "DeleteAuthSessionsByClusterAdmin", `{}`, "xMissingParameter", ""},
		{"NoSession", ordinary, "DeleteAuthSession", `{}`, "xMissingParameter", ""},
		{"ReaderLists", reader, "ListActiveAuthSessions", `{}`, "xPermissionDenied", ""},
		{"ReaderNamesAnother", reader, "DeleteAuthSessionsByUsername", `{"username":"alice","authMethod":"Cluster"}`, "xPermissionDenied", ""},
		{"ReaderAtClusterAdmin", reader, "DeleteAuthSessionsByClusterAdmin", `{"clusterAdminID":9}`, "xPermissionDenied", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := elementtest.New(test.o)
			people(s)
			path := test.path
			if path == "" {
				path = "/json-rpc/12.0"
			}
			r := post(t, s, path, fmt.Sprintf(`{"method":%q,"params":%s,"id":"a"}`, test.method, test.params), nil)
			if r.status != http.StatusOK || r.Error.Code != 500 || r.Error.Name != test.errorName || string(r.ID) != `"a"` || r.Result != nil {
				t.Errorf("%d %s, want %s with status 200 and code 500", r.status, r.text, test.errorName)
			}
			if len(s.Sessions()) != 5 {
				t.Errorf("left %v", s.Sessions())
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	const getAPI = `{"method":"GetAPI","params":{},"id":1}`
	for _, test := range []struct {
		name, path, body string
		edit             func(*http.Request)
		status           int
	}{
		{"NoCredentials", "", getAPI, func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		{"WrongPassword", "", getAPI, func(r *http.Request) { r.SetBasicAuth("admin", "x") }, 401},
		{"VersionTooNew", "/json-rpc/99.0", getAPI, nil, 404},
		{"VersionWithoutDecimal", "/json-rpc/12", getAPI, nil, 404},
		{"AnotherPath", "/rest", getAPI, nil, 404},
		{"Get", "", getAPI, func(r *http.Request) { r.Method = http.MethodGet }, 405},
		{"ContentType", "", getAPI, func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, 415},
		{"Batch", "", "[" + getAPI + "]", nil, 400},
		{"NoID", "", `{"method":"GetAPI"}`, nil, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := test.path
			if path == "" {
				path = "/json-rpc/12.0"
			}
			r := post(t, elementtest.New(elementtest.Options{}), path, test.body, test.edit)
			if r.status != test.status || json.Valid([]byte(r.text)) {
				t.Errorf("%d %q, want %d and no JSON", r.status, r.text, test.status)
			}
		})
	}
}

func TestACallerWhoIsNoAdministrator(t *testing.T) {
	s := elementtest.New(elementtest.Options{Access: []string{"read"}, OwnOnly: true})
	people(s)
	s.SignIn(adapters.Session{Username: elementtest.Username})
	if r := call(t, s, "DeleteAuthSessionsByUsername", `{"username":"alice","authMethod":"Cluster"}`); r.sessions() != 1 || len(s.Sessions()) != 5 {
		t.Errorf("ended %s, left %v; want its own session only", r.text, s.Sessions())
	}
}

func TestVersions(t *testing.T) {
	for _, o := range []elementtest.Options{{}, {NumericVersions: true, Versions: []string{"1.0", "12.0"}}} {
		r := call(t, elementtest.New(o), "GetAPI", "{}")
		var api map[string]any
		if err := json.Unmarshal(r.Result, &api); err != nil {
			t.Fatal(err)
		}
		_, numeric := api["currentVersion"].(float64)
		if numeric != o.NumericVersions || api["supportedVersions"] == nil {
			t.Errorf("result %s", r.Result)
		}
	}
}

func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := elementtest.New(elementtest.Options{})
		people(s)
		s.SignIn(adapters.Session{Username: "carol", ExpireTime: time.Now().Add(time.Hour)})
		time.Sleep(2 * time.Hour)
		if r := call(t, s, "ListActiveAuthSessions", "{}"); r.sessions() != 5 {
			t.Errorf("after two hours: %s", r.text)
		}
		time.Sleep(72 * time.Hour)
		if len(s.Sessions()) != 0 {
			t.Errorf("after three days: %v", s.Sessions())
		}
	})
}

func TestHooksAndFailures(t *testing.T) {
	s := elementtest.New(elementtest.Options{OpaqueIdp: true})
	people(s)
	if x := s.Sessions()[2]; x.Username == "alice" || len(x.Username) != 36 {
		t.Errorf("%+v, want a random name", x)
	}
	var order []string
	s.Before("ListActiveAuthSessions", func() { order = append(order, "before"); s.SignOut(s.Sessions()[0].ID) })
	s.After("ListActiveAuthSessions", func() { order = append(order, "after") })
	if r := call(t, s, "ListActiveAuthSessions", "{}"); r.sessions() != 4 || strings.Join(order, " ") != "before after" {
		t.Errorf("%v, %s", order, r.text)
	}
	s.FailAfter("DeleteAuthSessionsByUsername", 1, "xDBConnectionLoss")
	if r := call(t, s, "DeleteAuthSessionsByUsername", `{"username":"bob","authMethod":"Cluster"}`); r.Error.Name != "xDBConnectionLoss" || len(s.Sessions()) != 2 {
		t.Errorf("%s, left %v", r.text, s.Sessions())
	}
	s.NotServing(1)
	if r := call(t, s, "GetAPI", "{}"); r.text != "null\n" {
		t.Errorf("%q", r.text)
	}
	if r := call(t, s, "GetAPI", "{}"); r.Result == nil || s.Calls("GetAPI") != 2 {
		t.Errorf("%q", r.text)
	}
}
