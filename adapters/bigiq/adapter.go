package bigiq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// Adapter speaks to one BIG-IQ.
type Adapter struct {
	client    *client
	http      *httpclient.Client
	reach     reach
	mapped    Scope
	log       *slog.Logger
	inventory inventoryCache
}

var _ adapters.Adapter = (*Adapter)(nil)

func open(conf Config, deps adapters.Deps) (*Adapter, error) {
	base, err := httpclient.ParseURL(conf.URL)
	if err != nil {
		return nil, err
	}
	h, err := httpclient.New(httpclient.Options{BaseURL: base, TLS: conf.TLSConfig, Deps: deps})
	if err != nil {
		return nil, err
	}
	return &Adapter{
		client: newClient(h, conf), http: h, reach: conf.reach(), mapped: mappedScope(deps.Mapped), log: deps.Logger,
		inventory: inventoryCache{turns: newTurns()},
	}, nil
}

// Supports refuses what a union of scopes cannot express, and names whose effect is not documented.
func (a *Adapter) Supports(sel adapters.Selector) error {
	_, err := demands(sel)
	return err
}

// Preview writes the tasks that Invalidate would ask for. BIG-IQ lists no sessions.
func (a *Adapter) Preview(ctx context.Context, sel adapters.Selector) (adapters.Preview, error) {
	ds, err := demands(sel)
	if err != nil {
		return adapters.Preview{}, err
	}
	if len(ds) == 0 {
		return adapters.Preview{Summary: []string{"nothing would be sent"}, Warnings: nothing()}, nil
	}
	kills, err := a.plan(ctx, ds)
	if err != nil {
		return adapters.Preview{}, err
	}
	var p adapters.Preview
	for _, k := range kills {
		body, err := httpclient.Marshal(k.body)
		if err != nil {
			return adapters.Preview{}, adapters.Wrap(adapters.Rejected, err, "the task cannot be written as JSON")
		}
		p.Summary = append(p.Summary, k.summary)
		p.Requests = append(p.Requests, adapters.PlannedRequest{
			Method: http.MethodPost, URL: a.http.URL(createTask(nil)), Body: string(body),
		})
	}
	p.Summary = append(p.Summary, "BIG-IQ lists no sessions: how many would end is not known")
	p.Covered, p.Warnings = summed(kills)
	return p, nil
}

func nothing() []adapters.Warning {
	return []adapters.Warning{{Code: adapters.WarnNothingCanMatch, Message: "no session can satisfy all criteria at this target"}}
}

// plan writes the task of every demand, after all names were found at BIG-IQ.
func (a *Adapter) plan(ctx context.Context, ds []demand) ([]kill, error) {
	n := needs(ds, a.reach)
	inv, fresh, err := a.inventory.get(ctx, a.client, n, inventoryAge)
	if err != nil {
		return nil, err
	}
	kills, err := a.compile(ds, inv)
	if err == nil || fresh {
		return kills, err
	}
	// A name is never refused because it was not there a while ago.
	if inv, _, err = a.inventory.get(ctx, a.client, n, 0); err != nil {
		return nil, err
	}
	return a.compile(ds, inv)
}

func (a *Adapter) compile(ds []demand, inv inventory) ([]kill, error) {
	kills := make([]kill, 0, len(ds))
	for _, d := range ds {
		k, err := compile(d, a.reach, inv)
		if err != nil {
			return nil, err
		}
		kills = append(kills, k)
	}
	return kills, nil
}

// summed collects what several tasks cover and warn of, each once.
func summed(kills []kill) (covered []string, warnings []adapters.Warning) {
	for _, k := range kills {
		for _, c := range k.covered {
			covered = add(covered, c)
		}
		for _, w := range k.warnings {
			if !slices.Contains(warnings, w) {
				warnings = append(warnings, w)
			}
		}
	}
	return covered, warnings
}

const (
	// maxRunning is how many tasks of one run BIG-IQ works on at a time.
	maxRunning = 4
	// Tasks take a fifth of a second in the guides' samples: ask soon, then less and less often.
	firstPoll = 250 * time.Millisecond
	lastPoll  = 5 * time.Second
)

// progress is how far a run got; its JSON is Pending.Resume.
type progress struct {
	Version int `json:"v"`
	// Tasks are in the order of the demands.
	Tasks []task `json:"tasks"`
	// Polls since a task was started last.
	Polls     int      `json:"polls,omitempty"`
	Covered   []string `json:"covered,omitempty"`
	Operation string   `json:"operation,omitempty"`
}

