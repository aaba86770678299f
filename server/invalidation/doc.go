// Package invalidation is the heart of endsession: what an invalidation is, the states it goes through, and the engine
// that drives every accepted one to a final state.
//
// It knows targets only as [adapters.Adapter] values, the journal only as the [Store] interface, and names of people
// only through a [Resolver]. Protobuf, SQL and upstream wire formats stay outside.
//
// Read selector.go and invalidation.go for the words, state.go for the state functions, store.go for the transactions,
// plan.go and accept.go for acceptance, worker.go and settle.go for what happens to a run afterwards.
package invalidation
