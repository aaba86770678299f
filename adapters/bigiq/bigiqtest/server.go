package bigiqtest

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// Options make a [Server]. Zero values mean the defaults given.
type Options struct {
	// Username and Password are those of the only account. Default: "svc-endsession" and "bigiq-password".
	Username, Password string
	// Provider is the name of the authentication provider that knows the account. Default: the local one.
	Provider string
	// Version is BIG-IQ's own. Default: 7.1.0.
	Version string
	// Devices are what BIG-IQ manages. Default: [Lab].
	Devices []Device
	// TaskTime is how long a task takes. Default: 150 ms, as in the samples.
	TaskTime time.Duration
	// TokenLife is how long an access token lives. Default: 5 minutes.
	TokenLife time.Duration
	Quirks    Quirks
}

// Quirks are what some systems do and others do not, or what goes wrong.
type Quirks struct {
	// Basic switches HTTP Basic authentication on.
	Basic bool
	// NoRole: the account lacks the role Access Manager.
	NoRole bool
	// NoAccessService: the paths of the Access service are not registered.
	NoAccessService bool
	// TokenCap refuses logins with 400 while this many tokens are alive; 0: no limit.
	TokenCap int
	// SilentInfo leaves the version out of what BIG-IQ tells anybody.
	SilentInfo bool
	// OneL writes CANCELED for CANCELLED.
	OneL bool
	// Collections wraps the answers to POST and to the poll of one task into a collection, as the reference has it.
	Collections bool
	// NoStep leaves currentStep out.
	NoStep bool
	// Status is shown instead of STARTED while a task is under way.
	Status string
	// Stuck tasks never end.
	Stuck bool
	// GoneIDsFail puts listed session ids that do not exist into failedIds.
	GoneIDsFail bool
	// Ending, if not nil, is how tasks end, whatever they did.
	Ending *Ending
}

// Ending is how a task ends.
type Ending struct {
	Status, Result, ErrorMessage string
	// Kills: the sessions end all the same.
	Kills bool
}

// Task is one kill task.
type Task struct {
	ID string
	// Body is the request that made it.
	Body   string
	Status string
	// Ended is what it removed.
	Ended []adapters.SessionKey
}

// Server is an emulated BIG-IQ. It is an [http.Handler], and safe for concurrent use.
type Server struct {
	mux  *http.ServeMux
	opts Options
	ids  emulator.IDs

	mu       sync.Mutex
	quirks   Quirks
	devices  []Device
	sessions []adapters.Session
	tasks    []*task
	access   map[string]time.Time // access tokens and when they end
	refresh  map[string]time.Time
	logins   int
	failures int
	renewals int
	ops      int
	lie      emulator.Lie
}

// New makes a BIG-IQ without sessions.
func New(o Options) *Server {
	o.Username = cmp.Or(o.Username, "svc-endsession")
	o.Password = cmp.Or(o.Password, "bigiq-password")
	o.Version = cmp.Or(o.Version, "7.1.0")
	o.TaskTime = cmp.Or(o.TaskTime, 150*time.Millisecond)
	o.TokenLife = cmp.Or(o.TokenLife, 5*time.Minute)
	if o.Devices == nil {
		o.Devices = Lab()
	}
	s := &Server{
		opts: o, ids: emulator.IDs{Seed: "bigiq"}, quirks: o.Quirks, devices: slices.Clone(o.Devices),
		access: map[string]time.Time{}, refresh: map[string]time.Time{},
	}
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("GET /info/system", s.info)
	s.mux.HandleFunc("POST /mgmt/shared/authn/login", s.login)
	s.mux.HandleFunc("POST /mgmt/shared/authn/exchange", s.exchange)
	s.mux.HandleFunc("GET /mgmt/cm/system/machineid-resolver", s.guarded(s.listDevices))
	s.mux.HandleFunc("GET /mgmt/cm/system/machineid-resolver/{id}", s.guarded(s.getDevice))
	s.mux.HandleFunc("GET /mgmt/shared/resolver/device-groups/{$}", s.guarded(s.listGroups))
	s.mux.HandleFunc("GET /mgmt/shared/resolver/device-groups/cm-shared-all-big-iqs/devices", s.guarded(s.listSelf))
	s.mux.HandleFunc("POST "+pathTasks, s.guarded(s.createTask))
	s.mux.HandleFunc("GET "+pathTasks, s.guarded(s.listTasks))
	s.mux.HandleFunc("GET "+pathTasks+"/{id}", s.guarded(s.getTask))
	s.mux.HandleFunc("/", s.noPath)
	return s
}

