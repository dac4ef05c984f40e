package registry

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// activityBelow is the key prefix of the replicas' reports of admitted engines.
const activityBelow = "activity/"

const (
	// flushSlots is how many flushes of a replica can be read. A leader that reads less
	// often misses some, and notices.
	flushSlots = 8
	// maxServed and maxFlying limit the size of a flush: Consul accepts 512 KiB in one
	// transaction, in which each byte of a value counts as 16/9.
	maxServed = 16 << 10
	maxFlying = 2 << 10
)

// Fingerprint identifies an engine in a flush. If two engines have the same one, use of
// either keeps both awake.
func Fingerprint(productID, userID string) uint64 {
	sum := sha256.Sum256([]byte(productID + "\x00" + userID))
	return binary.LittleEndian.Uint64(sum[:8])
}

// Flush is a replica's report of its admits, written about once per second, even if there
// were none. From the flushes the leader learns which engines are idle, so that an admit
// need not write anything.
type Flush struct {
	// Seq numbers a replica's flushes, including those that could not be written.
	Seq uint64 `json:"seq"`
	// After is the Seq of the newest earlier flush that was certainly written. This flush
	// contains everything since then.
	After uint64 `json:"after"`
	// Seen is the index of the flush After. Everything in this flush was collected after
	// Consul had written that index.
	Seen uint64 `json:"seen"`
	// All: there were too many engines to list, so all count as used.
	All bool `json:"all,omitempty"`
	// Served are the engines that a user was admitted to.
	Served Fingerprints `json:"served,omitempty"`
	// Flying are the engines of admits in progress, each with the value that Seen had when
	// the oldest of these admits arrived.
	Flying map[uint64]uint64 `json:"flying,omitempty"`

	// Index is the flush's ModifyIndex in Consul.
	Index uint64 `json:"-"`
}

// Fingerprints are stored in 8 bytes each.
type Fingerprints []uint64

// MarshalText encodes the fingerprints. It never fails.
func (f Fingerprints) MarshalText() ([]byte, error) {
	packed := make([]byte, 0, 8*len(f))
	for _, one := range f {
		packed = binary.LittleEndian.AppendUint64(packed, one)
	}
	return base64.RawStdEncoding.AppendEncode(nil, packed), nil
}

// UnmarshalText is the inverse of MarshalText.
func (f *Fingerprints) UnmarshalText(text []byte) error {
	packed, err := base64.RawStdEncoding.AppendDecode(nil, text)
	if err != nil || len(packed)%8 != 0 {
		return fmt.Errorf("registry: not a list of fingerprints")
	}
	*f = make(Fingerprints, 0, len(packed)/8)
	for ; len(packed) > 0; packed = packed[8:] {
		*f = append(*f, binary.LittleEndian.Uint64(packed))
	}
	return nil
}

// PutFlush writes a flush of this replica, and sets its Index. The key is bound to the
// replica's session, so it is deleted with the session. ErrNoSession.
func (s *Store) PutFlush(ctx context.Context, f *Flush) error {
	if len(f.Served) > maxServed || len(f.Flying) > maxFlying {
		f.All, f.Served, f.Flying = true, nil, nil
	}
	key := s.activityKey(s.replica.ID, f.Seq%flushSlots)
	session, _ := s.replica.current()
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVLock, Key: key, Value: encode(f), Session: session})
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, ops)
	if errors.Is(err, ErrConflict) {
		// Consul refuses the lock to a session that no longer exists, and for lockDelay
		// also to the session after it.
		return fmt.Errorf("%w: %w", ErrNoSession, err)
	}
	if err != nil {
		return err
	}
	f.Index = indexOf(results, key)
	return nil
}

// Activity is the reports of all replicas at one moment.
type Activity struct {
	// Replicas are the replicas with a session, each with an index that differs for each
	// session.
	Replicas map[string]uint64
	// Flushes are the readable flushes of each replica, ordered by Seq.
	Flushes map[string][]*Flush
}

// Activity reads the replicas and their reports in one transaction.
func (s *Store) Activity(ctx context.Context) (*Activity, error) {
	replicas, activity := s.prefix+"replicas/", s.prefix+activityBelow
	pairs, _, err := s.txn(ctx, consul.KVTxnOps{{Verb: consul.KVGetTree, Key: replicas}, {Verb: consul.KVGetTree, Key: activity}})
	if err != nil {
		return nil, err
	}
	a := &Activity{Replicas: map[string]uint64{}, Flushes: map[string][]*Flush{}}
	for _, pair := range pairs {
		if id, ok := strings.CutPrefix(pair.Key, replicas); ok {
			a.Replicas[id] = pair.CreateIndex
			continue
		}
		id, _, ok := strings.Cut(strings.TrimPrefix(pair.Key, activity), "/")
		if !ok {
			continue
		}
		f, err := decode[Flush](pair)
		if err != nil {
			continue // it counts as missed, and the leader notices
		}
		f.Index = pair.ModifyIndex
		a.Flushes[id] = append(a.Flushes[id], f)
	}
	for _, list := range a.Flushes {
		slices.SortFunc(list, func(a, b *Flush) int { return int(int64(a.Seq - b.Seq)) })
	}
	return a, nil
}
