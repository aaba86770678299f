package bigiq_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/secret"
)

const tasksPath = "/mgmt/cm/access/tasks/kill-sessions"

// wholeLab is a scope that reaches every session of [bigiqtest.Lab].
func wholeLab() bigiq.Scope {
	return bigiq.Scope{Clusters: []string{"BlueCluster"}, AccessGroups: []string{"TestGroup1", "TestGroup2"}, Devices: []string{bigiqtest.Lone}}
}

func config(s *bigiqtest.Server) *bigiq.Config {
	username, password := s.Credentials()
	return &bigiq.Config{
		URL: "https://bigiq.example", Username: username, Password: secret.New(password),
		Scope: bigiq.ScopeConfig{Scope: wholeLab()},
	}
}

// target is an emulator and an adapter that talks to it.
type target struct {
	*bigiqtest.Server
	adapters.Adapter
	conf   *bigiq.Config
	faults *emulator.Faults
	sent   *emulator.Recorder
	mapped adapters.Mapped
}

func newTarget(t testing.TB, o bigiqtest.Options, change ...func(*bigiq.Config)) *target {
	t.Helper()
	x := &target{Server: bigiqtest.New(o)}
	x.conf = config(x.Server)
	for _, f := range change {
		f(x.conf)
	}
	x.faults = emulator.NewFaults(x.Transport())
	x.sent = emulator.NewRecorder(x.faults)
	x.reopen(t)
	return x
}

// reopen is what a new process does.
func (x *target) reopen(t testing.TB) {
	t.Helper()
	a, err := x.conf.Open(adapters.Deps{Target: "apm", Transport: x.sent, Logger: slog.New(slog.DiscardHandler), Mapped: x.mapped})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	x.Adapter = a
}

// populate signs alice and bob in everywhere.
func (x *target) populate() {
	for _, place := range bigiqtest.Places(bigiqtest.Lab()) {
		for _, name := range []string{"alice", "bob"} {
			place.Username = name
			x.SignIn(place)
		}
	}
}

// run is a run as the engine would do it.
type run struct {
	result   adapters.Result // the last call's
	warnings []adapters.Warning
	calls    int
	waited   []time.Duration
	polls    []bool // whether the next call was said to be only a poll
	resume   json.RawMessage
}

// drive calls Invalidate until it completes or fails.
func (x *target) drive(t testing.TB, r *run, sel adapters.Selector) error {
	t.Helper()
	for range 500 {
		res, err := x.Invalidate(t.Context(), adapters.Request{Selector: sel, Resume: r.resume})
		r.result = res
		r.calls++
		r.warnings = append(r.warnings, res.Warnings...)
		if res.Pending != nil {
			r.resume = res.Pending.Resume
		}
		if err != nil || res.Pending == nil {
			return err
		}
		r.waited = append(r.waited, res.Pending.After)
		r.polls = append(r.polls, res.Pending.Poll)
		time.Sleep(res.Pending.After)
	}
	t.Fatalf("not complete after %d calls", r.calls)
	return nil
}

func (x *target) must(t testing.TB, sel adapters.Selector) *run {
	t.Helper()
	r := &run{}
	if err := x.drive(t, r, sel); err != nil {
		t.Fatalf("invalidate %+v: %v", sel, err)
	}
	return r
}

// posts are the bodies of the tasks that were asked for.
func (x *target) posts() []string {
	var bodies []string
	for _, r := range x.sent.Requests() {
		if r.Method == "POST" && r.Path == tasksPath {
			bodies = append(bodies, string(r.Body))
		}
	}
	return bodies
}

func (x *target) count(method, prefix string) int {
	n := 0
	for _, r := range x.sent.Requests() {
		if r.Method == method && strings.HasPrefix(r.Path, prefix) {
			n++
		}
	}
	return n
}

// survivors are who is still signed in, as name@device.
func survivors(xs []adapters.Session) []string {
	names := []string{}
	for _, x := range xs {
		names = append(names, x.Username+"@"+x.Device)
	}
	slices.Sort(names)
	return names
}

func byUser(names ...string) adapters.Selector {
	s := adapters.Selector{By: adapters.ByUser}
	for _, n := range names {
		s.Users = append(s.Users, adapters.User{Name: n})
	}
	return s
}

func accessGroup(name string) adapters.Provider {
	return adapters.Provider{Type: "access_group", Name: name}
}
func group(kind, name string) adapters.Group { return adapters.Group{Kind: kind, Name: name} }

func warned(ws []adapters.Warning, code adapters.Reason) bool {
	return slices.ContainsFunc(ws, func(w adapters.Warning) bool { return w.Code == code })
}

// wantError checks kind and reason.
func wantError(t testing.TB, err error, kind adapters.Kind, why adapters.Reason) {
	t.Helper()
	if adapters.KindOf(err) != kind {
		t.Fatalf("error %v is of kind %v, want %v", err, adapters.KindOf(err), kind)
	}
	var ae *adapters.Error
	if errors.As(err, &ae) && why != "" && ae.Reason() != why {
		t.Fatalf("error %v has reason %s, want %s", err, ae.Reason(), why)
	}
}

func background() context.Context { return context.Background() }
