package element

import (
	"context"
	"errors"
	"fmt"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Probe implements [adapters.Adapter]. It asks anew what the cluster offers, who the account is, and lists the sessions,
// which only an administrator may; nothing changes.
func (a *Adapter) Probe(ctx context.Context) (adapters.Health, error) {
	var h adapters.Health
	add := func(name string, status adapters.CheckStatus, message, remedy string) {
		h.Checks = append(h.Checks, adapters.Check{Name: name, Status: status, Message: message, Remedy: remedy})
	}
	api, err := a.rpc.negotiate(ctx)
	if ctx.Err() != nil {
		return h, ctx.Err()
	}
	kind := adapters.KindOf(err)
	switch {
	case httpclient.IsCertificate(err):
		add("reachable", adapters.CheckOK, "the cluster answers", "")
		add("tls", adapters.CheckFailed, public(err), "set ca_file or pin_sha256; clusters come with a self-signed certificate")
		return h, nil
	case kind == adapters.Unreachable || kind == adapters.Busy:
		add("reachable", adapters.CheckFailed, public(err), "check url, name resolution and firewall; during an upgrade, wait")
		return h, nil
	}
	add("reachable", adapters.CheckOK, "the cluster answers", "")
	if a.encrypted {
		add("tls", adapters.CheckOK, "the certificate is trusted", "")
	} else {
		add("tls", adapters.CheckWarning, "the connection is not encrypted", "use https")
	}
	switch {
	case kind == adapters.Credentials:
		add("credentials", adapters.CheckFailed, public(err), "check username and password")
		return h, nil
	case err != nil:
		// Whether it was the address or the version, the message says it.
		add("api", adapters.CheckFailed, public(err), "set url to the cluster's management virtual IP (MVIP), port 443, of Element 12.0 or later")
		return h, nil
	}
	add("credentials", adapters.CheckOK, "the account is accepted", "")
	if api.methods == nil {
		add("api", adapters.CheckUnknown, fmt.Sprintf("version %s; the cluster does not list its methods", api.version), "")
	} else {
		add("api", adapters.CheckOK, fmt.Sprintf("version %s with the session methods", api.version), "")
	}
	a.rpc.mu.Lock()
	a.rpc.api = api
	a.rpc.mu.Unlock()

	a.probePrivilege(ctx, add)
	if result, err := a.rpc.call(ctx, getVersionInfo, none{}, reads); err == nil {
		h.Version = decodeVersionInfo(result)
	}
	if err := ctx.Err(); err != nil {
		return h, err
	}
	return h, nil
}

// probePrivilege adds what the account may do and, if it may list, what the list says about the names of people.
func (a *Adapter) probePrivilege(ctx context.Context, add func(name string, status adapters.CheckStatus, message, remedy string)) {
	const remedy = "give the account the access type administrator"
	var access []string
	result, err := a.rpc.call(ctx, getCurrentAdmin, none{}, reads)
	if err == nil {
		access, err = decodeAccess(result)
	}
	switch {
	case err != nil:
		add("privilege", adapters.CheckFailed, public(err), remedy)
		return
	case !administers(access):
		add("privilege", adapters.CheckFailed, "the account is not an administrator: it would only see and end its own sessions", remedy)
		return
	}
	sessions, err := a.rpc.list(ctx, listActive, none{})
	if err != nil {
		add("privilege", adapters.CheckFailed, public(err), remedy)
		return
	}
	add("privilege", adapters.CheckOK, "the account is an administrator", "")
	if hidden(adapters.Selector{By: adapters.All}, sessions) {
		add("scope", adapters.CheckWarning, identityOpaque.Message, "have the identity provider send a NameID or a uid")
		return
	}
	add("scope", adapters.CheckOK, fmt.Sprintf("%d sessions are listed", len(sessions)), "")
}

// public is an error's message without its cause.
func public(err error) string {
	var e *adapters.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "the check was cut short"
}
