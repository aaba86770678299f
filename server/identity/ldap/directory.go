package ldap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/identity"
	"github.com/go-ldap/ldap/v3"
)

// Options make a [Directory].
type Options struct {
	// URLs are the servers, in the order of preference: ldaps://host or ldap://host, perhaps with a port.
	URLs []string
	// StartTLS secures connections to ldap:// URLs; a server that cannot is not used.
	StartTLS bool
	// CAFile holds the authorities (PEM) that may vouch for the servers; empty means the system's.
	CAFile string
	// BindDN and Password are the account that asks; both empty means nobody.
	BindDN   string
	Password secret.String
	// Timeout bounds each request to a server: connecting, binding, a page of a search.
	Timeout time.Duration
	// CacheAge is how old an answer may be that is given again. 0 means that nothing is kept.
	CacheAge time.Duration
	// PageSize is how many entries a server is asked for at a time.
	PageSize int
	User     User
	// Group says where groups are; nil if there are none.
	Group *Group
	// Logger hears of servers that stop and start to answer.
	Logger *slog.Logger
	// Dial opens connections; nil means the network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// User says which entries are people, and what is read of them.
type User struct {
	// Base is the DN below which people are.
	Base string
	// Filter is what an entry must match to be a person.
	Filter string
	// ID is the attribute that holds the id callers use, Email that of the e-mail address.
	ID, Email string
	// IgnoreCase takes an entry whose id differs from the one asked for in the case of its letters. The person's id is
	// then the directory's.
	IgnoreCase bool
	// Attributes maps the names of a person's attributes to the LDAP attributes that hold them.
	Attributes map[string]string
}

// Group says which entries are groups, and how they name their members.
type Group struct {
	// Base is the DN below which groups are.
	Base string
	// Filter is what an entry must match to be a group.
	Filter string
	// Name is the attribute that holds the name groups are called by; empty means that they are called by their DN.
	Name string
	// Members says how membership is stored.
	Members Membership
	// Nested is how many levels of groups within groups are looked into.
	Nested int
}

// Membership is how a directory stores who is in a group.
type Membership string

// The forms of membership.
const (
	// Member and UniqueMember: the group has the DNs of its members, in the attribute of that name.
	Member       Membership = "member"
	UniqueMember Membership = "uniqueMember"
	// MemberUID: the group has the ids of its members in memberUid. Such groups do not nest.
	MemberUID Membership = "memberUid"
	// MemberOf: members have the DNs of their groups in memberOf.
	MemberOf Membership = "memberOf"
)

// Bounds.
const (
	// connections bounds the connections at a time, over all servers.
	connections = 4
	// parallel bounds the requests at a time on one connection.
	parallel = 8
	// idleLength is how long a connection that nobody uses is thought to be alive.
	idleLength = time.Minute
	// questionTimeout bounds a question, all its requests and failovers together.
	questionTimeout = time.Minute
	// maxAnswer bounds the bytes that a server may send in answer to a question.
	maxAnswer = 16 << 20
)

// Directory asks LDAP servers. It is safe for concurrent use.
type Directory struct {
	o       Options
	log     *slog.Logger
	tls     *tls.Config
	servers []*server
	answers answers

	// base ends when the directory is closed; questions counts those under way, so that none is left behind.
	base      context.Context
	end       context.CancelFunc
	questions sync.WaitGroup
	slots     chan struct{} // one for each connection in use

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

var _ identity.Directory = (*Directory)(nil)

// server is one of the servers. Its fields but the first are guarded by the directory's mutex.
type server struct {
	url      *url.URL
	failures int
	// until is when it is tried again.
	until time.Time
}

// New makes a directory. It reads the authorities' file, and reaches nobody.
func New(o Options) (*Directory, error) {
	d := &Directory{o: o, log: o.Logger, slots: make(chan struct{}, connections)}
	d.answers.age = o.CacheAge
	d.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		d.tls.RootCAs = x509.NewCertPool()
		if !d.tls.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate", o.CAFile)
		}
	}
	for _, text := range o.URLs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.Hostname() == "" {
			return nil, errors.New("urls: want ldaps://host or ldap://host")
		}
		d.servers = append(d.servers, &server{url: u})
	}
	if len(d.servers) == 0 {
		return nil, errors.New("urls: want at least one")
	}
	if d.o.Dial == nil {
		d.o.Dial = new(net.Dialer).DialContext
	}
	d.base, d.end = context.WithCancel(context.Background())
	return d, nil
}

// Close ends the questions under way and closes all connections.
func (d *Directory) Close() error {
	d.mu.Lock()
	d.closed = true
	idle := d.idle
	d.idle = nil
	d.mu.Unlock()
	d.end()
	d.questions.Wait()
	for _, c := range idle {
		c.close()
	}
	return nil
}

// CheckGroup says what is wrong with a group's name, without asking anybody.
func (d *Directory) CheckGroup(name string) error {
	g := d.o.Group
	switch {
	case g == nil:
		return errors.New("directory.ldap does not say where groups are; add group")
	case g.Name != "":
		return nil
	}
	dn, err := ldap.ParseDN(name)
	if err != nil || len(dn.RDNs) == 0 {
		return fmt.Errorf("%q is not the DN of a group; to call groups by another attribute, set directory.ldap.group.name", name)
	}
	if !below(g.Base, name) {
		return fmt.Errorf("the group %q is not below directory.ldap.group.base", name)
	}
	return nil
}

// Person returns what the directory knows of the person with an id.
func (d *Directory) Person(ctx context.Context, id string) (identity.Person, bool, error) {
	p, err := answer(ctx, d, "person\x00"+id, func(ctx context.Context, c *conn) (*identity.Person, bool, error) {
		found, err := d.people(ctx, c, []string{id})
		if err != nil || found[id] == nil {
			return nil, false, err
		}
		return &found[id].Person, true, nil
	})
	if err != nil || p == nil {
		return identity.Person{}, false, err
	}
	return *p, true, nil
}

// Members returns the members of a group, in the order of their ids.
func (d *Directory) Members(ctx context.Context, group string, limit int) ([]identity.Person, error) {
	if err := d.CheckGroup(group); err != nil {
		return nil, fmt.Errorf("%w: %w", identity.ErrUnknownGroup, err)
	}
	key := fmt.Sprintf("members\x00%d\x00%s", limit, group)
	return answer(ctx, d, key, func(ctx context.Context, c *conn) ([]identity.Person, bool, error) {
		people, err := d.members(ctx, c, group, limit)
		return people, err == nil && len(people) > 0, err
	})
}

// IsMember reports whether a person is in a group, directly or by way of a group within it.
func (d *Directory) IsMember(ctx context.Context, group, id string) (bool, error) {
	if err := d.CheckGroup(group); err != nil {
		return false, fmt.Errorf("%w: %w", identity.ErrUnknownGroup, err)
	}
	key := fmt.Sprintf("member\x00%d\x00%s%s", len(group), group, id)
	return answer(ctx, d, key, func(ctx context.Context, c *conn) (bool, bool, error) {
		is, err := d.isMember(ctx, c, group, id)
		return is, is && err == nil, err
	})
}
