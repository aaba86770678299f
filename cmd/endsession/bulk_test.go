package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// usersIn writes a users file into a directory of its own.
func usersIn(t testing.TB, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func lines(ids []string) string { return strings.Join(ids, "\n") + "\n" }

// mustExit fails the test if the command ended with another status.
func (r ran) mustExit(t testing.TB, status int) ran {
	t.Helper()
	if r.status != status {
		t.Fatalf("exit status %d, want %d:\n%s--- standard error\n%s", r.status, status, r.out, r.err)
	}
	return r
}

// summaryOf reads the last line of JSON.
func summaryOf(t testing.TB, out string) (people []personLine, sum bulkSummary) {
	t.Helper()
	all := slices.Collect(strings.Lines(out))
	if len(all) == 0 {
		t.Fatal("nothing was printed")
	}
	for _, line := range all[:len(all)-1] {
		var p personLine
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		people = append(people, p)
	}
	var last struct{ Summary *bulkSummary }
	if err := json.Unmarshal([]byte(all[len(all)-1]), &last); err != nil || last.Summary == nil {
		t.Fatalf("%v: %s", err, all[len(all)-1])
	}
	return people, *last.Summary
}

// TestBulkEndsThoseInTheFileAndNobodyElse goes through the real gateway to all kinds of targets.
func TestBulkEndsThoseInTheFileAndNobodyElse(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"apm":         "alice-blue alice-red alice-branch alice-guest zoë-red",
		"apm-all":     "alice-blue alice-red alice-branch alice-guest alice-lone a17-guest zoë-red",
		"kibana-prod": "alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos zoë-saml1 zoë-basic",
		"storage":     "alice-local alice-ldap alice-idp zoë-ldap",
	}
	for _, test := range []struct{ name, file, text string }{
		{"Text", "leavers.txt", "# leavers\nalice\nzoë\nnobody\n"},
		{"CSV", "leavers.csv", "id,email\nalice,alice@corp.example\nzoë,\nnobody,nobody@corp.example\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g, c := startForCLI(t)
			path := usersIn(t, test.file, test.text)
			r := c.run(t, "invalidate", "--users-file", path, "--yes", "--reason", "off-boarding", "-o", "json")
			for target, list := range want {
				if gone := g.lab.gone(target); !slices.Equal(gone, g.lab.labels(t, target, list)) {
					t.Errorf("%s: signed out %v, want %s\n%s%s", target, gone, list, r.out, r.err)
				}
			}
			people, sum := summaryOf(t, r.out)
			if len(people) != 3 || sum.Users != 3 {
				t.Errorf("%d lines of %d people", len(people), sum.Users)
			}
			for _, p := range people {
				inv := new(endsessionv1.Invalidation)
				if err := protojson.Unmarshal(p.Invalidation, inv); err != nil || inv.GetSelector().GetUser().GetId() != p.User {
					t.Errorf("%v: %s", err, p.Invalidation)
				}
				if inv.GetPriority() != endsessionv1.Priority_PRIORITY_BULK || inv.GetLabels()["job"] != sum.Job || inv.GetReason() != "off-boarding" {
					t.Errorf("priority %v, labels %v, reason %q", inv.GetPriority(), inv.GetLabels(), inv.GetReason())
				}
			}
		})
	}
}

// TestBulkIntersects: a provider and targets narrow what a users file asks for.
func TestBulkIntersects(t *testing.T) {
	t.Parallel()
	g, c := startForCLI(t)
	path := usersIn(t, "leavers.txt", "alice\nzoë\n")
	c.run(t, "invalidate", "--users-file", path, "--yes", "--provider", "saml/okta", "--target", "kibana-prod", "--target", "storage",
		"--label", "ticket=INC-7", "--on-behalf-of", "helen", "--retry-for", "1h", "--allow-unsupported").mustExit(t, 0)
	for target, list := range map[string]string{"apm": "", "apm-all": "", "kibana-prod": "alice-saml1 zoë-saml1", "storage": "alice-idp"} {
		if gone := g.lab.gone(target); !slices.Equal(gone, g.lab.labels(t, target, list)) {
			t.Errorf("%s: signed out %v, want %s", target, gone, list)
		}
	}
	if r := c.run(t, "list", "--label", "ticket=INC-7"); strings.Count(r.out, "provider saml/okta") != 2 {
		t.Error(r.out)
	}
}

