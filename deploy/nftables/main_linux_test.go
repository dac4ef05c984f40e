package nftables_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/septemberai/orch/internal/devstack"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	if err := devstack.NeedIsolation(); err != nil {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("skipped:", err)
		return
	}
	inside, code, err := devstack.Isolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if inside {
		code = m.Run()
	}
	os.Exit(code)
}
