// Package telemetry makes metrics, traces and log fields of what the service does. What there is, and what its labels and
// attributes can be, is listed in docs/telemetry.md, which a test compares with a running gateway.
//
// Metrics are OpenTelemetry instruments; they are always kept and served to Prometheus. They, and traces, are sent by
// OTLP only if the standard OTEL_* variables ask for it; without them nothing is traced and no connection is made, but
// the trace context of a caller still goes through to the targets and into the log.
//
// Labels and attributes are targets, states and the like: closed sets. Users and callers are in none of them, nor are
// URLs or bodies.
package telemetry
