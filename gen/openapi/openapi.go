// Package openapi holds the OpenAPI document of the REST API.
//
// This file is the only one below gen that is written by hand; the document beside it is generated (make generate).
package openapi

import _ "embed"

// Document is the OpenAPI 3.1 document, as JSON.
//
//go:embed endsession.openapi.json
var Document []byte
