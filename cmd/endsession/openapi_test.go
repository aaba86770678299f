package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/endsession/endsession/gen/openapi"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// contract is the OpenAPI document, to hold requests and answers to.
type contract struct {
	compiler  *jsonschema.Compiler
	compiling sync.Mutex // the compiler is not for several at once
	paths     map[string]map[string]struct {
		RequestBody struct{ Content content }
		Responses   map[string]struct {
			Ref     string `json:"$ref"`
			Content content
		}
	}
}

type content map[string]struct{ Schema any }

// readContract compiles the document once. Unknown members of answers are refused: what the gateway answers is to be in
// the document, although clients must put up with more.
var readContract = sync.OnceValues(func() (*contract, error) {
	var c contract
	if err := json.Unmarshal(openapi.Document, &struct {
		Paths any
	}{&c.paths}); err != nil {
		return nil, err
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Document))
	if err != nil {
		return nil, err
	}
	for _, s := range document.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any) {
		if s := s.(map[string]any); s["type"] == "object" && s["additionalProperties"] == nil {
			s["additionalProperties"] = false
		}
	}
	c.compiler = jsonschema.NewCompiler()
	c.compiler.DefaultDraft(jsonschema.Draft2020)
	c.compiler.AssertFormat()
	return &c, c.compiler.AddResource("openapi.json", document)
})

// pathOf is the document's path that a path of a request fits.
func (c *contract) pathOf(t testing.TB, path string) string {
	t.Helper()
	path, _, _ = strings.Cut(path, "?")
	// The one without variables first: invalidations:cancel is no invalidation.
	for _, p := range slices.Sorted(maps.Keys(c.paths)) {
		pattern := regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(p), `[^/:]+`)
		if regexp.MustCompile("^" + pattern + "$").MatchString(path) {
			return p
		}
	}
	t.Errorf("the OpenAPI document has no path %s", path)
	return ""
}

// validate holds a JSON text to the schema at a place of the document.
func (c *contract) validate(pointer []string, text string) error {
	for i, p := range pointer {
		pointer[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~", "~0"), "/", "~1")
	}
	c.compiling.Lock()
	schema, err := c.compiler.Compile("openapi.json#/" + strings.Join(pointer, "/"))
	c.compiling.Unlock()
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// asDocumented holds an answer of the REST API to the OpenAPI document. Other paths are not its business.
func asDocumented(t testing.TB, method, path string, status int, answer string) {
	t.Helper()
	if !strings.HasPrefix(path, "/v1/") {
		return
	}
	c, err := readContract()
	if err != nil {
		t.Fatal(err)
	}
	p := c.pathOf(t, path)
	r, ok := c.paths[p][strings.ToLower(method)].Responses[fmt.Sprint(status)]
	if !ok {
		t.Errorf("%s %s: the OpenAPI document has no HTTP %d for it", method, path, status)
		return
	}
	pointer := []string{"paths", p, strings.ToLower(method), "responses", fmt.Sprint(status), "content", "application/json", "schema"}
	if name, ok := strings.CutPrefix(r.Ref, "#/components/responses/"); ok {
		pointer = []string{"components", "responses", name, "content", "application/json", "schema"}
	}
	for line := range strings.Lines(answer) {
		if err := c.validate(slices.Clone(pointer), line); err != nil {
			t.Errorf("%s %s: HTTP %d is not as the OpenAPI document says: %v\n%s", method, path, status, err, line)
		}
	}
}

// askedAsDocumented holds the body of a request to the OpenAPI document.
func askedAsDocumented(t testing.TB, path, body string) error {
	t.Helper()
	c, err := readContract()
	if err != nil {
		t.Fatal(err)
	}
	return c.validate([]string{"paths", c.pathOf(t, path), "post", "requestBody", "content", "application/json", "schema"}, body)
}

// TestOpenAPIRequests: the document refuses what the gateway refuses, as far as a schema can.
func TestOpenAPIRequests(t *testing.T) {
	const path = "/v1/sessions:invalidate"
	for body, good := range map[string]bool{
		`{"selector": {"user": {"id": "alice"}}}`: true,
		`{"selector": {"user": {"id": "alice", "attributes": {"uid": "a17"}, "targetUsernames": {"storage": {"usernames": ["a"]}}}}, "waitTimeout": "1.5s"}`: true,
		`{"selector": {"provider": {"type": "saml", "name": "okta"}}, "confirmBroad": true, "priority": "PRIORITY_BULK"}`:                                    true,
		`{}`:                                                                          false,
		`{"selector": {}}`:                                                            false,
		`{"selector": null}`:                                                          false,
		`{"selectors": {"all": true}}`:                                                false,
		`{"selector": {"all": false}}`:                                                false,
		`{"selector": {"usr": {"id": "alice"}}}`:                                      false,
		`{"selector": {"user": {"id": ""}}}`:                                          false,
		`{"selector": {"user": {"id": "  "}}}`:                                        false,
		`{"selector": {"user": {"name": "alice"}}}`:                                   false,
		`{"selector": {"provider": {"type": "okta"}}}`:                                false,
		`{"selector": {"user": {"id": "alice"}}, "waitTimeout": 30}`:                  false,
		`{"selector": {"user": {"id": "alice"}}, "waitTimeout": "30"}`:                false,
		`{"selector": {"user": {"id": "alice"}}, "requestId": "1"}`:                   false,
		`{"selector": {"user": {"id": "alice"}}, "targets": ["A"]}`:                   false,
		`{"selector": {"user": {"id": "alice"}}, "targets": ["a", "a"]}`:              false,
		`{"selector": {"user": {"id": "alice"}}, "labels": {"Ticket": "1"}}`:          false,
		`{"selector": {"user": {"id": "` + strings.Repeat("x", 1025) + `"}}}`:         false,
		`{"selector": {"user": {"id": "alice"}}, "priority": "BULK"}`:                 false,
		`{"selector": {"user": {"id": "alice", "targetUsernames": {"storage": {}}}}}`: false,
	} {
		if err := askedAsDocumented(t, path, body); (err == nil) != good {
			t.Errorf("%s: want good: %t, got %v", body, good, err)
		}
	}
}
