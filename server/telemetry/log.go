package telemetry

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// work is the run that a context belongs to.
type work struct {
	invalidation string
	run          int
	target       string
}

type workKey struct{}

// Log returns a handler that adds what the context of a line knows: trace_id and span_id, and in the work for a run its
// invalidation, run and target, unless the line says them itself.
func Log(next slog.Handler) slog.Handler { return handler{Handler: next} }

type handler struct {
	slog.Handler
	said said
}

// said are the fields that a line has already.
type said struct{ invalidation, run, target bool }

func (s *said) note(a slog.Attr) {
	switch a.Key {
	case "invalidation":
		s.invalidation = true
	case "run":
		s.run = true
	case "target":
		s.target = true
	}
}

// Handle implements [slog.Handler].
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	sc := trace.SpanContextFromContext(ctx)
	w, _ := ctx.Value(workKey{}).(*work)
	if !sc.IsValid() && w == nil {
		return h.Handler.Handle(ctx, r)
	}
	r = r.Clone()
	if w != nil {
		has := h.said
		r.Attrs(func(a slog.Attr) bool { has.note(a); return true })
		if !has.target {
			r.AddAttrs(slog.String("target", w.target))
		}
		if !has.invalidation {
			r.AddAttrs(slog.String("invalidation", w.invalidation))
		}
		if !has.run {
			r.AddAttrs(slog.Int("run", w.run))
		}
	}
	if sc.IsValid() {
		r.AddAttrs(slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		h.said.note(a)
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// WithGroup implements [slog.Handler].
func (h handler) WithGroup(name string) slog.Handler {
	h.Handler, h.said = h.Handler.WithGroup(name), said{}
	return h
}
