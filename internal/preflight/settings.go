package preflight

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
)

const (
	// nodeTimeout limits the calls to one node.
	nodeTimeout = 2 * time.Second
	// atOnce is the maximum number of nodes that are read concurrently.
	atOnce = 8
	// leastKillTimeout is how long an engine may take to end (kill_timeout of its job).
	leastKillTimeout = 30 * time.Second
)

// agentConfig is the part of a Nomad agent's configuration that the service depends on
// (GET /v1/agent/self).
type agentConfig struct {
	ACL    struct{ Enabled bool }
	Client clientConfig
}

// clientConfig is its client block.
type clientConfig struct {
	TemplateConfig *struct{ VaultRetry, NomadRetry, ConsulRetry *retry }
	MaxKillTimeout string
}

type retry struct{ Attempts *int }

// nodeSettings checks the configuration of each node that is ready. It needs agent:read.
func (s *Stores) nodeSettings(ctx context.Context) []Result {
	nodes, _, err := s.Nomad.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return []Result{unreadable(Result{Store: "nomad", Needs: "nodes"}, err)}
	}
	var all []Result
	if s.LocalSnapshots && len(nodes) > 1 {
		all = append(all, Result{
			Store: "nomad", Needs: "one client node, because ORCH_SNAPSHOT_URL is a directory", State: Advice,
			Said:   fmt.Sprintf("there are %d; snapshots of brains on others fail unless all see the same directory, and a directory is lost with its machine", len(nodes)),
			Remedy: "set ORCH_SNAPSHOT_URL to a bucket (docs/install.md)",
		})
	}
	results := make([][]Result, len(nodes))
	var work errgroup.Group
	work.SetLimit(atOnce)
	for i, node := range nodes {
		if node.Status == api.NodeStatusReady {
			work.Go(func() error { results[i] = s.nodeResults(ctx, node); return nil })
		}
	}
	_ = work.Wait()
	for _, r := range results {
		all = append(all, r...)
	}
	return all
}

func (s *Stores) nodeResults(ctx context.Context, node *api.NodeListStub) []Result {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	retries := Result{Store: "nomad", Needs: "node " + node.Name + ": client template retries without limit", State: OK}
	kill := Result{Store: "nomad", Needs: fmt.Sprintf("node %s: client max_kill_timeout of %s or more", node.Name, leastKillTimeout), State: OK}
	acl := Result{Store: "nomad", Needs: "node " + node.Name + ": acl enabled", State: OK}
	direct, err := s.Nomad.GetNodeClientWithTimeout(node.ID, nodeTimeout, (&api.QueryOptions{}).WithContext(ctx))
	var agent *agentConfig
	if err == nil {
		agent, err = configOf(ctx, direct)
	}
	if err != nil {
		return []Result{unreadable(acl, err), unreadable(retries, err), unreadable(kill, err)}
	}
	client := &agent.Client
	if client.retriesLimited() {
		retries.State, retries.Said = Missing, "the agent kills engines during a long outage of Vault or Nomad"
		retries.Remedy = "set template { vault_retry { attempts = 0 } nomad_retry { attempts = 0 } consul_retry { attempts = 0 } } in its client block"
	}
	if d, err := time.ParseDuration(client.MaxKillTimeout); err == nil && d < leastKillTimeout {
		kill.State, kill.Said = Missing, "it is "+client.MaxKillTimeout+", so engines are killed before they have ended"
		kill.Remedy = fmt.Sprintf(`set max_kill_timeout = "%s" in its client block`, leastKillTimeout)
	}
	if s.AllowOpenNomad {
		return []Result{retries, kill} // agentACL says it once
	}
	return []Result{s.judgeACL(acl, agent), retries, kill}
}

// agentACL checks that ACLs are on in the agent that the service calls. It needs agent:read.
func (s *Stores) agentACL(ctx context.Context) []Result {
	r := Result{Store: "nomad", Needs: "the agent at NOMAD_ADDR: acl enabled", State: OK}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	agent, err := configOf(ctx, s.Nomad)
	if err != nil {
		return []Result{unreadable(r, err)}
	}
	return []Result{s.judgeACL(r, agent)}
}

func (s *Stores) judgeACL(r Result, agent *agentConfig) Result {
	if !agent.ACL.Enabled {
		r.State, r.Said, r.Remedy = Missing, "any engine can run commands as root on its node", "set acl { enabled = true } (docs/install.md)"
		if s.AllowOpenNomad {
			r.State = Advice
		}
	}
	return r
}

// configOf reads the configuration of the agent that a client calls.
func configOf(ctx context.Context, client *api.Client) (*agentConfig, error) {
	var self struct {
		Config agentConfig `json:"config"`
	}
	_, err := client.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
	return &self.Config, err
}

// retriesLimited reports whether a node ends the tasks whose templates cannot be rendered
// for long. Nomad's default is a limit.
func (c *clientConfig) retriesLimited() bool {
	t := c.TemplateConfig
	if t == nil {
		return true
	}
	for _, r := range []*retry{t.VaultRetry, t.NomadRetry, t.ConsulRetry} {
		if r == nil || r.Attempts == nil || *r.Attempts != 0 {
			return true
		}
	}
	return false
}

// unreadable returns the result of a setting that cannot be read.
func unreadable(r Result, err error) Result {
	r.State, r.Said, r.Remedy = Unknown, err.Error(), "let the token read it (agent: read, node: read)"
	return r
}
