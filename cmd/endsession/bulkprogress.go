package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	// plainEvery is how often a line is written where there is no terminal.
	plainEvery = 10 * time.Second
	// paceOver is the time over which the pace is measured.
	paceOver = 30 * time.Second
)

// pace measures how fast a job goes.
type pace struct {
	marks []paceMark
}

type paceMark struct {
	at   time.Time
	done int
}

// add takes in how many are done now, and returns how many a second were of late.
func (p *pace) add(now time.Time, done int) (perSecond float64) {
	p.marks = append(p.marks, paceMark{now, done})
	for len(p.marks) > 2 && now.Sub(p.marks[1].at) >= paceOver {
		p.marks = p.marks[1:]
	}
	first := p.marks[0]
	if took := now.Sub(first.at); took > 0 {
		return float64(done-first.done) / took.Seconds()
	}
	return 0
}

// progressText says how far a job is.
func progressText(t bulkTally, perSecond float64, silent time.Time) string {
	parts := []string{fmt.Sprintf("%d succeeded", t.succeeded)}
	for _, x := range []struct {
		n    int
		what string
	}{
		{t.partial, "partly"}, {t.failed, "failed"}, {t.cancelled, "cancelled"}, {t.refused, "refused"}, {t.lost, "unknown"}, {t.running, "running"},
	} {
		if x.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	if t.done() < t.total {
		parts = append(parts, fmt.Sprintf("%.3g/s", perSecond))
		if perSecond > 0 {
			left := time.Duration(float64(t.total-t.done())/perSecond*float64(time.Second)) + time.Second
			parts = append(parts, "about "+roughly(left)+" left")
		}
	}
	if !silent.IsZero() {
		parts = append(parts, "the gateway gives no answer for "+roughly(time.Since(silent)+time.Second))
	}
	return strings.Join(parts, ", ")
}

// roughly writes a time in its one or two greatest units.
func roughly(d time.Duration) string {
	for _, unit := range []struct {
		great, small time.Duration
		names        string
	}{{24 * time.Hour, time.Hour, "dh"}, {time.Hour, time.Minute, "hm"}, {time.Minute, time.Second, "ms"}} {
		if d < unit.great {
			continue
		}
		text := fmt.Sprintf("%d%c", d/unit.great, unit.names[0])
		if rest := d % unit.great / unit.small; rest > 0 {
			text += fmt.Sprintf("%d%c", rest, unit.names[1])
		}
		return text
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// showProgress shows how far the job is until the function that it returns is called: as a bar on a terminal, otherwise
// as a line now and then. Neither has colours.
func showProgress(s *screen, j *bulkJob) (done func()) {
	if s.live() {
		return showBar(s.Writer, j)
	}
	return showLines(s, j)
}

func showLines(w io.Writer, j *bulkJob) (done func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var p pace
		p.add(time.Now(), j.count().done())
		tick := time.NewTicker(plainEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case now := <-tick.C:
				t := j.count()
				fmt.Fprintf(w, "%d of %d done: %s\n", t.done(), t.total, progressText(t, p.add(now, t.done()), j.calls.quiet()))
			}
		}
	})
	return func() { close(stop); wg.Wait() }
}

func showBar(w io.Writer, j *bulkJob) (done func()) {
	var p pace
	var text string
	var told time.Time
	progress := mpb.New(mpb.WithOutput(w))
	bar := progress.New(int64(len(j.entries)), mpb.BarStyle().Rbound("]").Lbound("["),
		mpb.BarWidth(30),
		mpb.PrependDecorators(decor.CountersNoUnit("%d/%d ")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			t := j.count()
			if now := time.Now(); now.Sub(told) >= time.Second || t.done() == t.total {
				text, told = " "+progressText(t, p.add(now, t.done()), j.calls.quiet()), now
			}
			return text
		})),
	)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				bar.SetCurrent(int64(min(j.count().done(), len(j.entries)-1))) // the last one would end it
			}
		}
	})
	return func() {
		close(stop)
		wg.Wait()
		t := j.count()
		bar.SetCurrent(int64(t.done()))
		if t.done() < t.total {
			bar.Abort(false)
		}
		progress.Wait()
	}
}
