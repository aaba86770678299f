package ldap_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/identity/ldap"
	"github.com/endsession/endsession/server/identity/ldap/slapdtest"
	goldap "github.com/go-ldap/ldap/v3"
)

const (
	people   = slapdtest.People
	groups   = slapdtest.Groups
	personIs = "(objectClass=person)"
	groupIs  = "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup))"
)

// options are those of a directory that asks the server.
func options(s *slapdtest.Server) ldap.Options {
	return ldap.Options{
		URLs: []string{s.URL()}, BindDN: slapdtest.BindDN, Password: secret.New(slapdtest.Password),
		Timeout: 5 * time.Second, PageSize: 100, Logger: slog.New(slog.DiscardHandler),
		User:  ldap.User{Base: people, Filter: personIs, ID: "uid", Email: "mail", Attributes: map[string]string{"uid": "employeeNumber", "dept": "departmentNumber"}},
		Group: &ldap.Group{Base: groups, Filter: groupIs, Members: ldap.Member, Nested: 3},
	}
}

func open(t testing.TB, o ldap.Options) *ldap.Directory {
	t.Helper()
	d, err := ldap.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// entry is a person, in LDIF.
func entry(dn, uid string, more ...string) string {
	return "dn: " + dn + "\nobjectClass: inetOrgPerson\ncn: x\nsn: x\nuid:: " + base64.StdEncoding.EncodeToString([]byte(uid)) + "\n" + strings.Join(more, "\n") + "\n\n"
}

func person(uid string, more ...string) string { return entry(dn(uid), uid, more...) }

func dn(uid string) string { return "uid=" + uid + "," + people }

func group(cn string, members ...string) string {
	return "dn: " + groupDN(cn) + "\nobjectClass: groupOfNames\ncn: " + cn + "\nmember: " + strings.Join(members, "\nmember: ") + "\n\n"
}

func groupDN(cn string) string { return "cn=" + cn + "," + groups }

// text is what is known of a person, in one line.
func text(p identity.Person) string {
	return fmt.Sprintf("%s %s%q %v%v", p.ID, p.Email, p.Emails, p.Attributes, p.Several)
}

func ids(people []identity.Person) (list []string) {
	for _, p := range people {
		list = append(list, p.ID)
	}
	return list
}

func TestPerson(t *testing.T) {
	s := slapdtest.New(t, slapdtest.Options{})
	s.Load(t, person("alice", "mail: alice@corp.example", "employeeNumber: a17")+
		person("bob")+
		person("Carol")+
		person("twin")+entry("uid=twin,ou=services,"+slapdtest.Suffix, "twin")+ // out of the base
		"dn: ou=east,"+people+"\nobjectClass: organizationalUnit\n\n"+
		person("double")+entry("uid=double,ou=east,"+people, "double")+
		person("cased")+entry("uid=CASED,ou=east,"+people, "CASED")+
		person("many", "mail: many@corp.example", "mail: m@corp.example", "departmentNumber: 7", "departmentNumber: 12")+
		entry("cn=x,"+people, "al", "uid: albert")+
		entry(`cn=x+sn=x,`+people, "o\"brien,+*()\\")+
		entry(`cn=x,ou=east,`+people, "zoë")+
		"dn: uid=robot,"+people+"\nobjectClass: account\nuid: robot\n\n"+
		"dn: ou=elsewhere,"+people+"\nobjectClass: referral\nobjectClass: extensibleObject\nou: elsewhere\nref: ldap://127.0.0.1:1/ou=elsewhere,"+people+"\n\n")
	d := open(t, options(s))
	folding := options(s)
	folding.User.IgnoreCase = true
	fold := open(t, folding)
	const ambiguous = "ambiguous"
	for _, x := range []struct{ id, want, folded string }{
		{"alice", "alice alice@corp.example[] map[uid:a17]map[]", ""},
		{"bob", "bob [] map[]map[]", ""},
		{"nobody", "unknown", ""},
		// The server matches all of these.
		{"Alice", "unknown", "alice alice@corp.example[] map[uid:a17]map[]"},
		{"ALICE", "unknown", "alice alice@corp.example[] map[uid:a17]map[]"},
		{" alice", "unknown", ""},
		{"alice ", "unknown", ""},
		{"ａlice", "unknown", ""}, // compatibility
		{"zoe\u0308", "unknown", ""},
		{"zoë", "zoë [] map[]map[]", ""},
		{"ZOË", "unknown", "zoë [] map[]map[]"},
		{"carol", "unknown", "Carol [] map[]map[]"},
		// None of these means anything but itself.
		{"*", "unknown", ""},
		{"al*", "unknown", ""},
		{"alice)(uid=*", "unknown", ""},
		{"alice\x00", "unknown", ""},
		{"alice\n", "unknown", ""},
		{"\u202ealice", "unknown", ""},
		{"\\61lice", "unknown", ""},
		{"аlice", "unknown", ""}, // Cyrillic
		{strings.Repeat("x", 1024), "unknown", ""},
		{"o\"brien,+*()\\", "o\"brien,+*()\\ [] map[]map[]", ""},
		// Two entries.
		{"double", ambiguous, ""},
		{"cased", "cased [] map[]map[]", ambiguous},
		{"CASED", "CASED [] map[]map[]", ambiguous},
		{"twin", "twin [] map[]map[]", ""},
		// Several values.
		{"many", `many ["m@corp.example" "many@corp.example"] map[]map[dept:[12 7]]`, ""},
		{"al", "al [] map[]map[]", ""},
		{"albert", "albert [] map[]map[]", ""},
		{"robot", "unknown", ""}, // not a person by the filter
	} {
		for _, y := range []struct {
			how  string
			d    *ldap.Directory
			want string
		}{{"exact", d, x.want}, {"fold", fold, x.folded}} {
			if y.want == "" {
				y.want = x.want
			}
			p, ok, err := y.d.Person(t.Context(), x.id)
			got := text(p)
			switch {
			case errors.Is(err, identity.ErrAmbiguous):
				got = ambiguous
			case err != nil:
				got = err.Error()
			case !ok:
				got = "unknown"
			}
			if got != y.want {
				t.Errorf("%s: %q: got %s, want %s", y.how, x.id, got, y.want)
			}
		}
	}
}

func TestMembersAndIsMember(t *testing.T) {
	s := slapdtest.New(t, slapdtest.Options{})
	unique := func(cn string, members ...string) string {
		return strings.ReplaceAll(strings.ReplaceAll(group(cn, members...), "groupOfNames", "groupOfUniqueNames"), "member:", "uniqueMember:")
	}
	posix := func(cn string, uids ...string) string {
		return "dn: " + groupDN(cn) + "\nobjectClass: posixGroup\ngidNumber: 1\ncn: " + cn + "\n" + strings.TrimSuffix("memberUid: "+strings.Join(uids, "\nmemberUid: "), "memberUid: ") + "\n\n"
	}
	s.Load(t, person("alice", "mail: alice@corp.example")+person("bob")+person("carol")+person("dave")+person("Erin")+
		"dn: ou=east,"+people+"\nobjectClass: organizationalUnit\n\n"+
		person("double")+entry("uid=double,ou=east,"+people, "double")+
		entry("cn=two,"+people, "two", "uid: deux", "cn: two")+
		"dn: uid=robot,"+people+"\nobjectClass: account\nuid: robot\n\n"+
		group("flat", dn("alice"), "UID=Bob, "+people)+
		group("inner", dn("carol"))+group("middle", dn("bob"), groupDN("inner"), dn("alice"))+group("outer", dn("alice"), groupDN("middle"))+
		group("d4", dn("bob"))+group("d3", groupDN("d4"), dn("carol"))+group("d2", groupDN("d3"))+group("d1", groupDN("d2"))+group("d0", groupDN("d1"), dn("alice"))+
		group("dangling", dn("alice"), dn("gone"))+
		group("outside", dn("alice"), "cn=nobody,dc=elsewhere")+
		group("services", "uid=robot,"+people, dn("alice"))+
		group("twins", dn("alice"), dn("double"))+
		group("twoids", "cn=two,"+people)+
		strings.Replace(group(`odd\, (name)*`, dn("alice")), `cn: odd\,`, `cn: odd,`, 1)+
		unique("unique", dn("alice"), groupDN("uniqueinner"))+unique("uniqueinner", dn("carol"))+unique("reused", dn("alice"), dn("dave")+"#'0101'B")+
		posix("posix", "alice", "bob", "erin")+posix("posixok", "alice", "dave", "robot", "two")+posix("empty"))
	modify(t, s, groupDN("inner"), "member", dn("carol"), groupDN("outer"), groupDN("inner")) // loops
	many := ""
	var all []string
	for i := range 230 {
		uid := fmt.Sprintf("u%03d", i)
		many += person(uid)
		all = append(all, dn(uid))
	}
	s.Load(t, many+group("many", all...))
	s.Load(t, "dn: ou=aside,"+slapdtest.Suffix+"\nobjectClass: organizationalUnit\n\n"+
		strings.ReplaceAll(group("flat", dn("carol")), ","+groups, ",ou=aside,"+slapdtest.Suffix))

	style := func(m ldap.Membership, change ...func(*ldap.Group)) *ldap.Directory {
		o := options(s)
		o.Group.Members = m
		for _, f := range change {
			f(o.Group)
		}
		return open(t, o)
	}
	byName := func(g *ldap.Group) { g.Name = "cn" }
	flatOnly := func(g *ldap.Group) { g.Nested = 0 }
	twoLevels := func(g *ldap.Group) { g.Nested = 2 }
	member, named, unnested := style(ldap.Member), style(ldap.Member, byName), style(ldap.Member, flatOnly)
	uniqueMember, memberUID, memberOf := style(ldap.UniqueMember), style(ldap.MemberUID), style(ldap.MemberOf)
	uids := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("u%03d", i))
		}
		return list
	}
	for _, x := range []struct {
		name  string
		d     *ldap.Directory
		group string
		limit int
		want  []string // nil with err
		err   error
		not   []string // who is no member
	}{
		{"Direct", member, groupDN("flat"), 10, []string{"alice", "bob"}, nil, []string{"carol", "nobody", "Alice"}},
		{"NameInAnotherCase", member, "CN=Flat," + groups, 10, []string{"alice", "bob"}, nil, nil},
		{"Nested", member, groupDN("outer"), 10, []string{"alice", "bob", "carol"}, nil, []string{"dave"}},
		{"NestedWithinTheLoop", member, groupDN("inner"), 10, []string{"alice", "bob", "carol"}, nil, nil},
		{"NestedToTheBoundWithTheLoop", style(ldap.Member, twoLevels), groupDN("outer"), 10, []string{"alice", "bob", "carol"}, nil, []string{"dave"}},
		{"NotNested", unnested, groupDN("outer"), 10, []string{"alice"}, nil, []string{"bob", "carol"}},
		{"TooDeep", member, groupDN("d0"), 10, nil, identity.ErrTooDeep, nil},
		{"Limit", member, groupDN("outer"), 2, []string{"alice", "bob"}, nil, nil},
		{"BeyondThePage", member, groupDN("many"), 500, uids(230), nil, []string{"alice"}},
		{"UnknownGroup", member, groupDN("nogroup"), 10, nil, identity.ErrUnknownGroup, nil},
		{"NotAGroup", member, groups, 10, nil, identity.ErrUnknownGroup, nil},
		{"GroupOutOfBase", member, "cn=flat,ou=aside," + slapdtest.Suffix, 10, nil, identity.ErrUnknownGroup, nil},
		{"MemberThatIsGone", member, groupDN("dangling"), 10, nil, identity.ErrUnknownMember, nil},
		{"MemberOutOfBothBases", member, groupDN("outside"), 10, []string{"alice"}, nil, nil},
		{"MemberWhoIsNoPerson", member, groupDN("services"), 10, []string{"alice"}, nil, []string{"robot"}},
		{"MemberWhoseIDIsTaken", member, groupDN("twins"), 10, nil, identity.ErrAmbiguous, nil},
		{"MemberWithTwoIDs", member, groupDN("twoids"), 10, nil, identity.ErrAmbiguous, nil},
		{"OddDN", member, `cn=odd\, (name)*,` + groups, 10, []string{"alice"}, nil, []string{"bob"}},
		{"Named", named, "flat", 10, []string{"alice", "bob"}, nil, []string{"carol"}},
		{"NamedWithOddName", named, "odd, (name)*", 10, []string{"alice"}, nil, nil},
		{"NamedInAnotherCase", named, "Flat", 10, nil, identity.ErrUnknownGroup, nil},
		{"NamedByAPattern", named, "fla*", 10, nil, identity.ErrUnknownGroup, nil},
		{"UniqueMember", uniqueMember, groupDN("unique"), 10, []string{"alice", "carol"}, nil, []string{"bob"}},
		{"UniqueMemberOfAReusedDN", uniqueMember, groupDN("reused"), 10, nil, identity.ErrUnknownMember, []string{"dave"}},
		{"MemberUidInAnotherCase", memberUID, groupDN("posix"), 10, nil, identity.ErrUnknownMember, []string{"Erin", "carol"}},
		{"MemberUid", memberUID, groupDN("posixok"), 10, []string{"alice", "dave", "two"}, nil, []string{"bob", "robot"}},
		{"MemberUidLimit", memberUID, groupDN("posixok"), 2, []string{"alice", "dave"}, nil, nil},
		{"Empty", memberUID, groupDN("empty"), 10, nil, nil, []string{"alice"}},
		{"MemberOf", memberOf, groupDN("flat"), 10, []string{"alice", "bob"}, nil, []string{"carol"}},
		{"MemberOfNested", memberOf, groupDN("outer"), 10, []string{"alice", "bob", "carol"}, nil, []string{"dave"}},
		{"MemberOfTooDeep", memberOf, groupDN("d0"), 10, nil, identity.ErrTooDeep, nil},
		{"MemberOfBeyondThePage", memberOf, groupDN("many"), 500, uids(230), nil, []string{"alice"}},
		{"MemberOfWhoseIDIsTaken", memberOf, groupDN("twins"), 10, nil, identity.ErrAmbiguous, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			got, err := x.d.Members(t.Context(), x.group, x.limit)
			if !errors.Is(err, x.err) || x.err == nil && err != nil || !slices.Equal(ids(got), x.want) {
				t.Errorf("got %v, %v; want %v, %v", ids(got), err, x.want, x.err)
			}
			if strings.HasPrefix(x.name, "Direct") && text(got[0]) != "alice alice@corp.example[] map[]map[]" {
				t.Errorf("member %s", text(got[0]))
			}
			for _, id := range x.want[:min(len(x.want), 5)] {
				if is, err := x.d.IsMember(t.Context(), x.group, id); !is || err != nil {
					t.Errorf("%s: is a member: %v, %v", id, is, err)
				}
			}
			for _, id := range x.not {
				if is, err := x.d.IsMember(t.Context(), x.group, id); is || err != nil {
					t.Errorf("%s: is a member: %v, %v; want false", id, is, err)
				}
			}
		})
	}
	for _, x := range []struct {
		d         *ldap.Directory
		group, id string
		is        bool
		err       error
	}{
		{member, groupDN("d0"), "alice", true, nil},
		{member, groupDN("d0"), "carol", true, nil},
		{member, groupDN("d0"), "bob", false, identity.ErrTooDeep},
		{member, groupDN("d0"), "dave", false, nil},
		{member, groupDN("twins"), "double", false, identity.ErrAmbiguous},
		{member, groupDN("nogroup"), "alice", false, identity.ErrUnknownGroup},
		{member, groupDN("nogroup"), "nobody", false, identity.ErrUnknownGroup},
		{memberUID, groupDN("posixok"), "deux", true, nil}, // by the other id
		{memberOf, groupDN("d0"), "bob", false, identity.ErrTooDeep},
	} {
		if is, err := x.d.IsMember(t.Context(), x.group, x.id); is != x.is || !errors.Is(err, x.err) {
			t.Errorf("IsMember(%s, %s): got %v, %v; want %v, %v", x.group, x.id, is, err, x.is, x.err)
		}
	}
}

