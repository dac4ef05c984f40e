package cmdline

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	var b bytes.Buffer
	tb := &Table{Empty: "nothing"}
	tb.Head("NAME", "N", "AT")
	tb.Row("a\tb\x1b[2J\u202e", 12, time.Time{})
	tb.Row("", new(7), time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600)))
	tb.Row("ü", (*int)(nil), (*time.Time)(nil))
	tb.Fact("absent", "")
	tb.Fact("there", "x")
	if err := tb.print(&b, false); err != nil {
		t.Fatal(err)
	}
	want := "NAME      N   AT\na\uFFFDb\uFFFD[2J\uFFFD  12  -\n-         7   2026-01-02 02:04:05Z\nü         -   -\nthere     x\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

// TestTableEmpty: a list without rows prints a message; facts have no head.
func TestTableEmpty(t *testing.T) {
	list, facts := &Table{Empty: "no engines"}, &Table{Empty: "no engines"}
	list.Head("NAME", "N")
	facts.Row("Status", "ok")
	for want, tb := range map[string]*Table{"no engines\n": list, "Status  ok\n": facts, "": {}} {
		var b bytes.Buffer
		if err := tb.print(&b, true); err != nil || b.String() != want {
			t.Errorf("got %q, %v, want %q", b.String(), err, want)
		}
	}
}

// TestColour: colours do not change columns, and only states have them, whatever a name is.
func TestColour(t *testing.T) {
	tb := &Table{}
	tb.Head("STATUS", "USER")
	tb.Row(State("running"), "failed")
	tb.Row(State("odd"), "x")
	var b bytes.Buffer
	if err := tb.print(&b, true); err != nil {
		t.Fatal(err)
	}
	want := "\x1b[1mSTATUS\x1b[0m   \x1b[1mUSER\x1b[0m\n\x1b[32mrunning\x1b[0m  failed\nodd      x\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	w := newWorld("")
	c := &Call{Env: &w.Env}
	if got := c.State("failed", 8); got != "failed  " {
		t.Errorf("without colour: %q", got)
	}
	w.Colour = true
	if got := c.State("failed", 8); got != "\x1b[31mfailed\x1b[0m  " {
		t.Errorf("with colour: %q", got)
	}
}

// TestColoured: only a terminal has colours, unless it or its user disables them.
func TestColoured(t *testing.T) {
	for _, c := range []struct {
		terminal bool
		vars     map[string]string
		want     bool
	}{
		{true, nil, true},
		{false, nil, false},
		{true, map[string]string{"NO_COLOR": "1"}, false},
		{true, map[string]string{"NO_COLOR": ""}, true},
		{true, map[string]string{"TERM": "dumb"}, false},
	} {
		if got := coloured(c.terminal, func(name string) string { return c.vars[name] }); got != c.want {
			t.Errorf("%+v: got %t", c, got)
		}
	}
}
