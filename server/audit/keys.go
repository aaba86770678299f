package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"github.com/endsession/endsession/adapters/secret"
)

// MinKeyLength is how long a key is at least, in bytes. A key is a random text, not a password.
const MinKeyLength = 32

// Keys hash events. The zero value has no key: hashes are plain SHA-256.
type Keys struct {
	current string // ID; empty if there is none
	byID    map[string][]byte
}

// NewKeys makes keys of the one that new chains are hashed with and of those that older chains were.
func NewKeys(current secret.String, previous ...secret.String) (Keys, error) {
	k := Keys{byID: map[string][]byte{}}
	if current.IsZero() {
		if len(previous) > 0 {
			return Keys{}, errors.New("there are previous keys, but no key")
		}
		return k, nil
	}
	for i, s := range append([]secret.String{current}, previous...) {
		key := []byte(s.Reveal())
		if len(key) < MinKeyLength {
			return Keys{}, fmt.Errorf("a key of %d bytes: want at least %d, such as `openssl rand -hex 32` prints", len(key), MinKeyLength)
		}
		id := keyID(key)
		if _, twice := k.byID[id]; twice {
			return Keys{}, fmt.Errorf("key %s is given twice", id)
		}
		k.byID[id] = key
		if i == 0 {
			k.current = id
		}
	}
	return k, nil
}

func keyID(key []byte) string {
	h := sha256.New()
	h.Write([]byte("endsession audit key 1\n"))
	h.Write(key)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Current is the ID of the key that new chains are hashed with, or "" if there is none.
func (k Keys) Current() string { return k.current }

// knows reports whether a chain under the key can be checked.
func (k Keys) knows(id string) bool { return id == "" || k.byID[id] != nil }

// hasher returns the hash function of a key; the key must be known.
func (k Keys) hasher(id string) *hasher {
	if id == "" {
		return &hasher{h: sha256.New()}
	}
	return &hasher{h: hmac.New(sha256.New, k.byID[id])}
}

// hasher hashes again and again, and keeps its buffer.
type hasher struct {
	h   hash.Hash
	buf []byte
}

// sum hashes the buffer.
func (h *hasher) sum() (sum Hash) {
	h.h.Reset()
	h.h.Write(h.buf)
	h.buf = h.h.Sum(h.buf)
	copy(sum[:], h.buf[len(h.buf)-len(sum):])
	return sum
}
