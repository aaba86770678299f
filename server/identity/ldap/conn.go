package ldap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// How long a server that does not answer is left alone: doubled with each failure. One that refuses the account's
// password is left alone for refusedLength, so that nobody locks the account.
const (
	firstBackOff  = time.Second
	longBackOff   = 30 * time.Second
	refusedLength = 15 * time.Minute
)

var (
	errClosed  = errors.New("the directory is closed")
	errTooMuch = errors.New("the answer is too large")
)

// serverError says that a server is of no use now: another one may be. Every other error is the answer.
type serverError struct{ err error }

func (e *serverError) Error() string { return e.err.Error() }
func (e *serverError) Unwrap() error { return e.err }

// resultError is a server's refusal. What the server says beside the code is left out: it may repeat what it was sent.
type resultError struct {
	what string
	code uint16
}

func (e *resultError) Error() string {
	return fmt.Sprintf("%s: result %d, %s", e.what, e.code, ldap.LDAPResultCodeMap[e.code])
}

// classify turns an error of the LDAP library into ours.
func classify(what string, err error) error {
	var e *ldap.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e):
		return &serverError{fmt.Errorf("%s: %w", what, err)}
	case e.ResultCode >= ldap.ErrorNetwork: // not the server's word but the library's
		return &serverError{fmt.Errorf("%s: %w", what, e.Err)}
	}
	result := &resultError{what, e.ResultCode}
	switch e.ResultCode {
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultUnwillingToPerform, ldap.LDAPResultOther,
		ldap.LDAPResultTimeLimitExceeded, ldap.LDAPResultAdminLimitExceeded:
		return &serverError{result}
	}
	return result
}

// hasCode reports whether err is a server's refusal with a code.
func hasCode(err error, code uint16) bool {
	var e *resultError
	return errors.As(err, &e) && e.code == code
}

// conn is a connection, used by one question at a time.
type conn struct {
	*ldap.Conn
	raw    *meter
	server *server
	// since is when it was last used.
	since time.Time
}

// meter ends a connection on which more arrives than a question's answer may be.
type meter struct {
	net.Conn
	left atomic.Int64
}

// Read implements [net.Conn].
func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if m.left.Add(-int64(n)) < 0 {
		return 0, errTooMuch
	}
	return n, err
}

// close closes the connection without waiting for the server.
func (c *conn) close() {
	_ = c.raw.Close() // first: what the library waits for comes to an end
	_ = c.Close()
}

// ask puts a question to a server that answers. The question may be put again, to another server, if one fails.
func (d *Directory) ask(question func(context.Context, *conn) error) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errClosed
	}
	d.questions.Add(1)
	d.mu.Unlock()
	defer d.questions.Done()
	ctx, cancel := context.WithTimeout(d.base, questionTimeout)
	defer cancel()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		c := d.takeIdle()
		if c == nil {
			break
		}
		err := d.put(ctx, c, question)
		var broken *serverError
		if !errors.As(err, &broken) {
			return err
		}
		// It was closed meanwhile, and others to that server with it; a fresh one will tell what the server is worth.
		d.dropIdle(c.server)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	var problems []error
	for _, s := range d.servers {
		if wait := d.wait(s); wait > 0 {
			problems = append(problems, fmt.Errorf("%s: failed before, and is tried again in %v", s.url.Host, wait.Round(time.Millisecond)))
			continue
		}
		c, err := d.connect(ctx, s)
		if err == nil {
			err = d.put(ctx, c, question)
		}
		var broken *serverError
		if !errors.As(err, &broken) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err() // no fault of the server's
		}
		d.failed(s, err)
		problems = append(problems, fmt.Errorf("%s: %w", s.url.Host, err))
	}
	return errors.Join(problems...)
}

// put puts a question on a connection, and keeps the connection if it is still good.
func (d *Directory) put(ctx context.Context, c *conn, question func(context.Context, *conn) error) error {
	c.raw.left.Store(maxAnswer)
	stop := context.AfterFunc(ctx, c.close)
	err := question(ctx, c)
	switch over := c.raw.left.Load() < 0; {
	case !stop():
		return &serverError{fmt.Errorf("%w: %w", ctx.Err(), orNothing(err))}
	case over:
		c.close()
		return errTooMuch
	}
	var broken *serverError
	if errors.As(err, &broken) {
		c.close()
		return err
	}
	if !d.giveBack(c) {
		c.close()
	}
	return err
}

// giveBack makes a connection that works available to the next question, unless there will be none.
func (d *Directory) giveBack(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.server.failures > 0 {
		d.log.Info("directory server answers again", "server", c.server.url.Host)
		c.server.failures = 0
	}
	if d.closed || c.IsClosing() {
		return false
	}
	c.since = time.Now()
	d.idle = append(d.idle, c)
	return true
}

func orNothing(err error) error {
	if err == nil {
		return errors.New("interrupted")
	}
	return err
}

// takeIdle returns a connection that is thought to be alive, the one used last first; nil if there is none.
func (d *Directory) takeIdle() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.idle) > 0 {
		c := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if !c.IsClosing() && time.Since(c.since) < idleLength {
			return c
		}
		go c.close()
	}
	return nil
}

func (d *Directory) dropIdle(s *server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var rest []*conn
	for _, c := range d.idle {
		if c.server == s {
			go c.close()
			continue
		}
		rest = append(rest, c)
	}
	d.idle = rest
}

// wait returns how long a server is still left alone.
func (d *Directory) wait(s *server) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Until(s.until)
}

// failed leaves a server alone for a while.
func (d *Directory) failed(s *server, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	length := min(firstBackOff<<min(s.failures, 10), longBackOff)
	if hasCode(err, ldap.LDAPResultInvalidCredentials) {
		length = refusedLength
	}
	s.until = time.Now().Add(length)
	s.failures++
	level := d.log.Warn
	if s.failures > 1 {
		level = d.log.Debug // it has been said
	}
	level("directory server is of no use", "server", s.url.Host, "error", err, "left_alone_for", length)
}

// connect opens a connection, secures it and says who asks. All errors are the server's: the next one may do better.
func (d *Directory) connect(ctx context.Context, s *server) (_ *conn, err error) {
	defer func() {
		if err != nil {
			err = &serverError{err}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	defer cancel()
	port := map[string]string{"ldap": "389", "ldaps": "636"}[s.url.Scheme]
	if s.url.Port() != "" {
		port = s.url.Port()
	}
	tcp, err := d.o.Dial(ctx, "tcp", net.JoinHostPort(s.url.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	raw := &meter{Conn: tcp}
	raw.left.Store(maxAnswer)
	secure := d.tls.Clone()
	secure.ServerName = s.url.Hostname()
	var stream net.Conn = raw
	if s.url.Scheme == "ldaps" {
		t := tls.Client(raw, secure)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, fmt.Errorf("TLS: %w", err)
		}
		stream = t
	}
	c := &conn{Conn: ldap.NewConn(stream, s.url.Scheme == "ldaps"), raw: raw, server: s}
	c.SetTimeout(d.o.Timeout)
	c.Start()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			c.close()
		}
	}()
	if d.o.StartTLS && s.url.Scheme == "ldap" {
		if err := c.StartTLS(secure); err != nil {
			return nil, classify("StartTLS", err)
		}
	}
	if d.o.BindDN != "" {
		if err := c.Bind(d.o.BindDN, d.o.Password.Reveal()); err != nil {
			return nil, classify("bind", err)
		}
	}
	return c, nil
}
