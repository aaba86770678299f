package identity

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/endsession/endsession/server/config/strictyaml"
)

// File is a [Directory] that was read from a file and does not change.
//
// In YAML it has the keys users, a list of {id, email, attributes}, and groups, which maps names to lists of ids. In CSV
// the header names the columns: id, and perhaps email and groups (names separated by ";"); every other column is an
// attribute, and an empty cell means that the person has none. A member who is not among the users is
// known by the id alone.
type File struct {
	people map[string]Person
	groups map[string][]string
}

var _ Directory = (*File)(nil)

// LoadFile reads a directory file: .yaml or .yml, or .csv. The error holds everything that is wrong, one problem a line.
func LoadFile(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	return ParseFile(path, data)
}

// ParseFile reads the content of a directory file; path tells the format, and is for messages.
func ParseFile(path string, data []byte) (*File, error) {
	f := &File{people: map[string]Person{}, groups: map[string][]string{}}
	var err error
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".yaml", ".yml":
		err = f.parseYAML(path, data)
	case ".csv":
		err = f.parseCSV(path, data)
	default:
		err = fmt.Errorf("%s: want a name that ends in .yaml, .yml or .csv", path)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// directoryFile is the YAML form.
type directoryFile struct {
	Users  []filePerson        `yaml:"users"`
	Groups map[string][]string `yaml:"groups"`
}

type filePerson struct {
	ID         string            `yaml:"id"`
	Email      *string           `yaml:"email"`
	Attributes map[string]string `yaml:"attributes"`
}

func (f *File) parseYAML(path string, data []byte) error {
	d := strictyaml.Read(data, strictyaml.Options{File: path})
	var file directoryFile
	d.DecodeMapping(d.Root(), "", &file, nil, nil)
	if d.Err() != nil {
		return d.Err()
	}
	lines := map[string]int{}
	_, users := strictyaml.Lookup(d.Root(), "users")
	for i, u := range file.Users {
		n, at := users.Content[i], strictyaml.Index("users", i)
		p := Person{ID: u.ID, Attributes: u.Attributes}
		if u.Email != nil {
			p.Email = *u.Email
			if blank(p.Email) {
				d.Problemf(n.Line, at+".email", "empty; leave the key out")
			}
		}
		if blank(u.ID) {
			d.Problemf(n.Line, at+".id", "required")
		} else if line, ok := lines[u.ID]; ok {
			d.Problemf(n.Line, at+".id", "the id is taken by the user in line %d", line)
		}
		lines[u.ID] = n.Line
		f.people[u.ID] = p
	}
	_, groups := strictyaml.Lookup(d.Root(), "groups")
	for name, members := range file.Groups {
		key, list := strictyaml.Lookup(groups, name)
		at := strictyaml.Join("groups", name)
		if blank(name) {
			d.Problemf(key.Line, at, "a group without a name")
		}
		seen := map[string]bool{}
		for i, id := range members {
			if blank(id) {
				d.Problemf(list.Content[i].Line, strictyaml.Index(at, i), "empty id")
			} else if seen[id] {
				d.Problemf(list.Content[i].Line, strictyaml.Index(at, i), "listed twice")
			}
			seen[id] = true
			if _, known := f.people[id]; !known {
				f.people[id] = Person{ID: id}
			}
		}
		f.groups[name] = members
	}
	return d.Err()
}

func (f *File) parseCSV(path string, data []byte) error {
	var errs []error
	problem := func(line int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", strictyaml.Position(path, line), fmt.Sprintf(format, args...)))
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // spreadsheets write it
	if !utf8.Valid(data) {
		line := 1
		for text := range bytes.Lines(data) {
			if !utf8.Valid(text) {
				break
			}
			line++
		}
		problem(line, "not UTF-8")
		return errors.Join(errs...)
	}
	r := csv.NewReader(bytes.NewReader(data))
	header, err := r.Read()
	if err != nil {
		problem(1, "want a header with a column id")
		return errors.Join(errs...)
	}
	for i, name := range header {
		switch {
		case name != strings.TrimSpace(name) || name == "":
			problem(1, "column %d: a name that is empty or has spaces around it", i+1)
		case strings.ContainsFunc(name, unicode.IsControl):
			problem(1, "column %d: a name with a control character; want lines that end in LF or CR LF", i+1)
		case slices.Contains(header[:i], name):
			problem(1, "column %q comes twice", name)
		default:
			// It would be an attribute, and the column that is meant would be missing, without a word.
			for _, known := range []string{"id", "email", "groups"} {
				if name != known && strings.EqualFold(name, known) {
					problem(1, "column %q: want %q", name, known)
				}
			}
		}
	}
	if !slices.Contains(header, "id") {
		problem(1, "no column id")
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	lines := map[string]int{}
	for {
		row, err := r.Read()
		var bad *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return errors.Join(errs...)
		case errors.Is(err, csv.ErrFieldCount) && errors.As(err, &bad):
			problem(bad.Line, "want %d columns, got %d", len(header), len(row))
			continue
		case errors.As(err, &bad):
			problem(bad.Line, "%v", bad.Err)
			return errors.Join(errs...)
		case err != nil:
			return err
		}
		line, _ := r.FieldPos(0)
		f.addRow(header, row, func(format string, args ...any) { problem(line, format, args...) }, lines, line)
	}
}

// addRow adds one person.
func (f *File) addRow(header, row []string, problem func(format string, args ...any), lines map[string]int, line int) {
	var p Person
	var groups []string
	for i, cell := range row {
		switch header[i] {
		case "id":
			p.ID = cell
		case "email":
			p.Email = cell
		case "groups":
			if cell != "" {
				groups = strings.Split(cell, ";")
			}
		default:
			if cell == "" {
				continue
			}
			if p.Attributes == nil {
				p.Attributes = map[string]string{}
			}
			p.Attributes[header[i]] = cell
		}
	}
	// A space at the edge of a cell is invisible, and no id or group would ever be found with it.
	switch first, taken := lines[p.ID]; {
	case p.ID == "":
		problem("no id")
	case p.ID != strings.TrimSpace(p.ID):
		problem("the id has spaces around it")
	case p.Email != strings.TrimSpace(p.Email):
		problem("the email has spaces around it")
	case taken:
		problem("the id is taken by the user in line %d", first)
	}
	lines[p.ID] = line
	for i, g := range groups {
		switch {
		case g == "" || g != strings.TrimSpace(g):
			problem("a group's name is empty or has spaces around it")
		case slices.Contains(groups[:i], g):
			problem("group %q comes twice", g)
		default:
			f.groups[g] = append(f.groups[g], p.ID)
		}
	}
	f.people[p.ID] = p
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// Person returns what the file says of a person.
func (f *File) Person(_ context.Context, id string) (Person, bool, error) {
	p, ok := f.people[id]
	return p, ok, nil
}

// Members returns the members of a group in the order of the file.
func (f *File) Members(_ context.Context, group string, limit int) ([]Person, error) {
	ids, ok := f.groups[group]
	if !ok {
		return nil, ErrUnknownGroup
	}
	var people []Person
	for _, id := range ids[:min(limit, len(ids))] {
		people = append(people, f.people[id])
	}
	return people, nil
}

// IsMember reports whether a person is in a group.
func (f *File) IsMember(_ context.Context, group, id string) (bool, error) {
	ids, ok := f.groups[group]
	if !ok {
		return false, ErrUnknownGroup
	}
	return slices.Contains(ids, id), nil
}

// CheckGroup says whether the file has a group. [New] asks it of every group that the configuration names.
func (f *File) CheckGroup(name string) error {
	if _, ok := f.groups[name]; !ok {
		return fmt.Errorf("the directory has no group %q", name)
	}
	return nil
}
