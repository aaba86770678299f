package strictyaml

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters/secret"
)

// Unmarshaler decodes itself from a node, by means of the document, to which it reports its problems.
type Unmarshaler interface {
	UnmarshalStrict(d *Document, n *yaml.Node, path string)
}

// Defaulter is a struct with values of its own for keys that are absent. SetDefaults is called before it is decoded.
type Defaulter interface {
	SetDefaults()
}

// callback is the older form of yaml.v3's Unmarshaler, which needs no import of the YAML package.
type callback interface {
	UnmarshalYAML(unmarshal func(any) error) error
}

// Decode decodes n into the value v points to. What is wrong becomes a problem; the rest of v is filled nevertheless.
func (d *Document) Decode(n *yaml.Node, path string, v any) {
	if n != nil {
		d.value(n, path, reflect.ValueOf(v).Elem())
	}
}

// DecodeMapping decodes n like Decode, and hands the keys that are among others to take instead of looking for a field.
func (d *Document) DecodeMapping(n *yaml.Node, path string, v any, others []string, take func(key, value *yaml.Node)) {
	if n == nil || d.broken[n] {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.mismatch(n, path, "a mapping of keys to values")
		return
	}
	d.structure(n, path, reflect.ValueOf(v).Elem(), others, take)
}

// unmarshal is what a type's own UnmarshalYAML is given.
func (d *Document) unmarshal(n *yaml.Node, path string) func(any) error {
	return func(v any) error {
		// The type may try one form after the other: the problems of each are its to return or to forget.
		try := *d
		try.problems, try.warnings = nil, nil
		try.Decode(n, path, v)
		if err := newError(d.options.File, try.problems); err != nil {
			return err
		}
		d.warnings = append(d.warnings, try.warnings...)
		return nil
	}
}

func (d *Document) value(n *yaml.Node, path string, v reflect.Value) {
	if d.broken[n] {
		return
	}
	if v.Kind() == reflect.Interface && v.NumMethod() == 0 {
		v.Set(reflect.Zero(v.Type()))
		if x := d.anything(n, path); x != nil {
			v.Set(reflect.ValueOf(x))
		}
		return
	}
	if n.ShortTag() == "!!null" {
		d.Problemf(n.Line, path, "has no value; give one, or leave the key out")
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(n, path, v.Elem())
		return
	}
	switch x := v.Addr().Interface().(type) {
	case Unmarshaler:
		x.UnmarshalStrict(d, n, path)
		return
	case callback:
		if err := x.UnmarshalYAML(d.unmarshal(n, path)); err != nil {
			var known *Error
			if errors.As(err, &known) {
				d.problems = append(d.problems, known.Problems...)
			} else {
				d.Invalid(n, n.Line, path, err)
			}
		}
		return
	case yaml.Unmarshaler:
		// It decodes with the YAML package's own leniency; the document's own types do not use it.
		d.Problemf(n.Line, path, "cannot be decoded strictly (%T)", x)
		return
	case *secret.String:
		if d.text(n, path, v.Addr().Interface()) && !d.Expanded(n) && n.Value != "" {
			d.Warnf(n.Line, path, "the secret is written in the file; better refer to it: ${file:PATH} or ${env:NAME}")
		}
		return
	case encoding.TextUnmarshaler:
		d.text(n, path, x)
		return
	case *time.Duration:
		parsed, err := time.ParseDuration(n.Value)
		if n.Kind != yaml.ScalarNode || err != nil {
			d.mismatch(n, path, `a duration such as 30s`)
			return
		}
		*x = parsed
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			d.mismatch(n, path, "a mapping of keys to values")
			return
		}
		d.structure(n, path, v, nil, nil)
	case reflect.Map:
		d.mapping(n, path, v)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.mismatch(n, path, "a list")
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			d.value(item, Index(path, i), list.Index(i))
		}
		v.Set(list)
	default:
		d.scalar(n, path, v)
	}
}

// text decodes a text into a type that parses itself. A number serves, too, except for a secret.
func (d *Document) text(n *yaml.Node, path string, x any) bool {
	_, isSecret := x.(*secret.String)
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode || tag == "!!bool" || isSecret && tag != "!!str" {
		d.mismatch(n, path, "a text")
		return false
	}
	if err := x.(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		d.Invalid(n, n.Line, path, err)
		return false
	}
	return true
}

func (d *Document) mapping(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.MappingNode || v.Type().Key().Kind() != reflect.String {
		d.mismatch(n, path, "a mapping of keys to values")
		return
	}
	m := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if d.broken[key] {
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(n.Content[i+1], Join(path, key.Value), item)
		m.SetMapIndex(reflect.ValueOf(key.Value).Convert(v.Type().Key()), item)
	}
	v.Set(m)
}

