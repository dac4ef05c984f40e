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

// markerEnv is an environment variable of the agents with the stack's id. Nomad's
// executors, log collectors and raw_exec tasks inherit it, so that they can be found after
// their agent was killed.
const markerEnv = "ORCH_DEVSTACK"

const (
	politeTimeout = 2500 * time.Millisecond // between SIGTERM and SIGKILL of tasks
	killTimeout   = 30 * time.Second        // limits the wait for processes after SIGKILL
	procPoll      = 20 * time.Millisecond
)

// process is one process of a stack. Its handle is pinned: it never refers to another
// process that gets the same id later.
type process struct {
	*os.Process
	helper bool // Nomad's executor or log collector
}

// stackProcesses returns every process of the stack except this one. A process belongs to
// the stack if its environment contains the stack's id, if its allocation's directory is
// below the stack's, or if it is in one of the stack's cgroups. Command lines are not
// examined, because a developer may be reading one of the logs.
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
		// Another process may have got the id before it was pinned, so check again.
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

// environOf iterates over the environment of a process. It is empty if the process ended.
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

// zombie reports whether a process has ended, even if its parent has not waited for it yet.
func zombie(pid int) bool {
	switch stateOf(fmt.Sprintf("/proc/%d/stat", pid)) {
	case 0, 'Z', 'X':
		return true
	}
	return false
}

// stopped reports whether no thread of a process runs. SIGSTOP reaches the threads one after
// another.
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

// stateOf returns the state in a stat file of /proc (proc(5)); 0 if there is no such file.
func stateOf(file string) byte {
	stat, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	after := stat[bytes.LastIndexByte(stat, ')')+1:] // the name may contain any character
	if len(after) < 2 {
		return 0
	}
	return after[1]
}

// launcher reports whether a process is a shell that waits for the lock of a brain, or
// requests it (jobs/brainlock.go).
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

// killProcesses ends all processes of the stack. Tasks first get SIGTERM and some time; then
// all processes get SIGKILL until none is left.
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
					_ = p.Signal(syscall.SIGCONT) // a stopped process does not handle SIGTERM
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
			return fmt.Errorf("processes of the stack do not end: %s", strings.Join(pids, " "))
		}
		time.Sleep(procPoll)
	}
}

// cgroupDirs returns the stack's cgroups, the root of each hierarchy first. A node has one
// below every controller on cgroup v1, and a single one on v2. On v1 the cgroups of tasks
// are added: an executor does not read the configuration, so it creates them below Nomad's
// default parent, and a killed executor leaves them (client/lib/cgroupslib in Nomad's
// source).
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
			return nil // a cgroup may be removed meanwhile
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

// removeCgroups deletes the stack's cgroups, innermost first. It retries, because the kernel
// may need a moment after the last process ended.
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
