package element_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
)

// TestUnusedParametersOnTheListStopTheDelete: the cluster does not know a parameter, ignores it and runs the call. What
// the list shows may even look right.
func TestUnusedParametersOnTheListStopTheDelete(t *testing.T) {
	for _, param := range []string{"username", "authMethod"} {
		t.Run(param, func(t *testing.T) {
			c := start(elementtest.Options{Unknown: []string{param}})
			alice := c.in("Cluster", "alice")
			_, err := call(t, c.open(t), userAt("alice", "Cluster"))
			wantKind(t, err, adapters.Rejected)
			if c.deletes() != 0 || !c.alive(alice) {
				t.Errorf("sent %v, alive %t", c.methods(), c.alive(alice))
			}
		})
	}
	t.Run("clusterAdminID", func(t *testing.T) {
		c := start(elementtest.Options{Unknown: []string{"clusterAdminID"}})
		x := c.in("Cluster", "alice", "9")
		_, err := call(t, c.open(t), admins("9"))
		wantKind(t, err, adapters.Rejected)
		if c.deletes() != 0 || !c.alive(x) {
			t.Errorf("sent %v", c.methods())
		}
	})
}

// TestUnusedParametersOnADeleteAreReported: it is too late for that call, but it is said, and nothing like it is sent
// again.
func TestUnusedParametersOnADeleteAreReported(t *testing.T) {
	for name, sel := range map[string]adapters.Selector{"ByUsername": userAt("alice", "Cluster"), "BySession": accessGroup("read")} {
		t.Run(name, func(t *testing.T) {
			c := start(elementtest.Options{})
			c.in("Cluster", "alice", "read")
			c.in("Cluster", "bob", "read")
			c.spoil = func(method string, answer []byte) []byte {
				if strings.HasPrefix(method, "Delete") {
					return bytes.Replace(answer, []byte(`"id":`), []byte(`"unusedParameters":{"username":"alice"},"id":`), 1)
				}
				return answer
			}
			res, err := call(t, c.open(t), sel)
			wantKind(t, err, adapters.Rejected)
			if c.deletes() != 1 || !res.Counted || res.Count != 1 {
				t.Errorf("deletes %d, result %+v, want one and its count", c.deletes(), res)
			}
		})
	}
}

// TestUnusedParametersOnADeleteThatEndedMore: the name was ignored, and the report says who died of it.
func TestUnusedParametersOnADeleteThatEndedMore(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Ldap", "bob")
	alice := c.in("Cluster", "alice")
	c.SetLie(emulator.EndMore)
	c.spoil = func(method string, answer []byte) []byte {
		if strings.HasPrefix(method, "Delete") {
			return bytes.Replace(answer, []byte(`"id":`), []byte(`"unusedParameters":{"username":"alice"},"id":`), 1)
		}
		return answer
	}
	res, err := call(t, c.open(t), user("alice"))
	wantKind(t, err, adapters.Rejected)
	if res.Count != 2 || !res.CountIsMinimum || !warned(res.Warnings, adapters.WarnOtherSessionEnded) || c.alive(alice) {
		t.Errorf("result %+v", res)
	}
}

// TestEmptyUnusedParametersMeanNothing: the member says nothing when it holds nothing.
func TestEmptyUnusedParametersMeanNothing(t *testing.T) {
	for _, v := range []string{"{}", "[]", "null", `""`} {
		c := start(elementtest.Options{})
		c.in("Cluster", "alice")
		c.spoil = func(_ string, answer []byte) []byte {
			return bytes.Replace(answer, []byte(`"id":`), []byte(`"unusedParameters":`+v+`,"id":`), 1)
		}
		if res := complete(t, c.open(t), user("alice")); res.Count != 1 {
			t.Errorf("%s: result %+v", v, res)
		}
	}
}

