package gateway

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/endsession/endsession/server/api"
)

// checkQuery returns what is wrong with the query string of a GET: grpc-gateway ignores what it does not know, and
// lets the path win quietly. fixed are the fields that the path gives already.
func checkQuery(raw string, md protoreflect.MessageDescriptor, fixed map[string]string) []api.Violation {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return []api.Violation{{Description: "the query string is malformed"}}
	}
	var found []api.Violation
	refuse := func(key, why string) { found = append(found, api.Violation{Field: key, Description: why}) }
	seen := map[protoreflect.FieldNumber]bool{}
	for _, key := range slices.Sorted(maps.Keys(query)) {
		values := query[key]
		fd := md.Fields().ByJSONName(key)
		if fd == nil {
			fd = md.Fields().ByTextName(key)
		}
		switch {
		case fd == nil:
			refuse(key, "unknown query parameter")
			continue
		case seen[fd.Number()] || len(values) > 1 && !fd.IsList():
			refuse(key, "is given twice")
			continue
		}
		seen[fd.Number()] = true
		_, ok := fixed[string(fd.Name())]
		switch {
		case ok:
			refuse(key, "is given by the path already")
		case !utf8.ValidString(strings.Join(values, "")):
			refuse(key, "is not valid UTF-8")
		case slices.Contains(values, ""):
			refuse(key, "must not be empty; leave the parameter out instead")
		case !readable(md, key, values):
			refuse(key, fmt.Sprintf("%q cannot be read", values))
		}
	}
	return found
}

// readable reports whether grpc-gateway can make the field of the values.
func readable(md protoreflect.MessageDescriptor, key string, values []string) bool {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		return false
	}
	return runtime.PopulateQueryParameters(mt.New().Interface(), url.Values{key: values}, utilities.NewDoubleArray(nil)) == nil
}
