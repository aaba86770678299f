package element

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// The methods in use; the session methods exist since API 12.0.
const (
	getAPI               = "GetAPI"
	getCurrentAdmin      = "GetCurrentClusterAdmin"
	getVersionInfo       = "GetClusterVersionInfo"
	listAdmins           = "ListClusterAdmins"
	listActive           = "ListActiveAuthSessions"
	listByUsername       = "ListAuthSessionsByUsername"
	listByClusterAdmin   = "ListAuthSessionsByClusterAdmin"
	deleteSession        = "DeleteAuthSession"
	deleteByUsername     = "DeleteAuthSessionsByUsername"
	deleteByClusterAdmin = "DeleteAuthSessionsByClusterAdmin"
)

// effect is what a call can change.
type effect int

const (
	// reads changes nothing.
	reads effect = iota
	// endsOne ends one session or none.
	endsOne
	// endsMany can have ended some sessions when it reports that it failed.
	endsMany
)

// request is the envelope. Element's dialect has no "jsonrpc" member, and no batches.
type request struct {
	Method string `json:"method"`
	Params any    `json:"params"`
	ID     int64  `json:"id"`
}

// none is an empty params object.
type none struct{}

const contentType = "application/json-rpc"

// retryAfter is the documented advice for xDBVersionMismatch: repeat after a second.
const retryAfter = time.Second

// client speaks JSON-RPC to one cluster.
type client struct {
	http *httpclient.Client
	// serial numbers the requests; replies must carry the number of theirs.
	serial atomic.Int64
	// gate lets one request at a time change something: many calls in a row are what makes a cluster answer
	// xDBVersionMismatch.
	gate chan struct{}

	mu  sync.Mutex
	api *api
}

func newClient(c Config, deps adapters.Deps) (*client, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	basic := base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password.Reveal()))
	h, err := httpclient.New(httpclient.Options{
		BaseURL: base,
		TLS:     c.TLSConfig,
		Header:  http.Header{"Authorization": {"Basic " + basic}},
		Deps:    deps,
	})
	if err != nil {
		return nil, err
	}
	return &client{http: h, gate: make(chan struct{}, 1)}, nil
}

func path(v version) string { return "/json-rpc/" + v.String() }

// call invokes a method at the negotiated version. A cluster that no longer knows the version ran nothing, so the
// version is negotiated once more and the call repeated.
//
// Beside an error that wraps errUnused there is a result: the call ran, without the parameters it ignored.
func (c *client) call(ctx context.Context, method string, params any, e effect) (json.RawMessage, error) {
	for again := false; ; again = true {
		a, err := c.negotiated(ctx)
		if err != nil {
			return nil, err
		}
		if !a.offers(method) {
			return nil, adapters.Errorf(adapters.Rejected, "the address does not offer %s: %s", method, notCapable)
		}
		result, err := c.send(ctx, a.version, method, params, e)
		if err == nil || again || !isUnknownVersion(err) {
			return result, err
		}
		c.forget(a)
	}
}

// notCapable explains why an address knows no session methods.
const notCapable = "it is a single node's, not the cluster's (MVIP, port 443), or Element is older than 12.0"

// send invokes a method at one version.
func (c *client) send(ctx context.Context, v version, method string, params any, e effect) (json.RawMessage, error) {
	return c.sendSeen(ctx, v, method, params, e, func(httpclient.Reply, error) {})
}

