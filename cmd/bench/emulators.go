package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

// The real targets, and the secrets of the accounts there.
const (
	apm     = "apm"
	kibana1 = "kibana"
	storage = "storage"

	kibanaKey = "bench:key"
)

// population is how many people are signed in at each emulator, once each.
const population = 60

// person is somebody who is signed in everywhere.
func person(i int) string { return fmt.Sprintf("person-%02d", i) }

// emulators are emulated systems with people signed in.
type emulators struct {
	bigiq  *bigiqtest.Server
	signIn map[string]func(adapters.Session) adapters.Session
	list   map[string]func() []adapters.Session

	mu       sync.Mutex
	seats    []seat
	requests map[string]map[string]int // target → what → how often
	polls    []time.Time               // of tasks
}

// seat is a session that is to be there, and its key while it is.
type seat struct {
	target  string
	session adapters.Session
	key     adapters.SessionKey
}

// playEmulators serves the emulators over TLS; the argument is the directory for their authorities' certificates.
// Beside its usual addresses there are those of the targets, and what the other handlers are asked:
// "POST /sign-in" signs in again whoever is not, and forgets the requests; "GET /seen" tells what was asked; "POST /stick"
// lets tasks run for ever from now on.
func playEmulators(_ context.Context, args []string) (map[string]string, func() error, error) {
	e := &emulators{bigiq: bigiqtest.New(bigiqtest.Options{}), requests: map[string]map[string]int{}}
	k := kibanatest.New(kibanatest.Options{
		Accounts:  []kibanatest.Account{{APIKey: kibanaKey, Superuser: true}},
		Providers: []kibanatest.Provider{{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}},
	})
	x := elementtest.New(elementtest.Options{})
	e.signIn = map[string]func(adapters.Session) adapters.Session{apm: e.bigiq.SignIn, kibana1: k.SignIn, storage: x.SignIn}
	e.list = map[string]func() []adapters.Session{apm: e.bigiq.Sessions, kibana1: k.Sessions, storage: x.Sessions}
	devices := []string{bigiqtest.Blue1, bigiqtest.Red2, bigiqtest.Guest}
	kibanaProviders := []adapters.Provider{{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}}
	for i := range population {
		name := person(i)
		access := "read"
		if i%3 == 0 {
			access = "administrator"
		}
		e.seats = append(e.seats,
			seat{target: apm, session: adapters.Session{Username: name, Device: devices[i%3]}},
			seat{target: kibana1, session: adapters.Session{Username: name, Provider: kibanaProviders[i%2]}},
			seat{target: storage, session: adapters.Session{Username: name, Provider: adapters.Provider{Type: []string{"Cluster", "Idp"}[i%2]},
				Groups: []adapters.Group{{Kind: "access_group", Name: access}}}})
	}
	addresses := map[string]string{}
	var stops []func()
	for target, h := range map[string]http.Handler{apm: e.bigiq, kibana1: k, storage: x} {
		url, ca, stop, err := emulator.ServeTLS(e.counted(target, h))
		if err != nil {
			return nil, nil, err
		}
		stops = append(stops, stop)
		addresses[target] = url
		if err := os.WriteFile(filepath.Join(args[0], target+".pem"), ca, 0o600); err != nil {
			return nil, nil, err
		}
	}
	http.HandleFunc("POST /sign-in", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(e.everybodyIn()) })
	http.HandleFunc("GET /seen", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(e.seen()) })
	http.HandleFunc("POST /stick", func(http.ResponseWriter, *http.Request) { e.bigiq.Change(func(q *bigiqtest.Quirks) { q.Stuck = true }) })
	return addresses, func() error {
		for _, stop := range stops {
			stop()
		}
		return nil
	}, nil
}

