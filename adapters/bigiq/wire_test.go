package bigiq_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
)

// created is the guide's answer to KILL_BY_USER: the target is userName, and username, one letter apart, is the account
// that asked. encoding/json would put the second into the first, were it not declared.
const created = `{
  "action": "KILL_BY_USER", "currentStep": "RESOLVE_DEVICES", "accessGroupNames": ["TestGroup1", "TestGroup2"], "generation": 4,
  "id": "1834e57c-94a2-42eb-860a-1d5cf67ba9bf",
  "identityReferences": [{"link": "https://localhost/mgmt/shared/authz/users/admin"}],
  "kind": "cm:access:tasks:kill-sessions:accesskillsessionstaskitemstate", "lastUpdateMicros": 1479242595185322,
  "name": "kill-access-sessions", "ownerMachineId": "adf1e56b-bf8c-472a-9b2d-e2dd7199ffbd",
  "selfLink": "https://localhost/mgmt/cm/access/tasks/kill-sessions/1834e57c-94a2-42eb-860a-1d5cf67ba9bf",
  "startDateTime": "2016-11-15T12:42:31.294-0800", "status": "STARTED", "userName": "user2",
  "userReference": {"link": "https://localhost/mgmt/shared/authz/users/admin"}, "username": "admin"}`

func TestRequesterIsNotTheTarget(t *testing.T) {
	const id = "1834e57c-94a2-42eb-860a-1d5cf67ba9bf"
	if got, err := bigiq.DecodeCreated(bigiq.Reply(200, created), "user2", "TestGroup1", "TestGroup2"); got != id || err != nil {
		t.Errorf("the guide's task of user2: %q, %v", got, err)
	}
	if got, err := bigiq.DecodeCreated(bigiq.Reply(200, created), "admin", "TestGroup1", "TestGroup2"); err == nil {
		t.Errorf("taken for a task of admin, who only asked: %q", got)
	}
	all := strings.NewReplacer(`"userName": "user2",`, "", "KILL_BY_USER", "KILL_ALL_SESSIONS").Replace(created)
	if got, err := bigiq.DecodeCreated(bigiq.Reply(200, all), "", "TestGroup2", "TestGroup1"); got != id || err != nil {
		t.Errorf("a task of nobody in particular, asked for by admin: %q, %v", got, err)
	}
}

// The dates' offset has no colon. A time.Time in the answer's type would make an error of a successful kill.
func TestDatesWithoutColonDoNotSpoilASuccess(t *testing.T) {
	body := strings.Replace(created, `"STARTED"`, `"FINISHED", "result": "COMPLETE", "endDateTime": "2016-11-15T12:42:35.764-0800"`, 1)
	if pending, err := bigiq.DecodeTask(bigiq.Reply(200, body), "1834e57c-94a2-42eb-860a-1d5cf67ba9bf"); pending || err != nil {
		t.Errorf("pending %t, error %v, want success", pending, err)
	}
}

