package identity

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
)

// Bounds of an expression and of what it yields.
const (
	maxExpression = 4096
	maxCost       = 100_000
	maxNames      = 100
	maxNameLength = 4096
)

// userType is the name of the type of the variable user.
const userType = "endsession.User"

// userFields are the fields of the variable user. A getter fails for what the person lacks, so that an expression never
// goes on with an empty text.
var userFields = map[string]*types.FieldType{
	"id": {
		Type:    types.StringType,
		IsSet:   func(x any) bool { return x.(*Person).ID != "" },
		GetFrom: func(x any) (any, error) { return x.(*Person).ID, nil },
	},
	"email": {
		Type:  types.StringType,
		IsSet: func(x any) bool { return len(x.(*Person).emails()) > 0 },
		GetFrom: func(x any) (any, error) {
			switch p := x.(*Person); {
			case p.Email != "":
				return p.Email, nil
			case len(p.Emails) > 0:
				return nil, errSeveral
			}
			return nil, errNoEmail
		},
	},
	"emails": {
		Type:  types.NewListType(types.StringType),
		IsSet: func(x any) bool { return len(x.(*Person).emails()) > 0 },
		GetFrom: func(x any) (any, error) {
			if emails := x.(*Person).emails(); len(emails) > 0 {
				return emails, nil
			}
			return nil, errNoEmail
		},
	},
	"attributes": {
		Type:    types.NewMapType(types.StringType, types.StringType),
		IsSet:   func(x any) bool { p := x.(*Person); return len(p.Attributes)+len(p.Several) > 0 },
		GetFrom: func(x any) (any, error) { return newAttributes(x.(*Person)), nil },
	},
	"values": {
		Type:    types.NewMapType(types.StringType, types.NewListType(types.StringType)),
		IsSet:   func(x any) bool { p := x.(*Person); return len(p.Attributes)+len(p.Several) > 0 },
		GetFrom: func(x any) (any, error) { return x.(*Person).values(), nil },
	},
}

// Why a field has no value.
var (
	errNoEmail = errors.New("no e-mail address")
	errSeveral = errors.New("needs an attribute or the e-mail address, of which the directory has several: " +
		"user.values and user.emails have all of them")
)

// emails are all addresses of the person.
func (p *Person) emails() []string {
	switch {
	case len(p.Emails) > 0:
		return p.Emails
	case p.Email != "":
		return []string{p.Email}
	}
	return nil
}

// values are all values of all attributes.
func (p *Person) values() map[string][]string {
	all := map[string][]string{}
	for name, value := range p.Attributes {
		all[name] = []string{value}
	}
	maps.Copy(all, p.Several)
	return all
}

// attributes is a map in which the attributes that have several values are there, and fail whoever looks: an expression
// must not go on to its second choice because the first is ambiguous.
type attributes struct {
	traits.Mapper
	several map[string][]string
}

func newAttributes(p *Person) ref.Val {
	one, several := map[string]string{}, map[string][]string{}
	for name, values := range p.Several {
		if _, chosen := p.Attributes[name]; !chosen {
			one[name], several[name] = "", values
		}
	}
	maps.Copy(one, p.Attributes)
	m := types.NewStringStringMap(types.DefaultTypeAdapter, one)
	if len(several) == 0 {
		return m
	}
	return attributes{m, several}
}

func (m attributes) ambiguous(key ref.Val) bool {
	name, ok := key.(types.String)
	return ok && m.several[string(name)] != nil
}

// Find implements [traits.Mapper].
func (m attributes) Find(key ref.Val) (ref.Val, bool) {
	if m.ambiguous(key) {
		return types.WrapErr(errSeveral), false
	}
	return m.Mapper.Find(key)
}

// Get implements [traits.Indexer].
func (m attributes) Get(key ref.Val) ref.Val {
	if m.ambiguous(key) {
		return types.WrapErr(errSeveral)
	}
	return m.Mapper.Get(key)
}

// Contains implements [traits.Container].
func (m attributes) Contains(key ref.Val) ref.Val {
	if m.ambiguous(key) {
		return types.WrapErr(errSeveral)
	}
	return m.Mapper.Contains(key)
}

// provider adds the type of the variable user to CEL's own types.
type provider struct{ *types.Registry }

func (p provider) FindStructType(name string) (*types.Type, bool) {
	if name == userType {
		return types.NewTypeTypeWithParam(types.NewObjectType(userType)), true
	}
	return p.Registry.FindStructType(name)
}

func (p provider) FindStructFieldNames(name string) ([]string, bool) {
	if name == userType {
		return slices.Sorted(maps.Keys(userFields)), true
	}
	return p.Registry.FindStructFieldNames(name)
}

func (p provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if name == userType {
		f, ok := userFields[field]
		return f, ok
	}
	return p.Registry.FindStructFieldType(name, field)
}

// environment is what expressions are compiled in.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	return cel.NewEnv(
		cel.CustomTypeAdapter(registry),
		cel.CustomTypeProvider(provider{registry}),
		cel.Variable("user", cel.ObjectType(userType)),
		ext.Strings(),
		cel.Function("lower", cel.Overload("lower_string", []*cel.Type{cel.StringType}, cel.StringType,
			cel.UnaryBinding(func(x ref.Val) ref.Val { return types.String(strings.ToLower(string(x.(types.String)))) }))),
		cel.Function("ldapDN", cel.Overload("ldapDN_string", []*cel.Type{cel.StringType}, cel.StringType,
			cel.UnaryBinding(func(x ref.Val) ref.Val { return types.String(ldapDN(string(x.(types.String)))) }))),
		cel.Function("extract", cel.MemberOverload("string_extract_string", []*cel.Type{cel.StringType, cel.StringType}, cel.StringType,
			cel.BinaryBinding(extract))),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateComprehensionNestingLimit(2)),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(100),
	)
})

