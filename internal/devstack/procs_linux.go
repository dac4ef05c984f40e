package devstack

import (
	"bytes"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// markerEnv stands in the environment of the agents with the stack's id. Nomad's
// executors, log collectors and raw_exec tasks inherit it, so they are found
// after their agent was killed.
const markerEnv = "ORCH_DEVSTACK"

const (
	politeTimeout = 2500 * time.Millisecond // between SIGTERM and SIGKILL for tasks
	killTimeout   = 30 * time.Second        // for the kernel to carry SIGKILL out
	procPoll      = 20 * time.Millisecond
)

// process is one process of a stack, pinned: the handle cannot come to mean
// another process when the id is reused.
type process struct {
	*os.Process
	helper bool // Nomad's executor or log collector
}

// stackProcesses finds every process of the stack but this one. A process is of
// the stack when it has the stack's id in its environment, when its allocation
// lies below the stack's directory, or when it is in one of the stack's cgroups.
// The command line does not count: somebody may be reading one of the logs.
func stackProcesses(id identity) []process {
	inCgroup := cgroupMembers(id)
	entries, _ := os.ReadDir("/proc")
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if !inCgroup[pid] && !environMatches(pid, id) {
			continue
		}
		p, err := os.FindProcess(pid) // pins it, see os.FindProcess on Linux
		if err != nil {
			continue
		}
		// The id may have changed hands before it was pinned: look again.
		if zombie(pid) || !inCgroup[pid] && !environMatches(pid, id) {
			_ = p.Release()
			continue
		}
		found = append(found, process{p, nomadHelper(pid)})
	}
	return found
}

func environMatches(pid int, id identity) bool {
	for name, value := range environOf(pid) {
		if name == markerEnv && value == id.ID || name == "NOMAD_ALLOC_DIR" && strings.HasPrefix(value, id.Dir+"/") {
			return true
		}
	}
	return false
}

// environOf is what a process has in its environment; nothing when it is gone.
func environOf(pid int) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		for entry := range bytes.SplitSeq(env, []byte{0}) {
			if name, value, ok := strings.Cut(string(entry), "="); ok && !yield(name, value) {
				return
			}
		}
	}
}

// zombie says whether a process is gone, or dead and not yet waited for.
func zombie(pid int) bool {
	switch stateOf(fmt.Sprintf("/proc/%d/stat", pid)) {
	case 0, 'Z', 'X':
		return true
	}
	return false
}

// stopped says whether no thread of a process runs: SIGSTOP reaches them one
// after the other.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, thread := range threads {
		switch stateOf(thread) {
		case 0, 'T', 't', 'Z', 'X':
		default:
			return false
		}
	}
	return true
}

// stateOf is the state in a stat file of /proc, 0 when that is gone (proc(5)).
func stateOf(file string) byte {
	stat, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	after := stat[bytes.LastIndexByte(stat, ')')+1:] // the name may hold anything
	if len(after) < 2 {
		return 0
	}
	return after[1]
}

// launcher says whether a process is a shell that waits for the lock of a brain, or
// asks for it (jobs/brainlock.go).
func launcher(pid int) bool {
	args := commandOf(pid)
	return len(args) > 2 && (path.Base(string(args[0])) == "flock" || string(args[1]) == "-c" && bytes.Contains(args[2], []byte("flock -n")))
}

func commandOf(pid int) [][]byte {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return bytes.Split(line, []byte{0})
}

func nomadHelper(pid int) bool {
	args := commandOf(pid)
	return len(args) > 1 && slices.Contains([]string{"executor", "logmon", "docker_logger"}, string(args[1]))
}

// killProcesses ends all processes of the stack: tasks get SIGTERM and a moment,
// then everything SIGKILL, until nothing is found any more.
func killProcesses(id identity) error {
	deadline := time.Now().Add(politeTimeout)
	asked := map[int]bool{}
	for time.Now().Before(deadline) {
		waiting := false
		for _, p := range stackProcesses(id) {
			if !p.helper {
				waiting = true
				if !asked[p.Pid] {
					asked[p.Pid] = true
					_ = p.Signal(syscall.SIGTERM)
					_ = p.Signal(syscall.SIGCONT) // a stopped process would not see it
				}
			}
			_ = p.Release()
		}
		if !waiting {
			break
		}
		time.Sleep(procPoll)
	}
	deadline = time.Now().Add(killTimeout)
	for {
		left := stackProcesses(id)
		if len(left) == 0 {
			return nil
		}
		var pids []string
		for _, p := range left {
			pids = append(pids, strconv.Itoa(p.Pid))
			_ = p.Signal(syscall.SIGKILL)
			_ = p.Release()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of the stack do not go away: %s", strings.Join(pids, " "))
		}
		time.Sleep(procPoll)
	}
}

// cgroupDirs are the stack's cgroups, the root of each hierarchy first: one below
// every controller on cgroup v1, a single one on v2, per node. On v1 also those of
// tasks: an executor, which reads no configuration, makes them below Nomad's default
// parent, and a killed one leaves them (client/lib/cgroupslib in Nomad's source).
func cgroupDirs(id identity) []string {
	if id.Cgroups == "" {
		return nil
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/" + id.Cgroups)
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + id.Cgroups)
	roots = append(roots, v1...)
	allocs := allocationIDs(id.Dir)
	tasks, _ := filepath.Glob("/sys/fs/cgroup/*/nomad/*.*")
	for _, task := range tasks {
		if alloc, _, _ := strings.Cut(filepath.Base(task), "."); allocs[alloc] {
			roots = append(roots, task)
		}
	}
	var dirs []string
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what vanishes while we look is no matter
		})
	}
	return dirs
}

func cgroupMembers(id identity) map[int]bool {
	members := map[int]bool{}
	for _, dir := range cgroupDirs(id) {
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				members[pid] = true
			}
		}
	}
	return members
}

// removeCgroups deletes the stack's cgroups, innermost first. The kernel may need
// a moment after the last process is gone.
func removeCgroups(id identity) error {
	deadline := time.Now().Add(killTimeout)
	for {
		dirs := cgroupDirs(id)
		if len(dirs) == 0 {
			return nil
		}
		var last error
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup of the stack: %w", last)
		}
		time.Sleep(procPoll)
	}
}
