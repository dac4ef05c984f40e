package cmdline

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"
)

// Show prints a result: as JSON, or as a table.
func (c *Call) Show(result any, t *Table) error {
	if c.JSON {
		return c.PrintJSON(result, "  ")
	}
	return t.print(c.Env.Out, c.Env.Colour)
}

// PrintJSON prints a value as JSON, on one line if indent is empty.
func (c *Call) PrintJSON(v any, indent string) error {
	enc := json.NewEncoder(c.Env.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return enc.Encode(v)
}

// Say prints a line to stderr that is for the user and not part of the result.
func (c *Call) Say(format string, args ...any) {
	if !c.JSON {
		_, _ = fmt.Fprintf(c.Env.Err, format+"\n", args...)
	}
}

// confirm asks a question on the terminal. Any answer but yes means no.
func (e *Env) confirm(question string) error {
	if !e.InTTY {
		return Wrong("this cannot be undone, and there is no terminal to confirm it: give -yes")
	}
	_, _ = fmt.Fprintf(e.Err, "%s [y/N] ", Clean(question))
	answer, _ := bufio.NewReader(e.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	_, _ = fmt.Fprintln(e.Err, "Nothing was done.")
	return ErrReported
}
