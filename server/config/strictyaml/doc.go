// Package strictyaml decodes YAML into Go structs and forgives nothing: what is misspelt, of the wrong type, given twice
// or left empty is a problem with its line and its path, and all problems of a document are reported together. A setting
// that is silently ignored is worse than a gateway that does not start.
//
// It accepts a plain subset of YAML: one document, no anchors, aliases, merge keys or tags. Struct fields are named by
// yaml tags as in go.yaml.in/yaml/v3. Types decode themselves through [Unmarshaler], UnmarshalYAML(func(any) error) or
// encoding.TextUnmarshaler; the function handed to the second form is as strict as everything else.
//
// Text values may refer to the environment and to files, see [Options.Expand]. What came out of a reference is never part
// of a problem's message.
package strictyaml
