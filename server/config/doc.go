// Package config reads the gateway's configuration: strictly, from one YAML file, reporting everything that is wrong with
// it at once, each problem with its line and the path of the key.
//
// It knows the shape of the file and nothing of what the settings do. A target's own part is decoded into the type its
// kind brings along ([adapters.Type]); names and groups of people are handed on as written, for identity to compile.
//
// Every text may hold references: ${env:NAME} is replaced by an environment variable, ${file:PATH} by a file's content
// without the newline at its end, and "$${" stands for the characters "${". Relative paths, in references as well as
// under the keys path and those that end in _file, are relative to the directory of the configuration file.
package config
