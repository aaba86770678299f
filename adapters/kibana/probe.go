package kibana

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Probe implements [adapters.Adapter]. It asks the invalidation API for something its schema refuses, which Kibana finds
// only after credentials and privilege have passed. A query that is accepted and matches nothing would try Elasticsearch as
// well, but the day it matches something it would be a kill; Kibana's own word on Elasticsearch is good enough.
func (a *Adapter) Probe(ctx context.Context) (adapters.Health, error) {
	p := &probe{Adapter: a}
	if p.account(ctx) && ctx.Err() == nil {
		for _, step := range []func(context.Context){p.status, p.anonymously, p.scope} {
			step(ctx)
			if ctx.Err() != nil {
				break
			}
		}
	}
	return p.health, ctx.Err()
}

type probe struct {
	*Adapter
	health adapters.Health
}

func (p *probe) add(name string, status adapters.CheckStatus, message, remedy string) {
	p.health.Checks = append(p.health.Checks, adapters.Check{Name: name, Status: status, Message: message, Remedy: remedy})
}

// probeCall cannot end a session, so it is not marked as mutating.
func probeCall() httpclient.Call {
	return httpclient.Call{Method: http.MethodPost, Path: invalidatePath, JSON: probeBody(), Accept: judged[:]}
}

// account looks at everything that must be right before a body is checked.
func (p *probe) account(ctx context.Context) bool {
	reply, err := p.client.Do(ctx, probeCall())
	if ctx.Err() != nil {
		return false
	}
	checks, reached := p.client.CheckConnection("Kibana", reply, err)
	p.health.Checks = append(p.health.Checks, checks...)
	if !reached {
		return false
	}
	if err == nil && !refusedBody(reply) {
		err = judge(reply)
	}
	message := public(err)
	switch adapters.KindOf(err) {
	case 0:
		p.accepted()
		p.add("privilege", adapters.CheckOK, "the account is a superuser; with less Kibana lets nobody end sessions", "")
		p.add("api", adapters.CheckOK, "Kibana offers session invalidation", "")
		return true
	case adapters.Credentials:
		p.add(adapters.CheckCredentials, adapters.CheckFailed, message,
			"use an API key, or make sure that Kibana has a provider that accepts a user name and password")
	case adapters.Denied:
		p.accepted()
		p.add("privilege", adapters.CheckFailed, message,
			"give the account the superuser role; an API key needs an owner with it and no narrower role descriptors")
	case adapters.Rejected:
		p.add("api", adapters.CheckFailed, message, "check the version of Kibana, server.basePath and server.excludeRoutes")
	case adapters.BadReply:
		p.add("api", adapters.CheckFailed, message, "check that the url is Kibana's own and no login page is in between")
	case adapters.Busy:
		p.add("api", adapters.CheckFailed, message, "wait until Kibana has started, or has less to do")
	default:
		p.add("api", adapters.CheckFailed, message, "look at Kibana's log, and at what stands between")
	}
	return false
}

func (p *probe) accepted() {
	p.add(adapters.CheckCredentials, adapters.CheckOK, "Kibana accepts the account", "")
}

// public is the public part of an error.
func public(err error) string {
	var e *adapters.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "the check was cut short"
}

// refusedBody reports whether the reply says that everything was in order but the body's "match".
func refusedBody(r httpclient.Reply) bool {
	message, kibana := errorMessage(r)
	return r.Status == http.StatusBadRequest && kibana && strings.HasPrefix(message, schemaRefusal+".match]")
}

// Session invalidation came with 7.13, and is the same up to 9.x.
const (
	firstMinor = 13 // of 7
	lastMajor  = 9
)

var versionText = regexp.MustCompile(`^([0-9]{1,4})\.([0-9]{1,4})(?:[.-].*)?$`)

