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
	// Witness is nil where a version of the service wrote the variable that put
	// none there, or another hand did.
	Witness *Witness
	// Index is what a change compares; 0: there is none yet.
	Index uint64
}

// Witness is what the variable of an engine says of it, beside its row in the
// registry: what is needed to make the row anew.
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
	NodeID      string    `json:"node_id"`
	VolumeID    string    `json:"volume_id"`
	VolumeName  string    `json:"volume_name,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
}

// PutVariable writes the variable of an engine over the one that was read at
// v.Index, and notes the new index in v. Its job's process sees only a change of
// the hash. ErrConflict: it is another one now.
func (c *Cluster) PutVariable(ctx context.Context, jobID string, v *Variable) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	put := api.NewVariable(variablePath(jobID))
	put.Namespace, put.ModifyIndex = c.namespace, v.Index
	put.Items = api.VariableItems{hashItem: v.KeyHash}
	if v.Witness != nil {
		text, err := json.Marshal(v.Witness)
		if err != nil {
			return fmt.Errorf("cluster: a witness always marshals: %w", err)
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

// Variable reads the variable of an engine. ErrNotFound: there is none.
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

// DeleteVariable removes the variable of an engine, if it is there.
func (c *Cluster) DeleteVariable(ctx context.Context, jobID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.Variables().Delete(variablePath(jobID), c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// hashItem is the item of an engine's Nomad variable that holds the hash of its
// key; the job file's template reads it.
const hashItem = "key_hash"

// witnessItem is the item of the same variable that says whose the engine is.
const witnessItem = "engine"

func variablePath(jobID string) string { return "nomad/jobs/" + jobID }
