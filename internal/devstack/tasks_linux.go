package devstack

import (
	"bytes"
	"fmt"
	"os"
)

// Task is a process that a node runs for an allocation: an engine, not the shell that
// becomes one when it has the lock of the brain.
type Task struct {
	PID            int
	JobID, AllocID string
}

// Executor is the process id of Nomad's executor that started the task, 0 when it has
// none or is gone.
func (t Task) Executor() int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.PID))
	if err != nil {
		return 0
	}
	var state string
	var parent int
	after := stat[bytes.LastIndexByte(stat, ')')+1:] // the name may hold anything
	if _, err := fmt.Sscan(string(after), &state, &parent); err != nil || !nomadHelper(parent) {
		return 0
	}
	return parent
}

// Tasks are the processes of all allocations, on all nodes; without the helpers
// that Nomad runs beside them.
func (s *Stack) Tasks() []Task {
	var tasks []Task
	for _, p := range stackProcesses(s.id) {
		t := Task{PID: p.Pid}
		for name, value := range environOf(p.Pid) {
			switch name {
			case "NOMAD_JOB_ID":
				t.JobID = value
			case "NOMAD_ALLOC_ID":
				t.AllocID = value
			}
		}
		if t.AllocID != "" && !p.helper && !launcher(p.Pid) {
			tasks = append(tasks, t)
		}
		_ = p.Release()
	}
	return tasks
}
