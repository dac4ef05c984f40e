package pool

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/registry"
)

// knownFor is how long what was read of a node's pool is handed out from. It need
// not be the newest: a volume that another replica has taken is refused by the
// claim, and then the pool is read again.
const knownFor = 10 * time.Second

// reservations hand the ready volumes of the pool out to the provisions of this
// replica, so that they neither read the pool each for itself nor race each other
// for a volume.
type reservations struct {
	mu    sync.Mutex
	known map[string]knownVolumes // by node
	// held are those that were handed out, by engine_id, and when they were claimed;
	// the zero time: not yet. What was claimed is kept for as long as a list that is
	// on its way may still have it.
	held map[string]time.Time
	// left is how many entries each node had when they were last counted, less those
	// that this replica has claimed since it began to count; taken are these.
	left, taken map[string]int
}

type knownVolumes struct {
	volumes []*registry.PooledVolume
	at      time.Time
}

func newReservations() *reservations {
	return &reservations{known: map[string]knownVolumes{}, held: map[string]time.Time{}, left: map[string]int{}, taken: map[string]int{}}
}

// knows says whether a node's volumes need not be read now.
func (h *reservations) knows(nodeID string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.known[nodeID]
	return len(known.volumes) > 0 && now.Sub(known.at) < knownFor
}

// learn takes over which volumes are ready on a node, by a list that was begun at a
// time; "": on all nodes.
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

// Hold takes one of the volumes that are known of a node; nil: there is none. Who
// has it says how it went by claimed or release.
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

// Release gives up what hold took, if it took one: perhaps another replica has it,
// so what is known of its node is forgotten.
func (h *reservations) release(v *registry.PooledVolume) {
	if v == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, v.EngineID)
	delete(h.known, v.NodeID)
}

// Claimed says that an engine has what hold took, and returns how many its node has
// left, as far as this replica knows.
func (h *reservations) claimed(v *registry.PooledVolume, now time.Time) (left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[v.EngineID] = now
	h.left[v.NodeID]--
	h.taken[v.NodeID]++
	return h.left[v.NodeID]
}

// counting says that the entries are about to be read, and counted how many each
// node had then.
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
