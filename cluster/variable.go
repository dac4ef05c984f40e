package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Variable is an engine's Nomad variable.
type Variable struct {
	KeyHash string
	// Witness is nil if an earlier version of the service, or somebody else, wrote the
	// variable without one.
	Witness *Witness
	// Index is the index for check-and-set; 0: there is no variable yet.
	Index uint64
}

// Witness is the copy of an engine's data in its Nomad variable: what is needed to rebuild
// its row in the registry.
type Witness struct {
	Deployment  string    `json:"deployment"` // the deployment's id
	EngineID    string    `json:"engine_id"`
	ProductID   string    `json:"product_id"`
	ProductSlug string    `json:"product_slug"`
	UserID      string    `json:"user_id"`
	Image       string    `json:"image"`
	Digest      string    `json:"digest,omitempty"`
	CPUMHz      int       `json:"cpu_mhz"`
	MemoryMB    int       `json:"memory_mb"`
	NodePool    string    `json:"node_pool,omitempty"`
	Isolation   string    `json:"isolation,omitempty"`
	NodeID      string    `json:"node_id"`
	VolumeID    string    `json:"volume_id"`
	VolumeName  string    `json:"volume_name,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
}

// PutVariable writes an engine's variable by check-and-set at v.Index, and sets v.Index to
// the new index. The process of the engine's job sees only changes of the hash.
// ErrConflict: the variable was changed meanwhile.
func (c *Cluster) PutVariable(ctx context.Context, jobID string, v *Variable) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	put := api.NewVariable(variablePath(jobID))
	put.Namespace, put.ModifyIndex = c.namespace, v.Index
	put.Items = api.VariableItems{hashItem: v.KeyHash}
	if v.Witness != nil {
		text, err := json.Marshal(v.Witness)
		if err != nil {
			return fmt.Errorf("cluster: cannot encode a witness: %w", err)
		}
		put.Items[witnessItem] = string(text)
	}
	written, _, err := c.client.Variables().CheckedUpdate(put, c.write(ctx))
	if err != nil {
		return classify(err)
	}
	v.Index = written.ModifyIndex
	return nil
}

// Variable reads the variable of an engine. ErrNotFound: there is no variable.
func (c *Cluster) Variable(ctx context.Context, jobID string) (*Variable, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	held, _, err := c.client.Variables().Read(variablePath(jobID), c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	v := &Variable{KeyHash: held.Items[hashItem], Index: held.ModifyIndex}
	if w := new(Witness); json.Unmarshal([]byte(held.Items[witnessItem]), w) == nil && w.EngineID != "" {
		v.Witness = w
	}
	return v, nil
}

// DeleteVariable deletes the variable of an engine, if it exists.
func (c *Cluster) DeleteVariable(ctx context.Context, jobID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.Variables().Delete(variablePath(jobID), c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// hashItem is the item of an engine's Nomad variable that contains the hash of its key. The
// job file's template reads it.
const hashItem = "key_hash"

// witnessItem is the item of the same variable that names the engine's owner.
const witnessItem = "engine"

func variablePath(jobID string) string { return "nomad/jobs/" + jobID }
