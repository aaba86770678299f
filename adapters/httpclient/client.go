package httpclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Defaults of [Options].
const (
	DefaultTimeout = 60 * time.Second
	DefaultMaxBody = 16 << 20
	connectTimeout = 15 * time.Second
	// maxIdle is how many connections are kept for the next requests: as many as a target may be configured to get at once, or
	// they would be closed and opened again under load.
	maxIdle = 1000
)

// TLSConfig is the part of a target's configuration that says whom to trust. It is embedded inline in adapters'
// configurations.
type TLSConfig struct {
	// CAFile is a PEM file of the authorities trusted for this target, instead of the system's.
	CAFile string `yaml:"ca_file,omitempty"`
	// PinSHA256 is the SHA-256 of the target's certificate (DER), in hexadecimal, with or without colons. Given alone it
	// replaces the check of authority and name: the certificate must be this one. With CAFile both must hold.
	PinSHA256 string `yaml:"pin_sha256,omitempty"`
}

// Validate reports what is wrong with the settings, without reading the file.
func (c TLSConfig) Validate() error {
	if c.PinSHA256 == "" {
		return nil
	}
	if b, err := hex.DecodeString(strings.ReplaceAll(c.PinSHA256, ":", "")); err != nil || len(b) != sha256.Size {
		return errors.New("pin_sha256: want 64 hexadecimal digits")
	}
	return nil
}

// client builds the TLS settings. An unreadable or empty CA file is an error: never carry on with less.
func (c TLSConfig) client() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: no certificate in %s", c.CAFile)
		}
	}
	if c.PinSHA256 != "" {
		want, _ := hex.DecodeString(strings.ReplaceAll(c.PinSHA256, ":", ""))
		conf.InsecureSkipVerify = c.CAFile == "" // the pin below is the check
		conf.VerifyConnection = func(cs tls.ConnectionState) error {
			got := fingerprint(cs.PeerCertificates[0]) // a server has one: TLS demands it
			if got == hex.EncodeToString(want) {
				return nil
			}
			return pinError{got}
		}
	}
	return conf, nil
}

// pinError says that a certificate is not the pinned one, and which it is.
type pinError struct{ got string }

// Error does not show the fingerprint: a probe does, with what to do about it.
func (pinError) Error() string { return "the certificate is not the pinned one" }

// ParseURL checks a target's base URL: https (http only to a loopback address), a host, no user, query or fragment.
// The result has no trailing slash.
func ParseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return nil, errors.New("url: required")
	case err != nil:
		return nil, errors.New("url: not a URL")
	case u.Host == "" || u.Hostname() == "":
		return nil, errors.New("url: no host")
	case u.User != nil:
		return nil, errors.New("url: holds a user; use the credential settings")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, errors.New("url: holds a query or a fragment")
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return nil, errors.New("url: want https (http only to a loopback address)")
	}
	if dotted(u.Path) {
		return nil, errors.New(`url: holds "." or ".." in its path`)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = strings.TrimRight(u.RawPath, "/")
	u.Host = strings.ToLower(u.Host)
	if u.Scheme == "https" {
		u.Host = strings.TrimSuffix(u.Host, ":443")
	}
	return u, nil
}

// dotted reports whether a decoded path has a segment that servers resolve to another path.
func dotted(path string) bool {
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "." || seg == ".." {
			return true
		}
	}
	return false
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Options make a [Client].
type Options struct {
	// BaseURL is what [ParseURL] returned.
	BaseURL *url.URL
	TLS     TLSConfig
	// Timeout bounds one request, from waiting for a connection to the last byte of the answer. Zero: DefaultTimeout.
	Timeout time.Duration
	// MaxBody bounds an answer, after decompression. Zero: DefaultMaxBody.
	MaxBody int64
	// Header is sent with every request.
	Header http.Header
	// Deps bring the transport, what goes around it, and the rate limit.
	Deps adapters.Deps
}

