package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestRegistryRestoredInAMove: the service dies in the middle of a move, and an operator
// restores a backup of the registry from before the move, or from that moment after the move
// has ended. The engine has its brain and its key, no second process was ever there, and it can be
// moved again.
func TestRegistryRestoredInAMove(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		point string
		late  bool // the backup is from the middle of the move, which has ended
	}{
		"RunsOnTheOtherNode": {"move/boot/done", false},
		"ProcessIsEnded":     {"move/keep-send/done", true},
	} {
		// One after another: each has the agents of two nodes.
		t.Run(name, func(t *testing.T) { restoredInAMove(t, c.point, c.late) })
	}
}

func restoredInAMove(t *testing.T, point string, late bool) {
	stack := harness.OwnStack(t, devstack.Config{ExtraClients: 1})
	harness.WatchBrains(t, stack)
	const prefix = "moved/"
	database := "sqlite://" + filepath.Join(t.TempDir(), "audit.db")
	ctx, s := t.Context(), harness.OpenStores(t, stack)
	settings := []string{"ORCH_VOLUME_POOL=0", "ORCH_RECONCILE_INTERVAL_S=2", "ORCH_ORPHAN_GRACE_S=2", "ORCH_RESTART_BACKOFF_BASE_S=1"}
	a := harness.StartFaultyOn(t, stack, prefix, database, "pause "+point, settings...)
	product, err := a.RegisterProduct(ctx, "moved", "Moved", harness.PolicyOf(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: a.BaseURL, PlatformKey: product.PlatformAPIKey}
	was, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, was, was.APIKey, "the memory of u")
	first := s.NodeOf(was.EngineID)
	backup := func() []byte {
		in, _, err := s.Consul.Snapshot().Save(nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(in)
		if err = errors.Join(err, in.Close()); err != nil {
			t.Fatal(err)
		}
		return text
	}
	past := backup()
	if _, err := a.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	a.AwaitPause(t)
	// On the other node the engine works before its row says that it is there.
	learnt := point == "move/boot/done"
	if learnt {
		there := *was
		there.URL = processURL(t, s, was.EngineID)
		harness.Remember(t, &there, was.APIKey, "learnt on the other node")
	}
	if late {
		past = backup()
	}
	a.End()
	serve := func() *harness.Process {
		p := harness.StartFaultyOn(t, stack, prefix, database, "", settings...)
		c.BaseURL = p.BaseURL
		return p
	}
	left := func(b *harness.Process) {
		t.Helper()
		harness.Eventually(t, "it is on the other node", func() error {
			now, err := b.Evacuation(ctx, first)
			if err == nil && now.Status != "done" {
				err = fmt.Errorf("%+v", now)
			}
			return err
		})
		if s.NodeOf(was.EngineID) == first {
			t.Error("it is still on the node")
		}
	}
	if late {
		b := serve()
		left(b)
		harness.Remember(t, current(t, c), was.APIKey, "learnt after the move")
		b.Terminate(t)
	}
	if err := s.Consul.Snapshot().Restore(nil, bytes.NewReader(past)); err != nil {
		t.Fatal(err)
	}
	b := serve()
	harness.Eventually(t, "the registry is rebuilt", func() error {
		st, err := b.Registry(ctx)
		if err == nil && (st.State != "ok" || st.Quarantined != 0) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	knows := []string{"the memory of u"}
	if learnt {
		knows = append(knows, "learnt on the other node")
	}
	if late {
		knows = append(knows, "learnt after the move")
	}
	harness.Eventually(t, "the engine runs", func() error {
		now, err := c.Engine(ctx, "u")
		if err != nil {
			return err
		}
		if now.Status != "running" || now.Operation != nil {
			return fmt.Errorf("it is %s (%s), %+v", now.Status, now.Reason, now.Operation)
		}
		var memory harness.Memory
		if code, err := harness.EngineCall(ctx, now, was.APIKey, http.MethodGet, "/memory/export", nil, &memory); err != nil || code != http.StatusOK {
			return fmt.Errorf("%d, %w", code, err)
		}
		for _, what := range knows {
			err = errors.Join(err, memory.Knows(what))
		}
		return err
	})
	if _, err := b.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	left(b)
	memory := harness.Export(t, current(t, c), was.APIKey)
	for _, what := range knows {
		if err := memory.Knows(what); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "nothing is left", func() error {
		left := s.Traces(was.EngineID)
		volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
		if err == nil && len(left)+len(volumes) > 0 {
			err = fmt.Errorf("%v, %d volumes", left, len(volumes))
		}
		return err
	})
}

// processURL returns the URL of the only process of an engine, by Nomad.
func processURL(t *testing.T, s *harness.Stores, engineID string) (url string) {
	t.Helper()
	harness.Eventually(t, "Nomad knows the engine's process", func() error {
		allocs, _, err := s.Nomad.Jobs().Allocations("engine-"+engineID, true, nil)
		if err != nil {
			return err
		}
		for _, a := range allocs {
			if a.ClientStatus != nomad.AllocClientStatusRunning {
				continue
			}
			full, _, err := s.Nomad.Allocations().Info(a.ID, nil)
			if err != nil {
				return err
			}
			for _, port := range full.AllocatedResources.Shared.Ports {
				url = "http://" + net.JoinHostPort(port.HostIP, strconv.Itoa(port.Value))
				return nil
			}
		}
		return errors.New("it runs nowhere")
	})
	return url
}

func current(t *testing.T, c *client.Client) *client.Engine {
	t.Helper()
	e, err := c.Engine(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	return e
}
