package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"github.com/endsession/endsession/server/invalidation"
)

// Bounds of an expression. The cost is CEL's own measure: about one for each step, and for each ten characters looked
// at. It leaves room for a look at every name of a group of ten thousand.
const (
	maxExpression = 4096
	maxCost       = 1_000_000
	checkEvery    = 100 // steps of a loop between two looks at the context
)

// environment is what expressions are compiled in.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	return cel.NewEnv(
		cel.CustomTypeAdapter(registry),
		cel.CustomTypeProvider(provider{registry}),
		cel.Variable("caller", cel.ObjectType(callerType)),
		cel.Variable("request", cel.ObjectType(requestType)),
		cel.Variable("targets", cel.ListType(cel.ObjectType(targetType))),
		ext.Strings(),
		cel.Function("lower", cel.Overload("lower_string", []*cel.Type{cel.StringType}, cel.StringType,
			cel.UnaryBinding(func(x ref.Val) ref.Val { return types.String(strings.ToLower(string(x.(types.String)))) }))),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateComprehensionNestingLimit(3)),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(100),
	)
})

// program is a compiled expression.
type program struct {
	cel cel.Program
	// fields are those of the request that it looks at, and "targets" if it looks at that variable.
	fields []string
}

// compile checks an expression and makes a program of it. A hidden expression is not shown in errors, nor is what CEL
// says of it.
func compile(expression string, hidden bool) (program, error) {
	env, err := environment()
	if err != nil {
		return program{}, err
	}
	p, err := build(env, expression)
	if err != nil && hidden {
		return program{}, errors.New("the expression cannot be used (more is not said because it comes from a variable or a file)")
	}
	return p, err
}

func build(env *cel.Env, expression string) (program, error) {
	checked, issues := env.Compile(expression)
	if issues.Err() != nil {
		var problems []error
		for _, e := range issues.Errors() {
			problems = append(problems, fmt.Errorf("%s (line %d, column %d of %q)", e.Message, e.Location.Line(), e.Location.Column()+1, expression))
		}
		return program{}, errors.Join(problems...)
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		hint := ""
		if t.IsExactType(cel.DynType) {
			hint = "; what a claim holds is known only when somebody calls, so compare it, for instance with == true"
		}
		return program{}, fmt.Errorf("yields %s, want true or false%s (%q)", t, hint, expression)
	}
	p, err := env.Program(checked, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize), cel.InterruptCheckFrequency(checkEvery))
	if err != nil {
		return program{}, fmt.Errorf("%w (%q)", err, expression)
	}
	return program{p, fieldsOf(checked)}, nil
}

// fieldsOf lists what an expression looks at of the call.
func fieldsOf(checked *cel.Ast) []string {
	fields := map[string]bool{}
	for _, e := range ast.MatchDescendants(ast.NavigateAST(checked.NativeRep()), func(ast.NavigableExpr) bool { return true }) {
		switch e.Kind() {
		case ast.IdentKind:
			if e.AsIdent() == "targets" {
				fields["targets"] = true
			}
		case ast.SelectKind:
			if of := e.AsSelect().Operand(); of.Kind() == ast.IdentKind && of.AsIdent() == "request" {
				fields["request."+e.AsSelect().FieldName()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(fields))
}

// matches evaluates the expression. An error means that it could not be.
func (p program) matches(ctx context.Context, in *input) (bool, error) {
	out, _, err := p.cel.ContextEval(ctx, in)
	if err != nil {
		return false, err
	}
	yes, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("yields neither true nor false")
	}
	return bool(yes), nil
}

// warnings says what is allowed in a rule and unwise.
func (r Rule) warnings(when program) (warnings []string) {
	where := r.Where
	if where == "" {
		where = "rule " + r.Name
	}
	warn := func(format string, args ...any) { warnings = append(warnings, where+": "+fmt.Sprintf(format, args...)) }
	rights := make([]string, len(r.Rights))
	ends := false
	for i, right := range r.Rights {
		rights[i] = string(right)
		ends = ends || right == invalidation.RightInvalidate || right == invalidation.RightPreview
	}
	listed := strings.Join(rights, ", ")
	for _, field := range when.fields {
		if !slices.ContainsFunc(r.Rights, func(right invalidation.Right) bool { return known(right, field) }) {
			warn("looks at %s, of which nothing is known where it is about %s", field, listed)
		}
	}
	if !ends && (r.MayName || r.Terms != invalidation.Terms{}) {
		warn("may_name, protected, max_sessions and unlimited mean nothing for %s", listed)
	}
	return warnings
}

// known reports whether something is known of a field when a right is asked for.
func known(right invalidation.Right, field string) bool {
	switch right {
	case invalidation.RightInvalidate, invalidation.RightPreview:
		return field != "request.own"
	case invalidation.RightRetry, invalidation.RightCancel:
		return true
	case invalidation.RightCheck, invalidation.RightPause:
		return field == "request.method" || field == "request.targets" || field == "targets"
	}
	return field == "request.method"
}