// Client sends requests to one target. It is safe for concurrent use.
type Client struct {
	base *url.URL
	root string // the base URL up to its path
	path string // its path, escaped
	// transport is used as it is, without an [http.Client]. So a redirect is an answer like any other: following one would
	// carry a kill to another host.
	transport http.RoundTripper
	timeout   time.Duration
	maxBody   int64
	header    http.Header
	limit     func(context.Context) error
}

// New makes a client. It reads the CA file and does no other I/O.
func New(o Options) (*Client, error) {
	if o.BaseURL == nil {
		return nil, errors.New("url: required")
	}
	transport := o.Deps.Transport
	if transport == nil {
		conf, err := o.TLS.client()
		if err != nil {
			return nil, err
		}
		transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    connectTimeout,
			MaxIdleConnsPerHost:    maxIdle,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 256 << 10,
			ForceAttemptHTTP2:      true,
		}
	}
	if o.Deps.Wrap != nil {
		transport = o.Deps.Wrap(transport)
	}
	c := &Client{
		base:      o.BaseURL,
		root:      o.BaseURL.Scheme + "://" + o.BaseURL.Host,
		path:      o.BaseURL.EscapedPath(),
		transport: transport,
		timeout:   o.Timeout,
		maxBody:   o.MaxBody,
		header:    o.Header.Clone(),
		limit:     o.Deps.Limit,
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.maxBody == 0 {
		c.maxBody = DefaultMaxBody
	}
	return c, nil
}

// CloseIdleConnections closes connections that are not in use.
func (c *Client) CloseIdleConnections() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// Call is one request.
type Call struct {
	Method string
	// Path is appended to the base URL's path as it is: it starts with "/" and is already escaped. One that would lead
	// elsewhere, by dot segments or for want of escaping, is refused.
	Path string
	// Query is the raw query, without "?", already escaped. One that would not be sent whole is refused.
	Query  string
	Header http.Header
	// JSON is marshalled into the body if not nil.
	JSON any
	// ContentType replaces "application/json".
	ContentType string
	// Mutating marks a request that may change something at the target: the fence is checked before it is sent, and an
	// answer that is lost is [adapters.Uncertain].
	Mutating bool
	// Accept lists the statuses, besides 2xx, that the adapter wants to judge itself: no error is made of them.
	Accept []int
}

// Reply is an answer whose body was read whole.
type Reply struct {
	Status int
	Header http.Header
	Body   []byte
	// Mutating is the call's.
	Mutating bool
	// TLS is the connection's; nil if it is not encrypted, or not of the network.
	TLS *tls.ConnectionState
}

// IsJSON reports whether the content type says JSON ("application/json", "application/json-rpc", "…+json").
func (r Reply) IsJSON() bool {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && (t == "application/json" || t == "application/json-rpc" || strings.HasSuffix(t, "+json"))
}

// Decode unmarshals a JSON body. Anything else, a page of a proxy say, is [adapters.BadReply]; so is null, which would
// leave v as it is and look like an empty answer.
func (r Reply) Decode(v any) error {
	if !r.IsJSON() {
		return adapters.Errorf(adapters.BadReply, "the target answered %d with something other than JSON", r.Status)
	}
	if err := json.Unmarshal(r.Body, v); err != nil || string(bytes.TrimSpace(r.Body)) == "null" {
		// The decoder's message may quote the body.
		return adapters.Errorf(adapters.BadReply, "the target answered %d with JSON that cannot be read", r.Status)
	}
	return nil
}

