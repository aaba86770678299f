package bigiqtest

import (
	"encoding/json"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

const (
	pathTasks = "/mgmt/cm/access/tasks/kill-sessions"
	kindTask  = "cm:access:tasks:kill-sessions:accesskillsessionstaskitemstate"
	kindTasks = "cm:access:tasks:kill-sessions:accesskillsessionstaskcollectionstate"
	// dates have offsets without a colon in all samples.
	dateLayout = "2006-01-02T15:04:05.000-0700"
)

var pacific = time.FixedZone("", -8*60*60)

// order is the part of a request that counts.
type order struct {
	action       string
	userName     string
	accessGroups []string
	clusters     []string
	devices      []string // machine ids, or what stands for one
	sessions     []sessionsOn
}

type sessionsOn struct {
	DeviceReference struct {
		Link string `json:"link"`
	} `json:"deviceReference"`
	SessionIDs []string `json:"sessionIds"`
}

type task struct {
	id     string
	body   string
	fields map[string]json.RawMessage
	order  order

	begins, ends time.Time
	over         bool
	status       string
	step         string
	result       string
	message      string
	details      []map[string]any
	ended        []adapters.SessionKey
}

// createTask is the guide's "Perform a POST method on the kill sessions task URI". A refused request makes no task, and
// still has an id in what it echoes.
func (s *Server) createTask(w http.ResponseWriter, r *http.Request) {
	if !s.accessService(w, r) {
		return
	}
	raw, err := emulator.ReadBody(r)
	var fields map[string]json.RawMessage
	if err == nil {
		fields, err = emulator.Object(raw)
	}
	if err != nil {
		s.fail(w, r, http.StatusBadRequest, "the request is not a JSON object", "")
		return
	}
	t := &task{id: s.ids.UUID(), body: string(raw), fields: fields, begins: time.Now(), status: "STARTED", step: "RESOLVE_DEVICES"}
	var message string
	if t.order, message = read(fields); message != "" {
		echo := maps.Clone(fields)
		for k, v := range map[string]any{
			"id": t.id, "status": "CREATED", "name": "kill-access-sessions", "generation": 1, "kind": kindTask,
			"lastUpdateMicros": t.begins.UnixMicro(), "selfLink": "https://localhost" + pathTasks + "/" + t.id,
		} {
			echo[k], _ = json.Marshal(v)
		}
		text, _ := json.Marshal(echo)
		s.fail(w, r, http.StatusBadRequest, message, string(text))
		return
	}
	s.mistake(t)
	t.ends = t.begins.Add(s.opts.TaskTime)
	s.tasks = append(s.tasks, t)
	s.answer(w, t, nil)
}

// accessService answers for a system without the Access service, or an account without the role. The form of the
// latter answer is not documented.
func (s *Server) accessService(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case s.quirks.NoAccessService:
		s.fail(w, r, http.StatusNotFound, "Public URI path not registered", "")
	case s.quirks.NoRole:
		s.fail(w, r, http.StatusForbidden, "Authorization failed: user="+s.opts.Username+" resource="+r.URL.Path+" verb="+r.Method, "")
	default:
		return true
	}
	return false
}

