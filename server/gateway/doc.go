// Package gateway serves the REST form of the API: JSON over HTTP, translated by grpc-gateway into gRPC calls. It makes them
// over a connection, like any client, so a REST call passes the same interceptors; it never calls handlers.
//
// What it adds is strictness about HTTP and JSON, where the usual leniency would let a misspelt request become a wider
// one: see [New] for what is refused before a call is made. json.go judges bodies, query.go query strings, guard.go
// everything around them; errors.go says how refusals look; watch.go streams.
package gateway
