package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/policy"
)

var ends = []invalidation.Right{invalidation.RightInvalidate, invalidation.RightPreview}

// allow and deny are rules about invalidate and preview.
func allow(name, when string) policy.Rule { return policy.Rule{Name: name, When: when, Rights: ends} }
func deny(name, when string) policy.Rule {
	return policy.Rule{Name: name, When: when, Rights: ends, Deny: true}
}

// over makes a rule be about other rights.
func over(r policy.Rule, rights ...invalidation.Right) policy.Rule {
	r.Rights = rights
	return r
}

func mustNew(t testing.TB, o policy.Options) *policy.Policy {
	t.Helper()
	p, err := policy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func rules(t testing.TB, rs ...policy.Rule) *policy.Policy {
	t.Helper()
	return mustNew(t, policy.Options{Rules: rs, Targets: []policy.Target{{Name: "apm", Kind: "bigiq"}, {Name: "logs", Kind: "kibana"}}})
}

// alice is a person with everything a caller can be known by.
func alice() invalidation.Caller {
	return invalidation.Caller{Kind: "oidc", Name: "alice@corp.example", Facts: &invalidation.Facts{
		Groups: []string{"staff", "oncall"},
		Claims: map[string]any{
			"sub": "alice", "level": json.Number("3"), "empty": "", "admin": true,
			"realm": map[string]any{"roles": []any{"a", "b"}},
		},
		Certificate: &invalidation.CertificateNames{
			Subject: "CN=alice,O=Corp", CommonName: "alice", DNS: []string{"a.example"}, Emails: []string{"alice@corp.example"},
			URIs: []string{"spiffe://corp.example/alice"},
		},
	}}
}

// key is a caller of whom no more than the name is known.
func key(name string) invalidation.Caller { return invalidation.Caller{Kind: "api_key", Name: name} }

func question(caller invalidation.Caller, sel invalidation.Selector) invalidation.Question {
	return invalidation.Question{
		Right: invalidation.RightInvalidate, Caller: caller, Call: &invalidation.Call{Selector: sel}, Targets: []string{"apm", "logs"},
	}
}

func user(id string) invalidation.Selector {
	return invalidation.Selector{User: &invalidation.User{ID: id}}
}

// everything is a call with everything in it.
func everything() invalidation.Question {
	q := question(alice(), invalidation.Selector{
		User: &invalidation.User{
			ID: "bob", Email: "bob@corp.example", Attributes: map[string]string{"uid": "b17"},
			TargetUsernames: map[string][]string{"apm": {"bobby"}},
		},
		Provider: &invalidation.Provider{Type: "saml", Name: "okta"}, Group: "vpn",
	})
	q.Call.Labels = map[string]string{"ticket": "17"}
	q.Call.Reason, q.Call.OnBehalfOf, q.Call.Priority = "left", "carol", invalidation.PriorityBulk
	q.Names = map[string][]string{"apm": {"bobby"}, "logs": {"bob@corp.example", "b17"}}
	return q
}

// reason is why a question is denied; empty if it is not.
func reason(t *testing.T, p *policy.Policy, q invalidation.Question) adapters.Reason {
	t.Helper()
	_, err := p.Judge(t.Context(), q)
	if err == nil {
		return ""
	}
	var ce *invalidation.CallError
	if !errors.As(err, &ce) || ce.Code != invalidation.Denied || ce.Reason == "" {
		t.Fatalf("got %#v, want a denial with a reason", err)
	}
	return ce.Reason
}

func TestExpressionsSee(t *testing.T) {
	for _, when := range []string{
		`caller.name == "alice@corp.example" && caller.kind == "oidc"`,
		`"oncall" in caller.groups && size(caller.groups) == 2`,
		`caller.claims.sub == "alice" && caller.claims["sub"] == "alice" && has(caller.claims.sub) && !has(caller.claims.none)`,
		`caller.claims.level >= 3 && caller.claims.admin == true && caller.claims.realm.roles.exists(r, r == "b")`,
		`caller.certificate.subject == "CN=alice,O=Corp" && caller.certificate.common_name == "alice"`,
		`caller.certificate.dns == ["a.example"] && caller.certificate.emails == ["alice@corp.example"]`,
		`caller.certificate.uris[0] == caller.certificate.spiffe_id && caller.certificate.spiffe_id == "spiffe://corp.example/alice"`,
		`request.method == "invalidate" && !request.own && !request.all && !request.broad`,
		`request.has_user && request.has_provider && request.has_group && !request.has_sessions`,
		`request.user.id == "bob" && request.user.email == "bob@corp.example" && request.user.attributes.uid == "b17"`,
		`request.user.target_usernames["apm"] == ["bobby"]`,
		`request.provider.type == "saml" && request.provider.name == "okta" && request.group == "vpn"`,
		`request.targets == ["apm", "logs"] && targets[1].name == "logs" && targets.exists_one(t, t.kind == "kibana")`,
		`request.labels.ticket == "17" && request.reason == "left" && request.on_behalf_of == "carol" && request.priority == "bulk"`,
		`request.names.logs == ["bob@corp.example", "b17"] && request.names.all(t, request.names[t].all(n, n.startsWith("b")))`,
		`has(request.user) && has(request.user.email) && has(request.provider) && has(caller.certificate)`,
		`caller == caller && request.user == request.user && request.provider == request.provider && targets[0] in targets`,
		`caller.certificate == caller.certificate`,
		`lower("ABC") == "abc" && "ABC".lowerAscii() == "abc" && "a-b".split("-")[1] == "b" && request.user.id.matches("^b.b$")`,
	} {
		r := allow("r", when)
		r.MayName = true
		if got := reason(t, rules(t, r), everything()); got != "" {
			t.Errorf("%s: denied: %s", when, got)
		}
	}
}

// TestWhatIsMissingIsNoText: two things that are both missing must not count as the same, or a rule that lets callers
// end their own sessions lets everybody without a certificate end everybody's.
func TestWhatIsMissingIsNoText(t *testing.T) {
	all := question(key("k"), invalidation.Selector{All: true})
	for _, when := range []string{
		`request.user.id == caller.certificate.common_name`,
		`request.user.id == caller.claims.sub`,
		`request.user.id == ""`, `request.user.email == ""`, `request.user.attributes.uid == ""`, `request.group == ""`,
		`request.provider.type == ""`, `request.provider.name == ""`, `caller.certificate.spiffe_id == ""`,
		`caller.certificate.subject == ""`, `request.user == request.user`, `request.names["apm"] == []`, `request.labels.x == ""`,
		`dyn(request).user.id == ""`, `endsession.User{id: ""}.id == ""`, `caller.claims.sub == null`,
	} {
		if got := reason(t, rules(t, allow("r", when)), all); got != adapters.ReasonPolicyDenied {
			t.Errorf("allow %s: got %q", when, got)
		}
		// The same expression refuses, even if the next rule would allow.
		if got := reason(t, rules(t, deny("r", when), allow("s", "true")), all); got != adapters.ReasonPolicyDenied {
			t.Errorf("deny %s: got %q", when, got)
		}
	}
	// Empty names of a certificate are missing, too.
	caller := key("k")
	caller.Facts = &invalidation.Facts{Certificate: &invalidation.CertificateNames{}}
	if got := reason(t, rules(t, allow("r", `caller.certificate.common_name == ""`)), question(caller, user("a"))); got == "" {
		t.Error("a certificate without a common name has one that is empty")
	}
	// What was not given can be asked for.
	if got := reason(t, rules(t, allow("r", `request.all && request.broad && !request.has_user && !has(request.user) && !has(caller.certificate) && !has(request.group) && !has(caller.groups)`)), all); got != "" {
		t.Errorf("has: %s", got)
	}
}

func TestFirstMatchDecides(t *testing.T) {
	q := question(key("helpdesk"), user("alice"))
	costly := `["a"].exists(x, request.targets.exists(y, request.targets.exists(z, ` + strings.Repeat(`"aaaaaaaaaaaaaaaaaaaa".matches("(a*)*b") || `, 80) + ` false)))`
	many := q
	for i := range 20_000 {
		many.Targets = append(many.Targets, fmt.Sprint("t", i))
	}
	for _, x := range []struct {
		name  string
		q     invalidation.Question
		rules []policy.Rule
		rule  string // that decides
		ok    bool
	}{
		{"NoRules", q, nil, "", false},
		{"NothingMatches", q, []policy.Rule{allow("a", "false")}, "", false},
		{"Allow", q, []policy.Rule{allow("a", "false"), allow("b", "true"), allow("c", "true")}, "b", true},
		{"DenyFirst", q, []policy.Rule{deny("a", "true"), allow("b", "true")}, "a", false},
		{"AllowFirst", q, []policy.Rule{allow("a", "true"), deny("b", "true")}, "a", true},
		{"DenyDoesNotMatch", q, []policy.Rule{deny("a", "false"), allow("b", "true")}, "b", true},
		{"OtherRight", q, []policy.Rule{over(deny("a", "true"), invalidation.RightRead), allow("b", "true")}, "b", true},
		{"AllowFails", q, []policy.Rule{allow("a", "request.targets[9] != 'x'"), allow("b", "true")}, "b", true},
		{"OnlyAllowFails", q, []policy.Rule{allow("a", "request.targets[9] != 'x'")}, "", false},
		{"DenyFails", q, []policy.Rule{deny("a", "request.targets[9] == 'x'"), allow("b", "true")}, "a", false},
		{"FailureThatDoesNotMatter", q, []policy.Rule{allow("a", "request.targets[9] == 'x' || request.has_user")}, "a", true},
		{"CostlyAllow", many, []policy.Rule{allow("a", "!("+costly+")")}, "", false},
		{"CostlyDeny", many, []policy.Rule{deny("a", costly), allow("b", "true")}, "a", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			d, err := rules(t, x.rules...).Explain(t.Context(), x.q)
			if err != nil {
				t.Fatal(err)
			}
			if d.Allowed != x.ok || d.Rule != x.rule || d.Allowed && d.Terms.Rule != x.rule {
				t.Errorf("got %+v, want %v by %q", d, x.ok, x.rule)
			}
		})
	}
}

