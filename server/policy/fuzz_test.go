package policy_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/policy"
)

// FuzzPolicyInput asks a few policies whatever a caller can say. No question panics, the same question has the same
// answer, an allowed one is allowed by a rule that evaluates, and what rules promise of ids and names holds.
func FuzzPolicyInput(f *testing.F) {
	f.Add("alice", "alice", "", "alice", "apm", uint8(1), `{"sub":"alice"}`)
	f.Add("alice", "boss", "boss@corp", "boss", "", uint8(0), `{"sub":["alice"]}`)
	f.Add("", "", "", "", "x", uint8(7), `{"sub":null,"a":{"b":[1,2.5,true]}}`)
	f.Add("a", "a", "", "a\x00", "\xff", uint8(2), `{"sub":""}`)
	own := `caller.kind == "oidc" && request.has_user && request.user.id == caller.claims.sub`
	p := rules(f,
		deny("odd", `request.user.attributes.exists(k, k == "deny")`),
		allow("own", own+` && request.names.all(t, request.names[t].all(n, n == request.user.id))`),
		allow("certificate", `request.user.id == caller.certificate.common_name`),
		allow("claims", `caller.claims.a.b[0] == 1 && request.targets.all(t, caller.claims.a.b.exists(x, x == t))`),
		allow("pattern", `caller.claims.pattern.matches(request.group)`),
	)
	f.Fuzz(func(t *testing.T, caller, id, email, sent, group string, right uint8, claims string) {
		facts := &invalidation.Facts{Groups: []string{group}}
		_ = json.Unmarshal([]byte(claims), &facts.Claims)
		if len(caller)%2 == 1 {
			facts.Certificate = &invalidation.CertificateNames{CommonName: caller, URIs: []string{group}}
		}
		q := invalidation.Question{
			Right:  append(invalidation.Rights, "")[int(right)%(len(invalidation.Rights)+1)],
			Caller: invalidation.Caller{Kind: "oidc", Name: caller, Facts: facts}, Targets: []string{"apm", group},
			Names: map[string][]string{"apm": {sent}},
		}
		if right%3 > 0 {
			q.Call = &invalidation.Call{Selector: invalidation.Selector{Group: group, All: id == ""}}
			if id != "" {
				q.Call.Selector.User = &invalidation.User{ID: id, Email: email, Attributes: map[string]string{group: sent}}
			}
			if group == "" {
				q.Call.Selector.User = &invalidation.User{ID: id, Email: email}
			}
		}
		terms, err := p.Judge(t.Context(), q)
		again, err2 := p.Judge(t.Context(), q)
		if terms != again || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("two answers to one question: %v, %v; %v, %v", terms, err, again, err2)
		}
		d, err3 := p.Explain(t.Context(), q)
		if err3 != nil || d.Allowed != (err == nil) || !reflect.DeepEqual(d.Terms, terms) {
			t.Fatalf("explained as %+v, judged %v, %v", d, terms, err)
		}
		if !d.Allowed {
			if terms != (invalidation.Terms{}) {
				t.Errorf("denied with terms %+v", terms)
			}
			return
		}
		last := d.Steps[len(d.Steps)-1]
		if last.Err != nil || last.Outcome != policy.Allows || last.Rule != d.Rule {
			t.Errorf("allowed by %+v", last)
		}
		if q.Right != invalidation.RightInvalidate && q.Right != invalidation.RightPreview {
			t.Errorf("%s is allowed by rules that are not about it", q.Right)
		}
		if q.Call == nil || q.Call.Selector.User != nil && (email != "" || len(q.Call.Selector.User.Attributes) > 0) {
			t.Errorf("allowed to name: %+v", q)
		}
		switch d.Rule {
		case "own":
			if facts.Claims["sub"] != id || sent != id {
				t.Errorf("%q ends %q as %q", facts.Claims["sub"], id, sent)
			}
		case "certificate":
			if caller != id || id == "" {
				t.Errorf("%q ends %q", caller, id)
			}
		}
		if strings.HasPrefix(d.Rule, "odd") {
			t.Error("allowed by a rule that denies")
		}
	})
}