// TestBulkTranscripts compares what people see.
func TestBulkTranscripts(t *testing.T) {
	t.Parallel()
	_, c := startForCLI(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"leavers.csv": "id,email\nalice,alice@corp.example\nbob,\nmallory,\nnobody,nobody@corp.example\nalice,alice@corp.example\n",
		"wrong.txt":   "alice\n bob\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		golden, stdin, args string
		status              int
	}{
		{"users-file-not-confirmed", "no\n", "invalidate --users-file DIR/leavers.csv --target apm-all --target kibana-prod", exitNotAccepted},
		{"users-file", "yes\n", "invalidate --users-file DIR/leavers.csv --target apm-all --target kibana-prod", exitPartial},
		{"users-file-again", "", "invalidate --users-file DIR/leavers.csv --target apm-all --target kibana-prod --yes", exitPartial},
		{"users-file-other-content", "", "invalidate --users-file DIR/leavers.csv --target apm-all --target kibana-prod --yes --reason other", exitNotAccepted},
		{"users-file-problems", "", "invalidate --users-file DIR/wrong.txt --yes", exitUsage},
		{"users-file-unknown-target", "", "invalidate --users-file DIR/leavers.csv --target amp --job other --yes", exitUsage},
	} {
		c.in = strings.NewReader(step.stdin)
		args := strings.Fields(strings.ReplaceAll(step.args, "DIR", dir))
		r := c.run(t, args...)
		if r.status != step.status {
			t.Errorf("%s: exit status %d, want %d\n%s%s", step.args, r.status, step.status, r.out, r.err)
		}
		text := strings.ReplaceAll(r.transcript(args), dir, "DIR")
		// How often it is told how far it has got is a matter of time.
		text = regexp.MustCompile(`(?m)\d+ of \d+ done: .*\n`).ReplaceAllString(text, "")
		golden(t, filepath.Join("cli", step.golden+".txt"), text)
	}
}

// TestBulkRefusesWhatDoesNotGoTogether sends nothing.
func TestBulkRefusesWhatDoesNotGoTogether(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	c := fake.serve(t)
	path := usersIn(t, "leavers.txt", "alice\n")
	other := usersIn(t, "mine.csv", "mine\n")
	for _, args := range [][]string{
		{"--user", "bob"}, {"--user="}, {"--email", "a@b"}, {"--attribute", "a=b"}, {"--target-username", "apm=x"}, {"--session", "apm/1"}, {"--all"}, {"--all=false"},
		{"--request-id", "5f0c9d2e-8a4b-4c1d-9e3f-0123456789ab"}, {"--label", "job=x"}, {"--job", ""}, {"--job", "a b"}, {"--job", "../x"}, {"--job", "-x"},
		{"--job", strings.Repeat("x", 101)}, {"--users-format", "yaml"}, {"--users-format", ""}, {"--parallel", "0"}, {"--parallel", "257"}, {"--wait", "-1s"},
		{"--failures", ""}, {"--failures", path}, {"--failures", other}, {"--failures", filepath.Join(path, "x")}, {"--provider", "nonsense"}, {"--group", ""}, {"--target", ""},
		{"--reason", ""}, {"--label", "x"}, {"--retry-for", "0s"}, {"-o", "yaml"},
	} {
		args := append([]string{"invalidate", "--yes", "--users-file", path}, args...)
		if r := c.run(t, args...); r.status != exitUsage || r.out != "" || r.err == "" {
			t.Errorf("%q: exit status %d, want %d: %s%s", args, r.status, exitUsage, r.out, r.err)
		}
	}
	for _, args := range [][]string{
		{"--users-file", ""}, {"--users-file", filepath.Join(t.TempDir(), "none")}, {"--users-file", t.TempDir()}, {"--users-file", other, "--users-format", "csv"},
		{"--user", "alice", "--job", "x"}, {"--user", "alice", "--failures", "x"}, {"--user", "alice", "--parallel", "3"}, {"--user", "alice", "--users-format", "text"},
	} {
		args := append([]string{"invalidate", "--yes"}, args...)
		if r := c.run(t, args...); r.status != exitUsage || r.out != "" || r.err == "" {
			t.Errorf("%q: exit status %d, want %d: %s%s", args, r.status, exitUsage, r.out, r.err)
		}
	}
	// Nobody can be asked at the standard input that the users come from.
	c.in = strings.NewReader("alice\n")
	if r := c.run(t, "invalidate", "--users-file", "-"); r.status != exitUsage || !strings.Contains(r.err, "--yes") {
		t.Errorf("exit status %d: %s", r.status, r.err)
	}
	if fake.calls > 0 {
		t.Errorf("%d calls were made", fake.calls)
	}
}

