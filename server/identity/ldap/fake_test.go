package ldap_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	goldap "github.com/go-ldap/ldap/v3"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/identity/ldap"
)

// fake is a server in memory, for what a sound OpenLDAP does not do, and for virtual time.
type fake struct {
	// answer says what a search finds; a negative code breaks the connection after the entries.
	answer func(base, filter string, attributes []string) (entries []*goldap.Entry, code int)
	bind   int

	mu                 sync.Mutex
	down               bool
	dialled, questions int
	sent               int // bytes that a client took
	conns              []net.Conn
}

func (f *fake) dial(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialled++
	if f.down {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	f.conns = append(f.conns, server)
	go f.serve(server)
	return client, nil
}

// set makes the server go away or come back.
func (f *fake) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
	for _, c := range f.conns {
		if down {
			_ = c.Close()
		}
	}
}

func (f *fake) counts() (dialled, questions int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dialled, f.questions
}

func (f *fake) serve(c net.Conn) {
	// Pipes have no buffers; a server that did not read while it writes would stop its client.
	replies := make(chan []byte, 1000)
	var writing sync.WaitGroup
	writing.Go(func() {
		for reply := range replies {
			n, err := c.Write(reply)
			f.mu.Lock()
			f.sent += n
			f.mu.Unlock()
			if err != nil {
				_ = c.Close()
			}
		}
	})
	defer c.Close()
	defer writing.Wait()
	defer close(replies)
	for {
		request, err := ber.ReadPacket(c)
		if err != nil {
			return
		}
		id, op := request.Children[0].Value.(int64), request.Children[1]
		switch op.Tag {
		case goldap.ApplicationBindRequest:
			f.mu.Lock()
			code := f.bind
			f.mu.Unlock()
			replies <- done(id, goldap.ApplicationBindResponse, code).Bytes()
		case goldap.ApplicationSearchRequest:
			filter, err := goldap.DecompileFilter(op.Children[6])
			if err != nil {
				return
			}
			var attributes []string
			for _, a := range op.Children[7].Children {
				attributes = append(attributes, a.Value.(string))
			}
			f.mu.Lock()
			f.questions++
			answer := f.answer
			f.mu.Unlock()
			entries, code := answer(op.Children[0].Value.(string), filter, attributes)
			var reply []byte
			for i, e := range entries {
				if i == 0 || e != entries[i-1] {
					reply = found(id, e).Bytes()
				}
				replies <- reply
			}
			if code < 0 {
				return
			}
			replies <- done(id, goldap.ApplicationSearchResultDone, code).Bytes()
		default:
			return
		}
	}
}

func message(id int64, op ber.Tag) (whole, part *ber.Packet) {
	whole = ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	whole.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	return whole, ber.Encode(ber.ClassApplication, ber.TypeConstructed, op, nil, "")
}

func text8(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

// done ends an answer. What servers say beside the code may repeat anything.
func done(id int64, op ber.Tag, code int) *ber.Packet {
	whole, part := message(id, op)
	part.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(code), ""))
	part.AppendChild(text8(""))
	part.AppendChild(text8("the server says: pr1vate"))
	whole.AppendChild(part)
	return whole
}

func found(id int64, e *goldap.Entry) *ber.Packet {
	whole, part := message(id, goldap.ApplicationSearchResultEntry)
	part.AppendChild(text8(e.DN))
	list := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	for _, a := range e.Attributes {
		attribute := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
		attribute.AppendChild(text8(a.Name))
		values := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range a.Values {
			values.AppendChild(text8(v))
		}
		attribute.AppendChild(values)
		list.AppendChild(attribute)
	}
	part.AppendChild(list)
	whole.AppendChild(part)
	return whole
}

