package postgres

import (
	"context"
	"fmt"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5"
)

const selectReadOnly = `SELECT current_setting('transaction_read_only')::bool`

// Ready asks the server whether it takes changes: a standby does not.
func (s *Store) Ready(ctx context.Context) error {
	var readOnly bool
	if err := s.read(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, selectReadOnly).Scan(&readOnly)
	}); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	if readOnly {
		return fmt.Errorf("ready: the server is read-only: %w", invalidation.ErrUnavailable)
	}
	return nil
}
