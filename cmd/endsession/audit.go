package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/config"
	"github.com/spf13/cobra"
)

func newAudit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Verify the audit trail, or export it", Args: cobra.NoArgs,
		Example: `  endsession audit verify --config endsession.yaml
  endsession audit export --config endsession.yaml --since 24h`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{status: exitUsage}
		}}
	cmd.AddCommand(newAuditVerify(), newAuditExport())
	return cmd
}

// journal says which journal's trail is read.
type journal struct {
	config, sqlite string
	keys           []string
}

func (j *journal) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&j.config, "config", "c", "", "the gateway's configuration `file`")
	f.StringVar(&j.sqlite, "sqlite", "", "the journal's `file`, instead of a configuration")
}

func (j *journal) open(ctx context.Context) (server.Trail, audit.Keys, error) {
	if (j.config == "") == (j.sqlite == "") {
		return nil, audit.Keys{}, usageError("want --config or --sqlite")
	}
	if len(j.keys) > 0 && j.sqlite == "" {
		return nil, audit.Keys{}, usageError("--key-file goes with --sqlite; a configuration names its keys itself")
	}
	var conf *config.Config
	var err error
	if j.sqlite != "" {
		conf = &config.Config{Store: config.Store{SQLite: &config.SQLite{Path: j.sqlite}}}
		conf.Audit, err = j.read()
		conf.Audit.Where = "--key-file"
	} else {
		conf, err = loadConfig(j.config)
	}
	if err != nil {
		return nil, audit.Keys{}, &exitError{exitUsage, err}
	}
	keys, err := server.AuditKeys(conf)
	if err != nil {
		return nil, audit.Keys{}, &exitError{exitUsage, err}
	}
	trail, err := server.OpenTrail(ctx, conf)
	if err != nil {
		return nil, audit.Keys{}, &exitError{exitUnreadable, err}
	}
	return trail, keys, nil
}

