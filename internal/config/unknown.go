package config

import (
	"slices"
	"strings"
)

// callers are the ORCH_ variables of the command line and of `make dev`, which may be in
// the environment of the service as well.
var callers = []string{"ORCH_URL", "ORCH_OPS_URL", "ORCH_PLATFORM_KEY", "ORCH_CACERT", "ORCH_CLIENT_CERT", "ORCH_CLIENT_KEY", "ORCH_TOOLS"}

// Unknown returns the names of ORCH_ variables that nothing reads, such as misspelt ones.
func Unknown(environ []string) (names []string) {
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "ORCH_") || slices.Contains(callers, name) ||
			strings.HasPrefix(name, "ORCH_TEST_") || strings.HasPrefix(name, "ORCH_DEV") ||
			slices.ContainsFunc(Variables(), func(v Variable) bool { return v.Name == name }) {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
