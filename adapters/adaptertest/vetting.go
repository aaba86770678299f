package adaptertest

import (
	"errors"
	"testing"

	"github.com/endsession/endsession/adapters"
)

// errVetting is what the suite's own vetting refuses with.
var errVetting = errors.New("one of them is protected")

// vettingStops holds an adapter that lists sessions against [adapters.Vet]: what it ends was vetted before, and what was
// refused lives.
func vettingStops(t *testing.T, h Harness, d drill) {
	w, r := d.start(t, h)
	w.about = "vetting allows: " + w.about
	asked := 0
	vetted := map[adapters.SessionKey]bool{}
	ctx := adapters.WithVetting(w.ctx, func(sessions []adapters.Session, _ bool) error {
		asked++
		for _, x := range sessions {
			vetted[x.Key()] = true
			if !r.sel.Match(x) {
				w.errorf("%+v was vetted, which the selector does not match", x)
			}
		}
		return nil
	})
	if err := r.drive(ctx); err != nil {
		w.errorf("error %v", err)
	}
	alive := map[adapters.SessionKey]bool{}
	for _, x := range w.e.Sessions() {
		alive[x.Key()] = true
	}
	for _, x := range w.seeded {
		if !alive[x.Key()] && !vetted[x.Key()] {
			w.errorf("%+v was ended without being vetted", x)
		}
	}
	w.judge(true, r.sel)
	w.close()

	for k := 1; k <= asked; k++ {
		w, r := d.start(t, h)
		w.about = "vetting refuses: " + w.about
		calls := 0
		ctx := adapters.WithVetting(w.ctx, func([]adapters.Session, bool) error {
			if calls++; calls >= k {
				return errVetting
			}
			return nil
		})
		if err := r.drive(ctx); !errors.Is(err, errVetting) {
			w.errorf("error %v, want the vetting's", err)
		}
		if k == 1 {
			w.untouched()
			if _, err := w.a.Preview(ctx, r.sel); !errors.Is(err, errVetting) {
				w.errorf("the preview's error is %v, want the vetting's", err)
			}
		}
		w.close()
	}
}
