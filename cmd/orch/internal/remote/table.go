package remote

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// table is rows of cells, aligned when they are printed.
type table struct{ rows [][]string }

// row appends a row; numbers and words are written as they are.
func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = cell(c)
	}
	t.rows = append(t.rows, row)
}

// fact appends a name and a value, unless there is no value.
func (t *table) fact(name string, value any) {
	if c := cell(value); c != none {
		t.row(name, c)
	}
}

// none stands where a list has no value.
const none = "-"

func cell(v any) string {
	var s string
	switch v := v.(type) {
	case *time.Time:
		if v != nil {
			s = moment(*v)
		}
	case time.Time:
		s = moment(v)
	case *int:
		if v != nil {
			s = fmt.Sprint(*v)
		}
	default:
		s = fmt.Sprint(v)
	}
	if s = clean(s); s == "" {
		return none
	}
	return s
}

// moment is a time in UTC, to the second.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// clean replaces what a terminal would obey instead of showing: names and
// messages come from others. Line breaks of our own text stay.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
