package identity_test

import (
	"testing"

	"github.com/endsession/endsession/server/invalidation"
)

// BenchmarkResolve is what the names of one person at one target cost: an expression, and a look into the directory.
func BenchmarkResolve(b *testing.B) {
	r := newResolver(b, options(b))
	for _, target := range []string{"apm", "kibana", "storage"} {
		b.Run(target, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Resolve(b.Context(), target, invalidation.Selector{User: user("alice")}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
