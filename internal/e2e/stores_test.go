package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

// stores looks into the real stores behind a service, as root.
type stores struct {
	t      *testing.T
	stack  *devstack.Stack
	nomad  *nomad.Client
	consul *consul.Client
	vault  *vault.Client
}

func openStores(t *testing.T, s *devstack.Stack) *stores {
	t.Helper()
	n, err := nomad.NewClient(&nomad.Config{Address: s.NomadAddr})
	if err != nil {
		t.Fatal(err)
	}
	c, err := consul.NewClient(&consul.Config{Address: s.ConsulAddr})
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.NewClient(&vault.Config{Address: s.VaultAddr})
	if err != nil {
		t.Fatal(err)
	}
	v.SetToken(s.VaultRootToken)
	return &stores{t, s, n, c, v}
}

// mountWith is the mount in Vault that has a secret of an engine; "": none has.
func (s *stores) mountWith(engineID string) string {
	s.t.Helper()
	for _, mount := range s.stack.Mounts() {
		secret, err := s.vault.Logical().Read(mount + "/metadata/engines/" + engineID)
		if err != nil {
			s.t.Fatal(err)
		}
		if secret != nil {
			return mount
		}
	}
	return ""
}

// deployment is the record that a deployment's registry has of itself.
func (s *stores) deployment(prefix string) *registry.Deployment {
	s.t.Helper()
	pair, _, err := s.consul.KV().Get(prefix+"deployment", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	d := new(registry.Deployment)
	if pair != nil {
		if err := json.Unmarshal(pair.Value, d); err != nil {
			s.t.Fatal(err)
		}
	}
	return d
}

// brand is what the engine_ids of a deployment begin with.
func (s *stores) brand(prefix string) string {
	s.t.Helper()
	id := s.deployment(prefix).ID
	return id[:min(6, len(id))]
}

// traces returns what each store still has of an engine, but for a suspicion that
// reconcile noted.
func (s *stores) traces(engineID string) []string {
	s.t.Helper()
	var found []string
	name := "engine-" + engineID
	if _, _, err := s.nomad.Jobs().Info(name, nil); err == nil {
		found = append(found, "nomad job")
	}
	if v, _, err := s.nomad.Variables().Peek("nomad/jobs/"+name, nil); err != nil || v != nil {
		found = append(found, fmt.Sprintf("nomad variable (%v)", err))
	}
	volumes, _, err := s.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range volumes {
		if v.Name == name {
			found = append(found, "host volume")
		}
	}
	if s.mountWith(engineID) != "" {
		found = append(found, "vault key")
	}
	pairs, _, err := s.consul.KV().List("", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range pairs {
		// A pass that ran across a destroy suspects what it saw; the next one drops that.
		if strings.Contains(p.Key, "/changes/") || strings.Contains(p.Key, "/orphans/") {
			continue
		}
		if strings.Contains(p.Key, engineID) || bytes.Contains(p.Value, []byte(engineID)) {
			found = append(found, "consul "+p.Key)
		}
	}
	return found
}

// engineJobs lists the jobs, variables and keys of all engines of a deployment,
// and its rows.
func (s *stores) rows(prefix string) []string {
	s.t.Helper()
	keys, _, err := s.consul.KV().Keys(prefix+"engines/", "", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}

// awaitReported waits until an engine's node has told the servers that it runs,
// which is up to a second after it answers.
func (s *stores) awaitReported(engineID string) {
	s.t.Helper()
	eventually(s.t, "the node has reported the engine", func() error {
		allocs, _, err := s.nomad.Jobs().Allocations(registry.JobID(engineID), false, nil)
		if err != nil || len(allocs) != 1 || allocs[0].ClientStatus != nomad.AllocClientStatusRunning {
			return fmt.Errorf("%d allocations, %w", len(allocs), err)
		}
		return nil
	})
}

// taskEvents is what Nomad says that it did with an engine's processes.
func (s *stores) taskEvents(engineID string) string {
	s.t.Helper()
	allocs, _, err := s.nomad.Jobs().Allocations(registry.JobID(engineID), true, nil)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, a := range allocs {
		for _, state := range a.TaskStates {
			for _, e := range state.Events {
				fmt.Fprintf(&b, "%s %s %s: %s\n", a.ID[:8], time.Unix(0, e.Time).UTC().Format("15:04:05.000"), e.Type, e.DisplayMessage)
			}
		}
	}
	return b.String()
}

// dump is everything that the stores say, and the agents wrote, in plain text.
func (s *stores) dump(stack *devstack.Stack) map[string]string {
	s.t.Helper()
	out := map[string]string{}
	add := func(name string, v any, err error) {
		if err != nil {
			s.t.Fatalf("%s: %v", name, err)
		}
		b, err := json.Marshal(v)
		if err != nil {
			s.t.Fatal(err)
		}
		out[name] = string(b)
	}
	pairs, _, err := s.consul.KV().List("", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range pairs {
		out["consul "+p.Key] = string(p.Value)
	}
	services, _, err := s.consul.Catalog().Services(nil)
	add("consul services", services, err)
	for name := range services {
		entries, _, err := s.consul.Catalog().Service(name, "", nil)
		add("consul service "+name, entries, err)
	}
	checks, _, err := s.consul.Health().State("any", nil)
	add("consul checks", checks, err)
	jobs, _, err := s.nomad.Jobs().List(nil)
	add("nomad jobs", jobs, err)
	for _, j := range jobs {
		job, _, err := s.nomad.Jobs().Info(j.ID, nil)
		add("nomad job "+j.ID, job, err)
	}
	allocs, _, err := s.nomad.Allocations().List(nil)
	add("nomad allocations", allocs, err)
	for _, a := range allocs {
		full, _, err := s.nomad.Allocations().Info(a.ID, nil)
		add("nomad allocation "+a.ID, full, err)
	}
	vars, _, err := s.nomad.Variables().List(nil)
	add("nomad variables", vars, err)
	for _, v := range vars {
		full, _, err := s.nomad.Variables().Read(v.Path, nil)
		add("nomad variable "+v.Path, full, err)
	}
	volumes, _, err := s.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	add("nomad volumes", volumes, err)
	logs, err := filepath.Glob(filepath.Join(stack.Dir, "*.log"))
	if err != nil || len(logs) == 0 {
		s.t.Fatalf("no agent logs in %s (%v)", stack.Dir, err)
	}
	for _, log := range logs {
		b, err := os.ReadFile(log)
		if err != nil {
			s.t.Fatal(err)
		}
		out["log "+filepath.Base(log)] = string(b)
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range cmdlines {
		if b, err := os.ReadFile(file); err == nil { // else it is gone
			out[file] = string(b)
		}
	}
	return out
}

// census counts what a deployment has in every store, but for the pool.
func (s *stores) census(prefix string) map[string]int {
	s.t.Helper()
	deployment := strings.TrimSuffix(prefix, "/")
	brand := s.brand(prefix)
	out := map[string]int{"rows": len(s.rows(prefix))}
	for _, kind := range []string{"engine-ids/", "graves/"} {
		keys, _, err := s.consul.KV().Keys(prefix+kind, "", nil)
		if err != nil {
			s.t.Fatal(err)
		}
		out[kind] = len(keys)
	}
	ids, _, err := s.consul.KV().Keys(prefix, "", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, key := range ids {
		if strings.HasPrefix(key, prefix+"quota/") {
			pair, _, err := s.consul.KV().Get(key, nil)
			if err != nil {
				s.t.Fatal(err)
			}
			var n int
			if _, err := fmt.Sscan(string(pair.Value), &n); err != nil {
				s.t.Fatal(err)
			}
			out["quota"] += n
		}
	}
	jobs, _, err := s.nomad.Jobs().ListOptions(&nomad.JobListOptions{Fields: &nomad.JobListFields{Meta: true}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, j := range jobs {
		if j.Meta["deployment"] == deployment {
			out["jobs"]++
		}
	}
	vars, _, err := s.nomad.Variables().List(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	out["variables"] = 0
	for _, v := range vars {
		if strings.HasPrefix(v.Path, "nomad/jobs/engine-"+brand) {
			out["variables"]++
		}
	}
	secret, err := s.vault.Logical().List(mountName(prefix) + "/metadata/engines")
	if err != nil {
		s.t.Fatal(err)
	}
	if secret != nil {
		for _, key := range secret.Data["keys"].([]any) {
			if strings.HasPrefix(key.(string), brand) {
				out["keys"]++
			}
		}
	}
	return out
}

func (s *stores) wantCensus(prefix string, want map[string]int) {
	s.t.Helper()
	if got := s.census(prefix); fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Fatalf("the stores hold %v, want %v", got, want)
	}
}
