package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Volume is a dynamic host volume.
type Volume struct {
	ID, Name, NodeID string
	// Path is the volume's directory on its node.
	Path  string
	Ready bool
	// Jobs are the jobs whose living allocations claim the volume. Only the method Volume
	// sets it.
	Jobs []string
	// Readable: a worker of snapshots may claim it beside its engine. Only the method Volume
	// sets it.
	Readable bool
}

// volumePoll is the interval at which a pending volume is polled. A volume becomes ready
// when its node next reports to the servers: after 6 to 10 s (measured).
const volumePoll = 200 * time.Millisecond

// EnsureVolume returns the volume of this name on a node, and creates it if there is none.
// Names of volumes are not unique in Nomad. If there are two of this name, it returns
// ErrRejected, and an operator must decide.
func (c *Cluster) EnsureVolume(ctx context.Context, name, nodeID string, params map[string]string) (*Volume, error) {
	named, err := c.volumesNamed(ctx, name)
	if err != nil {
		return nil, err
	}
	switch {
	case len(named) > 1:
		return nil, fmt.Errorf("%w: there are %d volumes named %s", ErrRejected, len(named), name)
	case len(named) == 1 && named[0].NodeID != nodeID:
		return nil, fmt.Errorf("%w: volume %s is on node %s, not on %s", ErrRejected, name, named[0].NodeID, nodeID)
	case len(named) == 1:
		return named[0], nil
	}
	return c.CreateVolume(ctx, name, nodeID, params)
}

// CreateVolume creates a volume on a node. The caller makes sure that the name is unused.
func (c *Cluster) CreateVolume(ctx context.Context, name, nodeID string, params map[string]string) (*Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, _, err := c.client.HostVolumes().Create(&api.HostVolumeCreateRequest{Volume: &api.HostVolume{
		Namespace: c.namespace, Name: name, PluginID: c.volumePlugin, NodeID: nodeID, Parameters: params,
		RequestedCapabilities: capabilities(),
	}}, c.write(ctx))
	if err != nil {
		return nil, classify(err)
	}
	v := resp.Volume
	return &Volume{ID: v.ID, Name: v.Name, NodeID: v.NodeID, Path: v.HostPath, Ready: v.State == api.HostVolumeStateReady}, nil
}

// ErrNoQuotas means that the plugin that creates volumes sets no quotas.
var ErrNoQuotas = &PluginError{Said: Mkdir + "  sets no quotas; set ORCH_VOLUME_PLUGIN to a plugin that does"}

// LimitVolume makes the node's volume plugin limit the size of a volume to mb MiB; 0: no
// limit. params are the parameters that the volume was created with. The volume stays
// ready. If another plugin created the volume, this one takes it over, and must use the
// same path.
//
// ErrInUse: an allocation has the volume. PluginError: the plugin failed.
func (c *Cluster) LimitVolume(ctx context.Context, id, name, nodeID string, params map[string]string, mb int) error {
	if !c.SetsQuotas() {
		if mb == 0 {
			return nil // a quota from an earlier plugin stays
		}
		return ErrNoQuotas
	}
	return c.updateVolume(ctx, id, name, nodeID, params, mb)
}

// quotaParam is the volume parameter that tells the plugin the quota, in MiB; see
// cmd/orch-quota.
const quotaParam = "quota_mb"

// capabilities are the access modes of a brain: one process that writes, and readers beside
// it. Nomad counts only claims that are not read-only against the single writer
// (hostVolumeIsAvailable in its scheduler).
func capabilities() []*api.HostVolumeCapability {
	return []*api.HostVolumeCapability{
		{AccessMode: api.HostVolumeAccessModeSingleNodeSingleWriter, AttachmentMode: api.HostVolumeAttachmentModeFilesystem},
		{AccessMode: api.HostVolumeAccessModeSingleNodeReader, AttachmentMode: api.HostVolumeAttachmentModeFilesystem},
	}
}

// LetRead gives a volume of an earlier version of the service, which Nomad has created with
// these parameters and this quota in MiB, the access mode of readers. ErrInUse: an allocation
// has the volume.
func (c *Cluster) LetRead(ctx context.Context, v *Volume, params map[string]string, mb int) error {
	if !c.SetsQuotas() {
		mb = 0
	}
	return c.updateVolume(ctx, v.ID, v.Name, v.NodeID, params, mb)
}

