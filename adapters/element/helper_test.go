package element_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/secret"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const url = "https://mvip.example"

// cluster is an emulated cluster whose traffic can be broken and is recorded.
type cluster struct {
	*elementtest.Server
	faults *emulator.Faults
	rec    *emulator.Recorder
	mapped adapters.Mapped
	// spoil changes the answers to a method, if it is not nil.
	spoil func(method string, answer []byte) []byte
}

func start(o elementtest.Options) *cluster {
	c := &cluster{Server: elementtest.New(o)}
	c.faults = emulator.NewFaults(roundTripper(func(req *http.Request) (*http.Response, error) {
		method := methodOf(emulator.Body(req))
		resp, err := c.Server.Transport().RoundTrip(req)
		if err != nil || c.spoil == nil {
			return resp, err
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(c.spoil(method, b)))
		return resp, nil
	}))
	c.rec = emulator.NewRecorder(c.faults)
	return c
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func config() element.Config {
	return element.Config{URL: url, Username: elementtest.Username, Password: secret.New(elementtest.Password)}
}

// open makes an adapter as a new process would.
func (c *cluster) open(t testing.TB) adapters.Adapter {
	t.Helper()
	conf := config()
	a, err := conf.Open(adapters.Deps{Target: "storage", Transport: c.rec, Logger: slog.New(slog.DiscardHandler), Mapped: c.mapped})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// in signs somebody in; groups are names of access groups, or numbers of cluster administrators.
func (c *cluster) in(method, username string, groups ...string) adapters.Session {
	x := adapters.Session{Username: username, Provider: adapters.Provider{Type: method}}
	for _, g := range groups {
		kind := element.GroupAccess
		if strings.Trim(g, "0123456789") == "" {
			kind = element.GroupClusterAdmin
		}
		x.Groups = append(x.Groups, adapters.Group{Kind: kind, Name: g})
	}
	return c.SignIn(x)
}

// alive reports whether a session is still there.
func (c *cluster) alive(x adapters.Session) bool {
	return slices.ContainsFunc(c.Sessions(), func(y adapters.Session) bool { return y.ID == x.ID })
}

// methods are those asked for, in order.
func (c *cluster) methods() []string {
	var out []string
	for _, r := range c.rec.Requests() {
		out = append(out, methodOf(r.Body))
	}
	return out
}

// deletes is the number of requests that can end a session.
func (c *cluster) deletes() int {
	n := 0
	for _, m := range c.methods() {
		if strings.HasPrefix(m, "Delete") {
			n++
		}
	}
	return n
}

func methodOf(body []byte) string {
	var r struct {
		Method string `json:"method"`
	}
	_ = json.Unmarshal(body, &r)
	return r.Method
}

// on picks the requests for a method.
func on(method string) func(*http.Request) bool {
	return func(r *http.Request) bool { return methodOf(emulator.Body(r)) == method }
}

// call makes one call of Invalidate.
func call(t testing.TB, a adapters.Adapter, sel adapters.Selector) (adapters.Result, error) {
	t.Helper()
	return a.Invalidate(t.Context(), adapters.Request{Selector: sel})
}

// complete makes one call that must complete the run.
func complete(t testing.TB, a adapters.Adapter, sel adapters.Selector) adapters.Result {
	t.Helper()
	res, err := call(t, a, sel)
	if err != nil || res.Pending != nil {
		t.Fatalf("invalidate %+v: pending %v, error %v, want a complete run", sel, res.Pending, err)
	}
	return res
}

func warned(ws []adapters.Warning, code adapters.Reason) bool {
	return slices.ContainsFunc(ws, func(w adapters.Warning) bool { return w.Code == code })
}

func wantKind(t testing.TB, err error, want adapters.Kind) {
	t.Helper()
	if got := adapters.KindOf(err); got != want {
		t.Errorf("error %v is of kind %v, want %v", err, got, want)
	}
}

// asError returns the adapter's error in err, which must be one.
func asError(t testing.TB, err error) *adapters.Error {
	t.Helper()
	var e *adapters.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v is no adapters.Error", err)
	}
	return e
}

func user(names ...string) adapters.Selector {
	sel := adapters.Selector{By: adapters.ByUser}
	for _, n := range names {
		sel.Users = append(sel.Users, adapters.User{Name: n})
	}
	return sel
}

func userAt(name, method string) adapters.Selector {
	sel := user(name)
	sel.By |= adapters.ByProvider
	sel.Providers = []adapters.Provider{{Type: method}}
	return sel
}

func accessGroup(names ...string) adapters.Selector {
	sel := adapters.Selector{By: adapters.ByGroup}
	for _, n := range names {
		sel.Groups = append(sel.Groups, adapters.Group{Kind: element.GroupAccess, Name: n})
	}
	return sel
}

func admins(ids ...string) adapters.Selector {
	sel := adapters.Selector{By: adapters.ByGroup}
	for _, id := range ids {
		sel.Groups = append(sel.Groups, adapters.Group{Kind: element.GroupClusterAdmin, Name: id})
	}
	return sel
}

func sessions(xs ...adapters.Session) adapters.Selector {
	sel := adapters.Selector{By: adapters.BySessions}
	for _, x := range xs {
		sel.Sessions = append(sel.Sessions, x.Key())
	}
	return sel
}

var everybody = adapters.Selector{By: adapters.All}
