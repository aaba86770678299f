package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// What release builds (make build, make release) set with -ldflags "-X main.version=v1.2.3". Empty: what the Go tool knows
// of the source is taken.
var (
	version string
	// commit is the hash of the source, date when that was committed.
	commit, date string
)

func newVersion() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: `  endsession version`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		}}
}

// release names the release, or what the Go tool knows of the source.
func release() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	if v == "" {
		v = "(devel)"
	}
	return v
}

// source returns the commit of the source and its date, as far as they are known.
func source() (hash, when string) {
	hash, when = commit, date
	info, ok := debug.ReadBuildInfo()
	if !ok || hash != "" {
		return hash, when
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			hash = s.Value
		case "vcs.time":
			when = s.Value
		}
	}
	return hash, when
}

// versionText names the release, its source, and how it was built.
func versionText() string {
	text := "endsession " + release()
	if hash, when := source(); hash != "" {
		text += fmt.Sprintf(" (commit %s of %s)", hash, when)
	}
	return text + fmt.Sprintf(" %s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
