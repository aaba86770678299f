package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/config"
)

// callers are what finds out who calls: the TLS files and the ways to authenticate.
type callers struct {
	log    *slog.Logger
	issuer func(url string) http.RoundTripper
	// certificates is nil without TLS, current without authentication.
	certificates *auth.Certificates
	current      *auth.Current
}

// authenticates reports whether callers have to prove who they are.
func authenticates(c *config.Config) bool { return c.Auth != nil }

// newCallers reads the files that a configuration names. It reaches nobody.
func newCallers(o Options) (*callers, error) {
	c := &callers{log: o.Logger, issuer: o.IssuerTransport}
	if t := o.Config.Listen.TLS; t != nil {
		var err error
		if c.certificates, err = auth.LoadCertificates(filesOf(t), o.Logger); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Where, err)
		}
	}
	if authenticates(o.Config) {
		a, err := c.authenticator(o.Config.Auth, nil)
		if err != nil {
			return nil, err
		}
		c.current = auth.NewCurrent(a)
	}
	return c, nil
}

func filesOf(t *config.TLS) auth.Files {
	return auth.Files{Cert: t.CertFile, Key: t.KeyFile, ClientCA: t.ClientCAFile}
}

// authenticator makes one, in the place of previous.
func (c *callers) authenticator(a *config.Auth, previous *auth.Authenticator) (*auth.Authenticator, error) {
	o := auth.Options{Logger: c.log, Previous: previous}
	for _, k := range a.APIKeys {
		for _, h := range k.SHA256 {
			o.Keys = append(o.Keys, auth.Key{Name: k.Name, SHA256: h})
		}
		for _, x := range k.Keys {
			o.Keys = append(o.Keys, auth.Key{Name: k.Name, SHA256: x.SHA256, NotAfter: time.Time(x.NotAfter)})
		}
	}
	var errs []error
	for _, i := range a.OIDC {
		issuer := auth.Issuer{
			URL: i.Issuer, Alias: i.Alias, Audiences: i.Audience, Algorithms: i.Algorithms, NameClaim: i.NameClaim,
			GroupsClaim: i.GroupsClaim, RequiredClaims: map[string][]string{}, MaxAge: time.Duration(i.MaxAge),
		}
		for name, values := range i.RequiredClaims {
			issuer.RequiredClaims[name] = values
		}
		if i.CAFile != "" {
			pem, err := os.ReadFile(i.CAFile)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s.ca_file: %w", i.Where, err))
				continue
			}
			issuer.RootCAs = x509.NewCertPool()
			if !issuer.RootCAs.AppendCertsFromPEM(pem) {
				errs = append(errs, fmt.Errorf("%s.ca_file: no certificate in %s", i.Where, i.CAFile))
				continue
			}
		}
		if c.issuer != nil {
			issuer.Transport = c.issuer(i.Issuer)
		}
		o.Issuers = append(o.Issuers, issuer)
	}
	if a.MTLS.Enabled {
		if c.certificates == nil {
			errs = append(errs, errors.New("auth.mtls: needs listen.tls"))
		} else {
			o.MTLS = &auth.MTLS{Name: auth.CertificateName(a.MTLS.Name), Roots: c.certificates.Roots}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	made, err := auth.New(o)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	return made, nil
}

// background does what goes on beside the calls, until ctx ends.
func (c *callers) background(ctx context.Context) {
	if c.current != nil {
		go c.current.Load().Warm(ctx)
	}
	if c.certificates != nil {
		c.certificates.Follow(ctx)
	}
}

// reload takes over who may call from a configuration. After an error everything is as it was.
func (c *callers) reload(conf *config.Config) error {
	if (c.certificates != nil) != (conf.Listen.TLS != nil) {
		return errors.New("listen.tls cannot be added or taken away without a restart")
	}
	if (c.current != nil) != authenticates(conf) {
		return errors.New("auth cannot be added or taken away without a restart")
	}
	var next *auth.Authenticator
	if c.current != nil {
		var err error
		if next, err = c.authenticator(conf.Auth, c.current.Load()); err != nil {
			return err
		}
	}
	if c.certificates != nil {
		if err := c.certificates.Reload(filesOf(conf.Listen.TLS)); err != nil {
			return fmt.Errorf("%s: %w", conf.Listen.TLS.Where, err)
		}
	}
	if next != nil {
		c.current.Replace(next)
	}
	return nil
}

var accesses = map[config.Access]Access{config.Open: Everybody, config.Authenticated: Callers, config.Off: Nobody}
