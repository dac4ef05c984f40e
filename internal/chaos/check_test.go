package chaos

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkTimeout limits the search for an order of one user's calls.
const checkTimeout = 15 * time.Second

// linearizable returns nil if there is an order in which all responses are true.
func linearizable(calls []*call) error {
	u := newUser(calls)
	switch porcupine.CheckOperationsTimeout(u.model(), u.operations(), checkTimeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("%w of %d calls", errUndecided, len(calls))
	}
	// The longest valid order shows which call does not fit.
	_, info := porcupine.CheckOperationsVerbose(u.model(), u.operations(), checkTimeout)
	longest := map[int16]bool{}
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) <= len(longest) {
				continue
			}
			longest = map[int16]bool{}
			for _, op := range order {
				if e := op.Input.(event); e.what != 'b' {
					longest[e.call] = true
				}
			}
		}
	}
	var b strings.Builder
	b.WriteString("no order of the calls makes all responses true (! the first that fits none):\n")
	for i, c := range calls {
		mark := " "
		if !longest[int16(i)] {
			mark = "!"
		}
		fmt.Fprintf(&b, "%s %s\n", mark, c)
	}
	return fmt.Errorf("%s", b.String())
}

// errUndecided: the checker did not finish in time.
var errUndecided = fmt.Errorf("no order was found, nor that there is none, in %s", checkTimeout)

// before returns a history as of the invocation of its call n. If a history has an order,
// its part before any moment has one too.
func before(calls []*call, n int) []*call {
	cut := make([]*call, n)
	for i, c := range calls[:n] {
		if cut[i] = c; c.returned > calls[n].invoked {
			open := *c
			open.answer = answer{}
			cut[i] = &open
		}
	}
	return cut
}

// script parses a history: each line is a call "invoked returned kind outcome id key", with
// - for nothing.
func script(t *testing.T, lines ...string) []*call {
	t.Helper()
	var calls []*call
	for _, line := range lines {
		f := strings.Fields(line)
		c := &call{answer: answer{status: 200}}
		if _, err := fmt.Sscan(f[0]+" "+f[1], &c.invoked, &c.returned); err != nil {
			t.Fatal(err)
		}
		c.invoked, c.returned = 10*c.invoked, 10*c.returned
		what, flags, _ := strings.Cut(f[2], "+")
		c.kind, c.autoProvision, c.autoWake = kind(what), strings.Contains(flags, "p"), strings.Contains(flags, "w")
		switch outcome := f[3]; {
		case outcome == "lost":
			c.answer.status = 0
		case outcome == "ok":
		case strings.HasPrefix(outcome, "engine_"):
			c.answer.denial = outcome
		case strings.ToUpper(outcome) == outcome:
			c.answer.status, c.answer.code = 409, outcome
		default:
			c.answer.state = outcome
		}
		for i, to := range []*string{&c.answer.engineID, &c.answer.key} {
			if len(f) > 4+i && f[4+i] != "-" {
				*to = f[4+i]
			}
		}
		calls = append(calls, c)
	}
	return calls
}

