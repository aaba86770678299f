package policy

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/endsession/endsession/server/invalidation"
)

// The types of what expressions see.
const (
	callerType      = "endsession.Caller"
	certificateType = "endsession.Certificate"
	requestType     = "endsession.Request"
	userType        = "endsession.User"
	providerType    = "endsession.Provider"
	targetType      = "endsession.Target"
)

var (
	texts   = cel.ListType(cel.StringType)
	textMap = cel.MapType(cel.StringType, cel.StringType)
	listMap = cel.MapType(cel.StringType, texts)
)

// schema holds the fields of each type. Because they are declared, a field that is misspelt is an error when the rule is
// compiled.
var schema = map[string]map[string]*cel.Type{
	callerType: {
		"name": cel.StringType, "kind": cel.StringType, "groups": texts,
		"claims": cel.MapType(cel.StringType, cel.DynType), "certificate": cel.ObjectType(certificateType),
	},
	certificateType: {
		"subject": cel.StringType, "common_name": cel.StringType, "dns": texts, "emails": texts, "uris": texts, "spiffe_id": cel.StringType,
	},
	requestType: {
		"method": cel.StringType, "own": cel.BoolType, "targets": texts, "names": listMap,
		"has_user": cel.BoolType, "has_provider": cel.BoolType, "has_group": cel.BoolType, "has_sessions": cel.BoolType,
		"all": cel.BoolType, "broad": cel.BoolType,
		"user": cel.ObjectType(userType), "provider": cel.ObjectType(providerType), "group": cel.StringType,
		"labels": textMap, "reason": cel.StringType, "on_behalf_of": cel.StringType, "priority": cel.StringType,
	},
	userType:     {"id": cel.StringType, "email": cel.StringType, "attributes": textMap, "target_usernames": listMap},
	providerType: {"type": cel.StringType, "name": cel.StringType},
	targetType:   {"name": cel.StringType, "kind": cel.StringType},
}

// object is a value of one of the declared types.
type object struct {
	is string
	// field returns what a field holds; nil if the question lacks it.
	field func(name string) any
}

var _ ref.Val = (*object)(nil)

// ConvertToNative implements [ref.Val]; objects stay what they are.
func (o *object) ConvertToNative(reflect.Type) (any, error) {
	return nil, fmt.Errorf("%s cannot be converted", o.is)
}

// ConvertToType implements [ref.Val]: an object can only be asked for its type.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return cel.ObjectType(o.is)
	}
	return types.NewErr("%s cannot be converted", o.is)
}

// Equal implements [ref.Val]: an object equals itself only.
func (o *object) Equal(other ref.Val) ref.Val { return types.Bool(ref.Val(o) == other) }

// Type implements [ref.Val].
func (o *object) Type() ref.Type { return cel.ObjectType(o.is) }

// Value implements [ref.Val].
func (o *object) Value() any { return o }

