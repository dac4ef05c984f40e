package brains

import (
	"errors"
	"fmt"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestMoveWaitsForItsTurn: one worker works on a node at a time, so a move waits while the
// snapshot of another engine is sent. Meanwhile its engine runs, calls for it come first, and
// the evacuation can be cancelled; nothing of the move is left then.
func TestMoveWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	harness.WatchBrains(t, stack)
	b := newBucket(t)
	r := harness.StartService(t, stack, b.vars("ORCH_VOLUME_POOL=0", "ORCH_SNAPSHOTS_PER_NODE=1"))
	c, admin, ctx, s := r.Product(t, nil), r.Admin(), t.Context(), harness.OpenStores(t, stack)
	e := evacuated{t: t, c: c, s: s}
	first, second := together(t, &e, "sends", "waits")
	h := b.hold(t, e.engines[0].EngineID, isPart, nil)
	taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(ctx, "sends", "") })
	h.await(t)
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	waits := func() {
		harness.Eventually(t, "the move waits for its turn", func() error {
			now, err := c.Engine(ctx, "waits")
			if err == nil && (now.Operation == nil || now.Operation.Step != "turn") {
				err = fmt.Errorf("%+v", now.Operation)
			}
			return err
		})
	}
	waits()
	unharmed(t, c, e.engines[1], "the memory of waits")
	if _, err := c.RotateKey(ctx, "waits"); err != nil {
		t.Errorf("a call during the move: %v", err)
	}
	now, err := c.Engine(ctx, "waits")
	if err != nil {
		t.Fatal(err)
	}
	e.engines[1] = now
	waits()
	if _, err := admin.CancelEvacuation(ctx, first); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it is cancelled", func() error {
		now, err := admin.Evacuation(ctx, first)
		if err == nil && now.Status != "cancelled" {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	settled(t, c, "waits")
	harness.Eventually(t, "nothing of the move is left", func() error {
		volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, &nomad.QueryOptions{Prefix: "engine-" + e.engines[1].EngineID})
		if err == nil && (len(volumes) != 1 || volumes[0].NodeID != first) {
			err = fmt.Errorf("%d volumes", len(volumes))
		}
		if n, _, nerr := s.Nomad.Nodes().Info(first, nil); nerr != nil || n.SchedulingEligibility != nomad.NodeSchedulingEligible {
			err = errors.Join(err, nerr, errors.New("the node is not as it was"))
		}
		return err
	})
	e.remember("waits")
	h.end(t, taking)
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	e.arrive(admin, first, second)
	b.noUploads(t)
}
