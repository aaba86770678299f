// Package slapdtest starts throw-away OpenLDAP servers for tests: real ones, because what a directory's answers mean
// (what it takes for equal, when it cuts a search short, what it hides) cannot be imitated by whoever wrote the client.
//
// A server listens on a port of its own, with and without TLS, keeps its data in a temporary folder, and ends with the
// test, also when the test is killed. It is slow to nothing: a test may have one for itself.
//
// slapd comes from the PATH or from /usr/sbin. Where it is missing it is installed if that needs no question (as root, on a
// machine with apt); otherwise the tests are skipped, or, with CI=true, fail.
package slapdtest