// read validates a request as the guide's "Common Errors" has it. Field names are case-sensitive; whatever else is there
// is ignored, "username" above all, which names the account that asks. The texts for a missing userName and for wrong
// types are not documented.
func read(fields map[string]json.RawMessage) (o order, message string) {
	into := func(name string, v any) bool {
		raw, ok := fields[name]
		return !ok || json.Unmarshal(raw, v) == nil
	}
	var references []struct {
		Link string `json:"link"`
	}
	if !into("action", &o.action) || !into("userName", &o.userName) || !into("accessGroupNames", &o.accessGroups) ||
		!into("clusterNames", &o.clusters) || !into("deviceReferences", &references) || !into("sessions", &o.sessions) {
		return o, "a field has a value of the wrong type"
	}
	for _, ref := range references {
		o.devices = append(o.devices, ref.Link)
	}
	switch o.action {
	case "":
		return o, "action is missing."
	case "KILL_BY_LIST_OF_SESSIONS":
		if len(o.sessions) == 0 {
			return o, "sessions are missing"
		}
		for _, l := range o.sessions {
			if l.DeviceReference.Link == "" {
				return o, "deviceReference is missing"
			}
			if len(l.SessionIDs) == 0 {
				return o, "sessionIds are missing for " + l.DeviceReference.Link
			}
		}
		return o, ""
	case "KILL_BY_USER":
		if o.userName == "" {
			return o, "userName is missing"
		}
	case "KILL_ALL_SESSIONS":
	default:
		return o, "action is invalid"
	}
	if len(o.accessGroups)+len(o.clusters)+len(o.devices) == 0 {
		return o, "Request should have atleast one of these fields populated: accessGroupNames , clusterNames , deviceReferences"
	}
	return o, ""
}

// advance lets the tasks whose time has come do their work.
func (s *Server) advance() {
	now := time.Now()
	for _, t := range s.tasks {
		if !t.over && !s.quirks.Stuck && !now.Before(t.ends) {
			s.work(t)
		}
	}
}

// work is what a task does. The document of the task's states is the guide's table of parameters; which failures look
// how is its samples of failed responses.
func (s *Server) work(t *task) {
	t.over = true
	if e := s.quirks.Ending; e != nil {
		t.status, t.result, t.message, t.step = e.Status, e.Result, e.ErrorMessage, "KILL"
		if !e.Kills {
			return
		}
	}
	devices, missing := s.resolve(t.order)
	if missing != "" {
		t.status, t.result, t.message = "FAILED", "PENDING", "item not found at /cm/system/machineid-resolver/"+missing
		return
	}
	t.step = "KILL"
	if s.lied(t, devices) {
		t.status, t.step, t.result = "FINISHED", "DONE", "COMPLETE"
		return
	}
	failed := 0
	for _, d := range devices {
		ids, all := wanted(t.order, d)
		detail := map[string]any{"host": d.Hostname, "deviceReference": map[string]string{"link": deviceLink(d.MachineID)}, "failedIds": []string{}}
		if d.Unreachable {
			failed++
			detail["failedIds"] = append([]string{}, ids...)
			t.details = append(t.details, detail)
			continue
		}
		// Sessions live on the active unit: a passive one, addressed by itself, ends nothing and reports nothing.
		var gone []string
		for _, id := range ids {
			if !slices.ContainsFunc(s.sessions, func(x adapters.Session) bool { return x.Device == d.MachineID && x.ID == id }) {
				gone = append(gone, id)
			}
		}
		s.end(t, func(x adapters.Session) bool { return x.Device == d.MachineID && t.order.selects(x, ids, all) })
		if s.quirks.GoneIDsFail && len(gone) > 0 {
			detail["failedIds"] = gone
			t.details = append(t.details, detail)
		}
	}
	switch {
	case s.quirks.Ending != nil:
	case failed > 0 && failed == len(devices):
		t.status, t.message, t.details = "FAILED", "Internal Error occurred", nil
	case len(t.details) > 0:
		t.status, t.step, t.result = "FINISHED", "DONE", "FAILED"
	default:
		t.status, t.step, t.result = "FINISHED", "DONE", "COMPLETE"
	}
}

// end removes sessions, as a task does.
func (s *Server) end(t *task, which func(adapters.Session) bool) {
	s.sessions = slices.DeleteFunc(s.sessions, func(x adapters.Session) bool {
		hit := which(x)
		if hit {
			t.ended = append(t.ended, x.Key())
		}
		return hit
	})
}

// selects reports whether an order is about a session on one of its devices, of which it wants these ids, or all. What *
// means in a user's name is not documented; the worst is everybody.
func (o order) selects(x adapters.Session, ids []string, all bool) bool {
	named := x.Username == o.userName || strings.Contains(o.userName, "*")
	return (all || slices.Contains(ids, x.ID)) && (o.action != "KILL_BY_USER" || named)
}

