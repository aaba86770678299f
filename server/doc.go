// Package server is the process: it puts configuration, journal, engine and API together ([Open]), listens, and sees to
// it that everything ends in order ([Server.Run]).
//
// It listens at three addresses: gRPC (with health and reflection), HTTP (the REST API, which comes back in through an
// in-memory gRPC connection and the same interceptors), and admin (liveness and readiness).
package server
