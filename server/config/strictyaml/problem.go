package strictyaml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong in a document.
type Problem struct {
	Line int
	// Path leads to the value: "targets[0].bigiq.scope". It is empty for problems of the whole document.
	Path    string
	Message string
}

// Error is all that is wrong in a document, in the order of the lines.
type Error struct {
	File     string
	Problems []Problem
}

// Error has a line "file:line: path: message" for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.in(e.File)
	}
	return strings.Join(lines, "\n")
}

func (p Problem) in(file string) string {
	if p.Path == "" {
		return fmt.Sprintf("%s: %s", Position(file, p.Line), p.Message)
	}
	return fmt.Sprintf("%s: %s: %s", Position(file, p.Line), p.Path, p.Message)
}

// Position is how a place in a file is written: "file:line".
func Position(file string, line int) string { return fmt.Sprintf("%s:%d", file, line) }

// newError sorts the problems by line and leaves out repetitions. It returns nil if there are none.
func newError(file string, problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	sorted := slices.Clone(problems)
	slices.SortStableFunc(sorted, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return &Error{File: file, Problems: slices.Compact(sorted)}
}

// nearest returns the known word that a misspelt one was probably meant to be; "" if none is near.
func nearest(word string, known []string) string {
	best, limit := "", max(2, len(word)/3)
	for _, k := range known {
		if d := distance(word, k); d <= limit && (best == "" || d < distance(word, best)) && d < len(k) {
			best = k
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
