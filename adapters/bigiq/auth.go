package bigiq

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
	"github.com/endsession/endsession/adapters/secret"
)

const (
	// tokenLife is how long a token lives when BIG-IQ does not say.
	tokenLife = 5 * time.Minute
	// tokenMargin is how long before its end a token is no longer used.
	tokenMargin = 30 * time.Second
)

// client sends requests with the account's authority. It holds one token for everybody and gets a new one when needed.
type client struct {
	http *httpclient.Client
	conf Config

	// turns guards the fields below.
	turns   *turns
	token   secret.String
	refresh secret.String
	renewAt time.Time
}

func newClient(h *httpclient.Client, conf Config) *client {
	return &client{http: h, conf: conf, turns: newTurns()}
}

// do sends a call. A token that BIG-IQ no longer accepts is replaced once, and the call repeated: it had no effect, and
// says nothing about a task that is being polled.
func (c *client) do(ctx context.Context, call httpclient.Call) (httpclient.Reply, error) {
	if c.conf.Basic {
		auth := c.conf.Username + ":" + c.conf.Password.Reveal()
		call.Header = http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(auth))}}
		reply, err := c.http.Do(ctx, call)
		if reply.Status == http.StatusUnauthorized && !reply.IsJSON() {
			err = adapters.Errorf(adapters.Credentials, "BIG-IQ does not accept HTTP Basic authentication: it is off, or the password is wrong")
		}
		return reply, err
	}
	token, err := c.authorise(ctx, secret.String{})
	if err != nil {
		return httpclient.Reply{}, err
	}
	reply, err := c.http.Do(ctx, withToken(call, token))
	if reply.Status != http.StatusUnauthorized {
		return reply, err
	}
	if token, err = c.authorise(ctx, token); err != nil {
		return httpclient.Reply{}, err
	}
	return c.http.Do(ctx, withToken(call, token))
}

func withToken(call httpclient.Call, token secret.String) httpclient.Call {
	call.Header = http.Header{headerToken: {token.Reveal()}}
	return call
}

// check logs in anew, so that a probe tells about the password and not about a token. The token that runs use is kept
// unless the password is refused.
func (c *client) check(ctx context.Context) error {
	return c.turns.take(ctx, func() bool { return false }, func() error {
		err := c.login(ctx)
		if adapters.KindOf(err) == adapters.Credentials {
			c.forget()
		}
		return err
	})
}

func (c *client) forget() { c.token, c.refresh = secret.String{}, secret.String{} }

// authorise returns a token other than stale.
func (c *client) authorise(ctx context.Context, stale secret.String) (token secret.String, err error) {
	valid := func() bool {
		if !stale.IsZero() && c.token.Equal(stale) {
			c.forget() // BIG-IQ does not know the token; its refresh token is of the same login
		}
		token = c.token
		return !token.IsZero() && time.Now().Before(c.renewAt)
	}
	err = c.turns.take(ctx, valid, func() error {
		err := c.renew(ctx)
		token = c.token
		return err
	})
	return token, err
}

func (c *client) renew(ctx context.Context) error {
	if !c.refresh.IsZero() {
		if err := c.exchange(ctx); err == nil || !final(err) {
			return err
		}
		// The refresh token has ended: it lives ten hours from the login, and exchanging does not extend it.
	}
	c.forget()
	return c.login(ctx)
}

// final reports whether BIG-IQ answered and refused.
func final(err error) bool {
	switch adapters.KindOf(err) {
	case adapters.Credentials, adapters.Denied, adapters.Rejected:
		return true
	}
	return false
}

func (c *client) exchange(ctx context.Context) error {
	reply, err := c.http.Do(ctx, httpclient.Call{Method: http.MethodPost, Path: pathExchange,
		JSON: exchangeRequest{RefreshToken: tokenValue{c.refresh.Reveal()}}})
	if err != nil {
		return err
	}
	return c.accept(reply)
}

func (c *client) login(ctx context.Context) error {
	req := loginRequest{Username: c.conf.Username, Password: c.conf.Password.Reveal()}
	link, err := c.loginLink(ctx)
	if err != nil {
		return err
	}
	if link != "" {
		req.LoginReference = &reference{Link: link}
	}
	reply, err := c.http.Do(ctx, httpclient.Call{Method: http.MethodPost, Path: pathLogin, JSON: req})
	if reply.Status == http.StatusBadRequest && tooManyTokens(reply) {
		// They end within minutes.
		return adapters.Wrap(adapters.Busy, err, "the account holds as many tokens as BIG-IQ allows")
	}
	if err != nil {
		return err
	}
	return c.accept(reply)
}

// accept keeps the tokens of an answer.
func (c *client) accept(reply httpclient.Reply) error {
	var l loginReply
	if err := reply.Decode(&l); err != nil {
		return err
	}
	if !validToken(l.Token.Token) {
		return adapters.Errorf(adapters.BadReply, "BIG-IQ answered the login without a token")
	}
	life := time.Duration(l.Token.Timeout) * time.Second
	if life <= 0 || life > 24*time.Hour {
		life = tokenLife
	}
	c.token = secret.New(l.Token.Token)
	c.renewAt = time.Now().Add(life - min(tokenMargin, life/5))
	if l.RefreshToken.Token != "" {
		c.refresh = secret.New(l.RefreshToken.Token)
	}
	return nil
}

// validToken reports whether a token can stand in a header.
func validToken(t string) bool {
	return t != "" && len(t) < 64<<10 && !strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' })
}

// localProvider is built in and needs no reference.
const localProvider = "local"

// loginLink is where the account's provider takes logins; empty for local accounts.
func (c *client) loginLink(ctx context.Context) (string, error) {
	name := c.conf.LoginProvider
	if name == "" || name == localProvider {
		return "", nil
	}
	if u, err := url.Parse(name); err == nil && u.Scheme != "" && u.Host != "" {
		return name, nil
	}
	info, _, err := c.info(ctx)
	if err != nil {
		return "", err
	}
	var links []string
	for _, p := range info.Providers {
		if p.Name == name && p.Link != "" {
			links = add(links, p.Link)
		}
	}
	if len(links) != 1 {
		return "", adapters.Errorf(adapters.Credentials, "login_provider: BIG-IQ lists %s with the name %q", providers(len(links)), name)
	}
	return links[0], nil
}

func providers(n int) string {
	if n == 0 {
		return "no authentication provider"
	}
	return fmt.Sprintf("%d authentication providers", n)
}

// info asks what BIG-IQ says of itself to anybody.
func (c *client) info(ctx context.Context) (info infoReply, reply httpclient.Reply, err error) {
	reply, err = c.http.Do(ctx, get(pathInfo, ""))
	if err == nil {
		err = reply.Decode(&info)
	}
	return info, reply, err
}
