package cluster

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
)

// interposed runs a function before matching requests are sent.
type interposed struct {
	next   http.RoundTripper
	before func(*http.Request)
}

func (i *interposed) RoundTrip(r *http.Request) (*http.Response, error) {
	i.before(r)
	return i.next.RoundTrip(r)
}

// Lists of several pages are complete, whatever changes between two pages.
func TestListsOfManyPages(t *testing.T) {
	stack, err := devstack.Start(t.Context(), devstack.Config{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	}()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	way := &interposed{next: transport, before: func(*http.Request) {}}
	client, err := api.NewClient(&api.Config{Address: stack.NomadAddr, HttpClient: &http.Client{Transport: way}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c := New(client, "default", Mkdir, hclog.NewNullLogger())
	c.pageSize = 2
	more := map[string]int{} // number of pages requested after the first, by path
	count := func(r *http.Request) {
		if r.URL.Query().Has("next_token") {
			more[r.URL.Path]++
		}
	}
	way.before = count

	const many = 5
	var names []string
	jobs := map[string]*api.Job{}
	for n := range many {
		name := fmt.Sprint("engine-", n)
		job := api.NewServiceJob(name, name, "global", 50)
		task := api.NewTask("engine", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"600"})
		group := api.NewTaskGroup("engine", n) // 0 to 4 processes
		job.AddTaskGroup(group.AddTask(task)).SetMeta("engine_id", fmt.Sprint(n)).SetMeta("deployment", "test")
		names, jobs[name] = append(names, name), job
		if _, err := c.Register(t.Context(), job, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.PutVariable(t.Context(), name, &Variable{KeyHash: "hash"}); err != nil {
			t.Fatal(err)
		}
	}
	node := c.node(t)
	for _, name := range names {
		if _, err := c.CreateVolume(t.Context(), name, node, nil); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("Allocations", func(t *testing.T) {
		const allocs = 0 + 1 + 2 + 3 + 4
		for late := time.Now().Add(30 * time.Second); ; {
			listed, err := c.relist(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(c.view.allocs) == allocs && len(c.Nodes()) == 1 && c.Nodes()[0].Allocs == allocs {
				if listed == 0 {
					t.Error("the lists are complete up to no index")
				}
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%d allocations on %d nodes, want %d on one", len(c.view.allocs), len(c.Nodes()), allocs)
			}
		}
	})
	t.Run("Variables", func(t *testing.T) {
		list, err := c.KeyHashes(t.Context(), "engine-", nil)
		var got []string
		for _, v := range list {
			got = append(got, v.JobID)
		}
		if slices.Sort(got); err != nil || !slices.Equal(got, names) {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("Volumes", func(t *testing.T) {
		list, err := c.Volumes(t.Context(), nil)
		var got []string
		for _, v := range list {
			got = append(got, v.Name)
		}
		if slices.Sort(got); err != nil || !slices.Equal(got, names) {
			t.Errorf("got %v, %v", got, err)
		}
	})
	// While the second page of counts is requested, jobs on an earlier page and on a later
	// one are changed, which changes their positions. A change of priority replaces no
	// process.
	t.Run("Jobs", func(t *testing.T) {
		other := 60
		change := sync.OnceFunc(func() {
			for _, name := range []string{names[0], names[many-1]} {
				at, err := c.Job(t.Context(), name)
				if err == nil {
					jobs[name].Priority = &other
					_, err = c.Register(t.Context(), jobs[name], *at.JobModifyIndex)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
		way.before = func(r *http.Request) {
			count(r)
			if r.URL.Path == "/v1/jobs/statuses" && r.URL.Query().Has("next_token") {
				change()
			}
		}
		list, err := c.Jobs(t.Context(), "engine-", Unthrottled)
		if err != nil || len(list) != many {
			t.Fatalf("%d jobs, %v", len(list), err)
		}
		for _, j := range list {
			if want := slices.Index(names, j.ID); j.Count != want || len(j.Live) != want || j.EngineID != fmt.Sprint(want) || j.Deployment != "test" {
				t.Errorf("%s: %d processes, alive on %v, of engine %q of %q", j.ID, j.Count, j.Live, j.EngineID, j.Deployment)
			}
		}
		if at, err := c.Job(t.Context(), names[0]); err != nil || *at.Priority != other {
			t.Errorf("nothing was changed meanwhile: %v", err)
		}
	})
	for _, path := range []string{"/v1/allocations", "/v1/vars", "/v1/volumes", "/v1/jobs", "/v1/jobs/statuses"} {
		if more[path] < 2 {
			t.Errorf("%d pages of %s after the first, want 2 at least", more[path], path)
		}
	}
}

// node returns the stack's only node.
func (c *Cluster) node(t *testing.T) string {
	t.Helper()
	nodes, _, err := c.client.Nodes().List(c.read(t.Context()))
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	return nodes[0].ID
}
