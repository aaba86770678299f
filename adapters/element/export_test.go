package element

import (
	"encoding/json"

	"github.com/endsession/endsession/adapters"
)

// What fuzz tests look at from outside.

// MaxSteps, MaxDeletes and MaxLeft are the bounds.
const (
	MaxSteps   = maxSteps
	MaxDeletes = maxDeletes
	MaxLeft    = maxLeft
)

// DecodeAnswer opens an envelope and reports whether it holds a result, and which.
func DecodeAnswer(body []byte, id int64) (result json.RawMessage, ok bool, err error) {
	a, err := decodeAnswer(body, id)
	return a.result, err == nil && !a.null && a.fault == nil && !a.unused, err
}

// DecodeSessions reads a list of sessions.
func DecodeSessions(result []byte) ([]adapters.Session, error) {
	sessions, _, err := decodeSessions(result)
	return sessions, err
}

// DecodeDeleted reads a deleted session.
func DecodeDeleted(result []byte) (adapters.Session, error) { return decodeDeleted(result) }

// DecodeAccess reads what an account may do.
func DecodeAccess(result []byte) (administrator bool, err error) {
	access, err := decodeAccess(result)
	return administers(access), err
}

// DecodeAPI chooses a version.
func DecodeAPI(result []byte) (string, error) {
	a, err := decodeAPI(result)
	if err != nil {
		return "", err
	}
	return a.version.String(), nil
}

// DecodeVersionInfo reads the software version.
func DecodeVersionInfo(result []byte) string { return decodeVersionInfo(result) }

// Steps returns the selectors of a plan's native steps, and the selector itself when it is carried out by list and
// filter.
func Steps(sel adapters.Selector) ([]adapters.Selector, error) {
	p, err := translate(sel)
	switch {
	case err != nil || p.nothing:
		return nil, err
	case len(p.steps) == 0:
		return []adapters.Selector{sel}, nil
	}
	var sels []adapters.Selector
	for _, s := range p.steps {
		sels = append(sels, s.sel)
	}
	return sels, nil
}