// TestBothParametersAreAlwaysSent looks at every request that takes a name, and at the pair of list and delete.
func TestBothParametersAreAlwaysSent(t *testing.T) {
	c := start(elementtest.Options{})
	c.in("Cluster", "alice")
	c.in("Ldap", "alice")
	a := c.open(t)
	complete(t, a, user("alice", "bob"))
	complete(t, a, userAt("alice", "Idp"))
	seen := 0
	var last json.RawMessage
	for _, r := range c.rec.Requests() {
		var req struct {
			Method string
			Params json.RawMessage
		}
		if err := json.Unmarshal(r.Body, &req); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(req.Method, "ByUsername") {
			continue
		}
		seen++
		var p map[string]string
		if json.Unmarshal(req.Params, &p) != nil || len(p) != 2 || p["username"] == "" || p["authMethod"] == "" {
			t.Errorf("%s with %s, want username and authMethod", req.Method, req.Params)
		}
		if strings.HasPrefix(req.Method, "Delete") && !bytes.Equal(last, req.Params) {
			t.Errorf("deletes with %s after a list with %s", req.Params, last)
		}
		last = req.Params
	}
	if seen < 9 {
		t.Errorf("%d requests by user name, want at least 9", seen)
	}
}

// TestErrorsComeWithStatus200 has each error name mean what it means, where nothing changes and where something may.
func TestErrorsComeWithStatus200(t *testing.T) {
	const (
		list, byName, byID = "ListAuthSessionsByUsername", "DeleteAuthSessionsByUsername", "DeleteAuthSession"
	)
	for _, test := range []struct {
		name                string
		onList, many, onOne adapters.Kind
	}{
		{"xPermissionDenied", adapters.Denied, adapters.Denied, adapters.Denied},
		{"xUnknownAPIMethod", adapters.Rejected, adapters.Rejected, adapters.Rejected},
		{"xUnknownRPCMethod", adapters.Rejected, adapters.Rejected, adapters.Rejected},
		{"xUnknownUsername", adapters.Rejected, adapters.Rejected, adapters.Rejected},
		{"xNeverHeardOf", adapters.Rejected, adapters.Rejected, adapters.Rejected},
		{"xNotPrimary", adapters.Busy, adapters.Busy, adapters.Busy},
		{"xNotReadyForIO", adapters.Busy, adapters.Busy, adapters.Busy},
		{"xDBVersionMismatch", adapters.Busy, adapters.Uncertain, adapters.Busy},
		{"xDBConnectionLoss", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"xDBOperationTimeout", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"xDBSessionExpired", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"xDBSessionMoved", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"xDBNoServerResponse", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"xDBClosing", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"xDBInvalidState", adapters.Busy, adapters.Uncertain, adapters.Uncertain},
		{"not an error name", adapters.Rejected, adapters.Rejected, adapters.Rejected},
	} {
		for method, want := range map[string]adapters.Kind{list: test.onList, byName: test.many, byID: test.onOne} {
			t.Run(test.name+"/"+method, func(t *testing.T) {
				c := start(elementtest.Options{})
				alice := c.in("Cluster", "alice", "read")
				sel := userAt("alice", "Cluster")
				if method == byID {
					sel = accessGroup("read")
				}
				c.Fail(method, 1, test.name)
				a := c.open(t)
				res, err := call(t, a, sel)
				wantKind(t, err, want)
				if !c.alive(alice) || res.Count != 0 {
					t.Errorf("alive %t, result %+v", c.alive(alice), res)
				}
				if retryable := want == adapters.Busy || want == adapters.Uncertain; retryable {
					if e := asError(t, err); e.RetryAfter != time.Second {
						t.Errorf("retry after %v, want a second", e.RetryAfter)
					}
				}
				if (want == adapters.Uncertain) != res.CountIsMinimum && method != byName {
					t.Errorf("%v, and count is minimum: %t", want, res.CountIsMinimum)
				}
			})
		}
	}
}

// TestPermissionDeniedInTheMessage: some versions carry the word there.
func TestPermissionDeniedInTheMessage(t *testing.T) {
	c := start(elementtest.Options{})
	c.FailWith("ListAuthSessionsByUsername", 1, "xUnknown", "xPermissionDenied for this user")
	_, err := call(t, c.open(t), userAt("alice", "Cluster"))
	wantKind(t, err, adapters.Denied)
}

// TestOnlyTheNameOfAnErrorIsShown: messages echo requests, and a name may be anything too.
func TestOnlyTheNameOfAnErrorIsShown(t *testing.T) {
	for name, shown := range map[string]bool{"xSomethingNew": true, "secret of alice": false, "x" + strings.Repeat("y", 65): false, "": false} {
		c := start(elementtest.Options{})
		c.FailWith("ListAuthSessionsByUsername", 1, name, "the message about alice")
		_, err := call(t, c.open(t), userAt("alice", "Cluster"))
		wantKind(t, err, adapters.Rejected)
		text := fmt.Sprintf("%v %+v", err, err)
		if strings.Contains(text, "alice") || name != "" && strings.Contains(text, name) != shown {
			t.Errorf("error %q of name %q shows the wrong things", text, name)
		}
	}
}

