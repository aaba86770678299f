package main

import (
	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/element"
	"github.com/endsession/endsession/adapters/kibana"
)

// registry returns the kinds of target, by the key that a target's configuration uses. It is the only place that knows
// the concrete adapters; a new one is one line here.
func registry() map[string]adapters.Type {
	types := map[string]adapters.Type{}
	for _, t := range []adapters.Type{
		bigiq.Type(),
		kibana.Type(),
		element.Type(),
	} {
		types[t.Kind] = t
	}
	return types
}
