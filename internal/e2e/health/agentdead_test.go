package health

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// otherNode returns the node whose Consul agent is not the one that the test calls.
func otherNode(s *harness.Stores) (id string) {
	s.T.Helper()
	here, err := s.Consul.Agent().NodeName()
	if err != nil {
		s.T.Fatal(err)
	}
	nodes, _, err := s.Nomad.Nodes().List(nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, stub := range nodes {
		node, _, err := s.Nomad.Nodes().Info(stub.ID, nil)
		if err != nil {
			s.T.Fatal(err)
		}
		if name := node.Attributes["unique.consul.name"]; name != "" && name != here {
			id = node.ID
		}
	}
	if id == "" {
		s.T.Fatal("there is no node with a Consul agent of its own")
	}
	return id
}

// The Consul agent of a node dies, and the checks of the node's engines keep their last
// state. An engine that hangs is found anyway, and last_health_at advances only while the
// health is known. A foreign service with an engine's name has no effect.
func TestConsulAgentDead(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t, devstack.Config{ExtraClients: 1})
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=agentdead/", "ORCH_VOLUME_POOL=2", "ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_RESTART_BACKOFF_MAX_S=300"))
	s, ctx := harness.OpenStores(t, stack), t.Context()
	c := r.Product(t, map[string]any{"engine_image": "reference-engine.fail-health-file"})
	node := otherNode(s)
	var hung *client.Engine
	var path string
	for i := 0; hung == nil; i++ {
		user := fmt.Sprintf("u%d", i)
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		rows, err := s.Engines("agentdead/")
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.EngineID == e.EngineID && row.NodeID == node {
				hung, path = e, row.VolumePath
			}
		}
		if i > 8 {
			t.Fatal("no engine was placed on the other node")
		}
	}
	foreign := &consul.CatalogRegistration{
		Node: "elsewhere", Address: "10.0.0.1",
		Service: &consul.AgentService{ID: "foreign", Service: "engine-" + hung.EngineID},
		Check:   &consul.AgentCheck{Node: "elsewhere", CheckID: "foreign", ServiceID: "foreign", ServiceName: "engine-" + hung.EngineID, Status: consul.HealthCritical},
	}
	if _, err := s.Consul.Catalog().Register(foreign, nil); err != nil {
		t.Fatal(err)
	}
	moves := func(what string) {
		t.Helper()
		var first time.Time
		harness.Eventually(t, "its last_health_at moves "+what, func() error {
			e, err := c.Engine(ctx, hung.UserID)
			if err != nil || e.LastHealthAt == nil || e.Status != "running" {
				return fmt.Errorf("%+v, %w", e, err)
			}
			if first.IsZero() {
				first = *e.LastHealthAt
			}
			if !e.LastHealthAt.After(first) {
				return fmt.Errorf("it is %s", e.LastHealthAt)
			}
			return nil
		})
	}
	moves("by Consul's word")
	if st, err := c.Status(ctx); err != nil || st.UnhealthyCount != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := stack.Kill(devstack.ConsulClient(1)); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "Consul reports the agent as dead", func() error {
		checks, _, err := s.Consul.Health().State(consul.HealthCritical, nil)
		for _, check := range checks {
			if check.CheckID == "serfHealth" {
				return nil
			}
		}
		return fmt.Errorf("none is critical, %w", err)
	})
	moves("by the service's own")
	if err := os.WriteFile(filepath.Join(path, "fail-health"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hangs := time.Now()
	e := harness.AwaitEngine(t, c, hung.UserID, "failed", "unhealthy")
	t.Logf("found after %s", time.Since(hangs).Round(time.Millisecond))
	if e.LastHealthAt.After(hangs.Add(10 * time.Second)) { // a busy machine may write it late
		t.Errorf("it hangs since %s, and was healthy at %s", hangs, e.LastHealthAt)
	}
	if err := os.Remove(filepath.Join(path, "fail-health")); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, c, hung.UserID, "running", "")
}