// TestTheErrorCodeMeansNothing: it is always 500, whatever it is.
func TestTheErrorCodeMeansNothing(t *testing.T) {
	for _, code := range []string{"401", "503", `"x"`, "null"} {
		c := start(elementtest.Options{})
		c.Fail("ListAuthSessionsByUsername", 1, "xDBVersionMismatch")
		c.spoil = func(_ string, answer []byte) []byte {
			return bytes.Replace(answer, []byte(`"code":500`), []byte(`"code":`+code), 1)
		}
		_, err := call(t, c.open(t), userAt("alice", "Cluster"))
		wantKind(t, err, adapters.Busy)
	}
}

// TestEnvelopeIsRequired: the documents' examples leave it out; a reader of those would count 0 and be content.
func TestEnvelopeIsRequired(t *testing.T) {
	for name, answer := range map[string]string{
		"TopLevelSessions":        `{"sessions":[]}`,
		"TopLevelSessionsWithID":  `{"id":%s,"sessions":[]}`,
		"NoID":                    `{"result":{"sessions":[]}}`,
		"NullID":                  `{"id":null,"result":{"sessions":[]}}`,
		"AnotherID":               `{"id":9%s,"result":{"sessions":[]}}`,
		"ResultAndError":          `{"id":%s,"result":{"sessions":[]},"error":{"name":"xDBVersionMismatch"}}`,
		"NullResult":              `{"id":%s,"result":null}`,
		"ResultIsAList":           `{"id":%s,"result":[]}`,
		"NoSessions":              `{"id":%s,"result":{}}`,
		"NullSessions":            `{"id":%s,"result":{"sessions":null}}`,
		"SessionsInOtherCase":     `{"id":%s,"result":{"Sessions":[]}}`,
		"SessionsTwice":           `{"id":%s,"result":{"sessions":[],"sessions":[]}}`,
		"SessionWithoutID":        `{"id":%s,"result":{"sessions":[{"username":"alice","authMethod":"Cluster"}]}}`,
		"SessionIsNull":           `{"id":%s,"result":{"sessions":[null]}}`,
		"UsernameTwice":           `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","username":"bob","username":"alice"}]}}`,
		"UserNameInOtherCase":     `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","userName":"alice"}]}}`,
		"NotUTF8":                 "{\"id\":%s,\"result\":{\"sessions\":[]},\"x\":\"\xff\"}",
		"Batch":                   `[{"id":%s,"result":{"sessions":[]}}]`,
		"TrailingData":            `{"id":%s,"result":{"sessions":[]}}{}`,
		"ErrorWithoutName":        `{"id":%s,"error":{"code":500}}`,
		"ErrorIsText":             `{"id":%s,"error":"xPermissionDenied"}`,
		"AnotherSessionIsListed":  `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","username":"bob"}]}}`,
		"AnotherMethodIsListed":   `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Ldap","username":"alice"}]}}`,
		"NoMethodIsListed":        `{"id":%s,"result":{"sessions":[{"sessionID":"1","username":"alice"}]}}`,
		"UsernameInAnotherCase":   `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","username":"Alice"}]}}`,
		"UsernameIsANumber":       `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","username":1}]}}`,
		"AdminIDIsAFraction":      `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","username":"alice","clusterAdminIDs":[1.5]}]}}`,
		"TwoSessionsUnderOneID":   `{"id":%s,"result":{"sessions":[{"sessionID":"1","authMethod":"Cluster","username":"alice"},{"sessionID":"1","authMethod":"Cluster","username":"alice","accessGroupList":["read"]}]}}`,
		"EmptyBody":               ``,
		"AWord":                   `true`,
		"ResultIsTextOfTheAnswer": `"{\"id\":%s}"`,
	} {
		t.Run(name, func(t *testing.T) {
			c := start(elementtest.Options{})
			alice := c.in("Cluster", "alice")
			c.spoil = func(method string, old []byte) []byte {
				if method != "ListAuthSessionsByUsername" {
					return old
				}
				var envelope struct{ ID json.RawMessage }
				if err := json.Unmarshal(old, &envelope); err != nil {
					t.Error(err)
				}
				return []byte(strings.ReplaceAll(answer, "%s", string(envelope.ID)))
			}
			_, err := call(t, c.open(t), userAt("alice", "Cluster"))
			wantKind(t, err, adapters.BadReply)
			if !c.alive(alice) || c.deletes() != 0 {
				t.Errorf("sent %v", c.methods())
			}
		})
	}
}

