package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/protobuf/proto"
)

// The forms of a users file.
const (
	usersText = "text"
	usersCSV  = "csv"
)

const (
	// maxUsersFile is how many bytes a users file may have: it is read as a whole before anything is sent.
	maxUsersFile = 64 << 20
	// maxProblems is how many of a file's problems are told.
	maxProblems = 20
	// targetColumn begins the names of columns that hold a person's name at one target.
	targetColumn = "target_username:"
)

// listedPerson is one person of a users file.
type listedPerson struct {
	user *endsessionv1.User
	// line is where the person is first named.
	line int
	// cells are what the file says besides the id, as usersFile.columns names it.
	cells []string
}

// usersFile is who a file names, each once.
type usersFile struct {
	people []listedPerson
	// columns are the names of the columns besides the id, in the order of the file.
	columns []string
	// repeated is how many lines said again what another line had said.
	repeated int
	// digest identifies the content.
	digest [sha256.Size]byte
}

// problems gathers what is wrong with a file.
type problems struct {
	list []string
	n    int
}

func (p *problems) add(line int, format string, args ...any) {
	if p.n++; p.n <= maxProblems {
		p.list = append(p.list, fmt.Sprintf("line %d: ", line)+fmt.Sprintf(format, args...))
	}
}

// err is nil if there are none.
func (p *problems) err(name string) error {
	if p.n == 0 {
		return nil
	}
	text := fmt.Sprintf("%s: %s in it; nothing was sent\n  %s", name, plural(p.n, "problem"), strings.Join(p.list, "\n  "))
	if more := p.n - len(p.list); more > 0 {
		text += fmt.Sprintf("\n  and %d more", more)
	}
	return usageError("%s", text)
}

// plural counts things: "1 line", "2 lines".
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// parseUsers reads the content of a users file. Nothing is trimmed, folded or guessed: who is named differently is
// somebody else. All problems are reported at once; name is what the file is called in them.
func parseUsers(name, format string, data []byte) (usersFile, error) {
	file := usersFile{digest: sha256.Sum256(data)}
	p := &usersParser{file: &file, first: map[string]int{}}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	switch {
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		p.add(1, "the file is UTF-16; save it as UTF-8")
	case format == usersText:
		p.text(data)
	case format == usersCSV:
		p.csv(data)
	}
	if p.n == 0 && len(file.people) == 0 {
		return usersFile{}, usageError("%s: nobody is in it", name)
	}
	return file, p.err(name)
}

type usersParser struct {
	problems
	file *usersFile
	// first says at which index of the people an id was first seen.
	first map[string]int
}

// text reads one id a line.
func (p *usersParser) text(data []byte) {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		id := string(bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")))
		switch {
		case strings.TrimSpace(id) == "" || id[0] == '#':
			continue
		case !utf8.ValidString(id):
			p.add(n, "not UTF-8: %s", excerpt(id))
		case n == 1 && (id == "id" || strings.HasPrefix(id, "id,")):
			p.add(n, "this is the header of a CSV file; add --users-format csv")
			return
		case strings.ContainsRune(id, '\r'):
			p.add(n, "a carriage return within the line: %s", excerpt(id))
		case padded(id):
			p.add(n, "white space around the id, or characters that cannot be seen: %s", excerpt(id))
		default:
			p.person(n, &endsessionv1.User{Id: id}, nil)
		}
	}
}

// padded reports whether a text begins or ends with what cannot be seen.
func padded(s string) bool {
	hidden := func(r rune) bool { return unicode.IsSpace(r) || unicode.In(r, unicode.Z, unicode.Cc, unicode.Cf) }
	first, _ := utf8.DecodeRuneInString(s)
	last, _ := utf8.DecodeLastRuneInString(s)
	return s != "" && (hidden(first) || hidden(last))
}

// excerpt shows the beginning of a text in one line.
func excerpt(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return fmt.Sprintf("%+q…", string(r[:most]))
	}
	return fmt.Sprintf("%q", s)
}

// person takes in whom a line names.
func (p *usersParser) person(line int, user *endsessionv1.User, cells []string) {
	switch wrong, err := wrongUser(user); {
	case err != nil:
		p.add(line, "%v", err)
		return
	case wrong != "":
		p.add(line, "%s", wrong)
		return
	}
	if i, known := p.first[user.GetId()]; known {
		if before := p.file.people[i]; proto.Equal(before.user, user) {
			p.file.repeated++
		} else {
			p.add(line, "%s is on line %d too, and the two differ", excerpt(user.GetId()), before.line)
		}
		return
	}
	p.first[user.GetId()] = len(p.file.people)
	p.file.people = append(p.file.people, listedPerson{user, line, cells})
}

// wrongUser says what is wrong with a person by the rules of the contract, so that the gateway would refuse the call.
func wrongUser(user *endsessionv1.User) (string, error) {
	if user.GetId() == "" {
		return "the id is empty", nil
	}
	for _, s := range texts(user) {
		if !utf8.ValidString(s) {
			return "not UTF-8: " + excerpt(s), nil
		}
	}
	err := protovalidate.Validate(user)
	if err == nil {
		return "", nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) || len(invalid.Violations) == 0 {
		return "", err
	}
	v := invalid.Violations[0]
	return protovalidate.FieldPathString(v.Proto.GetField()) + ": " + v.Proto.GetMessage(), nil
}

// texts are all texts of a person.
func texts(user *endsessionv1.User) []string {
	list := []string{user.GetId(), user.GetEmail()}
	for name, value := range user.GetAttributes() {
		list = append(list, name, value)
	}
	for _, names := range user.GetTargetUsernames() {
		list = append(list, names.GetUsernames()...)
	}
	return list
}

