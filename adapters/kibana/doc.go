// Package kibana ends sessions of Kibana through its session invalidation API, POST
// /api/security/session/_invalidate (Kibana 7.13 and later):
// https://www.elastic.co/guide/en/kibana/current/session-management-api-invalidate.html
//
// # What Kibana can match
//
// Everything ("match": "all"), or a query: a provider type, which is required, with a provider name, a username, or
// both. Comparison is exact. A user without a provider is therefore one query for each provider type that owns sessions.
// Groups, roles and single sessions cannot be matched: session ids never leave Kibana.
//
// # What it does to careless clients
//
// An empty username or provider name passes Kibana's validation and then counts as absent, which ends every session of
// the provider type. The planner refuses empty names, and the bodies are distinct types in which nothing is optional:
// no omitted field can widen a query.
//
// A wrong name, type or spelling is no error but a total of 0. Types are checked against the closed list of those that
// own sessions, and names that the configuration does not vouch for are looked up in Kibana's own list first.
//
// From 8.8 on, Kibana does not wait for Elasticsearch to make a new session searchable, so that sessions of the last
// second are missed (https://github.com/elastic/kibana/pull/151800). Every run is therefore at least two passes over
// the same queries, more than one refresh interval apart, and is complete when a whole repeated pass ends nothing.
// That is also the only confirmation there is, for Kibana cannot list sessions.
//
// Whatever Elasticsearch refuses arrives as an opaque 500, also after a part has been deleted: the outcome is
// uncertain, and asking again is safe.
package kibana
