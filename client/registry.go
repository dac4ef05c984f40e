package client

import (
	"context"
	"net/http"
	"time"
)

// What the service says of its registry: [RegistryStatus.State], [Health.Registry]
// and [FleetStatus.Registry].
const (
	RegistryOK         = "ok"
	RegistryRecovering = "recovering" // changes wait or fail with ErrRegistryRecovering
)

// What the service says of the keys in Vault: [RegistryStatus.Keys].
const (
	KeysOK   = "ok"
	KeysLost = "lost" // Vault went back in time: Rekey gives engines new ones
)

// RegistryStatus is how the service's registry stands.
type RegistryStatus struct {
	DeploymentID string    `json:"deployment_id"`
	RegistryID   string    `json:"registry_id"`
	Epoch        int       `json:"epoch"` // raised by each leader
	State        string    `json:"state"` // ok or recovering
	Why          string    `json:"why,omitempty"`
	Since        time.Time `json:"since,omitzero"`
	Keys         string    `json:"keys"` // ok or lost
	// KeysLostSince is when it was seen that Vault had gone back in time.
	KeysLostSince time.Time `json:"keys_lost_since,omitzero"`
	KeysMissing   int       `json:"keys_missing"` // engines whose key Vault does not have
	Quarantined   int       `json:"quarantined"`  // engines that wait for the admin's decision
	LastRecovery  *Recovery `json:"last_recovery,omitempty"`
}

// Recovery is what the last recovery of the registry did.
type Recovery struct {
	Why       string    `json:"why"`
	BeganAt   time.Time `json:"began_at"`
	EndedAt   time.Time `json:"ended_at"`
	Rebuilt   int       `json:"rebuilt"`   // rows that were missing
	Corrected int       `json:"corrected"` // rows that said something older
	Missing   int       `json:"missing"`   // rows whose engine is gone
	Products  int       `json:"products"`
	Pooled    int       `json:"pooled"` // pooled volumes that were handed out since
}

// Registry reads how the registry stands, as the admin.
func (c *Client) Registry(ctx context.Context) (*RegistryStatus, error) {
	r := new(RegistryStatus)
	return r, c.get(ctx, admin, "/registry", r)
}

// PlanRecovery asks what a recovery of the registry would do now, as the admin.
func (c *Client) PlanRecovery(ctx context.Context) ([]Action, error) {
	var answer struct {
		Actions []Action `json:"actions"`
	}
	err := c.get(ctx, admin, "/registry/recover", &answer)
	return answer.Actions, err
}

// RecoverRegistry asks for a recovery of the registry, as the admin; it does not wait
// for it. Changes of engines wait meanwhile.
func (c *Client) RecoverRegistry(ctx context.Context) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/registry/recover", keys: admin, repeatable: true})
}

// Rekeyed is what a call of Rekey did.
type Rekeyed struct {
	Rekeyed int `json:"rekeyed"`  // engines that have a new key and take it
	AtStart int `json:"at_start"` // engines that get one with their next start
	Failed  int `json:"failed"`   // engines that did not confirm theirs
	Left    int `json:"left"`     // engines that the next call has to do
}

// Rekey gives running engines whose key Vault has lost a new one, for about 20
// seconds, as the admin: call it again while there are some left. Products get the new
// keys by Admit.
func (c *Client) Rekey(ctx context.Context) (*Rekeyed, error) {
	r := new(Rekeyed)
	return r, c.do(ctx, call{method: http.MethodPost, path: "/registry/rekey", keys: admin, out: r, repeatable: true})
}
