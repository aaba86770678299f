package ldap

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// maxAnswers bounds the answers that are kept. A group's members are one answer.
const maxAnswers = 4096

// answers keeps what was answered until it is too old. Only what names somebody is kept: that a person is unknown, or not
// a member, or that two entries fit, may be mended the next moment, and whoever mends it tries again at once.
type answers struct {
	age    time.Duration
	flight singleflight.Group

	mu   sync.Mutex
	kept map[string]kept
}

type kept struct {
	value any
	// asked is when the question was put: the answer is not younger than that.
	asked time.Time
}

func (a *answers) get(key string) (any, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.kept[key]
	if !ok || time.Since(k.asked) >= a.age {
		return nil, false
	}
	return k.value, true
}

func (a *answers) keep(key string, value any, asked time.Time) {
	if a.age == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.kept) >= maxAnswers {
		for key, k := range a.kept {
			if time.Since(k.asked) >= a.age {
				delete(a.kept, key)
			}
		}
	}
	if a.kept == nil || len(a.kept) >= maxAnswers {
		a.kept = map[string]kept{}
	}
	a.kept[key] = kept{value, asked}
}

// answer answers a question from what is kept, or asks; those who ask the same at the same time share the answer. The
// question goes on when its caller leaves, for the others. What it returns is shared: nobody changes it.
func answer[T any](ctx context.Context, d *Directory, key string, question func(context.Context, *conn) (value T, keep bool, err error)) (T, error) {
	var none T
	if v, ok := d.answers.get(key); ok {
		return v.(T), nil
	}
	ch := d.answers.flight.DoChan(key, func() (any, error) {
		asked := time.Now()
		var value T
		var keep bool
		err := d.ask(func(ctx context.Context, c *conn) (err error) {
			value, keep, err = question(ctx, c)
			return err
		})
		if err != nil {
			return none, err
		}
		if keep {
			d.answers.keep(key, value, asked)
		}
		return value, nil
	})
	select {
	case r := <-ch:
		return r.Val.(T), r.Err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
