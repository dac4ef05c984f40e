package devstack

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"go.uber.org/goleak"
)

// childEnv names a directory. It makes the test binary start a stack there, run a task, and
// wait until it is killed.
const childEnv = "DEVSTACK_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// childReport is what the child writes when it is ready.
type childReport struct {
	Identity identity
	TaskPID  int
}

func child(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := Start(ctx, Config{Dir: dir, InMemory: true})
	if err != nil {
		return err
	}
	pid, err := runSleeper(ctx, s, "sleeper")
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(childReport{s.id, pid}); err != nil {
		return err
	}
	select {}
}

func startStack(t *testing.T, cfg Config) *Stack {
	t.Helper()
	cfg.Progress = func(line string) { t.Log(line) }
	began := time.Now()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %s", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() { stopStack(t, s) })
	return s
}

// stopStack stops a stack and fails the test if anything of it is left.
func stopStack(t *testing.T, s *Stack) {
	t.Helper()
	began := time.Now()
	if err := s.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond))
	if left := leftovers(s.id); left != "" {
		t.Errorf("left behind after Stop: %s", left)
	}
}

// leftovers names what remains of a stack; "": nothing.
func leftovers(id identity) string {
	var left []string
	for _, p := range stackProcesses(id) {
		left = append(left, fmt.Sprintf("process %d", p.Pid))
		_ = p.Release()
	}
	if pid := reaperPID(id); pid != 0 {
		left = append(left, fmt.Sprintf("reaper %d", pid))
	}
	left = append(left, mountsUnder(id.Dir)...)
	left = append(left, cgroupDirs(id)...)
	if _, err := os.Stat(id.Dir); err == nil && !id.Keep {
		left = append(left, "directory "+id.Dir)
	}
	if _, err := os.Stat(id.Memory); err == nil {
		left = append(left, "directory "+id.Memory)
	}
	return strings.Join(left, ", ")
}

// reaperPID finds the reaper of a stack by its arguments; 0: there is none.
func reaperPID(id identity) int {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		line, _ := os.ReadFile(path)
		if strings.HasSuffix(string(line), "\x00devstack-reaper\x00"+id.Dir+"\x00") {
			var pid int
			_, _ = fmt.Sscanf(path, "/proc/%d/", &pid)
			return pid
		}
	}
	return 0
}

// eventually polls until cond returns "". After the time limit it fails the test with the
// last result.
func eventually(t *testing.T, cond func() string) {
	t.Helper()
	const within = 2 * time.Minute
	deadline := time.Now().Add(within)
	for {
		word := cond()
		if word == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", within, word)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func nomadClient(s *Stack) (*nomadapi.Client, error) {
	cfg := s.NomadConfig()
	cfg.HttpClient = s.httpClient()
	return nomadapi.NewClient(cfg)
}

// rawExecJob is a service job with one raw_exec task that runs a shell script.
func rawExecJob(name, script string) *nomadapi.Job {
	task := nomadapi.NewTask("task", "raw_exec").
		SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", script})
	task.Resources = &nomadapi.Resources{CPU: ptr(50), MemoryMB: ptr(32)}
	job := nomadapi.NewServiceJob(name, name, "global", 50)
	return job.AddTaskGroup(nomadapi.NewTaskGroup("group", 1).AddTask(task))
}

func ptr[T any](v T) *T { return &v }

// runSleeper runs a task and returns its process id.
func runSleeper(ctx context.Context, s *Stack, name string) (int, error) {
	client, err := nomadClient(s)
	if err != nil {
		return 0, err
	}
	job := rawExecJob(name, "exec sleep 12345")
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		if pid := sleeperPID(s.id, name); pid != 0 {
			return pid, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return 0, ctx.Err()
}

// sleeperPID finds the process of a task; 0: there is none.
func sleeperPID(id identity, job string) int {
	found := 0
	for _, p := range stackProcesses(id) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Pid))
		if strings.HasPrefix(string(line), "sleep\x0012345") && strings.Contains(string(env), "\x00NOMAD_JOB_ID="+job+"\x00") {
			found = p.Pid
		}
		_ = p.Release()
	}
	return found
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) }
