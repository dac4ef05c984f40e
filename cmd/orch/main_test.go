package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asOrch makes the test binary act as the command, in a separate process.
const asOrch = "ORCH_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asOrch) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// command returns a call of orch with only vars in its environment. It is killed if it
// takes too long.
func command(t *testing.T, vars []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, executable, args...)
	// The race detector sleeps for a second before it lets a process end.
	cmd.Dir = t.TempDir() // a server keeps its audit log below it
	cmd.Env = append([]string{asOrch + "=1", "HOME=" + t.TempDir(), "GORACE=atexit_sleep_ms=0"}, vars...)
	return cmd
}

// orch runs a call to its end.
func orch(t *testing.T, vars []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(t, vars, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
