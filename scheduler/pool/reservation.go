package pool

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/registry"
)

// knownFor is how long volumes are handed out from what was read of a node's pool. That may
// be outdated: if another replica has claimed a volume, the claim fails, and the pool is
// read again.
const knownFor = 10 * time.Second

// reservations give the ready volumes of the pool to the provisions of this replica, so
// that they need not read the pool each, and do not compete for a volume.
type reservations struct {
	mu    sync.Mutex
	known map[string]knownVolumes // by node
	// held are the volumes that were handed out, by engine_id, with the time when they were
	// claimed; zero: not yet. Claimed ones are kept for as long as an older list may still
	// contain them.
	held map[string]time.Time
	// left is the number of entries of each node when they were last counted, minus those
	// that this replica has claimed since the count began, which are in taken.
	left, taken map[string]int
}

type knownVolumes struct {
	volumes []*registry.PooledVolume
	at      time.Time
}

func newReservations() *reservations {
	return &reservations{known: map[string]knownVolumes{}, held: map[string]time.Time{}, left: map[string]int{}, taken: map[string]int{}}
}

// knows reports whether a node's volumes need not be read now.
func (h *reservations) knows(nodeID string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.known[nodeID]
	return len(known.volumes) > 0 && now.Sub(known.at) < knownFor
}

// learn stores which volumes are ready on a node, from a list that began at a time; "": on
// all nodes.
func (h *reservations) learn(nodeID string, ready []*registry.PooledVolume, begun time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, claimed := range h.held {
		if !claimed.IsZero() && begun.Sub(claimed) > knownFor {
			delete(h.held, id)
		}
	}
	if nodeID == "" {
		clear(h.known)
	}
	delete(h.known, nodeID)
	ready = slices.Clone(ready)
	rand.Shuffle(len(ready), func(i, j int) { ready[i], ready[j] = ready[j], ready[i] })
	for _, v := range ready {
		if _, held := h.held[v.EngineID]; !held {
			h.known[v.NodeID] = knownVolumes{append(h.known[v.NodeID].volumes, v), begun}
		}
	}
}

// hold reserves one of the known volumes of a node; nil: there is none. The caller must
// call claimed or release.
func (h *reservations) hold(nodeID string) *registry.PooledVolume {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.known[nodeID]
	if len(known.volumes) == 0 {
		return nil
	}
	v := known.volumes[0]
	known.volumes = known.volumes[1:]
	h.known[nodeID] = known
	h.held[v.EngineID] = time.Time{}
	return v
}

// release frees what hold reserved, if anything. Another replica may have that volume, so
// what is known of its node is forgotten.
func (h *reservations) release(v *registry.PooledVolume) {
	if v == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, v.EngineID)
	delete(h.known, v.NodeID)
}

// claimed records that an engine has what hold reserved, and returns how many entries its
// node has left, as far as this replica knows.
func (h *reservations) claimed(v *registry.PooledVolume, now time.Time) (left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[v.EngineID] = now
	h.left[v.NodeID]--
	h.taken[v.NodeID]++
	return h.left[v.NodeID]
}

// counting records that the entries are about to be read, and counted how many each node
// had then.
func (h *reservations) counting() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.taken)
}

func (h *reservations) counted(entries map[string]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.left)
	for node, n := range entries {
		h.left[node] = n - h.taken[node]
	}
}