// sendSeen is send that also shows the HTTP exchange.
func (c *client) sendSeen(
	ctx context.Context, v version, method string, params any, e effect, see func(httpclient.Reply, error),
) (json.RawMessage, error) {
	if e != reads {
		select {
		case c.gate <- struct{}{}:
			defer func() { <-c.gate }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	id := c.serial.Add(1)
	reply, err := c.http.Do(ctx, httpclient.Call{
		Method:      http.MethodPost,
		Path:        path(v),
		JSON:        request{Method: method, Params: params, ID: id},
		ContentType: contentType,
		Mutating:    e != reads,
		Accept:      []int{http.StatusNotFound},
	})
	see(reply, err)
	if err != nil {
		return nil, err
	}
	if reply.Status == http.StatusNotFound {
		return nil, (&apiError{name: unknownVersion}).classify(method, e)
	}
	// What content type a cluster answers with is not documented, so the envelope decides: a page of a proxy does not
	// carry our id.
	a, err := decodeAnswer(reply.Body, id)
	switch {
	case err != nil:
		return nil, err
	case a.null && e == reads:
		return nil, busy("the cluster is up but not serving")
	case a.null:
		// Seen during upgrades. It says nothing about what became of the request.
		return nil, &adapters.Error{Kind: adapters.Uncertain, RetryAfter: retryAfter, Message: "the cluster is up but not serving, and does not say what became of the request"}
	case a.fault != nil:
		return nil, a.fault.classify(method, e)
	case a.unused:
		return a.result, adapters.Wrap(adapters.Rejected, errUnused, "the cluster ignored a parameter of %s", method)
	}
	return a.result, nil
}

// errUnused marks an answer with unusedParameters: the call ran without a parameter that it was given.
var errUnused = errors.New("unused parameters")

func busy(message string) *adapters.Error {
	return &adapters.Error{Kind: adapters.Busy, RetryAfter: retryAfter, Message: message}
}

func badReply(format string, args ...any) *adapters.Error {
	return adapters.Errorf(adapters.BadReply, format, args...)
}

// answer is an opened envelope.
type answer struct {
	// null: the whole body was the word null.
	null   bool
	fault  *apiError
	unused bool
	result json.RawMessage
}

// decodeAnswer opens the envelope of the request numbered id: result or error, never both or neither.
func decodeAnswer(body []byte, id int64) (answer, error) {
	if bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
		return answer{null: true}, nil
	}
	// The decoder would read bytes that are not UTF-8 as U+FFFD, and so one name as another.
	if !utf8.Valid(body) {
		return answer{}, badReply("the cluster's answer is not UTF-8")
	}
	envelope, err := object(body)
	if err != nil {
		return answer{}, badReply("the cluster's answer is not a JSON-RPC reply")
	}
	if got, want := string(envelope["id"]), strconv.FormatInt(id, 10); got != want && got != strconv.Quote(want) {
		return answer{}, badReply("the cluster's answer belongs to another request")
	}
	a := answer{result: envelope["result"], unused: !empty(envelope["unusedParameters"])}
	failed, succeeded := present(envelope["error"]), present(a.result)
	switch {
	case failed && succeeded:
		return answer{}, badReply("the cluster's answer is both a result and an error")
	case !failed && !succeeded:
		return answer{}, badReply("the cluster's answer is neither a result nor an error")
	case failed:
		if a.fault, err = decodeError(envelope["error"]); err != nil {
			return answer{}, err
		}
	}
	return a, nil
}

// present reports whether a member is there and not null.
func present(v json.RawMessage) bool { return len(v) > 0 && string(v) != "null" }

// empty reports whether a member is absent or holds nothing. The type of unusedParameters is documented as "object".
func empty(v json.RawMessage) bool {
	if !present(v) {
		return true
	}
	var b bytes.Buffer
	if json.Compact(&b, v) != nil {
		return false
	}
	switch b.String() {
	case "{}", "[]", `""`:
		return true
	}
	return false
}

// object decodes a JSON object by the exact spelling of its keys: encoding/json would put "userName" into "username". A
// key that comes twice is an error.
func object(data []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	out := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if _, twice := out[key]; !ok || twice {
			return nil, errors.New("a key comes twice")
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		out[key] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return out, nil
}

// apiError is the error member of an answer. Of its content only a name that looks like Element's own is kept; the
// message may echo the request, and the code is always 500.
type apiError struct {
	name   string
	denied bool
}

// Error returns the name.
func (f *apiError) Error() string { return f.name }

var errorName = regexp.MustCompile(`^x[A-Za-z0-9]{1,64}$`)

const (
	permissionDenied = "xPermissionDenied"
	unknownVersion   = "xUnknownAPIVersion"
)

func decodeError(raw json.RawMessage) (*apiError, error) {
	members, err := object(raw)
	if err != nil {
		return nil, badReply("the cluster's error cannot be read")
	}
	var name, message string
	if json.Unmarshal(members["name"], &name) != nil {
		return nil, badReply("the cluster's error has no name")
	}
	_ = json.Unmarshal(members["message"], &message) // one of any other type says nothing
	f := &apiError{name: name}
	if !errorName.MatchString(name) {
		f.name = "an error without a proper name"
	}
	// Some versions carry the word in the message only.
	f.denied = name == permissionDenied || strings.Contains(message, permissionDenied)
	return f, nil
}

// transient are the errors after which the vendor, or clients that know the product, repeat the request.
var transient = []string{
	"xDBVersionMismatch", "xNotPrimary", "xNotReadyForIO", "xDBConnectionLoss", "xDBOperationTimeout", "xDBSessionExpired",
	"xDBSessionMoved", "xDBNoServerResponse", "xDBClosing", "xDBInvalidState",
}

// harmless reports whether the error says that a request with effect e changed nothing. A node that is not the primary,
// or not ready, did not begin. A version mismatch refuses a single change; a delete of several sessions may have got
// half-way. The other errors of the internal database leave open whether it took the change.
func (f *apiError) harmless(e effect) bool {
	switch f.name {
	case "xNotPrimary", "xNotReadyForIO":
		return true
	case "xDBVersionMismatch":
		return e != endsMany
	}
	return e == reads
}

func (f *apiError) classify(method string, e effect) *adapters.Error {
	switch {
	case slices.Contains(transient, f.name):
		if f.harmless(e) {
			err := busy("the cluster asks to repeat the request: " + f.name)
			err.Err = f
			return err
		}
		return &adapters.Error{
			Kind: adapters.Uncertain, RetryAfter: retryAfter, Err: f,
			Message: "the cluster's database failed and may have taken the change: " + f.name,
		}
	case f.name == unknownVersion:
		return adapters.Wrap(adapters.Unreachable, f, "the cluster does not serve the API version it lists")
	case f.name == "xUnknownAPIMethod" || f.name == "xUnknownRPCMethod":
		return adapters.Wrap(adapters.Rejected, f, "the address does not offer %s: %s", method, notCapable)
	case f.denied:
		return adapters.Wrap(adapters.Denied, f, "the account may not call %s", method)
	}
	return adapters.Wrap(adapters.Rejected, &refusal{f}, "the cluster refuses %s: %s", method, f.name)
}

// refusal marks an error whose name tells nothing: a session that is gone is refused under a name nobody documents.
type refusal struct{ *apiError }

// Unwrap returns the cluster's error.
func (r *refusal) Unwrap() error { return r.apiError }

func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

func isUnknownVersion(err error) bool {
	var f *apiError
	return errors.As(err, &f) && f.name == unknownVersion
}

// decodeSessions reads the sessions member of a result. A session that comes twice is one session, and doubled says so;
// two that differ under one id are an error.
func decodeSessions(result json.RawMessage) (sessions []adapters.Session, doubled bool, err error) {
	members, err := object(result)
	if err != nil {
		return nil, false, badReply("the cluster's result is not an object")
	}
	var raw []json.RawMessage
	if !present(members["sessions"]) || json.Unmarshal(members["sessions"], &raw) != nil {
		return nil, false, badReply("the cluster's result has no list of sessions")
	}
	sessions = make([]adapters.Session, 0, len(raw))
	seen := make(map[string]int, len(raw))
	for _, r := range raw {
		x, err := decodeSession(r)
		if err != nil {
			return nil, false, err
		}
		if i, twice := seen[x.ID]; twice {
			if !same(sessions[i], x) {
				return nil, false, badReply("the cluster lists two sessions under one id")
			}
			doubled = true
			continue
		}
		seen[x.ID] = len(sessions)
		sessions = append(sessions, x)
	}
	return sessions, doubled, nil
}

func same(a, b adapters.Session) bool {
	return a.Username == b.Username && a.Provider == b.Provider && slices.Equal(a.Groups, b.Groups)
}

// decodeDeleted reads the session member of DeleteAuthSession's result: one object, not a list.
func decodeDeleted(result json.RawMessage) (adapters.Session, error) {
	members, err := object(result)
	if err != nil || !present(members["session"]) {
		return adapters.Session{}, badReply("the cluster's result names no session")
	}
	return decodeSession(members["session"])
}

// decodeSession reads an authSessionInfo. lastAccessTimeout is when the session ends if nobody uses it, not when it was
// last used.
func decodeSession(raw json.RawMessage) (adapters.Session, error) {
	malformed := badReply("the cluster lists a session that cannot be read")
	members, err := object(raw)
	if err != nil {
		return adapters.Session{}, malformed
	}
	var (
		x              adapters.Session
		method         string
		created, final string
		accessGroups   []string
		adminIDs       []int64
	)
	for _, m := range []struct {
		key  string
		into any
	}{
		{"sessionID", &x.ID}, {"username", &x.Username}, {"authMethod", &method}, {"accessGroupList", &accessGroups},
		{"clusterAdminIDs", &adminIDs}, {"sessionCreationTime", &created}, {"finalTimeout", &final},
	} {
		if v, ok := members[m.key]; ok && json.Unmarshal(v, m.into) != nil {
			return adapters.Session{}, malformed
		}
	}
	if x.ID == "" {
		return adapters.Session{}, malformed
	}
	x.Provider.Type = readMethod(method)
	for _, name := range accessGroups {
		x.Groups = append(x.Groups, adapters.Group{Kind: GroupAccess, Name: name})
	}
	for _, id := range adminIDs {
		x.Groups = append(x.Groups, adapters.Group{Kind: GroupClusterAdmin, Name: strconv.FormatInt(id, 10)})
	}
	// Times inform; one that cannot be read is left out.
	x.CreateTime, _ = time.Parse(time.RFC3339, created)
	x.ExpireTime, _ = time.Parse(time.RFC3339, final)
	return x, nil
}

// admin is what is looked at of a cluster administrator.
type admin struct {
	id     int64
	method string
	access []string
}

// decodeAdmins reads ListClusterAdmins' result.
func decodeAdmins(result json.RawMessage) ([]admin, error) {
	members, err := object(result)
	if err != nil {
		return nil, badReply("the cluster's result is not an object")
	}
	var raw []json.RawMessage
	if !present(members["clusterAdmins"]) || json.Unmarshal(members["clusterAdmins"], &raw) != nil {
		return nil, badReply("the cluster's result has no list of administrators")
	}
	admins := make([]admin, 0, len(raw))
	for _, r := range raw {
		m, err := object(r)
		var a admin
		var method string
		if err != nil || json.Unmarshal(m["clusterAdminID"], &a.id) != nil || json.Unmarshal(m["authMethod"], &method) != nil ||
			json.Unmarshal(m["access"], &a.access) != nil {
			return nil, badReply("the cluster lists an administrator that cannot be read")
		}
		a.method = readMethod(method)
		admins = append(admins, a)
	}
	return admins, nil
}

// decodeAccess reads the privileges in GetCurrentClusterAdmin's result.
func decodeAccess(result json.RawMessage) ([]string, error) {
	members, err := object(result)
	if err != nil {
		return nil, badReply("the cluster's result is not an object")
	}
	admin, err := object(members["clusterAdmin"])
	if err != nil {
		return nil, badReply("the cluster does not say who the account is")
	}
	var access []string
	if json.Unmarshal(admin["access"], &access) != nil {
		return nil, badReply("the cluster does not say what the account may do")
	}
	return access, nil
}

// decodeVersionInfo reads the software version in GetClusterVersionInfo's result; empty if it is not there.
func decodeVersionInfo(result json.RawMessage) string {
	members, err := object(result)
	if err != nil {
		return ""
	}
	var v string
	if json.Unmarshal(members["clusterVersion"], &v) != nil || !softwareVersion.MatchString(v) {
		return ""
	}
	return v
}

var (
	softwareVersion = regexp.MustCompile(`^[0-9][0-9A-Za-z._-]{0,63}$`)
	softwareWord    = regexp.MustCompile(`^[A-Za-z]{1,32}$`)
)

// version is an API version. It is kept as two numbers and never as a fraction: 12.10 is not 12.1.
type version struct{ major, minor int }

var (
	minVersion = version{12, 0}
	// probeVersions are where GetAPI is asked: a version that every cluster ever served, so that one that is too old can
	// say so, and, should that be gone one day, the first version that serves our purpose.
	probeVersions = []version{{1, 0}, minVersion}

	versionText = regexp.MustCompile(`^([0-9]{1,4})(?:\.([0-9]{1,4}))?$`)
)

// String is the version as a URL spells it.
func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v version) compare(x version) int {
	if v.major != x.major {
		return v.major - x.major
	}
	return v.minor - x.minor
}

func parseVersion(s string) (version, bool) {
	m := versionText.FindStringSubmatch(s)
	if m == nil {
		return version{}, false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2]) // 0 when it is absent
	return version{major, minor}, true
}

