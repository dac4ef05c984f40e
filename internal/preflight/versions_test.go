package preflight

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
)

func TestOldServers(t *testing.T) {
	server := func(build, status string) *api.AgentMember {
		return &api.AgentMember{Name: build, Status: status, Tags: map[string]string{"build": build}}
	}
	for name, tc := range map[string]struct {
		servers []*api.AgentMember
		want    []string
	}{
		"none":                       {nil, nil},
		"new ones":                   {[]*api.AgentMember{server("2.0.1", "alive"), server("2.0.5+ent", "alive"), server("10.0.0", "alive")}, nil},
		"one of each version":        {[]*api.AgentMember{server("2.0.0", "alive"), server("1.11.3", "alive"), server("1.11.3", "alive")}, []string{"1.11.3", "2.0.0"}},
		"in the middle of an update": {[]*api.AgentMember{server("2.0.5", "alive"), server("1.9.0", "alive"), server("1.11.3+ent", "failed")}, []string{"1.9.0", "1.11.3+ent"}},
		"before a release":           {[]*api.AgentMember{server("2.0.1-rc.1", "alive")}, []string{"2.0.1-rc.1"}},
		"one that left":              {[]*api.AgentMember{server("1.11.3", "left")}, nil},
		"one that does not say":      {[]*api.AgentMember{{Status: "alive"}, server("next", "alive")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, v := range oldServers(tc.servers) {
				got = append(got, v.Original())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
