package chaos

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// kind is the kind of a call.
type kind string

const (
	provision kind = "provision"
	start     kind = "start"
	stop      kind = "stop"
	rotate    kind = "rotate-key"
	destroy   kind = "destroy"
	admit     kind = "admit"
	get       kind = "get"
)

// call is one call of the service, and the response.
type call struct {
	kind                    kind
	autoProvision, autoWake bool
	product, user           string
	replica                 string
	requestID               string

	// invoked and returned order all calls: a call that returned before another was invoked
	// has the smaller number.
	invoked, returned int64
	began, ended      time.Time
	answer            answer
}

// answer is the response that a caller got.
type answer struct {
	status   int    // 0: no response
	code     string // of an error
	err      string
	engineID string
	key      string
	state    string // of a GET
	denial   string // of an admit; empty if admitted
	again    bool   // the response says when to retry (Retry-After)
}

// ok reports whether the response was 2xx.
func (a answer) ok() bool { return a.status/100 == 2 }

// unknown reports that the call may have been carried out, may still be, or never will be.
func (a answer) unknown() bool {
	switch {
	case a.status == 0:
		return true
	case a.status < 500:
		return false
	}
	switch a.code {
	case "PORT_EXHAUSTION", "CAPACITY_EXHAUSTED", "ENGINE_BOOT_FAILED", "BOOT_TIMEOUT", "STOP_UNCONFIRMED", "ROTATION_UNCONFIRMED":
		return false
	}
	return true
}

// outcome returns the response as a word.
func (a answer) outcome() string {
	switch {
	case a.status == 0:
		return "no response"
	case !a.ok():
		return a.code
	case a.denial != "":
		return a.denial
	}
	return "ok"
}

func (c *call) String() string {
	what := string(c.kind)
	if c.autoProvision {
		what += "+provision"
	}
	if c.autoWake {
		what += "+wake"
	}
	heard := c.answer.outcome()
	for _, word := range []string{c.answer.state, short(c.answer.engineID), short(strings.TrimPrefix(c.answer.key, "sk-sept-"))} {
		if word != "" {
			heard += " " + word
		}
	}
	if c.answer.err != "" && c.answer.status == 0 {
		heard += " (" + c.answer.err + ")"
	}
	return fmt.Sprintf("%6d..%-6d %s +%-6s %s %-15s %s [%s]", c.invoked, c.returned, c.began.UTC().Format("15:04:05.000"),
		c.ended.Sub(c.began).Round(time.Millisecond), c.replica, what, heard, c.requestID)
}

// short returns the part of an id that distinguishes it from others, and of a key the part
// that may be shown.
func short(s string) string { return s[:min(len(s), 6)] }

// mix is how often callers make each kind of call.
var mix = []struct {
	weight int
	call   call
}{
	{20, call{kind: admit, autoProvision: true, autoWake: true}},
	{10, call{kind: admit}},
	{10, call{kind: provision}},
	{10, call{kind: get}},
	{12, call{kind: start}},
	{8, call{kind: stop}},
	{6, call{kind: rotate}},
	{7, call{kind: destroy}},
}

// history is all calls of the callers, and the responses.
type history struct {
	clock atomic.Int64

	mu    sync.Mutex
	calls []*call
}

// invoke records that a call begins.
func (h *history) invoke(c *call) {
	// It takes two numbers: the first is the moment from which the call may take effect.
	c.invoked, c.began = h.clock.Add(2), time.Now()
}

// done records the response to a call.
func (h *history) done(c *call) {
	c.returned, c.ended = h.clock.Add(1), time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, c)
}

// all returns the calls that returned, in the order of their invocation.
func (h *history) all() []*call {
	h.mu.Lock()
	defer h.mu.Unlock()
	calls := slices.Clone(h.calls)
	slices.SortFunc(calls, func(a, b *call) int { return int(a.invoked - b.invoked) })
	return calls
}

// byUser returns the calls of each user of each product.
func byUser(calls []*call) map[string][]*call {
	users := map[string][]*call{}
	for _, c := range calls {
		name := c.product + "/" + c.user
		users[name] = append(users[name], c)
	}
	return users
}