// resumeVersion changes whenever the meaning of progress does.
const resumeVersion = 1

// task is one task: not started yet (no id), under way (an id), or over.
type task struct {
	// User ties the task to its demand.
	User string `json:"user,omitempty"`
	ID   string `json:"id,omitempty"`
	Done bool   `json:"done,omitempty"`
	// Failed is set when the task ended otherwise.
	Failed *verdict `json:"failed,omitempty"`
}

func (t task) waiting() bool { return t.ID == "" && !t.Done && t.Failed == nil }
func (t task) running() bool { return t.ID != "" && !t.Done && t.Failed == nil }

func (p *progress) count(f func(task) bool) int {
	n := 0
	for _, t := range p.Tasks {
		if f(t) {
			n++
		}
	}
	return n
}

// resume reads back how far a run got. What cannot be read, or was written for other demands, by another version say,
// counts as not begun: to ask again is harmless, to guess is not.
func (a *Adapter) resume(ctx context.Context, raw json.RawMessage, ds []demand) (p progress, begun bool) {
	if len(raw) > 0 && json.Unmarshal(raw, &p) == nil && p.fits(ds) {
		return p, true
	}
	if len(raw) > 0 {
		a.log.WarnContext(ctx, "resume state does not fit; starting over")
	}
	p = progress{Version: resumeVersion}
	for _, d := range ds {
		p.Tasks = append(p.Tasks, task{User: d.user})
	}
	return p, false
}

func (p *progress) fits(ds []demand) bool {
	if p.Version != resumeVersion || len(p.Tasks) != len(ds) {
		return false
	}
	for i, t := range p.Tasks {
		if t.User != ds[i].user || t.ID != "" && !validID(t.ID) {
			return false
		}
	}
	return true
}

// result is what a call returns beside its own findings.
func (p *progress) result() adapters.Result {
	return adapters.Result{Covered: p.Covered, Operation: p.Operation}
}

// pending is the result of a call that leaves more to do.
func (p *progress) pending(r adapters.Result, after time.Duration) adapters.Result {
	raw, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("bigiq: write resume state: %v", err)) // plain fields only
	}
	r.Pending = &adapters.Pending{After: after, Resume: raw}
	return r
}

// Invalidate starts one task, or polls those under way. Each POST ends the call, so that the task's id is journalled
// before anything else happens: a crash can lose an answer, but never start a second task for one that is known.
func (a *Adapter) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	ds, err := demands(req.Selector)
	if err != nil {
		return adapters.Result{}, err
	}
	if len(ds) == 0 {
		return adapters.Result{Counted: true, Warnings: nothing()}, nil
	}
	p, begun := a.resume(ctx, req.Resume, ds)
	if i := slices.IndexFunc(p.Tasks, task.waiting); i >= 0 && p.count(task.running) < maxRunning {
		return a.start(ctx, ds, &p, i, begun)
	}
	return a.poll(ctx, &p)
}

// start asks for the i-th task.
func (a *Adapter) start(ctx context.Context, ds []demand, p *progress, i int, begun bool) (adapters.Result, error) {
	var result adapters.Result
	fail := func(err error) (adapters.Result, error) {
		if !begun {
			return result, err // nothing was started: the next attempt begins, and looks at the target, anew
		}
		return p.pending(result, 0), err
	}
	wanted := ds[i : i+1]
	if !begun {
		// Look at all of them before the first: what is refused must be refused before anything ends.
		wanted = ds
	}
	kills, err := a.plan(ctx, wanted)
	if err != nil {
		result = p.result()
		return fail(err)
	}
	covered, warnings := summed(kills)
	for _, c := range covered {
		p.Covered = add(p.Covered, c)
	}
	if begun {
		warnings = nil // said at the first call
	}
	k := kills[0]
	if !begun {
		k = kills[i]
	}
	result = p.result()
	result.Warnings = warnings

	id, err := a.create(ctx, k.body)
	switch {
	case err == nil:
		p.Tasks[i].ID, p.Polls, p.Operation = id, 0, id
		a.log.DebugContext(ctx, "task started", "task", id)
	case errors.Is(err, errMistaken):
		result.CountIsMinimum = true
		result.Warnings = append(result.Warnings, adapters.Warning{
			Code: adapters.WarnOtherSessionEnded, Message: "BIG-IQ has made a task for sessions that were not asked for: see the task at BIG-IQ",
		})
		return fail(err)
	case adapters.KindOf(err) == adapters.Rejected && len(ds) > 1:
		// The other users' sessions can still be ended.
		p.Tasks[i].Failed = verdictOf(err)
	default:
		return fail(err)
	}
	result.Operation = p.Operation
	return a.next(p, result)
}

