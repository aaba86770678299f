package elementtest

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// The credentials of the account that every cluster has unless Options say otherwise.
const (
	Username = "admin"
	Password = "element-secret-42"
)

// Options shape a cluster. The zero value is a healthy one of version 12.5 and an administrator's account.
type Options struct {
	// Username and Password are the account's.
	Username, Password string
	// Access is what the account may do; nil means administrator.
	Access []string
	// Versions are the API versions served, ascending; the last is the current one. Nil: 1.0 to 12.5.
	Versions []string
	// NumericVersions writes versions as JSON numbers.
	NumericVersions bool
	// NoMethodList leaves the list of methods out of GetAPI's result.
	NoMethodList bool
	// Node makes it the endpoint of a single node, which has no session methods.
	Node bool
	// DocumentSpelling writes authentication methods as the documents do (LDAP, IdP, Local) instead of as they are sent.
	DocumentSpelling bool
	// OpaqueIdp is an identity provider that sends neither a uid nor a NameID: its users get a random UUID at each
	// sign-in, in place of their name.
	OpaqueIdp bool
	// FoldNames compares user names without regard to case, which the documents leave open.
	FoldNames bool
	// OwnOnly lets a caller who is not an administrator give parameters, which are then ignored: it sees and ends its own
	// sessions. Otherwise giving them is xPermissionDenied. The documents can be read both ways.
	OwnOnly bool
	// OwnActive lets a caller who is not an administrator call ListActiveAuthSessions, too, and shows it its own sessions.
	OwnActive bool
	// PrimaryAdmin has GetCurrentClusterAdmin tell of the cluster's first administrator instead of the caller, as one
	// document says it does.
	PrimaryAdmin bool
	// Unknown are parameters that this cluster does not know, as after a misspelling: it ignores them.
	Unknown []string
}

// Server is one cluster. It is safe for concurrent use.
type Server struct {
	options Options
	ids     emulator.IDs

	mu            sync.Mutex
	sessions      []adapters.Session
	admins        []admin
	failures      []*failure
	refused       map[string]string
	nulls         int
	lie           emulator.Lie
	first         string          // the session that lists leave out, while they do
	hidden        map[string]bool // sessions that are there and nowhere to be found
	late          []adapters.Session
	before, after map[string]func()
	calls         map[string]int
}

// failure is an error still to be given.
type failure struct {
	method, name, message string
	times                 int
	acts                  bool
}

// New makes a cluster without sessions.
func New(o Options) *Server {
	o.Username, o.Password = cmp.Or(o.Username, Username), cmp.Or(o.Password, Password)
	if o.Access == nil {
		o.Access = []string{"administrator"}
	}
	if o.Versions == nil {
		for major := 1; major <= 11; major++ {
			o.Versions = append(o.Versions, strconv.Itoa(major)+".0")
		}
		o.Versions = append(o.Versions, "12.0", "12.2", "12.3", "12.5")
	}
	return &Server{
		options: o, ids: emulator.IDs{Seed: "element"}, refused: map[string]string{}, hidden: map[string]bool{},
		before: map[string]func(){}, after: map[string]func(){}, calls: map[string]int{},
	}
}

// Handler returns the cluster's API.
func (s *Server) Handler() http.Handler { return s }

// Transport reaches the cluster in memory.
func (s *Server) Transport() http.RoundTripper { return emulator.Transport(s) }

// SignIn adds a session. Its provider is Cluster (the default), Ldap or Idp; its groups are of the kinds access_group and
// cluster_admin_id. Times not given are a creation now and a final timeout in three days.
func (s *Server) SignIn(x adapters.Session) adapters.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.ID = cmp.Or(x.ID, s.ids.UUID())
	x.Provider.Type = cmp.Or(x.Provider.Type, "Cluster")
	if x.Provider.Type == "Idp" && s.options.OpaqueIdp {
		x.Username = s.ids.UUID()
	}
	if x.CreateTime.IsZero() {
		x.CreateTime = time.Now()
	}
	x.CreateTime = x.CreateTime.UTC().Truncate(time.Second)
	if x.ExpireTime.IsZero() {
		x.ExpireTime = x.CreateTime.Add(72 * time.Hour)
	}
	x.ExpireTime = x.ExpireTime.UTC().Truncate(time.Second)
	x.LastAccessTime = time.Time{} // Element does not tell
	x.Groups = inOrder(x.Groups)
	s.sessions = append(s.sessions, x)
	s.enrol(x)
	return x
}

