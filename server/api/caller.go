package api

import (
	"context"

	"github.com/endsession/endsession/server/invalidation"
)

type callerKey struct{}

// authenticate finds out who calls, before anything else of the request is looked at. There is no authentication yet,
// so everybody is the anonymous caller, and package server lets nobody in but through loopback addresses.
func authenticate(context.Context) (invalidation.Caller, error) {
	return invalidation.Caller{Kind: "anonymous", Name: "anonymous"}, nil
}

func withCaller(ctx context.Context, c invalidation.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns who calls. Every context that a handler sees has a caller.
func callerOf(ctx context.Context) invalidation.Caller {
	return ctx.Value(callerKey{}).(invalidation.Caller)
}