// A search that the server would cut short is asked for page by page; where that is impossible, it is an error.
func TestSizeLimit(t *testing.T) {
	s, unpaged := slapdtest.New(t, slapdtest.Options{SizeLimit: 10}), slapdtest.New(t, slapdtest.Options{SizeLimit: 10, NoPaging: true})
	all, want := "", []string(nil)
	var dns []string
	for i := range 60 {
		uid := fmt.Sprintf("u%03d", i)
		all += person(uid)
		dns, want = append(dns, dn(uid)), append(want, uid)
	}
	s.Load(t, all+group("staff", dns...))
	unpaged.Load(t, all+group("staff", dns...))
	for _, x := range []struct {
		server  *slapdtest.Server
		page    int
		members ldap.Membership
		fails   bool
	}{{s, 10, ldap.Member, false}, {s, 7, ldap.MemberOf, false}, {unpaged, 7, ldap.MemberOf, true}} {
		o := options(x.server)
		o.PageSize, o.Group.Members = x.page, x.members
		got, err := open(t, o).Members(t.Context(), groupDN("staff"), 100)
		switch {
		case x.fails && err == nil:
			t.Errorf("pages of %d: got %d members of %d and no error", x.page, len(got), len(want))
		case !x.fails && (err != nil || !slices.Equal(ids(got), want)):
			t.Errorf("pages of %d: got %v, %v", x.page, ids(got), err)
		}
	}
}