// read reads the key files: the first is the current key's, as in a configuration.
func (j *journal) read() (a config.Audit, err error) {
	for i, path := range j.keys {
		data, err := os.ReadFile(path)
		if err != nil {
			return a, err
		}
		key := secret.New(strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"))
		if key.IsZero() {
			return a, fmt.Errorf("%s is empty", path)
		}
		if i == 0 {
			a.Key = key
		} else {
			a.PreviousKeys = append(a.PreviousKeys, key)
		}
	}
	return a, nil
}

func newAuditVerify() *cobra.Command {
	var j journal
	var kept []string
	cmd := &cobra.Command{
		Use:   "verify --config FILE",
		Short: "Find out whether the audit trail is what was written",
		Long: `verify reads the whole audit trail, beside the gateways that write it, and says what was changed, removed, inserted
or put elsewhere. It ends with the heads of all chains: keep them where nobody who can write to the journal can change
them, and give them to the next verify, which then finds out whether the end of the trail was cut off since.

Exit status: 0 everything is proven, 1 something is wrong, 2 usage, or the configuration, a key or a kept head cannot be
used, 6 the journal cannot be read: then nothing is known of it.`,
		Example: `  endsession audit verify --config endsession.yaml > heads.txt
  endsession audit verify --config endsession.yaml --head heads.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := audit.Verification{}
			for _, path := range kept {
				text, err := os.ReadFile(path)
				if err != nil {
					return &exitError{exitUsage, err}
				}
				heads, err := audit.ParseHeads(string(text))
				if err != nil {
					return &exitError{exitUsage, fmt.Errorf("%s: %w", path, err)}
				}
				v.Heads = append(v.Heads, heads...)
			}
			trail, keys, err := j.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { _ = trail.Close() }()
			v.Keys = keys
			out := bufio.NewWriter(cmd.OutOrStdout())
			v.Found = func(f audit.Finding) { fmt.Fprintln(out, f) }
			report, err := audit.Verify(cmd.Context(), trail, v)
			if err != nil {
				_ = out.Flush()
				return &exitError{exitUnreadable, err}
			}
			printReport(out, report, keys)
			if err := out.Flush(); err != nil {
				return &exitError{exitUnreadable, err} // whoever reads the report has not seen it
			}
			if report.Findings > 0 {
				return &exitError{exitFailed, fmt.Errorf("the audit trail is not what was written: %s", counted(report.Findings, "finding"))}
			}
			return nil
		},
	}
	j.flags(cmd)
	cmd.Flags().StringArrayVar(&j.keys, "key-file", nil, "a `file` with a key, the current one first (repeatable; with --sqlite)")
	cmd.Flags().StringArrayVar(&kept, "head", nil, "a `file` with what an earlier verify printed (repeatable)")
	return cmd
}

func printReport(w io.Writer, r audit.Report, keys audit.Keys) {
	by := "key " + keys.Current()
	if keys.Current() == "" {
		by = "no key: whoever can write to the journal could hash again what he has changed"
	}
	fmt.Fprintf(w, "read %s in %s, %s; %s; %s\n", counted(r.Events, "event"), counted(r.Chains, "chain"),
		counted(r.Checkpoints, "checkpoint"), by, counted(r.Findings, "finding"))
	for _, h := range r.Heads {
		fmt.Fprintln(w, h)
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// followInterval is how often a followed journal is looked at.
const followInterval = time.Second

// exportPage is how many events are read at once.
const exportPage = 500

func newAuditExport() *cobra.Command {
	var j journal
	x := export{}
	var since string
	cmd := &cobra.Command{
		Use:   "export --config FILE",
		Short: "Write the audit trail as lines of JSON",
		Long: `export writes one line for each event, chain by chain, each in its order. With --follow it goes on with what is written
meanwhile, until it is interrupted. With --position it goes on where it has ended the last time: nothing is left out,
and after a crash the last lines may come again.

Exit status: 0 all was written, 1 it could not be read or written to its end, 2 usage, or the configuration cannot be
used, 6 the journal cannot be opened.`,
		Example: `  endsession audit export --config endsession.yaml --since 24h
  endsession audit export --config endsession.yaml --follow --position audit.position`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if x.since, err = moment(since, time.Now()); err != nil {
				return err
			}
			if x.position, err = readPosition(x.file); err != nil {
				return &exitError{exitUsage, err}
			}
			if x.trail, _, err = j.open(cmd.Context()); err != nil {
				return err
			}
			defer func() { _ = x.trail.Close() }()
			x.out = bufio.NewWriter(cmd.OutOrStdout())
			if err := x.run(cmd.Context()); err != nil && cmd.Context().Err() == nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	j.flags(cmd)
	f := cmd.Flags()
	f.BoolVarP(&x.follow, "follow", "f", false, "go on until interrupted")
	f.StringVar(&since, "since", "", "only what happened since: a `time` (2026-01-31T12:00:00Z) or how long ago (24h)")
	f.StringArrayVar(&x.chains, "chain", nil, "only this chain (repeatable)")
	f.StringVar(&x.file, "position", "", "a `file` that keeps how far the trail was exported")
	return cmd
}

// moment reads a time, or how long ago it is.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usageError("--since: want a time such as 2026-01-31T12:00:00Z, or how long ago, such as 24h; got %q", text)
	}
	return at, nil
}

// export writes events as they come.
type export struct {
	trail    server.Trail
	out      *bufio.Writer
	follow   bool
	since    time.Time
	chains   []string // all if empty
	position audit.Position
	file     string // where the position is kept; empty if nowhere
}

func (x *export) run(ctx context.Context) error {
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		if err := x.round(ctx); err != nil || !x.follow {
			return err
		}
		if err := x.trail.Refresh(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round writes what has been added to each chain.
func (x *export) round(ctx context.Context) error {
	tips, err := x.trail.Tips(ctx)
	if err != nil {
		return err
	}
	for _, tip := range tips {
		if len(x.chains) > 0 && !slices.Contains(x.chains, tip.Chain) {
			continue
		}
		for x.position[tip.Chain] < tip.Seq {
			more, err := x.page(ctx, tip.Chain)
			if err != nil {
				return err
			}
			if !more {
				break // the rest was pruned
			}
		}
		x.position[tip.Chain] = max(x.position[tip.Chain], tip.Seq)
	}
	return nil
}

// page writes the next events of a chain, and then notes that they were. It reports whether there were any.
func (x *export) page(ctx context.Context, chain string) (more bool, err error) {
	events, err := x.trail.Events(ctx, chain, x.position[chain], exportPage)
	if err != nil {
		return false, err
	}
	for _, e := range events {
		if e.Chain != chain {
			break
		}
		more = true
		x.position[chain] = e.Seq
		if e.Time.Before(x.since) {
			continue
		}
		line, err := e.Line()
		if err != nil {
			return false, err
		}
		if _, err := x.out.Write(line); err != nil {
			return false, err
		}
	}
	if err := x.out.Flush(); err != nil {
		return false, err
	}
	return more, x.save()
}

// save keeps the position: in a file beside it first, so that there always is a whole one.
func (x *export) save() error {
	if x.file == "" {
		return nil
	}
	data, err := json.MarshalIndent(x.position, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(x.file), filepath.Base(x.file)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), x.file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// readPosition is nowhere if there is no file yet.
func readPosition(path string) (audit.Position, error) {
	p := audit.Position{}
	if path == "" {
		return p, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return nil, fmt.Errorf("read the position from %s: %w", path, err)
	}
	if p == nil {
		p = audit.Position{}
	}
	return p, nil
}
