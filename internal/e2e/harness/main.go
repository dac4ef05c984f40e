// Package harness holds what the suites of the integration tests share: agents to run
// on, the service under test, looks into its stores, and what breaks things. A suite is
// a package of tests beside it; its TestMain calls Main. A helper that one suite alone
// needs is in that suite.
package harness

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/contract"
	"github.com/septemberai/orch/internal/devstack"
)

var (
	// Shared is the stack that most tests of a suite use; those that hurt it start
	// their own.
	Shared *devstack.Stack
	// Binaries are the agents.
	Binaries devstack.Binaries
	// BinDir has the images of engines that are executables.
	BinDir string

	// Locked says whether the agents refuse strangers (ORCH_DEV_LOCKED=1).
	Locked = os.Getenv("ORCH_DEV_LOCKED") == "1"

	documented *contract.Transport
	calls      *patient
)

// atOnce is how many tests of a suite run side by side unless -parallel says otherwise:
// they wait for engines more than they compute, and on two cores `go test ./...` runs
// two suites at once. Some machines take a microsecond for a system call, five times
// the usual: all that agents, engines and tests do there takes three times as long, and
// the tests' deadlines stay.
func atOnce() int {
	const calls, usual, slow = 100_000, 4, 2
	began := time.Now()
	for range calls {
		_ = syscall.Getppid()
	}
	if time.Since(began) > calls*500*time.Nanosecond {
		return slow
	}
	return usual
}

// Main runs the tests of a suite, as its TestMain, and ends the process. It fails when
// they leave goroutines behind, or when all ran and an answer that the suite drives was
// not got.
func Main(m *testing.M) {
	// Before the command line is read, which may say otherwise.
	if err := flag.Set("test.parallel", strconv.Itoa(atOnce())); err != nil {
		panic(err)
	}
	doc, err := contract.Load()
	if err != nil {
		panic(err)
	}
	// Every call to the service passes by the document.
	documented = contract.New(doc, http.DefaultTransport)
	calls = &patient{base: documented, hosts: map[string]*testing.T{}}
	http.DefaultClient = &http.Client{Transport: calls}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		// The agents are gone, and with them the connections to them.
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	tmp, err := os.MkdirTemp("", "orch-e2e-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	BinDir = filepath.Join(tmp, "engines")
	if err := buildEngines(BinDir); err != nil {
		return 1, err
	}
	if Binaries, err = devstack.Tools(ctx, devstack.ToolOptions{Progress: func(s string) { fmt.Fprintln(os.Stderr, s) }}); err != nil {
		return 1, err
	}
	keep := os.Getenv("ORCH_TEST_KEEP")
	if keep != "" {
		keep = filepath.Join(keep, suite())
	}
	began := time.Now()
	Shared, err = devstack.Start(ctx, devstack.Config{
		Binaries: Binaries, Logger: hclog.NewNullLogger(), DockerSocket: os.Getenv("DOCKER_HOST"),
		ExtraClients: 1, Locked: Locked, Keep: keep != "", Dir: keep,
	})
	if err != nil {
		return 1, err
	}
	fmt.Fprintf(os.Stderr, "agents ready in %s\n", time.Since(began).Round(time.Millisecond))
	defer func() {
		if serr := Shared.Stop(); serr != nil && err == nil {
			code, err = 1, serr
		}
	}()
	defer Postgres.stop()
	return checkDriven(m.Run()), nil
}

// suite is the name of the suite that runs, which is its directory's.
func suite() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Base(dir)
}

// Repository is the root of the repository, as seen from a suite.
const Repository = "../../.."

// engineNames are the images that tests run: one executable whose name carries
// its switches.
var engineNames = []string{
	"reference-engine", "reference-engine.v2", "reference-engine.reload", "reference-engine.no-reload", "reference-engine.exit-at-start", "reference-engine.never-listen",
	"reference-engine.slow-boot-2s", "reference-engine.slow-boot-10s", "reference-engine.slow-boot-30s", "reference-engine.ignore-sigterm", "reference-engine.term-delay-5s", "reference-engine.term-delay-20s",
	"reference-engine.linger-3s", "reference-engine.fail-health", "reference-engine.hang",
	"reference-engine.fail-health-file", "reference-engine.crash-after-4s",
	"reference-engine.route-first", "reference-engine.unknown-401", "reference-engine.two-keys",
}

func buildEngines(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	first := filepath.Join(dir, engineNames[0])
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", first, "github.com/septemberai/orch/cmd/reference-engine")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the reference engine: %w", err)
	}
	for _, name := range engineNames[1:] {
		if err := os.Link(first, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
