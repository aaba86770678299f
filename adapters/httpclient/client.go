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
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Defaults of [Options].
const (
	DefaultTimeout = 60 * time.Second
	DefaultMaxBody = 16 << 20
	connectTimeout = 15 * time.Second
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
			if len(cs.PeerCertificates) > 0 {
				if got := sha256.Sum256(cs.PeerCertificates[0].Raw); bytes.Equal(got[:], want) {
					return nil
				}
			}
			return errPin
		}
	}
	return conf, nil
}

var errPin = errors.New("the certificate is not the pinned one")

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
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = strings.TrimRight(u.RawPath, "/")
	u.Host = strings.ToLower(u.Host)
	return u, nil
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
	// Deps bring the transport and the rate limit.
	Deps adapters.Deps
}

// Client sends requests to one target. It is safe for concurrent use.
type Client struct {
	base    *url.URL
	http    *http.Client
	timeout time.Duration
	maxBody int64
	header  http.Header
	limit   func(context.Context) error
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
			MaxIdleConnsPerHost:    64,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 256 << 10,
			ForceAttemptHTTP2:      true,
		}
	}
	c := &Client{
		base:    o.BaseURL,
		timeout: o.Timeout,
		maxBody: o.MaxBody,
		header:  o.Header.Clone(),
		limit:   o.Deps.Limit,
		http: &http.Client{
			Transport: transport,
			// A redirect is an answer like any other: following one would carry a kill to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
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
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Call is one request.
type Call struct {
	Method string
	// Path is appended to the base URL's path as it is: it starts with "/" and is already escaped.
	Path string
	// Query is the raw query, without "?", already escaped.
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
}

// IsJSON reports whether the content type says JSON ("application/json", "application/json-rpc", "…+json").
func (r Reply) IsJSON() bool {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && (t == "application/json" || t == "application/json-rpc" || strings.HasSuffix(t, "+json"))
}

// Decode unmarshals a JSON body. Anything else, a page of a proxy say, is [adapters.BadReply].
func (r Reply) Decode(v any) error {
	if !r.IsJSON() {
		return adapters.Errorf(adapters.BadReply, "the target answered %d with something other than JSON", r.Status)
	}
	if err := json.Unmarshal(r.Body, v); err != nil {
		// The decoder's message may quote the body.
		return adapters.Errorf(adapters.BadReply, "the target answered %d with JSON that cannot be read", r.Status)
	}
	return nil
}

// Do sends a request. A reply of status 2xx or in call.Accept comes back without error; everything else is classified
// by [Classify]. Transport failures are classified by whether the request can have had an effect. When the caller's
// context ended before the request was sent its error is returned as it is.
func (c *Client) Do(ctx context.Context, call Call) (Reply, error) {
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
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	// The request counts as sent from the first byte that may have reached a connection. A transport without trace hooks
	// (an in-memory one) counts as sending at once.
	var traced, sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { traced.Store(true) },
		WroteHeaders: func() { sent.Store(true) },
	})
	resp, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		return Reply{}, c.failure(ctx, call, sent.Load() || !traced.Load(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.maxBody+1))
	if err != nil {
		return Reply{}, c.failure(ctx, call, true, err)
	}
	if int64(len(body)) > c.maxBody {
		return Reply{}, adapters.Errorf(adapters.BadReply, "the target's answer is longer than %d bytes", c.maxBody)
	}
	reply := Reply{Status: resp.StatusCode, Header: resp.Header, Body: body, Mutating: call.Mutating}
	if reply.Status/100 == 2 {
		return reply, nil
	}
	for _, s := range call.Accept {
		if s == reply.Status {
			return reply, nil
		}
	}
	return reply, Classify(reply)
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
		return nil, adapters.Errorf(adapters.Rejected, "the request's URL is malformed")
	}
	for _, h := range []http.Header{c.header, call.Header} {
		for k, v := range h {
			req.Header[k] = v
		}
	}
	if call.JSON != nil {
		t := call.ContentType
		if t == "" {
			t = "application/json"
		}
		req.Header.Set("Content-Type", t)
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	// http.Transport repeats a request on its own when a reused connection turns out to be closed and nothing was
	// written; that is harmless, and the only repetition there is.
	return req, nil
}

// URL is where a call goes.
func (c *Client) URL(call Call) string {
	u := c.base.Scheme + "://" + c.base.Host + c.base.EscapedPath() + call.Path
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

// failure classifies an error of the transport.
func (c *Client) failure(ctx context.Context, call Call, sent bool, err error) error {
	cause := redact(err)
	if call.Mutating && sent {
		return adapters.Wrap(adapters.Uncertain, cause, "the request was sent and its answer is lost")
	}
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled
	}
	if e := certificate(err); e != nil {
		return adapters.Wrap(adapters.Unreachable, cause, "the target's certificate is not trusted")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return adapters.Wrap(adapters.Unreachable, cause, "the target did not answer in time")
	}
	return adapters.Wrap(adapters.Unreachable, cause, "the target cannot be reached")
}

// certificate returns err if the target's certificate was refused.
func certificate(err error) error {
	var v *tls.CertificateVerificationError
	var h x509.HostnameError
	if errors.As(err, &v) || errors.As(err, &h) || errors.Is(err, errPin) {
		return err
	}
	return nil
}

// IsCertificate reports whether err says that the target's certificate is not trusted.
func IsCertificate(err error) bool { return certificate(err) != nil }

// redact takes the URL out of a transport's error: it may hold names.
func redact(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

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
	if v == "" {
		return 0
	}
	var d time.Duration
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		d = min(time.Duration(min(n, int(maxRetryAfter/time.Second)))*time.Second, maxRetryAfter)
	} else if t, err := http.ParseTime(v); err == nil {
		d = min(max(time.Until(t), 0), maxRetryAfter)
	}
	return d
}