// Transport reaches the emulator in memory.
func (s *Server) Transport() http.RoundTripper { return emulator.Transport(s) }

// Handler serves the emulator over a real listener.
func (s *Server) Handler() http.Handler { return s }

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Credentials returns the account's name and password.
func (s *Server) Credentials() (username, password string) { return s.opts.Username, s.opts.Password }

// Change changes the quirks.
func (s *Server) Change(f func(*Quirks)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	f(&s.quirks)
}

// SetLie says how BIG-IQ lies from now on, and reports whether it can: it does not tell what it ended, but shows for whom
// and where a task is, and lists what it manages.
func (s *Server) SetLie(l emulator.Lie) (can bool) {
	switch l {
	case emulator.Deny, emulator.EndSilently, emulator.ListLessAtFirst, emulator.ListLessByName, emulator.ListLater,
		emulator.ListAnother, emulator.ListMisnamed:
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	s.lie = l
	return true
}

// Logins returns how many logins succeeded and failed, and how many tokens were exchanged.
func (s *Server) Logins() (succeeded, failed, exchanged int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins, s.failures, s.renewals
}

// EndTokens makes every access token invalid, as if its time were over.
func (s *Server) EndTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.access {
		s.access[t] = time.Time{}
	}
}

// Tasks returns the tasks that were made.
func (s *Server) Tasks() []Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	var out []Task
	for _, t := range s.tasks {
		out = append(out, Task{ID: t.id, Body: t.body, Status: t.status, Ended: slices.Clone(t.ended)})
	}
	return out
}

// ForgetTasks drops all tasks: their ids are unknown from now on. Those under way end nothing more.
func (s *Server) ForgetTasks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	s.tasks = nil
}

// CancelTasks cancels the tasks under way, as an administrator would. They end nothing more.
func (s *Server) CancelTasks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	for _, t := range s.tasks {
		if t.over {
			continue
		}
		t.over, t.ends, t.status = true, time.Now(), "CANCELLED"
		if s.quirks.OneL {
			t.status = "CANCELED"
		}
	}
}

// guarded checks the credentials.
func (s *Server) guarded(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.advance()
		if s.authenticated(w, r) {
			h(w, r)
		}
	}
}

// authenticated answers as the login page and public issue threads have it: an ended token is told in JSON, HTTP Basic
// authentication, if off, in HTML.
func (s *Server) authenticated(w http.ResponseWriter, r *http.Request) bool {
	token := r.Header.Get("X-F5-Auth-Token")
	switch end, known := s.access[token]; {
	case token != "" && known && time.Now().Before(end):
		return true
	case token != "":
		s.fail(w, r, http.StatusUnauthorized, "invalid registered claims", "")
		return false
	case r.Header.Get("Authorization") == "":
		s.fail(w, r, http.StatusUnauthorized, "Authorization failed: no user authentication header or token detected.", "")
		return false
	case s.quirks.Basic && emulator.BasicAuth(r, s.opts.Username, s.opts.Password):
		return true
	}
	s.failures++
	w.Header().Set("Server", "webd")
	emulator.WriteHTML(w, http.StatusUnauthorized, "401 Authorization Required")
	return false
}

// fail answers with an error as the guide prints it: the echoed request is in originalRequestBody.
func (s *Server) fail(w http.ResponseWriter, _ *http.Request, status int, message, echo string) {
	s.ops++
	e := map[string]any{
		"code": status, "message": message, "referer": "192.168.101.130", "restOperationId": 19541801 + s.ops,
		"kind": ":resterrorresponse",
	}
	if echo != "" {
		e["originalRequestBody"] = echo
	}
	if status == http.StatusNotFound {
		e["errorStack"] = []string{"com.f5.rest.common.RestWorkerUriNotFoundException: " + message, "at java.lang.Thread.run(Thread.java:745)\n"}
	}
	emulator.WriteJSON(w, status, e)
}

