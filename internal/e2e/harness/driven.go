package harness

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/contract"
)

// A full run of a suite has to get the answers of the document that drivenBy gives to
// it. What is in no list is the contract suite's, so an operation or a code that is new
// fails that suite until a test drives it.
const contractSuite = "contract"

// drivenByCode are the suites that bring about a failure, of whatever operation.
var drivenByCode = map[string]string{
	"BACKEND_UNAVAILABLE":    "outages",
	"ENGINE_ALREADY_RUNNING": "lifecycle",
	"ENGINE_QUARANTINED":     "recovery",
	"PORT_EXHAUSTION":        "lifecycle",
	"RATE_LIMITED":           "admission",
	"RECORD_UNREADABLE":      "recovery",
	"REGISTRY_RECOVERING":    "recovery",
	"ROTATION_UNCONFIRMED":   "lifecycle",
}

// drivenElsewhere are answers that suites other than the contract suite get.
var drivenElsewhere = map[string][]string{
	"admission": {"keepAwake 409 ENGINE_BUSY", "provision 409 ENGINE_BUSY", "rotateKey 409 ENGINE_BUSY", "stopEngine 409 ENGINE_BUSY"},
	"lifecycle": {
		"applyProviderKeys 200", "providerKeys 200", "provision 403 POLICY_DENIED", "provision 504 BOOT_TIMEOUT", "rotateKey 409 ENGINE_NOT_RUNNING",
		"startEngine 502 ENGINE_BOOT_FAILED", "startEngine 504 BOOT_TIMEOUT",
	},
	"outages": {"adoptNode 200", "adoptNode 504 STOP_UNCONFIRMED", "getHealth 503"},
	"recovery": {
		"adopt 200", "adopt 409 ENGINE_ALREADY_EXISTS", "discard 200", "forgetVolume 200", "getRegistry 200", "listQuarantine 200", "listUnreachableVolumes 200",
		"planReconcile 200", "planRecovery 200", "recoverRegistry 200", "rekey 200", "requestReconcile 200",
	},
	"sleep": {"keepAwake 200", "keepAwake 409 ENGINE_NOT_RUNNING"},
}

// drivenBy is the suite that has to get an answer.
func drivenBy(a contract.Answer) string {
	for suite, answers := range drivenElsewhere {
		if slices.Contains(answers, a.String()) {
			return suite
		}
	}
	return cmp.Or(drivenByCode[a.Code], contractSuite)
}

// notDriven are the answers of the document that no test here drives, with the
// reason.
var notDriven = []struct {
	reason  string
	answers []contract.Answer
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
	for _, why := range notDriven {
		if slices.Contains(why.answers, a) {
			return false
		}
	}
	return true
}

// undriven are the answers that a full run of a suite should have got and has not.
func undriven(suite string) (missing []string) {
	for _, a := range documented.Unseen() {
		if isDriven(a) && drivenBy(a) == suite {
			missing = append(missing, a.String())
		}
	}
	return missing
}

// checkDriven fails a full run of the suite that left out an answer that it drives. A
// run of some tests says nothing about the rest.
func checkDriven(code int) int {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.bench"} {
		if flag.Lookup(name).Value.String() != "" {
			return code
		}
	}
	if missing := undriven(suite()); code == 0 && !testing.Short() && len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "no test of this suite got these documented answers:\n  %s\n", strings.Join(missing, "\n  "))
		return 1
	}
	return code
}
