// Package install runs docs/install-steps.md as an operator does who types it, and what the
// Vagrantfile does. It needs no agents of the harness: these start their own.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is for a whole run, which takes a minute on a quiet machine. It is less than go test's
// own limit, so that a run that hangs still shows what it printed.
const limit = 9 * time.Minute

// namespaces are the host of a run: its own ports, mounts and processes. The ports that it
// names are therefore free, and when its first process ends, the kernel ends all others.
const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS

// host prepares the namespaces and runs the script.
const host = "mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up && exec bash script"

// TestInstallSteps runs all blocks of the page, word by word, in one shell that ends at the
// first failure. What a command prints must be what the page shows, and nothing may be left.
func TestInstallSteps(t *testing.T) {
	need(t)
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(harness.Repository, "docs", "install-steps.md"))
	if err != nil {
		t.Fatal(err)
	}
	steps := stepsOf(string(page))
	if len(steps) < 10 {
		t.Fatalf("the page has %d steps", len(steps))
	}
	checkPorts(t, steps)
	dir, path := checkout(t)
	steps = append(steps, step{command: "ps -e -o args=\nls -A ~", output: "bash script\nps -e -o args="})
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for i, s := range steps {
		fmt.Fprintf(&script, "printf '%s%d\\n'\n%s\n", mark, i, s.command)
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	// The path of a socket of Nomad may have 107 characters.
	home, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	t.Cleanup(func() { removeCgroups(t, filepath.Join(home, "*", "nomad-client", "alloc", "*-*")) })
	cmd := exec.CommandContext(ctx, "bash", "-c", host)
	inNamespaces(cmd, dir, "PATH="+path+":"+os.Getenv("PATH"), "HOME="+home)
	printed, err := cmd.CombinedOutput()
	done := 0
	for part := range strings.SplitSeq(string(printed), mark) {
		number, output, _ := strings.Cut(part, "\n")
		i, bad := strconv.Atoi(number)
		if bad != nil { // before the first step
			if part != "" {
				t.Log(part)
			}
			continue
		}
		done = i
		if i == len(steps)-1 || err == nil {
			steps[i].check(t, output)
		} else {
			steps[i].printed = output
		}
	}
	if err != nil {
		t.Errorf("%v after\n%s\nIt printed:\n%s%s", err, steps[done].command, steps[done].printed, logs(home))
	}
}

// need skips the test if it cannot run; in CI it fails.
func need(t *testing.T) {
	t.Helper()
	missing := devstack.NeedIsolation()
	for _, program := range []string{"bash", "curl", "ip", "jq", "openssl", "ps"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = errors.Join(missing, err)
		}
	}
	switch {
	case missing == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("apt-get install -y curl iproute2 jq openssl procps, as root: %v", missing)
	default:
		t.Skipf("apt-get install -y curl iproute2 jq openssl procps, as root: %v", missing)
	}
}

// inNamespaces makes a command the first process of new namespaces.
func inNamespaces(cmd *exec.Cmd, dir string, env ...string) {
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
}

// removeCgroups removes the cgroups of tasks that were killed with their namespaces. allocs is
// a pattern of directories that are named after allocations.
func removeCgroups(t *testing.T, allocs string) {
	dirs, _ := filepath.Glob(allocs)
	for _, dir := range dirs {
		removeGroups(t, filepath.Base(dir))
	}
}

// removeGroups removes the cgroups of an allocation whose processes have been killed.
func removeGroups(t *testing.T, allocation string) {
	for _, parent := range []string{"*/nomad", "nomad.slice/*"} { // versions 1 and 2
		groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", parent, allocation+".*"))
		for _, group := range groups {
			harness.Eventually(t, "the kernel has removed the processes of "+group, func() error { return os.Remove(group) })
		}
	}
}

// mark begins the output of a step.
const mark = "\x1e"

// step is a block of the page, or a command with what it prints.
type step struct {
	command string
	output  string // empty: the page does not show it
	printed string // by this run
}

var block = regexp.MustCompile("(?ms)^```(bash|console)\n(.*?)^```$")

// stepsOf returns the blocks that a reader types. A block "console" has commands after "$ ".
func stepsOf(page string) []step {
	var all []step
	for _, m := range block.FindAllStringSubmatch(page, -1) {
		if m[1] == "bash" {
			all = append(all, step{command: m[2]})
			continue
		}
		for _, part := range strings.Split("\n"+m[2], "\n$ ")[1:] {
			command, output, _ := strings.Cut(part, "\n")
			all = append(all, step{command: command, output: output})
		}
	}
	return all
}

// check compares what the step printed with what the page shows. On the page, "..." stands
// for any text, and as a line of its own for any lines; blanks may differ.
func (s *step) check(t *testing.T, printed string) {
	t.Helper()
	if s.output == "" {
		return
	}
	shown := regexp.MustCompile(`[ \t]+`).ReplaceAllString(s.output, " ")
	pattern := `\A`
	for line := range strings.Lines(shown) {
		if line = strings.TrimSpace(line); line == "..." {
			pattern += `(?:.*\n)*?`
		} else {
			pattern += strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`) + ` ?\n`
		}
	}
	got := regexp.MustCompile(`[ \t]+`).ReplaceAllString(strings.TrimSpace(printed)+"\n", " ")
	got = regexp.MustCompile(`(?m)^ `).ReplaceAllString(got, "")
	if !regexp.MustCompile(pattern + `\z`).MatchString(got) {
		t.Errorf("%s\nprinted:\n%s\nThe page shows:\n%s", s.command, printed, s.output)
	}
}

// checkPorts: a step that names a port of the first block fails for a reader who chose
// another one.
func checkPorts(t *testing.T, steps []step) {
	t.Helper()
	ports := regexp.MustCompile(`:-(\d+)}`).FindAllStringSubmatch(steps[0].command, -1)
	if len(ports) < 10 {
		t.Errorf("the first block has %d ports", len(ports))
	}
	for _, port := range ports {
		for _, s := range steps[1:] {
			if regexp.MustCompile(`\b` + port[1] + `\b`).MatchString(s.command + s.output) {
				t.Errorf("port %s is a variable of the first block, and not in\n%s", port[1], s.command)
			}
		}
	}
}

// checkout returns a directory with what the page uses of a checkout after make build, and a
// directory with the agents' commands.
func checkout(t *testing.T) (dir, path string) {
	t.Helper()
	dir, path = t.TempDir(), t.TempDir()
	root, err := filepath.Abs(harness.Repository)
	if err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "make", "-s", "-C", root, "build", "BIN="+filepath.Join(dir, "bin"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	agents, err := devstack.Tools(t.Context(), devstack.ToolOptions{Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		filepath.Join(dir, "deploy"): filepath.Join(root, "deploy"), filepath.Join(dir, "nomad-jobs"): filepath.Join(root, "nomad-jobs"),
		filepath.Join(path, "nomad"): agents.Nomad, filepath.Join(path, "consul"): agents.Consul, filepath.Join(path, "vault"): agents.Vault,
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	return dir, path
}

// logs returns the end of each log that the page writes.
func logs(home string) string {
	var b bytes.Buffer
	files, _ := filepath.Glob(filepath.Join(home, "*", "*.log"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n%s", filepath.Base(file), harness.Tail(string(text), 3000))
	}
	return b.String()
}
