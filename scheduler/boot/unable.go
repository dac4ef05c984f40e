package boot

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Unable is the response of an engine that it cannot serve now (docs/tutorial-engine.md).
type Unable struct {
	code    int
	Failing []string // subsystems that are not "ok", sorted; nil: it names none
}

func (u *Unable) Error() string {
	if len(u.Failing) == 0 {
		return fmt.Sprintf("health returned %d with a status other than ok", u.code)
	}
	return fmt.Sprintf("health returned %d: %s failing", u.code, strings.Join(u.Failing, ", "))
}

// failingOf returns the names of the subsystems in a response of /health whose value, or
// the status in it, is not "ok".
func failingOf(subsystems json.RawMessage) (failing []string) {
	var all map[string]json.RawMessage
	_ = json.Unmarshal(subsystems, &all) // in another form it names none
	for name, value := range all {
		var word string
		if json.Unmarshal(value, &word) != nil {
			var whole struct{ Status string }
			if json.Unmarshal(value, &whole) != nil || whole.Status == "" {
				continue
			}
			word = whole.Status
		}
		if word != "ok" {
			failing = append(failing, name)
		}
	}
	slices.Sort(failing)
	return failing
}
