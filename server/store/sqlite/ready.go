package sqlite

import "context"

// Ready writes a page of the database, the way every change does. What keeps it from being written (a full disk, a
// missing right, another program's lock) keeps calls from being accepted.
func (s *Store) Ready(ctx context.Context) error {
	return s.change(ctx, func(t *tx) error { return t.script(writeNothing) })
}

// writeNothing changes the database's first page to what it is.
const writeNothing = "PRAGMA user_version = 1"
