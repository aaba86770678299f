package adapters

import (
	"context"
	"log/slog"
	"net/http"
)

// Type describes one kind of target to the configuration, the identity resolver and the engine. The registry in
// cmd/endsession holds one for each adapter.
type Type struct {
	// Kind is the key in a target's configuration and the word in the API: "kibana".
	Kind string
	// Criteria is the closed set of combinations that a resolved selector may use. What is not here is unsupported.
	Criteria []Criteria
	// DefaultProviders translates a provider type of the API, given without a name, for targets that do not map it.
	DefaultProviders map[string][]Provider
	// ListsProviders says that a provider given by name and not mapped may be tried with MustBeListed set, under the
	// types of DefaultProviders.
	ListsProviders bool
	// ListsSessions says that the target lists what a selector matches before it ends any of it, whatever the selector, and
	// that the adapter calls [Vet] in between.
	ListsSessions bool
	// NewConfig returns a pointer to a zero configuration of the target, with yaml tags and doc comments; it is decoded
	// strictly: an unknown key is an error with its line. What stands under a key that ends in _file is a path, and is
	// handed over relative to the working directory, not to the configuration file's.
	NewConfig func() Config
	// NewProviders returns a pointer to a zero value of what a target writes under providers.<type>[/<name>]; nil if
	// the kind has no providers.
	NewProviders func() ProviderMapping
	// NewGroups returns a pointer to a zero value of what a target writes under groups.<name>; nil if the kind knows no
	// groups of its own. The keys "directory" and "max_members" are the identity resolver's and never reach it.
	NewGroups func() GroupMapping
}

// Supports reports whether c is one of the combinations the type declares.
func (t Type) Supports(c Criteria) bool {
	for _, x := range t.Criteria {
		if x == c {
			return true
		}
	}
	return false
}

// Config is the part of a target's configuration that belongs to its kind.
type Config interface {
	// Validate returns every problem, joined, each naming the key it concerns.
	Validate() error
	// Endpoint is the canonical base URL, with the tenant if one URL serves several. A run's fingerprint is made of it:
	// when it changes, waiting runs end with TARGET_CHANGED instead of killing somewhere else.
	Endpoint() string
	// Account is the user name of the gateway's own account at the target, which is always protected; empty if there
	// is none or it is not known.
	Account() string
	// Open makes the adapter. It does no I/O beyond reading the files the configuration names.
	Open(deps Deps) (Adapter, error)
}

// ProviderMapping is what a target's configuration says a provider of the API means there.
type ProviderMapping interface {
	// Providers returns the target's own providers; an empty mapping is an error.
	Providers() ([]Provider, error)
}

// GroupMapping is what a target's configuration says a group of the API means there.
type GroupMapping interface {
	// Groups returns the target's own groups; an empty mapping is an error.
	Groups() ([]Group, error)
}

// Deps are what every adapter is given.
type Deps struct {
	// Target is the target's name, for logs.
	Target string
	// Transport replaces the network in tests; nil means TLS over TCP as configured.
	Transport http.RoundTripper
	// Wrap goes around the transport, whichever it is, to see every request; nil means nothing does.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Logger is never nil.
	Logger *slog.Logger
	// Limit waits until one more upstream request may be sent; nil means no limit.
	Limit func(context.Context) error
	// Mapped are the target's own providers and groups that the configuration maps others to. A probe looks them up: a
	// name that the target does not know ends nothing, and may look like success.
	Mapped Mapped
}

// Mapped is what a target's configuration maps providers and groups to, each once.
type Mapped struct {
	Providers []Provider
	Groups    []Group
}
