package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/protobuf/proto"
)

// ids are who a file names.
func (f usersFile) ids() (ids []string) {
	for _, p := range f.people {
		ids = append(ids, p.user.GetId())
	}
	return ids
}

func TestUsersFile(t *testing.T) {
	for _, test := range []struct {
		name, format, data string
		want               []*endsessionv1.User
		repeated           int
	}{
		{"Text", usersText, "alice\nbob\n", []*endsessionv1.User{{Id: "alice"}, {Id: "bob"}}, 0},
		{"LastLineWithoutAnEnd", usersText, "alice\nbob", []*endsessionv1.User{{Id: "alice"}, {Id: "bob"}}, 0},
		{"LinesOfWindows", usersText, "\ufeffalice\r\nbob\r\n\r\n", []*endsessionv1.User{{Id: "alice"}, {Id: "bob"}}, 0},
		{"Comments", usersText, "# leavers\n\nalice\n   \n#bob\nca#rol\n", []*endsessionv1.User{{Id: "alice"}, {Id: "ca#rol"}}, 0},
		{"Exact", usersText, "Alice\nalice\nal ice\n\"alice\"\nuid=a,ou=b\nzoë\nzoe\u0308\n", []*endsessionv1.User{
			{Id: "Alice"}, {Id: "alice"}, {Id: "al ice"}, {Id: `"alice"`}, {Id: "uid=a,ou=b"}, {Id: "zoë"}, {Id: "zoe\u0308"}}, 0},
		{"RepeatedIsOnce", usersText, "alice\nbob\nalice\n", []*endsessionv1.User{{Id: "alice"}, {Id: "bob"}}, 1},
		{"CSV", usersCSV, "\ufeffid,email,uid,target_username:storage\r\nalice,alice@corp.example,a17,admin2\r\nbob,,,\r\n", []*endsessionv1.User{
			{Id: "alice", Email: proto.String("alice@corp.example"), Attributes: map[string]string{"uid": "a17"},
				TargetUsernames: map[string]*endsessionv1.TargetUsernames{"storage": {Usernames: []string{"admin2"}}}},
			{Id: "bob"}}, 0},
		{"CSVInAnotherOrder", usersCSV, "email,id\nalice@corp.example,alice\n", []*endsessionv1.User{{Id: "alice", Email: proto.String("alice@corp.example")}}, 0},
		{"CSVWithSeveralNames", usersCSV, "id,target_username:apm,target_username:apm\nalice,a,b\nbob,,c\n", []*endsessionv1.User{
			{Id: "alice", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"apm": {Usernames: []string{"a", "b"}}}},
			{Id: "bob", TargetUsernames: map[string]*endsessionv1.TargetUsernames{"apm": {Usernames: []string{"c"}}}}}, 0},
		{"CSVQuoted", usersCSV, "id,note\n\" alice \",\"a, \"\"b\"\"\nc\"\n#bob,\n", []*endsessionv1.User{
			{Id: " alice ", Attributes: map[string]string{"note": "a, \"b\"\nc"}}, {Id: "#bob"}}, 0},
		{"CSVRepeatedIsOnce", usersCSV, "id,email\nalice,a@b\n\nalice,a@b\n", []*endsessionv1.User{{Id: "alice", Email: proto.String("a@b")}}, 1},
		{"OwnFailures", usersCSV, "id,invalidation,target,state,reason,message,email\nalice,invalidations/1,apm,FAILED,EXPIRED,x,a@b\nalice,invalidations/1,storage,FAILED,EXPIRED,y,a@b\n'=1+1,,,NOT_ACCEPTED,,,\n''@x,,,NOT_ACCEPTED,,,\n'bob,,,NOT_ACCEPTED,,,\n",
			[]*endsessionv1.User{{Id: "alice", Email: proto.String("a@b")}, {Id: "=1+1"}, {Id: "'@x"}, {Id: "'bob"}}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseUsers("people", test.format, []byte(test.data))
			if err != nil || got.repeated != test.repeated || !slices.EqualFunc(got.people, test.want, func(p listedPerson, u *endsessionv1.User) bool { return proto.Equal(p.user, u) }) {
				t.Errorf("%q: %v, %d repeated, %v; want %v, %d repeated", test.data, got.people, got.repeated, err, test.want, test.repeated)
			}
		})
	}
}

