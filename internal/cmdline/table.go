package cmdline

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Table is rows of cells, which are aligned when they are printed.
type Table struct {
	Empty string // text of a table without rows
	head  bool
	rows  [][]cell
}

// State is a cell with a state, which a terminal shows in a colour.
type State string

// Colours of a terminal (ECMA-48, SGR).
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	normal = "\x1b[0m"
)

// colours maps states to their colour, if they have one.
var colours = map[State]string{
	"running": green, "ok": green, "done": green,
	"failed": red, "critical": red, "lost": red, "halted": red, "down": red, "missing": red,
	"provisioning": yellow, "destroying": yellow, "degraded": yellow, "recovering": yellow, "rolling": yellow, "advice": yellow, "unknown": yellow,
}

// cell is the text of a cell, safe for a terminal, and its colour if it has one.
type cell struct{ text, colour string }

// Head sets the first row, with the names of the columns.
func (t *Table) Head(names ...string) {
	t.head = true
	row := make([]cell, len(names))
	for i, n := range names {
		row[i] = cell{n, bold}
	}
	t.rows = append(t.rows, row)
}

// Row appends a row of values.
func (t *Table) Row(cells ...any) {
	row := make([]cell, len(cells))
	for i, v := range cells {
		row[i].text = Cell(v)
		if s, ok := v.(State); ok {
			row[i].colour = colours[s]
		}
	}
	t.rows = append(t.rows, row)
}

// Fact appends a name and a value, unless the value is empty.
func (t *Table) Fact(name string, value any) {
	if Cell(value) != None {
		t.Row(name, value)
	}
}

// Append appends the rows of another table.
func (t *Table) Append(other *Table) { t.rows = append(t.rows, other.rows...) }

// Len returns the number of rows, including the head.
func (t *Table) Len() int { return len(t.rows) }

// None is the text of an empty cell.
const None = "-"

// Cell formats a value as text that is safe for a terminal; None if it is empty.
func Cell(v any) string {
	var s string
	switch v := v.(type) {
	case *time.Time:
		if v != nil {
			s = Moment(*v)
		}
	case time.Time:
		s = Moment(v)
	case *int:
		if v != nil {
			s = fmt.Sprint(*v)
		}
	default:
		s = fmt.Sprint(v)
	}
	return cmp.Or(Clean(s), None)
}

// Moment formats a time in UTC, to the second; "" for the zero time.
func Moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// print writes the rows, with colours if colour is set.
func (t *Table) print(w io.Writer, colour bool) error {
	if t.head && len(t.rows) == 1 && t.Empty != "" {
		_, err := fmt.Fprintln(w, t.Empty)
		return err
	}
	var widths []int
	for _, row := range t.rows {
		for i, c := range row[:max(0, len(row)-1)] { // the last cell needs no padding
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			if colour && c.colour != "" {
				b.WriteString(c.colour + c.text + normal)
			} else {
				b.WriteString(c.text)
			}
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Clean replaces characters that a terminal would interpret, because names and messages
// come from others. It keeps line breaks.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// State pads a state to a width, and colours it on a terminal.
func (c *Call) State(state string, width int) string {
	text := Cell(state)
	padding := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
	if colour := colours[State(state)]; c.Env.Colour && colour != "" {
		text = colour + text + normal
	}
	return text + padding
}