// counted counts the requests to a target.
func (e *emulators) counted(target string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what, err := describe(target, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e.mu.Lock()
		if e.requests[target] == nil {
			e.requests[target] = map[string]int{}
		}
		e.requests[target][what]++
		if what == taskPoll {
			e.polls = append(e.polls, time.Now())
		}
		e.mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

// taskPoll is how describe calls the look at one task of BIG-IQ's.
const taskPoll = "GET kill-sessions/{id}"

// describe says what a request is, without what differs from one to the next: of Element, the method that it calls.
func describe(target string, r *http.Request) (string, error) {
	if target == storage {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return "", err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		var call struct {
			Method string `json:"method"`
		}
		_ = json.Unmarshal(body, &call)
		return "POST " + call.Method, nil
	}
	words := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	last := words[len(words)-1]
	if len(words) > 1 && words[len(words)-2] == "kill-sessions" {
		return r.Method + " kill-sessions/{id}", nil
	}
	return r.Method + " " + last, nil
}

// signedIn is what changed when everybody was signed in again.
type signedIn struct {
	// Again is how many had been signed out, by target.
	Again map[string]int
	// First is the session of the first person, by target.
	First map[string]adapters.SessionKey
}

func (e *emulators) everybodyIn() signedIn {
	e.mu.Lock()
	defer e.mu.Unlock()
	in := signedIn{map[string]int{}, map[string]adapters.SessionKey{}}
	for target, list := range e.list {
		there := map[adapters.SessionKey]bool{}
		for _, s := range list() {
			there[s.Key()] = true
		}
		for i := range e.seats {
			x := &e.seats[i]
			if x.target == target && !there[x.key] {
				s := x.session
				s.CreateTime = time.Now().Add(-time.Hour) // Kibana's searches see it
				x.key = e.signIn[target](s).Key()
				in.Again[target]++
			}
			if x.target == target && x.session.Username == person(0) {
				in.First[target] = x.key
			}
		}
	}
	e.requests = map[string]map[string]int{}
	return in
}

// emulatorsSeen is what the emulators tell of what they were asked.
type emulatorsSeen struct {
	// Requests are since everybody was signed in last, by target and by what they were.
	Requests map[string]map[string]int
	// Polls are the times of the looks at one task, Tasks how many tasks were made, Logins and Exchanges how many tokens
	// BIG-IQ has issued for a password and for another token; all since the beginning.
	Polls             []time.Time
	Tasks             int
	Logins, Exchanges int
}

func (e *emulators) seen() emulatorsSeen {
	logins, _, exchanges := e.bigiq.Logins()
	tasks := len(e.bigiq.Tasks())
	e.mu.Lock()
	defer e.mu.Unlock()
	requests := map[string]map[string]int{}
	for target, counts := range e.requests {
		requests[target] = maps.Clone(counts)
	}
	return emulatorsSeen{requests, slices.Clone(e.polls), tasks, logins, exchanges}
}

// realTargets is the configuration of the emulators as targets.
const realTargets = `targets:
  - name: apm
    bigiq: { url: %[1]s, username: svc-endsession, password: bigiq-password, ca_file: %[4]s/apm.pem, scope: { discover: true } }
    usernames: ['user.id']
    providers: { saml/okta: { access_groups: [TestGroup2] } }
    groups: { staff: { access_groups: [TestGroup1] } }
  - name: kibana
    kibana: { url: %[2]s, api_key: "bench:key", ca_file: %[4]s/kibana.pem }
    usernames: ['user.id']
    providers: { saml/okta: [ { type: saml, name: saml1 } ] }
    groups: { staff: { directory: staff } }
  - name: storage
    element: { url: %[3]s, username: admin, password: element-secret-42, ca_file: %[4]s/storage.pem }
    usernames: ['user.id']
    providers: { saml/okta: [ { type: Idp } ] }
    groups: { staff: { access_groups: [administrator] } }
`

// serveReal starts the emulators, and a gateway in front of them.
func (s *stand) serveReal(ctx context.Context, name string) (*process, *gateway, error) {
	p, err := start(ctx, "emulators", s.dir)
	if err != nil {
		return nil, nil, err
	}
	s.ends = append(s.ends, p.stop)
	var users, staff []string
	for i := range population {
		users = append(users, "{ id: "+person(i)+" }")
		if i < 10 {
			staff = append(staff, person(i))
		}
	}
	people := fmt.Sprintf("users: [%s]\ngroups: { staff: [%s] }\n", strings.Join(users, ", "), strings.Join(staff, ", "))
	file := filepath.Join(s.dir, name+"-people.yaml")
	if err := os.WriteFile(file, []byte(people), 0o600); err != nil {
		return nil, nil, err
	}
	g, err := s.serve(ctx, setup{name: name, targets: 1,
		more: "directory: { file: { path: " + file + " } }\n" + fmt.Sprintf(realTargets, p.address[apm], p.address[kibana1], p.address[storage], s.dir)})
	return p, g, err
}

// ask has the emulators do something.
func ask(ctx context.Context, p *process, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.address["control"]+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(path + ": " + resp.Status)
	}
	if v == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(v)
}
