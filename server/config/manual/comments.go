package manual

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
)

// module is the path that our packages' import paths begin with.
const module = "github.com/endsession/endsession/"

// comments finds the comments of types and their fields in the source.
type comments struct {
	root string
	// read has, by import path, the comments by "Type" and "Type.Field".
	read map[string]map[string]string
}

// of returns the comment of a type, or of one of its fields; "" if there is none.
func (c *comments) of(t reflect.Type, field string) (string, error) {
	name, _, _ := strings.Cut(t.Name(), "[")
	if field != "" {
		name += "." + field
	}
	found, ok := c.read[t.PkgPath()]
	if !ok {
		var err error
		dir := strings.TrimSuffix(strings.TrimPrefix(t.PkgPath(), module), "_test")
		if found, err = parse(filepath.Join(c.root, dir)); err != nil {
			return "", fmt.Errorf("comments of %s: %w", t.PkgPath(), err)
		}
		c.read[t.PkgPath()] = found
	}
	return found[name], nil
}

// parse reads the comments of one package, its tests included: they bring kinds of their own.
func parse(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, decl := range file.Decls {
			general, ok := decl.(*ast.GenDecl)
			if !ok || general.Tok != token.TYPE {
				continue
			}
			for _, spec := range general.Specs {
				spec := spec.(*ast.TypeSpec)
				doc := spec.Doc
				if doc == nil {
					doc = general.Doc
				}
				found[spec.Name.Name] = oneLine(doc)
				structure, ok := spec.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, field := range structure.Fields.List {
					for _, name := range field.Names {
						found[spec.Name.Name+"."+name.Name] = oneLine(field.Doc)
					}
				}
			}
		}
	}
	return found, nil
}

func oneLine(doc *ast.CommentGroup) string { return strings.Join(strings.Fields(doc.Text()), " ") }

var (
	word        = regexp.MustCompile(`[A-Za-z][A-Za-z0-9]*`)
	defaultText = regexp.MustCompile(` ?Default: (.+?)\.(?: |$)`)
	bounds      = regexp.MustCompile(`\b(\d+) to (\d+)\b`)
)

// acronym is a name that is a word of English, too: URL, TLS.
var acronym = regexp.MustCompile(`^[A-Z]+s?$`)

// sentence takes the name of what a comment is about, and the verb after it if that says nothing, from its beginning.
func sentence(text, own, key string) string {
	rest, ok := strings.CutPrefix(text, own+" ")
	if !ok {
		return text
	}
	for _, verb := range []string{"is ", "are "} {
		rest = strings.TrimPrefix(rest, verb)
	}
	if strings.HasPrefix(rest, "that of ") {
		return "`" + key + "` is " + rest
	}
	return strings.ToUpper(rest[:1]) + rest[1:]
}

// inKeys writes a comment in the words of the file: the names of Go fields become the keys. Words are taken for names
// only within a sentence.
func inKeys(text, own, key string, siblings map[string]string) string {
	text = sentence(text, own, key)
	var b strings.Builder
	last := 0
	for _, at := range word.FindAllStringIndex(text, -1) {
		name := text[at[0]:at[1]]
		sibling, known := siblings[name]
		within := at[0] > 1 && text[at[0]-1] == ' ' && !strings.ContainsRune(".:", rune(text[at[0]-2]))
		if known && !acronym.MatchString(name) && (within || name[1:] != strings.ToLower(name[1:])) {
			b.WriteString(text[last:at[0]] + "`" + sibling + "`")
			last = at[1]
		}
	}
	return b.String() + text[last:]
}
