// Package sqlite keeps the journal in one SQLite file: the default store, with nothing to set up.
//
// One process writes, which a lock file beside the database ensures; others may read, with the sqlite3 shell for example.
// Within the process one goroutine does all the writing ([writer]): what callers ask for meanwhile becomes one
// transaction with one fsync, each change in a savepoint of its own. A few others read. Every connection belongs to one
// goroutine, and callers wait for an answer only as long as their context and [Options.Timeout] allow: a disk that hangs
// costs these goroutines and nobody else.
//
// The driver is used through database/sql/driver: a pool would put its locks between the goroutines and the connections
// that belong to them anyway, and commits could not be waited for with a bound.
//
// Read migrations/ for the schema, accept.go to cancel.go for the transactions, read.go for the queries.
package sqlite
