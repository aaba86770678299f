package main

import (
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
)

// cell is one text of a table. It has one line, and nothing in it that a terminal would obey.
type cell struct {
	text string
	how  style
}

// cells makes cells of texts without a style.
func cells(texts ...string) []cell {
	row := make([]cell, len(texts))
	for i, t := range texts {
		row[i].text = t
	}
	return row
}

// table is rows under a header, in columns that are as wide as they must be.
type table struct {
	header []string
	rows   [][]cell
	// shrinks are the columns that may be cut where there is not enough room.
	shrinks []int
}

func newTable(header ...string) *table { return &table{header: header} }

func (t *table) add(row ...cell) { t.rows = append(t.rows, row) }

// narrowest is how narrow a column gets before the lines themselves are cut.
const narrowest = 8

// gap is between columns.
const gap = "  "

// lines returns the header and the rows, none wider than width, unless that is 0.
func (t *table) lines(s *screen, width int) []string {
	widths := t.widths()
	if width > 0 {
		t.fit(widths, width)
	}
	header := make([]cell, len(t.header))
	for i, h := range t.header {
		header[i] = cell{h, strong}
	}
	lines := make([]string, 0, len(t.rows)+1)
	for _, row := range append([][]cell{header}, t.rows...) {
		lines = append(lines, line(s, row, widths, width))
	}
	return lines
}

// widths are those that the columns want.
func (t *table) widths() []int {
	widths := make([]int, len(t.header))
	for i, h := range t.header {
		widths[i] = cellWidth(h)
		for _, row := range t.rows {
			widths[i] = max(widths[i], cellWidth(row[i].text))
		}
	}
	return widths
}

// width is how wide the table wants to be.
func (t *table) width() int { return across(t.widths()) }

// across is the width of columns with the gaps between them.
func across(widths []int) int {
	total := (len(widths) - 1) * len(gap)
	for _, w := range widths {
		total += w
	}
	return total
}

// fit takes width from the widest of the columns that may be cut, cell by cell.
func (t *table) fit(widths []int, width int) {
	for total := across(widths); total > width; total-- {
		widest := -1
		for _, i := range t.shrinks {
			if widths[i] > narrowest && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// line lays one row out. Nothing follows its last text.
func line(s *screen, row []cell, widths []int, width int) string {
	last := len(row) - 1
	for last > 0 && row[last].text == "" {
		last--
	}
	var b strings.Builder
	room := width
	for i, c := range row[:last+1] {
		piece := cut(c.text, widths[i])
		if i > 0 {
			room -= len(gap)
		}
		if width > 0 && cellWidth(piece) > room {
			piece = cut(piece, room)
		}
		if width > 0 && room <= 0 {
			break
		}
		if i > 0 {
			b.WriteString(gap)
		}
		b.WriteString(s.paint(c.how, piece))
		if used := cellWidth(piece); i < last {
			b.WriteString(strings.Repeat(" ", max(0, widths[i]-used)))
		}
		room -= widths[i]
	}
	return strings.TrimRight(b.String(), " ")
}

// write writes the lines, no wider than the screen.
func (t *table) write(w io.Writer) error {
	s := screenOf(w)
	_, err := io.WriteString(w, strings.Join(t.lines(s, s.width()), "\n")+"\n")
	return err
}

// cellWidth is how many cells of a terminal a text takes.
func cellWidth(s string) int { return text.StringWidthWithoutEscSequences(s) }

// cut shortens a text to a width; what is missing is shown by an ellipsis.
func cut(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if cellWidth(s) <= width {
		return s
	}
	return text.Trim(s, width-cellWidth("…")) + "…"
}