// TestBulkFromStandardInput also takes CSV there, if told.
func TestBulkFromStandardInput(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	c := fake.serve(t)
	c.in = strings.NewReader("alice\nbob\n")
	c.run(t, "invalidate", "--users-file", "-", "--yes").mustExit(t, 0)
	c.in = strings.NewReader("id,x\ncarol,1\n")
	c.run(t, "invalidate", "--users-file", "-", "--users-format", "csv", "--yes").mustExit(t, 0)
	if got := fake.users(); !slices.Equal(got, []string{"alice", "bob", "carol"}) {
		t.Errorf("ended the sessions of %v", got)
	}
}

// TestBulkKnowsPeopleByTheirIDs: a job that is run again with its file in another order, or with others in it, begins
// nothing anew for those who were accepted, and leaves nobody out.
func TestBulkKnowsPeopleByTheirIDs(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	c := fake.serve(t)
	for _, step := range []struct {
		text           string
		replayed, made int
	}{{"alice\nbob\ncarol\n", 0, 3}, {"# sorted\ncarol\ndave\nalice\n", 2, 4}, {"dave\nerin\n", 1, 5}} {
		path := usersIn(t, "people.txt", step.text)
		_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "--job", "x", "-o", "json").mustExit(t, 0).out)
		if sum.Replayed != step.replayed || sum.Succeeded != sum.Users || len(fake.all) != step.made {
			t.Errorf("%q: %+v, %d invalidations", step.text, sum, len(fake.all))
		}
	}
	for _, id := range []string{"alice", "bob", "carol", "dave", "erin"} {
		if req := fake.sent[requestID("x", id)]; req.GetSelector().GetUser().GetId() != id {
			t.Errorf("under the request id of %s was sent %v", id, req)
		}
	}
}

// TestBulkSendsWhatWasAsked: each call has all criteria of the command line and of the file, the job's label and priority.
func TestBulkSendsWhatWasAsked(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	c := fake.serve(t)
	path := usersIn(t, "people.csv", "id,email,uid,target_username:apm\nalice,a@corp.example,17,al\nbob,,,\n")
	c.run(t, "invalidate", "--users-file", path, "--yes", "--job", "x", "--provider", "saml/okta", "--group", "vpn", "--target", "apm", "--target", "storage",
		"--reason", "off-boarding", "--on-behalf-of", "helen", "--label", "ticket=INC-7", "--retry-for", "1h", "--allow-unsupported").mustExit(t, 0)
	want := map[string]string{
		"alice": `"user":{"id":"alice","email":"a@corp.example","attributes":{"uid":"17"},"targetUsernames":{"apm":{"usernames":["al"]}}}`,
		"bob":   `"user":{"id":"bob"}`,
	}
	if len(fake.all) != len(want) {
		t.Errorf("%d calls", len(fake.all))
	}
	for id, user := range want {
		req := new(endsessionv1.InvalidateSessionsRequest)
		text := `{"selector":{` + user + `,"provider":{"type":"saml","name":"okta"},"group":"vpn"},"targets":["apm","storage"],"reason":"off-boarding",` +
			`"onBehalfOf":"helen","labels":{"ticket":"INC-7","job":"x"},"retryFor":"3600s","allowUnsupported":true,"priority":"PRIORITY_BULK",` +
			`"waitTimeout":"0s","requestId":"` + requestID("x", id) + `"}`
		if err := protojson.Unmarshal([]byte(text), req); err != nil {
			t.Fatal(err)
		}
		if got := fake.sent[req.GetRequestId()]; !proto.Equal(got, req) {
			t.Errorf("for %s was sent %v, want %v", id, got, req)
		}
	}
}