func (d *Document) structure(n *yaml.Node, path string, v reflect.Value, others []string, take func(key, value *yaml.Node)) {
	if x, ok := v.Addr().Interface().(Defaulter); ok {
		x.SetDefaults()
	}
	fields := Fields(v.Type())
	known := slices.Clone(others)
	for _, f := range fields {
		known = append(known, f.Name)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if d.broken[key] {
			continue
		}
		at := keyPath(path, key, value)
		j := slices.IndexFunc(fields, func(f Field) bool { return f.Name == key.Value })
		switch {
		case j >= 0:
			target := v.FieldByIndex(fields[j].Index)
			d.value(value, at, target)
			if fields[j].Path && target.Kind() == reflect.String && value.ShortTag() == "!!str" {
				if strings.TrimSpace(target.String()) == "" {
					// A ca_file that a variable left empty would otherwise quietly mean the system's authorities.
					d.Invalid(value, value.Line, at, errors.New("empty"))
					continue
				}
				target.SetString(d.Rebase(target.String()))
			}
		case slices.Contains(others, key.Value):
			take(key, value)
		default:
			message := "unknown key"
			if glued(key, value) {
				message += " (a space is missing after the colon)"
			} else if near := nearest(key.Value, known); near != "" {
				message += fmt.Sprintf(" (did you mean %q?)", near)
			}
			d.Problemf(key.Line, at, "%s", message)
		}
	}
}

// Field is a struct field that a document can set.
type Field struct {
	// Name is the key.
	Name string
	// Index leads to the field, see [reflect.Type.FieldByIndex].
	Index []int
	// Path says that the text is a file's path, which is made relative to the document's directory.
	Path bool
}

// Fields lists the fields of a struct, inline ones included.
func Fields(t reflect.Type) []Field {
	var fields []Field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case slices.Contains(strings.Split(options, ","), "inline"):
			for _, inner := range Fields(f.Type) {
				inner.Index = append([]int{i}, inner.Index...)
				fields = append(fields, inner)
			}
		case f.IsExported():
			if name == "" {
				name = strings.ToLower(f.Name)
			}
			fields = append(fields, Field{
				Name: name, Index: []int{i},
				Path: strings.HasSuffix(name, "_file") || f.Tag.Get("path") == "true",
			})
		}
	}
	return fields
}

// HasField reports whether the struct that v points to has a field for a key.
func HasField(v any, key string) bool {
	t := reflect.TypeOf(v)
	if t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
		return false
	}
	return slices.ContainsFunc(Fields(t.Elem()), func(f Field) bool { return f.Name == key })
}

var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

func (d *Document) scalar(n *yaml.Node, path string, v reflect.Value) {
	// A reference is a text to YAML; what it stands for may be a number or a truth value.
	is := func(tag string) bool {
		return n.Kind == yaml.ScalarNode && (n.ShortTag() == tag || tag != "!!str" && d.Expanded(n))
	}
	switch v.Kind() {
	case reflect.String:
		if !is("!!str") {
			d.mismatch(n, path, "a text")
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if !is("!!bool") || n.Value != "true" && n.Value != "false" {
			d.mismatch(n, path, "true or false")
			return
		}
		v.SetBool(n.Value == "true")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if !is("!!int") || !decimal.MatchString(n.Value) || err != nil || v.OverflowInt(i) {
			d.mismatch(n, path, "a whole number")
			return
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		i, err := strconv.ParseUint(n.Value, 10, 64)
		if !is("!!int") || !decimal.MatchString(n.Value) || err != nil || v.OverflowUint(i) {
			d.mismatch(n, path, "a whole number that is not negative")
			return
		}
		v.SetUint(i)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if !is("!!float") && !is("!!int") || err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			d.mismatch(n, path, "a number")
			return
		}
		v.SetFloat(f)
	default:
		d.Problemf(n.Line, path, "cannot be set in a file (%s)", v.Type())
	}
}

// anything decodes n into the plain Go value that fits.
func (d *Document) anything(n *yaml.Node, path string) any {
	switch n.Kind {
	case yaml.MappingNode:
		var m map[string]any
		d.mapping(n, path, reflect.ValueOf(&m).Elem())
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			list[i] = d.anything(item, Index(path, i))
		}
		return list
	}
	var x any
	if n.ShortTag() == "!!str" || n.Decode(&x) != nil {
		return n.Value
	}
	return x
}

// mismatch notes that n is not what is wanted. The value is not shown: it may be a secret in the wrong place.
func (d *Document) mismatch(n *yaml.Node, path, want string) {
	got := "something else"
	switch n.Kind {
	case yaml.MappingNode:
		got = "a mapping"
	case yaml.SequenceNode:
		got = "a list"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str":
			got = "a text"
		case "!!int", "!!float":
			got = "a number"
		case "!!bool":
			got = "a truth value"
		case "!!timestamp":
			got = "a date"
		case "!!null":
			got = "nothing"
		}
	}
	switch {
	case d.Expanded(n):
		d.Problemf(n.Line, path, "want %s (the value comes from a variable or a file and is not shown)", want)
	case want == "a text" && n.Kind == yaml.ScalarNode:
		d.Problemf(n.Line, path, "want %s, got %s; put it in quotes", want, got)
	case want == "a whole number" && got == "a number":
		d.Problemf(n.Line, path, "want %s, in plain digits and within range", want)
	default:
		d.Problemf(n.Line, path, "want %s, got %s", want, got)
	}
}
