// Package httpclient is the one HTTP client of all adapters: TLS, timeouts, bounded bodies, no redirects, and the
// classification of everything that can go wrong into the kinds of [adapters.Error].
//
// It decides, once for all products, the question that matters most after a failure: can the request have had an
// effect? A request marked as mutating that was written to the connection and got no usable answer is
// [adapters.Uncertain]; one that never left is [adapters.Unreachable]. An upstream's body never gets into an error:
// products echo requests, and with them names and secrets, back to the sender.
package httpclient