// TestBulkOfTenThousand makes one call each, and few to learn what came of them.
func TestBulkOfTenThousand(t *testing.T) {
	t.Parallel()
	const n = 10_000
	fake := newFakeGateway()
	c := fake.serve(t)
	path := usersIn(t, "everybody.txt", lines(numbered(n)))
	_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "-o", "json", "--parallel", "64").mustExit(t, 0).out)
	if sum.Succeeded != n || sum.InvalidatedCount != n || sum.CountIsMinimum || sum.Failures != "" {
		t.Errorf("%+v", sum)
	}
	if got := fake.users(); !slices.Equal(got, numbered(n)) {
		t.Errorf("ended the sessions of %d people", len(got))
	}
	if fake.calls != n {
		t.Errorf("%d calls for %d people", fake.calls, n)
	}
	// Reading them one by one would be n calls more.
	if fake.reads > n/10 {
		t.Errorf("%d calls to learn what came of %d", fake.reads, n)
	}
	again, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "-o", "json", "--parallel", "64").mustExit(t, 0).out)
	if len(again) != n || sum.Replayed != n || len(fake.all) != n {
		t.Errorf("run again: %d replayed, %d invalidations", sum.Replayed, len(fake.all))
	}
}

// TestBulkGoesOnWithTheOthers: one person's refusal or failure is that person's.
func TestBulkGoesOnWithTheOthers(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	fake.before = func(_ context.Context, user string, _ int) error {
		switch user {
		case "protected":
			return refusedWith(codes.PermissionDenied, "PROTECTED", "a protected user")
		case "named":
			return refusedWith(codes.InvalidArgument, "UNKNOWN_TARGET", "there is no target", &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "selector.user.target_usernames"}}})
		case "defect":
			return refusedWith(codes.Internal, "INTERNAL", "internal error")
		case "toolarge":
			return refusedWith(codes.FailedPrecondition, "X", "no")
		}
		return nil
	}
	fake.becomes = func(user string) endsessionv1.InvalidationState {
		if user == "failing" {
			return endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED
		}
		return endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED
	}
	c := fake.serve(t)
	path := usersIn(t, "people.csv", "id,uid\nalice,1\nprotected,2\nnamed,3\ndefect,4\ntoolarge,5\nfailing,6\nbob,7\n")
	people, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "-o", "json").mustExit(t, exitStillRunning).out)
	outcomes := map[string]string{}
	for _, p := range people {
		outcomes[p.User] = p.Outcome + " " + p.Reason
	}
	want := map[string]string{"alice": "SUCCEEDED ", "bob": "SUCCEEDED ", "failing": "FAILED ", "protected": "NOT_ACCEPTED PROTECTED", "named": "NOT_ACCEPTED UNKNOWN_TARGET",
		"defect": "UNKNOWN INTERNAL", "toolarge": "NOT_ACCEPTED X"}
	if fmt.Sprint(outcomes) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", outcomes, want)
	}
	if sum.Succeeded != 2 || sum.Failed != 1 || sum.NotAccepted != 3 || sum.Unknown != 1 || !sum.CountIsMinimum {
		t.Errorf("%+v", sum)
	}
	// What failed is in a file that is a users file, with all that the users file said.
	text, err := os.ReadFile(sum.Failures)
	if err != nil || filepath.Dir(sum.Failures) != filepath.Dir(path) {
		t.Fatalf("%s: %v", sum.Failures, err)
	}
	file, err := parseUsers("failures", usersCSV, text)
	if err != nil || fmt.Sprint(file.ids()) != "[protected named defect toolarge failing]" || file.people[4].user.GetAttributes()["uid"] != "6" {
		t.Errorf("%v: %v\n%s", file.ids(), err, text)
	}
	// Tried again when nothing is in the way, all is well, and no failures are left to be told.
	fake.before, fake.becomes = nil, nil
	_, sum = summaryOf(t, c.run(t, "invalidate", "--users-file", sum.Failures, "--yes", "-o", "json").mustExit(t, 0).out)
	if sum.Users != 5 || sum.Succeeded != 5 {
		t.Errorf("%+v", sum)
	}
}

