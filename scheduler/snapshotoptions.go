package scheduler

import "github.com/septemberai/orch/brain/store"

// Snapshots are an operator's settings for snapshots of brains.
type Snapshots struct {
	Store  store.Store // where they are
	CA     string      // authorities of the store in PEM, for the workers; empty: the system's
	Worker string      // docker: the image; raw_exec: the path of the executable. Empty: there is none
	// PerNode is how many workers run at a time on one node.
	PerNode int
	// BytesPerSecond limits the transfers of each worker; 0: no limit.
	BytesPerSecond int64
	// DrillsPerDay is how many snapshots of each product are restored as a drill; 0: none.
	DrillsPerDay int
}
