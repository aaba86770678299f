package adapters

import "context"

// Vetting judges the sessions that a call is about to end. opaque says that some of them stand under names that tell
// nothing of who they are. An error means that none of them may be ended.
type Vetting func(sessions []Session, opaque bool) error

type vetKey struct{}

// WithVetting returns a context in which [Vet] calls f. The engine uses it to keep runs within the terms under which they
// were let through: no sessions of protected people, no more than so many.
func WithVetting(ctx context.Context, f Vetting) context.Context {
	return context.WithValue(ctx, vetKey{}, f)
}

// Vet is called by every adapter whose [Type] says ListsSessions, each time it has listed what it is about to end and
// before the first request that ends any of it; and by its Preview. Its error ends the call and is returned as it is.
func Vet(ctx context.Context, sessions []Session, opaque bool) error {
	if f, ok := ctx.Value(vetKey{}).(Vetting); ok {
		return f(sessions, opaque)
	}
	return nil
}
