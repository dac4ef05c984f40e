package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// Deployment is the record in Vault of the deployment whose keys Vault holds. It is the
// witness of the registry's record of the deployment.
type Deployment struct {
	// ID is random, generated once, and the same in both stores.
	ID string `json:"id"`
	// Registry is the id of the deployment's registry (one Consul, one prefix). A registry
	// that was created again for the same keys has another id.
	Registry string `json:"registry"`
	// Epoch is incremented by each leader, here before in the registry.
	Epoch int `json:"epoch"`
	// Where distinguishes deployments by what an operator configured: Consul's datacenter
	// and prefix, and the Nomad namespace.
	Where string `json:"where"`
	// Challenge is set by a service that has another or an empty registry and wants to use
	// these keys. A live deployment removes it.
	Challenge string `json:"challenge,omitempty"`

	// Version is the record's version in Vault, for check-and-set.
	Version int `json:"-"`
}

const deploymentPath = "deployment"

// Deployment reads the record. Without a record, ID is empty, and Version is 0 or, if a
// record was deleted, the version to write after.
func (v *Vault) Deployment(ctx context.Context) (*Deployment, error) {
	d := new(Deployment)
	version, err := v.record(ctx, deploymentPath, d)
	if err != nil {
		return nil, err
	}
	d.Version = version
	return d, nil
}

// PutDeployment writes the record by check-and-set at d.Version. ErrConflict: another
// writer has changed it since it was read.
func (v *Vault) PutDeployment(ctx context.Context, d *Deployment) error {
	version, err := v.putRecord(ctx, deploymentPath, d, d.Version)
	if err == nil {
		d.Version = version
	}
	return err
}

// Product is the witness of a product's row.
type Product struct {
	// Revision is the row's revision, which counts its changes.
	Revision int `json:"revision"`
	// Record is the row as stored in the registry. It contains hashes of platform keys, but
	// no key.
	Record json.RawMessage `json:"record,omitempty"`
	// Deleted: the product was or is being deleted, so a row that reappears is outdated.
	// DeletedAt is when Deleted was set.
	Deleted   bool      `json:"deleted,omitempty"`
	DeletedAt time.Time `json:"deleted_at,omitzero"`

	// Version is the record's version in Vault, for check-and-set.
	Version int `json:"-"`
}

func productPath(id string) string { return "products/" + id }

// ProductIDs lists the products that have a witness, including deleted products.
func (v *Vault) ProductIDs(ctx context.Context) ([]string, error) { return v.names(ctx, "products") }

// Product reads the witness of a product. Without a witness, Record is empty, and Version
// is 0 or the version to write after.
func (v *Vault) Product(ctx context.Context, id string) (*Product, error) {
	p := new(Product)
	version, err := v.record(ctx, productPath(id), p)
	if err != nil {
		return nil, err
	}
	p.Version = version
	return p, nil
}

// PutProduct writes the witness by check-and-set at p.Version. ErrConflict: another writer
// has changed it since it was read.
func (v *Vault) PutProduct(ctx context.Context, id string, p *Product) error {
	version, err := v.putRecord(ctx, productPath(id), p, p.Version)
	if err == nil {
		p.Version = version
	}
	return err
}

// record reads a record into into, and returns its version. If there is no record, into
// does not change.
func (v *Vault) record(ctx context.Context, path string, into any) (version int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.Get(ctx, path)
	if err = classify(err); errors.Is(err, ErrNotFound) {
		// There is no record, or its last version was destroyed.
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

// newestOf returns the number of the last version that was ever written at a path.
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