// TestDeleteOfOneAnswersInTheSingular: DeleteAuthSession returns one object named session.
func TestDeleteOfOneAnswersInTheSingular(t *testing.T) {
	c := start(elementtest.Options{})
	x := c.in("Cluster", "alice")
	if res := complete(t, c.open(t), sessions(x)); res.Count != 1 || c.alive(x) {
		t.Errorf("result %+v", res)
	}
	y := c.in("Cluster", "alice")
	c.spoil = func(method string, answer []byte) []byte {
		if method == "DeleteAuthSession" {
			answer = bytes.Replace(answer, []byte(`"session":`), []byte(`"sessions":`), 1)
		}
		return answer
	}
	res, err := call(t, c.open(t), sessions(y))
	wantKind(t, err, adapters.BadReply)
	if !res.CountIsMinimum || res.Counted {
		t.Errorf("result %+v, want an unknown count", res)
	}
}

// TestANodeThatIsNotServing answers with the word null.
func TestANodeThatIsNotServing(t *testing.T) {
	c := start(elementtest.Options{})
	alice := c.in("Cluster", "alice")
	a := c.open(t)
	c.NotServing(1)
	_, err := call(t, a, user("alice"))
	wantKind(t, err, adapters.Busy)
	c.faults.Add(emulator.Rule{Match: on("DeleteAuthSessionsByUsername"), Times: 1, Fault: emulator.Null()})
	res, err := call(t, a, user("alice"))
	wantKind(t, err, adapters.Uncertain)
	if !res.CountIsMinimum || !c.alive(alice) {
		t.Errorf("result %+v", res)
	}
	if res := complete(t, a, user("alice")); res.Count != 1 || c.alive(alice) {
		t.Errorf("result %+v", res)
	}
}

// TestWrongCredentials: the answer is 401 and plain text.
func TestWrongCredentials(t *testing.T) {
	c := start(elementtest.Options{Password: "another"})
	_, err := call(t, c.open(t), user("alice"))
	wantKind(t, err, adapters.Credentials)
	if n := len(c.rec.Requests()); n != 1 {
		t.Errorf("%d requests, want one: more could lock the account", n)
	}
}

// TestRequestsAreWhatTheDocumentsAsk looks at the transport of every request.
func TestRequestsAreWhatTheDocumentsAsk(t *testing.T) {
	c := start(elementtest.Options{})
	x := c.in("Cluster", "alice")
	a := c.open(t)
	complete(t, a, user("alice"))
	complete(t, a, sessions(x))
	ids := map[string]bool{}
	for i, r := range c.rec.Requests() {
		var req map[string]json.RawMessage
		if err := json.Unmarshal(r.Body, &req); err != nil {
			t.Fatal(err)
		}
		user, password, ok := (&http.Request{Header: r.Header}).BasicAuth()
		want := "/json-rpc/12.5"
		if i == 0 {
			want = "/json-rpc/1.0"
		}
		switch {
		case r.Method != http.MethodPost || r.Path != want || r.Header.Get("Content-Type") != "application/json-rpc":
			t.Errorf("request %d: %s %s of %s", i+1, r.Method, r.Path, r.Header.Get("Content-Type"))
		case !ok || user != elementtest.Username || password != elementtest.Password:
			t.Errorf("request %d: no credentials", i+1)
		case len(req) != 3 || req["method"] == nil || req["params"] == nil || req["id"] == nil || ids[string(req["id"])]:
			t.Errorf("request %d: %s", i+1, r.Body)
		}
		ids[string(req["id"])] = true
	}
}

