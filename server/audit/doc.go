// Package audit is what makes the journal's events evidence: it hashes them into chains, and tells whether a chain is still
// what was written.
//
// # Chains
//
// A process writes its events into chains of its own, so that no two processes wait for each other. Within a chain events
// are numbered from 1 without gaps, and each carries the hash of the one before. The first is "chain.started"; it names the
// key. From time to time a process writes "chain.linked", with the heads of the chains that others, or processes before it,
// have written: whoever cuts off the end of a chain, or takes it away, would have to change these too.
//
// # What is hashed
//
// The hash of an event is HMAC-SHA-256 under the chain's key, or plain SHA-256 if there is none, of
//
//	"endsession audit event 1\n"
//	chain                          text
//	sequence number                8 bytes, big endian
//	hash of the event before       32 bytes; zeros for the first
//	time, microseconds since 1970  8 bytes, big endian, two's complement
//	type                           text
//	kind and name of the caller    text, text
//	invalidation's ID              text, empty if none
//	target                         text, empty if none
//	data                           text, the JSON byte by byte as it is kept; empty if none
//
// where a text is its length in bytes (8 bytes, big endian) followed by these: no two events have the same encoding.
// A checkpoint's code is made the same way: see [Checkpoint].
//
// A key's ID is the first 8 bytes, in hexadecimal digits, of the SHA-256 of "endsession audit key 1\n" and the key.
//
// # What it proves
//
// With a key, whoever can write to the database but does not have the key can neither change, insert, reorder nor remove an
// event that others follow, nor one that is linked to, without [Verify] finding it. What it cannot prove: that the end of a
// chain that nothing links to yet was not cut off, unless somebody kept the heads that Verify printed; that events were
// written at all; and anything against somebody who has the key. Without a key, whoever can write to the database can also
// hash again what he has changed.
//
// How events are kept is for the stores to say; this package does no I/O.
package audit