// fakeOptions are those of a directory that asks the fake servers, by the names a, b, …
func fakeOptions(servers ...*fake) ldap.Options {
	byName := map[string]*fake{}
	o := ldap.Options{
		BindDN: "cn=svc", Password: secret.New("s3cret"), Timeout: 5 * time.Second, PageSize: 100, Logger: slog.New(slog.DiscardHandler),
		User:  ldap.User{Base: people, Filter: personIs, ID: "uid", Email: "mail"},
		Group: &ldap.Group{Base: groups, Filter: groupIs, Members: ldap.Member},
	}
	for i, s := range servers {
		name := string(rune('a' + i))
		byName[name+":389"] = s
		o.URLs = append(o.URLs, "ldap://"+name)
	}
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return byName[address].dial(ctx, network, address)
	}
	return o
}

// somebody answers every search for people with one entry.
func somebody(uid string) func(string, string, []string) ([]*goldap.Entry, int) {
	return func(string, string, []string) ([]*goldap.Entry, int) {
		return []*goldap.Entry{goldap.NewEntry(dn(uid), map[string][]string{"uid": {uid}})}, 0
	}
}

// In a bubble, the directory is closed before the bubble ends.
func openIn(t *testing.T, o ldap.Options) *ldap.Directory {
	t.Helper()
	d, err := ldap.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestAnswersAreKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: somebody("alice")}
		o := fakeOptions(f)
		o.CacheAge = 30 * time.Second
		d := openIn(t, o)
		ask := func(id string, want bool, questions int) {
			t.Helper()
			_, before := f.counts()
			_, ok, err := d.Person(t.Context(), id)
			_, after := f.counts()
			if ok != want || err != nil || after-before != questions {
				t.Errorf("%s: got %v, %v with %d questions; want %v with %d", id, ok, err, after-before, want, questions)
			}
		}
		ask("alice", true, 1)
		time.Sleep(30*time.Second - 1)
		ask("alice", true, 0)
		time.Sleep(time.Nanosecond)
		ask("alice", true, 1) // not older than 30s
		// Nobody and somebody ambiguous are looked for every time.
		ask("bob", false, 1)
		ask("bob", false, 1)
		f.answer = func(string, string, []string) ([]*goldap.Entry, int) {
			e := goldap.NewEntry(dn("carol"), map[string][]string{"uid": {"carol"}})
			return []*goldap.Entry{e, e}, 0
		}
		if _, _, err := d.Person(t.Context(), "carol"); !errors.Is(err, identity.ErrAmbiguous) {
			t.Errorf("got %v", err)
		}
		f.answer = somebody("carol")
		ask("carol", true, 1)

		o.CacheAge = 0
		d = openIn(t, o)
		ask("carol", true, 1)
		ask("carol", true, 1)
	})
}

// Membership is kept while it stands; that somebody is no member is asked every time.
func TestMembershipIsKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		member := true
		f := &fake{answer: func(base, filter string, _ []string) ([]*goldap.Entry, int) {
			e := goldap.NewEntry(base, map[string][]string{"objectClass": {"groupOfNames"}, "uid": {"alice"}, "member": {dn("alice")}})
			if strings.Contains(filter, "(member=") && !member {
				return nil, 0
			}
			return []*goldap.Entry{e}, 0
		}}
		o := fakeOptions(f)
		o.CacheAge = 30 * time.Second
		d := openIn(t, o)
		ask := func(want bool) {
			t.Helper()
			if is, err := d.IsMember(t.Context(), groupDN("staff"), "alice"); is != want || err != nil {
				t.Errorf("got %v, %v; want %v", is, err, want)
			}
		}
		ask(true)
		member = false
		ask(true)
		time.Sleep(30 * time.Second)
		ask(false)
		member = true
		ask(true)
	})
}

func TestDeadServersAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &fake{answer: somebody("alice")}, &fake{answer: somebody("alice")}
		d := openIn(t, fakeOptions(a, b))
		ask := func(works bool, dialledA, dialledB int) {
			t.Helper()
			a0, _ := a.counts()
			b0, _ := b.counts()
			_, _, err := d.Person(t.Context(), "alice")
			a1, _ := a.counts()
			b1, _ := b.counts()
			if (err == nil) != works || a1-a0 != dialledA || b1-b0 != dialledB {
				t.Errorf("got %v, dialled %d and %d times; want %v, %d and %d", err, a1-a0, b1-b0, works, dialledA, dialledB)
			}
		}
		ask(true, 1, 0)
		ask(true, 0, 0)
		a.set(true)
		ask(true, 1, 1)
		b.set(true)
		ask(false, 0, 1)
		ask(false, 0, 0) // both failed less than a second ago
		time.Sleep(time.Second)
		ask(false, 1, 1)
		time.Sleep(time.Second)
		ask(false, 0, 0)
		time.Sleep(time.Second)
		ask(false, 1, 1)
		for range 20 {
			time.Sleep(30 * time.Second)
			ask(false, 1, 1)
		}
		a.set(false)
		time.Sleep(30 * time.Second)
		ask(true, 1, 0)
		time.Sleep(2 * time.Minute) // servers forget connections that nobody uses
		ask(true, 1, 0)
	})
}

func TestServerThatRefusesTheAccountIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: somebody("alice"), bind: goldap.LDAPResultInvalidCredentials}
		d := openIn(t, fakeOptions(f))
		for range 100 {
			if _, _, err := d.Person(t.Context(), "alice"); err == nil || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "pr1vate") {
				t.Errorf("got %v", err)
			}
			time.Sleep(8 * time.Second)
		}
		if n, _ := f.counts(); n != 1 {
			t.Errorf("the account was tried %d times in 13 minutes", n)
		}
		f.mu.Lock()
		f.bind = 0
		f.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if _, ok, err := d.Person(t.Context(), "alice"); !ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
	})
}

// An answer that is not whole is no answer, and never that somebody is unknown.
func TestAnswersThatAreNotWhole(t *testing.T) {
	alice := goldap.NewEntry(dn("alice"), map[string][]string{"uid": {"alice"}})
	for _, x := range []struct {
		name   string
		answer func(string, string, []string) ([]*goldap.Entry, int)
	}{
		{"BrokenBeforeTheEnd", func(string, string, []string) ([]*goldap.Entry, int) { return nil, -1 }},
		{"BrokenAfterAnEntry", func(string, string, []string) ([]*goldap.Entry, int) { return []*goldap.Entry{alice}, -1 }},
		{"SizeLimit", func(string, string, []string) ([]*goldap.Entry, int) {
			return []*goldap.Entry{alice}, goldap.LDAPResultSizeLimitExceeded
		}},
		{"TimeLimit", func(string, string, []string) ([]*goldap.Entry, int) { return nil, goldap.LDAPResultTimeLimitExceeded }},
		{"Busy", func(string, string, []string) ([]*goldap.Entry, int) { return nil, goldap.LDAPResultBusy }},
		{"NoBase", func(string, string, []string) ([]*goldap.Entry, int) { return nil, goldap.LDAPResultNoSuchObject }},
		{"NotAllowed", func(string, string, []string) ([]*goldap.Entry, int) {
			return nil, goldap.LDAPResultInsufficientAccessRights
		}},
		{"Referral", func(string, string, []string) ([]*goldap.Entry, int) { return nil, goldap.LDAPResultReferral }},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := openIn(t, fakeOptions(&fake{answer: x.answer}))
				p, ok, err := d.Person(t.Context(), "alice")
				if err == nil || errors.Is(err, identity.ErrAmbiguous) || strings.Contains(err.Error(), "pr1vate") {
					t.Errorf("person: got %v, %v, %v", p, ok, err)
				}
				if _, err := d.Members(t.Context(), groupDN("staff"), 10); err == nil || strings.Contains(err.Error(), "pr1vate") ||
					x.name != "NoBase" && errors.Is(err, identity.ErrUnknownGroup) {
					t.Errorf("members: got %v", err)
				}
			})
		})
	}
}