// given is what a field holds whose text may be lacking.
func given(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// provider adds the declared types to CEL's own.
type provider struct{ *types.Registry }

func (p provider) FindStructType(name string) (*types.Type, bool) {
	if _, ok := schema[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Registry.FindStructType(name)
}

func (p provider) FindStructFieldNames(name string) ([]string, bool) {
	if fields, ok := schema[name]; ok {
		return slices.Sorted(maps.Keys(fields)), true
	}
	return p.Registry.FindStructFieldNames(name)
}

func (p provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	fields, ok := schema[name]
	if !ok {
		return p.Registry.FindStructFieldType(name, field)
	}
	t, ok := fields[field]
	if !ok {
		return nil, false
	}
	return &types.FieldType{
		Type: t,
		IsSet: func(x any) bool {
			o, ok := x.(*object)
			return ok && present(o.field(field))
		},
		GetFrom: func(x any) (any, error) {
			o, ok := x.(*object)
			if !ok {
				return nil, errors.New("not an object")
			}
			if value := o.field(field); value != nil {
				return value, nil
			}
			return nil, fmt.Errorf("there is no %s", field)
		},
	}, true
}

// present is what has() says of a field: an empty text, list or map is none.
func present(x any) bool {
	if x == nil {
		return false
	}
	switch v := reflect.ValueOf(x); v.Kind() {
	case reflect.Map, reflect.Slice, reflect.String:
		return v.Len() > 0
	}
	return true
}

// input is what the expressions see of a question. It is made as far as they look, and once: an object equals itself only.
type input struct {
	question invalidation.Question
	kinds    map[string]string // of targets, by name

	caller, request *object
	targets         ref.Val
}

var _ cel.Activation = (*input)(nil)

// Parent implements [cel.Activation].
func (*input) Parent() cel.Activation { return nil }

// ResolveName implements [cel.Activation].
func (in *input) ResolveName(name string) (any, bool) {
	switch name {
	case "caller":
		if in.caller == nil {
			in.caller = callerObject(in.question.Caller)
		}
		return in.caller, true
	case "request":
		if in.request == nil {
			in.request = requestObject(in.question)
		}
		return in.request, true
	case "targets":
		if in.targets == nil {
			in.targets = targetObjects(in.question.Targets, in.kinds)
		}
		return in.targets, true
	}
	return nil, false
}

func targetObjects(names []string, kinds map[string]string) ref.Val {
	targets := make([]ref.Val, len(names))
	for i, name := range names {
		targets[i] = targetObject(name, kinds[name])
	}
	return types.NewRefValList(types.DefaultTypeAdapter, targets)
}

func targetObject(name, kind string) *object {
	return &object{targetType, func(field string) any {
		switch field {
		case "name":
			return name
		case "kind":
			return kind
		}
		return nil
	}}
}

func callerObject(c invalidation.Caller) *object {
	var facts invalidation.Facts
	if c.Facts != nil {
		facts = *c.Facts
	}
	var certificate *object
	if facts.Certificate != nil {
		certificate = certificateObject(facts.Certificate)
	}
	return &object{callerType, func(field string) any {
		switch field {
		case "name":
			return c.Name
		case "kind":
			return c.Kind
		case "groups":
			return facts.Groups
		case "claims":
			return facts.Claims
		case "certificate":
			if certificate != nil {
				return certificate
			}
		}
		return nil
	}}
}

func certificateObject(c *invalidation.CertificateNames) *object {
	return &object{certificateType, func(field string) any {
		switch field {
		case "subject":
			return given(c.Subject)
		case "common_name":
			return given(c.CommonName)
		case "spiffe_id":
			return given(c.SPIFFEID())
		case "dns":
			return c.DNS
		case "emails":
			return c.Emails
		case "uris":
			return c.URIs
		}
		return nil
	}}
}

func requestObject(q invalidation.Question) *object {
	var call invalidation.Call
	if q.Call != nil {
		call = *q.Call
	}
	sel := &call.Selector
	var user, provider *object
	if sel.User != nil {
		user = userObject(sel.User)
	}
	if sel.Provider != nil {
		provider = providerObject(sel.Provider)
	}
	return &object{requestType, func(field string) any {
		switch field {
		case "method":
			return string(q.Right)
		case "own":
			return q.Own
		case "targets":
			return q.Targets
		case "names":
			return q.Names
		case "has_user":
			return sel.User != nil
		case "has_provider":
			return sel.Provider != nil
		case "has_group":
			return sel.Group != ""
		case "has_sessions":
			return len(sel.Sessions) > 0
		case "all":
			return sel.All
		case "broad":
			return q.Call != nil && sel.Broad()
		case "user":
			if user != nil {
				return user
			}
		case "provider":
			if provider != nil {
				return provider
			}
		case "group":
			return given(sel.Group)
		case "labels":
			return call.Labels
		case "reason":
			return call.Reason
		case "on_behalf_of":
			return call.OnBehalfOf
		case "priority":
			if call.Priority == invalidation.PriorityBulk {
				return "bulk"
			}
			return "normal"
		}
		return nil
	}}
}

func userObject(u *invalidation.User) *object {
	return &object{userType, func(field string) any {
		switch field {
		case "id":
			return given(u.ID)
		case "email":
			return given(u.Email)
		case "attributes":
			return u.Attributes
		case "target_usernames":
			return u.TargetUsernames
		}
		return nil
	}}
}

func providerObject(p *invalidation.Provider) *object {
	return &object{providerType, func(field string) any {
		switch field {
		case "type":
			return given(p.Type)
		case "name":
			return given(p.Name)
		}
		return nil
	}}
}