func TestExplainTellsEachStep(t *testing.T) {
	naming := question(key("k"), invalidation.Selector{User: &invalidation.User{ID: "a", Email: "a@b"}})
	p := rules(t,
		over(allow("reads", "true"), invalidation.RightRead), deny("no", "false"), allow("breaks", "caller.claims.x == 1"),
		allow("id-only", "true"), deny("stop", "caller.claims.x == 1"), allow("never-tried", "true"))
	d, err := p.Explain(t.Context(), naming)
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Outcome{policy.OtherRights, policy.NoMatch, policy.Failed, policy.NotNaming, policy.FailedDenies}
	var got []policy.Outcome
	for _, s := range d.Steps {
		got = append(got, s.Outcome)
		if failed := s.Outcome == policy.Failed || s.Outcome == policy.FailedDenies; failed != (s.Err != nil) {
			t.Errorf("rule %s: error %v", s.Rule, s.Err)
		}
	}
	if !slices.Equal(got, want) || d.Rule != "stop" || d.Reason != adapters.ReasonNamesNotAllowed {
		t.Errorf("got %q by %q because of %s", got, d.Rule, d.Reason)
	}
}

func TestTerms(t *testing.T) {
	r := allow("oncall", "true")
	r.Terms = invalidation.Terms{Protected: true, MaxSessions: 7, Unlimited: true}
	got, err := rules(t, allow("x", "false"), r).Judge(t.Context(), question(key("k"), user("a")))
	if want := (invalidation.Terms{Rule: "oncall", Protected: true, MaxSessions: 7, Unlimited: true}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// TestNamingSomebodyElse: whoever may give a person's id must not reach another person through the further names.
func TestNamingSomebodyElse(t *testing.T) {
	own := allow("own", `request.user.id == caller.claims.sub`)
	caller := alice()
	for _, x := range []struct {
		name string
		user invalidation.User
		want adapters.Reason
	}{
		{"OwnID", invalidation.User{ID: "alice"}, ""},
		{"OthersID", invalidation.User{ID: "boss"}, adapters.ReasonPolicyDenied},
		{"OwnIDOthersEmail", invalidation.User{ID: "alice", Email: "boss@corp.example"}, adapters.ReasonNamesNotAllowed},
		{"OwnIDOwnEmail", invalidation.User{ID: "alice", Email: "alice@corp.example"}, adapters.ReasonNamesNotAllowed},
		{"OwnIDOthersAttribute", invalidation.User{ID: "alice", Attributes: map[string]string{"uid": "b1"}}, adapters.ReasonNamesNotAllowed},
		{"OwnIDOthersName", invalidation.User{ID: "alice", TargetUsernames: map[string][]string{"apm": {"boss"}}}, adapters.ReasonNamesNotAllowed},
		{"OthersIDAndEmail", invalidation.User{ID: "boss", Email: "boss@corp.example"}, adapters.ReasonPolicyDenied},
		{"OtherCase", invalidation.User{ID: "Alice"}, adapters.ReasonPolicyDenied},
		{"TrailingSpace", invalidation.User{ID: "alice "}, adapters.ReasonPolicyDenied},
		{"ZeroWidth", invalidation.User{ID: "alice\u200b"}, adapters.ReasonPolicyDenied},
	} {
		t.Run(x.name, func(t *testing.T) {
			q := question(caller, invalidation.Selector{User: &x.user})
			for _, right := range ends {
				q.Right = right
				if got := reason(t, rules(t, own), q); got != x.want {
					t.Errorf("%s: got %q, want %q", right, got, x.want)
				}
			}
			mayName := own
			mayName.MayName = true
			mayName.Name = "may-name"
			if got := reason(t, rules(t, own, mayName), question(caller, invalidation.Selector{User: &x.user})); x.want == adapters.ReasonNamesNotAllowed && got != "" {
				t.Errorf("a later rule with may_name: got %q", got)
			}
		})
	}
	// What would be sent can be looked at, however the names came about.
	names := allow("names", `request.has_user && request.names.all(t, request.names[t].all(n, n == "alice"))`)
	q := question(caller, user("anything"))
	q.Names = map[string][]string{"apm": {"alice"}, "logs": {"alice", "boss"}}
	if got := reason(t, rules(t, names), q); got != adapters.ReasonPolicyDenied {
		t.Errorf("another's name among those that would be sent: %q", got)
	}
	// To cancel what somebody named is not to name.
	q = question(caller, invalidation.Selector{User: &invalidation.User{ID: "alice", Email: "x@y"}})
	q.Right = invalidation.RightCancel
	if got := reason(t, rules(t, over(allow("c", "request.own == false"), invalidation.RightCancel)), q); got != "" {
		t.Errorf("cancel: %s", got)
	}
}

// TestEveryRightStandsAlone: a rule about one right gives no other.
func TestEveryRightStandsAlone(t *testing.T) {
	for _, granted := range invalidation.Rights {
		p := rules(t, over(allow("r", "request.method == '"+string(granted)+"'"), granted))
		for _, asked := range append(slices.Clone(invalidation.Rights), "", "kill") {
			q := invalidation.Question{Right: asked, Caller: key("k")}
			_, err := p.Judge(t.Context(), q)
			if (err == nil) != (asked == granted) {
				t.Errorf("granted %s, asked %s: %v", granted, asked, err)
			}
			if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", asked)) {
				t.Errorf("asked %s: the denial does not name the right: %v", asked, err)
			}
		}
	}
}

// TestDenialsTellNothingOfRules: who is refused learns which right is missing, and nothing to guess with.
func TestDenialsTellNothingOfRules(t *testing.T) {
	q := question(key("k"), invalidation.Selector{User: &invalidation.User{ID: "secret-person", Email: "secret-mail"}})
	p := rules(t, allow("secret-rule", `caller.claims.secret_claim == 1`), allow("secret-naming", "true"), deny("secret-deny", "true"))
	_, err := p.Judge(t.Context(), q)
	if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "secret") {
		t.Errorf("got %#v", err)
	}
}

