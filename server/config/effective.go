package config

import (
	"io"

	"go.yaml.in/yaml/v3"
)

// Effective writes the configuration as it works, defaults filled in and secrets masked.
func (c *Config) Effective(w io.Writer) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(c); err != nil {
		return err
	}
	return enc.Close()
}

// MarshalYAML writes the target with its own part under the key of its kind.
func (t Target) MarshalYAML() (any, error) {
	type plain Target
	var all, own yaml.Node
	if err := all.Encode(plain(t)); err != nil {
		return nil, err
	}
	if t.Config == nil {
		return &all, nil
	}
	if err := own.Encode(t.Config); err != nil {
		return nil, err
	}
	name := all.Content[:2:2] // the first field and its value
	all.Content = append(append(name, &yaml.Node{Kind: yaml.ScalarNode, Value: t.Kind}, &own), all.Content[2:]...)
	return &all, nil
}