// TestBulkCounts: each state is counted as what it is, once, and a count that may be short makes the sum one.
func TestBulkCounts(t *testing.T) {
	file, err := parseUsers("people", usersText, []byte(lines(numbered(7))))
	if err != nil {
		t.Fatal(err)
	}
	j := newBulkJob("job", &endsessionv1.InvalidateSessionsRequest{}, file.people)
	settled := 0
	j.settled = func(*entry) { settled++ }
	for i, inv := range []*endsessionv1.Invalidation{
		{State: endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING, InvalidatedCount: proto.Int32(1)},
		{State: 99, InvalidatedCount: proto.Int32(1)}, // which this program does not know
		{State: endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED, InvalidatedCount: proto.Int32(2), CountIsMinimum: true},
		{State: endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED, InvalidatedCount: proto.Int32(4)},
		{State: endsessionv1.InvalidationState_INVALIDATION_STATE_CANCELLED},
		{State: endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED, InvalidatedCount: proto.Int32(0)},
		{State: endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED, InvalidatedCount: proto.Int32(8)},
	} {
		inv.Name = fmt.Sprint("invalidations/", i)
		j.entries[i].standing, j.open[inv.Name] = accepted, j.entries[i]
		j.tally.sent++
		j.tally.running++
		for range 2 {
			j.note(inv)
		}
	}
	want := bulkTally{total: 7, sent: 7, succeeded: 2, partial: 1, failed: 1, cancelled: 1, running: 2, sessions: 14, minimum: true, nothing: 1, nothingNamed: []string{"user-00005"}}
	if got := j.count(); fmt.Sprint(got) != fmt.Sprint(want) || settled != 5 {
		t.Errorf("got %+v, want %+v; %d settled", got, want, settled)
	}
}

// TestBulkKeepsFailuresItHasNotLookedAtAgain: a run that is stopped before it knows anything takes no failures away.
func TestBulkKeepsFailuresItHasNotLookedAtAgain(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	fake.becomes = func(string) endsessionv1.InvalidationState {
		return endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED
	}
	c := fake.serve(t)
	path := usersIn(t, "people.txt", "alice\n")
	_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "-o", "json").mustExit(t, exitFailed).out)
	before, err := os.ReadFile(sum.Failures)
	if err != nil {
		t.Fatal(err)
	}
	fake.before = func(context.Context, string, int) error {
		return refusedWith(codes.Unauthenticated, "UNAUTHENTICATED", "the key is not valid any more")
	}
	c.run(t, "invalidate", "--users-file", path, "--yes").mustExit(t, exitNotAccepted)
	if after, err := os.ReadFile(sum.Failures); err != nil || !slices.Equal(before, after) {
		t.Errorf("%v: %s", err, after)
	}
}

// TestBulkExitStatus follows from what became of all.
func TestBulkExitStatus(t *testing.T) {
	for _, test := range []struct {
		tally bulkTally
		ended error
		want  int
	}{
		{bulkTally{total: 2, sent: 2, succeeded: 2}, nil, 0},
		{bulkTally{total: 2, sent: 2, succeeded: 1, failed: 1}, nil, exitPartial},
		{bulkTally{total: 2, sent: 2, partial: 2}, nil, exitPartial},
		{bulkTally{total: 2, sent: 2, succeeded: 1, refused: 1}, nil, exitPartial},
		{bulkTally{total: 2, sent: 1, succeeded: 1}, errInterrupted, exitPartial},
		{bulkTally{total: 2, sent: 2, failed: 2}, nil, exitFailed},
		{bulkTally{total: 2, sent: 2, cancelled: 2}, nil, exitFailed},
		{bulkTally{total: 2, sent: 2, failed: 1, refused: 1}, nil, exitFailed},
		{bulkTally{total: 2, sent: 2, succeeded: 1, running: 1}, nil, exitStillRunning},
		{bulkTally{total: 2, sent: 1, running: 1}, errInterrupted, exitStillRunning},
		{bulkTally{total: 2, sent: 1, lost: 1}, errInterrupted, exitStillRunning},
		{bulkTally{total: 2, sent: 2, refused: 2}, nil, exitNotAccepted},
		{bulkTally{total: 2}, errInterrupted, exitNotAccepted},
		{bulkTally{total: 2}, refusedWith(codes.Unauthenticated, "UNAUTHENTICATED", "who?"), exitNotAccepted},
		{bulkTally{total: 2}, refusedWith(codes.InvalidArgument, "UNKNOWN_TARGET", "no", &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "targets[0]"}}}), exitUsage},
	} {
		got := 0
		if e, ok := exitOf(test.tally, test.ended).(*exitError); ok { //nolint:errorlint // it is what is returned, not something within
			got = e.status
		}
		if got != test.want {
			t.Errorf("%+v, %v: exit status %d, want %d", test.tally, test.ended, got, test.want)
		}
	}
}

