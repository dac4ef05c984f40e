package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// Deployment is what Vault knows of the deployment whose keys it holds: the witness
// of the record that the registry has (DESIGN section 7).
type Deployment struct {
	// ID is random, made once, and the same in both stores.
	ID string `json:"id"`
	// Registry names the registry (one Consul, one prefix) that belongs to it: a
	// registry that was made anew for the same keys has another name.
	Registry string `json:"registry"`
	// Epoch is raised by each leader, here before it is raised in the registry.
	Epoch int `json:"epoch"`
	// Where is what an operator chose that tells one deployment from another:
	// Consul's datacenter and prefix, and the namespace in Nomad.
	Where string `json:"where"`
	// Challenge is set by a service that has another registry, or an empty one,
	// and wants these keys. A live deployment takes it away.
	Challenge string `json:"challenge,omitempty"`

	// Version is the record's number in Vault: what a write compares.
	Version int `json:"-"`
}

const deploymentPath = "deployment"

// Deployment reads the record. One that is not there has Version 0 or, when it was
// deleted, the number to write after, and no ID.
func (v *Vault) Deployment(ctx context.Context) (*Deployment, error) {
	d := new(Deployment)
	version, err := v.record(ctx, deploymentPath, d)
	if err != nil {
		return nil, err
	}
	d.Version = version
	return d, nil
}

// PutDeployment writes the record over the one that was read, by check-and-set.
// ErrConflict: somebody else wrote it since.
func (v *Vault) PutDeployment(ctx context.Context, d *Deployment) error {
	version, err := v.putRecord(ctx, deploymentPath, d, d.Version)
	if err == nil {
		d.Version = version
	}
	return err
}

// Product is the witness of a product's row.
type Product struct {
	// Revision is the row's, which counts its changes.
	Revision int `json:"revision"`
	// Record is the row as the registry keeps it: it holds hashes of platform keys,
	// and no key.
	Record json.RawMessage `json:"record,omitempty"`
	// Deleted: the product was, or is being, deleted, and a row that comes back is an
	// old one. DeletedAt is when that was said.
	Deleted   bool      `json:"deleted,omitempty"`
	DeletedAt time.Time `json:"deleted_at,omitzero"`

	// Version is the record's number in Vault: what a write compares.
	Version int `json:"-"`
}

func productPath(id string) string { return "products/" + id }

// ProductIDs lists the products that have a witness, deleted ones included.
func (v *Vault) ProductIDs(ctx context.Context) ([]string, error) { return v.names(ctx, "products") }

// Product reads the witness of a product; one that is not there has Version 0 or
// the number to write after, and no Record.
func (v *Vault) Product(ctx context.Context, id string) (*Product, error) {
	p := new(Product)
	version, err := v.record(ctx, productPath(id), p)
	if err != nil {
		return nil, err
	}
	p.Version = version
	return p, nil
}

// PutProduct writes the witness over the one that was read, by check-and-set.
// ErrConflict: somebody else wrote it since.
func (v *Vault) PutProduct(ctx context.Context, id string, p *Product) error {
	version, err := v.putRecord(ctx, productPath(id), p, p.Version)
	if err == nil {
		p.Version = version
	}
	return err
}

// record reads a record into v, and returns its version. Where there is none, into
// stays as it is.
func (v *Vault) record(ctx context.Context, path string, into any) (version int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.Get(ctx, path)
	if err = classify(err); errors.Is(err, ErrNotFound) {
		// Nothing, or a last version that was destroyed.
		return v.newestOf(ctx, path)
	}
	if err != nil {
		return 0, err
	}
	if secret.Data != nil {
		raw, err := json.Marshal(secret.Data)
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			return 0, fmt.Errorf("secrets: the record at %s is damaged: %w", path, err)
		}
	}
	if secret.VersionMetadata != nil {
		version = secret.VersionMetadata.Version
	}
	return version, nil
}

// newestOf is the number of the last version that was ever written at a path.
func (v *Vault) newestOf(ctx context.Context, path string) (int, error) {
	meta, err := v.kv.GetMetadata(ctx, path)
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return meta.CurrentVersion, nil
}

func (v *Vault) putRecord(ctx context.Context, path string, record any, current int) (version int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.Put(ctx, path, fields(record), vault.WithCheckAndSet(current))
	if err != nil {
		return 0, classify(err)
	}
	return secret.VersionMetadata.Version, nil
}
