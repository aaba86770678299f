package manual

import (
	"bytes"
	"encoding/json"

	"github.com/endsession/endsession/adapters"
)

// reference is what a text looks like that comes from a variable or a file.
const reference = `\$\{(env|file):[^}]+\}`

type object = map[string]any

// Schema returns a JSON Schema (2020-12) of the configuration, for the kinds of target in the registry. root is the
// directory of the module's source.
//
// It accepts what has the right form: known keys, values of the right type. What a value means, and whether one goes with
// another, is for "endsession config check".
func Schema(root string, registry map[string]adapters.Type) ([]byte, error) {
	whole, err := describe(root, registry)
	if err != nil {
		return nil, err
	}
	s := whole.schema()
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "The configuration of endsession"
	s["description"] = "See docs/configuration.md. \"endsession config check FILE\" checks more than a schema can."
	s["$defs"] = object{"reference": object{
		"description": "A text from the environment, ${env:NAME}, or from a file, ${file:PATH}.",
		"type":        "string", "pattern": reference,
	}}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (f *form) schema() object {
	switch {
	case f.either != nil:
		var forms []object
		for _, x := range f.either {
			forms = append(forms, x.schema())
		}
		return object{"anyOf": forms}
	case f.words != nil:
		return referable(object{"enum": f.words})
	case f.pattern != "":
		// A text that is one reference or more is checked when it is replaced.
		s := referable(object{"type": "string", "pattern": f.pattern, "minLength": 1})
		if f.numeric {
			s["anyOf"] = append(s["anyOf"].([]object), object{"type": "number"})
		}
		return s
	case f.json == "boolean" || f.json == "number":
		return referable(object{"type": f.json})
	case f.json == "integer":
		s := object{"type": f.json}
		if f.most > 0 {
			s["minimum"], s["maximum"] = f.least, f.most
		}
		return referable(s)
	case f.item != nil:
		s := object{"type": "array", "items": f.item.schema()}
		if f.minItems > 0 {
			s["minItems"] = f.minItems
		}
		return s
	case f.values != nil:
		s := object{"type": "object", "additionalProperties": f.values.schema()}
		if f.names != "" {
			s["propertyNames"] = object{"pattern": f.names}
		}
		return s
	case f.keys != nil:
		return f.mapping()
	case f.json == "":
		return object{}
	}
	return object{"type": f.json}
}

func referable(s object) object {
	return object{"anyOf": []object{s, {"$ref": "#/$defs/reference"}}}
}

func (f *form) mapping() object {
	properties := object{}
	var required []string
	for _, k := range f.keys {
		p := k.form.schema()
		p["description"] = k.description()
		if k.value != nil {
			p["default"] = k.value
		}
		properties[k.name] = p
		if k.required {
			required = append(required, k.name)
		}
	}
	s := object{"type": "object", "properties": properties, "additionalProperties": false}
	exclusive := f.oneOf
	var rest []object
	for _, k := range f.kinds {
		p := k.config.schema()
		p["description"] = k.config.title
		properties[k.name] = p
		exclusive = append(exclusive, k.name)
		rest = append(rest, object{"if": object{"required": []string{k.name}}, "then": object{"properties": k.mappings()}})
	}
	if rest != nil {
		s["allOf"] = rest
	}
	if required != nil {
		s["required"] = required
	}
	if exclusive != nil {
		var one []object
		for _, name := range exclusive {
			one = append(one, object{"required": []string{name}})
		}
		s["oneOf"] = one
	}
	return s
}

// mappings is what a kind makes of the keys providers and groups.
func (k kind) mappings() object {
	directory := k.directory.schema()
	groups := directory
	if k.groups != nil {
		groups = object{
			"if":   object{"anyOf": []object{{"required": []string{"directory"}}, {"required": []string{"max_members"}}}},
			"then": directory, "else": k.groups.schema(),
		}
	}
	var providers any = false
	if k.providers != nil {
		providers = object{"additionalProperties": k.providers.schema()}
	}
	return object{"providers": providers, "groups": object{"additionalProperties": groups}}
}

// description is the comment, with the default.
func (k key) description() string {
	switch {
	case k.fallback != "":
		return k.about + " Default: " + k.fallback + "."
	case k.required:
		return k.about + " Required."
	}
	return k.about
}
