package brains

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestContainer takes a snapshot of a running container, and restores and forks it.
func TestContainer(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	b := newBucketOn(t, bridge(t)) // a container does not reach loopback
	r := harness.StartService(t, harness.Shared, harness.Docker.With(b.vars()))
	c := r.Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "yesterday")
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d ms frozen", taken.FrozenMS)
	if taken.FrozenMS == 0 {
		t.Error("it was not frozen")
	}
	harness.Remember(t, e, e.APIKey, "today")
	unharmed(t, c, e, "yesterday", "today")
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	forked, err := c.Fork(ctx, "u", "copy", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []*client.Engine{restored, forked} {
		memory := harness.Export(t, one, one.APIKey)
		if err := memory.Knows("yesterday"); err != nil || memory.Knows("today") == nil {
			t.Errorf("%s has another memory: %v, %+v", one.UserID, err, memory)
		}
		harness.Remember(t, one, one.APIKey, "tomorrow")
	}
	harness.KeyIs(t, restored, e.APIKey, false)
	if has := b.tidy(t, e.EngineID); len(has) != 2 {
		t.Errorf("snapshots %v", has)
	}
	if _, err := c.Destroy(ctx, "copy"); err != nil {
		t.Error(err)
	}
}

// bridge returns the machine's address in the network of containers.
func bridge(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("docker", "network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestContainerWithoutAWorker: without an image of the worker, the caller learns what an
// operator has to set, and nothing is begun.
func TestContainerWithoutAWorker(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, harness.With(harness.Docker.With(b.vars()), "ORCH_SNAPSHOT_WORKER="))
	c := r.Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	for what, err := range map[string]error{
		"snapshot": harness.ErrOf(c.Snapshot(ctx, "u", "")),
		"fork":     harness.ErrOf(c.Fork(ctx, "u", "copy", "")),
	} {
		if answer := harness.WantCode(t, err, 507, "SNAPSHOT_FAILED"); !strings.Contains(answer.Message, "ORCH_SNAPSHOT_WORKER") {
			t.Errorf("%s: it does not say what to do: %s", what, answer.Message)
		}
	}
	unharmed(t, c, e, "before")
	shown, err := c.Engine(ctx, "u")
	if err != nil || shown.LastOperation == nil || shown.LastOperation.Kind != "provision" {
		t.Errorf("an operation was begun: %+v, %v", shown.LastOperation, err)
	}
	harness.WantCode(t, harness.ErrOf(c.Engine(ctx, "copy")), 404, "ENGINE_NOT_FOUND")
	b.noUploads(t)
}
