package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/telemetry"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newServe() *cobra.Command {
	var path, format string
	cmd := &cobra.Command{
		Use:     "serve --config FILE",
		Short:   "Run the gateway",
		Example: `  endsession serve --config endsession.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"", "text", "json"}, format) {
				return usageError("--log-format: want text or json, got %q", format)
			}
			conf, err := loadConfig(path)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if format != "" {
				conf.Log.Format = config.LogFormat(format)
			}
			logger := newLogger(cmd.ErrOrStderr(), conf.Log)
			reported, err := telemetry.New(cmd.Context(), telemetry.Options{Version: release(), Logger: logger, Getenv: os.Getenv})
			if err != nil {
				return &exitError{exitUsage, err}
			}
			server.Tune()
			srv, err := server.Open(cmd.Context(), server.Options{Config: conf, Logger: logger, Telemetry: reported})
			if err != nil {
				return &exitError{exitFailed, err}
			}
			force, stop := forced(cmd.Context())
			defer stop()
			defer reloads(cmd.Context(), path, srv, logger)()
			defer tellManager(cmd.Context(), srv, logger)()
			if err := srv.Run(cmd.Context(), force); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration `file`")
	cmd.Flags().StringVar(&format, "log-format", "", "text or json, whatever the configuration says")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

// newLogger returns a logger that writes as it is configured: for people on a terminal, for programs otherwise.
func newLogger(w io.Writer, l config.Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.Level(l.Level)}
	f, file := w.(*os.File)
	if l.Format == config.LogText || l.Format == config.LogAuto && file && term.IsTerminal(int(f.Fd())) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// tellManager tells the process manager that the gateway is ready, lives and stops, until the function that it returns is
// called. The listeners have their ports: whoever is told now and calls is answered.
func tellManager(ctx context.Context, srv *server.Server, log *slog.Logger) (stop func()) {
	m := manager{log}
	m.tell(daemon.SdNotifyReady)
	stopping := context.AfterFunc(ctx, func() { m.tell(daemon.SdNotifyStopping) })
	// A shutdown has its own bounds, and the process lives until its end.
	alive, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go m.watchdog(alive, func(ctx context.Context) error { return askHealth(ctx, srv.AdminAddr().String(), "/healthz") })
	return func() { stopping(); cancel() }
}

// reloads has the server take over the configuration anew whenever the process gets a SIGHUP, until the function that it
// returns is called.
func reloads(ctx context.Context, path string, srv *server.Server, log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	m := manager{log}
	reload := func() error {
		m.reloading()
		defer m.tell(daemon.SdNotifyReady)
		conf, err := loadConfig(path)
		if err != nil {
			return err
		}
		return srv.Reload(ctx, conf)
	}
	go func() {
		for {
			select {
			case <-signals:
			case <-ctx.Done():
				return
			}
			if err := reload(); err != nil {
				log.ErrorContext(ctx, "the configuration was not reloaded; the old one stays in use", "error", err)
				continue
			}
			log.InfoContext(ctx, "reloaded the configuration")
		}
	}()
	return func() { signal.Stop(signals); cancel() }
}

// forced returns a context that a second signal ends: the first one asked for an orderly shutdown.
func forced(first context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	go func() {
		select {
		case <-first.Done():
			signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		case <-ctx.Done():
			return
		}
		select {
		case s := <-signals:
			cancel(fmt.Errorf("second signal: %v", s))
		case <-ctx.Done():
		}
		signal.Stop(signals)
	}()
	return ctx, func() { cancel(nil) }
}
