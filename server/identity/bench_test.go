package identity_test

import (
	"testing"

	"github.com/endsession/endsession/server/alloctest"
	"github.com/endsession/endsession/server/invalidation"
)

// resolutions resolve one person at each target: by an expression, or by a look into the directory.
func resolutions(tb testing.TB) map[string]func() {
	r := newResolver(tb, options(tb))
	all := map[string]func(){}
	for _, target := range []string{"apm", "kibana", "storage"} {
		all[target] = func() {
			if _, err := r.Resolve(tb.Context(), target, invalidation.Selector{User: user("alice")}); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return all
}

// BenchmarkResolve is what the names of one person at one target cost.
func BenchmarkResolve(b *testing.B) {
	for target, resolve := range resolutions(b) {
		b.Run(target, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resolve()
			}
		})
	}
}

func TestAllocations(t *testing.T) { alloctest.Compare(t, resolutions(t)) }
