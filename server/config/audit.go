package config

import (
	"errors"
	"fmt"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/config/strictyaml"
)

// Audit says how the audit trail is kept.
type Audit struct {
	// Key hashes the trail, so that nobody who can only write to the database can change it unseen: at least 32 random
	// characters, the same for all gateways that share the journal. Absent: hashes have no key, and prove less.
	Key secret.String `yaml:"key,omitempty"`
	// PreviousKeys are those that older parts of the trail were hashed with.
	PreviousKeys []secret.String `yaml:"previous_keys,omitempty"`
	// Retention is how long audit events are kept, at least as long as the invalidations that they tell of. Default: 400d, or
	// as long as those if that is longer.
	Retention Duration `yaml:"retention"`

	// Where is the section's place in the file, for messages.
	Where string `yaml:"-"`
}

// DefaultAuditRetention is 13 months.
const DefaultAuditRetention = Duration(400 * 24 * time.Hour)

// SetDefaults implements [strictyaml.Defaulter].
func (a *Audit) SetDefaults() { a.Retention = DefaultAuditRetention }

func (p *parser) audit() {
	a := &p.config.Audit
	key, n := strictyaml.Lookup(p.Root(), "audit")
	line := p.Root().Line
	if key != nil {
		line = key.Line
	}
	a.Where = p.Where(line, "audit")
	// A reference to nothing must not become a trail without a key.
	if _, v := strictyaml.Lookup(n, "key"); v != nil && a.Key.IsZero() && !p.Reported("audit.key") {
		p.Invalid(v, v.Line, "audit.key", errors.New("empty"))
	}
	if p.Reported("retention") || p.Reported("audit.retention") {
		return
	}
	_, v := strictyaml.Lookup(n, "retention")
	switch {
	case v == nil:
		a.Retention = max(a.Retention, p.config.Retention)
	case a.Retention < p.config.Retention:
		p.Invalid(v, v.Line, "audit.retention", fmt.Errorf("want at least the %v that invalidations are kept (retention)", p.config.Retention))
	}
}
