package bigiq

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Where things are, below the base URL.
const (
	pathInfo     = "/info/system"
	pathLogin    = "/mgmt/shared/authn/login"
	pathExchange = "/mgmt/shared/authn/exchange"
	pathTasks    = "/mgmt/cm/access/tasks/kill-sessions"
	pathDevices  = "/mgmt/cm/system/machineid-resolver"
	pathGroups   = "/mgmt/shared/resolver/device-groups/"
	pathSelf     = "/mgmt/shared/resolver/device-groups/cm-shared-all-big-iqs/devices"
)

// Queries, as the guides print them. The $ stays literal: url.Values would escape it, and nobody says that BIG-IQ
// understands %24filter.
const (
	queryGroups = "$filter='properties/cm:access:access_group'+eq+'true'&$select=groupName,displayName"
	queryTask   = "$select=status,result,resultDetails,errorMessage"
	queryProbe  = "$top=1&$select=id,status"
	querySelf   = "$select=version"
)

const headerToken = "X-F5-Auth-Token"

// The actions.
const (
	actionUser   = "KILL_BY_USER"
	actionAll    = "KILL_ALL_SESSIONS"
	actionListed = "KILL_BY_LIST_OF_SESSIONS"
)

// reference is a device reference.
type reference struct {
	Link string `json:"link"`
}

// union is where sessions are ended: in any of these. The three lists add up.
type union struct {
	AccessGroupNames []string    `json:"accessGroupNames,omitempty"`
	ClusterNames     []string    `json:"clusterNames,omitempty"`
	DeviceReferences []reference `json:"deviceReferences,omitempty"`
}

func (u union) check() error {
	if len(u.AccessGroupNames)+len(u.ClusterNames)+len(u.DeviceReferences) == 0 {
		return adapters.Errorf(adapters.Rejected, "a task needs an access group, a cluster or a device")
	}
	return nil
}

// killByUser ends the sessions of one user. The user's field is always written; its name is case-sensitive.
type killByUser struct {
	Action   string `json:"action"`
	UserName string `json:"userName"`
	union
}

func newKillByUser(user string, u union) (any, error) {
	return killByUser{Action: actionUser, UserName: user, union: u}, errors.Join(checkUser(user), u.check())
}

// killAll ends the sessions of all users. It is a type of its own, without a field for a user: BIG-IQ goes by the action,
// and would end everybody's sessions whatever user stands beside it.
type killAll struct {
	Action string `json:"action"`
	union
}

func newKillAll(u union) (any, error) {
	return killAll{Action: actionAll, union: u}, u.check()
}

// killListed ends sessions by id.
type killListed struct {
	Action   string       `json:"action"`
	Sessions []sessionsOn `json:"sessions"`
}

type sessionsOn struct {
	DeviceReference reference `json:"deviceReference"`
	SessionIDs      []string  `json:"sessionIds"`
}

func newKillListed(lists []sessionsOn) (any, error) {
	for _, l := range lists {
		if l.DeviceReference.Link == "" || len(l.SessionIDs) == 0 {
			return nil, adapters.Errorf(adapters.Rejected, "a list of sessions needs a device and session ids")
		}
	}
	if len(lists) == 0 {
		return nil, adapters.Errorf(adapters.Rejected, "a list of sessions needs a device and session ids")
	}
	return killListed{Action: actionListed, Sessions: lists}, nil
}

// taskReply is a task. With $select only some members are there. Its dates are left alone: their offsets have no colon,
// which RFC 3339 parsers refuse, and nothing depends on them.
type taskReply struct {
	ID       string `json:"id"`
	SelfLink string `json:"selfLink"`
	Action   string `json:"action"`
	// UserName is whose sessions end. Requester, which differs in the case of one letter, is the account that asked;
	// undeclared, encoding/json would put it into UserName.
	UserName  string `json:"userName"`
	Requester string `json:"username"`

	// Where, as far as it is shown. Of deviceReferences BIG-IQ shows more than it was asked for, in the guides' samples.
	AccessGroupNames json.RawMessage `json:"accessGroupNames"`
	ClusterNames     json.RawMessage `json:"clusterNames"`
	Sessions         json.RawMessage `json:"sessions"`

	Status       string          `json:"status"`
	Result       string          `json:"result"`
	Details      json.RawMessage `json:"resultDetails"`
	ErrorMessage json.RawMessage `json:"errorMessage"`

	// Items is there when the answer is a collection, as the reference has it for POST, and one sample for a failed task.
	Items []taskReply `json:"items"`
}