// noPath is the guide's "Error generated when an incorrect URI is sent in the REST request".
func (s *Server) noPath(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail(w, r, http.StatusNotFound, "Public URI path not registered", "")
}

const providerID = "9b6ee3d4-1a5c-4d5f-8a39-2c1f5d3e7b44"

func (s *Server) providerLink() string {
	return "https://localhost/mgmt/cm/system/authn/providers/" + s.opts.Provider + "/" + providerID + "/login"
}

// info lists the login providers to anybody (public F5 client code reads providers[].name and .link from here).
func (s *Server) info(w http.ResponseWriter, _ *http.Request) {
	type provider struct {
		Name string `json:"name"`
		Link string `json:"link"`
	}
	providers := []provider{{"local", "https://localhost/mgmt/cm/system/authn/providers/local/login"}}
	if s.opts.Provider != "" {
		providers = append(providers, provider{s.opts.Provider, s.providerLink()})
	}
	s.mu.Lock()
	silent := s.quirks.SilentInfo
	s.mu.Unlock()
	doc := map[string]any{"product": "BIG-IQ", "version": s.opts.Version, "providers": providers}
	if silent {
		delete(doc, "version")
	}
	emulator.WriteJSON(w, http.StatusOK, doc)
}

// listSelf lists the BIG-IQs that make the system up (public F5 client code reads items[0].version from here).
func (s *Server) listSelf(w http.ResponseWriter, r *http.Request) {
	self := map[string]any{"product": "BIG-IQ", "version": s.opts.Version, "hostname": "bigiq.example", "state": "ACTIVE"}
	emulator.WriteJSON(w, http.StatusOK, map[string]any{"items": []any{selected(self, query(r))}, "generation": 3, "lastUpdateMicros": 0})
}

// login makes a token. The document shows username, loginReference, loginProviderName, token and refreshToken.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := readObject(r)
	if err != nil {
		s.fail(w, r, http.StatusBadRequest, "the request is not a JSON object", "")
		return
	}
	var username, password string
	var reference struct{ Link string }
	_ = json.Unmarshal(body["username"], &username)
	_ = json.Unmarshal(body["password"], &password)
	_ = json.Unmarshal(body["loginReference"], &reference)
	wanted := ""
	if s.opts.Provider != "" {
		wanted = s.providerLink()
	}
	switch {
	case body["loginProviderName"] != nil:
		s.failures++
		s.fail(w, r, http.StatusUnauthorized, "loginProviderName is invalid.", "")
		return
	case username != s.opts.Username || password != s.opts.Password || reference.Link != wanted:
		s.failures++
		s.fail(w, r, http.StatusUnauthorized, "Authentication failed.", "")
		return
	case s.quirks.TokenCap > 0 && s.alive() >= s.quirks.TokenCap:
		s.fail(w, r, http.StatusBadRequest, "the user has reached maximum active login tokens", "")
		return
	}
	s.logins++
	refresh := "eyJyZWZyZXNo." + s.ids.Hex(40)
	s.refresh[refresh] = time.Now().Add(10 * time.Hour)
	a := s.token()
	a["username"] = username
	a["loginProviderName"] = cmp.Or(s.opts.Provider, "local")
	a["loginReference"] = map[string]string{"link": cmp.Or(wanted, "https://localhost/mgmt/cm/system/authn/providers/local/login")}
	a["refreshToken"] = map[string]any{"token": refresh, "timeout": 36000}
	emulator.WriteJSON(w, http.StatusOK, a)
}

func (s *Server) alive() int {
	n := 0
	for _, end := range s.access {
		if time.Now().Before(end) {
			n++
		}
	}
	return n
}