// TestBulkEndsWhenNothingWillGetBetter: who is not known to the gateway does not ask it thousands of times.
func TestBulkEndsWhenNothingWillGetBetter(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		err    error
		status int
	}{
		{"Unauthenticated", refusedWith(codes.Unauthenticated, "UNAUTHENTICATED", "the key is not valid"), exitStillRunning},
		{"WrongForAll", refusedWith(codes.InvalidArgument, "UNKNOWN_TARGET", "there is no target", &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "targets"}}}), exitStillRunning},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := newFakeGateway()
			fake.before = func(_ context.Context, _ string, nth int) error {
				if nth > 20 {
					return test.err
				}
				return nil
			}
			fake.becomes = func(string) endsessionv1.InvalidationState {
				return endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
			}
			c := fake.serve(t)
			path := usersIn(t, "people.txt", lines(numbered(1000)))
			r := c.run(t, "invalidate", "--users-file", path, "--yes", "--parallel", "4", "-o", "json").mustExit(t, test.status)
			_, sum := summaryOf(t, r.out)
			if sum.Running != 20 || sum.NotSent != 980 || fake.calls > 30 {
				t.Errorf("%+v after %d calls", sum, fake.calls)
			}
			for _, want := range []string{"20 accepted, 980 not sent", "to go on: endsession invalidate --users-file=", "--job=" + sum.Job, "endsession cancel --label=job=" + sum.Job} {
				if !strings.Contains(r.err, want) {
					t.Errorf("no %q in %s", want, r.err)
				}
			}
		})
	}
}

// TestBulkByACallerWhoMayNotRead asks by repeating the calls, which begins nothing.
func TestBulkByACallerWhoMayNotRead(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	fake.blind = true
	c := fake.serve(t)
	for _, n := range []int{3, 100} {
		path := usersIn(t, "people.txt", lines(numbered(n)))
		_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "-o", "json").mustExit(t, 0).out)
		if sum.Succeeded != n || sum.Replayed != 0 {
			t.Errorf("%+v", sum)
		}
	}
	if len(fake.all) != 103 || fake.denied > 50 {
		t.Errorf("%d invalidations, %d denials", len(fake.all), fake.denied)
	}
}

// TestBulkWaitZero returns once all are accepted, and says what is not known yet.
func TestBulkWaitZero(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	fake.becomes = func(string) endsessionv1.InvalidationState {
		return endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
	}
	c := fake.serve(t)
	path := usersIn(t, "people.txt", lines(numbered(100)))
	for _, wait := range []string{"0", "10ms"} {
		r := c.run(t, "invalidate", "--users-file", path, "--yes", "--wait", wait).mustExit(t, exitStillRunning)
		if !strings.Contains(r.out, "100  still running") || !strings.Contains(r.out, "sessions ended: at least 0") || !strings.Contains(r.err, "endsession cancel --label=job=") {
			t.Errorf("%s%s", r.out, r.err)
		}
	}
	if len(fake.all) != 100 {
		t.Errorf("%d invalidations", len(fake.all))
	}
}

// TestBulkStopsWhenItsJobIsCancelled: somebody cancels the label while calls are still being made.
func TestBulkStopsWhenItsJobIsCancelled(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	fake.becomes = func(string) endsessionv1.InvalidationState {
		return endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
	}
	var once sync.Once
	looked := make(chan struct{})
	cancelledAt := 1 << 30
	fake.onRead = func(nth int) {
		if nth == cancelledAt+2 {
			close(looked)
		}
	}
	fake.before = func(ctx context.Context, _ string, nth int) error {
		if nth < 50 {
			return nil
		}
		once.Do(func() {
			fake.finish(endsessionv1.InvalidationState_INVALIDATION_STATE_CANCELLED)
			fake.mu.Lock()
			cancelledAt = fake.reads
			fake.mu.Unlock()
		})
		select {
		case <-looked:
		case <-ctx.Done():
		}
		return nil
	}
	path := usersIn(t, "people.txt", lines(numbered(1000)))
	c := fake.serve(t)
	_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "--parallel", "4", "--wait", "1ms", "-o", "json").mustExit(t, exitStillRunning).out)
	if sum.Cancelled < manyCancelled || sum.NotSent == 0 || !strings.Contains(sum.Stopped, "cancels") {
		t.Errorf("%+v", sum)
	}
}

