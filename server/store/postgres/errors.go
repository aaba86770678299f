package postgres

import (
	"errors"
	"fmt"

	"github.com/endsession/endsession/server/invalidation"
	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATEs that are acted on.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	// stalePlan: a newer program has migrated the schema meanwhile.
	stalePlan   = "0A000"
	lockTimeout = "55P03"
	// refused is ours: a trigger of the schema refuses a change.
	refused = "ES001"
	// notAll is ours: function blame of the schema says which changes of a flight cannot be made.
	notAll = "ES002"
)

var (
	errClosed   = errors.New("the journal is closed")
	errNoAnswer = errors.New("the database does not answer")
	errText     = errors.New("a string holds a NUL character or is not UTF-8: PostgreSQL cannot keep it")
)

// state is the SQLSTATE of a server's error in err's chain, or "".
func state(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// failure turns an error of the driver into one of ours, by its code. What is ours already stays as it is.
func failure(err error) error {
	for _, ours := range []error{nil, invalidation.ErrUnavailable, invalidation.ErrCommitUnknown, invalidation.ErrNotFound,
		invalidation.ErrRequestReused, invalidation.ErrLeaseLost, invalidation.ErrIllegalTransition, invalidation.ErrFinal, errText, errRefused, errReplayed} {
		if errors.Is(err, ours) {
			return err
		}
	}
	code := state(err)
	if code == refused {
		return fmt.Errorf("%w: %w", invalidation.ErrIllegalTransition, err)
	}
	if len(code) == 5 && (code[:2] == "22" || code[:2] == "23") {
		// This change is wrong (a constraint, a value); the journal is well.
		return err
	}
	// Full, read-only, a standby, too many connections, shutting down, gone, locked, not ours.
	return unavailable(err)
}

func unavailable(err error) error {
	if errors.Is(err, invalidation.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", invalidation.ErrUnavailable, err)
}
