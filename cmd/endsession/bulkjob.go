package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// bulkNamespace is the UUID of which the request ids of all jobs are made. It must never change: a job that was begun
// with one version of the program is resumed with another.
var bulkNamespace = uuid.MustParse("6e0d5b5c-8a0f-4d59-9a5e-2f7b3c1d4e60")

// requestID is what makes a person's call in a job the same call whenever the job is run. The gateway compares the rest
// of the call with what it accepted under the id.
func requestID(job, user string) string {
	return uuid.NewSHA1(bulkNamespace, []byte(job+"\x00"+user)).String()
}

const (
	// openPage is how many invalidations are asked for at a time.
	openPage = 500
	// fewOpen is up to how many invalidations are rather asked for one by one than in pages.
	fewOpen = 32
	// firstPoll and maxPoll bound the time between two questions of what became of a job, and pollShare is how much of
	// the time may go into them: one part in so many.
	firstPoll, maxPoll, pollShare = 200 * time.Millisecond, 30 * time.Second, 20
	// manyCancelled is how many invalidations somebody has to cancel, of those a job began, for it to begin no more.
	manyCancelled = 3
)

// Why a job stops sending.
var (
	errInterrupted = errors.New("interrupted")
	errCancelled   = errors.New("somebody cancels this job's invalidations")
	errWaited      = errors.New("waited long enough")
)

// standing is how far one person of a job got.
type standing int

const (
	unsent   standing = iota
	refused           // the gateway did not accept the call
	unclear           // whether it did, or what came of it, is not known
	accepted          // and not final, as far as is known
	finished
)

// entry is one person of a job.
type entry struct {
	person   listedPerson
	standing standing
	// inv is the invalidation as last heard of; of one that succeeded nothing is kept but what is counted.
	inv      *endsessionv1.Invalidation
	replayed bool
	// err is why the call was refused, or what is not known.
	err error
}

// bulkJob ends the sessions of many people, one invalidation each.
type bulkJob struct {
	name   string
	base   *endsessionv1.InvalidateSessionsRequest
	client endsessionv1.SessionServiceClient
	calls  *governor
	// parallel is how many calls are under way at most.
	parallel int
	// wait bounds the waiting after everything is accepted; negative: nothing does.
	wait time.Duration
	// settled is told of every entry that will not change any more.
	settled func(*entry)

	stop context.CancelCauseFunc

	mu      sync.Mutex
	entries []*entry
	open    map[string]*entry // by the invalidation's name
	tally   bulkTally
	// blind: the caller may end sessions and may not read what came of it. Then the same call is made again, which the
	// gateway answers with the invalidation that it is.
	blind bool
	// spent is how long the calls of the last look took.
	spent time.Duration
	// cancelled counts the invalidations that this process began and somebody cancelled.
	cancelled int
}

// bulkTally is what is known of a job.
type bulkTally struct {
	total, sent, replayed                                         int
	succeeded, partial, failed, cancelled, running, refused, lost int
	// sessions ended, at least if minimum.
	sessions int64
	minimum  bool
	// nothing counts those who had no session, of whom the first are named.
	nothing      int
	nothingNamed []string
}

// done is how many will not change any more.
func (t bulkTally) done() int {
	return t.succeeded + t.partial + t.failed + t.cancelled + t.refused + t.lost
}

// accepted is how many calls the gateway took on.
func (t bulkTally) accepted() int {
	return t.succeeded + t.partial + t.failed + t.cancelled + t.running
}

func (j *bulkJob) count() bulkTally {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.tally
	t.nothingNamed = slices.Clone(t.nothingNamed)
	return t
}

func newBulkJob(name string, base *endsessionv1.InvalidateSessionsRequest, people []listedPerson) *bulkJob {
	j := &bulkJob{name: name, base: base, open: map[string]*entry{}, tally: bulkTally{total: len(people)}}
	for _, p := range people {
		j.entries = append(j.entries, &entry{person: p})
	}
	return j
}

// request is the call for one person.
func (j *bulkJob) request(p listedPerson) *endsessionv1.InvalidateSessionsRequest {
	req := proto.CloneOf(j.base)
	req.Selector.User = p.user
	req.Priority = endsessionv1.Priority_PRIORITY_BULK
	if req.Labels == nil {
		req.Labels = map[string]string{}
	}
	req.Labels[jobLabel] = j.name
	req.RequestId = proto.String(requestID(j.name, p.user.GetId()))
	req.WaitTimeout = durationpb.New(0)
	return req
}