// TestWrongUsersFiles compares everything that is said about files that are not accepted.
func TestWrongUsersFiles(t *testing.T) {
	long := strings.Repeat("x", 1025)
	many := strings.Repeat(" x\n", 30)
	var b strings.Builder
	for _, test := range []struct{ name, format, data string }{
		{"nothing", usersText, ""},
		{"only comments", usersText, "# nobody\n\n"},
		{"white space around", usersText, "alice \n bob\ncarol\t\n\u00a0dave\nerin\u200b\n"},
		{"carriage returns", usersText, "alice\rbob\n"},
		{"too long", usersText, "alice\n" + long + "\n"},
		{"as long as may be, and not UTF-8", usersText, long[:1024] + "\nal\xffice\n"},
		{"NUL and what cannot be seen", usersText, "al\x00ice\n"},
		{"UTF-16", usersText, "\xff\xfea\x00l\x00\n\x00"},
		{"many problems", usersText, many},
		{"a CSV file as text", usersText, "id,email\nalice,alice@corp.example\n"},
		{"nothing", usersCSV, ""},
		{"only a header", usersCSV, "id,email\n"},
		{"no id", usersCSV, "user,email\nalice,x\n"},
		{"another case", usersCSV, "ID\nalice\n"},
		{"semicolons", usersCSV, "id;email\nalice;x\n"},
		{"column twice", usersCSV, "id,email,email\nalice,x,y\n"},
		{"column without a name", usersCSV, "id,,x \nalice,x,y\n"},
		{"no such name of a target", usersCSV, "id,target_username:Storage\nalice,x\n"},
		{"too many columns", usersCSV, "id" + func() string {
			var s strings.Builder
			for i := range 65 {
				fmt.Fprintf(&s, ",c%d", i)
			}
			return s.String()
		}() + "\n"},
		{"cells", usersCSV, "id,email\nalice\nbob,x,y\n,x\n\"\",x\n carol,x\ndave,x \nerin,\" \"\n" + long + ",x\nfrank,\xff\n"},
		{"quotes", usersCSV, "id,email\nal\"ice,x\n\"bob\"x,y\ncarol,x\n\"dave,x\n"},
		{"line breaks of two characters", usersCSV, "id,note\r\nalice,\"a\r\nb\"\r\nbob,\"a\nb\"\r\n"},
		{"two that differ", usersCSV, "id,email\nalice,a@b\nbob,\nalice,\nalice,a@b\n"},
		{"one name twice", usersCSV, "id,target_username:apm,target_username:apm\nalice,a,a\n"},
	} {
		file, err := parseUsers("people", test.format, []byte(test.data))
		if err == nil {
			t.Errorf("%s: accepted: %v", test.name, file.ids())
			continue
		}
		fmt.Fprintf(&b, "== %s (%s)\n%s\n", test.name, test.format, err)
	}
	golden(t, filepath.Join("cli", "users-file-wrong.txt"), b.String())
}

// FuzzUsersText: whoever is read is a line of the file, whole and by itself, and every such line is read.
func FuzzUsersText(f *testing.F) {
	for _, s := range []string{"alice\nbob\n", "\ufeffalice\r\n", "# x\n\nzoë", "alice\ralice\n", "a\nb\na\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parseUsers("people", usersText, data)
		if err != nil {
			return
		}
		lines := strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n")
		want := map[string]bool{}
		for _, line := range lines {
			line = strings.TrimSuffix(line, "\r")
			if strings.TrimSpace(line) != "" && line[0] != '#' {
				want[line] = true
			}
		}
		for _, id := range file.ids() {
			if !want[id] {
				t.Errorf("%q is no line, or read twice", id)
			}
			delete(want, id)
			if !utf8.ValidString(id) {
				t.Errorf("%q is not UTF-8", id)
			}
		}
		if len(want) > 0 {
			t.Errorf("not read: %v", want)
		}
	})
}

// FuzzUsersCSV writes what was read with the writer of the standard library: read again, it is the same people.
func FuzzUsersCSV(f *testing.F) {
	for _, s := range []string{"id\nalice\n", "\ufeffid,email\r\n\"a\",b\r\n", "email,id,x,target_username:a\n,\" b\n\",c,d\n", "id,x\na,\"b\r\nc\"\n",
		"id,invalidation,target,state,reason,message\n'=a,b,c,d,e,f\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parseUsers("people", usersCSV, data)
		if err != nil {
			return
		}
		var b bytes.Buffer
		w := csv.NewWriter(&b)
		_ = w.Write(append([]string{"id"}, file.columns...))
		for _, p := range file.people {
			_ = w.Write(append([]string{p.user.GetId()}, p.cells...))
		}
		w.Flush()
		again, err := parseUsers("people", usersCSV, b.Bytes())
		if err != nil || !slices.Equal(again.ids(), file.ids()) {
			t.Fatalf("read %q, then %q, %v", file.ids(), again.ids(), err)
		}
		for i, p := range file.people {
			if !proto.Equal(p.user, again.people[i].user) {
				t.Errorf("read %v, then %v", p.user, again.people[i].user)
			}
			// Each text is in the file as it is, but for the doubling of quotes.
			for _, s := range texts(p.user) {
				if !bytes.Contains(bytes.ReplaceAll(data, []byte(`""`), []byte(`"`)), []byte(strings.ReplaceAll(s, `""`, `"`))) {
					t.Errorf("%q is not in the file", s)
				}
			}
		}
	})
}