func TestOpenWithoutRules(t *testing.T) {
	p := mustNew(t, policy.Options{Open: true, Protected: []string{"root"}})
	terms, err := p.Judge(t.Context(), question(key("k"), invalidation.Selector{All: true}))
	if err != nil || terms.Protected || !terms.Unlimited {
		t.Errorf("got %+v, %v", terms, err)
	}
	if !p.Protects("", "Root") {
		t.Error("nobody is protected")
	}
	if w := p.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	// Rules count even if nobody is asked who they are; and none, where callers are known, allow nothing.
	p = mustNew(t, policy.Options{Open: true, Rules: []policy.Rule{allow("a", "false")}})
	if _, err := p.Judge(t.Context(), question(key("k"), user("a"))); err == nil {
		t.Error("rules are passed by")
	}
	p = mustNew(t, policy.Options{})
	if _, err := p.Judge(t.Context(), question(key("k"), user("a"))); err == nil || len(p.Warnings()) != 1 {
		t.Errorf("without rules: %v, warnings %q", err, p.Warnings())
	}
}

// TestNoTimeIsNoAnswer: a run whose policy could not be asked because the process ends must not be refused for good.
func TestNoTimeIsNoAnswer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	q := question(key("k"), user("a"))
	for i := range 1000 {
		q.Targets = append(q.Targets, fmt.Sprint("t", i))
	}
	for _, r := range []policy.Rule{allow("a", `request.targets.all(t, t != "")`), deny("d", `request.targets.all(t, t != "")`)} {
		_, err := rules(t, r).Judge(ctx, q)
		var ce *invalidation.CallError
		if !errors.Is(err, context.Canceled) || errors.As(err, &ce) {
			t.Errorf("rule %s: got %v", r.Name, err)
		}
	}
}