func TestDecodeTask(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		pending    bool
		kind       adapters.Kind
		text       string
	}{
		{name: "Selected", body: `{"status":"FINISHED","result":"COMPLETE"}`},
		{name: "InACollection", body: `{"items":[{"id":"t1","status":"FINISHED","result":"COMPLETE"}]}`},
		{name: "AmongOthers", body: `{"items":[{"id":"t0","status":"FAILED"},{"id":"t1","status":"FINISHED","result":"COMPLETE"}]}`},
		{name: "Nobody", body: `{"items":[{"id":"t0","status":"FINISHED","result":"COMPLETE"}]}`, kind: adapters.BadReply},
		{name: "EmptyCollection", body: `{"items":[],"status":"FINISHED","result":"COMPLETE"}`, kind: adapters.BadReply},
		{name: "Another", body: `{"id":"t0","status":"FINISHED","result":"COMPLETE"}`, kind: adapters.BadReply},
		{name: "NoStatus", body: `{"result":"COMPLETE"}`, kind: adapters.BadReply},
		{name: "Null", body: `null`, kind: adapters.BadReply},
		{name: "NotJSON", body: `FINISHED`, kind: adapters.BadReply},
		{name: "Started", body: `{"status":"STARTED"}`, pending: true},
		{name: "StartedWithAResult", body: `{"status":"STARTED","result":"COMPLETE"}`, pending: true},
		{name: "DetailsOfAnotherType", body: `{"status":"FINISHED","result":"COMPLETE","resultDetails":"none","errorMessage":{"a":1}}`},
		{name: "DetailsWithoutIDs", body: `{"status":"FINISHED","result":"COMPLETE","resultDetails":[{"host":"a.example","failedIds":[]}]}`},
		// It says that it ended all, and which it did not end.
		{name: "CompleteWithFailures", body: `{"status":"FINISHED","result":"COMPLETE","resultDetails":[{"host":"a.example","failedIds":["1"]}]}`,
			kind: adapters.Failed, text: "a.example; sessions not ended: 1"},
		{name: "FailedWithDetailsOfAnotherType", body: `{"status":"FINISHED","result":"FAILED","resultDetails":{"a":1}}`, kind: adapters.Failed},
		{name: "Hosts", body: `{"status":"FINISHED","result":"FAILED","resultDetails":[{"host":"a.example","failedIds":["1","2"]},{"host":"b.example"}]}`,
			kind: adapters.Failed, text: "failed on 2 devices: a.example, b.example; sessions not ended: 2"},
		{name: "OddHosts", body: `{"status":"FINISHED","result":"FAILED","resultDetails":[{"host":"<script>alert(1)</script>"},{"host":"ok.example"},{"host":"a b"}]}`,
			kind: adapters.Failed, text: "failed on 3 devices: ok.example)"},
		{name: "ManyHosts", body: `{"status":"FAILED","resultDetails":[{"host":"h1"},{"host":"h2"},{"host":"h3"},{"host":"h4"},{"host":"h5"},{"host":"h6"}]}`,
			kind: adapters.Failed, text: "failed on 6 devices: h1, h2, h3, h4, h5, …)"},
		{name: "DeviceNotFound", body: `{"status":"FAILED","result":"PENDING","errorMessage":"item not found at /cm/system/machineid-resolver/x"}`, kind: adapters.Rejected},
		// Another failure that only mentions it may have come after something ended.
		{name: "NotThatNotFound", body: `{"status":"FAILED","errorMessage":"stopped: item not found at /cm/system/machineid-resolver/x"}`, kind: adapters.Failed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pending, err := bigiq.DecodeTask(bigiq.Reply(200, tt.body), "t1")
			if pending != tt.pending || adapters.KindOf(err) != tt.kind {
				t.Fatalf("%s: pending %t, error %v of kind %v, want %t and %v", tt.body, pending, err, adapters.KindOf(err), tt.pending, tt.kind)
			}
			if tt.text != "" && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q, want %q in it", err, tt.text)
			}
		})
	}
}