// TestBodies holds the requests of each kind of selector, as sent, against golden files. Session ids are replaced.
func TestBodies(t *testing.T) {
	for name, sel := range map[string]func(c *cluster) adapters.Selector{
		"user":          func(*cluster) adapters.Selector { return user(`O'Neil <"ä">`) },
		"user_ldap_dn":  func(*cluster) adapters.Selector { return userAt("uid=alice,ou=people,dc=example,dc=com", "Ldap") },
		"cluster_admin": func(*cluster) adapters.Selector { return admins("9") },
		"access_group":  func(*cluster) adapters.Selector { return accessGroup("read") },
		"provider":      func(*cluster) adapters.Selector { return provider("Idp") },
		"session":       func(c *cluster) adapters.Selector { return sessions(c.Sessions()[0]) },
		"user_and_group": func(*cluster) adapters.Selector {
			s := user("bob")
			s.By |= adapters.ByGroup
			s.Groups = admins("9").Groups
			return s
		},
		"all":             func(*cluster) adapters.Selector { return everybody },
		"user_not_listed": func(*cluster) adapters.Selector { return userAt("nobody", "Cluster") },
	} {
		t.Run(name, func(t *testing.T) {
			c := start(elementtest.Options{})
			c.in("Cluster", `O'Neil <"ä">`, "administrator", "1")
			c.in("Ldap", "uid=alice,ou=people,dc=example,dc=com", "read", "9")
			c.in("Idp", "bob", "read", "9", "10")
			var id []string
			for i, x := range c.Sessions() {
				id = append(id, x.ID, fmt.Sprintf("session-%d", i+1))
			}
			complete(t, c.open(t), sel(c))
			var got bytes.Buffer
			for _, r := range c.rec.Requests() {
				fmt.Fprintf(&got, "%s %s\n%s\n\n", r.Method, r.URL, strings.NewReplacer(id...).Replace(string(r.Body)))
			}
			golden(t, name+".golden", got.Bytes())
		})
	}
}

func provider(method string) adapters.Selector {
	return adapters.Selector{By: adapters.ByProvider, Providers: []adapters.Provider{{Type: method}}}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\ngot\n%s\nwant\n%s", file, got, want)
	}
}

// TestVersionNegotiation: the version of the path is a text, chosen among those the cluster lists.
func TestVersionNegotiation(t *testing.T) {
	for _, test := range []struct {
		name string
		o    elementtest.Options
		want string
	}{
		{"Highest", elementtest.Options{}, "12.5"},
		{"Numbers", elementtest.Options{NumericVersions: true}, "12.5"},
		{"NumberWithAZero", elementtest.Options{Versions: []string{"1.0", "12.0"}, NumericVersions: true}, "12.0"},
		{"TenIsMoreThanNine", elementtest.Options{Versions: []string{"1.0", "12.9", "12.10"}}, "12.10"},
		{"NumberTenIsNotOne", elementtest.Options{Versions: []string{"1.0", "12.1", "12.10"}, NumericVersions: true}, "12.10"},
		{"NoMethodList", elementtest.Options{NoMethodList: true}, "12.5"},
		{"LowVersionsAreGone", elementtest.Options{Versions: []string{"12.0", "13.0"}}, "13.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(test.o)
			alice := c.in("Cluster", "alice")
			complete(t, c.open(t), user("alice"))
			rs := c.rec.Requests()
			if got := rs[len(rs)-1].Path; got != "/json-rpc/"+test.want || c.alive(alice) {
				t.Errorf("last request went to %s, want version %s", got, test.want)
			}
			if c.Calls("GetAPI") != 1 {
				t.Errorf("GetAPI was called %d times, want once", c.Calls("GetAPI"))
			}
		})
	}
}

func TestTooOldOrWrongAddress(t *testing.T) {
	for name, test := range map[string]struct {
		o    elementtest.Options
		says string
	}{
		"OlderThan12":  {elementtest.Options{Versions: []string{"1.0", "11.3"}}, "no API version 12.0 or later"},
		"Node":         {elementtest.Options{Node: true}, "single node"},
		"NodeUnlisted": {elementtest.Options{Node: true, NoMethodList: true}, "single node"},
		"NoAPIAtAll":   {elementtest.Options{Versions: []string{"99.0"}}, "no Element API"},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(test.o)
			_, err := call(t, c.open(t), user("alice"))
			wantKind(t, err, adapters.Rejected)
			if !strings.Contains(fmt.Sprint(err), test.says) {
				t.Errorf("error %v, want it to say %q", err, test.says)
			}
			if c.deletes() != 0 {
				t.Errorf("sent %v", c.methods())
			}
			h, err := c.open(t).Probe(t.Context())
			if err != nil || h.Healthy() {
				t.Errorf("probe %+v, %v, want it unhealthy", h, err)
			}
		})
	}
}

