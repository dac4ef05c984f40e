package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"
)

// The service of an allocation is told from those of earlier allocations of the same
// engine, and only checks that a live agent has run count.
func TestInstanceOf(t *testing.T) {
	client := consulClient(t)
	store := New(client, prefix(t))
	id := func() string {
		id := strings.ToLower(rand.Text())
		return fmt.Sprintf("%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], (id + id)[20:32])
	}
	name, node := "engine-"+strings.ToLower(rand.Text()[:8]), "node-"+strings.ToLower(rand.Text()[:8])
	t.Cleanup(func() { _, _ = client.Catalog().Deregister(&consul.CatalogDeregistration{Node: node}, nil) })
	put := func(allocID, meta, agent string, statuses ...string) {
		t.Helper()
		serviceID := "_nomad-task-" + allocID + "-engine-" + name + "-http"
		reg := &consul.CatalogRegistration{
			Node: node, Address: "10.0.0.1",
			Service: &consul.AgentService{ID: serviceID, Service: name, Meta: map[string]string{KeyChecksum: meta}},
			Checks:  consul.HealthChecks{{Node: node, CheckID: serfHealth, Name: serfHealth, Status: agent}},
		}
		for i, status := range statuses {
			reg.Checks = append(reg.Checks, &consul.HealthCheck{Node: node, CheckID: fmt.Sprint("check-", i, serviceID), Name: "health", Status: status, Output: "it is " + status, ServiceID: serviceID, ServiceName: name})
		}
		if _, err := client.Catalog().Register(reg, nil); err != nil {
			t.Fatal(err)
		}
	}
	is := func(allocID string, want Instance) {
		t.Helper()
		got, err := store.InstanceOf(t.Context(), name, allocID)
		if err != nil || *got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	old, now, second := id(), id(), id()
	put(old, "sum-1", "passing", consul.HealthPassing)
	if i, err := store.InstanceOf(t.Context(), name, now); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %+v, %v for another allocation", i, err)
	}
	put(now, "${ENGINE_KEY_CHECKSUM}", "passing", consul.HealthWarning)
	is(now, Instance{Standing: Absent, Output: "it is warning"})
	put(now, "sum-2", "passing", consul.HealthPassing)
	is(now, Instance{Standing: Passing, Output: "it is passing", KeyChecksum: "sum-2"})
	is(old, Instance{Standing: Passing, Output: "it is passing", KeyChecksum: "sum-1"})
	put(now, "sum-2", "passing", consul.HealthCritical)
	is(now, Instance{Standing: Critical, Output: "it is critical", KeyChecksum: "sum-2"})
	put(second, "", "passing", consul.HealthPassing, consul.HealthWarning)
	is(second, Instance{Standing: Absent, Output: "it is warning"})
	put(old, "sum-1", "critical", consul.HealthPassing)
	is(old, Instance{Standing: Unknown, Output: "it is passing", KeyChecksum: "sum-1"})
}
