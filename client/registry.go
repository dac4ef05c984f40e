package client

import (
	"context"
	"net/http"
	"time"
)

// States of the registry: [RegistryStatus.State], [Health.Registry] and
// [FleetStatus.Registry].
const (
	RegistryOK         = "ok"
	RegistryRecovering = "recovering" // changes wait or fail with ErrRegistryRecovering
)

// States of the keys in Vault: [RegistryStatus.Keys].
const (
	KeysOK   = "ok"
	KeysLost = "lost" // Vault went back in time; Rekey gives engines new keys
)

// RegistryStatus is the state of the service's registry.
type RegistryStatus struct {
	DeploymentID string    `json:"deployment_id"`
	RegistryID   string    `json:"registry_id"`
	Epoch        int       `json:"epoch"` // incremented by each leader
	State        string    `json:"state"` // ok or recovering
	Why          string    `json:"why,omitempty"`
	Since        time.Time `json:"since,omitzero"`
	Keys         string    `json:"keys"` // ok or lost
	// KeysLostSince is when the service noticed that Vault went back in time.
	KeysLostSince time.Time `json:"keys_lost_since,omitzero"`
	KeysMissing   int       `json:"keys_missing"` // engines whose key Vault does not have
	Quarantined   int       `json:"quarantined"`  // engines that wait for an admin's decision
	LastRecovery  *Recovery `json:"last_recovery,omitempty"`
}

// Recovery is what the last recovery of the registry did.
type Recovery struct {
	Why       string    `json:"why"`
	BeganAt   time.Time `json:"began_at"`
	EndedAt   time.Time `json:"ended_at"`
	Rebuilt   int       `json:"rebuilt"`   // rows that were missing
	Corrected int       `json:"corrected"` // rows that were outdated
	Missing   int       `json:"missing"`   // rows whose engine no longer exists
	Products  int       `json:"products"`
	Pooled    int       `json:"pooled"` // pooled volumes that had been used meanwhile
}

// Registry reads the state of the registry. It is for the admin.
func (c *Client) Registry(ctx context.Context) (*RegistryStatus, error) {
	r := new(RegistryStatus)
	return r, c.get(ctx, admin, "/registry", r)
}

// PlanRecovery reads what a recovery of the registry would do now. It is for the admin.
func (c *Client) PlanRecovery(ctx context.Context) ([]Action, error) {
	var answer struct {
		Actions []Action `json:"actions"`
	}
	err := c.get(ctx, admin, "/registry/recover", &answer)
	return answer.Actions, err
}

// RecoverRegistry requests a recovery of the registry, and does not wait for it. Changes of
// engines wait meanwhile. It is for the admin.
func (c *Client) RecoverRegistry(ctx context.Context) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/registry/recover", keys: admin, repeatable: true})
}

// Rekeyed is the result of Rekey.
type Rekeyed struct {
	Rekeyed int `json:"rekeyed"`  // engines that have and accept a new key
	AtStart int `json:"at_start"` // engines that get a new key at their next start
	Failed  int `json:"failed"`   // engines that did not confirm their new key
	Left    int `json:"left"`     // engines left for the next call
}

// Rekey gives new keys to running engines whose key Vault has lost, for about 20 seconds.
// Call it again while some are left. Products get the new keys from Admit. It is for the
// admin.
func (c *Client) Rekey(ctx context.Context) (*Rekeyed, error) {
	r := new(Rekeyed)
	return r, c.do(ctx, call{method: http.MethodPost, path: "/registry/rekey", keys: admin, out: r, repeatable: true})
}
