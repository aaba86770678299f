package kibanatest

import (
	"crypto/sha3"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// RefreshInterval is how long a change of the session index stays unsearchable: Elasticsearch's default.
const RefreshInterval = time.Second

// Account is a principal of the Elasticsearch behind the emulated Kibana. The credentials that are set are accepted.
type Account struct {
	// APIKey is in the form "id:key".
	APIKey      string
	Username    string
	Password    string
	BearerToken string
	// Superuser says whether it may end sessions.
	Superuser bool
}

// Provider is one entry under xpack.security.authc.providers.
type Provider struct{ Type, Name string }

// Options describe the emulated Kibana. The zero value is a current Kibana with default settings and no accounts.
type Options struct {
	// BasePath is server.basePath, with rewriteBasePath.
	BasePath string
	// Version is what /api/status tells; default 9.1.0.
	Version string
	// Accounts may call the API.
	Accounts []Account
	// Providers are those configured; default type basic with name basic. Sessions of others may still exist.
	Providers []Provider
	// Legacy makes it behave as 7.13 to 8.7: searches see every change at once, and a missing privilege is a bare
	// "Forbidden".
	Legacy bool
	// DeletionsLag makes deletions, too, wait for the next refresh: until then a search finds the document again, and
	// deleting it is a conflict. So it is wherever two overlapping deletions follow each other within a RefreshInterval.
	DeletionsLag bool
	// Refresh is the session index's index.refresh_interval; default RefreshInterval.
	Refresh time.Duration
	// Serverless makes invalidation an internal route, as in Elastic Cloud Serverless.
	Serverless bool
	// RestrictInternalAPIs is server.restrictInternalApis.
	RestrictInternalAPIs bool
	// ExcludeRoute puts the invalidation route into server.excludeRoutes.
	ExcludeRoute bool
	// SecurityDisabled is an Elasticsearch without security: nobody is asked for credentials or privileges.
	SecurityDisabled bool
	// HTTPAuthenticationDisabled is xpack.security.authc.http.enabled: false.
	HTTPAuthenticationDisabled bool
}

// Server is an emulated Kibana. It is safe for concurrent use.
type Server struct {
	options Options

	mu        sync.Mutex
	ids       emulator.IDs
	documents []*document
	changes   int // so far
	refreshed int // how many of them an explicit refresh has made searchable
	trouble   Trouble
	lie       emulator.Lie
	hidden    map[*document]bool // documents that no deletion finds any more
}

var _ http.Handler = (*Server)(nil)

// document is a session as Kibana stores it. Its id is the session's, which never leaves Kibana.
type document struct {
	session adapters.Session
	// usernameHash is empty while a login is in progress.
	usernameHash     string
	created, changed change
	// deleted is nil while the document is there.
	deleted *change
}

// change is one write to the index: when it was made, and after how many others.
type change struct {
	at time.Time
	n  int
}

// write notes a change made at a time. The caller holds the lock.
func (s *Server) write(at time.Time) change {
	s.changes++
	return change{at, s.changes}
}

// New starts an emulated Kibana without sessions.
func New(o Options) *Server {
	if o.Version == "" {
		o.Version = "9.1.0"
	}
	if o.Refresh == 0 {
		o.Refresh = RefreshInterval
	}
	if len(o.Providers) == 0 {
		o.Providers = []Provider{{Type: "basic", Name: "basic"}}
	}
	o.BasePath = strings.TrimRight(o.BasePath, "/")
	return &Server{options: o, ids: emulator.IDs{Seed: "kibana"}}
}

// Trouble is a state in which Kibana turns requests away.
type Trouble int

// The troubles. Healthy ends one.
const (
	Healthy Trouble = iota
	// NotReady: Kibana is starting, and its placeholder answers.
	NotReady
	// NoLicense: Kibana cannot read the licence from Elasticsearch.
	NoLicense
	// NotInitialized: the authentication service has not started yet.
	NotInitialized
	// Overloaded: the rate limiter (server.rateLimiter) turns requests away.
	Overloaded
	// ElasticsearchDown: Elasticsearch refuses the deletion, which Kibana reports as an opaque 500.
	ElasticsearchDown
)

// Suffer puts the server into a state of trouble until it is told Healthy.
func (s *Server) Suffer(t Trouble) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = t
}

