package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// failureColumns begin the header of a failures file. What the users file said about the person follows, so that the
// failures file can be a users file: then all of these but the id are passed over.
var failureColumns = []string{"id", "invalidation", "target", "state", "reason", "message"}

// guardCell keeps a spreadsheet from taking a cell for a formula: it gets an apostrophe if it begins, after any
// apostrophes, with = + - @, a tab or a line break. unguardCell is its inverse.
func guardCell(cell string) string {
	if formula(cell) {
		return "'" + cell
	}
	return cell
}

func unguardCell(cell string) string {
	if rest, ok := strings.CutPrefix(cell, "'"); ok && formula(rest) {
		return rest
	}
	return cell
}

func formula(cell string) bool {
	rest := strings.TrimLeft(cell, "'")
	return rest != "" && strings.ContainsRune("=+-@\t\r\n", rune(rest[0]))
}

// failuresFile is where failures are written, if there are any.
type failuresFile struct {
	path string
}

// openFailures makes sure that the file can be written and would replace none but one of its kind.
func openFailures(path, usersPath string) (failuresFile, error) {
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || !dir.IsDir() {
		return failuresFile{}, usageError("--failures: %s is no directory", filepath.Dir(path))
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failuresFile{path}, nil
	case err != nil:
		return failuresFile{}, usageError("--failures: %w", err)
	}
	if users, err := os.Stat(usersPath); err == nil && os.SameFile(info, users) {
		return failuresFile{}, usageError("--failures: %s is the users file", path)
	}
	if !info.Mode().IsRegular() || !isFailures(path) {
		return failuresFile{}, usageError("--failures: %s exists and holds something else; it is left alone", path)
	}
	return failuresFile{path}, nil
}

// isFailures reports whether a file was written by this command.
func isFailures(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	header, err := csv.NewReader(f).Read()
	return err == nil && len(header) >= len(failureColumns) && slices.Equal(header[:len(failureColumns)], failureColumns)
}

// failure is one line: why somebody's sessions may go on, at one target or, before anything was accepted, at all.
type failure struct {
	person                                       listedPerson
	invalidation, target, state, reason, message string
}

// write replaces the file as a whole. Without failures there is no file, and one of an earlier run would be a lie.
func (f failuresFile) write(columns []string, failures []failure) (err error) {
	if len(failures) == 0 {
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	w := csv.NewWriter(tmp)
	header := slices.Concat(failureColumns, columns)
	for i := range header {
		header[i] = guardCell(header[i])
	}
	_ = w.Write(header) // Flush keeps the error
	for _, x := range failures {
		record := slices.Concat([]string{x.person.user.GetId(), x.invalidation, x.target, x.state, x.reason, visible(x.message)}, x.person.cells)
		for i := range record {
			record[i] = guardCell(record[i])
		}
		_ = w.Write(record)
	}
	w.Flush()
	if err := errors.Join(w.Error(), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), f.path)
}

// failuresOf lists where a final invalidation did not succeed.
func failuresOf(p listedPerson, inv *endsessionv1.Invalidation) []failure {
	var list []failure
	for _, r := range inv.GetRuns() {
		switch r.GetState() {
		case endsessionv1.RunState_RUN_STATE_SUCCEEDED:
			continue
		case endsessionv1.RunState_RUN_STATE_UNSUPPORTED:
			if inv.GetAllowUnsupported() && inv.GetState() != endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED {
				continue
			}
		}
		list = append(list, failure{p, inv.GetName(), r.GetTarget(), word(r.GetState(), "RUN_STATE_"), r.GetError().GetReason(), r.GetError().GetMessage()})
	}
	return list
}

// notAccepted is the line of somebody whose call was refused.
func notAccepted(p listedPerson, err error) failure {
	reason, message := refusalOf(err)
	return failure{person: p, state: "NOT_ACCEPTED", reason: reason, message: message}
}

// unknownOutcome is the line of somebody of whom it is not known whether the call was accepted.
func unknownOutcome(p listedPerson, invalidation string, err error) failure {
	reason, message := refusalOf(err)
	return failure{person: p, invalidation: invalidation, state: "UNKNOWN", reason: reason, message: fmt.Sprintf("whether this was done is not known: %s", message)}
}
