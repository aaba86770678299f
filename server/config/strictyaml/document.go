package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxDepth bounds how deeply values are nested.
const maxDepth = 100

// Options say how a document is read.
type Options struct {
	// File is the document's name in problems. Relative paths in the document are relative to its directory.
	File string
	// Expand replaces references in text values: ${env:NAME} by a variable, ${file:PATH} by a file's content without the
	// newline at its end. "$${" stands for "${". When it is false, "${" means nothing.
	Expand bool
	// LookupEnv and ReadFile are needed if Expand is true.
	LookupEnv func(name string) (string, bool)
	ReadFile  func(path string) ([]byte, error)
}

// Document is a document that was read, and what is wrong with it so far.
type Document struct {
	options  Options
	root     *yaml.Node
	problems []Problem
	warnings []Problem
	expanded map[*yaml.Node][]string // text nodes that held references, with what these brought in
	broken   map[*yaml.Node]bool     // nodes with a problem already; decoding leaves them alone
}

// Read parses a document, follows its references, and notes what is wrong with its form. If nothing of it can be used,
// the result has problems and no root.
func Read(data []byte, o Options) *Document {
	d := &Document{options: o, expanded: map[*yaml.Node][]string{}, broken: map[*yaml.Node]bool{}}
	if quoted := quoteReferences(data); !bytes.Equal(quoted, data) && yaml.Unmarshal(data, new(yaml.Node)) != nil &&
		yaml.Unmarshal(quoted, new(yaml.Node)) == nil {
		data = quoted
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0:
		d.Problemf(1, "", "the file is empty")
		return d
	case err != nil:
		d.syntax(data, err)
		return d
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		d.Problemf(max(second.Line, 1), "", "a second document begins here; want one")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(data, err)
	}
	if d.check(doc.Content[0], "", 0) {
		d.root = doc.Content[0]
	}
	return d
}

// flowReference is a value inside { } or [ ] that is one reference, without quotes.
var flowReference = regexp.MustCompile(`([:,\[]\s+|\[)(\$\{(?:env|file):[^{}"'\s,]+\})(\s*[},\]])`)

// quoteReferences puts quotes around references that are values inside { } or [ ]: { dsn: ${env:DSN} } reads well and is
// not YAML, whose flow collections end at the first brace. It is used only on a text that cannot be read otherwise.
func quoteReferences(data []byte) []byte {
	return flowReference.ReplaceAll(data, []byte(`$1"$2"$3`))
}

var (
	syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	quotedText = regexp.MustCompile(`'[^']*'|"[^"]*"|` + "`[^`]*`")
)

// syntax notes an error of the parser. What the parser quotes is left out: an unquoted password that begins with "*"
// would be shown as the name of an anchor.
func (d *Document) syntax(data []byte, err error) {
	line, message := 1, err.Error()
	if m := syntaxLine.FindStringSubmatch(message); m != nil {
		message = message[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	// The parser does not say where an unknown anchor is referred to.
	if quoted := quotedText.FindString(message); strings.Contains(message, "anchor") && len(quoted) > 2 {
		if before, _, found := bytes.Cut(data, []byte("*"+quoted[1:len(quoted)-1])); found {
			line = 1 + bytes.Count(before, []byte("\n"))
		}
		message += "; a text that begins with * needs quotes"
	}
	message = quotedText.ReplaceAllString(message, "…")
	if lines := bytes.Split(data, []byte("\n")); line <= len(lines) && bytes.Contains(lines[line-1], []byte("${")) {
		message += ` (within { } and [ ], put values with ${…} in quotes)`
	}
	d.Problemf(line, "", "%s", message)
}

// check notes what is wrong with the form of n and everything below it, and expands texts. It returns false if n cannot
// be used at all.
func (d *Document) check(n *yaml.Node, path string, depth int) bool {
	switch {
	case depth > maxDepth:
		d.Problemf(n.Line, path, "nested too deeply")
	case n.Kind == yaml.AliasNode:
		d.Problemf(n.Line, path, "aliases (*name) are not supported; if it is a text, put it in quotes")
	case n.Anchor != "":
		d.Problemf(n.Line, path, "anchors (&name) are not supported; if it is a text, put it in quotes")
	case n.Style&yaml.TaggedStyle != 0:
		d.Problemf(n.Line, path, "tags (!name) are not supported; if it is a text, put it in quotes")
	default:
		d.checkContent(n, path, depth)
		return !d.broken[n]
	}
	d.broken[n] = true
	return false
}

func (d *Document) checkContent(n *yaml.Node, path string, depth int) {
	switch n.Kind {
	case yaml.MappingNode:
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Anchor != "" {
				d.Problemf(key.Line, path, "a key is not a text; put it in quotes")
				d.broken[key], d.broken[value] = true, true
				continue
			}
			at := keyPath(path, key, value)
			if d.options.Expand && strings.Contains(key.Value, "${") {
				d.Problemf(key.Line, at, "references are followed in values, not in keys")
				d.broken[key], d.broken[value] = true, true
				continue
			}
			if line, ok := seen[key.Value]; ok {
				d.Problemf(key.Line, at, "given twice; first in line %d", line)
				d.broken[key], d.broken[value] = true, true
				continue
			}
			seen[key.Value] = key.Line
			d.check(value, at, depth+1)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			d.check(item, Index(path, i), depth+1)
		}
	case yaml.ScalarNode:
		if d.options.Expand && n.ShortTag() == "!!str" {
			d.expand(n, path)
		}
	}
}

// expand replaces the references in a text.
func (d *Document) expand(n *yaml.Node, path string) {
	var out strings.Builder
	var values []string
	for rest := n.Value; ; {
		before, after, found := strings.Cut(rest, "${")
		out.WriteString(before)
		if !found {
			break
		}
		if strings.HasSuffix(before, "$") {
			out.WriteString("{")
			rest = after
			continue
		}
		reference, tail, closed := strings.Cut(after, "}")
		value, err := "", errors.New(`"${" without "}"; write "$${" for the characters themselves`)
		if closed {
			value, err = d.lookup(reference)
		}
		if err != nil {
			d.Problemf(n.Line, path, "%v", err)
			d.broken[n] = true
			return
		}
		values = append(values, value)
		out.WriteString(value)
		rest = tail
	}
	n.Value = out.String()
	if values != nil {
		d.expanded[n] = values
	}
}

func (d *Document) lookup(reference string) (string, error) {
	kind, name, _ := strings.Cut(reference, ":")
	switch {
	case kind == "env" && name != "":
		value, ok := d.options.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set", name)
		}
		return value, nil
	case kind == "file" && name != "":
		data, err := d.options.ReadFile(d.Rebase(name))
		if err != nil {
			return "", fmt.Errorf("${file:%s}: %w", name, err)
		}
		return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"), nil
	}
	return "", errors.New(`unknown reference; want ${env:NAME} or ${file:PATH}, or "$${" for the characters themselves`)
}

