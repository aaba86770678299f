// Package postgres keeps the journal in PostgreSQL, which is the only thing that replicas of the gateway share.
//
// Every change is one statement, or one pipelined batch, that the server carries out without waiting for the client: no
// lock outlives a client that is frozen or killed, and a change costs one round trip. A run is claimed with SKIP LOCKED and
// worked on under a lease with a token; all times that decide about ownership are the server's clock.
//
// Locks are taken in one order by everybody: runs (by invalidation and index), then invalidations (by ID). A claim skips
// runs that are locked, so it waits for nobody while others wait for it.
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
// Read migrations/ for the schema, session.go for what every transaction has in common, accept.go to cancel.go for the
// transactions, read.go for the queries, notify.go for the notifications, slots.go for limits that replicas share.
package postgres
