package main

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
)

// performancePage is where the tables of a report are shown, between two marks.
const (
	performancePage = "docs/performance.md"
	pasteBegin      = "<!-- bench: from here on by `go run ./bench -paste FILE` -->\n"
	pasteEnd        = "<!-- bench: to here -->\n"
)

// paste writes the tables of a report that was saved into the page.
func paste(file string) error {
	saved, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var rep report
	if err := json.Unmarshal(saved, &rep); err != nil {
		return err
	}
	page, err := os.ReadFile(performancePage)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(page), pasteBegin)
	_, after, ends := strings.Cut(rest, pasteEnd)
	if !begins || !ends {
		return errors.New(performancePage + " lacks the marks between which the tables go")
	}
	tables := strings.Replace(rep.markdown(), "# ", "### ", 1)
	return os.WriteFile(performancePage, []byte(before+pasteBegin+"\n"+tables+"\n"+pasteEnd+after), 0o644)
}
