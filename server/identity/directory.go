package identity

import (
	"context"
	"errors"
)

// Directory knows people and groups. Ids and group names are compared exactly.
type Directory interface {
	// Person returns what is known of the person with an id; ok is false if nothing is.
	Person(ctx context.Context, id string) (p Person, ok bool, err error)
	// Members returns the members of a group, at most limit of them, or [ErrUnknownGroup].
	Members(ctx context.Context, group string, limit int) ([]Person, error)
	// IsMember reports whether the person with an id is a member of a group, or [ErrUnknownGroup].
	IsMember(ctx context.Context, group, id string) (bool, error)
}

// Errors of a [Directory]. Every other error means that it does not answer now.
var (
	// ErrUnknownGroup: there is no such group.
	ErrUnknownGroup = errors.New("unknown group")
	// ErrAmbiguous: more than one entry fits the id.
	ErrAmbiguous = errors.New("more than one entry fits")
)

// Person is what is known of one person.
type Person struct {
	ID string
	// Email is empty if it is not known.
	Email      string
	Attributes map[string]string
}
