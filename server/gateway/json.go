package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/endsession/endsession/server/api"
)

const (
	// maxDepth is how deep objects and arrays may be nested; the contract needs 6.
	maxDepth = 32
	// maxViolations is how many are reported.
	maxViolations = 16
)

// checkJSON returns what is wrong with a body that shall be the JSON of a message: all that protojson would forgive
// (null, which it takes for absence; explicitly empty values, of which it remembers nothing) or report without saying
// where. fixed are the fields that the path of the request gives already.
func checkJSON(body []byte, md protoreflect.MessageDescriptor, fixed map[string]string) []api.Violation {
	switch {
	case !utf8.Valid(body):
		return []api.Violation{{Description: "the body is not valid UTF-8"}}
	case !json.Valid(body):
		return []api.Violation{{Description: "the body is not exactly one valid JSON value"}}
	case depth(body) > maxDepth:
		return []api.Violation{{Description: fmt.Sprintf("the body is nested more than %d deep", maxDepth)}}
	}
	c := jsonChecker{dec: json.NewDecoder(bytes.NewReader(body))}
	c.dec.UseNumber()
	if c.token() != json.Delim('{') {
		return []api.Violation{{Description: "the body must be a JSON object"}}
	}
	c.fields("", md, fixed)
	return c.found
}

// depth is how deep a valid JSON text is nested.
func depth(text []byte) int {
	deepest, now, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case quoted && b == '\\':
			i++
		case b == '"':
			quoted = !quoted
		case quoted:
		case b == '{' || b == '[':
			now++
			deepest = max(deepest, now)
		case b == '}' || b == ']':
			now--
		}
	}
	return deepest
}

// jsonChecker walks through a valid JSON text along a message.
type jsonChecker struct {
	dec    *json.Decoder
	found  []api.Violation
	broken bool
}

func (c *jsonChecker) refuse(path, format string, args ...any) {
	if len(c.found) < maxViolations {
		c.found = append(c.found, api.Violation{Field: path, Description: fmt.Sprintf(format, args...)})
	}
}

// token returns the next token. The text is known to be valid, so there is one as long as it is asked for in step.
func (c *jsonChecker) token() json.Token {
	t, err := c.dec.Token()
	if err != nil && !c.broken {
		c.broken = true
		c.refuse("", "the body cannot be read")
	}
	return t
}

func (c *jsonChecker) more() bool { return !c.broken && c.dec.More() }

// skip passes over the rest of the value that begins with t.
func (c *jsonChecker) skip(t json.Token) {
	for level := 0; !c.broken; t = c.token() {
		switch t {
		case json.Delim('{'), json.Delim('['):
			level++
		case json.Delim('}'), json.Delim(']'):
			level--
		}
		if level == 0 {
			return
		}
	}
}

// fields checks the rest of an object, whose brace is read, that is a message; it returns how many members it has.
func (c *jsonChecker) fields(path string, md protoreflect.MessageDescriptor, fixed map[string]string) int {
	seen := map[protoreflect.FieldNumber]bool{}
	n := 0
	for ; c.more(); n++ {
		key, _ := c.token().(string)
		// Both spellings are known, as in protojson: the JSON name and that of the contract.
		fd := md.Fields().ByJSONName(key)
		if fd == nil {
			fd = md.Fields().ByTextName(key)
		}
		path := join(path, key)
		if fd == nil {
			c.refuse(path, "unknown field")
			c.skip(c.token())
			continue
		}
		if seen[fd.Number()] {
			c.refuse(path, "is given twice")
		}
		seen[fd.Number()] = true
		if _, ok := fixed[string(fd.Name())]; ok {
			c.refuse(path, "is given by the path already")
		}
		c.field(path, fd)
	}
	c.token()
	return n
}

// field checks the value of a field.
func (c *jsonChecker) field(path string, fd protoreflect.FieldDescriptor) {
	t := c.token()
	switch {
	case t == nil:
		c.refuse(path, "must not be null; leave the field out instead")
	case fd.IsMap():
		if t != json.Delim('{') {
			c.refuse(path, "must be an object")
			c.skip(t)
			return
		}
		seen := map[string]bool{}
		for c.more() {
			key, _ := c.token().(string)
			path := fmt.Sprintf("%s[%q]", path, key)
			if seen[key] {
				c.refuse(path, "is given twice")
			}
			seen[key] = true
			c.value(path, fd.MapValue(), c.token())
		}
		c.token()
		if len(seen) == 0 {
			c.refuse(path, "must not be empty; leave the field out instead")
		}
	case fd.IsList():
		if t != json.Delim('[') {
			c.refuse(path, "must be an array")
			c.skip(t)
			return
		}
		n := 0
		for ; c.more(); n++ {
			c.value(fmt.Sprintf("%s[%d]", path, n), fd, c.token())
		}
		c.token()
		if n == 0 {
			c.refuse(path, "must not be empty; leave the field out instead")
		}
	default:
		c.value(path, fd, t)
	}
}

// value checks one value, which begins with t, of the kind of fd.
func (c *jsonChecker) value(path string, fd protoreflect.FieldDescriptor, t json.Token) {
	s, isString := t.(string)
	_, isNumber := t.(json.Number)
	_, isBool := t.(bool)
	if t == nil {
		c.refuse(path, "must not be null; leave it out instead")
		return
	}
	if isString && s == "" {
		c.refuse(path, "must not be empty; leave the field out instead")
		return
	}
	wrong := ""
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !isString {
			wrong = "must be a string"
		}
	case protoreflect.BoolKind:
		if !isBool {
			wrong = "must be true or false"
		}
	case protoreflect.EnumKind:
		named := isString && fd.Enum().Values().ByName(protoreflect.Name(s)) != nil
		if !isNumber && !named {
			wrong = "must be one of the values of " + string(fd.Enum().Name())
		}
	case protoreflect.MessageKind:
		read, known := wellKnown[fd.Message().FullName()]
		switch {
		case known && (!isString || !read(s)):
			wrong = "must be a string such as " + examples[fd.Message().FullName()]
		case known:
		case t == json.Delim('{'):
			if c.fields(path, fd.Message(), nil) == 0 {
				c.refuse(path, "must not be empty; leave the field out instead")
			}
			return
		default:
			wrong = "must be an object"
		}
	default: // numbers
		if !isNumber && !isString {
			wrong = "must be a number"
		}
	}
	if wrong != "" {
		c.refuse(path, "%s", wrong)
	}
	c.skip(t)
}

// wellKnown reads the messages whose JSON is a string.
var wellKnown = map[protoreflect.FullName]func(string) bool{
	"google.protobuf.Duration": func(s string) bool {
		return protojson.Unmarshal([]byte(strconv.Quote(s)), &durationpb.Duration{}) == nil
	},
	"google.protobuf.Timestamp": func(s string) bool {
		return protojson.Unmarshal([]byte(strconv.Quote(s)), &timestamppb.Timestamp{}) == nil
	},
}

var examples = map[protoreflect.FullName]string{
	"google.protobuf.Duration":  `"30s"`,
	"google.protobuf.Timestamp": `"2026-08-31T12:00:00Z"`,
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
