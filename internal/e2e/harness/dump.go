package harness

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
)

// Dump returns everything in the stores, and everything that the agents wrote, in plain
// text, but for what is removed meanwhile.
func (s *Stores) Dump(stack *devstack.Stack) map[string]string {
	s.T.Helper()
	out := map[string]string{}
	add := func(name string, v any, err error) {
		var status nomad.UnexpectedResponseError
		if errors.Is(err, nomad.ErrVariablePathNotFound) || errors.As(err, &status) && status.StatusCode() == http.StatusNotFound {
			return
		}
		if err != nil {
			s.T.Fatalf("%s: %v", name, err)
		}
		b, err := json.Marshal(v)
		if err != nil {
			s.T.Fatal(err)
		}
		out[name] = string(b)
	}
	pairs, _, err := s.Consul.KV().List("", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, p := range pairs {
		out["consul "+p.Key] = string(p.Value)
	}
	services, _, err := s.Consul.Catalog().Services(nil)
	add("consul services", services, err)
	for name := range services {
		entries, _, err := s.Consul.Catalog().Service(name, "", nil)
		add("consul service "+name, entries, err)
	}
	checks, _, err := s.Consul.Health().State("any", nil)
	add("consul checks", checks, err)
	jobs, _, err := s.Nomad.Jobs().List(nil)
	add("nomad jobs", jobs, err)
	for _, j := range jobs {
		job, _, err := s.Nomad.Jobs().Info(j.ID, nil)
		add("nomad job "+j.ID, job, err)
	}
	allocs, _, err := s.Nomad.Allocations().List(nil)
	add("nomad allocations", allocs, err)
	for _, a := range allocs {
		full, _, err := s.Nomad.Allocations().Info(a.ID, nil)
		add("nomad allocation "+a.ID, full, err)
	}
	vars, _, err := s.Nomad.Variables().List(nil)
	add("nomad variables", vars, err)
	for _, v := range vars {
		full, _, err := s.Nomad.Variables().Read(v.Path, nil)
		add("nomad variable "+v.Path, full, err)
	}
	volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	add("nomad volumes", volumes, err)
	logs, err := filepath.Glob(filepath.Join(stack.Dir, "*.log"))
	if err != nil || len(logs) == 0 {
		s.T.Fatalf("no agent logs in %s (%v)", stack.Dir, err)
	}
	for _, log := range logs {
		b, err := os.ReadFile(log)
		if err != nil {
			s.T.Fatal(err)
		}
		out["log "+filepath.Base(log)] = string(b)
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range cmdlines {
		if b, err := os.ReadFile(file); err == nil { // otherwise it was deleted
			out[file] = string(b)
		}
	}
	return out
}