// totalItems says 1 in the guide's own sample of two.
func TestItemsAreCountedNotTotalItems(t *testing.T) {
	body := `{"totalItems":1,"items":[{"displayName":"TestGroup","groupName":"TestGroup"},{"displayName":"TestGroup2","groupName":"TestGroup2"}]}`
	got, err := bigiq.DecodeAccessGroups(bigiq.Reply(200, body))
	if err != nil || !slices.Equal(got, []string{"TestGroup", "TestGroup2"}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDecodeDevices(t *testing.T) {
	const link = `"selfLink":"https://localhost/mgmt/cm/system/machineid-resolver/m1"`
	for body, want := range map[string]int{
		`{"items":[]}`: 0, `{"items":[{"machineId":"m1",` + link + `}],"totalItems":7}`: 1, `{"items":[{"uuid":"m1",` + link + `}]}`: 1,
		// What cannot be understood must not be left out silently.
		`{}`: -1, `null`: -1, `[]`: -1, `{"items":null}`: -1, `{"items":[{` + link + `}]}`: -1, `{"items":[{"machineId":"m1"}]}`: -1,
		`{"items":[{"machineId":"m2",` + link + `}]}`: -1, `{"items":[{"machineId":"*",` + link + `}]}`: -1,
	} {
		got, err := bigiq.DecodeDevices(bigiq.Reply(200, body))
		if want < 0 && adapters.KindOf(err) != adapters.BadReply || want >= 0 && (err != nil || got != want) {
			t.Errorf("%s: %d, %v, want %d", body, got, err, want)
		}
	}
}

func TestQueryAddresses(t *testing.T) {
	got, err := bigiq.QueryAddresses([]string{"10.255.4.124", "2001:db8::1"})
	if want := "$filter=('address'+eq+'10.255.4.124'+or+'address'+eq+'2001:db8::1')"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	for _, bad := range []string{"*", "10.0.0.*", "", "x' or 'y", "10.0.0.1'", "10.0.0.1%27", "10.0.0.1 ", "fe80::1%eth0", "host.example", "1' or 'address' eq '*"} {
		if got, err := bigiq.QueryAddresses([]string{"10.0.0.1", bad}); err == nil {
			t.Errorf("%q gives %q", bad, got)
		}
	}
}

// Even by hand no body can be made that lacks a user it should have, or a scope.
func TestBodiesThatMustNotBe(t *testing.T) {
	for _, user := range []string{"", " ", "*", "a*", "a\xff"} {
		if byUser, _ := bigiq.Bodies(user, "link"); byUser == nil {
			t.Errorf("KILL_BY_USER of %q is allowed", user)
		}
	}
	byUser, all := bigiq.Bodies("alice")
	if byUser == nil || all == nil {
		t.Errorf("no scope is allowed: %v, %v", byUser, all)
	}
	if byUser, all := bigiq.Bodies("alice", "link"); byUser != nil || all != nil {
		t.Errorf("refused: %v, %v", byUser, all)
	}
}

// Whatever comes, a decoder answers or refuses with a kind; a success is only ever FINISHED and COMPLETE.
func FuzzDecodeTask(f *testing.F) {
	for _, s := range []string{created, `{"status":"FINISHED","result":"COMPLETE"}`, `{"items":[{"id":"t1","status":"FAILED"}]}`,
		`{"status":"CANCELED"}`, `{"STATUS":"FINISHED","Result":"COMPLETE"}`, `{"status":"FINISHED","result":"FAILED","resultDetails":[{"host":"x"}]}`, `null`, `[]`} {
		f.Add(s)
	}
	plain := regexp.MustCompile(`^[A-Za-z0-9 .,;:_()…-]+$`)
	f.Fuzz(func(t *testing.T, body string) {
		pending, err := bigiq.DecodeTask(bigiq.Reply(200, body), "t1")
		switch kind := adapters.KindOf(err); {
		case err != nil && kind == 0:
			t.Fatalf("error %v has no kind", err)
		case err != nil && (len(err.Error()) > 2000 || !plain.MatchString(err.Error())):
			t.Fatalf("error %q shows what BIG-IQ sent", err)
		case err == nil && !pending && (!strings.Contains(body, "FINISHED") || !strings.Contains(body, "COMPLETE")) && !strings.Contains(body, `\u`):
			t.Fatalf("%q passes for a success", body)
		}
	})
}

func FuzzDecodeCreated(f *testing.F) {
	f.Add(created, "user2")
	f.Add(`{"items":[{"id":"x"}]}`, "alice")
	f.Add(`{"selfLink":"https://localhost/mgmt/cm/access/tasks/kill-sessions/../x"}`, "alice")
	f.Fuzz(func(t *testing.T, body, user string) {
		id, err := bigiq.DecodeCreated(bigiq.Reply(200, body), user)
		if (err == nil) != (id != "") || err == nil && !bigiq.ValidID(id) || err != nil && adapters.KindOf(err) == 0 {
			t.Fatalf("%q: id %q, error %v", body, id, err)
		}
		if strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Fatalf("id %q leads elsewhere", id)
		}
	})
}

func FuzzDecodeLists(f *testing.F) {
	f.Add(`{"items":[{"machineId":"m1","selfLink":"/m1","properties":{"cm:gui:module":["Access"]}}]}`)
	f.Add(`{"items":[{"groupName":"g"}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		if _, err := bigiq.DecodeDevices(bigiq.Reply(200, body)); err != nil && adapters.KindOf(err) != adapters.BadReply {
			t.Fatal(err)
		}
		if _, err := bigiq.DecodeAccessGroups(bigiq.Reply(200, body)); err != nil && adapters.KindOf(err) != adapters.BadReply {
			t.Fatal(err)
		}
	})
}

// A filter never holds anything but the addresses, whatever is asked for.
func FuzzQueryAddresses(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "*", "' or 'a' eq '*", "::1", "::ffff:10.0.0.1", "10.0.0.1%27"} {
		f.Add(s)
	}
	filter := regexp.MustCompile(`^\$filter=\('address'\+eq\+'[0-9A-Fa-f:.]+'\)$`)
	f.Fuzz(func(t *testing.T, address string) {
		if q, err := bigiq.QueryAddresses([]string{address}); err == nil && (!filter.MatchString(q) || !strings.Contains(q, address)) {
			t.Fatalf("%q gives %q", address, q)
		}
	})
}

// TestGuides decodes the vendor's samples, as printed where they are valid JSON.
func TestGuides(t *testing.T) {
	devices, err := os.ReadFile("testdata/guide-devices.json")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := bigiq.DecodeDevices(bigiq.Reply(200, string(devices))); n != 1 || err != nil {
		t.Errorf("devices: %d, %v", n, err)
	}
	failed, err := os.ReadFile("testdata/guide-failed.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bigiq.DecodeTask(bigiq.Reply(200, string(failed)), "b3c02bb2-594e-44e1-bce7-eceb607111fb"); adapters.KindOf(err) != adapters.Failed {
		t.Errorf("failed task: %v", err)
	}
}
