package fault

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(Variable) != "" {
		if err := Arm(os.Getenv(Variable)); err != nil {
			os.Exit(2)
		}
		Hit("another")
		Hit("here")
		Hit("here")
		os.Exit(7)
	}
	goleak.VerifyTestMain(m)
}

func command(t *testing.T, spec string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	// The race detector sleeps for a second before it lets a process end.
	cmd.Env = []string{Variable + "=" + spec, "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func TestHit(t *testing.T) {
	for spec, want := range map[string]func(syscall.WaitStatus) bool{
		"kill here":    func(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == syscall.SIGKILL },
		"kill nowhere": func(s syscall.WaitStatus) bool { return s.ExitStatus() == 7 },
		"kill":         func(s syscall.WaitStatus) bool { return s.ExitStatus() == 2 },
		"maim here":    func(s syscall.WaitStatus) bool { return s.ExitStatus() == 2 },
	} {
		t.Run(spec, func(t *testing.T) {
			var exit *exec.ExitError
			if err := command(t, spec).Run(); !errors.As(err, &exit) || !want(exit.Sys().(syscall.WaitStatus)) {
				t.Errorf("the process ended with %v", err)
			}
		})
	}
}

// A paused process goes on where it was, and is not paused again.
func TestPause(t *testing.T) {
	cmd := command(t, "pause here")
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

func TestUnarmed(t *testing.T) {
	if err := Arm(""); err != nil {
		t.Fatal(err)
	}
	Hit("here")
}