// token makes an access token and the part of an answer that tells it.
func (s *Server) token() map[string]any {
	t := "eyJhbGciOiJSUzM4NCJ9." + s.ids.Hex(40)
	s.access[t] = time.Now().Add(s.opts.TokenLife)
	link := "https://localhost/mgmt/shared/authz/users/" + s.opts.Username
	return map[string]any{"token": map[string]any{
		"token": t, "timeout": int(s.opts.TokenLife / time.Second), "userName": s.opts.Username,
		"user": map[string]string{"link": link}, "kind": "shared:authz:tokens:authtokenitemstate",
	}}
}

// exchange makes an access token of a refresh token. The refresh token's ten hours count from the login and are not
// extended.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := readObject(r)
	var refresh struct{ Token string }
	if err == nil {
		err = json.Unmarshal(body["refreshToken"], &refresh)
	}
	if end, ok := s.refresh[refresh.Token]; err != nil || !ok || !time.Now().Before(end) {
		s.fail(w, r, http.StatusUnauthorized, "invalid registered claims", "")
		return
	}
	s.renewals++
	emulator.WriteJSON(w, http.StatusOK, s.token())
}

func readObject(r *http.Request) (map[string]json.RawMessage, error) {
	body, err := emulator.ReadBody(r)
	if err != nil {
		return nil, err
	}
	return emulator.Object(body)
}

// query takes the options out of a raw query. A name counts as it is spelt: nobody says that %24filter is understood.
func query(r *http.Request) map[string]string {
	q := map[string]string{}
	for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
		name, value, _ := strings.Cut(part, "=")
		if v, err := url.QueryUnescape(value); err == nil {
			q[name] = v
		}
	}
	return q
}

// selected trims a document to the members named in $select.
func selected(doc map[string]any, q map[string]string) map[string]any {
	names, ok := q["$select"]
	if !ok {
		return doc
	}
	out := map[string]any{}
	for name := range strings.SplitSeq(names, ",") {
		if v, ok := doc[name]; ok {
			out[name] = v
		}
	}
	return out
}

var condition = regexp.MustCompile(`^'?([A-Za-z:_/]+)'? eq '([^']*)'$`)

// filtered evaluates a $filter of the grammar that the guides show: 'field' eq 'value', joined by or, in parentheses or
// not; * in a value stands for anything.
func filtered(filter string, field func(string) string) (matches, ok bool) {
	filter = strings.TrimSpace(filter)
	if strings.HasPrefix(filter, "(") && strings.HasSuffix(filter, ")") {
		filter = filter[1 : len(filter)-1]
	}
	for c := range strings.SplitSeq(filter, " or ") {
		m := condition.FindStringSubmatch(strings.TrimSpace(c))
		if m == nil {
			return false, false
		}
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(m[2]), `\*`, ".*") + "$"
		if regexp.MustCompile(pattern).MatchString(field(m[1])) {
			matches = true
		}
	}
	return matches, true
}

// listDevices is the guide's machineid-resolver. An empty list of items means that no trust is established.
func (s *Server) listDevices(w http.ResponseWriter, r *http.Request) {
	filter, has := query(r)["$filter"]
	items := []map[string]any{}
	for _, d := range s.devices {
		doc := d.document()
		if has {
			matches, ok := filtered(filter, func(name string) string { v, _ := doc[name].(string); return v })
			if !ok {
				s.fail(w, r, http.StatusBadRequest, "invalid filter", "")
				return
			}
			if !matches {
				continue
			}
		}
		items = append(items, doc)
	}
	items = s.told(items)
	if s.lie == emulator.ListConfused {
		for _, d := range s.devices {
			d.Cluster = "OtherCluster"
			items = append(items, d.document())
		}
	}
	// The how-to's answer has a link to another port of localhost, and a filter in it that was not asked for.
	emulator.WriteJSON(w, http.StatusOK, map[string]any{
		"items": items, "totalItems": 1, "generation": 0, "lastUpdateMicros": 0,
		"selfLink": "http://localhost:8100/cm/system/machineid-resolver/?$filter=%27address%27+eq+%2710.192.123.198%27",
	})
}

// told is a list as BIG-IQ tells it.
func (s *Server) told(items []map[string]any) []map[string]any {
	switch s.lie {
	case emulator.ListNone:
		return []map[string]any{}
	case emulator.ListLess:
		return items[min(1, len(items)):]
	case emulator.ListTwice:
		return append(items, items...)
	case emulator.ListPageTwice:
		return emulator.PageTwice(items)
	}
	return items
}

