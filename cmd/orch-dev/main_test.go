package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/septemberai/orch/client"
)

// asCommand is an environment variable that makes the test binary run the command.
const asCommand = "ORCH_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// orchDev calls orch-dev and waits for its end.
func orchDev(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), executable, args...)
	cmd.Dir = t.TempDir()
	// With the race detector, a process sleeps for a second before it ends.
	cmd.Env = []string{asCommand + "=1", "HOME=" + cmd.Dir, "GORACE=atexit_sleep_ms=0"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestHelp(t *testing.T) {
	code, stdout, stderr := orchDev(t, "-help")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, name := range []string{"dev", "demo", "tools", "version"} {
		if !regexp.MustCompile(`(?m)^\s+` + name + `\s+\S`).MatchString(stdout) {
			t.Errorf("it does not list %s:\n%s", name, stdout)
		}
	}
}

// TestCalledWrongly: an invalid call exits with code 2, prints the usage to stderr, and starts
// nothing.
func TestCalledWrongly(t *testing.T) {
	for _, args := range [][]string{{}, {"server"}, {"dev", "extra"}, {"demo", "extra"}, {"tools", "extra"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			code, stdout, stderr := orchDev(t, args...)
			if code != 2 || stdout != "" || !strings.Contains(strings.ToLower(stderr), "usage: orch-dev") {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

// TestTalk checks that calls of an engine are printed only if the engine has them.
func TestTalk(t *testing.T) {
	for image, has := range map[string]bool{
		"": true, "reference-engine": true, "orch/reference-engine:1": true, "notes-engine.py": false, "acme/engine:1": false,
	} {
		calls := talk(&client.Engine{URL: "http://127.0.0.1:1", APIKey: "key"}, image)
		if got := strings.Contains(calls, "http://127.0.0.1:1/execute"); got != has || !has && calls != "" {
			t.Errorf("%s: it prints %q", image, calls)
		}
	}
}
