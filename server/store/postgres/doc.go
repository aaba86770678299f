// Package postgres keeps the journal in PostgreSQL, which is the only thing that replicas of the gateway share.
//
// Every change is one statement or one pipelined batch that the server carries out without waiting for the client: no
// lock outlives a client that is frozen or killed, and a change costs one round trip. A run is claimed with SKIP LOCKED and
// worked on under a lease with a token; all times that decide about ownership are the server's clock.
//
// Locks are taken in one order by everybody: request ids, runs (by invalidation and index), then invalidations (by ID). A
// claim skips runs that are locked, so it waits for nobody while others wait for it.
//
// # Flights
//
// Acceptances and answers share transactions: what a transaction costs the server, in planning, starting the executor,
// triggers, messages and the fsync, is mostly the same for one change and for a hundred. While one such flight is in the air,
// changes queue up on the ground and go together with the next. With nothing in the air a change goes at once; only an answer
// that is not the last of its invalidation waits half a millisecond for the others. Statements are set-based, and audit
// events of a flight go into one chain. A second flight departs while the first is in the air if there is enough to carry,
// and others if those take long.
//
// A flight bets that all its changes can be made. If the server finds a request id taken, a lease lost or a transition
// illegal, it makes none of them and says which it was (function blame): the others fly again without these, whose callers
// look for the reason. If the server fails otherwise (a check, a lock that is not released), each change is made alone, so
// that every caller gets the error that is his own. A flight waits for locks only a short while: who hangs in the middle of a
// change holds up nobody but those who want the same invalidation.
//
// A caller who gives up on the ground has changed nothing, for certain. Once in the air, the end is waited for.
//
// # Notifications
//
// A change is told to other replicas by NOTIFY, but not in the changing transaction. PostgreSQL lets one transaction that
// notifies commit at a time, for the whole database and with its fsync inside: measured with fsync on, eight connections
// fell from 2,700 commits a second to 11, sixty-four from 6,600 to 110. A full queue of notifications would also make
// changes fail. So each process tells what it has committed in small transactions afterwards, in batches. What a process
// that dies has not told any more is made good by the others: they see it vanish from the holders of an advisory lock and
// take it that anything may have changed ([invalidation.AnyChange]), as they do after a lost listening connection.
//
// # A lost answer
//
// When a connection breaks after a change was sent, whether it was committed is not known to the client. For an acceptance
// it is found out on a new connection: once the old connection's server process is gone, what is not there will never be.
// Only if that is not possible, the error is [invalidation.ErrCommitUnknown].
//
// # What it needs
//
// PostgreSQL 13 or later, reached directly: a pooler that shares connections between clients breaks LISTEN, prepared
// statements and the look-up above. The role owns the schema that comes first in its search path; nothing else is in there.
//
// Read migrations/ for the schema, session.go for what every transaction has in common, flight.go for how they are shared,
// accept.go to cancel.go for the changes, read.go for the queries, notify.go for the notifications, slots.go for limits that replicas share.
package postgres
