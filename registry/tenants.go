package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// ErrHasEngines means that the product still has engines.
var ErrHasEngines = errors.New("registry: product has engines")

// Tenant is a product with its number of engines, in any state.
type Tenant struct {
	*engine.Product
	Engines int
}

// Products reads all products. Those that cannot be read are returned separately.
func (s *Store) Products(ctx context.Context) (products []*engine.Product, unreadable []*Unreadable, err error) {
	pairs, err := s.list(ctx, "products/")
	if err != nil {
		return nil, nil, err
	}
	for _, pair := range pairs {
		p, err := decodeProduct(pair)
		if err != nil {
			unreadable = append(unreadable, asUnreadable(err))
			continue
		}
		products = append(products, p)
	}
	return products, unreadable, nil
}

// Tenants reads all products, oldest first. Those that cannot be read are returned
// separately.
func (s *Store) Tenants(ctx context.Context) (tenants []Tenant, unreadable []*Unreadable, err error) {
	products, unreadable, err := s.Products(ctx)
	if err != nil {
		return nil, nil, err
	}
	quotas, err := s.Quotas(ctx)
	if err != nil {
		return nil, nil, err
	}
	tenants = make([]Tenant, 0, len(products))
	for _, p := range products {
		q, known := quotas[p.ProductID]
		if !known || q.Count < 0 { // unless the product was deleted between the two lists
			if q.Count, err = s.QuotaCount(ctx, p.ProductID); err != nil && !errors.Is(err, ErrNotFound) {
				return nil, nil, err
			}
		}
		tenants = append(tenants, Tenant{p, q.Count})
	}
	slices.SortFunc(tenants, func(a, b Tenant) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return compare(a.ProductID, b.ProductID)
	})
	return tenants, unreadable, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Product reads one product. ErrNotFound.
func (s *Store) Product(ctx context.Context, productID string) (*engine.Product, error) {
	pair, err := s.get(ctx, s.productKey(productID))
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return nil, fmt.Errorf("%w: product", ErrNotFound)
	}
	return decodeProduct(pair)
}

// Tenant reads one product. ErrNotFound: there is no such product.
func (s *Store) Tenant(ctx context.Context, productID string) (Tenant, error) {
	p, err := s.Product(ctx, productID)
	if err != nil {
		return Tenant{}, err
	}
	n, err := s.QuotaCount(ctx, productID)
	return Tenant{p, n}, err
}

// SetPolicy replaces a product's policy if may accepts the current one. The new policy is
// effective for every read that begins after SetPolicy returns. ErrNotFound: there is no
// such product. Any other error is may's.
func (s *Store) SetPolicy(ctx context.Context, productID string, policy engine.Policy, may func(engine.Policy) error) (*engine.Product, error) {
	return s.changeProduct(ctx, productID, func(p *engine.Product) (consul.KVTxnOps, error) {
		if err := may(p.Policy); err != nil {
			return nil, err
		}
		p.Policy = policy
		if u := keptOf(p.Stored).unknown; u != nil { // the new policy has no other fields
			p.Stored = kept{unknown: &unknown{fields: u.fields}}
		}
		return nil, nil
	})
}

// maxRetiredKeys limits the number of earlier keys of a product that are valid.
const maxRetiredKeys = 8

// RotatePlatformKey gives a product a new platform key. The previous one stays valid for
// overlap; without an overlap, it and all earlier ones become invalid at once. ErrNotFound:
// there is no such product.
func (s *Store) RotatePlatformKey(ctx context.Context, productID, keyHash string, overlap time.Duration) (*engine.Product, error) {
	return s.changeProduct(ctx, productID, func(p *engine.Product) (consul.KVTxnOps, error) {
		now := time.Now().UTC()
		ops := consul.KVTxnOps{{Verb: consul.KVCAS, Key: s.platformKey(keyHash), Value: []byte(productID)}}
		before := append([]engine.RetiredKey{{Hash: p.PlatformKeyHash, Until: now.Add(overlap)}}, p.RetiredKeys...)
		p.PlatformKeyHash, p.RetiredKeys = keyHash, nil
		for _, k := range before {
			if overlap > 0 && k.Until.After(now) && len(p.RetiredKeys) < maxRetiredKeys {
				p.RetiredKeys = append(p.RetiredKeys, k)
				continue
			}
			ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.platformKey(k.Hash)})
		}
		return ops, nil
	})
}

// changeProduct applies change to a product's row by check-and-set, together with the
// operations that change returns.
func (s *Store) changeProduct(ctx context.Context, productID string, change func(*engine.Product) (consul.KVTxnOps, error)) (*engine.Product, error) {
	for {
		t, err := s.Tenant(ctx, productID)
		if err != nil {
			return nil, err
		}
		more, err := change(t.Product)
		if err != nil {
			return nil, err
		}
		t.Revision++
		ops := append(consul.KVTxnOps{{Verb: consul.KVCAS, Key: s.productKey(productID), Value: encode(t.Product), Index: t.Index}}, more...)
		results, _, err := s.txn(ctx, ops)
		if errors.Is(err, ErrConflict) && ctx.Err() == nil {
			continue // another writer changed it
		}
		if err != nil {
			return nil, err
		}
		t.Index = indexOf(results, s.productKey(productID))
		return t.Product, nil
	}
}

// DeleteProduct deletes a product without engines, with its keys and everything stored for
// it. A concurrent provision fails because the row is missing. ErrNotFound, ErrHasEngines.
func (s *Store) DeleteProduct(ctx context.Context, productID string) error {
	for {
		t, err := s.Tenant(ctx, productID)
		if err != nil {
			return err
		}
		count, index, err := s.quota(ctx, productID)
		if err != nil {
			return err
		}
		if count > 0 {
			return fmt.Errorf("%w: %d", ErrHasEngines, count)
		}
		ops := append(deleteAt(s.productKey(productID), t.Index), deleteAt(s.quotaKey(productID), index)...)
		ops = append(ops,
			&consul.KVTxnOp{Verb: consul.KVDelete, Key: s.slugKey(t.Slug)},
			&consul.KVTxnOp{Verb: consul.KVDelete, Key: s.platformKey(t.PlatformKeyHash)},
			&consul.KVTxnOp{Verb: consul.KVDelete, Key: s.rateKey(productID)},
			&consul.KVTxnOp{Verb: consul.KVDeleteTree, Key: s.idempotencyKey(productID, "")},
		)
		for _, k := range t.RetiredKeys {
			ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.platformKey(k.Hash)})
		}
		_, _, err = s.txn(ctx, ops)
		if !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
}