// run has every call accepted and waits until all are final. When ctx ends, no further call is made and those under way
// are finished; when hard ends, those are left alone, too. It returns why it ended early.
func (j *bulkJob) run(ctx, hard context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	j.stop = stop
	waiting, enough := context.WithCancelCause(ctx)
	defer enough(nil)
	allSent := make(chan struct{})
	var poller sync.WaitGroup
	poller.Go(func() { j.poll(waiting, hard, allSent) })

	next := make(chan *entry)
	var senders sync.WaitGroup
	for range min(j.parallel, len(j.entries)) {
		senders.Go(func() {
			for e := range next {
				j.send(ctx, hard, e)
			}
		})
	}
	for _, e := range j.entries {
		select {
		case next <- e:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	senders.Wait()
	close(allSent)
	switch {
	case j.wait == 0:
		enough(errWaited)
	case j.wait > 0:
		timer := time.AfterFunc(j.wait, func() { enough(errWaited) })
		defer timer.Stop()
	}
	poller.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// send has one call accepted.
func (j *bulkJob) send(ctx, hard context.Context, e *entry) {
	var resp *endsessionv1.InvalidateSessionsResponse
	err := j.calls.do(ctx, hard, func(ctx context.Context) (err error) {
		resp, err = j.client.InvalidateSessions(ctx, j.request(e.person))
		return err
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	var notSent *errNotSent
	var unsure *errUnsure
	switch {
	case err == nil:
		j.tally.sent++
		if e.replayed = resp.GetReplayed(); e.replayed {
			j.tally.replayed++
		}
		e.standing = accepted
		j.tally.running++
		j.open[resp.GetInvalidation().GetName()] = e
		j.note(resp.GetInvalidation())
	case errors.As(err, &notSent) && !notSent.uncertain:
		j.stop(notSent.cause)
	case errors.As(err, &notSent), errors.As(err, &unsure), judge(err).defect:
		j.tally.sent++
		j.tally.lost++
		e.standing, e.err = unclear, err
		if notSent != nil {
			e.err = notSent.cause
			j.stop(notSent.cause)
		} else if wrongForAll(err) {
			j.stop(err)
		}
		j.settled(e)
	case wrongForAll(err):
		j.stop(err)
	default:
		j.tally.sent++
		j.tally.refused++
		e.standing, e.err = refused, err
		j.settled(e)
	}
}

// wrongForAll reports whether what is wrong with one call is wrong with all: who calls is not known, or something that all
// have in common is not as it should be.
func wrongForAll(err error) bool {
	st, _ := status.FromError(err)
	switch st.Code() {
	case codes.Unauthenticated, codes.Unimplemented:
		return true
	case codes.InvalidArgument:
		return slices.ContainsFunc(violations(st), func(v *errdetails.BadRequest_FieldViolation) bool {
			return v.GetField() != "" && !strings.HasPrefix(v.GetField(), "selector.user")
		})
	}
	return false
}

// note takes in what an invalidation has become. The caller holds the lock.
func (j *bulkJob) note(inv *endsessionv1.Invalidation) {
	e := j.open[inv.GetName()]
	if e == nil {
		return // somebody else's, or known to be final
	}
	e.inv = inv
	t := &j.tally
	switch inv.GetState() {
	case endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED:
		t.succeeded++
	case endsessionv1.InvalidationState_INVALIDATION_STATE_PARTIALLY_SUCCEEDED:
		t.partial++
	case endsessionv1.InvalidationState_INVALIDATION_STATE_FAILED:
		t.failed++
	case endsessionv1.InvalidationState_INVALIDATION_STATE_CANCELLED:
		t.cancelled++
		if !e.replayed {
			if j.cancelled++; j.cancelled >= manyCancelled && t.sent < t.total {
				j.stop(errCancelled)
			}
		}
	default:
		return
	}
	t.running--
	delete(j.open, inv.GetName())
	e.standing = finished
	t.sessions += int64(inv.GetInvalidatedCount())
	t.minimum = t.minimum || inv.GetCountIsMinimum()
	j.settled(e)
	if inv.GetState() == endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED {
		if total(inv) == "0" {
			if t.nothing++; len(t.nothingNamed) < someNames {
				t.nothingNamed = append(t.nothingNamed, e.person.user.GetId())
			}
		}
		e.inv = nil // thousands of them are too much to keep for nothing
	}
}

// poll asks what became of the invalidations until all are sent and final, or ctx ends. How often depends on what the
// answers cost and on whether there is news.
func (j *bulkJob) poll(ctx, hard context.Context, allSent <-chan struct{}) {
	interval := firstPoll
	for {
		j.mu.Lock()
		open, done := len(j.open), j.tally.done()
		j.spent = 0
		j.mu.Unlock()
		if open == 0 && allSent == nil {
			return
		}
		select {
		case <-time.After(interval):
		case <-allSent:
			allSent, interval = nil, firstPoll
			continue
		case <-ctx.Done():
			return
		}
		switch err := j.look(ctx, hard); {
		case errors.Is(err, errOutage):
			j.stop(errOutage)
		case wrongForAll(err):
			j.stop(err)
		}
		j.mu.Lock()
		next := max(firstPoll, pollShare*j.spent)
		if j.tally.done() == done {
			next = max(next, 2*interval)
		}
		j.mu.Unlock()
		interval = min(next, maxPoll)
	}
}

// look finds out what became of the invalidations that were open when it began. It asks first which of the job's are
// still running, which is few in the end; what is no longer is asked for one by one, or in pages if there are many.
func (j *bulkJob) look(ctx, hard context.Context) error {
	j.mu.Lock()
	gone := map[string]*entry{}
	for name, e := range j.open {
		gone[name] = e
	}
	blind := j.blind
	j.mu.Unlock()
	if len(gone) > fewOpen && !blind {
		running := endsessionv1.InvalidationState_INVALIDATION_STATE_RUNNING
		err := j.list(ctx, hard, running, gone)
		if err == nil && len(gone) > fewOpen {
			err = j.list(ctx, hard, 0, gone)
		}
		if err != nil && status.Code(err) != codes.PermissionDenied {
			return err
		}
		j.mu.Lock()
		j.blind = j.blind || err != nil
		j.mu.Unlock()
	}
	names := make(chan string)
	errs := make(chan error, j.parallel)
	var getters sync.WaitGroup
	for range min(j.parallel, len(gone)) {
		getters.Go(func() {
			var first error
			for name := range names {
				if first == nil {
					first = j.get(ctx, hard, name)
				}
			}
			errs <- first
		})
	}
	for name := range gone {
		names <- name
	}
	close(names)
	getters.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ask makes a call to learn something, and adds up how long such calls take.
func (j *bulkJob) ask(ctx, hard context.Context, call func(context.Context) error) error {
	return j.calls.do(ctx, hard, func(ctx context.Context) error {
		began := time.Now()
		err := call(ctx)
		j.mu.Lock()
		j.spent += time.Since(began)
		j.mu.Unlock()
		return err
	})
}

// list reads the job's invalidations in a state, newest first, and takes them out of those that are wanted. It ends
// where older ones begin.
func (j *bulkJob) list(ctx, hard context.Context, state endsessionv1.InvalidationState, wanted map[string]*entry) error {
	oldest := ""
	for name := range wanted { // their order is that of their acceptance
		if oldest == "" || name < oldest {
			oldest = name
		}
	}
	token := ""
	for {
		var resp *endsessionv1.ListInvalidationsResponse
		if err := j.ask(ctx, hard, func(ctx context.Context) (err error) {
			resp, err = j.client.ListInvalidations(ctx, &endsessionv1.ListInvalidationsRequest{
				State: state, Label: []string{jobLabel + "=" + j.name}, PageSize: openPage, PageToken: token,
			})
			return err
		}); err != nil {
			return err
		}
		j.mu.Lock()
		past := false
		for _, inv := range resp.GetInvalidations() {
			j.note(inv)
			delete(wanted, inv.GetName())
			past = past || inv.GetName() < oldest
		}
		j.mu.Unlock()
		if token = resp.GetNextPageToken(); token == "" || past {
			return nil
		}
	}
}

// get asks for one invalidation.
func (j *bulkJob) get(ctx, hard context.Context, name string) error {
	j.mu.Lock()
	e, blind := j.open[name], j.blind
	j.mu.Unlock()
	if e == nil {
		return nil
	}
	var inv *endsessionv1.Invalidation
	err := j.ask(ctx, hard, func(ctx context.Context) error {
		if blind {
			resp, err := j.client.InvalidateSessions(ctx, j.request(e.person))
			inv = resp.GetInvalidation()
			return err
		}
		resp, err := j.client.GetInvalidation(ctx, &endsessionv1.GetInvalidationRequest{Name: name})
		inv = resp.GetInvalidation()
		return err
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	code := status.Code(err)
	switch {
	case err == nil:
		if blind && inv.GetName() != name { // the gateway does not know it any more, and has begun it anew
			delete(j.open, name)
			j.open[inv.GetName()] = e
		}
		j.note(inv)
		return nil
	case !blind && (code == codes.NotFound || code == codes.PermissionDenied):
		j.blind = true
		return nil
	case blind && !wrongForAll(err) && !judge(err).again:
		delete(j.open, name)
		j.tally.running--
		j.tally.lost++
		e.standing, e.err = unclear, err
		j.settled(e)
		return nil
	}
	return err
}
