package main

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// screen is standard output, and what is known of it.
type screen struct {
	io.Writer
	// size returns how many cells wide and how many lines high the terminal is now; nil if it is no terminal.
	size func() (width, height int)
	// dumb terminals know no commands: nothing can be written again in place.
	dumb bool
	// color says that colours are understood and wanted.
	color bool
}

// newScreen finds out what there is to write on.
func newScreen(w io.Writer, lookup func(string) (string, bool)) *screen {
	s := &screen{Writer: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.size = func() (int, int) {
			width, height, err := term.GetSize(int(f.Fd()))
			if err != nil || width <= 0 || height <= 0 {
				return 80, 24
			}
			return width, height
		}
	}
	kind, _ := lookup("TERM")
	s.dumb = kind == "" || kind == "dumb"
	refused, _ := lookup("NO_COLOR") // https://no-color.org
	s.color = s.live() && refused == ""
	return s
}

// screenOf returns what is known of a writer.
func screenOf(w io.Writer) *screen {
	if s, ok := w.(*screen); ok {
		return s
	}
	return &screen{Writer: w}
}

// live reports whether lines can be written again in place.
func (s *screen) live() bool { return s.size != nil && !s.dumb }

// width is how many cells a line may have; 0 where nobody looks at lines.
func (s *screen) width() int {
	if s.size == nil {
		return 0
	}
	width, _ := s.size()
	return width
}

// style is how a piece of text looks, as the number of a terminal's command.
type style string

const (
	plain  style = ""
	strong style = "1"
	faint  style = "2"
	good   style = "32"
	wary   style = "33"
	bad    style = "31"
	alarm  style = "1;33"
)

// paint gives a text its style, where there are colours. Texts come from callers and targets, and have been made
// harmless before.
func (s *screen) paint(how style, text string) string {
	if !s.color || how == plain || text == "" {
		return text
	}
	return "\x1b[" + string(how) + "m" + text + "\x1b[0m"
}

// colorFlag is the flag --color of a command.
type colorFlag struct {
	cmd   *cobra.Command
	value string
}

// Set implements pflag.Value.
func (c *colorFlag) Set(value string) error {
	s := screenOf(c.cmd.OutOrStdout())
	switch value {
	case "auto":
	case "always":
		s.color = true
	case "never":
		s.color = false
	default:
		return errors.New("want auto, always or never")
	}
	c.value = value
	return nil
}

// String implements pflag.Value.
func (c *colorFlag) String() string { return c.value }

// Type implements pflag.Value.
func (c *colorFlag) Type() string { return "when" }
