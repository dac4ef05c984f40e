package registry

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// Consul's state of an engine is one of four. It is looked up by the engine's own
// allocation, and reports of an agent that has died since count as unknown.
func TestStanding(t *testing.T) {
	client := consulClient(t)
	store := New(client, prefix(t))
	c := store.NewChecks(0, hclog.NewNullLogger())
	c.every = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })

	node := "node-" + strings.ToLower(rand.Text()[:8])
	put := func(serviceID, service, status string) {
		t.Helper()
		reg := &consul.CatalogRegistration{Node: node, Address: "10.0.0.1", Check: &consul.AgentCheck{Node: node, CheckID: serfHealth, Name: serfHealth, Status: status}}
		if serviceID != "" {
			reg.Service = &consul.AgentService{ID: serviceID, Service: service}
			reg.Check = &consul.AgentCheck{Node: node, CheckID: "check-" + serviceID, Name: "health", Status: status, ServiceID: serviceID, ServiceName: service}
		}
		if _, err := client.Catalog().Register(reg, nil); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _, _ = client.Catalog().Deregister(&consul.CatalogDeregistration{Node: node}, nil) })
	put("", "", consul.HealthPassing)
	row := func(name string) *engine.Row {
		id := strings.ToLower(rand.Text())
		alloc := fmt.Sprintf("%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], (id + id)[20:32])
		return &engine.Row{EngineID: name + "-" + id, AllocID: alloc, RunningSince: time.Now().Add(-time.Hour)}
	}
	serviceID := func(e *engine.Row) string { return "_nomad-task-" + e.AllocID + "-engine-" + e.JobID() + "-http" }
	is := func(e *engine.Row, want Standing) {
		t.Helper()
		eventually(t, fmt.Sprint(e.EngineID, " is ", want), func() error {
			standing, at := c.Of(e)
			if standing != want || at.IsZero() == (want == Passing || want == Critical) {
				return fmt.Errorf("it is %s at %s", standing, at)
			}
			return nil
		})
	}
	passing, critical, absent, warning, young := row("passing"), row("critical"), row("absent"), row("warning"), row("young")
	young.RunningSince = time.Now().Add(time.Hour)
	put(serviceID(passing), passing.JobID(), consul.HealthPassing)
	put(serviceID(critical), critical.JobID(), consul.HealthCritical)
	put(serviceID(warning), warning.JobID(), consul.HealthWarning)
	// Checks of a previous allocation, and of another service with the same name.
	put("_nomad-task-"+row("old").AllocID+"-engine-"+passing.JobID()+"-http", passing.JobID(), consul.HealthCritical)
	put("foreign-"+passing.EngineID, passing.JobID(), consul.HealthCritical)
	put("foreign-"+absent.EngineID, absent.JobID(), consul.HealthPassing)
	is(passing, Passing)
	is(critical, Critical)
	is(absent, Absent)
	is(warning, Absent)
	is(young, Unknown)
	if n := c.Failing([]*engine.Row{passing, critical, absent, warning, young}); n != 1 {
		t.Errorf("%d fail, want 1", n)
	}
	put("", "", consul.HealthCritical)
	for _, e := range []*engine.Row{passing, critical, warning} {
		is(e, Unknown)
		if !c.AgentDead(e) {
			t.Errorf("the agent of %s is dead, but not reported as dead", e.EngineID)
		}
	}
	put("", "", consul.HealthPassing)
	is(passing, Passing)
	if c.AgentDead(passing) {
		t.Error("the agent is back, but reported as dead")
	}
	if _, err := client.Catalog().Deregister(&consul.CatalogDeregistration{Node: node, ServiceID: serviceID(passing)}, nil); err != nil {
		t.Fatal(err)
	}
	is(passing, Absent)
}