// What the account may not see must not look as if it were not there.
func TestWhatIsHiddenIsAnError(t *testing.T) {
	s := slapdtest.New(t, slapdtest.Options{Access: `access to dn.exact="` + groupDN("hidden") + `" attrs=member by * none
access to dn.exact="` + dn("noid") + `" attrs=uid by dn.exact="` + slapdtest.BindDN + `" search by * none
access to dn.exact="` + dn("hidden") + `" by * none
access to dn.subtree="` + people + `" attrs=memberOf by * none`})
	s.Load(t, person("alice")+person("noid")+person("hidden")+group("hidden", dn("alice"))+group("partly", dn("alice"), dn("hidden"))+group("noid", dn("noid"))+group("open", dn("alice")))
	d := open(t, options(s))
	if p, ok, err := d.Person(t.Context(), "noid"); err == nil {
		t.Errorf("a person whose id is not shown: got %v, %v", p, ok)
	}
	for _, name := range []string{"hidden", "partly", "noid"} {
		if got, err := d.Members(t.Context(), groupDN(name), 10); err == nil {
			t.Errorf("%s: got %v", name, ids(got))
		}
	}
	if is, err := d.IsMember(t.Context(), groupDN("hidden"), "alice"); err == nil {
		t.Errorf("member of a group that hides its members: %v", is)
	}
	o := options(s)
	o.Group.Members = ldap.MemberOf
	d = open(t, o)
	if got, err := d.Members(t.Context(), groupDN("open"), 10); err == nil {
		t.Errorf("memberOf is hidden: got %v", ids(got))
	}
	if is, err := d.IsMember(t.Context(), groupDN("open"), "alice"); err == nil {
		t.Errorf("memberOf is hidden: %v", is)
	}
}

