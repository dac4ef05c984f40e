package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
)

// workerPrefix begins the names of the jobs that make and restore snapshots.
const workerPrefix = "orch-brain-"

// noName is the name of no engine and no worker: their ids have no hyphen.
const noName = "preflight-check"

// nothing is an engine that does not exist.
const nothing = engine.JobPrefix + noName

// never is an index that nothing has.
const never = uint64(1) << 50

// noID is the id of an allocation, a node or a volume that does not exist.
const noID = "00000000-0000-4000-8000-000000000000"

const nomadRemedy = "give the token the policy deploy/nomad/orch.policy.hcl, with the namespace of ORCH_NOMAD_NAMESPACE"

func (s *Stores) nomadRights(ctx context.Context) []Result {
	in := func(right string) string { return fmt.Sprintf("namespace %q: %s", s.Namespace, right) }
	read := (&nomad.QueryOptions{Namespace: s.Namespace, PerPage: 1}).WithContext(ctx)
	write := (&nomad.WriteOptions{Namespace: s.Namespace}).WithContext(ctx)
	c := s.Nomad
	volume := &nomad.HostVolume{
		Namespace: s.Namespace, Name: nothing, NodeID: noID, HostPath: "/nonexistent", PluginID: "mkdir",
		RequestedCapabilities: []*nomad.HostVolumeCapability{{AttachmentMode: nomad.HostVolumeAttachmentModeFilesystem, AccessMode: nomad.HostVolumeAccessModeSingleNodeWriter}},
	}
	results := []Result{
		nomadRight(in("list-jobs"), func() error { _, _, err := c.Jobs().List(read); return err }),
		nomadRight(in("read-job"), func() error { _, _, err := c.Jobs().Info(nothing, read); return err }),
		nomadRight(in("submit-job")+`; host_volume "`+engine.JobPrefix+`*": write`, func() error {
			_, _, err := c.Jobs().EnforceRegister(s.neverJob(), never, write)
			return err
		}),
		nomadRight(in("host-volume-read"), func() error {
			_, _, err := c.HostVolumes().List(&nomad.HostVolumeListRequest{NodeID: noID}, read)
			return err
		}),
		nomadRight(in("host-volume-create"), func() error {
			_, _, err := c.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: volume}, write)
			return err
		}),
		nomadRight(in("host-volume-register"), func() error {
			_, _, err := c.HostVolumes().Register(&nomad.HostVolumeRegisterRequest{Volume: volume}, write)
			return err
		}),
		nomadRight(in("host-volume-delete"), func() error {
			_, _, err := c.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: noID}, write)
			return err
		}),
		nomadRight("node: read", func() error { _, _, err := c.Nodes().List(read); return err }),
		nomadRight("node: write", func() error { _, err := c.Nodes().ToggleEligibility(noID, true, write); return err }),
	}
	results = append(results, s.ofRunning(ctx, in("alloc-lifecycle"), in("read-logs"))...)
	for _, prefix := range []string{engine.JobPrefix, workerPrefix} {
		results = append(results, s.variables(ctx, prefix, in)...)
	}
	return results
}

// variables tries the rights to the variables of jobs whose names begin with a prefix. It
// does not list them: read implies list, and Nomad returns an empty list to those who may
// list others.
func (s *Stores) variables(ctx context.Context, prefix string, in func(string) string) []Result {
	read := (&nomad.QueryOptions{Namespace: s.Namespace, PerPage: 1}).WithContext(ctx)
	write := (&nomad.WriteOptions{Namespace: s.Namespace}).WithContext(ctx)
	needs := func(right string) string {
		return in(fmt.Sprintf("variables path %q: %s", "nomad/jobs/"+prefix+"*", right))
	}
	variable := &nomad.Variable{Namespace: s.Namespace, Path: "nomad/jobs/" + prefix + noName, Items: nomad.VariableItems{"check": "none"}, ModifyIndex: never}
	all := s.Nomad.Variables()
	return []Result{
		nomadRight(needs("read"), func() error { _, _, err := all.Read(variable.Path, read); return err }),
		nomadRight(needs("write"), func() error { _, _, err := all.CheckedUpdate(variable, write); return err }),
		nomadRight(needs("destroy"), func() error { _, err := all.CheckedDelete(variable.Path, never, write); return err }),
	}
}

