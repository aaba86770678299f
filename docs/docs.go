// Package docs holds what the program shows of its documentation.
package docs

import _ "embed"

// ConfigurationSchema is the JSON Schema of the configuration file. It is generated (make generate).
//
//go:embed configuration.schema.json
var ConfigurationSchema []byte
