package invalidation

import (
	"context"
	"net/url"
)

// Policy says what callers may do. The engine asks it before it does anything for a caller; it is safe for concurrent
// use.
type Policy interface {
	// Judge decides about one question. A refusal is a [*CallError] with code [Denied]; it says which right is missing,
	// not what the rules are.
	Judge(ctx context.Context, q Question) (Terms, error)

	// Protects reports whether a name is one of a protected person's at a target; target is empty for the id that callers
	// know a person by.
	Protects(target, name string) bool

	// ProtectsPerson is Protects without the gateway's own account at the target, which is guarded against being named
	// only: a broad run may end its sessions.
	ProtectsPerson(target, name string) bool

	// ProtectsAny reports whether there are protected people at a target at all, so that a broad run needs care. The
	// gateway's own account does not count.
	ProtectsAny(target string) bool
}

// Right is one of the things that a caller may be allowed to do.
type Right string

// The rights.
const (
	RightInvalidate Right = "invalidate"
	RightPreview    Right = "preview"
	// RightRead is to read every invalidation, RightReadOwn those that the caller itself asked for. They are judged by the
	// caller alone, without Call, Targets and Names, so that a list can be filtered where it is kept.
	RightRead    Right = "read"
	RightReadOwn Right = "read_own"
	// RightRetry and RightCancel are about an invalidation that the caller may read.
	RightRetry       Right = "retry"
	RightCancel      Right = "cancel"
	RightListTargets Right = "list_targets"
	RightCheck       Right = "check"
	// RightPause is to pause targets and to resume them.
	RightPause Right = "pause"
)

// Rights are all of them.
var Rights = []Right{
	RightInvalidate, RightPreview, RightRead, RightReadOwn, RightRetry, RightCancel, RightListTargets, RightCheck, RightPause,
}

// Question is what a [Policy] is asked.
type Question struct {
	Right  Right
	Caller Caller
	// Call is what would be, or was, asked for: invalidate, preview, retry, cancel. Otherwise nil.
	Call *Call
	// Targets are the targets concerned, in the order of the configuration.
	Targets []string
	// Names are the names of people that would really be sent, by target. A target that is missing has none, or cannot be
	// resolved yet: then it is judged again as soon as it can.
	Names map[string][]string
	// Own says that the invalidation concerned is the caller's.
	Own bool
}

// Terms are under what conditions a call is let through. They are kept with its runs.
type Terms struct {
	// Rule is the rule that allowed it; empty if there are no rules.
	Rule string `json:"rule,omitempty"`
	// Protected allows sessions of protected people to end.
	Protected bool `json:"protected,omitempty"`
	// MaxSessions bounds how many sessions a run may end, where the target can list them first; 0 means no bound.
	MaxSessions int `json:"max_sessions,omitempty"`
	// Unlimited allows broad runs at targets that cannot list what would end.
	Unlimited bool `json:"unlimited,omitempty"`
}

// Facts are what is known of a caller beside its kind and name, for policies to look at. What a policy would need later,
// because a run cannot be resolved yet, is kept in the journal.
type Facts struct {
	Groups []string `json:"groups,omitempty"`
	// Claims are those of an OIDC token.
	Claims map[string]any `json:"claims,omitempty"`
	// Certificate is the client certificate's, if it is what the caller was known by.
	Certificate *CertificateNames `json:"certificate,omitempty"`
}

// CertificateNames are the names in a client certificate.
type CertificateNames struct {
	// Subject is the distinguished name, as RFC 2253 writes it; CommonName the part of it.
	Subject    string   `json:"subject,omitempty"`
	CommonName string   `json:"common_name,omitempty"`
	DNS        []string `json:"dns,omitempty"`
	Emails     []string `json:"emails,omitempty"`
	URIs       []string `json:"uris,omitempty"`
}

// SPIFFEID returns the certificate's SPIFFE id: its only URI, if that is one; otherwise it is empty.
func (c *CertificateNames) SPIFFEID() string {
	if c == nil || len(c.URIs) != 1 {
		return ""
	}
	u, err := url.Parse(c.URIs[0])
	if err != nil || u.Scheme != "spiffe" || u.Host == "" {
		return ""
	}
	return c.URIs[0]
}

// anything is the policy of a gateway without one: it serves this machine only.
type anything struct{}

func (anything) Judge(context.Context, Question) (Terms, error) { return Terms{Unlimited: true}, nil }
func (anything) Protects(string, string) bool                   { return false }
func (anything) ProtectsPerson(string, string) bool             { return false }
func (anything) ProtectsAny(string) bool                        { return false }