// orders reports whether a session is one that an order ends.
func (s *Server) orders(o order, x adapters.Session) bool {
	devices, _ := s.resolve(o)
	return slices.ContainsFunc(devices, func(d Device) bool {
		ids, all := wanted(o, d)
		return x.Device == d.MachineID && o.selects(x, ids, all)
	})
}

// lied reports whether a task has done something else than its order, and will not say so.
func (s *Server) lied(t *task, devices []Device) bool {
	asked := func(x adapters.Session) bool {
		return slices.ContainsFunc(devices, func(d Device) bool { return d.MachineID == x.Device }) && s.orders(t.order, x)
	}
	one := func(which func(adapters.Session) bool) {
		if i := slices.IndexFunc(s.sessions, which); i >= 0 {
			key := s.sessions[i].Key()
			s.end(t, func(x adapters.Session) bool { return x.Key() == key })
		}
	}
	another := func(x adapters.Session) bool { return !asked(x) }
	switch s.lie {
	case emulator.Keep, emulator.KeepAndHide:
	case emulator.EndSome:
		one(asked)
	case emulator.EndAnotherSilently:
		one(another)
	case emulator.EndMoreSilently:
		one(another)
		s.end(t, asked)
	default:
		return false
	}
	return true
}

// mistake takes an order for another one, which the task then shows: for somebody else's sessions, or in more places.
func (s *Server) mistake(t *task) {
	set := func(field string, v any) { t.fields[field], _ = json.Marshal(v) }
	i := slices.IndexFunc(s.sessions, func(x adapters.Session) bool { return x.Username != "" && !s.orders(t.order, x) })
	if i < 0 {
		return
	}
	x := s.sessions[i]
	switch s.lie {
	case emulator.EndAnother:
		switch t.order.action {
		case "KILL_BY_USER":
			t.order.userName = x.Username
			set("userName", x.Username)
		case "KILL_BY_LIST_OF_SESSIONS":
			l := sessionsOn{SessionIDs: []string{x.ID}}
			l.DeviceReference.Link = deviceLink(x.Device)
			t.order.sessions = []sessionsOn{l}
			set("sessions", t.order.sessions)
		default:
			s.widen(t, set)
		}
	case emulator.EndMore:
		s.widen(t, set)
	}
}

// widen has a task end everything there is, or the same user's sessions everywhere.
func (s *Server) widen(t *task, set func(string, any)) {
	t.order.clusters, t.order.accessGroups = nil, nil
	for _, d := range s.devices {
		if d.Cluster != "" && !slices.Contains(t.order.clusters, d.Cluster) {
			t.order.clusters = append(t.order.clusters, d.Cluster)
		}
		if g := d.group(); g != "" && !slices.Contains(t.order.accessGroups, g) {
			t.order.accessGroups = append(t.order.accessGroups, g)
		}
	}
	if t.order.action == "KILL_BY_LIST_OF_SESSIONS" {
		t.order.action = "KILL_ALL_SESSIONS"
		set("action", t.order.action)
	}
	set("clusterNames", t.order.clusters)
	set("accessGroupNames", t.order.accessGroups)
}

// wanted says which sessions of a device a task is about. For KILL_ALL_SESSIONS that is all, whatever userName says.
func wanted(o order, d Device) (ids []string, all bool) {
	if o.action != "KILL_BY_LIST_OF_SESSIONS" {
		return nil, true
	}
	for _, l := range o.sessions {
		if l.DeviceReference.Link == deviceLink(d.MachineID) {
			ids = append(ids, l.SessionIDs...)
		}
	}
	return ids, false
}

