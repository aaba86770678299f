package elementtest

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// method is one method of the API: the parameters it knows, and what it does. It is called with the lock held.
type method struct {
	params []string
	// since is the major API version it came with.
	since int
	// node: a single node's endpoint has it too.
	node bool
	call func(s *Server, p params) (any, error)
}

// methods are those that concern sessions, and what a client needs to find them.
var methods = map[string]method{
	// https://docs.netapp.com/us-en/element-software/api/reference_element_api_getclusterversioninfo.html
	"GetClusterVersionInfo": {since: 1, call: (*Server).versionInfo},
	// …/reference_element_api_getcurrentclusteradmin.html
	"GetCurrentClusterAdmin": {since: 6, call: (*Server).currentAdmin},
	// …/reference_element_api_listclusteradmins.html
	"ListClusterAdmins": {since: 1, params: []string{"showHidden"}, call: (*Server).listAdmins},
	// …/reference_element_api_listactiveauthsessions.html
	"ListActiveAuthSessions": {since: 12, call: (*Server).listActive},
	// …/reference_element_api_listauthsessionsbyusername.html
	"ListAuthSessionsByUsername": {since: 12, params: []string{"username", "authMethod"}, call: (*Server).listByUsername},
	// …/reference_element_api_deleteauthsessionsbyusername.html
	"DeleteAuthSessionsByUsername": {since: 12, params: []string{"username", "authMethod"}, call: (*Server).deleteByUsername},
	// …/reference_element_api_listauthsessionbyclusteradmin.html
	"ListAuthSessionsByClusterAdmin": {since: 12, params: []string{"clusterAdminID"}, call: (*Server).listByClusterAdmin},
	// …/reference_element_api_deleteauthsessionsbyclusteradmin.html
	"DeleteAuthSessionsByClusterAdmin": {since: 12, params: []string{"clusterAdminID"}, call: (*Server).deleteByClusterAdmin},
	// …/reference_element_api_deleteauthsession.html
	"DeleteAuthSession": {since: 12, params: []string{"sessionID"}, call: (*Server).deleteOne},
	// What a node has of its own.
	"GetConfig": {since: 5, node: true, call: func(*Server, params) (any, error) { return object{"config": object{}}, nil }},
}

type object = map[string]any

// apiError is an error of the API.
type apiError struct{ name, message string }

// Error returns the name.
func (e apiError) Error() string { return e.name }

