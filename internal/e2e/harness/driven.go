package harness

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/contract"
)

// NotDriven are the answers of the document that no test here drives, with the
// reason.
var NotDriven = []struct {
	reason  string
	Answers []contract.Answer
}{
	{"it needs a node that answers its servers, and for 40 s not the kill", []contract.Answer{{Operation: "destroyEngine", Status: 504, Code: "STOP_UNCONFIRMED"}}},
	{"it needs another replica that lives and does not get on with its destroy", []contract.Answer{{Operation: "destroyEngine", Status: 409, Code: "ENGINE_BUSY"}}},
	{"it needs an engine that changes between a read and a check-and-set", []contract.Answer{
		{Operation: "adopt", Status: 409, Code: "ENGINE_BUSY"}, {Operation: "discard", Status: 409, Code: "ENGINE_BUSY"},
	}},
	{"it needs a node that is silent for 40 s", []contract.Answer{{Operation: "discard", Status: 504, Code: "STOP_UNCONFIRMED"}}},
	{"it needs an engine that changes faster than a call can look, again and again", []contract.Answer{{Operation: "admit", Status: 409, Code: "ENGINE_BUSY"}}},
}

// isDriven says whether a test can be asked to drive an answer.
func isDriven(a contract.Answer) bool {
	if a.Code == "INTERNAL_ERROR" {
		return false // nobody can be made to do it
	}
	if a.Code == "BACKEND_ERROR" {
		// A refusal by Vault comes from what uses keys. Nomad refuses nothing to
		// the agents of the tests, and Consul's refusals count as its absence.
		return slices.Contains([]string{"provision", "getEngine", "admit", "startEngine", "rotateKey", "destroyEngine"}, a.Operation)
	}
	for _, why := range NotDriven {
		if slices.Contains(why.Answers, a) {
			return false
		}
	}
	return true
}

// undriven are the documented answers that a full run of the tests should have
// got and has not.
func undriven() (missing []string) {
	for _, a := range documented.Unseen() {
		if isDriven(a) {
			missing = append(missing, a.String())
		}
	}
	return missing
}

// checkDriven fails a full run that left a row of the document's tables out. A
// run of some tests says nothing about the rest.
func checkDriven(code int) int {
	for _, name := range []string{"test.run", "test.skip", "test.fuzz", "test.bench"} {
		if flag.Lookup(name).Value.String() != "" {
			return code
		}
	}
	if missing := undriven(); code == 0 && !testing.Short() && len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "no test got these documented answers:\n  %s\n", strings.Join(missing, "\n  "))
		return 1
	}
	return code
}
