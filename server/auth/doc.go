// Package auth finds out who calls: by an API key, an OpenID Connect token or a client certificate. What callers may do
// is the policy's to say.
//
// [Authenticator] judges what a call brought, [Credentials], and names the caller or gives an [Error], whose cause is for
// the log and the audit only: to callers all refusals look the same. Every call is judged anew, also those of one
// connection, so that a key that expires, a certificate that expires and an authority that is no longer trusted count at
// once.
//
// What can be wrong is decided in favour of refusing. A credential that cannot be judged now (the issuer's keys cannot be
// fetched) is neither accepted nor called wrong: [Error.RetryAfter] says when to try again.
//
//   - apikey.go: API keys, which are kept as hashes.
//   - oidc.go: tokens; keyset.go: the keys of their issuers, their rotation and outages.
//   - mtls.go: client certificates and the names in them.
//   - tls.go: the gateway's own certificate and its clients' authorities, which follow their files.
package auth
