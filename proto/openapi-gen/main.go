// Command openapi-gen is a plugin of protoc that writes the OpenAPI 3.1 document of the REST API.
//
// What protoc-gen-openapiv2 makes is the material: the paths, the schemas and the comments. It writes Swagger 2.0, which
// many tools read no longer, and does not know the rules of protovalidate, how errors look, nor what is always there in
// an answer. So this plugin runs it, brings the outcome into OpenAPI 3.1, and adds what it does not know. (protoc-gen-openapiv3
// of the same project calls itself alpha: what it writes may change with every release.)
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// object is an object of JSON.
type object = map[string]any

func main() {
	log.SetFlags(0)
	log.SetPrefix("openapi-gen: ")
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	out, err := generate(in)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(out); err != nil {
		log.Fatal(err)
	}
}

// generate answers protoc's request.
func generate(request []byte) ([]byte, error) {
	rules, err := rulesOf(request)
	if err != nil {
		return nil, fmt.Errorf("read the rules: %w", err)
	}
	cmd := exec.Command("go", "tool", "protoc-gen-openapiv2")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(request), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("protoc-gen-openapiv2: %w", err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return nil, err
	}
	for _, f := range response.GetFile() {
		var swagger object
		if err := json.Unmarshal([]byte(f.GetContent()), &swagger); err != nil {
			return nil, fmt.Errorf("%s: %w", f.GetName(), err)
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(document(swagger, rules)); err != nil {
			return nil, err
		}
		f.Content = proto.String(b.String())
		f.Name = proto.String(path.Join(path.Dir(f.GetName()), strings.Replace(path.Base(f.GetName()), ".swagger.", ".openapi.", 1)))
	}
	return proto.Marshal(&response)
}

// rulesOf reads the rules of protovalidate, as JSON Schema says them, by message and JSON name of the field.
func rulesOf(request []byte) (map[string]map[string]object, error) {
	var plain, full pluginpb.CodeGeneratorRequest
	if err := proto.Unmarshal(request, &plain); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: plain.GetProtoFile()})
	if err != nil {
		return nil, err
	}
	// The options are extensions, which the files themselves declare.
	types := dynamicpb.NewTypes(files)
	if err := (proto.UnmarshalOptions{Resolver: types}).Unmarshal(request, &full); err != nil {
		return nil, err
	}
	rules := map[string]map[string]object{}
	for _, f := range full.GetProtoFile() {
		if !slices.Contains(full.GetFileToGenerate(), f.GetName()) {
			continue
		}
		for _, m := range f.GetMessageType() {
			rules[m.GetName()] = map[string]object{}
			for _, field := range m.GetField() {
				b, err := protojson.MarshalOptions{Resolver: types}.Marshal(field.GetOptions())
				if err != nil {
					return nil, err
				}
				var options struct {
					Rules object `json:"[buf.validate.field]"`
				}
				if err := json.Unmarshal(b, &options); err != nil {
					return nil, err
				}
				rules[m.GetName()][field.GetJsonName()] = schemaOf(options.Rules)
			}
		}
	}
	return rules, nil
}