// TestVersionIsNegotiatedAnewWhenItIsGone: HTTP 404, or the error in words, means that nothing ran.
func TestVersionIsNegotiatedAnewWhenItIsGone(t *testing.T) {
	c := start(elementtest.Options{})
	a := c.open(t)
	complete(t, a, user("nobody"))
	alice := c.in("Cluster", "alice")
	c.SetVersions("1.0", "12.0", "13.0")
	if res := complete(t, a, user("alice")); res.Count != 1 || c.alive(alice) {
		t.Errorf("result %+v", res)
	}
	rs := c.rec.Requests()
	if got := rs[len(rs)-1].Path; got != "/json-rpc/13.0" {
		t.Errorf("last request went to %s", got)
	}
	t.Run("InWords", func(t *testing.T) {
		bob := c.in("Cluster", "bob")
		c.Fail("DeleteAuthSessionsByUsername", 1, "xUnknownAPIVersion")
		if res := complete(t, a, user("bob")); res.Count != 1 || c.alive(bob) {
			t.Errorf("result %+v", res)
		}
	})
	t.Run("ForGood", func(t *testing.T) {
		carol := c.in("Cluster", "carol")
		c.Fail("DeleteAuthSessionsByUsername", 2, "xUnknownAPIVersion")
		_, err := call(t, a, user("carol"))
		wantKind(t, err, adapters.Unreachable)
		if !c.alive(carol) {
			t.Error("carol's session is gone")
		}
	})
}

// TestOnlyAnAdministratorMayTry: anybody else sees only its own sessions, and would report that nobody else had any.
func TestOnlyAnAdministratorMayTry(t *testing.T) {
	for name, o := range map[string]elementtest.Options{
		"ParametersRefused": {Access: []string{"read"}},
		"ParametersIgnored": {Access: []string{"read"}, OwnOnly: true},
		"OwnSessionsListed": {Access: []string{"read"}, OwnOnly: true, OwnActive: true},
		"PrimaryAdminShown": {Access: []string{"read"}, OwnOnly: true, PrimaryAdmin: true},
	} {
		for _, sel := range []adapters.Selector{user("alice"), user(elementtest.Username), everybody, admins("9")} {
			t.Run(name+"/"+sel.By.String(), func(t *testing.T) {
				c := start(o)
				c.in("Cluster", "alice", "9")
				c.in("Cluster", elementtest.Username, "9")
				a := c.open(t)
				_, err := call(t, a, sel)
				wantKind(t, err, adapters.Denied)
				_, err = a.Preview(t.Context(), sel)
				wantKind(t, err, adapters.Denied)
				if c.deletes() != 0 || len(c.Sessions()) != 2 {
					t.Errorf("sent %v", c.methods())
				}
			})
		}
	}
}

// TestPrivilegeIsProvenAnewAfterAMinute, and not before each kill.
func TestPrivilegeIsProvenAnewAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(elementtest.Options{})
		a := c.open(t)
		for range 3 {
			complete(t, a, userAt("alice", "Cluster"))
		}
		if n := c.Calls("GetCurrentClusterAdmin"); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		time.Sleep(time.Minute)
		complete(t, a, userAt("alice", "Cluster"))
		if n := c.Calls("GetCurrentClusterAdmin"); n != 2 {
			t.Errorf("asked %d times, want twice", n)
		}
	})
}

// TestNamesMustBeSpeltAsTheClusterListsThem: an LDAP user's short name, or another spelling of the DN, finds nothing and
// must not look like a job well done.
func TestNamesMustBeSpeltAsTheClusterListsThem(t *testing.T) {
	const dn = "uid=alice,ou=people,dc=example,dc=com"
	c := start(elementtest.Options{})
	x := c.in("Ldap", dn)
	a := c.open(t)
	for _, name := range []string{"alice", "UID=alice,ou=people,dc=example,dc=com", "uid=alice, ou=people, dc=example, dc=com"} {
		res := complete(t, a, user(name))
		if res.Count != 0 || !warned(res.Warnings, adapters.WarnNoSessionMatched) || !c.alive(x) {
			t.Errorf("%q: result %+v, alive %t", name, res, c.alive(x))
		}
	}
	if res := complete(t, a, user(dn)); res.Count != 1 || c.alive(x) || warned(res.Warnings, adapters.WarnNoSessionMatched) {
		t.Errorf("%q: result %+v", dn, res)
	}
}