// csv reads a table whose header names the columns.
func (p *usersParser) csv(data []byte) {
	t := &csvTable{data: data, r: csv.NewReader(bytes.NewReader(data))}
	t.r.FieldsPerRecord = -1
	header, line, wrong, err := t.next()
	switch {
	case errors.Is(err, io.EOF):
		return
	case wrong != "":
		p.add(line, "%s", wrong)
		return
	}
	skip := 0 // columns after the id that say nothing about the person
	if len(header) >= len(failureColumns) && slices.Equal(header[:len(failureColumns)], failureColumns) {
		skip = len(failureColumns) - 1
		for i := range header {
			header[i] = unguardCell(header[i])
		}
	}
	id := slices.Index(header, "id")
	if !p.header(line, header, id, skip) {
		return
	}
	about := slices.Concat(header[:id], header[id+1+skip:])
	p.file.columns = about
	for {
		cells, line, wrong, err := t.next()
		switch {
		case errors.Is(err, io.EOF):
			return
		case wrong != "":
			p.add(line, "%s", wrong)
			continue
		case len(cells) != len(header):
			p.add(line, "%s, where the header has %d", plural(len(cells), "cell"), len(header))
			continue
		}
		if skip > 0 {
			for i := range cells {
				cells[i] = unguardCell(cells[i])
			}
		}
		rest := slices.Concat(cells[:id], cells[id+1+skip:])
		user, err := personOf(cells[id], about, rest)
		if err != nil {
			p.add(line, "%v", err)
			continue
		}
		p.person(line, user, rest)
	}
}

// header reports whether the columns make sense. Some after the id may be skipped.
func (p *usersParser) header(line int, header []string, id, skip int) bool {
	before := p.n
	if id < 0 {
		hint := ""
		if len(header) == 1 && strings.ContainsAny(header[0], ";\t") {
			hint = "; the columns must be separated by commas"
		}
		p.add(line, "no column is called id%s", hint)
		return false
	}
	seen := map[string]bool{}
	for i, name := range header {
		if id < i && i <= id+skip {
			continue
		}
		switch {
		case name == "" || padded(name):
			p.add(line, "column %d: the name is empty, or has white space around it: %s", i+1, excerpt(name))
		case !strings.HasPrefix(name, targetColumn) && seen[name]:
			p.add(line, "column %d: %s is a column already", i+1, excerpt(name))
		}
		seen[name] = true
	}
	if p.n > before {
		return false
	}
	// What is wrong with the columns themselves is wrong on every line; it is told once.
	var values []string
	about := slices.Concat(header[:id], header[id+1+skip:])
	for i := range about {
		values = append(values, fmt.Sprint("x", i))
	}
	user, err := personOf("x", about, values)
	if err != nil {
		p.add(line, "%v", err)
		return false
	}
	if wrong, err := wrongUser(user); err != nil || wrong != "" {
		p.add(line, "%s", wrong)
	}
	return p.n == before
}

// personOf makes a person of the cells of a line. What is empty is not said.
func personOf(id string, columns, cells []string) (*endsessionv1.User, error) {
	user := &endsessionv1.User{Id: id}
	for i, name := range columns {
		cell := cells[i]
		if cell == "" {
			continue
		}
		target, ok := strings.CutPrefix(name, targetColumn)
		switch {
		case ok:
			if user.TargetUsernames == nil {
				user.TargetUsernames = map[string]*endsessionv1.TargetUsernames{}
			}
			if user.TargetUsernames[target] == nil {
				user.TargetUsernames[target] = &endsessionv1.TargetUsernames{}
			}
			names := user.TargetUsernames[target]
			if slices.Contains(names.Usernames, cell) {
				return nil, fmt.Errorf("%s is named twice for %s", excerpt(cell), target)
			}
			names.Usernames = append(names.Usernames, cell)
		case name == "email":
			user.Email = proto.String(cell)
		default:
			if user.Attributes == nil {
				user.Attributes = map[string]string{}
			}
			user.Attributes[name] = cell
		}
	}
	return user, nil
}

// csvTable reads records, and refuses what the reader of the standard library would quietly change.
type csvTable struct {
	data []byte
	r    *csv.Reader
	// lines are the offsets at which lines begin.
	lines []int
}

// next returns a record and where it begins, or what is wrong with it. The error is io.EOF at the end.
func (t *csvTable) next() (cells []string, line int, wrong string, err error) {
	from := t.r.InputOffset()
	cells, err = t.r.Read()
	var bad *csv.ParseError
	switch {
	case errors.As(err, &bad):
		return nil, bad.StartLine, bad.Err.Error(), nil
	case err != nil:
		return nil, 0, "", err
	}
	line, _ = t.r.FieldPos(0)
	raw := bytes.Trim(t.data[from:t.r.InputOffset()], "\r\n")
	for i, cell := range cells {
		switch {
		case !utf8.ValidString(cell):
			return nil, line, "not UTF-8: " + excerpt(cell), nil
		case strings.Contains(cell, "\n") && bytes.Contains(raw, []byte("\r\n")):
			return nil, line, "a cell has a line break of two characters (CR LF); write it as one", nil
		case padded(cell) && !t.quoted(i):
			return nil, line, "white space around a cell, or characters that cannot be seen: " + excerpt(cell) + "; quote the cell if it is meant", nil
		}
	}
	return cells, line, "", nil
}

// quoted reports whether a cell of the last record is in quotes.
func (t *csvTable) quoted(i int) bool {
	if t.lines == nil {
		t.lines = []int{0}
		for at, b := range t.data {
			if b == '\n' {
				t.lines = append(t.lines, at+1)
			}
		}
	}
	line, column := t.r.FieldPos(i)
	return t.data[t.lines[line-1]+column-1] == '"'
}