func TestTLS(t *testing.T) {
	// Without encryption the account sees nothing.
	s := slapdtest.New(t, slapdtest.Options{Access: `access to * by dn.exact="` + slapdtest.BindDN + `" tls_ssf=128 read by anonymous auth`})
	other := slapdtest.New(t, slapdtest.Options{})
	s.Load(t, person("alice"))
	for _, x := range []struct {
		name   string
		change func(*ldap.Options)
		fails  string
	}{
		{"LDAPS", func(o *ldap.Options) { o.URLs = []string{s.TLSURL()} }, ""},
		{"StartTLS", func(o *ldap.Options) { o.StartTLS = true }, ""},
		{"Plain", func(o *ldap.Options) { o.CAFile = "" }, "search"},
		{"LDAPSOfAnotherAuthority", func(o *ldap.Options) { o.URLs, o.CAFile = []string{s.TLSURL()}, other.CAFile() }, "certificate"},
		{"StartTLSOfAnotherAuthority", func(o *ldap.Options) { o.StartTLS, o.CAFile = true, other.CAFile() }, "certificate"},
		{"SystemAuthorities", func(o *ldap.Options) { o.StartTLS, o.CAFile = true, "" }, "certificate"},
		{"AnotherName", func(o *ldap.Options) {
			o.URLs = []string{strings.Replace(s.TLSURL(), "localhost", "127.0.0.1", 1)}
		}, "certificate"},
	} {
		t.Run(x.name, func(t *testing.T) {
			o := options(s)
			o.CAFile = s.CAFile()
			x.change(&o)
			p, _, err := open(t, o).Person(t.Context(), "alice")
			switch {
			case x.fails == "" && (err != nil || p.ID != "alice"):
				t.Errorf("got %v, %v", p, err)
			case x.fails != "" && (err == nil || !strings.Contains(err.Error(), x.fails)):
				t.Errorf("got %v, %v; want an error with %q", p, err, x.fails)
			}
		})
	}
	for _, file := range []string{"testdata/none.pem", "doc.go"} {
		o := options(s)
		o.CAFile = file
		if _, err := ldap.New(o); err == nil || !strings.HasPrefix(err.Error(), "ca_file: ") {
			t.Errorf("%s: got %v", file, err)
		}
	}
}

