package api

import (
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/endsession/endsession/adapters"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server/invalidation"
)

// MaxMessage is how many bytes a request may have.
const MaxMessage = 1 << 20

// maxFullReport is how many bytes a request may have to be told all that is wrong with it. A violation takes hundreds of
// times the memory of an empty item on the wire, so of a larger request only the first is reported.
const maxFullReport = 16 << 10

// rules holds requests against the contract. Both validators have the same rules; first stops at the first violation.
type rules struct{ first, all protovalidate.Validator }

// newRules compiles the rules of every request, so that one that does not compile is found at start.
func newRules() (rules, error) {
	var requests []protoreflect.MessageDescriptor
	methods := endsessionv1.File_endsession_v1_service_proto.Services().Get(0).Methods()
	for i := range methods.Len() {
		requests = append(requests, methods.Get(i).Input())
	}
	options := []protovalidate.ValidatorOption{protovalidate.WithMessageDescriptors(requests...), protovalidate.WithDisableLazy()}
	all, err := protovalidate.New(options...)
	if err != nil {
		return rules{}, fmt.Errorf("compile the contract's rules: %w", err)
	}
	first, err := protovalidate.New(append(options, protovalidate.WithFailFast())...)
	if err != nil {
		return rules{}, fmt.Errorf("compile the contract's rules: %w", err)
	}
	return rules{first: first, all: all}, nil
}

// check returns what is wrong with a request. The error means that the rules could not be applied. Messages of other
// services (health, reflection) only need to be readable.
func (r rules) check(m proto.Message) ([]Violation, error) {
	switch {
	case isMalformed(m):
		return []Violation{{Description: "the request is not a valid protobuf message"}}, nil
	case m.ProtoReflect().Descriptor().ParentFile().Package() != endsessionv1.File_endsession_v1_service_proto.Package():
		return nil, nil
	}
	size := proto.Size(m)
	if size > MaxMessage {
		return []Violation{{Description: fmt.Sprintf("the request is larger than %d bytes", MaxMessage)}}, nil
	}
	if unknown := unknownFields(nil, "", m.ProtoReflect()); len(unknown) > 0 {
		return unknown, nil
	}
	err := r.first.Validate(m)
	if err != nil && size <= maxFullReport {
		err = r.all.Validate(m)
	}
	if err == nil {
		return nil, nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return nil, err
	}
	var found []Violation
	for _, v := range invalid.Violations {
		rule := v.Proto.GetRuleId()
		found = append(found, Violation{
			Field:       fieldOf(m, protovalidate.FieldPathString(v.Proto.GetField()), rule),
			Description: v.Proto.GetMessage(),
			Reason:      ruleReasons[rule],
		})
		if found[len(found)-1].Description == "" {
			found[len(found)-1].Description = "breaks the rule " + rule
		}
	}
	return found, nil
}

// ruleReasons are the reasons of rules that have one of their own.
var ruleReasons = map[string]adapters.Reason{"confirm_broad.required": invalidation.ReasonConfirmBroad}

// fieldOf is the field that a violation is about. Rules over several fields of a request have no path; the first part
// of their id names the field to mend.
func fieldOf(m proto.Message, path, rule string) string {
	if path != "" {
		return path
	}
	name, _, _ := strings.Cut(rule, ".")
	if m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name)) == nil {
		return ""
	}
	return name
}

// unknownFields appends the fields below m that this version of the API does not know, by number: their names are not
// on the wire.
func unknownFields(found []Violation, path string, m protoreflect.Message) []Violation {
	for rest := m.GetUnknown(); len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return append(found, Violation{Field: path, Description: "malformed field"})
		}
		found = append(found, Violation{
			Field:       join(path, fmt.Sprint(num)),
			Description: fmt.Sprintf("unknown field number %d", num),
		})
		if len(found) >= maxViolations {
			return found
		}
		rest = rest[n:]
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := join(path, string(fd.Name()))
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				found = unknownFields(found, fmt.Sprintf("%s[%q]", path, k.String()), v.Message())
				return len(found) < maxViolations
			})
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				if len(found) >= maxViolations {
					break
				}
				found = unknownFields(found, fmt.Sprintf("%s[%d]", path, i), v.List().Get(i).Message())
			}
		case !fd.IsMap() && !fd.IsList() && fd.Message() != nil:
			found = unknownFields(found, path, v.Message())
		}
		return len(found) < maxViolations
	})
	return found
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
