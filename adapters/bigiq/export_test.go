package bigiq

import (
	"net/http"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// What the external tests need of the wire.

// Reply makes a JSON answer.
func Reply(status int, body string) httpclient.Reply {
	return httpclient.Reply{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(body)}
}

// DecodeCreated decodes the answer to a KILL_BY_USER, or, without a user, to a KILL_ALL_SESSIONS.
func DecodeCreated(r httpclient.Reply, user string, accessGroups ...string) (string, error) {
	where := union{AccessGroupNames: accessGroups}
	if user == "" {
		return decodeCreated(r, killAll{Action: actionAll, union: where})
	}
	return decodeCreated(r, killByUser{Action: actionUser, UserName: user, union: where})
}

// DecodeTask decodes the answer to a poll: pending, or an error, or neither when the task succeeded.
func DecodeTask(r httpclient.Reply, id string) (pending bool, err error) {
	o, err := decodeTask(r, id)
	if err == nil && o.failed != nil {
		err = &adapters.Error{Kind: o.failed.Kind, Why: o.failed.Why, Message: o.failed.Message}
	}
	return o.pending, err
}

// DecodeDevices decodes the resolver's answer and returns how many devices there are.
func DecodeDevices(r httpclient.Reply) (int, error) {
	ds, err := decodeDevices(r)
	return len(ds), err
}

// DecodeAccessGroups decodes the list of access groups.
var DecodeAccessGroups = decodeAccessGroups

// QueryAddresses builds a filter.
var QueryAddresses = queryAddresses

// ValidID reports whether an id may stand in a path.
var ValidID = validID

// Bodies returns what could be put together by hand, against the planner's habits.
func Bodies(user string, links ...string) (byUser, all error) {
	var u union
	for _, l := range links {
		u.DeviceReferences = append(u.DeviceReferences, reference{Link: l})
	}
	_, byUser = newKillByUser(user, u)
	_, all = newKillAll(u)
	return byUser, all
}
