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

// object is a value of one of the declared types. A field that is not in it is one that the question lacks.
type object struct {
	is     string
	fields map[string]any
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

// set gives the object a text that may be lacking.
func (o *object) set(field, text string) {
	if text != "" {
		o.fields[field] = text
	}
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
			return ok && present(o.fields[field])
		},
		GetFrom: func(x any) (any, error) {
			o, ok := x.(*object)
			if !ok {
				return nil, errors.New("not an object")
			}
			value, ok := o.fields[field]
			if !ok {
				return nil, fmt.Errorf("there is no %s", field)
			}
			return value, nil
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

// input is what the expressions see of a question.
func (p *Policy) input(q invalidation.Question) map[string]any {
	var targets []ref.Val
	for _, name := range q.Targets {
		targets = append(targets, &object{targetType, map[string]any{"name": name, "kind": p.kinds[name]}})
	}
	return map[string]any{
		"caller":  callerObject(q.Caller),
		"request": requestObject(q),
		"targets": types.NewRefValList(types.DefaultTypeAdapter, targets),
	}
}

func callerObject(c invalidation.Caller) *object {
	var facts invalidation.Facts
	if c.Facts != nil {
		facts = *c.Facts
	}
	o := &object{callerType, map[string]any{"name": c.Name, "kind": c.Kind, "groups": facts.Groups, "claims": facts.Claims}}
	if cert := facts.Certificate; cert != nil {
		names := &object{certificateType, map[string]any{"dns": cert.DNS, "emails": cert.Emails, "uris": cert.URIs}}
		names.set("subject", cert.Subject)
		names.set("common_name", cert.CommonName)
		names.set("spiffe_id", cert.SPIFFEID())
		o.fields["certificate"] = names
	}
	return o
}

func requestObject(q invalidation.Question) *object {
	var call invalidation.Call
	if q.Call != nil {
		call = *q.Call
	}
	sel := call.Selector
	o := &object{requestType, map[string]any{
		"method": string(q.Right), "own": q.Own, "targets": q.Targets, "names": q.Names,
		"has_user": sel.User != nil, "has_provider": sel.Provider != nil, "has_group": sel.Group != "",
		"has_sessions": len(sel.Sessions) > 0, "all": sel.All, "broad": q.Call != nil && sel.Broad(),
		"labels": call.Labels, "reason": call.Reason, "on_behalf_of": call.OnBehalfOf, "priority": "normal",
	}}
	if call.Priority == invalidation.PriorityBulk {
		o.fields["priority"] = "bulk"
	}
	if u := sel.User; u != nil {
		user := &object{userType, map[string]any{"attributes": u.Attributes, "target_usernames": u.TargetUsernames}}
		user.set("id", u.ID)
		user.set("email", u.Email)
		o.fields["user"] = user
	}
	if x := sel.Provider; x != nil {
		by := &object{providerType, map[string]any{}}
		by.set("type", x.Type)
		by.set("name", x.Name)
		o.fields["provider"] = by
	}
	o.set("group", sel.Group)
	return o
}
