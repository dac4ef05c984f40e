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

// A full run of a suite must cause the responses in the document that drivenBy assigns to
// it. Everything in no list is assigned to the contract suite, so a new operation or code
// makes that suite fail until a test causes it.
const contractSuite = "contract"

// drivenByCode are the suites that cause a failure, whatever the operation.
var drivenByCode = map[string]string{
	"BACKEND_REFUSED":        "outages",
	"BACKEND_UNAVAILABLE":    "outages",
	"ENGINE_ALREADY_RUNNING": "lifecycle",
	"ENGINE_QUARANTINED":     "recovery",
	"OVERLOADED":             "outages",
	"PORT_EXHAUSTION":        "lifecycle",
	"RATE_LIMITED":           "admission",
	"RECORD_UNREADABLE":      "recovery",
	"REGISTRY_RECOVERING":    "recovery",
	"ROTATION_UNCONFIRMED":   "lifecycle",
}

// drivenElsewhere are responses that suites other than the contract suite cause.
var drivenElsewhere = map[string][]string{
	"admission": {"keepAwake 409 ENGINE_BUSY", "provision 409 ENGINE_BUSY", "rotateKey 409 ENGINE_BUSY", "stopEngine 409 ENGINE_BUSY"},
	"brains": {
		"cancelEvacuation 200", "cancelEvacuation 404 NOT_FOUND", "evacuateNode 200", "evacuateNode 404 NOT_FOUND", "evacuateNode 507 SNAPSHOT_FAILED",
		"getEvacuation 200", "getEvacuation 404 NOT_FOUND", "listStoredEngines 200",
		"importEngine 200", "importEngine 202", "importEngine 403 POLICY_DENIED", "importEngine 404 PRODUCT_NOT_FOUND", "importEngine 409 ENGINE_ALREADY_EXISTS",
		"importEngine 422 SNAPSHOT_CORRUPT", "importEngine 429 QUOTA_EXCEEDED",
	},
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

// drivenBy returns the suite that must cause a response.
func drivenBy(a contract.Answer) string {
	for suite, answers := range drivenElsewhere {
		if slices.Contains(answers, a.String()) {
			return suite
		}
	}
	return cmp.Or(drivenByCode[a.Code], contractSuite)
}

// notDriven are the responses in the document that no test causes, with the reason.
var notDriven = []struct {
	reason  string
	answers []contract.Answer
}{
	{"it needs a node that responds to its servers, but not to the kill for 40 s", []contract.Answer{{Operation: "destroyEngine", Status: 504, Code: "STOP_UNCONFIRMED"}}},
	{"it needs another replica that lives and does not get on with its destroy", []contract.Answer{{Operation: "destroyEngine", Status: 409, Code: "ENGINE_BUSY"}}},
	{"it needs an engine that changes between a read and a check-and-set", []contract.Answer{
		{Operation: "adopt", Status: 409, Code: "ENGINE_BUSY"}, {Operation: "discard", Status: 409, Code: "ENGINE_BUSY"},
	}},
	{"it needs a node that is silent for 40 s", []contract.Answer{{Operation: "discard", Status: 504, Code: "STOP_UNCONFIRMED"}}},
	{"it needs a node or a store whose disk is full", []contract.Answer{
		{Operation: "takeSnapshot", Status: 507, Code: "SNAPSHOT_FAILED"}, {Operation: "restoreEngine", Status: 507, Code: "SNAPSHOT_FAILED"},
		{Operation: "forkEngine", Status: 507, Code: "SNAPSHOT_FAILED"},
	}},
	{"the engine boots by the same steps as in a start or a provision, whose tests cause it", []contract.Answer{
		{Operation: "restoreEngine", Status: 502, Code: "ENGINE_BOOT_FAILED"}, {Operation: "restoreEngine", Status: 504, Code: "BOOT_TIMEOUT"},
		{Operation: "restoreEngine", Status: 503, Code: "CAPACITY_EXHAUSTED"}, {Operation: "restoreEngine", Status: 503, Code: "PORT_EXHAUSTION"},
		{Operation: "restoreEngine", Status: 504, Code: "STOP_UNCONFIRMED"},
		{Operation: "forkEngine", Status: 502, Code: "ENGINE_BOOT_FAILED"}, {Operation: "forkEngine", Status: 504, Code: "BOOT_TIMEOUT"},
		{Operation: "forkEngine", Status: 503, Code: "PORT_EXHAUSTION"},
	}},
	{"an import is a restore of an engine without a brain, whose tests cause it", []contract.Answer{
		{Operation: "importEngine", Status: 502, Code: "ENGINE_BOOT_FAILED"}, {Operation: "importEngine", Status: 504, Code: "BOOT_TIMEOUT"},
		{Operation: "importEngine", Status: 503, Code: "CAPACITY_EXHAUSTED"}, {Operation: "importEngine", Status: 503, Code: "PORT_EXHAUSTION"},
		{Operation: "importEngine", Status: 504, Code: "STOP_UNCONFIRMED"}, {Operation: "importEngine", Status: 507, Code: "SNAPSHOT_FAILED"},
	}},
	{"it needs two imports of one engine from different snapshots, or a product that changes meanwhile", []contract.Answer{{Operation: "importEngine", Status: 409, Code: "ENGINE_BUSY"}}},
	{"it needs a secret that changes its owner during an import", []contract.Answer{{Operation: "importEngine", Status: 409, Code: "ENGINE_QUARANTINED"}}},
	{"it needs the record of a product that is damaged after the recovery", []contract.Answer{
		{Operation: "importEngine", Status: 503, Code: "RECORD_UNREADABLE"}, {Operation: "listStoredEngines", Status: 503, Code: "RECORD_UNREADABLE"},
	}},
	{"it needs an engine that repeatedly changes faster than a call can read it", []contract.Answer{{Operation: "admit", Status: 409, Code: "ENGINE_BUSY"}}},
}

// isDriven reports whether a test can cause a response.
func isDriven(a contract.Answer) bool {
	if a.Code == "INTERNAL_ERROR" {
		return false // no test can cause it
	}
	if a.Code == "BACKEND_ERROR" {
		// Nomad rejects no correct request, and tests of nodes make their plugins fail.
		return false
	}
	for _, why := range notDriven {
		if slices.Contains(why.answers, a) {
			return false
		}
	}
	return true
}

// undriven returns the responses that a full run of a suite should have caused but did not.
func undriven(suite string) (missing []string) {
	for _, a := range documented.Unseen() {
		if isDriven(a) && drivenBy(a) == suite {
			missing = append(missing, a.String())
		}
	}
	return missing
}

// checkDriven fails a full run of a suite that did not cause all its responses. A run of
// some tests only is not checked.
func checkDriven(code int) int {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.bench"} {
		if flag.Lookup(name).Value.String() != "" {
			return code
		}
	}
	if missing := undriven(suite()); code == 0 && !testing.Short() && len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "no test of this suite got these documented responses:\n  %s\n", strings.Join(missing, "\n  "))
		return 1
	}
	return code
}
