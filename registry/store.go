// Package registry records what exists: products, engine rows, quota counts, the pool of
// ready volumes and the replicas of the service, in Consul KV.
//
// Every change is one Consul transaction with check-and-set, so that it takes effect
// completely or not at all, with any number of replicas.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Errors that callers distinguish. Each one is wrapped with its cause.
var (
	// ErrNotFound: there is no such row.
	ErrNotFound = errors.New("registry: not found")
	// ErrExists: a row of this name exists already.
	ErrExists = errors.New("registry: exists already")
	// ErrConflict: another writer has changed the row since it was read.
	ErrConflict = errors.New("registry: changed by another writer")
	// ErrQuota: the product has as many engines as its policy allows.
	ErrQuota = errors.New("registry: quota exceeded")
	// ErrUnavailable: Consul cannot be reached or has no leader. It is unknown whether a
	// change was made.
	ErrUnavailable = errors.New("registry: consul unavailable")
	// ErrDenied: Consul refuses the service's token, or hides something from it; always
	// together with ErrUnavailable.
	ErrDenied = errors.New("registry: consul refused the service's token")
	// ErrNoSession: this replica has no live session, so it may not change rows.
	ErrNoSession = errors.New("registry: this replica has no consul session")
	// ErrMoved: the deployment's record is not the one that this replica follows; read it
	// again.
	ErrMoved = errors.New("registry: the deployment's record has changed")
	// ErrWentBack: Consul was restored from an older state than one that this replica has
	// seen; always together with ErrUnavailable. Store.WentBack reports it too.
	ErrWentBack = errors.New("registry: Consul went back in time")
)

// callTimeout limits one call to Consul: far more than a healthy cluster needs
// (0.5 ms), and short enough to return 503 if it hangs.
const callTimeout = 5 * time.Second

// fleetTimeout limits the list of all rows: 10,000 took about a second on a busy machine
// (BenchmarkMirrorColdStart).
const fleetTimeout = 15 * time.Second

// Store reads and writes the registry below one prefix.
type Store struct {
	client *consul.Client
	prefix string

	// quotas contains a quotaTurn per product: writers of one replica take turns at its
	// count, instead of racing with check-and-set (measured: 16 racing writers retry 5
	// times each).
	quotas sync.Map

	shared   sharedReads
	products decoded

	mirror  *Mirror
	replica *Replica

	deployment atomic.Pointer[Deployment] // the record that this replica follows
	wentBack   atomic.Pointer[string]     // see WentBack
	back       chan struct{}              // see Back
}

// New returns a store for the keys below prefix, which must end in a slash.
func New(client *consul.Client, prefix string) *Store {
	s := &Store{client: client, prefix: prefix, back: make(chan struct{}, 1)}
	s.shared.store = s
	return s
}

// Key names below the prefix.
const enginesBelow = "engines/"

func (s *Store) productKey(id string) string      { return s.prefix + "products/" + id }
func (s *Store) slugKey(slug string) string       { return s.prefix + "slugs/" + slug }
func (s *Store) platformKey(hash string) string   { return s.prefix + "platform-keys/" + hash }
func (s *Store) quotaKey(productID string) string { return s.prefix + "quota/" + productID }
func (s *Store) rateKey(productID string) string  { return s.prefix + "rate/" + productID }
func (s *Store) engineIDKey(id string) string     { return s.prefix + "engine-ids/" + id }
func (s *Store) engineKey(productID, userID string) string {
	return s.prefix + enginesBelow + rowName(productID, userID)
}
func (s *Store) activityKey(replicaID string, slot uint64) string {
	return s.prefix + activityBelow + replicaID + "/" + strconv.FormatUint(slot, 10)
}
func (s *Store) changeKey(productID, userID string) string {
	return s.prefix + "changes/" + shard(productID, userID)
}

