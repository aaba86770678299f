package invalidation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/endsession/endsession/adapters"
)

// Target is one configured upstream instance.
type Target struct {
	Name    string
	Kind    string
	Adapter adapters.Adapter
	Type    adapters.Type
	// Endpoint is the adapter configuration's: the canonical URL and tenant.
	Endpoint string
	// Concurrency is how many attempts may be under way at once, in all processes that share the journal.
	Concurrency int
	// Share is told which part of the target's rate this process may use: it holds so many of the target's slots. Nil if
	// there is no rate to share.
	Share func(held, limit int)
	// RetryFor is how long failed runs are retried at most; zero means the defaults by selector.
	RetryFor time.Duration
	// Supported are the combinations of criteria, in the API's words, that can be resolved for this target now; nil if
	// that is not known.
	Supported func() []adapters.Criteria
}

// Fingerprint identifies what a target's name stands for: kind and endpoint. A run carries the one it was accepted
// with, so that a re-pointed name cannot make it kill somewhere else.
func (t Target) Fingerprint() string {
	sum := sha256.Sum256([]byte(t.Kind + "\x00" + t.Endpoint))
	return hex.EncodeToString(sum[:16])
}

func (t Target) supported() []adapters.Criteria {
	if t.Supported == nil {
		return nil
	}
	return t.Supported()
}

// Resolver turns a canonical selector into a target's own names. It is asked once per run; the answer is journalled.
type Resolver interface {
	Resolve(ctx context.Context, target string, sel Selector) (Resolution, error)
}

// Resolution is the answer of a [Resolver].
type Resolution struct {
	Selector adapters.Selector
	// Nothing says that provably no session can match (not a member, say): then Selector is empty and nothing is sent.
	Nothing  bool
	Warnings []adapters.Warning
}

// ResolveError says why a selector has no resolved form at a target.
type ResolveError struct {
	Reason  adapters.Reason
	Message string
	// Unsupported ends the run as UNSUPPORTED instead of FAILED.
	Unsupported bool
	// Retryable leaves the run PENDING, to be resolved later: the directory does not answer.
	Retryable bool
}

// Error returns the public message.
func (e *ResolveError) Error() string { return e.Message }