// SetLie says how Kibana lies from now on, and reports whether it can: it lists no sessions and names none, so that it can
// only lie about how many it ended.
func (s *Server) SetLie(l emulator.Lie) (can bool) {
	switch l {
	case emulator.Honest, emulator.Keep, emulator.KeepAndHide, emulator.Deny, emulator.EndSilently, emulator.EndSome,
		emulator.EndAnotherSilently, emulator.EndMoreSilently:
	default:
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lie, s.hidden = l, map[*document]bool{}
	return true
}

// lied carries out a deletion of the documents found as the lie has it, and returns the total that is told. The caller
// holds the lock.
func (s *Server) lied(found []*document, now time.Time) (total int) {
	found = slices.DeleteFunc(found, func(d *document) bool { return s.hidden[d] || d.deleted != nil })
	remove := func(ds ...*document) {
		for _, d := range ds {
			gone := s.write(now)
			d.deleted = &gone
		}
	}
	other := slices.IndexFunc(s.documents, func(d *document) bool { return d.deleted == nil && !slices.Contains(found, d) })
	switch s.lie {
	case emulator.Keep:
		return len(found)
	case emulator.KeepAndHide:
		for _, d := range found {
			s.hidden[d] = true
		}
		return len(found)
	case emulator.Deny:
		return 0
	case emulator.EndSilently:
		remove(found...)
		return 0
	case emulator.EndSome:
		if len(found) > 0 {
			remove(found[0])
		}
		return len(found)
	}
	if other >= 0 && len(found) > 0 {
		remove(s.documents[other])
		if s.lie == emulator.EndAnotherSilently {
			return len(found)
		}
	}
	remove(found...)
	return len(found)
}

// SignIn adds a session. Without a user name it is a login in progress. Without a provider it is one of basic/basic;
// without a provider name, of the one named like its type. Without a CreateTime it begins now, and then deletions miss it
// for a RefreshInterval.
func (s *Server) SignIn(x adapters.Session) adapters.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.ID == "" {
		x.ID = s.ids.Hex(64)
	}
	if x.Provider.Type == "" {
		x.Provider.Type = "basic"
	}
	if x.Provider.Name == "" {
		x.Provider.Name = x.Provider.Type
	}
	x.Provider.MustBeListed = false
	if x.CreateTime.IsZero() {
		x.CreateTime = time.Now()
	}
	created := s.write(x.CreateTime)
	s.documents = append(s.documents, &document{
		session: x, usernameHash: UsernameHash(x.Username), created: created, changed: created,
	})
	return x
}

// UsernameHash is how Kibana stores a user name, and what it compares: the SHA3-256 of its exact bytes. An empty name
// has no hash.
func UsernameHash(username string) string {
	if username == "" {
		return ""
	}
	sum := sha3.Sum256([]byte(username))
	return hex.EncodeToString(sum[:])
}

// Use changes a session's document, as a request of its browser does, and reports whether the session was there. A
// deletion that finds an older state of the document fails.
func (s *Server) Use(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.documents {
		if d.session.ID == id && d.deleted == nil {
			d.changed = s.write(time.Now())
			d.session.LastAccessTime = d.changed.at
			return true
		}
	}
	return false
}

// Refresh makes every change searchable now.
func (s *Server) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refreshed = s.changes
}

// Sweep removes expired sessions, as Kibana does every hour. Until then they are counted like others.
func (s *Server) Sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, d := range s.documents {
		if e := d.session.ExpireTime; d.deleted == nil && !e.IsZero() && e.Before(now) {
			deleted := s.write(now)
			d.deleted = &deleted
		}
	}
}

// Sessions returns every session there is, expired ones that were not swept and logins in progress included.
func (s *Server) Sessions() []adapters.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []adapters.Session
	for _, d := range s.documents {
		if d.deleted == nil {
			out = append(out, d.session)
		}
	}
	return out
}

// Transport reaches the server in memory.
func (s *Server) Transport() http.RoundTripper { return emulator.Transport(s) }

// Handler returns the server itself.
func (s *Server) Handler() http.Handler { return s }

// searchable reports whether a search made at now sees a change.
func (s *Server) searchable(c change, now time.Time) bool {
	return s.options.Legacy || c.n <= s.refreshed || now.Sub(c.at) >= s.options.Refresh
}

// batchSize is how many documents Elasticsearch deletes in one go.
const batchSize = 1000

// deleteByQuery is Elasticsearch's: it searches a snapshot, deletes what it found, batch by batch, and stops after a
// batch in which a document had changed since. What was deleted by then stays deleted.
func (s *Server) deleteByQuery(match func(*document) bool) (deleted int, conflict bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var found []*document
	kept := s.documents[:0]
	for _, d := range s.documents {
		if d.deleted != nil && (!s.options.DeletionsLag || s.searchable(*d.deleted, now)) {
			continue // gone for good
		}
		kept = append(kept, d)
		if s.searchable(d.created, now) && match(d) {
			found = append(found, d)
		}
	}
	clear(s.documents[len(kept):])
	s.documents = kept
	if s.lie != emulator.Honest {
		return s.lied(found, now), false
	}
	for len(found) > 0 && !conflict {
		n := min(batchSize, len(found))
		for _, d := range found[:n] {
			if d.deleted != nil || !s.searchable(d.changed, now) {
				conflict = true
				continue
			}
			gone := s.write(now)
			d.deleted = &gone
			deleted++
		}
		found = found[n:]
	}
	return deleted, conflict
}
