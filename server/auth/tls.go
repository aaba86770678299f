package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Files are where the gateway's certificate is. All are PEM.
type Files struct {
	// Cert is the certificate with its chain, Key its private key.
	Cert, Key string
	// ClientCA are the authorities of client certificates; empty if none are asked for.
	ClientCA string
}

// followInterval is how often the files are looked at.
const followInterval = 5 * time.Second

// Certificates are the gateway's certificate and its clients' authorities, as they are in their files. When these
// change, new connections get the new certificate, all calls are judged by the new authorities, and no connection is
// dropped. Files that cannot be used change nothing: the old ones stay, and the log says why.
type Certificates struct {
	log *slog.Logger
	is  atomic.Pointer[loaded]

	mu    sync.Mutex
	files Files
	seen  contents // what the last try to load was made of, good or bad
}

// contents are those of the files.
type contents struct{ cert, key, clientCA []byte }

func (c contents) equal(other contents) bool {
	return bytes.Equal(c.cert, other.cert) && bytes.Equal(c.key, other.key) && bytes.Equal(c.clientCA, other.clientCA)
}

// loaded is what the contents of the files come to.
type loaded struct {
	config *tls.Config
	roots  *x509.CertPool // nil without client CAs
}

// LoadCertificates reads the files.
func LoadCertificates(files Files, logger *slog.Logger) (*Certificates, error) {
	c := &Certificates{log: logger}
	if err := c.Reload(files); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads the files, which may be others than before. After an error everything is as it was.
func (c *Certificates) Reload(files Files) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := read(files)
	if err != nil {
		return err
	}
	next, err := now.load()
	if err != nil {
		return err
	}
	c.files, c.seen = files, now
	c.is.Store(next)
	return nil
}

// Follow looks at the files again and again, until ctx ends.
func (c *Certificates) Follow(ctx context.Context) {
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	trouble := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changed, err := c.refresh()
		switch {
		case changed:
			trouble = ""
			c.log.InfoContext(ctx, "the TLS certificate and the clients' authorities were read again")
		case err != nil && err.Error() != trouble:
			trouble = err.Error()
			c.log.ErrorContext(ctx, "the TLS files cannot be used; the old ones stay in use", "error", err)
		}
	}
}

// refresh loads the files if they have changed.
func (c *Certificates) refresh() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := read(c.files)
	if err != nil || now.equal(c.seen) {
		return false, err
	}
	// Tried once: a certificate whose key is still to be written changes again.
	c.seen = now
	next, err := now.load()
	if err != nil {
		return false, err
	}
	c.is.Store(next)
	return true, nil
}

func read(files Files) (c contents, err error) {
	for _, f := range []struct {
		path string
		to   *[]byte
	}{{files.Cert, &c.cert}, {files.Key, &c.key}, {files.ClientCA, &c.clientCA}} {
		if f.path == "" {
			continue
		}
		if *f.to, err = os.ReadFile(f.path); err != nil {
			return contents{}, err
		}
	}
	return c, nil
}

// load makes the settings of a listener: TLS 1.3 where the client can, 1.2 at least, and Go's choice of ciphers.
//
// Client certificates are asked for, and judged by the [Authenticator] rather than in the handshake: there a refusal
// would be a broken connection that tells nobody why, and what is trusted would stay trusted as long as the connection.
func (c contents) load() (*loaded, error) {
	cert, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, err
	}
	l := &loaded{config: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"},
	}}
	if c.clientCA != nil {
		l.roots = x509.NewCertPool()
		if !l.roots.AppendCertsFromPEM(c.clientCA) {
			return nil, fmt.Errorf("client_ca_file: no certificate in it")
		}
		l.config.ClientCAs, l.config.ClientAuth = l.roots, tls.RequestClientCert
	}
	return l, nil
}

// Config returns settings for listeners that always use what is in the files.
func (c *Certificates) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.is.Load().config, nil },
	}
}

// Roots returns the clients' authorities of the moment.
func (c *Certificates) Roots() *x509.CertPool { return c.is.Load().roots }
