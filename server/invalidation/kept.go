package invalidation

import (
	"time"

	"github.com/endsession/endsession/adapters"
)

// Kept is the run as the journal keeps it: times in microseconds, nothing that contradicts the state. now is when it ended, if
// it does not say.
func (r Run) Kept(now time.Time) Run {
	r.NextAttemptTime = Moment(r.NextAttemptTime)
	r.ExpireTime = Moment(r.ExpireTime)
	r.StartTime = Moment(r.StartTime)
	r.CompleteTime = Moment(r.CompleteTime)
	r.Retry.StillAliveSince = Moment(r.Retry.StillAliveSince)
	if !r.State.Final() {
		r.CompleteTime = time.Time{}
	} else {
		r.NextAttemptTime = time.Time{}
		if r.CompleteTime.IsZero() {
			r.CompleteTime = Moment(now)
		}
	}
	if !r.Counted {
		r.Count = 0
	}
	if len(r.Sessions) == 0 {
		r.Sessions = nil
	} else {
		sessions := make([]adapters.Session, len(r.Sessions))
		for i, s := range r.Sessions {
			s.CreateTime, s.LastAccessTime, s.ExpireTime = Moment(s.CreateTime), Moment(s.LastAccessTime), Moment(s.ExpireTime)
			sessions[i] = s
		}
		r.Sessions = sessions
	}
	if len(r.Covered) == 0 {
		r.Covered = nil
	}
	if len(r.Warnings) == 0 {
		r.Warnings = nil
	}
	if len(r.Resume) == 0 {
		r.Resume = nil
	}
	return r
}

// Moment is t as the journal keeps it: in microseconds, UTC.
func Moment(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}
