package identity_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/identity"
)

func TestFile(t *testing.T) {
	for name, content := range map[string]string{
		"people.yaml": "users:\n- {id: alice, email: a@x, attributes: {uid: a17, 'cost centre': '7'}}\n- {id: bob}\n" +
			"groups: {staff: [alice, bob, carol], ops: [alice]}\n",
		"people.csv": "id,email,groups,uid,cost centre\nalice,a@x,staff;ops,a17,7\nbob,,staff,,\ncarol,,staff,,\n",
		"excel.csv":  "\ufeffgroups,cost centre,id,uid,email\r\nstaff;ops,7,alice,a17,a@x\r\nstaff,,bob,,\r\nstaff,,carol,,\r\n",
		"PEOPLE.CSV": "id,email,groups,uid,cost centre\n\"alice\",a@x,staff;ops,a17,7\nbob,,staff,,\ncarol,,staff,,\n",
		"directory.yml": "groups:\n  staff: [alice, bob, carol]\n  ops: [alice]\nusers:\n" +
			"- id: alice\n  email: a@x\n  attributes:\n    uid: a17\n    cost centre: '7'\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := identity.LoadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			p, ok, _ := f.Person(ctx, "alice")
			if !ok || p.ID != "alice" || p.Email != "a@x" || len(p.Attributes) != 2 || p.Attributes["uid"] != "a17" || p.Attributes["cost centre"] != "7" {
				t.Errorf("alice: got %+v, %v", p, ok)
			}
			if p, ok, _ := f.Person(ctx, "carol"); !ok || p.ID != "carol" || p.Email != "" || p.Attributes != nil {
				t.Errorf("carol: got %+v, %v", p, ok)
			}
			if _, ok, _ := f.Person(ctx, "Alice"); ok {
				t.Error("ids are not compared exactly")
			}
			if ms, err := f.Members(ctx, "staff", 2); err != nil || len(ms) != 2 || ms[0].Email != "a@x" || ms[1].ID != "bob" {
				t.Errorf("staff: got %+v, %v", ms, err)
			}
			if _, err := f.Members(ctx, "Staff", 2); !errors.Is(err, identity.ErrUnknownGroup) {
				t.Errorf("unknown group: got %v", err)
			}
			if ok, err := f.IsMember(ctx, "ops", "alice"); !ok || err != nil {
				t.Errorf("member: got %v, %v", ok, err)
			}
			if ok, err := f.IsMember(ctx, "ops", "bob"); ok || err != nil {
				t.Errorf("no member: got %v, %v", ok, err)
			}
			if _, err := f.IsMember(ctx, "none", "bob"); !errors.Is(err, identity.ErrUnknownGroup) {
				t.Errorf("unknown group: got %v", err)
			}
		})
	}
}

func TestFileProblems(t *testing.T) {
	for _, x := range []struct{ name, file, content, want string }{
		{"YAML", "p.yaml", `users:
  - {id: alice, mail: x}
  - {email: x}
  - {id: 7}
  - alice
  - {id: bob, attributes: {uid: 17, room: }}
gruops: {}
`, `p.yaml:2: users[0].mail: unknown key (did you mean "email"?)
p.yaml:4: users[2].id: want a text, got a number; put it in quotes
p.yaml:5: users[3]: want a mapping of keys to values, got a text
p.yaml:6: users[4].attributes.uid: want a text, got a number; put it in quotes
p.yaml:6: users[4].attributes.room: has no value; give one, or leave the key out
p.yaml:7: gruops: unknown key (did you mean "groups"?)`},
		{"YAMLValues", "p.yaml", `users:
  - {id: alice}
  - {id: " "}
  - {id: alice, email: ""}
groups:
  staff:
    - alice
    - ""
    - alice
  "": [x]
`, `p.yaml:3: users[1].id: required
p.yaml:4: users[2].email: empty; leave the key out
p.yaml:4: users[2].id: the id is taken by the user in line 2
p.yaml:8: groups.staff[1]: empty id
p.yaml:9: groups.staff[2]: listed twice
p.yaml:10: groups[""]: a group without a name`},
		{"DuplicateGroup", "p.yaml", "groups:\n  a: [x]\n  a: [y]\n", "p.yaml:3: groups.a: given twice; first in line 2"},
		{"NoReferences", "p.yaml", "users: [{id: '${env:HOME}'}, {id: '${env:HOME}'}]\n", "p.yaml:1: users[1].id: the id is taken by the user in line 1"},
		{"Empty", "p.yaml", "", "p.yaml:1: the file is empty"},
		{"EmptyCSV", "p.csv", "", "p.csv:1: want a header with a column id"},
		{"HeaderCase", "p.csv", "id,Email,GROUPS\nalice,a@x,staff\n", "p.csv:1: column \"Email\": want \"email\"\np.csv:1: column \"GROUPS\": want \"groups\""},
		{"HeaderCR", "p.csv", "id,email\ralice,a@x\rbob,b@x\r", "p.csv:1: column 2: a name with a control character; want lines that end in LF or CR LF\n" +
			"p.csv:1: column 3: a name with a control character; want lines that end in LF or CR LF"},
		{"Header", "p.csv", "ID,email,email, groups,\n", "p.csv:1: column \"ID\": want \"id\"\np.csv:1: column \"email\" comes twice\np.csv:1: column 4: a name that is empty or has spaces around it\n" +
			"p.csv:1: column 5: a name that is empty or has spaces around it\np.csv:1: no column id"},
		{"Rows", "p.csv", "id,email,groups\nalice,,a;a\n,x,\n bob,x,\nbob,x@y ,\nalice,,a; b\n\"two\nlines\",,\ncarol,x\ndave,,;\n",
			`p.csv:2: group "a" comes twice
p.csv:3: no id
p.csv:4: the id has spaces around it
p.csv:5: the email has spaces around it
p.csv:6: the id is taken by the user in line 2
p.csv:6: a group's name is empty or has spaces around it
p.csv:9: want 3 columns, got 2
p.csv:10: a group's name is empty or has spaces around it
p.csv:10: a group's name is empty or has spaces around it`},
		{"Quote", "p.csv", "id\n\"a\"b\n", `p.csv:2: extraneous or missing " in quoted-field`},
		{"Encoding", "p.csv", "id\na\nM\xfcller\n", "p.csv:3: not UTF-8"},
		{"Format", "p.json", "{}", "p.json: want a name that ends in .yaml, .yml or .csv"},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := identity.ParseFile(x.file, []byte(x.content))
			if err == nil || err.Error() != x.want {
				t.Errorf("got\n%v\nwant\n%s", err, x.want)
			}
		})
	}
	if _, err := identity.LoadFile(filepath.Join(t.TempDir(), "none.csv")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
}

// FuzzFile: nothing in a directory file makes the reader panic.
func FuzzFile(f *testing.F) {
	f.Add(true, []byte(people))
	f.Add(false, []byte("id,email,groups,uid\nalice,a@x,staff;ops,a17\n\"b\",,,\n"))
	f.Fuzz(func(t *testing.T, yaml bool, data []byte) {
		name := "p.csv"
		if yaml {
			name = "p.yaml"
		}
		file, err := identity.ParseFile(name, data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), name+":") {
				t.Fatalf("no place: %v", err)
			}
			return
		}
		if p, ok, err := file.Person(t.Context(), ""); ok || err != nil {
			t.Fatalf("somebody without an id: %+v, %v", p, err)
		}
	})
}
