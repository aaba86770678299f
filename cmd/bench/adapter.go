package main

import (
	"context"
	"net/http"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/httpclient"
)

// constantKind is the key of a target of the comparison in the gateway's configuration.
const constantKind = "constant"

// constantType describes targets that exist for the comparison only: one request, which says how many sessions ended,
// and nothing that could be verified.
func constantType() adapters.Type {
	return adapters.Type{
		Kind:      constantKind,
		Criteria:  []adapters.Criteria{adapters.ByUser},
		NewConfig: func() adapters.Config { return new(constantConfig) },
	}
}

type constantConfig struct {
	// URL is the upstream's, with the delay of its answers and the target's number.
	URL string `yaml:"url"`
}

func (c *constantConfig) Validate() error  { _, err := httpclient.ParseURL(c.URL); return err }
func (c *constantConfig) Endpoint() string { return c.URL }
func (c *constantConfig) Account() string  { return "" }

func (c *constantConfig) Open(deps adapters.Deps) (adapters.Adapter, error) {
	url, err := httpclient.ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	client, err := httpclient.New(httpclient.Options{BaseURL: url, Deps: deps})
	return constant{client}, err
}

type constant struct{ client *httpclient.Client }

func (constant) Supports(adapters.Selector) error { return nil }

func (constant) Preview(context.Context, adapters.Selector) (adapters.Preview, error) {
	return adapters.Preview{}, nil
}

func (c constant) Invalidate(ctx context.Context, req adapters.Request) (adapters.Result, error) {
	var o order
	for _, u := range req.Selector.Users {
		o.Users = append(o.Users, u.Name)
	}
	reply, err := c.client.Do(ctx, httpclient.Call{Method: http.MethodPost, Path: "/end", JSON: o, Mutating: true})
	if err != nil {
		return adapters.Result{}, err
	}
	var d done
	if err := reply.Decode(&d); err != nil {
		return adapters.Result{}, err
	}
	return adapters.Result{Counted: true, Count: d.Ended, Verification: adapters.Unverifiable}, nil
}

func (constant) Probe(context.Context) (adapters.Health, error) {
	return adapters.Health{Checks: []adapters.Check{{Name: "reachable", Status: adapters.CheckOK}}}, nil
}
