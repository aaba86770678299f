// Package api serves the gRPC service endsession.v1.SessionService.
//
// It only translates, between protobuf and the types of package invalidation, and refuses what is not a well-formed
// request of this version of the API: a message with an unknown field at any depth, one that breaks a rule of the
// contract, or bytes that are no message at all never reach the engine. What a misspelt or newer client asks must not
// become a wider kill. Decisions are the engine's.
//
// [NewServer] builds a gRPC server for the network, [NewInProcess] a connection within the process for the REST gateway.
// Behind both is the same chain of interceptors, so that both ways in are judged by the same code.
//
// Read strict.go for what is refused, errors.go for how errors reach callers, request.go and reply.go for the
// translation.
package api
