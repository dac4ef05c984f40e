package brain

import "time"

// Report is a line of the worker's output. The last line has Result or Error; those before
// it say how far the work is.
type Report struct {
	Order string `json:"order"`
	// Phase is waiting, copy, upload, download, install, check, or done.
	Phase  string     `json:"phase"`
	Bytes  int64      `json:"bytes,omitempty"`  // so far, in this phase
	Listen string     `json:"listen,omitempty"` // where a waiting worker listens
	Result *Result    `json:"result,omitempty"`
	Error  *ErrorText `json:"error,omitempty"`
}

// Result says what a finished order did.
type Result struct {
	Content
	// Parts is how many parts the object has; those of the upload with a higher number, if
	// there are any, do not belong to it.
	Parts int `json:"parts,omitempty"`
	// CopyMS is how long the copy took on the node, during which an engine is frozen. It began
	// and ended at CopyBegan and CopyEnded by the node's clock. Shared is how many files share
	// their blocks with the brain.
	CopyMS    int64     `json:"copy_ms,omitempty"`
	CopyBegan time.Time `json:"copy_began,omitzero"`
	CopyEnded time.Time `json:"copy_ended,omitzero"`
	Shared    int64     `json:"shared,omitempty"`
	// CopyLeft means that the copy could not be removed from the work directory.
	CopyLeft bool `json:"copy_left,omitempty"`
	// Databases is how many SQLite databases a drill has checked, and Unchecked how many it
	// could not check.
	Databases int `json:"databases,omitempty"`
	Unchecked int `json:"unchecked,omitempty"`
	// SkippedNames are the first of the entries that are not in the snapshot.
	SkippedNames []string `json:"skipped_names,omitempty"`
}

// ErrorText is an error in the worker's output.
type ErrorText struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
	Retry   bool   `json:"retry"` // whether the same order may succeed later
}

// TextOf returns an error as the worker reports it.
func TextOf(err error) *ErrorText {
	kind := KindOf(err)
	return &ErrorText{Kind: kind, Message: err.Error(), Retry: kind.Retry()}
}