// txn runs one transaction. ErrConflict without results means that it was refused as a
// whole; failed then contains the positions of the operations whose condition was not met.
func (s *Store) txn(ctx context.Context, ops consul.KVTxnOps) (results consul.KVPairs, failed []int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ok, resp, _, err := s.client.KV().Txn(ops, consistent(ctx))
	if err != nil {
		return nil, nil, notCommitted(err)
	}
	if !ok {
		for _, e := range resp.Errors {
			if strings.HasPrefix(e.What, consulDenies) {
				return nil, nil, denied(e.What) // not a conflict: nothing was compared
			}
			failed = append(failed, e.OpIndex)
		}
		return nil, failed, fmt.Errorf("%w: %v", ErrConflict, failed)
	}
	return resp.Results, nil, nil
}

// deleteAt returns the operations that delete a key only if it still exists at index.
// Consul's own delete-cas also succeeds if the key no longer exists (measured), and then
// another caller has what the key stood for.
func deleteAt(key string, index uint64) consul.KVTxnOps {
	return consul.KVTxnOps{
		{Verb: consul.KVCheckIndex, Key: key, Index: index},
		{Verb: consul.KVDelete, Key: key},
	}
}

// get reads one key; nil if it does not exist.
func (s *Store) get(ctx context.Context, key string) (*consul.KVPair, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pair, _, err := s.client.KV().Get(key, consistent(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	return pair, nil
}

// list reads all keys below a prefix of the store.
func (s *Store) list(ctx context.Context, below string) (consul.KVPairs, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pairs, meta, err := s.client.KV().List(s.prefix+below, consistent(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	return pairs, s.unfiltered(ctx, below, meta, len(pairs))
}

// idsBelow returns the last segments of all keys below a prefix of the store.
func (s *Store) idsBelow(ctx context.Context, below string) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	keys, meta, err := s.client.KV().Keys(s.prefix+below, "", consistent(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	if err := s.unfiltered(ctx, below, meta, len(keys)); err != nil {
		return nil, err
	}
	ids := make(map[string]bool, len(keys))
	for _, key := range keys {
		ids[base(key)] = true
	}
	return ids, nil
}

// consistent returns the options of a read that sees every change made before it began. By
// default, a Consul server that has just won or lost the lead may return old data: an
// outdated row, or no key of a live replica.
func consistent(ctx context.Context) *consul.QueryOptions {
	return (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

// Ping makes the call that all others depend on: a consistent read below the prefix, with
// the service's own token. (An agent names a leader for a while after the leader was lost,
// and the agent's own token may have other permissions.) ErrDenied: the service may not
// read the keys.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.get(ctx, s.deploymentKey())
	return err
}

// unavailable wraps an error of the Consul client. Every failed call counts: the requests
// are correct, so what failed is the connection, the cluster, or the token.
func unavailable(err error) error {
	var status consul.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusForbidden || status.Code == http.StatusUnauthorized) {
		return denied(status.Body)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// encode returns a record as it is stored, including the fields that this version does not
// know.
func encode(v any) []byte {
	switch v := v.(type) {
	case *engine.Row:
		return engineKind.with(marshal(v), keptOf(v.Stored).unknown, opID(v))
	case *engine.Product:
		return productKind.with(marshal(v), keptOf(v.Stored).unknown, "")
	}
	return marshal(v)
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("registry: cannot encode a row: " + err.Error())
	}
	return b
}

// decode reads a value. Its error is *Unreadable.
func decode[T any](pair *consul.KVPair) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(pair.Value, v); err != nil {
		return nil, &Unreadable{Key: pair.Key, Index: pair.ModifyIndex, Err: err}
	}
	return v, nil
}

// decodeProduct decodes a product's row, which must belong to the product in its key.
func decodeProduct(pair *consul.KVPair) (*engine.Product, error) {
	id := base(pair.Key)
	p, err := decode[engine.Product](pair)
	if err == nil && (p.ProductID != id || p.Slug == "" || p.PlatformKeyHash == "") {
		err = &Unreadable{Key: pair.Key, Index: pair.ModifyIndex, Err: errors.New("registry: the row names another product, no slug, or no key")}
	}
	if u := asUnreadable(err); u != nil {
		u.ProductID = id
		return nil, u
	}
	p.Index, p.Stored = pair.ModifyIndex, kept{unknown: productKind.unknownIn(pair.Value, "")}
	return p, nil
}

// base returns the last segment of a key.
func base(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }
