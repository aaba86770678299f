package kibanatest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

const path = "/api/security/session/_invalidate"

var superuser = kibanatest.Account{APIKey: "id:key", Username: "elastic", Password: "changeme", BearerToken: "token", Superuser: true}

// call is a request that is right in every respect but those a test changes.
type call struct {
	method, path, body string
	header             map[string]string // "" takes a header away
}

func send(t *testing.T, s *kibanatest.Server, c call) (*http.Response, string) {
	t.Helper()
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.path == "" {
		c.path = path
	}
	req, err := http.NewRequest(c.method, "https://kibana.example"+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "ApiKey aWQ6a2V5")
	req.Header.Set("kbn-xsrf", "x")
	req.Header.Set("Content-Type", "application/json")
	for k, v := range c.header {
		if v == "" {
			req.Header.Del(k)
		} else {
			req.Header.Set(k, v)
		}
	}
	resp, err := s.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// total sends a body that must be accepted.
func total(t *testing.T, s *kibanatest.Server, body string) int {
	t.Helper()
	resp, answer := send(t, s, call{body: body})
	var reply struct{ Total *int }
	if err := json.Unmarshal([]byte(answer), &reply); resp.StatusCode != 200 || err != nil || reply.Total == nil {
		t.Fatalf("%s: %d %s", body, resp.StatusCode, answer)
	}
	return *reply.Total
}

func message(t *testing.T, answer string) string {
	t.Helper()
	var e struct {
		StatusCode int
		Error      string
		Message    string
	}
	if err := json.Unmarshal([]byte(answer), &e); err != nil || e.StatusCode == 0 || e.Error == "" {
		t.Fatalf("not an error of Kibana's form: %s", answer)
	}
	return e.Message
}

// settled returns a server with sessions that searches see.
func settled(sessions ...adapters.Session) *kibanatest.Server {
	s := kibanatest.New(kibanatest.Options{Accounts: []kibanatest.Account{superuser}})
	for _, x := range sessions {
		s.SignIn(x)
	}
	s.Refresh()
	return s
}

func session(providerType, name, user string) adapters.Session {
	return adapters.Session{Username: user, Provider: adapters.Provider{Type: providerType, Name: name}}
}

func TestUsernameHashIsSHA3(t *testing.T) {
	const want = "8ac76453d769d4fd14b3f41ad4933f9bd64321972cd002de9b847e117435b08b"
	if got := kibanatest.UsernameHash("user"); got != want {
		t.Errorf("UsernameHash(user) = %s, want %s", got, want)
	}
}

func TestSchema(t *testing.T) {
	const noType = "[request body.query.provider.type]: expected value of type [string] but got [undefined]"
	const badMatch = "[request body.match]: types that failed validation:\n" +
		"- [request body.match.0]: expected value to equal [all]\n- [request body.match.1]: expected value to equal [query]"
	for _, c := range []struct{ body, want string }{
		{`{}`, "[request body.match]: expected at least one defined value but got [undefined]"},
		{`{"match":"current"}`, badMatch},
		{`{"match":"ALL"}`, badMatch},
		{`{"match":null}`, badMatch},
		{`{"match":"all","query":{"provider":{"type":"basic"}}}`, "[request body.query]: a value wasn't expected to be present"},
		{`{"match":"query"}`, noType},
		{`{"match":"query","query":{"username":"user"}}`, noType},
		{`{"match":"query","query":{"provider":{"name":"basic1"},"username":"user"}}`, noType},
		{`{"match":"query","query":{"provider":{"type":"basic"},"username":null}}`,
			"[request body.query.username]: expected value of type [string] but got [null]"},
		{`{"match":"query","query":{"provider":{"type":"basic","name":null}}}`,
			"[request body.query.provider.name]: expected value of type [string] but got [null]"},
		{`{"match":"query","query":{"provider":{"type":"basic"},"username":7}}`,
			"[request body.query.username]: expected value of type [string] but got [number]"},
		{`{"match":"query","query":{"provider":{"type":"basic"},"usernames":["user"]}}`,
			"[request body.query.usernames]: definition for this key is missing"},
		{`{"match":"query","query":{"provider":{"type":"basic"},"Username":"user"}}`,
			"[request body.query.Username]: definition for this key is missing"},
		{`{"match":"query","query":{"provider":{"type":"basic","spaceId":"x"}}}`,
			"[request body.query.provider.spaceId]: definition for this key is missing"},
		{`{"match":"all","dryRun":true}`, "[request body.dryRun]: definition for this key is missing"},
		{`{"match":"query","query":[]}`, "[request body.query]: expected a plain object value, but found [Array] instead."},
		{`[]`, "[request body]: expected a plain object value, but found [Array] instead."},
		{``, "[request body]: expected a plain object value, but found [null] instead."},
		{`{"match":"all"`, "Invalid request payload JSON format"},
		{`{"match":"all"} {}`, "Invalid request payload JSON format"},
	} {
		s := settled(session("basic", "", "user"))
		resp, answer := send(t, s, call{body: c.body})
		if got := message(t, answer); resp.StatusCode != 400 || got != c.want {
			t.Errorf("%s: %d %s, want 400 %s", c.body, resp.StatusCode, got, c.want)
		}
		if len(s.Sessions()) != 1 {
			t.Errorf("%s: ended a session", c.body)
		}
	}
}

func TestQuery(t *testing.T) {
	population := []adapters.Session{
		session("basic", "basic", "user"), session("basic", "basic", "User"), session("saml", "saml1", "user"),
		session("saml", "saml2", "user"), session("saml", "saml1", ""), session("oidc", "oidc1", "other"),
	}
	for _, c := range []struct {
		body string
		want int
	}{
		{`{"match":"all"}`, 6},
		{`{"match":"query","query":{"provider":{"type":"saml"}}}`, 3},
		{`{"match":"query","query":{"provider":{"type":"saml","name":"saml1"}}}`, 2},
		{`{"match":"query","query":{"provider":{"type":"saml"},"username":"user"}}`, 2},
		{`{"match":"query","query":{"provider":{"type":"saml","name":"saml1"},"username":"user"}}`, 1},
		{`{"match":"query","query":{"provider":{"type":"basic"},"username":"user"}}`, 1},
		// The traps: what is empty counts as absent.
		{`{"match":"query","query":{"provider":{"type":"basic"},"username":""}}`, 2},
		{`{"match":"query","query":{"provider":{"type":"saml","name":""},"username":"user"}}`, 2},
		{`{"match":"query","query":{"provider":{"type":"saml","name":""},"username":""}}`, 3},
		// What is wrong is no error.
		{`{"match":"query","query":{"provider":{"type":""}}}`, 0},
		{`{"match":"query","query":{"provider":{"type":"SAML"}}}`, 0},
		{`{"match":"query","query":{"provider":{"type":"*"}}}`, 0},
		{`{"match":"query","query":{"provider":{"type":"basic","name":"basic1"}}}`, 0},
		{`{"match":"query","query":{"provider":{"type":"basic"},"username":"*"}}`, 0},
		{`{"match":"query","query":{"provider":{"type":"basic"},"username":" user"}}`, 0},
	} {
		s := settled(population...)
		got := total(t, s, c.body)
		if alive := len(s.Sessions()); got != c.want || alive != len(population)-c.want {
			t.Errorf("%s: total %d and %d left, want total %d", c.body, got, alive, c.want)
		}
	}
}

func TestExpiredSessionsCountUntilSwept(t *testing.T) {
	expired := session("basic", "basic", "user")
	expired.CreateTime, expired.ExpireTime = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	const body = `{"match":"query","query":{"provider":{"type":"basic"},"username":"user"}}`
	if got := total(t, settled(expired), body); got != 1 {
		t.Errorf("before the sweep: total %d, want 1", got)
	}
	s := settled(expired)
	s.Sweep()
	s.Refresh()
	if got := total(t, s, body); got != 0 {
		t.Errorf("after the sweep: total %d, want 0", got)
	}
}

func TestOrderOfChecks(t *testing.T) {
	// Each request is wrong in everything from one check on; the first of them must answer.
	wrong := call{body: `{`, header: map[string]string{"Authorization": "ApiKey nobody", "kbn-xsrf": ""}}
	s := kibanatest.New(kibanatest.Options{Accounts: []kibanatest.Account{superuser, {APIKey: "weak:key"}}})
	check := func(name string, c call, status int, want string) {
		t.Helper()
		resp, answer := send(t, s, c)
		if resp.StatusCode != status || !strings.Contains(answer, want) {
			t.Errorf("%s: %d %s, want %d %s", name, resp.StatusCode, answer, status, want)
		}
	}
	s.Suffer(kibanatest.NotReady)
	check("start-up", wrong, 503, "Kibana server is not ready yet")
	s.Suffer(kibanatest.Overloaded)
	check("rate limiter", wrong, 429, "Server is overloaded")
	s.Suffer(kibanatest.NotInitialized)
	check("authentication service", wrong, 503, "Authentication sub-system is not fully initialized yet.")
	s.Suffer(kibanatest.NoLicense)
	check("licence", wrong, 503, "License information could not be obtained from Elasticsearch")
	s.Suffer(kibanatest.Healthy)
	check("credentials", wrong, 401, "unable to authenticate")
	wrong.header["Authorization"] = "ApiKey d2VhazprZXk="
	check("payload", wrong, 400, "Invalid request payload JSON format")
	wrong.body = `{"match":"probe"}`
	check("xsrf", wrong, 400, "Request must contain a kbn-xsrf header.")
	delete(wrong.header, "kbn-xsrf")
	check("privilege", wrong, 403, "this action is granted by the Kibana privileges [superuser]")
	delete(wrong.header, "Authorization")
	check("schema", wrong, 400, "[request body.match]")
	s.Suffer(kibanatest.ElasticsearchDown)
	check("deletion", call{body: `{"match":"all"}`}, 500, "An internal server error occurred. Check Kibana server logs for details.")
}

func TestHeaders(t *testing.T) {
	for _, c := range []struct {
		name   string
		header map[string]string
		status int
		want   string
	}{
		{"version instead of xsrf", map[string]string{"kbn-xsrf": "", "kbn-version": "9.1.0"}, 200, "total"},
		{"other version", map[string]string{"kbn-version": "8.0.0"}, 400, "Browser client is out of date"},
		{"no content type", map[string]string{"Content-Type": ""}, 415, "Unsupported Media Type"},
		{"form", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, "Unsupported Media Type"},
		{"no credentials", map[string]string{"Authorization": ""}, 401, "Unauthorized"},
		{"Basic", map[string]string{"Authorization": "Basic ZWxhc3RpYzpjaGFuZ2VtZQ=="}, 200, "total"},
		{"Bearer", map[string]string{"Authorization": "bearer token"}, 200, "total"},
		{"empty bearer", map[string]string{"Authorization": "Bearer "}, 401, "Unauthorized"},
		{"Negotiate", map[string]string{"Authorization": "Negotiate abc"}, 401, "Unauthorized"},
	} {
		resp, answer := send(t, settled(), call{body: `{"match":"all"}`, header: c.header})
		if resp.StatusCode != c.status || !strings.Contains(answer, c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.name, resp.StatusCode, answer, c.status, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	accounts := []kibanatest.Account{superuser, {APIKey: "weak:key"}}
	basic := map[string]string{"Authorization": "Basic ZWxhc3RpYzpjaGFuZ2VtZQ=="}
	weak := map[string]string{"Authorization": "ApiKey d2VhazprZXk="}
	anybody := map[string]string{"Authorization": ""}
	internal := map[string]string{"x-elastic-internal-origin": "x"}
	saml := []kibanatest.Provider{{Type: "saml", Name: "saml1"}}
	for _, c := range []struct {
		name    string
		options kibanatest.Options
		call    call
		status  int
		want    string
	}{
		{"base path", kibanatest.Options{BasePath: "/kibana"}, call{path: "/kibana" + path}, 200, "total"},
		{"base path left out", kibanatest.Options{BasePath: "/kibana"}, call{}, 404, `"statusCode":404`},
		{"a space narrows nothing", kibanatest.Options{}, call{path: "/s/marketing" + path}, 200, "total"},
		{"wrong method", kibanatest.Options{}, call{method: "GET"}, 404, "Not Found"},
		{"excluded route", kibanatest.Options{ExcludeRoute: true}, call{}, 404, "Not Found"},
		{"serverless", kibanatest.Options{Serverless: true}, call{}, 400,
			"uri [/api/security/session/_invalidate] with method [post] exists but is not available with the current configuration"},
		{"serverless operator", kibanatest.Options{Serverless: true}, call{header: internal}, 200, "total"},
		{"Basic without a basic provider", kibanatest.Options{Providers: saml}, call{header: basic}, 401, "Unauthorized"},
		{"no HTTP authentication", kibanatest.Options{HTTPAuthenticationDisabled: true}, call{}, 401, "Unauthorized"},
		{"security disabled", kibanatest.Options{SecurityDisabled: true}, call{header: anybody}, 200, "total"},
		{"legacy privilege", kibanatest.Options{Legacy: true}, call{header: weak}, 403, `"message":"Forbidden"`},
		{"login state", kibanatest.Options{Providers: saml}, call{method: "GET", path: "/internal/security/login_state", header: anybody},
			200, `{"name":"saml1","showInSelector":true,"type":"saml","usesLoginForm":false}`},
		{"default provider", kibanatest.Options{}, call{method: "GET", path: "/internal/security/login_state"}, 200, `"name":"basic"`},
		{"restricted login state", kibanatest.Options{RestrictInternalAPIs: true},
			call{method: "GET", path: "/internal/security/login_state"}, 400, "exists but is not available"},
		{"internal login state", kibanatest.Options{RestrictInternalAPIs: true},
			call{method: "GET", path: "/internal/security/login_state", header: internal}, 200, "selector"},
		{"status", kibanatest.Options{Version: "8.17.1"}, call{method: "GET", path: "/api/status"}, 200, `"number":"8.17.1"`},
		{"status for nobody", kibanatest.Options{}, call{method: "GET", path: "/api/status", header: anybody}, 401, "Unauthorized"},
	} {
		c.options.Accounts = accounts
		c.call.body = `{"match":"all"}`
		resp, answer := send(t, kibanatest.New(c.options), c.call)
		if resp.StatusCode != c.status || !strings.Contains(answer, c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.name, resp.StatusCode, answer, c.status, c.want)
		}
	}
}

func TestRefreshLag(t *testing.T) {
	const all = `{"match":"all"}`
	t.Run("ANewSessionIsMissed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := settled(session("basic", "", "old"))
			s.SignIn(session("basic", "", "new"))
			time.Sleep(kibanatest.RefreshInterval - time.Nanosecond)
			if got := total(t, s, all); got != 1 {
				t.Errorf("within the interval: total %d, want 1", got)
			}
			time.Sleep(kibanatest.RefreshInterval)
			if got := total(t, s, all); got != 1 || len(s.Sessions()) != 0 {
				t.Errorf("after the interval: total %d, want 1", got)
			}
		})
	})
	t.Run("NotBefore88", func(t *testing.T) {
		s := kibanatest.New(kibanatest.Options{Legacy: true, Accounts: []kibanatest.Account{superuser}})
		s.SignIn(session("basic", "", "new"))
		if got := total(t, s, all); got != 1 {
			t.Errorf("total %d, want 1", got)
		}
		if got := total(t, s, all); got != 0 {
			t.Errorf("repeated: total %d, want 0", got)
		}
	})
	t.Run("AChangedSessionIsAConflict", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := settled(session("basic", "", "quiet"))
			busy := s.SignIn(session("basic", "", "busy"))
			time.Sleep(kibanatest.RefreshInterval)
			if !s.Use(busy.ID) {
				t.Fatal("the session is not there")
			}
			resp, answer := send(t, s, call{body: all})
			if resp.StatusCode != 500 {
				t.Errorf("%d %s, want 500", resp.StatusCode, answer)
			}
			if left := s.Sessions(); len(left) != 1 || left[0].Username != "busy" {
				t.Errorf("left: %v, want only the busy one: the rest of the batch is deleted", left)
			}
			time.Sleep(kibanatest.RefreshInterval)
			if got := total(t, s, all); got != 1 {
				t.Errorf("after the interval: total %d, want 1", got)
			}
		})
	})
	t.Run("ADeletedSessionIsAConflict", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := kibanatest.New(kibanatest.Options{Accounts: []kibanatest.Account{superuser}, DeletionsLag: true})
			s.SignIn(session("basic", "", "user"))
			s.Refresh()
			if got := total(t, s, all); got != 1 {
				t.Errorf("total %d, want 1", got)
			}
			if resp, answer := send(t, s, call{body: all}); resp.StatusCode != 500 {
				t.Errorf("at once again: %d %s, want 500", resp.StatusCode, answer)
			}
			time.Sleep(kibanatest.RefreshInterval)
			if got := total(t, s, all); got != 0 {
				t.Errorf("after the interval: total %d, want 0", got)
			}
		})
	})
	t.Run("AGoneSessionCannotBeUsed", func(t *testing.T) {
		s := settled(session("basic", "", "user"))
		id := s.Sessions()[0].ID
		total(t, s, all)
		if s.Use(id) {
			t.Error("a deleted session came back")
		}
	})
}
