package devstack

import (
	"bytes"
	"fmt"
	"os"
)

// Task is the process of an allocation: an engine, but not the shell that waits for the lock
// of the brain before it executes the engine.
type Task struct {
	PID            int
	JobID, AllocID string
}

// Executor returns the process id of Nomad's executor that started the task; 0 if there is
// none or it has ended.
func (t Task) Executor() int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.PID))
	if err != nil {
		return 0
	}
	var state string
	var parent int
	after := stat[bytes.LastIndexByte(stat, ')')+1:] // the name may contain any character
	if _, err := fmt.Sscan(string(after), &state, &parent); err != nil || !nomadHelper(parent) {
		return 0
	}
	return parent
}

// Tasks returns the processes of all allocations on all nodes, without Nomad's helper
// processes.
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