var denied = apiError{name: "xPermissionDenied"}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// https://docs.netapp.com/us-en/element-software/api/concept_element_api_authentication.html. The body is no JSON.
	if !emulator.BasicAuth(r, s.options.Username, s.options.Password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="SolidFire"`)
		emulator.WriteText(w, http.StatusUnauthorized, "401 Unauthorized.")
		return
	}
	version, ok := strings.CutPrefix(r.URL.Path, "/json-rpc/")
	if !ok || !s.serves(version) || r.URL.RawQuery != "" {
		emulator.WriteHTML(w, http.StatusNotFound, "Not Found")
		return
	}
	if r.Method != http.MethodPost {
		emulator.WriteHTML(w, http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	// …/concept_element_api_about_the_api.html
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json-rpc" {
		emulator.WriteText(w, http.StatusUnsupportedMediaType, "want application/json-rpc")
		return
	}
	body, err := emulator.ReadBody(r)
	if err != nil {
		emulator.WriteText(w, http.StatusBadRequest, "the body cannot be read")
		return
	}
	request, err := emulator.Object(body) // a batch is an array, and not accepted
	if err != nil {
		emulator.WriteText(w, http.StatusBadRequest, "the body is not one JSON-RPC request")
		return
	}
	var name string
	if json.Unmarshal(request["method"], &name) != nil || len(request["id"]) == 0 {
		emulator.WriteText(w, http.StatusBadRequest, "the request has no method or no id")
		return
	}
	s.mu.Lock()
	before, after := s.before[name], s.after[name]
	s.calls[name]++
	s.mu.Unlock()
	if before != nil {
		before()
	}
	answer := s.answer(version, name, request, body)
	if after != nil {
		after()
	}
	w.Header().Set("Content-Type", "application/json-rpc")
	emulator.WriteJSON(w, http.StatusOK, answer)
}

func (s *Server) serves(version string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.options.Versions, version)
}

// answer carries a call out and returns the reply, which is nil when the node is not serving.
func (s *Server) answer(version, name string, request map[string]json.RawMessage, body []byte) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nulls > 0 {
		s.nulls--
		return nil
	}
	s.expire()
	failure := s.strike(name)
	var (
		result any
		unused object
		err    error
	)
	if failure == nil || failure.acts {
		result, unused, err = s.run(version, name, request["params"])
	}
	if failure != nil {
		err = apiError{failure.name, failure.message}
	}
	reply := object{"id": request["id"]}
	if err != nil {
		e, ok := err.(apiError) //nolint:errorlint // nothing here wraps
		if !ok {
			e = apiError{"xInternalError", ""}
		}
		if e.message == "" {
			// Products echo requests.
			e.message = fmt.Sprintf("%s: cannot carry out %s", e.name, body)
		}
		reply["error"] = object{"code": 500, "name": e.name, "message": e.message}
	} else {
		reply["result"] = result
	}
	if len(unused) > 0 {
		reply["unusedParameters"] = unused
	}
	return reply
}

// strike returns the failure that the call meets, if any.
func (s *Server) strike(name string) *failure {
	for _, f := range s.failures {
		if f.times > 0 && (f.method == "" || f.method == name) {
			f.times--
			return f
		}
	}
	return nil
}

// run finds the method, drops the parameters it does not know, and calls it.
func (s *Server) run(version, name string, raw json.RawMessage) (result any, unused object, err error) {
	given := map[string]json.RawMessage{}
	if len(raw) > 0 && string(raw) != "null" {
		if given, err = emulator.Object(raw); err != nil {
			return nil, nil, apiError{name: "xInvalidParameter"}
		}
	}
	m, ok := methods[name]
	if name == "GetAPI" {
		// …/reference_element_api_getapi.html
		m, ok = method{node: true, call: (*Server).getAPI}, true
	}
	major, _, _ := strings.Cut(version, ".")
	if n, _ := strconv.Atoi(major); !ok || n < m.since || s.options.Node && !m.node {
		return nil, nil, apiError{name: "xUnknownAPIMethod"}
	}
	// …/reference_element_api_response_object_members.html: a wrong parameter is not used, and the call goes on.
	known := params{}
	for key, v := range given {
		if slices.Contains(m.params, key) && !slices.Contains(s.options.Unknown, key) {
			known[key] = v
			continue
		}
		if unused == nil {
			unused = object{}
		}
		unused[key] = v
	}
	result, err = m.call(s, known)
	return result, unused, err
}

// params are the parameters that a method knows.
type params map[string]json.RawMessage

// text returns a parameter that is a string; ok is false when it is absent.
func (p params) text(key string) (v string, ok bool, err error) {
	raw, ok := p[key]
	if !ok {
		return "", false, nil
	}
	if json.Unmarshal(raw, &v) != nil {
		return "", false, apiError{name: "xInvalidParameterType"}
	}
	return v, true, nil
}

func (s *Server) administrator() bool {
	return slices.Contains(s.options.Access, "administrator") || slices.Contains(s.options.Access, "clusterAdmins")
}

// spell writes an authentication method as this cluster does.
func (s *Server) spell(authMethod string) string {
	if s.options.DocumentSpelling {
		return map[string]string{"Cluster": "Local", "Ldap": "LDAP", "Idp": "IdP"}[authMethod]
	}
	return authMethod
}

// own reports whether a session is of the caller.
func (s *Server) own(x adapters.Session) bool {
	return x.Username == s.options.Username && x.Provider.Type == "Cluster"
}

func (s *Server) getAPI(params) (any, error) {
	var names []string
	for name, m := range methods {
		if !s.options.Node || m.node {
			names = append(names, name)
		}
	}
	names = append(names, "GetAPI")
	slices.Sort(names)
	current := s.options.Versions[len(s.options.Versions)-1]
	var versions []any
	for _, v := range s.options.Versions {
		versions = append(versions, s.number(v))
	}
	result := object{"currentVersion": s.number(current), "supportedVersions": versions}
	if !s.options.NoMethodList {
		result[current] = names
	}
	return result, nil
}

func (s *Server) number(version string) any {
	if s.options.NumericVersions {
		return json.Number(version)
	}
	return version
}

func (s *Server) versionInfo(params) (any, error) {
	current := s.options.Versions[len(s.options.Versions)-1]
	return object{
		"clusterAPIVersion": current, "clusterVersion": current + ".0.897", "clusterVersionInfo": []any{}, "softwareVersionInfo": object{},
	}, nil
}

func (s *Server) currentAdmin(params) (any, error) {
	admin := object{"access": s.options.Access, "attributes": nil, "authMethod": "Cluster", "clusterAdminID": 7, "username": s.options.Username}
	if s.options.PrimaryAdmin {
		admin["access"], admin["clusterAdminID"], admin["username"] = []string{"administrator"}, 1, "admin"
	}
	return object{"clusterAdmin": admin}, nil
}

// listAdmins lists the cluster's first administrator, the account, and whoever signed in.
func (s *Server) listAdmins(params) (any, error) {
	if !s.administrator() {
		return nil, denied
	}
	admins := []object{}
	for _, a := range append([]admin{
		{1, "admin", "Cluster", []string{"administrator"}}, {7, s.options.Username, "Cluster", s.options.Access},
	}, s.admins...) {
		admins = append(admins, object{
			"access": a.access, "attributes": nil, "authMethod": s.spell(a.method), "clusterAdminID": a.id, "username": a.username,
		})
	}
	return object{"clusterAdmins": admins}, nil
}

// listActive is for administrators only.
func (s *Server) listActive(params) (any, error) {
	if s.administrator() {
		return s.list(func(adapters.Session) bool { return true }, true), nil
	}
	if !s.options.OwnActive {
		return nil, denied
	}
	return s.list(s.own, true), nil
}

// byUsername returns what a pair of parameters selects. Only administrators may give them; anybody else has their own
// sessions only.
func (s *Server) byUsername(p params) (func(adapters.Session) bool, error) {
	username, hasName, err := p.text("username")
	if err != nil {
		return nil, err
	}
	authMethod, hasMethod, err := p.text("authMethod")
	if err != nil {
		return nil, err
	}
	if !s.administrator() {
		if (hasName || hasMethod) && !s.options.OwnOnly {
			return nil, denied
		}
		return s.own, nil
	}
	if hasMethod && !slices.Contains([]string{"Cluster", "Ldap", "Idp"}, authMethod) {
		return nil, apiError{name: "xInvalidParameter"}
	}
	// Absent or empty matches everything: the worst that the documents do not exclude.
	return func(x adapters.Session) bool {
		named := x.Username == username || s.options.FoldNames && strings.EqualFold(x.Username, username)
		return (username == "" || named) && (!hasMethod || x.Provider.Type == authMethod)
	}, nil
}

func (s *Server) listByUsername(p params) (any, error) {
	which, err := s.byUsername(p)
	if err != nil {
		return nil, err
	}
	return s.list(which, false), nil
}

func (s *Server) deleteByUsername(p params) (any, error) {
	which, err := s.byUsername(p)
	if err != nil {
		return nil, err
	}
	return s.delete(which), nil
}

// byClusterAdmin selects the sessions that map to an id: with a group's id, those of all its members.
func (s *Server) byClusterAdmin(p params) (func(adapters.Session) bool, error) {
	if !s.administrator() {
		return nil, denied
	}
	raw, ok := p["clusterAdminID"]
	if !ok {
		if slices.Contains(s.options.Unknown, "clusterAdminID") {
			return func(adapters.Session) bool { return true }, nil
		}
		return nil, apiError{name: "xMissingParameter"}
	}
	var id int64
	if json.Unmarshal(raw, &id) != nil {
		return nil, apiError{name: "xInvalidParameterType"}
	}
	g := adapters.Group{Kind: "cluster_admin_id", Name: strconv.FormatInt(id, 10)}
	return func(x adapters.Session) bool { return slices.Contains(x.Groups, g) }, nil
}

func (s *Server) listByClusterAdmin(p params) (any, error) {
	which, err := s.byClusterAdmin(p)
	if err != nil {
		return nil, err
	}
	return s.list(which, false), nil
}

func (s *Server) deleteByClusterAdmin(p params) (any, error) {
	which, err := s.byClusterAdmin(p)
	if err != nil {
		return nil, err
	}
	return s.delete(which), nil
}

// noSuchSession is what the deletion of a session that is not there is answered with; the real name is not documented.
var noSuchSession = apiError{name: "xAuthSessionDoesNotExist"}

// deleteOne ends one session. Its result holds one object, not a list.
func (s *Server) deleteOne(p params) (any, error) {
	id, ok, err := p.text("sessionID")
	if err != nil || !ok {
		return nil, apiError{name: "xMissingParameter"}
	}
	i := slices.IndexFunc(s.sessions, func(x adapters.Session) bool { return x.ID == id })
	if i < 0 || s.hidden[id] {
		return nil, noSuchSession
	}
	if name, ok := s.refused[id]; ok {
		return nil, apiError{name: name}
	}
	if !s.administrator() && !s.own(s.sessions[i]) {
		return nil, denied
	}
	gone := s.delete(func(x adapters.Session) bool { return x.ID == id })["sessions"].([]object)
	if len(gone) == 0 {
		return nil, noSuchSession
	}
	// There is room for one only: the lie that tells of another tells of that one.
	return object{"session": gone[len(gone)-1]}, nil
}

// list returns the sessions selected, or a lie. whole says that it is the list of all that the caller may see.
func (s *Server) list(which func(adapters.Session) bool, whole bool) object {
	out := []object{}
	for _, x := range slices.Concat(s.sessions, s.late) {
		x = s.shown(x)
		if which(x) && !s.leftOut(x, whole) {
			out = append(out, s.info(x))
		}
	}
	s.late = nil
	switch s.lie {
	case emulator.ListNone:
		out = []object{}
	case emulator.ListTwice:
		out = append(out, out...)
	case emulator.ListPageTwice:
		out = emulator.PageTwice(out)
	case emulator.ListConfused:
		for _, info := range slices.Clone(out) {
			twin := object{}
			for k, v := range info {
				twin[k] = v
			}
			twin["username"] = "somebody else"
			out = append(out, twin)
		}
	case emulator.ListAnother:
		if i := slices.IndexFunc(s.sessions, func(x adapters.Session) bool { return !which(x) }); i >= 0 {
			out = append(out, s.info(s.sessions[i]))
		}
	}
	return object{"sessions": out}
}

// leftOut reports whether a list leaves a session out.
func (s *Server) leftOut(x adapters.Session, whole bool) bool {
	switch s.lie {
	case emulator.ListLess, emulator.ListLessAtFirst:
		return x.ID == s.first
	case emulator.ListLessByName:
		return x.ID == s.first && !whole
	}
	return s.hidden[x.ID]
}

// shown is a session as lists show it: as what it is, unless one of them goes by another's name.
func (s *Server) shown(x adapters.Session) adapters.Session {
	if s.lie != emulator.ListMisnamed || len(s.sessions) == 0 {
		return x
	}
	model := s.sessions[0]
	i := slices.IndexFunc(s.sessions, func(y adapters.Session) bool { return y.Username != model.Username })
	if i >= 0 && s.sessions[i].ID == x.ID {
		x.Username, x.Provider, x.Groups = model.Username, model.Provider, model.Groups
	}
	return x
}

// delete ends the sessions selected and returns them, or lies about it.
func (s *Server) delete(which func(adapters.Session) bool) object {
	selects := func(x adapters.Session) bool { return which(x) && !s.hidden[x.ID] }
	other := slices.IndexFunc(s.sessions, func(x adapters.Session) bool { return !which(x) })
	asked := []object{}
	for _, x := range s.sessions {
		if selects(x) {
			asked = append(asked, s.info(x))
		}
	}
	say := func(sessions ...object) object { return object{"sessions": append([]object{}, sessions...)} }
	if s.lie == emulator.ListLessAtFirst {
		s.first = ""
	}
	switch s.lie {
	case emulator.Keep:
		return say(asked...)
	case emulator.KeepAndHide:
		for _, x := range s.sessions {
			s.hidden[x.ID] = s.hidden[x.ID] || which(x)
		}
		return say(asked...)
	case emulator.Deny:
		return say()
	case emulator.EndSilently:
		s.remove(selects)
		return say()
	case emulator.EndSome:
		if i := slices.IndexFunc(s.sessions, selects); i >= 0 {
			s.removeOne(s.sessions[i])
		}
		return say(asked...)
	case emulator.EndAnother, emulator.EndAnotherSilently, emulator.EndMore, emulator.EndMoreSilently:
		if other < 0 {
			break
		}
		victim := s.sessions[other]
		s.removeOne(victim)
		switch s.lie {
		case emulator.EndAnother:
			return say(s.info(victim))
		case emulator.EndAnotherSilently:
			return say(asked...)
		case emulator.EndMore:
			asked = append(asked, s.info(victim))
		}
	}
	gone := s.remove(selects)
	if s.lie == emulator.ListLater {
		s.late = gone
	}
	return say(asked...)
}

func (s *Server) removeOne(x adapters.Session) {
	s.remove(func(y adapters.Session) bool { return y.ID == x.ID })
}

// info is a session as an authSessionInfo: …/reference_element_api_authsessioninfo.html
func (s *Server) info(x adapters.Session) object {
	access, ids := []string{}, []json.Number{}
	for _, g := range x.Groups {
		switch g.Kind {
		case "access_group":
			access = append(access, g.Name)
		case "cluster_admin_id":
			ids = append(ids, json.Number(g.Name))
		}
	}
	return object{
		"sessionID": x.ID, "username": x.Username, "authMethod": s.spell(x.Provider.Type),
		"accessGroupList": access, "clusterAdminIDs": ids, "idpConfigVersion": 0,
		"sessionCreationTime": x.CreateTime.Format(time.RFC3339),
		"lastAccessTimeout":   x.CreateTime.Add(30 * time.Minute).Format(time.RFC3339),
		"finalTimeout":        x.ExpireTime.Format(time.RFC3339),
	}
}