// extract is the function of that name.
func extract(x, pattern ref.Val) ref.Val {
	re, err := regexp.Compile(string(pattern.(types.String)))
	if err != nil {
		return types.NewErr("extract: bad pattern")
	}
	m := re.FindStringSubmatch(string(x.(types.String)))
	if m == nil {
		return types.NewErr("extract: no match")
	}
	return types.String(m[len(m)-1])
}

// program is a compiled expression.
type program struct {
	cel cel.Program
	// id says that the expression is user.id, which most are: its value is known without CEL.
	id bool
}

// compile checks an expression and makes a program of it. A hidden expression is not shown in errors, nor is what CEL
// says of it.
func compile(expression string, hidden bool) (program, error) {
	env, err := environment()
	if err != nil {
		return program{}, err
	}
	checked, issues := env.Compile(expression)
	var problems []error
	switch {
	case issues.Err() != nil:
		for _, e := range issues.Errors() {
			problems = append(problems, fmt.Errorf("%s (column %d of %q)", e.Message, e.Location.Column()+1, expression))
		}
	case !checked.OutputType().IsExactType(cel.StringType) && !checked.OutputType().IsExactType(cel.ListType(cel.StringType)):
		problems = append(problems, fmt.Errorf("yields %s, want a text or a list of texts (%q)", checked.OutputType(), expression))
	default:
		for _, problem := range checkExtract(checked) {
			problems = append(problems, fmt.Errorf("%s (%q)", problem, expression))
		}
	}
	if problems != nil && hidden {
		return program{}, errors.New("the expression does not compile (more is not said because it comes from a variable or a file)")
	}
	if problems != nil {
		return program{}, errors.Join(problems...)
	}
	p, err := env.Program(checked, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil && hidden {
		return program{}, errors.New("the expression cannot be used (more is not said because it comes from a variable or a file)")
	}
	if err != nil {
		return program{}, fmt.Errorf("%w (%q)", err, expression)
	}
	return program{p, isID(checked.NativeRep().Expr())}, nil
}

// isID reports whether an expression is user.id.
func isID(e ast.Expr) bool {
	if e.Kind() != ast.SelectKind {
		return false
	}
	s := e.AsSelect()
	return !s.IsTestOnly() && s.FieldName() == "id" && s.Operand().Kind() == ast.IdentKind && s.Operand().AsIdent() == "user"
}

// checkExtract says what is wrong with the patterns of extract. They are written out, so that a bad one is found now and
// nobody's attribute becomes a pattern.
func checkExtract(checked *cel.Ast) (problems []string) {
	for _, call := range ast.MatchDescendants(ast.NavigateAST(checked.NativeRep()), ast.FunctionMatcher("extract")) {
		arg := call.AsCall().Args()[0]
		if arg.Kind() != ast.LiteralKind {
			problems = append(problems, "extract wants its pattern written out")
			continue
		}
		re, err := regexp.Compile(string(arg.AsLiteral().(types.String)))
		switch {
		case err != nil:
			problems = append(problems, "extract: "+err.Error())
		case re.NumSubexp() > 1:
			problems = append(problems, "extract wants a pattern with at most one group; (?:…) does not count")
		}
	}
	return problems
}

// Why an expression yields no names. CEL's own messages may quote a person's attributes.
var (
	errEval  = errors.New("cannot be evaluated: an attribute or the e-mail address it needs is missing, or a function failed")
	errEmpty = errors.New("yields an empty name")
	errNone  = errors.New("yields an empty list")
	errMany  = fmt.Errorf("yields more than %d names", maxNames)
	errLong  = fmt.Errorf("yields a name that is longer than %d bytes", maxNameLength)
	errText  = errors.New("yields a name that is not UTF-8")
	errNUL   = errors.New("yields a name with the character NUL") // where some systems would see the end of a shorter name
)

// eval returns the names that the expression yields for a person: at least one, and none of them empty.
func (p program) eval(x Person) ([]string, error) {
	if p.id {
		return proper([]string{x.ID})
	}
	out, _, err := p.cel.Eval(map[string]any{"user": &x})
	if errors.Is(err, errSeveral) {
		return nil, errSeveral
	}
	if err != nil {
		return nil, errEval
	}
	var names []string
	switch v := out.(type) {
	case types.String:
		names = []string{string(v)}
	case traits.Lister:
		for it := v.Iterator(); it.HasNext() == types.True; {
			s, ok := it.Next().(types.String)
			if !ok {
				return nil, errEval
			}
			if len(names) == maxNames {
				return nil, errMany
			}
			names = append(names, string(s))
		}
	default:
		return nil, errEval
	}
	return proper(names)
}

// proper returns the names if they can all be asked for.
func proper(names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, errNone
	}
	for _, name := range names {
		switch {
		case strings.TrimSpace(name) == "":
			return nil, errEmpty
		case len(name) > maxNameLength:
			return nil, errLong
		case !utf8.ValidString(name):
			return nil, errText
		case strings.ContainsRune(name, 0):
			return nil, errNUL
		}
	}
	return names, nil
}

// ldapDN escapes a text so that it stands for itself as an attribute's value in the string form of a distinguished name
// (RFC 4514 section 2.4). Beyond what must be escaped it escapes "=", as Active Directory does, and control characters.
func ldapDN(value string) string {
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case strings.IndexByte(`"+,;<>\=`, c) >= 0,
			c == '#' && i == 0,
			c == ' ' && (i == 0 || i == len(value)-1):
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\%02X`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