// TestCancelStopsAJob cancels what a real gateway has accepted of a job: nothing more is sent to the targets.
func TestCancelStopsAJob(t *testing.T) {
	t.Parallel()
	const n = 200
	g, c := startForCLI(t)
	g.lab.systems["apm"].(*bigiqtest.Server).Change(func(q *bigiqtest.Quirks) { q.Stuck = true })
	path := usersIn(t, "people.txt", "alice\n"+lines(numbered(n-1)))
	r := c.run(t, "invalidate", "--users-file", path, "--yes", "--target", "apm", "--wait", "0", "--job", "too-many").mustExit(t, exitStillRunning)
	cancel := regexp.MustCompile(`to stop them: endsession (.*)`).FindStringSubmatch(r.err)
	if cancel == nil {
		t.Fatal(r.err)
	}
	if r := c.run(t, append(strings.Fields(cancel[1]), "--yes")...).mustExit(t, 0); !strings.HasPrefix(r.out, fmt.Sprintf("%d cancelled", n)) {
		t.Errorf("%s", r.out)
	}
	eventually(t, "nothing is running", func() bool { return c.run(t, "list", "--state", "running", "-o", "json").out == "{}\n" })
	sent := g.mutations("apm")
	if sent >= n {
		t.Errorf("%d kills were sent, of %d", sent, n)
	}
	// Run again, the job says what became of it, and begins nothing.
	_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "--target", "apm", "--job", "too-many", "-o", "json").mustExit(t, exitFailed).out)
	if sum.Cancelled != n || sum.Replayed != n || g.mutations("apm") != sent {
		t.Errorf("%+v, %d kills, then %d", sum, sent, g.mutations("apm"))
	}
}

// TestBulkWithinALimit: a gateway that limits its callers is not asked more than it wants, and all is done.
func TestBulkWithinALimit(t *testing.T) {
	t.Parallel()
	const n = 60
	g := startInProcess(t, newLab(), memoryDir(t, func(text string) string {
		return strings.Replace(text, "retention: 90d\n", "retention: 90d\nlimits: { calls_per_caller: 50/s, burst: 5 }\n", 1)
	}), nil)
	c := cli{env: map[string]string{"ENDSESSION_SERVER": g.srv.GRPCAddr().String()}}
	text := "id,email\nalice,\n"
	for _, id := range numbered(n - 1) {
		text += id + "," + id + "@corp.example\n"
	}
	path := usersIn(t, "people.csv", text)
	_, sum := summaryOf(t, c.run(t, "invalidate", "--users-file", path, "--yes", "--target", "storage", "-o", "json").mustExit(t, 0).out)
	if sum.Succeeded != n || sum.WithoutSession != n-1 {
		t.Errorf("%+v", sum)
	}
	if gone := g.lab.gone("storage"); !slices.Equal(gone, g.lab.labels(t, "storage", "alice-local alice-ldap alice-idp")) {
		t.Errorf("signed out %v", gone)
	}
}

// TestRequestIDs pins what must never change: jobs are resumed by other versions of the program.
func TestRequestIDs(t *testing.T) {
	if got, want := requestID("leavers-1", "alice"), "89f7bcc1-5d98-5bfe-a0f0-154e84b97517"; got != want {
		t.Errorf("request id %s, want %s", got, want)
	}
	seen := map[string]bool{}
	for _, job := range []string{"a", "ab", "b"} {
		for _, user := range []string{"alice", "Alice", "balice", "alice "} {
			seen[requestID(job, user)] = true
		}
	}
	if len(seen) != 12 {
		t.Errorf("%d different ids", len(seen))
	}
}