// admin is a cluster administrator. They outlive the sessions that map to them.
type admin struct {
	id               int
	username, method string
	access           []string
}

// enrol makes the cluster administrators that a session maps to. The caller holds the lock.
func (s *Server) enrol(x adapters.Session) {
	access := []string{}
	for _, g := range x.Groups {
		if g.Kind == "access_group" {
			access = append(access, g.Name)
		}
	}
	for _, g := range x.Groups {
		id, err := strconv.Atoi(g.Name)
		if g.Kind == "cluster_admin_id" && err == nil && !slices.ContainsFunc(s.admins, func(a admin) bool { return a.id == id }) {
			s.admins = append(s.admins, admin{id, x.Username, x.Provider.Type, access})
		}
	}
}

// inOrder returns groups in the order in which a session's members list them: access groups first.
func inOrder(groups []adapters.Group) []adapters.Group {
	out := slices.Clone(groups)
	slices.SortStableFunc(out, func(a, b adapters.Group) int { return cmp.Compare(a.Kind, b.Kind) })
	return out
}

// SignOut ends a session as its owner would.
func (s *Server) SignOut(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(func(x adapters.Session) bool { return x.ID == id })
}

// Sessions returns who is signed in.
func (s *Server) Sessions() []adapters.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return slices.Clone(s.sessions)
}

// expire removes the sessions whose final timeout has passed. The caller holds the lock.
func (s *Server) expire() {
	now := time.Now()
	s.remove(func(x adapters.Session) bool { return !x.ExpireTime.After(now) })
}

// remove takes sessions out of the table and returns them. The caller holds the lock.
func (s *Server) remove(which func(adapters.Session) bool) []adapters.Session {
	var gone, left []adapters.Session
	for _, x := range s.sessions {
		if which(x) {
			gone = append(gone, x)
		} else {
			left = append(left, x)
		}
	}
	s.sessions = left
	return gone
}

// Fail has the next calls of a method ("" for any) answer with an error of that name instead of being carried out.
func (s *Server) Fail(method string, times int, name string) {
	s.fail(&failure{method: method, name: name, times: times})
}

// FailAfter is like Fail, but the calls are carried out first.
func (s *Server) FailAfter(method string, times int, name string) {
	s.fail(&failure{method: method, name: name, times: times, acts: true})
}

// FailWith is like Fail with an error whose message is given too.
func (s *Server) FailWith(method string, times int, name, message string) {
	s.fail(&failure{method: method, name: name, message: message, times: times})
}

func (s *Server) fail(f *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, f)
}

// Refuse has the deletion of one session fail with an error of that name.
func (s *Server) Refuse(id, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[id] = name
}

// NotServing has the next calls answered with null, as by a node in the middle of an upgrade.
func (s *Server) NotServing(times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nulls = times
}

// SetLie says how the cluster lies from now on. It can tell all lies.
func (s *Server) SetLie(l emulator.Lie) (can bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lie, s.first, s.late = l, "", nil
	clear(s.hidden)
	if len(s.sessions) > 0 {
		s.first = s.sessions[0].ID
	}
	return true
}

// SetVersions changes the API versions served, as an upgrade does.
func (s *Server) SetVersions(versions ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options.Versions = versions
}

// Before has f called before each call of a method is carried out, and After after it: to sign somebody in meanwhile.
func (s *Server) Before(method string, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before[method] = f
}

// After has f called after each call of a method was carried out, before its answer leaves.
func (s *Server) After(method string, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after[method] = f
}

// Calls tells how often a method was called.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}