// getDevice answers for a device reference.
func (s *Server) getDevice(w http.ResponseWriter, r *http.Request) {
	for _, d := range s.devices {
		if d.MachineID == r.PathValue("id") {
			emulator.WriteJSON(w, http.StatusOK, d.document())
			return
		}
	}
	s.fail(w, r, http.StatusNotFound, "item not found at /cm/system/machineid-resolver/"+r.PathValue("id"), "")
}

func deviceLink(machineID string) string {
	return "https://localhost/mgmt/cm/system/machineid-resolver/" + machineID
}

// document is the guide's sample of a device, shortened to what tells something.
func (d Device) document() map[string]any {
	modules := []string{"BigIPDevice"}
	properties := map[string]any{
		"cm-bigip-allBigIpDevices": map[string]any{"cm:gui:module": []string{"BigIPDevice"}, "modules": []string{}},
	}
	if !d.NoAccess {
		modules = []string{"Access", "BigIPDevice", "adc"}
		access := map[string]any{"discovered": true, "imported": !d.NotImported, "supportsRest": true, "cm:gui:module": []string{"Access"}}
		if d.Cluster != "" {
			access["clusterName"] = d.Cluster
		}
		if g := d.group(); g != "" {
			access["cm:access:access-group-name"] = g
			access["cm:access:access-group-link"] = "https://localhost/mgmt/shared/resolver/device-groups/" + g
			// A second place says "imported": false about the same device.
			properties[g] = map[string]any{"discovered": true, "imported": false, "cm:gui:module": []string{"Access"}}
		}
		properties["cm-access-allBigIpDevices"] = access
	}
	if d.Cluster != "" {
		properties["cm-bigip-cluster_"+d.Cluster] = map[string]any{"clusterName": d.Cluster, "cm:gui:module": []string{}}
	}
	properties["cm:gui:module"] = modules
	return map[string]any{
		"uuid": d.MachineID, "machineId": d.MachineID, "deviceUri": "https://" + d.Address + ":443", "state": cmp.Or(d.State, "ACTIVE"),
		"address": d.Address, "httpsPort": 443, "hostname": d.Hostname, "version": "12.1.0", "product": "BIG-IP",
		"managementAddress": d.Address, "properties": properties,
		// Not the cluster the guides speak of: it is false in their sample of a unit of BlueCluster.
		"isClustered": false, "generation": 67, "lastUpdateMicros": int64(1479332833705505),
		"kind": "shared:resolver:device-groups:restdeviceresolverdevicestate", "selfLink": deviceLink(d.MachineID),
	}
}

// listGroups is the guide's "List All Access Config Groups". Without its filter other groups would be there too.
func (s *Server) listGroups(w http.ResponseWriter, r *http.Request) {
	q := query(r)
	items := []map[string]any{}
	var seen []string
	list := func(name string) {
		if name != "" && !slices.Contains(seen, name) {
			seen = append(seen, name)
			items = append(items, selected(map[string]any{"displayName": name, "groupName": name, "id": s.ids.UUID()}, q))
		}
	}
	for _, d := range s.devices {
		list(d.AccessGroup)
	}
	if q["$filter"] != "'properties/cm:access:access_group' eq 'true'" {
		list("cm-bigip-allBigIpDevices")
		for _, d := range s.devices {
			list(d.Cluster)
		}
	}
	items = s.told(items)
	emulator.WriteJSON(w, http.StatusOK, map[string]any{
		"selfLink": "https://localhost/mgmt/shared/resolver/device-groups", "totalItems": 1, "items": items, "generation": 23,
		"kind": "shared:resolver:device-groups:devicegroupcollectionstate", "lastUpdateMicros": int64(1479942921954266),
	})
}

// top bounds a list as $top says.
func top(n int, q map[string]string) int {
	if t, err := strconv.Atoi(q["$top"]); err == nil && t >= 0 {
		return min(n, t)
	}
	return n
}