// counter counts the connections that are opened, and may refuse them.
type counter struct {
	opened atomic.Int32
	refuse atomic.Bool
}

func (c *counter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.opened.Add(1)
	if c.refuse.Load() {
		return nil, errors.New("refused")
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

func TestReconnectAndFailover(t *testing.T) {
	first, second := slapdtest.New(t, slapdtest.Options{}), slapdtest.New(t, slapdtest.Options{})
	first.Load(t, person("alice", "mail: first@corp.example"))
	second.Load(t, person("alice", "mail: second@corp.example"))
	var log bytes.Buffer
	var count counter
	o := options(first)
	o.URLs = []string{first.URL(), second.URL()}
	o.Dial, o.Timeout, o.Logger = count.dial, time.Second, slog.New(slog.NewTextHandler(&log, nil))
	d := open(t, o)
	ask := func(want string) {
		t.Helper()
		p, _, err := d.Person(t.Context(), "alice")
		if err != nil || p.Email != want+"@corp.example" {
			t.Errorf("got %q, %v; want the %s server's answer", p.Email, err, want)
		}
	}
	ask("first")
	ask("first")
	if n := count.opened.Load(); n != 1 {
		t.Errorf("%d connections for two questions one after the other", n)
	}
	first.Stop()
	first.Start(t)
	ask("first") // the connection is broken, the server is well
	first.Stop()
	ask("second")
	thaw := second.Freeze()
	if _, _, err := d.Person(t.Context(), "alice"); err == nil {
		t.Error("both servers are out of service, and there is an answer")
	}
	thaw()
	for _, want := range []string{"is of no use", first.URL()[len("ldap://"):]} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log says nothing of %q:\n%s", want, &log)
		}
	}
	if strings.Contains(log.String(), slapdtest.Password) {
		t.Errorf("the log shows the password:\n%s", &log)
	}
}

