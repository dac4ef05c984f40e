// Package preflight tries each right that the service needs in Nomad, Consul and Vault, and
// checks the settings of the agents, without changing anything; it only renews the service's
// own token in Vault. A right is tried by a call
// that the store refuses for another reason if the right is there: a check-and-set at an
// index that cannot be, or something that does not exist.
package preflight

import (
	"context"
	"maps"
	"net/http"
	"slices"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"
)

// State is the result of one check.
type State string

// The states. Advice: the service works without it, with a weakness. Unknown: it cannot be
// checked now, or not with the service's rights.
const (
	OK      State = "ok"
	Missing State = "missing"
	Advice  State = "advice"
	Unknown State = "unknown"
)

// Result is one thing that the service needs.
type Result struct {
	Store string `json:"store"` // "nomad", "consul", "vault" or "audit"
	State State  `json:"state"`
	Needs string `json:"needs"`          // the right or setting, as in the store's policies and configuration
	Said  string `json:"said,omitempty"` // by the store; empty if OK
	// Remedy is what an operator can do; empty if OK.
	Remedy string `json:"remedy,omitempty"`
}

// Stores are the stores and the names that the service uses in them.
type Stores struct {
	Nomad     *nomad.Client
	Namespace string // of engines
	Driver    string // of engines
	// AllowOpenNomad: Nomad's ACLs may be off.
	AllowOpenNomad bool
	// LocalSnapshots: snapshots are in a directory of one machine.
	LocalSnapshots bool

	Consul *consul.Client
	// ConsulAsk sends a POST request to Consul's HTTP API, because Consul's client has no
	// function for the authorization of a token. It returns the status code.
	ConsulAsk func(ctx context.Context, path string, in, out any) (int, error)
	Prefix    string // of the keys

	Vault *vault.Client
	Mount string // of the keys
}

// Rights tries all rights. It takes as long as the slowest store.
func (s *Stores) Rights(ctx context.Context) []Result {
	return together(ctx, s.nomadRights, s.consulRights, s.vaultRights)
}

// Settings checks the configuration of the agents, as far as the service may read it.
func (s *Stores) Settings(ctx context.Context) []Result {
	return together(ctx, s.agentACL, s.namespaceDrivers, s.nodeSettings, s.serverVersions)
}

func together(ctx context.Context, checks ...func(context.Context) []Result) (all []Result) {
	results := make([][]Result, len(checks))
	var work errgroup.Group
	for i, check := range checks {
		work.Go(func() error { results[i] = check(ctx); return nil })
	}
	_ = work.Wait()
	for _, r := range results {
		all = append(all, r...)
	}
	return all
}

// refused reports whether a status code is a refusal of the token or a right of it.
func refused(status int) bool {
	return status == http.StatusForbidden || status == http.StatusUnauthorized
}

// Failed reports whether the service cannot work with what was found: something is missing,
// or nothing is known of a store.
func Failed(results []Result) bool {
	known := map[string]bool{}
	for _, r := range results {
		if r.State == Missing {
			return true
		}
		known[r.Store] = known[r.Store] || r.State != Unknown
	}
	return slices.Contains(slices.Collect(maps.Values(known)), false)
}
