// Package harness is what the suites of the integration tests share: agents, the service
// under test, access to its stores, and faults. A suite is a package of tests beside it;
// its TestMain calls Main. A helper for only one suite is in that suite.
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
	// Shared is the stack that most tests of a suite use. Tests that disturb it start their
	// own.
	Shared *devstack.Stack
	// Binaries are the paths of the agents.
	Binaries devstack.Binaries
	// BinDir contains the images of engines that are executables, and the worker of
	// snapshots.
	BinDir string

	// Locked says whether the agents have ACLs, TLS and workload identities, which
	// ORCH_TEST_OPEN=1 turns off.
	Locked = os.Getenv("ORCH_TEST_OPEN") != "1"

	documented *contract.Transport
	calls      *patient
)

// atOnce is the number of concurrent tests of a suite without -parallel. They wait for
// engines more than they compute, and on two cores `go test ./...` runs two suites at once.
// On some machines a system call takes a microsecond, five times the usual time: everything
// there takes three times as long, but the deadlines of the tests are the same.
func atOnce() int {
	const calls, usual, slow = 100_000, 6, 3
	began := time.Now()
	for range calls {
		_ = syscall.Getppid()
	}
	if time.Since(began) > calls*500*time.Nanosecond {
		return slow
	}
	return usual
}

// Main runs the tests of a suite, as its TestMain, and ends the process. It fails if tests
// leave goroutines behind, or if all tests ran and no call got a response that the suite
// must cause.
func Main(m *testing.M) {
	// This is set before the command line is parsed, which may override it.
	if err := flag.Set("test.parallel", strconv.Itoa(atOnce())); err != nil {
		panic(err)
	}
	doc, err := contract.Load()
	if err != nil {
		panic(err)
	}
	// Every call to the service is checked against the document.
	documented = contract.New(doc, http.DefaultTransport)
	calls = &patient{base: documented, hosts: map[string]patience{}}
	http.DefaultClient = &http.Client{Transport: calls}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		// The agents have ended, so the connections to them can be closed.
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
	if err := BuildEngines(BinDir); err != nil {
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
		ExtraClients: 1, Locked: Locked, InMemory: keep == "", Keep: keep != "", Dir: keep,
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

// suite returns the name of the running suite, which is that of its directory.
func suite() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Base(dir)
}

// Repository is the root of the repository, relative to a suite.
const Repository = "../../.."

// engineNames are the images that tests run: one executable whose name contains its
// switches.
var engineNames = []string{
	"reference-engine", "reference-engine.v2", "reference-engine.reload", "reference-engine.no-reload", "reference-engine.exit-at-start", "reference-engine.never-listen",
	"reference-engine.slow-boot-2s", "reference-engine.slow-boot-10s", "reference-engine.slow-boot-30s", "reference-engine.ignore-sigterm", "reference-engine.term-delay-5s", "reference-engine.term-delay-20s",
	"reference-engine.linger-3s", "reference-engine.fail-health", "reference-engine.hang",
	"reference-engine.fail-health-file", "reference-engine.crash-after-10s",
	"reference-engine.route-first", "reference-engine.unknown-401", "reference-engine.two-keys", "reference-engine.busy",
}

// BuildEngines builds the images of engines, and the worker of snapshots, into a directory.
func BuildEngines(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "github.com/septemberai/orch/cmd/reference-engine", "github.com/septemberai/orch/cmd/orch-brain")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the reference engine and the worker: %w", err)
	}
	for _, name := range engineNames[1:] {
		if err := os.Link(filepath.Join(dir, engineNames[0]), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
