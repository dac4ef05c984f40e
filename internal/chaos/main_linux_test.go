package chaos

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/testpg"
)

var (
	faultsFor = flag.Duration("chaos.for", 45*time.Second, "how long faults are injected")
	// By default one plan is repeated, which has most kinds of faults; `make chaos` uses
	// new ones.
	seed     = flag.Uint64("chaos.seed", 5, "seed of the faults and the callers; 0: a new one")
	keep     = flag.String("chaos.keep", "", "directory for all state and logs, which stay there")
	raceOrch = flag.Bool("chaos.race", false, "build the service with the race detector")
	other    = flag.String("chaos.orch", "", "the service's executable; empty: it is built from here")
	only     = flag.String("chaos.only", "", "nothing but this fault, again and again, as in \"pause consul-client-3 for 6s\"; \"none\": none")
)

// TestMain runs everything in a separate network namespace.
func TestMain(m *testing.M) {
	flag.Parse()
	if devstack.NeedIsolation() != nil {
		os.Exit(m.Run()) // need reports it
	}
	inside, code, err := devstack.Isolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if !inside {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// need skips the test if it cannot run; in CI it fails.
func need(t *testing.T) {
	t.Helper()
	testpg.Need(t)
	err := devstack.NeedIsolation()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// interrupted returns a context that ends with the test or by Ctrl-C, so that the clean-up
// always runs.
func interrupted(t *testing.T) context.Context {
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	return ctx
}

// build builds the service, the engine and the worker of snapshots.
func build(t *testing.T) (orch, engines string) {
	t.Helper()
	dir := t.TempDir()
	orch, engines = filepath.Join(dir, "orch"), filepath.Join(dir, "engines")
	args := []string{"build", "-o", orch}
	if *raceOrch {
		args = append(args, "-race")
	}
	for _, b := range []struct {
		args []string
		env  string
	}{
		{append(args, "github.com/septemberai/orch/cmd/orch"), "GOFLAGS="},
		{[]string{"build", "-ldflags", "-s -w", "-o", engines + "/", "github.com/septemberai/orch/cmd/reference-engine", "github.com/septemberai/orch/cmd/orch-brain"}, "CGO_ENABLED=0"},
	} {
		cmd := exec.Command("go", b.args...)
		cmd.Env = append(os.Environ(), b.env)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", b.args, err, out)
		}
	}
	if *other != "" {
		orch = *other
	}
	return orch, engines
}
