package brains

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestNodeIsLost: an engine whose node does not respond comes up on another one, with
// on_node_lost = restore by itself, and otherwise by a call. When the node is back, the
// processes and the brains that they left there are removed, and nobody used them.
func TestNodeIsLost(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	r := harness.StartService(t, stack, map[string]string{"ORCH_VOLUME_POOL": "0"})
	c := r.Product(t, map[string]any{"on_node_lost": "restore", "node_lost_after_s": 60})
	waits := r.Product(t, nil)
	ctx, s := t.Context(), harness.OpenStores(t, stack)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the snapshot")
	if _, err := c.Snapshot(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}
	lost := clientOf(t, s, stack, e.EngineID)
	var stays string
	for i := range 4 { // one of them is on the same node
		other, err := waits.Provision(ctx, fmt.Sprint(i), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := waits.Snapshot(ctx, fmt.Sprint(i), ""); err != nil {
			t.Fatal(err)
		}
		if clientOf(t, s, stack, other.EngineID) == lost {
			stays = fmt.Sprint(i)
			break
		}
	}
	if err := stack.Pause(lost); err != nil {
		t.Fatal(err)
	}
	at := s.NodeOf(e.EngineID)
	harness.Eventually(t, "the service sees that its node is down", func() error {
		list, err := r.Admin().Nodes(ctx)
		for i := range list.Nodes {
			if n := &list.Nodes[i]; n.NodeID == at && n.Status != "down" && n.Status != "disconnected" {
				err = errors.Join(err, errors.New(n.Status))
			}
		}
		return err
	})
	harness.WantCode(t, harness.ErrOf(r.Admin().Evacuate(ctx, at)), 507, "SNAPSHOT_FAILED")
	var now *client.Engine
	harness.Eventually(t, "it runs on the other node", func() (err error) {
		now, err = c.Engine(ctx, "u")
		if err == nil && (now.Status != "running" || now.URL == e.URL) {
			err = fmt.Errorf("it is %s at %s", now.Status, now.URL)
		}
		return err
	})
	if now.APIKey == e.APIKey {
		t.Error("it has the same key")
	}
	if err := harness.Export(t, now, now.APIKey).Knows("before the snapshot"); err != nil {
		t.Error(err)
	}
	harness.Remember(t, now, now.APIKey, "on the other node")
	harness.KeyIs(t, e, now.APIKey, false) // the process that it left does not know the new key
	if stays != "" {
		harness.IsNow(t, waits, stays, "failed", "node_down")
		if _, err := waits.Restore(ctx, stays, ""); err != nil {
			t.Error(err)
		}
	}

	// What needs the end of all processes does not wait for the lost node.
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	again, err := c.Start(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.Resume(lost); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "only the brain on the other node is left", func() error {
		volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, &nomad.QueryOptions{Prefix: "engine-" + e.EngineID})
		if err == nil && len(volumes) != 1 {
			err = fmt.Errorf("there are %d volumes", len(volumes))
		}
		if n := harness.Processes(stack, e.EngineID); n != 1 {
			err = errors.Join(err, fmt.Errorf("there are %d processes", n))
		}
		return err
	})
	if err := harness.Export(t, again, now.APIKey).Knows("on the other node"); err != nil {
		t.Error(err)
	}
	if err := harness.InState(t, c, "u", "running"); err != nil {
		t.Error(err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "nothing is left", func() error {
		if left := s.Traces(e.EngineID); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
}

// TestNodeIsWiped: a machine never comes back, and neither its disk. Its engines come up
// elsewhere with what was in their newest snapshots, and an operator can forget its volumes.
func TestNodeIsWiped(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	r := harness.StartService(t, stack, map[string]string{"ORCH_VOLUME_POOL": "0"})
	c := r.Product(t, map[string]any{"on_node_lost": "restore", "node_lost_after_s": 60})
	ctx, s := t.Context(), harness.OpenStores(t, stack)
	users := []string{"runs", "is-stopped"}
	var lost string
	engines := map[string]*client.Engine{}
	for _, user := range users {
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		engines[user] = e
		harness.Remember(t, e, e.APIKey, "of "+user)
		if lost == "" {
			lost = s.NodeOf(e.EngineID)
			for _, other := range nodesBut(t, s, lost) { // so that both are on one node
				if _, err := s.Nomad.Nodes().ToggleEligibility(other, false, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := c.Snapshot(ctx, user, ""); err != nil {
			t.Fatal(err)
		}
		harness.Remember(t, e, e.APIKey, "after the snapshot")
	}
	for _, other := range nodesBut(t, s, lost) {
		if _, err := s.Nomad.Nodes().ToggleEligibility(other, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Stop(ctx, "is-stopped"); err != nil { // it is not restored by itself
		t.Fatal(err)
	}

	// The machine is gone with everything on it.
	agent := clientOf(t, s, stack, engines["runs"].EngineID)
	if err := stack.Lose(agent); err != nil {
		t.Fatal(err)
	}
	for _, task := range stack.Tasks() {
		if task.JobID == "engine-"+engines["runs"].EngineID {
			if err := syscall.Kill(task.PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}
	for _, user := range users {
		if err := os.RemoveAll(brainOf(t, s, engines[user].EngineID)); err != nil {
			t.Fatal(err)
		}
	}
	for user, knows := range map[string]string{"runs": "of runs", "is-stopped": "of is-stopped"} {
		var now *client.Engine
		if user == "is-stopped" {
			harness.IsNow(t, c, user, "stopped", "")
			restored, err := c.Restore(ctx, user, "")
			if err != nil {
				t.Fatal(err)
			}
			now = restored
		} else {
			harness.Eventually(t, "it runs on the other node", func() (err error) {
				now, err = c.Engine(ctx, user)
				if err == nil && (now.Status != "running" || s.NodeOf(now.EngineID) == lost) {
					err = fmt.Errorf("it is %s", now.Status)
				}
				return err
			})
		}
		memory := harness.Export(t, now, now.APIKey)
		if err := memory.Knows(knows); err != nil {
			t.Error(err)
		}
		if memory.Knows("after the snapshot") == nil {
			t.Errorf("%s knows what was only on the disk that is gone", user)
		}
	}

	// A new machine takes the place of the old one. Nothing of the engines is there, and the
	// volumes that are gone are forgotten by a call.
	if err := stack.Restart(ctx, agent); err != nil {
		t.Fatal(err)
	}
	for _, user := range users {
		if err := harness.InState(t, c, user, "running"); err != nil {
			t.Error(err)
		}
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, "only Nomad still knows the volumes that were on the machine", func() error {
		for id := range r.Unreachable(t) {
			if err := r.Admin().ForgetVolume(ctx, id); err != nil {
				return err
			}
		}
		volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
		for _, v := range volumes {
			if v.NodeID != lost {
				err = errors.Join(err, fmt.Errorf("%s is on node %s", v.Name, v.NodeID))
			}
		}
		for _, e := range engines {
			if left := s.Traces(e.EngineID); slices.ContainsFunc(left, func(what string) bool { return what != "host volume" }) {
				err = errors.Join(err, fmt.Errorf("%v", left))
			}
		}
		return err
	})
}

// nodesBut returns the ids of all other nodes.
func nodesBut(t *testing.T, s *harness.Stores, id string) (others []string) {
	t.Helper()
	list, _, err := s.Nomad.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if n.ID != id {
			others = append(others, n.ID)
		}
	}
	return others
}

// clientOf returns the Nomad client on which an engine is to run.
func clientOf(t *testing.T, s *harness.Stores, stack *devstack.Stack, engineID string) devstack.Component {
	t.Helper()
	node, _, err := s.Nomad.Nodes().Info(s.NodeOf(engineID), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if c := devstack.NomadClient(i); strings.HasSuffix(stack.Addr(c), node.HTTPAddr) {
			return c
		}
	}
	t.Fatalf("no client has the address %s", node.HTTPAddr)
	return ""
}