// predefined are the rules of rules.proto, as far as a schema can say them.
var predefined = map[string]object{
	"given":             {"minLength": 1, "maxLength": 1024, "pattern": `\S`},
	"target_name":       {"maxLength": 63, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
	"invalidation_name": {"pattern": "^invalidations/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
	"label_key":         {"pattern": "^[a-z0-9][a-z0-9_.-]{0,63}$"},
	"label":             {"maxLength": 321, "pattern": "^[a-z0-9][a-z0-9_.-]{0,63}=.*"},
}

// schemaOf says in JSON Schema what the rules of a field say. CEL expressions are left to the gateway.
func schemaOf(rules object) object {
	s := object{}
	if text, ok := rules["string"].(object); ok {
		if v, ok := text["in"]; ok {
			s["enum"] = v
		}
		if text["uuid"] == true {
			s["format"] = "uuid"
		}
		for _, rule := range []string{"maxLen", "maxBytes"} { // a text of so many bytes has no more characters
			if v, ok := text[rule]; ok {
				s["maxLength"] = number(v)
			}
		}
		for rule := range text {
			name := strings.TrimSuffix(strings.TrimPrefix(rule, "[endsession.v1."), "]")
			merge(s, predefined[name])
		}
	}
	if list, ok := rules["repeated"].(object); ok {
		for rule, keyword := range map[string]string{"minItems": "minItems", "maxItems": "maxItems"} {
			if v, ok := list[rule]; ok {
				s[keyword] = number(v)
			}
		}
		if list["unique"] == true {
			s["uniqueItems"] = true
		}
		if items, ok := list["items"].(object); ok {
			s["items"] = schemaOf(items)
		}
	}
	if m, ok := rules["map"].(object); ok {
		s["maxProperties"] = number(m["maxPairs"])
		if keys, ok := m["keys"].(object); ok {
			s["propertyNames"] = schemaOf(keys)
		}
		if values, ok := m["values"].(object); ok {
			s["additionalProperties"] = schemaOf(values)
		}
	}
	if n, ok := rules["int32"].(object); ok {
		s["minimum"], s["maximum"] = n["gte"], n["lte"]
	}
	if _, ok := rules["duration"]; ok {
		s["pattern"] = `^[0-9]+(\.[0-9]{1,9})?s$`
	}
	return s
}

// number is what protojson writes as a string, because it has 64 bits.
func number(v any) any {
	if s, ok := v.(string); ok {
		return json.Number(s)
	}
	return v
}

// merge adds what is not there yet, at any depth.
func merge(to, from object) {
	for k, v := range from {
		old, ok := to[k]
		inner, isObject := v.(object)
		oldInner, wasObject := old.(object)
		switch {
		case !ok:
			to[k] = v
		case isObject && wasObject:
			merge(oldInner, inner)
		}
	}
}

// always are the fields that are in every answer: protobuf leaves out what is absent, empty, false or 0, and these
// never are. A test holds the gateway's answers to it.
var always = map[string][]string{
	"CancelInvalidationResponse": {"invalidation"},
	"Caller":                     {"kind", "name"},
	"Check":                      {"message", "name", "status"},
	"CheckTargetResponse":        {"checks"},
	"Error":                      {"message", "reason"},
	"GetInvalidationResponse":    {"invalidation"},
	"Invalidation":               {"caller", "createTime", "name", "priority", "revision", "runs", "selector", "state"},
	"ListTargetsResponse":        {"targets"},
	"PauseTargetResponse":        {"target"},
	"Preview":                    {"kind", "target"},
	"ResumeTargetResponse":       {"target"},
	"RetryInvalidationResponse":  {"invalidation"},
	"Run":                        {"expireTime", "kind", "state", "target"},
	"Status":                     {"code", "details", "message"},
	"SupportedCriteria":          {"criteria"},
	"Target":                     {"health", "kind", "name", "state", "supportedCriteria"},
	"TargetHealth":               {"status"},
	"UpstreamRequest":            {"method", "url"},
	"Warning":                    {"code", "message"},
	"WatchInvalidationResponse":  {"invalidation"},
}

// refusal is an answer of a call that was not accepted.
type refusal struct {
	status, name, description string
	retryAfter                bool
}

var refusals = []refusal{
	{"400", "BadRequest", "The request is wrong, or what it asks cannot be done to this invalidation. The detail BadRequest names the fields.", false},
	{"401", "Unauthenticated", "No valid credential came with the request.", false},
	{"403", "PermissionDenied", "The policy does not allow it, or somebody protected would be among those signed out.", false},
	{"404", "NotFound", "There is no such invalidation or target, or the caller may not read it.", false},
	{"409", "RequestIDReused", "The request id belongs to a request with other content.", false},
	{"415", "UnsupportedMediaType", "The content type is not application/json.", false},
	{"429", "ResourceExhausted", "The caller asks too often, or the gateway has too much to do. Wait as long as Retry-After says.", true},
	{"500", "Internal", "A defect of the gateway; the cause is in its log.", false},
	{"503", "Unavailable", "The gateway cannot do it now: the journal cannot be written (NOT_ACCEPTED: nothing was sent; ACCEPTANCE_UNKNOWN: repeat with the same request id), the credential cannot be judged, or the gateway stops.", true},
	{"504", "DeadlineExceeded", "There was no answer in time; what was asked may be carried out. Repeat with the same request id.", false},
}

// can reports whether an operation can be refused so.
func (r refusal) can(operation string, post, names bool) bool {
	switch r.status {
	case "404":
		return names
	case "409":
		return operation == "InvalidateSessions" || operation == "RetryInvalidation"
	case "415":
		return post
	}
	return true
}

// document makes OpenAPI 3.1 of Swagger 2.0.
func document(swagger object, rules map[string]map[string]object) object {
	schemas := swagger["definitions"].(object)
	refer(swagger)
	delete(schemas, "Any")
	schemas["ErrorDetail"] = errorDetail()
	status := schemas["Status"].(object)
	status["description"] = "Why a call was refused: google.rpc.Status."
	merge(status["properties"].(object), object{
		"code":    object{"description": "The code of gRPC, such as 3 for INVALID_ARGUMENT."},
		"message": object{"description": "A sentence for people. Act on the reason in the details."},
		"details": object{"description": "An ErrorInfo, and others where they help."},
	})
	status["properties"].(object)["details"].(object)["items"] = object{"$ref": "#/components/schemas/ErrorDetail"}
	for name, s := range schemas {
		s := s.(object)
		asked := name == "Selector" || name == "User" || name == "TargetUsernames" || name == "Provider" || name == "SessionRef"
		body, isBody := strings.CutSuffix(name, "Body")
		message := name
		if isBody {
			message = body + "Request"
		}
		if asked || isBody || strings.HasSuffix(name, "Request") && name != "UpstreamRequest" {
			s["additionalProperties"] = false // unknown fields are refused
		}
		properties, _ := s["properties"].(object)
		for field, schema := range rules[message] {
			if p, ok := properties[field].(object); ok {
				merge(p, schema)
			}
		}
		if required := always[name]; required != nil {
			s["required"] = required
		}
		delete(s, "default") // of enums: it is never answered, and in a request it means the same as absence
	}
	selector := schemas["Selector"].(object)
	selector["minProperties"] = 1
	selector["properties"].(object)["all"].(object)["const"] = true

	responses := object{}
	for _, r := range refusals {
		response := answer(r.description, object{"$ref": "#/components/schemas/Status"})
		if r.retryAfter {
			response["headers"] = object{"Retry-After": object{"description": "After how many seconds to ask again, if that is known.", "schema": object{"type": "integer", "minimum": 1}}}
		}
		responses[r.name] = response
	}
	paths := object{}
	for p, item := range swagger["paths"].(object) {
		for method, o := range item.(object) {
			operation(p, method, o.(object), rules)
		}
		paths[p] = item
	}
	return object{
		"openapi": "3.1.0",
		"info":    swagger["info"],
		"servers": []any{object{"url": "/", "description": "The gateway that serves this document."}},
		"tags": []any{
			object{"name": "invalidations", "description": "End sessions, and see what became of it."},
			object{"name": "targets", "description": "The systems whose sessions are ended."},
		},
		"security": []any{object{"bearer": []any{}}, object{"certificate": []any{}}, object{}},
		"paths":    paths,
		"components": object{
			"schemas":   schemas,
			"responses": responses,
			"securitySchemes": object{
				"bearer":      object{"type": "http", "scheme": "bearer", "description": "An API key (esk_…) or an access token of an OpenID provider, in the header Authorization."},
				"certificate": object{"type": "mutualTLS", "description": "A client certificate. A gateway without authentication, which serves its own machine only, wants none of these."},
			},
		},
	}
}

// operation brings one operation into the form of OpenAPI 3.1.
func operation(path, method string, o object, rules map[string]map[string]object) {
	id := o["operationId"].(string)
	tag := "invalidations"
	if strings.HasPrefix(path, "/v1/targets") {
		tag = "targets"
	}
	o["tags"] = []any{tag}
	var parameters []any
	listed, _ := o["parameters"].([]any)
	for _, p := range listed {
		p := p.(object)
		if p["in"] == "body" {
			// A request with nothing but optional fields is `{}` as well as no body at all.
			o["requestBody"] = object{"required": id == "InvalidateSessions" || id == "CancelInvalidations", "content": content(p["schema"].(object))}
			continue
		}
		name := p["name"].(string)
		schema := object{}
		for _, k := range []string{"type", "format", "enum", "items"} {
			if v, ok := p[k]; ok {
				schema[k] = v
			}
			delete(p, k)
		}
		delete(p, "default")
		if _, multi := p["collectionFormat"]; multi {
			delete(p, "collectionFormat")
			p["style"], p["explode"] = "form", true
		}
		merge(schema, rules[id+"Request"][name])
		if name == "invalidation" {
			schema["format"] = "uuid"
			p["description"] = "What follows `invalidations/` in the invalidation's name."
		}
		if name == "target" && p["in"] == "path" {
			p["description"] = "The target's name."
		}
		p["schema"] = schema
		parameters = append(parameters, p)
	}
	if delete(o, "parameters"); parameters != nil {
		o["parameters"] = parameters
	}
	responses := object{}
	for status, r := range o["responses"].(object) {
		r := r.(object)
		if status == "default" {
			continue
		}
		description := "It was done."
		switch {
		case status == "202":
			description = r["description"].(string)
		case id == "InvalidateSessions" || id == "RetryInvalidation":
			description = "Every target is done, one way or another: look at the state. With validateOnly, what would be done."
		case id == "WatchInvalidation":
			description = "A stream of JSON objects, one a line, each with the invalidation in `result`. The last one has an `error` if the stream was broken off."
		case method == "get":
			description = "What was asked for."
		}
		responses[status] = answer(description, r["schema"].(object))
	}
	for _, r := range refusals {
		if r.can(id, method == "post", strings.Contains(path, "{")) {
			responses[r.status] = object{"$ref": "#/components/responses/" + r.name}
		}
	}
	o["responses"] = responses
}

func answer(description string, schema object) object {
	return object{"description": description, "content": content(schema)}
}

func content(schema object) object {
	return object{"application/json": object{"schema": schema}}
}

// refer makes references lead to where the schemas are in OpenAPI 3, and takes away what protoc-gen-openapiv2 puts
// beside them without need.
func refer(v any) {
	switch v := v.(type) {
	case object:
		if ref, ok := v["$ref"].(string); ok {
			v["$ref"] = strings.Replace(ref, "#/definitions/", "#/components/schemas/", 1)
			delete(v, "type")
		}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			refer(v[k])
		}
	case []any:
		for _, x := range v {
			refer(x)
		}
	}
}

// errorDetail is the schema of the details that the gateway gives.
func errorDetail() object {
	text := func(description string) object { return object{"type": "string", "description": description} }
	return object{
		"type":        "object",
		"description": "A google.rpc.ErrorInfo, BadRequest or RetryInfo; `@type` says which.",
		"properties": object{
			"@type":    text("`type.googleapis.com/google.rpc.` and ErrorInfo, BadRequest or RetryInfo."),
			"reason":   text("ErrorInfo: one of the reasons that Error lists."),
			"domain":   text("ErrorInfo: `endsession`."),
			"metadata": object{"type": "object", "additionalProperties": object{"type": "string"}, "description": "ErrorInfo: with ACCEPTANCE_UNKNOWN, the `name` to look up."},
			"fieldViolations": object{"type": "array", "description": "BadRequest: what is wrong.", "items": object{
				"type":       "object",
				"properties": object{"field": text("Where. Absent: the request as a whole."), "description": text("Why.")},
				"required":   []string{"description"},
			}},
			"retryDelay": text("RetryInfo: how long to wait, such as `3s`."),
		},
		"required": []string{"@type"},
	}
}
