// Package adaptertest is the conformance suite that every adapter passes with its emulator.
//
// Its oracle is who is still signed in: after a run, survivors = seeded − matched, where matched is what
// [adapters.Selector.Match] says. An adapter is done when [Run] passes. A case that the suite misses belongs here, so
// that every adapter gets it.
package adaptertest

import (
	"net/http"
	"testing"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
)

// Harness is what an adapter's test hands to [Run].
type Harness struct {
	Type adapters.Type

	// Places are the sorts of session the emulated target can hold: provider, groups and device, without id and user.
	// The suite crosses them with its user names.
	Places []adapters.Session

	// Providers and Groups are the values to build selectors of, in the target's words; each should cover some of the
	// places and not others. Types of provider without a name belong in it too, where the target knows them.
	Providers []adapters.Provider
	Groups    []adapters.Group

	// Secrets are the credentials in use; the suite looks for them in every error, log line, result and preview.
	Secrets []string

	// Start makes a fresh emulator without sessions.
	Start func(t testing.TB) Emulator

	// Open makes an adapter that talks to e through transport, which the suite wraps around e.Transport to inject faults.
	Open func(t testing.TB, e Emulator, deps adapters.Deps) adapters.Adapter

	// Mutates tells of every upstream request whether it can end a session. It is the adapter's test's own statement of
	// the target's API, made without looking at how the adapter marks its calls: the suite checks that the fence is
	// asked before each of these, and that nothing of the kind is sent where nothing must change. Logins, lists, polls
	// and probes are not of the kind. Body may be read; r.Body must not.
	Mutates func(r *http.Request, body []byte) bool

	// Exact tells which sessions a selector that Supports accepts must end, for targets where this is less than
	// Selector.Match says because of a documented limit. Nil: Match itself. It can only ever narrow.
	Exact func(sel adapters.Selector, x adapters.Session) bool

	// Undetected are the lies of which the target gives no sign, with the verification that a run then ends with although
	// its sessions are there, or others' have ended: it claims what the target claims, and the target's page under
	// docs/targets says what that is worth. The suite wants every other lie found out, and these not.
	Undetected map[emulator.Lie]adapters.Verification
}

// Emulator is an emulated target.
type Emulator interface {
	// SignIn adds a session and returns it as the target holds it, with an id if x has none.
	SignIn(x adapters.Session) adapters.Session
	// Sessions returns who is still signed in.
	Sessions() []adapters.Session
	// SetLie says how the target lies from now on, and reports whether this target can: where it tells nothing of the
	// kind, there is nothing to lie about.
	SetLie(l emulator.Lie) (can bool)
	// Transport reaches the emulator in memory, also inside a synctest bubble.
	Transport() http.RoundTripper
	// Handler serves the emulator over a real listener.
	Handler() http.Handler
}
