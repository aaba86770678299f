package manual

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/config/strictyaml"
	"github.com/endsession/endsession/server/invalidation"
)

// form is how one value of the file is written.
type form struct {
	// about is what the page calls it: "text", "time span".
	about string
	// json is the JSON Schema type; "" if either says more.
	json string
	// words are all that a text may be, pattern is what it looks like; neither: anything.
	words   []string
	pattern string
	// numeric: the text may look like a number, too.
	numeric bool
	// least and most bound a number; both 0: nothing does.
	least, most int
	// keys, item and values are those of a mapping, of a list, and of a mapping with keys of the user's choice.
	keys   []key
	item   *form
	values *form
	// names is what the keys of such a mapping look like.
	names string
	// minItems is how many entries a list has at least.
	minItems int
	// oneOf are keys of which a mapping has exactly one.
	oneOf []string
	// either are several forms, any of which will do.
	either []*form
	// kinds are, for a target, what it has besides its keys.
	kinds []kind
	// title is what the type's comment says.
	title string
}

// key is one key of a mapping.
type key struct {
	name     string
	form     *form
	about    string // without the default
	fallback string // the default as the comment has it
	value    any    // the default, if it is a plain value
	exact    bool   // the value is all there is to say of the default
	required bool
	restart  bool // a change needs one
}

// kind is one kind of target.
type kind struct {
	name              string
	config            *form
	providers, groups *form // nil if the kind has none of its own
	directory         *form // a group that the directory knows
}

// text is a type that is written as a text.
type text struct {
	about, pattern string
	words          []string
	numeric        bool
}

const span = `([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?`

// texts are the types that decode themselves from a text. One that is not here is an error: say here how it is written.
var texts = map[reflect.Type]text{
	reflect.TypeFor[secret.String]():      {about: "secret"},
	reflect.TypeFor[config.Duration]():    {about: "time span", pattern: `^` + span + `$`},
	reflect.TypeFor[config.Age]():         {about: "time span", pattern: `^` + span + `$`},
	reflect.TypeFor[config.Interval]():    {about: "time span, or `never`", pattern: `^(never|` + span + `)$`},
	reflect.TypeFor[config.Rate]():        {about: "rate", pattern: `^[1-9][0-9]{0,6}/[smh]$`},
	reflect.TypeFor[config.KeyHash]():     {about: "64 hexadecimal digits", pattern: `^[0-9a-fA-F]{64}$`, numeric: true},
	reflect.TypeFor[config.Moment]():      {about: "time or date", pattern: `^[0-9]{4}-[0-9]{2}-[0-9]{2}(T.+)?$`},
	reflect.TypeFor[config.OnMissing]():   {words: []string{string(config.UseGiven), string(config.Fail)}},
	reflect.TypeFor[config.Access]():      {words: []string{string(config.Open), string(config.Authenticated), string(config.Off)}},
	reflect.TypeFor[config.LogFormat]():   {words: []string{string(config.LogAuto), string(config.LogText), string(config.LogJSON)}},
	reflect.TypeFor[config.LogLevel]():    {words: []string{"debug", "info", "warn", "error"}},
	reflect.TypeFor[config.LDAPMembers](): {words: []string{string(config.LDAPMember), string(config.LDAPUniqueMember), string(config.LDAPMemberUID), string(config.LDAPMemberOf)}},
	reflect.TypeFor[invalidation.Right](): {words: rights()},
	reflect.TypeFor[time.Duration]():      {about: "time span, as Go writes it", pattern: `^[-+]?([0-9.]+(ns|us|µs|ms|s|m|h))+$`},
}

func rights() (words []string) {
	for _, r := range invalidation.Rights {
		words = append(words, string(r))
	}
	return words
}

// exclusive are the keys of which a mapping has exactly one.
var exclusive = map[reflect.Type][]string{
	reflect.TypeFor[config.Store]():     {"sqlite", "postgres"},
	reflect.TypeFor[config.Directory](): {"file", "ldap"},
	reflect.TypeFor[config.Rule]():      {"allow", "deny"},
}

// restarts are the keys, by where they stand, of which a reload takes over no change; what stands below them neither,
// except for what reloads lists.
var (
	restarts = []string{
		"listen", "store", "audit", "retention", "check_interval", "log",
		"targets[].name", "targets[].concurrency", "targets[].rate", "targets[].retry_for",
	}
	reloads = []string{"listen.tls"}
)

// builder makes forms of types.
type builder struct {
	registry map[string]adapters.Type
	comments *comments
	errs     []error
}

// describe makes the form of the whole file.
func describe(root string, registry map[string]adapters.Type) (*form, error) {
	b := &builder{registry: registry, comments: &comments{root: root, read: map[string]map[string]string{}}}
	whole := b.mapping(reflect.TypeFor[config.Config](), "")
	return whole, errors.Join(b.errs...)
}

