// Package kibanatest is an emulated Kibana: the session invalidation API over a real table of sessions, with the traps of
// the real one.
//
// It follows Elastic's documentation and, where that is silent, the behaviour of Kibana's public source code:
//
//   - the API: https://www.elastic.co/guide/en/kibana/current/session-management-api-invalidate.html
//   - its schema and privilege: elastic/kibana, security plugin, server/routes/session_management/invalidate.ts and
//     invalidate.test.ts
//   - what a query matches: the same plugin, server/session_management/session.ts and session_index.ts; delayed
//     visibility since 8.8: https://github.com/elastic/kibana/pull/151800
//   - a conflicting deletion: https://www.elastic.co/guide/en/elasticsearch/reference/current/docs-delete-by-query.html
//   - headers and restricted routes: core, http/server-internal/src/lifecycle_handlers.ts; overload: core,
//     http/rate-limiter-internal/src/service.ts; start-up: core, http/server-internal/src/http_service.ts
//   - authentication and its refusals: the security plugin, server/authentication/authentication_service.ts and
//     providers/http.ts; provider names: server/config.ts
//   - providers on the login page: the same plugin, server/routes/views/login.ts
//
// Above all it takes an empty username or provider name for an absent one, as Kibana does.
package kibanatest
