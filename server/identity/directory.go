package identity

import (
	"context"
	"errors"
)

// Directory knows people and groups. Ids and group names are compared exactly, unless the operator has said otherwise of
// the directory.
type Directory interface {
	// Person returns what is known of the person with an id; ok is false if nothing is. The id it returns is the
	// directory's spelling, which differs from the one asked for only where the operator has allowed it.
	Person(ctx context.Context, id string) (p Person, ok bool, err error)
	// Members returns all members of a group, or limit of them if there are more, or [ErrUnknownGroup].
	Members(ctx context.Context, group string, limit int) ([]Person, error)
	// IsMember reports whether the person with an id is a member of a group, or [ErrUnknownGroup].
	IsMember(ctx context.Context, group, id string) (bool, error)
}

// Errors of a [Directory]. Every other error means that it does not answer now.
var (
	// ErrUnknownGroup: there is no such group.
	ErrUnknownGroup = errors.New("unknown group")
	// ErrAmbiguous: more than one entry fits a person, or one entry fits under more than one id.
	ErrAmbiguous = errors.New("more than one entry fits")
	// ErrAmbiguousGroup: more than one group has the name.
	ErrAmbiguousGroup = errors.New("more than one group has the name")
	// ErrUnknownMember: the group names a member of whom the directory knows no id.
	ErrUnknownMember = errors.New("unknown member")
	// ErrTooDeep: groups within the group are nested deeper than is looked.
	ErrTooDeep = errors.New("nested too deeply")
)

// Person is what is known of one person.
type Person struct {
	ID string
	// Email is empty if it is not known, or if the person has several: see Emails.
	Email      string
	Attributes map[string]string
	// Emails holds the addresses of a person who has more than one; nil otherwise.
	Emails []string
	// Several holds the values of attributes that have more than one. Which of them is meant is not for us to say: an
	// expression gets all of them, or fails.
	Several map[string][]string
}
