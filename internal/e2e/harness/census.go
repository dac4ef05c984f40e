package harness

import (
	"bytes"
	"fmt"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
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
		// A pass during a destroy suspects what it saw; the next pass removes that. The record of
		// the deployment says why the registry was rebuilt last.
		if strings.Contains(p.Key, "/changes/") || strings.Contains(p.Key, "/orphans/") || strings.HasSuffix(p.Key, "/deployment") {
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
