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

// activityBelow is where the replicas tell which engines were admitted.
const activityBelow = "activity/"

const (
	// flushSlots is how many flushes of a replica can be read: a leader that
	// looks later than that misses some, and notices.
	flushSlots = 8
	// maxServed and maxFlying bound a flush: Consul takes 512 KiB in one
	// transaction, in which each byte of a value costs 16/9.
	maxServed = 16 << 10
	maxFlying = 2 << 10
)

// Fingerprint stands for an engine in a flush. Two engines may share one; then
// the one is kept awake with the other.
func Fingerprint(productID, userID string) uint64 {
	sum := sha256.Sum256([]byte(productID + "\x00" + userID))
	return binary.LittleEndian.Uint64(sum[:8])
}

// Flush is what a replica tells of its admits, about once per second, also when
// there were none. It is how the leader learns who is idle without an admit
// costing a write.
type Flush struct {
	// Seq numbers a replica's flushes, those included whose writing failed.
	Seq uint64 `json:"seq"`
	// After is the newest flush before it that was surely written: this one holds
	// what has happened since that.
	After uint64 `json:"after"`
	// Seen is the index of the flush After: all that this one tells was looked at
	// after Consul had written that index.
	Seen uint64 `json:"seen"`
	// All: there was too much to list.
	All bool `json:"all,omitempty"`
	// Served are the engines to which somebody was admitted.
	Served Fingerprints `json:"served,omitempty"`
	// Flying are the engines of admits that are not answered yet, each with the
	// Seen that its replica had when the oldest of them arrived.
	Flying map[uint64]uint64 `json:"flying,omitempty"`

	// Index is the flush's ModifyIndex in Consul.
	Index uint64 `json:"-"`
}

// Fingerprints are packed into 8 bytes each.
type Fingerprints []uint64

// MarshalText packs them. It never fails.
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

// PutFlush writes a flush of this replica and sets its Index. The key is bound to
// the replica's session: it goes when the replica does. ErrNoSession.
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
		// The lock is refused to a session that is gone, and also, for lockDelay,
		// to the one after it.
		return fmt.Errorf("%w: %w", ErrNoSession, err)
	}
	if err != nil {
		return err
	}
	f.Index = indexOf(results, key)
	return nil
}

// Activity is what all replicas have told, as of one moment.
type Activity struct {
	// Replicas are those that hold a session, each with an index that is another
	// for each session.
	Replicas map[string]uint64
	// Flushes are theirs that can still be read, in the order of Seq.
	Flushes map[string][]*Flush
}

// Activity reads which replicas there are and what they told, in one transaction.
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
			continue // as one that was missed: the leader notices
		}
		f.Index = pair.ModifyIndex
		a.Flushes[id] = append(a.Flushes[id], f)
	}
	for _, list := range a.Flushes {
		slices.SortFunc(list, func(a, b *Flush) int { return int(int64(a.Seq - b.Seq)) })
	}
	return a, nil
}
