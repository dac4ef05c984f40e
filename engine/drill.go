package engine

import "time"

// Drill is the result of a restore drill: a snapshot was restored into a volume of its own,
// its sums were compared, and its SQLite databases were checked.
type Drill struct {
	SnapshotID string    `json:"snapshot_id"`
	At         time.Time `json:"at"` // when the result was known
	// Databases is how many databases were checked, and Unchecked how many could not be, which
	// says nothing about them.
	Databases int `json:"databases,omitempty"`
	Unchecked int `json:"unchecked,omitempty"`
	// Failure is why the snapshot could not be restored; empty: it could. It names nothing of
	// the user's.
	Failure string `json:"failure,omitempty"`
}

// Recovery is the duration of a restore.
type Recovery struct {
	At time.Time `json:"at"`
	MS int64     `json:"ms"`
}

// Failed reports whether the snapshot could not be restored. It may be called for nil.
func (d *Drill) Failed() bool { return d != nil && d.Failure != "" }
