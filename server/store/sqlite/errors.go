package sqlite

import (
	"errors"
	"fmt"

	"github.com/endsession/endsession/server/invalidation"
	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// failure turns an error of the driver into one of ours, by its result code.
func failure(err error) error {
	var e *driver.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	if e.Code() == lib.SQLITE_CONSTRAINT_TRIGGER {
		return fmt.Errorf("%w: %w", invalidation.ErrIllegalTransition, err)
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_CONSTRAINT, lib.SQLITE_MISMATCH, lib.SQLITE_RANGE, lib.SQLITE_TOOBIG:
		// This change is wrong; the journal is well.
		return err
	}
	// Full, read-only, locked, damaged, gone, or not ours any more.
	return unavailable(err)
}

// code is the primary result code of a driver's error in err's chain, or 0.
func code(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

func unavailable(err error) error {
	return fmt.Errorf("%w: %w", invalidation.ErrUnavailable, err)
}

var (
	errClosed   = errors.New("the journal is closed")
	errNoAnswer = errors.New("the database does not answer")
)