// decodeVersion reads a version written as a string or, by some clusters, as a number.
func decodeVersion(raw json.RawMessage) (version, bool) {
	s := string(raw)
	if strings.HasPrefix(s, `"`) && json.Unmarshal(raw, &s) != nil {
		return version{}, false
	}
	return parseVersion(s)
}

// api is what was negotiated: a version and, if the cluster tells, the methods it offers.
type api struct {
	version version
	methods map[string]bool
}

// offers reports whether the method may be called; without a list, calling tells.
func (a *api) offers(method string) bool { return a.methods == nil || a.methods[method] }

// decodeAPI chooses from GetAPI's result the highest version, 12.0 or later, that lists the session methods. The result
// has a member named after a version, usually the current one alone, with the names of its methods.
func decodeAPI(result json.RawMessage) (*api, error) {
	members, err := object(result)
	if err != nil {
		return nil, badReply("the cluster's result is not an object")
	}
	var raw []json.RawMessage
	if json.Unmarshal(members["supportedVersions"], &raw) != nil {
		return nil, badReply("the cluster does not list its API versions")
	}
	lists := map[version]map[string]bool{}
	for key, v := range members {
		ver, ok := parseVersion(key)
		var names []string
		if !ok || json.Unmarshal(v, &names) != nil || names == nil {
			continue
		}
		lists[ver] = map[string]bool{}
		for _, name := range names {
			lists[ver][name] = true
		}
	}
	current, known := decodeVersion(members["currentVersion"])
	var capable []version
	for _, r := range raw {
		v, ok := decodeVersion(r)
		if ok && v.compare(minVersion) >= 0 {
			capable = append(capable, v)
		}
	}
	if len(capable) == 0 {
		return nil, adapters.Errorf(adapters.Rejected, "the cluster has no API version 12.0 or later, and so no session methods")
	}
	slices.SortFunc(capable, func(a, b version) int { return b.compare(a) })
	for _, v := range capable {
		methods := lists[v]
		// Methods are added from version to version: the current version's list is right for those up to it, as far as the
		// session methods are concerned, which all begin with 12.0.
		if methods == nil && known && v.compare(current) <= 0 {
			methods = lists[current]
		}
		if methods == nil || methods[deleteByUsername] {
			return &api{version: v, methods: methods}, nil
		}
	}
	return nil, adapters.Errorf(adapters.Rejected, "the address does not offer %s: %s", deleteByUsername, notCapable)
}

// negotiated returns the API in use, asking the cluster the first time.
func (c *client) negotiated(ctx context.Context) (*api, error) {
	c.mu.Lock()
	a := c.api
	c.mu.Unlock()
	if a != nil {
		return a, nil
	}
	a, err := c.negotiate(ctx, func(httpclient.Reply, error) {})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.api = a
	return a, nil
}

// negotiate asks the cluster what it offers, and shows the HTTP exchange.
func (c *client) negotiate(ctx context.Context, see func(httpclient.Reply, error)) (*api, error) {
	for _, v := range probeVersions {
		result, err := c.sendSeen(ctx, v, getAPI, none{}, reads, see)
		if isUnknownVersion(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return decodeAPI(result)
	}
	return nil, adapters.Errorf(adapters.Rejected, "there is no Element API at the address")
}

// forget drops what was negotiated, unless somebody has negotiated anew meanwhile.
func (c *client) forget(a *api) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api == a {
		c.api = nil
	}
}

// list invokes a method that returns sessions.
func (c *client) list(ctx context.Context, method string, params any) ([]adapters.Session, error) {
	sessions, _, err := c.lists(ctx, method, params)
	return sessions, err
}

// lists is list; doubled is true if a session comes twice: such a list may have left out another.
func (c *client) lists(ctx context.Context, method string, params any) (sessions []adapters.Session, doubled bool, err error) {
	result, err := c.call(ctx, method, params, reads)
	if err != nil {
		return nil, false, err
	}
	return decodeSessions(result)
}