func TestModel(t *testing.T) {
	for name, lines := range map[string][]string{
		"a whole life": {
			"1 2 get ENGINE_NOT_FOUND", "3 4 provision ok A k1", "5 6 get running A k1", "7 8 rotate-key ok - k2", "9 10 admit ok A k2",
			"11 12 stop ok", "13 14 admit engine_stopped", "15 16 stop ENGINE_NOT_RUNNING", "17 18 start ok", "19 20 destroy ok A", "21 22 get ENGINE_NOT_FOUND",
			"23 24 provision ok B k3",
		},
		"a provision shows before its answer":        {"1 9 provision ok A k1", "2 3 get provisioning A", "4 5 get running A k1"},
		"two admits, one engine":                     {"1 9 admit+p ok A k1", "1 8 admit+p ok A k1"},
		"two stops, one joins":                       {"1 2 provision ok A k1", "3 8 stop ok", "4 7 stop ok"},
		"a lost provision that came to be":           {"1 2 provision lost", "3 4 get ENGINE_NOT_FOUND", "5 6 get running A k1"},
		"a lost provision that was undone":           {"1 2 provision lost", "3 4 get provisioning A", "5 6 get ENGINE_NOT_FOUND", "7 8 provision ok B k2"},
		"a lost stop that is carried out later":      {"1 2 provision ok A k1", "3 4 stop lost", "5 6 admit ok A k1", "7 8 get stopped A k1"},
		"a crash and a restart by the service":       {"1 2 provision ok A k1", "3 4 get failed A k1", "5 6 get provisioning A k1", "7 8 get running A k1"},
		"shown as running while it is put to sleep":  {"1 2 provision ok A k1", "3 4 admit engine_sleeping", "5 6 get running A k1", "7 8 get sleeping A k1"},
		"asleep and woken":                           {"1 2 provision ok A k1", "3 4 admit engine_sleeping", "5 6 admit+w ok A k1"},
		"a boot that failed, and another try":        {"1 2 provision BOOT_TIMEOUT", "3 4 get failed A k1", "5 6 start ok", "7 8 get running A k1"},
		"a rotation that is rolled forward":          {"1 2 provision ok A k1", "3 4 rotate-key ROTATION_UNCONFIRMED", "5 6 get running A k1", "7 8 get running A k2"},
		"a provision interrupted by a destroy":       {"1 9 provision ENGINE_BUSY", "2 8 destroy ok A", "10 11 get ENGINE_NOT_FOUND"},
		"a destroy that joins another":               {"1 2 provision ok A k1", "3 9 destroy ok A", "4 8 destroy ok A", "10 11 get ENGINE_NOT_FOUND"},
		"a stop whose end nobody saw, then a start":  {"1 2 provision ok A k1", "3 4 stop STOP_UNCONFIRMED", "5 6 get running A k1", "7 8 get stopped A k1", "9 10 start ok"},
		"an engine_id that changed while it was new": {"1 9 provision ok B k1", "2 3 get provisioning A", "4 5 get provisioning B", "10 11 get running B k1"},
	} {
		t.Run("OK "+name, func(t *testing.T) {
			if err := linearizable(script(t, lines...)); err != nil {
				t.Error(err)
			}
		})
	}
	for name, lines := range map[string][]string{
		"an engine that is lost":                {"1 2 provision ok A k1", "3 4 get ENGINE_NOT_FOUND"},
		"an engine made twice":                  {"1 2 provision ok A k1", "3 4 provision ok B k2"},
		"another engine than was told":          {"1 2 provision ok A k1", "3 4 get running B k1"},
		"an old key":                            {"1 2 provision ok A k1", "3 4 rotate-key ok - k2", "5 6 admit ok A k1"},
		"a key that comes back":                 {"1 2 provision ok A k1", "3 4 rotate-key lost", "5 6 get running A k2", "7 8 get running A k1"},
		"a destroyed engine that is back":       {"1 2 provision ok A k1", "3 4 destroy ok A", "5 6 get running A k1"},
		"a destroyed engine_id, used again":     {"1 2 provision ok A k1", "3 4 destroy ok A", "5 6 provision lost", "7 8 get running A k2"},
		"a stopped engine that starts":          {"1 2 provision ok A k1", "3 4 stop ok", "5 6 get running A k1"},
		"an admit of a stopped engine":          {"1 2 provision ok A k1", "3 4 stop ok", "5 6 admit+pw ok A k1"},
		"two stops in a row":                    {"1 2 provision ok A k1", "3 4 stop ok", "5 6 stop ok"},
		"a lost stop that is carried out twice": {"1 2 provision ok A k1", "3 4 stop lost", "5 6 get stopped A k1", "7 8 start ok", "9 10 get stopped A k1"},
		"awake by itself":                       {"1 2 provision ok A k1", "3 4 get sleeping A k1", "5 6 get running A k1"},
		"two destroys in a row":                 {"1 2 provision ok A k1", "3 4 destroy ok A", "5 6 destroy ok A"},
		"two admits, two engines":               {"1 9 admit+p ok A k1", "1 8 admit+p ok B k2"},
		"a refused provision that took effect":  {"1 2 provision QUOTA_EXCEEDED", "3 4 get running A k1"},
		"a denied admit that provisioned":       {"1 2 admit engine_not_found", "3 4 get running A k1"},
		"not found beside an engine":            {"1 2 provision ok A k1", "3 9 stop ok", "4 5 get ENGINE_NOT_FOUND"},
	} {
		t.Run("Err "+name, func(t *testing.T) {
			if err := linearizable(script(t, lines...)); err == nil {
				t.Error("it was accepted as linearizable")
			}
		})
	}
}
