package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// matrixCase is one call and what must become of it. In runs, each target that takes part has the state of its run and
// the reasons it gives, and after a colon who is signed out: everybody else stays.
type matrixCase struct {
	name string
	// body is the request, in JSON. $target/label stands for the id of a seat's session.
	body  string
	state string
	runs  map[string]string
}

const (
	unsupported = "UNSUPPORTED SELECTOR_UNSUPPORTED"
	noProvider  = "UNSUPPORTED UNKNOWN_PROVIDER"
	noGroup     = "UNSUPPORTED UNKNOWN_GROUP"
	nothingCan  = "SUCCEEDED NOTHING_CAN_MATCH"
	noneMatched = "SUCCEEDED NO_SESSION_MATCHED"
	ambiguous   = "FAILED AMBIGUOUS_IDENTITY"
)

var matrix = []matrixCase{
	// One person.
	{"User", `{"selector": {"user": {"id": "alice"}}}`, "SUCCEEDED", map[string]string{
		"apm":         "SUCCEEDED: alice-blue alice-red alice-branch alice-guest",
		"apm-all":     "SUCCEEDED: alice-blue alice-red alice-branch alice-guest alice-lone a17-guest",
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
		"storage":     "SUCCEEDED: alice-local alice-ldap alice-idp",
	}},
	{"UserWithLettersBeyondASCII", `{"selector": {"user": {"id": "zoë"}}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: zoë-red", "apm-all": "SUCCEEDED: zoë-red", "kibana-prod": "SUCCEEDED: zoë-saml1 zoë-basic",
		"storage": "SUCCEEDED: zoë-ldap",
	}},
	{"UserWithQuotes", `{"selector": {"user": {"id": "o\"brien,+x"}}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: brien-blue", "apm-all": "SUCCEEDED: brien-blue", "kibana-prod": "SUCCEEDED: brien-basic",
		"storage": "SUCCEEDED: brien-ldap",
	}},
	{"UserInAnotherCase", `{"selector": {"user": {"id": "Alice"}}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED NOT_IN_DIRECTORY: Alice-blue", "apm-all": "SUCCEEDED NOT_IN_DIRECTORY: Alice-blue",
		"kibana-prod": "FAILED NO_IDENTITY", "storage": "FAILED NO_IDENTITY",
	}},
	{"UserWhomNobodyKnows", `{"selector": {"user": {"id": "mallory", "email": "mallory@corp.example"}}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED NOT_IN_DIRECTORY", "apm-all": "SUCCEEDED NOT_IN_DIRECTORY",
		"kibana-prod": noneMatched + " NOT_IN_DIRECTORY", "storage": noneMatched + " NOT_IN_DIRECTORY",
	}},
	{"UserWithEmail", `{"selector": {"user": {"id": "carol", "email": "carol@corp.example"}}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED NOT_IN_DIRECTORY: carol-red carol-guest", "apm-all": "SUCCEEDED NOT_IN_DIRECTORY: carol-red carol-guest",
		"kibana-prod": "SUCCEEDED NOT_IN_DIRECTORY: carol-saml2", "storage": "SUCCEEDED NOT_IN_DIRECTORY: carol-idp",
	}},
	{"UserWithAttributes", `{"selector": {"user": {"id": "carol", "attributes": {"uid": "c42"}}}, "targets": ["apm-all", "apm"]}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED NOT_IN_DIRECTORY: carol-red carol-guest", "apm-all": "SUCCEEDED NOT_IN_DIRECTORY: carol-red carol-guest c42-blue",
	}},
	{"UserWithTheDirectorysOwnValues", `{"selector": {"user": {"id": "bob", "email": "bob@corp.example"}}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: bob-blue bob-branch", "apm-all": "SUCCEEDED: bob-blue bob-branch bob-lone",
		"kibana-prod": "SUCCEEDED: bob-saml1 bob-basic", "storage": "SUCCEEDED: bob-local bob-ldap bob-idp",
	}},
	{"UserWithSomebodyElsesEmail", `{"selector": {"user": {"id": "alice", "email": "bob@corp.example"}}}`, "FAILED", map[string]string{
		"apm": ambiguous, "apm-all": ambiguous, "kibana-prod": ambiguous, "storage": ambiguous,
	}},
	{"UserWithOtherAttributes", `{"selector": {"user": {"id": "alice", "attributes": {"uid": "c42"}}}}`, "FAILED", map[string]string{
		"apm": ambiguous, "apm-all": ambiguous, "kibana-prod": ambiguous, "storage": ambiguous,
	}},
	{"TargetUsernames", `{"selector": {"user": {"id": "alice", "targetUsernames": {
		"storage": {"usernames": ["bob", "UID=alice,ou=people,dc=example,dc=com"]}, "apm": {"usernames": ["\"alice\""]}}}}}`, "SUCCEEDED", map[string]string{
		"apm":         "SUCCEEDED: quoted-guest",
		"apm-all":     "SUCCEEDED: alice-blue alice-red alice-branch alice-guest alice-lone a17-guest",
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
		"storage":     "SUCCEEDED: bob-local bobshort-ldap Uid-ldap",
	}},
	{"UserAtOneTarget", `{"selector": {"user": {"id": "alice"}}, "targets": ["storage"]}`, "SUCCEEDED", map[string]string{
		"storage": "SUCCEEDED: alice-local alice-ldap alice-idp",
	}},

	// Where they signed in.
	{"ProviderSAML", `{"selector": {"provider": {"type": "saml"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported,
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed bob-saml1 carol-saml2 zoë-saml1 Alice-saml1 aliceorg-saml1 short-saml1 spaced-saml2 zoe-saml1 login-saml1",
		"storage":     "SUCCEEDED: alice-idp bob-idp carol-idp short-idp",
	}},
	{"ProviderLDAP", `{"selector": {"provider": {"type": "ldap"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported,
		"kibana-prod": "SUCCEEDED: alice-basic bob-basic zoë-basic brien-basic quoted-basic",
		"storage":     "SUCCEEDED: alice-ldap bob-ldap zoë-ldap brien-ldap short-ldap bobshort-ldap Uid-ldap zoe-ldap brien2-ldap",
	}},
	{"ProviderLocal", `{"selector": {"provider": {"type": "local"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": unsupported,
		"storage": "SUCCEEDED: admin-local alice-local bob-local Alice-local mail-local dn-local",
	}},
	{"ProviderOIDC", `{"selector": {"provider": {"type": "oidc"}}, "confirmBroad": true, "allowUnsupported": true}`, "SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": "SUCCEEDED: alice-oidc", "storage": unsupported,
	}},
	{"ProviderBasic", `{"selector": {"provider": {"type": "basic"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": "SUCCEEDED: alice-basic bob-basic zoë-basic brien-basic quoted-basic", "storage": unsupported,
	}},
	{"ProviderAnonymous", `{"selector": {"provider": {"type": "anonymous"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": "SUCCEEDED: anonymous", "storage": unsupported,
	}},
	{"ProviderKerberos", `{"selector": {"provider": {"type": "kerberos"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": "SUCCEEDED: alice-kerberos", "storage": unsupported,
	}},
	{"ProviderByName", `{"selector": {"provider": {"type": "saml", "name": "okta"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: alice-guest carol-guest a17-guest quoted-guest twin-guest", "apm-all": noProvider,
		"kibana-prod": "SUCCEEDED: alice-saml1 bob-saml1 zoë-saml1 Alice-saml1 aliceorg-saml1 short-saml1 zoe-saml1 login-saml1",
		"storage":     "SUCCEEDED: alice-idp bob-idp carol-idp short-idp",
	}},
	{"ProviderByTheTargetsOwnName", `{"selector": {"provider": {"type": "saml", "name": "saml2"}}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": noProvider, "apm-all": noProvider, "kibana-prod": "SUCCEEDED: alice-saml2 carol-saml2 spaced-saml2", "storage": noProvider,
	}},
	{"ProviderInAnotherCase", `{"selector": {"provider": {"type": "saml", "name": "SAML2"}}, "confirmBroad": true}`, "FAILED", map[string]string{
		"apm": noProvider, "apm-all": noProvider, "kibana-prod": noProvider, "storage": noProvider,
	}},
	{"ProviderOfAnotherType", `{"selector": {"provider": {"type": "oidc", "name": "saml2"}}, "confirmBroad": true}`, "FAILED", map[string]string{
		"apm": noProvider, "apm-all": noProvider, "kibana-prod": noProvider, "storage": noProvider,
	}},
	{"ProviderThatIsNoLongerThere", `{"selector": {"provider": {"type": "saml", "name": "removed"}}, "confirmBroad": true}`, "FAILED", map[string]string{
		"apm": noProvider, "apm-all": noProvider, "kibana-prod": noProvider, "storage": noProvider,
	}},

	// A person there.
	{"UserAndProvider", `{"selector": {"user": {"id": "alice"}, "provider": {"type": "saml"}}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed", "storage": "SUCCEEDED: alice-idp",
	}},
	{"UserAndProviderByName", `{"selector": {"user": {"id": "alice"}, "provider": {"type": "saml", "name": "okta"}}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: alice-guest", "apm-all": noProvider, "kibana-prod": "SUCCEEDED: alice-saml1", "storage": "SUCCEEDED: alice-idp",
	}},
	{"UserAndProviderLDAP", `{"selector": {"user": {"id": "alice"}, "provider": {"type": "ldap"}}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": "SUCCEEDED: alice-basic", "storage": "SUCCEEDED: alice-ldap",
	}},
	{"UserAndProviderLocal", `{"selector": {"user": {"id": "alice"}, "provider": {"type": "local"}}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": unsupported, "kibana-prod": unsupported, "storage": "SUCCEEDED: alice-local",
	}},
	{"TargetUsernamesAndProvider", `{"selector": {"user": {"id": "alice", "targetUsernames": {"storage": {"usernames": ["bob"]}}}, "provider": {"type": "local"}}, "targets": ["storage"]}`, "SUCCEEDED", map[string]string{
		"storage": "SUCCEEDED: bob-local",
	}},
	{"UserAndProviderWithoutSuchASession", `{"selector": {"user": {"id": "brien"}, "provider": {"type": "local"}}, "targets": ["storage"]}`, "SUCCEEDED", map[string]string{
		"storage": noneMatched + " NOT_IN_DIRECTORY",
	}},

	// Groups: what the name means differs from target to target.
	{"GroupOfAccessGroups", `{"selector": {"group": "vpn"}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm":         "SUCCEEDED: alice-red alice-branch bob-branch carol-red zoë-red alice2-red ali-branch mail-red zoe-red zoe2-red twin-red",
		"apm-all":     unsupported,
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos zoë-saml1 zoë-basic",
		"storage":     "SUCCEEDED: admin-local alice-local alice-ldap bob-ldap bob-idp Alice-local",
	}},
	{"GroupOfClustersAndAdminIDs", `{"selector": {"group": "ops"}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm":     "SUCCEEDED: alice-blue bob-blue brien-blue c42-blue Alice-blue spaced-blue brien2-blue",
		"apm-all": unsupported, "kibana-prod": noGroup, "storage": "SUCCEEDED: alice-local bob-idp",
	}},
	{"GroupOfDevices", `{"selector": {"group": "guests"}, "confirmBroad": true, "allowUnsupported": true}`, "SUCCEEDED", map[string]string{
		"apm":     "SUCCEEDED: alice-guest carol-guest a17-guest quoted-guest twin-guest",
		"apm-all": unsupported, "kibana-prod": noGroup, "storage": noGroup,
	}},
	{"GroupOfSeveralKinds", `{"selector": {"group": "mixed"}, "confirmBroad": true, "targets": ["apm"]}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: alice-guest carol-guest a17-guest quoted-guest twin-guest alice-red carol-red zoë-red alice2-red mail-red zoe-red zoe2-red twin-red",
	}},
	{"GroupOfTheDirectory", `{"selector": {"group": "staff"}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": noGroup, "apm-all": unsupported,
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos zoë-saml1 zoë-basic",
		"storage":     "SUCCEEDED: alice-local alice-ldap alice-idp zoë-ldap",
	}},
	{"GroupThatNobodyMaps", `{"selector": {"group": "Vpn"}, "confirmBroad": true, "allowUnsupported": true}`, "FAILED", map[string]string{
		"apm": noGroup, "apm-all": unsupported, "kibana-prod": noGroup, "storage": noGroup,
	}},
	{"UserAndGroup", `{"selector": {"user": {"id": "alice"}, "group": "vpn"}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: alice-red alice-branch", "apm-all": unsupported,
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
		"storage":     "SUCCEEDED: alice-local alice-ldap",
	}},
	{"UserAndGroupWhoIsNoMember", `{"selector": {"user": {"id": "bob"}, "group": "vpn"}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: bob-branch", "apm-all": unsupported, "kibana-prod": nothingCan, "storage": "SUCCEEDED: bob-ldap bob-idp",
	}},
	{"UserAndGroupOfClustersAndAdminIDs", `{"selector": {"user": {"id": "alice"}, "group": "ops"}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: alice-blue", "apm-all": unsupported, "kibana-prod": noGroup, "storage": "SUCCEEDED: alice-local",
	}},
	{"UserAndGroupOfTheDirectory", `{"selector": {"user": {"id": "alice"}, "group": "staff"}, "targets": ["storage", "kibana-prod"]}`, "SUCCEEDED", map[string]string{
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 alice-removed alice-basic alice-oidc alice-token alice-pki alice-kerberos",
		"storage":     "SUCCEEDED: alice-local alice-ldap alice-idp",
	}},
	{"ProviderAndGroup", `{"selector": {"provider": {"type": "saml", "name": "wide"}, "group": "vpn"}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm":         "SUCCEEDED: alice-red alice-branch bob-branch carol-red zoë-red alice2-red ali-branch mail-red zoe-red zoe2-red twin-red",
		"apm-all":     noProvider,
		"kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2 zoë-saml1",
		"storage":     "SUCCEEDED: alice-ldap bob-ldap bob-idp",
	}},
	{"ProviderAndGroupThatShareNothing", `{"selector": {"provider": {"type": "saml", "name": "okta"}, "group": "vpn"}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": nothingCan, "apm-all": noProvider, "kibana-prod": "SUCCEEDED: alice-saml1 zoë-saml1", "storage": "SUCCEEDED: bob-idp",
	}},
	{"ProviderAndGroupThatCannotBeNarrowed", `{"selector": {"provider": {"type": "saml", "name": "okta"}, "group": "ops"}, "confirmBroad": true}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": noProvider, "kibana-prod": noGroup, "storage": "SUCCEEDED: bob-idp",
	}},
	{"ProviderAndGroupOfTheDirectory", `{"selector": {"provider": {"type": "ldap"}, "group": "staff"}, "confirmBroad": true, "targets": ["kibana-prod", "storage"]}`, "SUCCEEDED", map[string]string{
		"kibana-prod": "SUCCEEDED: alice-basic zoë-basic", "storage": "SUCCEEDED: alice-ldap zoë-ldap",
	}},
	{"UserAndProviderAndGroup", `{"selector": {"user": {"id": "alice"}, "provider": {"type": "saml", "name": "wide"}, "group": "vpn"}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: alice-red alice-branch", "apm-all": noProvider, "kibana-prod": "SUCCEEDED: alice-saml1 alice-saml2",
		"storage": "SUCCEEDED: alice-ldap",
	}},
	{"UserAndProviderAndGroupWhoIsNoMember", `{"selector": {"user": {"id": "bob"}, "provider": {"type": "saml", "name": "wide"}, "group": "vpn"}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: bob-branch", "apm-all": noProvider, "kibana-prod": nothingCan, "storage": "SUCCEEDED: bob-ldap bob-idp",
	}},
	{"UserAndProviderAndGroupWithoutSuchASession", `{"selector": {"user": {"id": "alice"}, "provider": {"type": "saml", "name": "okta"}, "group": "ops"}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": noProvider, "kibana-prod": noGroup, "storage": noneMatched,
	}},

	// Everybody.
	{"All", `{"selector": {"all": true}, "confirmBroad": true}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: * -alice-lone -bob-lone", "apm-all": "SUCCEEDED: *", "kibana-prod": "SUCCEEDED: *", "storage": "SUCCEEDED: *",
	}},
	{"AllAtOneTarget", `{"selector": {"all": true}, "targets": ["kibana-prod"], "confirmBroad": true}`, "SUCCEEDED", map[string]string{
		"kibana-prod": "SUCCEEDED: *",
	}},

	// Single sessions.
	{"Sessions", `{"selector": {"sessions": [
		{"target": "apm", "device": "3f320100-2177-42e0-8a46-2e33cd3366d0", "id": "2a5d7604"},
		{"target": "storage", "id": "$storage/bob-idp"}, {"target": "storage", "id": "$storage/alice-local"}]}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED: twin-guest", "storage": "SUCCEEDED: alice-local bob-idp",
	}},
	{"SessionsOfEveryKindOfTarget", `{"selector": {"sessions": [
		{"target": "apm", "id": "2a5d7604"}, {"target": "kibana-prod", "id": "$kibana-prod/alice-saml1"},
		{"target": "apm-all", "device": "5b2c2f0e-1d0a-4a0e-9a51-6d3f2a4a7a02", "id": "2a5d7604"}]}}`, "PARTIALLY_SUCCEEDED", map[string]string{
		"apm": unsupported, "apm-all": "SUCCEEDED PASSIVE_DEVICE: twin-red", "kibana-prod": unsupported,
	}},
	{"SessionOnADeviceOutOfScope", `{"selector": {"sessions": [{"target": "apm", "device": "7d1fbb6a-57c5-4a70-8f40-0c1b3f6c9e11", "id": "$apm/alice-lone"}]}}`, "FAILED", map[string]string{
		"apm": "FAILED DEVICE_OUT_OF_SCOPE",
	}},
	{"SessionOnTheWrongDevice", `{"selector": {"sessions": [{"target": "apm", "device": "98901455-6384-47cd-bc41-00a39dfe338f", "id": "2a5d7604"}]}}`, "SUCCEEDED", map[string]string{
		"apm": "SUCCEEDED PASSIVE_DEVICE",
	}},
	{"SessionThatIsGone", `{"selector": {"sessions": [{"target": "storage", "id": "00000000-0000-4000-8000-000000000000"}]}}`, "SUCCEEDED", map[string]string{
		"storage": noneMatched,
	}},
	{"SessionWithADeviceWhereThereAreNone", `{"selector": {"sessions": [{"target": "storage", "device": "node-1", "id": "$storage/alice-local"}]}}`, "FAILED", map[string]string{
		"storage": unsupported,
	}},
}

// TestEverySelectorEndsExactlyWhatItMatches makes each call of the matrix through gRPC and through REST, after a preview,
// and compares who is left with what is written down.
func TestEverySelectorEndsExactlyWhatItMatches(t *testing.T) {
	runMatrix(t, newLab, nil)
}

// runMatrix makes each call of the matrix at a lab of its own, with a configuration that was changed.
func runMatrix(t *testing.T, make func() *lab, change func(string) string) {
	for _, c := range matrix {
		t.Run(c.name, func(t *testing.T) {
			path := memoryDir(t, change)
			synctest.Test(t, func(t *testing.T) {
				g := startInMemory(t, make(), path)
				for _, transport := range []string{"gRPC", "REST"} {
					g.lab.signIn()
					for _, r := range g.sent {
						r.Reset()
					}
					g.preview(t, c, transport)
					g.end(t, c, transport)
				}
				if t.Failed() {
					t.Logf("the gateway's log:\n%s", g.log)
				}
			})
		})
	}
}

// call makes a call through a transport.
func (g *memoryGateway) call(t *testing.T, transport, body string) *endsessionv1.InvalidateSessionsResponse {
	t.Helper()
	if transport == "gRPC" {
		var req endsessionv1.InvalidateSessionsRequest
		if err := protojson.Unmarshal([]byte(body), &req); err != nil {
			t.Fatal(err)
		}
		resp, err := endsessionv1.NewSessionServiceClient(g.grpc).InvalidateSessions(t.Context(), &req)
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return resp
	}
	status, answer := post(t, g.http, "http://localhost/v1/sessions:invalidate", body)
	if status != 200 {
		t.Fatalf("%s: HTTP %d: %s", body, status, answer)
	}
	var resp endsessionv1.InvalidateSessionsResponse
	if err := protojson.Unmarshal([]byte(answer), &resp); err != nil {
		t.Fatal(err)
	}
	return &resp
}

// body is the case's request with the sessions' ids, and further members.
func (g *memoryGateway) body(c matrixCase, members ...string) string {
	body := c.body
	for seat, key := range g.lab.keys {
		body = strings.ReplaceAll(body, `"$`+seat[0]+"/"+seat[1]+`"`, fmt.Sprintf("%q", key.ID))
	}
	for _, m := range members {
		body = strings.Replace(body, "{", "{"+m+", ", 1)
	}
	return body
}

// expected takes an expectation apart.
func (g *memoryGateway) expected(t *testing.T, target, text string) (state string, reasons, dies []string) {
	t.Helper()
	head, labels, _ := strings.Cut(text, ":")
	words := strings.Fields(head)
	return words[0], words[1:], g.lab.labels(t, target, labels)
}

// preview must say what would happen, and change nothing.
func (g *memoryGateway) preview(t *testing.T, c matrixCase, transport string) {
	t.Helper()
	resp := g.call(t, transport, g.body(c, `"validateOnly": true`))
	if resp.GetInvalidation() != nil || len(resp.GetPreviews()) != len(c.runs) {
		t.Errorf("%s: preview answers %v", transport, resp)
	}
	for _, p := range resp.GetPreviews() {
		state, reasons, dies := g.expected(t, p.GetTarget(), c.runs[p.GetTarget()])
		if want := state != "UNSUPPORTED"; p.GetSupported() != want {
			t.Errorf("%s: preview: %s is supported: %t, want %t (%v)", transport, p.GetTarget(), p.GetSupported(), want, p.GetError())
		}
		if state != "SUCCEEDED" && !slices.Contains(reasons, p.GetError().GetReason()) {
			t.Errorf("%s: preview: %s has the error %v, want one of %v", transport, p.GetTarget(), p.GetError(), reasons)
		}
		if !p.GetCanList() {
			continue
		}
		var listed, want []string
		for _, s := range p.GetSessions() {
			listed = append(listed, s.GetId())
		}
		for _, label := range dies {
			want = append(want, g.lab.keys[[2]string{p.GetTarget(), label}].ID)
		}
		slices.Sort(listed)
		slices.Sort(want)
		if !slices.Equal(listed, want) {
			t.Errorf("%s: preview: %s lists %v, want %v, of %v", transport, p.GetTarget(), listed, want, dies)
		}
	}
	for _, target := range g.lab.targets {
		if gone := g.lab.gone(target); gone != nil {
			t.Errorf("%s: the preview signed out of %s: %v", transport, target, gone)
		}
		if g.mutations(target) > 0 {
			t.Errorf("%s: the preview sent to %s what could end sessions", transport, target)
		}
	}
}

// end makes the call itself.
func (g *memoryGateway) end(t *testing.T, c matrixCase, transport string) {
	t.Helper()
	inv := g.call(t, transport, g.body(c)).GetInvalidation()
	if got := stateWord(inv.GetState()); got != c.state {
		t.Errorf("%s: state %s, want %s", transport, got, c.state)
	}
	asked := map[string]bool{}
	known, minimum := int32(0), false
	for _, r := range inv.GetRuns() {
		asked[r.GetTarget()] = true
		g.judge(t, transport, r, c.runs[r.GetTarget()])
		known += r.GetInvalidatedCount()
		minimum = minimum || r.InvalidatedCount == nil && word(r.GetState(), "RUN_STATE_") != "UNSUPPORTED" && r.GetAttempts() > 0
	}
	if want := slices.Sorted(maps.Keys(c.runs)); !slices.Equal(slices.Sorted(maps.Keys(asked)), want) {
		t.Errorf("%s: runs at %v, want %v", transport, slices.Sorted(maps.Keys(asked)), want)
	}
	if inv.GetInvalidatedCount() != known || inv.GetCountIsMinimum() != minimum {
		t.Errorf("%s: %d sessions, minimum %t; want %d, %t", transport, inv.GetInvalidatedCount(), inv.GetCountIsMinimum(), known, minimum)
	}
	for _, target := range g.lab.targets {
		if gone := g.lab.gone(target); c.runs[target] == "" && gone != nil {
			t.Errorf("%s: signed out of %s, which was not asked: %v", transport, target, gone)
		}
	}
}

// judge compares one run, and who is signed out of its target, with what is expected.
func (g *memoryGateway) judge(t *testing.T, transport string, r *endsessionv1.Run, text string) {
	t.Helper()
	if text == "" {
		return // reported by the caller
	}
	target := r.GetTarget()
	state, reasons, dies := g.expected(t, target, text)
	if gone := g.lab.gone(target); !slices.Equal(gone, dies) {
		t.Errorf("%s: %s: signed out %v, want %v", transport, target, gone, dies)
	}
	var got []string
	if r.GetError() != nil {
		got = append(got, r.GetError().GetReason())
	}
	for _, w := range r.GetWarnings() {
		got = append(got, w.GetCode())
	}
	slices.Sort(got)
	slices.Sort(reasons)
	if s := word(r.GetState(), "RUN_STATE_"); s != state || !slices.Equal(got, reasons) {
		t.Errorf("%s: %s: %s %v, want %s %v", transport, target, s, got, state, reasons)
	}
	nothing := slices.Contains(reasons, "NOTHING_CAN_MATCH")
	if (state != "SUCCEEDED" || nothing) && g.mutations(target) > 0 {
		t.Errorf("%s: %s: a run that ended %s sent what could end sessions", transport, target, text)
	}
	if r.GetCountIsMinimum() {
		t.Errorf("%s: %s: the count is a minimum although nothing was lost", transport, target)
	}
	wantCount, verification := fmt.Sprint(len(dies)), "UNSPECIFIED"
	if state != "SUCCEEDED" || r.GetKind() == "bigiq" && !nothing {
		wantCount = "absent"
	}
	if state == "SUCCEEDED" && !nothing {
		verification = map[string]string{"bigiq": "UNVERIFIABLE", "kibana": "CONFIRMED_BY_REPEAT", "element": "CONFIRMED_BY_LIST"}[r.GetKind()]
	}
	gotCount := "absent"
	if r.InvalidatedCount != nil {
		gotCount = fmt.Sprint(r.GetInvalidatedCount())
	}
	if gotCount != wantCount {
		t.Errorf("%s: %s: count %s, want %s", transport, target, gotCount, wantCount)
	}
	if v := word(r.GetVerification(), "VERIFICATION_"); v != verification {
		t.Errorf("%s: %s: verification %s, want %s", transport, target, v, verification)
	}
	if r.GetSessionsTruncated() {
		t.Errorf("%s: %s: sessions are truncated", transport, target)
	}
}

// TestTheMatrixIsWhole makes sure that no combination of criteria is forgotten.
func TestTheMatrixIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range matrix {
		var body struct {
			Selector map[string]json.RawMessage `json:"selector"`
		}
		if err := json.Unmarshal([]byte(c.body), &body); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		seen[strings.Join(slices.Sorted(maps.Keys(body.Selector)), "+")] = true
		for target := range c.runs {
			if !slices.Contains(newLab().targets, target) {
				t.Errorf("%s: there is no target %s", c.name, target)
			}
		}
	}
	for _, want := range []string{"user", "provider", "group", "provider+user", "group+user", "group+provider", "group+provider+user", "all", "sessions"} {
		if !seen[want] {
			t.Errorf("no case with %s", want)
		}
	}
}
