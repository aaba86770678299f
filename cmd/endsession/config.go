package main

import (
	"errors"
	"fmt"

	"github.com/endsession/endsession/docs"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
	"github.com/spf13/cobra"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check a configuration, or describe it to an editor", Args: cobra.NoArgs,
		Example: `  endsession config check endsession.yaml
  endsession config schema > endsession.schema.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{status: exitUsage}
		}}
	cmd.AddCommand(newConfigCheck(), newConfigSchema())
	return cmd
}

func newConfigSchema() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print a JSON Schema of the configuration, for editors",
		Example: `  endsession config schema > endsession.schema.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(docs.ConfigurationSchema)
			return err
		},
	}
}

func newConfigCheck() *cobra.Command {
	return &cobra.Command{
		Use:     "check FILE",
		Short:   "Report everything that is wrong with a configuration, or print it as it works, secrets masked",
		Example: `  endsession config check endsession.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := loadConfig(args[0])
			var warnings []string
			if err == nil {
				warnings, err = server.Check(conf)
			}
			if err != nil {
				return &exitError{exitFailed, err}
			}
			for _, w := range append(conf.Warnings, warnings...) {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w)
			}
			return conf.Effective(cmd.OutOrStdout())
		},
	}
}

// loadConfig reads a configuration. The error holds all that is wrong with its form, and with its expressions too.
func loadConfig(path string) (*config.Config, error) {
	conf, err := config.Load(path, registry())
	if err != nil && conf != nil {
		err = errors.Join(err, server.CheckExpressions(conf))
	}
	return conf, err
}
