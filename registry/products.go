package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// CreateProduct writes a new product with its slug, platform key hash and a quota count of
// zero. ErrExists: the slug is in use.
func (s *Store) CreateProduct(ctx context.Context, p *engine.Product) error {
	id := []byte(p.ProductID)
	_, _, err := s.txn(ctx, consul.KVTxnOps{
		{Verb: consul.KVCAS, Key: s.slugKey(p.Slug), Value: id},
		{Verb: consul.KVCAS, Key: s.productKey(p.ProductID), Value: encode(p)},
		{Verb: consul.KVCAS, Key: s.platformKey(p.PlatformKeyHash), Value: id},
		{Verb: consul.KVCAS, Key: s.quotaKey(p.ProductID), Value: []byte("0")},
	})
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("%w: slug %q", ErrExists, p.Slug)
	}
	return err
}

// ProductIDByKey returns the product that a platform key hash belongs to. ErrNotFound:
// there is no such key.
func (s *Store) ProductIDByKey(ctx context.Context, keyHash string) (string, error) {
	pair, err := s.get(ctx, s.platformKey(keyHash))
	if err != nil {
		return "", err
	}
	if pair == nil {
		return "", fmt.Errorf("%w: platform key", ErrNotFound)
	}
	return string(pair.Value), nil
}

// Lookup reads what one call of a product needs, in one transaction that begins after the
// call arrived: whether the platform key still belongs to the product, the product, and the
// user's engine (nil if there is none). The product is shared and must not be modified.
// ErrNotFound: the key or the product no longer exists. ErrWentBack.
func (s *Store) Lookup(ctx context.Context, keyHash, productID, userID string) (*engine.Product, *engine.Row, error) {
	keyAt, productAt, rowAt := s.platformKey(keyHash), s.productKey(productID), s.engineKey(productID, userID)
	found, err := s.readForward(ctx, productID, keyAt, productAt, rowAt)
	if err != nil {
		return nil, nil, err
	}
	owner, err := found[keyAt].value()
	if err != nil {
		return nil, nil, unavailable(err)
	}
	product, exists := found[productAt]
	if !exists || string(owner) != productID {
		return nil, nil, fmt.Errorf("%w: platform key", ErrNotFound)
	}
	p, err := s.products.of(product)
	if err != nil {
		return nil, nil, err
	}
	if !p.Accepts(keyHash, time.Now()) {
		return nil, nil, fmt.Errorf("%w: platform key", ErrNotFound)
	}
	row, exists := found[rowAt]
	if !exists {
		return p, nil, nil
	}
	e, err := s.row(row)
	if err != nil {
		return nil, nil, err
	}
	return p, e.Clone(), nil
}

// EncodeProduct returns the record of a product.
func EncodeProduct(p *engine.Product) []byte { return encode(p) }

// DecodeProduct is the inverse of EncodeProduct.
func DecodeProduct(record []byte) (*engine.Product, error) {
	p := new(engine.Product)
	if err := json.Unmarshal(record, p); err != nil {
		return nil, err
	}
	p.Stored = kept{unknown: productKind.unknownIn(record, "")}
	return p, nil
}
