package emulator

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"sync"
)

// WriteJSON answers with v as JSON, without HTML escaping.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("emulator: answer %T: %v", v, err))
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	}
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// WriteHTML answers with a page, as the web server in front of a product does.
func WriteHTML(w http.ResponseWriter, status int, title string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<html><head><title>%[1]s</title></head><body><h1>%[1]s</h1></body></html>\n", html.EscapeString(title))
}

// WriteText answers with plain text.
func WriteText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

// ReadBody reads a request's body, which may have at most 16 MiB.
func ReadBody(r *http.Request) ([]byte, error) {
	return io.ReadAll(http.MaxBytesReader(nil, r.Body, 16<<20))
}

// ReadJSON decodes a body that is one JSON value and nothing else. encoding/json takes "username" for "userName": where
// the product tells them apart, use [Object].
func ReadJSON(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("data after the JSON value")
	}
	return nil
}

// Object decodes a body that is one JSON object, by the exact spelling of its keys. A key that comes twice is an error:
// products differ in which one counts.
func Object(body []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	object := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key := t.(string) // the decoder lets nothing else stand here
		if _, ok := object[key]; ok {
			return nil, fmt.Errorf("key %q comes twice", key)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		object[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("data after the JSON object")
	}
	return object, nil
}

// BasicAuth reports whether r carries these credentials.
func BasicAuth(r *http.Request, username, password string) bool {
	u, p, ok := r.BasicAuth()
	a := subtle.ConstantTimeCompare([]byte(u), []byte(username))
	b := subtle.ConstantTimeCompare([]byte(p), []byte(password))
	return ok && a&b == 1
}

// IDs makes identifiers that look random and are the same in every run. The zero value is ready; it is safe for
// concurrent use.
type IDs struct {
	// Seed tells emulators apart.
	Seed string

	mu sync.Mutex
	n  int
}

func (g *IDs) next() [sha256.Size]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	return sha256.Sum256(fmt.Appendf(nil, "%s/%d", g.Seed, g.n))
}

// Hex returns an identifier of n hexadecimal digits, at most 64.
func (g *IDs) Hex(n int) string {
	sum := g.next()
	return hex.EncodeToString(sum[:])[:n]
}

// UUID returns an identifier in the form of a random UUID.
func (g *IDs) UUID() string {
	b := g.next()
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
