// Package adapters is the contract between the engine and the systems whose sessions it ends.
//
// The engine sees only this package, and so do the adapters: the engine knows no upstream, an adapter knows no
// journal, no caller and no protobuf. An adapter is given a resolved [Selector], which is written in its target's own
// names, and answers with a [Result]. It keeps nothing in memory that matters: how far it got is in [Pending.Resume],
// so that another process can go on after a crash.
//
// The order of importance is: never end a session the selector does not match, never lose work, never claim what the
// target did not confirm. An adapter that cannot be exact refuses with [Unsupported].
package adapters