// Do sends a request. A reply of status 2xx or in call.Accept comes back without error; everything else is classified
// by [Classify]. Transport failures are classified by whether the request can have had an effect. The context's own
// error is returned when ctx had ended before anything was done, or was cancelled while nothing could have changed; a
// deadline that passes while the target is asked says something about the target and is classified.
func (c *Client) Do(ctx context.Context, call Call) (Reply, error) {
	if err := ctx.Err(); err != nil {
		return Reply{}, err
	}
	req, err := c.request(ctx, call)
	if err != nil {
		return Reply{}, err
	}
	if c.limit != nil {
		if err := c.limit(ctx); err != nil {
			return Reply{}, err
		}
	}
	if call.Mutating {
		if err := adapters.Fence(ctx); err != nil {
			return Reply{}, err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	// The request counts as sent from the first byte that may have reached a connection, so from the first header field:
	// HTTP/2 tells that the headers were written only after they have left. A transport without trace hooks (an
	// in-memory one) counts as sending at once.
	var traced, sent, unshaken atomic.Bool
	bounded = httptrace.WithClientTrace(bounded, &httptrace.ClientTrace{
		GetConn:          func(string) { traced.Store(true) },
		WroteHeaderField: func(string, []string) { sent.Store(true) },
		WroteHeaders:     func() { sent.Store(true) },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { unshaken.Store(err != nil) },
	})
	resp, err := c.transport.RoundTrip(req.WithContext(bounded))
	if err != nil {
		if unshaken.Load() && !sent.Load() {
			err = handshake{err}
		}
		return Reply{}, failure(ctx, call, sent.Load() || !traced.Load(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	reply := Reply{Status: resp.StatusCode, Header: resp.Header, Mutating: call.Mutating, TLS: resp.TLS}
	judged := reply.Status/100 == 2 || slices.Contains(call.Accept, reply.Status)
	reply.Body, err = io.ReadAll(io.LimitReader(resp.Body, c.maxBody+1))
	long := int64(len(reply.Body)) > c.maxBody
	switch {
	case !judged:
		// The status says enough, even if the body cannot be read.
		if err != nil || long {
			reply.Body = nil
		}
		return reply, Classify(reply)
	case err != nil:
		return Reply{}, failure(ctx, call, true, err)
	case long:
		return Reply{}, adapters.Errorf(adapters.BadReply, "the target's answer is longer than %d bytes", c.maxBody)
	}
	return reply, nil
}

func (c *Client) request(ctx context.Context, call Call) (*http.Request, error) {
	var body io.Reader
	if call.JSON != nil {
		b, err := Marshal(call.JSON)
		if err != nil {
			return nil, adapters.Wrap(adapters.Rejected, err, "the request cannot be written as JSON")
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, call.Method, c.URL(call), body)
	if err != nil {
		// The error quotes the URL.
		return nil, adapters.Errorf(adapters.Rejected, "the request's URL is malformed")
	}
	// A name that was not escaped must not change where the request goes, nor cut a filter short.
	if u := req.URL; u.EscapedPath() != c.path+call.Path || dotted(u.Path) || u.Fragment != "" ||
		strings.ContainsFunc(u.RawQuery, unescaped) {
		return nil, adapters.Errorf(adapters.Rejected, "the request's URL is malformed")
	}
	for _, h := range []http.Header{c.header, call.Header} {
		for k, v := range h {
			for _, x := range v {
				// net/http would refuse it too, but where nobody can tell that nothing was sent.
				if strings.ContainsFunc(x, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
					return nil, adapters.Errorf(adapters.Rejected, "the header %s holds a control character", k)
				}
			}
			req.Header[k] = v
		}
	}
	if call.JSON != nil {
		req.Header["Content-Type"] = asJSON
		if call.ContentType != "" {
			req.Header.Set("Content-Type", call.ContentType)
		}
	}
	if req.Header.Get("Accept") == "" {
		req.Header["Accept"] = asJSON
	}
	// http.Transport repeats a request on its own when a reused connection turns out to be closed and nothing was
	// written; that is harmless, and the only repetition there is.
	return req, nil
}

// asJSON is a header's value, shared by all requests.
var asJSON = []string{"application/json"}

// unescaped reports whether r cannot stand in a request line.
func unescaped(r rune) bool { return r <= ' ' || r >= 0x7f }

// URL is where a call goes.
func (c *Client) URL(call Call) string {
	u := c.root + c.path + call.Path
	if call.Query != "" {
		u += "?" + call.Query
	}
	return u
}

// Marshal writes JSON as it is sent: without HTML escaping, so that names are carried as they are.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// failure classifies an error of the transport. ctx is the caller's.
func failure(ctx context.Context, call Call, sent bool, err error) error {
	cause := redact(err)
	switch {
	case call.Mutating && sent:
		return adapters.Wrap(adapters.Uncertain, cause, "the request was sent and its answer is lost")
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case certificate(err) != nil:
		return adapters.Wrap(adapters.Unreachable, cause, "the target's certificate is not trusted")
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		return adapters.Wrap(adapters.Unreachable, cause, "the target did not answer in time")
	case errors.Is(cause, errHandshake):
		return adapters.Wrap(adapters.Unreachable, cause, "no TLS connection can be made with the target")
	}
	return adapters.Wrap(adapters.Unreachable, cause, "the target cannot be reached")
}

// certificate returns what is wrong with the target's certificate, if err is about that.
func certificate(err error) error {
	var v *tls.CertificateVerificationError
	var h x509.HostnameError
	var pin pinError
	switch {
	case errors.As(err, &pin):
		return pin
	case errors.As(err, &v):
		return v
	case errors.As(err, &h):
		return h
	}
	return nil
}

// IsCertificate reports whether err says that the target's certificate is not trusted.
func IsCertificate(err error) bool { return certificate(err) != nil }

// redact keeps of a transport's error what cannot hold a part of the request or of the answer: net/http quotes the URL,
// malformed answers, what a proxy said and, over HTTP/2, the server's parting words.
func redact(err error) error {
	var (
		errno syscall.Errno
		dns   *net.DNSError
		op    *net.OpError
		alert tls.AlertError
		timed net.Error
	)
	switch cert := certificate(err); {
	case cert != nil:
		return cert
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &errno):
		if errors.As(err, &op) {
			return fmt.Errorf("%s %s: %w", op.Op, op.Net, errno)
		}
		return errno
	case errors.As(err, &alert):
		return alert
	case errors.As(err, &timed) && timed.Timeout():
		return errTimeout
	case errors.As(err, new(handshake)):
		return errHandshake
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return errTransport
}

// handshake marks an error of the TLS handshake.
type handshake struct{ error }

// Unwrap returns the transport's error.
func (h handshake) Unwrap() error { return h.error }

var (
	errHandshake = errors.New("the TLS handshake failed")
	errTimeout   = errors.New("timeout")
	errTransport = errors.New("the connection broke, or what came back is not HTTP")
)

// Classify makes an error of a reply by its status alone. It is what [Client.Do] returns for statuses the adapter does
// not judge itself.
func Classify(r Reply) error {
	after := RetryAfter(r.Header)
	e := &adapters.Error{RetryAfter: after, Message: fmt.Sprintf("the target answered %d %s", r.Status, http.StatusText(r.Status))}
	switch s := r.Status; {
	case s == http.StatusUnauthorized || s == http.StatusProxyAuthRequired:
		e.Kind, e.Message = adapters.Credentials, "the target does not accept the account's credentials"
	case s == http.StatusForbidden:
		e.Kind, e.Message = adapters.Denied, "the account lacks a privilege at the target"
	case s == http.StatusTooManyRequests, s == http.StatusServiceUnavailable && !r.Mutating:
		// After a 503 a mutating request is uncertain like after any other 5xx: proxies say it also when the connection
		// behind them broke after the request was passed on. An adapter that knows the product's own 503 says Busy.
		e.Kind = adapters.Busy
	case s >= 500 || s == http.StatusRequestTimeout:
		e.Kind = adapters.Unreachable
		if r.Mutating {
			e.Kind = adapters.Uncertain
		}
	case s >= 400:
		e.Kind = adapters.Rejected
	default:
		e.Kind, e.Message = adapters.BadReply, fmt.Sprintf("the target answered with an unexpected status %d", s)
	}
	return e
}

// maxRetryAfter bounds what a target may ask for: a header must not postpone a kill until the run expires.
const maxRetryAfter = time.Hour

// RetryAfter reads the header of that name, in seconds or as a date; zero if there is none. It is at most an hour.
func RetryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), maxRetryAfter)
	}
	return 0
}
