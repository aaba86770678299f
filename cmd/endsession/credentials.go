package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
)

// secretFile is a flag that names a file with a secret, and the two environment variables that stand for it.
type secretFile struct {
	path file
	text string // from the environment
}

// read returns the secret without white space around it; empty if none is given. It is read for every call: a file may
// be replaced while a command goes on.
func (s secretFile) read() (string, error) {
	if s.path == "" {
		return s.text, nil
	}
	b, err := os.ReadFile(string(s.path))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if text == "" || strings.ContainsAny(text, " \t\r\n") {
		return "", fmt.Errorf("%s: want one word", s.path)
	}
	return text, nil
}

// bearer sends a secret with every call.
type bearer struct {
	secret secretFile
	// encrypted says that the connection must be.
	encrypted bool
}

var _ credentials.PerRPCCredentials = bearer{}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := b.secret.read()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + text}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (b bearer) RequireTransportSecurity() bool { return b.encrypted }

// credential returns what the client proves itself with; nil if that is nothing, or a certificate.
func (c *connection) credential(encrypted bool) (*bearer, error) {
	var given []secretFile
	for _, s := range []secretFile{c.apiKey, c.token} {
		if s != (secretFile{}) {
			given = append(given, s)
		}
	}
	switch len(given) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, errors.New("an API key and a token: want one")
	}
	if _, err := given[0].read(); err != nil {
		return nil, err
	}
	return &bearer{given[0], encrypted}, nil
}
