package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"regexp"
	"strings"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// keyPrefix is what every API key begins with; scanners for leaked secrets find keys by it.
const keyPrefix = "esk_"

// keyForm is the form of an API key: an id, which is no secret, and 32 random bytes.
var keyForm = regexp.MustCompile(`^esk_([a-z2-7]{10})_[A-Za-z0-9_-]{43}$`)

// Key is an API key as the gateway knows it: not the key itself.
type Key struct {
	// Name is the caller's.
	Name string
	// SHA256 is the hash of the whole key, as text.
	SHA256 [sha256.Size]byte
	// NotAfter is the last moment at which the key is accepted; zero if it does not expire.
	NotAfter time.Time
}

// NewKey generates an API key, esk_<id>_<secret>. What goes into the configuration is its [HashKey].
func NewKey() string {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails: it would end the process
	return keyPrefix + strings.ToLower(rand.Text()[:10]) + "_" + base64.RawURLEncoding.EncodeToString(secret[:])
}

// HashKey is what is kept of an API key. The key is random, so a plain hash is as hard to invert as a slow one.
func HashKey(key string) [sha256.Size]byte { return sha256.Sum256([]byte(key)) }

// KeyID returns the part of an API key that is no secret; false if it is no API key.
func KeyID(key string) (id string, ok bool) {
	m := keyForm.FindStringSubmatch(key)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// byKey names the caller by an API key. It compares with every key there is, each in constant time, so how long it takes
// says nothing about which keys there are.
func (a *Authenticator) byKey(key string) (invalidation.Caller, error) {
	hash := HashKey(key)
	found := -1
	for i := range a.keys {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], a.keys[i].SHA256[:]), i, found)
	}
	id, ok := KeyID(key)
	switch {
	case !ok:
		// Also if its hash is configured: nobody shall choose a key, and choose a weak one.
		return invalidation.Caller{}, &Error{Kind: KindAPIKey, Why: "malformed key"}
	case found < 0:
		return invalidation.Caller{}, &Error{Kind: KindAPIKey, Why: "unknown key", Whose: id}
	}
	if k := a.keys[found]; k.NotAfter.IsZero() || !time.Now().After(k.NotAfter) {
		return invalidation.Caller{Kind: KindAPIKey, Name: k.Name}, nil
	}
	return invalidation.Caller{}, &Error{Kind: KindAPIKey, Why: "expired key", Whose: id}
}
