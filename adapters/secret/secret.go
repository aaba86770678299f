// Package secret holds values that never print. Passwords, tokens and keys are kept in a [String] from the moment the
// configuration is read, so that no log line, error, dump or JSON document can show one by accident.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Redacted is what every printed form of a secret says.
const Redacted = "[redacted]"

// String is a secret text. The zero value is an absent secret. All ways to print it give [Redacted], or nothing when it
// is absent; only Reveal returns the text.
type String struct{ text string }

// New makes a secret of a text.
func New(text string) String { return String{text} }

// Reveal returns the secret itself. Call it where the secret is sent and nowhere else.
func (s String) Reveal() string { return s.text }

// IsZero reports whether there is no secret.
func (s String) IsZero() bool { return s.text == "" }

// Equal compares in constant time.
func (s String) Equal(x String) bool {
	return subtle.ConstantTimeCompare([]byte(s.text), []byte(x.text)) == 1
}

// String returns [Redacted], or "" for an absent secret.
func (s String) String() string {
	if s.text == "" {
		return ""
	}
	return Redacted
}

// Format prints the redacted form under every verb and flag, %#v and %x included.
func (s String) Format(f fmt.State, verb rune) {
	if verb == 'q' {
		fmt.Fprintf(f, "%q", s.String())
		return
	}
	fmt.Fprint(f, s.String())
}

// GoString returns the redacted form.
func (s String) GoString() string { return s.String() }

// LogValue returns the redacted form.
func (s String) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText writes the redacted form; it serves JSON too.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML writes the redacted form.
func (s String) MarshalYAML() (any, error) { return s.String(), nil }

// UnmarshalText reads the secret.
func (s *String) UnmarshalText(text []byte) error {
	s.text = string(text)
	return nil
}
