package cluster

import (
	"errors"
	"testing"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// version returns a version of a job.
func version(number, index, created uint64, mark string) *api.Job {
	job := markedJob("job", mark)
	job.Version, job.JobModifyIndex, job.CreateIndex = &number, &index, &created
	return job
}

// markedJob returns a job that runs nothing.
func markedJob(id, mark string) *api.Job {
	job := api.NewServiceJob(id, id, "global", 50)
	group := api.NewTaskGroup("engine", 0)
	group.Services = []*api.Service{{Name: id, Provider: "nomad"}}
	task := api.NewTask("engine", "raw_exec").SetConfig("command", "/bin/true")
	job.AddTaskGroup(group.AddTask(task))
	none := 0
	job.Update = &api.UpdateStrategy{MaxParallel: &none} // no deployment, as in an engine's job
	jobs.Note{Mark: mark}.Write(job)
	return job
}

func TestSoleRegistration(t *testing.T) {
	old, mine, other := version(3, 10, 5, "old"), version(4, 20, 5, "mine"), version(4, 15, 5, "other")
	for name, tc := range map[string]struct {
		versions []*api.Job
		at       uint64
		want     error
	}{
		"OK update":                             {[]*api.Job{mine, old}, 10, nil},
		"OK new":                                {[]*api.Job{version(0, 20, 20, "mine")}, 0, nil},
		"OK the version before is not kept":     {[]*api.Job{mine}, 10, nil},
		"OK only an older version is kept":      {[]*api.Job{mine, version(1, 7, 5, "older")}, 10, nil},
		"Err replaced":                          {[]*api.Job{version(5, 21, 5, "other"), mine, old}, 10, ErrConflict},
		"Err replaced by a job made anew":       {[]*api.Job{version(0, 30, 30, "other")}, 10, ErrConflict},
		"Err another mark":                      {[]*api.Job{version(4, 20, 5, "other"), old}, 10, ErrConflict},
		"Err replaced another":                  {[]*api.Job{version(5, 20, 5, "mine"), other, old}, 10, ErrConflict},
		"Err replaced another, new":             {[]*api.Job{version(1, 20, 15, "mine"), version(0, 15, 15, "other")}, 0, ErrConflict},
		"Err replaced what is not kept, new":    {[]*api.Job{version(1, 20, 15, "mine")}, 0, ErrConflict},
		"Err registered after a purge":          {[]*api.Job{version(0, 20, 20, "mine")}, 10, ErrConflict},
		"Err read from before the registration": {[]*api.Job{old}, 10, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			if err := soleRegistration(tc.versions, "mine", tc.at, 20); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}
