package main

import (
	"context"
	"fmt"
	"io"
)

type report struct {
	Machine string
	Took    string
}

func (r *report) print(w io.Writer)           { fmt.Fprintln(w, r.Took) }
func (r *report) missed() bool                { return false }
func (r *report) writeJSON(string) error      { return nil }
func (r *report) writeMarkdown(string) error  { return nil }
func describeMachine(string) string           { return "machine" }
func targets(ctx context.Context, b *bench) error      { return nil }
func journal(ctx context.Context, b *bench) error      { return nil }
func accept(ctx context.Context, b *bench) error       { return nil }
func bulk(ctx context.Context, b *bench) error         { return nil }
func recovery(ctx context.Context, b *bench) error     { return nil }
func overload(ctx context.Context, b *bench) error     { return nil }
func realAdapters(ctx context.Context, b *bench) error { return nil }
func manners(ctx context.Context, b *bench) error      { return nil }
func playEmulators(context.Context, []string) (map[string]string, func() error, error) {
	return nil, nil, nil
}