func (b *builder) errorf(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

func (b *builder) comment(t reflect.Type, field string) string {
	text, err := b.comments.of(t, field)
	switch {
	case err != nil:
		b.errs = append(b.errs, err)
	case text == "":
		b.errorf("%s.%s has no comment", t, field)
	}
	return text
}

// form makes the form of a type. at is where it stands in the file.
func (b *builder) form(t reflect.Type, at string) *form {
	if known, ok := texts[t]; ok {
		return &form{about: known.about, json: "string", pattern: known.pattern, words: known.words, numeric: known.numeric}
	}
	switch t {
	case reflect.TypeFor[config.Target]():
		return b.target(t, at)
	case reflect.TypeFor[config.Group](), reflect.TypeFor[config.Providers]():
		return &form{about: "what the kind says"} // see [kind]
	}
	if f, ok := reflect.Zero(t).Interface().(config.Former); ok {
		return b.either(t, at, f.Forms())
	}
	if x, ok := reflect.New(t).Interface().(interface {
		UnmarshalYAML(func(any) error) error
	}); ok {
		return b.either(t, at, asked(t, x))
	}
	switch reflect.New(t).Interface().(type) {
	case strictyaml.Unmarshaler, encoding.TextUnmarshaler, yaml.Unmarshaler:
		b.errorf("%s: %s decodes itself, and it is not known how it is written", at, t)
		return &form{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return b.form(t.Elem(), at)
	case reflect.Struct:
		return b.mapping(t, at)
	case reflect.Slice:
		item := b.form(t.Elem(), at+"[]")
		return &form{about: "list of " + plural(item.about), json: "array", item: item}
	case reflect.Map:
		values := b.form(t.Elem(), at+".…")
		return &form{about: "mapping of names to " + plural(values.about), json: "object", values: values}
	case reflect.String:
		return &form{about: "text", json: "string"}
	case reflect.Bool:
		return &form{about: "`true` or `false`", json: "boolean"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return &form{about: "whole number", json: "integer"}
	case reflect.Float32, reflect.Float64:
		return &form{about: "number", json: "number"}
	}
	b.errorf("%s: a %s cannot be written", at, t)
	return &form{}
}

// plural is several of what a form is called.
func plural(about string) string {
	if strings.HasSuffix(about, "s") || strings.Contains(about, "`") {
		return about
	}
	return strings.ReplaceAll(about, ", or ", "s, or ") + "s"
}

// asked finds out what a type decodes itself from, by what it asks for: when it is refused everything, and when it is
// refused nothing. What it only looks at, a mapping of anything, is left out.
func asked(t reflect.Type, x interface {
	UnmarshalYAML(func(any) error) error
}) (values []any) {
	refusal := errors.New("refused")
	for _, answer := range []error{refusal, nil} {
		_ = x.UnmarshalYAML(func(v any) error {
			asked := reflect.TypeOf(v).Elem()
			if asked.ConvertibleTo(t) && asked.Kind() == reflect.Struct {
				asked = t // a type without methods, made to decode the same fields
			}
			peeks := asked.Kind() == reflect.Interface || asked.Kind() == reflect.Map && asked.Elem().Kind() == reflect.Interface
			if value := reflect.Zero(asked).Interface(); !peeks && !slices.ContainsFunc(values, func(v any) bool { return reflect.TypeOf(v) == asked }) {
				values = append(values, value)
			}
			return answer
		})
	}
	return values
}

// title is a type's comment.
func (b *builder) title(t reflect.Type) string { return sentence(b.comment(t, ""), t.Name(), "") }

// either makes a form of several. One that is t itself is its fields.
func (b *builder) either(t reflect.Type, at string, values []any) *form {
	f := new(form)
	var abouts []string
	for _, v := range values {
		var one *form
		if x := reflect.TypeOf(v); x == t {
			one = b.mapping(t, at)
		} else {
			one = b.form(x, at)
		}
		if one.keys != nil {
			one.title = b.title(t)
		}
		f.either, abouts = append(f.either, one), append(abouts, one.about)
	}
	switch len(f.either) {
	case 0:
		b.errorf("%s: it is not known how a %s is written", at, t)
	case 1:
		return f.either[0]
	}
	f.about = strings.Join(abouts, ", or ")
	return f
}

// mapping makes the form of a struct's fields.
func (b *builder) mapping(t reflect.Type, at string) *form {
	f := &form{about: "mapping", json: "object", keys: []key{}, oneOf: exclusive[t], title: b.title(t)}
	value := reflect.New(t)
	if d, ok := value.Interface().(strictyaml.Defaulter); ok {
		d.SetDefaults()
	}
	for _, field := range strictyaml.Fields(t) {
		f.keys = append(f.keys, b.key(t, field, value.Elem(), at))
	}
	return f
}

// owner returns the struct that holds a field, which may be one that is inline.
func owner(t reflect.Type, index []int) reflect.Type {
	for _, i := range index[:len(index)-1] {
		t = t.Field(i).Type
	}
	return t
}

func (b *builder) key(t reflect.Type, field strictyaml.Field, parent reflect.Value, at string) key {
	sf := t.FieldByIndex(field.Index)
	holder := owner(t, field.Index)
	path := strings.TrimPrefix(at+"."+field.Name, ".")
	k := key{name: field.Name, form: b.form(sf.Type, path), restart: restart(path)}
	siblings := map[string]string{}
	for _, f := range strictyaml.Fields(t) {
		siblings[t.FieldByIndex(f.Index).Name] = f.Name
	}
	k.about = inKeys(b.comment(holder, sf.Name), sf.Name, field.Name, siblings)
	if m := defaultText.FindStringSubmatch(k.about); m != nil {
		k.fallback = m[1]
		k.about = strings.TrimSpace(strings.Replace(k.about, m[0], " ", 1))
	}
	if field.Path && k.form.about == "text" {
		k.form.about = "path"
	}
	if m := bounds.FindStringSubmatch(k.about); m != nil && k.form.json == "integer" {
		k.form.least, _ = strconv.Atoi(m[1])
		k.form.most, _ = strconv.Atoi(m[2])
	}
	if strings.Contains(k.about, "At least one.") && k.form.json == "array" {
		k.form.minItems = 1
	}
	if path == "targets[].providers" {
		k.form.names = "^(" + strings.Join(invalidation.ProviderTypes, "|") + ")(/.*\\S.*)?$"
	}
	b.setDefault(&k, parent.FieldByIndex(field.Index), path)
	_, options, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
	optional := slices.Contains(strings.Split(options, ","), "omitempty")
	k.required = !optional && k.fallback == "" && (k.form.json != "object" || len(k.form.keys) == 0 || slices.ContainsFunc(k.form.keys, func(k key) bool { return k.required }))
	return k
}

// setDefault notes the value that the field has by itself, and checks that the comment says the same.
func (b *builder) setDefault(k *key, v reflect.Value, path string) {
	if v.IsZero() && k.fallback == "" || v.Kind() == reflect.Struct || v.Kind() == reflect.Pointer {
		return
	}
	node := new(yaml.Node)
	if err := node.Encode(v.Interface()); err != nil {
		b.errorf("%s: %w", path, err)
		return
	}
	node.Style = yaml.FlowStyle
	written, err := yaml.Marshal(node)
	if err != nil {
		b.errorf("%s: %w", path, err)
		return
	}
	told := strings.Trim(strings.TrimSpace(string(written)), `'"`)
	switch after, same := strings.CutPrefix(k.fallback, told); {
	case same && after == "":
		k.exact = true
	case same && strings.ContainsRune(",:", rune(after[0])):
	case v.IsZero():
		return // the comment says what absence means
	default:
		b.errorf("%s is %s by default; its comment says %q", path, told, k.fallback)
	}
	if err := node.Decode(&k.value); err != nil {
		b.errorf("%s: %w", path, err)
	}
}

// restart reports whether a change of the key at path needs one.
func restart(path string) bool {
	under := func(top string) bool {
		return path == top || strings.HasPrefix(path, top+".") || strings.HasPrefix(path, top+"[")
	}
	return slices.ContainsFunc(restarts, under) && !slices.ContainsFunc(reloads, under)
}

// target makes the form of a target: its keys, and for each kind what stands under the kind's own.
func (b *builder) target(t reflect.Type, at string) *form {
	f := b.mapping(t, at)
	for _, name := range slices.Sorted(maps.Keys(b.registry)) {
		typ := b.registry[name]
		k := kind{name: name, directory: b.either(reflect.TypeFor[config.Group](), at+".groups.…", config.Group{}.Forms())}
		conf := reflect.TypeOf(typ.NewConfig()).Elem()
		k.config = b.mapping(conf, at+"."+name)
		for i := range k.config.keys {
			k.config.keys[i].restart = moves(typ, k.config.keys[i].name)
		}
		if typ.NewProviders != nil {
			k.providers = b.form(reflect.TypeOf(typ.NewProviders()).Elem(), at+".providers.…")
		}
		if typ.NewGroups != nil {
			k.groups = b.form(reflect.TypeOf(typ.NewGroups()).Elem(), at+".groups.…")
		}
		f.kinds = append(f.kinds, k)
	}
	return f
}

// moves reports whether a change of a kind's key makes another system of the target: a reload leaves that alone.
func moves(typ adapters.Type, name string) bool {
	endpoint := func(value string) string {
		c := typ.NewConfig()
		v := reflect.ValueOf(c).Elem()
		for _, f := range strictyaml.Fields(v.Type()) {
			if x := v.FieldByIndex(f.Index); x.Kind() == reflect.String {
				switch f.Name {
				case name:
					x.SetString("https://" + value + ".example")
				case "url":
					x.SetString("https://a.example")
				}
			}
		}
		return c.Endpoint()
	}
	return endpoint("b") != endpoint("c")
}
