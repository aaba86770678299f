// Package bigiqtest emulates the part of an F5 BIG-IQ Centralized Management system that ends BIG-IP APM sessions.
//
// It holds BIG-IPs with clusters and access groups, and a table of sessions that kill tasks really empty; so a test can
// ask who is still signed in. Answers follow these documents, and each handler says which:
//
//   - "Kill active access sessions", BIG-IQ how-to guide (below: guide)
//   - "BIG-IQ APM kill active access sessions", API reference for 5.2 (below: reference)
//   - "Terminating APM Sessions", BIG-IQ how-to guide (below: how-to)
//   - https://clouddocs.f5.com/products/big-iq/mgmt-api/v7.1.0/ApiReferences/bigiq_public_api_ref/r_auth_login.html and
//     r_auth_exchange.html beside it (below: login, exchange)
//
// It reproduces what makes the product dangerous: a passive unit finishes successfully and ends nothing; so does a name
// that BIG-IQ does not know; KILL_ALL_SESSIONS with a user ends everybody's sessions; scopes add up; a refused task
// leaves an id behind in the error; field names are case-sensitive, and "username" is somebody else; links lead to
// localhost; totalItems is wrong; tokens live five minutes; HTTP Basic authentication is off and says so in HTML.
// [Quirks] turn on what only some systems do. Where no document tells what happens the handler says so, and does what is
// least convenient.
package bigiqtest