// TestOpaqueIdentityProvider: users are listed under random UUIDs, so that a user run proves nothing there.
func TestOpaqueIdentityProvider(t *testing.T) {
	group := user("alice")
	group.By |= adapters.ByGroup
	group.Groups = accessGroup("read").Groups
	for name, test := range map[string]struct {
		sel    adapters.Selector
		opaque bool
	}{
		"User":         {user("alice"), true},
		"UserAtIdp":    {userAt("alice", "Idp"), true},
		"UserAndGroup": {group, true},
		"UserAtLdap":   {userAt("alice", "Ldap"), false},
		"Provider":     {provider("Idp"), false},
		"All":          {everybody, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(elementtest.Options{OpaqueIdp: true})
			c.in("Idp", "alice", "read")
			c.in("Cluster", "alice", "read")
			a := c.open(t)
			p, err := a.Preview(t.Context(), test.sel)
			if err != nil || warned(p.Warnings, adapters.WarnIdentityOpaque) != test.opaque {
				t.Errorf("preview %+v, %v", p, err)
			}
			res := complete(t, a, test.sel)
			want := adapters.ConfirmedByList
			if test.opaque {
				want = adapters.Unverifiable
			}
			if res.Verification != want || warned(res.Warnings, adapters.WarnIdentityOpaque) != test.opaque {
				t.Errorf("result %+v", res)
			}
		})
	}
	t.Run("NamesAreSent", func(t *testing.T) {
		c := start(elementtest.Options{})
		c.in("Idp", "alice")
		c.in("Idp", "bob")
		c.in("Cluster", "7c8f7eff-aea3-4a55-8c6e-85b06d8d5368") // a strange name, but no identity provider's
		for _, name := range []string{"alice", "carol"} {
			if res := complete(t, c.open(t), user(name)); res.Verification != adapters.ConfirmedByList {
				t.Errorf("%s: result %+v", name, res)
			}
		}
	})
	// The provider has ceased to send names: who came before is listed by name, and may have come again.
	t.Run("NamesWereSent", func(t *testing.T) {
		c := start(elementtest.Options{})
		for _, name := range []string{"alice", "7c8f7eff-aea3-4a55-8c6e-85b06d8d5368"} {
			c.in("Idp", name, "read")
		}
		for _, sel := range []adapters.Selector{user("alice"), group} {
			p, err := c.open(t).Preview(t.Context(), sel)
			if err != nil || !warned(p.Warnings, adapters.WarnIdentityOpaque) {
				t.Errorf("preview %+v, %v", p, err)
			}
			if res := complete(t, c.open(t), sel); res.Verification != adapters.Unverifiable {
				t.Errorf("result %+v", res)
			}
			c.in("Idp", "alice", "read")
		}
	})
	// It sends names that look like random ones: the one asked for is there.
	t.Run("NamesAreUUIDs", func(t *testing.T) {
		c := start(elementtest.Options{})
		for _, name := range []string{"7c8f7eff-aea3-4a55-8c6e-85b06d8d5368", "ea4599fe-5e5d-4535-9030-e10e55c32d79"} {
			c.in("Idp", name)
		}
		if res := complete(t, c.open(t), user("ea4599fe-5e5d-4535-9030-e10e55c32d79")); res.Verification != adapters.ConfirmedByList || res.Count != 1 {
			t.Errorf("result %+v", res)
		}
	})
	t.Run("OthersInTheGroup", func(t *testing.T) {
		c := start(elementtest.Options{OpaqueIdp: true})
		c.in("Idp", "bob", "drives") // cannot be alice in the group read
		if res := complete(t, c.open(t), group); res.Verification != adapters.ConfirmedByList {
			t.Errorf("result %+v", res)
		}
	})
}