// one returns the task itself, or the only element of a collection that satisfies match. Several would be a guess: an
// older task of the same content must not be taken for this one.
func (t taskReply) one(match func(taskReply) bool) (taskReply, bool) {
	if t.Items == nil {
		return t, match(t)
	}
	found := slices.DeleteFunc(t.Items, func(x taskReply) bool { return x.Items != nil || !match(x) })
	if len(found) != 1 {
		return taskReply{}, false
	}
	return found[0], true
}

// errMistaken marks a task that was made for something else than what was asked for.
var errMistaken = errors.New("another task")

// decodeCreated returns the id of the task that a POST has made. A task that shows that it is for another user, or in more
// places, is an error for good: to ask again could end even more.
func decodeCreated(r httpclient.Reply, body any) (string, error) {
	var t taskReply
	if err := r.Decode(&t); err != nil {
		return "", err
	}
	tasks := []taskReply{t}
	if t.Items != nil {
		tasks = t.Items // as the reference has it
	}
	made := slices.DeleteFunc(tasks, func(t taskReply) bool { return t.Items != nil || t.taskID() == "" })
	var found []taskReply
	for _, t := range made {
		if t.is(body) {
			found = append(found, t)
		}
	}
	switch {
	case len(found) == 1:
		return found[0].taskID(), nil
	case len(made) == 1:
		return "", adapters.Wrap(adapters.Rejected, errMistaken, "BIG-IQ shows a task for other sessions than those asked for; it is not asked again")
	}
	// Several would be a guess: an older task of the same content must not be taken for this one.
	return "", adapters.Errorf(adapters.BadReply, "BIG-IQ accepted the task and did not say under which id")
}

// is reports whether a task, as far as it shows, is the one that body asks for, and in no place more.
func (t taskReply) is(body any) bool {
	action, user, where, listed := "", "", union{}, []sessionsOn(nil)
	switch b := body.(type) {
	case killByUser:
		action, user, where = b.Action, b.UserName, b.union
	case killAll:
		action, where = b.Action, b.union
	case killListed:
		action, listed = b.Action, b.Sessions
	}
	return cmp.Or(t.Action, action) == action && cmp.Or(t.UserName, user) == user &&
		among(t.AccessGroupNames, where.AccessGroupNames) && among(t.ClusterNames, where.ClusterNames) && t.lists(listed)
}

// among reports whether a list of names, if it is one, holds none but those asked for.
func among(raw json.RawMessage, asked []string) bool {
	var names []string
	return json.Unmarshal(raw, &names) != nil || !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(asked, n) })
}

// lists reports whether the sessions shown, if any are, are among those asked for.
func (t taskReply) lists(asked []sessionsOn) bool {
	var shown []sessionsOn
	if json.Unmarshal(t.Sessions, &shown) != nil {
		return true
	}
	for _, l := range shown {
		for _, id := range l.SessionIDs {
			if !slices.ContainsFunc(asked, func(a sessionsOn) bool {
				return deviceName(a.DeviceReference.Link) == deviceName(l.DeviceReference.Link) && slices.Contains(a.SessionIDs, id)
			}) {
				return false
			}
		}
	}
	return true
}

// taskID is the task's id, or what its link ends in. The link's host is BIG-IQ's own localhost and means nothing here;
// its path counts only below the tasks.
func (t taskReply) taskID() string {
	id := t.ID
	if id == "" {
		u, err := url.Parse(t.SelfLink)
		if err != nil {
			return ""
		}
		id, _ = strings.CutPrefix(u.EscapedPath(), pathTasks+"/")
	}
	if !validID(id) {
		return ""
	}
	return id
}

var idWord = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// validID reports whether a task id is one that can stand in a path.
func validID(id string) bool { return idWord.MatchString(id) }

// outcome is what a poll found: pending, done, or a verdict.
type outcome struct {
	pending bool
	// failed is nil for pending and done tasks.
	failed *verdict
}

// verdict is how a task ended that was not a success.
type verdict struct {
	Kind    adapters.Kind   `json:"kind"`
	Why     adapters.Reason `json:"why,omitempty"`
	Message string          `json:"message"`
}