// updateVolume makes the node's volume plugin create an existing volume again, with a quota
// in MiB (0: none) and the capabilities of today.
func (c *Cluster) updateVolume(ctx context.Context, id, name, nodeID string, params map[string]string, mb int) error {
	params = maps.Clone(params)
	if mb > 0 {
		params[quotaParam] = strconv.Itoa(mb)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.HostVolumes().Create(&api.HostVolumeCreateRequest{Volume: &api.HostVolume{
		Namespace: c.namespace, ID: id, Name: name, PluginID: c.volumePlugin, NodeID: nodeID, Parameters: params,
		RequestedCapabilities: capabilities(),
	}}, c.write(ctx))
	return classify(err)
}

// AwaitVolume waits until a volume can be mounted.
func (c *Cluster) AwaitVolume(ctx context.Context, id string) (*Volume, error) {
	for {
		v, err := c.Volume(ctx, id)
		if err != nil || v.Ready {
			return v, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: volume %s is not ready: %w", ErrUnavailable, id, ctx.Err())
		case <-time.After(volumePoll):
		}
	}
}

// Volume reads one volume. ErrNotFound: there is no such volume.
func (c *Cluster) Volume(ctx context.Context, id string) (*Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v, _, err := c.client.HostVolumes().Get(id, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	whole := &Volume{ID: v.ID, Name: v.Name, NodeID: v.NodeID, Path: v.HostPath, Ready: v.State == api.HostVolumeStateReady}
	for _, can := range v.RequestedCapabilities {
		whole.Readable = whole.Readable || can.AccessMode == api.HostVolumeAccessModeSingleNodeReader
	}
	for _, a := range v.Allocations {
		if !slices.Contains(whole.Jobs, a.JobID) {
			whole.Jobs = append(whole.Jobs, a.JobID)
		}
	}
	return whole, nil
}

// Volumes lists the namespace's host volumes on all nodes.
func (c *Cluster) Volumes(ctx context.Context, throttle Throttle) ([]*Volume, error) {
	return c.volumes(ctx, throttle, c.read)
}

// volumesNamed lists the volumes of this name; Nomad filters them.
func (c *Cluster) volumesNamed(ctx context.Context, name string) ([]*Volume, error) {
	alike, err := c.VolumesLike(ctx, name)
	if err != nil {
		return nil, err
	}
	var named []*Volume
	for _, v := range alike {
		if v.Name == name {
			named = append(named, v)
		}
	}
	return named, nil
}

func (c *Cluster) volumes(ctx context.Context, throttle Throttle, query func(context.Context) *api.QueryOptions) ([]*Volume, error) {
	var list []*Volume
	_, err := c.pages(ctx, throttle, query(ctx), func(q *api.QueryOptions) (*api.QueryMeta, error) {
		stubs, meta, err := c.client.HostVolumes().List(&api.HostVolumeListRequest{}, q)
		for _, v := range stubs {
			list = append(list, &Volume{ID: v.ID, Name: v.Name, NodeID: v.NodeID, Ready: v.State == api.HostVolumeStateReady})
		}
		return meta, err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// VolumesLike lists the volumes whose name begins with prefix.
func (c *Cluster) VolumesLike(ctx context.Context, prefix string) ([]*Volume, error) {
	return c.volumes(ctx, Unthrottled, func(ctx context.Context) *api.QueryOptions {
		q := c.read(ctx)
		q.Prefix = prefix
		return q
	})
}

// RegisterVolume registers an existing directory of a node as a volume. ErrNoDirectory: the
// node has no such directory.
func (c *Cluster) RegisterVolume(ctx context.Context, name, nodeID, path string) (*Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, _, err := c.client.HostVolumes().Register(&api.HostVolumeRegisterRequest{Volume: &api.HostVolume{
		Namespace: c.namespace, Name: name, NodeID: nodeID, HostPath: path, RequestedCapabilities: capabilities(),
	}}, c.write(ctx))
	if err = classify(err); err != nil {
		if strings.Contains(err.Error(), "could not verify host path") {
			err = fmt.Errorf("%w: %w", ErrNoDirectory, err)
		}
		return nil, err
	}
	return &Volume{ID: resp.Volume.ID, Name: resp.Volume.Name, NodeID: nodeID, Path: path}, nil
}

// NodeVolume is a dynamic host volume as its node reports it.
type NodeVolume struct{ ID, Name, Path string }

// NodeVolumes returns the dynamic host volumes that a node reports, by name. A node still
// reports them after the servers lost theirs, and reports a deleted one for up to 10 s.
// ErrNotFound: Nomad does not know the node.
func (c *Cluster) NodeVolumes(ctx context.Context, nodeID string) (map[string]NodeVolume, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, _, err := c.client.Nodes().Info(nodeID, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	volumes := map[string]NodeVolume{}
	for name, v := range n.HostVolumes {
		if v != nil && v.ID != "" {
			volumes[name] = NodeVolume{v.ID, name, v.Path}
		}
	}
	return volumes, nil
}

// DeleteVolumes deletes every volume of this name. ErrInUse: an allocation that has not
// ended still claims one; retry after its end.
func (c *Cluster) DeleteVolumes(ctx context.Context, name string) error {
	named, err := c.volumesNamed(ctx, name)
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range named {
		errs = append(errs, c.DeleteVolume(ctx, v.ID))
	}
	return errors.Join(errs...)
}

// DeleteVolume deletes a volume with its data, but keeps the data of a registered one
// (RegisterVolume). It succeeds if there is no such volume.
func (c *Cluster) DeleteVolume(ctx context.Context, id string) error {
	return c.deleteVolume(ctx, id, false)
}

// ForgetVolume removes a volume of an unreachable node from Nomad. Its data stays on the
// node.
func (c *Cluster) ForgetVolume(ctx context.Context, id string) error {
	return c.deleteVolume(ctx, id, true)
}

func (c *Cluster) deleteVolume(ctx context.Context, id string, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.HostVolumes().Delete(&api.HostVolumeDeleteRequest{ID: id, Force: force}, c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
