// Package pgtest starts throw-away PostgreSQL servers for tests: real ones, because what the journal relies on (locks,
// snapshots, lost connections, a server that is killed) cannot be imitated.
//
// A test binary calls [Main] and gets one server for most of its tests, each in a schema of its own ([Schema]). Tests that
// kill or freeze the server start their own ([New]). A server ends with the test binary, also when that is killed.
//
// PostgreSQL comes from the PATH or from /usr/lib/postgresql. Where it is missing it is installed if that needs no question
// (as root, on a machine with apt); otherwise the tests are skipped, or, with CI=true, fail.
package pgtest