// decodeTask judges the answer to a poll of task id.
func decodeTask(r httpclient.Reply, id string) (outcome, error) {
	var t taskReply
	if err := r.Decode(&t); err != nil {
		return outcome{}, err
	}
	t, ok := t.one(func(t taskReply) bool { return cmp.Or(t.ID, id) == id })
	if !ok || t.Status == "" {
		return outcome{}, adapters.Errorf(adapters.BadReply, "BIG-IQ did not tell the status of the task")
	}
	switch t.Status {
	case "FINISHED":
		if t.Result == "COMPLETE" && t.failures() == 0 {
			return outcome{}, nil
		}
		return outcome{failed: &verdict{Kind: adapters.Failed,
			Message: "BIG-IQ finished the task, but not completely; some sessions may have ended" + t.where()}}, nil
	case "FAILED":
		if t.deviceMissing() {
			return outcome{failed: &verdict{Kind: adapters.Rejected, Why: adapters.ReasonUnknownScope,
				Message: "BIG-IQ does not know a device of the task; nothing ended"}}, nil
		}
		return outcome{failed: &verdict{Kind: adapters.Failed,
			Message: "BIG-IQ reports that the task failed; some sessions may have ended" + t.where()}}, nil
	case "CANCELLED", "CANCELED": // F5's guides spell it so, its test framework otherwise
		return outcome{failed: &verdict{Kind: adapters.Failed, Why: adapters.ReasonOutcomeUnknown,
			Message: "the task was cancelled at BIG-IQ; some sessions may have ended"}}, nil
	}
	// CREATED, STARTED, CANCEL_REQUESTED, and what later releases may add.
	return outcome{pending: true}, nil
}

// deviceMissing recognises the one failure that is known to happen before anything ends.
func (t taskReply) deviceMissing() bool {
	var message string
	return json.Unmarshal(t.ErrorMessage, &message) == nil &&
		strings.HasPrefix(message, "item not found at /cm/system/machineid-resolver/")
}

// failures is the number of sessions that the task says it did not end.
func (t taskReply) failures() (n int) {
	var details []struct {
		FailedIDs []json.RawMessage `json:"failedIds"`
	}
	_ = json.Unmarshal(t.Details, &details) // what cannot be read tells nothing
	for _, d := range details {
		n += len(d.FailedIDs)
	}
	return n
}

// maxHosts bounds how many hosts a message names.
const maxHosts = 5

// where says which devices failed, as far as resultDetails tells. Only what looks like a host name gets through.
func (t taskReply) where() string {
	var details []struct {
		Host string `json:"host"`
	}
	if json.Unmarshal(t.Details, &details) != nil || len(details) == 0 {
		return ""
	}
	var hosts []string
	for _, d := range details {
		if deviceWord.MatchString(d.Host) {
			hosts = add(hosts, d.Host)
		}
	}
	s := fmt.Sprintf(" (failed on %d devices", len(details))
	if len(details) == 1 {
		s = " (failed on 1 device"
	}
	if len(hosts) > 0 {
		s += ": " + strings.Join(hosts[:min(len(hosts), maxHosts)], ", ")
		if len(hosts) > maxHosts {
			s += ", …"
		}
	}
	if ids := t.failures(); ids > 0 {
		s += fmt.Sprintf("; sessions not ended: %d", ids)
	}
	return s + ")"
}

// queryAddresses looks devices up by address. Every value is checked: * is a wildcard in a filter, and a quote would
// begin another condition.
func queryAddresses(addresses []string) (string, error) {
	var terms []string
	for _, a := range addresses {
		if !isAddress(a) {
			return "", adapters.Errorf(adapters.Rejected, "%q is not an address", a)
		}
		terms = append(terms, "'address'+eq+'"+a+"'")
	}
	if len(terms) == 0 {
		return "", nil
	}
	return "$filter=(" + strings.Join(terms, "+or+") + ")", nil
}

type deviceReply struct {
	UUID       string `json:"uuid"`
	MachineID  string `json:"machineId"`
	Hostname   string `json:"hostname"`
	Address    string `json:"address"`
	State      string `json:"state"`
	SelfLink   string `json:"selfLink"`
	Properties struct {
		Modules []string `json:"cm:gui:module"`
		Access  struct {
			Imported    bool   `json:"imported"`
			Cluster     string `json:"clusterName"`
			AccessGroup string `json:"cm:access:access-group-name"`
		} `json:"cm-access-allBigIpDevices"`
	} `json:"properties"`
}

