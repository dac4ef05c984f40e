package reconcile

import (
	"context"
	"errors"
	"fmt"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// products restores the rows of products that are missing, or older than their witnesses in
// Vault.
func (x *recovery) products(ctx context.Context) error {
	ids, err := x.r.d.Vault.ProductIDs(ctx)
	if err != nil {
		return err
	}
	products, unreadable, err := x.r.d.Store.Products(ctx)
	if err != nil {
		return err
	}
	have := map[string]*engine.Product{}
	for _, p := range products {
		have[p.ProductID] = p
	}
	for _, u := range unreadable { // any witness is newer
		have[u.ProductID] = &engine.Product{ProductID: u.ProductID, Index: u.Index, Revision: -1}
	}
	for _, id := range ids {
		witness, err := x.r.d.Vault.Product(ctx, id)
		if err != nil {
			return err
		}
		here := have[id]
		if witness.Deleted || len(witness.Record) == 0 || here != nil && here.Revision >= witness.Revision {
			continue
		}
		if err := x.product(ctx, id, witness, here); err != nil {
			return err
		}
	}
	return nil
}

// product restores one product, over its existing row, if there is one.
func (x *recovery) product(ctx context.Context, id string, witness *secrets.Product, before *engine.Product) error {
	p, err := registry.DecodeProduct(witness.Record)
	if err != nil || p.ProductID != id {
		x.r.d.Log.Error("cannot read the witness of a product in Vault", "product_id", id, "error", err)
		return nil
	}
	x.note(ActRestoreProduct, "product", &engine.Row{ProductID: id}, "", fmt.Sprintf("its witness in Vault has revision %d", witness.Revision))
	if x.dry {
		return nil
	}
	err = x.r.d.Store.RestoreProduct(ctx, p, before)
	if errors.Is(err, registry.ErrExists) {
		x.r.d.Log.Error("cannot restore a product, because another one has its slug now", "product_id", id, "slug", p.Slug)
		return nil
	}
	return err
}

// tenant returns a lost engine's product; a deleted product is restored for it.
func (x *recovery) tenant(ctx context.Context, id string) (registry.Tenant, error) {
	x.restoring.Lock()
	defer x.restoring.Unlock()
	if t, known := x.tenants[id]; known {
		return t, nil
	}
	t, err := x.tenantOf(ctx, id)
	if err == nil {
		x.tenants[id] = t
	}
	return t, err
}

func (x *recovery) tenantOf(ctx context.Context, id string) (registry.Tenant, error) {
	t, err := x.r.d.Store.Tenant(ctx, id)
	if !errors.Is(err, registry.ErrNotFound) {
		return t, err
	}
	witness, werr := x.r.d.Vault.Product(ctx, id)
	if werr != nil {
		return t, werr
	}
	if len(witness.Record) == 0 {
		return t, err
	}
	if x.dry {
		p, err := registry.DecodeProduct(witness.Record)
		return registry.Tenant{Product: p}, err
	}
	if err := x.product(ctx, id, witness, nil); err != nil && !errors.Is(err, registry.ErrConflict) {
		return t, err
	}
	return x.r.d.Store.Tenant(ctx, id)
}

// deleted deletes the products that were deleted since the backup and have no engine.
func (x *recovery) deleted(ctx context.Context) error {
	tenants, _, err := x.r.d.Store.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, t := range tenants {
		witness, err := x.r.d.Vault.Product(ctx, t.ProductID)
		if err != nil {
			return err
		}
		if !witness.Deleted || t.Engines > 0 || witness.Revision < t.Revision || x.dry {
			continue
		}
		x.r.d.Log.Warn("deleting again a product that had been deleted", "product_id", t.ProductID, "slug", t.Slug)
		if err := x.r.d.Store.DeleteProduct(ctx, t.ProductID); err != nil && !errors.Is(err, registry.ErrHasEngines) && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
	}
	return nil
}