// ofRunning tries rights for which Nomad looks at an allocation first, so there must be one:
// alloc-lifecycle with a signal to a task that does not exist, and read-logs with the log of
// such a task. The node of a running engine refuses both. (An unknown signal would not do:
// drivers send SIGINT in its place.)
func (s *Stores) ofRunning(ctx context.Context, lifecycle, logs string) []Result {
	read := (&nomad.QueryOptions{Namespace: s.Namespace, PerPage: 20, Filter: `ClientStatus == "running"`}).WithContext(ctx)
	allocs, _, err := s.Nomad.Allocations().List(read)
	if err != nil {
		return []Result{nomadResult(lifecycle, err), nomadResult(logs, err)}
	}
	i := slices.IndexFunc(allocs, func(a *nomad.AllocationListStub) bool { return strings.HasPrefix(a.JobID, engine.JobPrefix) })
	if i < 0 {
		none := Result{Store: "nomad", State: Unknown, Said: "no engine runs", Remedy: "check again when one runs"}
		first, second := none, none
		first.Needs, second.Needs = lifecycle, logs
		return []Result{first, second}
	}
	try := func(needs string, call func(*nomad.QueryOptions) error) Result {
		ctx, cancel := context.WithTimeout(ctx, nodeTimeout) // its node may be hung
		defer cancel()
		return nomadResult(needs, call((&nomad.QueryOptions{Namespace: s.Namespace}).WithContext(ctx)))
	}
	return []Result{
		try(lifecycle, func(q *nomad.QueryOptions) error {
			return s.Nomad.Allocations().Signal(&nomad.Allocation{ID: allocs[i].ID}, q, nothing, "SIGCONT")
		}),
		try(logs, func(q *nomad.QueryOptions) error {
			q.Params = map[string]string{"task": nothing, "type": "stdout", "plain": "true"}
			body, err := s.Nomad.Raw().Response("/v1/client/fs/logs/"+allocs[i].ID, q)
			if err == nil {
				_ = body.Close()
			}
			return err
		}),
	}
}

// neverJob returns a job that mounts a volume of engines. It is never registered, because
// its index is never right.
func (s *Stores) neverJob() *nomad.Job {
	job := nomad.NewServiceJob(nothing, nothing, "global", 1)
	job.Namespace = &s.Namespace
	task := nomad.NewTask("none", "raw_exec").SetConfig("command", "/bin/false")
	task.VolumeMounts = []*nomad.VolumeMount{{Volume: new("brain"), Destination: new("/brain")}}
	group := nomad.NewTaskGroup("none", 0).AddTask(task)
	group.Volumes = map[string]*nomad.VolumeRequest{"brain": {
		Name: "brain", Type: "host", Source: nothing, AccessMode: "single-node-single-writer", AttachmentMode: "file-system",
	}}
	return job.AddTaskGroup(group).AddDatacenter("*")
}

func nomadRight(needs string, try func() error) Result { return nomadResult(needs, try()) }

// nomadResult judges the error of a call that fails in any case, unless it only reads.
func nomadResult(needs string, err error) Result {
	r := Result{Store: "nomad", Needs: needs, State: OK}
	var bad nomad.UnexpectedResponseError
	switch {
	case err == nil, errors.Is(err, nomad.ErrVariablePathNotFound), errors.As(err, &nomad.ErrCASConflict{}):
	case !errors.As(err, &bad) || !bad.HasStatusCode():
		r.State, r.Said, r.Remedy = Unknown, err.Error(), "see that Nomad can be reached at NOMAD_ADDR"
	case refused(bad.StatusCode()), strings.Contains(bad.Body(), "Permission denied"): // logs are refused with 500
		r.State, r.Said, r.Remedy = Missing, strings.TrimSpace(bad.Body()), nomadRemedy
	}
	return r
}
