// Package emulator holds what the emulated targets share: an in-memory transport, faults, a recorder, a TLS listener and
// small answer writers.
//
// An emulator is an [net/http.Handler] over a real table of sessions; its own package knows the product. Tests reach it
// through [Transport], which opens no socket, so that virtual time works (a goroutine that waits on a socket stops the
// clock of a testing/synctest bubble). It still carries each request as bytes and calls the httptrace hooks as
// net/http's transport does: a client that decides by them whether a request was sent sees what it would see on a wire.
// People reach an emulator through [ServeTLS].
//
// [Faults] and [Recorder] wrap a transport. The usual order, outermost first, is recorder, faults, transport: what the
// client tried to send is recorded, whatever becomes of it.
//
//	faults := emulator.NewFaults(emulator.Transport(handler))
//	faults.Add(emulator.Rule{Skip: 2, Times: 1, Fault: emulator.Status(http.StatusBadGateway).After()})
//	recorder := emulator.NewRecorder(faults)
package emulator
