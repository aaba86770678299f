package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// silence is how long a watch may say nothing before it is taken for broken: the gateway repeats itself every 20 s.
	silence = 50 * time.Second
	// firstDelay and longestDelay are between two tries to watch again.
	firstDelay   = 250 * time.Millisecond
	longestDelay = 10 * time.Second
)

// follower sees an invalidation to its end, or as far as somebody wants to look.
type follower struct {
	client endsessionv1.SessionServiceClient
	view   view
	// harmless says that texts are made harmless to a terminal before they are shown.
	harmless bool
	// again repeats the call that was accepted and waits for it: callers that may end sessions may not be allowed to read
	// what becomes of them except as the answer to their call. Nil if there is no such call.
	again func(ctx context.Context, wait time.Duration) (*endsessionv1.Invalidation, error)
}

// heard is what comes from the gateway: how the invalidation stands, or an error.
type heard struct {
	inv *endsessionv1.Invalidation
	err error
	// over says that there is no use in asking again.
	over bool
}

// forEver as a wait means until the invalidation is final.
const forEver = time.Duration(-1)

// follow shows an invalidation until it is final, the wait is over or the context ends, and returns how it stood at last.
// An error says why it could not be watched to that point.
func (f *follower) follow(ctx context.Context, inv *endsessionv1.Invalidation, wait time.Duration) (*endsessionv1.Invalidation, error) {
	inv = f.prepared(inv)
	f.view.show(inv)
	if final(inv) || wait == 0 {
		return inv, f.view.end(inv)
	}
	watching, stop := context.WithCancel(ctx)
	news, ended := make(chan heard), make(chan struct{})
	go func() {
		defer close(ended)
		f.watch(watching, inv.GetName(), func(h heard) {
			select {
			case news <- h:
			case <-watching.Done():
			}
		})
	}()
	defer func() { stop(); <-ended }()
	var over <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for !final(inv) {
		select {
		case h := <-news:
			switch {
			case h.over:
				_ = f.view.end(inv)
				return inv, &exitError{exitStillRunning, fmt.Errorf("%s goes on, but cannot be watched: %s", inv.GetName(), describe(h.err))}
			case h.err != nil:
				f.view.lost(visible(describe(h.err)))
			case h.inv.GetRevision() >= inv.GetRevision(): // a replica may be behind
				inv = f.prepared(h.inv)
				f.view.show(inv)
			}
		case <-ticker.C:
			f.view.tick()
		case <-over:
			return inv, f.view.end(inv)
		case <-ctx.Done():
			return inv, f.view.end(inv)
		}
	}
	return inv, f.view.end(inv)
}

func (f *follower) prepared(inv *endsessionv1.Invalidation) *endsessionv1.Invalidation {
	if f.harmless {
		inv = proto.Clone(inv).(*endsessionv1.Invalidation)
		defuse(inv.ProtoReflect())
	}
	return inv
}

// watch tells what it hears of an invalidation until it is final, and tries again whenever it hears nothing more.
func (f *follower) watch(ctx context.Context, name string, tell func(heard)) {
	listen, delay := f.stream, firstDelay
	for {
		err := listen(ctx, name, func(inv *endsessionv1.Invalidation) {
			delay = firstDelay
			tell(heard{inv: inv})
		})
		switch code := status.Code(err); {
		case err == nil || ctx.Err() != nil:
			return
		case f.again != nil && (code == codes.NotFound || code == codes.PermissionDenied):
			listen, f.again = f.repeat(f.again), nil
			continue
		case hopeless(code):
			tell(heard{err: err, over: true})
			return
		}
		tell(heard{err: err})
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
		delay = min(2*delay, longestDelay)
	}
}

// hopeless reports whether the gateway would say the same again.
func hopeless(code codes.Code) bool {
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.Unimplemented:
		return true
	}
	return false
}

var (
	errSilent = errors.New("nothing came for too long")
	errBroken = errors.New("the stream ended too early")
)

// stream hands on what a watch says. It returns nil after the final state.
func (f *follower) stream(ctx context.Context, name string, tell func(*endsessionv1.Invalidation)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	impatience := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer impatience.Stop()
	stream, err := f.client.WatchInvalidation(ctx, &endsessionv1.WatchInvalidationRequest{Name: name})
	if err != nil {
		return err
	}
	for {
		msg, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errBroken
		case err != nil && errors.Is(context.Cause(ctx), errSilent):
			return errSilent
		case err != nil:
			return err
		}
		impatience.Reset(silence)
		tell(msg.GetInvalidation())
		if final(msg.GetInvalidation()) {
			return nil
		}
	}
}

// repeat listens by repeating the call that was accepted.
func (f *follower) repeat(again func(context.Context, time.Duration) (*endsessionv1.Invalidation, error)) func(context.Context, string, func(*endsessionv1.Invalidation)) error {
	return func(ctx context.Context, _ string, tell func(*endsessionv1.Invalidation)) error {
		for {
			asking, cancel := context.WithTimeout(ctx, silence)
			inv, err := again(asking, silence/2)
			cancel()
			if err != nil {
				return err
			}
			tell(inv)
			if final(inv) {
				return nil
			}
		}
	}
}

// looking is how far a command sees an invalidation.
type looking struct {
	wait time.Duration
	end  bool // --watch
}

// longestWait is as long as the gateway would wait, too.
const longestWait = 5 * time.Minute

func (l *looking) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	usage := "how long to wait for the final state; 0 returns once accepted, at most 5m"
	if f.Lookup("users-file") != nil {
		usage = "with --users-file: how long to wait after the last call was accepted, without a bound, and by default until all are final; otherwise: " + usage
	}
	f.DurationVar(&l.wait, "wait", 30*time.Second, usage)
	l.watchFlag(cmd)
}

func (l *looking) watchFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&l.end, "watch", false, "see it to its end, however long that takes")
}

func (l *looking) check() error {
	if l.wait < 0 || l.wait > longestWait {
		return usageError("--wait: want a duration from 0 to 5m, got %v; --watch waits for the end", l.wait)
	}
	return nil
}

func (l *looking) length() time.Duration {
	if l.end {
		return forEver
	}
	return l.wait
}

// see shows an invalidation as it goes on, in the form that is wanted, until it is final or nobody wants to look any
// longer, and returns how it stood then. With -o json it prints nothing.
func (l *looking) see(cmd *cobra.Command, out *output, f *follower, inv *endsessionv1.Invalidation) (*endsessionv1.Invalidation, error) {
	f.harmless = out.format != "json"
	if f.view == nil {
		f.view = newView(cmd, out)
	}
	inv, err := f.follow(cmd.Context(), inv, l.length())
	if err != nil {
		return inv, err
	}
	if interrupted := cmd.Context().Err() != nil; !final(inv) && (interrupted || l.length() != 0 && out.format != "json") {
		why := fmt.Sprintf("after %v it is not final", l.wait)
		if interrupted {
			why = "you stopped looking"
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s; the invalidation goes on.\n  To go on watching: endsession watch %[2]s\n  To cancel it:      endsession cancel %[2]s\n",
			why, inv.GetName())
	}
	return inv, nil
}

func newView(cmd *cobra.Command, out *output) view {
	switch s := screenOf(cmd.OutOrStdout()); {
	case out.format == "json":
		return &jsonView{}
	case s.live():
		return &liveView{screen: s, began: time.Now()}
	default:
		return &lineView{out: s, err: cmd.ErrOrStderr(), written: map[string]string{}}
	}
}
