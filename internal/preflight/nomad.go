package preflight

import (
	"context"
	"errors"
	"fmt"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
)

// nothing is an engine that does not exist: engine_ids have no hyphen.
const nothing = engine.JobPrefix + "preflight-check"

// never is an index that nothing has.
const never = uint64(1) << 50

// noID is the id of an allocation, a node or a volume that does not exist.
const noID = "00000000-0000-4000-8000-000000000000"

const nomadRemedy = "give the token the policy deploy/nomad/orch.policy.hcl, with the namespace of ORCH_NOMAD_NAMESPACE"

func (s *Stores) nomadRights(ctx context.Context) []Result {
	in := func(right string) string { return fmt.Sprintf("namespace %q: %s", s.Namespace, right) }
	variables := func(right string) string {
		return in(fmt.Sprintf("variables path %q: %s", "nomad/jobs/"+engine.JobPrefix+"*", right))
	}
	read := (&nomad.QueryOptions{Namespace: s.Namespace, PerPage: 1}).WithContext(ctx)
	write := (&nomad.WriteOptions{Namespace: s.Namespace}).WithContext(ctx)
	c := s.Nomad
	variable := &nomad.Variable{Namespace: s.Namespace, Path: "nomad/jobs/" + nothing, Items: nomad.VariableItems{"check": "none"}, ModifyIndex: never}
	volume := &nomad.HostVolume{
		Namespace: s.Namespace, Name: nothing, NodeID: noID, HostPath: "/nonexistent", PluginID: "mkdir",
		RequestedCapabilities: []*nomad.HostVolumeCapability{{AttachmentMode: nomad.HostVolumeAttachmentModeFilesystem, AccessMode: nomad.HostVolumeAccessModeSingleNodeWriter}},
	}
	return []Result{
		nomadRight(in("list-jobs"), func() error { _, _, err := c.Jobs().List(read); return err }),
		nomadRight(in("read-job"), func() error { _, _, err := c.Jobs().Info(nothing, read); return err }),
		nomadRight(in("submit-job")+`; host_volume "`+engine.JobPrefix+`*": write`, func() error {
			_, _, err := c.Jobs().EnforceRegister(s.neverJob(), never, write)
			return err
		}),
		s.lifecycle(ctx, in("alloc-lifecycle")),
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
		nomadRight(variables("read"), func() error { _, _, err := c.Variables().Read(variable.Path, read); return err }),
		nomadRight(variables("list"), func() error {
			own := *read // PrefixList changes it
			_, _, err := c.Variables().PrefixList(variable.Path, &own)
			return err
		}),
		nomadRight(variables("write"), func() error { _, _, err := c.Variables().CheckedUpdate(variable, write); return err }),
		nomadRight(variables("destroy"), func() error {
			_, err := c.Variables().CheckedDelete(variable.Path, never, write)
			return err
		}),
		nomadRight("node: read", func() error { _, _, err := c.Nodes().List(read); return err }),
	}
}

// lifecycle tries alloc-lifecycle with a signal to a task that does not exist, which the node
// of a running engine refuses. Nomad looks for the allocation first, so there must be one.
// (An unknown signal would not do: drivers send SIGINT in its place.)
func (s *Stores) lifecycle(ctx context.Context, needs string) Result {
	read := (&nomad.QueryOptions{Namespace: s.Namespace, PerPage: 20, Filter: `ClientStatus == "running"`}).WithContext(ctx)
	allocs, _, err := s.Nomad.Allocations().List(read)
	if err != nil {
		return nomadResult(needs, err)
	}
	for _, a := range allocs {
		if strings.HasPrefix(a.JobID, engine.JobPrefix) {
			return nomadRight(needs, func() error {
				ctx, cancel := context.WithTimeout(ctx, nodeTimeout) // its node may be hung
				defer cancel()
				read := (&nomad.QueryOptions{Namespace: s.Namespace}).WithContext(ctx)
				return s.Nomad.Allocations().Signal(&nomad.Allocation{ID: a.ID}, read, nothing, "SIGCONT")
			})
		}
	}
	return Result{Store: "nomad", Needs: needs, State: Unknown, Said: "no engine runs", Remedy: "check again when one runs"}
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
	case refused(bad.StatusCode()):
		r.State, r.Said, r.Remedy = Missing, strings.TrimSpace(bad.Body()), nomadRemedy
	}
	return r
}
