package slapdtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// DialQuiet opens a connection without TLS for use within a bubble of testing/synctest, whatever address is asked for.
// Whoever waits at a socket stops virtual time, so the connection waits there only while an answer is due, which takes no
// virtual time; in between it waits within the bubble.
func (s *Server) DialQuiet(ctx context.Context, _, _ string) (net.Conn, error) {
	// By address: the resolver has channels of its own.
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.plain))
	if err != nil {
		return nil, err
	}
	return &quietConn{Conn: conn, asked: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

type quietConn struct {
	net.Conn
	asked  chan struct{}
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	due     int
	arrived bytes.Buffer // only the reader touches it
}

// Write sends a request; the LDAP library writes each in one piece.
func (c *quietConn) Write(b []byte) (int, error) {
	request, err := ber.DecodePacketErr(b)
	if err != nil {
		return 0, err
	}
	if op := request.Children[1].Tag; op != ldap.ApplicationUnbindRequest && op != ldap.ApplicationAbandonRequest {
		c.mu.Lock()
		c.due++
		c.mu.Unlock()
		select {
		case c.asked <- struct{}{}:
		default:
		}
	}
	return c.Conn.Write(b)
}

// Read returns what has arrived, message by message.
func (c *quietConn) Read(b []byte) (int, error) {
	for c.arrived.Len() == 0 {
		c.mu.Lock()
		due := c.due
		c.mu.Unlock()
		if due == 0 {
			select {
			case <-c.asked:
				continue
			case <-c.closed:
				return 0, net.ErrClosed
			}
		}
		answer, err := ber.ReadPacket(io.TeeReader(c.Conn, &c.arrived))
		if err != nil {
			return 0, err
		}
		switch answer.Children[1].Tag {
		case ldap.ApplicationSearchResultEntry, ldap.ApplicationSearchResultReference:
		default: // the last message of an answer
			c.mu.Lock()
			c.due--
			c.mu.Unlock()
		}
	}
	return c.arrived.Read(b)
}

// Close closes the connection.
func (c *quietConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