func verdictOf(err error) *verdict {
	var e *adapters.Error
	if !errors.As(err, &e) {
		return &verdict{Kind: adapters.Failed, Message: "the task failed"}
	}
	return &verdict{Kind: e.Kind, Why: e.Why, Message: e.Message}
}

// create asks for a task and returns its id.
func (a *Adapter) create(ctx context.Context, body any) (string, error) {
	reply, err := a.client.do(ctx, createTask(body))
	switch {
	case err == nil:
		return decodeCreated(reply, body)
	case reply.Status == http.StatusNotFound && says(reply, messageNoPath):
		return "", adapters.Wrap(adapters.Rejected, err, "BIG-IQ has no Access service at this URL, or it does not run")
	case reply.Status == http.StatusBadRequest:
		return "", adapters.Wrap(adapters.Rejected, err, "BIG-IQ refuses the task; nothing ended")
	}
	return "", err
}

// createTask is the one request that ends sessions.
func createTask(body any) httpclient.Call {
	return httpclient.Call{Method: http.MethodPost, Path: pathTasks, JSON: body, Mutating: true}
}

// poll asks for each task under way.
func (a *Adapter) poll(ctx context.Context, p *progress) (adapters.Result, error) {
	p.Polls++
	for i := range p.Tasks {
		t := &p.Tasks[i]
		if !t.running() {
			continue
		}
		o, err := a.ask(ctx, t.ID)
		switch {
		case err != nil:
			return p.pending(p.result(), 0), err
		case o.pending:
		case o.failed != nil:
			t.Failed = o.failed
		default:
			t.Done = true
		}
		if !o.pending {
			t.ID = ""
		}
	}
	return a.next(p, p.result())
}

// ask polls one task, by id and on the configured base: its own link leads to BIG-IQ's localhost.
func (a *Adapter) ask(ctx context.Context, id string) (outcome, error) {
	call := get(pathTasks+"/"+id, queryTask)
	call.Accept = []int{http.StatusNotFound}
	reply, err := a.client.do(ctx, call)
	if err != nil {
		return outcome{}, err
	}
	if reply.Status == http.StatusNotFound {
		if says(reply, messageNoPath) {
			return outcome{}, adapters.Errorf(adapters.Unreachable, "BIG-IQ's Access service does not answer")
		}
		return outcome{failed: &verdict{Kind: adapters.Uncertain, Message: "BIG-IQ no longer knows the task; what became of it is unknown"}}, nil
	}
	return decodeTask(reply, id)
}

// next decides what follows: more tasks, more polls, or the end.
func (a *Adapter) next(p *progress, result adapters.Result) (adapters.Result, error) {
	running := p.count(task.running)
	switch {
	case running < maxRunning && slices.ContainsFunc(p.Tasks, task.waiting):
		return p.pending(result, 0), nil
	case running > 0:
		result = p.pending(result, min(firstPoll<<min(p.Polls, 10), lastPoll))
		result.Pending.Poll = true
		return result, nil
	}
	return p.finish(result)
}

// finish ends an attempt: every task is over. What failed is set back, so that the next attempt, if there is one, starts
// new tasks for it, and only for it.
func (p *progress) finish(result adapters.Result) (adapters.Result, error) {
	var worst *verdict
	failed := 0
	for i := range p.Tasks {
		t := &p.Tasks[i]
		v := t.Failed
		if v == nil {
			continue
		}
		failed++
		if worst == nil || urgency(v.Kind) > urgency(worst.Kind) {
			worst = v
		}
		t.Failed = nil
	}
	if worst == nil {
		// BIG-IQ's word is all there is: it lists no sessions, and a repeated kill tells no more than the first.
		result.Verification = adapters.Unverifiable
		return result, nil
	}
	message := worst.Message
	if len(p.Tasks) > 1 {
		message = fmt.Sprintf("for %d of %d user names: %s", failed, len(p.Tasks), message)
	}
	p.Polls = 0
	return p.pending(result, 0), &adapters.Error{Kind: worst.Kind, Why: worst.Why, Message: message}
}

// urgency orders the kinds a task can end with by how long the engine tries again: an unknown outcome longest, a refusal
// not at all. One task that may still succeed is reason enough.
func urgency(k adapters.Kind) int {
	switch k {
	case adapters.Uncertain:
		return 2
	case adapters.Rejected:
		return 0
	}
	return 1
}
