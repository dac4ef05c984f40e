package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

// Traces returns what each store still contains of an engine, except for a suspicion that
// reconcile recorded.
func (s *Stores) Traces(engineID string) []string {
	s.T.Helper()
	var found []string
	name := "engine-" + engineID
	if _, _, err := s.Nomad.Jobs().Info(name, nil); err == nil {
		found = append(found, "nomad job")
	}
	if v, _, err := s.Nomad.Variables().Peek("nomad/jobs/"+name, nil); err != nil || v != nil {
		found = append(found, fmt.Sprintf("nomad variable (%v)", err))
	}
	volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, v := range volumes {
		if v.Name == name {
			found = append(found, "host volume")
		}
	}
	if s.MountWith(engineID) != "" {
		found = append(found, "vault key")
	}
	pairs, _, err := s.Consul.KV().List("", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, p := range pairs {
		// A pass during a destroy suspects what it saw; the next pass removes that.
		if strings.Contains(p.Key, "/changes/") || strings.Contains(p.Key, "/orphans/") {
			continue
		}
		if strings.Contains(p.Key, engineID) || bytes.Contains(p.Value, []byte(engineID)) {
			found = append(found, "consul "+p.Key)
		}
	}
	return found
}

// Census counts what a deployment has in every store, except for the pool.
func (s *Stores) Census(prefix string) map[string]int {
	s.T.Helper()
	deployment := strings.TrimSuffix(prefix, "/")
	idPrefix := s.idPrefix(prefix)
	out := map[string]int{"rows": len(s.Rows(prefix))}
	for _, kind := range []string{"engine-ids/", "graves/"} {
		keys, _, err := s.Consul.KV().Keys(prefix+kind, "", nil)
		if err != nil {
			s.T.Fatal(err)
		}
		out[kind] = len(keys)
	}
	ids, _, err := s.Consul.KV().Keys(prefix, "", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, key := range ids {
		if strings.HasPrefix(key, prefix+"quota/") {
			pair, _, err := s.Consul.KV().Get(key, nil)
			if err != nil {
				s.T.Fatal(err)
			}
			var n int
			if _, err := fmt.Sscan(string(pair.Value), &n); err != nil {
				s.T.Fatal(err)
			}
			out["quota"] += n
		}
	}
	jobs, _, err := s.Nomad.Jobs().ListOptions(&nomad.JobListOptions{Fields: &nomad.JobListFields{Meta: true}}, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, j := range jobs {
		if j.Meta["deployment"] == deployment {
			out["jobs"]++
		}
	}
	vars, _, err := s.Nomad.Variables().List(nil)
	if err != nil {
		s.T.Fatal(err)
	}
	out["variables"] = 0
	for _, v := range vars {
		if strings.HasPrefix(v.Path, "nomad/jobs/engine-"+idPrefix) {
			out["variables"]++
		}
	}
	secret, err := s.Vault.Logical().List(MountName(prefix) + "/metadata/engines")
	if err != nil {
		s.T.Fatal(err)
	}
	if secret != nil {
		for _, key := range secret.Data["keys"].([]any) {
			if strings.HasPrefix(key.(string), idPrefix) {
				out["keys"]++
			}
		}
	}
	return out
}

// WantCensus fails the test unless Census returns this.
func (s *Stores) WantCensus(prefix string, want map[string]int) {
	s.T.Helper()
	if got := s.Census(prefix); fmt.Sprint(got) != fmt.Sprint(want) {
		s.T.Fatalf("the stores hold %v, want %v", got, want)
	}
}

// Dump returns everything in the stores, and everything that the agents wrote, in plain
// text.
func (s *Stores) Dump(stack *devstack.Stack) map[string]string {
	s.T.Helper()
	out := map[string]string{}
	add := func(name string, v any, err error) {
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

// Pooled returns the pool's entries.
func (s *Stores) Pooled(prefix string) ([]registry.PooledVolume, error) {
	pairs, _, err := s.Consul.KV().List(prefix+"pool/volumes/", nil)
	if err != nil {
		return nil, err
	}
	entries := make([]registry.PooledVolume, len(pairs))
	for i, pair := range pairs {
		if err := json.Unmarshal(pair.Value, &entries[i]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// ReadyNode returns the only node that is ready.
func (s *Stores) ReadyNode() (id string) {
	s.T.Helper()
	nodes, _, err := s.Nomad.Nodes().List(nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, n := range nodes {
		if n.Status == nomad.NodeStatusReady {
			if id != "" {
				s.T.Fatalf("both %s and %s are up", id, n.ID)
			}
			id = n.ID
		}
	}
	if id == "" {
		s.T.Fatal("no node is up")
	}
	return id
}

// Lives returns nil if the job of this name has a living process, or has none, as wanted.
func (s *Stores) Lives(name string, want bool) error {
	allocs, _, err := s.Nomad.Jobs().Allocations(name, true, nil)
	if err != nil {
		return err
	}
	running := slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ClientStatus == "running" })
	if pending := slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ClientStatus == "pending" }); running != want || !want && pending {
		return fmt.Errorf("running is %t", running)
	}
	return nil
}

// Processes returns the count of an engine's job, and the number of its living allocations.
func (s *Stores) Processes(engineID string) (count int, running int) {
	s.T.Helper()
	job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	allocs, _, err := s.Nomad.Jobs().Allocations(*job.ID, true, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, a := range allocs {
		if a.ClientStatus == nomad.AllocClientStatusRunning || a.ClientStatus == nomad.AllocClientStatusPending {
			running++
		}
	}
	return *job.TaskGroups[0].Count, running
}

// TaskEvents returns Nomad's task events of an engine's processes.
func (s *Stores) TaskEvents(engineID string) string {
	s.T.Helper()
	allocs, _, err := s.Nomad.Jobs().Allocations(engine.JobID(engineID), true, nil)
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

// AwaitWarm waits until n warm engines run.
func (s *Stores) AwaitWarm(r *Replica, n int) {
	s.T.Helper()
	Eventually(s.T, fmt.Sprint(n, " warm engines run"), func() error {
		if got := r.Scheduler.WarmEngines(); got != n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// WarmRows returns the rows of warm engines that belong to no user.
func (s *Stores) WarmRows(prefix string) (warm []*engine.Row) {
	s.T.Helper()
	rows, err := s.Engines(prefix)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, row := range rows {
		if row.ProductID == engine.WarmProduct {
			warm = append(warm, row)
		}
	}
	return warm
}

// Described waits until Nomad's UI shows all these words for an engine's job.
func (s *Stores) Described(engineID string, what ...string) {
	s.T.Helper()
	Eventually(s.T, "the job names its owner", func() error {
		job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
		if err != nil {
			return err
		}
		for _, w := range what {
			if job.UI == nil || !strings.Contains(job.UI.Description, w) {
				return fmt.Errorf("it contains %+v, not %s", job.UI, w)
			}
		}
		return nil
	})
}