// Rebase makes a path that is relative to the document's directory one that works from here.
func (d *Document) Rebase(path string) string {
	if strings.TrimSpace(path) == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(d.options.File), path)
}

// Root is the document's value; nil if the document cannot be used.
func (d *Document) Root() *yaml.Node { return d.root }

// Problemf notes a problem.
func (d *Document) Problemf(line int, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Line: line, Path: path, Message: fmt.Sprintf(format, args...)})
}

// Invalid notes what a validator says about the value n. The message is withheld if it quotes what a reference brought
// in, and dropped if n has a problem already.
func (d *Document) Invalid(n *yaml.Node, line int, path string, err error) {
	if n != nil && d.broken[n] {
		return
	}
	d.Problemf(line, path, "%s", d.scrub(n, err.Error()))
}

// scrub withholds a message that quotes what a reference within n brought in.
func (d *Document) scrub(n *yaml.Node, message string) string {
	for _, v := range d.expansions(n) {
		if quoted := strconv.Quote(v); v != "" && (strings.Contains(message, v) || strings.Contains(message, quoted[1:len(quoted)-1])) {
			return "not valid (more is not said because the value comes from a variable or a file)"
		}
	}
	return message
}

func (d *Document) expansions(n *yaml.Node) []string {
	if n == nil {
		return nil
	}
	values := d.expanded[n]
	for _, c := range n.Content {
		values = append(values[:len(values):len(values)], d.expansions(c)...)
	}
	return values
}

// Expanded reports whether the text n held a reference.
func (d *Document) Expanded(n *yaml.Node) bool { return len(d.expanded[n]) > 0 }

// Broken reports whether n cannot be decoded at all, which is reported already.
func (d *Document) Broken(n *yaml.Node) bool { return d.broken[n] }

// Reported reports whether the value at path, or anything within it, has a problem.
func (d *Document) Reported(path string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool {
		rest, ok := strings.CutPrefix(p.Path, path)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// Count is the number of problems so far; it tells whether a step found new ones.
func (d *Document) Count() int { return len(d.problems) }

// Err returns an [*Error] with all problems, or nil if there are none.
func (d *Document) Err() error { return newError(d.options.File, d.problems) }

// Warnf notes something that is allowed and unwise.
func (d *Document) Warnf(line int, path, format string, args ...any) {
	d.warnings = append(d.warnings, Problem{Line: line, Path: path, Message: fmt.Sprintf(format, args...)})
}

// Warnings returns what was noted by Warnf, in the form of problems: "file:line: path: message".
func (d *Document) Warnings() []string {
	var lines []string
	for _, w := range d.warnings {
		lines = append(lines, w.in(d.options.File))
	}
	return lines
}

// Where is a place in the document, as problems write it.
func (d *Document) Where(line int, path string) string {
	return Position(d.options.File, line) + ": " + path
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_/-]*$`)

// Join is the path of a key of the mapping at path.
func Join(path, key string) string {
	switch {
	case !plainKey.MatchString(key):
		return path + "[" + strconv.Quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

// keyPath is the path of a key in a document.
func keyPath(path string, key, value *yaml.Node) string {
	if glued(key, value) {
		name, _, _ := strings.Cut(key.Value, ":")
		return Join(path, name)
	}
	return Join(path, key.Value)
}

// glued reports whether a key was probably meant to be a key and its value: within braces, "password:x" is one text. The
// value may be a secret, so the key is not shown.
func glued(key, value *yaml.Node) bool {
	return strings.Contains(key.Value, ":") && value.ShortTag() == "!!null" && value.Value == ""
}

// Index is the path of an item of the list at path.
func Index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// Lookup returns a key of a mapping with its value; nil if it has none, or n is no mapping.
func Lookup(n *yaml.Node, key string) (k, v *yaml.Node) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}
