package bigiqtest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
)

const tasks = "/mgmt/cm/access/tasks/kill-sessions"

// caller speaks to an emulator as a careless client would.
type caller struct {
	t     testing.TB
	s     *bigiqtest.Server
	token string
}

func (c *caller) send(method, target, body string) (int, map[string]any, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, "https://bigiq.example"+target, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if c.token != "" {
		req.Header.Set("X-F5-Auth-Token", c.token)
	}
	resp, err := c.s.Transport().RoundTrip(req)
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	var doc map[string]any
	_ = json.Unmarshal(raw, &doc)
	return resp.StatusCode, doc, string(raw)
}

func start(t testing.TB, o bigiqtest.Options) *caller {
	t.Helper()
	c := &caller{t: t, s: bigiqtest.New(o)}
	name, password := c.s.Credentials()
	status, doc, raw := c.send("POST", "/mgmt/shared/authn/login", `{"username":"`+name+`","password":"`+password+`"}`)
	if status != http.StatusOK {
		t.Fatalf("login: %d %s", status, raw)
	}
	c.token = doc["token"].(map[string]any)["token"].(string)
	for _, place := range bigiqtest.Places(bigiqtest.Lab()) {
		for _, user := range []string{"user1", "user2"} {
			place.Username = user
			c.s.SignIn(place)
		}
	}
	return c
}

// kill makes a task, waits for its end and returns its document and how many sessions it ended.
func (c *caller) kill(body string) (doc map[string]any, ended int) {
	c.t.Helper()
	before := len(c.s.Sessions())
	status, doc, raw := c.send("POST", tasks, body)
	if status != http.StatusOK {
		c.t.Fatalf("%s: %d %s", body, status, raw)
	}
	time.Sleep(time.Second)
	_, doc, _ = c.send("GET", tasks+"/"+doc["id"].(string), "")
	return doc, before - len(c.s.Sessions())
}

func link(id string) string {
	return `{"link":"https://localhost/mgmt/cm/system/machineid-resolver/` + id + `"}`
}

// Each place holds one session of user1 and one of user2.
func TestWhatTasksEnd(t *testing.T) {
	for _, tt := range []struct {
		name, body     string
		ended          int
		status, result any
	}{
		{"UserInCluster", `{"action":"KILL_BY_USER","userName":"user2","clusterNames":["BlueCluster"]}`, 1, "FINISHED", "COMPLETE"},
		{"UserInAccessGroup", `{"action":"KILL_BY_USER","userName":"user2","accessGroupNames":["TestGroup1"]}`, 2, "FINISHED", "COMPLETE"},
		{"ScopesAddUp", `{"action":"KILL_BY_USER","userName":"user2","accessGroupNames":["TestGroup1"],"clusterNames":["BlueCluster"],"deviceReferences":[` + link(bigiqtest.Guest) + `]}`, 4, "FINISHED", "COMPLETE"},
		{"ADeviceInTwoScopes", `{"action":"KILL_BY_USER","userName":"user2","accessGroupNames":["TestGroup1"],"clusterNames":["RedCluster"]}`, 2, "FINISHED", "COMPLETE"},
		{"UserWithoutSessions", `{"action":"KILL_BY_USER","userName":"User2","clusterNames":["BlueCluster"]}`, 0, "FINISHED", "COMPLETE"},
		{"AllInCluster", `{"action":"KILL_ALL_SESSIONS","clusterNames":["BlueCluster"]}`, 2, "FINISHED", "COMPLETE"},
		{"AllWithAUserEndsEverybody", `{"action":"KILL_ALL_SESSIONS","userName":"user2","clusterNames":["BlueCluster"]}`, 2, "FINISHED", "COMPLETE"},
		{"PassiveUnit", `{"action":"KILL_ALL_SESSIONS","deviceReferences":[` + link(bigiqtest.Blue2) + `]}`, 0, "FINISHED", "COMPLETE"},
		{"UnknownCluster", `{"action":"KILL_ALL_SESSIONS","clusterNames":["NoSuchCluster"]}`, 0, "FINISHED", "COMPLETE"},
		{"UnknownAccessGroup", `{"action":"KILL_ALL_SESSIONS","accessGroupNames":["TestGroup123"]}`, 0, "FINISHED", "COMPLETE"},
		{"UnknownDevice", `{"action":"KILL_ALL_SESSIONS","clusterNames":["BlueCluster"],"deviceReferences":[` + link("00000000-0000-0000-0000-000000000000") + `]}`, 0, "FAILED", "PENDING"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := start(t, bigiqtest.Options{})
				doc, ended := c.kill(tt.body)
				if ended != tt.ended || doc["status"] != tt.status || doc["result"] != tt.result {
					t.Errorf("%s: ended %d, %v %v, want %d, %v %v", tt.body, ended, doc["status"], doc["result"], tt.ended, tt.status, tt.result)
				}
			})
		})
	}
}

func TestListedSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, bigiqtest.Options{})
		x := c.s.SignIn(adapters.Session{Device: bigiqtest.Branch, ID: "2a5d7604", Username: "user2"})
		c.s.SignIn(adapters.Session{Device: bigiqtest.Guest, ID: "2a5d7604", Username: "user2"})
		body := `{"action":"KILL_BY_LIST_OF_SESSIONS","sessions":[{"deviceReference":` + link(bigiqtest.Branch) + `,"sessionIds":["2a5d7604","gone"]}]}`
		if doc, ended := c.kill(body); ended != 1 || doc["result"] != "COMPLETE" || len(c.s.Tasks()[0].Ended) != 1 || c.s.Tasks()[0].Ended[0] != x.Key() {
			t.Errorf("ended %d, %v, %+v", ended, doc, c.s.Tasks())
		}
		c.s.Change(func(q *bigiqtest.Quirks) { q.GoneIDsFail = true })
		doc, _ := c.kill(body)
		if raw, _ := json.Marshal(doc["resultDetails"]); doc["result"] != "FAILED" || !strings.Contains(string(raw), `"failedIds":["2a5d7604","gone"]`) {
			t.Errorf("%v", doc)
		}
	})
}

// A refused request makes no task, and has an id in what it echoes all the same.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, bigiqtest.Options{})
		for body, want := range map[string]string{
			`{}`:                             "action is missing.",
			`{"clusterNames":["c"]}`:         "action is missing.",
			`{"Action":"KILL_ALL_SESSIONS"}`: "action is missing.",
			`{"action":"KILL_ALL_SESSIONS"}`: "Request should have atleast one of these fields populated: accessGroupNames , clusterNames , deviceReferences",
			`{"action":"KILL_BY_USER","userName":"u","ClusterNames":["BlueCluster"]}`: "Request should have atleast one of these fields populated: accessGroupNames , clusterNames , deviceReferences",
			// username is whoever asks.
			`{"action":"KILL_BY_USER","username":"user2","clusterNames":["BlueCluster"]}`:         "userName is missing",
			`{"action":"KILL_BY_USER","userName":"","clusterNames":["BlueCluster"]}`:              "userName is missing",
			`{"action":"KILL_BY_LIST_OF_SESSIONS","sessions":[{}]}`:                               "deviceReference is missing",
			`{"action":"KILL_BY_LIST_OF_SESSIONS","sessions":[{"deviceReference":{"link":"L"}}]}`: "sessionIds are missing for L",
			`{"action":"KILL_BY_SESSIONS","clusterNames":["BlueCluster"]}`:                        "action is invalid",
			`{"action":"KILL_ALL_SESSIONS","clusterNames":"BlueCluster"}`:                         "a field has a value of the wrong type",
		} {
			status, doc, raw := c.send("POST", tasks, body)
			if status != http.StatusBadRequest || doc["message"] != want || doc["id"] != nil {
				t.Errorf("%s: %d %s, want %q", body, status, raw, want)
			}
			if echo, _ := doc["originalRequestBody"].(string); !strings.Contains(echo, `"status":"CREATED"`) || !strings.Contains(echo, `"id":"`) {
				t.Errorf("%s: echo %q", body, echo)
			}
		}
		if n := len(c.s.Tasks()); n != 0 {
			t.Errorf("%d tasks", n)
		}
	})
}

func TestTaskDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, bigiqtest.Options{})
		_, doc, _ := c.send("POST", tasks, `{"action":"KILL_BY_USER","userName":"user2","clusterNames":["BlueCluster"]}`)
		if doc["userName"] != "user2" || doc["username"] != "svc-endsession" || doc["status"] != "STARTED" || doc["currentStep"] != "RESOLVE_DEVICES" {
			t.Errorf("%v", doc)
		}
		id := doc["id"].(string)
		if doc["selfLink"] != "https://localhost"+tasks+"/"+id {
			t.Errorf("link %v", doc["selfLink"])
		}
		if _, err := time.Parse(time.RFC3339, doc["startDateTime"].(string)); err == nil {
			t.Errorf("date %v has a colon", doc["startDateTime"])
		}
		if _, doc, raw := c.send("GET", tasks+"/"+id+"?$select=status,result", ""); len(doc) != 1 || doc["status"] != "STARTED" {
			t.Errorf("selected: %s", raw)
		}
		time.Sleep(200 * time.Millisecond)
		if _, doc, raw := c.send("GET", tasks+"/"+id+"?$select=status,result", ""); len(doc) != 2 || doc["result"] != "COMPLETE" {
			t.Errorf("selected: %s", raw)
		}
		c.s.ForgetTasks()
		if status, _, raw := c.send("GET", tasks+"/"+id, ""); status != http.StatusNotFound {
			t.Errorf("forgotten: %d %s", status, raw)
		}
		if status, doc, _ := c.send("GET", "/mgmt/cm/access/tasks/kill-session", ""); status != http.StatusNotFound || doc["message"] != "Public URI path not registered" {
			t.Errorf("wrong path: %d %v", status, doc)
		}
	})
}

func TestAuthentication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, bigiqtest.Options{})
		list := func() (int, any, string) {
			status, doc, raw := c.send("GET", tasks, "")
			return status, doc["message"], raw
		}
		if status, _, _ := list(); status != http.StatusOK {
			t.Errorf("with a token: %d", status)
		}
		time.Sleep(5 * time.Minute)
		if status, message, _ := list(); status != http.StatusUnauthorized || message != "invalid registered claims" {
			t.Errorf("after five minutes: %d %v", status, message)
		}
		c.token = ""
		if status, message, _ := list(); status != http.StatusUnauthorized || message != "Authorization failed: no user authentication header or token detected." {
			t.Errorf("without a token: %d %v", status, message)
		}
		if status, doc, _ := c.send("POST", "/mgmt/shared/authn/login", `{"username":"svc-endsession","password":"bigiq-password","loginProviderName":"tmos"}`); status != 401 || doc["message"] != "loginProviderName is invalid." {
			t.Errorf("tmos: %d %v", status, doc)
		}

		req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://bigiq.example"+tasks, nil)
		req.SetBasicAuth(c.s.Credentials())
		resp, err := c.s.Transport().RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
			t.Errorf("basic: %+v, %v, want 401 with a page", resp, err)
		}
	})
}

func TestResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, bigiqtest.Options{})
		all := len(bigiqtest.Lab())
		for query, want := range map[string]int{
			"":                                     all,
			"?$filter='address'+eq+'10.255.4.124'": 1,
			"?$filter=('address'+eq+'10.255.4.124'+or+'address'+eq+'10.255.5.1')": 2,
			"?$filter=(%27address%27%20eq%20%2710.255.4.124%27)":                  1,
			"?$filter='address'+eq+'10.0.0.1'":                                    0,
			"?$filter='address'+eq+'*'":                                           all, // a wildcard
			"?$filter=('address'+eq+'x'+or+'address'+eq+'10.255.*')":              all, // an injected condition
			"?%24filter='address'+eq+'10.255.4.124'":                              all, // not understood
		} {
			_, doc, raw := c.send("GET", "/mgmt/cm/system/machineid-resolver"+query, "")
			items, ok := doc["items"].([]any)
			if !ok || len(items) != want || doc["totalItems"] != 1.0 {
				t.Errorf("%s: %d items, total %v, want %d\n%.200s", query, len(items), doc["totalItems"], want, raw)
			}
		}
		_, doc, _ := c.send("GET", "/mgmt/shared/resolver/device-groups/?$filter='properties/cm:access:access_group'+eq+'true'&$select=groupName,displayName", "")
		if items := doc["items"].([]any); len(items) != 3 || len(items[0].(map[string]any)) != 2 {
			t.Errorf("access groups: %v", items)
		}
	})
}