// A caller that leaves is not held up by a server that does not answer, and Close ends what is under way.
func TestHangingServer(t *testing.T) {
	s := slapdtest.New(t, slapdtest.Options{})
	o := options(s)
	o.Timeout = time.Hour
	d := open(t, o)
	if _, _, err := d.Person(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	defer s.Freeze()()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := d.Person(ctx, "alice"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := d.Person(t.Context(), "bob"); err == nil {
			t.Error("a hanging server has answered")
		}
	})
	_ = d.Close()
	wg.Wait()
	if _, _, err := d.Person(t.Context(), "alice"); err == nil {
		t.Error("a closed directory answers")
	}
}

func TestRefusedPasswordIsNotTriedAgain(t *testing.T) {
	s := slapdtest.New(t, slapdtest.Options{})
	var count counter
	o := options(s)
	o.Password, o.Dial = secret.New("wr0ng-s3cret"), count.dial
	d := open(t, o)
	for range 3 {
		_, _, err := d.Person(t.Context(), "alice")
		if err == nil || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("got %v", err)
		}
	}
	if n := count.opened.Load(); n != 1 {
		t.Errorf("the password was tried %d times", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	s := slapdtest.New(t, slapdtest.Options{})
	s.Load(t, person("alice")+person("bob")+group("staff", dn("alice")))
	var count counter
	o := options(s)
	o.Dial = count.dial
	d := open(t, o)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			id := []string{"alice", "bob"}[i%2]
			if p, ok, err := d.Person(t.Context(), id); err != nil || !ok || p.ID != id {
				t.Errorf("got %v, %v, %v", p, ok, err)
			}
			if is, err := d.IsMember(t.Context(), groupDN("staff"), id); err != nil || is != (id == "alice") {
				t.Errorf("%s: got %v, %v", id, is, err)
			}
		})
	}
	wg.Wait()
	if n := count.opened.Load(); n > 4 {
		t.Errorf("%d connections at a time", n)
	}
}

// modify changes an attribute of an entry.
func modify(t *testing.T, s *slapdtest.Server, dn, attribute string, values ...string) {
	t.Helper()
	s.Do(t, func(c *goldap.Conn) error {
		m := goldap.NewModifyRequest(dn, nil)
		m.Replace(attribute, values)
		return c.Modify(m)
	})
}
