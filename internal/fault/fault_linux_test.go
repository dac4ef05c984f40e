package fault_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/fault"
)

// build builds testdata/points with the flags.
func build(t *testing.T, flags ...string) (executable string) {
	t.Helper()
	executable = filepath.Join(t.TempDir(), "points")
	args := append(append([]string{"build", "-o", executable}, flags...), "./testdata/points")
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, out)
	}
	return executable
}

func command(t *testing.T, executable, spec string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), executable)
	cmd.Env = []string{fault.Variable + "=" + spec}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func killed(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == syscall.SIGKILL }

func exited(code int) func(syscall.WaitStatus) bool {
	return func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == code }
}

// In an executable with the tag, an enabled point has its effect; in one without the tag it
// has none, and the variable is not even read.
func TestHit(t *testing.T) {
	tagged, shipped := build(t, "-tags", fault.Tag), build(t)
	for name, tc := range map[string]struct {
		executable, spec string
		want             func(syscall.WaitStatus) bool
	}{
		"Kill":           {tagged, "kill here", killed},
		"AnotherPoint":   {tagged, "kill nowhere", exited(7)},
		"Unarmed":        {tagged, "", exited(7)},
		"NoPoint":        {tagged, "kill", exited(2)},
		"UnknownWay":     {tagged, "maim here", exited(2)},
		"ShippedKill":    {shipped, "kill here", exited(7)},
		"ShippedMistake": {shipped, "maim here", exited(7)},
	} {
		t.Run(name, func(t *testing.T) {
			var exit *exec.ExitError
			if err := command(t, tc.executable, tc.spec).Run(); !errors.As(err, &exit) || !tc.want(exit.Sys().(syscall.WaitStatus)) {
				t.Errorf("the process ended with %v", err)
			}
		})
	}
}

// A paused process continues where it was, and is not paused again.
func TestPause(t *testing.T) {
	cmd := command(t, build(t, "-tags", fault.Tag), "pause here")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() || status.StopSignal() != syscall.SIGSTOP {
		t.Fatalf("status %v, %v", status, err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("the process ended with %v", err)
	}
}