// TestAClusterAdminIDOfAGroupEndsItsMembers, which is what the operator has mapped, and nobody else.
func TestAClusterAdminIDOfAGroupEndsItsMembers(t *testing.T) {
	c := start(elementtest.Options{})
	members := []adapters.Session{c.in("Ldap", "uid=a", "9"), c.in("Ldap", "uid=b", "9", "10")}
	kept := []adapters.Session{c.in("Ldap", "uid=c", "90"), c.in("Cluster", "9", "10"), c.in("Cluster", "d", "access", "1")}
	res := complete(t, c.open(t), admins("9"))
	if res.Count != 2 || c.Calls("DeleteAuthSessionsByClusterAdmin") != 1 || c.Calls("DeleteAuthSession") != 0 {
		t.Errorf("result %+v by %v", res, c.methods())
	}
	for _, x := range members {
		if c.alive(x) {
			t.Errorf("%s is alive", x.Username)
		}
	}
	for _, x := range kept {
		if !c.alive(x) {
			t.Errorf("%s is gone", x.Username)
		}
	}
	t.Run("AnIDGivenTwiceIsAskedOnce", func(t *testing.T) {
		before := c.Calls("ListAuthSessionsByClusterAdmin")
		complete(t, c.open(t), admins("77", "77"))
		if n := c.Calls("ListAuthSessionsByClusterAdmin") - before; n != 1 {
			t.Errorf("listed %d times, want once", n)
		}
	})
	t.Run("MixedWithAccessGroupsIsListedAndFiltered", func(t *testing.T) {
		sel := admins("10")
		sel.Groups = append(sel.Groups, accessGroup("access").Groups...)
		if res := complete(t, c.open(t), sel); res.Count != 2 || c.Calls("DeleteAuthSessionsByClusterAdmin") != 1 {
			t.Errorf("result %+v", res)
		}
	})
}

// TestDocumentedSpellingsAreRead: LDAP, IdP and Local.
func TestDocumentedSpellingsAreRead(t *testing.T) {
	for _, method := range []string{"Cluster", "Ldap", "Idp"} {
		c := start(elementtest.Options{DocumentSpelling: true})
		x := c.in(method, "alice")
		for _, other := range []string{"Cluster", "Ldap", "Idp"} {
			if other != method {
				complete(t, c.open(t), provider(other))
			}
		}
		if !c.alive(x) {
			t.Errorf("%s ended with another method", method)
		}
		if res := complete(t, c.open(t), userAt("alice", method)); res.Count != 1 || res.Sessions[0].Provider.Type != method {
			t.Errorf("%s: result %+v", method, res)
		}
	}
}

// TestCaseOfNamesIsTheClustersBusinessButNotOurs: a cluster that takes Alice for alice would end both.
func TestCaseOfNamesIsTheClustersBusinessButNotOurs(t *testing.T) {
	c := start(elementtest.Options{FoldNames: true})
	a, b := c.in("Cluster", "alice"), c.in("Cluster", "Alice")
	_, err := call(t, c.open(t), user("alice"))
	wantKind(t, err, adapters.BadReply)
	if !c.alive(a) || !c.alive(b) || c.deletes() != 0 {
		t.Errorf("sent %v", c.methods())
	}
}

// TestOneChangeAtATime: many requests in a row make a cluster answer xDBVersionMismatch.
func TestOneChangeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(elementtest.Options{})
		for i := range 8 {
			c.in("Cluster", fmt.Sprint("user", i))
		}
		changing, most := 0, 0
		for _, m := range []string{"DeleteAuthSession", "DeleteAuthSessionsByUsername"} {
			c.Before(m, func() {
				changing++ // two at once would race, too
				most = max(most, changing)
				time.Sleep(time.Second)
			})
			c.After(m, func() { changing-- })
		}
		a := c.open(t)
		complete(t, a, user("nobody"))
		done := make(chan error)
		for i := range 8 {
			sel := user(fmt.Sprint("user", i))
			if i%2 == 0 {
				sel = sessions(c.Sessions()[i])
			}
			go func() {
				_, err := a.Invalidate(t.Context(), adapters.Request{Selector: sel})
				done <- err
			}()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if most != 1 || len(c.Sessions()) != 0 {
			t.Errorf("%d changes at once, left %v", most, c.Sessions())
		}
	})
}

// TestNoBatches: one JSON object a request, whatever there is to do.
func TestNoBatches(t *testing.T) {
	c := start(elementtest.Options{})
	for i := range 5 {
		c.in("Cluster", fmt.Sprint("user", i))
	}
	complete(t, c.open(t), everybody)
	if slices.ContainsFunc(c.rec.Requests(), func(r emulator.Recorded) bool { return !bytes.HasPrefix(r.Body, []byte("{")) }) {
		t.Error("a request is not one object")
	}
	if got := c.Calls("DeleteAuthSession"); got != 5 {
		t.Errorf("%d deletes, want 5", got)
	}
}