// TestFailuresFile writes failures, and reads them as a users file.
func TestFailuresFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "job.failures.csv")
	people, err := parseUsers("people", usersCSV, []byte("id,email,target_username:apm\nalice,a@b,x\n=1+1,-x,\n'=q,,+\n\"b,\"\"ob\",,\n"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := openFailures(path, filepath.Join(dir, "people.csv"))
	if err != nil {
		t.Fatal(err)
	}
	var list []failure
	for _, p := range people.people {
		list = append(list, failure{p, "invalidations/1", "apm", "FAILED", "EXPIRED", "=HYPERLINK(\"x\")\x1b[2J\nnext"}, failure{person: p, state: "NOT_ACCEPTED"})
	}
	if err := f.write(people.columns, list); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("cli", "failures.csv"), string(text))
	again, err := parseUsers(path, usersCSV, text)
	if err != nil || again.repeated != len(people.people) || !slices.EqualFunc(again.people, people.people, func(a, b listedPerson) bool { return proto.Equal(a.user, b.user) }) {
		t.Errorf("read %v, %d repeated, %v; want %v", again.people, again.repeated, err, people.people)
	}
	r := csv.NewReader(bytes.NewReader(text))
	records, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		for _, cell := range record {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r\n") {
				t.Errorf("a spreadsheet takes %q for a formula", cell)
			}
		}
	}
	// Without failures there is none, also where there were some before.
	if err := f.write(people.columns, nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestFailuresFileWithAnyColumns: whatever the columns of the users file are called, the failures file is a users file, and
// no formula.
func TestFailuresFileWithAnyColumns(t *testing.T) {
	header, row := "id,state,reason,=1+1,'@x", "alice,a,b,c,d"
	for i := range 58 { // with those, as many attributes as there may be
		header, row = header+fmt.Sprint(",c", i), row+",x"
	}
	people, err := parseUsers("people", usersCSV, []byte(header+",target,message\n"+row+",e,f\n"))
	if err != nil {
		t.Fatal(err)
	}
	f := failuresFile{filepath.Join(t.TempDir(), "job.failures.csv")}
	if err := f.write(people.columns, []failure{{person: people.people[0], state: "NOT_ACCEPTED"}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseUsers(f.path, usersCSV, text)
	if err != nil || len(again.people) != 1 || !proto.Equal(again.people[0].user, people.people[0].user) || !slices.Equal(again.columns, people.columns) {
		t.Errorf("read %v, %v; want %v", again.people, err, people.people)
	}
	if bytes.Contains(text, []byte(",=")) {
		t.Errorf("a spreadsheet finds a formula in %s", text)
	}
}

// TestFailuresReplaceNothingElse: what was not written by the command is left alone.
func TestFailuresReplaceNothingElse(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ours := strings.Join(failureColumns, ",") + "\nalice,,,,,\n"
	if err := os.Symlink(write("target.csv", ours), filepath.Join(dir, "link.csv")); err != nil {
		t.Fatal(err)
	}
	users := write("users.csv", ours)
	for _, path := range []string{
		write("notes.txt", "mine"), write("empty.csv", ""), write("other.csv", "id,email\nalice,x\n"), users, dir,
		filepath.Join(dir, "link.csv"), filepath.Join(dir, "none", "x.csv"), filepath.Join(users, "x.csv"),
	} {
		if _, err := openFailures(path, users); err == nil {
			t.Errorf("%s would be replaced", path)
		}
	}
	for _, path := range []string{write("earlier.csv", ours), filepath.Join(dir, "new.csv")} {
		if _, err := openFailures(path, users); err != nil {
			t.Error(err)
		}
	}
}

func FuzzGuardCell(f *testing.F) {
	for _, s := range []string{"", "a", "=1", "'=1", "''", "'", "\tx", "-", "@", "'a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g := guardCell(s)
		if back := unguardCell(g); back != s {
			t.Errorf("%q became %q, and that %q", s, g, back)
		}
		if g != "" && strings.ContainsAny(g[:1], "=+-@\t\r\n") {
			t.Errorf("%q became %q", s, g)
		}
	})
}