func TestProblemsOfRules(t *testing.T) {
	at := func(r policy.Rule, where string) policy.Rule { r.Where = where; return r }
	bad := allow("secret", `caller.nam`)
	bad.Hidden = true
	terms := deny("terms", "true")
	terms.MayName = true
	_, err := policy.New(policy.Options{Protected: []string{"\u200b"}, Rules: []policy.Rule{
		at(allow("misspelt", `request.usr.id == "x"`), "f:1: a"), at(allow("syntax", `request.has_user &&`), "f:2: b"),
		at(allow("text", `request.group`), "f:3: c"), at(allow("dyn", `caller.claims.admin`), "f:4: d"),
		at(allow("unknown", "has(request.user) &&\n nobody == 1"), "f:5: e"), at(bad, "f:6: f"),
		at(allow("regex", `caller.name.matches("(")`), "f:7: g"), at(allow("types", `request.user.id == 1`), "f:8: h"),
		at(allow("long", `caller.name != "`+strings.Repeat("x", 5000)+`"`), "f:9: i"),
		at(allow("good", "true"), "f:10: j"), at(allow("good", "true"), "f:11: k"), at(over(allow("none", "true")), "f:12: l"),
		at(over(allow("kill", "true"), "kill"), "f:13: m"), at(terms, "f:14: n"),
		at(allow("nested", `request.targets.all(a, request.targets.all(b, request.targets.all(c, request.targets.all(d, true))))`), "f:15: o"),
	}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"f:1: a: undefined field 'usr' (line 1, column 8 of", "f:2: b: Syntax error", "f:3: c: yields string, want true or false",
		"f:4: d: yields dyn, want true or false; what a claim holds", "f:5: e: undeclared reference to 'nobody' (line 2, column 2 of",
		"f:6: f: the expression cannot be used (more is not said", "f:7: g: invalid matches argument", "f:8: h: found no matching overload", "f:9: i: ",
		`f:11: k: a rule needs a name of its own, got "good"`, "f:12: l: rule none: no rights", `f:13: m: rule kill: unknown right "kill"`,
		"f:14: n: rule terms: it denies", "f:15: o: ", "protected user",
	} {
		if !strings.Contains("\n"+err.Error(), "\n"+want) {
			t.Errorf("%q is not reported in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "nam'") || strings.Contains(err.Error(), "caller.nam\"") {
		t.Errorf("a hidden expression is shown: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	term := over(allow("term", "true"), invalidation.RightRead)
	term.Terms.Unlimited = true
	for _, x := range []struct {
		rule policy.Rule
		want string // empty: no warning
	}{
		{over(allow("reader", `request.user.id == "a"`), invalidation.RightRead, invalidation.RightReadOwn), "request.user, of which nothing is known where it is about read, read_own"},
		{over(allow("reader", `has(request.labels.x)`), invalidation.RightReadOwn), "request.labels,"},
		{over(allow("lists", `targets.all(t, t.kind == "kibana")`), invalidation.RightListTargets), "targets,"},
		{over(allow("checks", `request.has_user`), invalidation.RightCheck), "request.has_user,"},
		{allow("ends", `request.own`), "request.own,"},
		{term, "mean nothing for read"},
		{over(allow("mixed", `request.has_user`), invalidation.RightRead, invalidation.RightInvalidate), ""},
		{over(allow("pauses", `request.targets == ["apm"] && targets[0].kind == "bigiq"`), invalidation.RightPause), ""},
		{over(allow("cancels", `request.own && request.has_user`), invalidation.RightCancel, invalidation.RightRetry), ""},
		{over(allow("reads", `caller.name == "auditor" && request.method == "read"`), invalidation.RightRead), ""},
	} {
		got := rules(t, x.rule).Warnings()
		if x.want == "" && len(got) > 0 || x.want != "" && (len(got) != 1 || !strings.Contains(got[0], x.want)) {
			t.Errorf("%s: got %q, want %q", x.rule.When, got, x.want)
		}
	}
}
