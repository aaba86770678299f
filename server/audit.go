package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"github.com/endsession/endsession/server/api"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/postgres"
	"github.com/endsession/endsession/server/store/sqlite"
)

// AuditKeys are the keys of the audit trail that a configuration names.
func AuditKeys(c *config.Config) (audit.Keys, error) {
	keys, err := audit.NewKeys(c.Audit.Key, c.Audit.PreviousKeys...)
	if err != nil {
		return audit.Keys{}, fmt.Errorf("%s: %w", c.Audit.Where, err)
	}
	return keys, nil
}

// Trail is the audit trail of a journal, read beside the gateways that write it. What is read is of one moment, that of the
// first read, until Refresh.
type Trail interface {
	audit.Journal
	// Tips returns the last events of all chains.
	Tips(ctx context.Context) ([]audit.Tip, error)
	// Refresh lets go of that moment: the next read is of the journal as it is then.
	Refresh(ctx context.Context) error
	Close() error
}

// OpenTrail opens the audit trail of the journal that a configuration names.
func OpenTrail(ctx context.Context, c *config.Config) (Trail, error) {
	if p := c.Store.Postgres; p != nil {
		t, err := postgres.OpenTrail(ctx, p.DSN)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
	t, err := sqlite.OpenTrail(c.Store.SQLite.Path)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// noter is the part of the engine that journals what changes nothing.
type noter interface {
	Note(ctx context.Context, source string, event invalidation.Event)
}

// refusals tells the log and the audit trail of those who are not let in.
type refusals struct {
	log   *api.LogRefusals
	audit noter
}

// Refused implements [api.Refusals].
func (r refusals) Refused(ctx context.Context, call api.RefusedCall) {
	r.log.Refused(ctx, call)
	data, err := json.Marshal(struct {
		Method   string `json:"method"`
		Why      string `json:"why"`
		Whose    string `json:"whose,omitempty"`
		Remote   string `json:"remote,omitempty"`
		Unjudged bool   `json:"unjudged,omitempty"`
	}{call.Method, call.Why, short(call.Whose), call.Remote, call.Unjudged})
	if err != nil {
		return // texts always can be marshalled
	}
	// The name that a refused credential claims proves nothing, and is not the caller's.
	r.audit.Note(ctx, host(call.Remote), invalidation.Event{
		Type: invalidation.EventRefused, Caller: invalidation.Caller{Kind: call.Kind}, Data: data,
	})
}

// maxWhose bounds what is kept of a name that anybody can write into a credential.
const maxWhose = 128

func short(s string) string {
	if len(s) > maxWhose {
		s = s[:maxWhose]
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
}

// host is an address without its port, which changes with every connection.
func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return address
}