// status judges what Kibana says of itself: its version, and whether it reaches Elasticsearch. Not every account is told.
func (p *probe) status(ctx context.Context) {
	var told status
	// A Kibana that is not well tells so with 503, in the same form.
	if reply, err := p.client.Do(ctx, httpclient.Call{Method: http.MethodGet, Path: statusPath, Accept: []int{http.StatusServiceUnavailable}}); err == nil {
		told = decodeStatus(reply)
	}
	if ctx.Err() != nil {
		return
	}
	p.health.Version = told.version
	m := versionText.FindStringSubmatch(told.version)
	if m == nil {
		p.add("version", adapters.CheckUnknown, "Kibana does not tell its version", "look it up at Kibana: it should be 7.13 or later")
	} else {
		major, _ := strconv.Atoi(m[1])
		minor, _ := strconv.Atoi(m[2])
		switch {
		case major < 7 || major == 7 && minor < firstMinor:
			p.add("version", adapters.CheckWarning, told.version+" is older than 7.13, the first with session invalidation", "update Kibana, or look what answers in its name")
		case major > lastMajor:
			p.add("version", adapters.CheckWarning, fmt.Sprintf("%s is newer than %d, the last that is known here", told.version, lastMajor),
				"end the sessions of a test account, and look whether it is signed out")
		default:
			p.add("version", adapters.CheckOK, told.version, "")
		}
	}
	const remedy = "look at Kibana's status page and at Elasticsearch"
	switch told.elasticsearch {
	case "available", "green":
		p.add("elasticsearch", adapters.CheckOK, "Kibana reports Elasticsearch as "+told.elasticsearch, "")
	case "degraded", "yellow":
		p.add("elasticsearch", adapters.CheckWarning, "Kibana reports Elasticsearch as "+told.elasticsearch, remedy)
	case "unavailable", "critical", "red":
		p.add("elasticsearch", adapters.CheckFailed, "Kibana reports Elasticsearch as "+told.elasticsearch, remedy)
	}
}

// anonymously makes sure that a request without credentials is turned away. Where it is not, security is off in
// Elasticsearch, and anybody can end sessions.
func (p *probe) anonymously(ctx context.Context) {
	call := probeCall()
	call.Header = http.Header{"Authorization": nil}
	reply, err := p.client.Do(ctx, call)
	switch {
	case ctx.Err() != nil:
	case err == nil && reply.Status == http.StatusUnauthorized:
		p.add("security", adapters.CheckOK, "Kibana turns away requests without credentials", "")
	case err == nil && refusedBody(reply):
		p.add("security", adapters.CheckWarning, "Kibana ends sessions for anybody: it did not ask for credentials",
			"enable the security features of Elasticsearch")
	default:
		p.add("security", adapters.CheckUnknown, "Kibana does not tell whether it asks for credentials",
			"make sure that xpack.security.enabled is not false in Elasticsearch")
	}
}

// scope compares the providers Kibana has with those a user is looked for at, and with those that are mapped to.
func (p *probe) scope(ctx context.Context) {
	listed, err := p.providers(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		p.add("scope", adapters.CheckUnknown, "Kibana does not list its providers; named providers must be mapped",
			"compare provider_types and providers with xpack.security.authc.providers in kibana.yml")
		return
	}
	var names, missed []string
	for _, x := range listed {
		name := x.String()
		if !presentable(name) {
			name = fmt.Sprintf("one with an unusual name (%d bytes)", len(name))
		}
		names = append(names, name)
		if !slices.Contains(p.anywhere, x.Type) {
			missed = append(missed, name)
		}
	}
	message := "providers: " + enumerate(names)
	if len(missed) > 0 {
		p.add("scope", adapters.CheckWarning, message+"; a user is not looked for at "+enumerate(missed), "add the type to provider_types, if it owns sessions")
	} else {
		p.add("scope", adapters.CheckOK, message, "")
	}
	p.mapping(listed)
}

// mapping looks up what providers are mapped to. It is never worse than a warning: selectors that do not use the mapping
// work, and sessions of a provider that was removed may still be meant.
func (p *probe) mapping(listed []adapters.Provider) {
	if len(p.mapped) == 0 {
		return
	}
	var unknown []string
	for _, m := range p.mapped {
		if !slices.ContainsFunc(listed, func(x adapters.Provider) bool { return x.Type == m.Type && (m.Name == "" || x.Name == m.Name) }) {
			unknown = append(unknown, m.String())
		}
	}
	if len(unknown) == 0 {
		p.add("mapping", adapters.CheckOK, fmt.Sprintf("Kibana lists all that providers are mapped to: %d", len(p.mapped)), "")
		return
	}
	p.add("mapping", adapters.CheckWarning, "Kibana does not list "+enumerate(unknown)+": what is mapped to it ends nothing, and looks like success",
		"correct providers in the configuration: the names are the keys under xpack.security.authc.providers in kibana.yml")
}