// An answer without end is cut off, not kept in memory.
func TestEndlessAnswer(t *testing.T) {
	e := goldap.NewEntry(dn("x"), map[string][]string{"uid": {strings.Repeat("x", 1<<20)}})
	f := &fake{answer: func(string, string, []string) ([]*goldap.Entry, int) {
		return slices.Repeat([]*goldap.Entry{e}, 60), 0
	}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var serving sync.WaitGroup
	serving.Go(func() {
		if c, err := listener.Accept(); err == nil {
			f.serve(c)
		}
	})
	o := fakeOptions(f)
	o.Timeout = time.Minute
	o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	}
	if p, ok, err := open(t, o).Person(t.Context(), "alice"); err == nil || errors.Is(err, identity.ErrAmbiguous) {
		t.Errorf("got %v, %v, %v", p, ok, err)
	}
	serving.Wait()
	// What was on the way may be more than was taken.
	if f.sent > 40<<20 {
		t.Errorf("%d bytes of an answer were taken", f.sent)
	}
}

// Active Directory gives the members of a large group in parts.
func TestMembersInParts(t *testing.T) {
	const all, part = 40, 15
	for _, x := range []struct{ name, fails string }{{"Whole", ""}, {"Gap", "do not fit"}, {"Vanished", "vanished"}} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{answer: func(base, filter string, attributes []string) ([]*goldap.Entry, int) {
					uid, _, _ := strings.Cut(strings.TrimPrefix(base, "uid="), ",")
					switch {
					case strings.HasPrefix(base, "uid="):
						return []*goldap.Entry{goldap.NewEntry(base, map[string][]string{"uid": {uid}})}, 0
					case base == people: // by their ids
						var list []*goldap.Entry
						for i := range all {
							if uid := fmt.Sprintf("u%02d", i); strings.Contains(filter, "(uid="+uid+")") {
								list = append(list, goldap.NewEntry(dn(uid), map[string][]string{"uid": {uid}}))
							}
						}
						return list, 0
					}
					from := 0
					for _, a := range attributes {
						_, _ = fmt.Sscanf(a, "member;range=%d-*", &from)
					}
					if from > 0 && x.name == "Vanished" {
						return nil, 0
					}
					if from > 0 && x.name == "Gap" {
						from++
					}
					to, name := min(from+part, all), ""
					if name = fmt.Sprintf("member;range=%d-%d", from, to-1); to == all {
						name = fmt.Sprintf("member;range=%d-*", from)
					}
					var members []string
					for i := from; i < to; i++ {
						members = append(members, dn(fmt.Sprintf("u%02d", i)))
					}
					return []*goldap.Entry{goldap.NewEntry(base, map[string][]string{"objectClass": {"group"}, "member": {}, name: members})}, 0
				}}
				got, err := openIn(t, fakeOptions(f)).Members(t.Context(), groupDN("staff"), 100)
				switch {
				case x.fails == "" && (err != nil || len(got) != all):
					t.Errorf("got %d members, %v; want %d", len(got), err, all)
				case x.fails != "" && (err == nil || !strings.Contains(err.Error(), x.fails)):
					t.Errorf("got %d members, %v", len(got), err)
				}
			})
		})
	}
}

// Those who ask the same at the same time are one question.
func TestSameQuestionIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		f := &fake{answer: func(base, filter string, attributes []string) ([]*goldap.Entry, int) {
			<-goOn
			return somebody("alice")(base, filter, attributes)
		}}
		d := openIn(t, fakeOptions(f))
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := d.Person(ctx, "alice"); !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
		})
		synctest.Wait() // it is the one who asks
		for range 20 {
			wg.Go(func() {
				if _, ok, err := d.Person(t.Context(), "alice"); !ok || err != nil {
					t.Errorf("got %v, %v", ok, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		close(goOn)
		wg.Wait()
		if _, n := f.counts(); n != 1 {
			t.Errorf("%d questions", n)
		}
	})
}