// resolve finds the devices of a task: those in any of the scopes. Names of clusters and access groups that do not exist
// find nothing, which is not an error (not documented; the worst case). A device reference that does not exist is one.
func (s *Server) resolve(o order) (found []Device, missing string) {
	links := slices.Clone(o.devices)
	for _, l := range o.sessions {
		links = append(links, l.DeviceReference.Link)
	}
	for _, link := range links {
		if !slices.ContainsFunc(s.devices, func(d Device) bool { return deviceLink(d.MachineID) == link }) {
			return nil, path.Base(link)
		}
	}
	for _, d := range s.devices {
		g := d.group()
		if slices.Contains(links, deviceLink(d.MachineID)) || d.Cluster != "" && slices.Contains(o.clusters, d.Cluster) ||
			g != "" && slices.Contains(o.accessGroups, g) {
			found = append(found, d)
		}
	}
	return found, ""
}

// document is a task as the guide's samples show it.
func (s *Server) document(t *task) map[string]any {
	doc := map[string]any{
		"id": t.id, "status": t.status, "generation": 4, "kind": kindTask, "name": "kill-access-sessions",
		"identityReferences": []map[string]string{{"link": "https://localhost/mgmt/shared/authz/users/" + s.opts.Username}},
		"userReference":      map[string]string{"link": "https://localhost/mgmt/shared/authz/users/" + s.opts.Username},
		"username":           s.opts.Username,
		"ownerMachineId":     "adf1e56b-bf8c-472a-9b2d-e2dd7199ffbd",
		"selfLink":           "https://localhost" + pathTasks + "/" + t.id,
		"startDateTime":      t.begins.In(pacific).Format(dateLayout),
		"lastUpdateMicros":   t.begins.UnixMicro(),
	}
	for _, name := range []string{"action", "userName", "accessGroupNames", "clusterNames", "deviceReferences", "sessions"} {
		if v, ok := t.fields[name]; ok {
			doc[name] = v
		}
	}
	if !s.quirks.NoStep {
		doc["currentStep"] = t.step
	}
	if !t.over && s.quirks.Status != "" {
		doc["status"] = s.quirks.Status
	}
	if t.over {
		doc["endDateTime"] = t.ends.In(pacific).Format(dateLayout)
	}
	if t.result != "" {
		doc["result"] = t.result
	}
	if t.message != "" {
		doc["errorMessage"] = t.message
	}
	if t.details != nil {
		doc["resultDetails"] = t.details
	}
	return doc
}

// answer writes one task. The reference says that POST answers with a collection, and the guide's sample of a failed
// task is one; all other samples are items.
func (s *Server) answer(w http.ResponseWriter, t *task, q map[string]string) {
	doc := selected(s.document(t), q)
	if s.quirks.Collections {
		emulator.WriteJSON(w, http.StatusOK, collection([]map[string]any{doc}))
		return
	}
	emulator.WriteJSON(w, http.StatusOK, doc)
}

func collection(items []map[string]any) map[string]any {
	return map[string]any{
		"items": items, "generation": 4, "kind": kindTasks, "lastUpdateMicros": int64(1480545143451463),
		"selfLink": "https://localhost" + pathTasks,
	}
}

// listTasks is the reference's "List all kill-session tasks as part of a collection".
func (s *Server) listTasks(w http.ResponseWriter, r *http.Request) {
	if !s.accessService(w, r) {
		return
	}
	q := query(r)
	items := []map[string]any{}
	for _, t := range s.tasks[:top(len(s.tasks), q)] {
		items = append(items, selected(s.document(t), q))
	}
	emulator.WriteJSON(w, http.StatusOK, collection(items))
}

// getTask is the reference's GET /kill-sessions/{objectId}. What an unknown id is answered with is not documented.
func (s *Server) getTask(w http.ResponseWriter, r *http.Request) {
	if !s.accessService(w, r) {
		return
	}
	for _, t := range s.tasks {
		if t.id == r.PathValue("id") {
			s.answer(w, t, query(r))
			return
		}
	}
	s.fail(w, r, http.StatusNotFound, "item not found at /cm/access/tasks/kill-sessions/"+r.PathValue("id"), "")
}