// decodeDevices reads the resolver's answer. The items are counted; its totalItems is not to be trusted. A device that
// cannot be understood is an error: left out, its sessions would stay alive unnoticed. So is one that comes twice, and
// differs.
func decodeDevices(r httpclient.Reply) ([]device, error) {
	var list struct {
		Items *[]deviceReply `json:"items"`
	}
	if err := r.Decode(&list); err != nil {
		return nil, err
	}
	if list.Items == nil {
		return nil, adapters.Errorf(adapters.BadReply, "BIG-IQ did not list its devices")
	}
	var ds []device
	seen := map[string]device{}
	for _, x := range *list.Items {
		d := device{
			MachineID: cmp.Or(x.MachineID, x.UUID), Hostname: x.Hostname, Address: x.Address, Link: x.SelfLink, State: x.State,
			Cluster: x.Properties.Access.Cluster, AccessGroup: x.Properties.Access.AccessGroup,
			Access: slices.Contains(x.Properties.Modules, "Access"), Imported: x.Properties.Access.Imported,
		}
		if !deviceWord.MatchString(d.MachineID) || !strings.HasSuffix(d.Link, "/"+d.MachineID) {
			return nil, adapters.Errorf(adapters.BadReply, "BIG-IQ lists a device without a machine id or a reference")
		}
		switch y, twice := seen[d.MachineID]; {
		case !twice:
			ds = append(ds, d)
			seen[d.MachineID] = d
		case y != d:
			return nil, adapters.Errorf(adapters.BadReply, "BIG-IQ lists two devices under one machine id")
		}
	}
	return ds, nil
}

// decodeAccessGroups reads the names of the access groups.
func decodeAccessGroups(r httpclient.Reply) ([]string, error) {
	var list struct {
		Items *[]struct {
			GroupName string `json:"groupName"`
		} `json:"items"`
	}
	if err := r.Decode(&list); err != nil {
		return nil, err
	}
	if list.Items == nil {
		return nil, adapters.Errorf(adapters.BadReply, "BIG-IQ did not list its access groups")
	}
	var names []string
	for _, x := range *list.Items {
		if x.GroupName != "" {
			names = append(names, x.GroupName)
		}
	}
	return names, nil
}

// decodeSelf reads the version of the BIG-IQs that stand for themselves; empty if none tells. F5's own clients take the
// first, too.
func decodeSelf(r httpclient.Reply) string {
	var list struct {
		Items []struct {
			Version string `json:"version"`
		} `json:"items"`
	}
	if r.Decode(&list) != nil || len(list.Items) == 0 {
		return ""
	}
	return list.Items[0].Version
}

// infoReply is what BIG-IQ says of itself without credentials.
type infoReply struct {
	Version   string `json:"version"`
	Providers []struct {
		Name string `json:"name"`
		Link string `json:"link"`
	} `json:"providers"`
}

// loginRequest asks for a token. LoginReference is left out for local accounts; loginProviderName is a habit of BIG-IP
// that BIG-IQ refuses.
type loginRequest struct {
	Username       string     `json:"username"`
	Password       string     `json:"password"`
	LoginReference *reference `json:"loginReference,omitempty"`
}

type exchangeRequest struct {
	RefreshToken tokenValue `json:"refreshToken"`
}

type tokenValue struct {
	Token string `json:"token"`
}

// loginReply is the answer to a login and to an exchange.
type loginReply struct {
	Token struct {
		Token   string `json:"token"`
		Timeout int    `json:"timeout"`
	} `json:"token"`
	RefreshToken tokenValue `json:"refreshToken"`
}

// errorReply is the part of an error's body that is looked at, and never shown. It has no id: the originalRequestBody
// of a refused task holds one, of a task that does not exist.
type errorReply struct {
	Message string `json:"message"`
}

// says reports whether an error's message is exactly the one.
func says(r httpclient.Reply, message string) bool {
	var e errorReply
	return r.IsJSON() && json.Unmarshal(r.Body, &e) == nil && e.Message == message
}

// tooManyTokens recognises a refusal that is known of BIG-IP: an account holds at most a hundred tokens.
func tooManyTokens(r httpclient.Reply) bool {
	var e errorReply
	return r.IsJSON() && json.Unmarshal(r.Body, &e) == nil && strings.Contains(e.Message, "maximum active login tokens")
}

// Messages that BIG-IQ's answers are recognised by.
const (
	messageNoPath   = "Public URI path not registered"
	messageNoAction = "action is missing."
)

func get(path, query string) httpclient.Call {
	return httpclient.Call{Method: http.MethodGet, Path: path, Query: query}
}
